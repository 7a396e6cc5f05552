//! A catalogue: what a version holds, and where.
//!
//! ```text
//!   0        4            8
//!   | "SPBC" | format u32 | Head | Blocks.. | Entries.. | Problems.. | End | BLAKE3 (32 bytes) |
//!                           frames, see frames.rs                           of all before
//! ```
//!
//! Whoever reads one takes it for hostile: it may be damaged, and a client has it from somebody else.
//! So all that is read is checked once, here, and what is then at hand keeps to [`Catalogue::check`].

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
};

use serde::{Deserialize, Serialize};

use super::{
    super::{
        block::{BLOCK_HEADER, BLOCK_MAX},
        entry::{Entry, Kind, Piece},
        talk::{Version, invalid},
    },
    check::{self, Names},
    frames::{self, EntryWriter, Head, Record},
};

const MAGIC: &[u8; 4] = b"SPBC";
const FORMAT: u32 = 1;
/// Bytes of a pack, at most.
pub(super) const PACK_MAX: u64 = 256 << 20;
/// Bytes of all problems of a version, at most.
pub(super) const PROBLEMS_MAX: usize = 8 << 20;

/// Where a block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct BlockAt {
    /// The pack: of the version that was being made, and its number there.
    pub(crate) version: u32,
    pub(crate) pack: u32,
    /// In the pack.
    pub(crate) offset: u64,
    /// Bytes of the block there, its header included, and before compression.
    pub(crate) stored: u32,
    pub(crate) raw: u32,
}

impl BlockAt {
    /// Whether a block can be so long, and lie there.
    pub(super) fn is_possible(&self) -> bool {
        let fits = |length: u32, min: usize| {
            usize::try_from(length).is_ok_and(|n| (min + 1..=min + BLOCK_MAX).contains(&n))
        };
        fits(self.stored, BLOCK_HEADER) && fits(self.raw, 0) && self.end() <= PACK_MAX
    }

    /// Behind it.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.stored.into())
    }
}

/// An entry and where its bytes are: its pieces name blocks by their place in the table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Stored {
    pub(crate) entry: Entry,
    pub(crate) pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Catalogue {
    pub(crate) version: Version,
    /// The table of blocks.
    pub(crate) blocks: Vec<BlockAt>,
    pub(crate) entries: Vec<Stored>,
    /// What was not stored, or not as it should be.
    pub(crate) problems: Vec<String>,
}

impl Catalogue {
    /// Writes it; says its digest, which the version's has no say in.
    pub(crate) fn write_to(&self, out: &mut impl Write) -> io::Result<[u8; 32]> {
        let mut out = Hashing { inner: out, hasher: blake3::Hasher::new() };
        out.write_all(MAGIC)?;
        out.write_all(&FORMAT.to_le_bytes())?;
        let packs: BTreeSet<_> = self.blocks.iter().map(|b| (b.version, b.pack)).collect();
        let version = Version { digest: String::new(), ..self.version.clone() };
        let head = Head { version, packs: packs.into_iter().collect() };
        out.write_all(&frames::frame(&Record::Head(Box::new(head)))?)?;
        frames::write_blocks(&mut out, 0, &self.blocks)?;
        let mut entries = EntryWriter::new(&mut out);
        for stored in &self.entries {
            entries.put(&stored.entry, &stored.pieces, true, true)?;
        }
        entries.finish()?;
        out.write_all(&frames::frame(&Record::Problems(self.problems.clone()))?)?;
        out.write_all(&frames::frame(&Record::End)?)?;
        let digest = *out.hasher.finalize().as_bytes();
        out.inner.write_all(&digest)?;
        Ok(digest)
    }

    /// Reads one and checks everything. What is wrong with its bytes is `InvalidData` or
    /// `UnexpectedEof`.
    pub(crate) fn read_from(from: &mut impl Read) -> io::Result<Self> {
        let mut from = Hashing { inner: from, hasher: blake3::Hasher::new() };
        let head = begin(&mut from)?;
        let mut it = Self { version: head.version, ..Self::default() };
        let (mut names, mut open) = (Names::default(), false);
        loop {
            match frames::read(&mut from)? {
                Record::Blocks { first, mut blocks } => {
                    if usize::try_from(first) != Ok(it.blocks.len()) {
                        return Err(invalid("its blocks are not numbered in order"));
                    }
                    names.charge(size_of_val(&blocks[..]) as u64).map_err(|e| invalid(&e))?;
                    it.blocks.append(&mut blocks);
                    u32::try_from(it.blocks.len()).map_err(|_| invalid("more blocks than fit"))?;
                }
                Record::Entries(parts) => {
                    for mut part in parts {
                        names
                            .charge(size_of_val(&part.pieces[..]) as u64)
                            .map_err(|e| invalid(&e))?;
                        match it.entries.last_mut().filter(|_| open) {
                            Some(of) if !part.first && of.entry == part.entry => {
                                of.pieces.append(&mut part.pieces);
                            }
                            None if part.first => {
                                names.admit(&part.entry).map_err(|e| invalid(&e))?;
                                let (entry, pieces) = (part.entry, part.pieces);
                                it.entries.push(Stored { entry, pieces });
                            }
                            _ => return Err(invalid("the parts of an entry are not together")),
                        }
                        open = !part.last;
                    }
                }
                Record::Problems(mut problems) => {
                    it.problems.append(&mut problems);
                    let length: usize = it.problems.iter().map(|p| p.len() + 24).sum();
                    if length > 4 * PROBLEMS_MAX {
                        return Err(invalid("its problems have no end"));
                    }
                }
                Record::End if !open => break,
                _ => return Err(invalid("a record is not where it should be")),
            }
        }
        let Hashing { inner, hasher } = from;
        let mut digest = [0; 32];
        inner.read_exact(&mut digest)?;
        if hasher.finalize() != digest {
            return Err(invalid("its digest does not match"));
        }
        if inner.read(&mut [0])? != 0 {
            return Err(invalid("it goes on behind its end"));
        }
        it.version.digest = blake3::Hash::from(digest).to_hex().to_string();
        let packs: BTreeSet<_> = it.blocks.iter().map(|b| (b.version, b.pack)).collect();
        if !packs.into_iter().eq(head.packs) {
            return Err(invalid("it does not name the packs its blocks are in"));
        }
        it.check_blocks_and_pieces().map_err(|e| invalid(&e))?;
        Ok(it)
    }

    /// What holds of every catalogue: blocks lie where a block can; names are below the root and
    /// none is there twice; folders come before what is in them, files before their hard links;
    /// the pieces of a file follow each other, inside their blocks and inside the file.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut names = Names::default();
        for stored in &self.entries {
            names.admit(&stored.entry)?;
            names.charge(size_of_val(&stored.pieces[..]) as u64)?;
        }
        self.check_blocks_and_pieces()
    }

    fn check_blocks_and_pieces(&self) -> Result<(), String> {
        if let Some(bad) = self.blocks.iter().find(|b| !b.is_possible()) {
            return Err(format!("no block can lie there: {bad:?}"));
        }
        if self.version.entries != self.entries.len() as u64 {
            let (says, has) = (self.version.entries, self.entries.len());
            return Err(format!("it names {says} entries and has {has}"));
        }
        let raw = |block: u32| {
            usize::try_from(block).ok().and_then(|n| self.blocks.get(n)).map(|block| block.raw)
        };
        for Stored { entry, pieces } in &self.entries {
            let end = check::run(pieces, 0, raw).map_err(|e| format!("{}: {e}", entry.name))?;
            let size = match entry.kind {
                Kind::File { size, .. } => size,
                _ => 0,
            };
            if end > size {
                return Err(format!("{}: its pieces go beyond its end", entry.name));
            }
        }
        Ok(())
    }
}

/// Reads the beginning of a catalogue, not the rest.
pub(super) fn begin(from: &mut impl Read) -> io::Result<Head> {
    let mut start = [0; 8];
    from.read_exact(&mut start)?;
    if &start[..4] != MAGIC {
        return Err(invalid("it is no catalogue"));
    }
    let format = start[4..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    if format != FORMAT {
        return Err(invalid(&format!("it has format {format}; this is for format {FORMAT}")));
    }
    match frames::read(from)? {
        Record::Head(head) => Ok(*head),
        _ => Err(invalid("it has no head")),
    }
}

/// Hashes what goes through.
struct Hashing<'a, T> {
    inner: &'a mut T,
    hasher: blake3::Hasher,
}

impl<T: Write> Write for Hashing<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<'_, T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Random, entry, file, folder},
        *,
    };

    fn block(offset: u64) -> BlockAt {
        BlockAt { version: 1, pack: 1, offset, stored: 120, raw: 100 }
    }

    fn piece(offset: u64, length: u32, block: u32, within: u32) -> Piece {
        Piece { offset, length, block, within }
    }

    fn small() -> Catalogue {
        let stored = |entry, pieces: &[Piece]| Stored { entry, pieces: pieces.to_vec() };
        let name = super::super::super::entry::Name::new("d/f").unwrap();
        Catalogue {
            version: Version { number: 1, entries: 4, ..Version::default() },
            blocks: vec![block(0), block(120)],
            entries: vec![
                stored(folder("d"), &[]),
                stored(file("d/f", 900, [1; 32]), &[piece(0, 100, 0, 0), piece(800, 50, 1, 50)]),
                stored(file("g", 0, [2; 32]), &[]),
                stored(entry("h", Kind::HardLink(name)), &[]),
            ],
            problems: vec!["a socket".into()],
        }
    }

    fn bytes(catalogue: &Catalogue) -> Vec<u8> {
        let mut bytes = Vec::new();
        catalogue.write_to(&mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<Catalogue> {
        Catalogue::read_from(&mut &bytes[..])
    }

    #[test]
    fn what_is_written_is_read() {
        let mut it = small();
        assert_eq!(it.check(), Ok(()));
        let mut out = Vec::new();
        let digest = it.write_to(&mut out).unwrap();
        assert_eq!(digest, out[out.len() - 32..]);
        it.version.digest = blake3::Hash::from(digest).to_hex().to_string();
        assert_eq!(read(&out).unwrap(), it);
        // Its digest does not depend on what it says of it.
        assert_eq!(bytes(&it), out);
        assert_eq!(begin(&mut &out[..]).unwrap().packs, [(1, 1)]);
    }

    #[test]
    fn every_flipped_bit_and_every_torn_end_is_found() {
        let good = bytes(&small());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
        for end in 0..good.len() {
            assert!(read(&good[..end]).is_err(), "{end}");
        }
        let mut longer = good;
        longer.push(0);
        assert!(read(&longer).is_err());
    }

    /// Everything is as it should be but what the client or the store made up.
    #[test]
    fn hostile_contents_are_refused() {
        let bad = |change: &dyn Fn(&mut Catalogue), why: &str| {
            let mut it = small();
            change(&mut it);
            it.version.entries = it.entries.len() as u64;
            let said = read(&bytes(&it)).unwrap_err();
            assert_eq!(said.kind(), io::ErrorKind::InvalidData);
            assert!(said.to_string().contains(why), "{said} does not say {why:?}");
            assert!(it.check().unwrap_err().contains(why));
        };
        let f = |it: &mut Catalogue, pieces: &[Piece]| it.entries[1].pieces = pieces.to_vec();
        bad(&|it| f(it, &[piece(0, 1, 2, 0)]), "a block that there is not");
        bad(&|it| f(it, &[piece(0, 1, u32::MAX, 0)]), "a block that there is not");
        bad(&|it| f(it, &[piece(0, 101, 0, 0)]), "does not lie in its block");
        bad(&|it| f(it, &[piece(0, 1, 0, 100)]), "does not lie in its block");
        bad(&|it| f(it, &[piece(0, u32::MAX, 0, 1)]), "does not lie in its block");
        bad(&|it| f(it, &[piece(0, 0, 0, 0)]), "does not lie in its block");
        bad(&|it| f(it, &[piece(801, 100, 0, 0)]), "beyond its end");
        bad(&|it| f(it, &[piece(u64::MAX, 100, 0, 0)]), "beyond any file");
        bad(&|it| f(it, &[piece(50, 10, 0, 0), piece(59, 10, 0, 0)]), "overlap");
        bad(&|it| it.entries[0].pieces = vec![piece(0, 1, 0, 0)], "beyond its end");
        bad(&|it| it.entries[2].entry = file("g", u64::MAX, [0; 32]), "longer than a file");
        bad(&|it| it.entries.swap(0, 1), "no folder before it");
        bad(&|it| it.entries.swap(1, 3), "no file before it");
        bad(&|it| it.entries.push(it.entries[2].clone()), "comes twice");
        bad(&|it| it.entries[0].entry.kind = Kind::Symlink(b"/etc".to_vec()), "no folder before");
        bad(&|it| it.blocks[0].offset = u64::MAX, "no block can lie there");
        bad(&|it| it.blocks[0].offset = PACK_MAX, "no block can lie there");
        bad(&|it| it.blocks[1].stored = 20, "no block can lie there");
        bad(&|it| it.blocks[1].stored = u32::MAX, "no block can lie there");
        bad(&|it| it.blocks[1].raw = (1 << 20) + 1, "no block can lie there");
    }

    /// Names that leave the tree cannot even be made; somebody else's program could write them.
    #[test]
    fn names_that_leave_the_tree_are_refused() {
        let it = Catalogue {
            version: Version { entries: 1, ..Version::default() },
            entries: vec![Stored { entry: folder("XY/Z"), pieces: Vec::new() }],
            ..Catalogue::default()
        };
        for evil in [&b"../Z"[..], b"/X/Z", b"X//Z", b"XY/.", b"XY\0Z"] {
            let record = Record::Entries(vec![frames::Part {
                entry: it.entries[0].entry.clone(),
                pieces: Vec::new(),
                first: true,
                last: true,
            }]);
            let mut plain = postcard::to_allocvec(&record).unwrap();
            let at = plain.windows(4).position(|w| w == b"XY/Z").unwrap();
            plain[at..at + 4].copy_from_slice(evil);
            let said = reads_with(&it, &[framed(&plain)]).unwrap_err();
            assert!(said.to_string().starts_with("not entries"), "{said}");
        }
        assert!(reads_with(&it, &[]).unwrap_err().to_string().contains("1 entries and has 0"));
    }

    #[test]
    fn records_out_of_place_are_refused() {
        let it = Catalogue::default();
        let part = |first, last| {
            let entry = file("f", 1, [0; 32]);
            Record::Entries(vec![frames::Part { entry, pieces: Vec::new(), first, last }])
        };
        let begin = Record::Begin { number: 1, began_s: 0 };
        let blocks = Record::Blocks { first: 7, blocks: vec![block(0)] };
        let head = Record::Head(Box::new(Head { version: Version::default(), packs: vec![] }));
        for bad in [
            vec![begin],
            vec![head],
            vec![blocks],
            vec![part(false, true)],
            vec![part(true, false)],
            vec![part(true, true), part(false, true)],
            vec![part(true, false), part(true, true)],
        ] {
            let frames: Vec<_> = bad.iter().map(|r| frames::frame(r).unwrap()).collect();
            let said = reads_with(&it, &frames).unwrap_err();
            assert_eq!(said.kind(), io::ErrorKind::InvalidData, "{bad:?}: {said}");
        }
        // The packs in the head are what keeps them from being removed.
        let blocks = Record::Blocks { first: 0, blocks: vec![block(0)] };
        let said = reads_with(&it, &[frames::frame(&blocks).unwrap()]).unwrap_err();
        assert!(said.to_string().contains("the packs"), "{said}");
    }

    fn framed(plain: &[u8]) -> Vec<u8> {
        let packed = zstd::bulk::compress(plain, 1).unwrap();
        let length = u32::try_from(packed.len()).unwrap().to_le_bytes();
        [&length[..], &crc32fast::hash(&packed).to_le_bytes(), &packed].concat()
    }

    /// A catalogue with the head of one, these frames, and a digest that matches.
    fn reads_with(it: &Catalogue, frames: &[Vec<u8>]) -> io::Result<Catalogue> {
        let packs: BTreeSet<_> = it.blocks.iter().map(|b| (b.version, b.pack)).collect();
        let head = Head { version: it.version.clone(), packs: packs.into_iter().collect() };
        let mut bytes = [&MAGIC[..], &FORMAT.to_le_bytes()].concat();
        bytes.extend(frames::frame(&Record::Head(Box::new(head))).unwrap());
        bytes.extend(frames.concat());
        bytes.extend(frames::frame(&Record::End).unwrap());
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        read(&bytes)
    }

    /// What is changed behind the checksums may be another catalogue, but is never a panic.
    #[test]
    fn changed_behind_its_checksums_it_is_still_checked() {
        let it = small();
        let parts = it.entries.iter().map(|s| frames::Part {
            entry: s.entry.clone(),
            pieces: s.pieces.clone(),
            first: true,
            last: true,
        });
        let blocks = Record::Blocks { first: 0, blocks: it.blocks.clone() };
        let plain = [blocks, Record::Entries(parts.collect())]
            .map(|record| postcard::to_allocvec(&record).unwrap());
        let mut random = Random(9);
        let mut read = 0;
        for _ in 0..5000 {
            let mut plain = plain.clone();
            for _ in 0..=random.below(3) {
                let plain = &mut plain[random.index(2)];
                let at = random.index(plain.len());
                match random.below(3) {
                    0 => plain[at] = random.byte(),
                    1 => plain[at] ^= 1 << random.below(8),
                    _ => drop(plain.remove(at)),
                }
            }
            let frames = plain.map(|plain| framed(&plain));
            if let Ok(it) = reads_with(&it, &frames) {
                assert_eq!(it.check(), Ok(()));
                read += 1;
            }
        }
        assert!(read > 100, "{read}");
    }
}
