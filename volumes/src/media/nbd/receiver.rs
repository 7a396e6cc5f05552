//! Where the reading of replies stands; handed from thread to thread.
//!
//! Heads go through a small buffer, so that a reply of a few KiB costs one system call; the data of a
//! large one goes straight into the buffer of the thread that asked for it, which therefore reads it
//! itself. Awkward case: a reply in ever more pieces; the [`Link`] and the coverage count them.

use super::book::Next;
use super::link::{Broken, Link};
use super::wire::{self, HEAD_BYTES_MAX};
use std::io;

/// Room for the longest head, and for a reply with one block.
const STAGE_BYTES: usize = 16 << 10;
const _: () = assert!(STAGE_BYTES > HEAD_BYTES_MAX);
/// Data up to this length is read for another thread; more it reads itself (a copy of 64 KiB takes
/// about as long as waking it).
const FOR_ANOTHER_MAX: usize = 64 << 10;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing more is there.
    Empty,
    /// The reader's own request is answered.
    Mine,
    /// What comes next is much, and for this request.
    For(u64),
}

#[derive(Debug)]
pub(super) struct Receiver {
    stage: Box<[u8]>,
    from: usize,
    to: usize,
    state: State,
    /// Poll before reading again.
    drained: bool,
}

#[derive(Debug)]
enum State {
    Head,
    Data(Data),
}

#[derive(Debug)]
struct Data {
    cookie: u64,
    /// Place of the next byte in the request.
    at: usize,
    left: usize,
    last: bool,
    /// What was read of it for another thread, and where it began.
    part: Option<(usize, Vec<u8>)>,
}

impl Default for Receiver {
    fn default() -> Self {
        let stage = vec![0; STAGE_BYTES].into_boxed_slice();
        Self { stage, from: 0, to: 0, state: State::Head, drained: false }
    }
}

impl Receiver {
    /// After `poll` there may be more.
    pub(super) fn refreshed(&mut self) -> &mut Self {
        self.drained = false;
        self
    }

    /// Handles all that is there, for whomever it is; `me` is who reads, and where to.
    pub(super) fn pump(
        &mut self,
        link: &Link,
        mut me: Option<(u64, &mut [u8])>,
    ) -> Result<Pumped, Broken> {
        let own = me.as_ref().map(|(cookie, _)| *cookie);
        loop {
            if own.is_some_and(|cookie| link.has_outcome(cookie)) {
                return Ok(Pumped::Mine);
            }
            match &mut self.state {
                State::Head => {
                    let staged = &self.stage[self.from..self.to];
                    let Some((head, len)) = wire::decode(staged, link.export.structured)? else {
                        if !self.fill(link)? {
                            return Ok(Pumped::Empty);
                        }
                        continue;
                    };
                    self.from += len;
                    let cookie = head.cookie;
                    if let Next::Data { at, len, last } = link.head(head, own)? {
                        self.state = State::Data(Data { cookie, at, left: len, last, part: None });
                    }
                }
                State::Data(data) if data.left == 0 => {
                    let (cookie, last, part) = (data.cookie, data.last, data.part.take());
                    self.state = State::Head;
                    link.data_came(cookie, last, part, own)?;
                }
                State::Data(data) => {
                    let is_mine = data.part.is_none() && own == Some(data.cookie);
                    let target = match &mut me {
                        Some((_, buf)) if is_mine => buf.get_mut(data.at..data.at + data.left),
                        _ if data.part.is_some() || !link.is_wanted(data.cookie) => None,
                        _ if data.left <= FOR_ANOTHER_MAX => {
                            data.part = Some((data.at, Vec::with_capacity(data.left)));
                            None
                        }
                        _ => return Ok(Pumped::For(data.cookie)),
                    };
                    if !self.data(link, target)? {
                        return Ok(Pumped::Empty);
                    }
                }
            }
        }
    }

    /// Moves some data on; `false`: nothing more is there. Without a target it goes into the part,
    /// or nowhere.
    fn data(&mut self, link: &Link, target: Option<&mut [u8]>) -> Result<bool, Broken> {
        let staged = self.to - self.from;
        let State::Data(data) = &mut self.state else { return Ok(true) };
        let n = match target {
            Some(target) if staged == 0 => {
                if self.drained {
                    return Ok(false);
                }
                let want = target.len();
                match receive(link, target)? {
                    None => {
                        self.drained = true;
                        return Ok(false);
                    }
                    Some(n) => {
                        self.drained = n < want && link.transport.short_is_empty();
                        n
                    }
                }
            }
            _ if staged == 0 => return self.fill(link),
            target => {
                let n = staged.min(data.left);
                let bytes = &self.stage[self.from..self.from + n];
                match (target, &mut data.part) {
                    (Some(target), _) => target[..n].copy_from_slice(bytes),
                    (None, Some((_, part))) => part.extend_from_slice(bytes),
                    (None, None) => {}
                }
                self.from += n;
                n
            }
        };
        data.at += n;
        data.left -= n;
        Ok(true)
    }

    /// Reads more into the stage; `false`: nothing more is there.
    fn fill(&mut self, link: &Link) -> Result<bool, Broken> {
        if self.drained {
            return Ok(false);
        }
        self.stage.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        let room = &mut self.stage[self.to..];
        let want = room.len();
        let Some(n) = receive(link, room)? else {
            self.drained = true;
            return Ok(false);
        };
        self.to += n;
        self.drained = n < want && link.transport.short_is_empty();
        Ok(true)
    }
}

fn receive(link: &Link, into: &mut [u8]) -> Result<Option<usize>, Broken> {
    match link.transport.recv(into) {
        Ok(0) => Err(Broken::Closed),
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(Broken::Io(e)),
    }
}
