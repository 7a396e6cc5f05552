//! What can be done to the bytes of a volume behind everybody's back, from bit rot to forgery.
//!
//! Checksums are no secret: a forger recomputes them, and so do the `forge_*` kinds here. Also
//! included by the workspace's `tests/mutated_volumes.rs`, so nothing here names another module.

use volumes::Superblock;

/// xorshift: the same seed, the same numbers.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    pub fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// CRC-32 as the format has it, written anew so that it can contradict the product.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    })
}

pub fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

pub fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

pub const BLOCK: usize = 4096;

/// Material for mutations: the same volume at earlier times, and another volume.
pub struct Shelf {
    pub older: Vec<Vec<u8>>,
    pub other: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    BitFlips,
    Garbage,
    SwapBlocks,
    MoveBlock,
    TornSectors,
    SpliceOlder,
    RollBack,
    SpliceOther,
    Truncate,
    ForgeHeader,
    ForgeBody,
    ForgePlace,
    ForgeEntry,
    ForgeMailbox,
    ForgeSuperblock,
}

pub const KINDS: [Kind; 15] = [
    Kind::BitFlips,
    Kind::Garbage,
    Kind::SwapBlocks,
    Kind::MoveBlock,
    Kind::TornSectors,
    Kind::SpliceOlder,
    Kind::RollBack,
    Kind::SpliceOther,
    Kind::Truncate,
    Kind::ForgeHeader,
    Kind::ForgeBody,
    Kind::ForgePlace,
    Kind::ForgeEntry,
    Kind::ForgeMailbox,
    Kind::ForgeSuperblock,
];

fn blocks_with(image: &[u8], magic: &[u8]) -> Vec<usize> {
    let at = (0..image.len() / BLOCK).map(|i| i * BLOCK);
    at.filter(|&at| image[at..].starts_with(magic)).collect()
}

fn used_blocks(image: &[u8]) -> Vec<usize> {
    let at = (0..image.len() / BLOCK).map(|i| i * BLOCK);
    at.filter(|&at| image[at..at + BLOCK].iter().any(|&b| b != 0)).collect()
}

fn pick(rng: &mut Rng, of: &[usize]) -> Option<usize> {
    if of.is_empty() { None } else { Some(of[rng.index(of.len())]) }
}

fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    b[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Makes record (or mailbox) header and body agree with their checksums again.
pub fn reseal(image: &mut [u8], at: usize) {
    let end = (64 + u32_at(image, at + 48) as usize).min(image.len() - at);
    let body = crc32(&image[at + 64.min(end)..at + end]);
    put(image, at + 56, &body.to_le_bytes());
    let head = crc32(&image[at..at + 60]);
    put(image, at + 60, &head.to_le_bytes());
}

/// A number near the old one, or far from it.
fn other_number(rng: &mut Rng, was: u64) -> u64 {
    match rng.below(7) {
        0 => was.wrapping_add(1),
        1 => was.wrapping_sub(1),
        2 => was.wrapping_add(1 + rng.below(100)),
        3 => was ^ (1 << rng.below(64)),
        4 => 0,
        5 => u64::MAX,
        _ => rng.next(),
    }
}

/// Changes the integer of `len` bytes at `at`.
fn change(rng: &mut Rng, image: &mut [u8], at: usize, len: usize) {
    let mut was = [0; 8];
    was[..len].copy_from_slice(&image[at..at + len]);
    let new = other_number(rng, u64::from_le_bytes(was)).to_le_bytes();
    put(image, at, &new[..len]);
}

/// Does one thing of that kind; `false` when there is nothing to do it to.
pub fn mutate(
    image: &mut Vec<u8>,
    kind: Kind,
    volume: &Superblock,
    shelf: &Shelf,
    rng: &mut Rng,
) -> bool {
    let used = used_blocks(image);
    let records = blocks_with(image, b"SPR1");
    let any = |rng: &mut Rng| rng.index(image.len() / BLOCK) * BLOCK;
    let one = match kind {
        Kind::ForgeHeader | Kind::ForgeBody | Kind::ForgePlace => pick(rng, &records),
        Kind::ForgeEntry => pick(rng, &blocks_with(image, b"SPNE")),
        Kind::ForgeMailbox => pick(rng, &blocks_with(image, b"SPMB")),
        Kind::ForgeSuperblock => pick(rng, &blocks_with(image, b"SIDEPATH")),
        _ => pick(rng, &used),
    };
    let Some(at) = one else { return false };
    match kind {
        Kind::BitFlips => {
            for _ in 0..=rng.below(8) {
                let at = at + rng.index(BLOCK);
                image[at] ^= 1 << rng.below(8);
            }
        }
        Kind::Garbage => {
            let len = 1 + rng.index(BLOCK);
            image[at..at + len].iter_mut().for_each(|b| *b = rng.next().to_le_bytes()[0]);
        }
        Kind::SwapBlocks => {
            let to = any(rng);
            for i in 0..BLOCK {
                image.swap(at + i, to + i);
            }
        }
        Kind::MoveBlock => {
            let to = any(rng);
            image.copy_within(at..at + BLOCK, to);
        }
        Kind::TornSectors => {
            let old = &shelf.older[rng.index(shelf.older.len())];
            for sector in 0..BLOCK / 512 {
                if rng.chance(50) {
                    let s = at + sector * 512..at + sector * 512 + 512;
                    image[s.clone()].copy_from_slice(&old[s]);
                }
            }
        }
        Kind::SpliceOlder | Kind::SpliceOther => {
            let from = match kind {
                Kind::SpliceOther => &shelf.other,
                _ => &shelf.older[rng.index(shelf.older.len())],
            };
            let len = (1 + rng.index(40)) * BLOCK;
            let end = (at + len).min(image.len());
            image[at..end].copy_from_slice(&from[at..end]);
        }
        Kind::RollBack => {
            image.copy_from_slice(&shelf.older[rng.index(shelf.older.len())]);
        }
        Kind::Truncate => {
            let len = rng.index(image.len());
            image.truncate(len / 512 * 512);
        }
        Kind::ForgeHeader => {
            // epoch, number, place, blocks, body length, frames
            let (field, len) =
                [(24, 8), (32, 8), (40, 4), (44, 4), (48, 4), (52, 4), (4, 1), (5, 1)]
                    [rng.index(8)];
            change(rng, image, at + field, len);
            reseal(image, at);
        }
        Kind::ForgeBody => {
            let len = (u32_at(image, at + 48) as usize).clamp(1, BLOCK - 64);
            for _ in 0..=rng.below(4) {
                let at = at + 64 + rng.index(len);
                image[at] ^= 1 << rng.below(8);
            }
            reseal(image, at);
        }
        Kind::ForgePlace => {
            // Another record stands here under the identity of this one: a replay.
            let Some(from) = pick(rng, &records) else { return false };
            let identity = image[at..at + 44].to_vec();
            let len = (u32_at(image, from + 44) as usize).clamp(1, 16) * BLOCK;
            let len = len.min(image.len() - from.max(at));
            image.copy_within(from..from + len, at);
            put(image, at, &identity);
            reseal(image, at);
        }
        Kind::ForgeEntry => {
            let cell = 128 + 56 * rng.index(volume.geometry.nodes.len());
            let all = [
                (24, 8),
                (32, 8),
                (40, 8),
                (48, 8),
                (56, 8),
                (64, 8),
                (5, 1),
                (cell, 8),
                (cell + 8, 8),
                (cell + 16, 4),
                (cell + 20, 4),
                (cell + 24, 8),
                (cell + 32, 8),
                (cell + 40, 8),
                (cell + 48, 8),
            ];
            let (field, len) = all[rng.index(all.len())];
            change(rng, image, at + field, len);
            let crc = crc32(&image[at..at + 4092]);
            put(image, at + 4092, &crc.to_le_bytes());
        }
        Kind::ForgeMailbox => {
            let (field, len) = [(6, 1), (7, 1), (24, 8), (32, 8), (48, 4), (64, 8)][rng.index(6)];
            change(rng, image, at + field, len);
            if u32_at(image, at + 48) as usize <= BLOCK - 64 {
                reseal(image, at);
            } else {
                let crc = crc32(&image[at..at + 60]);
                put(image, at + 60, &crc.to_le_bytes());
            }
        }
        Kind::ForgeSuperblock => {
            let all = [
                (8, 4),
                (12, 4),
                (16, 8),
                (24, 8),
                (40, 8),
                (56, 4),
                (60, 4),
                (64, 8),
                (72, 8),
                (80, 8),
                (88, 8),
                (96, 8),
                (104, 4),
                (108, 4),
                (112, 4),
                (120, 1),
                (128, 2),
            ];
            let (field, len) = all[rng.index(all.len())];
            change(rng, image, at + field, len);
            let crc = crc32(&image[at..at + 4092]);
            put(image, at + 4092, &crc.to_le_bytes());
        }
    }
    true
}
