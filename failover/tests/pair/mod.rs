//! Two nodes stepped by hand: a network of 100 us, a volume of 500 us, one clock, no faults but
//! the ones a test orders.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use failover::{
    Command, Event, Input, NetworkFact, Node, NodeId, Options, Output, PeerOptions, Time, Timing,
    VolumeFact, VolumeId, VolumeOrder, World,
    beat::{Heard, Pulse},
    session::SessionOrder,
    status::PeerStatus,
};

pub(crate) const VOLUME: VolumeId = VolumeId(0);
const STEP: Duration = Duration::from_micros(500);

/// One side.
pub(crate) struct Side {
    pub(crate) id: NodeId,
    pub(crate) node: Node,
    pulse: Pulse,
    hands: Hands,
    next: Time,
    storage_interval: Duration,
    storage_due: Time,
    storage_beat: u64,
    pub(crate) delivered: Vec<(Time, u32)>,
    pub(crate) events: Vec<Event>,
    pub(crate) sessions: Vec<failover::session::SessionEvent>,
    pub(crate) alive: bool,
    epoch: u64,
}

#[derive(Default)]
struct Hands {
    random: u64,
    out: VecDeque<Output>,
}

impl World for Hands {
    fn random(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            *byte = self.random.to_be_bytes()[2];
        }
    }

    fn put(&mut self, output: Output) {
        self.out.push_back(output);
    }
}

enum Mail {
    Datagram(Bytes),
    Tcp(Bytes),
    Stored(Bytes),
    Mailbox(Bytes),
    PeerBeat { epoch: u64, beat: u64, interval: Duration },
}

/// Both sides and what is on its way.
pub(crate) struct Pair {
    pub(crate) now: Time,
    pub(crate) sides: [Side; 2],
    mail: BTreeMap<(Time, u64), (usize, Mail)>,
    counter: u64,
    /// Network from side 0 to 1, from 1 to 0.
    pub(crate) network: [bool; 2],
    pub(crate) storage: bool,
    /// From a write to its reader, microseconds.
    pub(crate) storage_delay_us: u64,
    /// The outbox is sometimes empty: the medium is as quick as the traffic.
    pub(crate) storage_drains: bool,
    /// Packets are Corosync's.
    pub(crate) express: bool,
    /// Datagrams longer than this are lost.
    pub(crate) network_mtu: usize,
    /// Every n-th datagram from side 0 is lost; 0: none.
    pub(crate) lose_every: u64,
    datagrams: u64,
}

fn key(n: u8) -> [u8; 32] {
    let mut private = [n; 32];
    private[0] &= 248;
    private[31] = private[31] & 127 | 64;
    private
}

fn public(private: &[u8; 32]) -> [u8; 32] {
    use snow::resolvers::{CryptoResolver, DefaultResolver};
    let mut dh = DefaultResolver.resolve_dh(&snow::params::DHChoice::Curve25519).unwrap();
    dh.set(private);
    dh.pubkey().try_into().unwrap()
}

fn address(n: u8) -> std::net::IpAddr {
    [10, 0, 0, n].into()
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 7440))
}

fn options(us: u8, epoch: u64) -> Options {
    let them = 3 - us;
    Options {
        id: NodeId::new(us).unwrap(),
        name: format!("n{us}"),
        group: b"test".to_vec(),
        private_key: zeroize::Zeroizing::new(key(us)),
        epoch,
        addresses: vec![address(us)],
        peers: vec![PeerOptions {
            id: NodeId::new(them).unwrap(),
            name: format!("n{them}"),
            public_key: public(&key(them)),
            endpoints: vec![endpoint(them)],
            addresses: vec![address(them)],
            send_volume: Some(VOLUME),
            receive_volume: Some(VOLUME),
        }],
        timing: Timing::default(),
        sessions: failover::session::SessionLimits::default(),
        classes: failover::ClassRules::default(),
        plaintext: false,
    }
}

impl Side {
    fn new(us: u8, epoch: u64, now: Time) -> Self {
        let mut hands = Hands { random: u64::from(us) * 77 + epoch, out: VecDeque::new() };
        let node = Node::new(options(us, epoch), &mut hands);
        let id = NodeId::new(us).unwrap();
        Self {
            id,
            node,
            pulse: Pulse::new(id),
            hands,
            next: now,
            storage_interval: Duration::from_secs(1),
            storage_due: now,
            storage_beat: 0,
            delivered: Vec::new(),
            events: Vec::new(),
            sessions: Vec::new(),
            alive: true,
            epoch,
        }
    }

    fn input(&mut self, now: Time, input: Input<'_>) {
        failover::turn(&mut self.node, now, input, &mut self.hands);
        self.next = now;
    }

    pub(crate) fn peer(&self, now: Time) -> PeerStatus {
        let status = self.node.status(now).peers.remove(0);
        let c = &status.counters;
        assert_eq!(c.accepted, c.acknowledged + c.queued + c.lost, "{c:?}");
        assert_eq!(c.arrived, c.delivered + c.dropped + c.held, "{c:?}");
        assert_eq!(c.lost, c.lost_by_cause.values().sum::<u64>());
        assert_eq!(c.dropped, c.dropped_by_cause.values().sum::<u64>());
        status
    }
}

impl Pair {
    pub(crate) fn new() -> Self {
        let now = Time(1_000_000);
        Self {
            now,
            sides: [Side::new(1, 100, now), Side::new(2, 200, now)],
            mail: BTreeMap::new(),
            counter: 0,
            network: [true; 2],
            storage: true,
            storage_delay_us: 500,
            storage_drains: true,
            express: false,
            network_mtu: usize::MAX,
            lose_every: 0,
            datagrams: 0,
        }
    }

    /// A pair that talks over the network and has been doing so for two seconds.
    pub(crate) fn settled() -> Self {
        let mut pair = Self::new();
        pair.run(2000);
        for side in &pair.sides {
            assert_eq!(side.peer(pair.now).route, failover::Route::Network);
        }
        pair
    }

    fn post(&mut self, delay_us: u64, to: usize, mail: Mail) {
        self.counter += 1;
        let at = self.now + Duration::from_micros(delay_us);
        self.mail.insert((at, self.counter), (to, mail));
    }

    /// Replaces a side by a new incarnation.
    pub(crate) fn restart(&mut self, side: usize) {
        let epoch = self.sides[side].epoch + 1;
        self.sides[side] = Side::new(self.sides[side].id.get(), epoch, self.now);
        self.attach(side);
    }

    fn attach(&mut self, side: usize) {
        let now = self.now;
        self.sides[side].input(now, Input::Volume(VOLUME, VolumeFact::Attached));
    }

    pub(crate) fn send(&mut self, side: usize, number: u32, length: usize) {
        let (us, them) = (self.sides[side].id.get(), self.sides[1 - side].id.get());
        let mut packet = vec![0; 10];
        packet.extend_from_slice(&[0x45, 0, 0, 0, 0, 9, 0, 0, 64, 17, 0, 0]);
        packet.extend_from_slice(&[10, 0, 0, us, 10, 0, 0, them]);
        let [high, low] = if self.express { 5405u16 } else { 4098 }.to_be_bytes();
        packet.extend_from_slice(&[0x10, 1, high, low, 0, 0, 0, 0]);
        packet.extend_from_slice(&number.to_le_bytes());
        packet.resize(10 + 32 + length, 0);
        let now = self.now;
        self.sides[side].input(now, Input::Packet(&packet));
    }

    pub(crate) fn volume(&mut self, side: usize, fact: VolumeFact) {
        let now = self.now;
        self.sides[side].input(now, Input::Volume(VOLUME, fact));
    }

    pub(crate) fn command(&mut self, side: usize, command: Command) {
        let now = self.now;
        self.sides[side].input(now, Input::Command(command));
    }

    /// What the plane says of the pipe: it takes so many bytes.
    pub(crate) fn pipe_takes(&mut self, side: usize, bytes: usize) {
        let (now, peer) = (self.now, self.sides[1 - side].id);
        self.sides[side].input(now, Input::Network(NetworkFact::PipeTakes { peer, bytes }));
    }

    pub(crate) fn session(&mut self, side: usize, order: SessionOrder) {
        let (now, peer) = (self.now, self.sides[1 - side].id);
        self.sides[side].input(now, Input::Session { peer, order });
    }

    /// Lets `ms` milliseconds pass.
    pub(crate) fn run(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.now += STEP;
            for side in 0..2 {
                if self.sides[side].alive {
                    self.storage(side);
                    self.receive(side);
                    self.pulse(side);
                    self.turn(side);
                }
            }
        }
    }

    /// Sends numbered packets one a millisecond both ways, `first` onward, while `ms` pass.
    pub(crate) fn stream(&mut self, first: u32, ms: u32) {
        for number in first..first + ms {
            for side in 0..2 {
                if self.sides[side].alive {
                    self.send(side, number, 60);
                }
            }
            self.run(1);
        }
    }

    fn storage(&mut self, side: usize) {
        if self.now < self.sides[side].storage_due || !self.storage {
            return;
        }
        let now = self.now;
        let latency = Duration::from_micros(200);
        let us = &mut self.sides[side];
        us.storage_due = now + us.storage_interval;
        us.storage_beat += 1;
        let mail = Mail::PeerBeat {
            epoch: us.epoch,
            beat: us.storage_beat,
            interval: us.storage_interval,
        };
        for fact in [VolumeFact::BeatWritten { latency }, VolumeFact::TableRead { latency }] {
            us.input(now, Input::Volume(VOLUME, fact));
        }
        self.post(500, 1 - side, mail);
    }

    fn receive(&mut self, side: usize) {
        let due: Vec<_> = self
            .mail
            .range(..=(self.now, u64::MAX))
            .filter(|(_, (to, _))| *to == side)
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let (_, mail) = self.mail.remove(&key).unwrap();
            let now = self.now;
            let from = self.sides[1 - side].id;
            let us = &mut self.sides[side];
            match mail {
                Mail::Datagram(bytes) if bytes[0] == failover::wire::FIRST_BYTE_BEAT => {
                    if let Some(heard) = us.pulse.open(key.0, &bytes) {
                        us.input(now, Input::Beat(Heard { ..heard }));
                    }
                }
                Mail::Datagram(bytes) => {
                    us.input(now, Input::Datagram { from: endpoint(from.get()), bytes: &bytes });
                }
                Mail::Tcp(bytes) => us.input(now, Input::TcpFrame(bytes.to_vec())),
                Mail::Stored(bytes) => us.input(now, Input::Stored { from, bytes: &bytes }),
                Mail::Mailbox(bytes) => us.input(now, Input::Mailbox { from, bytes: &bytes }),
                Mail::PeerBeat { epoch, beat, interval } => {
                    let fact = VolumeFact::PeerBeat { node: from, epoch, beat, interval };
                    us.input(now, Input::Volume(VOLUME, fact));
                }
            }
        }
    }

    fn carry(&mut self, from: usize, frame: Bytes, tcp: bool) {
        let beat = frame[0] == failover::wire::FIRST_BYTE_BEAT;
        if from == 0 && !beat {
            self.datagrams += 1;
        }
        let lost = self.lose_every != 0
            && from == 0
            && !beat
            && self.datagrams.is_multiple_of(self.lose_every);
        if self.network[from] && (tcp || frame.len() <= self.network_mtu) && !lost {
            let mail = if tcp { Mail::Tcp(frame) } else { Mail::Datagram(frame) };
            self.post(100, 1 - from, mail);
        }
    }

    fn pulse(&mut self, side: usize) {
        let now = self.now;
        let mut beats = Vec::new();
        self.sides[side].pulse.send(now, Duration::ZERO, &mut |_, _, frame| beats.push(frame));
        for beat in beats {
            self.carry(side, beat, false);
        }
    }

    fn turn(&mut self, side: usize) {
        let now = self.now;
        if now < self.sides[side].next {
            return;
        }
        let us = &mut self.sides[side];
        us.next = failover::finish(&mut us.node, now, &mut us.hands);
        while let Some(output) = self.sides[side].hands.out.pop_front() {
            self.act(side, output);
        }
    }

    fn act(&mut self, side: usize, output: Output) {
        let now = self.now;
        match output {
            Output::Datagram { frame, .. } => self.carry(side, frame, false),
            Output::TcpFrame { frame, .. } | Output::Pipe { frame, .. } => {
                self.carry(side, frame, true);
            }
            Output::Store { frame, to, .. } => {
                if self.storage {
                    self.post(self.storage_delay_us, 1 - side, Mail::Stored(frame));
                    if self.storage_drains {
                        let us = &mut self.sides[side];
                        us.input(now, Input::Volume(VOLUME, VolumeFact::Drained { to }));
                    }
                }
            }
            Output::Mailbox { message, .. } => {
                if self.storage {
                    self.post(500, 1 - side, Mail::Mailbox(message));
                }
            }
            Output::Volume(_, VolumeOrder::BeatEvery(interval)) => {
                let us = &mut self.sides[side];
                us.storage_interval = interval;
                us.storage_due = us.storage_due.min(now + interval);
            }
            Output::Volume(..) => {}
            Output::Packet(packet) => {
                let number = u32::from_le_bytes(packet[38..42].try_into().unwrap());
                self.sides[side].delivered.push((now, number));
            }
            Output::Beat(order) => self.sides[side].pulse.order(now, order),
            Output::Session { event, .. } => self.sides[side].sessions.push(event),
            Output::Event(event) => self.sides[side].events.push(event),
        }
    }

    /// What arrived at a side: numbers in order, and the longest silence between two, in ms.
    pub(crate) fn arrived(&self, side: usize) -> (Vec<u32>, u64) {
        let delivered = &self.sides[side].delivered;
        let silence = delivered.windows(2).map(|w| w[1].0.since(w[0].0)).max().unwrap_or_default();
        let numbers = delivered.iter().map(|d| d.1).collect();
        (numbers, u64::try_from(silence.as_millis()).unwrap())
    }
}
