//! Packets that wait for a route to one peer: by class, strict priority, bounded in bytes and age.
//!
//! Priorities live here and nowhere else. A full queue refuses the new packet; an accepted one is
//! never evicted for another. (Not to be confused with the *outbox* of a volume, which holds
//! sealed frames of one batch.)

use std::{collections::VecDeque, fmt, time::Duration};

use crate::{Time, packet::Class};

/// A packet that waits.
pub(crate) struct Queued {
    /// Room for a frame's header and prefix, then the packet (with its `virtio_net_hdr` in front
    /// when `is_super`).
    pub(crate) frame: Vec<u8>,
    pub(crate) is_super: bool,
    /// What it counts as until it is split.
    pub(crate) packets: u64,
    pub(crate) class: Class,
    pub(crate) flow: u64,
    pub(crate) accepted_at: Time,
}

/// Without what the packet says: a node may be shown in a log or a bug report.
impl fmt::Debug for Queued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queued")
            .field("bytes", &self.frame.len())
            .field("packets", &self.packets)
            .field("class", &self.class)
            .field("flow", &self.flow)
            .field("accepted_at", &self.accepted_at)
            .finish_non_exhaustive()
    }
}

/// The queues of one peer.
#[derive(Debug)]
pub(crate) struct Queues {
    express: Queue,
    write: Queue,
    read: Queue,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Queued>,
    bytes: usize,
    bytes_max: usize,
    ttl: Duration,
}

impl Queue {
    fn pop(&mut self) -> Option<Queued> {
        let packet = self.waiting.pop_front()?;
        self.bytes -= packet.frame.len();
        Some(packet)
    }
}

impl Queues {
    pub(crate) fn new(bytes_max: usize, express_ttl: Duration, write_ttl: Duration) -> Self {
        let queue = |bytes_max, ttl| Queue { bytes_max, ttl, ..Queue::default() };
        Self {
            // Express flows are thin; an eighth keeps them from holding what nobody waits for.
            express: queue(bytes_max / 8, express_ttl),
            write: queue(bytes_max, write_ttl),
            read: queue(bytes_max / 8, write_ttl),
        }
    }

    pub(crate) const fn set_express_ttl(&mut self, ttl: Duration) {
        self.express.ttl = ttl;
    }

    fn of(&mut self, class: Class) -> &mut Queue {
        match class {
            Class::Express => &mut self.express,
            Class::Write => &mut self.write,
            Class::Read => &mut self.read,
        }
    }

    /// Takes a packet, or gives it back when its queue is full.
    pub(crate) fn push(&mut self, packet: Queued) -> Result<(), Queued> {
        let queue = self.of(packet.class);
        if queue.bytes + packet.frame.len() > queue.bytes_max {
            return Err(packet);
        }
        queue.bytes += packet.frame.len();
        queue.waiting.push_back(packet);
        Ok(())
    }

    /// The oldest packet of a class.
    pub(crate) fn front(&mut self, class: Class) -> Option<&Queued> {
        self.of(class).waiting.front()
    }

    /// Takes the oldest packet of a class.
    pub(crate) fn pop(&mut self, class: Class) -> Option<Queued> {
        self.of(class).pop()
    }

    /// Takes a packet that outlived its class's time to live.
    pub(crate) fn pop_stale(&mut self, now: Time) -> Option<Queued> {
        [&mut self.express, &mut self.write, &mut self.read].into_iter().find_map(|queue| {
            let front = queue.waiting.front()?;
            (now.since(front.accepted_at) > queue.ttl).then(|| queue.pop())?
        })
    }

    /// When the next packet gets stale.
    pub(crate) fn next_stale(&self) -> Time {
        [&self.express, &self.write, &self.read]
            .into_iter()
            .filter_map(|q| {
                q.waiting.front().map(|p| p.accepted_at + q.ttl + Duration::from_micros(1))
            })
            .min()
            .unwrap_or(Time::NEVER)
    }

    /// Packets waiting.
    pub(crate) fn packets(&self) -> u64 {
        [&self.express, &self.write, &self.read]
            .into_iter()
            .flat_map(|q| q.waiting.iter().map(|p| p.packets))
            .sum()
    }
}
