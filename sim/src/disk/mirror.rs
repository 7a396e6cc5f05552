//! Two storage systems that copy each other's writes: with lag, out of order, torn apart for a
//! while and brought together again.
//!
//! Every region of a volume has one writer, so copying both ways is well defined. A mirror knows
//! nothing of that: it carries blocks.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    fault::{Fault, Fired},
    rng::Rng,
};

/// How a mirror behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MirrorSettings {
    /// Least age of a copy, microseconds.
    pub lag: u64,
    /// Added at random, up to this.
    pub jitter: u64,
    /// Chance that a write is overtaken by later ones, parts per million.
    pub reorder: u32,
}

impl MirrorSettings {
    /// Within what storage may do without being called broken.
    #[must_use]
    pub const fn works(&self) -> bool {
        self.lag + self.jitter <= 30_000 && self.reorder == 0
    }
}

/// Writes on their way to another image.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) settings: MirrorSettings,
    pub(super) split_until: u64,
    queue: BTreeMap<(u64, u64), (usize, u64, Bytes)>,
    order: u64,
    last_due: u64,
}

impl Mirror {
    pub(super) const fn new(settings: MirrorSettings) -> Self {
        Self { settings, split_until: 0, queue: BTreeMap::new(), order: 0, last_due: 0 }
    }

    pub(super) fn carry(
        &mut self,
        now: u64,
        to: usize,
        offset: u64,
        data: Bytes,
        rng: &mut Rng,
        fired: &mut Fired,
    ) {
        let MirrorSettings { lag, jitter, reorder } = self.settings;
        let mut due = now + lag + rng.below(jitter + 1);
        fired.count(Fault::MirrorLag);
        if rng.chance(reorder) {
            fired.count(Fault::MirrorReorder);
            due += rng.range(lag / 2, lag * 4 + 10_000);
        } else {
            due = due.max(self.last_due);
            self.last_due = due;
        }
        if self.split_until > now {
            fired.count(Fault::MirrorSplit);
        }
        self.order += 1;
        self.queue.insert((due, self.order), (to, offset, data));
    }

    /// The next write that has arrived: where, and what.
    pub(super) fn arrived(&mut self, now: u64) -> Option<(u64, (usize, u64, Bytes))> {
        if self.split_until > now {
            return None;
        }
        let first = self.queue.first_entry().filter(|e| e.key().0 <= now)?;
        let due = first.key().0;
        Some((due, first.remove()))
    }

    /// What was on its way is gone, as when both sides were restored.
    pub(super) fn forget(&mut self) {
        self.queue.clear();
    }
}
