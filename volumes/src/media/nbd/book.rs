//! The requests that are open on a connection, and what the replies mean for them.
//!
//! Awkward cases: a read may be answered in pieces, some of which other threads read for its owner;
//! one whose owner gave up stays until its reply has come, so that the reply is known for what it is.

use super::receiver::Receiver;
use super::wire::{self, Command, Coverage, Head, What, WireError};
use crate::event::IoFault;
use std::collections::BTreeMap;
use std::thread::Thread;
use std::time::Instant;

/// Error chunks in one reply.
const ERRORS_MAX: u32 = 16;

#[derive(Debug)]
pub(super) struct Book {
    next: u64,
    pub(super) open: BTreeMap<u64, Open>,
    pub(super) abandoned: usize,
    /// Who takes it reads for all.
    pub(super) receiver: Option<Box<Receiver>>,
    /// It is kept for this request, whose data comes next.
    pub(super) turn: Option<u64>,
    /// When the server last said something, or the first request of a row was made.
    pub(super) heard: Instant,
    pub(super) ended: Option<IoFault>,
}

/// A request that was not answered.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) command: Command,
    pub(super) offset: u64,
    len: usize,
    /// `None`: nobody waits for it any more.
    pub(super) thread: Option<Thread>,
    /// Its thread is in [`Link::wait`].
    pub(super) waiting: bool,
    coverage: Coverage,
    /// What others read for it.
    pub(super) parts: Vec<Part>,
    error: Option<(u32, String)>,
    errors: u32,
    pub(super) outcome: Option<Result<(), IoFault>>,
}

#[derive(Debug)]
pub(super) enum Part {
    Data(usize, Vec<u8>),
    Hole(usize, usize),
}

/// What follows a head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Head,
    Data { at: usize, len: usize, last: bool },
}

impl Book {
    pub(super) fn new() -> Self {
        Self {
            next: 1,
            open: BTreeMap::new(),
            abandoned: 0,
            receiver: Some(Box::default()),
            turn: None,
            heard: Instant::now(),
            ended: None,
        }
    }

    /// Notes a request of this thread; its cookie.
    pub(super) fn begin(&mut self, command: Command, offset: u64, len: usize) -> u64 {
        if self.open.is_empty() {
            self.heard = Instant::now();
        }
        let open = Open {
            command,
            offset,
            len,
            thread: Some(std::thread::current()),
            waiting: false,
            coverage: Coverage::default(),
            parts: Vec::new(),
            error: None,
            errors: 0,
            outcome: None,
        };
        let cookie = self.next;
        self.next += 1;
        self.open.insert(cookie, open);
        cookie
    }

    /// Somebody who waits shall read now.
    pub(super) fn wake_next(&self) {
        if self.receiver.is_none() || self.turn.is_some() {
            return;
        }
        let mut waiting = self.open.values().filter(|o| o.waiting && o.outcome.is_none());
        if let Some(thread) = waiting.find_map(|o| o.thread.as_ref()) {
            thread.unpark();
        }
    }

    pub(super) fn give_turn(&mut self, cookie: u64) {
        self.turn = Some(cookie);
        match self.open.get(&cookie).and_then(|o| o.thread.as_ref()) {
            Some(thread) => thread.unpark(),
            None => self.turn = None,
        }
    }

    /// Notes the answer to a request.
    pub(super) fn finish(&mut self, cookie: u64, me: Option<u64>) -> Result<(), WireError> {
        let Some(open) = self.open.get_mut(&cookie) else { return Ok(()) };
        let outcome = match open.error.take() {
            Some((error, message)) => Err(wire::fault(open.command, open.offset, error, &message)),
            None if open.command == Command::Read => {
                open.coverage.whole(open.len)?;
                Ok(())
            }
            None => Ok(()),
        };
        match &open.thread {
            None => {
                self.open.remove(&cookie);
                self.abandoned -= 1;
            }
            Some(thread) => {
                open.outcome = Some(outcome);
                if me != Some(cookie) {
                    thread.unpark();
                }
            }
        }
        Ok(())
    }

    /// What a head means, and whether the server is shutting down.
    pub(super) fn head(
        &mut self,
        head: Head,
        structured: bool,
        me: Option<u64>,
    ) -> Result<(Next, bool), WireError> {
        self.heard = Instant::now();
        let Head { cookie, last, what } = head;
        let open = self.open.get_mut(&cookie).filter(|o| o.outcome.is_none());
        let open = open.ok_or(WireError::Cookie { cookie })?;
        let is_read = open.command == Command::Read;
        let mut shutdown = false;
        match what {
            What::Simple { error: 0 } if is_read && structured => {
                return Err(WireError::Unstructured);
            }
            What::Simple { error: 0 } if is_read => {
                let len = u32::try_from(open.len).unwrap_or(u32::MAX);
                let at = open.coverage.add(open.offset, open.len, open.offset, len)?;
                return Ok((Next::Data { at, len: open.len, last }, false));
            }
            What::Simple { error: 0 } | What::Nothing => {}
            What::Data { .. } | What::Hole { .. } if !is_read => {
                return Err(WireError::Unasked);
            }
            What::Data { offset, len } => {
                let at = open.coverage.add(open.offset, open.len, offset, len)?;
                return Ok((Next::Data { at, len: len as usize, last }, false));
            }
            What::Hole { offset, len } => {
                let at = open.coverage.add(open.offset, open.len, offset, len)?;
                open.parts.push(Part::Hole(at, len as usize));
            }
            What::Simple { error } => {
                shutdown = error == wire::SHUTDOWN;
                open.error = Some((error, String::new()));
            }
            What::Error { error, message } => {
                shutdown = error == wire::SHUTDOWN;
                open.errors += 1;
                if open.errors > ERRORS_MAX {
                    return Err(WireError::Pieces);
                }
                open.error.get_or_insert((error, message));
            }
        }
        if last {
            self.finish(cookie, me)?;
        }
        Ok((Next::Head, shutdown))
    }
}

/// Puts together what others read for us; the ranges were checked when they came.
pub(super) fn gather(parts: Vec<Part>, into: &mut [u8]) {
    for part in parts {
        let (at, len) = match &part {
            Part::Data(at, bytes) => (*at, bytes.len()),
            Part::Hole(at, len) => (*at, *len),
        };
        let Some(target) = into.get_mut(at..at + len) else { continue };
        match part {
            Part::Data(_, bytes) => target.copy_from_slice(&bytes),
            Part::Hole(..) => target.fill(0),
        }
    }
}
