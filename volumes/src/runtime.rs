//! The threaded runtime: [`attach`] a volume, hand frames to the [`Handle`], receive facts.
//!
//! ```text
//!   attach -- path, superblock, node, sector, direct I/O, host lock: checked at once
//!        `--> sp-keeper claims the node's entry --> Fact::Attached --> writing and reading
//! ```
//!
//! No method of [`Handle`] waits for the medium. Awkward cases: a medium that is not there yet is
//! waited for when `wait_for_medium` says so; a thread stuck in the kernel is left behind at
//! shutdown (its late write carries an old epoch and harms nobody).

use crate::buffer::Pool;
use crate::event::{Fact, FenceReason, Micros, Reason, Ring};
use crate::fence::Permit;
use crate::flusher::{Pulse, Seat};
use crate::format::BLOCK_MAX;
use crate::format::superblock::{Copy, FormatError, Superblock};
use crate::keeper::{Keeper, KeeperOptions};
use crate::lock::HostLock;
use crate::log::receive::{Mode, Reader, ReaderOptions};
use crate::log::send::{Refused, Writer, WriterOptions};
use crate::media::nbd::{Connector, Options};
use crate::media::{self, BlockDevice, Direct, How, Location, OpenError, s3};
use crate::pace::Class;
use crate::status::{LaneStatus, VolumeCounters, VolumeState, VolumeStatus};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;
/// Called from our threads; must not block.
pub type Sink = Arc<dyn Fn(Fact) + Send + Sync>;
/// Opens the medium: once per thread, and again when it keeps failing.
pub type Opener = Arc<dyn Fn() -> Result<Arc<dyn BlockDevice>, AttachError> + Send + Sync>;

/// An operation over a network that takes this long may just be slow; it is reported as stalled, but
/// not given up.
const REQUEST_DEADLINE_MIN: Duration = Duration::from_secs(1);
/// How long who only reads waits for a lock on its entry.
const MAKING_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Where an incarnation's random name comes from; `Err` says why it does not.
type Random = fn() -> Result<u64, String>;

fn system_random() -> Result<u64, String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| e.to_string())?;
    Ok(u64::from_le_bytes(bytes))
}

#[derive(Debug, Clone)]
pub struct AttachOptions {
    pub location: Location,
    pub node: u8,
    /// The new epoch is greater than this.
    pub epoch: u64,
    /// A record of twice this is bulk; behind it a batch waits until it has eight times as much...
    pub flush_bytes: usize,
    /// ...or is this old.
    pub flush_delay: Duration,
    /// One host alone uses the medium: the page cache may be used (tmpfs).
    pub single_host: bool,
    /// An operation older than this is reported as stalled.
    pub io_deadline: Duration,
    pub beat_interval: Duration,
    /// Bound of what waits to be written.
    pub outbox_bytes_max: usize,
    /// A medium that cannot be opened is waited for instead of refused.
    pub wait_for_medium: bool,
    /// Our records are written here; otherwise we only read, and our entry says so.
    pub sends: bool,
}

impl AttachOptions {
    #[must_use]
    pub fn new(location: impl Into<Location>, node: u8) -> Self {
        Self {
            location: location.into(),
            node,
            epoch: 0,
            flush_bytes: 64 << 10,
            flush_delay: Duration::from_micros(500),
            single_host: false,
            io_deadline: Duration::from_secs(1),
            beat_interval: Duration::from_millis(100),
            outbox_bytes_max: 8 << 20,
            wait_for_medium: false,
            sends: true,
        }
    }

    fn label(&self) -> PathBuf {
        self.location.label()
    }
}

#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    #[error(transparent)]
    Open(Arc<OpenError>),
    #[error("{path}: {source}; check the path, or format it with `sidepath volume init`")]
    Format { path: PathBuf, source: FormatError },
    #[error(
        "{path}: node {node} has no place on volume {name:?} (it was made for nodes {nodes:?}); \
         use one of these ids or format a volume for more nodes"
    )]
    UnknownNode { path: PathBuf, node: u8, name: String, nodes: Vec<u8> },
    #[error(
        "{path}: the volume is {need} bytes long, the medium only {have}: \
         it was cut short, or this is not the medium it was made on"
    )]
    TooSmall { path: PathBuf, need: u64, have: u64 },
    #[error(
        "{path}: the medium's sectors of {logical} bytes are larger than the volume's blocks of \
         {block}; format it anew with `--sector {logical}`"
    )]
    WrongSector { path: PathBuf, logical: u32, block: u32 },
    #[error(
        "{path}: another daemon on this host runs as node {node} on this volume; stop it first"
    )]
    Locked { path: PathBuf, node: u8 },
    #[error(
        "{path}: it is a replica of volume {name:?}, filled from elsewhere, and nobody may write its \
         records here; use it as a receive volume, and the original as the send volume"
    )]
    IsReplica { path: PathBuf, name: String },
    /// Who only reads makes nothing there, and must not: an `init` would be in the copy's way.
    #[error(
        "{path}: no replica is here yet ({why}); the first copy to it makes it: [[replicate]] in a \
         configuration, `sidepath volume copy`, or the array's mirroring"
    )]
    NoReplica { path: PathBuf, why: &'static str },
    #[error("{path}: cannot read it: {detail}")]
    Io { path: PathBuf, detail: String },
    #[error("{path}: the medium did not answer within {waited_ms} ms")]
    Silent { path: PathBuf, waited_ms: u128 },
    #[error("cannot start a thread: {detail}")]
    Thread { detail: String },
    #[error(
        "no random numbers for this incarnation's name: {detail}; is getrandom(2) allowed here?"
    )]
    Random { detail: String },
}

impl AttachError {
    /// Whether the operator's words are at fault rather than the machine.
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Open(e) => e.is_input_error(),
            Self::Io { .. } | Self::Silent { .. } | Self::NoReplica { .. } => false,
            Self::Thread { .. } | Self::Random { .. } => false,
            _ => true,
        }
    }

    /// Whether the same words may work later without anybody changing them.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Open(e) => e.may_pass(),
            Self::Io { .. } | Self::Silent { .. } | Self::NoReplica { .. } => true,
            Self::Format { source, .. } => {
                matches!(source, FormatError::NotAVolume | FormatError::BadChecksum)
            }
            _ => false,
        }
    }
}

/// Opens a place as the options of an attachment or a copy say.
pub(crate) fn open_at(
    at: &Location,
    write: bool,
    single_host: bool,
    io_deadline: Duration,
) -> Opener {
    let path = match at {
        Location::Path(path) => path.clone(),
        Location::S3(url) => {
            let usual = s3::Options::new(write);
            let request_deadline = io_deadline.max(usual.request_deadline);
            let connector =
                s3::Connector::new((**url).clone(), s3::Options { request_deadline, ..usual });
            let place = at.label();
            return Arc::new(move || match connector.open() {
                Ok(device) => Ok(Arc::new(device)),
                Err(source) => {
                    let place = place.clone();
                    Err(AttachError::Open(Arc::new(OpenError::S3 { place, source })))
                }
            });
        }
        Location::Nbd(url) => {
            let request_deadline = io_deadline.max(REQUEST_DEADLINE_MIN);
            let connector =
                Connector::new(url.clone(), Options { request_deadline, ..Options::new(write) });
            return Arc::new(move || match connector.open() {
                Ok(device) => Ok(Arc::new(device)),
                Err(e) => Err(AttachError::Open(Arc::new(OpenError::Nbd(e)))),
            });
        }
    };
    let direct = if single_host { Direct::Preferred } else { Direct::Required };
    Arc::new(move || match media::open(&path, How { write, direct, exclusive: false }) {
        Ok(device) => Ok(Arc::new(device)),
        Err(e) => Err(AttachError::Open(Arc::new(e))),
    })
}

/// Reads the superblock: the first copy, or the last one when the first is damaged.
pub fn read_superblock(
    device: &dyn BlockDevice,
    path: &std::path::Path,
) -> Result<Superblock, AttachError> {
    let pool = Pool::new();
    let unit = device.logical_block().max(4096) as usize;
    let io =
        |e: crate::event::IoFault| AttachError::Io { path: path.to_owned(), detail: e.to_string() };
    let read = |offset: u64| {
        let mut buf = pool.take_len(unit);
        device.read_at(offset, buf.as_mut()).map(|()| buf)
    };
    if device.size() < unit as u64 {
        let source = FormatError::NotAVolume;
        return Err(AttachError::Format { path: path.to_owned(), source });
    }
    let first = Superblock::decode(read(0).map_err(io)?.as_ref(), Copy::First);
    let source = match first {
        Ok(s) => return Ok(s),
        Err(e @ (FormatError::Version { .. } | FormatError::Features { .. })) => {
            return Err(AttachError::Format { path: path.to_owned(), source: e });
        }
        Err(e) => e,
    };
    let (mut block, mut unreadable) = (unit as u64, None);
    while block <= BLOCK_MAX as u64 {
        let blocks = device.size() / block;
        match blocks.checked_sub(1).map(|last| (last * block, read(last * block))) {
            Some((at, Ok(buf))) => {
                if let Ok(s) = Superblock::decode(buf.as_ref(), Copy::Last)
                    && s.geometry.last_offset() == at
                {
                    return Ok(s);
                }
            }
            Some((_, Err(fault))) => unreadable = Some(fault),
            None => {}
        }
        block *= 2;
    }
    match unreadable {
        // It may be where the whole copy is.
        Some(fault) => Err(io(fault)),
        None => Err(AttachError::Format { path: path.to_owned(), source }),
    }
}

/// What is missing where we only read is not ours to make.
fn no_replica(error: AttachError, path: PathBuf) -> AttachError {
    let why = match &error {
        AttachError::Open(e) if matches!(**e, OpenError::Missing { .. }) => "nothing is there",
        AttachError::Format { source: FormatError::NotAVolume, .. } => "it holds no volume",
        _ => return error,
    };
    AttachError::NoReplica { path, why }
}

/// What lies there, and on what kind of medium.
struct Found {
    superblock: Superblock,
    class: Class,
    /// Where requests are counted, if they are.
    meter: Option<Arc<dyn BlockDevice>>,
}

/// All that an operator can get wrong, in one look.
fn look(o: &AttachOptions, opener: &Opener) -> Result<Found, AttachError> {
    let path = || o.label();
    let read = opener().and_then(|device| Ok((read_superblock(&*device, &path())?, device)));
    let (superblock, device) = read.map_err(|e| if o.sends { e } else { no_replica(e, path()) })?;
    let g = &superblock.geometry;
    if g.slot(o.node).is_none() {
        let (name, nodes) = (superblock.name.clone(), g.nodes.clone());
        return Err(AttachError::UnknownNode { path: path(), node: o.node, name, nodes });
    }
    if superblock.replica && o.sends {
        return Err(AttachError::IsReplica { path: path(), name: superblock.name });
    }
    if device.size() < g.bytes() {
        return Err(AttachError::TooSmall { path: path(), need: g.bytes(), have: device.size() });
    }
    if device.logical_block() > g.block_bytes {
        let (logical, block) = (device.logical_block(), g.block_bytes);
        return Err(AttachError::WrongSector { path: path(), logical, block });
    }
    let class = device.class();
    let meter = Some(device).filter(|d| d.requests().is_some());
    Ok(Found { superblock, class, meter })
}

/// What the threads share.
pub(crate) struct Shared {
    o: AttachOptions,
    pub(crate) opener: Opener,
    /// For looking before the volume is known: what was there then binds nobody.
    looker: Opener,
    pub(crate) clock: Clock,
    sink: Sink,
    pub(crate) pool: Pool,
    pub(crate) permit: Arc<Permit>,
    pub(crate) io_deadline: Micros,
    pub(crate) writer: Seat<Writer>,
    pub(crate) reader: Seat<Reader>,
    pub(crate) keeper: Seat<Keeper>,
    /// By role: flusher, reader, keeper.
    pub(crate) pulses: [Pulse; 3],
    pub(crate) reopen: AtomicU64,
    superblock: OnceLock<Superblock>,
    class: OnceLock<Class>,
    meter: OnceLock<Arc<dyn BlockDevice>>,
    uses_host_lock: bool,
    random: Random,
    lock: Mutex<Option<HostLock>>,
    claiming: Mutex<()>,
    stop: AtomicBool,
    said_goodbye: AtomicBool,
    stop_changed: (Mutex<()>, Condvar),
    latency_us: AtomicU64,
    /// Why it is waiting, or why it will never write again.
    reason: Mutex<Option<String>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("location", &self.o.location).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn ready(&self) -> bool {
        self.superblock.get().is_some()
    }

    pub(crate) fn sends(&self) -> bool {
        self.o.sends
    }

    pub(crate) fn keeper_done(&self) {
        self.said_goodbye.store(true, Ordering::Release);
        self.stop_changed.1.notify_all();
    }

    pub(crate) fn wake_all(&self) {
        self.writer.notify();
        self.reader.notify();
        self.keeper.notify();
        self.stop_changed.1.notify_all();
    }

    /// Sleeps, unless the runtime stops.
    pub(crate) fn nap(&self, d: Duration) {
        let guard = self.stop_changed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stopping() {
            drop(self.stop_changed.1.wait_timeout(guard, d));
        }
    }

    fn set_reason(&self, reason: Option<String>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Hands facts to the sink, after what we ourselves make of them. No lock is held that a method
    /// of the handle takes.
    pub(crate) fn report(&self, facts: &mut Vec<Fact>) {
        for fact in facts.drain(..) {
            match &fact {
                Fact::RecordWritten { latency, .. } | Fact::BeatWritten { latency } => {
                    let was = self.latency_us.load(Ordering::Relaxed);
                    let is = if was == 0 { *latency } else { (was * 7 + latency) / 8 };
                    self.latency_us.store(is.max(1), Ordering::Relaxed);
                    if !self.permit.fenced() {
                        self.set_reason(None);
                    }
                }
                Fact::MailboxWritten { .. } => {
                    self.keeper.wake(Keeper::beat_now);
                }
                Fact::PeerRead { node, ring, number } => {
                    self.writer.wake(|w| w.released(*node, *ring, *number));
                }
                Fact::Attached { .. } => {
                    self.set_reason(None);
                    self.writer.notify();
                }
                Fact::Recovered => {
                    let now = (self.clock)();
                    self.reader.wake(|r| r.retry_now(now));
                    self.writer.wake(Writer::retry_now);
                }
                Fact::Fenced { why } => self.set_reason(Some(why.to_string())),
                Fact::ClaimRefused { error } => self.set_reason(Some(error.to_string())),
                _ => {}
            }
            (self.sink)(fact);
        }
    }

    /// Holds the host lock on the medium that the path leads to now. Called whenever the medium
    /// is opened, for it may have been replaced; before the volume is known there is none.
    pub(crate) fn hold_lock(&self) -> Result<(), AttachError> {
        self.superblock.get().map_or(Ok(()), |s| self.lock_entry(s))
    }

    fn lock_entry(&self, superblock: &Superblock) -> Result<(), AttachError> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let is_held = held.as_ref().is_some_and(|l| l.is_on(&self.o.label()));
        if !self.uses_host_lock || is_held || self.stopping() {
            return Ok(());
        }
        let g = &superblock.geometry;
        let slot = g.slot(self.o.node).unwrap_or(0);
        let (start, len) = (g.entry_offset(slot, 0), 2 * u64::from(g.block_bytes));
        let path = || self.o.label();
        // Whoever makes a replica holds all of it for a moment longer than it takes to be one.
        let patience = if self.o.sends { Duration::ZERO } else { MAKING_ENDS_WITHIN };
        let until = Instant::now() + patience;
        loop {
            let lock = match &self.o.location {
                Location::Path(path) => crate::lock::take(path, start, len),
                Location::Nbd(_) | Location::S3(_) => {
                    crate::lock::take_name(superblock.uuid, self.o.node)
                }
            };
            *held = lock.map_err(|e| AttachError::Io { path: path(), detail: e.to_string() })?;
            if held.is_some() || self.stopping() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(AttachError::Locked { path: path(), node: self.o.node });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes the host lock and seats the machines.
    fn seat(&self, found: &Found) -> Result<(), AttachError> {
        let superblock = &found.superblock;
        let _ = self.class.set(found.class);
        if let Some(meter) = &found.meter {
            let _ = self.meter.set(meter.clone());
        }
        // Without it, two claimants of one epoch could not be told apart.
        let nonce = (self.random)().map_err(|detail| AttachError::Random { detail })?;
        self.lock_entry(superblock)?;
        self.seat_writers(superblock, self.o.epoch, nonce);
        let reader =
            Reader::new(ReaderOptions { node: self.o.node, superblock: superblock.clone() });
        if let Some(r) = reader {
            self.reader.put(r.timed(found.class.times()));
        }
        let _ = self.superblock.set(superblock.clone());
        Ok(())
    }

    /// Seats a Writer and a Keeper that will claim an epoch greater than `epoch`.
    fn seat_writers(&self, superblock: &Superblock, epoch: u64, nonce: u64) {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = (self.clock)();
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let keeper = Keeper::new(KeeperOptions {
            node: self.o.node,
            superblock: superblock.clone(),
            epoch,
            nonce: nonce.max(1),
            interval: us(self.o.beat_interval),
            wall_unix_us_at_zero: us(wall).saturating_sub(now),
            permit: self.permit.clone(),
            pool: self.pool.clone(),
        });
        let writer = Writer::new(WriterOptions {
            node: self.o.node,
            superblock: superblock.clone(),
            permit: self.permit.clone(),
            pool: self.pool.clone(),
            flush_bytes: self.o.flush_bytes,
            flush_delay: us(self.o.flush_delay),
            outbox_bytes_max: self.o.outbox_bytes_max,
        });
        if let (Some(k), Some(w)) = (keeper, writer) {
            let class = self.class.get().copied().unwrap_or_default();
            self.writer.put(w);
            self.keeper.put(k.timed(class.times()));
        }
    }

    /// After a roll-back: the entry is watched and claimed again, as by a restarted daemon, with an
    /// epoch above the one we had, so that whatever reappeared is older than what is written from
    /// now on. The Reader stays: it knows how far its peers had come. Returns whether a claim is
    /// under way.
    pub(crate) fn claim_anew(&self) -> bool {
        let _alone = self.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(superblock) = self.superblock.get() else { return false };
        let writer = self.writer.lock().as_ref().and_then(Writer::stopped);
        let keeper = self.keeper.lock().as_ref().and_then(Keeper::stopped);
        let rolled_back =
            |why: &Reason| matches!(why, Reason::Fenced(FenceReason::RolledBack { .. }));
        if !(writer.iter().chain(&keeper).any(rolled_back) && keeper.iter().all(rolled_back)) {
            // The other thread was quicker, or found more than a roll-back.
            return !self.permit.fenced();
        }
        let nonce = match (self.random)() {
            Ok(nonce) => nonce,
            Err(detail) => {
                self.set_reason(Some(format!(
                    "it was rolled back to an older state and there is no random number to claim it \
                     anew with: {detail}"
                )));
                return false;
            }
        };
        let ours = self.permit.epoch().max(self.o.epoch);
        let nodes = &superblock.geometry.nodes;
        self.seat_writers(superblock, ours, nonce);
        self.permit.reset();
        self.set_reason(Some("it was rolled back to an older state; claiming anew".into()));
        // What waited in the old Writer went with it; the link keeps it.
        let mut facts =
            nodes.iter().filter(|&&to| to != self.o.node).map(|&to| Fact::Drained { to }).collect();
        self.report(&mut facts);
        self.wake_all();
        true
    }

    /// Retries until the medium can be opened; `false` when the runtime stops first.
    pub(crate) fn wait_for_medium(&self) -> bool {
        let mut pause = Duration::from_millis(20);
        while !self.stopping() {
            match look(&self.o, &self.looker).and_then(|s| self.seat(&s)) {
                Ok(()) => {
                    self.set_reason(Some("claiming".into()));
                    return true;
                }
                Err(e) => {
                    self.set_reason(Some(e.to_string()));
                    let detail = e.to_string();
                    let fault = crate::event::IoFault::new(crate::event::IoFaultKind::Gone, detail);
                    self.report(&mut vec![Fact::ReadFailed { fault }]);
                }
            }
            self.nap(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        false
    }
}

/// An attached volume. Dropping it stops its threads without waiting for them.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Attaches the file, block device or export that the options name.
pub fn attach(opts: AttachOptions, clock: Clock, sink: Sink) -> Result<Handle, AttachError> {
    let o = opts.clone();
    let opener = open_at(&opts.location, true, opts.single_host, opts.io_deadline);
    // NBD's connections remember what they were opened on; what costs requests is counted as one.
    let looker: Opener = match &opts.location {
        Location::S3(_) => opener.clone(),
        _ => Arc::new(move || open_at(&o.location, true, o.single_host, o.io_deadline)()),
    };
    start(opts, [opener, looker], true, system_random, clock, sink)
}

/// Attaches any medium; there is no host lock.
pub fn attach_to(
    opts: AttachOptions,
    opener: Opener,
    clock: Clock,
    sink: Sink,
) -> Result<Handle, AttachError> {
    start(opts, [opener.clone(), opener], false, system_random, clock, sink)
}

fn start(
    o: AttachOptions,
    [opener, looker]: [Opener; 2],
    uses_host_lock: bool,
    random: Random,
    clock: Clock,
    sink: Sink,
) -> Result<Handle, AttachError> {
    let io_deadline = u64::try_from(o.io_deadline.as_micros()).unwrap_or(u64::MAX);
    let io_deadline = io_deadline.max(o.location.class().times().stuck_after_min).max(1);
    let shared = Arc::new(Shared {
        opener,
        looker,
        clock,
        sink,
        pool: Pool::new(),
        permit: Arc::new(Permit::default()),
        io_deadline,
        writer: Seat::default(),
        reader: Seat::default(),
        keeper: Seat::default(),
        pulses: Default::default(),
        reopen: AtomicU64::new(0),
        superblock: OnceLock::new(),
        class: OnceLock::new(),
        meter: OnceLock::new(),
        uses_host_lock,
        random,
        lock: Mutex::new(None),
        claiming: Mutex::new(()),
        stop: AtomicBool::new(false),
        said_goodbye: AtomicBool::new(false),
        stop_changed: Default::default(),
        latency_us: AtomicU64::new(0),
        reason: Mutex::new(Some("claiming".into())),
        o,
    });
    // A hung medium hangs this look, not the caller.
    let (tell, told) = mpsc::channel();
    let s = shared.clone();
    spawn("sp-look", move || {
        let _ = tell.send(look(&s.o, &s.looker));
    })?;
    let patience = Duration::from_micros(io_deadline).max(Duration::from_millis(100)) * 2;
    let looked = told.recv_timeout(patience).unwrap_or_else(|_| {
        Err(AttachError::Silent { path: shared.o.label(), waited_ms: patience.as_millis() })
    });
    match looked.and_then(|superblock| shared.seat(&superblock)) {
        Ok(()) => {}
        Err(e) if shared.o.wait_for_medium && e.may_pass() => {
            shared.set_reason(Some(e.to_string()));
        }
        Err(e) => return Err(e),
    }
    let mut handle = Handle { shared, threads: Vec::new() };
    type Role = fn(&Arc<Shared>);
    let roles: [(&str, Role); 4] = [
        ("sp-keeper", crate::reader::keeper),
        ("sp-flusher", crate::reader::flusher),
        ("sp-reader", crate::reader::reader),
        ("sp-watch", crate::reader::watch),
    ];
    for (name, role) in roles {
        let s = handle.shared.clone();
        handle.threads.push(spawn(name, move || role(&s))?);
    }
    Ok(handle)
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, AttachError> {
    let spawned = Builder::new().name(name.into()).spawn(f);
    spawned.map_err(|e| AttachError::Thread { detail: e.to_string() })
}

impl Handle {
    /// The superblock, once the medium was opened.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        self.shared.superblock.get()
    }

    /// The epoch we write under; 0 before [`Fact::Attached`].
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.permit.epoch()
    }

    /// Largest frame that [`Handle::store`] takes for that ring.
    #[must_use]
    pub fn frame_bytes_max(&self, ring: Ring) -> usize {
        self.superblock().map_or(0, |s| s.geometry.frame_bytes_max(ring))
    }

    /// Copies the frame into the batch being filled and wakes the flusher.
    pub fn store(&self, to: u8, ring: Ring, frame: &[u8]) -> Result<(), Refused> {
        self.put(to, ring, frame)?;
        self.rouse();
        Ok(())
    }

    /// Copies the frame into the batch being filled; [`Handle::rouse`] follows. Woken for the first
    /// of many, the flusher writes that one alone.
    pub fn put(&self, to: u8, ring: Ring, frame: &[u8]) -> Result<(), Refused> {
        let mut guard = self.shared.writer.lock();
        let writer = guard.as_mut().ok_or(Refused::NotAttached)?;
        writer.store((self.shared.clock)(), to, ring, frame)
    }

    /// Wakes the flusher for what was put, unless it is writing and will look anyway.
    pub fn rouse(&self) {
        let asleep = self.shared.writer.lock().as_ref().is_some_and(|w| !w.is_writing());
        if asleep {
            self.shared.writer.notify();
        }
    }

    /// Overwrites the mailbox for that node.
    pub fn mailbox(&self, to: u8, bytes: &[u8]) -> Result<(), Refused> {
        self.shared.writer.wake(|w| w.mailbox(to, bytes)).ok_or(Refused::NotAttached)?
    }

    /// That node has read everything up to `number`.
    pub fn released(&self, to: u8, ring: Ring, number: u64) {
        self.shared.writer.wake(|w| w.released(to, ring, number));
    }

    /// That node runs anew.
    pub fn reset_lane(&self, to: u8) {
        self.shared.writer.wake(|w| w.reset_lane(to));
    }

    pub fn set_reader_mode(&self, mode: Mode) {
        let now = (self.shared.clock)();
        self.shared.reader.wake(|r| r.set_mode(now, mode));
    }

    /// Look at the rings now (a doorbell rang).
    pub fn wake_reader(&self) {
        let now = (self.shared.clock)();
        self.shared.reader.wake(|r| r.wake(now));
    }

    pub fn set_beat_interval(&self, interval: Duration) {
        let us = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        self.shared.keeper.wake(|k| k.set_interval(us));
    }

    pub fn beat_now(&self) {
        self.shared.keeper.wake(Keeper::beat_now);
    }

    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let s = &self.shared;
        let now = (s.clock)();
        let mut status = VolumeStatus {
            path: s.o.location.to_string(),
            node: s.o.node,
            uuid: self.superblock().map(|s| s.uuid),
            name: self.superblock().map(|s| s.name.clone()),
            epoch: self.epoch(),
            state: VolumeState::Up,
            reason: None,
            write_latency_us: Some(s.latency_us.load(Ordering::Relaxed)).filter(|&l| l != 0),
            lanes: Vec::new(),
            class: s.class.get().copied().unwrap_or_default(),
            requests: s.meter.get().and_then(|m| m.requests()),
            counters: VolumeCounters::default(),
        };
        let reason = s.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stuck = s.pulses.iter().find_map(|p| p.stuck(now, s.io_deadline));
        let fault = [&s.pulses[2], &s.pulses[0], &s.pulses[1]].into_iter().find_map(Pulse::fault);
        (status.state, status.reason) = if s.stopping() || s.said_goodbye.load(Ordering::Acquire) {
            (VolumeState::Stopped, None)
        } else if s.permit.fenced() {
            (VolumeState::Fenced, reason)
        } else if let Some((op, since)) = stuck {
            let ms = now.saturating_sub(since) / 1000;
            (VolumeState::Stalled, Some(format!("a {op} has not returned for {ms} ms")))
        } else if let Some(fault) = fault {
            (VolumeState::Failed, Some(fault))
        } else if status.epoch == 0 {
            (VolumeState::Attaching, reason)
        } else if reason.is_some() {
            (VolumeState::Failed, reason)
        } else {
            (VolumeState::Up, None)
        };
        let c = &mut status.counters;
        if let (Some(w), Some(volume)) = (s.writer.lock().as_ref(), self.superblock()) {
            let g = &volume.geometry;
            for &to in g.nodes.iter().filter(|&&n| n != s.o.node) {
                let used = Ring::BOTH.map(|r| w.used_bytes(to, r));
                let size = Ring::BOTH.map(|r| u64::from(g.ring_blocks(r)));
                status.lanes.push(LaneStatus {
                    to,
                    used_bytes: used[0] + used[1],
                    size_bytes: (size[0] + size[1]) * u64::from(g.block_bytes),
                    buffered_bytes: w.buffered_bytes(to) as u64,
                });
            }
            let w = w.counters();
            c.frames_written = w.frames;
            c.records_written = w.records;
            c.bytes_written = w.bytes;
            c.write_failures = w.failures;
            c.checks = w.checks;
            c.frames_reset = w.dropped;
            c.marks_reached = w.marks;
        }
        if let Some(r) = s.reader.lock().as_ref() {
            let r = r.counters();
            c.polls = r.polls;
            c.records_read = r.records;
            c.bytes_read = r.bytes;
            c.torn_reads = r.torn;
            c.missing = r.missing;
            c.stale = r.stale;
            c.read_failures = r.faults;
        }
        status
    }

    /// Writes what is buffered, says goodbye, stops; never longer than `deadline`. Threads stuck
    /// in the kernel are left behind. Returns whether everything came to its end.
    pub fn shutdown(mut self, deadline: Duration) -> bool {
        let began = Instant::now();
        let left = |part: u32| (deadline / part).saturating_sub(began.elapsed());
        let s = self.shared.clone();
        let attached = s.permit.epoch() != 0 && !s.permit.fenced();
        while attached && !left(2).is_zero() && !self.drained() {
            s.nap(Duration::from_millis(1).min(left(2)));
        }
        if attached {
            s.keeper.wake(Keeper::goodbye);
            while !left(1).is_zero()
                && !s.said_goodbye.load(Ordering::Acquire)
                && !s.permit.fenced()
            {
                s.nap(Duration::from_millis(1).min(left(1)));
            }
        }
        s.stop.store(true, Ordering::Release);
        s.wake_all();
        while !left(1).is_zero() && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_micros(200).min(left(1)));
        }
        s.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        let threads = std::mem::take(&mut self.threads);
        threads.into_iter().all(|t| t.is_finished() && t.join().is_ok())
    }

    fn drained(&self) -> bool {
        let guard = self.shared.writer.lock();
        guard.as_ref().is_none_or(|w| {
            let nodes = self.superblock().map_or(&[][..], |s| &s.geometry.nodes[..]);
            !w.is_writing() && nodes.iter().all(|&n| w.buffered_bytes(n) == 0)
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake_all();
        self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::superblock::tests::sample;
    use crate::media::MemoryDevice;

    #[test]
    fn without_random_numbers_there_is_no_incarnation() {
        let volume = sample(&[1, 2]);
        let medium = MemoryDevice::new(volume.geometry.bytes());
        for (offset, bytes) in volume.image() {
            medium.write_at(offset, &bytes).unwrap();
        }
        let before = medium.snapshot();
        let device = medium.clone();
        let opener: Opener = Arc::new(move || Ok(Arc::new(device.clone()) as Arc<dyn BlockDevice>));
        let o = AttachOptions {
            wait_for_medium: true,
            ..AttachOptions::new(std::path::Path::new("lun7"), 1)
        };
        let none: Random = || Err("not today".into());
        let e = start(o, [opener.clone(), opener], false, none, Arc::new(|| 1), Arc::new(|_| {}))
            .unwrap_err();
        assert!(matches!(e, AttachError::Random { .. }) && !e.is_input_error(), "{e}");
        assert!(e.to_string().contains("not today"));
        assert!(medium.snapshot() == before, "nothing was claimed");
    }
}
