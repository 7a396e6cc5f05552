//! The Replicator: what nodes write on one volume, carried to its replica, record by record.
//!
//! ```text
//!   source                                                               destination
//!   look -----> heads, epochs, counters                  look -> mark, entries, our permit
//!   poll -----> whole records only --.                                        |
//!   mailbox --> whole messages ------+--> bounded queue --> records, mailboxes, then the entry
//!                                                           that announces what has arrived
//! ```
//!
//! One operation at most is in flight per side, so reading ahead and writing overlap, and a side
//! that hangs does not stop the looks at the other one. What is copied: entry, mailboxes and
//! rings of each node that *sends* on the source. A node that reads on the destination writes its
//! own entry there and is left alone.
//!
//! Awkward cases:
//! * The cursor is the destination itself: its entry, and behind the head announced there whatever
//!   records follow one another. A restart needs nothing else.
//! * An entry never announces more than has arrived. While copying is behind it announces less,
//!   under a beat between the last one and the newest, so that beats keep coming and the newest
//!   beat is left for the whole truth.
//! * A ring place that was used again before it was copied is lost here: the oldest record that is
//!   still there is looked for, and what lies between is `missing`.
//! * Nothing goes backwards: a number or an entry is written only above what was found there. What
//!   contradicts that (a source rolled back, a destination rolled back, another replicator, a
//!   node that lives on the wrong side) is refused by name after looking again, never overwritten.

mod destination;
mod entry;
mod lanes;
mod round;
mod search;
mod source;
mod standing;
#[cfg(test)]
mod tests;
mod words;

use crate::buffer::Pool;
use crate::event::{IoFault, Micros, Op, Step};
use crate::format::stamp::Stamp;
use crate::format::superblock::{Copy, FormatError, Superblock};
use crate::pace::{Class, Times};
use bytes::Bytes;
use lanes::{Letter, Node, Run};
use round::Phase;
use serde::Serialize;
use source::Polling;
use std::collections::VecDeque;
pub use words::{Lag, Notice, Refusal, ReplicaCounters};

const REFUSED_LOOK: Micros = 500_000;
const RETRY_MIN: Micros = 1_000;
const RETRY_MAX: Micros = 250_000;
/// Read and not yet written; with one read under way on top.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// Where an operation is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Source,
    Destination,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 1,
        }
    }
}

impl Side {
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// When to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// All there is, then stop.
    Once,
    /// As it comes.
    Follow,
    /// All there is, at this interval from beginning to beginning.
    Every(Micros),
}

#[derive(Debug, Clone)]
pub struct ReplicatorOptions {
    /// The source's.
    pub superblock: Superblock,
    /// What the media of the [`Side`]s are like.
    pub classes: [Class; 2],
    pub pace: Pace,
    pub bytes_per_s: Option<u64>,
    /// Random, not 0: tells our entries from another replicator's.
    pub nonce: u64,
    /// Which running kernel we are on, when a host lock keeps others out there; 0 otherwise.
    pub host: u64,
    /// Wall clock (Unix us) at monotonic time 0; for display.
    pub wall_unix_us_at_zero: u64,
    pub pool: Pool,
}

#[derive(Debug)]
enum Flight {
    Look { at: Micros },
    LastCopy { at: Micros, region: Bytes },
    Source(source::Flight),
    Destination(destination::Flight),
}

#[derive(Debug, Default)]
struct Half {
    flight: Option<Flight>,
    /// When the last good look was issued; 0: none since the medium was opened.
    looked_at: Micros,
    look_latency: Micros,
    next_look: Micros,
    /// The first superblock was damaged in this region: the last one is read next.
    last_copy: Option<(Micros, Bytes)>,
    retry_at: Micros,
    retry: Micros,
    failing: Option<String>,
    refusal: Option<Refusal>,
}

/// Public methods: getters, the commands `reopened` and `wake`, then the machine's `step`,
/// `complete`, `drain_notices`, each for one side.
#[derive(Debug)]
pub struct Replicator {
    o: ReplicatorOptions,
    halves: [Half; 2],
    nodes: Vec<Node>,
    /// By ring: express goes first.
    queue: [VecDeque<Run>; 2],
    queue_bytes: usize,
    letters: VecDeque<Letter>,
    polling: Polling,
    /// A write under way, or to be repeated byte for byte.
    work: Option<destination::Work>,
    /// Bytes that may be written now; negative while a large record is paid off.
    allowance: i64,
    allowance_at: Micros,
    phase: Phase,
    /// Every sender found was placed once: from then on a refusal is waited out.
    established: bool,
    notices: VecDeque<Notice>,
    counters: ReplicaCounters,
}

impl Replicator {
    #[must_use]
    pub fn new(o: ReplicatorOptions) -> Self {
        let nodes = &o.superblock.geometry.nodes;
        let nodes = nodes.iter().map(|&id| Node::new(id)).collect();
        Self {
            halves: Default::default(),
            nodes,
            queue: Default::default(),
            queue_bytes: 0,
            letters: VecDeque::new(),
            polling: Polling::new(o.classes[Side::Source.index()].times()),
            work: None,
            allowance: 0,
            allowance_at: 0,
            phase: Phase::new(o.pace),
            established: false,
            notices: VecDeque::new(),
            counters: ReplicaCounters::default(),
            o,
        }
    }

    fn times(&self, side: Side) -> Times {
        self.o.classes[side.index()].times()
    }

    #[must_use]
    pub fn counters(&self) -> ReplicaCounters {
        self.counters
    }

    /// What stands in the way now.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.halves.iter().find_map(|h| h.refusal.as_ref())
    }

    /// The last failure of a side that has not worked since.
    #[must_use]
    pub fn failing(&self, side: Side) -> Option<&str> {
        self.halves[side.index()].failing.as_deref()
    }

    /// `Some` when there will never be anything to do again: how it ended.
    #[must_use]
    pub fn finished(&self) -> Option<Result<(), &Refusal>> {
        match &self.phase {
            Phase::Finished(end) => Some(end.as_ref().copied()),
            _ => None,
        }
    }

    /// Between two rounds of [`Pace::Every`].
    #[must_use]
    pub fn resting(&self) -> bool {
        matches!(self.phase, Phase::Rest { .. })
    }

    /// Whether every sender of the source was found a place at the destination.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// The nodes whose lanes are copied.
    pub fn copied_nodes(&self) -> impl Iterator<Item = u8> + '_ {
        self.nodes.iter().filter(|n| n.is_copied()).map(|n| n.id)
    }

    #[must_use]
    pub fn lag(&self, now: Micros) -> Lag {
        let g = &self.o.superblock.geometry;
        let mut lag = Lag::default();
        let mut oldest = now;
        for tail in self.nodes.iter().filter(|n| n.is_copied()).flat_map(Node::tails) {
            let known = tail.known();
            let records = known.number.saturating_sub(tail.done.number);
            if records == 0 {
                continue;
            }
            lag.records += records;
            let ring_blocks = g.ring_blocks(tail.ring);
            let blocks = (known.place + ring_blocks - tail.done.place) % ring_blocks;
            let blocks = if blocks == 0 { ring_blocks } else { blocks };
            lag.bytes += u64::from(blocks) * u64::from(g.block_bytes);
            oldest = oldest.min(tail.behind_since().unwrap_or(now));
        }
        let queued = self.queue.iter().filter_map(VecDeque::front).map(|r| r.noticed);
        let working = self.work.as_ref().and_then(destination::Work::noticed);
        oldest = queued.chain(working).fold(oldest, Micros::min);
        lag.us = now.saturating_sub(oldest);
        lag
    }

    /// That side's medium was opened anew: it is looked at before anything else happens there.
    pub fn reopened(&mut self, side: Side) {
        let half = &mut self.halves[side.index()];
        half.looked_at = 0;
        half.next_look = 0;
    }

    /// Look at the source now (somebody knows that there is news).
    pub fn wake(&mut self) {
        self.halves[Side::Source.index()].next_look = 0;
        self.polling.wake();
    }

    /// Whether the thread of that side need not sleep on: a hint, for who just moved the other side.
    #[must_use]
    pub fn wants(&self, side: Side, now: Micros) -> bool {
        let half = &self.halves[side.index()];
        let work = match side {
            Side::Source => true,
            Side::Destination => {
                let queued = self.queue.iter().any(|q| !q.is_empty()) || !self.letters.is_empty();
                let entry = || half.refusal.is_none() && self.next_entry(now).is_ok();
                queued || now >= half.next_look || entry()
            }
        };
        half.flight.is_none() && work || self.finished().is_some()
    }

    pub fn drain_notices(&mut self) -> impl Iterator<Item = Notice> + '_ {
        self.notices.drain(..)
    }

    pub fn step(&mut self, now: Micros, side: Side) -> Step {
        let g = &self.o.superblock.geometry;
        if let Some(step) = self.phase.step(now) {
            return step;
        }
        let times = self.times(side);
        let half = &mut self.halves[side.index()];
        if half.flight.is_some() {
            return Step::Idle;
        }
        if let Some((at, region)) = half.last_copy.take() {
            half.flight = Some(Flight::LastCopy { at, region });
            return Step::Do(Op::Read { offset: g.last_offset(), len: g.block(), record: None });
        }
        if now < half.retry_at {
            return Step::WaitUntil(half.retry_at);
        }
        let lease = times.copy_lease.max(2 * half.look_latency);
        let stale = side == Side::Destination
            && half.looked_at != 0
            && now.saturating_sub(half.looked_at) >= lease;
        if now >= half.next_look || stale {
            half.flight = Some(Flight::Look { at: now });
            return Step::Do(Op::Read { offset: 0, len: g.table_region_bytes(), record: None });
        }
        if half.looked_at == 0 {
            return Step::WaitUntil(half.next_look);
        }
        match side {
            Side::Source => self.source_step(now),
            Side::Destination => self.destination_step(now),
        }
    }

    pub fn complete(&mut self, now: Micros, side: Side, result: Result<Bytes, IoFault>) {
        let Some(flight) = self.halves[side.index()].flight.take() else { return };
        if let Err(fault) = &result {
            match side {
                Side::Source => self.counters.source_failures += 1,
                Side::Destination => self.counters.destination_failures += 1,
            }
            self.halves[side.index()].failing = Some(fault.to_string());
            self.notices.push_back(Notice::Failed { side, fault: fault.clone() });
        }
        match (flight, result) {
            (Flight::Look { at }, Ok(region)) => self.looked(now, side, at, region),
            (Flight::LastCopy { at, region }, Ok(last)) => {
                match self.identity(side, &last, Copy::Last) {
                    Ok(()) => self.accepted(now, side, at, &region),
                    Err(Ok(why)) => self.refuse(now, side, why),
                    Err(Err(e)) => {
                        self.halves[side.index()].failing = Some(format!("both superblocks: {e}"));
                        self.back_off(now, side);
                    }
                }
            }
            (Flight::Look { .. } | Flight::LastCopy { .. }, Err(_)) => self.back_off(now, side),
            (Flight::Source(flight), result) => self.source_complete(now, flight, result),
            (Flight::Destination(flight), result) => {
                self.destination_complete(now, flight, result);
            }
        }
        self.round_over(now);
    }

    fn back_off(&mut self, now: Micros, side: Side) {
        let half = &mut self.halves[side.index()];
        half.looked_at = 0;
        half.next_look = 0;
        half.retry = (half.retry * 2).clamp(RETRY_MIN, RETRY_MAX);
        half.retry_at = now + half.retry;
    }

    /// The region from the start of the volume to the end of the table was read.
    fn looked(&mut self, now: Micros, side: Side, at: Micros, region: Bytes) {
        match self.identity(side, &region, Copy::First) {
            Ok(()) => self.accepted(now, side, at, &region),
            Err(Ok(why)) => self.refuse(now, side, why),
            Err(Err(_)) => self.halves[side.index()].last_copy = Some((at, region)),
        }
    }

    fn accepted(&mut self, now: Micros, side: Side, at: Micros, region: &[u8]) {
        let half = &mut self.halves[side.index()];
        half.look_latency = now.saturating_sub(at);
        half.retry = 0;
        if half.failing.take().is_some() {
            self.notices.push_back(Notice::Recovered { side });
        }
        match side {
            Side::Source => self.source_looked(now, at, region),
            Side::Destination => self.destination_looked(now, at, region),
        }
    }

    /// The look was good: that side may be used.
    fn permit(&mut self, side: Side, at: Micros, next_look: Micros) {
        let half = &mut self.halves[side.index()];
        half.looked_at = at.max(1);
        half.next_look = next_look;
        if half.refusal.take().is_some() {
            self.notices.push_back(Notice::Accepted);
        }
    }

    /// Nothing is done there until a look is good again; at the beginning it is the end.
    fn refuse(&mut self, now: Micros, side: Side, why: Refusal) {
        let half = &mut self.halves[side.index()];
        half.looked_at = 0;
        half.next_look = now + REFUSED_LOOK;
        if half.refusal.as_ref() != Some(&why) {
            half.refusal = Some(why.clone());
            self.notices.push_back(Notice::Refused { why: why.clone() });
        }
        if !self.established || self.o.pace == Pace::Once {
            self.phase = Phase::Finished(Err(why));
        }
    }

    /// Whether that superblock is the one that belongs there; `Err(Err)`: it cannot be read.
    fn identity(
        &self,
        side: Side,
        block: &[u8],
        copy: Copy,
    ) -> Result<(), Result<Refusal, FormatError>> {
        let ours = &self.o.superblock;
        let s = Superblock::decode(block, copy).map_err(Err)?;
        let name = || s.name.clone();
        Err(Ok(if s.uuid != ours.uuid {
            Refusal::OtherVolume { side, name: name(), uuid: s.uuid.to_string() }
        } else if s.generation != ours.generation || s.geometry != ours.geometry {
            Refusal::Generation { side, ours: ours.generation, found: s.generation }
        } else if side == Side::Source && s.replica {
            Refusal::SourceIsReplica { name: name() }
        } else if side == Side::Destination && !s.replica {
            Refusal::NotAReplica { name: name() }
        } else {
            return Ok(());
        }))
    }

    fn stamp(&self, now: Micros) -> Stamp {
        Stamp {
            nonce: self.o.nonce,
            host: self.o.host,
            copied_unix_us: self.o.wall_unix_us_at_zero.saturating_add(now),
        }
    }
}
