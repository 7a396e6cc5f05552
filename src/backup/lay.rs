//! What came of a version is put in its place.
//!
//! ```text
//!   entries ── plan.rs ──> blocks asked for, in that order ──> Source ──> put_all, feed
//!                                      small files, by turns: hand.rs <──────┘
//! ```
//!
//! Awkward cases:
//! * A file that cannot be put there, or whose bytes cannot be had, is named; all else goes on.
//! * A command must not take what it got for all there is: it is killed before its input ends.

use std::{collections::HashSet, io::Write, process::Child, sync::Arc};

use tokio::sync::mpsc::Receiver;

use super::{
    block::{Block, Opened},
    digest::Digest,
    entry::{Entry, Kind, Name, Piece},
    pair::PairError,
    store::Stored,
    tree::{Place, TreeError},
};

mod hand;
mod plan;

use hand::{Hand, Small};
use plan::Shelf;
pub(super) use plan::{There, choose, lacking, missing, runs, there, wanted};

/// Problems that are told; further ones are counted.
const PROBLEMS_MAX: usize = 1000;

/// What is at the destination.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Files that were there already.
    pub(crate) kept: u64,
    /// What is missing, or not as it should be.
    pub(crate) missing: u64,
    pub(crate) problems: Vec<String>,
}

/// A block of the catalogue's table, or why the store has it not.
pub(super) type Got = (u32, Result<Block, String>);

/// A block, opened, or why there is none.
type Had = Result<Arc<Opened>, String>;

/// Opened blocks, as the placing thread needs them.
pub(super) struct Source {
    blocks: Receiver<Got>,
    /// What is in them, or why that is not known.
    shelf: Shelf<Had>,
}

/// No more blocks come: the pair ended early.
struct NoMore;

impl Source {
    pub(super) fn new(blocks: Receiver<Got>) -> Self {
        Self { blocks, shelf: Shelf::default() }
    }

    /// The next of those that were asked for, or one that is remembered.
    fn block(&mut self, wanted: u32) -> Result<Had, NoMore> {
        loop {
            if let Some(opened) = self.shelf.get(wanted) {
                return Ok(opened.clone());
            }
            let (index, block) = self.blocks.blocking_recv().ok_or(NoMore)?;
            let opened = block.and_then(|b| b.open().map_err(|e| format!("block {index}: {e}")));
            self.shelf.put(index, opened.map(Arc::new));
        }
    }
}

/// The bytes of a piece in its block.
fn part<'a>(block: &'a [u8], piece: &Piece) -> Result<&'a [u8], String> {
    let from = piece.within as usize;
    let bytes = block.get(from..from + piece.length as usize);
    bytes.ok_or_else(|| format!("block {} is shorter than it should be", piece.block))
}

/// Whether there is no room, for this and for all that follows, and what to say.
type Why = (bool, String);

fn words(error: TreeError) -> Why {
    (error.is_full(), error.to_string())
}

/// The placing thread, which has another to help it.
pub(super) fn put_all(
    place: Place,
    placed: Placed,
    entries: &[Stored],
    there: &[There],
    source: Source,
) -> Result<Placed, PairError> {
    std::thread::scope(|scope| {
        let hand = Hand::start(scope, &place);
        Laying { place, placed, entries, without: HashSet::new(), source, hand }.all(there)
    })
}

struct Laying<'scope, 'a> {
    place: Place,
    placed: Placed,
    entries: &'a [Stored],
    /// What is missing: what has one of its names may be of another version.
    without: HashSet<&'a Name>,
    source: Source,
    hand: Option<Hand<'scope, 'a>>,
}

impl<'scope, 'a: 'scope> Laying<'scope, 'a> {
    fn all(mut self, there: &[There]) -> Result<Placed, PairError> {
        for ((at, stored), there) in self.entries.iter().enumerate().zip(there) {
            let is_link = matches!(stored.entry.kind, Kind::HardLink(_));
            self.collect(is_link)?;
            let done = match (there, &stored.entry.kind) {
                (There::All, _) => self.place.keep(&stored.entry).map_err(words),
                (_, Kind::HardLink(first)) if self.without.contains(first) => {
                    let name = &stored.entry.name;
                    Err((false, format!("{name} is not restored: it is another name of {first}")))
                }
                (There::Pieces(n), Kind::File { .. }) => match self.file(at, stored, *n) {
                    Err(NoMore) => return Err(PairError::here("the store's blocks ended early")),
                    Ok(Some(done)) => done,
                    Ok(None) => continue,
                },
                _ => self.place.put(&stored.entry).map_err(words),
            };
            self.note(at, done)?;
        }
        self.collect(true)?;
        match self.hand.map(Hand::end) {
            Some(Some(other)) => self.place.absorb(other),
            // What it had in its hands is not there; the mark stays, and a later try finds out.
            Some(None) => {
                return Err(PairError::Here {
                    message: "the second placing thread ended early".into(),
                    hint: Some("start the restore again: it goes on".into()),
                    input: false,
                });
            }
            None => {}
        }
        match self.place.end() {
            Ok(troubles) => {
                self.placed.problems.extend(troubles);
                Ok(self.placed)
            }
            Err((error, _)) => Err(error.into()),
        }
    }

    /// A file, of which so many pieces are there; what became of it, unless the other thread has it.
    fn file(
        &mut self,
        at: usize,
        stored: &'a Stored,
        there: usize,
    ) -> Result<Option<Result<(), Why>>, NoMore> {
        if let (Some(hand), [] | [_]) = (&mut self.hand, &stored.pieces[..]) {
            let had = match stored.pieces.first() {
                Some(piece) => self.source.block(piece.block)?,
                None => Err("it needs none".into()),
            };
            if hand.give(Small { at, stored, had }) {
                return Ok(None);
            }
        }
        put_file(&mut self.place, stored, there, |block| self.source.block(block)).map(Some)
    }

    /// Takes note of what the other thread did; of all it was given, if all is to be waited for.
    fn collect(&mut self, all: bool) -> Result<(), PairError> {
        while let Some((at, done)) = self.hand.as_mut().and_then(|hand| hand.next(all)) {
            self.note(at, done)?;
        }
        Ok(())
    }

    /// What became of an entry.
    fn note(&mut self, at: usize, done: Result<(), Why>) -> Result<(), PairError> {
        let Stored { entry, .. } = &self.entries[at];
        match done {
            Ok(()) => {
                self.placed.entries += 1;
                if let Kind::File { size, .. } = entry.kind {
                    self.placed.bytes += size;
                }
            }
            Err((true, message)) => {
                return Err(PairError::Here {
                    message,
                    hint: Some("make room, then start the restore again: it goes on".into()),
                    input: false,
                });
            }
            Err((false, why)) => {
                self.placed.missing += 1;
                if !matches!(entry.kind, Kind::Folder | Kind::HardLink(_)) {
                    self.without.insert(&entry.name);
                }
                if self.placed.problems.len() < PROBLEMS_MAX {
                    self.placed.problems.push(why);
                }
            }
        }
        Ok(())
    }
}

/// A file, of which so many pieces are there; when it cannot be put there, its blocks are taken all
/// the same.
fn put_file<E>(
    place: &mut Place,
    stored: &Stored,
    there: usize,
    mut block: impl FnMut(u32) -> Result<Had, E>,
) -> Result<Result<(), Why>, E> {
    let Stored { entry, pieces } = stored;
    let (there, lacking) = pieces.split_at_checked(there).unwrap_or((&[], pieces));
    let begun = match there {
        [] => place.begin(entry, pieces.len() <= 1),
        there => place.begin_again(entry, there),
    };
    let mut file = begun.map_err(words);
    for piece in lacking {
        let block = block(piece.block)?;
        let bytes = block.as_ref().map_err(Clone::clone).and_then(|block| part(block, piece));
        let wrote = match (&mut file, bytes) {
            (Err(_), _) => continue,
            (Ok(_), Err(why)) => Err((false, format!("{} is not restored: {why}", entry.name))),
            (Ok(file), Ok(bytes)) => file.write(piece.offset, bytes).map_err(words),
        };
        if let Err(why) = wrote
            && let Ok(begun) = std::mem::replace(&mut file, Err(why))
        {
            place.give_up(begun);
        }
    }
    Ok(file.and_then(|file| place.finish(file).map_err(words)))
}

/// A stream to a command; done when it ended well.
pub(super) fn feed(
    mut child: Child,
    command: &str,
    entry: &Entry,
    pieces: &[Piece],
    mut source: Source,
) -> Result<Placed, PairError> {
    let mut came = Digest::default();
    let mut bytes_fed = 0;
    // It reads no more: how it ended says why.
    let mut left = false;
    let mut fed = Ok(());
    if let Some(mut input) = child.stdin.take() {
        for piece in pieces {
            let block = source.block(piece.block);
            let block = block.unwrap_or_else(|NoMore| Err("the store's blocks ended early".into()));
            let bytes = match block.as_ref().map_err(Clone::clone).and_then(|b| part(b, piece)) {
                Ok(bytes) => bytes,
                Err(why) => {
                    fed = Err(why);
                    break;
                }
            };
            if piece.offset != bytes_fed {
                fed = Err("the stream has gaps".into());
                break;
            }
            came.update(bytes_fed, bytes);
            bytes_fed += bytes.len() as u64;
            if let Err(error) = input.write_all(bytes) {
                left = error.kind() == std::io::ErrorKind::BrokenPipe;
                fed = Err(if left {
                    format!("`{command}` ended before it had read everything")
                } else {
                    format!("cannot write to `{command}`: {error}")
                });
                break;
            }
        }
        if fed.is_ok()
            && let Kind::File { size, digest, .. } = entry.kind
            && (bytes_fed != size || came.finish() != digest)
        {
            fed = Err("the bytes are not those that were stored (digest)".into());
        }
        if fed.is_err() && !left {
            // It must not take what it got for all there is.
            let _ = child.kill();
        }
    }
    let status = child.wait().map_err(|e| PairError::here(format!("`{command}`: {e}")))?;
    if !status.success() && (left || fed.is_ok()) {
        return Err(PairError::here(format!("`{command}` failed ({status})")));
    }
    fed.map_err(PairError::here)?;
    Ok(Placed { entries: 1, bytes: bytes_fed, ..Placed::default() })
}

#[cfg(test)]
mod tests;
