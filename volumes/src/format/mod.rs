//! Bytes only: how each block of a volume is written and read back.
//!
//! ```text
//!  block 0     1 .. 2N        then          then            then           last block
//!  superblock | node table | mailboxes | express rings | data rings | superblock copy
//! ```
//!
//! Every integer is little-endian. Every block is written by exactly one node. Nothing here knows
//! where the bytes come from; every parser takes whatever a disk may hold. Normative text:
//! `docs/volume-format.md`; the constants here and there, and the golden-bytes tests, change
//! together.

pub(crate) mod bytes;
pub mod mailbox;
pub mod record;
pub mod stamp;
pub mod superblock;
pub mod table;

/// Smallest block unit, and the part of each metadata block that carries fields.
pub const BLOCK_MIN: usize = 4096;
/// Largest block unit.
pub const BLOCK_MAX: usize = 65536;
/// Largest node id and number of nodes.
pub const NODES_MAX: usize = 64;
/// Largest record, header and padding included.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Bytes in front of a record's or mailbox's body.
pub const HEADER_BYTES: usize = 64;

pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}
