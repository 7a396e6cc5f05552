//! What an offset of the volume means, and which object holds it.
//!
//! ```text
//!   PREFIX/superblock.first, PREFIX/superblock.last
//!   PREFIX/UUID/node/ID                            the node's newest entry
//!   PREFIX/UUID/mailbox/FROM-TO
//!   PREFIX/UUID/lane/FROM-TO/{express,data}/EPOCH/NUMBER
//! ```
//!
//! Epochs have 16 hexadecimal digits and numbers 20 decimal ones, so that a list is in order. All but
//! the superblocks lie below the volume's UUID: what an old daemon still writes after the volume was
//! formatted anew meets nobody. Each object is written by one node, and a record's object once (or
//! again with the same bytes), so nothing rests on conditional requests.

use crate::event::{RecordName, Ring};
use crate::format::superblock::{Geometry, Uuid};

/// What the machines mean by an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// The first superblock, alone or with the whole table behind it.
    Start,
    Last,
    Entry {
        slot: usize,
    },
    Mailbox {
        from: u8,
        to: u8,
    },
    Ring {
        from: u8,
        to: u8,
        ring: Ring,
    },
    Nowhere,
}

pub(super) fn spot(g: &Geometry, offset: u64) -> Spot {
    if offset == 0 {
        return Spot::Start;
    }
    if offset == g.last_offset() {
        return Spot::Last;
    }
    let table = g.table_region_bytes() as u64;
    if offset < table {
        let block = offset / u64::from(g.block_bytes);
        let slot = usize::try_from((block - 1) / 2).unwrap_or(usize::MAX);
        return Spot::Entry { slot };
    }
    for &from in &g.nodes {
        for &to in g.nodes.iter().filter(|&&to| to != from) {
            if g.mailbox_offset(from, to) == Some(offset) {
                return Spot::Mailbox { from, to };
            }
            for ring in Ring::BOTH {
                let bytes = u64::from(g.ring_blocks(ring)) * u64::from(g.block_bytes);
                let inside = |start: u64| (start..start + bytes).contains(&offset);
                if g.ring_offset(from, to, ring).is_some_and(inside) {
                    return Spot::Ring { from, to, ring };
                }
            }
        }
    }
    Spot::Nowhere
}

/// Keys of one volume.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
}

pub(super) const SUPERBLOCKS: [&str; 2] = ["superblock.first", "superblock.last"];

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    fn below(&self, rest: &str) -> String {
        if self.prefix.is_empty() { rest.to_owned() } else { format!("{}/{rest}", self.prefix) }
    }

    /// Where all objects of this place lie; empty for a whole bucket.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn superblock(&self, last: bool) -> String {
        self.below(SUPERBLOCKS[usize::from(last)])
    }

    pub(super) fn tree(&self, uuid: Uuid) -> String {
        self.below(&uuid.to_string())
    }

    pub(super) fn node(&self, uuid: Uuid, node: u8) -> String {
        format!("{}/node/{node}", self.tree(uuid))
    }

    pub(super) fn mailbox(&self, uuid: Uuid, from: u8, to: u8) -> String {
        format!("{}/mailbox/{from}-{to}", self.tree(uuid))
    }

    /// Both rings of a lane.
    pub(super) fn lane(&self, uuid: Uuid, from: u8, to: u8) -> String {
        format!("{}/lane/{from}-{to}", self.tree(uuid))
    }

    pub(super) fn record(&self, uuid: Uuid, r: &RecordName) -> String {
        let ring = match r.ring {
            Ring::Express => "express",
            Ring::Data => "data",
        };
        let lane = self.lane(uuid, r.from, r.to);
        format!("{lane}/{ring}/{:016x}/{:020}", r.epoch, r.number)
    }

    /// The epoch in the key of a record of that lane.
    pub(super) fn epoch_of(lane: &str, key: &str) -> Option<u64> {
        let rest = key.strip_prefix(lane)?.strip_prefix('/')?;
        let mut parts = rest.split('/');
        let (ring, epoch) = (parts.next()?, parts.next()?);
        let known = ring == "express" || ring == "data";
        (known && epoch.len() == 16).then(|| u64::from_str_radix(epoch, 16).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::superblock::tests::sample;

    #[test]
    fn every_block_has_one_meaning() {
        let volume = sample(&[1, 4, 9]);
        let g = &volume.geometry;
        let b = u64::from(g.block_bytes);
        assert_eq!(spot(g, 0), Spot::Start);
        assert_eq!(spot(g, g.last_offset()), Spot::Last);
        for slot in 0..3 {
            for copy in 0..2 {
                assert_eq!(spot(g, g.entry_offset(slot, copy)), Spot::Entry { slot });
            }
        }
        for &from in &g.nodes {
            for &to in g.nodes.iter().filter(|&&to| to != from) {
                let at = g.mailbox_offset(from, to).unwrap();
                assert_eq!(spot(g, at), Spot::Mailbox { from, to });
                for ring in Ring::BOTH {
                    let start = g.ring_offset(from, to, ring).unwrap();
                    let last = start + u64::from(g.ring_blocks(ring) - 1) * b;
                    for at in [start, last] {
                        assert_eq!(spot(g, at), Spot::Ring { from, to, ring });
                    }
                }
            }
        }
        assert_eq!(spot(g, g.last_offset() + b), Spot::Nowhere);
    }

    #[test]
    fn keys_are_in_the_order_of_numbers() {
        let volume = sample(&[1, 2]);
        let names = Names::new("a/b");
        let name = |epoch, number| {
            let r = RecordName { from: 1, to: 2, ring: Ring::Data, epoch, number };
            names.record(volume.uuid, &r)
        };
        let keys = [name(1, 9), name(1, 10), name(1, 1 << 61), name(1 << 40, 1)];
        assert!(keys.is_sorted());
        let lane = names.lane(volume.uuid, 1, 2);
        assert_eq!(Names::epoch_of(&lane, &keys[3]), Some(1 << 40));
        assert_eq!(Names::epoch_of(&lane, &format!("{lane}/other/0000000000000001/1")), None);
        assert_eq!(Names::new("").superblock(true), "superblock.last");
        assert!(
            keys[0].starts_with(&format!("a/b/{}/lane/1-2/data/0000000000000001/", volume.uuid))
        );
    }
}
