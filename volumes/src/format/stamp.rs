//! What a replicator adds to an entry that it copies, in bytes that are zero in every other.
//!
//! ```text
//!  72 nonce u64, never 0   80 host u64, 0 unknown   88 copied, Unix us, u64   96 zero [32]
//! ```
//!
//! It tells an entry that was copied from one that its node wrote here itself, and one replicator
//! from another. Awkward case: a program that does not know the stamp does not look at it.

use super::bytes::{put_u32, put_u64, u64_at};
use super::crc32;
use serde::Serialize;

const AT: usize = 72;

/// Who copied an entry, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stamp {
    /// Random per run of a replicator.
    pub nonce: u64,
    /// Which running kernel it was on; there the host lock keeps a second one out. 0: unknown.
    pub host: u64,
    /// For display only.
    pub copied_unix_us: u64,
}

impl Stamp {
    /// Adds it to an encoded entry.
    pub fn put(&self, entry: &mut [u8]) {
        put_u64(entry, AT, self.nonce);
        put_u64(entry, AT + 8, self.host);
        put_u64(entry, AT + 16, self.copied_unix_us);
        let crc = crc32(&entry[..4092]);
        put_u32(entry, 4092, crc);
    }

    /// The stamp of an entry that was found to be whole; `None` when its node wrote it itself.
    #[must_use]
    pub fn of(entry: &[u8]) -> Option<Self> {
        let nonce = u64_at(entry, AT);
        (nonce != 0).then(|| Self {
            nonce,
            host: u64_at(entry, AT + 8),
            copied_unix_us: u64_at(entry, AT + 16),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::superblock::tests::sample;
    use super::super::table::{Cell, Entry};
    use super::*;

    #[test]
    fn golden_bytes_and_the_entry_is_the_same_without_them() {
        let s = sample(&[1, 2]);
        let entry = Entry {
            node: 1,
            goodbye: false,
            generation: 3,
            epoch: 9,
            nonce: 10,
            beat: 7,
            interval_us: 11,
            wall_unix_us: 12,
            cells: vec![Cell::default(); 2],
        };
        let mut b = vec![0; 4096];
        entry.encode(s.uuid, &mut b);
        assert_eq!(Stamp::of(&b), None);
        let plain = b.clone();
        let stamp = Stamp { nonce: 0x11, host: 0x22, copied_unix_us: 0x33 };
        stamp.put(&mut b);
        let want = b"\x11\0\0\0\0\0\0\0\x22\0\0\0\0\0\0\0\x33\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(&b[72..104], want);
        assert_eq!((&b[..72], &b[96..4092]), (&plain[..72], &plain[96..4092]));
        assert_eq!(Stamp::of(&b), Some(stamp));
        assert_eq!(Entry::decode(&b, s.uuid, &s.geometry, 0, 1), Some(entry));
    }
}
