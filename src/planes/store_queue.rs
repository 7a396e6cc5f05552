//! The queue from the threads of volumes to the loop.
//!
//! Awkward cases: it is one, so that nothing overtakes (a cursor must not arrive before its
//! frames). When frames fill it, the thread that reads lanes waits: the records stay unread on the
//! volume, which is what a lane is for. Facts are small and never wait, so the keeper never stops
//! beating: measurements are dropped when there are too many, and of everything else the newest
//! per kind and node stays.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use failover::{NodeId, VolumeFact, VolumeId};

use super::queue::Bell;

/// Frames waiting for the loop: two of the largest records.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Facts waiting for the loop, measurements included.
const FACTS_MAX: usize = 1024;

/// Something a volume has for the loop.
#[derive(Debug)]
pub(crate) enum FromStore {
    /// Frames of one record.
    Frames {
        from: NodeId,
        frames: Vec<Bytes>,
    },
    /// A mailbox changed.
    Mailbox {
        from: NodeId,
        bytes: Bytes,
    },
    Fact(VolumeId, VolumeFact),
}

impl FromStore {
    fn bytes(&self) -> usize {
        match self {
            Self::Frames { frames, .. } => frames.iter().map(|f| f.len() + 64).sum(),
            Self::Mailbox { bytes, .. } => bytes.len(),
            Self::Fact(..) => 0,
        }
    }

    /// A fact may be dropped when another says the same of the same, and measurements always.
    fn fact_key(&self) -> Option<(VolumeId, FactKey)> {
        let Self::Fact(volume, fact) = self else { return None };
        let key = match fact {
            VolumeFact::BeatWritten { .. }
            | VolumeFact::TableRead { .. }
            | VolumeFact::RecordWritten { .. } => FactKey::Measurement,
            VolumeFact::BeatsEvery { .. } => FactKey::Pace,
            VolumeFact::Attached => FactKey::State,
            VolumeFact::Fault { .. } => FactKey::State,
            VolumeFact::PeerBeat { node, .. } => FactKey::Beat(*node),
            VolumeFact::Drained { to } => FactKey::Drained(*to),
            VolumeFact::Cursor { from, ring, .. } => {
                FactKey::Cursor(*from, matches!(ring, failover::Ring::Express))
            }
            VolumeFact::Refused { to } => FactKey::Refused(*to),
            VolumeFact::Hangs { .. } | VolumeFact::Returned { .. } => FactKey::Counted,
        };
        Some((*volume, key))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FactKey {
    Pace,
    Measurement,
    State,
    Beat(NodeId),
    Drained(NodeId),
    Cursor(NodeId, bool),
    Refused(NodeId),
    /// Counted by health, so none is dropped; a thread makes two in the time of a deadline.
    Counted,
}

/// The queue from the threads of volumes to the loop.
#[derive(Debug)]
pub(crate) struct StoreQueue {
    state: Mutex<QueueState>,
    room: Condvar,
    bell: Bell,
}

#[derive(Debug, Default)]
struct QueueState {
    items: VecDeque<FromStore>,
    frame_bytes: usize,
    facts: usize,
    closed: bool,
}

impl StoreQueue {
    pub(crate) fn new(bell: Bell) -> Self {
        Self { state: Mutex::default(), room: Condvar::new(), bell }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, item: FromStore) {
        let mut state = self.lock();
        if let Some(key) = item.fact_key() {
            if state.facts >= FACTS_MAX {
                if key.1 == FactKey::Measurement {
                    return;
                }
                if key.1 != FactKey::Counted
                    && let Some(at) = state.items.iter().rposition(|i| i.fact_key() == Some(key))
                {
                    state.items.remove(at);
                    state.facts -= 1;
                }
            }
            state.facts += 1;
        } else {
            let bytes = item.bytes();
            // One item always fits, whatever its size.
            while state.frame_bytes > 0
                && state.frame_bytes + bytes > FRAME_BYTES_MAX
                && !state.closed
            {
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.frame_bytes += bytes;
        }
        if state.closed {
            return;
        }
        state.items.push_back(item);
        drop(state);
        self.bell.ring();
    }

    /// Takes everything.
    pub(crate) fn take(&self, into: &mut VecDeque<FromStore>) {
        debug_assert!(into.is_empty());
        let mut state = self.lock();
        std::mem::swap(&mut state.items, into);
        // Nobody waits for room in an empty queue, and telling nobody is a system call, too.
        let full = std::mem::take(&mut state.frame_bytes) > 0;
        state.facts = 0;
        drop(state);
        if full {
            self.room.notify_all();
        }
    }

    /// Nobody will take anything any more: whoever waits goes on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        drop(state);
        self.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    fn node(id: u8) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn frames(bytes: usize) -> FromStore {
        FromStore::Frames { from: node(2), frames: vec![vec![0; bytes].into()] }
    }

    #[test]
    fn frames_wait_for_room_and_facts_do_not() {
        let queue = Arc::new(StoreQueue::new(Bell::default()));
        queue.push(frames(FRAME_BYTES_MAX + 1));
        let reader = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.push(frames(1000))
        });
        for beat in 0..5000 {
            let fact =
                VolumeFact::PeerBeat { node: node(2), epoch: 1, beat, interval: Duration::ZERO };
            queue.push(FromStore::Fact(VolumeId(0), fact));
            let latency = Duration::ZERO;
            queue.push(FromStore::Fact(VolumeId(0), VolumeFact::TableRead { latency }));
        }
        let mut taken = VecDeque::new();
        queue.take(&mut taken);
        assert!(matches!(taken[0], FromStore::Frames { .. }));
        assert!(taken.len() <= FACTS_MAX + 2, "{}", taken.len());
        let newest = taken
            .iter()
            .any(|i| matches!(i, FromStore::Fact(_, VolumeFact::PeerBeat { beat: 4999, .. })));
        assert!(newest, "the newest beat stays");
        reader.join().unwrap();
        taken.clear();
        queue.take(&mut taken);
        assert_eq!(taken.len(), 1);
        queue.push(frames(FRAME_BYTES_MAX));
        queue.close();
        queue.push(frames(FRAME_BYTES_MAX));
    }
}
