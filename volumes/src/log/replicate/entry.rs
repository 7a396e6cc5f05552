//! Which entry goes to the destination next, under which beat, and what it announces.
//!
//! ```text
//!   everything announced has arrived -> the newest entry, as it is
//!   copying is behind                -> the newest entry with the heads that have arrived, under a
//!                                       beat between the last one written and the newest
//! ```
//!
//! An entry is written only over the older one of its two blocks. The source wrote each beat; here
//! some are left out, so the beat may have to be one lower than the newest to get into the other
//! block, and the newest itself follows. Awkward case: a new epoch is opened by an entry before
//! any of its records, as its claim did at the source.

use super::Replicator;
use super::lanes::Node;
use crate::event::{Micros, Ring};
use crate::format::table::{Entry, Head};

/// An entry that does not announce all is written when none was for half a beat.
const CLIP_MIN: Micros = 10_000;
const CLIP_MAX: Micros = 500_000;

impl Replicator {
    /// The next entry and its node's slot; or when there may be one.
    pub(super) fn next_entry(&self, now: Micros) -> Result<(usize, Entry), Micros> {
        let mut soonest = Micros::MAX;
        for (slot, node) in self.nodes.iter().enumerate() {
            match node.next_entry(now) {
                Some(Ok(entry)) => return Ok((slot, entry)),
                Some(Err(at)) => soonest = soonest.min(at),
                None => {}
            }
        }
        Err(soonest)
    }
}

impl Node {
    fn next_entry(&self, now: Micros) -> Option<Result<Entry, Micros>> {
        let latest = self.latest.as_ref().filter(|_| self.is_ready())?;
        if self.written >= Some((latest.epoch, latest.beat)) {
            return None;
        }
        let full = self.has_all(now, latest);
        let opened = self.written.is_some_and(|(epoch, _)| epoch == self.epoch);
        let most = if full { latest.beat } else { latest.beat.checked_sub(1)? };
        let beat = self.beat_at_most(most)?;
        let due = self.entry_at + (latest.interval_us / 2).clamp(CLIP_MIN, CLIP_MAX);
        if !full && opened && now < due {
            return Some(Err(due));
        }
        let mut entry = Entry { beat, ..latest.clone() };
        for (to, lane) in self.lanes.iter().enumerate().filter(|(_, l)| l.to != self.id) {
            let Some(cell) = entry.cells.get_mut(to) else { continue };
            cell.mailbox = cell.mailbox.min(lane.letters.done);
            for ring in Ring::BOTH {
                let (head, told) = (cell.heads[ring.index()], lane.tails[ring.index()].tells(now));
                if head != Head::NONE && told.number < head.number {
                    cell.heads[ring.index()] = told;
                }
            }
        }
        Some(Ok(entry))
    }

    /// Whether all that this entry announces has arrived, or is known to be gone.
    fn has_all(&self, now: Micros, entry: &Entry) -> bool {
        self.lanes.iter().enumerate().filter(|(_, l)| l.to != self.id).all(|(to, lane)| {
            let letters = entry.cells.get(to).map_or(0, |c| c.mailbox);
            let l = &lane.letters;
            let heads = lane.tails.iter();
            l.read >= letters
                && (l.done >= letters || l.queued == 0)
                && heads.into_iter().all(|t| t.tells(now).number >= entry.head(to, t.ring).number)
        })
    }

    /// The greatest beat that is new, not above `most`, and belongs into the block that does not
    /// hold the newest entry.
    pub(super) fn beat_at_most(&self, most: u64) -> Option<u64> {
        let Some((epoch, newest)) = self.written else { return Some(most) };
        let beat = if most % 2 == newest % 2 { most.checked_sub(1)? } else { most };
        (epoch < self.epoch || beat > newest).then_some(beat)
    }
}
