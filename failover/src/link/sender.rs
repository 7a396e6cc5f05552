//! Departing frames: numbered, sealed once, kept until acknowledged, sent again when overdue.
//!
//! Every path the route names has a *pointer*: the next number to be sent there for the first
//! time. A new frame is simply behind both pointers; when a path joins the route its pointer goes
//! back to the floor, and everything unacknowledged follows in order. That one mechanism is the
//! whole of failover for data.
//!
//! Resends on a path that already carried a frame follow two rules. *Overtaken*: a higher number
//! came by that path, and the frame had time to: it is lost there. *Overdue*: nothing came for a
//! while: the oldest frame alone is sent again, so that order survives a path that heals.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    Path, Time,
    canary::{Bug, planted},
    queue::Queued,
    secure::{FrameKey, Sealed},
    wire::{
        Channel, HEADER, TAG,
        control::ChannelAck,
        data::{PREFIX, Prefix},
    },
};

/// Sendings of one frame on one path at most, beyond which only a change of path helps.
const TRIES_MAX: u8 = 6;
/// A frame that so many repairs did not bring there is stuck: at 10 % of loss, one in a thousand.
const REPAIRS: u8 = 2;
/// Flows remembered; beyond it those whose last frame is settled are forgotten.
const FLOWS_MAX: usize = 4096;

/// What sealing needs besides the packet.
#[derive(Debug)]
pub(crate) struct Sealer {
    pub(crate) key: FrameKey,
    pub(crate) generation: u32,
    /// Our id, the peer's id.
    pub(crate) ends: (u8, u8),
    /// The route is not the network alone.
    pub(crate) strict: bool,
}

/// What an acknowledgement settled.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acked {
    pub(crate) packets: u64,
    /// Frames that had been sent by the network and are settled now.
    pub(crate) network_frames: u64,
    /// From the only sending, by storage, of the newest frame settled.
    pub(crate) storage_delay: Option<Duration>,
}

/// One kept channel, sending.
#[derive(Debug)]
pub(crate) struct Sender {
    channel: Channel,
    ttl: Duration,
    /// Number of the first slot: the floor.
    base: u64,
    slots: VecDeque<Option<Kept>>,
    kept_bytes: usize,
    kept_packets: u64,
    flows: BTreeMap<u64, u64>,
    network: Lane,
    storage: Lane,
}

#[derive(Debug, Default)]
struct Lane {
    /// Next number to be sent on this path for the first time.
    pointer: u64,
    /// Highest number the peer says came this way.
    highest: u64,
    /// Bytes sent this way and unsettled.
    in_flight: usize,
    /// How many frames the peer says came this way.
    came: u64,
    /// First sending after the last time that count grew; silence is measured from there, and not
    /// from what is unsettled, because the other path may have settled it.
    silent_since: Option<Time>,
}

#[derive(Debug)]
struct Kept {
    frame: Sealed,
    packets: u64,
    accepted_at: Time,
    network: Sent,
    storage: Sent,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    at: Time,
    times: u8,
}

impl Kept {
    const fn sent(&self, path: Path) -> Sent {
        match path {
            Path::Network => self.network,
            Path::Storage => self.storage,
        }
    }

    const fn sent_mut(&mut self, path: Path) -> &mut Sent {
        match path {
            Path::Network => &mut self.network,
            Path::Storage => &mut self.storage,
        }
    }
}

impl Sender {
    pub(crate) fn new(channel: Channel, ttl: Duration) -> Self {
        Self {
            channel,
            ttl,
            base: 1,
            slots: VecDeque::new(),
            kept_bytes: 0,
            kept_packets: 0,
            flows: BTreeMap::new(),
            network: Lane { pointer: 1, ..Lane::default() },
            storage: Lane { pointer: 1, ..Lane::default() },
        }
    }

    pub(crate) const fn set_ttl(&mut self, ttl: Duration) {
        self.ttl = ttl;
    }

    /// Below this nothing is sent again.
    pub(crate) const fn floor(&self) -> u64 {
        self.base
    }

    fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// Packets kept.
    pub(crate) const fn packets(&self) -> u64 {
        self.kept_packets
    }

    /// Bytes kept.
    pub(crate) const fn bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Everything is settled.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Numbers are left for another frame. A number names a nonce: at the end of all numbers
    /// nothing is sealed any more, until another incarnation begins anew.
    pub(crate) fn has_number(&self) -> bool {
        (self.slots.len() as u64) < super::NUMBERS_MAX && self.end() < u64::MAX
    }

    /// Bytes sent by a path and unsettled.
    pub(crate) const fn in_flight(&self, path: Path) -> usize {
        self.lane(path).in_flight
    }

    const fn lane(&self, path: Path) -> &Lane {
        match path {
            Path::Network => &self.network,
            Path::Storage => &self.storage,
        }
    }

    const fn lane_mut(&mut self, path: Path) -> &mut Lane {
        match path {
            Path::Network => &mut self.network,
            Path::Storage => &mut self.storage,
        }
    }

    /// Numbers and seals a packet. It is sent by whatever path asks for its next frame.
    pub(crate) fn seal(&mut self, packet: Queued, sealer: &Sealer) {
        let number = self.end();
        let predecessor = self.flows.insert(packet.flow, number).filter(|p| *p >= self.base);
        let prefix = Prefix {
            is_super: packet.is_super,
            strict: sealer.strict || self.network.pointer < number,
            floor: if planted(Bug::HighFloor) { number } else { self.base },
            predecessor,
            accepted_at: packet.accepted_at,
        };
        let mut frame = packet.frame;
        frame.reserve_exact(TAG);
        prefix.write(number, &mut frame[HEADER..HEADER + PREFIX]);
        sealer.key.seal(self.channel, sealer.ends, sealer.generation, number, &mut frame);
        self.kept_bytes += frame.len();
        self.kept_packets += packet.packets;
        self.slots.push_back(Some(Kept {
            frame: frame.into(),
            packets: packet.packets,
            accepted_at: packet.accepted_at,
            network: Sent::default(),
            storage: Sent::default(),
        }));
        if self.flows.len() > FLOWS_MAX {
            let base = self.base;
            self.flows.retain(|_, last| *last >= base);
        }
    }

    /// A path joins the route: everything unsettled goes there again, oldest first.
    pub(crate) fn rewind(&mut self, path: Path) {
        for kept in self.slots.iter_mut().flatten() {
            *kept.sent_mut(path) = Sent::default();
        }
        let base = self.base;
        let lane = self.lane_mut(path);
        lane.pointer = base;
        lane.in_flight = 0;
        lane.silent_since = None;
    }

    /// A path joins the route for new frames only.
    pub(crate) fn skip(&mut self, path: Path) {
        let end = self.end();
        let lane = self.lane_mut(path);
        lane.pointer = end;
        lane.silent_since = None;
    }

    /// A path leaves the route: its silence says nothing any more.
    pub(crate) const fn leave(&mut self, path: Path) {
        self.lane_mut(path).silent_since = None;
    }

    /// Length of the next frame for a path.
    pub(crate) fn peek(&mut self, path: Path) -> Option<usize> {
        let end = self.end();
        let (base, mut pointer) = (self.base, self.lane(path).pointer.max(self.base));
        let mut found = None;
        while pointer < end {
            found = self.slot(pointer - base).map(|kept| kept.frame.len());
            if found.is_some() {
                break;
            }
            pointer += 1;
        }
        self.lane_mut(path).pointer = pointer;
        found
    }

    fn slot(&self, offset: u64) -> Option<&Kept> {
        self.slots.get(usize::try_from(offset).ok()?)?.as_ref()
    }

    /// The next frame for a path.
    pub(crate) fn take(&mut self, now: Time, path: Path) -> Option<Sealed> {
        self.peek(path)?;
        let number = self.lane(path).pointer;
        let frame = self.sent(now, path, number)?;
        self.lane_mut(path).pointer = number + 1;
        Some(frame)
    }

    /// Notes one sending of a frame.
    fn sent(&mut self, now: Time, path: Path, number: u64) -> Option<Sealed> {
        let offset = usize::try_from(number - self.base).ok()?;
        let kept = self.slots.get_mut(offset)?.as_mut()?;
        let sent = kept.sent_mut(path);
        let first = sent.times == 0;
        *sent = Sent { at: now, times: sent.times.saturating_add(1) };
        let frame = kept.frame.clone();
        let lane = self.lane_mut(path);
        if first {
            lane.in_flight += frame.len();
        }
        lane.silent_since.get_or_insert(now);
        Some(frame)
    }

    /// Frames to send again on a path, at most `max`. `patience` is what a frame is given to be
    /// acknowledged there.
    pub(crate) fn overdue(
        &mut self,
        now: Time,
        path: Path,
        patience: Duration,
        max: usize,
    ) -> Vec<Sealed> {
        let lane = self.lane(path);
        let (highest, pointer) = (lane.highest, lane.pointer);
        let mut due = Vec::new();
        let mut oldest = true;
        for (number, kept) in (self.base..pointer).zip(&self.slots) {
            let Some(kept) = kept else { continue };
            let sent = kept.sent(path);
            if sent.times == 0 {
                continue;
            }
            let overtaken = number < highest;
            if !overtaken && !oldest {
                break;
            }
            oldest = false;
            let wait = patience * (1 << u32::from(sent.times - 1).min(6));
            let wait = if overtaken && sent.times == 1 { patience / 2 } else { wait };
            if sent.times < TRIES_MAX && now.since(sent.at) >= wait {
                due.push(number);
                if due.len() == max {
                    break;
                }
            }
        }
        due.into_iter().filter_map(|number| self.sent(now, path, number)).collect()
    }

    /// For a planted bug: what was sent last counts as settled.
    #[cfg(feature = "canary")]
    pub(crate) fn settle_last(&mut self, now: Time, path: Path) -> u64 {
        let number = self.lane(path).pointer - 1;
        let packets = self.settle(now, number, None);
        self.advance();
        packets
    }

    /// How long ago something was sent by a path after which nothing was seen to come that way.
    pub(crate) fn silence(&self, now: Time, path: Path) -> Duration {
        self.lane(path).silent_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// How old the oldest frame is, if sending and repairing it by a path was all in vain: what
    /// others of the channel leave there by way of a trace says nothing about it.
    pub(crate) fn stuck(&self, now: Time, path: Path) -> Duration {
        let oldest = self.slots.iter().flatten().next();
        oldest
            .filter(|kept| kept.sent(path).times > REPAIRS)
            .map_or(Duration::ZERO, |kept| now.since(kept.accepted_at))
    }

    /// Takes a receipt.
    pub(crate) fn acknowledged(&mut self, now: Time, ack: &ChannelAck) -> Acked {
        let mut acked = Acked::default();
        for (path, (highest, came)) in [(Path::Network, ack.network), (Path::Storage, ack.storage)]
        {
            let lane = self.lane_mut(path);
            lane.highest = lane.highest.max(highest);
            if came > lane.came {
                lane.came = came;
                lane.silent_since = None;
            }
        }
        let end = self.end();
        for number in self.base..ack.cumulative.min(end) {
            self.settle(now, number, Some(&mut acked));
        }
        let mut at = ack.cumulative;
        for (gap, run) in &ack.ranges {
            let from = at.saturating_add(u64::from(*gap));
            at = from.saturating_add(u64::from(*run));
            for number in from.max(self.base)..at.min(end) {
                self.settle(now, number, Some(&mut acked));
            }
        }
        self.advance();
        acked
    }

    fn settle(&mut self, now: Time, number: u64, acked: Option<&mut Acked>) -> u64 {
        let Some(kept) = usize::try_from(number - self.base)
            .ok()
            .and_then(|offset| self.slots.get_mut(offset))
            .and_then(Option::take)
        else {
            return 0;
        };
        self.kept_bytes -= kept.frame.len();
        self.kept_packets -= kept.packets;
        for path in [Path::Network, Path::Storage] {
            if kept.sent(path).times > 0 {
                self.lane_mut(path).in_flight -= kept.frame.len();
            }
        }
        if let Some(acked) = acked {
            acked.packets += kept.packets;
            acked.network_frames += u64::from(kept.network.times > 0);
            if kept.network.times == 0 && kept.storage.times == 1 {
                acked.storage_delay = Some(now.since(kept.storage.at));
            }
        }
        kept.packets
    }

    fn advance(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
    }

    /// Gives up frames that outlived their time to live; returns the packets lost.
    pub(crate) fn expire(&mut self, now: Time) -> u64 {
        let mut lost = 0;
        for number in self.base..self.end() {
            match self.slot(number - self.base) {
                Some(kept) if now.since(kept.accepted_at) > self.ttl => {
                    lost += self.settle(now, number, None);
                }
                Some(_) => break,
                None => {}
            }
        }
        self.advance();
        lost
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn next_expiry(&self) -> Time {
        match self.slots.iter().flatten().next() {
            Some(kept) => kept.accepted_at + self.ttl + Duration::from_micros(1),
            None => Time::NEVER,
        }
    }

    /// Every frame was settled, or sent by the network too, or will be: nothing depends on
    /// storage. (A frame that storage had no room for yet depends on it as well, once the
    /// network's pointer has passed it: nobody else would send it.)
    pub(crate) fn independent_of_storage(&self) -> bool {
        (self.base..self.network.pointer)
            .zip(&self.slots)
            .all(|(_, kept)| kept.as_ref().is_none_or(|k| k.network.times > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Class;

    const MS: u64 = 1000;
    const PATIENCE: Duration = Duration::from_millis(10);

    fn sender() -> Sender {
        Sender::new(Channel::Datagram, Duration::from_secs(5))
    }

    #[test]
    fn numbers_end_and_do_not_begin_again() {
        let mut tx = sender();
        tx.base = u64::MAX - 1;
        assert!(tx.has_number());
        tx.slots.push_back(None);
        assert!(!tx.has_number(), "the last number is nobody's");
        tx.advance();
        assert_eq!(tx.floor(), u64::MAX);
        assert!(!tx.has_number());
    }

    fn seal(sender: &mut Sender, now: Time, flow: u64) {
        let packet = Queued {
            frame: vec![0; HEADER + PREFIX + 10],
            is_super: false,
            packets: 1,
            class: Class::Write,
            flow,
            accepted_at: now,
        };
        let key = FrameKey::derive(&[1; 32], b"k");
        sender.seal(packet, &Sealer { key, generation: 1, ends: (1, 2), strict: false });
    }

    fn number(frame: &Sealed) -> u64 {
        crate::wire::Header::read(frame).unwrap().number
    }

    fn ack(cumulative: u64, ranges: &[(u32, u32)], network: u64) -> ChannelAck {
        ChannelAck { cumulative, ranges: ranges.to_vec(), network: (network, 0), storage: (0, 0) }
    }

    #[test]
    fn a_path_that_joins_gets_everything_unsettled_in_order() {
        let mut sender = sender();
        for _ in 0..4 {
            seal(&mut sender, Time(0), 7);
            sender.take(Time(0), Path::Network).unwrap();
        }
        sender.acknowledged(Time(1), &ack(2, &[(1, 1)], 3));
        sender.rewind(Path::Storage);
        let mut sent = Vec::new();
        while let Some(frame) = sender.take(Time(2), Path::Storage) {
            sent.push(number(&frame));
        }
        assert_eq!(sent, [2, 4]);
        assert_eq!(sender.floor(), 2);
    }

    #[test]
    fn the_same_bytes_cross_both_paths() {
        let mut sender = sender();
        seal(&mut sender, Time(0), 7);
        let network = sender.take(Time(0), Path::Network);
        sender.rewind(Path::Storage);
        assert_eq!(network, sender.take(Time(0), Path::Storage));
    }

    #[test]
    fn an_overtaken_frame_is_sent_again_and_an_overdue_tail_alone() {
        let mut sender = sender();
        for _ in 0..5 {
            seal(&mut sender, Time(0), 7);
            sender.take(Time(0), Path::Network).unwrap();
        }
        sender.acknowledged(Time(MS), &ack(2, &[(1, 1)], 3));
        assert!(sender.overdue(Time(4 * MS), Path::Network, PATIENCE, 9).is_empty(), "too early");
        let again = sender.overdue(Time(5 * MS), Path::Network, PATIENCE, 9);
        assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [2], "3 came, 2 did not");
        sender.acknowledged(Time(6 * MS), &ack(4, &[], 3));
        assert!(sender.overdue(Time(9 * MS), Path::Network, PATIENCE, 9).is_empty());
        let again = sender.overdue(Time(10 * MS), Path::Network, PATIENCE, 9);
        assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [4], "the oldest of the tail");
        assert!(sender.overdue(Time(20 * MS), Path::Network, PATIENCE, 9).is_empty(), "backs off");
        assert_eq!(sender.overdue(Time(30 * MS), Path::Network, PATIENCE, 9).len(), 1);
    }

    #[test]
    fn expiry_moves_the_floor_and_counts() {
        let mut sender = sender();
        seal(&mut sender, Time(0), 1);
        seal(&mut sender, Time(9 * MS), 1);
        assert_eq!(sender.expire(Time(5_000 * MS)), 0);
        assert_eq!(sender.expire(Time(5_000 * MS + 1)), 1);
        assert_eq!((sender.floor(), sender.packets()), (2, 1));
    }

    #[test]
    fn a_frame_that_no_path_had_room_for_is_not_forgotten_on_the_way_back() {
        let mut sender = sender();
        seal(&mut sender, Time(0), 1);
        sender.take(Time(0), Path::Storage).unwrap();
        seal(&mut sender, Time(0), 1);
        // The window of storage is full when the network is good again; then a receipt comes.
        sender.skip(Path::Network);
        sender.acknowledged(Time(MS), &ack(2, &[], 0));
        assert!(!sender.independent_of_storage(), "2 was sent nowhere, and the network is past it");
        sender.rewind(Path::Network);
        assert!(sender.independent_of_storage());
        assert_eq!(number(&sender.take(Time(MS), Path::Network).unwrap()), 2);
        assert!(sender.independent_of_storage(), "the network has it, received or not");
    }

    #[test]
    fn a_frame_is_stuck_when_repairs_are_in_vain_whatever_else_arrives() {
        let mut sender = sender();
        for now in [0, 1] {
            seal(&mut sender, Time(now), 1);
            sender.take(Time(now), Path::Network).unwrap();
        }
        sender.acknowledged(Time(MS), &ChannelAck { network: (2, 1), ..ack(1, &[(1, 1)], 2) });
        assert_eq!(sender.silence(Time(50 * MS), Path::Network), Duration::ZERO, "2 came");
        for at in [50 * MS, 100 * MS] {
            assert_eq!(sender.stuck(Time(at), Path::Network), Duration::ZERO);
            assert_eq!(sender.overdue(Time(at), Path::Network, PATIENCE, 9).len(), 1);
        }
        assert_eq!(sender.stuck(Time(100 * MS), Path::Network), Duration::from_millis(100));
        assert_eq!(sender.stuck(Time(100 * MS), Path::Storage), Duration::ZERO);
        sender.rewind(Path::Network);
        assert_eq!(sender.stuck(Time(100 * MS), Path::Network), Duration::ZERO, "tried anew");
    }

    #[test]
    fn in_flight_bytes_add_up_to_zero() {
        let mut sender = sender();
        for _ in 0..3 {
            seal(&mut sender, Time(0), 1);
            sender.take(Time(0), Path::Network).unwrap();
            sender.take(Time(0), Path::Storage).unwrap();
        }
        assert!(sender.in_flight(Path::Storage) > 0);
        let acked = sender.acknowledged(Time(MS), &ack(4, &[], 0));
        assert_eq!((acked.packets, acked.network_frames), (3, 3));
        assert_eq!(sender.in_flight(Path::Storage) + sender.in_flight(Path::Network), 0);
        assert_eq!((sender.bytes(), sender.packets(), sender.is_empty()), (0, 0, true));
    }

    #[test]
    fn flows_that_ended_are_forgotten_when_there_are_too_many() {
        let mut tx = sender();
        let most = FLOWS_MAX as u64;
        for flow in 1..most {
            seal(&mut tx, Time(0), flow);
        }
        tx.acknowledged(Time(1), &ack(most, &[], 0));
        seal(&mut tx, Time(1), most);
        assert_eq!(tx.flows.len(), FLOWS_MAX);
        seal(&mut tx, Time(1), most + 1);
        let kept: Vec<_> = tx.flows.keys().copied().collect();
        assert_eq!(kept, [most, most + 1], "those with something unsettled");
    }
}
