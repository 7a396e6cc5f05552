//! What a storage system holds of the volume: bytes, when each block changed, what was overwritten.

use std::collections::VecDeque;

use bytes::Bytes;

pub(super) const BLOCK: usize = 4096;
/// Old contents are remembered for so long, for stale reads.
const HISTORY: u64 = 2_000_000;
const HISTORY_MAX: usize = 256;

pub(super) fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// The bytes of one storage system.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) bytes: Vec<u8>,
    /// Per block, when it last changed (a running number).
    changed: Vec<u64>,
    changes: u64,
    /// What was overwritten: when, where, what.
    history: VecDeque<(u64, usize, Vec<u8>)>,
    /// By the block where it begins: the last copy handed out, and which change it shows.
    copies: Vec<Option<(u64, Bytes)>>,
    /// Since when it is not our volume that lies here.
    pub(super) alien_since: Option<u64>,
}

impl Image {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let blocks = bytes.len() / BLOCK;
        Self {
            bytes,
            changed: vec![0; blocks],
            changes: 0,
            history: VecDeque::new(),
            copies: vec![None; blocks],
            alien_since: None,
        }
    }

    /// Other contents altogether, as after a snapshot was restored.
    pub(super) fn replace(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
        self.changes += 1;
        self.changed.fill(self.changes);
        self.history.clear();
    }

    pub(super) fn has(&self, offset: u64, len: usize) -> bool {
        self.bytes.len() >= at(offset).saturating_add(len)
    }

    pub(super) fn land(&mut self, now: u64, offset: u64, data: &[u8], keeps_history: bool) {
        let start = at(offset);
        if data.is_empty() || !self.has(offset, data.len()) {
            return;
        }
        if keeps_history {
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

    /// A copy that polls of an unchanged place share.
    pub(super) fn read(&mut self, start: usize, len: usize) -> Bytes {
        let blocks = start / BLOCK..(start + len).div_ceil(BLOCK);
        let newest = self.changed[blocks].iter().copied().max().unwrap_or(0);
        let copy = &mut self.copies[start / BLOCK];
        if let Some((stamp, bytes)) = copy
            && *stamp == newest
            && bytes.len() == len
            && start.is_multiple_of(BLOCK)
        {
            return bytes.clone();
        }
        let bytes = Bytes::copy_from_slice(&self.bytes[start..start + len]);
        *copy = start.is_multiple_of(BLOCK).then(|| (newest, bytes.clone()));
        bytes
    }

    /// As it was at `since`, as far as remembered; true when that is not how it is.
    pub(super) fn read_as_of(&self, since: u64, start: usize, len: usize) -> (Vec<u8>, bool) {
        let mut out = self.bytes[start..start + len].to_vec();
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
        (out, changed)
    }
}
