//! What of a version is put in its place, in which order, and by which blocks.
//!
//! ```text
//!   entries ── choose ── wanted ──> blocks asked for, in that order ──> Source ──> put_all, feed
//!                                              small files, by turns: hand.rs <──────┘
//! ```
//!
//! Awkward cases:
//! * A block may hold bytes of many files, and be needed again later: the last ones stay open, and
//!   what is asked for is planned with the same memory, so that nothing comes twice for nothing.
//! * A file that cannot be put there, or whose bytes cannot be had, is named; all else goes on.
//! * A command must not take what it got for all there is: it is killed before its input ends.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io::Write,
    process::Child,
    sync::Arc,
};

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

use hand::{Became, Hand, Small};

/// Opened blocks that are remembered, at most a MiB each.
const REMEMBERED: usize = 32;
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

/// What of an entry is at the destination already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum There {
    All,
    /// So many of its pieces; of most, none.
    Pieces(usize),
}

/// What is there; folders are not at the first try, so nothing is found in them.
pub(super) fn there(place: &mut Place, entries: &[Stored]) -> Vec<There> {
    let of = |Stored { entry, pieces }: &Stored| match place.is_done(entry) {
        true => There::All,
        false => There::Pieces(place.begun(entry, pieces)),
    };
    entries.iter().map(of).collect()
}

/// The pieces that are not there.
pub(super) fn lacking<'a>(
    entries: &'a [Stored],
    there: &'a [There],
) -> impl Iterator<Item = &'a Piece> {
    entries.iter().zip(there).flat_map(|(stored, there)| match there {
        There::All => &[],
        There::Pieces(n) => stored.pieces.get(*n..).unwrap_or_default(),
    })
}

/// What is wanted and not there.
pub(super) fn missing(entries: &[Stored], only: &[Name]) -> Vec<String> {
    let is_there = |name: &Name| entries.iter().any(|stored| stored.entry.name.is_within(name));
    only.iter().filter(|name| !is_there(name)).map(ToString::to_string).collect()
}

/// Leaves what is wanted, and the folders it is in. A link whose first name is not among it becomes
/// the file itself.
pub(super) fn choose(entries: &mut Vec<Stored>, only: &[Name]) {
    if only.is_empty() {
        return;
    }
    let is_wanted = |name: &Name| only.iter().any(|folder| name.is_within(folder));
    let mut promoted: HashMap<Name, Name> = HashMap::new();
    for Stored { entry, .. } in &*entries {
        if let Kind::HardLink(first) = &entry.kind
            && is_wanted(&entry.name)
            && !is_wanted(first)
        {
            promoted.entry(first.clone()).or_insert_with(|| entry.name.clone());
        }
    }
    let mut files: HashMap<Name, (Kind, Vec<Piece>)> = entries
        .iter()
        .filter_map(|Stored { entry, pieces }| {
            let now = promoted.get(&entry.name)?;
            Some((now.clone(), (entry.kind.clone(), pieces.clone())))
        })
        .collect();
    let above = |name: &Name| only.iter().any(|wanted| wanted.is_within(name));
    let mut any = false;
    entries.retain_mut(|Stored { entry, pieces }| {
        let name = &entry.name;
        if !is_wanted(name) {
            return entry.kind == Kind::Folder && above(name) && !name.is_root();
        }
        any = true;
        if let Kind::HardLink(first) = &mut entry.kind {
            if let Some((kind, bytes)) = files.remove(name) {
                (entry.kind, *pieces) = (kind, bytes);
            } else if let Some(now) = promoted.get(first) {
                *first = now.clone();
            }
        }
        true
    });
    if !any {
        entries.clear();
    }
}

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

    /// A block, opened, or why there is none.
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
            Some(None) => return Err(PairError::here("the second placing thread ended early")),
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
            let bytes = match stored.pieces.first() {
                None => Some(None),
                Some(piece) => match self.source.block(piece.block)? {
                    Ok(block) if part(&block, piece).is_ok() => Some(Some((*piece, block))),
                    _ => None,
                },
            };
            if let Some(bytes) = bytes
                && hand.give(Small { at, stored, bytes }).is_ok()
            {
                return Ok(None);
            }
        }
        put_file(&mut self.place, stored, there, |block| self.source.block(block)).map(Some)
    }

    /// Takes note of what the other thread did; of all it was given, if all is to be waited for.
    fn collect(&mut self, all: bool) -> Result<(), PairError> {
        while let Some(became) = self.hand.as_mut().and_then(|hand| hand.next(all)) {
            match became {
                Became::Done(at, done) => self.note(at, done)?,
                Became::Back(Small { at, stored, bytes }) => {
                    let block = |_| match &bytes {
                        Some((_, block)) => Ok(Ok(block.clone())),
                        None => Err(NoMore),
                    };
                    if let Ok(done) = put_file(&mut self.place, stored, 0, block) {
                        self.note(at, done)?;
                    }
                }
            }
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
fn put_file(
    place: &mut Place,
    stored: &Stored,
    there: usize,
    mut block: impl FnMut(u32) -> Result<Had, NoMore>,
) -> Result<Result<(), Why>, NoMore> {
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

/// Blocks that are remembered: first in, first out, so that planning and placing see the same.
#[derive(Debug)]
struct Shelf<T> {
    held: HashMap<u32, T>,
    order: VecDeque<u32>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { held: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Shelf<T> {
    fn get(&self, block: u32) -> Option<&T> {
        self.held.get(&block)
    }

    fn put(&mut self, block: u32, what: T) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.held.remove(&oldest);
        }
        self.order.push_back(block);
        self.held.insert(block, what);
    }
}

/// Which blocks are to be asked for, in order, so that these pieces can be placed one after another.
pub(super) fn wanted<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Vec<u32> {
    let mut shelf = Shelf::default();
    let mut wanted = Vec::new();
    for piece in pieces {
        if shelf.get(piece.block).is_none() {
            shelf.put(piece.block, ());
            wanted.push(piece.block);
        }
    }
    wanted
}

/// First and count of runs.
pub(super) fn runs(blocks: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(*block) => *count += 1,
            _ => runs.push((*block, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
