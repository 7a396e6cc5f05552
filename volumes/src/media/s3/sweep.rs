//! Deletes what nobody will read any more, beside the traffic.
//!
//! ```text
//!   table read: a peer's cursor about us ---.
//!   a record of ours on an older one's place -+-> records of ours up to it -> one request per batch
//!   our first entry of an epoch ---> what our older epochs left in a lane ---> list, delete
//! ```
//!
//! A device learns all it needs from what passes through it: which entry it writes, and what the
//! others say in theirs. On blocks a record ends when its place is used again; where nobody's cursor
//! stands (a replicator reads, and the reader's entry is at the replica), it ends so here, too. Bounds: one batch under way, 1000 keys a batch, and one look for new work
//! with each look at the table. Awkward cases: a failure is forgotten and the same is tried with the
//! next look; what an older epoch left is spared until the peer reads our present one or a minute
//! passed, for it may still be reading; a daemon that dies between writing and deleting leaves
//! its objects to the next one.

use super::link::{self, Link};
use super::names::Names;
use crate::event::{RecordName, Ring};
use crate::format::superblock::Superblock;
use crate::format::table::Table;
use object_store::path::Path as Key;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What S3 takes in one request.
const BATCH: usize = 1000;
/// Deletion is not worth a request for fewer, unless they lie there for long.
const WORTH: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(3);
const OLD_EPOCHS_AFTER: Duration = Duration::from_secs(60);
/// Keys looked at in one list.
const LISTED: usize = 4000;

#[derive(Debug)]
struct Lane {
    to: u8,
    /// Deleted up to here, by ring.
    done: [u64; 2],
    /// Up to here nobody will read again: the peer's cursor, or older laps.
    read: [u64; 2],
    /// What stands in the rings: number, place, blocks, in order.
    laps: [VecDeque<(u64, u32, u32)>; 2],
    waits_since: Option<Instant>,
    old_epochs_gone: bool,
    peer_reads_us: bool,
}

#[derive(Debug)]
struct Own {
    node: u8,
    epoch: u64,
    since: Instant,
    lanes: Vec<Lane>,
}

#[derive(Debug, Default)]
struct State {
    own: Option<Own>,
    busy: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Sweeper(Arc<Mutex<State>>);

/// One job at a time.
enum Job {
    Read { lane: usize, upto: [u64; 2], keys: Vec<String> },
    Old { lane: usize, prefix: String, epoch: u64 },
}

impl Sweeper {
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// This process wrote an entry of its own.
    pub(super) fn wrote(&self, volume: &Superblock, node: u8, epoch: u64) {
        self.with(|s| {
            if s.own.as_ref().is_some_and(|o| (o.node, o.epoch) == (node, epoch)) {
                return;
            }
            let others = volume.geometry.nodes.iter().filter(|&&n| n != node);
            let lanes = others.map(|&to| Lane::new(to));
            s.own = Some(Own { node, epoch, since: Instant::now(), lanes: lanes.collect() });
        });
    }

    /// This process wrote a record.
    pub(super) fn wrote_record(&self, name: &RecordName, place: u32, blocks: u32) {
        self.with(|s| {
            let own = s.own.as_mut().filter(|o| (o.node, o.epoch) == (name.from, name.epoch));
            let lane = own.and_then(|o| o.lanes.iter_mut().find(|l| l.to == name.to));
            if let Some(lane) = lane {
                lane.lap(name, place, blocks);
            }
        });
    }

    /// The table was read.
    pub(super) fn saw(&self, link: &Arc<Link>, names: &Names, volume: &Superblock, table: &Table) {
        let job = self.with(|s| {
            let own = s.own.as_mut()?;
            let slot = volume.geometry.slot(own.node)?;
            for lane in &mut own.lanes {
                let entry = volume.geometry.slot(lane.to).and_then(|t| table.get(t));
                let cell = entry.and_then(|e| e.cells.get(slot));
                let Some(cell) = cell.filter(|c| c.reads_epoch == own.epoch) else { continue };
                lane.peer_reads_us = true;
                for ring in 0..2 {
                    lane.read[ring] = lane.read[ring].max(cell.cursors[ring]);
                }
            }
            if s.busy {
                return None;
            }
            let job = own.next(names, volume)?;
            s.busy = true;
            Some(job)
        });
        let Some(job) = job else { return };
        let (sweeper, link_of) = (self.clone(), link.clone());
        let deadline = Duration::from_secs(30);
        link.handle.spawn(async move {
            let done = tokio::time::timeout(deadline, run(&link_of, &job)).await;
            let done = matches!(done, Ok(Ok(true)));
            sweeper.with(|s| {
                s.busy = false;
                if let Some(own) = s.own.as_mut().filter(|_| done) {
                    own.finished(&job);
                }
            });
        });
    }
}

impl Lane {
    fn new(to: u8) -> Self {
        Self {
            to,
            done: [0; 2],
            read: [0; 2],
            laps: Default::default(),
            waits_since: None,
            old_epochs_gone: false,
            peer_reads_us: false,
        }
    }

    fn lap(&mut self, name: &RecordName, place: u32, blocks: u32) {
        let r = name.ring.index();
        let laps = &mut self.laps[r];
        // A write that failed is repeated.
        if laps.back().is_some_and(|&(number, ..)| number >= name.number) {
            return;
        }
        let covered = |&(_, at, len): &(u64, u32, u32)| at < place + blocks && place < at + len;
        while let Some(&(number, ..)) = laps.front().filter(|lap| covered(lap)) {
            laps.pop_front();
            self.read[r] = self.read[r].max(number);
        }
        laps.push_back((name.number, place, blocks));
    }
}

impl Own {
    fn next(&mut self, names: &Names, volume: &Superblock) -> Option<Job> {
        let now = Instant::now();
        let (node, epoch, since) = (self.node, self.epoch, self.since);
        for (i, lane) in self.lanes.iter_mut().enumerate() {
            let due = lane.peer_reads_us || now.duration_since(since) > OLD_EPOCHS_AFTER;
            if !lane.old_epochs_gone && due {
                let prefix = names.lane(volume.uuid, node, lane.to);
                return Some(Job::Old { lane: i, prefix, epoch });
            }
            let waiting: u64 = (0..2).map(|r| lane.read[r].saturating_sub(lane.done[r])).sum();
            if waiting == 0 {
                lane.waits_since = None;
                continue;
            }
            let since = *lane.waits_since.get_or_insert(now);
            if waiting < WORTH && now.duration_since(since) < PATIENCE {
                continue;
            }
            let mut keys = Vec::new();
            let mut upto = lane.done;
            for ring in Ring::BOTH {
                let r = ring.index();
                while upto[r] < lane.read[r] && keys.len() < BATCH {
                    upto[r] += 1;
                    let (to, number) = (lane.to, upto[r]);
                    let name = RecordName { from: node, to, ring, epoch, number };
                    keys.push(names.record(volume.uuid, &name));
                }
            }
            return Some(Job::Read { lane: i, upto, keys });
        }
        None
    }

    fn finished(&mut self, job: &Job) {
        match job {
            Job::Read { lane, upto, .. } => {
                if let Some(lane) = self.lanes.get_mut(*lane) {
                    lane.done = *upto;
                    lane.waits_since = None;
                }
            }
            Job::Old { lane, epoch, .. } if *epoch == self.epoch => {
                if let Some(lane) = self.lanes.get_mut(*lane) {
                    lane.old_epochs_gone = true;
                }
            }
            Job::Old { .. } => {}
        }
    }
}

/// Whether all of it is done.
async fn run(link: &Link, job: &Job) -> Result<bool, object_store::Error> {
    match job {
        Job::Read { keys, .. } => {
            link.deletes(keys.clone()).await?;
            Ok(true)
        }
        Job::Old { prefix, epoch, .. } => {
            let listed = link::list(&link.store, Key::from(prefix.as_str()), LISTED).await?;
            let all = listed.len() < LISTED;
            let old = |key: &String| Names::epoch_of(prefix, key).is_some_and(|e| e < *epoch);
            let old: Vec<String> = listed.into_iter().filter(old).collect();
            let nothing = old.is_empty();
            for batch in old.chunks(BATCH) {
                link.deletes(batch.to_vec()).await?;
            }
            // A longer list shows the old ones first, for it is in order within a ring.
            Ok(all || nothing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_ends_with_its_peers_cursor_or_when_its_place_is_used_again() {
        let mut lane = Lane::new(2);
        let mut write = |number, place, blocks| {
            let name = RecordName { from: 1, to: 2, ring: Ring::Data, epoch: 7, number };
            lane.lap(&name, place, blocks);
            lane.read
        };
        // A ring of ten blocks.
        assert_eq!(write(1, 0, 3), [0, 0]);
        assert_eq!(write(2, 3, 4), [0, 0]);
        assert_eq!(write(3, 7, 3), [0, 0]);
        assert_eq!(write(3, 7, 3), [0, 0], "written again");
        assert_eq!(write(4, 0, 1), [0, 1]);
        assert_eq!(write(5, 1, 2), [0, 1], "the rest of its place");
        assert_eq!(write(6, 3, 5), [0, 3], "two at once");
        assert_eq!(lane.laps[1].len(), 3);
    }
}
