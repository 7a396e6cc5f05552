//! What several tests share; each uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod loops;
pub mod mutate;
pub mod pair;
pub mod proxy;
pub mod s3;
pub mod servers;
pub mod threads;
pub mod world;

pub use mutate::Rng;
use volumes::InitOptions;

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
