//! A second thread that puts small files in their place while the first does all else.
//!
//! ```text
//!   put_all ── small files, while there is room ──> [64] ──> hand ──> what became of each
//! ```
//!
//! Awkward cases:
//! * What lies where the file belongs is for the first thread to replace, which has the name of what
//!   is not whole yet to itself.
//! * A link needs the file it links to: all that was given is waited for before one is made.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    },
    thread::{Scope, ScopedJoinHandle},
};

use super::{
    super::{block::Opened, entry::Piece, store::Stored, tree::Place},
    Why, part, words,
};

/// Files that wait for it. Each keeps a block in memory, at most.
const WAITING_MAX: usize = 64;

/// A small file with the block its bytes are in, if it has any.
pub(super) struct Small<'a> {
    pub(super) at: usize,
    pub(super) stored: &'a Stored,
    pub(super) bytes: Option<(Piece, Arc<Opened>)>,
}

/// What became of one.
pub(super) enum Became<'a> {
    Done(usize, Result<(), Why>),
    /// Something is there already, or it cannot be made: the first thread finds out.
    Back(Small<'a>),
}

pub(super) struct Hand<'scope, 'a> {
    give: SyncSender<Small<'a>>,
    take: Receiver<Became<'a>>,
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

    /// Gives it one, or that back when it has enough to do.
    pub(super) fn give(&mut self, small: Small<'a>) -> Result<(), Small<'a>> {
        match self.give.try_send(small) {
            Ok(()) => {
                self.pending += 1;
                Ok(())
            }
            Err(TrySendError::Full(small) | TrySendError::Disconnected(small)) => Err(small),
        }
    }

    /// What became of some; waits for one if it should and there is any.
    pub(super) fn next(&mut self, wait: bool) -> Option<Became<'a>> {
        if self.pending == 0 {
            return None;
        }
        let next = if wait { self.take.recv().ok() } else { self.take.try_recv().ok() };
        if next.is_some() {
            self.pending -= 1;
        }
        next
    }

    /// Its place, with what it could not set; none if it came to a bad end.
    pub(super) fn end(self) -> Option<Place> {
        let Self { give, thread, .. } = self;
        drop(give);
        thread.join().ok()
    }
}

fn work<'a>(mut place: Place, given: &Receiver<Small<'a>>, tell: &Sender<Became<'a>>) -> Place {
    while let Ok(small) = given.recv() {
        let begun = match place.begin_new(&small.stored.entry) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => {
                let _ = tell.send(Became::Back(small));
                continue;
            }
            Err(error) => Err(error),
        };
        let done = begun.and_then(|mut file| {
            let bytes = small.bytes.as_ref();
            // What is not there is missed by its digest.
            let wrote = bytes.map_or(Ok(()), |(piece, block)| {
                file.write(piece.offset, part(block, piece).unwrap_or_default())
            });
            match wrote {
                Ok(()) => place.finish(file),
                Err(error) => {
                    place.give_up(file);
                    Err(error)
                }
            }
        });
        let _ = tell.send(Became::Done(small.at, done.map_err(words)));
    }
    place
}
