//! The half that reads: looks, polls, mailboxes.
//!
//! ```text
//!   rest of a long record > search > mailboxes > express rings > data rings > sleep
//! ```
//!
//! Awkward cases: a record of a later lap where the next one is expected proves that the next one
//! is gone, so it is not waited for; anything else is waited for as the Reader does, because torn
//! and stale reads are normal.

use super::super::recognise::Expected;
use super::lanes::{Letter, Run, Stop, Tail, chain};
use super::round::Phase;
use super::search::Search;
use super::{Notice, QUEUE_BYTES_MAX, Refusal, Replicator, Side};
use crate::event::{IoFault, Micros, Op, RecordName, Ring, Step};
use crate::format::bytes::len_u32;
use crate::format::mailbox;
use crate::format::record::{Address, Header};
use crate::format::table::{Head, Table};
use crate::pace::{Class, Times};
use bytes::Bytes;
use std::collections::VecDeque;

/// One read at most, and so one write.
pub(super) const READ_BYTES_MAX: usize = 1 << 20;
/// What an idle poll reads at most: 64 KiB whole beats header-first.
const GUESS_BYTES_IDLE: usize = 64 << 10;
const FAULT_RETRY_MIN: Micros = 1_000;
const FAULT_RETRY_MAX: Micros = 1_000_000;
/// The table is looked at several times per beat of the quickest sender.
const LOOK_MIN: Micros = 5_000;
/// A look out of turn (records of a new epoch were met) no sooner than this after the last one.
const LOOK_AGAIN: Micros = 2_000;
/// A ring that carried nothing for this long is polled in turn with the others of its kind.
const COLD_AFTER: Micros = 1_000_000;
const COLD_PER_ROUND: usize = 4;
/// While idle, one mailbox is looked at this often without being announced.
const LETTER_LOOK: Micros = 5_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Poll {
    pub(super) slot: usize,
    pub(super) to: usize,
    pub(super) ring: Ring,
    pub(super) epoch: u64,
    pub(super) at: Head,
    pub(super) len: usize,
    pub(super) issued: Micros,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Flight {
    Poll(Poll),
    Search { search: Search, blocks: u32 },
    Letter { slot: usize, to: usize, epoch: u64 },
}

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Polling {
    times: Times,
    round: VecDeque<(usize, usize, Ring)>,
    rest: Option<Poll>,
    search: Option<Search>,
    round_at: Micros,
    nap: Micros,
    traffic_at: Micros,
    cold_turn: usize,
    letter_turn: usize,
    letter_look_at: Micros,
}

impl Polling {
    pub(super) fn new(times: Times) -> Self {
        Self {
            times,
            round: VecDeque::new(),
            rest: None,
            search: None,
            round_at: 0,
            nap: times.nap,
            traffic_at: 0,
            cold_turn: 0,
            letter_turn: 0,
            letter_look_at: 0,
        }
    }

    pub(super) fn wake(&mut self) {
        self.round_at = 0;
        self.nap = self.times.nap;
    }
}

impl Replicator {
    pub(super) fn source_looked(&mut self, now: Micros, at: Micros, region: &[u8]) {
        let table = Table::decode(region, &self.o.superblock);
        let times = self.polling.times;
        let mut interval = times.copy_look_max * times.copy_looks_per_beat;
        for slot in 0..self.nodes.len() {
            let sends = |e: &&crate::format::table::Entry| {
                (0..e.cells.len()).any(|to| to != slot && e.sends_to(to))
            };
            if let Some(entry) = table.get(slot).filter(sends) {
                if !entry.goodbye {
                    interval = interval.min(entry.interval_us);
                }
                self.heard(now, slot, entry);
            }
        }
        let next =
            now + (interval / times.copy_looks_per_beat).clamp(LOOK_MIN, times.copy_look_max);
        if let Some(why) = self.went_back(now, &table) {
            return self.refuse(now, Side::Source, why);
        }
        self.permit(Side::Source, at, next);
        self.round_begun(now);
    }

    /// Whether the source shows older entries for so long that it must have been rolled back.
    fn went_back(&mut self, now: Micros, table: &Table) -> Option<Refusal> {
        for (slot, node) in self.nodes.iter_mut().enumerate() {
            let Some(known) = &node.latest else { continue };
            let (there, there_beat) = (known.epoch, known.beat);
            let (here, here_beat) = table.get(slot).map_or((0, 0), |e| (e.epoch, e.beat));
            if (here, here_beat) >= (there, there_beat) {
                node.regress.clear();
            } else if node.regress.add(now) {
                let node = node.id;
                return Some(Refusal::Ahead { node, there, there_beat, here, here_beat });
            }
        }
        None
    }

    fn heard(&mut self, now: Micros, slot: usize, entry: &crate::format::table::Entry) {
        let node = &mut self.nodes[slot];
        let is = (entry.epoch, entry.beat);
        let was = node.latest.as_ref().map(|e| (e.epoch, e.beat));
        if was.is_some_and(|was| is <= was) {
            // Stale, or rolled back: nothing new either way.
        } else {
            node.advanced += u32::from(was.is_some());
            node.latest = Some(entry.clone());
            node.latest_at = now;
            if node.epoch != entry.epoch {
                // Where it stands at the destination is looked at before anything is copied.
                self.halves[Side::Destination.index()].next_look = 0;
                self.polling.wake();
            }
        }
        let node = &mut self.nodes[slot];
        if node.epoch != entry.epoch {
            return;
        }
        for lane in &mut node.lanes {
            let Some(to) = self.o.superblock.geometry.slot(lane.to) else { continue };
            let cell = entry.cells.get(to);
            lane.letters.announced = lane.letters.announced.max(cell.map_or(0, |c| c.mailbox));
            for tail in &mut lane.tails {
                tail.announce(now, entry.head(to, tail.ring));
                tail.tables_since_fault = tail.tables_since_fault.saturating_add(1);
            }
        }
    }

    pub(super) fn source_step(&mut self, now: Micros) -> Step {
        let next_look = self.halves[Side::Source.index()].next_look;
        if let Some(search) = self.polling.search {
            return self.search(search);
        }
        if let Some(poll) = self.polling.rest.take() {
            return self.poll(poll);
        }
        if self.queue_bytes >= QUEUE_BYTES_MAX {
            return Step::WaitUntil(next_look);
        }
        if let Some(step) = self.letter(now) {
            return step;
        }
        for _ in 0..2 {
            while let Some((slot, to, ring)) = self.polling.round.pop_front() {
                let node = &self.nodes[slot];
                let Some(lane) = node.lanes.get(to).filter(|_| node.is_ready()) else { continue };
                let tail = &lane.tails[ring.index()];
                if now < tail.retry_at {
                    continue;
                }
                let (epoch, at, len) = (node.epoch, tail.read, self.poll_bytes(tail));
                return self.poll(Poll { slot, to, ring, epoch, at, len, issued: now });
            }
            if now < self.polling.round_at {
                break;
            }
            self.fill_round(now);
        }
        let retries = self.nodes.iter().filter(|n| n.is_ready()).flat_map(|n| &n.lanes);
        let retries = retries.flat_map(|l| {
            let letter = Some(l.letters.retry_at).filter(|_| l.letters.trouble.is_some());
            let tails = l.tails.iter().filter(|t| t.trouble.is_some() || t.fault.is_some());
            letter.into_iter().chain(tails.map(|t| t.retry_at))
        });
        let at = retries.map(|at| at.max(now + 1)).fold(self.polling.round_at, Micros::min);
        Step::WaitUntil(at.min(next_look).max(now + 1))
    }

    /// As much as is announced, or one record like the last one.
    fn poll_bytes(&self, tail: &Tail) -> usize {
        let g = &self.o.superblock.geometry;
        let most = self.o.bytes_per_s.map_or(READ_BYTES_MAX, |rate| {
            crate::format::bytes::to_usize(rate / 10).clamp(64 << 10, READ_BYTES_MAX)
        });
        let most = len_u32(most / g.block());
        let ring_blocks = g.ring_blocks(tail.ring);
        let blocks = if tail.greedy {
            most
        } else if tail.behind() {
            match (tail.announced.place + ring_blocks - tail.read.place) % ring_blocks {
                0 => most,
                blocks => blocks,
            }
        } else {
            tail.guess
        };
        blocks.clamp(1, most.max(1)).min(ring_blocks - tail.read.place) as usize * g.block()
    }

    /// Express rings first; rings that were silent for long share a few places in turn.
    fn fill_round(&mut self, now: Micros) {
        let p = &mut self.polling;
        let mut cold = Vec::new();
        // A round ends when every ring was seen to show nothing new.
        let in_round = matches!(self.phase, Phase::Round { .. });
        for ring in Ring::BOTH {
            for (slot, node) in self.nodes.iter().enumerate().filter(|(_, n)| n.is_ready()) {
                for (to, lane) in node.lanes.iter().enumerate().filter(|&(to, _)| to != slot) {
                    let tail = &lane.tails[ring.index()];
                    if now < tail.retry_at {
                        continue;
                    }
                    let warm = tail.warm_at != 0 && now.saturating_sub(tail.warm_at) < COLD_AFTER;
                    let waits = tail.behind() || tail.trouble.is_some() || tail.fault.is_some();
                    if warm || waits || in_round && !tail.quiet {
                        p.round.push_back((slot, to, ring));
                    } else {
                        cold.push((slot, to, ring));
                    }
                }
            }
        }
        // Where a look costs something, the table announces what there is.
        let turns = if p.times.standby_looks { COLD_PER_ROUND } else { 0 };
        for i in 0..cold.len().min(turns) {
            p.round.push_back(cold[(p.cold_turn + i) % cold.len()]);
        }
        p.cold_turn = p.cold_turn.wrapping_add(turns);
        let idle = now.saturating_sub(p.traffic_at);
        p.round_at = if p.traffic_at != 0 && idle < p.times.spin {
            now
        } else if p.traffic_at != 0 && idle < p.times.nap_long_after {
            p.nap = p.times.nap;
            now + p.times.nap
        } else {
            p.nap = (p.nap * 2).clamp(p.times.nap, p.times.nap_max);
            now + p.nap
        };
    }

    fn base(&self, slot: usize, to: usize, ring: Ring) -> u64 {
        let lane = &self.nodes[slot].lanes[to];
        let g = &self.o.superblock.geometry;
        // Lanes are made from this geometry's own nodes.
        g.ring_offset(self.nodes[slot].id, lane.to, ring).unwrap_or(u64::MAX)
    }

    pub(super) fn expected(
        &self,
        (slot, to, ring): (usize, usize, Ring),
        epoch: u64,
        at: Head,
    ) -> Expected {
        let (uuid, g) = (self.o.superblock.uuid, &self.o.superblock.geometry);
        let (from, to) = (self.nodes[slot].id, self.nodes[slot].lanes[to].to);
        let address = Address { uuid, from, to, ring };
        Expected { address, epoch, at, ring_blocks: g.ring_blocks(ring), block: g.block() }
    }

    pub(super) fn offset(&self, slot: usize, to: usize, ring: Ring, place: u32) -> u64 {
        let block = u64::from(self.o.superblock.geometry.block_bytes);
        self.base(slot, to, ring).saturating_add(u64::from(place) * block)
    }

    pub(super) fn fly(&mut self, flight: Flight) {
        self.halves[Side::Source.index()].flight = Some(super::Flight::Source(flight));
    }

    fn poll(&mut self, poll: Poll) -> Step {
        self.counters.polls += 1;
        self.fly(Flight::Poll(poll));
        let offset = self.offset(poll.slot, poll.to, poll.ring, poll.at.place);
        let (from, to) = (self.nodes[poll.slot].id, self.nodes[poll.slot].lanes[poll.to].to);
        let Poll { ring, epoch, at, len, .. } = poll;
        let record = RecordName { from, to, ring, epoch, number: at.number };
        Step::Do(Op::Read { offset, len, record: Some(record) })
    }

    fn letter(&mut self, now: Micros) -> Option<Step> {
        let lanes = || {
            let ready = self.nodes.iter().enumerate().filter(|(_, n)| n.is_ready());
            ready.flat_map(|(slot, n)| {
                let others = n.lanes.iter().enumerate().filter(move |&(to, _)| to != slot);
                others.map(move |(to, l)| (slot, to, l))
            })
        };
        let announced = lanes()
            .find(|(_, _, l)| l.letters.announced > l.letters.read && l.letters.retry_at <= now);
        let mut chosen = announced.map(|(slot, to, _)| (slot, to));
        let p = &self.polling;
        let idle = p.traffic_at == 0 || now.saturating_sub(p.traffic_at) >= p.times.spin;
        if chosen.is_none() && p.times.standby_looks && idle && now >= p.letter_look_at {
            let count = lanes().count().max(1);
            let turn = p.letter_turn % count;
            chosen = lanes()
                .nth(turn)
                .filter(|(_, _, l)| l.letters.announced <= l.letters.read)
                .map(|(slot, to, _)| (slot, to));
            self.polling.letter_turn = turn + 1;
            self.polling.letter_look_at = now + LETTER_LOOK / count as u64;
        }
        let (slot, to) = chosen?;
        let node = &self.nodes[slot];
        let g = &self.o.superblock.geometry;
        let (offset, len) = (g.mailbox_offset(node.id, node.lanes[to].to)?, g.block());
        self.fly(Flight::Letter { slot, to, epoch: node.epoch });
        Some(Step::Do(Op::Read { offset, len, record: None }))
    }

    pub(super) fn source_complete(
        &mut self,
        now: Micros,
        flight: Flight,
        result: Result<Bytes, IoFault>,
    ) {
        let half = &mut self.halves[Side::Source.index()];
        if result.is_ok() && half.failing.take().is_some() {
            self.notices.push_back(Notice::Recovered { side: Side::Source });
        }
        match flight {
            Flight::Letter { slot, to, epoch } => {
                if self.nodes[slot].epoch == epoch {
                    self.letter_read(now, slot, to, result.ok());
                }
            }
            Flight::Poll(poll) if self.is_current(&poll) => match result {
                Ok(bytes) => self.poll_read(now, poll, &bytes),
                Err(_) => self.poll_failed(now, poll),
            },
            Flight::Search { mut search, blocks } if self.is_current(&search.poll) => {
                // What cannot be read is passed over; so is what nobody can read there.
                if let Ok(bytes) = result {
                    self.searched(&mut search, &bytes);
                }
                search.place += blocks;
                let all = self.o.superblock.geometry.ring_blocks(search.poll.ring);
                self.polling.search = Some(search).filter(|s| s.place < all);
                if self.polling.search.is_none() {
                    self.found(now, &search);
                }
            }
            Flight::Poll(_) => {}
            Flight::Search { .. } => self.polling.search = None,
        }
    }

    /// Whether the tail is still where it was when the read was issued.
    fn is_current(&self, poll: &Poll) -> bool {
        let node = &self.nodes[poll.slot];
        node.is_ready()
            && node.epoch == poll.epoch
            && node.lanes.get(poll.to).is_some_and(|l| l.tails[poll.ring.index()].read == poll.at)
    }

    pub(super) fn tail(&mut self, poll: &Poll) -> &mut Tail {
        &mut self.nodes[poll.slot].lanes[poll.to].tails[poll.ring.index()]
    }

    fn poll_read(&mut self, now: Micros, poll: Poll, bytes: &Bytes) {
        let expected = self.expected((poll.slot, poll.to, poll.ring), poll.epoch, poll.at);
        let (block, guess_idle) = (expected.block, len_u32(GUESS_BYTES_IDLE / expected.block));
        let offset = self.offset(poll.slot, poll.to, poll.ring, poll.at.place);
        let c = chain(expected, bytes);
        let tail = self.tail(&poll);
        tail.fault = None;
        tail.fault_retry = 0;
        tail.greedy = c.bytes == bytes.len() && c.stop == Stop::Bytes && c.records > 1;
        if c.records > 0 {
            let noticed = tail.behind_since().unwrap_or(poll.issued);
            tail.go_to(c.next);
            tail.guess = c.last;
            tail.warm_at = now.max(1);
            tail.quiet = false;
            tail.queued += 1;
            self.queue_bytes += c.bytes;
            self.polling.traffic_at = now.max(1);
            self.polling.wake();
            let Poll { slot, to, ring, epoch, .. } = poll;
            let (data, next, records) = (bytes.slice(..c.bytes), c.next, c.records);
            let run = Run { slot, to, ring, epoch, offset, data, next, records, noticed };
            self.queue[ring.index()].push_back(run);
        }
        match c.stop {
            // All of it was asked for: a record that is an object of its own was cut off.
            Stop::Part { blocks } if c.records == 0 && poll.len >= blocks as usize * block => {
                self.counters.torn += 1;
                self.tail(&poll).damaged = Some(blocks);
                self.trouble(now, poll);
            }
            Stop::Part { blocks } => {
                let len = blocks as usize * block;
                self.polling.rest = Some(Poll { at: c.next, len, issued: now, ..poll });
            }
            _ if c.records > 0 => {}
            Stop::Torn { blocks } => {
                self.counters.torn += 1;
                self.tail(&poll).damaged = blocks;
                self.trouble(now, poll);
            }
            Stop::Other { header } => self.other(now, poll, header, guess_idle.max(1)),
            Stop::Bytes | Stop::Wrapped => {}
        }
    }

    /// Something else stands where the next record belongs.
    fn other(&mut self, now: Micros, poll: Poll, header: Option<Header>, idle: u32) {
        let half = &mut self.halves[Side::Source.index()];
        if header.is_some_and(|h| h.epoch > poll.epoch) {
            // The writer runs anew; the table says so by now.
            half.next_look = half.next_look.min(half.looked_at + LOOK_AGAIN);
        }
        let tail = self.tail(&poll);
        tail.damaged = None;
        tail.guess = tail.guess.min((tail.guess / 2).max(idle));
        if header.is_some_and(|h| h.epoch == poll.epoch && h.number > poll.at.number) {
            self.seek(now, poll);
        } else if tail.behind() {
            self.trouble(now, poll);
        } else {
            tail.quiet = true;
            tail.trouble = None;
        }
    }

    /// The next record is not to be had; perhaps it never will be.
    fn trouble(&mut self, now: Micros, poll: Poll) {
        let Times { deadline, retry, .. } = self.polling.times;
        let tail = self.tail(&poll);
        tail.retry_at = now + retry;
        let since = *tail.trouble.get_or_insert(now);
        if now.saturating_sub(since) < deadline {
            return;
        }
        if !tail.behind() {
            tail.quiet = true;
            return;
        }
        let (damaged, ring) = (tail.damaged, poll.ring);
        let ring_blocks = self.o.superblock.geometry.ring_blocks(ring);
        match damaged {
            Some(blocks) => {
                let place = (poll.at.place + blocks) % ring_blocks;
                self.jump(&poll, Head { number: poll.at.number + 1, place }, now);
            }
            None => self.seek(now, poll),
        }
    }

    /// Looks for what is still there of that ring.
    fn seek(&mut self, now: Micros, poll: Poll) {
        let search = Search::new(poll);
        if self.o.classes[Side::Source.index()] == Class::Object {
            // Objects are found by their names alone: the table knows where to go on.
            self.found(now, &search);
        } else {
            self.polling.search = Some(search);
        }
    }

    fn poll_failed(&mut self, now: Micros, poll: Poll) {
        let deadline = self.polling.times.deadline;
        let tail = self.tail(&poll);
        if tail.fault.is_none() {
            tail.tables_since_fault = 0;
        }
        let since = *tail.fault.get_or_insert(now);
        tail.fault_retry = (tail.fault_retry * 2).clamp(FAULT_RETRY_MIN, FAULT_RETRY_MAX);
        tail.retry_at = now + tail.fault_retry;
        tail.guess = 1;
        tail.greedy = false;
        // While the table can be read, it is this place alone.
        if tail.behind() && tail.tables_since_fault >= 2 && now.saturating_sub(since) >= deadline {
            tail.fault = None;
            self.seek(now, poll);
        }
    }

    fn letter_read(&mut self, now: Micros, slot: usize, to: usize, bytes: Option<Bytes>) {
        let Times { deadline, retry, .. } = self.polling.times;
        let node = &mut self.nodes[slot];
        let (from, epoch) = (node.id, node.epoch);
        let Some(lane) = node.lanes.get_mut(to) else { return };
        let address = (self.o.superblock.uuid, from, lane.to);
        let message = bytes.as_ref().and_then(|b| mailbox::decode(b, address));
        let l = &mut lane.letters;
        match (message, bytes) {
            (Some(m), Some(data)) if m.epoch == epoch && m.counter > l.read => {
                l.read = m.counter;
                l.trouble = None;
                l.queued += 1;
                let to_id = lane.to;
                let offset = self.o.superblock.geometry.mailbox_offset(from, to_id);
                let counter = m.counter;
                if let Some(offset) = offset {
                    let letter = Letter { slot, to, epoch, counter, offset, data };
                    self.letters.push_back(letter);
                }
            }
            // It was not announced: nothing new, or not yet whole.
            _ if l.announced <= l.read => {}
            (_, bytes) => {
                l.retry_at = now + if bytes.is_none() { deadline } else { retry };
                let since = *l.trouble.get_or_insert(now);
                if bytes.is_some() && now.saturating_sub(since) >= deadline {
                    // Damaged: the next message will overwrite it.
                    l.read = l.announced;
                    l.trouble = None;
                }
            }
        }
    }
}
