//! Requests and replies of the transmission phase, as bytes.
//!
//! ```text
//!   request   25609513 flags:16 command:16 cookie:64 offset:64 length:32 [data]
//!   simple    67446698 error:32 cookie:64 [data]
//!   chunk     668e33ef flags:16 type:16 cookie:64 length:32 [payload]    ... until flag DONE
//! ```
//!
//! All numbers are big-endian. Awkward cases: one read may be answered by many chunks in any order,
//! some of them holes; every byte must come exactly once ([`Coverage`]); lengths are the server's
//! word and are bounded before anything is reserved for them.

use crate::event::{IoFault, IoFaultKind};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub(crate) const REQUEST_BYTES: usize = 28;
const SIMPLE_BYTES: usize = 16;
const CHUNK_BYTES: usize = 20;
/// The longest head that [`decode`] asks for: a chunk with an error's message and its place.
pub(crate) const HEAD_BYTES_MAX: usize = CHUNK_BYTES + ERROR_BYTES_MAX;
/// Strings of the protocol have 4096 bytes at most; around this one lie 32 + 16 + 64 bits.
const ERROR_BYTES_MAX: usize = 4096 + 14;
/// What we show of a server's words.
const MESSAGE_CHARS_MAX: usize = 200;
/// Pieces of one reply. A real server sends a handful: a hole or data per extent.
const PIECES_MAX: usize = 4096;

const CHUNK_DONE: u16 = 1;
const TYPE_NONE: u16 = 0;
const TYPE_DATA: u16 = 1;
const TYPE_HOLE: u16 = 2;
const TYPE_ERROR: u16 = 0x8001;
const TYPE_ERROR_AT: u16 = 0x8002;
const TYPE_IS_ERROR: u16 = 0x8000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

impl Command {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
        }
    }
}

pub(crate) fn request(command: Command, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_BYTES] {
    let mut b = [0; REQUEST_BYTES];
    b[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    b[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    b[8..16].copy_from_slice(&cookie.to_be_bytes());
    b[16..24].copy_from_slice(&offset.to_be_bytes());
    b[24..].copy_from_slice(&len.to_be_bytes());
    b
}

/// What the next bytes of the server are about. Data, if any, follows the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) cookie: u64,
    /// Nothing more comes for this cookie.
    pub(crate) last: bool,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A simple reply; to a read that went well, all its data follows.
    Simple {
        error: u32,
    },
    Nothing,
    /// That many bytes of data follow.
    Data {
        offset: u64,
        len: u32,
    },
    Hole {
        offset: u64,
        len: u32,
    },
    Error {
        error: u32,
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a reply begins with {found:#010x}, which is no reply")]
    Magic { found: u32 },
    #[error("a chunk, but structured replies were not agreed on")]
    NotAgreed,
    #[error("a chunk of type {kind:#06x} with {len} bytes")]
    Length { kind: u16, len: u32 },
    #[error("a chunk of the unknown type {kind:#06x}")]
    Kind { kind: u16 },
    #[error("an error chunk without an error")]
    NoError,
    #[error("a reply to request {cookie:#x}, which is not open")]
    Cookie { cookie: u64 },
    #[error("bytes {from} to {to} of a request for {have}")]
    OutOfRange { from: u64, to: u64, have: usize },
    #[error("some bytes of a read twice")]
    Twice,
    #[error("{missing} bytes of a read not at all")]
    Missing { missing: usize },
    #[error("more than {PIECES_MAX} pieces for one read")]
    Pieces,
    #[error("data for a request that is no read")]
    Unasked,
    #[error("a read answered without structure, though it was agreed on")]
    Unstructured,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// The head at the start of `b` and its length; `None`: more bytes are needed, up to
/// [`HEAD_BYTES_MAX`] in all.
pub(crate) fn decode(b: &[u8], structured: bool) -> Result<Option<(Head, usize)>, WireError> {
    if b.len() < 4 {
        return Ok(None);
    }
    match u32_at(b, 0) {
        SIMPLE_MAGIC if b.len() < SIMPLE_BYTES => Ok(None),
        SIMPLE_MAGIC => {
            let what = What::Simple { error: u32_at(b, 4) };
            Ok(Some((Head { cookie: u64_at(b, 8), last: true, what }, SIMPLE_BYTES)))
        }
        CHUNK_MAGIC if !structured => Err(WireError::NotAgreed),
        CHUNK_MAGIC if b.len() < CHUNK_BYTES => Ok(None),
        CHUNK_MAGIC => chunk(b),
        found => Err(WireError::Magic { found }),
    }
}

fn chunk(b: &[u8]) -> Result<Option<(Head, usize)>, WireError> {
    let (flags, kind, len) = (u16_at(b, 4), u16_at(b, 6), u32_at(b, 16));
    let wrong = WireError::Length { kind, len };
    // What must be here before the chunk can be understood.
    let need = match kind {
        // By the protocol always the last one; otherwise they might never end.
        TYPE_NONE if len == 0 && flags & CHUNK_DONE != 0 => 0,
        TYPE_DATA if len > 8 => 8,
        TYPE_HOLE if len == 12 => 12,
        TYPE_NONE | TYPE_DATA | TYPE_HOLE => return Err(wrong),
        _ if kind & TYPE_IS_ERROR == 0 => return Err(WireError::Kind { kind }),
        _ if len < 6 || len as usize > ERROR_BYTES_MAX => return Err(wrong),
        _ => len as usize,
    };
    let Some(payload) = b.get(CHUNK_BYTES..CHUNK_BYTES + need) else { return Ok(None) };
    let what = match kind {
        TYPE_NONE => What::Nothing,
        TYPE_DATA => What::Data { offset: u64_at(payload, 0), len: len - 8 },
        TYPE_HOLE => What::Hole { offset: u64_at(payload, 0), len: u32_at(payload, 8) },
        _ => {
            let (error, text) = (u32_at(payload, 0), usize::from(u16_at(payload, 4)));
            // Behind the words: the place where it happened, or what we know nothing of.
            let fits = match kind {
                TYPE_ERROR => 6 + text == need,
                TYPE_ERROR_AT => 6 + text + 8 == need,
                _ => 6 + text <= need,
            };
            if !fits {
                return Err(wrong);
            }
            if error == 0 {
                return Err(WireError::NoError);
            }
            What::Error { error, message: shown(payload.get(6..6 + text).unwrap_or_default()) }
        }
    };
    let head = Head { cookie: u64_at(b, 8), last: flags & CHUNK_DONE != 0, what };
    Ok(Some((head, CHUNK_BYTES + need)))
}

/// A server's words, fit for a terminal.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}

/// Which bytes of a read have come: every byte once.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// Sorted, apart, never empty.
    have: Vec<(usize, usize)>,
    pieces: usize,
}

impl Coverage {
    /// Notes a piece of a read of `len` bytes at `base`; its place within the read.
    pub(crate) fn add(
        &mut self,
        base: u64,
        len: usize,
        offset: u64,
        piece: u32,
    ) -> Result<usize, WireError> {
        let to = offset.saturating_add(u64::from(piece));
        let wrong = WireError::OutOfRange { from: offset, to, have: len };
        let from = offset.checked_sub(base).and_then(|d| usize::try_from(d).ok());
        let Some(from) = from else { return Err(wrong) };
        let piece = piece as usize;
        if piece == 0 || from.checked_add(piece).is_none_or(|to| to > len) {
            return Err(wrong);
        }
        self.pieces += 1;
        if self.pieces > PIECES_MAX {
            return Err(WireError::Pieces);
        }
        let to = from + piece;
        let at = self.have.partition_point(|&(_, end)| end <= from);
        if self.have.get(at).is_some_and(|&(start, _)| start < to) {
            return Err(WireError::Twice);
        }
        match at.checked_sub(1).and_then(|i| self.have.get_mut(i)) {
            Some(before) if before.1 == from => before.1 = to,
            _ => self.have.insert(at, (from, to)),
        }
        Ok(from)
    }

    pub(crate) fn whole(&self, len: usize) -> Result<(), WireError> {
        let have: usize = self.have.iter().map(|(from, to)| to - from).sum();
        if have == len { Ok(()) } else { Err(WireError::Missing { missing: len - have }) }
    }
}

/// ESHUTDOWN: the server is going away and wants us to go, too.
pub(crate) const SHUTDOWN: u32 = 108;

/// An error of the protocol in the words of the house.
pub(crate) fn fault(command: Command, offset: u64, error: u32, message: &str) -> IoFault {
    let (kind, name) = match error {
        1 => (IoFaultKind::ReadOnly, "operation not permitted"),
        5 => (IoFaultKind::Eio, "input/output error"),
        12 => (IoFaultKind::Other, "server out of memory"),
        22 => (IoFaultKind::Other, "invalid request"),
        28 => (IoFaultKind::NoSpace, "no space left"),
        75 => (IoFaultKind::Other, "request too large"),
        95 => (IoFaultKind::Other, "not supported"),
        SHUTDOWN => (IoFaultKind::Gone, "server is shutting down"),
        _ => (IoFaultKind::Other, "unknown error"),
    };
    let more = if message.is_empty() { String::new() } else { format!(": {message}") };
    let name_of = command.name();
    IoFault::new(kind, format!("{name_of} at {offset}: {name} (NBD error {error}){more}"))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
