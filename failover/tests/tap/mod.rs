//! Any number of nodes stepped by hand, and somebody on every wire and volume who records all that
//! crosses, and may give anybody anything. A network of 100 us, a volume of 500 us, one clock.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use failover::{
    ClassRules, Command, Event, Input, Node, NodeId, Options, Output, PeerOptions, Time, Timing,
    VolumeFact, VolumeId, VolumeOrder, World,
    beat::Pulse,
    status::{PeerStatus, Status},
    wire::FIRST_BYTE_BEAT,
};

pub(crate) const VOLUME: VolumeId = VolumeId(0);
const STEP: Duration = Duration::from_micros(500);

/// How something crosses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Datagram,
    Tcp,
    Stored,
    Mailbox,
}

pub(crate) const WAYS: [Way; 4] = [Way::Datagram, Way::Tcp, Way::Stored, Way::Mailbox];

/// Something that crossed. `from` and `to` are places in [`Net::sides`].
#[derive(Debug, Clone)]
pub(crate) struct Tapped {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) way: Way,
    pub(crate) bytes: Bytes,
}

pub(crate) struct Side {
    pub(crate) id: NodeId,
    pub(crate) node: Node,
    pub(crate) pulse: Pulse,
    pub(crate) hands: Hands,
    next: Time,
    storage_interval: Duration,
    storage_due: Time,
    storage_beat: u64,
    /// Packets handed on, behind their `virtio_net_hdr`.
    pub(crate) delivered: Vec<Bytes>,
    pub(crate) events: Vec<Event>,
    pub(crate) sessions: Vec<failover::session::SessionEvent>,
    pub(crate) epoch: u64,
}

#[derive(Default)]
pub(crate) struct Hands {
    random: u64,
    /// Bytes drawn: every Noise message needs 32 for its ephemeral key.
    pub(crate) drawn: usize,
    pub(crate) out: VecDeque<Output>,
}

impl World for Hands {
    fn random(&mut self, buffer: &mut [u8]) {
        self.drawn += buffer.len();
        for byte in buffer {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            *byte = self.random.to_be_bytes()[2];
        }
    }

    fn put(&mut self, output: Output) {
        self.out.push_back(output);
    }
}

pub(crate) fn key(n: u8) -> [u8; 32] {
    let mut private = [n; 32];
    private[0] &= 248;
    private[31] = private[31] & 127 | 64;
    private
}

pub(crate) fn public(private: &[u8; 32]) -> [u8; 32] {
    use snow::resolvers::{CryptoResolver, DefaultResolver};
    let mut dh = DefaultResolver.resolve_dh(&snow::params::DHChoice::Curve25519).unwrap();
    dh.set(private);
    dh.pubkey().try_into().unwrap()
}

pub(crate) fn id(n: u8) -> NodeId {
    NodeId::new(n).unwrap()
}

pub(crate) fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 7440))
}

/// What node `us` of a group of `count` is told.
pub(crate) fn options(us: u8, count: u8, epoch: u64) -> Options {
    let peer = |n: u8| PeerOptions {
        id: id(n),
        name: format!("n{n}"),
        public_key: public(&key(n)),
        endpoints: vec![endpoint(n)],
        addresses: vec![[10, 0, 0, n].into()],
        send_volume: Some(VOLUME),
        receive_volume: Some(VOLUME),
    };
    Options {
        id: id(us),
        name: format!("n{us}"),
        group: b"test".to_vec(),
        private_key: zeroize::Zeroizing::new(key(us)),
        epoch,
        addresses: vec![[10, 0, 0, us].into()],
        peers: (1..=count).filter(|n| *n != us).map(peer).collect(),
        timing: Timing::default(),
        sessions: failover::session::SessionLimits::default(),
        classes: ClassRules::default(),
        plaintext: false,
    }
}

/// A UDP packet from node to node behind ten zero bytes.
pub(crate) fn packet(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 10];
    let length = u16::try_from(28 + payload.len()).unwrap().to_be_bytes();
    packet.extend_from_slice(&[0x45, 0, length[0], length[1], 0, 9, 0, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&[10, 0, 0, from, 10, 0, 0, to, 0x10, 1, 0x10, 2, 0, 0, 0, 0]);
    packet.extend_from_slice(payload);
    packet
}

impl Side {
    pub(crate) fn new(options: Options, now: Time) -> Self {
        let (id, epoch) = (options.id, options.epoch);
        let random = u64::from(id.get()) * 77 + epoch;
        let mut hands = Hands { random, ..Hands::default() };
        Self {
            id,
            node: Node::new(options, &mut hands),
            pulse: Pulse::new(id),
            hands,
            next: now,
            storage_interval: Duration::from_secs(1),
            storage_due: now,
            storage_beat: 0,
            delivered: Vec::new(),
            events: Vec::new(),
            sessions: Vec::new(),
            epoch,
        }
    }

    pub(crate) fn input(&mut self, now: Time, input: Input<'_>) {
        failover::turn(&mut self.node, now, input, &mut self.hands);
        self.next = now;
    }

    /// Gives bytes as if they had come that way from node `from`.
    pub(crate) fn give(&mut self, now: Time, way: Way, from: NodeId, bytes: &[u8]) {
        match way {
            Way::Datagram if bytes.first() == Some(&FIRST_BYTE_BEAT) => {
                if let Some(heard) = self.pulse.open(now, bytes) {
                    self.input(now, Input::Beat(heard));
                }
            }
            Way::Datagram => {
                self.input(now, Input::Datagram { from: endpoint(from.get()), bytes });
            }
            Way::Tcp => self.input(now, Input::TcpFrame(bytes.to_vec())),
            Way::Stored => self.input(now, Input::Stored { from, bytes }),
            Way::Mailbox => self.input(now, Input::Mailbox { from, bytes }),
        }
    }

    pub(crate) fn status(&self, now: Time) -> Status {
        self.node.status(now)
    }

    pub(crate) fn peer(&self, now: Time, peer: u8) -> PeerStatus {
        let status = self.status(now).peers.into_iter().find(|p| p.id == id(peer)).unwrap();
        let c = &status.counters;
        assert_eq!(c.accepted, c.acknowledged + c.queued + c.lost, "{c:?}");
        assert_eq!(c.arrived, c.delivered + c.dropped + c.held, "{c:?}");
        status
    }

    /// Everything the node and its pulse know, but for the counters of refusals.
    pub(crate) fn digest(&self) -> String {
        let mut digest = String::new();
        for text in [format!("{:?}", self.node), format!("{:?}", self.pulse)] {
            match text.split_once("refused: {") {
                Some((before, after)) => {
                    let after = after.split_once('}').map_or("", |(_, after)| after);
                    digest.extend([before, after]);
                }
                None => digest.push_str(&text),
            }
        }
        digest
    }

    /// Refusals by cause, of the node and of its pulse.
    pub(crate) fn refusals(&self, now: Time) -> BTreeMap<String, u64> {
        let mut all = self.status(now).refused;
        for (cause, count) in self.pulse.refused() {
            *all.entry(format!("beat: {cause}")).or_default() += count;
        }
        all
    }
}

/// All sides, and what is on its way.
pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) sides: Vec<Side>,
    mail: BTreeMap<(Time, u64), Tapped>,
    counter: u64,
    pub(crate) network: bool,
    pub(crate) storage: bool,
    /// Everything that crossed.
    pub(crate) tapped: Vec<Tapped>,
    /// Every output, in words: to look for what must not be in them.
    pub(crate) listen: Option<Vec<u8>>,
    pub(crate) heard_words: bool,
}

impl Net {
    pub(crate) fn new(count: u8) -> Self {
        let now = Time(1_000_000);
        let side = |n: u8| Side::new(options(n, count, u64::from(n) * 100), now);
        Self::of((1..=count).map(side).collect())
    }

    pub(crate) fn of(sides: Vec<Side>) -> Self {
        Self {
            now: Time(1_000_000),
            sides,
            mail: BTreeMap::new(),
            counter: 0,
            network: true,
            storage: true,
            tapped: Vec::new(),
            listen: None,
            heard_words: false,
        }
    }

    /// Nodes that talk over the network and have been doing so for two seconds.
    pub(crate) fn settled(count: u8) -> Self {
        let mut net = Self::new(count);
        net.run(2000);
        for side in &net.sides {
            for peer in side.status(net.now).peers {
                assert_eq!(peer.route, failover::Route::Network);
            }
        }
        net
    }

    /// A conversation in which everything is said: handshakes, beats, both channels, both paths,
    /// large frames by TCP, pings, a cut and a return.
    pub(crate) fn conversation(count: u8) -> Self {
        let mut net = Self::settled(count);
        let all: Vec<u8> = (1..=count).collect();
        for from in &all {
            for to in all.iter().filter(|to| *to != from) {
                net.command(*from, ping(*to, failover::Via::Network));
                net.command(*from, ping(*to, failover::Via::Storage));
            }
        }
        net.talk(100, 60);
        net.network = false;
        net.talk(150, 60);
        // Sealed while storage carries: larger than a datagram.
        net.talk(50, 4000);
        net.network = true;
        net.talk(50, 4000);
        net.run(4000);
        net.talk(50, 60);
        net.talk(20, 4000);
        net.run(200);
        net
    }

    /// Packets from everybody to everybody, one a millisecond, of flows of both channels.
    pub(crate) fn talk(&mut self, ms: u32, length: usize) {
        let count = u8::try_from(self.sides.len()).unwrap();
        for number in 0..ms {
            for from in 1..=count {
                for to in (1..=count).filter(|to| *to != from) {
                    let mut payload = number.to_le_bytes().to_vec();
                    payload.resize(length, 0x77);
                    let mut raw = packet(from, to, &payload);
                    if number % 3 == 0 {
                        raw[11] = 46 << 2;
                    }
                    self.packet(from, &raw);
                }
            }
            self.run(1);
        }
    }

    pub(crate) fn side(&mut self, n: u8) -> &mut Side {
        &mut self.sides[usize::from(n) - 1]
    }

    pub(crate) fn packet(&mut self, from: u8, raw: &[u8]) {
        let now = self.now;
        self.side(from).input(now, Input::Packet(raw));
    }

    pub(crate) fn command(&mut self, n: u8, command: Command) {
        let now = self.now;
        self.side(n).input(now, Input::Command(command));
    }

    /// Replaces a node by a new incarnation.
    pub(crate) fn restart(&mut self, n: u8) {
        let count = u8::try_from(self.sides.len()).unwrap();
        let (epoch, now) = (self.side(n).epoch + 1, self.now);
        *self.side(n) = Side::new(options(n, count, epoch), now);
        self.side(n).input(now, Input::Volume(VOLUME, VolumeFact::Attached));
    }

    /// Lets `ms` milliseconds pass.
    pub(crate) fn run(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.now += STEP;
            for at in 0..self.sides.len() {
                self.storage(at);
                self.receive(at);
                self.pulse(at);
                self.turn(at);
            }
        }
    }

    fn post(&mut self, tapped: Tapped) {
        self.tapped.push(tapped.clone());
        let (works, delay) = match tapped.way {
            Way::Datagram | Way::Tcp => (self.network, 100),
            Way::Stored | Way::Mailbox => (self.storage, 500),
        };
        if works {
            self.counter += 1;
            self.mail.insert((self.now + Duration::from_micros(delay), self.counter), tapped);
        }
    }

    fn storage(&mut self, at: usize) {
        if self.now < self.sides[at].storage_due || !self.storage {
            return;
        }
        let (now, latency) = (self.now, Duration::from_micros(200));
        let us = &mut self.sides[at];
        us.storage_due = now + us.storage_interval;
        us.storage_beat += 1;
        for fact in [VolumeFact::BeatWritten { latency }, VolumeFact::TableRead { latency }] {
            us.input(now, Input::Volume(VOLUME, fact));
        }
        let fact = VolumeFact::PeerBeat {
            node: us.id,
            epoch: us.epoch,
            beat: us.storage_beat,
            interval: us.storage_interval,
        };
        for (other, side) in self.sides.iter_mut().enumerate() {
            if other != at {
                side.input(now, Input::Volume(VOLUME, fact.clone()));
            }
        }
    }

    fn receive(&mut self, at: usize) {
        let due: Vec<_> = self
            .mail
            .range(..=(self.now, u64::MAX))
            .filter(|(_, tapped)| tapped.to == at)
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let Some(Tapped { from, way, bytes, .. }) = self.mail.remove(&key) else { continue };
            let (now, from) = (self.now, self.sides[from].id);
            self.sides[at].give(now, way, from, &bytes);
        }
    }

    fn pulse(&mut self, at: usize) {
        let now = self.now;
        let mut beats = Vec::new();
        self.sides[at].pulse.send(now, Duration::ZERO, &mut |to, _, beat| beats.push((to, beat)));
        for (to, bytes) in beats {
            self.post(Tapped { from: at, to: place(to), way: Way::Datagram, bytes });
        }
    }

    fn turn(&mut self, at: usize) {
        let now = self.now;
        if now < self.sides[at].next {
            return;
        }
        let us = &mut self.sides[at];
        us.next = failover::finish(&mut us.node, now, &mut us.hands);
        self.carry_out(at);
    }

    /// Ends a batch of inputs given by hand.
    pub(crate) fn finish(&mut self, n: u8) {
        let now = self.now;
        let us = self.side(n);
        us.next = failover::finish(&mut us.node, now, &mut us.hands);
        self.carry_out(usize::from(n) - 1);
    }

    fn carry_out(&mut self, at: usize) {
        while let Some(output) = self.sides[at].hands.out.pop_front() {
            if let Some(marker) = &self.listen
                && !matches!(output, Output::Packet(_))
            {
                let said = format!("{output:?}");
                self.heard_words |= contains(said.as_bytes(), marker);
            }
            self.act(at, output);
        }
    }

    fn act(&mut self, at: usize, output: Output) {
        let now = self.now;
        let tapped = |to: NodeId, way, bytes| Tapped { from: at, to: place(to), way, bytes };
        match output {
            Output::Datagram { peer, frame, .. } => self.post(tapped(peer, Way::Datagram, frame)),
            Output::TcpFrame { peer, frame } | Output::Pipe { peer, frame } => {
                self.post(tapped(peer, Way::Tcp, frame))
            }
            Output::Store { frame, to, .. } => {
                self.post(tapped(to, Way::Stored, frame));
                if self.storage {
                    let fact = VolumeFact::Drained { to };
                    self.sides[at].input(now, Input::Volume(VOLUME, fact));
                }
            }
            Output::Mailbox { message, to, .. } => self.post(tapped(to, Way::Mailbox, message)),
            Output::Volume(_, VolumeOrder::BeatEvery(interval)) => {
                let us = &mut self.sides[at];
                us.storage_interval = interval;
                us.storage_due = us.storage_due.min(now + interval);
            }
            Output::Volume(..) => {}
            Output::Packet(packet) => self.sides[at].delivered.push(packet),
            Output::Beat(order) => self.sides[at].pulse.order(now, order),
            Output::Session { event, .. } => self.sides[at].sessions.push(event),
            Output::Event(event) => self.sides[at].events.push(event),
        }
    }
}

fn place(id: NodeId) -> usize {
    usize::from(id.get()) - 1
}

pub(crate) fn ping(peer: u8, via: failover::Via) -> Command {
    Command::Ping { peer: id(peer), id: 7, via }
}

pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
