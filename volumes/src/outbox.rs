//! The two batches of a lane: one being written, one being filled; here is the one being filled.
//!
//! ```text
//!  store() -copy once-> [ express: draft, draft ] [ data: draft, draft, draft.. ] -> Writer
//! ```
//!
//! Frames are copied straight into what will be the record's bytes. A draft that is full is
//! followed by the next one, all within one bound for the volume. Awkward cases: a frame larger
//! than a ring's record is refused at the door; memory counts frames and their lengths, buffers
//! round up to a power of two.

use crate::buffer::Pool;
use crate::event::{Micros, Ring};
use crate::format::record::Draft;
use std::collections::VecDeque;

/// Room of a fresh draft; small batches stay cheap.
const DRAFT_ROOM_BYTES: usize = 64 << 10;

#[derive(Debug)]
struct Batch {
    draft: Draft,
    oldest: Micros,
}

/// Drafts by slot and ring.
#[derive(Debug)]
pub struct Outbox {
    pool: Pool,
    lanes: Vec<[VecDeque<Batch>; 2]>,
    record_bytes_max: [usize; 2],
    bytes: usize,
    bytes_max: usize,
}

impl Outbox {
    #[must_use]
    pub fn new(pool: Pool, slots: usize, record_bytes_max: [usize; 2], bytes_max: usize) -> Self {
        let lanes = (0..slots).map(|_| Default::default()).collect();
        Self { pool, lanes, record_bytes_max, bytes: 0, bytes_max }
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[must_use]
    pub fn lane_bytes(&self, slot: usize) -> usize {
        let lane = self.lanes.get(slot);
        lane.map_or(0, |rings| rings.iter().flatten().map(|b| b.draft.bytes()).sum())
    }

    /// `false`: the bound is reached, the frame was not taken.
    pub fn push(&mut self, now: Micros, slot: usize, ring: Ring, frame: &[u8]) -> bool {
        let bytes = frame.len() + 4;
        if self.bytes + bytes > self.bytes_max {
            return false;
        }
        let max = self.record_bytes_max[ring.index()];
        let queue = &mut self.lanes[slot][ring.index()];
        if queue.back().is_none_or(|b| b.draft.bytes() + bytes > max) {
            // A second batch means the ring is busy: the next record will likely be full too.
            let room = if queue.is_empty() { DRAFT_ROOM_BYTES } else { max };
            queue.push_back(Batch { draft: Draft::new(self.pool.take(room)), oldest: now });
        }
        let Some(last) = queue.back_mut() else { return false };
        last.draft.push(frame);
        self.bytes += bytes;
        true
    }

    /// Bytes of the record that would be written next, unpadded.
    #[must_use]
    pub fn peek(&self, slot: usize, ring: Ring) -> Option<usize> {
        self.lanes.get(slot)?[ring.index()].front().map(|b| b.draft.bytes())
    }

    /// The record that would be written next will not grow any more.
    #[must_use]
    pub fn is_cut(&self, slot: usize, ring: Ring) -> bool {
        self.lanes.get(slot).is_some_and(|rings| rings[ring.index()].len() > 1)
    }

    /// When the oldest byte of that ring came in.
    #[must_use]
    pub fn oldest(&self, slot: usize, ring: Ring) -> Option<Micros> {
        self.lanes.get(slot)?[ring.index()].front().map(|b| b.oldest)
    }

    pub fn take(&mut self, slot: usize, ring: Ring) -> Option<Draft> {
        let batch = self.lanes.get_mut(slot)?[ring.index()].pop_front()?;
        self.bytes -= batch.draft.bytes() - crate::format::HEADER_BYTES;
        Some(batch.draft)
    }

    /// Forgets what is buffered for that slot; returns the number of frames.
    pub fn clear(&mut self, slot: usize) -> u64 {
        let mut frames = 0;
        for ring in Ring::BOTH {
            while let Some(draft) = self.take(slot, ring) {
                frames += u64::from(draft.frames());
            }
        }
        frames
    }

    #[must_use]
    pub fn is_empty(&self, slot: usize) -> bool {
        self.lanes.get(slot).is_none_or(|l| l.iter().all(VecDeque::is_empty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_records_are_cut_at_their_largest() {
        let mut o = Outbox::new(Pool::new(), 2, [8192, 16384], 30_000);
        assert!(o.push(5, 1, Ring::Express, &[0; 8000]));
        assert!(o.push(6, 1, Ring::Express, &[0; 200]));
        assert_eq!((o.peek(1, Ring::Express), o.oldest(1, Ring::Express)), (Some(8068), Some(5)));
        assert!(o.push(7, 1, Ring::Data, &[0; 16000]));
        assert!(!o.push(7, 0, Ring::Data, &[0; 6000]), "over the bound");
        assert_eq!(o.take(1, Ring::Express).map(|d| d.frames()), Some(1));
        assert_eq!(o.peek(1, Ring::Express), Some(64 + 204));
        assert_eq!((o.clear(1), o.bytes(), o.is_empty(1)), (2, 0, true));
    }
}
