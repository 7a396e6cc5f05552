//! The thread around a machine: sleep, do one operation, report, sleep again.
//!
//! ```text
//!   lock -> step -> unlock -> read or write (no lock held) -> lock -> complete -> unlock -> facts
//! ```
//!
//! The same loop drives the flusher, the reader and the keeper. Awkward cases: an operation may
//! never return; the time it began is published, so that others can tell; facts are handed out with no
//! lock held but that of a [`Pulse`] that is stuck, so a sink may call back into the handle; a medium
//! that keeps failing is opened anew, and a write after that waits for a fresh look; an operation of
//! a machine that lost its seat meanwhile is nobody's.

use crate::buffer::Pool;
use crate::event::{Fact, IoFault, IoFaultKind, Micros, Op, Reason, Step};
use crate::keeper::Keeper;
use crate::log::receive::Reader;
use crate::log::send::Writer;
use crate::media::BlockDevice;
use crate::runtime::{Opener, Shared};
use bytes::Bytes;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Failures in a row after which the medium is opened anew.
const REOPEN_AFTER: u32 = 3;
/// An idle thread looks around this often, should a wake-up ever be missed.
const NAP_MAX: Duration = Duration::from_millis(500);

pub(crate) trait Machine {
    fn step(&mut self, now: Micros) -> Step;
    fn complete(&mut self, now: Micros, result: Result<Bytes, IoFault>);
    fn facts(&mut self, into: &mut Vec<Fact>);
}

macro_rules! machine {
    ($t:ty) => {
        impl Machine for $t {
            fn step(&mut self, now: Micros) -> Step {
                <$t>::step(self, now)
            }
            fn complete(&mut self, now: Micros, result: Result<Bytes, IoFault>) {
                <$t>::complete(self, now, result);
            }
            fn facts(&mut self, into: &mut Vec<Fact>) {
                into.extend(self.drain_facts());
            }
        }
    };
}
machine!(Writer);
machine!(Reader);
machine!(Keeper);

/// A machine, once there is one, and whoever waits for its next step.
#[derive(Debug)]
pub(crate) struct Seat<M> {
    machine: Mutex<Option<M>>,
    /// How often somebody sat down; changes with `machine` locked.
    seated: AtomicU64,
    changed: Condvar,
}

impl<M> Default for Seat<M> {
    fn default() -> Self {
        Self { machine: Mutex::new(None), seated: AtomicU64::new(0), changed: Condvar::new() }
    }
}

impl<M> Seat<M> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<M>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the machine and wakes its thread.
    pub(crate) fn wake<R>(&self, f: impl FnOnce(&mut M) -> R) -> Option<R> {
        let result = self.lock().as_mut().map(f);
        self.changed.notify_all();
        result
    }

    pub(crate) fn put(&self, machine: M) {
        let mut seat = self.lock();
        *seat = Some(machine);
        self.seated.fetch_add(1, Ordering::Relaxed);
        drop(seat);
        self.changed.notify_all();
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    fn wait(&self, guard: MutexGuard<'_, Option<M>>, d: Duration) {
        let woken = self.changed.wait_timeout(guard, d);
        drop(woken.unwrap_or_else(PoisonError::into_inner));
    }
}

const OPS: [&str; 3] = ["read", "write", "flush"];

/// What a thread is doing in the kernel, for others to see.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// 0: nothing. Otherwise when the operation began.
    since: AtomicU64,
    op: AtomicU8,
    /// Locked while it is told, so that nobody hears of the return before the stall: whoever
    /// counts what hangs would count it forever.
    reported: Mutex<bool>,
    fault: Mutex<Option<String>>,
}

impl Pulse {
    pub(crate) fn begin(&self, now: Micros, op: u8) {
        self.op.store(op, Ordering::Relaxed);
        // SYNC: pairs with the load in `stuck`.
        self.since.store(now.max(1), Ordering::Release);
    }

    /// Whether the operation had been reported as stuck.
    pub(crate) fn end(&self) -> bool {
        self.since.store(0, Ordering::Release);
        std::mem::take(&mut *self.reported())
    }

    /// The operation in flight, when it is older than `deadline`.
    pub(crate) fn stuck(&self, now: Micros, deadline: Micros) -> Option<(&'static str, Micros)> {
        let since = self.since.load(Ordering::Acquire);
        let old = since != 0 && now.saturating_sub(since) >= deadline;
        old.then(|| (OPS[usize::from(self.op.load(Ordering::Relaxed)) % OPS.len()], since))
    }

    /// The same, told once per operation.
    pub(crate) fn tell_when_stuck(&self, now: Micros, deadline: Micros, tell: impl FnOnce(Fact)) {
        let mut reported = self.reported();
        if !*reported && let Some((op, since)) = self.stuck(now, deadline) {
            *reported = true;
            tell(Fact::Stalled { op, since });
        }
    }

    fn reported(&self) -> MutexGuard<'_, bool> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_fault(&self, fault: Option<String>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}

/// A thread's own descriptor of a medium, let go of when it keeps failing.
#[derive(Debug, Default)]
pub(crate) struct Descriptor {
    pub(crate) device: Option<Arc<dyn BlockDevice>>,
    failures: u32,
}

impl Descriptor {
    pub(crate) fn new(device: Option<Arc<dyn BlockDevice>>) -> Self {
        Self { device, failures: 0 }
    }

    pub(crate) fn run(&mut self, pool: &Pool, op: Op) -> Result<Bytes, IoFault> {
        let Some(device) = &self.device else {
            return Err(IoFault::new(IoFaultKind::Gone, "the medium is not open"));
        };
        let result = execute(&**device, pool, op);
        self.failures = if result.is_ok() { 0 } else { self.failures + 1 };
        if self.failures >= REOPEN_AFTER {
            *self = Self::default();
        }
        result
    }

    /// Its name leads to something else by now.
    pub(crate) fn is_stray(&self) -> bool {
        self.device.as_ref().is_some_and(|d| !d.still_there())
    }
}

/// A thread's way to the medium: opened anew when it keeps failing, or another thread found that it
/// is not there any more.
struct Medium {
    opener: Opener,
    held: Descriptor,
    generation: u64,
    check_name: bool,
}

impl Medium {
    fn run(&mut self, shared: &Shared, op: Op) -> Result<Bytes, IoFault> {
        let generation = shared.reopen.load(Ordering::Acquire);
        if generation != self.generation {
            self.held = Descriptor::default();
            self.generation = generation;
        }
        if self.check_name && self.held.is_stray() {
            self.held = Descriptor::default();
            self.generation = shared.reopen.fetch_add(1, Ordering::AcqRel) + 1;
            shared.permit.reopened((shared.clock)());
        }
        if self.held.device.is_none() {
            let device =
                (self.opener)().map_err(|e| IoFault::new(IoFaultKind::Gone, e.to_string()))?;
            // What was opened may be another file than the one that was locked.
            shared.hold_lock().map_err(|e| IoFault::new(IoFaultKind::Gone, e.to_string()))?;
            // A look that another thread began earlier was through what it had opened then.
            shared.permit.reopened((shared.clock)());
            self.held.device = Some(device);
            if matches!(op, Op::Write { .. }) {
                // Nothing is written to a medium that was not looked at.
                let detail = "the medium was opened anew; it is checked before the write";
                return Err(IoFault::new(IoFaultKind::Other, detail));
            }
        }
        self.held.run(&shared.pool, op)
    }
}

/// Its place in [`OPS`].
pub(crate) fn code(op: &Op) -> u8 {
    match op {
        Op::Read { .. } => 0,
        Op::Write { .. } => 1,
        Op::Flush => 2,
    }
}

/// One operation on a device.
pub(crate) fn execute(device: &dyn BlockDevice, pool: &Pool, op: Op) -> Result<Bytes, IoFault> {
    match op {
        Op::Read { offset, len, record: Some(name) } => {
            device.read_record(pool, offset, len, &name)
        }
        Op::Read { offset, len, record: None } => {
            let mut buf = pool.take_len(len);
            device.read_at(offset, buf.as_mut())?;
            Ok(buf.freeze())
        }
        Op::Write { offset, data } => device.write_at(offset, &data).map(|()| Bytes::new()),
        Op::Flush => device.flush().map(|()| Bytes::new()),
    }
}

/// Runs a machine until it stops or the runtime does.
pub(crate) fn drive<M: Machine>(
    shared: &Shared,
    seat: &Seat<M>,
    pulse: &Pulse,
    check_name: bool,
    mut before: impl FnMut(&Shared, &Seat<M>),
    mut after: impl FnMut(&Shared, &Seat<M>),
) -> Option<Reason> {
    let opener = shared.opener.clone();
    let device = opener().ok().filter(|_| shared.hold_lock().is_ok());
    let generation = shared.reopen.load(Ordering::Acquire);
    let held = Descriptor::new(device);
    let mut medium = Medium { opener, held, generation, check_name };
    let mut facts = Vec::new();
    loop {
        before(shared, seat);
        if shared.stopping() {
            return None;
        }
        let mut guard = seat.lock();
        let now = (shared.clock)();
        let Some(machine) = guard.as_mut() else {
            seat.wait(guard, NAP_MAX);
            continue;
        };
        let step = machine.step(now);
        machine.facts(&mut facts);
        if !facts.is_empty() && !matches!(step, Step::Do(_)) {
            // Hand them out before sleeping; then ask again.
            drop(guard);
            shared.report(&mut facts);
            if let Step::Stopped(reason) = step {
                return Some(reason);
            }
            continue;
        }
        match step {
            Step::Stopped(reason) => return Some(reason),
            Step::Idle => seat.wait(guard, NAP_MAX),
            Step::WaitUntil(at) if at <= now => {}
            Step::WaitUntil(at) => seat.wait(guard, Duration::from_micros(at - now).min(NAP_MAX)),
            Step::Do(op) => {
                let seated = seat.seated.load(Ordering::Relaxed);
                drop(guard);
                shared.report(&mut facts);
                let code = code(&op);
                pulse.begin((shared.clock)(), code);
                let result = medium.run(shared, op);
                let was_stuck = pulse.end();
                match &result {
                    Err(fault) => pulse.set_fault(Some(fault.to_string())),
                    Ok(_) if pulse.fault().is_some() => pulse.set_fault(None),
                    Ok(_) => {}
                }
                if was_stuck {
                    facts.push(Fact::Returned { op: OPS[usize::from(code)] });
                    facts.push(Fact::Recovered);
                }
                let mut guard = seat.lock();
                if let Some(machine) = guard.as_mut()
                    && seat.seated.load(Ordering::Relaxed) == seated
                {
                    machine.complete((shared.clock)(), result);
                    machine.facts(&mut facts);
                }
                drop(guard);
                after(shared, seat);
                shared.report(&mut facts);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_return_waits_until_the_stall_is_told() {
        let pulse = Arc::new(Pulse::default());
        pulse.begin(1, 0);
        let (returned, returns) = mpsc::channel();
        pulse.tell_when_stuck(1_000, 500, |fact| {
            assert!(matches!(fact, Fact::Stalled { op: "read", since: 1 }));
            let pulse = pulse.clone();
            std::thread::spawn(move || returned.send(pulse.end()));
            let early = returns.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "the return was told first");
        });
        assert_eq!(returns.recv(), Ok(true), "it had been told as stuck");
        pulse.tell_when_stuck(2_000, 500, |_| panic!("nothing is in flight"));

        pulse.begin(2_000, 1);
        pulse.tell_when_stuck(2_400, 500, |_| panic!("not old enough"));
        assert!(!pulse.end());
    }
}
