//! Is this the record that comes next?
//!
//! The rule by which the Reader and the Replicator take records, up to the checksum of the body,
//! which each checks in its own way. Awkward cases: a header whose sizes cannot be is no record,
//! however whole it is; bytes that end before the record does are asked for again, longer.

use crate::canary::{Bug, planted};
use crate::format::record::{Address, Header};
use crate::format::table::Head;

/// The record that comes next on a ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) address: Address,
    pub(super) epoch: u64,
    pub(super) at: Head,
    pub(super) ring_blocks: u32,
    pub(super) block: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, an older record, or another lane's; with the header when it is one for this place.
    Other { header: Option<Header> },
    /// The expected number with sizes that cannot be.
    Impossible,
    /// The expected header, and fewer bytes than the record has.
    Part { blocks: u32 },
    /// The expected header and all its bytes; whether the body matches is not yet known.
    Whole(Header),
}

impl Expected {
    /// What `bytes`, read at the expected place, begin with.
    pub(super) fn recognise(&self, bytes: &[u8]) -> Found {
        let header = Header::decode(bytes, &self.address, self.at.place);
        let Some(h) = header.filter(|h| {
            (h.epoch == self.epoch || planted(Bug::AnyEpoch))
                && (h.number == self.at.number || planted(Bug::AnyNumber))
        }) else {
            return Found::Other { header };
        };
        if !h.fits(self.ring_blocks, self.block) {
            Found::Impossible
        } else if h.bytes() > bytes.len() {
            Found::Part { blocks: h.blocks }
        } else {
            Found::Whole(h)
        }
    }

    /// Where the record behind this one begins.
    pub(super) fn behind(&self, h: &Header) -> Head {
        Head { number: self.at.number + 1, place: (self.at.place + h.blocks) % self.ring_blocks }
    }
}
