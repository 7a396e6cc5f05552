//! The pulse: small sealed datagrams on a schedule of their own.
//!
//! A nurse who takes a pulse must not be the one who carries the stretchers. Beats are sent and
//! opened by a [`Pulse`] of its own, which the hands drive from a thread with real-time priority,
//! while the node may be busy with a million packets. The two talk by messages: the node gives
//! [`BeatOrder`]s (keys, addresses, intervals), the pulse reports each [`Heard`] beat with the
//! moment it came off the wire. The pulse judges nobody; that is `health`.
//!
//! A beat says when the next is due, what its sender last heard from the receiver by each path,
//! and how far its node's turn loop has come, so that a live pulse cannot hide a stuck daemon.
//!
//! Awkward cases: after a re-key both keys of the peer open beats until the node drops the old
//! one; a beat number is never reused under a key, also not across [`BeatOrder::Keys`], because a
//! generation starts a key of its own; a replayed beat is older than the newest and is refused.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;

use crate::{
    NodeId, Path, Time,
    path::Route,
    secure::FrameKey,
    wire::{
        Channel, HEADER, Header, Malformed,
        control::{self, WireBeat},
    },
};

/// Longest beat, bytes.
const BEAT_MAX: usize = 256;

/// Content of a beat, also carried by storage as a pulse frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Sender's clock when it was sealed.
    pub sent_at: Time,
    /// How long until the next, at the latest.
    pub next_due: Duration,
    /// How long ago the sender's turn loop last ended a turn.
    pub loop_age: Duration,
    /// The newest beat the sender heard from us by the network.
    pub heard_network: Option<Echo>,
    /// Our newest sign of life the sender saw in storage.
    pub heard_storage: Option<Echo>,
    /// The route the sender's packets to us take.
    pub route: Route,
    /// The sender is about to stop.
    pub goodbye: bool,
    /// The sender drills this path to us.
    pub drill: Option<Path>,
}

/// What somebody last heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The `sent_at` of what was heard (hearer does not interpret it), or the counter of a storage
    /// beat.
    pub stamp: u64,
    /// How long before this beat was sealed it was heard.
    pub age: Duration,
}

impl Echo {
    /// How long the way there and back took, when the answer came at `at`.
    pub(crate) fn round(&self, at: Time) -> Duration {
        at.since(Time(self.stamp)).saturating_sub(self.age)
    }
}

/// A beat that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// From whom.
    pub peer: NodeId,
    /// When it came off the wire, by our clock.
    pub at: Time,
    /// Which one.
    pub number: u64,
    /// Under which keys.
    pub generation: u32,
    /// What it said.
    pub beat: Beat,
}

/// What the node tells the pulse.
#[derive(Debug, Clone)]
pub enum BeatOrder {
    /// Beat toward a peer from now on, or with new settings.
    Target {
        /// The peer.
        peer: NodeId,
        /// Where to; empty while nothing is known.
        endpoints: Vec<SocketAddr>,
        /// How often.
        interval: Duration,
    },
    /// Keys of a generation. Sending switches to them at once; the keys before stay for opening.
    Keys {
        /// The peer.
        peer: NodeId,
        /// Its incarnation: keys may be renewed, too.
        peer_epoch: u64,
        /// Which generation.
        generation: u32,
        /// Ours.
        seal: FrameKey,
        /// Theirs.
        open: FrameKey,
    },
    /// Nothing sealed under the keys before the newest can be alive: forget them.
    Retire {
        /// The peer.
        peer: NodeId,
    },
    /// What to say in the next beats.
    Say {
        /// The peer.
        peer: NodeId,
        /// Our newest sight of it in storage: stamp and when.
        heard_storage: Option<(u64, Time)>,
        /// Our route to it.
        route: Route,
        /// A drill of ours.
        drill: Option<Path>,
        /// We are about to stop.
        goodbye: bool,
    },
    /// Send one now, besides the schedule.
    Now {
        /// The peer.
        peer: NodeId,
    },
    /// Neither send to nor hear a peer (a drill), or do again.
    Mute {
        /// The peer.
        peer: NodeId,
        /// On or off.
        mute: bool,
    },
    /// Forget a peer.
    Remove {
        /// The peer.
        peer: NodeId,
    },
}

/// Sends and opens beats. Drive it from one thread: give it orders and datagrams as they come,
/// call [`Pulse::send`] when [`Pulse::next`] is due.
#[derive(Debug)]
pub struct Pulse {
    id: NodeId,
    peers: BTreeMap<NodeId, Target>,
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Target {
    endpoints: Vec<SocketAddr>,
    interval: Duration,
    due: Time,
    mute: bool,
    /// Newest first; the first seals.
    keys: Vec<BeatKeys>,
    /// The peer's incarnation.
    epoch: u64,
    heard_network: Option<(u64, Time)>,
    heard_storage: Option<(u64, Time)>,
    route: Route,
    drill: Option<Path>,
    goodbye: bool,
}

#[derive(Debug)]
struct BeatKeys {
    generation: u32,
    seal: FrameKey,
    open: FrameKey,
    next_number: u64,
    newest_heard: u64,
}

/// How many generations of keys a peer's beats may be opened with.
const GENERATIONS_MAX: usize = 2;

impl Target {
    fn silent() -> Self {
        Self {
            endpoints: Vec::new(),
            interval: Duration::from_millis(50),
            due: Time::ZERO,
            mute: false,
            keys: Vec::new(),
            epoch: 0,
            heard_network: None,
            heard_storage: None,
            route: Route::Isolated,
            drill: None,
            goodbye: false,
        }
    }

    fn next(&self) -> Time {
        if self.keys.is_empty() || self.endpoints.is_empty() || self.mute {
            Time::NEVER
        } else {
            self.due
        }
    }

    fn beat(&self, now: Time, loop_age: Duration) -> Beat {
        let echo = |heard: Option<(u64, Time)>| {
            heard.map(|(stamp, at)| Echo { stamp, age: now.since(at) })
        };
        Beat {
            sent_at: now,
            next_due: self.interval,
            loop_age,
            heard_network: echo(self.heard_network),
            heard_storage: echo(self.heard_storage),
            route: self.route,
            goodbye: self.goodbye,
            drill: self.drill,
        }
    }
}

impl Pulse {
    /// A pulse that beats toward nobody yet.
    #[must_use]
    pub const fn new(id: NodeId) -> Self {
        Self { id, peers: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Takes an order of the node.
    pub fn order(&mut self, now: Time, order: BeatOrder) {
        match order {
            BeatOrder::Target { peer, endpoints, interval } => {
                let target = self.target(peer);
                target.endpoints = endpoints;
                target.interval = interval;
                target.due = target.due.min(now + interval);
            }
            BeatOrder::Keys { peer, peer_epoch, generation, seal, open } => {
                let target = self.target(peer);
                // Another incarnation's clock began anew: what the old one stamped must not be
                // echoed to it. To the same one it must: nothing echoed would look like deafness.
                if std::mem::replace(&mut target.epoch, peer_epoch) != peer_epoch {
                    target.heard_network = None;
                }
                target.keys.insert(
                    0,
                    BeatKeys { generation, seal, open, next_number: 1, newest_heard: 0 },
                );
                target.keys.truncate(GENERATIONS_MAX);
                target.due = now;
            }
            BeatOrder::Retire { peer } => self.target(peer).keys.truncate(1),
            BeatOrder::Say { peer, heard_storage, route, drill, goodbye } => {
                let target = self.target(peer);
                target.heard_storage = heard_storage;
                target.route = route;
                target.drill = drill;
                target.goodbye = goodbye;
            }
            BeatOrder::Now { peer } => self.target(peer).due = now,
            BeatOrder::Mute { peer, mute } => self.target(peer).mute = mute,
            BeatOrder::Remove { peer } => {
                self.peers.remove(&peer);
            }
        }
    }

    fn target(&mut self, peer: NodeId) -> &mut Target {
        self.peers.entry(peer).or_insert_with(Target::silent)
    }

    /// Opens a datagram that came at `now`; `None` unless it is a fresh, authentic beat.
    pub fn open(&mut self, now: Time, bytes: &[u8]) -> Option<Heard> {
        match self.try_open(now, bytes) {
            Ok(heard) => heard,
            Err(cause) => {
                *self.refused.entry(cause).or_default() += 1;
                None
            }
        }
    }

    /// Datagrams refused since the start, by the causes `docs/wire.md` names.
    #[must_use]
    pub const fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    /// `Ok(None)`: a drill keeps us from hearing the peer.
    fn try_open(&mut self, now: Time, bytes: &[u8]) -> Result<Option<Heard>, &'static str> {
        let header = Header::read(bytes).map_err(Malformed::cause)?;
        if header.channel != Channel::Beat || bytes.len() > BEAT_MAX {
            return Err("malformed");
        }
        if header.to != self.id.get() {
            return Err("not_for_us");
        }
        let peer = NodeId::new(header.from).ok_or("unknown_peer")?;
        let target = self.peers.get_mut(&peer).ok_or("unknown_peer")?;
        if target.mute {
            return Ok(None);
        }
        let keys = target.keys.iter_mut().find(|k| k.generation == header.generation);
        let keys = keys.ok_or("unknown_key")?;
        if header.number <= keys.newest_heard {
            return Err("repeated");
        }
        let mut buffer = [0; BEAT_MAX];
        let frame = &mut buffer[..bytes.len()];
        frame.copy_from_slice(bytes);
        let body = keys.open.open(&header, frame).ok_or("forged")?;
        let beat = control::read::<WireBeat>(&frame[HEADER..HEADER + body]).ok_or("malformed")?;
        let beat = Beat::from(beat);
        keys.newest_heard = header.number;
        target.heard_network = Some((beat.sent_at.micros(), now));
        let (number, generation) = (header.number, header.generation);
        Ok(Some(Heard { peer, at: now, number, generation, beat }))
    }

    /// Hands every beat that is due to `put`; `loop_age` is how long ago the turn loop last ended
    /// a turn.
    pub fn send(
        &mut self,
        now: Time,
        loop_age: Duration,
        put: &mut dyn FnMut(NodeId, SocketAddr, Bytes),
    ) {
        for (peer, target) in &mut self.peers {
            if target.next() > now {
                continue;
            }
            target.due = now + target.interval;
            let beat = WireBeat::from(target.beat(now, loop_age));
            let Some(keys) = target.keys.first_mut() else { continue };
            let number = keys.next_number;
            // A number names a nonce: none is used twice, also not after the last one.
            let Some(next) = number.checked_add(1) else { continue };
            keys.next_number = next;
            let mut frame = control::write(&beat, vec![0; HEADER]);
            let ends = (self.id.get(), peer.get());
            keys.seal.seal(Channel::Beat, ends, keys.generation, number, &mut frame);
            let frame = Bytes::from(frame);
            for endpoint in &target.endpoints {
                put(*peer, *endpoint, frame.clone());
            }
        }
    }

    /// When the next beat is due.
    #[must_use]
    pub fn next(&self) -> Time {
        self.peers.values().map(Target::next).min().unwrap_or(Time::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    fn pair() -> (Pulse, Pulse) {
        let (one, two) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let (first, second) = (FrameKey::derive(&[1; 32], b"b"), FrameKey::derive(&[2; 32], b"b"));
        let mut pulses = (Pulse::new(one), Pulse::new(two));
        for (pulse, peer, seal, open) in
            [(&mut pulses.0, two, &first, &second), (&mut pulses.1, one, &second, &first)]
        {
            let endpoints = vec!["127.0.0.1:1".parse().unwrap()];
            let interval = Duration::from_millis(10);
            pulse.order(Time(0), BeatOrder::Target { peer, endpoints, interval });
            pulse.order(Time(0), keys(peer, 1, 7, (seal, open)));
        }
        pulses
    }

    fn keys(
        peer: NodeId,
        peer_epoch: u64,
        generation: u32,
        (seal, open): (&FrameKey, &FrameKey),
    ) -> BeatOrder {
        let (seal, open) = (seal.clone(), open.clone());
        BeatOrder::Keys { peer, peer_epoch, generation, seal, open }
    }

    fn sent(pulse: &mut Pulse, now: Time) -> Vec<Bytes> {
        let mut out = Vec::new();
        pulse.send(now, Duration::ZERO, &mut |_, _, frame| out.push(frame));
        out
    }

    #[test]
    fn beats_echo_what_was_heard() {
        let (mut a, mut b) = pair();
        let beat = sent(&mut a, Time(1_000)).remove(0);
        assert_eq!(beat[0], wire::FIRST_BYTE_BEAT);
        let heard = b.open(Time(1_400), &beat).expect("authentic");
        assert_eq!(heard.beat.sent_at, Time(1_000));
        let back = sent(&mut b, Time(2_400)).remove(0);
        let heard = a.open(Time(2_900), &back).expect("authentic");
        let echo = heard.beat.heard_network.expect("it heard ours");
        assert_eq!((echo.stamp, echo.age), (1_000, Duration::from_micros(1_000)));
    }

    #[test]
    fn a_replayed_beat_is_refused() {
        let (mut a, mut b) = pair();
        let first = sent(&mut a, Time(0)).remove(0);
        let second = sent(&mut a, Time(10_000)).remove(0);
        assert!(b.open(Time(0), &second).is_some());
        assert!(b.open(Time(0), &second).is_none());
        assert!(b.open(Time(0), &first).is_none(), "older than the newest");
    }

    /// What `b` echoes to `a` right after both got new keys, of an incarnation of `a`.
    fn echoed_after(epoch_of_a: u64) -> Option<Echo> {
        let (mut a, mut b) = pair();
        let beat = sent(&mut a, Time(1_000)).remove(0);
        b.open(Time(1_400), &beat).expect("authentic");
        let key = FrameKey::derive(&[3; 32], b"b");
        let (one, two) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        b.order(Time(2_000), keys(one, epoch_of_a, 8, (&key, &key)));
        a.order(Time(2_000), keys(two, 1, 8, (&key, &key)));
        let back = sent(&mut b, Time(2_400)).remove(0);
        a.open(Time(2_900), &back).expect("authentic").beat.heard_network
    }

    #[test]
    fn nothing_heard_from_an_incarnation_is_echoed_to_the_next() {
        assert_eq!(echoed_after(2), None);
    }

    #[test]
    fn renewed_keys_do_not_make_a_peer_seem_deaf() {
        let echo = echoed_after(1).expect("heard 1 ms ago");
        assert_eq!((echo.stamp, echo.age), (1_000, Duration::from_micros(1_000)));
    }

    #[test]
    fn retired_keys_open_nothing() {
        let (mut a, mut b) = pair();
        let old = [sent(&mut a, Time(0)).remove(0), sent(&mut a, Time(10_000)).remove(0)];
        let key = FrameKey::derive(&[3; 32], b"b");
        let peer = NodeId::new(1).unwrap();
        b.order(Time(2_000), keys(peer, 1, 8, (&key, &key)));
        assert!(b.open(Time(2_000), &old[0]).is_some(), "still under way");
        b.order(Time(2_000), BeatOrder::Retire { peer });
        assert!(b.open(Time(2_000), &old[1]).is_none());
        assert_eq!(b.refused()["unknown_key"], 1);
    }

    #[test]
    fn beats_come_on_schedule_and_on_order() {
        let (mut a, _) = pair();
        assert_eq!(sent(&mut a, Time(0)).len(), 1);
        assert_eq!(a.next(), Time(10_000));
        assert!(sent(&mut a, Time(9_999)).is_empty());
        a.order(Time(9_999), BeatOrder::Now { peer: NodeId::new(2).unwrap() });
        assert_eq!(sent(&mut a, Time(9_999)).len(), 1);
    }

    #[test]
    fn a_muted_peer_neither_hears_nor_speaks() {
        let (mut a, mut b) = pair();
        let beat = sent(&mut a, Time(0)).remove(0);
        b.order(Time(0), BeatOrder::Mute { peer: NodeId::new(1).unwrap(), mute: true });
        assert!(b.open(Time(0), &beat).is_none());
        assert!(sent(&mut b, Time(0)).is_empty());
        assert_eq!(b.next(), Time::NEVER);
    }
}
