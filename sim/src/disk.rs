//! The shared disk, and every way it lies, sleeps and dies.
//!
//! An operation begins, takes its time and ends. What a write leaves on the medium appears at its
//! end, or half of it earlier (whoever reads meanwhile sees a torn record). Faults belong to a
//! host's view of the disk (its cable, its adapter), so that one host may suffer alone.
//!
//! Awkward cases: a host that dies leaves its write half done, not done, done, or *on its way*: it
//! may land seconds later, when a successor writes already. Stale reads serve, for a while, what
//! blocks held when the spell began, as a cache of another host would. Polls that find nothing
//! changed get the same bytes again without a copy; that is speed, not behaviour.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use volumes::{
    Geometry, IoFault, IoFaultKind, Op, Superblock, Uuid, format::superblock::Copy as Which,
};

use crate::{
    fault::{Fault, Fired},
    rng::Rng,
};

const BLOCK: usize = 4096;
/// Old contents are remembered for so long, for stale reads.
const HISTORY: u64 = 2_000_000;
const HISTORY_MAX: usize = 256;
const CACHE_MAX: usize = 256;

/// One host's view of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Usual time of an operation, microseconds; up to twice as much, rarely ten times.
    pub latency: u64,
    /// Multiplies it.
    pub slow: u64,
    /// Nothing ends before this moment.
    pub stalled_until: u64,
    /// Chances in parts per million: a single operation sticks for seconds,
    pub stuck: u32,
    /// a read fails,
    pub read_error: u32,
    /// a write fails (and may have landed in part),
    pub write_error: u32,
    /// a write is visible in part before its end,
    pub torn: u32,
    /// a read begins a spell of stale reads, of up to `stale_for` microseconds,
    pub stale: u32,
    /// a bit is turned in what is read.
    pub flip: u32,
    /// See `stale`.
    pub stale_for: u64,
    /// Writes are refused so.
    pub refuses: Option<IoFaultKind>,
    /// It is not there.
    pub gone: bool,
}

impl View {
    /// A healthy one.
    #[must_use]
    pub const fn good(latency: u64) -> Self {
        Self {
            latency,
            slow: 1,
            stalled_until: 0,
            stuck: 0,
            read_error: 0,
            write_error: 0,
            torn: 0,
            stale: 0,
            stale_for: 100_000,
            flip: 0,
            refuses: None,
            gone: false,
        }
    }

    /// Within what storage may do without being called broken.
    #[must_use]
    pub const fn works(&self, now: u64) -> bool {
        self.stalled_until <= now
            && self.stuck == 0
            && self.read_error == 0
            && self.write_error == 0
            && self.refuses.is_none()
            && !self.gone
            && (self.stale == 0 || self.stale_for <= 100_000)
            && self.latency * self.slow <= 5_000
    }
}

/// An operation under way.
#[derive(Debug)]
pub(crate) struct Pending {
    op: Op,
    host: u8,
    /// Ends then, unless the disk stalls.
    pub(crate) done_at: u64,
    half: bool,
    failed: Option<IoFaultKind>,
}

impl Pending {
    pub(crate) const fn is_write(&self) -> bool {
        matches!(self.op, Op::Write { .. })
    }
}

/// A write whose host died before it ended.
#[derive(Debug)]
struct Abandoned {
    at: u64,
    offset: u64,
    data: Bytes,
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
    bytes: Vec<u8>,
    /// Per block, when it last changed (a running number).
    changed: Vec<u64>,
    changes: u64,
    /// What was overwritten: when, where, what.
    history: VecDeque<(u64, usize, Vec<u8>)>,
    keeps_history: bool,
    /// Parts of writes that have landed although the write has not ended: where, how long.
    halves: Vec<(u64, usize)>,
    abandoned: Vec<Abandoned>,
    /// Spells of stale reads: host, from when, until when.
    spells: BTreeMap<u8, (u64, u64)>,
    views: BTreeMap<u8, View>,
    cache: BTreeMap<(u64, usize), (u64, Bytes)>,
    superblock: Superblock,
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn fault(kind: IoFaultKind) -> IoFault {
    IoFault::new(kind, "simulated")
}

impl Disk {
    /// A freshly formatted volume for hosts 1 to `hosts`.
    #[must_use]
    pub fn new(hosts: u8, data_blocks: u32, latency: u64, uuid: u64) -> Self {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&uuid.to_le_bytes());
        let mut geometry = Geometry {
            block_bytes: 4096,
            blocks: 0,
            nodes: (1..=hosts).collect(),
            express_blocks: 64,
            data_blocks: data_blocks.max(64),
        };
        geometry.blocks = geometry.blocks_needed();
        let superblock = Superblock {
            uuid: Uuid(id),
            name: "simulated".into(),
            generation: 1,
            created_unix_us: 0,
            geometry,
        };
        let size = at(superblock.geometry.bytes());
        let mut bytes = vec![0; size];
        bytes[..BLOCK].copy_from_slice(&superblock.encode(Which::First));
        bytes[size - BLOCK..].copy_from_slice(&superblock.encode(Which::Last));
        Self {
            bytes,
            changed: vec![0; size / BLOCK],
            changes: 0,
            history: VecDeque::new(),
            keeps_history: false,
            halves: Vec::new(),
            abandoned: Vec::new(),
            spells: BTreeMap::new(),
            views: (1..=hosts).map(|h| (h, View::good(latency))).collect(),
            cache: BTreeMap::new(),
            superblock,
        }
    }

    /// What the disk was formatted with.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// How a host sees it.
    #[must_use]
    pub fn view(&self, host: u8) -> View {
        self.views.get(&host).copied().unwrap_or(View::good(100))
    }

    /// Changes how a host sees it.
    pub fn change(&mut self, host: u8, change: impl FnOnce(&mut View)) {
        if let Some(view) = self.views.get_mut(&host) {
            change(view);
            self.keeps_history |= view.stale > 0;
        }
    }

    /// An operation begins.
    pub(crate) fn begin(
        &mut self,
        now: u64,
        host: u8,
        op: Op,
        rng: &mut Rng,
        fired: &mut Fired,
    ) -> Pending {
        self.land_abandoned(now, fired);
        let view = self.view(host);
        let mut takes = view.latency + rng.below(view.latency + 1);
        if rng.chance(2_000) {
            takes *= 10;
        }
        if let Op::Write { data, .. } = &op {
            takes += data.len() as u64 / 500;
        }
        if view.slow > 1 {
            takes *= view.slow;
            fired.count(Fault::SlowDisk);
        }
        if rng.chance(view.stuck) {
            takes += rng.range(500_000, 6_000_000);
            fired.count(Fault::StuckOperation);
        }
        let error = match &op {
            _ if view.gone => {
                fired.count(Fault::Vanished);
                Some(IoFaultKind::Gone)
            }
            Op::Read { .. } if rng.chance(view.read_error) => {
                fired.count(Fault::ReadError);
                Some(IoFaultKind::Eio)
            }
            Op::Write { .. } | Op::Flush if view.refuses.is_some() => {
                let full = view.refuses == Some(IoFaultKind::NoSpace);
                fired.count(if full { Fault::Full } else { Fault::ReadOnly });
                view.refuses
            }
            Op::Write { .. } if rng.chance(view.write_error) => {
                fired.count(Fault::WriteError);
                Some(IoFaultKind::Eio)
            }
            _ => None,
        };
        let refused = view.gone || view.refuses.is_some();
        let mut half = false;
        if let Op::Write { offset, data } = &op
            && !refused
            && (rng.chance(view.torn) || error.is_some() && rng.chance(500_000))
        {
            let part = rng.index(data.len() / 512) * 512;
            self.land(now, *offset, &data[..part]);
            self.halves.push((*offset, data.len()));
            half = true;
        }
        Pending { op, host, done_at: now + takes, half, failed: error }
    }

    /// The moment a pending operation may end at the earliest: later than it thought when the disk
    /// stalls.
    pub(crate) fn ends_at(&self, pending: &Pending, fired: &mut Fired) -> u64 {
        let until = self.view(pending.host).stalled_until;
        if until > pending.done_at {
            fired.count(Fault::DiskStall);
            return until + pending.done_at % 997;
        }
        pending.done_at
    }

    /// An operation ends.
    pub(crate) fn end(
        &mut self,
        now: u64,
        pending: Pending,
        rng: &mut Rng,
        fired: &mut Fired,
    ) -> Result<Bytes, IoFault> {
        self.land_abandoned(now, fired);
        let Pending { op, host, half, failed, .. } = pending;
        let view = self.view(host);
        if half && let Op::Write { offset, data } = &op {
            self.forget_half(*offset, data.len());
        }
        if let Some(kind) = failed.or_else(|| view.gone.then_some(IoFaultKind::Gone)) {
            return Err(fault(kind));
        }
        match op {
            Op::Flush => Ok(Bytes::new()),
            Op::Write { offset, data } => {
                self.land(now, offset, &data);
                Ok(Bytes::new())
            }
            Op::Read { offset, len } => self.read(now, host, (offset, len), rng, fired),
        }
    }

    fn forget_half(&mut self, offset: u64, len: usize) {
        if let Some(i) = self.halves.iter().position(|h| *h == (offset, len)) {
            self.halves.swap_remove(i);
        }
    }

    fn read(
        &mut self,
        now: u64,
        host: u8,
        (offset, len): (u64, usize),
        rng: &mut Rng,
        fired: &mut Fired,
    ) -> Result<Bytes, IoFault> {
        let view = self.view(host);
        let start = at(offset);
        if self.bytes.len() < start + len {
            return Err(fault(IoFaultKind::ShortRead));
        }
        let overlaps = |h: &&(u64, usize)| at(h.0) < start + len && start < at(h.0) + h.1;
        if self.halves.iter().any(|h| overlaps(&h)) {
            fired.count(Fault::TornRead);
        }
        // Between two spells the cache is as good as new for a while.
        let rested = self.spells.get(&host).is_none_or(|s| s.1 + 300_000 < now);
        if rng.chance(view.stale) && rested {
            self.spells.insert(host, (now, now + rng.spread(500, view.stale_for)));
        }
        let spell = self.spells.get(&host).copied().filter(|s| now < s.1);
        let flips = rng.chance(view.flip);
        if spell.is_none() && !flips {
            return Ok(self.cached(start, len));
        }
        let mut out = self.bytes[start..start + len].to_vec();
        if let Some((since, _)) = spell {
            let mut changed = false;
            for (_, place, old) in self.history.iter().rev().take_while(|(t, ..)| *t >= since) {
                let from = start.max(*place);
                let until = (start + len).min(place + old.len());
                if from < until {
                    let target = &mut out[from - start..until - start];
                    let before = &old[from - place..until - place];
                    changed |= target != before;
                    target.copy_from_slice(before);
                }
            }
            if changed {
                fired.count(Fault::StaleRead);
            }
        }
        if flips {
            fired.count(Fault::BitFlip);
            let i = rng.index(len);
            out[i] ^= 1 << rng.below(8);
        }
        Ok(out.into())
    }

    fn cached(&mut self, start: usize, len: usize) -> Bytes {
        let blocks = start / BLOCK..(start + len).div_ceil(BLOCK);
        let newest = self.changed[blocks].iter().copied().max().unwrap_or(0);
        let key = (start as u64, len);
        if let Some((stamp, bytes)) = self.cache.get(&key)
            && *stamp == newest
        {
            return bytes.clone();
        }
        if self.cache.len() >= CACHE_MAX {
            self.cache.clear();
        }
        let bytes = Bytes::copy_from_slice(&self.bytes[start..start + len]);
        self.cache.insert(key, (newest, bytes.clone()));
        bytes
    }

    fn land(&mut self, now: u64, offset: u64, data: &[u8]) {
        let start = at(offset);
        if data.is_empty() || self.bytes.len() < start + data.len() {
            return;
        }
        if self.keeps_history {
            self.history.push_back((now, start, self.bytes[start..start + data.len()].to_vec()));
            while self.history.len() > HISTORY_MAX
                || self.history.front().is_some_and(|(t, ..)| t + HISTORY < now)
            {
                self.history.pop_front();
            }
        }
        self.bytes[start..start + data.len()].copy_from_slice(data);
        self.changes += 1;
        for block in start / BLOCK..(start + data.len()).div_ceil(BLOCK) {
            self.changed[block] = self.changes;
        }
    }

    /// The host of this operation died.
    pub(crate) fn abandon(&mut self, now: u64, p: Pending, rng: &mut Rng, fired: &mut Fired) {
        let Op::Write { offset, data } = p.op else { return };
        if p.half {
            self.forget_half(offset, data.len());
        }
        if p.failed.is_some() {
            return;
        }
        match rng.below(4) {
            0 => {}
            1 => self.land(now, offset, &data),
            2 => {
                fired.count(Fault::TornWrite);
                let part = rng.index(data.len() / 512) * 512;
                self.land(now, offset, &data[..part]);
            }
            _ => {
                let at = now + rng.spread(10_000, 4_000_000);
                self.abandoned.push(Abandoned { at, offset, data });
            }
        }
    }

    fn land_abandoned(&mut self, now: u64, fired: &mut Fired) {
        while let Some(i) = self.abandoned.iter().position(|a| a.at <= now) {
            let Abandoned { offset, data, .. } = self.abandoned.swap_remove(i);
            fired.count(Fault::LateWrite);
            self.land(now, offset, &data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_dead_write_late() {
        let (mut rng, mut fired) = (Rng::new(1), Fired::default());
        let mut disk = Disk::new(2, 64, 100, 1);
        let write = |byte| Op::Write { offset: 4096, data: vec![byte; 4096].into() };
        let p = disk.begin(0, 1, write(5), &mut rng, &mut fired);
        disk.end(p.done_at, p, &mut rng, &mut fired).unwrap();
        let read = |disk: &mut Disk, now, rng: &mut Rng, fired: &mut Fired| {
            let p = disk.begin(now, 2, Op::Read { offset: 4096, len: 4096 }, rng, fired);
            disk.end(p.done_at, p, rng, fired).unwrap()[4095]
        };
        assert_eq!(read(&mut disk, 10_000, &mut rng, &mut fired), 5);
        while disk.abandoned.is_empty() {
            let p = disk.begin(20_000, 1, write(6), &mut rng, &mut fired);
            disk.abandon(20_000, p, &mut rng, &mut fired);
        }
        assert_eq!(read(&mut disk, 9_000_000, &mut rng, &mut fired), 6);
        assert_eq!(fired.of(Fault::LateWrite), 1);
    }
}
