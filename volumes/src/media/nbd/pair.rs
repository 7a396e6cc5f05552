//! One connection, or two that live and die together.
//!
//! ```text
//!   writes, flushes, what begins at the start --> first connection -+
//!   all other reads ----------------------------> second, or first -+-> one ends: both end
//! ```
//!
//! On one connection a large write keeps requests to read waiting in front of the server, and a large
//! reply those to writes behind it. The second one is taken only where the server announces
//! multi-conn, which promises that a read there sees every write that was completed here.
//!
//! Awkward cases: who looks at the start of a medium wants to know what he writes to, so that is read
//! by the connection that writes; the second one may lead elsewhere (a name that moves, a balancer),
//! so it must show the same export and the same start; a server that counts connections refuses it, or
//! says nothing, or would have none left for the next node (which is tried): one will do then, and the
//! server is not asked for another for a while.

use super::connect;
use super::handshake::Export;
use super::link::Link;
use super::transport::left;
use super::wire::Command;
use super::{NbdError, NbdUrl, Options};
use crate::format::bytes::to_usize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The second connection may take as long as the first one, so many times...
const SECOND_TIMES: u32 = 4;
/// ...and at least so long, what a busy machine may need; never longer than the first one may.
const SECOND_MIN: Duration = Duration::from_millis(500);
/// What both must show alike: a superblock and the entries of seven nodes.
const PROOF_BYTES: u64 = 64 << 10;
/// Others write there meanwhile, block by block, and seldom.
const PROOF_BLOCK_BYTES: usize = 4096;
const PROOFS_MAX: u32 = 8;

#[derive(Debug)]
pub(super) struct Pair {
    first: Arc<Link>,
    second: Option<Arc<Link>>,
    refused: bool,
}

/// Connects within twice the deadline. `single`: one connection will do.
pub(super) fn connect(url: &NbdUrl, o: &Options, single: bool) -> Result<Pair, NbdError> {
    let began = Instant::now();
    let first = connect::connect(url, o)?;
    if single || !o.write || !first.export.multi_conn() {
        return Ok(Pair { first: Arc::new(first), second: None, refused: false });
    }
    let patience = (began.elapsed() * SECOND_TIMES).max(SECOND_MIN).min(o.connect_deadline);
    let until = Instant::now() + patience;
    let another = || {
        let o = Options { connect_deadline: left(until), ..*o };
        connect::connect(url, &o).map_err(|e| e.to_string())
    };
    let second = another().and_then(|second| {
        is_same(&first, &second, until)?;
        match another() {
            Ok(_) => Ok(second),
            Err(e) => Err(format!("it would be the last one: {e}")),
        }
    });
    let first = Arc::new(first);
    match second {
        Ok(second) => {
            let second = Arc::new(second);
            first.bind(&second);
            second.bind(&first);
            Ok(Pair { first, second: Some(second), refused: false })
        }
        Err(detail) if first.has_ended() => Err(NbdError::Io { at: url.to_string(), detail }),
        Err(why) => {
            tracing::warn!(
                volume = %url,
                "no second connection to this NBD server ({why}): reads and writes share one, which \
                 is slower when both are busy; a server that counts connections (qemu-nbd --shared) \
                 should allow two for each node and one more"
            );
            Ok(Pair { first, second: None, refused: true })
        }
    }
}

/// Whether both lead to the same bytes, as far as their start tells.
fn is_same(first: &Link, second: &Link, until: Instant) -> Result<(), String> {
    if first.export != second.export {
        return Err("it shows another export than the first one".to_owned());
    }
    let block = u64::from(first.export.block());
    let len = to_usize(PROOF_BYTES.min(first.export.size) / block * block);
    let mut proven = vec![false; len.div_ceil(PROOF_BLOCK_BYTES)];
    for _ in 0..PROOFS_MAX {
        let (a, b) = (start(first, len, until)?, start(second, len, until)?);
        let blocks = a.chunks(PROOF_BLOCK_BYTES).zip(b.chunks(PROOF_BLOCK_BYTES));
        proven.iter_mut().zip(blocks).for_each(|(proven, (a, b))| *proven |= a == b);
        if proven.iter().all(|&is| is) {
            return Ok(());
        }
        if left(until).is_zero() {
            break;
        }
    }
    Err("it shows other bytes than the first one".to_owned())
}

fn start(link: &Link, len: usize, until: Instant) -> Result<Vec<u8>, String> {
    let (mut bytes, mut at) = (vec![0; len], 0);
    for piece in bytes.chunks_mut(link.export.piece()) {
        let len = piece.len() as u64;
        link.call_until(Command::Read, at, b"", piece, until).map_err(|e| e.to_string())?;
        at += len;
    }
    Ok(bytes)
}

impl Pair {
    pub(super) fn export(&self) -> &Export {
        &self.first.export
    }

    /// Writes and flushes go here.
    pub(super) fn first(&self) -> &Link {
        &self.first
    }

    /// Where to read that place.
    pub(super) fn reads(&self, offset: u64) -> &Link {
        self.second.as_ref().filter(|_| offset != 0).unwrap_or(&self.first)
    }

    pub(super) fn connections(&self) -> usize {
        1 + usize::from(self.second.is_some())
    }

    /// The server announced that it takes a second connection, and did not.
    pub(super) fn was_refused(&self) -> bool {
        self.refused
    }

    pub(super) fn has_ended(&self) -> bool {
        self.first.has_ended() || self.second.as_ref().is_some_and(|s| s.has_ended())
    }
}
