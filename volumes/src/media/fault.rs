//! A wrapper that makes a medium misbehave on command.
//!
//! | fault | what must survive |
//! |---|---|
//! | `fail_reads`, `fail_writes` | retried, no head advance |
//! | `doom` | operation n and the next few fail as [`Doom`] says; the rest of a life goes on |
//! | `stall` | calls hang until released; nothing else waits |

use super::{BlockDevice, Requests};
use crate::buffer::Pool;
use crate::event::{IoFault, IoFaultKind, RecordName};
use crate::pace::Class;
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

/// Sectors are what a medium tears at.
const SECTOR: usize = 512;

/// What becomes of an operation chosen by [`FaultDevice::doom`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doom {
    /// Nothing is done; it fails.
    Fails(IoFaultKind),
    /// It is done, and yet reported as failed.
    DoneButFails(IoFaultKind),
    /// A write leaves this subset of its sectors (a bit per sector, repeated), then fails; a read
    /// or flush fails.
    Torn(u64),
    /// Done and reported as done; a driver with a clock of its own makes it last, see
    /// [`FaultDevice::next_is_late`].
    Late,
}

#[derive(Debug, Default)]
struct Plan {
    reads: Option<IoFaultKind>,
    writes: Option<IoFaultKind>,
    stalled: bool,
    operations: u64,
    doom: Option<(Range<u64>, Doom)>,
}

#[derive(Debug)]
pub struct FaultDevice<D> {
    inner: D,
    plan: Mutex<Plan>,
    released: Condvar,
}

impl<D: BlockDevice> FaultDevice<D> {
    pub fn new(inner: D) -> Self {
        Self { inner, plan: Mutex::default(), released: Condvar::new() }
    }

    /// The medium below, without faults and uncounted.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn with<R>(&self, f: impl FnOnce(&mut Plan) -> R) -> R {
        f(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn fail_reads(&self, kind: Option<IoFaultKind>) {
        self.with(|p| p.reads = kind);
    }

    pub fn fail_writes(&self, kind: Option<IoFaultKind>) {
        self.with(|p| p.writes = kind);
    }

    /// Reads, writes and flushes so far.
    pub fn operations(&self) -> u64 {
        self.with(|p| p.operations)
    }

    /// Operations `at` (the first one ever is 0) meet this fate; replaces an earlier plan.
    pub fn doom(&self, at: Range<u64>, doom: Doom) {
        self.with(|p| p.doom = Some((at, doom)));
    }

    /// No more of [`FaultDevice::doom`].
    pub fn heal(&self) {
        self.with(|p| p.doom = None);
    }

    /// Whether the operation to come is [`Doom::Late`].
    pub fn next_is_late(&self) -> bool {
        self.with(|p| {
            p.doom
                .as_ref()
                .is_some_and(|(at, doom)| at.contains(&p.operations) && *doom == Doom::Late)
        })
    }

    /// Calls hang until this is called with `false`.
    pub fn stall(&self, on: bool) {
        self.with(|p| p.stalled = on);
        self.released.notify_all();
    }

    /// Counts the operation, waits out a stall, and tells its fate.
    fn begin(&self) -> Option<Doom> {
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = self.released.wait_while(plan, |p| p.stalled);
        let mut plan = plan.unwrap_or_else(PoisonError::into_inner);
        let n = plan.operations;
        plan.operations += 1;
        plan.doom.as_ref().filter(|(at, _)| at.contains(&n)).map(|&(_, doom)| doom)
    }
}

fn injected(kind: IoFaultKind) -> IoFault {
    IoFault::new(kind, format!("injected {kind:?}"))
}

/// `done` without a fault, or what the doom makes of it.
fn meet(doom: Option<Doom>, done: impl FnOnce() -> Result<(), IoFault>) -> Result<(), IoFault> {
    match doom {
        None | Some(Doom::Late) => done(),
        Some(Doom::Fails(kind)) => Err(injected(kind)),
        Some(Doom::DoneButFails(kind)) => done().and_then(|_| Err(injected(kind))),
        Some(Doom::Torn(_)) => Err(injected(IoFaultKind::Eio)),
    }
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn logical_block(&self) -> u32 {
        self.inner.logical_block()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        let doom = self.begin();
        match self.with(|p| p.reads) {
            Some(kind) => Err(injected(kind)),
            None => meet(doom, || self.inner.read_at(offset, buf)),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        let doom = self.begin();
        if let Some(kind) = self.with(|p| p.writes) {
            return Err(injected(kind));
        }
        if let Some(Doom::Torn(mask)) = doom {
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if mask >> (i % 64) & 1 == 1 {
                    self.inner.write_at(offset + (i * SECTOR) as u64, sector)?;
                }
            }
        }
        meet(doom, || self.inner.write_at(offset, data))
    }

    fn flush(&self) -> Result<(), IoFault> {
        let doom = self.begin();
        meet(doom, || self.inner.flush())
    }

    fn class(&self) -> Class {
        self.inner.class()
    }

    fn read_record(
        &self,
        pool: &Pool,
        offset: u64,
        len: usize,
        name: &RecordName,
    ) -> Result<Bytes, IoFault> {
        let doom = self.begin();
        match self.with(|p| p.reads) {
            Some(kind) => Err(injected(kind)),
            None => {
                let read = self.inner.read_record(pool, offset, len, name);
                meet(doom, || Ok(())).and(read)
            }
        }
    }

    fn requests(&self) -> Option<Requests> {
        self.inner.requests()
    }

    fn still_there(&self) -> bool {
        self.inner.still_there()
    }
}
