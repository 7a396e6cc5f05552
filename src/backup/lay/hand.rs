//! A second thread that puts small files in their place while the first does all else.
//!
//! ```text
//!   put_all ── small files, while there is room ──> [64] ──> hand ──> what became of each
//! ```
//!
//! Awkward case: a link needs the file it links to, so all that was given is waited for before one
//! is made.

use std::{
    convert::Infallible,
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    thread::{Scope, ScopedJoinHandle},
};

use super::{
    super::{store::Stored, tree::Place},
    Had, Why, put_file,
};

/// Files that wait for it. Each keeps a block in memory, at most.
const WAITING_MAX: usize = 64;

/// A file in one piece, or of nothing, and the block its bytes are in.
pub(super) struct Small<'a> {
    pub(super) at: usize,
    pub(super) stored: &'a Stored,
    pub(super) had: Had,
}

/// Which it was, and what became of it.
type Done = (usize, Result<(), Why>);

pub(super) struct Hand<'scope, 'a> {
    give: SyncSender<Small<'a>>,
    take: Receiver<Done>,
    pending: usize,
    thread: ScopedJoinHandle<'scope, Place>,
}

impl<'scope, 'a: 'scope> Hand<'scope, 'a> {
    /// None where there is no second thread to be had: one does it all the same.
    pub(super) fn start(scope: &'scope Scope<'scope, '_>, place: &Place) -> Option<Self> {
        let place = place.another().ok()?;
        let (give, given) = sync_channel(WAITING_MAX);
        let (tell, take) = channel();
        let thread = std::thread::Builder::new().name("sidepath-hand".into());
        let thread = thread.spawn_scoped(scope, move || work(place, &given, &tell)).ok()?;
        Some(Self { give, take, pending: 0, thread })
    }

    /// Gives it one; false when it has enough to do.
    pub(super) fn give(&mut self, small: Small<'a>) -> bool {
        let given = self.give.try_send(small).is_ok();
        self.pending += usize::from(given);
        given
    }

    /// What became of one; waits for it if it should and there is any.
    pub(super) fn next(&mut self, wait: bool) -> Option<Done> {
        if self.pending == 0 {
            return None;
        }
        let next = if wait { self.take.recv().ok() } else { self.take.try_recv().ok() };
        self.pending -= usize::from(next.is_some());
        next
    }

    /// Its place, with what it could not set; none if it came to a bad end.
    pub(super) fn end(self) -> Option<Place> {
        let Self { give, thread, .. } = self;
        drop(give);
        thread.join().ok()
    }
}

fn work(mut place: Place, given: &Receiver<Small<'_>>, tell: &Sender<Done>) -> Place {
    while let Ok(Small { at, stored, had }) = given.recv() {
        let block = |_| Ok::<_, Infallible>(had.clone());
        let Ok(done) = put_file(&mut place, stored, 0, block);
        let _ = tell.send((at, done));
    }
    place
}
