//! What several tests share; each uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod loops;
pub mod mutate;
pub mod world;

use volumes::InitOptions;

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

/// A number from the environment, for the full runs.
pub fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

/// The smallest volume for two nodes: 950 KiB.
pub fn small() -> InitOptions {
    InitOptions {
        name: "lun".into(),
        nodes: vec![1, 2],
        lane_size: Some(256 << 10),
        ..InitOptions::default()
    }
}

/// Bytes of [`small`].
pub const SMALL_BYTES: u64 = 232 * 4096;
