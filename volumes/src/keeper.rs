//! The Keeper: holds this node's place in the table, and looks whether it is still ours.
//!
//! ```text
//!   Watch -- own entry stands still for three of its beats, or is blank, or said goodbye
//!     |  `-- it advances twice: somebody lives with our id -> refused
//!   Claim -> write a greater epoch, flush, wait one beat (the longer of ours and of the one who
//!     |      held the place: its permit lasts that long), read back ours?
//!     |  `-- not ours: somebody claimed at the same moment -> refused
//!   Beat  -> read superblock and table (one read), renew the permit, write own entry -> wait
//!     |  `-- foreign epoch, other generation -> fenced, for good; other volume -> until ours is back
//!   Goodbye -> one last entry that says so
//! ```
//!
//! Awkward cases: a failed beat is written again with the same number, into the same block, so
//! that the newest whole entry is never at risk; the first superblock may be damaged while the
//! last one is whole; an entry that is older than ours may be a stale read, so it takes three in
//! a row, for two seconds, to conclude that the volume was rolled back (none renews the permit),
//! which ends this Keeper, and whoever drives it may seat another one with a greater epoch; storage
//! that vanishes is retried with back-off for ever.

use crate::buffer::Pool;
use crate::canary::{Bug, planted};
use crate::event::{Fact, FenceReason, IoFault, IoFaultKind, Micros, Op, Reason, Ring, Step};
use crate::fence::{self, Look, Misses, Permit};
use crate::format::superblock::{Copy, Superblock};
use crate::format::table::{Cell, Entry, Head, Table};
use crate::pace::{Class, Times, watched_beat};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// Beats of its own that a silent entry is watched for.
pub const WATCH_BEATS: u64 = 3;
/// A dead daemon's last beat may land late, once; whoever beats again lives.
const LIVES_AFTER: u32 = 2;
const RETRY_MIN: Micros = 10_000;
const RETRY_MAX: Micros = 1_000_000;
/// The low bits of an epoch are random, so that two clones of one volume differ.
pub const EPOCH_RANDOM_BITS: u32 = 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    #[error(
        "node id {node} is in use on this volume (epoch {epoch}, it beat while we watched): \
         stop the other daemon or give this one another id"
    )]
    NodeIdInUse { node: u8, epoch: u64 },
}

#[derive(Debug, Clone)]
pub struct KeeperOptions {
    pub node: u8,
    pub superblock: Superblock,
    /// The new epoch is greater than this and than all the volume knows.
    pub epoch: u64,
    /// Random; low bits go into the epoch.
    pub nonce: u64,
    pub interval: Micros,
    /// Wall clock (Unix us) at monotonic time 0; for display.
    pub wall_unix_us_at_zero: u64,
    pub permit: Arc<Permit>,
    pub pool: Pool,
}

/// The epoch that follows `seen`.
#[must_use]
pub fn next_epoch(seen: u64, random: u64) -> u64 {
    let count = (seen >> EPOCH_RANDOM_BITS).saturating_add(1) << EPOCH_RANDOM_BITS;
    count | (random & ((1 << EPOCH_RANDOM_BITS) - 1))
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Watch { seen: Option<(u64, u64)>, until: Micros, next: Micros, moved: u32 },
    ClaimWrite,
    ClaimFlush,
    Settle { until: Micros },
    Beat,
    WriteEntry,
    Stopped(Reason),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Flight {
    None,
    Table { at: Micros },
    LastCopy { at: Micros, region: Bytes },
    Entry { at: Micros, goodbye: bool },
    Flush,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    epoch: u64,
    beat: u64,
    went_back_to: (u64, u64),
    left: bool,
    elsewhere: bool,
    read: [u64; 2],
}

/// Public methods: getters, commands (`set_*`, `beat_now`, `goodbye`), then the machine's `step`,
/// `complete`, `drain_facts`, `take_table`.
#[derive(Debug)]
pub struct Keeper {
    o: KeeperOptions,
    times: Times,
    slot: usize,
    phase: Phase,
    flight: Flight,
    epoch: u64,
    beat: u64,
    next_beat_at: Micros,
    last_beat_at: Micros,
    goodbye: bool,
    /// Beat of whoever held our place before us: its permit may last that long.
    followed: Micros,
    /// The interval as ordered.
    asked: Micros,
    /// How long looks at the table took at worst, lately.
    slow_look: Micros,
    /// The next entry announces a longer interval, and may follow a look as old as that.
    announcing: bool,
    cells: Vec<Cell>,
    known: Vec<Known>,
    seen_a_table: bool,
    misses: Misses,
    retry_at: Micros,
    retry: Micros,
    /// The first superblock was damaged in this region: the last one is read next.
    other_copy: Option<(Micros, Bytes)>,
    table: Option<Arc<Table>>,
    facts: VecDeque<Fact>,
}

impl Keeper {
    /// `None`: the volume has no such node.
    #[must_use]
    pub fn new(o: KeeperOptions) -> Option<Self> {
        let slots = o.superblock.geometry.nodes.len();
        let slot = o.superblock.geometry.slot(o.node)?;
        let times = Class::Local.times();
        let interval = times.beat(o.interval, 0, slots);
        o.permit.set_interval(interval);
        Some(Self {
            times,
            slot,
            phase: Phase::Watch { seen: None, until: 0, next: 0, moved: 0 },
            flight: Flight::None,
            epoch: 0,
            beat: 0,
            next_beat_at: 0,
            last_beat_at: 0,
            goodbye: false,
            followed: 0,
            asked: o.interval,
            slow_look: 0,
            announcing: false,
            cells: vec![Cell::default(); slots],
            known: vec![Known::default(); slots],
            seen_a_table: false,
            misses: Misses::default(),
            retry_at: 0,
            retry: RETRY_MIN,
            other_copy: None,
            table: None,
            facts: VecDeque::new(),
            o: KeeperOptions { interval, ..o },
        })
    }

    /// For a medium that is not a disk of this host. To be called before the first step.
    #[must_use]
    pub fn timed(mut self, times: Times) -> Self {
        self.times = times;
        self.set_interval(self.asked);
        self
    }

    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.epoch != 0 && matches!(self.phase, Phase::Beat | Phase::WriteEntry)
    }

    /// Why it will never do anything again, if so.
    #[must_use]
    pub fn stopped(&self) -> Option<Reason> {
        match &self.phase {
            Phase::Stopped(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// Takes effect at once: a shorter interval brings the next beat forward. A longer one leaves
    /// it where it was announced, and it announces the one after.
    pub fn set_interval(&mut self, asked: Micros) {
        self.asked = asked;
        let interval = self.times.beat(asked, self.slow_look, self.known.len());
        if interval != asked {
            self.facts.push_back(Fact::BeatsEvery { interval });
        }
        self.o.interval = interval;
        self.announcing = false;
        self.o.permit.set_interval(self.o.interval);
        self.next_beat_at = self.next_beat_at.min(self.last_beat_at + self.o.interval);
    }

    /// Beats keep their distance from how long a look takes: a permit that is spent before the look
    /// comes back lets nobody write, not even the entry that would announce longer ones. So that
    /// entry alone may follow a look as old as the beats it announces; longer permits come after
    /// it. (Were our place taken between that look and this entry, ours would hide the claimant's
    /// for a beat: it sees that at its next look, and claims again above us.)
    fn follow(&mut self, took: Micros) {
        self.slow_look = took.max(self.slow_look - self.slow_look / 8);
        let interval = self.times.beat(self.asked, self.slow_look, self.known.len());
        let usual = self.times.beat(self.asked, 0, self.known.len());
        if interval < self.o.interval * 3 / 4 || interval == usual && usual < self.o.interval {
            self.set_interval(self.asked);
            if interval == self.asked {
                self.facts.push_back(Fact::BeatsEvery { interval });
            }
        } else if interval > self.o.interval * 5 / 4 {
            self.o.interval = interval;
            self.announcing = true;
            self.facts.push_back(Fact::BeatsEvery { interval });
        }
    }

    /// Beat as soon as possible (a mailbox was written, suspicion arose).
    pub fn beat_now(&mut self) {
        self.next_beat_at = 0;
    }

    /// The next beat is the last one and says so.
    pub fn goodbye(&mut self) {
        self.goodbye = true;
        self.next_beat_at = 0;
    }

    /// What the next entries announce about what we wrote for that node.
    pub fn set_heads(&mut self, to: u8, heads: [Head; 2], letters: u64) {
        if let Some(slot) = self.o.superblock.geometry.slot(to) {
            self.cells[slot].heads = heads;
            self.cells[slot].mailbox = letters;
        }
    }

    /// What the next entries say about what we read from that node.
    pub fn set_cursors(&mut self, from: u8, epoch: u64, cursors: [u64; 2]) {
        if let Some(slot) = self.o.superblock.geometry.slot(from) {
            self.cells[slot].reads_epoch = epoch;
            self.cells[slot].cursors = cursors;
        }
    }

    /// The table as last read, once, when attached.
    pub fn take_table(&mut self) -> Option<Arc<Table>> {
        self.table.take()
    }

    pub fn drain_facts(&mut self) -> impl Iterator<Item = Fact> + '_ {
        self.facts.drain(..)
    }

    pub fn step(&mut self, now: Micros) -> Step {
        if self.flight != Flight::None {
            return Step::Idle;
        }
        if let Some((at, region)) = self.other_copy.take() {
            let g = &self.o.superblock.geometry;
            self.flight = Flight::LastCopy { at, region };
            return Step::Do(Op::Read { offset: g.last_offset(), len: g.block(), record: None });
        }
        if let Phase::Stopped(reason) = &self.phase {
            return Step::Stopped(reason.clone());
        }
        if self.o.permit.fenced() {
            // The Writer looked and saw it; its fact says why.
            return Step::Idle;
        }
        if now < self.retry_at {
            return Step::WaitUntil(self.retry_at);
        }
        match self.phase {
            Phase::Watch { next, .. } if now < next => Step::WaitUntil(next),
            Phase::Settle { until } if now < until => Step::WaitUntil(until),
            Phase::Beat if now < self.next_beat_at => Step::WaitUntil(self.next_beat_at),
            Phase::Watch { .. } | Phase::Settle { .. } | Phase::Beat => self.read_table(now),
            Phase::ClaimWrite => self.write_entry(now),
            Phase::ClaimFlush => {
                self.flight = Flight::Flush;
                Step::Do(Op::Flush)
            }
            Phase::WriteEntry if self.may_write(now) => self.write_entry(now),
            Phase::WriteEntry | Phase::Stopped(_) => self.read_table(now),
        }
    }

    fn may_write(&self, now: Micros) -> bool {
        let permit = &self.o.permit;
        permit.valid(now) || self.announcing && permit.valid_for(now, self.o.interval)
    }

    fn read_table(&mut self, now: Micros) -> Step {
        self.flight = Flight::Table { at: now };
        Step::Do(Op::Read {
            offset: 0,
            len: self.o.superblock.geometry.table_region_bytes(),
            record: None,
        })
    }

    fn write_entry(&mut self, now: Micros) -> Step {
        let g = &self.o.superblock.geometry;
        let entry = Entry {
            node: self.o.node,
            goodbye: self.goodbye,
            generation: self.o.superblock.generation,
            epoch: self.epoch,
            nonce: self.o.nonce,
            beat: self.beat + 1,
            interval_us: self.o.interval,
            wall_unix_us: self.o.wall_unix_us_at_zero.saturating_add(now),
            cells: self.cells.clone(),
        };
        let mut buf = self.o.pool.take_len(g.block());
        entry.encode(self.o.superblock.uuid, buf.as_mut());
        self.flight = Flight::Entry { at: now, goodbye: self.goodbye };
        Step::Do(Op::Write { offset: g.entry_offset(self.slot, entry.copy()), data: buf.freeze() })
    }

    pub fn complete(&mut self, now: Micros, result: Result<Bytes, IoFault>) {
        let flight = std::mem::replace(&mut self.flight, Flight::None);
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(fault) => {
                let writing = matches!(flight, Flight::Entry { .. } | Flight::Flush);
                self.facts.push_back(if writing {
                    Fact::WriteFailed { fault }
                } else {
                    Fact::ReadFailed { fault }
                });
                if matches!(self.phase, Phase::ClaimWrite | Phase::ClaimFlush) {
                    // The medium may be another one when it answers again: look first.
                    self.phase = Phase::Watch { seen: None, until: 0, next: 0, moved: 0 };
                }
                return self.back_off(now);
            }
        };
        match flight {
            Flight::None => {}
            Flight::Table { at } => self.table_read(now, at, bytes),
            Flight::LastCopy { at, region } => {
                match fence::check_superblock(&bytes, Copy::Last, &self.o.superblock) {
                    None => self.table_checked(now, at, &region),
                    Some(look) => self.refused(now, look),
                }
            }
            Flight::Entry { at, goodbye } => self.entry_written(now, at, goodbye),
            Flight::Flush => {
                self.recovered();
                self.phase = Phase::Settle { until: now + self.o.interval.max(self.followed) };
            }
        }
    }

    fn back_off(&mut self, now: Micros) {
        self.retry_at = now + self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    fn recovered(&mut self) {
        if self.retry != RETRY_MIN {
            self.retry = RETRY_MIN;
            self.retry_at = 0;
            self.facts.push_back(Fact::Recovered);
        }
    }

    fn stop(&mut self, reason: Reason) {
        match &reason {
            Reason::Fenced(why) => {
                self.o.permit.fence();
                self.facts.push_back(Fact::Fenced { why: why.clone() });
            }
            Reason::ClaimRefused(error) => {
                self.o.permit.fence();
                self.facts.push_back(Fact::ClaimRefused { error: error.clone() });
            }
            Reason::Goodbye => self.o.permit.fence(),
        }
        self.phase = Phase::Stopped(reason);
    }

    fn refused(&mut self, now: Micros, look: Look) {
        match look {
            Look::Foreign(why @ FenceReason::OtherVolume { .. }) => {
                // Another volume lies where ours was. Nothing is written there; ours may return.
                self.o.permit.revoke();
                self.facts.push_back(Fact::Fenced { why });
                self.back_off(now);
            }
            Look::Foreign(why) => self.stop(Reason::Fenced(why)),
            Look::Unreadable(e) => {
                let fault = IoFault::new(IoFaultKind::Other, format!("both superblocks: {e}"));
                self.facts.push_back(Fact::ReadFailed { fault });
                self.back_off(now);
            }
            Look::Ours | Look::Older { .. } => self.back_off(now),
        }
    }

    fn table_read(&mut self, now: Micros, at: Micros, region: Bytes) {
        match fence::check_superblock(&region, Copy::First, &self.o.superblock) {
            None => self.table_checked(now, at, &region),
            Some(Look::Unreadable(_)) => {
                self.other_copy = Some((at, region));
            }
            Some(look) => self.refused(now, look),
        }
    }

    fn table_checked(&mut self, now: Micros, at: Micros, region: &[u8]) {
        let table = Table::decode(region, &self.o.superblock);
        match self.phase {
            Phase::Watch { seen, until, moved, .. } => {
                self.watched(now, &table, seen, until, moved);
            }
            Phase::Settle { .. } => self.read_back(now, at, &table),
            Phase::Beat | Phase::WriteEntry => self.beat_read(now, at, table),
            _ => {}
        }
    }

    fn watched(
        &mut self,
        now: Micros,
        table: &Table,
        seen: Option<(u64, u64)>,
        until: Micros,
        moved: u32,
    ) {
        self.recovered();
        let Some(own) = table.get(self.slot).filter(|e| !e.goodbye) else {
            return self.claim(table);
        };
        let at = (own.epoch, own.beat);
        let beat = watched_beat(own.interval_us);
        // Back in time is a roll-back or a stale read, and no sign of life.
        let moved = moved + u32::from(seen.is_some_and(|before| at > before));
        if moved >= LIVES_AFTER {
            let (node, epoch) = (self.o.node, own.epoch);
            return self.stop(Reason::ClaimRefused(ClaimError::NodeIdInUse { node, epoch }));
        }
        if seen == Some(at) && now >= until {
            return self.claim(table);
        }
        let until = if seen == Some(at) { until } else { now + WATCH_BEATS * beat };
        self.phase = Phase::Watch { seen: Some(at), until, next: now + beat / 2, moved };
    }

    fn claim(&mut self, table: &Table) {
        let held = table.get(self.slot).filter(|e| !e.goodbye);
        self.followed = held.map_or(0, |e| watched_beat(e.interval_us));
        let own = table.get(self.slot).map_or(0, |e| e.epoch);
        let told = table.entries.iter().flatten().filter_map(|e| e.cells.get(self.slot));
        let told = told.map(|c| c.reads_epoch).max().unwrap_or(0);
        self.epoch = next_epoch(self.o.epoch.max(own).max(told), self.o.nonce);
        if planted(Bug::SameEpoch) && own != 0 {
            self.epoch = own;
        }
        self.beat = table.get(self.slot).map_or(0, |e| e.beat);
        self.phase = Phase::ClaimWrite;
    }

    fn read_back(&mut self, now: Micros, at: Micros, table: &Table) {
        match fence::check_entry(table, self.slot, self.epoch, self.o.nonce) {
            Look::Ours => {
                self.recovered();
                self.misses.clear();
                self.o.permit.grant(self.epoch, self.o.nonce, at);
                self.facts.push_back(Fact::Attached { epoch: self.epoch });
                self.last_beat_at = now;
                self.next_beat_at = now;
                self.phase = Phase::Beat;
            }
            Look::Foreign(FenceReason::ForeignEpoch { epoch }) => {
                let node = self.o.node;
                self.stop(Reason::ClaimRefused(ClaimError::NodeIdInUse { node, epoch }));
            }
            // Our write got lost, or the read is stale: claim again.
            _ => {
                self.back_off(now);
                self.phase = Phase::ClaimWrite;
            }
        }
    }

    fn beat_read(&mut self, now: Micros, at: Micros, table: Table) {
        match fence::check_entry(&table, self.slot, self.epoch, self.o.nonce) {
            Look::Ours => {}
            Look::Older { found } => {
                if self.misses.add(now) {
                    let ours = self.epoch;
                    return self.stop(Reason::Fenced(FenceReason::RolledBack { ours, found }));
                }
                return self.back_off(now);
            }
            Look::Foreign(why) => return self.stop(Reason::Fenced(why)),
            Look::Unreadable(_) => return self.back_off(now),
        }
        self.misses.clear();
        self.recovered();
        self.o.permit.renew(at);
        self.follow(now.saturating_sub(at));
        self.facts.push_back(Fact::TableRead { latency: now.saturating_sub(at) });
        let own = self.slot;
        for slot in (0..self.known.len()).filter(|&s| s != own) {
            if let Some(entry) = table.get(slot) {
                self.heard(slot, entry);
            }
        }
        self.seen_a_table = true;
        self.table = Some(Arc::new(table));
        self.phase = Phase::WriteEntry;
    }

    fn heard(&mut self, slot: usize, e: &Entry) {
        let k = &mut self.known[slot];
        let node = e.node;
        let (was, is) = ((k.epoch, k.beat), (e.epoch, e.beat));
        if is < was {
            if k.went_back_to != is {
                k.went_back_to = is;
                let (known_epoch, known_beat) = was;
                let (epoch, beat) = is;
                self.facts.push_back(Fact::PeerWentBack {
                    node,
                    epoch,
                    beat,
                    known_epoch,
                    known_beat,
                });
            }
            return;
        }
        if e.epoch != k.epoch {
            k.read = [0; 2];
        }
        (k.epoch, k.beat) = is;
        // The first sight of an entry is no sign of life: it may be years old.
        let sends = e.sends_to(self.slot);
        if k.elsewhere == sends {
            k.elsewhere = !sends;
            if !sends {
                self.facts.push_back(Fact::PeerSendsElsewhere { node });
            }
        }
        // A beat beside which no frame could come is no proof of a path.
        if is > was && self.seen_a_table && !e.goodbye && sends {
            let interval = e.interval_us;
            self.facts.push_back(Fact::PeerBeat { node, epoch: e.epoch, beat: e.beat, interval });
        }
        if e.goodbye != k.left {
            k.left = e.goodbye;
            if e.goodbye {
                self.facts.push_back(Fact::PeerLeft { node, epoch: e.epoch });
            }
        }
        if let Some(cell) = e.cells.get(self.slot).filter(|c| c.reads_epoch == self.epoch) {
            for ring in Ring::BOTH {
                let number = cell.cursors[ring.index()];
                if number > k.read[ring.index()] {
                    k.read[ring.index()] = number;
                    self.facts.push_back(Fact::PeerRead { node, ring, number });
                }
            }
        }
    }

    fn entry_written(&mut self, now: Micros, at: Micros, goodbye: bool) {
        self.beat += 1;
        self.recovered();
        if self.phase == Phase::ClaimWrite {
            self.phase = Phase::ClaimFlush;
            return;
        }
        self.facts.push_back(Fact::BeatWritten { latency: now.saturating_sub(at) });
        if goodbye {
            return self.stop(Reason::Goodbye);
        }
        self.last_beat_at = at;
        // From when the write began: a slow medium spreads beats out, never into a burst.
        // One that was under way when the goodbye was said does not say it.
        self.next_beat_at = if self.goodbye { now } else { at + self.o.interval };
        self.phase = Phase::Beat;
        if std::mem::take(&mut self.announcing) {
            self.o.permit.set_interval(self.o.interval);
        }
    }
}
