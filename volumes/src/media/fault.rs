//! A wrapper that makes a medium misbehave on command.
//!
//! | fault | what must survive |
//! |---|---|
//! | `fail_reads`, `fail_writes` | retried, no head advance |
//! | `tear_next_write` | the prefix lands, the call fails or (`silently`) succeeds |
//! | `lose_next_write` | acknowledged, never lands |
//! | `stall` | calls hang until released; nothing else waits |
//! | `hold_next_write` | acknowledged now, lands at `release_late` over whatever is there |

use super::BlockDevice;
use crate::event::{IoFault, IoFaultKind};
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Debug, Default)]
struct Plan {
    reads: Option<IoFaultKind>,
    writes: Option<IoFaultKind>,
    tear: Option<(usize, bool)>,
    lose: bool,
    hold: bool,
    late: Vec<(u64, Vec<u8>)>,
    stalled: bool,
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

    fn with<R>(&self, f: impl FnOnce(&mut Plan) -> R) -> R {
        f(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn fail_reads(&self, kind: Option<IoFaultKind>) {
        self.with(|p| p.reads = kind);
    }

    pub fn fail_writes(&self, kind: Option<IoFaultKind>) {
        self.with(|p| p.writes = kind);
    }

    /// Only the first `bytes` of the next write land; `silently` it claims success.
    pub fn tear_next_write(&self, bytes: usize, silently: bool) {
        self.with(|p| p.tear = Some((bytes, silently)));
    }

    pub fn lose_next_write(&self) {
        self.with(|p| p.lose = true);
    }

    pub fn hold_next_write(&self) {
        self.with(|p| p.hold = true);
    }

    /// Held writes land now.
    pub fn release_late(&self) -> Result<(), IoFault> {
        let late = self.with(|p| std::mem::take(&mut p.late));
        late.iter().try_for_each(|(offset, data)| self.inner.write_at(*offset, data))
    }

    /// Calls hang until this is called with `false`.
    pub fn stall(&self, on: bool) {
        self.with(|p| p.stalled = on);
        self.released.notify_all();
    }

    fn wait(&self) {
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = self.released.wait_while(plan, |p| p.stalled);
        drop(plan.unwrap_or_else(PoisonError::into_inner));
    }
}

fn injected(kind: IoFaultKind) -> IoFault {
    IoFault::new(kind, format!("injected {kind:?}"))
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn logical_block(&self) -> u32 {
        self.inner.logical_block()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        self.wait();
        match self.with(|p| p.reads) {
            Some(kind) => Err(injected(kind)),
            None => self.inner.read_at(offset, buf),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        self.wait();
        if let Some(kind) = self.with(|p| p.writes) {
            return Err(injected(kind));
        }
        if let Some((bytes, silently)) = self.with(|p| p.tear.take()) {
            self.inner.write_at(offset, &data[..bytes.min(data.len())])?;
            return if silently { Ok(()) } else { Err(injected(IoFaultKind::Eio)) };
        }
        if self.with(|p| std::mem::take(&mut p.lose)) {
            return Ok(());
        }
        if self.with(|p| std::mem::take(&mut p.hold)) {
            self.with(|p| p.late.push((offset, data.to_vec())));
            return Ok(());
        }
        self.inner.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), IoFault> {
        self.wait();
        self.inner.flush()
    }
}
