//! The search for what is still there, when the next record is gone.
//!
//! A whole ring is read at the source and the oldest later record taken; what lies between is
//! missing. Awkward cases: a part of the ring that cannot be read is passed over; a header that
//! a wrap record left standing is an older lap's, and was passed long ago; nothing found means
//! that the table knows better.

use super::lanes::Run;
use super::source::{Flight, Poll, READ_BYTES_MAX};
use super::{Notice, Replicator, Side};
use crate::event::{Micros, Op, Step};
use crate::format::bytes::len_u32;
use crate::format::record::Header;
use crate::format::table::Head;
use bytes::Bytes;

/// A walk over a whole ring for the oldest record that comes next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    pub(super) poll: Poll,
    pub(super) place: u32,
    best: Option<Head>,
}

impl Search {
    pub(super) fn new(poll: Poll) -> Self {
        Self { poll, place: 0, best: None }
    }
}

impl Replicator {
    pub(super) fn search(&mut self, search: Search) -> Step {
        let g = &self.o.superblock.geometry;
        let left = g.ring_blocks(search.poll.ring) - search.place;
        let blocks = left.min(len_u32(READ_BYTES_MAX / g.block())).max(1);
        let len = blocks as usize * g.block();
        self.fly(Flight::Search { search, blocks });
        let offset = self.offset(search.poll.slot, search.poll.to, search.poll.ring, search.place);
        Step::Do(Op::Read { offset, len, record: None })
    }

    pub(super) fn searched(&self, search: &mut Search, bytes: &[u8]) {
        let poll = &search.poll;
        let e = self.expected((poll.slot, poll.to, poll.ring), poll.epoch, poll.at);
        for (i, block) in bytes.chunks(e.block).enumerate() {
            let place = search.place + len_u32(i);
            let header = Header::decode(block, &e.address, place)
                .filter(|h| h.epoch == poll.epoch && h.fits(e.ring_blocks, e.block));
            let Some(h) = header else { continue };
            let at_its_place =
                h.number > poll.at.number || (h.number == poll.at.number && place == poll.at.place);
            if at_its_place && search.best.is_none_or(|b| h.number < b.number) {
                search.best = Some(Head { number: h.number, place });
            }
        }
    }

    /// The search is over: on at the oldest record found, or where the table says.
    pub(super) fn found(&mut self, now: Micros, search: &Search) {
        let retry = self.times(Side::Source).retry;
        let tail = self.tail(&search.poll);
        let announced = Some(tail.announced).filter(|h| h.number > tail.read.number);
        match search.best.or(announced) {
            Some(next) if next.number > search.poll.at.number => {
                self.jump(&search.poll, next, now);
            }
            // It is there after all, or nothing is: read it again.
            _ => {
                tail.trouble = None;
                tail.retry_at = now + retry;
            }
        }
    }

    pub(super) fn jump(&mut self, poll: &Poll, next: Head, now: Micros) {
        let (from, to) = (self.nodes[poll.slot].id, self.nodes[poll.slot].lanes[poll.to].to);
        let (first, last) = (poll.at.number, next.number - 1);
        self.counters.missing = self.counters.missing.saturating_add(last + 1 - first);
        self.notices.push_back(Notice::Missing { from, to, ring: poll.ring, first, last });
        let tail = self.tail(poll);
        tail.go_to(next);
        tail.queued += 1;
        let Poll { slot, to, ring, epoch, .. } = *poll;
        // The place moves when what was read before has arrived.
        let run = Run {
            slot,
            to,
            ring,
            epoch,
            offset: 0,
            data: Bytes::new(),
            next,
            records: 0,
            noticed: now,
        };
        self.queue[ring.index()].push_back(run);
    }
}
