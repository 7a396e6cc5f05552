//! When to copy: once, as it comes, or at an interval; and when a round is over.
//!
//! ```text
//!   Run --- all that the first table of the round announced is there ---> Flush
//!    ^                                        | Every          | Once     |
//!    +------------- interval over ---------- Rest          Finished <-----+
//! ```
//!
//! Awkward cases: a source that goes on writing never ends a round, for it ends at what its first
//! look announced; a writer that was killed announced less than it wrote, so each ring is also
//! read until it shows nothing new, for a second at most.

use super::lanes::Node;
use super::standing::Standing;
use super::{Notice, Pace, Refusal, Replicator, Side};
use crate::event::{Micros, Ring, Step};

/// How long a round goes on beyond what was announced.
const BEYOND_MAX: Micros = 1_000_000;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// In a round since `began`; `table`: the source was looked at in it.
    Round {
        began: Micros,
        table: bool,
    },
    Flush {
        began: Micros,
    },
    Rest {
        until: Micros,
    },
    Follow,
    Finished(Result<(), Refusal>),
}

impl Phase {
    pub(super) fn new(pace: Pace) -> Self {
        match pace {
            Pace::Follow => Self::Follow,
            Pace::Once | Pace::Every(_) => Self::Rest { until: 0 },
        }
    }

    /// Nothing to do in this phase, and until when.
    pub(super) fn step(&mut self, now: Micros) -> Option<Step> {
        match self {
            Self::Finished(_) => Some(Step::Idle),
            Self::Rest { until } if now < *until => Some(Step::WaitUntil(*until)),
            Self::Rest { .. } => {
                *self = Self::Round { began: now, table: false };
                None
            }
            Self::Round { .. } | Self::Flush { .. } | Self::Follow => None,
        }
    }
}

impl Replicator {
    /// The source was looked at: what it announces first is what the round has to reach.
    pub(super) fn round_begun(&mut self, now: Micros) {
        let Phase::Round { began, table } = &mut self.phase else { return };
        if std::mem::replace(table, true) {
            return;
        }
        *began = (*began).min(now);
        for node in &mut self.nodes {
            node.target = node.latest.clone();
            for tail in node.lanes.iter_mut().flat_map(|l| &mut l.tails) {
                tail.quiet = false;
            }
        }
        self.polling.wake();
    }

    /// Whether the destination was asked where it stands about every sender.
    pub(super) fn is_placed(&self) -> bool {
        let looked = Side::BOTH.iter().all(|s| self.halves[s.index()].looked_at != 0);
        looked
            && self.nodes.iter().all(|n| match (&n.latest, &n.standing) {
                (None, _) | (_, Standing::Elsewhere { .. }) => true,
                (Some(e), Standing::Copied) => n.epoch == e.epoch,
                _ => false,
            })
    }

    pub(super) fn round_over(&mut self, now: Micros) {
        if !self.established && self.is_placed() {
            self.established = true;
        }
        let Phase::Round { began, table: true } = self.phase else { return };
        let late = now.saturating_sub(began) >= BEYOND_MAX;
        let reached = self.is_placed()
            && self.work.is_none()
            && self.nodes.iter().all(|n| n.target.is_none() || n.reached(late));
        if reached {
            self.phase = Phase::Flush { began };
        }
    }

    pub(super) fn flushed(&mut self, now: Micros) {
        let Phase::Flush { began } = self.phase else { return };
        self.counters.rounds += 1;
        self.notices.push_back(Notice::RoundDone);
        self.phase = match self.o.pace {
            Pace::Every(interval) => Phase::Rest { until: (began + interval).max(now) },
            Pace::Once | Pace::Follow => Phase::Finished(Ok(())),
        };
    }
}

impl Node {
    /// All that the target announces has arrived, and the entry at the destination says so.
    fn reached(&self, late: bool) -> bool {
        let Some(target) = &self.target else { return true };
        if matches!(self.standing, Standing::Elsewhere { .. }) {
            return true;
        }
        if self.epoch > target.epoch {
            // It runs anew since: the old epoch's records are nobody's any more.
            return true;
        }
        let there = self.written.is_some_and(|w| w >= (target.epoch, target.beat));
        let whole = |to: usize, ring: Ring| {
            let tail = &self.lanes[to].tails[ring.index()];
            let at_least = target.head(to, ring).number;
            let told = self.announced.as_ref().map_or(at_least, |e| e.head(to, ring).number);
            tail.done.number >= at_least
                && told >= at_least
                && (late || tail.quiet && tail.done == tail.read && tail.queued == 0)
        };
        let letters = |to: usize| {
            let l = &self.lanes[to].letters;
            l.read >= target.cells.get(to).map_or(0, |c| c.mailbox) && (late || l.queued == 0)
        };
        let mut others = (0..self.lanes.len()).filter(|&to| self.lanes[to].to != self.id);
        self.is_ready()
            && there
            && others.all(|to| Ring::BOTH.iter().all(|&r| whole(to, r)) && letters(to))
    }
}
