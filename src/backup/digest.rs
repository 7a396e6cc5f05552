//! What a file is, in 32 bytes.

/// A file's digest, of bytes and what is between them; see [`Kind::File`](super::entry::Kind::File).
#[derive(Debug, Default)]
pub(crate) struct Digest {
    blake: blake3::Hasher,
    at: u64,
}

impl Digest {
    /// A run of bytes at an offset, not before the end of the last one.
    pub(crate) fn update(&mut self, offset: u64, bytes: &[u8]) {
        if offset != self.at {
            self.blake.update(&offset.to_le_bytes());
        }
        self.blake.update(bytes);
        self.at = offset + bytes.len() as u64;
    }

    /// Behind the last run.
    pub(crate) const fn end(&self) -> u64 {
        self.at
    }

    pub(crate) fn finish(&self) -> [u8; 32] {
        *self.blake.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_holes_it_is_blake3_however_it_came() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut digest = Digest::default();
        for (at, some) in bytes.chunks(777).enumerate() {
            digest.update(777 * at as u64, some);
        }
        assert_eq!(digest.finish(), *blake3::hash(&bytes).as_bytes());
        assert_eq!(Digest::default().finish(), *blake3::hash(b"").as_bytes());
    }

    #[test]
    fn where_a_run_begins_counts() {
        let at = |offset| {
            let mut digest = Digest::default();
            digest.update(offset, b"run");
            digest.finish()
        };
        let expected = [&4096_u64.to_le_bytes()[..], b"run"].concat();
        assert_eq!(at(4096), *blake3::hash(&expected).as_bytes());
        assert!(at(0) != at(4096) && at(4096) != at(8192));
    }
}
