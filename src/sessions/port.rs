//! What an application and the turn loop share of one session.
//!
//! A hatch between two rooms: the application puts bytes on its side and rings once; the loop
//! comes when it has time, takes what the core has room for and puts down what came. Both sides
//! hold the lock for a copy at most, and neither waits for the other.
//!
//! Awkward cases: bytes written before the destination accepted stay here; what the core has no
//! room for stays here too, and the loop comes again when room was made; a port whose application
//! is gone lives on until the other side has everything.

use std::{
    future::poll_fn,
    mem,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use failover::{
    NodeId, Path,
    session::{ByPath, SessionId},
};

use super::{SessionError, Stats, chunks::Chunks, remote::News};

/// Bytes an application may be ahead of the loop.
pub(super) const OUTGOING_MAX: usize = 256 << 10;

/// One session's hatch.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) peer: NodeId,
    pub(super) peer_name: String,
    pub(super) service: String,
    state: Mutex<State>,
}

/// What lies in it.
#[derive(Default)]
pub(super) struct State {
    pub(super) id: Option<SessionId>,
    /// The loop was told to come.
    pub(super) told: bool,
    // --- from the application
    pub(super) outgoing: Chunks,
    pub(super) written: u64,
    pub(super) finish: bool,
    pub(super) finished: bool,
    pub(super) taken: u64,
    pub(super) accept: bool,
    pub(super) refuse: Option<String>,
    pub(super) abandon: bool,
    pub(super) reset: bool,
    // --- from the loop
    pub(super) open: bool,
    pub(super) error: Option<SessionError>,
    pub(super) closed: bool,
    pub(super) incoming: Chunks,
    pub(super) ended: bool,
    pub(super) path: Option<Path>,
    pub(super) received_there: u64,
    pub(super) taken_there: u64,
    pub(super) sent: ByPath,
    pub(super) came: ByPath,
    pub(super) came_bytes: u64,
    pub(super) read_waker: Option<Waker>,
    pub(super) write_waker: Option<Waker>,
    pub(super) wakers: Vec<Waker>,
    /// To be woken when the lock is free: whoever wakes wants it first of all.
    due: Vec<Waker>,
}

/// The lock of a port. Whoever is to be woken is, once it is free.
pub(super) struct Guard<'a>(Option<MutexGuard<'a, State>>);

impl Deref for Guard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        match &self.0 {
            Some(state) => state,
            None => unreachable!("taken when dropped"),
        }
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        match &mut self.0 {
            Some(state) => state,
            None => unreachable!("taken when dropped"),
        }
    }
}

impl Guard<'_> {
    /// Frees the lock; whoever is to be woken goes to `due`.
    pub(super) fn free(mut self, due: &mut Vec<Waker>) {
        if let Some(state) = &mut self.0 {
            due.append(&mut state.due);
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.0.take() else { return };
        let due = mem::take(&mut state.due);
        drop(state);
        due.into_iter().for_each(Waker::wake);
    }
}

/// Without the bytes.
impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("id", &self.id)
            .field("path", &self.path)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Puts down bytes that came.
    pub(super) fn arrived(&mut self, bytes: Bytes) {
        self.came_bytes += bytes.len() as u64;
        self.incoming.give(bytes);
        self.wake_reader();
    }

    fn wake_reader(&mut self) {
        self.due.extend(self.read_waker.take());
    }

    pub(super) fn wake_writer(&mut self) {
        self.due.extend(self.write_waker.take());
    }

    /// Something about the session changed.
    pub(super) fn wake_all(&mut self) {
        self.wake_reader();
        self.wake_writer();
        self.wake_watchers();
    }

    pub(super) fn wake_watchers(&mut self) {
        self.due.append(&mut self.wakers);
    }

    /// Waits for `done`, which is looked at again whenever something changes.
    pub(super) fn watch<T>(&mut self, cx: &Context<'_>, done: Option<T>) -> Poll<T> {
        match done {
            Some(done) => Poll::Ready(done),
            None => {
                if !self.wakers.iter().any(|w| w.will_wake(cx.waker())) {
                    self.wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            written: self.written,
            received_there: self.received_there,
            taken_there: self.taken_there,
            received: self.came_bytes,
            sent_by: self.sent,
            received_by: self.came,
        }
    }

    pub(super) fn news(&self) -> News {
        News { path: self.path, stats: self.stats() }
    }

    /// It ends with an error; nothing more is sent or received.
    pub(super) fn fail(&mut self, error: SessionError) {
        self.error.get_or_insert(error);
        self.outgoing.clear();
        self.wake_all();
    }
}

impl Port {
    pub(super) fn new(peer: NodeId, peer_name: String, service: String) -> Self {
        Self { peer, peer_name, service, state: Mutex::default() }
    }

    /// Waits until the destination accepted.
    pub(super) async fn opened(&self) -> Result<(), SessionError> {
        poll_fn(|cx| {
            let mut state = self.lock();
            let done = match &state.error {
                Some(error) => Some(Err(error.clone())),
                None => state.open.then_some(Ok(())),
            };
            state.watch(cx, done)
        })
        .await
    }

    /// Waits until the other application took everything.
    pub(super) async fn delivered(&self) -> Result<(), SessionError> {
        poll_fn(|cx| {
            let mut state = self.lock();
            let done = if state.closed || state.taken_there >= state.written {
                Some(Ok(()))
            } else {
                state.error.clone().map(Err)
            };
            state.watch(cx, done)
        })
        .await
    }

    /// Waits until both sides are done.
    pub(super) async fn closed(&self) -> Result<(), SessionError> {
        poll_fn(|cx| {
            let mut state = self.lock();
            let done = if state.closed { Some(Ok(())) } else { state.error.clone().map(Err) };
            state.watch(cx, done)
        })
        .await
    }

    /// Waits until it ended before both sides were done: for ever, if that never happens.
    pub(super) async fn failed(&self) -> SessionError {
        poll_fn(|cx| {
            let mut state = self.lock();
            let error = state.error.clone();
            state.watch(cx, error)
        })
        .await
    }

    /// A panic of one thread must not take the others with it: the state is never left half
    /// changed.
    pub(super) fn lock(&self) -> Guard<'_> {
        Guard(Some(self.state.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
