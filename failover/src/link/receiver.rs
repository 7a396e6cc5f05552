//! Arriving frames: second copies dropped, flows in order, receipts signed.
//!
//! Order is per flow. A frame names its predecessor in its flow if that was not yet acknowledged
//! when the frame was sealed. It is handed on at once when the predecessor is settled (handed on,
//! dropped, or below the sender's floor); otherwise it is held: as long as it lives when its flow
//! changed path ("strict"), else for [`HOLD`], because on one path a hole is repaired within a few
//! round trips or not worth waiting for. Flows never wait for each other.
//!
//! Awkward cases: a chain of held frames is released as a whole; the floor may pass a predecessor
//! that never comes, which settles it; memory is bounded, and the oldest held frame goes first
//! when the bound is reached (late is harmless, lost is not).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use bytes::Bytes;

use super::{Insert, Window};
use crate::{
    Path, Time,
    canary::{Bug, planted},
    wire::{control::ChannelAck, data::Prefix},
};

/// How long a frame waits for its predecessor when the flow did not change path.
const HOLD: Duration = Duration::from_millis(150);
/// Bounds of what is held.
const HELD_BYTES_MAX: usize = 16 << 20;
const HELD_FRAMES_MAX: usize = 16_384;
/// Runs named in an acknowledgement at most.
const RANGES_MAX: usize = 48;
/// Frames after which an acknowledgement goes out without waiting.
const ACK_FRAMES: u32 = 32;

/// A packet to be handed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// `virtio_net_hdr` and packet.
    pub(crate) packet: Bytes,
    /// Its time to live ends then: a loop that slept while it was held must not hand it on.
    pub(crate) expires: Time,
}

/// What arrived, opened.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) path: Path,
    pub(crate) number: u64,
    pub(crate) prefix: Prefix,
    /// `virtio_net_hdr` and packet.
    pub(crate) packet: Bytes,
    /// Time left to live; `None` when it is over.
    pub(crate) left: Option<Duration>,
}

/// Why an arrival was not handed on and never will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    Duplicate,
    Stale,
    Beyond,
}

impl Dropped {
    pub(crate) const fn cause(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Stale => "ttl",
            Self::Beyond => "beyond_window",
        }
    }
}

/// One kept channel, receiving.
#[derive(Debug)]
pub(crate) struct Receiver {
    window: Window,
    held: BTreeMap<u64, Held>,
    held_bytes: usize,
    /// Predecessor to the frame that waits for it.
    waiting: BTreeMap<u64, u64>,
    deadlines: BTreeSet<(Time, u64)>,
    by_network: (u64, u64),
    by_storage: (u64, u64),
    unacknowledged: u32,
    ack_at: Time,
}

struct Held {
    packet: Bytes,
    predecessor: u64,
    deadline: Time,
    expires: Time,
}

/// Without what the packet says: a node may be shown in a log or a bug report.
impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("bytes", &self.packet.len())
            .field("predecessor", &self.predecessor)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Self {
            window: Window::new(),
            held: BTreeMap::new(),
            held_bytes: 0,
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            by_network: (0, 0),
            by_storage: (0, 0),
            unacknowledged: 0,
            ack_at: Time::NEVER,
        }
    }

    /// Frames held.
    pub(crate) fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// Takes a frame; whatever may be handed on now goes to `out`.
    pub(crate) fn arrive(
        &mut self,
        now: Time,
        arrival: Arrival,
        ack_delay: Duration,
        out: &mut Vec<Delivery>,
    ) -> Result<(), Dropped> {
        let Arrival { path, number, prefix, packet, left } = arrival;
        let seen = match path {
            Path::Network => &mut self.by_network,
            Path::Storage => &mut self.by_storage,
        };
        *seen = (seen.0.max(number), seen.1 + 1);
        self.raise(prefix.floor, out);
        let inserted = self.window.insert(number);
        if inserted == Insert::Beyond {
            return Err(Dropped::Beyond);
        }
        self.unacknowledged += 1;
        let urgent = self.unacknowledged >= ACK_FRAMES
            || self.window.has_gap()
            || inserted == Insert::Duplicate;
        self.ack_at = self.ack_at.min(if urgent { now } else { now + ack_delay });
        if inserted == Insert::Duplicate && !planted(Bug::ForgetDuplicates) {
            return Err(Dropped::Duplicate);
        }
        let Some(left) = left else {
            self.settle(number, out);
            return Err(Dropped::Stale);
        };
        let expires = now + left;
        match prefix.predecessor.filter(|p| !self.is_settled(*p) && !planted(Bug::NoOrder)) {
            None => {
                out.push(Delivery { packet, expires });
                self.settle(number, out);
            }
            Some(predecessor) => {
                let deadline = now + if prefix.strict { left } else { left.min(HOLD) };
                self.hold(number, Held { packet, predecessor, deadline, expires }, out);
            }
        }
        Ok(())
    }

    fn is_settled(&self, number: u64) -> bool {
        self.window.contains(number) && !self.held.contains_key(&number)
    }

    fn hold(&mut self, number: u64, held: Held, out: &mut Vec<Delivery>) {
        while self.held.len() >= HELD_FRAMES_MAX || self.held_bytes >= HELD_BYTES_MAX {
            let Some(oldest) = self.held.keys().next().copied() else { break };
            self.release(oldest, out);
        }
        self.held_bytes += held.packet.len();
        self.deadlines.insert((held.deadline, number));
        // Two frames never name one predecessor: a flow is a chain. If a sender breaks that, the
        // one displaced here leaves by its deadline.
        self.waiting.insert(held.predecessor, number);
        self.held.insert(number, held);
    }

    /// Hands on a held frame and whatever waited for it.
    fn release(&mut self, number: u64, out: &mut Vec<Delivery>) {
        if let Some(delivery) = self.take(number) {
            out.push(delivery);
            self.settle(number, out);
        }
    }

    fn take(&mut self, number: u64) -> Option<Delivery> {
        let held = self.held.remove(&number)?;
        self.held_bytes -= held.packet.len();
        self.deadlines.remove(&(held.deadline, number));
        if self.waiting.get(&held.predecessor) == Some(&number) {
            self.waiting.remove(&held.predecessor);
        }
        Some(Delivery { packet: held.packet, expires: held.expires })
    }

    /// `number` is settled: hands on the chain behind it.
    fn settle(&mut self, mut number: u64, out: &mut Vec<Delivery>) {
        while let Some(next) = self.waiting.remove(&number) {
            let Some(delivery) = self.take(next) else { break };
            out.push(delivery);
            number = next;
        }
    }

    /// The sender will send nothing below `floor` any more: nobody waits for that.
    pub(crate) fn raise(&mut self, floor: u64, out: &mut Vec<Delivery>) {
        self.window.raise(floor);
        let free: Vec<u64> = self
            .waiting
            .range(..floor)
            .filter(|(predecessor, _)| !self.held.contains_key(predecessor))
            .map(|(_, number)| *number)
            .collect();
        for number in free {
            if planted(Bug::DropHeld) {
                self.take(number);
            }
            self.release(number, out);
        }
    }

    /// Hands on what has waited long enough.
    pub(crate) fn poll(&mut self, now: Time, out: &mut Vec<Delivery>) {
        while let Some((deadline, number)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            // Its predecessor may be held as well, and older: that goes first.
            let mut first = number;
            while let Some(held) = self.held.get(&first)
                && self.held.contains_key(&held.predecessor)
            {
                first = held.predecessor;
            }
            self.release(first, out);
        }
    }

    /// When [`Self::poll`] has something to do.
    pub(crate) fn next(&self) -> Time {
        self.deadlines.first().map_or(Time::NEVER, |d| d.0)
    }

    /// When an acknowledgement is due.
    pub(crate) const fn ack_at(&self) -> Time {
        self.ack_at
    }

    /// The receipt, as of now.
    pub(crate) fn acknowledge(&mut self) -> ChannelAck {
        self.unacknowledged = 0;
        self.ack_at = Time::NEVER;
        ChannelAck {
            cumulative: if planted(Bug::AckUnread) {
                self.by_network.0.max(self.by_storage.0) + 1
            } else {
                self.window.base()
            },
            ranges: self.window.ranges(RANGES_MAX),
            network: self.by_network,
            storage: self.by_storage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        receiver: Receiver,
        out: Vec<Delivery>,
    }

    impl Bench {
        fn new() -> Self {
            Self { receiver: Receiver::new(), out: Vec::new() }
        }

        fn arrive(
            &mut self,
            ms: u64,
            number: u64,
            predecessor: Option<u64>,
        ) -> Result<(), Dropped> {
            self.arrive_with(ms, number, predecessor, false, 1)
        }

        fn arrive_with(
            &mut self,
            ms: u64,
            number: u64,
            predecessor: Option<u64>,
            strict: bool,
            floor: u64,
        ) -> Result<(), Dropped> {
            let arrival = Arrival {
                path: Path::Network,
                number,
                prefix: Prefix {
                    is_super: false,
                    strict,
                    floor,
                    predecessor,
                    accepted_at: Time::ZERO,
                },
                packet: Bytes::from(vec![u8::try_from(number).unwrap()]),
                left: Some(Duration::from_secs(5)),
            };
            let now = Time(ms * 1000);
            self.receiver.arrive(now, arrival, Duration::from_millis(2), &mut self.out)
        }

        fn delivered(&mut self) -> Vec<u8> {
            self.out.drain(..).map(|d| d.packet[0]).collect()
        }
    }

    #[test]
    fn a_flow_waits_for_its_own_hole_and_other_flows_do_not() {
        let mut bench = Bench::new();
        bench.arrive(0, 1, None).unwrap();
        bench.arrive(0, 4, Some(3)).unwrap();
        bench.arrive(0, 5, None).unwrap();
        bench.arrive(0, 6, Some(4)).unwrap();
        assert_eq!(bench.delivered(), [1, 5]);
        bench.arrive(1, 3, Some(1)).unwrap();
        assert_eq!(bench.delivered(), [3, 4, 6]);
        assert_eq!(bench.receiver.held(), 0);
    }

    #[test]
    fn duplicates_are_dropped_and_acknowledged_again() {
        let mut bench = Bench::new();
        bench.arrive(0, 1, None).unwrap();
        let _ = bench.receiver.acknowledge();
        assert_eq!(bench.arrive(1, 1, None), Err(Dropped::Duplicate));
        assert_eq!(bench.receiver.ack_at(), Time(1000), "the first receipt may be lost");
    }

    #[test]
    fn a_hold_ends_at_its_bound_and_a_strict_one_does_not() {
        let mut bench = Bench::new();
        bench.arrive(0, 2, Some(1)).unwrap();
        bench.receiver.poll(Time(149_999), &mut bench.out);
        assert_eq!(bench.delivered(), []);
        bench.receiver.poll(Time(150_000), &mut bench.out);
        assert_eq!(bench.delivered(), [2]);
        bench.arrive_with(200, 9, Some(8), true, 1).unwrap();
        bench.receiver.poll(Time(4_000_000), &mut bench.out);
        assert_eq!(bench.delivered(), []);
        bench.receiver.raise(9, &mut bench.out);
        assert_eq!(bench.delivered(), [9], "the floor passed its predecessor");
    }

    #[test]
    fn what_was_held_says_when_it_is_too_old() {
        let mut bench = Bench::new();
        bench.arrive(0, 2, Some(1)).unwrap();
        // The loop slept for six seconds; then the predecessor settles it.
        bench.arrive(6_000, 1, None).unwrap();
        let expires: Vec<_> = bench.out.iter().map(|d| d.expires).collect();
        assert_eq!(expires, [Time(11_000_000), Time(5_000_000)]);
    }

    #[test]
    fn an_acknowledgement_names_holes() {
        let mut bench = Bench::new();
        for number in [1, 2, 5, 6, 9] {
            bench.arrive(0, number, None).unwrap();
        }
        let ack = bench.receiver.acknowledge();
        assert_eq!((ack.cumulative, ack.ranges), (3, vec![(2, 2), (2, 1)]));
        assert_eq!(ack.network, (9, 5));
    }

    #[test]
    fn a_receipt_waits_unless_something_is_odd() {
        let mut bench = Bench::new();
        assert_eq!(bench.receiver.ack_at(), Time::NEVER);
        for number in 1..ACK_FRAMES {
            bench.arrive(u64::from(number), number.into(), None).unwrap();
            assert_eq!(bench.receiver.ack_at(), Time(3_000), "counted from the first");
        }
        bench.arrive(2, ACK_FRAMES.into(), None).unwrap();
        assert_eq!(bench.receiver.ack_at(), Time(2_000), "so many do not wait");
        assert_eq!(bench.receiver.acknowledge().cumulative, u64::from(ACK_FRAMES) + 1);
        assert_eq!(bench.receiver.ack_at(), Time::NEVER);
        // The count begins anew; a hole does not wait.
        bench.arrive(40, 33, None).unwrap();
        assert_eq!(bench.receiver.ack_at(), Time(42_000));
        bench.arrive(41, 35, None).unwrap();
        assert_eq!(bench.receiver.ack_at(), Time(41_000));
    }

    #[test]
    fn a_number_no_honest_sender_uses_leaves_no_trace() {
        let mut bench = Bench::new();
        let arrival = |number, path| Arrival {
            path,
            number,
            prefix: Prefix {
                is_super: false,
                strict: false,
                floor: 1,
                predecessor: None,
                accepted_at: Time::ZERO,
            },
            packet: Bytes::from_static(b"x"),
            left: Some(HOLD),
        };
        let mut arrive = |number, path| {
            let arrival = arrival(number, path);
            bench.receiver.arrive(Time(0), arrival, HOLD, &mut bench.out)
        };
        assert_eq!(arrive(1 << 40, Path::Network), Err(Dropped::Beyond));
        assert_eq!(arrive(2, Path::Storage), Ok(()));
        assert_eq!(arrive(1, Path::Storage), Ok(()));
        let ack = bench.receiver.acknowledge();
        assert_eq!((ack.cumulative, ack.storage), (3, (2, 2)), "highest, and how many");
    }

    #[test]
    fn an_acknowledgement_names_the_oldest_runs_only() {
        let mut bench = Bench::new();
        for number in 1..=60 {
            bench.arrive(0, 2 * number, None).unwrap();
        }
        assert_eq!(bench.receiver.acknowledge().ranges, vec![(1, 1); RANGES_MAX]);
    }

    #[test]
    fn a_frame_that_came_too_late_still_settles_what_waits_for_it() {
        let mut bench = Bench::new();
        bench.arrive(0, 2, Some(1)).unwrap();
        let late = Arrival {
            path: Path::Network,
            number: 1,
            prefix: Prefix {
                is_super: false,
                strict: false,
                floor: 1,
                predecessor: None,
                accepted_at: Time::ZERO,
            },
            packet: Bytes::from_static(b"late"),
            left: None,
        };
        let Bench { receiver, out } = &mut bench;
        assert_eq!(receiver.arrive(Time(1), late, HOLD, out), Err(Dropped::Stale));
        assert_eq!(bench.delivered(), [2]);
        assert_eq!(bench.receiver.acknowledge().cumulative, 3, "it need not be sent again");
    }

    #[test]
    fn the_floor_frees_a_chain_from_its_oldest() {
        let mut bench = Bench::new();
        bench.arrive(0, 4, Some(3)).unwrap();
        bench.arrive(0, 3, Some(2)).unwrap();
        bench.receiver.raise(2, &mut bench.out);
        assert_eq!(bench.delivered(), [], "2 may still come");
        bench.receiver.raise(4, &mut bench.out);
        assert_eq!(bench.delivered(), [3, 4]);
        assert_eq!(bench.receiver.next(), Time::NEVER);
    }

    #[test]
    fn patience_of_one_frame_ends_for_those_before_it_as_well() {
        let mut bench = Bench::new();
        bench.arrive_with(0, 2, Some(1), true, 1).unwrap();
        assert_eq!(bench.receiver.next(), Time(5_000_000));
        bench.arrive(0, 3, Some(2)).unwrap();
        assert_eq!((bench.receiver.next(), bench.receiver.held()), (Time(150_000), 2));
        bench.receiver.poll(Time(150_000), &mut bench.out);
        assert_eq!(bench.delivered(), [2, 3], "in order");
        assert_eq!((bench.receiver.next(), bench.receiver.held()), (Time::NEVER, 0));
    }

    /// Frames `2 * n`, each of a flow whose frame before is missing.
    fn held(bench: &mut Bench, n: std::ops::Range<u64>, packet: &Bytes) -> Vec<usize> {
        for number in n.map(|n| 2 * n) {
            let prefix = Prefix {
                is_super: false,
                strict: true,
                floor: 1,
                predecessor: Some(number - 1),
                accepted_at: Time::ZERO,
            };
            let (packet, left) = (packet.clone(), Some(Duration::from_secs(5)));
            let arrival = Arrival { path: Path::Storage, number, prefix, packet, left };
            bench.receiver.arrive(Time(0), arrival, HOLD, &mut bench.out).unwrap();
        }
        bench.out.drain(..).map(|d| d.packet.len()).collect()
    }

    #[test]
    fn what_is_held_is_bounded_and_the_oldest_goes_first() {
        let mut bench = Bench::new();
        let large = |tag: usize| Bytes::from(vec![0; (1 << 20) + tag]);
        let fits = HELD_BYTES_MAX as u64 >> 20;
        assert_eq!(held(&mut bench, 1..2, &large(1)), []);
        assert_eq!(held(&mut bench, 2..1 + fits, &large(0)), []);
        assert_eq!(held(&mut bench, 1 + fits..2 + fits, &large(0)), [(1 << 20) + 1]);
        // Room that was given back is there again.
        bench.receiver.raise(1000, &mut bench.out);
        assert_eq!((bench.out.len() as u64, bench.receiver.held()), (fits, 0));
        bench.out.clear();
        assert_eq!(held(&mut bench, 1000..1000 + fits, &large(0)), []);

        let mut bench = Bench::new();
        let fits = HELD_FRAMES_MAX as u64;
        assert_eq!(held(&mut bench, 1..1 + fits, &Bytes::from_static(b"s")), []);
        assert_eq!(held(&mut bench, 1 + fits..4 + fits, &Bytes::from_static(b"s")), [1; 3]);
    }

    #[test]
    fn what_packets_say_is_not_in_a_bug_report() {
        let mut bench = Bench::new();
        held(&mut bench, 1..2, &Bytes::from_static(b"secret"));
        let shown = format!("{:?}", bench.receiver);
        assert!(shown.contains("bytes: 6") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn causes_are_the_words_of_the_status() {
        let causes = [Dropped::Duplicate, Dropped::Stale, Dropped::Beyond].map(Dropped::cause);
        assert_eq!(causes, ["duplicate", "ttl", "beyond_window"]);
    }
}
