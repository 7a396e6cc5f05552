//! What a version will hold, while it is being made: its entries so far, and the blocks they may
//! refer to.
//!
//! ```text
//!   table of blocks: | interrupted attempt | last version | this session ... |
//!                    0                     ^ journaled    ^ session
//! ```
//!
//! Pieces are kept as places in this table, and the journal names blocks by them. A catalogue's table
//! has only those that are used, in the order in which they lie on disk.

use std::collections::HashSet;

use super::{
    super::{
        entry::{Entry, Kind, Name, Piece},
        talk::{Coming, Known, Version},
    },
    catalogue::{BlockAt, Catalogue, Stored},
    check::{self, Names},
    error::StoreError,
    folder::Folder,
    journal::{Interrupted, PackLengths, Partial},
    sync::Progress,
};

#[derive(Debug)]
pub(super) struct Draft {
    pub(super) known: Vec<Known>,
    /// Of each that is known.
    pub(super) pieces: Vec<Vec<Piece>>,
    pub(super) table: Vec<BlockAt>,
    /// Places in the table: of the first block that the journal has not from its beginning, and of
    /// this session's first.
    pub(super) journaled: u32,
    pub(super) session: u32,
    names: Names,
    entries: Vec<Stored>,
    /// The last entry is a file whose next part is awaited: where its pieces end.
    open: Option<u64>,
}

impl Draft {
    /// What an interrupted attempt left goes before what the last version has.
    pub(super) fn new(
        folder: &Folder,
        interrupted: Interrupted,
        last: Option<Catalogue>,
    ) -> Result<Self, StoreError> {
        let place = |n: usize| {
            u32::try_from(n).map_err(|_| StoreError::nonsense("more blocks than have numbers"))
        };
        let last = last.unwrap_or_default();
        let mut table = interrupted.blocks;
        let journaled = place(table.len())?;
        let mut lengths = PackLengths::new(folder);
        let there: Vec<bool> = last.blocks.iter().map(|block| lengths.has(block)).collect();
        table.extend(last.blocks);
        let session = place(table.len())?;
        let (mut known, mut pieces) = (Vec::new(), Vec::new());
        let newer: HashSet<&Name> = interrupted.files.iter().map(|f| &f.entry.name).collect();
        for mut stored in last.entries {
            let is_there = |p: &Piece| {
                usize::try_from(p.block).is_ok_and(|n| there.get(n).is_some_and(|there| *there))
            };
            if matches!(stored.entry.kind, Kind::File { .. })
                && !newer.contains(&stored.entry.name)
                && stored.pieces.iter().all(is_there)
            {
                stored.pieces.iter_mut().for_each(|p| p.block += journaled);
                known.push(Known { entry: stored.entry, until: None });
                pieces.push(stored.pieces);
            }
        }
        for file in interrupted.files {
            let until = (!file.whole).then(|| file.end());
            known.push(Known { entry: file.entry, until });
            pieces.push(file.pieces);
        }
        let (names, entries, open) = (Names::default(), Vec::new(), None);
        Ok(Self { known, pieces, table, journaled, session, names, entries, open })
    }

    /// Entries so far; a file in parts is one.
    pub(super) fn count(&self) -> u64 {
        self.names.count()
    }

    /// Whether a file has not come to its end.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Blocks of this session.
    pub(super) fn blocks(&self) -> u32 {
        u32::try_from(self.table.len()).unwrap_or(u32::MAX).saturating_sub(self.session)
    }

    pub(super) fn block(&self, place: u32) -> Option<&BlockAt> {
        self.table.get(usize::try_from(place).ok()?)
    }

    /// An entry, or a part of one, that needs blocks of this session before `after`, which are all
    /// there. Says what of it a journal should have.
    pub(super) fn take(&mut self, coming: Coming, after: u32) -> Result<Option<Progress>, String> {
        let Coming { entry, known, pieces: new, more } = coming;
        let wrong = |what: &str| Err(format!("{}: {what}", entry.name));
        let size = match entry.kind {
            Kind::File { size, .. } => Some(size),
            _ => None,
        };
        if size.is_none() && (known.is_some() || !new.is_empty() || more) {
            return wrong("bytes of what is no file");
        }
        let (mut pieces, mut unchanged, mut end) = (Vec::new(), false, self.open.unwrap_or(0));
        if self.open.is_some() {
            let goes_on = self.entries.last().is_some_and(|last| last.entry.name == entry.name);
            if !goes_on || known.is_some() || size.is_none() {
                return wrong("another file has not come to its end");
            }
            check::is_well_formed(&entry)?;
        } else {
            self.names.admit(&entry)?;
            if let Some(n) = known.map(|n| usize::try_from(n).unwrap_or(usize::MAX)) {
                let (Some(known), Some(its)) = (self.known.get(n), self.pieces.get(n)) else {
                    return wrong("it refers to what is not known");
                };
                unchanged = known.until.is_none() && known.entry == entry;
                pieces.clone_from(its);
                end = its.last().map_or(0, |p| p.offset + u64::from(p.length));
            }
        }
        unchanged &= new.is_empty() && !more;
        let known = pieces.len();
        for mut piece in new {
            if piece.block >= after {
                return wrong("a block it needs has not come");
            }
            piece.block = piece.block.saturating_add(self.session);
            pieces.push(piece);
        }
        let raw = |place| self.block(place).map(|block| block.raw);
        end = match check::run(&pieces[known..], end, raw) {
            Ok(end) => end,
            Err(what) => return wrong(what),
        };
        if !more && size.is_some_and(|size| end > size) {
            return wrong("its pieces go beyond its end");
        }
        self.names.charge(size_of_val(&pieces[..]) as u64)?;
        let first = self.open.is_none();
        // Nothing is saved by knowing an empty file.
        let worth_it = !unchanged && (!first || more || !pieces.is_empty());
        let progress = worth_it.then(|| Progress {
            part: Partial { entry: entry.clone(), pieces: pieces.clone(), whole: !more },
            first,
        });
        self.put(entry, pieces, first);
        self.open = more.then_some(end);
        Ok(progress)
    }

    fn put(&mut self, entry: Entry, mut pieces: Vec<Piece>, first: bool) {
        match self.entries.last_mut().filter(|_| !first) {
            Some(last) => {
                last.entry = entry;
                last.pieces.append(&mut pieces);
            }
            None => self.entries.push(Stored { entry, pieces }),
        }
    }

    /// All of it: `version` names itself, its times, and what it is of.
    pub(super) fn into_catalogue(self, version: Version, problems: Vec<String>) -> Catalogue {
        let Self { table, mut entries, .. } = self;
        let at = |piece: &Piece| {
            let place = usize::try_from(piece.block).unwrap_or(usize::MAX);
            table.get(place).copied()
        };
        let mut used = vec![false; table.len()];
        for piece in entries.iter().flat_map(|stored| &stored.pieces) {
            if let Some(used) = usize::try_from(piece.block).ok().and_then(|n| used.get_mut(n)) {
                *used = true;
            }
        }
        let used = table.iter().zip(used).filter(|(_, used)| *used);
        let mut blocks: Vec<BlockAt> = used.map(|(block, _)| *block).collect();
        blocks.sort_unstable();
        blocks.dedup();
        for piece in entries.iter_mut().flat_map(|stored| &mut stored.pieces) {
            let place = at(piece).and_then(|block| blocks.binary_search(&block).ok());
            piece.block = place.and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
        }
        let size = |stored: &Stored| match stored.entry.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        };
        let new = || blocks.iter().filter(|block| block.version == version.number);
        let version = Version {
            entries: entries.len() as u64,
            bytes: entries.iter().map(size).fold(0, u64::saturating_add),
            new_bytes: new().map(|block| u64::from(block.raw)).sum(),
            stored_bytes: new().map(|block| u64::from(block.stored)).sum(),
            problems: problems.len() as u64,
            ..version
        };
        Catalogue { version, blocks, entries, problems }
    }
}
