//! Sealed frames on a volume whose bytes somebody changed: nothing is delivered that was not sent
//! exactly so, and nothing twice.
//!
//! The loss this prevents: a packet in a cluster's membership protocol that a storage
//! administrator, a rotten sector or a restored copy put there. `volumes` alone has checksums,
//! which a forger recomputes; here frames are sealed by `failover`, as in the daemon, and read
//! back through `volumes` from a mutated image.
//!
//! `cargo test` mutates 500 volumes; `SIDEPATH_MUTATIONS=10000 cargo test --test mutated_volumes
//! -- --nocapture` as many as that. Refusals are printed by cause.

#[allow(dead_code, unreachable_pub, reason = "the volumes' own tests use the rest of it")]
#[path = "../volumes/tests/all/common/mutate.rs"]
mod mutate;

use bytes::Bytes;
use failover::{
    Event, Input, Node, NodeId, Options, Output, PeerOptions, Time, Timing, VolumeFact, VolumeId,
    VolumeOrder, World,
};
use mutate::{KINDS, Rng, Shelf, mutate};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use volumes::buffer::Pool;
use volumes::fence::Permit;
use volumes::format::table::Head;
use volumes::log::receive::ReaderOptions;
use volumes::log::send::WriterOptions;
use volumes::media::{BlockDevice, MemoryDevice};
use volumes::{Fact, InitOptions, Op, Reader, Ring, Step, Superblock, Table, Writer, init_medium};

const VOLUME: VolumeId = VolumeId(0);
const BYTES: u64 = 232 * 4096;

/// One daemon's core, with storage as its only path.
struct Side {
    id: u8,
    node: Node,
    hands: Hands,
    storage_every: Duration,
    storage_at: Time,
    beat: u64,
    delivered: Vec<u64>,
    events: Vec<Event>,
}

struct Hands {
    rng: Rng,
    out: VecDeque<Output>,
}

impl World for Hands {
    fn random(&mut self, buffer: &mut [u8]) {
        buffer.iter_mut().for_each(|b| *b = self.rng.next().to_le_bytes()[3]);
    }
    fn put(&mut self, output: Output) {
        self.out.push_back(output);
    }
}

fn node_id(n: u8) -> NodeId {
    NodeId::new(n).unwrap()
}

fn options(us: u8) -> Options {
    let keys = [1, 2].map(keys);
    let them = 3 - us;
    Options {
        id: node_id(us),
        name: format!("n{us}"),
        group: b"test".to_vec(),
        private_key: zeroize::Zeroizing::new(keys[usize::from(us) - 1].0),
        epoch: 100 * u64::from(us),
        addresses: vec![[10, 0, 0, us].into()],
        peers: vec![PeerOptions {
            id: node_id(them),
            name: format!("n{them}"),
            public_key: keys[usize::from(them) - 1].1,
            endpoints: Vec::new(),
            addresses: vec![[10, 0, 0, them].into()],
            send_volume: Some(VOLUME),
            receive_volume: Some(VOLUME),
        }],
        timing: Timing::default(),
        sessions: failover::session::SessionLimits::default(),
        classes: failover::ClassRules::default(),
        plaintext: false,
    }
}

/// Private and public.
fn keys(n: u8) -> ([u8; 32], [u8; 32]) {
    use aws_lc_rs::agreement::{PrivateKey, X25519};
    let mut private = [n; 32];
    private[0] &= 248;
    private[31] = private[31] & 127 | 64;
    let key = PrivateKey::from_private_key(&X25519, &private).unwrap();
    let public = key.compute_public_key().unwrap();
    (private, public.as_ref().try_into().unwrap())
}

impl Side {
    fn new(id: u8) -> Self {
        let mut hands = Hands { rng: Rng::new(u64::from(id)), out: VecDeque::new() };
        let node = Node::new(options(id), &mut hands);
        let storage_every = Duration::from_millis(100);
        Self {
            id,
            node,
            hands,
            storage_every,
            storage_at: Time(0),
            beat: 0,
            delivered: Vec::new(),
            events: Vec::new(),
        }
    }

    fn input(&mut self, now: Time, input: Input<'_>) {
        failover::turn(&mut self.node, now, input, &mut self.hands);
    }
}

/// Packet number `n`, as the interface hands it over.
fn packet(n: u64) -> Vec<u8> {
    let mut packet = vec![0; 10];
    packet.extend_from_slice(&[0x45, 0, 0, 0, 0, 9, 0, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 0x10, 1, 0x10, 2, 0, 0, 0, 0]);
    packet.extend_from_slice(&n.to_le_bytes());
    let len = 60 + usize::try_from(n % 7).unwrap() * 90;
    packet.extend((0..len).map(|i| (n.wrapping_mul(13) + i as u64).to_le_bytes()[0]));
    packet
}

fn number(packet: &[u8]) -> u64 {
    packet.get(38..46).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()))
}

/// Frames and messages that node 1 wants on the volume; node 2's go straight back to it.
#[derive(Default)]
struct Wanted {
    frames: Vec<(Ring, Bytes)>,
    letters: Vec<Bytes>,
}

struct Pair {
    now: Time,
    sides: [Side; 2],
    /// Packets by number that node 1's application sent.
    sent: BTreeSet<u64>,
}

impl Pair {
    fn step(&mut self, wanted: &mut Wanted, direct: bool) {
        self.now += Duration::from_millis(1);
        let now = self.now;
        for side in 0..2 {
            if now >= self.sides[side].storage_at {
                let us = &mut self.sides[side];
                us.storage_at = now + us.storage_every;
                us.beat += 1;
                let latency = Duration::from_micros(200);
                for fact in [VolumeFact::BeatWritten { latency }, VolumeFact::TableRead { latency }]
                {
                    us.input(now, Input::Volume(VOLUME, fact));
                }
                let fact = VolumeFact::PeerBeat {
                    node: node_id(us.id),
                    epoch: 100 * u64::from(us.id),
                    beat: us.beat,
                    interval: us.storage_every,
                };
                self.sides[1 - side].input(now, Input::Volume(VOLUME, fact));
            }
            let us = &mut self.sides[side];
            failover::finish(&mut us.node, now, &mut us.hands);
            while let Some(output) = self.sides[side].hands.out.pop_front() {
                self.act(side, output, wanted, direct);
            }
        }
    }

    fn act(&mut self, side: usize, output: Output, wanted: &mut Wanted, direct: bool) {
        let now = self.now;
        let from = node_id(self.sides[side].id);
        match output {
            Output::Store { frame, ring, to, .. } => {
                if side == 0 {
                    let ring =
                        if ring == failover::Ring::Express { Ring::Express } else { Ring::Data };
                    wanted.frames.push((ring, frame.clone()));
                }
                if side == 1 || direct {
                    self.sides[1 - side].input(now, Input::Stored { from, bytes: &frame });
                }
                self.sides[side].input(now, Input::Volume(VOLUME, VolumeFact::Drained { to }));
            }
            Output::Mailbox { message, .. } => {
                if side == 0 {
                    wanted.letters.push(message.clone());
                }
                self.sides[1 - side].input(now, Input::Mailbox { from, bytes: &message });
            }
            Output::Volume(_, VolumeOrder::BeatEvery(every)) => {
                self.sides[side].storage_every = every
            }
            Output::Packet(bytes) => {
                let n = number(&bytes);
                assert!(side == 1 && self.sent.contains(&n), "packet {n} was never sent");
                assert!(bytes[..] == packet(n)[..], "packet {n} is not as it was sent");
                self.sides[1].delivered.push(n);
            }
            Output::Event(event) => self.sides[side].events.push(event),
            _ => {}
        }
    }
}

/// The writer of node 1, without a Keeper: its claim is taken for granted.
struct Volume {
    superblock: Superblock,
    medium: MemoryDevice,
    writer: Writer,
    now: u64,
    beat: u64,
    /// Where the newest records begin.
    start: [Head; 2],
}

const EPOCH: u64 = 77 << 16;

impl Volume {
    fn new() -> Self {
        let medium = MemoryDevice::new(BYTES);
        let o = InitOptions {
            name: "lun".into(),
            nodes: vec![1, 2],
            lane_size: Some(256 << 10),
            ..InitOptions::default()
        };
        let superblock = init_medium(&medium, Path::new("lun7"), &o, |_, _| {}).unwrap();
        let permit = Arc::new(Permit::default());
        permit.set_interval(u64::MAX);
        permit.grant(EPOCH, 5, 1);
        let writer = Writer::new(WriterOptions {
            node: 1,
            superblock: superblock.clone(),
            permit,
            pool: Pool::new(),
            flush_bytes: 65536,
            flush_delay: 500,
            outbox_bytes_max: 4 << 20,
        });
        Self {
            superblock,
            medium,
            writer: writer.unwrap(),
            now: 1,
            beat: 0,
            start: [Head::START; 2],
        }
    }

    fn heads(&self) -> ([Head; 2], u64) {
        self.writer.heads().find(|h| h.0 == 2).map(|h| (h.1, h.2)).unwrap()
    }

    /// Writes them, and the entry that announces them.
    fn write(&mut self, wanted: &Wanted) {
        for ring in Ring::BOTH {
            self.writer.released(2, ring, self.heads().0[ring.index()].number - 1);
        }
        self.start = self.heads().0;
        for letter in &wanted.letters {
            self.writer.mailbox(2, letter).unwrap();
        }
        for (ring, frame) in &wanted.frames {
            self.writer.store(self.now, 2, *ring, frame).unwrap();
        }
        while let Step::Do(Op::Write { offset, data }) = self.writer.step(self.now) {
            self.medium.write_at(offset, &data).unwrap();
            self.now += 100;
            self.writer.complete(self.now, Ok(Bytes::new()));
        }
        self.writer.drain_facts().for_each(drop);
        let (heads, mailbox) = self.heads();
        let mut cells = vec![volumes::format::table::Cell::default(); 2];
        (cells[1].heads, cells[1].mailbox) = (heads, mailbox);
        self.beat += 1;
        let entry = volumes::Entry {
            node: 1,
            goodbye: false,
            generation: self.superblock.generation,
            epoch: EPOCH,
            nonce: 5,
            beat: self.beat,
            interval_us: 20_000,
            wall_unix_us: 0,
            cells,
        };
        let mut block = vec![0; 4096];
        entry.encode(self.superblock.uuid, &mut block);
        self.medium
            .write_at(self.superblock.geometry.entry_offset(0, entry.copy()), &block)
            .unwrap();
    }

    /// What node 2 reads from that image, from where it stood.
    fn read(&self, image: Vec<u8>, causes: &mut BTreeMap<String, u64>) -> (Vec<Bytes>, Vec<Bytes>) {
        let medium = MemoryDevice::new(image.len() as u64);
        medium.restore(image);
        let mut r =
            Reader::new(ReaderOptions { node: 2, superblock: self.superblock.clone() }).unwrap();
        r.resume(1, EPOCH, self.start);
        let (mut frames, mut letters) = (Vec::new(), Vec::new());
        let (mut now, mut table_at) = (1, 0);
        while now < 90_000 {
            if now >= table_at {
                table_at = now + 20_000;
                let mut region = vec![0; self.superblock.geometry.table_region_bytes()];
                if medium.read_at(0, &mut region).is_ok() {
                    let table = Table::decode(&region, &self.superblock);
                    *causes.entry("volume: entry damaged".into()).or_default() +=
                        table.damaged as u64;
                    r.table_update(now, &table);
                }
            }
            match r.step(now) {
                Step::Do(Op::Read { offset, len, .. }) => {
                    let mut buf = vec![0; len];
                    let result = medium.read_at(offset, &mut buf).map(|()| buf.into());
                    now += 100;
                    r.complete(now, result);
                }
                Step::WaitUntil(at) => now = at.clamp(now + 1, now.max(table_at)),
                _ => now = table_at.max(now + 1),
            }
            for fact in r.drain_facts() {
                match fact {
                    Fact::Frames { from: 1, frames: some, .. } => frames.extend(some),
                    Fact::Mailbox { from: 1, bytes } => letters.push(bytes),
                    _ => {}
                }
            }
        }
        let c = r.counters();
        for (cause, n) in [("torn", c.torn), ("stale", c.stale), ("read failed", c.faults)] {
            *causes.entry(format!("volume: {cause}")).or_default() += n;
        }
        *causes.entry("volume: missing".into()).or_default() += u64::from(c.missing > 0);
        (frames, letters)
    }
}

#[test]
fn nothing_is_delivered_that_was_not_sent_exactly_so() {
    let volumes = std::env::var("SIDEPATH_MUTATIONS").map_or(500, |n| n.parse().unwrap());
    let mut rng = Rng::new(11);
    let sides = [Side::new(1), Side::new(2)];
    let mut pair = Pair { now: Time(1_000_000), sides, sent: BTreeSet::new() };
    let mut volume = Volume::new();
    let mut wanted = Wanted::default();
    for side in &mut pair.sides {
        side.input(pair.now, Input::Volume(VOLUME, VolumeFact::Attached));
    }
    for _ in 0..3000 {
        pair.step(&mut wanted, true);
    }
    volume.write(&wanted);
    let mut shelf =
        Shelf { older: vec![volume.medium.snapshot()], other: Volume::new().medium.snapshot() };
    let mut causes = BTreeMap::new();
    let (mut offered, mut forged, mut genuine) = (0u64, 0u64, BTreeSet::new());
    let mut n = 0;
    for i in 0..volumes {
        let mut wanted = Wanted::default();
        for _ in 0..3 {
            n += 1;
            pair.sent.insert(n);
            let now = pair.now;
            pair.sides[0].input(now, Input::Packet(&packet(n)));
        }
        for _ in 0..3 {
            pair.step(&mut wanted, false);
        }
        volume.write(&wanted);
        genuine.extend(wanted.frames.iter().map(|f| f.1.clone()));
        let image = volume.medium.snapshot();
        let mut changed = image.clone();
        let kind = KINDS[usize::try_from(i).unwrap() % KINDS.len()];
        mutate(&mut changed, kind, &volume.superblock, &shelf, &mut rng);
        // Most places do not matter at this moment: half the time the fresh record is hit, too.
        if rng.chance(50) && changed.len() == image.len() {
            hit_the_fresh(&mut changed, &volume, &mut rng);
        }
        let (frames, letters) = volume.read(changed, &mut causes);
        let now = pair.now;
        for frame in &frames {
            offered += 1;
            forged += u64::from(!genuine.contains(frame));
            pair.sides[1].input(now, Input::Stored { from: node_id(1), bytes: frame });
        }
        for letter in &letters {
            pair.sides[1].input(now, Input::Mailbox { from: node_id(1), bytes: letter });
        }
        pair.step(&mut Wanted::default(), false);
        // Then the genuine ones, as from a healed medium: the stream goes on.
        for (_, frame) in &wanted.frames {
            let now = pair.now;
            pair.sides[1].input(now, Input::Stored { from: node_id(1), bytes: frame });
        }
        for _ in 0..2 {
            pair.step(&mut Wanted::default(), true);
        }
        if i % 50 == 0 {
            shelf.older.push(image);
            let keep = shelf.older.len().saturating_sub(6);
            shelf.older.drain(..keep);
        }
    }
    for _ in 0..1000 {
        pair.step(&mut Wanted::default(), true);
    }
    let delivered = &pair.sides[1].delivered;
    let once: BTreeSet<_> = delivered.iter().collect();
    assert_eq!(once.len(), delivered.len(), "delivered twice");
    let status = pair.sides[1].node.status(pair.now).peers.remove(0);
    let counters = serde_json::to_value(&status.counters).unwrap();
    for (cause, n) in counters.as_object().unwrap() {
        if n.as_u64().is_some_and(|n| n > 0) || n.is_object() {
            println!("node 2, {cause}: {n}");
        }
    }
    println!("{causes:?}");
    println!(
        "{volumes} mutated volumes: {offered} frames offered, {forged} of them forged or damaged, \
         {} packets sent, {} delivered, 0 of them not as sent",
        pair.sent.len(),
        delivered.len()
    );
    assert!(forged * 10 > volumes, "the mutations hardly reach the seal: {forged}");
    assert!(delivered.len() * 10 >= pair.sent.len() * 9, "hardly anything was delivered");
}

/// Changes bytes of a frame in the newest records and makes their checksums right.
fn hit_the_fresh(image: &mut [u8], volume: &Volume, rng: &mut Rng) {
    for ring in Ring::BOTH {
        let base = volume.superblock.geometry.ring_offset(1, 2, ring).unwrap();
        let place = u64::from(volume.start[ring.index()].place);
        let at = usize::try_from(base + place * 4096).unwrap();
        if image[at..].starts_with(b"SPR1") {
            let len = (mutate::u32_at(image, at + 48) as usize).min(4096 - 64);
            if len > 8 {
                let bit = at + 64 + 4 + rng.index(len - 4);
                image[bit] ^= 1 << rng.below(8);
                mutate::reseal(image, at);
            }
        }
    }
}
