//! What the two ends of a backup or a restore say to each other, and how.
//!
//! ```text
//!   client                        control (network first)                         store
//!     │ ── Ask ─────────────────────────────────────────────────────────────────> │
//!     │ <───────────────────────────────────────────────────────── Go, or No ──── │
//!     │                           streams (storage first)                         │
//!     │ <── backup: what is known already ────────── restore: the catalogue ───── │
//!     │ ── backup: blocks, entries ───────────────── restore: blocks ───────────> │ (or <─)
//!     │ ── Finish ──────────────────────────────────────────────────────────────> │
//!     │ <──────────────────────────────────────────────── Stored, Done, Failed ── │
//! ```
//!
//! Control carries JSON, streams carry frames: a kind (u8), a length (u32, little-endian), so many
//! bytes. Blocks go over the streams in turn by their number, everything else over the first one.

use std::io;

use bytes::BufMut;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::entry::{Entry, Piece};

/// Of what is said here.
pub(crate) const VERSION: u32 = 1;
/// Where a store listens, unless it is told otherwise.
pub(crate) const SERVICE: &str = "backup";
/// Longest message on control, bytes.
const MESSAGE_MAX: usize = 4 << 20;
/// Longest frame, bytes: a block and its number, or a batch of entries.
pub(crate) const FRAME_MAX: usize = 8 << 20;

/// Kinds of frames.
pub(crate) mod kind {
    /// A number (u32, little-endian) and a [`super::super::block::Block`].
    pub(crate) const BLOCK: u8 = 1;
    /// A part of [`super::pack`]ed entries.
    pub(crate) const ENTRIES: u8 = 2;
    /// There are no more entries.
    pub(crate) const END: u8 = 3;
    /// Restore: packed (first, count) of blocks of the catalogue's table, in the order they are
    /// wanted in.
    pub(crate) const WANTED: u8 = 4;
    /// Restore: a part of the catalogue, as it lies in the store.
    pub(crate) const CATALOGUE: u8 = 5;
    /// Restore: a number (u32, little-endian) of a block that cannot be had, and why, in words.
    pub(crate) const MISSING: u8 = 6;

    /// Whether frames of that kind begin with a number.
    pub(crate) const fn has_number(kind: u8) -> bool {
        matches!(kind, BLOCK | MISSING)
    }
}

/// A frame as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    /// Of a block; 0 where frames of this kind have none.
    pub(crate) number: u32,
    /// What follows.
    pub(crate) bytes: Vec<u8>,
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) version: u32,
    pub(crate) want: Want,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Want {
    /// To store a new version of `name`.
    Backup { name: String, about: About, fresh: bool },
    /// The catalogue of a version (the last one, if none is named), then blocks.
    Restore { name: String, version: Option<u32> },
    /// The versions of one name, or of all.
    List { name: Option<String> },
    /// Every block of a version read and compared.
    Verify { name: String, version: Option<u32> },
    /// A version is not wanted any more.
    Forget { name: String, version: u32 },
}

/// What a version is of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// As the operator named them; one command line for a stream.
    pub(crate) sources: Vec<String>,
    /// The output of a command instead of a tree.
    pub(crate) stream: bool,
    /// The client's node, as it calls itself.
    pub(crate) host: String,
}

/// What a store answers, and what it says later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Say {
    /// It begins. Backup: what is known follows on the first stream. Restore: the catalogue does.
    Go { resumed_bytes: u64 },
    /// It does not.
    No(Complaint),
    /// Backup: blocks below this number, and all entries that need no others, survive a crash.
    Stored { blocks: u32, bytes: u64 },
    /// Verify: so far.
    Verified { bytes: u64, of: u64 },
    /// All is done.
    Done(Box<Version>),
    /// List.
    Versions(Vec<Version>),
    /// Verify: what is wrong, if anything.
    Findings(Vec<String>),
}

/// Why not, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Complaint {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// What was asked is wrong, not what was done.
    pub(crate) input: bool,
    /// Trying again later may do.
    pub(crate) passes: bool,
}

/// What a client says after its question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tell {
    /// Backup: so many blocks and entries were sent; the version may appear.
    Finish { blocks: u32, entries: u64, problems: Vec<String> },
    /// Restore: everything is in its place.
    Thanks,
}

/// A version in a store, for lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) about: About,
    /// Seconds since 1970.
    pub(crate) began_s: i64,
    pub(crate) ended_s: i64,
    pub(crate) entries: u64,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Bytes that came for it, before compression, and what they take in the store.
    pub(crate) new_bytes: u64,
    pub(crate) stored_bytes: u64,
    /// What was not stored, or not as it should be.
    pub(crate) problems: u64,
    /// BLAKE3 of its catalogue, in hexadecimal digits: stands for everything in it.
    pub(crate) digest: String,
}

/// An entry the store knows already, so that its bytes need not be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) entry: Entry,
    /// Of a file that was interrupted: only the bytes before this offset are there.
    pub(crate) until: Option<u64>,
}

/// An entry on its way into a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Coming {
    pub(crate) entry: Entry,
    /// Its first bytes are those of this known entry (its place in the list).
    pub(crate) known: Option<u32>,
    /// The rest, in blocks of this session.
    pub(crate) pieces: Vec<Piece>,
    /// A part of a large file, whose rest comes later: next, as an entry of the same name.
    pub(crate) more: bool,
}

/// Entries that need no block of this session from `after` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) after: u32,
    pub(crate) entries: Vec<Coming>,
}

/// Says something on control.
pub(crate) async fn say(
    out: &mut (impl AsyncWrite + Unpin),
    what: &impl Serialize,
) -> io::Result<()> {
    let json = serde_json::to_vec(what)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MESSAGE_MAX);
    let length = length.ok_or_else(|| invalid("a message without end"))?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&json);
    out.write_all(&bytes).await
}

/// Hears something on control; nothing at its end.
pub(crate) async fn hear<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MESSAGE_MAX {
        return Err(invalid("a message without end"));
    }
    let mut json = vec![0; length];
    from.read_exact(&mut json).await?;
    Ok(Some(serde_json::from_slice(&json)?))
}

/// Writes a frame.
pub(crate) async fn put(
    out: &mut (impl AsyncWrite + Unpin),
    kind: u8,
    parts: &[&[u8]],
) -> io::Result<()> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let length = u32::try_from(length).ok().filter(|_| length <= FRAME_MAX);
    let length = length.ok_or_else(|| invalid("a frame without end"))?;
    let mut head = [kind; 5];
    head[1..].copy_from_slice(&length.to_le_bytes());
    out.write_all(&head).await?;
    for part in parts {
        out.write_all(part).await?;
    }
    Ok(())
}

/// Reads a frame; nothing at the end of the stream.
pub(crate) async fn get(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut kind = [0; 1];
    if from.read(&mut kind).await? == 0 {
        return Ok(None);
    }
    let [kind] = kind;
    let mut length = usize::try_from(from.read_u32_le().await?).unwrap_or(usize::MAX);
    if length > FRAME_MAX {
        return Err(invalid("a frame without end"));
    }
    let mut number = 0;
    if kind::has_number(kind) {
        length = length.checked_sub(4).ok_or_else(|| invalid("a frame that is too short"))?;
        number = from.read_u32_le().await?;
    }
    // Not cleared first: it is as long as most of what is sent.
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let left = length - bytes.len();
        if from.read_buf(&mut (&mut bytes).limit(left)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(Frame { kind, number, bytes }))
}

/// Compressed postcard: how entries are sent and stored.
pub(crate) fn pack(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let plain = postcard::to_allocvec(what).map_err(|e| invalid(&e.to_string()))?;
    zstd::bulk::compress(&plain, 1)
}

/// The other way; what unpacks to more than `max` bytes is refused before it does.
pub(crate) fn unpack<T: DeserializeOwned>(bytes: &[u8], max: usize) -> io::Result<T> {
    let length = zstd::zstd_safe::get_frame_content_size(bytes).ok().flatten();
    let length = length.and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= max);
    let length = length.ok_or_else(|| invalid("entries of no known length, or too many"))?;
    let plain = zstd::bulk::decompress(bytes, length)?;
    postcard::from_bytes(&plain).map_err(|e| invalid(&format!("not entries: {e}")))
}

pub(crate) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
