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

/// Channel, ends, generation and number of every frame, and what was sealed with them.
#[derive(Debug, Default)]
pub(crate) struct Nonces(Lookup<u128, u64>);

impl Nonces {
    /// A frame leaves its host; `Err` tells of the second one under its number.
    pub(crate) fn used(&mut self, frame: &[u8]) -> Result<(), String> {
        let Ok(header) = Header::read(frame) else { return Ok(()) };
        if header.channel == Channel::Handshake || frame.len() < HEADER + TAG {
            return Ok(());
        }
        let mut key = [0; 16];
        key[..15].copy_from_slice(&[&frame[..3], &frame[4..16]].concat());
        let tag = frame[frame.len() - 8..].try_into().map_or(0, u64::from_le_bytes);
        match self.0.insert(u128::from_le_bytes(key), tag) {
            Some(other) if other != tag => Err(format!(
                "host {} sealed two {:?} frames to {} with number {}",
                header.from, header.channel, header.to, header.number
            )),
            _ => Ok(()),
        }
    }
}
