//! A block: what is packed, sent and stored as one. Bytes of one large file or of many small ones,
//! compressed when that makes them fewer.
//!
//! ```text
//!   0        4       5        8         12          16        20
//!   | "SPB1" | codec | zero   | raw u32 | stored u32 | crc u32 | stored bytes ...
//! ```
//!
//! Little-endian. The CRC-32 covers the header before it and the stored bytes: it finds what a disk
//! or a cable did. What a file should be is told by its BLAKE3 digest in the catalogue.

use thiserror::Error;

/// Bytes of a block before compression, at most.
pub(crate) const BLOCK_MAX: usize = 1 << 20;
/// Before the stored bytes.
pub(crate) const BLOCK_HEADER: usize = 20;
const MAGIC: &[u8; 4] = b"SPB1";
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// What is not a sixteenth shorter is stored as it is: reading it back is then free.
const WORTH_IT: usize = 16;

/// Header and stored bytes, in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block(Vec<u8>);

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum BadBlock {
    #[error("no block begins there")]
    NotABlock,
    #[error("a block of {0} bytes")]
    Length(usize),
    #[error("its checksum does not match")]
    Checksum,
    #[error("it cannot be decompressed to the length it names")]
    Codec,
}

/// Compresses blocks; kept by who makes many.
pub(crate) struct Sealer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("compresses", &self.zstd.is_some()).finish()
    }
}

impl Sealer {
    /// With a level of zstd, or none to leave everything as it is.
    pub(crate) fn new(level: Option<i32>) -> std::io::Result<Self> {
        Ok(Self { zstd: level.map(zstd::bulk::Compressor::new).transpose()? })
    }

    /// # Panics
    /// When there are no bytes, or more than [`BLOCK_MAX`].
    pub(crate) fn seal(&mut self, raw: &[u8]) -> Block {
        assert!((1..=BLOCK_MAX).contains(&raw.len()), "a block of {} bytes", raw.len());
        let mut bytes = vec![0; BLOCK_HEADER + raw.len()];
        // Room for less than all there is: what would be longer fails, and is left as it is.
        let room = BLOCK_HEADER + raw.len() - raw.len() / WORTH_IT;
        let packed = self.zstd.as_mut().and_then(|zstd| {
            zstd.compress_to_buffer(raw, &mut bytes[BLOCK_HEADER..room]).ok().filter(|n| *n > 0)
        });
        let codec = match packed {
            Some(n) => {
                bytes.truncate(BLOCK_HEADER + n);
                ZSTD
            }
            None => {
                bytes[BLOCK_HEADER..].copy_from_slice(raw);
                PLAIN
            }
        };
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let stored = word(bytes.len() - BLOCK_HEADER);
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = codec;
        bytes[8..12].copy_from_slice(&word(raw.len()));
        bytes[12..16].copy_from_slice(&stored);
        let sum = checksum(&bytes);
        bytes[16..20].copy_from_slice(&sum.to_le_bytes());
        Block(bytes)
    }
}

impl Block {
    /// Checks all but the decompression.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, BadBlock> {
        let (raw, stored) = lengths(&bytes)?;
        if bytes.len() != BLOCK_HEADER + stored {
            return Err(BadBlock::Length(bytes.len()));
        }
        if bytes[4] == PLAIN && raw != stored {
            return Err(BadBlock::Codec);
        }
        if checksum(&bytes).to_le_bytes() != bytes[16..20] {
            return Err(BadBlock::Checksum);
        }
        Ok(Self(bytes))
    }

    /// As it is stored and sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Bytes before compression.
    pub(crate) fn raw_len(&self) -> usize {
        lengths(&self.0).map_or(0, |(raw, _)| raw)
    }

    /// What was packed.
    pub(crate) fn open(self) -> Result<Opened, BadBlock> {
        match self.0[4] {
            PLAIN => Ok(Opened { bytes: self.0, from: BLOCK_HEADER }),
            ZSTD => {
                let raw = zstd::bulk::decompress(&self.0[BLOCK_HEADER..], self.raw_len());
                let raw = raw.ok().filter(|raw| raw.len() == self.raw_len());
                Ok(Opened { bytes: raw.ok_or(BadBlock::Codec)?, from: 0 })
            }
            _ => Err(BadBlock::Codec),
        }
    }
}

/// The bytes of a block; those that were stored as they are stay where they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opened {
    bytes: Vec<u8>,
    from: usize,
}

impl std::ops::Deref for Opened {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}

/// Raw and stored length that a header names, both possible ones.
pub(crate) fn lengths(header: &[u8]) -> Result<(usize, usize), BadBlock> {
    if header.len() < BLOCK_HEADER || &header[..4] != MAGIC {
        return Err(BadBlock::NotABlock);
    }
    let word = |at: usize| {
        let bytes = header[at..at + 4].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    };
    let (raw, stored) = (word(8), word(12));
    for length in [raw, stored] {
        if !(1..=BLOCK_MAX).contains(&length) {
            return Err(BadBlock::Length(length));
        }
    }
    Ok((raw, stored))
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&bytes[..16]);
    sum.update(&bytes[BLOCK_HEADER..]);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<u8> {
        let mut x = 7_u64;
        (0..n)
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (x >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn what_is_sealed_is_opened() {
        for level in [None, Some(1)] {
            let mut sealer = Sealer::new(level).unwrap();
            for raw in [vec![1], vec![0; BLOCK_MAX], noise(100_000), b"abc".repeat(1000)] {
                let block = sealer.seal(&raw);
                assert!(block.bytes().len() <= BLOCK_HEADER + raw.len());
                let parsed = Block::parse(block.bytes().to_vec()).unwrap();
                assert_eq!((parsed.raw_len(), parsed.open().unwrap().to_vec()), (raw.len(), raw));
            }
        }
        let zeros = Sealer::new(Some(1)).unwrap().seal(&vec![0; BLOCK_MAX]);
        assert!(zeros.bytes().len() < 1000);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for level in [None, Some(1)] {
            let block = Sealer::new(level).unwrap().seal(&b"some text, some text".repeat(3));
            for bit in 0..block.bytes().len() * 8 {
                let mut bytes = block.bytes().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let opened = Block::parse(bytes).and_then(|b| b.open());
                assert!(opened.is_err(), "bit {bit}: {opened:?}");
            }
            assert!(Block::parse(block.bytes()[..block.bytes().len() - 1].to_vec()).is_err());
        }
        assert_eq!(Block::parse(Vec::new()), Err(BadBlock::NotABlock));
    }
}
