//! One connection, used by several threads at once; there is no thread of its own.
//!
//! ```text
//!   flusher --+                                   +-> its own reply: data straight into its buffer
//!   reader  --+-- send (one at a time) -- server -+-> another's, small: kept for it, wake it
//!   keeper  --+                                   +-> another's, large: hand the reading over to it
//! ```
//!
//! Of those who wait, one reads for all ([`Book::receiver`] is there for the taking); the others
//! sleep. Alone, a request costs no switch of threads.
//!
//! Awkward cases: a deadline may pass in the middle of a reply, so where the reader stands is kept
//! between readers; a reply nobody waits for any more is read and dropped; a sender whose server
//! does not read because nobody reads *its* replies must read meanwhile; a request that was sent in
//! part cannot be taken back, so the connection ends. A connection that ended stays so: whoever needs
//! the medium opens it anew and looks at it first.

use super::book::{Book, Next, Part, gather};
use super::handshake::Export;
use super::receiver::{Pumped, Receiver};
use super::transport::{Transport, left};
use super::wire::{self, Command, Head, WireError};
use crate::event::{IoFault, IoFaultKind};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Requests that nobody waits for any more; a server that keeps so many is of no use.
const ABANDONED_MAX: usize = 64;
/// A blocked sender looks this often whether it must read, while somebody else does.
const GLANCE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    pub(super) request: Duration,
    pub(super) flush: Duration,
    /// Without a word for so long, while requests are open, the connection ends.
    pub(super) silence: Duration,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) transport: Transport,
    pub(super) export: Export,
    deadlines: Deadlines,
    sending: Mutex<()>,
    book: Mutex<Book>,
    ended: AtomicBool,
    /// Ends when this one does.
    partner: OnceLock<Weak<Self>>,
}

/// Why a connection must end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the server breaks the protocol: {0}")]
    Wire(#[from] WireError),
    #[error("the server closed the connection")]
    Closed,
    #[error("{0}")]
    Io(io::Error),
}

impl Link {
    pub(super) fn new(transport: Transport, export: Export, deadlines: Deadlines) -> Self {
        Self {
            transport,
            export,
            deadlines,
            sending: Mutex::new(()),
            book: Mutex::new(Book::new()),
            ended: AtomicBool::new(false),
            partner: OnceLock::new(),
        }
    }

    /// From here on the end of this one is the end of that one, too.
    pub(super) fn bind(&self, partner: &Arc<Self>) {
        let _ = self.partner.set(Arc::downgrade(partner));
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request and its reply. `data` is what is written, `into` what is read; one is empty.
    pub(super) fn call(
        &self,
        command: Command,
        offset: u64,
        data: &[u8],
        into: &mut [u8],
    ) -> Result<(), IoFault> {
        let patience = match command {
            Command::Flush => self.deadlines.flush,
            _ => self.deadlines.request,
        };
        self.call_until(command, offset, data, into, Instant::now() + patience)
    }

    /// The same with a deadline of its own.
    pub(super) fn call_until(
        &self,
        command: Command,
        offset: u64,
        data: &[u8],
        into: &mut [u8],
        until: Instant,
    ) -> Result<(), IoFault> {
        let cookie = self.begin(command, offset, data.len().max(into.len()))?;
        if let Err(fault) = self.send(command, cookie, offset, data, into.len(), until) {
            self.lock().open.remove(&cookie);
            return Err(fault);
        }
        self.wait(cookie, into, until)
    }

    fn begin(&self, command: Command, offset: u64, len: usize) -> Result<u64, IoFault> {
        let mut book = self.lock();
        if let Some(fault) = &book.ended {
            return Err(fault.clone());
        }
        Ok(book.begin(command, offset, len))
    }

    /// Returns when the kernel has all of it. On `Err` nothing was sent, or the connection ended.
    fn send(
        &self,
        command: Command,
        cookie: u64,
        offset: u64,
        data: &[u8],
        read: usize,
        until: Instant,
    ) -> Result<(), IoFault> {
        let len = u32::try_from(data.len().max(read)).unwrap_or(u32::MAX);
        let head = wire::request(command, cookie, offset, len);
        let _alone = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        loop {
            let sent = if done < head.len() {
                self.transport.send(&head[done..], data)
            } else if done < head.len() + data.len() {
                self.transport.send(&data[done - head.len()..], b"")
            } else {
                match self.transport.flush() {
                    Ok(()) => return Ok(()),
                    Err(e) => Err(e),
                }
            };
            match sent {
                Ok(n) => {
                    done += n;
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(self.end(&Broken::Io(e).to_string())),
            }
            if left(until).is_zero() {
                let detail = format!("{} at {offset}: the server takes nothing", command.name());
                if done == 0 {
                    return Err(IoFault::new(IoFaultKind::TimedOut, detail));
                }
                return Err(self.end("the server stopped in the middle of a request"));
            }
            self.make_room(until)?;
        }
    }

    /// Waits until more can be sent, and reads meanwhile if nobody else does: the server may be
    /// waiting for just that.
    fn make_room(&self, until: Instant) -> Result<(), IoFault> {
        let free = {
            let mut book = self.lock();
            if let Some(fault) = &book.ended {
                return Err(fault.clone());
            }
            if book.turn.is_none() { book.receiver.take() } else { None }
        };
        let fault = |e: io::Error| self.end(&e.to_string());
        let Some(mut receiver) = free else {
            return self.transport.poll(false, true, left(until).min(GLANCE)).map_err(fault);
        };
        let mut pumped = receiver.pump(self, None);
        if matches!(pumped, Ok(Pumped::Empty)) {
            pumped = match self.transport.poll(true, true, left(until)) {
                Ok(()) => receiver.refreshed().pump(self, None),
                Err(e) => Err(Broken::Io(e)),
            };
        }
        self.put_back(receiver, pumped.as_ref());
        pumped.map(|_| ()).map_err(|e| self.end(&e.to_string()))
    }

    fn put_back(&self, receiver: Box<Receiver>, pumped: Result<&Pumped, &Broken>) {
        let mut book = self.lock();
        book.receiver = Some(receiver);
        if let Ok(Pumped::For(cookie)) = pumped {
            book.give_turn(*cookie);
        }
        book.wake_next();
    }

    fn wait(&self, cookie: u64, into: &mut [u8], until: Instant) -> Result<(), IoFault> {
        let mut book = self.lock();
        loop {
            let Some(open) = book.open.get_mut(&cookie) else {
                return Err(IoFault::new(IoFaultKind::Gone, "the request was lost"));
            };
            open.waiting = true;
            if let Some(outcome) = open.outcome.take() {
                let parts = std::mem::take(&mut open.parts);
                book.open.remove(&cookie);
                book.wake_next();
                drop(book);
                // Nothing of a failed read is anybody's.
                return outcome.map(|()| gather(parts, into));
            }
            let patience = left(until);
            if patience.is_zero() {
                return Err(self.give_up(book, cookie));
            }
            let mine = book.turn.is_none_or(|turn| turn == cookie);
            let receiver = if mine { book.receiver.take() } else { None };
            let Some(mut receiver) = receiver else {
                drop(book);
                std::thread::park_timeout(patience);
                book = self.lock();
                continue;
            };
            book.turn = None;
            drop(book);
            let pumped = self.lead(&mut receiver, cookie, into, until);
            self.put_back(receiver, pumped.as_ref());
            if let Err(e) = pumped {
                self.end(&e.to_string());
            }
            book = self.lock();
        }
    }

    /// Reads for all until our own reply has come, our time is over, or somebody else must read on.
    fn lead(
        &self,
        receiver: &mut Receiver,
        cookie: u64,
        into: &mut [u8],
        until: Instant,
    ) -> Result<Pumped, Broken> {
        loop {
            match receiver.pump(self, Some((cookie, &mut *into)))? {
                Pumped::Empty if !left(until).is_zero() => {}
                done => return Ok(done),
            }
            self.transport.poll(true, false, left(until)).map_err(Broken::Io)?;
            receiver.refreshed();
        }
    }

    fn give_up(&self, mut book: MutexGuard<'_, Book>, cookie: u64) -> IoFault {
        let mut detail = "no reply in time".to_owned();
        if let Some(open) = book.open.get_mut(&cookie) {
            open.thread = None;
            open.parts = Vec::new();
            detail = format!("{} at {}: {detail}", open.command.name(), open.offset);
            book.abandoned += 1;
        }
        if book.turn == Some(cookie) {
            book.turn = None;
        }
        book.wake_next();
        let silent = book.heard.elapsed();
        let crowd = book.abandoned > ABANDONED_MAX;
        drop(book);
        if silent >= self.deadlines.silence {
            self.end(&format!("the server said nothing for {} ms", silent.as_millis()));
        } else if crowd {
            self.end(&format!("the server left more than {ABANDONED_MAX} requests unanswered"));
        }
        IoFault::new(IoFaultKind::TimedOut, detail)
    }

    /// Nothing works any more; everyone is told why. The first reason counts, and is returned.
    pub(super) fn end(&self, why: &str) -> IoFault {
        let mut book = self.lock();
        let is_news = book.ended.is_none();
        let lost = || IoFault::new(IoFaultKind::Gone, format!("connection lost: {why}"));
        let fault = book.ended.get_or_insert_with(lost).clone();
        // SYNC: pairs with the load in `has_ended`.
        self.ended.store(true, Ordering::Release);
        book.open.retain(|_, open| open.thread.is_some());
        book.abandoned = 0;
        for open in book.open.values_mut() {
            open.outcome.get_or_insert_with(|| Err(fault.clone()));
            if let Some(thread) = &open.thread {
                thread.unpark();
            }
        }
        drop(book);
        self.transport.shutdown();
        if let Some(partner) = self.partner.get().filter(|_| is_news).and_then(Weak::upgrade) {
            partner.end(why);
        }
        fault
    }

    // What follows is called by who holds the receiver.

    pub(super) fn head(&self, head: Head, me: Option<u64>) -> Result<Next, Broken> {
        let (next, shutdown) = self.lock().head(head, self.export.structured, me)?;
        if shutdown {
            self.end("the server is shutting down");
        }
        Ok(next)
    }

    /// Whether somebody waits for it.
    pub(super) fn is_wanted(&self, cookie: u64) -> bool {
        self.lock().open.get(&cookie).is_some_and(|o| o.thread.is_some())
    }

    /// Data of a reply is complete. `part`: it was read for another thread.
    pub(super) fn data_came(
        &self,
        cookie: u64,
        last: bool,
        part: Option<(usize, Vec<u8>)>,
        me: Option<u64>,
    ) -> Result<(), Broken> {
        let mut book = self.lock();
        book.heard = Instant::now();
        if let (Some(open), Some((at, bytes))) = (book.open.get_mut(&cookie), part)
            && open.thread.is_some()
        {
            open.parts.push(Part::Data(at, bytes));
        }
        if last {
            book.finish(cookie, me)?;
        }
        Ok(())
    }

    pub(super) fn has_outcome(&self, cookie: u64) -> bool {
        self.lock().open.get(&cookie).is_none_or(|o| o.outcome.is_some())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.transport.farewell(&wire::request(Command::Disconnect, 0, 0, 0));
        }
    }
}
