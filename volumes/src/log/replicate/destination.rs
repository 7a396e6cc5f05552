//! The half that writes: where it stands, records, mailboxes, entries.
//!
//! ```text
//!   scans of what an earlier run left > a failed write again > entry > express records
//!      > mailboxes > data records > flush at the end of a round
//! ```
//!
//! Awkward cases: a write that failed is repeated byte for byte before anything else, and not
//! before the destination was looked at again; a throttle holds records back, never entries.

use super::lanes::{Letter, Run, Scan, Stop, chain};
use super::round::Phase;
use super::{Notice, Replicator, Side};
use crate::event::{IoFault, Micros, Op, RecordName, Ring, Step};
use crate::format::bytes::len_u32;
use crate::format::mailbox;
use crate::format::record::Header;
use crate::format::table::{COUNTER_END, Entry, Head};
use crate::pace::Times;
use bytes::Bytes;

/// What may be written at once after a pause, as a part of a second's.
const BURST_PER_S: i64 = 10;
/// A reader sees an entry within two of its beats, and waits for what is missing: 50 ms on a disk.
fn hold(times: Times) -> Micros {
    2 * times.deadline + 200_000
}
/// Read at once when a whole ring is walked.
const WALK_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) enum Work {
    Run(Run),
    Letter(Letter),
    Entry { slot: usize, entry: Entry, offset: u64, data: Bytes },
}

impl Work {
    pub(super) fn noticed(&self) -> Option<Micros> {
        match self {
            Self::Run(run) => Some(run.noticed),
            Self::Letter(_) | Self::Entry { .. } => None,
        }
    }

    fn op(&self) -> Op {
        let (offset, data) = match self {
            Self::Run(Run { offset, data, .. })
            | Self::Letter(Letter { offset, data, .. })
            | Self::Entry { offset, data, .. } => (*offset, data.clone()),
        };
        Op::Write { offset, data }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Flight {
    Letters { slot: usize, epoch: u64 },
    Tail { slot: usize, epoch: u64, scan: Scan },
    Write,
    Flush,
}

impl Replicator {
    fn fly_there(&mut self, flight: Flight, op: Op) -> Step {
        self.halves[Side::Destination.index()].flight = Some(super::Flight::Destination(flight));
        Step::Do(op)
    }

    pub(super) fn destination_step(&mut self, now: Micros) -> Step {
        if let Some(step) = self.scan() {
            return step;
        }
        self.drop_stale_work();
        let mut wait = self.halves[Side::Destination.index()].next_look;
        if self.work.is_none() {
            match self.choose(now) {
                Ok(Work::Entry { slot, .. }) if self.must_look_before(slot) => {
                    self.halves[Side::Destination.index()].next_look = now;
                    return Step::WaitUntil(now);
                }
                Ok(work) => self.work = Some(work),
                Err(at) => wait = wait.min(at),
            }
        }
        if let Some(work) = &self.work {
            let op = work.op();
            return self.fly_there(Flight::Write, op);
        }
        if matches!(self.phase, Phase::Flush { .. }) {
            return self.fly_there(Flight::Flush, Op::Flush);
        }
        // Jumps may have ended a round without any I/O.
        self.round_over(now);
        if matches!(self.phase, Phase::Flush { .. }) {
            return self.fly_there(Flight::Flush, Op::Flush);
        }
        Step::WaitUntil(wait.max(now + 1))
    }

    fn scan(&mut self) -> Option<Step> {
        let slot = self.nodes.iter().position(|n| n.is_copied() && !n.scans.is_empty())?;
        let g = &self.o.superblock.geometry;
        let node = &self.nodes[slot];
        let epoch = node.epoch;
        match *node.scans.front()? {
            Scan::Letters => {
                // A node's mailboxes lie side by side, in the order of the slots.
                let first = *g.nodes.iter().find(|&&id| id != node.id)?;
                let offset = g.mailbox_offset(node.id, first)?;
                let len = (g.nodes.len() - 1) * g.block();
                let op = Op::Read { offset, len, record: None };
                Some(self.fly_there(Flight::Letters { slot, epoch }, op))
            }
            scan @ Scan::Newest { to, ring, place, .. } => {
                let blocks = (g.ring_blocks(ring) - place).min(len_u32(WALK_BYTES / g.block()));
                let len = blocks as usize * g.block();
                let offset = self.offset(slot, to, ring, place);
                let op = Op::Read { offset, len, record: None };
                Some(self.fly_there(Flight::Tail { slot, epoch, scan }, op))
            }
            scan @ Scan::Tail { to, ring, len, .. } => {
                let at = node.lanes[to].tails[ring.index()].done;
                let to_end = (g.ring_blocks(ring) - at.place) as usize * g.block();
                let (from, number) = (node.id, at.number);
                let record = RecordName { from, to: node.lanes[to].to, ring, epoch, number };
                let op = Op::Read {
                    offset: self.offset(slot, to, ring, at.place),
                    len: len.min(to_end),
                    record: Some(record),
                };
                Some(self.fly_there(Flight::Tail { slot, epoch, scan }, op))
            }
        }
    }

    /// An entry follows one that was seen to be there: on a destination that was rolled back it
    /// would announce records that went with the roll-back.
    fn must_look_before(&self, slot: usize) -> bool {
        let entry_at = self.nodes[slot].entry_at;
        entry_at != 0 && self.halves[Side::Destination.index()].looked_at <= entry_at
    }

    /// What became pointless while it was to be repeated.
    fn drop_stale_work(&mut self) {
        let stale = match &self.work {
            None => false,
            Some(Work::Run(run)) => self.nodes[run.slot].epoch != run.epoch,
            Some(Work::Letter(letter)) => self.nodes[letter.slot].epoch != letter.epoch,
            Some(Work::Entry { slot, entry, .. }) => {
                self.nodes[*slot].written >= Some((entry.epoch, entry.beat))
                    || self.nodes[*slot].epoch != entry.epoch
            }
        };
        let gone = |slot: usize| !self.nodes[slot].is_copied();
        let elsewhere = match &self.work {
            Some(Work::Run(Run { slot, .. }) | Work::Entry { slot, .. }) => gone(*slot),
            Some(Work::Letter(letter)) => gone(letter.slot),
            None => false,
        };
        if stale || elsewhere {
            self.work = None;
        }
    }

    /// What to write next; or when there may be something.
    fn choose(&mut self, now: Micros) -> Result<Work, Micros> {
        let entry = self.next_entry(now);
        let soonest = match entry {
            Ok((slot, entry)) => return Ok(self.entry(now, slot, entry)),
            Err(at) => at,
        };
        let paid_at = self.paid_at(now);
        for ring in Ring::BOTH {
            if ring == Ring::Data
                && let Some(letter) = self.letters.pop_front()
            {
                return Ok(Work::Letter(letter));
            }
            while let Some(run) = self.queue[ring.index()].front() {
                let open =
                    self.nodes[run.slot].is_open() && self.nodes[run.slot].epoch == run.epoch;
                if !open || paid_at > now && !run.data.is_empty() {
                    break;
                }
                let Some(run) = self.queue[ring.index()].pop_front() else { break };
                self.queue_bytes -= run.data.len().min(self.queue_bytes);
                if run.data.is_empty() {
                    self.arrived(now, &run);
                    continue;
                }
                return Ok(Work::Run(run));
            }
        }
        let waits = self.queue.iter().any(|q| !q.is_empty());
        Err(if waits && paid_at > now { soonest.min(paid_at) } else { soonest })
    }

    fn entry(&self, now: Micros, slot: usize, entry: Entry) -> Work {
        let g = &self.o.superblock.geometry;
        let mut buf = self.o.pool.take_len(g.block());
        entry.encode(self.o.superblock.uuid, buf.as_mut());
        self.stamp(now).put(buf.as_mut());
        let offset = g.entry_offset(slot, entry.copy());
        Work::Entry { slot, entry, offset, data: buf.freeze() }
    }

    /// When the throttle lets the next record through.
    fn paid_at(&mut self, now: Micros) -> Micros {
        let Some(rate) = self.o.bytes_per_s.map(|r| i64::try_from(r.max(1)).unwrap_or(i64::MAX))
        else {
            return 0;
        };
        let most = (rate / BURST_PER_S).max(1);
        let passed = i64::try_from(now.saturating_sub(self.allowance_at)).unwrap_or(i64::MAX);
        let grown = i128::from(rate) * i128::from(passed) / 1_000_000;
        let grown = i64::try_from(grown).unwrap_or(i64::MAX);
        if grown > 0 {
            self.allowance = self.allowance.saturating_add(grown).min(most);
            self.allowance_at = now;
        }
        if self.allowance >= 0 {
            return 0;
        }
        let owed = i128::from(-self.allowance) * 1_000_000 / i128::from(rate);
        now + u64::try_from(owed).unwrap_or(u64::MAX).max(1)
    }

    pub(super) fn destination_complete(
        &mut self,
        now: Micros,
        flight: Flight,
        result: Result<Bytes, IoFault>,
    ) {
        let Ok(bytes) = result else { return self.back_off(now, Side::Destination) };
        let half = &mut self.halves[Side::Destination.index()];
        if half.failing.take().is_some() {
            self.notices.push_back(Notice::Recovered { side: Side::Destination });
        }
        match flight {
            Flight::Letters { slot, epoch } => self.letters_found(slot, epoch, &bytes),
            Flight::Tail { slot, epoch, scan } => self.tail_found(slot, epoch, scan, &bytes),
            Flight::Write => {
                if let Some(work) = self.work.take() {
                    self.written(now, work);
                }
            }
            Flight::Flush => self.flushed(now),
        }
    }

    fn letters_found(&mut self, slot: usize, epoch: u64, bytes: &Bytes) {
        let block = self.o.superblock.geometry.block();
        let node = &mut self.nodes[slot];
        if node.epoch != epoch {
            return;
        }
        let (uuid, from) = (self.o.superblock.uuid, node.id);
        let others = node.lanes.iter_mut().filter(|l| l.to != from);
        for (i, lane) in others.enumerate() {
            let there =
                bytes.slice((i * block).min(bytes.len())..((i + 1) * block).min(bytes.len()));
            let Some(m) = mailbox::decode(&there, (uuid, from, lane.to)) else { continue };
            if m.epoch == epoch {
                (lane.letters.read, lane.letters.done) = (m.counter, m.counter);
            } else if m.epoch > epoch {
                // Of an epoch whose entry was lost here: it stays until that one is back.
                (lane.letters.read, lane.letters.done) = (COUNTER_END, 0);
            }
        }
        node.scans.pop_front();
        self.polling.wake();
    }

    fn tail_found(&mut self, slot: usize, epoch: u64, scan: Scan, bytes: &[u8]) {
        let node = &self.nodes[slot];
        if node.epoch != epoch || node.scans.front() != Some(&scan) {
            return;
        }
        let (to, ring, walked) = match scan {
            Scan::Letters => return,
            Scan::Tail { to, ring, walked, .. } => (to, ring, walked),
            Scan::Newest { to, ring, place, best } => {
                return self.newest_found((slot, to, ring), epoch, (place, best), bytes);
            }
        };
        let from = node.lanes[to].tails[ring.index()].done;
        let e = self.expected((slot, to, ring), epoch, from);
        let c = chain(e, bytes);
        let blocks = (c.next.place + e.ring_blocks - from.place) % e.ring_blocks;
        let walked = walked.saturating_add(if c.records > 0 { blocks.max(1) } else { 0 });
        let more = match c.stop {
            Stop::Part { blocks } => Some(blocks as usize * e.block),
            Stop::Bytes | Stop::Wrapped if c.records > 0 => Some(super::standing::SCAN_BYTES),
            _ => None,
        };
        // More was written here than the entry says, by a whole lap: a later record stands there,
        // or perhaps the middle of one. An older header or zeros prove that it was not so.
        let blank = || bytes.iter().take(e.block).all(|&b| b == 0);
        let lapped = match c.stop {
            Stop::Other { header: Some(h) } => h.epoch == epoch && h.number > c.next.number,
            Stop::Other { header: None } => c.records == 0 && !blank(),
            _ => false,
        };
        let node = &mut self.nodes[slot];
        let tail = &mut node.lanes[to].tails[ring.index()];
        tail.done = c.next;
        tail.go_to(c.next);
        node.scans.pop_front();
        if lapped && walked == 0 {
            node.scans.push_front(Scan::Newest { to, ring, place: 0, best: c.next });
        }
        // A ring holds no more than itself.
        if let Some(len) = more.filter(|_| walked < e.ring_blocks) {
            node.scans.push_front(Scan::Tail { to, ring, len, walked });
        }
        self.polling.wake();
    }

    /// The newest record found so far; behind it nothing has arrived.
    fn newest_found(
        &mut self,
        (slot, to, ring): (usize, usize, Ring),
        epoch: u64,
        (first, mut best): (u32, Head),
        bytes: &[u8],
    ) {
        let e = self.expected((slot, to, ring), epoch, best);
        let mut place = first;
        for block in bytes.chunks(e.block) {
            let header = Header::decode(block, &e.address, place)
                .filter(|h| h.epoch == epoch && h.fits(e.ring_blocks, e.block));
            if let Some(h) = header.filter(|h| h.number > best.number) {
                best = Head { number: h.number, place };
            }
            place += 1;
        }
        let node = &mut self.nodes[slot];
        node.scans.pop_front();
        if place < e.ring_blocks && place > first {
            return node.scans.push_front(Scan::Newest { to, ring, place, best });
        }
        let tail = &mut node.lanes[to].tails[ring.index()];
        tail.done = best;
        tail.go_to(best);
        // Whether it is whole, and what is behind it.
        node.scans.push_front(Scan::Tail { to, ring, len: WALK_BYTES, walked: 1 });
    }

    fn written(&mut self, now: Micros, work: Work) {
        match work {
            Work::Run(run) => {
                self.counters.records += run.records;
                self.counters.bytes += run.data.len() as u64;
                let bytes = i64::try_from(run.data.len()).unwrap_or(i64::MAX);
                self.allowance = self.allowance.saturating_sub(bytes);
                self.arrived(now, &run);
            }
            Work::Letter(letter) => {
                self.counters.mailboxes += 1;
                let node = &mut self.nodes[letter.slot];
                if node.epoch == letter.epoch
                    && let Some(lane) = node.lanes.get_mut(letter.to)
                {
                    lane.letters.done = lane.letters.done.max(letter.counter);
                    lane.letters.queued = lane.letters.queued.saturating_sub(1);
                }
            }
            Work::Entry { slot, entry, .. } => {
                self.counters.entries += 1;
                let node = &mut self.nodes[slot];
                node.written = node.written.max(Some((entry.epoch, entry.beat)));
                node.entry_at = now;
                node.announced = Some(entry);
            }
        }
    }

    fn arrived(&mut self, now: Micros, run: &Run) {
        let hold = hold(self.times(Side::Destination));
        let node = &mut self.nodes[run.slot];
        if node.epoch == run.epoch
            && let Some(lane) = node.lanes.get_mut(run.to)
        {
            let tail = &mut lane.tails[run.ring.index()];
            tail.done = run.next;
            if run.data.is_empty() {
                tail.hold = Some((run.next, now + hold));
            }
            tail.queued = tail.queued.saturating_sub(1);
        }
    }
}
