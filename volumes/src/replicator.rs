//! The threaded replicator: two threads around one machine, and a [`Handle`].
//!
//! ```text
//!   replicate -- places, direction, mark: checked by sp-copy, the replica made when there is none
//!        `--> sp-copy-src: looks, reads      sp-copy: looks, writes      one machine between them
//! ```
//!
//! No method of [`Handle`] waits for a medium. Awkward cases: a side that hangs stops only its
//! own thread, and the status says so; one that keeps failing is opened anew and looked at before
//! it is used; a thread stuck in the kernel is left behind at the end (what it still writes is a
//! record that was due at that place).

use crate::buffer::Pool;
use crate::event::{IoFault, IoFaultKind, Micros, Op, Step};
use crate::flusher::{Descriptor, Pulse};
use crate::format::superblock::Uuid;
use crate::lock::HostLock;
use crate::log::replicate::{
    Lag, Notice, Pace, ReplicaCounters, Replicator, ReplicatorOptions, Side,
};
use crate::media::Location;
use crate::replica::{Consent, CopyError, check_source, gone, host, make_replica, prepare};
use crate::runtime::{self, AttachError, Clock, Opener};
use bytes::Bytes;
use serde::Serialize;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// An idle thread looks around this often.
const NAP_MAX: Duration = Duration::from_millis(500);

/// Called from our threads; must not block.
pub type NoticeSink = Arc<dyn Fn(Notice) + Send + Sync>;

#[derive(Debug, Clone)]
pub struct CopyOptions {
    pub source: Location,
    pub destination: Location,
    pub pace: Pace,
    pub bytes_per_s: Option<u64>,
    /// One host alone uses both media: the page cache may be used (tmpfs).
    pub single_host: bool,
    /// What a replica that does not exist yet may replace.
    pub consent: Consent,
    /// An operation older than this is reported as stalled.
    pub io_deadline: Duration,
    /// Media that cannot be opened are waited for instead of refused.
    pub wait_for_media: bool,
}

impl CopyOptions {
    #[must_use]
    pub fn new(source: impl Into<Location>, destination: impl Into<Location>, pace: Pace) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            pace,
            bytes_per_s: None,
            single_host: false,
            consent: Consent::default(),
            io_deadline: Duration::from_secs(1),
            wait_for_media: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// Opening and looking.
    Starting,
    /// Writing the replica's blocks for the first time.
    Making,
    /// In a round, or following and behind.
    Copying,
    /// Following, and nothing known is missing at the destination.
    InSync,
    /// Until the next round.
    Resting,
    /// An operation is stuck in the kernel.
    Stalled,
    /// Operations fail; they are being retried.
    Failed,
    /// Nothing is written, for a reason that is looked at again.
    Refused,
    Done,
    Stopped,
}

impl CopyState {
    pub const ALL: [Self; 10] = [
        Self::Starting,
        Self::Making,
        Self::Copying,
        Self::InSync,
        Self::Resting,
        Self::Stalled,
        Self::Failed,
        Self::Refused,
        Self::Done,
        Self::Stopped,
    ];

    /// As it is serialized.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Making => "making",
            Self::Copying => "copying",
            Self::InSync => "in_sync",
            Self::Resting => "resting",
            Self::Stalled => "stalled",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Done => "done",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct CopyStatus {
    pub source: String,
    pub destination: String,
    pub uuid: Option<Uuid>,
    pub name: Option<String>,
    pub state: CopyState,
    pub reason: Option<String>,
    /// Nodes whose lanes are copied.
    pub nodes: Vec<u8>,
    pub lag_records: u64,
    pub lag_bytes: u64,
    pub lag_ms: f64,
    /// Blocks of a replica in the making: bytes written, bytes in all.
    pub making: Option<(u64, u64)>,
    #[serde(flatten)]
    pub counters: ReplicaCounters,
}

struct Shared {
    o: CopyOptions,
    openers: [Opener; 2],
    /// The options' places are what is opened: locks, creation, identity.
    named_places: bool,
    clock: Clock,
    sink: NoticeSink,
    pool: Pool,
    machine: Mutex<Option<Replicator>>,
    changed: Condvar,
    pulses: [Pulse; 2],
    named: Mutex<Option<(Uuid, String)>>,
    making: [AtomicU64; 2],
    waiting_for: Mutex<Option<String>>,
    lock: Mutex<Option<HostLock>>,
    stop: AtomicBool,
    ended: Mutex<Option<Result<(), Arc<CopyError>>>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("o", &self.o).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A copy under way. Dropping it stops its threads without waiting for them.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// Copies from one file, block device or export to another.
pub fn replicate(o: CopyOptions, clock: Clock, sink: NoticeSink) -> Result<Handle, CopyError> {
    let opener = |at: &Location, write| runtime::open_at(at, write, o.single_host, o.io_deadline);
    let openers = [opener(&o.source, false), opener(&o.destination, true)];
    start(o, openers, true, clock, sink)
}

/// Copies between any media, without host locks; the options' places are labels.
pub fn replicate_between(
    o: CopyOptions,
    openers: [Opener; 2],
    clock: Clock,
    sink: NoticeSink,
) -> Result<Handle, CopyError> {
    start(o, openers, false, clock, sink)
}

fn start(
    o: CopyOptions,
    openers: [Opener; 2],
    named_places: bool,
    clock: Clock,
    sink: NoticeSink,
) -> Result<Handle, CopyError> {
    let shared = Arc::new(Shared {
        o,
        openers,
        named_places,
        clock,
        sink,
        pool: Pool::new(),
        machine: Mutex::new(None),
        changed: Condvar::new(),
        pulses: Default::default(),
        named: Mutex::new(None),
        making: Default::default(),
        waiting_for: Mutex::new(None),
        lock: Mutex::new(None),
        stop: AtomicBool::new(false),
        ended: Mutex::new(None),
    });
    let threads = Arc::new(Mutex::new(Vec::new()));
    let (s, t) = (shared.clone(), threads.clone());
    let main = spawn("sp-copy", move || {
        let end = s.clone().run(&t).map_err(Arc::new);
        locked(&s.ended).get_or_insert(end);
        locked(&s.lock).take();
        s.changed.notify_all();
    })?;
    locked(&threads).push(main);
    Ok(Handle { shared, threads })
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, CopyError> {
    let spawned = Builder::new().name(name.into()).spawn(f);
    spawned.map_err(|e| CopyError::Thread { detail: e.to_string() })
}

/// One side's way to its medium, opened anew when it keeps failing.
struct Medium<'a> {
    shared: &'a Shared,
    side: Side,
    held: Descriptor,
}

impl Medium<'_> {
    fn run(&mut self, op: Op) -> Result<Bytes, IoFault> {
        let shared = self.shared;
        let is_look = matches!(op, Op::Read { offset: 0, .. });
        if is_look && self.held.is_stray() {
            self.held = Descriptor::default();
        }
        if self.held.device.is_none() {
            let device = (shared.openers[self.side.index()])().map_err(gone)?;
            if self.side == Side::Destination {
                // What was opened may be another file than the one that was locked.
                shared.hold_lock().map_err(gone)?;
            }
            self.held.device = Some(device);
            if !is_look {
                // Nothing is done on a medium that was not looked at.
                if let Some(machine) = locked(&shared.machine).as_mut() {
                    machine.reopened(self.side);
                }
                let detail = "the medium was opened anew; it is looked at first";
                return Err(IoFault::new(IoFaultKind::Other, detail));
            }
        }
        self.held.run(&shared.pool, op)
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Prepares, then drives the destination's side, beside a thread for the source's.
    fn run(self: Arc<Self>, threads: &Mutex<Vec<JoinHandle<()>>>) -> Result<(), CopyError> {
        let mut pause = Duration::from_millis(20);
        loop {
            if self.stopping() {
                return Ok(());
            }
            match self.prepare() {
                Ok(machine) => {
                    *locked(&self.machine) = Some(machine);
                    break;
                }
                Err(e) if self.o.wait_for_media && e.may_pass() => {
                    *locked(&self.waiting_for) = Some(e.to_string());
                }
                Err(e) => return Err(e),
            }
            let guard = locked(&self.machine);
            drop(self.changed.wait_timeout(guard, pause));
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        *locked(&self.waiting_for) = None;
        let s = self.clone();
        let source = spawn("sp-copy-src", move || s.drive(Side::Source))?;
        locked(threads).push(source);
        self.drive(Side::Destination);
        let machine = locked(&self.machine);
        match machine.as_ref().and_then(Replicator::finished) {
            Some(Err(why)) => Err(CopyError::Refused {
                from: self.o.source.label(),
                to: self.o.destination.label(),
                why: why.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn prepare(&self) -> Result<Replicator, CopyError> {
        let (from, to) = (&self.o.source, &self.o.destination);
        let mut progress = |done, all| {
            self.making[0].store(done, Ordering::Relaxed);
            self.making[1].store(all, Ordering::Relaxed);
        };
        let mut classes = [from.class(), to.class()];
        let superblock = if self.named_places {
            prepare(from, to, self.o.single_host, &self.o.consent, &mut progress)?
        } else {
            let source = (self.openers[0])().map_err(CopyError::Source)?;
            let original = check_source(&*source, &from.label(), &to.label())?;
            let device = (self.openers[1])().map_err(CopyError::Destination)?;
            make_replica(&*device, &to.label(), &original, &self.o.consent)?;
            classes = [source.class(), device.class()];
            original
        };
        self.making[1].store(0, Ordering::Relaxed);
        *locked(&self.named) = Some((superblock.uuid, superblock.name.clone()));
        self.hold_lock()?;
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|e| CopyError::Random { detail: e.to_string() })?;
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX);
        Ok(Replicator::new(ReplicatorOptions {
            superblock,
            classes,
            pace: self.o.pace,
            bytes_per_s: self.o.bytes_per_s,
            nonce: u64::from_le_bytes(nonce).max(1),
            // A name does not keep out what reaches the same export by another URL.
            host: if self.locks_a_file() { host() } else { 0 },
            wall_unix_us_at_zero: wall.saturating_sub((self.clock)()),
            pool: self.pool.clone(),
        }))
    }

    fn locks_a_file(&self) -> bool {
        self.named_places && self.o.destination.path().is_some()
    }

    /// Keeps a second replicator on this host out: a lock on the first superblock's bytes, which
    /// no daemon locks and `init` does; for what is no file here, a name.
    fn hold_lock(&self) -> Result<(), CopyError> {
        let path = self.o.destination.label();
        let mut held = locked(&self.lock);
        if !self.named_places || self.stopping() || held.as_ref().is_some_and(|l| l.is_on(&path)) {
            return Ok(());
        }
        let io = |e: std::io::Error| {
            CopyError::Destination(AttachError::Io { path: path.clone(), detail: e.to_string() })
        };
        let lock = match (&self.o.destination, &*locked(&self.named)) {
            (Location::Path(path), _) => crate::lock::take(path, 0, 4096),
            (url, Some((uuid, _))) => crate::lock::take_replica(*uuid, &url.to_string()),
            (Location::Nbd(_) | Location::S3(_), None) => return Ok(()),
        };
        let lock = lock.map_err(io)?;
        *held = Some(lock.ok_or_else(|| CopyError::Locked { path: path.clone() })?);
        Ok(())
    }

    fn tell(&self, notices: &mut Vec<Notice>) {
        for notice in notices.drain(..) {
            (self.sink)(notice);
        }
    }

    fn drive(&self, side: Side) {
        // Naps of 50 us are pointless with the default timer slack of 50 us.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        let held = Descriptor::new((self.openers[side.index()])().ok());
        let mut medium = Medium { shared: self, side, held };
        let pulse = &self.pulses[side.index()];
        let mut notices = Vec::new();
        while !self.stopping() {
            let mut guard = locked(&self.machine);
            let Some(machine) = guard.as_mut() else { return };
            let now = (self.clock)();
            let step = machine.step(now, side);
            notices.extend(machine.drain_notices());
            let finished = machine.finished().is_some();
            if finished || !notices.is_empty() && !matches!(step, Step::Do(_)) {
                drop(guard);
                self.tell(&mut notices);
                if finished {
                    self.changed.notify_all();
                    return;
                }
                continue;
            }
            let nap = match step {
                Step::Do(op) => {
                    drop(guard);
                    self.tell(&mut notices);
                    pulse.begin((self.clock)(), crate::flusher::code(&op));
                    let result = medium.run(op);
                    pulse.end();
                    let mut wake = true;
                    if let Some(machine) = locked(&self.machine).as_mut() {
                        let now = (self.clock)();
                        machine.complete(now, side, result);
                        notices.extend(machine.drain_notices());
                        wake = machine.wants(side.other(), now);
                    }
                    if wake {
                        self.changed.notify_all();
                    }
                    self.tell(&mut notices);
                    continue;
                }
                Step::Idle => NAP_MAX,
                Step::WaitUntil(at) if at <= now => continue,
                Step::WaitUntil(at) => Duration::from_micros(at - now).min(NAP_MAX),
                Step::Stopped(_) => return,
            };
            drop(self.changed.wait_timeout(guard, nap));
        }
    }

    fn state(&self, now: Micros) -> (CopyState, Option<String>) {
        if let Some(end) = &*locked(&self.ended) {
            return match end {
                Ok(()) if self.stopping() => (CopyState::Stopped, None),
                Ok(()) => (CopyState::Done, None),
                Err(e) => (CopyState::Refused, Some(e.to_string())),
            };
        }
        let deadline = u64::try_from(self.o.io_deadline.as_micros()).unwrap_or(u64::MAX).max(1);
        let stuck = Side::BOTH
            .into_iter()
            .find_map(|s| self.pulses[s.index()].stuck(now, deadline).map(|(op, at)| (s, op, at)));
        if let Some((side, op, since)) = stuck {
            let ms = now.saturating_sub(since) / 1000;
            let reason = format!("a {op} of the {side} has not returned for {ms} ms");
            return (CopyState::Stalled, Some(reason));
        }
        let guard = locked(&self.machine);
        let Some(machine) = guard.as_ref() else {
            let state = match self.making[1].load(Ordering::Relaxed) {
                0 => CopyState::Starting,
                _ => CopyState::Making,
            };
            return (state, locked(&self.waiting_for).clone());
        };
        if let Some(why) = machine.refusal() {
            return (CopyState::Refused, Some(why.to_string()));
        }
        let failing = Side::BOTH.into_iter().find_map(|s| machine.failing(s).map(|e| (s, e)));
        if let Some((side, e)) = failing {
            return (CopyState::Failed, Some(format!("{side}: {e}")));
        }
        let state = if machine.resting() {
            CopyState::Resting
        } else if !machine.is_established() {
            CopyState::Starting
        } else if self.o.pace == Pace::Follow && machine.lag(now).records == 0 {
            CopyState::InSync
        } else {
            CopyState::Copying
        };
        (state, None)
    }
}

impl Handle {
    #[must_use]
    pub fn status(&self) -> CopyStatus {
        let s = &self.shared;
        let now = (s.clock)();
        let (state, reason) = s.state(now);
        let named = locked(&s.named).clone();
        let making = [&s.making[0], &s.making[1]].map(|m| m.load(Ordering::Relaxed));
        let guard = locked(&s.machine);
        let lag = guard.as_ref().map_or_else(Lag::default, |m| m.lag(now));
        CopyStatus {
            source: s.o.source.to_string(),
            destination: s.o.destination.to_string(),
            uuid: named.as_ref().map(|n| n.0),
            name: named.map(|n| n.1),
            state,
            reason,
            nodes: guard.as_ref().map(|m| m.copied_nodes().collect()).unwrap_or_default(),
            lag_records: lag.records,
            lag_bytes: lag.bytes,
            lag_ms: Duration::from_micros(lag.us).as_secs_f64() * 1000.0,
            making: Some((making[0], making[1])).filter(|m| m.1 != 0),
            counters: guard.as_ref().map(Replicator::counters).unwrap_or_default(),
        }
    }

    /// How it ended, once it did.
    #[must_use]
    pub fn ended(&self) -> Option<Result<(), Arc<CopyError>>> {
        locked(&self.shared.ended).clone()
    }

    /// Waits for the end, for so long at most.
    pub fn wait(&self, at_most: Duration) -> Option<Result<(), Arc<CopyError>>> {
        let until = Instant::now() + at_most;
        loop {
            if let Some(end) = self.ended() {
                return Some(end);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            std::thread::sleep(left.min(Duration::from_millis(2)));
        }
    }

    /// Look at the source now (a doorbell rang).
    pub fn wake(&self) {
        if let Some(machine) = locked(&self.shared.machine).as_mut() {
            machine.wake();
        }
        self.shared.changed.notify_all();
    }

    /// Stops, never waiting longer than `deadline`; threads stuck in the kernel are left behind.
    /// Returns whether everything came to its end. What was read and not written is read again by
    /// whoever copies next.
    pub fn stop(self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.shared.stop.store(true, Ordering::Release);
        self.shared.changed.notify_all();
        loop {
            let done = locked(&self.threads).iter().all(JoinHandle::is_finished);
            if done || Instant::now() >= until {
                return done;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.changed.notify_all();
        locked(&self.shared.lock).take();
    }
}
