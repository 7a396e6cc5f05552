//! What is known of one node's lanes: how far they were read, and how far they have arrived.

use super::super::recognise::{Expected, Found};
use super::standing::Standing;
use crate::event::{Micros, Ring};
use crate::fence::Misses;
use crate::format::record::{self, Header, Kind};
use crate::format::table::{Entry, Head};
use bytes::Bytes;
use std::collections::VecDeque;

/// A few seconds of beats; beyond that the lag is told too high by what was merged.
const SAMPLES_MAX: usize = 64;

/// One ring of a lane.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) ring: Ring,
    /// The next record to be read at the source.
    pub(super) read: Head,
    /// The next record to arrive at the destination.
    pub(super) done: Head,
    /// The newest head that the source's table named in this epoch.
    pub(super) announced: Head,
    /// Heads beyond `read` and when the table first showed them: how old the lag is.
    samples: VecDeque<(u64, Micros)>,
    /// Runs of this tail that wait or are being written.
    pub(super) queued: u32,
    /// Blocks of the last record: how much the next poll reads.
    pub(super) guess: u32,
    /// The last read was full of records: read much.
    pub(super) greedy: bool,
    pub(super) trouble: Option<Micros>,
    /// Blocks of the record whose body is wrong.
    pub(super) damaged: Option<u32>,
    pub(super) fault: Option<Micros>,
    pub(super) tables_since_fault: u32,
    pub(super) fault_retry: Micros,
    pub(super) retry_at: Micros,
    pub(super) warm_at: Micros,
    /// After a jump this is announced first, and until when: a reader that gives up a hole goes to
    /// the head announced, which must not be beyond what it can still have.
    pub(super) hold: Option<(Head, Micros)>,
    /// A poll found nothing new in this round.
    pub(super) quiet: bool,
}

impl Tail {
    pub(super) fn new(ring: Ring, at: Head) -> Self {
        Self {
            ring,
            read: at,
            done: at,
            announced: at,
            samples: VecDeque::new(),
            queued: 0,
            guess: 1,
            greedy: false,
            trouble: None,
            damaged: None,
            fault: None,
            tables_since_fault: 0,
            fault_retry: 0,
            retry_at: 0,
            warm_at: 0,
            hold: None,
            quiet: false,
        }
    }

    pub(super) fn behind(&self) -> bool {
        self.announced.number > self.read.number
    }

    /// The newest head known of the source.
    pub(super) fn known(&self) -> Head {
        if self.behind() { self.announced } else { self.read }
    }

    /// Since when it is known that something was not read.
    pub(super) fn behind_since(&self) -> Option<Micros> {
        self.samples.front().map(|&(_, at)| at)
    }

    /// What the destination's entry may say now.
    pub(super) fn tells(&self, now: Micros) -> Head {
        match self.hold {
            Some((head, until)) if now < until => head,
            _ => self.done,
        }
    }

    pub(super) fn announce(&mut self, now: Micros, head: Head) {
        if head.number <= self.announced.number {
            return;
        }
        self.announced = head;
        if !self.behind() {
            return;
        }
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push_back((head.number, now));
        } else if let Some(last) = self.samples.back_mut() {
            last.0 = head.number;
        }
    }

    pub(super) fn go_to(&mut self, next: Head) {
        self.read = next;
        self.trouble = None;
        self.damaged = None;
        self.retry_at = 0;
        while self.samples.front().is_some_and(|&(number, _)| number <= next.number) {
            self.samples.pop_front();
        }
    }
}

/// A mailbox: counters of its messages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Letters {
    pub(super) announced: u64,
    pub(super) read: u64,
    pub(super) done: u64,
    pub(super) queued: u32,
    pub(super) retry_at: Micros,
    pub(super) trouble: Option<Micros>,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) to: u8,
    pub(super) letters: Letters,
    pub(super) tails: [Tail; 2],
}

/// What the destination must be asked before that node's lanes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    Letters,
    /// Records behind the head that the destination announces.
    Tail {
        to: usize,
        ring: Ring,
        len: usize,
        walked: u32,
    },
    /// That head was lapped: the whole ring is walked for the newest record.
    Newest {
        to: usize,
        ring: Ring,
        place: u32,
        best: Head,
    },
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u8,
    /// The newest entry of the source that says that the node sends there.
    pub(super) latest: Option<Entry>,
    pub(super) latest_at: Micros,
    /// How often that entry advanced while we watched.
    pub(super) advanced: u32,
    /// What the lanes are about; 0: nothing yet.
    pub(super) epoch: u64,
    pub(super) standing: Standing,
    /// Newest whole entry at the destination, as (epoch, beat).
    pub(super) written: Option<(u64, u64)>,
    /// Its heads and counters, once we wrote it.
    pub(super) announced: Option<Entry>,
    pub(super) entry_at: Micros,
    pub(super) scans: VecDeque<Scan>,
    pub(super) lanes: Vec<Lane>,
    /// Looks that showed the destination ahead, the destination gone back, the source gone back.
    pub(super) ahead: Misses,
    pub(super) back: Misses,
    pub(super) regress: Misses,
    /// Beats of another replicator, and the last one.
    pub(super) foreign: (u32, (u64, u64)),
    /// What the round has to reach.
    pub(super) target: Option<Entry>,
}

impl Node {
    pub(super) fn new(id: u8) -> Self {
        Self {
            id,
            latest: None,
            latest_at: 0,
            advanced: 0,
            epoch: 0,
            standing: Standing::Unknown,
            written: None,
            announced: None,
            entry_at: 0,
            scans: VecDeque::new(),
            lanes: Vec::new(),
            ahead: Misses::default(),
            back: Misses::default(),
            regress: Misses::default(),
            foreign: (0, (0, 0)),
            target: None,
        }
    }

    pub(super) fn is_copied(&self) -> bool {
        self.standing == Standing::Copied
    }

    /// Its lanes may be read: where they stand at the destination is known.
    pub(super) fn is_ready(&self) -> bool {
        self.is_copied()
            && self.scans.is_empty()
            && self.latest.as_ref().is_some_and(|e| e.epoch == self.epoch)
    }

    /// The destination knows the epoch, so records of it may follow.
    pub(super) fn is_open(&self) -> bool {
        self.is_ready() && self.written.is_some_and(|(epoch, _)| epoch == self.epoch)
    }

    pub(super) fn tails(&self) -> impl Iterator<Item = &Tail> {
        self.lanes.iter().flat_map(|l| &l.tails)
    }
}

/// Records that follow one another, as read and to be written, in one piece.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) slot: usize,
    pub(super) to: usize,
    pub(super) ring: Ring,
    pub(super) epoch: u64,
    pub(super) offset: u64,
    /// Empty: only the place moves, over what is missing.
    pub(super) data: Bytes,
    pub(super) next: Head,
    pub(super) records: u64,
    pub(super) noticed: Micros,
}

#[derive(Debug)]
pub(super) struct Letter {
    pub(super) slot: usize,
    pub(super) to: usize,
    pub(super) epoch: u64,
    pub(super) counter: u64,
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

/// Why a run of records ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The bytes do.
    Bytes,
    /// The next record is there and longer than what is left of the bytes.
    Part {
        blocks: u32,
    },
    /// The next header is there, with another body, or sizes that cannot be.
    Torn {
        blocks: Option<u32>,
    },
    Other {
        header: Option<Header>,
    },
    /// The ring does; the next record is at its beginning.
    Wrapped,
}

/// The whole records that `bytes` begin with.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) bytes: usize,
    pub(super) records: u64,
    pub(super) next: Head,
    /// Blocks of the last one.
    pub(super) last: u32,
    pub(super) stop: Stop,
}

pub(super) fn chain(mut expected: Expected, bytes: &[u8]) -> Chain {
    let mut c = Chain { bytes: 0, records: 0, next: expected.at, last: 1, stop: Stop::Bytes };
    while c.bytes < bytes.len() {
        let rest = &bytes[c.bytes..];
        let h = match expected.recognise(rest) {
            Found::Whole(h) if h.kind == Kind::Wrap || record::is_whole(rest, &h) => h,
            Found::Whole(h) => {
                c.stop = Stop::Torn { blocks: Some(h.blocks) };
                break;
            }
            Found::Impossible => {
                c.stop = Stop::Torn { blocks: None };
                break;
            }
            Found::Part { blocks } => {
                c.stop = Stop::Part { blocks };
                break;
            }
            Found::Other { header } => {
                c.stop = Stop::Other { header };
                break;
            }
        };
        expected.at = expected.behind(&h);
        c.next = expected.at;
        c.records += 1;
        if h.kind == Kind::Wrap {
            // It claims all blocks to the end; only its first one is written.
            c.bytes += expected.block;
        } else {
            c.bytes += h.blocks as usize * expected.block;
            c.last = h.blocks;
        }
        if c.next.place == 0 {
            c.stop = Stop::Wrapped;
            break;
        }
    }
    c
}
