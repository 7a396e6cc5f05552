//! The bodies of the fuzz targets: plain functions of bytes that assert properties.
//!
//! Two callers: libFuzzer (`fuzz_targets/`, nightly) and `tests/fuzz_replay.rs`, which includes
//! this file by its path and gives every file of the corpora to the same functions on stable.
//! A target that parses bytes with a checksum completes the checksum first: a fuzzer does not
//! guess a CRC, and an attacker does not need to.
#![allow(unreachable_pub, reason = "a crate of its own here, a module of a test there")]

mod admin;
mod agreement;
mod batch;
mod core;
#[path = "../../../src/planes/framing.rs"]
#[allow(dead_code, missing_docs, reason = "the room of another crate, as it is")]
mod framing;
mod meter;
#[path = "../../../src/sys/mmsg.rs"]
#[allow(dead_code, missing_docs, reason = "the room of another crate, as it is")]
mod mmsg;
mod packets;
mod peer;
pub mod seeds;
mod sessions;
mod stream;
mod volume;

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target; a file `fuzz_targets/NAME.rs` and a folder `corpus/NAME` belong to each.
pub const TARGETS: &[Target] = &[
    ("admin", admin::admin),
    ("agreement", agreement::agreement),
    ("batch", batch::batch),
    ("config", admin::config),
    ("control", core::control),
    ("frame", core::frame),
    ("handshake", agreement::handshake),
    ("mailbox", volume::mailbox),
    ("peer", peer::peer),
    ("record", volume::record),
    ("segment", packets::segment),
    ("sessions", sessions::sessions),
    ("stream", stream::stream),
    ("superblock", volume::superblock),
    ("table", volume::table),
    ("view", packets::view),
];

/// Runs one target by its name.
///
/// # Panics
/// When there is no such target, or a property does not hold.
pub fn run(name: &str, data: &[u8]) {
    let (_, body) = TARGETS.iter().find(|(known, _)| *known == name).expect("a known target");
    body(data);
}
