//! The Writer: one volume's outgoing records, one operation at a time.
//!
//! ```text
//!             +--------------------- nothing buffered -------------------+
//!             v                                                          |
//!   step() -> choose: mailbox, express lanes, data lanes (round robin)  Idle
//!             | permit older than a beat: read superblock + table first
//!             v
//!          Do(Write) -- complete(Ok) --> head advances, fact, choose again
//!             ^    `--- complete(Err) -> wait, then the same bytes at the same place
//!             +------------------------------'
//! ```
//!
//! Group commit without a timer: when nothing is in flight, whatever is buffered is written at
//! once; what arrives meanwhile becomes the next record. Only behind bulk a batch waits for more, up
//! to its age mark: a writer that is faster than its reader gets room bit by bit, as it is told of
//! what was read, and a record per bit would make the reader slower still.
//!
//! Awkward cases: a ring that is full holds up its own lane only; a write that never returns
//! holds its place for ever; a reset (the reader's new incarnation) frees all places but the one
//! being written, and drops what is buffered, since it was sealed for the old incarnation.

use super::ring::{RingSpace, Room};
use crate::buffer::Pool;
use crate::canary::{Bug, planted};
use crate::event::{Fact, FenceReason, IoFault, IoFaultKind, Micros, Op, Reason, Ring, Step};
use crate::fence::{self, Look, Misses, Permit};
use crate::format::bytes::len_u32;
use crate::format::record::{self, Address, Header, Kind};
use crate::format::superblock::{Copy, Superblock};
use crate::format::table::Head;
use crate::format::{HEADER_BYTES, mailbox};
use crate::outbox::Outbox;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// A record of so many times the fill mark is bulk, and the next batch is filled up to
/// [`FILL`] times the mark.
const BULK: usize = 2;
const FILL: usize = 8;
/// For so long after one.
const BULK_GAP: Micros = 2_000;
const RETRY_MIN: Micros = 1_000;
const RETRY_MAX: Micros = 250_000;

/// Why a frame or message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the outbox is full")]
    Full,
    #[error("this node was fenced on the volume")]
    Fenced,
    #[error("the volume is not attached")]
    NotAttached,
    #[error("it does not fit into one record")]
    TooLarge,
    #[error("the volume has no such node")]
    UnknownNode,
}

#[derive(Debug, Clone)]
pub struct WriterOptions {
    pub node: u8,
    pub superblock: Superblock,
    pub permit: Arc<Permit>,
    pub pool: Pool,
    pub flush_bytes: usize,
    pub flush_delay: Micros,
    pub outbox_bytes_max: usize,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    pub frames: u64,
    pub records: u64,
    pub bytes: u64,
    pub failures: u64,
    /// Looks at the table that the Writer had to take itself.
    pub checks: u64,
    /// Frames dropped by a reset.
    pub dropped: u64,
    /// Records that had passed the fill mark or the age mark when written.
    pub marks: u64,
}

#[derive(Debug)]
struct Lane {
    node: u8,
    rings: [RingSpace; 2],
    /// After completed writes only: what the table may announce.
    done: [Head; 2],
    letter: Option<Vec<u8>>,
    letters: u64,
    busy: bool,
    /// When bulk was last written to its data ring.
    bulk_at: Micros,
}

#[derive(Debug, Clone)]
enum Job {
    Record { slot: usize, ring: Ring, header: Header },
    Letter { slot: usize },
}

#[derive(Debug)]
struct Work {
    job: Job,
    offset: u64,
    data: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    None,
    Check { at: Micros, copy: Copy },
    Write { at: Micros },
}

/// Public methods: getters, commands (`store`, `mailbox`, `released`, `reset_lane`), then the
/// machine's `step`, `complete`, `drain_facts`.
#[derive(Debug)]
pub struct Writer {
    o: WriterOptions,
    slot: usize,
    outbox: Outbox,
    lanes: Vec<Lane>,
    turn: [usize; 2],
    work: Option<Work>,
    flight: Flight,
    /// When the first of the batches that wait for more is due.
    held_until: Micros,
    retry_at: Micros,
    retry: Micros,
    misses: Misses,
    stopped: Option<FenceReason>,
    facts: VecDeque<Fact>,
    counters: Counters,
}

impl Writer {
    /// `None`: the volume has no such node.
    #[must_use]
    pub fn new(o: WriterOptions) -> Option<Self> {
        let g = &o.superblock.geometry;
        let slot = g.slot(o.node)?;
        let max = Ring::BOTH.map(|r| g.record_bytes_max(r));
        let lanes = g.nodes.iter().map(|&node| Lane {
            node,
            rings: Ring::BOTH.map(|r| RingSpace::new(g.ring_blocks(r))),
            done: [Head::START; 2],
            letter: None,
            letters: 0,
            busy: false,
            bulk_at: 0,
        });
        Some(Self {
            slot,
            outbox: Outbox::new(o.pool.clone(), g.nodes.len(), max, o.outbox_bytes_max),
            lanes: lanes.collect(),
            turn: [0; 2],
            work: None,
            flight: Flight::None,
            held_until: Micros::MAX,
            retry_at: 0,
            retry: RETRY_MIN,
            misses: Misses::default(),
            stopped: None,
            facts: VecDeque::new(),
            counters: Counters::default(),
            o,
        })
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Per node: heads after completed writes, and messages put into its mailbox.
    pub fn heads(&self) -> impl Iterator<Item = (u8, [Head; 2], u64)> + '_ {
        self.lanes.iter().map(|l| (l.node, l.done, l.letters))
    }

    /// Bytes of the ring that its reader has not read.
    #[must_use]
    pub fn used_bytes(&self, to: u8, ring: Ring) -> u64 {
        let blocks = self.lane(to).map_or(0, |s| self.lanes[s].rings[ring.index()].used_blocks());
        u64::from(blocks) * u64::from(self.o.superblock.geometry.block_bytes)
    }

    /// Bytes waiting to be written to that node.
    #[must_use]
    pub fn buffered_bytes(&self, to: u8) -> usize {
        self.lane(to).map_or(0, |s| self.outbox.lane_bytes(s))
    }

    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.flight != Flight::None
    }

    /// Why it will never write again, if so.
    #[must_use]
    pub fn stopped(&self) -> Option<Reason> {
        self.stopped.clone().map(Reason::Fenced)
    }

    fn lane(&self, to: u8) -> Option<usize> {
        self.o.superblock.geometry.slot(to).filter(|&s| s != self.slot)
    }

    fn admit(&self, to: u8) -> Result<usize, Refused> {
        let slot = self.lane(to).ok_or(Refused::UnknownNode)?;
        if self.stopped.is_some() || self.o.permit.fenced() {
            return Err(Refused::Fenced);
        }
        if self.o.permit.epoch() == 0 {
            return Err(Refused::NotAttached);
        }
        Ok(slot)
    }

    /// Copies the frame into the batch being filled.
    pub fn store(&mut self, now: Micros, to: u8, ring: Ring, frame: &[u8]) -> Result<(), Refused> {
        let slot = self.admit(to)?;
        if frame.len() > self.o.superblock.geometry.frame_bytes_max(ring) {
            return Err(Refused::TooLarge);
        }
        if !self.outbox.push(now, slot, ring, frame) {
            return Err(Refused::Full);
        }
        self.lanes[slot].busy = true;
        Ok(())
    }

    /// Overwrites the mailbox for that node.
    pub fn mailbox(&mut self, to: u8, bytes: &[u8]) -> Result<(), Refused> {
        let slot = self.admit(to)?;
        if bytes.len() > self.o.superblock.geometry.mailbox_bytes_max() {
            return Err(Refused::TooLarge);
        }
        self.lanes[slot].letter = Some(bytes.to_vec());
        Ok(())
    }

    /// That node has read everything up to `number`.
    pub fn released(&mut self, to: u8, ring: Ring, number: u64) {
        if let Some(slot) = self.lane(to) {
            let writing = self.writing(slot, ring);
            let number = writing.map_or(number, |w| number.min(w.saturating_sub(1)));
            let number = if planted(Bug::OverwriteUnread) { u64::MAX } else { number };
            self.lanes[slot].rings[ring.index()].release(number);
        }
    }

    /// That node runs anew: its old incarnation will read nothing more.
    pub fn reset_lane(&mut self, to: u8) {
        let Some(slot) = self.lane(to) else { return };
        self.counters.dropped += self.outbox.clear(slot);
        for ring in Ring::BOTH {
            self.released(to, ring, u64::MAX);
        }
        self.drained(slot);
    }

    /// The medium answers again: what could not be written waits no longer.
    pub fn retry_now(&mut self) {
        self.retry_at = 0;
    }

    /// The record planned or in flight on that ring.
    fn writing(&self, slot: usize, ring: Ring) -> Option<u64> {
        match &self.work.as_ref()?.job {
            Job::Record { slot: s, ring: r, header } if (*s, *r) == (slot, ring) => {
                Some(header.number)
            }
            _ => None,
        }
    }

    pub fn step(&mut self, now: Micros) -> Step {
        if let Some(why) = self.stopped() {
            return Step::Stopped(why);
        }
        if self.flight != Flight::None || self.o.permit.epoch() == 0 || self.o.permit.fenced() {
            return Step::Idle;
        }
        if self.work.is_none() {
            self.work = self.choose(now);
        }
        let Some(work) = &self.work else {
            return match self.held_until {
                Micros::MAX => Step::Idle,
                until => Step::WaitUntil(until),
            };
        };
        if now < self.retry_at {
            return Step::WaitUntil(self.retry_at);
        }
        if self.o.permit.valid(now) {
            self.misses.clear();
            self.flight = Flight::Write { at: now };
            return Step::Do(Op::Write { offset: work.offset, data: work.data.clone() });
        }
        self.counters.checks += 1;
        self.flight = Flight::Check { at: now, copy: Copy::First };
        Step::Do(Op::Read {
            offset: 0,
            len: self.o.superblock.geometry.table_region_bytes(),
            record: None,
        })
    }

    pub fn complete(&mut self, now: Micros, result: Result<Bytes, IoFault>) {
        match (std::mem::replace(&mut self.flight, Flight::None), result) {
            (Flight::None, _) => {}
            (Flight::Check { .. }, Err(fault)) => {
                self.facts.push_back(Fact::ReadFailed { fault });
                self.back_off(now);
            }
            (Flight::Check { at, .. }, Ok(bytes)) => self.looked(now, at, &bytes),
            (Flight::Write { .. }, Err(fault)) => {
                self.counters.failures += 1;
                self.facts.push_back(Fact::WriteFailed { fault });
                self.back_off(now);
            }
            (Flight::Write { at }, Ok(_)) => self.written(now, at),
        }
    }

    pub fn drain_facts(&mut self) -> impl Iterator<Item = Fact> + '_ {
        self.facts.drain(..)
    }

    fn back_off(&mut self, now: Micros) {
        self.retry_at = now + self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    fn looked(&mut self, now: Micros, at: Micros, region: &[u8]) {
        let permit = &self.o.permit;
        let look =
            fence::check(region, &self.o.superblock, self.slot, permit.epoch(), permit.nonce());
        match look {
            Look::Ours => {
                self.misses.clear();
                permit.renew(at);
            }
            Look::Older { found } => {
                if self.misses.add(now) {
                    let ours = permit.epoch();
                    self.fence(FenceReason::RolledBack { ours, found });
                } else {
                    self.back_off(now);
                }
            }
            Look::Foreign(why @ FenceReason::OtherVolume { .. }) => {
                // Not our volume, not a byte of ours; ours may return.
                permit.revoke();
                self.facts.push_back(Fact::Fenced { why });
                self.back_off(now);
            }
            Look::Foreign(why) => self.fence(why),
            Look::Unreadable(e) => {
                let fault = IoFault::new(IoFaultKind::Other, format!("superblock: {e}"));
                self.facts.push_back(Fact::ReadFailed { fault });
                self.back_off(now);
            }
        }
    }

    fn fence(&mut self, why: FenceReason) {
        self.o.permit.fence();
        self.facts.push_back(Fact::Fenced { why: why.clone() });
        self.stopped = Some(why);
    }

    fn written(&mut self, now: Micros, at: Micros) {
        let Some(work) = self.work.take() else { return };
        if self.retry != RETRY_MIN {
            self.facts.push_back(Fact::Recovered);
        }
        self.retry = RETRY_MIN;
        self.retry_at = 0;
        match work.job {
            Job::Record { slot, ring, header } => {
                let blocks = self.lanes[slot].rings[ring.index()].next();
                self.lanes[slot].done[ring.index()] = blocks;
                if ring == Ring::Data && work.data.len() >= BULK * self.o.flush_bytes {
                    self.lanes[slot].bulk_at = now.max(1);
                }
                if header.kind == Kind::Data {
                    self.counters.records += 1;
                    self.counters.frames += u64::from(header.frames);
                    self.counters.bytes += work.data.len() as u64;
                    self.facts.push_back(Fact::RecordWritten {
                        to: self.lanes[slot].node,
                        ring,
                        number: header.number,
                        bytes: work.data.len(),
                        frames: header.frames as usize,
                        latency: now.saturating_sub(at),
                    });
                }
                self.drained(slot);
            }
            Job::Letter { slot } => {
                self.facts.push_back(Fact::MailboxWritten { to: self.lanes[slot].node });
            }
        }
    }

    fn drained(&mut self, slot: usize) {
        let writing = Ring::BOTH.iter().any(|&r| self.writing(slot, r).is_some());
        let lane = &mut self.lanes[slot];
        if lane.busy && !writing && self.outbox.is_empty(slot) {
            lane.busy = false;
            self.facts.push_back(Fact::Drained { to: lane.node });
        }
    }

    /// Mailboxes, then express lanes, then data lanes; each kind in turn.
    fn choose(&mut self, now: Micros) -> Option<Work> {
        self.held_until = Micros::MAX;
        for slot in 0..self.lanes.len() {
            if let Some(work) = self.letter(slot) {
                return Some(work);
            }
        }
        for ring in Ring::BOTH {
            let n = self.lanes.len();
            for i in 0..n {
                let slot = (self.turn[ring.index()] + i) % n;
                if let Some(work) = self.record(now, slot, ring) {
                    if matches!(work.job, Job::Record { header, .. } if header.kind == Kind::Data) {
                        self.turn[ring.index()] = slot + 1;
                    }
                    return Some(work);
                }
            }
        }
        None
    }

    fn letter(&mut self, slot: usize) -> Option<Work> {
        let g = &self.o.superblock.geometry;
        let lane = &mut self.lanes[slot];
        let body = lane.letter.take()?;
        lane.letters += 1;
        let address = (self.o.superblock.uuid, self.o.node, lane.node);
        let at = (self.o.permit.epoch(), lane.letters);
        let data = mailbox::encode(self.o.pool.take_len(g.block()), address, at, &body);
        Some(Work {
            job: Job::Letter { slot },
            offset: g.mailbox_offset(self.o.node, lane.node)?,
            data,
        })
    }

    fn record(&mut self, now: Micros, slot: usize, ring: Ring) -> Option<Work> {
        let bytes = self.outbox.peek(slot, ring)?;
        let oldest = self.outbox.oldest(slot, ring)?;
        let bulk_at = self.lanes[slot].bulk_at;
        let due = oldest + self.o.flush_delay;
        let is_bulk = ring == Ring::Data && bulk_at != 0 && now < bulk_at + BULK_GAP;
        let may_grow = bytes < FILL * self.o.flush_bytes && !self.outbox.is_cut(slot, ring);
        if is_bulk && may_grow && now < due {
            self.held_until = self.held_until.min(due);
            return None;
        }
        let g = &self.o.superblock.geometry;
        let block = g.block();
        let lane = &mut self.lanes[slot];
        let space = &mut lane.rings[ring.index()];
        let address =
            Address { uuid: self.o.superblock.uuid, from: self.o.node, to: lane.node, ring };
        let base = g.ring_offset(self.o.node, lane.node, ring)?;
        let epoch = self.o.permit.epoch();
        let (head, header, data) = match space.room(len_u32(bytes.div_ceil(block))) {
            Room::Full => return None,
            Room::Wrap(head, blocks) => {
                let buf = self.o.pool.take_len(block);
                let (h, d) = record::wrap(buf, &address, epoch, head.number, head.place, blocks);
                (head, h, d)
            }
            Room::At(head) => {
                let draft = self.outbox.take(slot, ring)?;
                if bytes - HEADER_BYTES >= self.o.flush_bytes
                    || now.saturating_sub(oldest) >= self.o.flush_delay
                {
                    self.counters.marks += 1;
                }
                let (h, d) = draft.seal(&address, epoch, head.number, head.place, block);
                (head, h, d)
            }
        };
        space.place(header.blocks);
        let offset = base + u64::from(head.place) * block as u64;
        Some(Work { job: Job::Record { slot, ring, header }, offset, data })
    }
}
