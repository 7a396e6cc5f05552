//! Where each sender's entry at the destination stands, and what that allows.
//!
//! ```text
//!  found there                        then
//!    none                             copied from the beginning
//!    ours, or an earlier run's        goes on behind it; ahead of the source: refused
//!    another replicator's             watched for three beats: moves -> refused
//!    the node's own, newer            it reads there, and its lanes on the source are history
//!    the node's own, older            watched for three beats: moves -> reads there; both -> refused
//! ```
//!
//! Awkward cases: a look may be stale, so whatever looks as if time ran backwards is believed
//! only after looks that go on for two seconds; nothing is written meanwhile. A write that was
//! reported as failed may have landed: what is found there counts.

use super::lanes::{Lane, Letters, Node, Scan, Tail};
use super::{Notice, Refusal, Replicator, Side};
use crate::event::{Micros, Ring};
use crate::fence::Misses;
use crate::format::stamp::Stamp;
use crate::format::table::{Entry, Head, Table};
use crate::keeper::WATCH_BEATS;
use crate::pace::watched_beat;

/// One late write of a dead replicator may land; whoever writes again lives.
const LIVES_AFTER: u32 = 2;
/// First read behind the head announced: a beat's worth of a busy lane.
pub(super) const SCAN_BYTES: usize = 256 << 10;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing decided; also when the source shows a new epoch.
    Unknown,
    /// Somebody else's entry, looked at until it has stood still long enough.
    Watching {
        seen: (u64, u64),
        until: Micros,
    },
    Copied,
    /// It reads at the destination; how often its entry had advanced at the source by then.
    Elsewhere {
        advanced: u32,
    },
}

enum Verdict {
    Fine,
    /// It may be a stale look: nothing is written until it is clear.
    Doubt,
    Refused(Refusal),
}

/// A node's newest entry at the destination, and who copied it.
type There = Option<(Entry, Option<Stamp>)>;

impl Replicator {
    pub(super) fn destination_looked(&mut self, now: Micros, at: Micros, region: &[u8]) {
        let table = Table::decode(region, &self.o.superblock);
        let mut doubt = false;
        for slot in 0..self.nodes.len() {
            let there: There = table.get(slot).map(|e| {
                let offset = self.o.superblock.geometry.entry_offset(slot, e.copy());
                let block = region.get(crate::format::bytes::to_usize(offset)..).unwrap_or(&[]);
                (e.clone(), Stamp::of(block))
            });
            match self.judge(now, slot, there) {
                Verdict::Fine => {}
                Verdict::Doubt => doubt = true,
                Verdict::Refused(why) => return self.refuse(now, Side::Destination, why),
            }
        }
        let interval = self.times(Side::Destination).copy_destination_look;
        if doubt {
            let half = &mut self.halves[Side::Destination.index()];
            half.looked_at = 0;
            half.next_look = now + interval;
            return;
        }
        self.permit(Side::Destination, at, at + interval);
    }

    fn judge(&mut self, now: Micros, slot: usize, there: There) -> Verdict {
        let (nonce, host) = (self.o.nonce, self.o.host);
        let node = &mut self.nodes[slot];
        let Some(here) = node.latest.clone() else { return Verdict::Fine };
        let id = node.id;
        let at = there.as_ref().map(|(e, _)| (e.epoch, e.beat));
        if at < node.written {
            let ours = node.written.map_or(0, |w| w.0);
            let found = at.map_or(0, |a| a.0);
            return if node.back.add(now) {
                Verdict::Refused(Refusal::WentBack { node: id, ours, found })
            } else {
                Verdict::Doubt
            };
        }
        node.back.clear();
        let known = node.epoch == here.epoch;
        match (&node.standing, &there) {
            (Standing::Elsewhere { advanced }, Some((e, None))) => {
                if node.advanced < advanced + LIVES_AFTER {
                    return Verdict::Fine;
                }
                if e.epoch > here.epoch {
                    return Verdict::Refused(Refusal::LivesThere { node: id });
                }
                // It moved to the source; its entry here is history unless it still beats.
                node.standing = Standing::Unknown;
            }
            (Standing::Copied, _) if known && at == node.written => return Verdict::Fine,
            (Standing::Copied, Some((e, None))) => {
                // Somebody attached there under its own name.
                let rest = watched_beat(here.interval_us) * WATCH_BEATS;
                let silent = here.goodbye || now.saturating_sub(node.latest_at) > rest;
                let sends = (0..e.cells.len()).any(|to| to != slot && e.sends_to(to));
                return if sends {
                    Verdict::Refused(Refusal::WritesThere { node: id })
                } else if silent {
                    node.standing = Standing::Elsewhere { advanced: node.advanced };
                    node.written = at;
                    self.forget(slot);
                    Verdict::Fine
                } else {
                    Verdict::Refused(Refusal::LivesThere { node: id })
                };
            }
            (Standing::Copied, Some((_, Some(stamp)))) if stamp.nonce != nonce => {
                if at > Some(node.foreign.1) {
                    node.foreign = (node.foreign.0 + 1, at.unwrap_or_default());
                }
                if node.foreign.0 >= LIVES_AFTER {
                    return Verdict::Refused(Refusal::AnotherReplicator { node: id });
                }
                node.adopt(&there);
                if known {
                    return Verdict::Fine;
                }
            }
            (Standing::Copied, _) if known => {
                // A write of ours that was reported as failed.
                node.adopt(&there);
                return Verdict::Fine;
            }
            _ => {}
        }
        match there {
            None => self.begin(now, slot, None),
            Some((there, None)) => {
                if (0..there.cells.len()).any(|to| to != slot && there.sends_to(to)) {
                    return Verdict::Refused(Refusal::WritesThere { node: id });
                }
                if there.epoch > here.epoch {
                    node.standing = Standing::Elsewhere { advanced: node.advanced };
                    node.written = at;
                    return Verdict::Fine;
                }
                if !there.goodbye && !node.stood_still(now, &there) {
                    if node.foreign.0 < LIVES_AFTER {
                        return Verdict::Fine;
                    }
                    if node.advanced >= LIVES_AFTER {
                        return Verdict::Refused(Refusal::LivesThere { node: id });
                    }
                    // It beats here and not there, whatever their epochs say.
                    node.standing = Standing::Elsewhere { advanced: node.advanced };
                    node.written = at;
                    return Verdict::Fine;
                }
                self.place(now, slot, &here, there)
            }
            Some((there, Some(stamp))) => {
                let ours = stamp.nonce == nonce || host != 0 && stamp.host == host;
                let before = node.written.is_some();
                if !ours && !before && !node.stood_still(now, &there) {
                    return node.watched(Refusal::AnotherReplicator { node: id });
                }
                self.place(now, slot, &here, there)
            }
        }
    }

    /// Nobody else writes there: is it behind the source?
    fn place(&mut self, now: Micros, slot: usize, here: &Entry, there: Entry) -> Verdict {
        let ring_ahead = |to: usize, ring| there.head(to, ring).number > here.head(to, ring).number;
        let ahead = (there.epoch, there.beat) > (here.epoch, here.beat)
            || there.epoch == here.epoch
                && (0..here.cells.len()).any(|to| Ring::BOTH.iter().any(|&r| ring_ahead(to, r)));
        if !ahead {
            self.nodes[slot].ahead.clear();
            return self.begin(now, slot, Some(there));
        }
        let node = &mut self.nodes[slot];
        // The source may be a stale read as well: look there again, too.
        self.halves[Side::Source.index()].next_look = 0;
        if node.ahead.add(now) {
            return Verdict::Refused(Refusal::Ahead {
                node: node.id,
                there: there.epoch,
                there_beat: there.beat,
                here: here.epoch,
                here_beat: here.beat,
            });
        }
        Verdict::Doubt
    }

    /// From the start of the source's epoch, or from where the destination stands in it.
    fn begin(&mut self, now: Micros, slot: usize, there: Option<Entry>) -> Verdict {
        self.forget(slot);
        let ids = &self.o.superblock.geometry.nodes;
        let node = &mut self.nodes[slot];
        let Some(here) = node.latest.clone() else { return Verdict::Fine };
        let resumed = there.as_ref().is_some_and(|e| e.epoch == here.epoch);
        node.epoch = here.epoch;
        node.standing = Standing::Copied;
        node.written = there.as_ref().map(|e| (e.epoch, e.beat));
        node.announced = there.clone().filter(|_| resumed);
        node.entry_at = 0;
        node.ahead = Misses::default();
        node.scans = [Scan::Letters].into();
        node.lanes.clear();
        for (to, &id) in ids.iter().enumerate() {
            let tails = Ring::BOTH.map(|ring| {
                let at = there.as_ref().filter(|_| resumed).map(|e| e.head(to, ring));
                let mut tail = Tail::new(ring, at.unwrap_or(Head::START));
                tail.announce(now, here.head(to, ring));
                tail
            });
            let announced = here.cells.get(to).map_or(0, |c| c.mailbox);
            let letters = Letters { announced, ..Letters::default() };
            node.lanes.push(Lane { to: id, letters, tails });
            if resumed && to != slot {
                let scan = |ring| Scan::Tail { to, ring, len: SCAN_BYTES, walked: 0 };
                node.scans.extend(Ring::BOTH.map(scan));
            }
        }
        let (node, epoch) = (node.id, node.epoch);
        self.notices.push_back(Notice::Begun { node, epoch, resumed });
        self.polling.wake();
        Verdict::Fine
    }

    /// Drops what was read and not written of that node.
    fn forget(&mut self, slot: usize) {
        for queue in &mut self.queue {
            queue.retain(|run| run.slot != slot);
        }
        self.letters.retain(|letter| letter.slot != slot);
        self.queue_bytes = self.queue.iter().flatten().map(|run| run.data.len()).sum();
    }
}

impl Node {
    /// What is found there counts, whoever copied it.
    fn adopt(&mut self, there: &There) {
        if let Some((entry, _)) = there {
            self.written = Some((entry.epoch, entry.beat));
            self.announced = Some(entry.clone());
        }
    }

    /// Whether that entry was looked at for three of its beats without moving.
    fn stood_still(&mut self, now: Micros, there: &Entry) -> bool {
        let at = (there.epoch, there.beat);
        let rest = watched_beat(there.interval_us) * WATCH_BEATS;
        match self.standing {
            Standing::Watching { seen, until } if seen == at => now >= until,
            Standing::Watching { seen, .. } => {
                self.foreign.0 += u32::from(at > seen);
                self.standing = Standing::Watching { seen: at, until: now + rest };
                false
            }
            _ => {
                self.foreign = (0, at);
                self.standing = Standing::Watching { seen: at, until: now + rest };
                false
            }
        }
    }

    fn watched(&self, why: Refusal) -> Verdict {
        if self.foreign.0 >= LIVES_AFTER { Verdict::Refused(why) } else { Verdict::Fine }
    }
}
