//! No two frames are ever sealed with one number under one key.
//!
//! Reuse of a nonce gives away the authentication key of AES-GCM (Joux 2006): the worst thing a
//! restart, a roll-back or a renewal of keys could do. Everything that leaves a host passes here.

use std::hash::{BuildHasherDefault, Hasher};

use failover::wire::{Channel, HEADER, Header, TAG};

/// Keys are as good as random already: a product is enough.
#[derive(Debug, Default)]
pub(crate) struct Product(u64);

impl Hasher for Product {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    }

    fn write_u128(&mut self, n: u128) {
        let bytes = n.to_le_bytes();
        let half = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        self.write_u64(half(0));
        self.write_u64(half(8));
    }
}

/// A table that is looked up and never walked, so that its order does not matter.
#[allow(clippy::disallowed_types, reason = "never iterated")]
pub(crate) type Lookup<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<Product>>;

/// Numbers ahead of the newest that a row makes room for.
const STRIDE_MAX: u64 = 1 << 12;

/// Every frame's number and what was sealed with it, by channel, ends and generation.
#[derive(Debug, Default)]
pub(crate) struct Nonces(Lookup<u128, Row>);

/// Numbers mostly count up: a row of tags takes a quarter of a table's memory, and walks through it.
#[derive(Debug, Default)]
struct Row {
    first: u64,
    /// By number, from the first one on. Zero: not used yet.
    tags: Vec<u64>,
    /// What is out of the row.
    others: Lookup<u64, u64>,
}

impl Row {
    /// The tag that was sealed with that number before.
    fn replace(&mut self, number: u64, tag: u64) -> Option<u64> {
        if self.tags.is_empty() {
            self.first = number;
        }
        let next = self.first.saturating_add(self.tags.len() as u64);
        let place =
            number.checked_sub(self.first).filter(|_| number < next.saturating_add(STRIDE_MAX));
        let Some(place) = place.and_then(|p| usize::try_from(p).ok()) else {
            return self.others.insert(number, tag);
        };
        if place >= self.tags.len() {
            self.tags.resize(place + 1, 0);
        }
        match std::mem::replace(&mut self.tags[place], tag) {
            // The row may have grown past what was out of it.
            0 => self.others.remove(&number),
            before => Some(before),
        }
    }
}

impl Nonces {
    /// A frame leaves its host; `Err` tells of the second one under its number.
    pub(crate) fn used(&mut self, frame: &[u8]) -> Result<(), String> {
        let Ok(header) = Header::read(frame) else { return Ok(()) };
        if header.channel == Channel::Handshake || frame.len() < HEADER + TAG {
            return Ok(());
        }
        let mut key = [0; 16];
        key[..3].copy_from_slice(&frame[..3]);
        key[3..7].copy_from_slice(&header.generation.to_le_bytes());
        let tag = frame[frame.len() - 8..].try_into().map_or(0, u64::from_le_bytes).max(1);
        let row = self.0.entry(u128::from_le_bytes(key)).or_default();
        match row.replace(header.number, tag) {
            Some(other) if other != tag => Err(format!(
                "host {} sealed two {:?} frames to {} with number {}",
                header.from, header.channel, header.to, header.number
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_frame_under_a_number_is_found_wherever_the_number_lies() {
        let mut row = Row::default();
        for number in [1000, 1001, 1500, 3, 1000 + (1 << 40), u64::MAX] {
            assert_eq!(row.replace(number, number ^ 7), None, "{number}");
        }
        for number in [1000, 1001, 1500, 3, 1000 + (1 << 40), u64::MAX] {
            assert_eq!(row.replace(number, 9), Some(number ^ 7), "{number}");
        }
        assert_eq!(row.tags.len(), 501);
    }

    #[test]
    fn a_row_that_grows_past_a_number_still_knows_it() {
        let mut row = Row::default();
        let early = 1 + STRIDE_MAX + 10;
        assert_eq!(row.replace(1, 7), None);
        assert_eq!(row.replace(early, 8), None, "beyond the row");
        assert_eq!(row.replace(STRIDE_MAX, 9), None);
        assert_eq!(row.replace(early, 10), Some(8), "within it now");
    }
}
