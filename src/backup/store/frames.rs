//! What catalogues and journals are written as: records, each in a frame with its checksum.
//!
//! ```text
//!   0             4          8
//!   | length u32  | crc u32  | so many bytes: a record, packed |
//! ```
//!
//! Little-endian; the CRC-32 is of the packed bytes. Many entries are spread over frames of about
//! a mebibyte, and so are the pieces of a long file: no frame is large, whatever a version holds.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::{
    super::{
        entry::{Entry, Piece},
        talk::{self, Version, invalid},
    },
    catalogue::BlockAt,
    check,
};

/// Bytes of a record before compression, at most.
const RECORD_MAX: usize = 16 << 20;
/// Compressed: what cannot be made shorter grows a little.
const PACKED_MAX: usize = RECORD_MAX + (RECORD_MAX >> 7);
/// A frame is closed when what it holds takes so much memory.
const FRAME_COST: u64 = 1 << 20;
/// Of one entry in a record; the rest follows in further parts.
const PART_PIECES: usize = 32 << 10;
/// Blocks in a record.
const RUN_BLOCKS: usize = 32 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// First in a catalogue.
    Head(Box<Head>),
    /// First in a journal: of this version, which began at this second since 1970.
    Begin {
        number: u32,
        began_s: i64,
    },
    /// Where the blocks from number `first` on are. Pieces name them by these numbers.
    Blocks {
        first: u32,
        blocks: Vec<BlockAt>,
    },
    Entries(Vec<Part>),
    Problems(Vec<String>),
    /// Last in a catalogue.
    End,
}

/// What is known of a version without reading all of its catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Its digest is empty here: it stands behind all the frames.
    pub(crate) version: Version,
    /// The packs its blocks are in: version and number of each.
    pub(crate) packs: Vec<(u32, u32)>,
}

/// An entry with some of its pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) entry: Entry,
    pub(super) pieces: Vec<Piece>,
    /// Else it goes on the part before it.
    pub(super) first: bool,
    /// Else another part follows.
    pub(super) last: bool,
}

/// A record as it is written.
pub(super) fn frame(record: &Record) -> io::Result<Vec<u8>> {
    let packed = talk::pack(record)?;
    let length = u32::try_from(packed.len()).ok().filter(|_| packed.len() <= PACKED_MAX);
    let length = length.ok_or_else(|| invalid("a record without end"))?;
    let mut bytes = Vec::with_capacity(8 + packed.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&packed).to_le_bytes());
    bytes.extend_from_slice(&packed);
    Ok(bytes)
}

/// Reads a record; the end of the file in front of one or in it is `UnexpectedEof`.
pub(super) fn read(from: &mut impl Read) -> io::Result<Record> {
    let mut head = [0; 8];
    from.read_exact(&mut head)?;
    let word = |at: usize| head[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    let length = usize::try_from(word(0)).unwrap_or(usize::MAX);
    if length > PACKED_MAX {
        return Err(invalid("a record without end"));
    }
    let mut packed = Vec::new();
    from.take(length as u64).read_to_end(&mut packed)?;
    if packed.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if crc32fast::hash(&packed) != word(4) {
        return Err(invalid("the checksum of a record does not match"));
    }
    talk::unpack(&packed, RECORD_MAX)
}

/// Writes entries with their pieces, in as many frames as they need.
pub(super) struct EntryWriter<W> {
    out: W,
    parts: Vec<Part>,
    cost: u64,
}

impl<W: Write> EntryWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, parts: Vec::new(), cost: 0 }
    }

    /// An entry; `last` as in [`Part`].
    pub(super) fn put(
        &mut self,
        entry: &Entry,
        pieces: &[Piece],
        first: bool,
        last: bool,
    ) -> io::Result<()> {
        let chunks = pieces.len().div_ceil(PART_PIECES).max(1);
        for n in 0..chunks {
            let from = n * PART_PIECES;
            let pieces = pieces[from..pieces.len().min(from + PART_PIECES)].to_vec();
            self.cost += check::cost(entry) + size_of_val(&pieces[..]) as u64;
            let (first, last) = (first && n == 0, last && n + 1 == chunks);
            self.parts.push(Part { entry: entry.clone(), pieces, first, last });
            if self.cost >= FRAME_COST {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.cost = 0;
        if self.parts.is_empty() {
            return Ok(());
        }
        let record = Record::Entries(std::mem::take(&mut self.parts));
        self.out.write_all(&frame(&record)?)
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()
    }
}

/// Writes where blocks are, in as many frames as they need.
pub(super) fn write_blocks(
    out: &mut impl Write,
    mut first: u32,
    blocks: &[BlockAt],
) -> io::Result<()> {
    for blocks in blocks.chunks(RUN_BLOCKS) {
        out.write_all(&frame(&Record::Blocks { first, blocks: blocks.to_vec() })?)?;
        first = u32::try_from(blocks.len())
            .ok()
            .and_then(|n| first.checked_add(n))
            .ok_or_else(|| invalid("more blocks than have numbers"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Random, file},
        *,
    };

    #[test]
    fn records_come_back_and_torn_ones_do_not() {
        let record = Record::Begin { number: 7, began_s: -1 };
        let bytes = frame(&record).unwrap();
        assert_eq!(read(&mut &bytes[..]).unwrap(), record);
        for end in 0..bytes.len() {
            let torn = read(&mut &bytes[..end]).unwrap_err();
            assert_eq!(torn.kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut &bytes[..]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn noise_is_no_record() {
        let mut random = Random(1);
        for _ in 0..2000 {
            let mut bytes: Vec<u8> = (0..random.below(300)).map(|_| random.byte()).collect();
            if let Some(length) = bytes.get_mut(..4) {
                length.copy_from_slice(&u32::try_from(random.below(300)).unwrap().to_le_bytes());
            }
            assert!(read(&mut &bytes[..]).is_err());
        }
    }

    #[test]
    fn a_length_that_lies_asks_for_no_memory() {
        // The packed record claims more than a record may have, in front of its bytes.
        let bomb = zstd::bulk::compress(&vec![0; RECORD_MAX + 1], 1).unwrap();
        let mut bytes = u32::try_from(bomb.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&bomb).to_le_bytes());
        bytes.extend_from_slice(&bomb);
        assert_eq!(read(&mut &bytes[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let endless = [0xff; 8];
        assert_eq!(read(&mut &endless[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_long_file_is_spread_over_frames() {
        let pieces: Vec<Piece> = (0..100_000)
            .map(|n| Piece { offset: u64::from(n) << 20, length: 1 << 20, block: n, within: 0 })
            .collect();
        let long = file("long", 100_000 << 20, [1; 32]);
        let mut bytes = Vec::new();
        let mut entries = EntryWriter::new(&mut bytes);
        entries.put(&long, &pieces, true, true).unwrap();
        entries.put(&file("short", 0, [2; 32]), &[], true, true).unwrap();
        entries.finish().unwrap();
        let (mut from, mut parts) = (&bytes[..], Vec::new());
        while !from.is_empty() {
            let Record::Entries(more) = read(&mut from).unwrap() else { panic!() };
            parts.extend(more);
        }
        let shape: Vec<_> = parts.iter().map(|p| (p.pieces.len(), p.first, p.last)).collect();
        let full = PART_PIECES;
        let rest = 100_000 - 3 * full;
        assert_eq!(
            shape,
            [
                (full, true, false),
                (full, false, false),
                (full, false, false),
                (rest, false, true),
                (0, true, true)
            ]
        );
        let all: Vec<Piece> = parts.into_iter().flat_map(|p| p.pieces).collect();
        assert_eq!(all, pieces);
    }
}
