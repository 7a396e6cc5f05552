//! What a restore asks for: which entries, what of them is not there yet, and the blocks that takes.
//!
//! Awkward cases:
//! * A block may hold bytes of many files, and be needed again later: the last ones are remembered,
//!   and what is asked for is planned with the same memory, so that nothing comes twice for nothing.
//! * A link whose first name is not wanted becomes the file itself.

use std::collections::{HashMap, VecDeque};

use super::super::{
    entry::{Kind, Name, Piece},
    store::Stored,
    tree::Place,
};

/// Opened blocks that are remembered, at most a MiB each.
const REMEMBERED: usize = 32;

/// What of an entry is at the destination already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum There {
    All,
    /// So many of its pieces; of most, none.
    Pieces(usize),
}

/// What is there; folders are not at the first try, so nothing is found in them.
pub(crate) fn there(place: &mut Place, entries: &[Stored]) -> Vec<There> {
    let of = |Stored { entry, pieces }: &Stored| match place.is_done(entry) {
        true => There::All,
        false => There::Pieces(place.begun(entry, pieces)),
    };
    entries.iter().map(of).collect()
}

/// The pieces that are not there.
pub(crate) fn lacking<'a>(
    entries: &'a [Stored],
    there: &'a [There],
) -> impl Iterator<Item = &'a Piece> {
    entries.iter().zip(there).flat_map(|(stored, there)| match there {
        There::All => &[],
        There::Pieces(n) => stored.pieces.get(*n..).unwrap_or_default(),
    })
}

/// What is wanted and not there.
pub(crate) fn missing(entries: &[Stored], only: &[Name]) -> Vec<String> {
    let is_there = |name: &Name| entries.iter().any(|stored| stored.entry.name.is_within(name));
    only.iter().filter(|name| !is_there(name)).map(ToString::to_string).collect()
}

/// Leaves what is wanted, and the folders it is in. A link whose first name is not among it becomes
/// the file itself.
pub(crate) fn choose(entries: &mut Vec<Stored>, only: &[Name]) {
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

/// Blocks that are remembered: first in, first out, so that planning and placing see the same.
#[derive(Debug)]
pub(super) struct Shelf<T> {
    held: HashMap<u32, T>,
    order: VecDeque<u32>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { held: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Shelf<T> {
    pub(super) fn get(&self, block: u32) -> Option<&T> {
        self.held.get(&block)
    }

    pub(super) fn put(&mut self, block: u32, what: T) {
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
pub(crate) fn wanted<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Vec<u32> {
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
pub(crate) fn runs(blocks: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(*block) => *count += 1,
            _ => runs.push((*block, 1)),
        }
    }
    runs
}
