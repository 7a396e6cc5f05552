//! A medium behind a network block device server, without the kernel's client and without root.
//!
//! ```text
//!   Connector: one per attached volume -> registry: one pair per URL and process -> Link, Link
//!   NbdDevice: whole blocks, split to what the server takes --------------------------^
//! ```
//!
//! One connection for all threads of a process that write, flush and look at the superblock: the
//! keeper's look then proves what the flusher writes to, and a flush covers all writes. Other reads
//! have one of their own where the server announces multi-conn (see `pair`). When one of them ends, so
//! does the other, and none is ever revived: their devices answer [`Gone`](IoFaultKind::Gone) until
//! they are opened anew, which makes the runtime look at the superblock before it writes.
//!
//! Awkward cases: a write that timed out may still land, as on every medium behind a network; a
//! server without FLUSH promises nothing about a loss of power, so it is refused for writing; FUA is
//! not used, for nothing here wants a single write to be durable; without multi-conn a server does
//! not promise that *other hosts* see our writes, which is logged.

mod book;
mod connect;
mod handshake;
mod link;
mod pair;
mod receiver;
mod registry;
mod tls;
mod transport;
pub mod url;
mod wire;

pub use handshake::HandshakeError;
pub use registry::Connector;
pub use url::NbdUrl;

use super::BlockDevice;
use crate::event::{IoFault, IoFaultKind};
use crate::format::bytes::to_usize;
use crate::log::receive::short_read;
use crate::pace::Class;
use pair::Pair;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use wire::Command;

/// Larger requests are split, whatever the server takes: what a deadline is for has an end.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
const BLOCK_BYTES_MIN: u32 = 512;

/// How to open, and how long to be patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Options {
    pub write: bool,
    /// For name, connection, TLS and handshake together.
    pub connect_deadline: Duration,
    pub request_deadline: Duration,
    /// A disk's cache is slower than the disk.
    pub flush_deadline: Duration,
    /// A server that says nothing for so long, while it is asked, is left.
    pub silence_deadline: Duration,
}

impl Options {
    #[must_use]
    pub fn new(write: bool) -> Self {
        Self {
            write,
            connect_deadline: Duration::from_secs(5),
            request_deadline: Duration::from_secs(1),
            flush_deadline: Duration::from_secs(10),
            silence_deadline: Duration::from_secs(3),
        }
    }

    /// For commands that a person waits for.
    #[must_use]
    pub fn patient(write: bool) -> Self {
        let long = Duration::from_secs(30);
        Self {
            request_deadline: long,
            flush_deadline: long,
            silence_deadline: long,
            ..Self::new(write)
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    #[error("{at}: cannot connect: {detail}; is the server running, and is the address right?")]
    Connect { at: String, detail: String },
    #[error(
        "{at}: the server did not finish the handshake within {waited_ms} ms; it may hang, or have \
         as many connections as it takes (`--shared` of qemu-nbd)"
    )]
    Silent { at: String, waited_ms: u128 },
    #[error("{at}: {source}")]
    Handshake { at: String, source: HandshakeError },
    #[error("{at}: TLS failed: {detail}; check the certificates on both sides")]
    Tls { at: String, detail: String },
    #[error("{file}: {detail}; see `tls-certificates` in the URL")]
    Certificates { file: PathBuf, detail: String },
    #[error("{at}: the connection failed: {detail}")]
    Io { at: String, detail: String },
    #[error("{at}: the server offers it for reading only; let it be written there")]
    ReadOnly { at: String },
    #[error(
        "{at}: the server offers no FLUSH, so nothing would be sure to survive a loss of power; \
         turn it on there (`flush = true` for nbd-server)"
    )]
    NoFlush { at: String },
    #[error("{at}: it is no longer what it was: {what}; restart the daemon if that is right")]
    Changed { at: String, what: String },
}

impl NbdError {
    /// Whether the operator's words are at fault rather than the machine.
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Silent { .. } | Self::Io { .. } => false,
            Self::Changed { .. } | Self::Tls { .. } => false,
            Self::Handshake { source, .. } => matches!(
                source,
                HandshakeError::NotNbd
                    | HandshakeError::NoExport { .. }
                    | HandshakeError::TlsRequired
                    | HandshakeError::NoTls { .. }
            ),
            _ => true,
        }
    }

    /// Whether the same words may work later without anybody changing them.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Silent { .. } | Self::Io { .. } => true,
            Self::Handshake { source, .. } => matches!(
                source,
                HandshakeError::Closed { .. }
                    | HandshakeError::NoExport { .. }
                    | HandshakeError::Refused { .. }
            ),
            _ => false,
        }
    }
}

/// An open export. Clones share its connections.
#[derive(Debug, Clone)]
pub struct NbdDevice {
    pair: Arc<Pair>,
    write: bool,
}

/// Opens connections of its own; [`Connector`] shares them.
pub fn open(url: &NbdUrl, o: &Options) -> Result<NbdDevice, NbdError> {
    let pair = pair::connect(url, o, false)?;
    Ok(NbdDevice { pair: Arc::new(pair), write: o.write })
}

impl NbdDevice {
    /// Whether the server promises that all its connections, also those of other hosts, see the
    /// same bytes.
    #[must_use]
    pub fn multi_conn(&self) -> bool {
        self.pair.export().multi_conn()
    }

    /// Whether reads are answered in chunks, with words for errors.
    #[must_use]
    pub fn structured(&self) -> bool {
        self.pair.export().structured
    }

    #[must_use]
    pub fn read_only(&self) -> bool {
        self.pair.export().read_only()
    }

    /// Two when reads have one of their own.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pair.connections()
    }

    fn check(&self, what: Command, offset: u64, len: usize) -> Result<(), IoFault> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.size()) {
            let left = to_usize(self.size().saturating_sub(offset)).min(len);
            return Err(match what {
                Command::Read => short_read(offset, len, left),
                _ => {
                    let detail = format!("write of {len} bytes at {offset}: the medium ends there");
                    IoFault::new(IoFaultKind::NoSpace, detail)
                }
            });
        }
        let block = u64::from(self.logical_block());
        if !offset.is_multiple_of(block) || !(len as u64).is_multiple_of(block) {
            let name = what.name();
            let detail = format!("{name} of {len} bytes at {offset}: no whole blocks of {block}");
            return Err(IoFault::new(IoFaultKind::Other, detail));
        }
        Ok(())
    }
}

impl BlockDevice for NbdDevice {
    /// Whole blocks: what remains behind them cannot be used.
    fn size(&self) -> u64 {
        let block = u64::from(self.logical_block());
        self.pair.export().size / block * block
    }

    fn logical_block(&self) -> u32 {
        self.pair.export().block()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        self.check(Command::Read, offset, buf.len())?;
        let (link, mut at) = (self.pair.reads(offset), offset);
        for piece in buf.chunks_mut(link.export.piece()) {
            let len = piece.len() as u64;
            link.call(Command::Read, at, b"", piece)?;
            at += len;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        if !self.write {
            let detail = format!("write at {offset}: it was opened for reading");
            return Err(IoFault::new(IoFaultKind::ReadOnly, detail));
        }
        self.check(Command::Write, offset, data.len())?;
        let (link, mut at) = (self.pair.first(), offset);
        for piece in data.chunks(link.export.piece()) {
            link.call(Command::Write, at, piece, &mut [])?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), IoFault> {
        if !self.pair.export().can_flush() {
            // Opened for reading, or it would have been refused: nothing of ours to keep.
            return Ok(());
        }
        self.pair.first().call(Command::Flush, 0, b"", &mut [])
    }

    fn class(&self) -> Class {
        Class::Remote
    }

    fn still_there(&self) -> bool {
        !self.pair.has_ended()
    }
}
