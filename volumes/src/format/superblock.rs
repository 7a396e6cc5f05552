//! The volume's identity and geometry, in block 0 and again in the last block.
//!
//! ```text
//!   0 magic "SIDEPATH"   8 version u32   12 copy u32 (0 first, 1 last)   16 features u64
//!  24 uuid [16]   40 generation u64   48 created, Unix us, u64
//!  56 block bytes u32   60 nodes u32   64 blocks in all u64
//!  72 first block of: node table u64, 80 mailboxes u64, 88 express rings u64, 96 data rings u64
//! 104 blocks per express ring u32   108 blocks per data ring u32   112 lanes u32
//! 116 role u32 (0 original, 1 replica)
//! 120 name length u8   121 zero [7]   128 node ids [64]   192 name [64]   256 zero
//! 4092 CRC-32 of bytes 0..4092
//! ```
//!
//! Awkward cases: a newer version or an unknown feature bit is refused by name, never guessed at;
//! a copy found at the other's place was misdirected and counts as damaged; the starts are
//! derived from the rest and must agree with what is written.

use super::bytes::{array16_at, put, put_u32, put_u64, u8_at, u32_at, u64_at};
use super::{BLOCK_MAX, BLOCK_MIN, NODES_MAX, crc32};
use crate::event::Ring;
use serde::{Serialize, Serializer};
use std::fmt;

pub const MAGIC: &[u8; 8] = b"SIDEPATH";
pub const VERSION: u32 = 1;
/// Feature bits this code understands.
pub const FEATURES: u64 = 0;
const ROLE_AT: usize = 116;
/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Smallest rings: an express record must hold a 64 KiB super-packet, and no record is larger
/// than half its ring.
pub const EXPRESS_BYTES_MIN: u64 = 192 << 10;
pub const DATA_BYTES_MIN: u64 = 256 << 10;
pub const EXPRESS_BYTES_DEFAULT: u64 = 1 << 20;
pub const DATA_BYTES_DEFAULT: u64 = 16 << 20;

/// 128 random bits that tell volumes apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, b) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Why bytes are not a superblock of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("there is no sidepath superblock")]
    NotAVolume,
    #[error("the superblock's checksum is wrong")]
    BadChecksum,
    #[error("the volume has format version {found}, this program reads version {VERSION}")]
    Version { found: u32 },
    #[error("the volume needs features {found:#x} that this program does not know")]
    Features { found: u64 },
    #[error("the superblock contradicts itself: {what}")]
    Inconsistent { what: &'static str },
}

/// Where everything lies. Blocks are `block_bytes` long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Geometry {
    pub block_bytes: u32,
    pub blocks: u64,
    /// Node ids, ascending; a node's place in this list is its slot.
    pub nodes: Vec<u8>,
    pub express_blocks: u32,
    pub data_blocks: u32,
}

impl Geometry {
    #[must_use]
    pub fn lanes(&self) -> u64 {
        let n = self.nodes.len() as u64;
        n * n.saturating_sub(1)
    }

    #[must_use]
    pub fn slot(&self, node: u8) -> Option<usize> {
        self.nodes.iter().position(|&n| n == node)
    }

    #[must_use]
    pub fn block(&self) -> usize {
        self.block_bytes as usize
    }

    #[must_use]
    pub fn ring_blocks(&self, ring: Ring) -> u32 {
        match ring {
            Ring::Express => self.express_blocks,
            Ring::Data => self.data_blocks,
        }
    }

    /// Largest record of a ring in bytes: 1 MiB, or half the ring.
    #[must_use]
    pub fn record_bytes_max(&self, ring: Ring) -> usize {
        let half = self.ring_blocks(ring) as usize / 2 * self.block();
        half.min(super::RECORD_BYTES_MAX) / self.block() * self.block()
    }

    /// Largest frame of a ring in bytes.
    #[must_use]
    pub fn frame_bytes_max(&self, ring: Ring) -> usize {
        self.record_bytes_max(ring) - super::HEADER_BYTES - 4
    }

    #[must_use]
    pub fn mailbox_bytes_max(&self) -> usize {
        self.block() - super::HEADER_BYTES
    }

    fn mailbox_start(&self) -> u64 {
        1 + 2 * self.nodes.len() as u64
    }

    fn express_start(&self) -> u64 {
        self.mailbox_start() + self.lanes()
    }

    fn data_start(&self) -> u64 {
        self.express_start() + self.lanes() * u64::from(self.express_blocks)
    }

    /// Blocks this geometry needs, both superblocks included.
    #[must_use]
    pub fn blocks_needed(&self) -> u64 {
        self.data_start() + self.lanes() * u64::from(self.data_blocks) + 1
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }

    /// The superblock copy in the last block.
    #[must_use]
    pub fn last_offset(&self) -> u64 {
        (self.blocks - 1) * u64::from(self.block_bytes)
    }

    /// Bytes from the start of the volume to the end of the node table: one read shows both.
    #[must_use]
    pub fn table_region_bytes(&self) -> usize {
        (1 + 2 * self.nodes.len()) * self.block()
    }

    #[must_use]
    pub fn entry_offset(&self, slot: usize, copy: usize) -> u64 {
        (1 + 2 * slot as u64 + copy as u64) * u64::from(self.block_bytes)
    }

    fn lane(&self, from: u8, to: u8) -> Option<u64> {
        let (i, j) = (self.slot(from)? as u64, self.slot(to)? as u64);
        let j = if j < i { j } else { j.checked_sub(1)? };
        (from != to).then(|| i * (self.nodes.len() as u64 - 1) + j)
    }

    #[must_use]
    pub fn mailbox_offset(&self, from: u8, to: u8) -> Option<u64> {
        Some((self.mailbox_start() + self.lane(from, to)?) * u64::from(self.block_bytes))
    }

    #[must_use]
    pub fn ring_offset(&self, from: u8, to: u8, ring: Ring) -> Option<u64> {
        let start = match ring {
            Ring::Express => self.express_start(),
            Ring::Data => self.data_start(),
        };
        let blocks = u64::from(self.ring_blocks(ring));
        Some((start + self.lane(from, to)? * blocks) * u64::from(self.block_bytes))
    }

    /// Checks what every user relies on.
    pub fn check(&self) -> Result<(), FormatError> {
        let bad = |what| Err(FormatError::Inconsistent { what });
        let b = self.block();
        if !b.is_power_of_two() || !(BLOCK_MIN..=BLOCK_MAX).contains(&b) {
            return bad("the block unit is not a power of two between 4096 and 65536");
        }
        if self.nodes.len() < 2 || self.nodes.len() > NODES_MAX {
            return bad("there are not 2 to 64 nodes");
        }
        if !self.nodes.windows(2).all(|w| w[0] < w[1])
            || self.nodes[0] == 0
            || self.nodes.iter().any(|&n| usize::from(n) > NODES_MAX)
        {
            return bad("node ids are not ascending within 1..=64");
        }
        let b = b as u64;
        if u64::from(self.express_blocks) * b < EXPRESS_BYTES_MIN
            || u64::from(self.data_blocks) * b < DATA_BYTES_MIN
        {
            return bad("a ring is smaller than the least size");
        }
        if self.blocks_needed() > self.blocks || self.blocks.checked_mul(b).is_none() {
            return bad("the rings do not fit into the volume");
        }
        Ok(())
    }
}

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Superblock {
    pub uuid: Uuid,
    pub name: String,
    pub generation: u64,
    /// For display only.
    pub created_unix_us: u64,
    /// It is filled by a replicator from the volume of the same UUID, and no node writes its
    /// records here. Programs that do not know the mark read a replica as any volume.
    pub replica: bool,
    pub geometry: Geometry,
}

/// Which of the two superblocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    First,
    Last,
}

impl Superblock {
    /// The block as it stands on the medium, one block unit long.
    #[must_use]
    pub fn encode(&self, copy: Copy) -> Vec<u8> {
        let g = &self.geometry;
        let mut b = vec![0; g.block()];
        put(&mut b, 0, MAGIC);
        put_u32(&mut b, 8, VERSION);
        put_u32(&mut b, 12, u32::from(copy == Copy::Last));
        put_u64(&mut b, 16, FEATURES);
        put(&mut b, 24, &self.uuid.0);
        put_u64(&mut b, 40, self.generation);
        put_u64(&mut b, 48, self.created_unix_us);
        put_u32(&mut b, 56, g.block_bytes);
        put_u32(&mut b, 60, super::bytes::len_u32(g.nodes.len()));
        put_u64(&mut b, 64, g.blocks);
        put_u64(&mut b, 72, 1);
        put_u64(&mut b, 80, g.mailbox_start());
        put_u64(&mut b, 88, g.express_start());
        put_u64(&mut b, 96, g.data_start());
        put_u32(&mut b, 104, g.express_blocks);
        put_u32(&mut b, 108, g.data_blocks);
        put_u32(&mut b, 112, u32::try_from(g.lanes()).unwrap_or(u32::MAX));
        put_u32(&mut b, ROLE_AT, u32::from(self.replica));
        let name = &self.name.as_bytes()[..self.name.len().min(NAME_BYTES_MAX)];
        b[120] = u8::try_from(name.len()).unwrap_or(0);
        put(&mut b, 128, &g.nodes[..g.nodes.len().min(NODES_MAX)]);
        put(&mut b, 192, name);
        let crc = crc32(&b[..4092]);
        put_u32(&mut b, 4092, crc);
        b
    }

    /// Reads a block; needs its first 4096 bytes.
    pub fn decode(b: &[u8], copy: Copy) -> Result<Self, FormatError> {
        if b.len() < BLOCK_MIN || b[..8] != *MAGIC {
            return Err(FormatError::NotAVolume);
        }
        if crc32(&b[..4092]) != u32_at(b, 4092) {
            return Err(FormatError::BadChecksum);
        }
        let version = u32_at(b, 8);
        if version != VERSION {
            return Err(FormatError::Version { found: version });
        }
        let features = u64_at(b, 16);
        if features & !FEATURES != 0 {
            return Err(FormatError::Features { found: features });
        }
        let bad = |what| Err(FormatError::Inconsistent { what });
        if u32_at(b, 12) != u32::from(copy == Copy::Last) {
            return bad("it is the copy that belongs at the other end");
        }
        let count = u32_at(b, 60) as usize;
        let name_len = usize::from(u8_at(b, 120));
        if count > NODES_MAX || name_len > NAME_BYTES_MAX {
            return bad("a count is out of range");
        }
        let geometry = Geometry {
            block_bytes: u32_at(b, 56),
            blocks: u64_at(b, 64),
            nodes: b[128..128 + count].to_vec(),
            express_blocks: u32_at(b, 104),
            data_blocks: u32_at(b, 108),
        };
        geometry.check()?;
        if u64_at(b, 72) != 1
            || u64_at(b, 80) != geometry.mailbox_start()
            || u64_at(b, 88) != geometry.express_start()
            || u64_at(b, 96) != geometry.data_start()
            || u64::from(u32_at(b, 112)) != geometry.lanes()
        {
            return bad("the starts of its parts do not follow from its sizes");
        }
        let Ok(name) = std::str::from_utf8(&b[192..192 + name_len]) else {
            return bad("the name is not UTF-8");
        };
        Ok(Self {
            uuid: Uuid(array16_at(b, 24)),
            name: name.to_owned(),
            generation: u64_at(b, 40),
            created_unix_us: u64_at(b, 48),
            // A role of a later day is no original either.
            replica: u32_at(b, ROLE_AT) != 0,
            geometry,
        })
    }

    /// All that has to be written on an all-zero medium to make it this volume.
    #[must_use]
    pub fn image(&self) -> [(u64, Vec<u8>); 2] {
        [(self.geometry.last_offset(), self.encode(Copy::Last)), (0, self.encode(Copy::First))]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(nodes: &[u8]) -> Superblock {
        let mut geometry = Geometry {
            block_bytes: 4096,
            blocks: 0,
            nodes: nodes.to_vec(),
            express_blocks: 48,
            data_blocks: 64,
        };
        geometry.blocks = geometry.blocks_needed();
        Superblock {
            uuid: Uuid(*b"0123456789abcdef"),
            name: "lun7".into(),
            generation: 3,
            created_unix_us: 5,
            replica: false,
            geometry,
        }
    }

    #[test]
    fn golden_bytes() {
        let b = sample(&[1, 2]).encode(Copy::First);
        let head = b"SIDEPATH\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x000123456789abcdef\x03\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0\x10\0\0\x02\0\0\0\xe8\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x67\0\0\0\0\0\0\0\x30\0\0\0\x40\0\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x01\x02\0";
        assert_eq!(&b[..head.len()], head);
        assert_eq!(&b[192..197], b"lun7\0");
        assert_eq!(u32_at(&b, 4092), crc32(&b[..4092]));
    }

    #[test]
    fn a_replica_differs_from_its_original_in_one_byte() {
        let s = sample(&[1, 2]);
        let replica = Superblock { replica: true, ..s.clone() };
        let (original, marked) = (s.encode(Copy::First), replica.encode(Copy::First));
        let differ = (0..4092).filter(|&i| original[i] != marked[i]).collect::<Vec<_>>();
        assert_eq!((differ, marked[116]), (vec![116], 1));
        assert_eq!(Superblock::decode(&marked, Copy::First), Ok(replica.clone()));
        let mut later = marked;
        put_u32(&mut later, 116, 2);
        let crc = crc32(&later[..4092]);
        put_u32(&mut later, 4092, crc);
        assert_eq!(Superblock::decode(&later, Copy::First), Ok(replica), "a role of a later day");
    }

    #[test]
    fn what_was_written_is_read_and_damage_is_named() {
        let s = sample(&[1, 2, 9]);
        let b = s.encode(Copy::Last);
        assert_eq!(Superblock::decode(&b, Copy::Last), Ok(s.clone()));
        assert!(matches!(
            Superblock::decode(&b, Copy::First),
            Err(FormatError::Inconsistent { .. })
        ));
        let mut newer = b.clone();
        put_u32(&mut newer, 8, 2);
        let crc = crc32(&newer[..4092]);
        put_u32(&mut newer, 4092, crc);
        assert_eq!(Superblock::decode(&newer, Copy::Last), Err(FormatError::Version { found: 2 }));
        for at in 8..4096 {
            let mut bad = b.clone();
            bad[at] ^= 1;
            assert_eq!(Superblock::decode(&bad, Copy::Last), Err(FormatError::BadChecksum), "{at}");
        }
        assert_eq!(Superblock::decode(&b[..100], Copy::Last), Err(FormatError::NotAVolume));
    }

    #[test]
    fn lanes_never_overlap() {
        let g = sample(&[1, 2, 9]).geometry;
        let mut places = Vec::new();
        for &from in &g.nodes {
            for &to in g.nodes.iter().filter(|&&t| t != from) {
                places.push((g.mailbox_offset(from, to).unwrap(), 4096));
                for ring in Ring::BOTH {
                    let at = g.ring_offset(from, to, ring).unwrap();
                    places.push((at, u64::from(g.ring_blocks(ring)) * 4096));
                }
            }
            assert_eq!(g.mailbox_offset(from, from), None);
        }
        places.sort_unstable();
        assert_eq!(places[0].0, g.table_region_bytes() as u64);
        assert!(places.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0));
        let end = places.last().unwrap();
        assert_eq!(end.0 + end.1, g.last_offset());
    }
}
