//! The Reader: what peers wrote for us, one read at a time.
//!
//! ```text
//!   table_update ---> epoch, head announced, mailbox counter, per lane
//!   step: rest of a long record > mailboxes that moved > express rings > data rings > sleep
//!
//!   at the expected number and place we find      then
//!     whole record                                deliver, go on behind it
//!     right header, wrong body                    not yet; after 50 ms: reported
//!     anything else (older, nothing, foreign)     nothing new
//!     ... but the head announced lies beyond      after 50 ms: Missing, go on
//! ```
//!
//! A lane is read only once the table shows an epoch of its writer. Each epoch starts at number 1,
//! place 0; a Reader that starts in the middle of one goes on from the head announced then.
//!
//! Awkward cases: torn reads are normal (6 % on tmpfs at full speed); a damaged record with a whole
//! header costs that record alone; an unreadable place counts as missing only while the rest of
//! the medium is seen to work, so an outage of the medium never skips anything; a table that goes
//! backwards changes nothing.

use super::recognise::{Expected, Found};
use crate::buffer::Pool;
use crate::event::{Fact, IoFault, IoFaultKind, Micros, Op, RecordName, Ring, Step};
use crate::format::RECORD_BYTES_MAX;
use crate::format::bytes::len_u32;
use crate::format::mailbox;
use crate::format::record::{self, Address, Header, Kind};
use crate::format::superblock::Superblock;
use crate::format::table::{Entry, Head, Table};
use crate::pace::{Class, Times};
use bytes::Bytes;
use std::collections::VecDeque;

const FAULT_RETRY_MIN: Micros = 1_000;
const FAULT_RETRY_MAX: Micros = 1_000_000;
/// Polls that find nothing shrink to this size: reading 64 KiB whole beats header-first.
const GUESS_BYTES_IDLE: usize = 64 << 10;
/// The beginning of a record that is kept rather than read again.
const CARRY_BYTES_MIN: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Active,
    /// Look this often only (and when the table announces something).
    Standby {
        interval: Micros,
    },
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    pub polls: u64,
    pub records: u64,
    pub bytes: u64,
    /// Reads that found the expected header with a body not whole yet.
    pub torn: u64,
    pub missing: u64,
    /// Records of older epochs found where a new one was expected.
    pub stale: u64,
    pub faults: u64,
}

#[derive(Debug)]
struct Tail {
    next: Head,
    announced: Head,
    /// How much the next poll reads, in blocks.
    guess: u32,
    /// Blocks of the record that is next, once its header was read.
    need: u32,
    /// Its beginning, when that was read with the records before it: the poll goes on behind it.
    carry: Bytes,
    trouble: Option<Micros>,
    /// Blocks of the record whose body is wrong.
    damaged: Option<u32>,
    reported: bool,
    fault: Option<Micros>,
    tables_since_fault: u32,
    fault_retry: Micros,
    retry_at: Micros,
    delivered_at: Micros,
}

impl Tail {
    fn new(next: Head, announced: Head) -> Self {
        Self {
            next,
            announced,
            guess: 1,
            need: 0,
            carry: Bytes::new(),
            trouble: None,
            damaged: None,
            reported: false,
            fault: None,
            tables_since_fault: 0,
            fault_retry: FAULT_RETRY_MIN,
            retry_at: 0,
            delivered_at: 0,
        }
    }

    fn go_to(&mut self, next: Head) {
        self.next = next;
        self.need = 0;
        self.carry = Bytes::new();
        self.trouble = None;
        self.damaged = None;
        self.reported = false;
        self.retry_at = 0;
    }

    fn behind(&self) -> bool {
        self.announced.number > self.next.number
    }
}

#[derive(Debug)]
struct Lane {
    node: u8,
    epoch: u64,
    beat: u64,
    stale_seen: u64,
    letters_announced: u64,
    letters_read: u64,
    letter_retry_at: Micros,
    letter_trouble: Option<Micros>,
    tails: [Tail; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Poll {
    slot: usize,
    ring: Ring,
    epoch: u64,
    at: Head,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    None,
    Poll(Poll),
    Letter { slot: usize, epoch: u64 },
}

#[derive(Debug, Clone)]
pub struct ReaderOptions {
    pub node: u8,
    pub superblock: Superblock,
}

/// Public methods: getters, inputs (`table_update`, `set_mode`, `wake`), then the machine's
/// `step`, `complete`, `drain_facts`.
#[derive(Debug)]
pub struct Reader {
    o: ReaderOptions,
    times: Times,
    slot: usize,
    mode: Mode,
    lanes: Vec<Lane>,
    seen_a_table: bool,
    round: VecDeque<(usize, Ring)>,
    rounds: u64,
    /// When all rings were last looked at.
    wide_at: Micros,
    /// Read only in part; looked at again before anything else.
    rest: Option<(usize, Ring)>,
    pool: Pool,
    flight: Flight,
    /// The next unannounced look at a mailbox, and whose it is.
    letter_look_at: Micros,
    letter_turn: usize,
    round_at: Micros,
    nap: Micros,
    traffic_at: Micros,
    facts: VecDeque<Fact>,
    counters: Counters,
}

impl Reader {
    /// `None`: the volume has no such node.
    #[must_use]
    pub fn new(o: ReaderOptions) -> Option<Self> {
        let slot = o.superblock.geometry.slot(o.node)?;
        let lanes = o.superblock.geometry.nodes.iter().map(|&node| Lane {
            node,
            epoch: 0,
            beat: 0,
            stale_seen: 0,
            letters_announced: 0,
            letters_read: 0,
            letter_retry_at: 0,
            letter_trouble: None,
            tails: [(); 2].map(|()| Tail::new(Head::START, Head::START)),
        });
        let times = Class::Local.times();
        Some(Self {
            times,
            slot,
            mode: Mode::Active,
            lanes: lanes.collect(),
            seen_a_table: false,
            round: VecDeque::new(),
            rounds: 0,
            wide_at: 0,
            rest: None,
            pool: Pool::new(),
            flight: Flight::None,
            letter_look_at: 0,
            letter_turn: 0,
            round_at: 0,
            nap: times.nap,
            traffic_at: 0,
            facts: VecDeque::new(),
            counters: Counters::default(),
            o,
        })
    }

    /// For a medium that is not a disk of this host.
    #[must_use]
    pub fn timed(self, times: Times) -> Self {
        Self { times, nap: times.nap, ..self }
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Per node: the epoch we read, and up to which number, by ring.
    pub fn cursors(&self) -> impl Iterator<Item = (u8, u64, [u64; 2])> + '_ {
        self.lanes.iter().map(|l| {
            let read = |r: Ring| l.tails[r.index()].next.number - 1;
            (l.node, l.epoch, [read(Ring::Express), read(Ring::Data)])
        })
    }

    /// Starts reading that node's epoch at these places (instead of where the first table says);
    /// for a replicator that goes on where an earlier one stopped.
    pub fn resume(&mut self, from: u8, epoch: u64, next: [Head; 2]) {
        if let Some(slot) = self.o.superblock.geometry.slot(from) {
            let lane = &mut self.lanes[slot];
            lane.epoch = epoch;
            lane.tails = next.map(|h| Tail::new(h, h));
        }
    }

    /// The node table was read at `now`.
    pub fn table_update(&mut self, now: Micros, table: &Table) {
        let first = !std::mem::replace(&mut self.seen_a_table, true);
        let mut news = false;
        for slot in 0..self.lanes.len() {
            if let Some(entry) = table.get(slot).filter(|_| slot != self.slot) {
                news |= self.heard(slot, entry, first);
            }
        }
        if news {
            self.wake(now);
        }
    }

    fn heard(&mut self, slot: usize, entry: &Entry, first: bool) -> bool {
        let lane = &mut self.lanes[slot];
        if entry.epoch < lane.epoch {
            if lane.stale_seen != entry.epoch {
                lane.stale_seen = entry.epoch;
                let (from, seen) = (lane.node, entry.epoch);
                self.facts.push_back(Fact::StaleEpoch { from, seen, current: lane.epoch });
            }
            return false;
        }
        let heads = Ring::BOTH.map(|r| entry.head(self.slot, r));
        let letters = entry.cells.get(self.slot).map_or(0, |c| c.mailbox);
        let mut news = false;
        if entry.epoch > lane.epoch {
            lane.epoch = entry.epoch;
            lane.beat = entry.beat;
            lane.letters_read = 0;
            lane.letters_announced = letters;
            lane.letter_trouble = None;
            lane.tails = heads.map(|h| Tail::new(if first { h } else { Head::START }, h));
            news = true;
        } else if entry.beat >= lane.beat {
            lane.beat = entry.beat;
            news |= letters > lane.letters_announced;
            lane.letters_announced = lane.letters_announced.max(letters);
            for ring in Ring::BOTH {
                let tail = &mut lane.tails[ring.index()];
                if heads[ring.index()].number > tail.announced.number {
                    tail.announced = heads[ring.index()];
                    news |= tail.behind();
                }
            }
        }
        for tail in &mut lane.tails {
            tail.tables_since_fault = tail.tables_since_fault.saturating_add(1);
        }
        news
    }

    pub fn set_mode(&mut self, now: Micros, mode: Mode) {
        if self.mode != mode {
            self.mode = mode;
            self.wake(now);
        }
    }

    /// Look now (a doorbell rang).
    pub fn wake(&mut self, now: Micros) {
        self.round_at = self.round_at.min(now);
        self.nap = self.times.nap;
    }

    /// The medium answers again: what could not be read is looked at without waiting any longer.
    pub fn retry_now(&mut self, now: Micros) {
        for tail in self.lanes.iter_mut().flat_map(|l| &mut l.tails) {
            if tail.fault.is_some() {
                tail.retry_at = tail.retry_at.min(now);
                tail.fault_retry = FAULT_RETRY_MIN;
            }
        }
    }

    pub fn step(&mut self, now: Micros) -> Step {
        if self.flight != Flight::None {
            return Step::Idle;
        }
        if let Some((slot, ring)) = self.rest.take() {
            return self.poll(slot, ring);
        }
        if let Some(step) = self.letter(now) {
            return step;
        }
        loop {
            while let Some((slot, ring)) = self.round.pop_front() {
                let lane = &self.lanes[slot];
                let tail = &lane.tails[ring.index()];
                if lane.epoch == 0 || now < tail.retry_at {
                    continue;
                }
                return self.poll(slot, ring);
            }
            if let Some(step) = self.plan(now) {
                return step;
            }
        }
    }

    /// The round is over. `None`: a new one was filled, with something due now.
    fn plan(&mut self, now: Micros) -> Option<Step> {
        let tails = || self.lanes.iter().filter(|l| l.epoch != 0).flat_map(|l| &l.tails);
        if tails().next().is_none() {
            return Some(Step::Idle);
        }
        let retries = tails().filter(|t| t.trouble.is_some() || t.fault.is_some());
        let retry_at = retries.map(|t| t.retry_at.max(now)).min().unwrap_or(Micros::MAX);
        let letters = self.lanes.iter().filter(|l| l.letters_announced > l.letters_read);
        let letter_at = letters.map(|l| l.letter_retry_at).min().unwrap_or(Micros::MAX);
        let at = self.round_at.min(retry_at).min(letter_at);
        if at > now {
            return Some(Step::WaitUntil(at));
        }
        self.fill_round(now);
        if self.round.is_empty() {
            // All that is readable waits for its retry.
            return Some(Step::WaitUntil(retry_at.min(letter_at).max(now + 1)));
        }
        let idle = now.saturating_sub(self.traffic_at);
        self.round_at = match self.mode {
            _ if idle < self.times.spin && self.traffic_at != 0 => now,
            Mode::Standby { .. } if !self.times.standby_looks => Micros::MAX,
            Mode::Standby { interval } => now + interval.max(1),
            Mode::Active if idle < self.times.nap_long_after => {
                self.nap = self.times.nap;
                now + self.nap
            }
            Mode::Active => {
                self.nap = (self.nap * 2).min(self.times.nap_max);
                now + self.nap
            }
        };
        None
    }

    /// Express rings first. While records flow, the rings that carry them are looked at more often
    /// than the silent ones, since each silent look costs one read of latency: three times as often
    /// while they are small; while they are large, or a look costs something, every `silent_look`.
    fn fill_round(&mut self, now: Micros) {
        self.rounds += 1;
        let idle = len_u32(GUESS_BYTES_IDLE / self.o.superblock.geometry.block()).max(1);
        let hot =
            |t: &Tail| now.saturating_sub(t.delivered_at) < self.times.spin && t.delivered_at != 0;
        let tails = || self.lanes.iter().flat_map(|l| &l.tails);
        let small = tails().all(|t| !hot(t) || t.guess <= idle);
        let enough = if small && self.times.standby_looks {
            !self.rounds.is_multiple_of(4)
        } else {
            now.saturating_sub(self.wide_at) < self.times.silent_look
        };
        let narrow = enough && tails().any(hot);
        if !narrow {
            self.wide_at = now;
        }
        // Where a look costs something, standby leaves it to the table to announce records.
        let quiet = self.mode != Mode::Active && !self.times.standby_looks;
        for ring in Ring::BOTH {
            for (slot, lane) in self.lanes.iter().enumerate() {
                let tail = &lane.tails[ring.index()];
                let due = lane.epoch != 0 && tail.retry_at <= now;
                let waits = tail.behind() || tail.trouble.is_some() || tail.fault.is_some();
                let asked = waits || !quiet || hot(tail);
                if due && asked && (!narrow || hot(tail) || waits) {
                    self.round.push_back((slot, ring));
                }
            }
        }
    }

    fn poll(&mut self, slot: usize, ring: Ring) -> Step {
        let g = &self.o.superblock.geometry;
        let lane = &self.lanes[slot];
        let Some(base) = g.ring_offset(lane.node, self.o.node, ring) else {
            return Step::Idle;
        };
        let tail = &lane.tails[ring.index()];
        let (block, have) = (g.block(), tail.carry.len());
        let to_end = (g.ring_blocks(ring) - tail.next.place) as usize * block - have;
        let need = (tail.need as usize * block).saturating_sub(have);
        let len = need.max(tail.guess as usize * block).clamp(block, to_end);
        let offset = base + u64::from(tail.next.place) * block as u64 + have as u64;
        self.counters.polls += 1;
        let (from, to) = (lane.node, self.o.node);
        let (epoch, number) = (lane.epoch, tail.next.number);
        let record = RecordName { from, to, ring, epoch, number };
        self.flight = Flight::Poll(Poll { slot, ring, epoch, at: tail.next });
        Step::Do(Op::Read { offset, len, record: Some(record) })
    }

    fn letter(&mut self, now: Micros) -> Option<Step> {
        let announced = self.lanes.iter().position(|l| {
            l.epoch != 0 && l.letters_announced > l.letters_read && l.letter_retry_at <= now
        });
        let slot = announced.or_else(|| self.letter_unannounced(now))?;
        let g = &self.o.superblock.geometry;
        let lane = &self.lanes[slot];
        self.flight = Flight::Letter { slot, epoch: lane.epoch };
        let offset = g.mailbox_offset(lane.node, self.o.node)?;
        Some(Step::Do(Op::Read { offset, len: g.block(), record: None }))
    }

    /// Whose mailbox to look at although the table announces nothing.
    fn letter_unannounced(&mut self, now: Micros) -> Option<usize> {
        let idle = self.traffic_at == 0 || now.saturating_sub(self.traffic_at) >= self.times.spin;
        if self.mode != Mode::Active || !idle || now < self.letter_look_at {
            return None;
        }
        let n = self.lanes.len();
        let order = (0..n).map(|i| (self.letter_turn + i) % n);
        let slot = order.into_iter().find(|&s| {
            let l = &self.lanes[s];
            s != self.slot && l.epoch != 0 && l.letters_announced <= l.letters_read
        })?;
        self.letter_turn = slot + 1;
        self.letter_look_at = now + self.times.letter_look / n as u64;
        Some(slot)
    }

    pub fn complete(&mut self, now: Micros, result: Result<Bytes, IoFault>) {
        let flight = std::mem::replace(&mut self.flight, Flight::None);
        if let Err(fault) = &result {
            self.counters.faults += 1;
            self.facts.push_back(Fact::ReadFailed { fault: fault.clone() });
        }
        match flight {
            Flight::None => {}
            Flight::Letter { slot, epoch } if self.lanes[slot].epoch == epoch => {
                self.letter_read(now, slot, result.ok());
            }
            Flight::Poll(poll) => {
                let lane = &self.lanes[poll.slot];
                if (lane.epoch, lane.tails[poll.ring.index()].next) == (poll.epoch, poll.at) {
                    match result {
                        Ok(bytes) => self.poll_read(now, poll, &bytes),
                        Err(_) => self.poll_failed(now, poll),
                    }
                }
            }
            Flight::Letter { .. } => {}
        }
    }

    pub fn drain_facts(&mut self) -> impl Iterator<Item = Fact> + '_ {
        self.facts.drain(..)
    }

    fn letter_read(&mut self, now: Micros, slot: usize, bytes: Option<Bytes>) {
        let lane = &mut self.lanes[slot];
        let address = (self.o.superblock.uuid, lane.node, self.o.node);
        let message = bytes.as_ref().and_then(|b| mailbox::decode(b, address));
        let due = lane.letters_read + 1;
        match message {
            Some(m) if m.epoch == lane.epoch && m.counter >= due => {
                lane.letters_read = m.counter;
                lane.letter_trouble = None;
                self.facts.push_back(Fact::Mailbox { from: lane.node, bytes: m.body });
            }
            // It was not announced: nothing new, or not yet whole.
            _ if lane.letters_announced <= lane.letters_read => {
                if bytes.is_none() {
                    self.letter_look_at = now + FAULT_RETRY_MAX;
                }
            }
            _ => {
                lane.letter_retry_at = now + self.times.retry;
                let since = *lane.letter_trouble.get_or_insert(now);
                if bytes.is_none() {
                    lane.letter_retry_at = now + self.times.deadline;
                } else if now.saturating_sub(since) >= self.times.deadline {
                    // Damaged: the next message will overwrite it.
                    lane.letters_read = lane.letters_announced;
                    lane.letter_trouble = None;
                }
            }
        }
    }

    fn poll_read(&mut self, now: Micros, poll: Poll, bytes: &Bytes) {
        let g = &self.o.superblock.geometry;
        let block = g.block();
        let idle = len_u32(GUESS_BYTES_IDLE / block).max(1);
        let expected = self.expected(&poll);
        let tail = &mut self.lanes[poll.slot].tails[poll.ring.index()];
        tail.fault = None;
        tail.fault_retry = FAULT_RETRY_MIN;
        let carry = std::mem::take(&mut tail.carry);
        let cut = (tail.need as usize * block).saturating_sub(carry.len()).min(bytes.len());
        let first = match carry.is_empty() {
            true => bytes.clone(),
            false => self.pool.join(&carry, &bytes[..cut]),
        };
        let h = match expected.recognise(&first) {
            Found::Other { header } => {
                self.counters.stale += u64::from(header.is_some_and(|h| h.epoch < poll.epoch));
                tail.damaged = None;
                tail.need = 0;
                tail.guess = tail.guess.min((tail.guess / 2).max(idle));
                if tail.behind() {
                    self.trouble(now, poll);
                } else {
                    tail.trouble = None;
                }
                return;
            }
            Found::Impossible => return self.trouble(now, poll),
            // All of it was asked for: a record that is an object of its own was cut off.
            Found::Part { blocks } if tail.need == blocks => {
                self.counters.torn += 1;
                tail.damaged = Some(blocks);
                return self.trouble(now, poll);
            }
            Found::Part { blocks } => {
                tail.need = blocks;
                self.rest = Some((poll.slot, poll.ring));
                return;
            }
            Found::Whole(h) => h,
        };
        let Some(frames) = opened(&first, &h) else {
            if !carry.is_empty() {
                // Its beginning may have been read while it was being written: all of it anew.
                tail.need = h.blocks;
                self.rest = Some((poll.slot, poll.ring));
                return;
            }
            self.counters.torn += 1;
            tail.damaged = Some(h.blocks);
            return self.trouble(now, poll);
        };
        let offset = if carry.is_empty() { h.blocks as usize * block } else { cut };
        self.deliver(now, &expected, &poll, &h, frames);
        if h.kind == Kind::Data {
            self.deliver_more(now, poll, h.blocks, bytes, offset);
        }
    }

    /// What a poll looks for.
    fn expected(&self, poll: &Poll) -> Expected {
        let g = &self.o.superblock.geometry;
        Expected {
            address: Address {
                uuid: self.o.superblock.uuid,
                from: self.lanes[poll.slot].node,
                to: self.o.node,
                ring: poll.ring,
            },
            epoch: poll.epoch,
            at: poll.at,
            ring_blocks: g.ring_blocks(poll.ring),
            block: g.block(),
        }
    }

    /// The records behind the first one, as far as they were read with it; and how much to read
    /// next time.
    fn deliver_more(
        &mut self,
        now: Micros,
        first: Poll,
        blocks: u32,
        bytes: &Bytes,
        mut offset: usize,
    ) {
        let block = self.o.superblock.geometry.block();
        let max = len_u32(RECORD_BYTES_MAX / block);
        let idle = len_u32(GUESS_BYTES_IDLE / block).max(1);
        let mut guess = blocks;
        loop {
            let tail = &self.lanes[first.slot].tails[first.ring.index()];
            let poll = Poll { at: tail.next, ..first };
            let expected = self.expected(&poll);
            let tail = &mut self.lanes[first.slot].tails[first.ring.index()];
            // What lies behind the end of the ring was not read.
            let Some(rest) = (poll.at.place != 0).then(|| bytes.get(offset..)).flatten() else {
                break;
            };
            if rest.is_empty() {
                // All of it was good: the writer is ahead of us.
                guess = guess.max(tail.guess) * 2;
                break;
            }
            let h = match expected.recognise(rest) {
                Found::Whole(h) => h,
                Found::Part { blocks } => {
                    tail.need = blocks;
                    if rest.len() >= CARRY_BYTES_MIN {
                        tail.carry = bytes.slice(offset..);
                    }
                    guess = guess.max(tail.guess);
                    break;
                }
                Found::Other { .. } | Found::Impossible => {
                    // Records of a busy writer differ a little in length, and to read some more
                    // costs less than to read twice.
                    guess = if guess > idle { guess.next_multiple_of(2 * idle) } else { guess };
                    break;
                }
            };
            // Not whole yet, or damaged: the poll that looks for it alone will tell.
            let Some(frames) = opened(&bytes.slice(offset..), &h) else { break };
            self.deliver(now, &expected, &poll, &h, frames);
            offset += h.blocks as usize * block;
            guess += if h.kind == Kind::Data { h.blocks } else { 0 };
        }
        self.lanes[first.slot].tails[first.ring.index()].guess = guess.min(max);
    }

    fn deliver(
        &mut self,
        now: Micros,
        expected: &Expected,
        poll: &Poll,
        h: &Header,
        frames: Vec<Bytes>,
    ) {
        let lane = &mut self.lanes[poll.slot];
        let tail = &mut lane.tails[poll.ring.index()];
        tail.go_to(expected.behind(h));
        tail.delivered_at = now.max(1);
        self.traffic_at = now.max(1);
        self.nap = self.times.nap;
        self.round_at = now;
        let (from, ring, number) = (lane.node, poll.ring, poll.at.number);
        if h.kind == Kind::Data {
            self.counters.records += 1;
            self.counters.bytes += h.bytes() as u64;
            self.facts.push_back(Fact::Frames { from, ring, number, frames });
        }
        self.facts.push_back(Fact::Cursor { from, ring, number });
    }

    /// The expected record is not to be had; perhaps it never will be.
    fn trouble(&mut self, now: Micros, poll: Poll) {
        let tail = &mut self.lanes[poll.slot].tails[poll.ring.index()];
        tail.retry_at = now + self.times.retry;
        let since = *tail.trouble.get_or_insert(now);
        if now.saturating_sub(since) < self.times.deadline {
            return;
        }
        if tail.behind() {
            self.give_up(poll);
        } else if tail.damaged.is_some() && !tail.reported {
            tail.reported = true;
            let from = self.lanes[poll.slot].node;
            let (ring, number) = (poll.ring, poll.at.number);
            self.facts.push_back(Fact::CorruptRecord { from, ring, number });
        }
    }

    fn poll_failed(&mut self, now: Micros, poll: Poll) {
        let tail = &mut self.lanes[poll.slot].tails[poll.ring.index()];
        if tail.fault.is_none() {
            tail.tables_since_fault = 0;
        }
        let since = *tail.fault.get_or_insert(now);
        tail.retry_at = now + tail.fault_retry;
        tail.fault_retry = (tail.fault_retry * 2).min(FAULT_RETRY_MAX);
        tail.guess = 1;
        tail.need = 0;
        tail.carry = Bytes::new();
        if tail.behind()
            && tail.tables_since_fault >= 2
            && now.saturating_sub(since) >= self.times.deadline
        {
            tail.fault = None;
            self.give_up(poll);
        }
    }

    /// Goes on behind the damaged record, or at the head announced.
    fn give_up(&mut self, poll: Poll) {
        let ring_blocks = self.o.superblock.geometry.ring_blocks(poll.ring);
        let lane = &mut self.lanes[poll.slot];
        let tail = &mut lane.tails[poll.ring.index()];
        let next = match tail.damaged {
            Some(blocks) => {
                Head { number: poll.at.number + 1, place: (poll.at.place + blocks) % ring_blocks }
            }
            None => tail.announced,
        };
        tail.go_to(next);
        let (from, ring, first, last) = (lane.node, poll.ring, poll.at.number, next.number - 1);
        self.counters.missing = self.counters.missing.saturating_add(last + 1 - first);
        self.facts.push_back(Fact::Missing { from, ring, first, last });
        self.facts.push_back(Fact::Cursor { from, ring, number: last });
    }
}

/// The frames of a record that starts `bytes`; `None` when its body is not (yet) what its header
/// promises.
fn opened(bytes: &Bytes, h: &Header) -> Option<Vec<Bytes>> {
    match h.kind {
        Kind::Wrap => Some(Vec::new()),
        Kind::Data => record::open(bytes, h),
    }
}

/// A read that came back shorter than asked.
#[must_use]
pub fn short_read(offset: u64, want: usize, got: usize) -> IoFault {
    let detail =
        format!("read of {want} bytes at {offset} returned {got}: the medium is too short");
    IoFault::new(IoFaultKind::ShortRead, detail)
}
