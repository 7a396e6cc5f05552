//! The node table: per node two alternating blocks, written by that node alone at each beat.
//!
//! ```text
//!   0 magic "SPNE"   4 node u8   5 flags u8 (1 = goodbye)   6 slots u8   7 zero
//!   8 uuid [16]   24 generation u64   32 epoch u64   40 nonce u64   48 beat u64
//!  56 beat interval us u64   64 wall clock, Unix us, u64   72 zero
//! 128 + 56 * slot, about the lane to (and from) the node of that slot:
//!       +0 mailbox counter u64
//!       +8 express: number of the next record u64   +16 its place, blocks, u32
//!      +20 data: place of the next record, blocks, u32   +24 its number u64
//!      +32 epoch of that node we read u64   +40 express read up to u64   +48 data read up to u64
//! 4092 CRC-32 of bytes 0..4092
//! ```
//!
//! The beat's lowest bit says which of the two blocks is written, so the newest entry is never
//! overwritten. Awkward cases: a torn entry leaves the other one; an entry of another volume,
//! node or generation is none; a reader sees the newest it can verify, never a mixture.

use super::bytes::{array16_at, len_u32, put, put_u32, put_u64, u8_at, u32_at, u64_at};
use super::superblock::{Geometry, Superblock, Uuid};
use super::{BLOCK_MIN, crc32};
use crate::event::Ring;
use serde::Serialize;

pub const MAGIC: &[u8; 4] = b"SPNE";
const FLAG_GOODBYE: u8 = 1;
const CELLS_AT: usize = 128;
const CELL_BYTES: usize = 56;
/// Counters at or beyond this are no counters: a thousand a microsecond for a century stay below.
pub const COUNTER_END: u64 = 1 << 62;
/// Longest beat interval that is believed: a minute.
pub const INTERVAL_US_MAX: u64 = 60_000_000;
const _: () = assert!(CELLS_AT + super::NODES_MAX * CELL_BYTES <= 4092);

/// Number and place of the record that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Head {
    pub number: u64,
    /// In blocks from the start of the ring.
    pub place: u32,
}

impl Head {
    /// Where every epoch begins.
    pub const START: Self = Self { number: 1, place: 0 };
    /// No lane: the node writes no records on this volume, it only reads here.
    pub const NONE: Self = Self { number: 0, place: 0 };
}

/// What an entry says about one other node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Messages put into the mailbox for that node in this epoch.
    pub mailbox: u64,
    /// By [`Ring::index`].
    pub heads: [Head; 2],
    /// Epoch of that node whose records we read; 0 when none.
    pub reads_epoch: u64,
    /// Its records read up to here, by [`Ring::index`].
    pub cursors: [u64; 2],
}

impl Default for Cell {
    fn default() -> Self {
        Self { mailbox: 0, heads: [Head::START; 2], reads_epoch: 0, cursors: [0; 2] }
    }
}

/// One node's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub node: u8,
    /// It stopped on purpose.
    pub goodbye: bool,
    pub generation: u64,
    pub epoch: u64,
    /// Random per incarnation: tells two claimants of one epoch apart.
    pub nonce: u64,
    pub beat: u64,
    pub interval_us: u64,
    /// For display only.
    pub wall_unix_us: u64,
    /// By slot; the own slot's cell is unused.
    pub cells: Vec<Cell>,
}

impl Entry {
    /// Which of the two blocks holds it.
    #[must_use]
    pub fn copy(&self) -> usize {
        usize::from(self.beat & 1 == 1)
    }

    #[must_use]
    pub fn head(&self, slot: usize, ring: Ring) -> Head {
        let head = self.cells.get(slot).map(|c| c.heads[ring.index()]);
        head.filter(|h| h.number != 0).unwrap_or(Head::START)
    }

    /// Whether this node's lane to the node of that slot lies on this volume.
    #[must_use]
    pub fn sends_to(&self, slot: usize) -> bool {
        self.cells.get(slot).is_some_and(|c| c.heads.iter().all(|h| h.number != 0))
    }

    /// Writes the fields into the first 4096 bytes of `b`.
    pub fn encode(&self, uuid: Uuid, b: &mut [u8]) {
        b.fill(0);
        put(b, 0, MAGIC);
        b[4] = self.node;
        b[5] = if self.goodbye { FLAG_GOODBYE } else { 0 };
        b[6] = u8::try_from(self.cells.len()).unwrap_or(u8::MAX);
        put(b, 8, &uuid.0);
        put_u64(b, 24, self.generation);
        put_u64(b, 32, self.epoch);
        put_u64(b, 40, self.nonce);
        put_u64(b, 48, self.beat);
        put_u64(b, 56, self.interval_us);
        put_u64(b, 64, self.wall_unix_us);
        for (slot, c) in self.cells.iter().enumerate() {
            let at = CELLS_AT + slot * CELL_BYTES;
            put_u64(b, at, c.mailbox);
            put_u64(b, at + 8, c.heads[0].number);
            put_u32(b, at + 16, c.heads[0].place);
            put_u32(b, at + 20, c.heads[1].place);
            put_u64(b, at + 24, c.heads[1].number);
            put_u64(b, at + 32, c.reads_epoch);
            put_u64(b, at + 40, c.cursors[0]);
            put_u64(b, at + 48, c.cursors[1]);
        }
        let crc = crc32(&b[..4092]);
        put_u32(b, 4092, crc);
    }

    /// Reads one block; `None` when it is blank, torn or not about this node of this volume.
    #[must_use]
    pub fn decode(b: &[u8], uuid: Uuid, g: &Geometry, slot: usize, copy: usize) -> Option<Self> {
        if b.len() < BLOCK_MIN || b[..4] != *MAGIC || crc32(&b[..4092]) != u32_at(b, 4092) {
            return None;
        }
        let node = u8_at(b, 4);
        let slots = usize::from(u8_at(b, 6));
        if array16_at(b, 8) != uuid.0 || g.nodes.get(slot) != Some(&node) || slots != g.nodes.len()
        {
            return None;
        }
        let cells = (0..slots)
            .map(|slot| {
                let at = CELLS_AT + slot * CELL_BYTES;
                Cell {
                    mailbox: u64_at(b, at),
                    heads: [
                        Head { number: u64_at(b, at + 8), place: u32_at(b, at + 16) },
                        Head { number: u64_at(b, at + 24), place: u32_at(b, at + 20) },
                    ],
                    reads_epoch: u64_at(b, at + 32),
                    cursors: [u64_at(b, at + 40), u64_at(b, at + 48)],
                }
            })
            .collect();
        let entry = Self {
            node,
            goodbye: u8_at(b, 5) & FLAG_GOODBYE != 0,
            generation: u64_at(b, 24),
            epoch: u64_at(b, 32),
            nonce: u64_at(b, 40),
            beat: u64_at(b, 48),
            interval_us: u64_at(b, 56),
            wall_unix_us: u64_at(b, 64),
            cells,
        };
        (entry.is_sane(g) && entry.copy() == copy).then_some(entry)
    }

    /// Whether all can be counted on from here; checksums are no secret, so they prove nothing.
    fn is_sane(&self, g: &Geometry) -> bool {
        let cell = |c: &Cell| {
            let place = |r: Ring| c.heads[r.index()].place < g.ring_blocks(r);
            let number = |h: &Head| (1..COUNTER_END).contains(&h.number);
            Ring::BOTH.into_iter().all(place)
                && (c.heads.iter().all(number) || c.heads == [Head::NONE; 2])
                && c.cursors.iter().all(|&n| n < COUNTER_END)
                && c.mailbox < COUNTER_END
        };
        (1..1 << 63).contains(&self.epoch)
            && self.beat < COUNTER_END
            && self.interval_us <= INTERVAL_US_MAX
            && self.cells.iter().all(cell)
    }
}

/// The newest entry of each node, by slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub entries: Vec<Option<Entry>>,
    /// Entry blocks by state, for `inspect` and `verify`: valid, blank, damaged.
    pub valid: usize,
    pub blank: usize,
    pub damaged: usize,
}

impl Table {
    /// Reads the region from the start of the volume to the end of the table.
    #[must_use]
    pub fn decode(region: &[u8], superblock: &Superblock) -> Self {
        let g = &superblock.geometry;
        let mut table =
            Self { entries: Vec::with_capacity(g.nodes.len()), valid: 0, blank: 0, damaged: 0 };
        for slot in 0..g.nodes.len() {
            let mut newest: Option<Entry> = None;
            for copy in 0..2 {
                let at = super::bytes::to_usize(g.entry_offset(slot, copy));
                let block = region.get(at..at + BLOCK_MIN).unwrap_or(&[]);
                match Entry::decode(block, superblock.uuid, g, slot, copy) {
                    Some(e) => {
                        table.valid += 1;
                        if newest.as_ref().is_none_or(|n| (e.epoch, e.beat) > (n.epoch, n.beat)) {
                            newest = Some(e);
                        }
                    }
                    None if *block == [0; BLOCK_MIN][..block.len()] => table.blank += 1,
                    None => table.damaged += 1,
                }
            }
            table.entries.push(newest);
        }
        table
    }

    #[must_use]
    pub fn get(&self, slot: usize) -> Option<&Entry> {
        self.entries.get(slot).and_then(Option::as_ref)
    }

    /// Nodes the table has room for.
    #[must_use]
    pub fn slots(&self) -> u32 {
        len_u32(self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::superblock::tests::sample;
    use super::*;

    fn entry(beat: u64) -> Entry {
        let mut cells = vec![Cell::default(); 2];
        cells[1] = Cell {
            mailbox: 0x11,
            heads: [Head { number: 0x22, place: 3 }, Head { number: 0x44, place: 5 }],
            reads_epoch: 0x66,
            cursors: [0x77, 0x88],
        };
        Entry {
            node: 1,
            goodbye: true,
            generation: 3,
            epoch: 9,
            nonce: 10,
            beat,
            interval_us: 11,
            wall_unix_us: 12,
            cells,
        }
    }

    #[test]
    fn golden_bytes() {
        let s = sample(&[1, 2]);
        let mut b = vec![0xff; 4096];
        entry(7).encode(s.uuid, &mut b);
        let head = b"SPNE\x01\x01\x02\x000123456789abcdef\x03\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x0b\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\0\0";
        assert_eq!(&b[..head.len()], head);
        let cell = b"\x11\0\0\0\0\0\0\0\x22\0\0\0\0\0\0\0\x03\0\0\0\x05\0\0\0\x44\0\0\0\0\0\0\0\x66\0\0\0\0\0\0\0\x77\0\0\0\0\0\0\0\x88\0\0\0\0\0\0\0";
        assert_eq!(&b[184..240], cell);
        assert_eq!(Entry::decode(&b, s.uuid, &s.geometry, 0, 1), Some(entry(7)));
        assert_eq!(Entry::decode(&b, s.uuid, &s.geometry, 0, 0), None, "the other block's");
        assert_eq!(Entry::decode(&b, s.uuid, &s.geometry, 1, 1), None, "another node's");
        assert_eq!(Entry::decode(&b, Uuid([0; 16]), &s.geometry, 0, 1), None);
    }

    /// A reader takes one from it to say how far it came: a head of 0 ended the reader's thread,
    /// or said that everything there ever will be was read.
    #[test]
    fn a_head_of_zero_is_no_place_to_read() {
        let mut nothing = entry(7);
        nothing.cells[1].heads = [Head::NONE; 2];
        assert!(!nothing.sends_to(1));
        assert!(Ring::BOTH.iter().all(|&r| nothing.head(1, r) == Head::START));
        assert!(entry(7).sends_to(1));
        assert_eq!(entry(7).head(1, Ring::Express).number, 0x22);
    }

    #[test]
    fn counters_that_cannot_be_counted_on_are_damage() {
        let s = sample(&[1, 2]);
        let whole = |e: &Entry| {
            let mut b = vec![0; 4096];
            e.encode(s.uuid, &mut b);
            Entry::decode(&b, s.uuid, &s.geometry, 0, e.copy()).is_some()
        };
        let with = |f: &dyn Fn(&mut Entry)| {
            let mut e = entry(7);
            f(&mut e);
            whole(&e)
        };
        let end = COUNTER_END;
        assert!(with(&|e| e.beat = end - 1) && !with(&|e| e.beat = end));
        assert!(with(&|e| e.epoch = (1 << 63) - 1) && !with(&|e| e.epoch = 1 << 63));
        assert!(with(&|e| e.epoch = 1) && !with(&|e| e.epoch = 0));
        assert!(with(&|e| e.interval_us = INTERVAL_US_MAX));
        assert!(!with(&|e| e.interval_us = INTERVAL_US_MAX + 1));
        assert!(with(&|e| e.cells[1].mailbox = end - 1) && !with(&|e| e.cells[1].mailbox = end));
        for ring in Ring::BOTH {
            let i = ring.index();
            let blocks = s.geometry.ring_blocks(ring);
            assert!(with(&|e| e.cells[1].heads[i].number = 1));
            assert!(!with(&|e| e.cells[1].heads[i].number = 0), "numbers begin at 1");
            assert!(with(&|e| e.cells[1].heads = [Head::NONE; 2]), "or there are none");
            assert!(!with(&|e| e.cells[0].heads[i].number = end));
            assert!(with(&|e| e.cells[1].heads[i].place = blocks - 1));
            assert!(!with(&|e| e.cells[1].heads[i].place = blocks));
            assert!(with(&|e| e.cells[1].cursors[i] = end - 1));
            assert!(!with(&|e| e.cells[1].cursors[i] = end));
        }
    }

    #[test]
    fn a_torn_entry_leaves_the_other_one() {
        let s = sample(&[1, 2]);
        let mut region = vec![0; s.geometry.table_region_bytes()];
        entry(8).encode(s.uuid, &mut region[4096..8192]);
        let mut newer = vec![0; 4096];
        entry(9).encode(s.uuid, &mut newer);
        for cut in (0..=4096).step_by(512) {
            region[8192..8192 + cut].copy_from_slice(&newer[..cut]);
            let beat = Table::decode(&region, &s).get(0).map(|e| e.beat);
            assert_eq!(beat, Some(if cut == 4096 { 9 } else { 8 }), "torn at {cut}");
        }
    }
}
