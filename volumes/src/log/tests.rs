//! Writers, Readers and Keepers stepped by hand over one simulated disk in virtual time.
//!
//! Faults and what must survive them: torn writes (a prefix lands first), failed operations (a
//! prefix may have landed), stale reads (the bytes before the last write), late duplicates (an
//! old write lands once more). Every record is delivered once and in order, or reported missing.

use crate::buffer::Pool;
use crate::event::{Fact, FenceReason, IoFault, IoFaultKind, Micros, Op, Reason, Ring, Step};
use crate::fence::Permit;
use crate::flusher::Machine;
use crate::format::superblock::{Copy, Superblock, tests::sample};
use crate::keeper::{ClaimError, Keeper, KeeperOptions};
use crate::log::receive::{Mode, Reader, ReaderOptions};
use crate::log::send::{Refused, Writer, WriterOptions};
use crate::media::{BlockDevice, MemoryDevice};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

const DEADLINE: Micros = crate::pace::Class::Local.times().deadline;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Percentages.
#[derive(Clone, Copy, Default)]
struct Faults {
    torn: u64,
    eio: u64,
    stale: u64,
    late: u64,
}

struct Pending {
    op: Op,
    issued: Micros,
    done: Micros,
}

struct Seat<M> {
    machine: M,
    pending: Option<Pending>,
    wake: Micros,
    facts: Vec<Fact>,
    stopped: Option<Reason>,
}

impl<M: Machine> Seat<M> {
    fn new(machine: M) -> Self {
        Self { machine, pending: None, wake: 0, facts: Vec::new(), stopped: None }
    }

    fn due(&self) -> Micros {
        self.pending.as_ref().map_or(self.wake, |p| p.done)
    }

    fn run(&mut self, now: Micros, disk: &mut Disk) {
        if self.pending.as_ref().is_some_and(|p| p.done <= now) {
            let Some(p) = self.pending.take() else { return };
            let result = disk.finish(now, &p);
            self.machine.complete(now, result);
        }
        for _ in 0..1000 {
            if self.pending.is_some() {
                return;
            }
            let step = self.machine.step(now);
            self.machine.facts(&mut self.facts);
            match step {
                Step::Do(op) => {
                    let done = now + disk.latency();
                    disk.begin(now, &op);
                    self.pending = Some(Pending { op, issued: now, done });
                }
                Step::WaitUntil(at) if at <= now => {}
                Step::WaitUntil(at) => return self.wake = at,
                Step::Idle => return self.wake = Micros::MAX,
                Step::Stopped(reason) => {
                    self.stopped = Some(reason);
                    return self.wake = Micros::MAX;
                }
            }
        }
        panic!("a machine steps without end and without I/O");
    }
}

struct Disk {
    memory: MemoryDevice,
    rng: Rng,
    faults: Faults,
    before: Option<(u64, Vec<u8>)>,
    late: Vec<(Micros, u64, Bytes)>,
    down: bool,
}

impl Disk {
    fn latency(&mut self) -> Micros {
        60 + self.rng.below(100)
    }

    fn begin(&mut self, _now: Micros, op: &Op) {
        if let Op::Write { offset, data } = op
            && !self.down
            && self.rng.chance(self.faults.torn)
        {
            let cut = usize::try_from(self.rng.below(data.len() as u64 / 512)).unwrap() * 512;
            self.memory.write_at(*offset, &data[..cut]).unwrap();
        }
    }

    fn finish(&mut self, now: Micros, p: &Pending) -> Result<Bytes, IoFault> {
        if self.down || self.rng.chance(self.faults.eio) {
            return Err(IoFault::new(IoFaultKind::Eio, format!("since {}", p.issued)));
        }
        match &p.op {
            Op::Read { offset, len, .. } => {
                let mut buf = vec![0; *len];
                self.memory.read_at(*offset, &mut buf)?;
                if let Some((at, old)) = &self.before
                    && self.rng.chance(self.faults.stale)
                {
                    for (i, b) in old.iter().enumerate() {
                        if let Some(i) = (at + i as u64).checked_sub(*offset)
                            && let Some(slot) = buf.get_mut(usize::try_from(i).unwrap())
                        {
                            *slot = *b;
                        }
                    }
                }
                Ok(buf.into())
            }
            Op::Write { offset, data } => {
                let mut old = vec![0; data.len()];
                self.memory.read_at(*offset, &mut old)?;
                self.before = Some((*offset, old));
                self.memory.write_at(*offset, data)?;
                if self.rng.chance(self.faults.late) {
                    self.late.push((now + self.rng.below(8_000), *offset, data.clone()));
                }
                Ok(Bytes::new())
            }
            Op::Flush => Ok(Bytes::new()),
        }
    }
}

struct Node {
    id: u8,
    writer: Seat<Writer>,
    reader: Seat<Reader>,
    keeper: Seat<Keeper>,
    facts: Vec<Fact>,
    asleep: bool,
    /// Facts that were acted upon.
    seen: usize,
}

struct World {
    volume: Superblock,
    disk: Disk,
    now: Micros,
    nodes: Vec<Node>,
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        let volume = sample(&[1, 2]);
        let memory = MemoryDevice::new(volume.geometry.bytes());
        for (offset, bytes) in volume.image() {
            memory.write_at(offset, &bytes).unwrap();
        }
        let rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let disk = Disk { memory, rng, faults, before: None, late: Vec::new(), down: false };
        Self { volume, disk, now: 1, nodes: Vec::new() }
    }

    fn start(&mut self, id: u8, nonce: u64) -> usize {
        let permit = Arc::new(Permit::default());
        let pool = Pool::new();
        let superblock = self.volume.clone();
        let keeper = Keeper::new(KeeperOptions {
            node: id,
            superblock: superblock.clone(),
            epoch: 0,
            nonce,
            interval: 20_000,
            wall_unix_us_at_zero: 0,
            permit: permit.clone(),
            pool: pool.clone(),
        });
        let writer = Writer::new(WriterOptions {
            node: id,
            superblock: superblock.clone(),
            permit,
            pool,
            flush_bytes: 65536,
            flush_delay: 500,
            outbox_bytes_max: 8 << 20,
        });
        let reader = Reader::new(ReaderOptions { node: id, superblock });
        self.nodes.push(Node {
            id,
            writer: Seat::new(writer.unwrap()),
            reader: Seat::new(reader.unwrap()),
            keeper: Seat::new(keeper.unwrap()),
            facts: Vec::new(),
            asleep: false,
            seen: 0,
        });
        self.nodes.len() - 1
    }

    fn two(seed: u64, faults: Faults) -> Self {
        let mut w = Self::new(seed, faults);
        w.start(1, 11);
        w.start(2, 22);
        w.until(5_000_000, |w| {
            w.nodes.iter().all(|n| n.is(|f| matches!(f, Fact::Attached { .. })))
        });
        w.run(100_000);
        w
    }

    fn store(&mut self, at: usize, to: u8, ring: Ring, frame: &[u8]) -> Result<(), Refused> {
        let writer = &mut self.nodes[at].writer;
        writer.wake = self.now;
        writer.machine.store(self.now, to, ring, frame)
    }

    fn tick(&mut self) {
        let due = self.nodes.iter().filter(|n| !n.asleep).map(Node::due).min().unwrap();
        let late = self.disk.late.iter().map(|l| l.0).min().unwrap_or(Micros::MAX);
        self.now = self.now.max(due.min(late).min(self.now + 10_000));
        let now = self.now;
        for (_, offset, data) in self.disk.late.extract_if(.., |l| l.0 <= now) {
            self.disk.memory.write_at(offset, &data).unwrap();
        }
        let mut read = Vec::new();
        for node in self.nodes.iter_mut().filter(|n| !n.asleep) {
            node.run(now, &mut self.disk);
            let fresh = node.facts[node.seen..].iter();
            read.extend(fresh.filter_map(|f| match f {
                Fact::Cursor { from, ring, number } => Some((node.id, *from, *ring, *number)),
                _ => None,
            }));
            node.seen = node.facts.len();
        }
        // Half of the releases come from the caller, half through the table alone.
        for (reader, writer, ring, number) in read {
            if number % 2 == 0 {
                for node in self.nodes.iter_mut().filter(|n| n.id == writer) {
                    node.writer.machine.released(reader, ring, number);
                    node.writer.wake = now;
                }
            }
        }
    }

    fn run(&mut self, us: Micros) {
        let until = self.now + us;
        while self.now < until {
            self.tick();
        }
    }

    fn until(&mut self, us: Micros, done: impl Fn(&Self) -> bool) {
        let until = self.now + us;
        while !done(self) {
            assert!(self.now < until, "did not happen within {us} us");
            self.tick();
        }
    }
}

impl Node {
    fn due(&self) -> Micros {
        self.writer.due().min(self.reader.due()).min(self.keeper.due())
    }

    fn is(&self, what: impl Fn(&Fact) -> bool) -> bool {
        self.facts.iter().any(what)
    }

    fn run(&mut self, now: Micros, disk: &mut Disk) {
        self.keeper.run(now, disk);
        if let Some(table) = self.keeper.machine.take_table() {
            self.reader.machine.table_update(now, &table);
            self.reader.wake = now;
            self.writer.wake = now;
        }
        for fact in std::mem::take(&mut self.keeper.facts) {
            if let Fact::PeerRead { node, ring, number } = fact {
                self.writer.machine.released(node, ring, number);
                self.writer.wake = now;
            }
            self.facts.push(fact);
        }
        self.writer.run(now, disk);
        self.reader.run(now, disk);
        self.facts.append(&mut self.writer.facts);
        self.facts.append(&mut self.reader.facts);
        for (to, heads, letters) in self.writer.machine.heads() {
            self.keeper.machine.set_heads(to, heads, letters);
        }
        for (from, epoch, cursors) in self.reader.machine.cursors() {
            self.keeper.machine.set_cursors(from, epoch, cursors);
        }
    }

    fn frames(&self, ring: Ring) -> Vec<Bytes> {
        let of = |f: &Fact| match f {
            Fact::Frames { ring: r, frames, .. } if *r == ring => frames.clone(),
            _ => Vec::new(),
        };
        self.facts.iter().flat_map(of).collect()
    }

    fn missing(&self) -> Vec<(Ring, u64, u64)> {
        let of = |f: &Fact| match f {
            Fact::Missing { ring, first, last, .. } => Some((*ring, *first, *last)),
            _ => None,
        };
        self.facts.iter().filter_map(of).collect()
    }

    fn fenced(&self) -> Option<FenceReason> {
        self.facts.iter().find_map(|f| match f {
            Fact::Fenced { why } => Some(why.clone()),
            _ => None,
        })
    }
}

/// Every record of `from` was delivered to `to` once and in order, or is missing.
fn account(w: &World, from: usize, to: usize) -> (u64, u64) {
    let mut written: BTreeMap<(Ring, u64), usize> = BTreeMap::new();
    for f in &w.nodes[from].facts {
        if let Fact::RecordWritten { ring, number, frames, .. } = f {
            assert!(written.insert((*ring, *number), *frames).is_none(), "one number, one record");
        }
    }
    let mut last = [0; 2];
    let (mut delivered, mut missing) = (0, 0);
    for f in &w.nodes[to].facts {
        match f {
            Fact::Frames { ring, number, frames, .. } => {
                assert!(*number > last[ring.index()], "{ring:?} {number} after {last:?}");
                last[ring.index()] = *number;
                let n = written.remove(&(*ring, *number)).expect("it was written");
                assert_eq!(n, frames.len());
                delivered += n as u64;
            }
            Fact::Missing { ring, first, last: end, .. } => {
                assert!(*first > last[ring.index()] && first <= end);
                last[ring.index()] = *end;
                for number in *first..=*end {
                    // Wrap records have numbers of their own and no frames.
                    missing += written.remove(&(*ring, number)).unwrap_or(0) as u64;
                }
            }
            _ => {}
        }
    }
    assert!(written.is_empty(), "neither delivered nor missing: {written:?}");
    (delivered, missing)
}

fn traffic(w: &mut World, n: u32, step: Micros) -> u32 {
    let mut taken = 0;
    for i in 0..n {
        let ring = if w.disk.rng.chance(30) { Ring::Express } else { Ring::Data };
        let len = if w.disk.rng.chance(10) { 30_000 } else { 50 + w.disk.rng.below(3_000) };
        let mut frame = vec![0; usize::try_from(len).unwrap()];
        frame[..4].copy_from_slice(&i.to_le_bytes());
        frame[4] = u8::from(ring == Ring::Data);
        taken += u32::from(w.store(0, 2, ring, &frame).is_ok());
        let pause = w.disk.rng.below(step * 2);
        w.run(pause);
    }
    w.disk.faults = Faults::default();
    w.until(20_000_000, |w| {
        let n = &w.nodes[0];
        n.writer.machine.buffered_bytes(2) == 0 && !n.writer.machine.is_writing()
    });
    w.run(500_000);
    taken
}

#[test]
fn frames_arrive_once_and_in_order_and_rings_wrap() {
    let mut w = World::two(1, Faults::default());
    let taken = traffic(&mut w, 2_000, 300);
    assert_eq!(taken, 2_000);
    assert_eq!(account(&w, 0, 1), (2_000, 0));
    for ring in Ring::BOTH {
        let frames = w.nodes[1].frames(ring);
        let numbers: Vec<_> =
            frames.iter().map(|f| u32::from_le_bytes(f[..4].try_into().unwrap())).collect();
        assert!(numbers.windows(2).all(|n| n[0] < n[1]));
    }
    assert!(w.nodes[0].is(|f| matches!(f, Fact::Drained { to: 2 })));
}

#[test]
fn random_faults_lose_nothing_silently() {
    for seed in 1..=24 {
        // With these, no read fails six times in a row: that takes longer than the deadline.
        let mut r = Rng(seed * 7927);
        let faults = Faults {
            torn: r.below(60),
            eio: r.below(15),
            stale: r.below(40),
            late: if seed % 3 == 0 { r.below(20) } else { 0 },
        };
        let mut w = World::two(seed, faults);
        let taken = traffic(&mut w, 300, 400);
        let (delivered, missing) = account(&w, 0, 1);
        assert_eq!(delivered + missing, u64::from(taken), "seed {seed}");
        assert!(w.nodes.iter().all(|n| n.fenced().is_none()), "seed {seed}");
        if faults.late == 0 {
            assert_eq!(missing, 0, "seed {seed}: tears, failures and stale reads heal");
        }
    }
}

#[test]
fn a_torn_record_is_delivered_once_it_is_whole() {
    for cut in (0..=3 * 4096).step_by(512) {
        let mut w = World::two(2, Faults::default());
        w.store(0, 2, Ring::Data, &[7; 10_000]).unwrap();
        let (offset, data) = match w.nodes[0].writer.machine.step(w.now) {
            Step::Do(Op::Write { offset, data }) => (offset, data),
            // The permit was older than a beat: the look comes first.
            Step::Do(op) => {
                let p = Pending { op, issued: w.now, done: w.now };
                let seen = w.disk.finish(w.now, &p);
                w.nodes[0].writer.machine.complete(w.now, seen);
                match w.nodes[0].writer.machine.step(w.now) {
                    Step::Do(Op::Write { offset, data }) => (offset, data),
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        };
        w.disk.memory.write_at(offset, &data[..cut]).unwrap();
        w.nodes[0].writer.wake = Micros::MAX;
        w.run(2 * DEADLINE);
        let whole = cut >= 64 + 4 + 10_000;
        assert_eq!(w.nodes[1].frames(Ring::Data).len(), usize::from(whole), "torn at {cut}");
        let reported = w.nodes[1].is(|f| matches!(f, Fact::CorruptRecord { number: 1, .. }));
        assert_eq!(reported, cut > 0 && !whole, "torn at {cut}");
        w.disk.memory.write_at(offset, &data).unwrap();
        w.nodes[0].writer.machine.complete(w.now, Ok(Bytes::new()));
        w.nodes[0].writer.wake = w.now;
        w.run(50_000);
        assert_eq!(w.nodes[1].frames(Ring::Data), vec![Bytes::from(vec![7; 10_000])]);
        assert!(w.nodes[1].missing().is_empty());
    }
}

#[test]
fn a_record_that_never_landed_is_missing_once_the_head_is_announced() {
    let mut w = World::two(3, Faults::default());
    w.store(0, 2, Ring::Data, b"one").unwrap();
    w.run(5_000);
    let before = w.disk.memory.snapshot();
    w.nodes[1].asleep = true;
    w.store(0, 2, Ring::Data, b"two").unwrap();
    w.until(10_000, |w| {
        !w.nodes[0].writer.machine.is_writing()
            && w.nodes[0].is(|f| matches!(f, Fact::RecordWritten { number: 2, .. }))
    });
    // Lost after the acknowledgement: the ring alone goes back, the table does not.
    let at = usize::try_from(w.volume.geometry.ring_offset(1, 2, Ring::Data).unwrap()).unwrap();
    let mut now = w.disk.memory.snapshot();
    now[at..at + 64 * 4096].copy_from_slice(&before[at..at + 64 * 4096]);
    w.disk.memory.restore(now);
    w.nodes[1].asleep = false;
    w.run(30_000);
    assert!(w.nodes[1].missing().is_empty(), "not before the deadline");
    w.run(100_000);
    assert_eq!(w.nodes[1].missing(), vec![(Ring::Data, 2, 2)]);
    w.store(0, 2, Ring::Data, b"three").unwrap();
    w.run(50_000);
    assert_eq!(w.nodes[1].frames(Ring::Data), vec![&b"one"[..], b"three"]);
}

#[test]
fn a_full_ring_waits_for_its_reader_and_holds_up_no_other() {
    let mut w = World::two(4, Faults::default());
    w.nodes[1].asleep = true;
    let mut n = 0;
    while w.nodes[0].writer.machine.buffered_bytes(2) < 500_000 {
        w.store(0, 2, Ring::Data, &[1; 20_000]).unwrap();
        n += 1;
        w.run(1_000);
    }
    let size = 64 * 4096;
    assert!(w.nodes[0].writer.machine.used_bytes(2, Ring::Data) <= size);
    w.store(0, 2, Ring::Express, b"urgent").unwrap();
    w.run(5_000);
    assert_eq!(w.nodes[0].writer.machine.used_bytes(2, Ring::Express), 4096, "express flows");
    w.nodes[1].asleep = false;
    w.until(5_000_000, |w| w.nodes[0].writer.machine.buffered_bytes(2) == 0);
    w.run(200_000);
    assert_eq!(account(&w, 0, 1), (n + 1, 0));
}

#[test]
fn a_new_reader_starts_at_the_head_and_a_reset_frees_the_ring() {
    let mut w = World::two(5, Faults::default());
    w.nodes[1].asleep = true;
    for _ in 0..200 {
        w.store(0, 2, Ring::Data, &[1; 20_000]).unwrap();
    }
    w.run(1_000_000);
    w.nodes.remove(1);
    w.nodes[0].writer.machine.reset_lane(2);
    assert_eq!(w.nodes[0].writer.machine.used_bytes(2, Ring::Data), 0);
    assert_eq!(w.nodes[0].writer.machine.buffered_bytes(2), 0);
    w.start(2, 33);
    w.until(5_000_000, |w| w.nodes[1].is(|f| matches!(f, Fact::Attached { .. })));
    w.run(200_000);
    w.store(0, 2, Ring::Data, b"fresh").unwrap();
    w.run(100_000);
    assert_eq!(w.nodes[1].frames(Ring::Data), vec![&b"fresh"[..]]);
    assert!(w.nodes[1].missing().is_empty());
}

#[test]
fn a_new_writer_begins_anew_and_its_old_late_write_never_passes() {
    let mut w = World::two(6, Faults::default());
    for i in 0..20u8 {
        w.store(0, 2, Ring::Data, &[i; 100]).unwrap();
        w.run(1_000);
    }
    let old_ring = w.disk.memory.snapshot();
    w.nodes[0].asleep = true;
    w.run(10_000);
    let old = w.nodes.remove(0);
    w.start(1, 44);
    w.until(5_000_000, |w| w.nodes[1].is(|f| matches!(f, Fact::Attached { .. })));
    for i in 100..105u8 {
        w.store(1, 2, Ring::Data, &[i; 100]).unwrap();
        w.run(1_000);
    }
    // A write of the dead incarnation lands over the newest record.
    let at = w.volume.geometry.ring_offset(1, 2, Ring::Data).unwrap() + 5 * 4096;
    let from = usize::try_from(at).unwrap();
    w.disk.memory.write_at(at, &old_ring[from..from + 4096]).unwrap();
    w.run(200_000);
    w.store(1, 2, Ring::Data, &[105; 100]).unwrap();
    w.run(200_000);
    let firsts: Vec<u8> = w.nodes[0].frames(Ring::Data).iter().map(|f| f[0]).collect();
    let want: Vec<u8> = (0..20).chain(100..106).collect();
    assert_eq!(firsts, want);
    assert!(old.fenced().is_none());
}

#[test]
fn a_late_write_over_a_newer_record_destroys_it_but_never_passes() {
    let mut w = World::two(7, Faults::default());
    w.store(0, 2, Ring::Data, b"old").unwrap();
    w.run(20_000);
    let at = w.volume.geometry.ring_offset(1, 2, Ring::Data).unwrap();
    let first = usize::try_from(at).unwrap();
    let old = w.disk.memory.snapshot()[first..first + 4096].to_vec();
    // One lap: the next record at place 0 is number 65.
    for _ in 0..63 {
        w.store(0, 2, Ring::Data, b"lap").unwrap();
        w.run(25_000);
    }
    w.nodes[1].asleep = true;
    w.store(0, 2, Ring::Data, b"hit").unwrap();
    w.run(30_000);
    w.disk.memory.write_at(at, &old).unwrap();
    w.nodes[1].asleep = false;
    w.store(0, 2, Ring::Data, b"behind").unwrap();
    w.run(400_000);
    // The header is gone, so the reader goes on where the writer announced its head.
    let missing = w.nodes[1].missing();
    assert!(matches!(missing[..], [(Ring::Data, 65, 65 | 66)]), "{missing:?}");
    w.store(0, 2, Ring::Data, b"after").unwrap();
    w.run(100_000);
    assert_eq!(w.nodes[1].frames(Ring::Data).last().unwrap(), &b"after"[..]);
    assert!(!w.nodes[1].frames(Ring::Data).contains(&Bytes::from_static(b"hit")));
}

#[test]
fn the_storage_goes_away_and_comes_back() {
    let mut w = World::two(8, Faults::default());
    w.disk.down = true;
    for i in 0..50u8 {
        w.store(0, 2, Ring::Data, &[i; 100]).unwrap();
        w.run(100_000);
    }
    assert!(w.nodes[1].frames(Ring::Data).is_empty());
    assert!(w.nodes[0].is(|f| matches!(f, Fact::WriteFailed { .. } | Fact::ReadFailed { .. })));
    w.disk.down = false;
    w.run(3_000_000);
    assert_eq!(account(&w, 0, 1), (50, 0));
    assert!(w.nodes[0].is(|f| matches!(f, Fact::Recovered)));
}

#[test]
fn a_living_node_keeps_its_id() {
    let mut w = World::two(9, Faults::default());
    let third = w.start(1, 55);
    w.run(3_000_000);
    assert!(matches!(
        w.nodes[third].keeper.stopped,
        Some(Reason::ClaimRefused(ClaimError::NodeIdInUse { node: 1, .. }))
    ));
    assert!(w.nodes[0].fenced().is_none());
    assert_eq!(
        w.nodes[third].writer.machine.store(w.now, 2, Ring::Data, b"x"),
        Err(Refused::Fenced)
    );
}

#[test]
fn two_claims_at_one_moment_leave_one() {
    let mut w = World::new(10, Faults::default());
    let (a, b) = (w.start(1, 11), w.start(1, 12));
    w.run(3_000_000);
    let attached = |n: usize| w.nodes[n].keeper.machine.is_attached();
    assert!(attached(a) != attached(b), "exactly one");
}

#[test]
fn an_heir_waits_as_long_as_the_permit_of_whom_it_follows() {
    let mut w = World::two(21, Faults::default());
    w.nodes[0].keeper.machine.set_interval(1_000_000);
    w.run(2_500_000);
    w.nodes[0].asleep = true;
    let began = w.now;
    let heir = w.start(1, 66);
    w.until(9_000_000, |w| w.nodes[heir].keeper.machine.is_attached());
    // Three beats watched, and one more: until then a Writer that wakes may hold a good permit.
    assert!(w.now - began >= 4_000_000, "{}", w.now - began);
}

#[test]
fn a_sleeper_that_lost_its_id_writes_nothing_after_it_wakes() {
    let mut w = World::two(11, Faults::default());
    w.nodes[0].asleep = true;
    let heir = w.start(1, 66);
    w.until(5_000_000, |w| w.nodes[heir].keeper.machine.is_attached());
    w.run(100_000);
    w.nodes[heir].asleep = true;
    let before = w.disk.memory.snapshot();
    // Only the Writer wakes: it has a frame to write and must look first.
    w.nodes[0].asleep = false;
    w.nodes[0].keeper.wake = Micros::MAX;
    w.store(0, 2, Ring::Data, b"ghost").unwrap();
    w.nodes[1].asleep = true;
    w.run(300_000);
    assert!(matches!(w.nodes[0].fenced(), Some(FenceReason::ForeignEpoch { .. })));
    assert!(before == w.disk.memory.snapshot(), "not one byte was written");
    assert_eq!(w.store(0, 2, Ring::Data, b"x"), Err(Refused::Fenced));
}

#[test]
fn a_rolled_back_or_reformatted_volume_fences() {
    let mut w = World::new(12, Faults::default());
    let blank = w.disk.memory.snapshot();
    w.start(1, 11);
    w.run(200_000);
    w.disk.memory.restore(blank);
    w.run(3_000_000);
    assert!(matches!(w.nodes[0].fenced(), Some(FenceReason::RolledBack { found: 0, .. })));

    for (uuid, generation) in [([9; 16], 3), (*b"0123456789abcdef", 4)] {
        let mut w = World::two(13, Faults::default());
        let mut other = w.volume.clone();
        (other.uuid.0, other.generation) = (uuid, generation);
        w.disk.memory.write_at(0, &other.encode(Copy::First)).unwrap();
        w.run(200_000);
        let why = w.nodes[0].fenced();
        let want = if generation == 4 {
            matches!(why, Some(FenceReason::Generation { ours: 3, found: 4 }))
        } else {
            matches!(why, Some(FenceReason::OtherVolume { .. }))
        };
        assert!(want, "{why:?}");
    }
}

#[test]
fn a_damaged_first_superblock_is_no_reason_to_stop() {
    let mut w = World::two(14, Faults::default());
    w.disk.memory.write_at(0, &[0; 4096]).unwrap();
    w.run(100_000);
    w.store(0, 2, Ring::Data, b"still").unwrap();
    w.run(300_000);
    assert!(w.nodes[0].fenced().is_none());
    assert_eq!(w.nodes[1].frames(Ring::Data), vec![&b"still"[..]]);
}

#[test]
fn mailboxes_are_overwritten_and_read_once() {
    let mut w = World::two(15, Faults::default());
    for text in [&b"hello"[..], b"again"] {
        w.nodes[0].writer.machine.mailbox(2, text).unwrap();
        w.nodes[0].writer.wake = w.now;
        w.run(100_000);
    }
    let got = w.nodes[1].facts.iter().filter_map(|f| match f {
        Fact::Mailbox { from: 1, bytes } => Some(bytes.clone()),
        _ => None,
    });
    assert_eq!(got.collect::<Vec<_>>(), vec![&b"hello"[..], b"again"]);
    let writer = &mut w.nodes[0].writer.machine;
    assert_eq!(writer.mailbox(2, &[0; 4033]), Err(Refused::TooLarge));
    assert_eq!(writer.mailbox(3, b""), Err(Refused::UnknownNode));
}

#[test]
fn standby_reads_seldom_and_still_everything() {
    let mut w = World::two(16, Faults::default());
    let mode = Mode::Standby { interval: 1_000_000 };
    let now = w.now;
    w.nodes[1].reader.machine.set_mode(now, mode);
    w.run(1_000_000);
    let before = w.nodes[1].reader.machine.counters().polls;
    w.run(10_000_000);
    let polls = w.nodes[1].reader.machine.counters().polls - before;
    assert!(polls <= 40, "{polls} polls in ten idle seconds");
    w.store(0, 2, Ring::Data, b"x").unwrap();
    w.run(100_000);
    assert_eq!(w.nodes[1].frames(Ring::Data).len(), 1, "the announced head woke it");
}

#[test]
fn goodbye_is_told_and_the_next_claim_need_not_wait() {
    let mut w = World::two(17, Faults::default());
    w.nodes[0].keeper.machine.goodbye();
    w.nodes[0].keeper.wake = w.now;
    w.run(100_000);
    assert_eq!(w.nodes[0].keeper.stopped, Some(Reason::Goodbye));
    assert!(w.nodes[1].is(|f| matches!(f, Fact::PeerLeft { node: 1, .. })));
    w.nodes.remove(0);
    let began = w.now;
    let heir = w.start(1, 77);
    w.until(5_000_000, |w| w.nodes[heir].keeper.machine.is_attached());
    assert!(w.now - began < 30_000, "one settling beat only: {}", w.now - began);
}

#[test]
fn a_beat_that_was_under_way_does_not_say_goodbye() {
    let mut w = World::two(18, Faults::default());
    let writes = |w: &World| {
        w.nodes[0].keeper.pending.as_ref().is_some_and(|p| matches!(p.op, Op::Write { .. }))
    };
    w.until(5_000_000, writes);
    w.nodes[0].keeper.machine.goodbye();
    w.run(100_000);
    assert_eq!(w.nodes[0].keeper.stopped, Some(Reason::Goodbye));
    assert!(w.nodes[1].is(|f| matches!(f, Fact::PeerLeft { node: 1, .. })));
}
