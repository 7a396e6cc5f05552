//! A whole node against a peer that holds keys and says whatever it likes, by any path, mixed
//! with packets, facts and the passing of time.

use std::{cell::RefCell, net::SocketAddr, time::Duration};

use failover::{
    ClassRules, Cut, Input, NetworkFact, Node, Options, Output, PeerOptions, Ring, StorageFault,
    Time, Timing, VolumeFact, VolumeId, World,
    beat::{Heard, Pulse},
    secure::{Agreed, FrameKey},
    wire::{Channel, FRAME_MAX, HEADER},
};

use super::{agreement::EPOCHS, core::id};

const VOLUME: VolumeId = VolumeId(0);
const GENERATION: u32 = 7;
/// Outputs of one step at most: 64 answers of each kind, resends, beats, events.
const OUTPUTS_MAX: usize = 600;

#[derive(Default)]
struct Hands {
    drawn: u64,
    out: Vec<Output>,
}

impl World for Hands {
    fn random(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            self.drawn = self.drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            *byte = self.drawn.to_be_bytes()[2];
        }
    }

    fn put(&mut self, output: Output) {
        self.out.push(output);
    }
}

fn options() -> Options {
    let endpoint = |n: u8| SocketAddr::from(([192, 0, 2, n], 7440));
    Options {
        id: id(2),
        name: "n2".into(),
        group: b"fuzz".to_vec(),
        private_key: zeroize::Zeroizing::new([2; 32]),
        epoch: EPOCHS[1],
        addresses: vec![[10, 0, 0, 2].into()],
        peers: vec![PeerOptions {
            id: id(1),
            name: "n1".into(),
            // No usable key: keys come from the target, and two multiplications are saved.
            public_key: [0; 32],
            endpoints: vec![endpoint(1)],
            addresses: vec![[10, 0, 0, 1].into()],
            send_volume: Some(VOLUME),
            receive_volume: Some(VOLUME),
        }],
        timing: Timing::default(),
        sessions: failover::session::SessionLimits::default(),
        classes: ClassRules::default(),
        plaintext: false,
    }
}

/// Keys both sides have without a handshake; a confirmed set.
fn agreed() -> Agreed {
    thread_local! {
        static AGREED: RefCell<Option<Agreed>> = const { RefCell::new(None) };
    }
    let make = || Agreed {
        generation: GENERATION,
        peer_epoch: EPOCHS[0],
        seal: FrameKey::derive(&[2; 32], b"frames"),
        open: FrameKey::derive(&[1; 32], b"frames"),
        beat_seal: FrameKey::derive(&[2; 32], b"beats"),
        beat_open: FrameKey::derive(&[1; 32], b"beats"),
        confirmed: true,
    };
    AGREED.with_borrow_mut(|agreed| agreed.get_or_insert_with(make).clone())
}

struct Bench {
    node: Node,
    pulse: Pulse,
    hands: Hands,
    now: Time,
    /// Next numbers the peer would use, by channel.
    numbers: [u64; 5],
}

/// Steps of (what, how, much) and, where a step needs it, a length and so many bytes.
pub(crate) fn peer(data: &[u8]) {
    let mut hands = Hands::default();
    let node = Node::new(options(), &mut hands);
    let mut bench =
        Bench { node, pulse: Pulse::new(id(2)), hands, now: Time(5_000_000), numbers: [1; 5] };
    let now = bench.now;
    bench.node.agree(now, id(1), agreed(), &mut bench.hands);
    bench.finish();
    let mut rest = data;
    for _ in 0..32 {
        let Some((head, after)) = rest.split_first_chunk::<3>() else { break };
        rest = after;
        let wanted = if head[0] & 7 < 4 { usize::from(head[2]) } else { 0 };
        let (body, after) = rest.split_at(wanted.min(rest.len()));
        rest = after;
        bench.step(*head, body);
    }
    bench.finish();
    // Whatever was said, time heals: nothing is held for ever.
    bench.now += Duration::from_secs(20);
    bench.finish();
    let status = bench.node.status(bench.now).peers.remove(0);
    assert_eq!(status.counters.held, 0, "held although every deadline has passed");
    assert_eq!(status.counters.queued, 0, "queued although every time to live has passed");
}

impl Bench {
    fn step(&mut self, [what, how, much]: [u8; 3], body: &[u8]) {
        match what & 7 {
            0..=2 => self.say(what >> 3, how, body),
            3 => {
                let now = self.now;
                let mut packet = vec![0; 10];
                packet.extend_from_slice(&[0x45, how, 0, 0, 0, 9, 0, 0, 64, 17, 0, 0]);
                packet.extend_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1, 0x10, how, 0x10, 2]);
                packet.extend_from_slice(body);
                failover::turn(&mut self.node, now, Input::Packet(&packet), &mut self.hands);
            }
            4 => {
                let scale = [1_u64, 50, 1_000, 20_000][usize::from(how & 3)];
                self.now += Duration::from_micros(u64::from(much) * scale);
                self.finish();
            }
            5 => self.fact(how, much),
            6 => {
                let path = [Cut::Network, Cut::Storage, Cut::Both][usize::from(how % 3)];
                let length = Duration::from_millis(much.into());
                let command =
                    failover::Command::Drill { peer: id(1), cut: path, length, force: true };
                self.input(Input::Command(command));
            }
            _ => self.finish(),
        }
    }

    /// The peer says something under the right keys: `how` chooses channel, number and path.
    fn say(&mut self, much: u8, how: u8, body: &[u8]) {
        const CHANNELS: [Channel; 4] =
            [Channel::Beat, Channel::Control, Channel::Express, Channel::Datagram];
        let channel = CHANNELS[usize::from(how & 3)];
        let next = &mut self.numbers[channel as usize];
        let number = match how >> 2 & 7 {
            0..=3 => *next,
            4 => *next + u64::from(much) * 5_000,
            5 => next.saturating_sub(much.into()),
            6 => u64::MAX - u64::from(much),
            _ => 1 << (much & 31) << 31,
        };
        if how & 16 == 0 {
            *next = number.saturating_add(1);
        }
        let keys = agreed();
        let mut frame = vec![0; HEADER];
        if how & 128 != 0 && matches!(channel, Channel::Express | Channel::Datagram) {
            // A prefix that makes sense, then a packet from the peer's address.
            let place = |at: usize| body.get(at).copied().unwrap_or(0);
            frame.extend_from_slice(&[place(0) & 3, 0, 0, 0, place(1), place(2), 0, 0]);
            frame.extend_from_slice(&[place(3), 0, 0, 0]);
            let accepted = self.now.micros().saturating_sub(u64::from(place(4)) * 30_000);
            frame.extend_from_slice(&accepted.to_le_bytes());
            if place(0) & 1 == 1 {
                frame.extend_from_slice(&[0; 10]);
            }
            frame.extend_from_slice(&[0x45, 0, 0, 0, 0, 9, 0, 0, 64, 17, 0, 0, 10, 0, 0]);
            frame.extend_from_slice(&[1 + (place(5) & 1), 10, 0, 0, 2, 0, 1, 0, 2, 0, 0, 0, 0]);
            frame.extend_from_slice(body.get(6..).unwrap_or_default());
        } else {
            frame.extend_from_slice(body);
        }
        let key = if channel == Channel::Beat { &keys.beat_open } else { &keys.open };
        key.seal(channel, (1, 2), GENERATION, number, &mut frame);
        let from = SocketAddr::from(([192, 0, 2, 1], 7440));
        let now = self.now;
        match (channel, how >> 5 & 3) {
            (Channel::Beat, _) => {
                if let Some(heard) = self.pulse.open(now, &frame) {
                    self.input(Input::Beat(Heard { ..heard }));
                }
            }
            (_, 0) => self.input(Input::Datagram { from, bytes: &frame }),
            (_, 1) => self.input(Input::TcpFrame(frame.to_vec())),
            (_, 2) => self.input(Input::Stored { from: id(1), bytes: &frame }),
            _ => self.input(Input::Mailbox { from: id(1), bytes: &frame }),
        }
    }

    fn fact(&mut self, how: u8, much: u8) {
        let latency = Duration::from_micros(u64::from(much) * 500);
        let (peer, number) = (id(1), u64::from(much));
        let ring = if much & 1 == 0 { Ring::Express } else { Ring::Data };
        let fault = [StorageFault::ReadError, StorageFault::WriteError, StorageFault::Stalled];
        let fault = fault[usize::from(much % 3)];
        let input = match how % 12 {
            0 => Input::Volume(VOLUME, VolumeFact::Attached),
            1 => Input::Volume(VOLUME, VolumeFact::BeatWritten { latency }),
            2 => Input::Volume(VOLUME, VolumeFact::TableRead { latency }),
            3 | 4 => {
                let (epoch, interval) = (EPOCHS[0], latency);
                let fact = VolumeFact::PeerBeat { node: peer, epoch, beat: number, interval };
                Input::Volume(VOLUME, fact)
            }
            5 => Input::Volume(VOLUME, VolumeFact::RecordWritten { to: peer, latency }),
            6 => Input::Volume(VOLUME, VolumeFact::Drained { to: peer }),
            7 => Input::Volume(VOLUME, VolumeFact::Cursor { from: peer, ring, number }),
            8 => Input::Volume(VOLUME, VolumeFact::Fault { fault, detail: String::new() }),
            9 => Input::Network(NetworkFact::Link { peer, up: much & 1 == 0 }),
            10 => Input::Network(NetworkFact::SendError { peer, detail: String::new() }),
            _ => {
                let bytes = 300 + usize::from(much) * 20;
                Input::Network(NetworkFact::DatagramSize { peer, bytes })
            }
        };
        self.input(input);
    }

    fn input(&mut self, input: Input<'_>) {
        let now = self.now;
        failover::turn(&mut self.node, now, input, &mut self.hands);
        self.look();
    }

    fn finish(&mut self) {
        let now = self.now;
        let next = failover::finish(&mut self.node, now, &mut self.hands);
        assert!(next > now, "a timer that is due now would spin");
        self.look();
    }

    /// What must hold after every step.
    fn look(&mut self) {
        assert!(self.hands.out.len() <= OUTPUTS_MAX, "{} outputs", self.hands.out.len());
        for output in std::mem::take(&mut self.hands.out) {
            match output {
                Output::Packet(packet) => {
                    assert_eq!(packet[10 + 12..10 + 16], [10, 0, 0, 1], "from another's address");
                }
                Output::Datagram { frame, .. }
                | Output::TcpFrame { frame, .. }
                | Output::Pipe { frame, .. }
                | Output::Store { frame, .. } => assert!(frame.len() <= FRAME_MAX),
                Output::Beat(order) => self.pulse.order(self.now, order),
                Output::Mailbox { .. }
                | Output::Volume(..)
                | Output::Session { .. }
                | Output::Event(_) => {}
            }
        }
        let status = self.node.status(self.now).peers.remove(0);
        let c = status.counters;
        assert_eq!(c.accepted, c.acknowledged + c.queued + c.lost, "{c:?}");
        assert_eq!(c.arrived, c.delivered + c.dropped + c.held, "{c:?}");
        assert_eq!(c.lost, c.lost_by_cause.values().sum::<u64>());
        assert_eq!(c.dropped, c.dropped_by_cause.values().sum::<u64>());
    }
}
