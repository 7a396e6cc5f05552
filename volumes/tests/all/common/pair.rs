//! A sender on one volume, a reader on its replica, and a replicator between them, in virtual time.
//!
//! ```text
//!   node 1: Keeper, Writer -> [ source ] -> Replicator -> [ destination ] -> Reader, Keeper: node 2
//!                                                              ^ Guard: nothing goes backwards
//! ```

use super::world::{Judge, Medium, World};
use super::{SMALL_BYTES, small};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use volumes::buffer::Pool;
use volumes::format::mailbox;
use volumes::format::record::{Address, Header};
use volumes::format::superblock::Superblock;
use volumes::log::replicate::{Notice, Pace, Replicator, ReplicatorOptions, Side};
use volumes::media::{BlockDevice, FaultDevice, MemoryDevice};
use volumes::{IoFault, Micros, Op, Ring, Step, Table, init_medium};

pub type Source = FaultDevice<MemoryDevice>;
pub type Destination = FaultDevice<Guard>;

const LATENCY: Micros = 60;

/// A medium that watches every byte that lands: no record, mailbox or entry goes backwards.
#[derive(Debug)]
pub struct Guard {
    pub inner: MemoryDevice,
    volume: Superblock,
    newest: Mutex<BTreeMap<u64, (u64, u64)>>,
}

impl Guard {
    pub fn new(volume: Superblock) -> Self {
        Self { inner: MemoryDevice::new(SMALL_BYTES), volume, newest: Mutex::default() }
    }

    /// What stands in that block: where it counts, and its (epoch, number).
    fn seen(&self, at: u64, block: &[u8]) -> Option<(u64, u64)> {
        let (g, uuid) = (&self.volume.geometry, self.volume.uuid);
        for &from in &g.nodes {
            for &to in g.nodes.iter().filter(|&&to| to != from) {
                if g.mailbox_offset(from, to) == Some(at) {
                    let block = Bytes::copy_from_slice(block);
                    return mailbox::decode(&block, (uuid, from, to)).map(|m| (m.epoch, m.counter));
                }
                for ring in Ring::BOTH {
                    let base = g.ring_offset(from, to, ring).unwrap();
                    let Some(place) = at.checked_sub(base).map(|d| d / 4096) else { continue };
                    let place = u32::try_from(place).unwrap();
                    if place < g.ring_blocks(ring) {
                        let address = Address { uuid, from, to, ring };
                        let header = Header::decode(block, &address, place);
                        return header.map(|h| (h.epoch, h.number));
                    }
                }
            }
        }
        None
    }

    fn check(&self, offset: u64, data: &[u8]) {
        let mut newest = self.newest.lock().unwrap();
        let first = offset / 4096 * 4096;
        for at in (first..offset + data.len() as u64).step_by(4096) {
            let mut block = [0; 4096];
            self.inner.read_at(at, &mut block).unwrap();
            if let Some(is) = self.seen(at, &block) {
                let was = newest.entry(at).or_insert(is);
                assert!(is >= *was, "block {}: {is:?} after {was:?}", at / 4096);
                *was = is;
            }
        }
        let region = self.volume.geometry.table_region_bytes();
        if offset < region as u64 {
            let mut bytes = vec![0; region];
            self.inner.read_at(0, &mut bytes).unwrap();
            let table = Table::decode(&bytes, &self.volume);
            // What node 2 writes here itself is not the replicator's: a torn repetition of a beat
            // that was reported as failed may leave the one before.
            let is = table.get(0).map_or((0, 0), |e| (e.epoch, e.beat));
            let was = newest.entry(u64::MAX).or_insert(is);
            assert!(is >= *was, "entry of node 1: {is:?} after {was:?}");
            *was = is;
        }
    }

    /// Somebody else changed the medium on purpose.
    pub fn forget(&self) {
        self.newest.lock().unwrap().clear();
    }
}

impl BlockDevice for Guard {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn logical_block(&self) -> u32 {
        512
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        self.inner.write_at(offset, data)?;
        self.check(offset, data);
        Ok(())
    }
    fn flush(&self) -> Result<(), IoFault> {
        Ok(())
    }
}
impl Medium for Guard {}

/// A replicator and its two operations under way.
#[derive(Debug)]
pub struct Copier {
    pub machine: Replicator,
    flights: [Option<(Micros, Result<Bytes, IoFault>)>; 2],
    wake: [Micros; 2],
    pub notices: Vec<Notice>,
}

pub struct Pair {
    pub volume: Superblock,
    pub a: World<Source>,
    pub b: World<Destination>,
    pub copier: Option<Copier>,
    pub nonce: u64,
    /// Of the machine the replicator runs on.
    pub host: u64,
    pub bytes_per_s: Option<u64>,
    /// Operations of the replicator so far; at this one it is killed.
    pub ops: u64,
    pub kill_at: u64,
    /// Records that node 1 believes were read, whatever node 2 says.
    pub pool: Pool,
    told: BTreeMap<(u64, Ring), u64>,
    old_judges: Vec<Judge>,
    resets: u32,
}

pub fn replica_of(volume: &Superblock) -> Superblock {
    Superblock { replica: true, ..volume.clone() }
}

impl Pair {
    pub fn new() -> Self {
        let source = MemoryDevice::new(SMALL_BYTES);
        let volume = init_medium(&source, Path::new("lun7"), &small(), |_, _| {}).unwrap();
        let guard = Guard::new(volume.clone());
        for (offset, bytes) in replica_of(&volume).image() {
            guard.inner.write_at(offset, &bytes).unwrap();
        }
        let a = World::new(volume.clone(), Arc::new(FaultDevice::new(source)));
        let b = World::new(volume.clone(), Arc::new(FaultDevice::new(guard)));
        Self {
            volume,
            a,
            b,
            copier: None,
            nonce: 100,
            host: 7,
            bytes_per_s: None,
            ops: 0,
            kill_at: u64::MAX,
            pool: Pool::new(),
            told: BTreeMap::new(),
            old_judges: Vec::new(),
            resets: 0,
        }
    }

    /// Node 1 on the source, node 2 on the destination, both standing by.
    pub fn attached(mut self) -> Self {
        self.a.start(1, 0);
        self.start_reader(0);
        self.follow();
        let up = self.until(5_000_000, |p| {
            p.a.attached() && p.b.attached() && p.reads_epoch() == p.a.nodes[0].permit.epoch()
        });
        assert!(up, "never attached");
        self
    }

    pub fn start_reader(&mut self, epoch: u64) {
        self.b.start(2, epoch);
        self.b.node(2).reads_only = true;
    }

    pub fn restart_reader(&mut self) {
        let old = self.b.kill(2);
        let epoch = old.permit.epoch();
        self.old_judges.push(old.judge);
        self.start_reader(epoch);
        // The link tells node 1 that its peer runs anew.
        self.resets += 1;
        for _ in 0..self.resets {
            // Gaps of earlier resets may still be under way.
            self.b.node(2).judge.excuse(1);
        }
        self.a.node(1).writer.machine.reset_lane(2);
    }

    pub fn restart_sender(&mut self) {
        let old = self.a.kill(1);
        self.a.start(1, old.permit.epoch());
    }

    fn reads_epoch(&self) -> u64 {
        let lanes = self.b.nodes[0].reader.machine.cursors();
        lanes.filter(|c| c.0 == 1).map(|c| c.1).next().unwrap_or(0)
    }

    pub fn copier(&self, pace: Pace) -> Copier {
        let machine = Replicator::new(ReplicatorOptions {
            classes: [volumes::Class::Local; 2],
            superblock: self.volume.clone(),
            pace,
            bytes_per_s: self.bytes_per_s,
            nonce: self.nonce,
            host: self.host,
            wall_unix_us_at_zero: 0,
            pool: self.pool.clone(),
        });
        Copier { machine, flights: [None, None], wake: [0; 2], notices: Vec::new() }
    }

    /// A replicator that runs anew.
    pub fn start(&mut self, pace: Pace) {
        self.nonce += 1;
        self.copier = Some(self.copier(pace));
    }

    pub fn follow(&mut self) {
        self.start(Pace::Follow);
    }

    pub fn machine(&mut self) -> &mut Replicator {
        &mut self.copier.as_mut().unwrap().machine
    }

    pub fn now(&self) -> Micros {
        self.a.now
    }

    pub fn store(&mut self, ring: Ring, len: usize) -> bool {
        let taken = self.a.store(1, 2, ring, len).is_ok();
        self.b.sent.clone_from(&self.a.sent);
        taken
    }

    fn execute(device: &dyn BlockDevice, pool: &Pool, op: Op) -> Result<Bytes, IoFault> {
        match op {
            Op::Read { offset, len, .. } => {
                let mut buf = pool.take_len(len);
                device.read_at(offset, buf.as_mut())?;
                Ok(buf.freeze())
            }
            Op::Write { offset, data } => device.write_at(offset, &data).map(|()| Bytes::new()),
            Op::Flush => device.flush().map(|()| Bytes::new()),
        }
    }

    pub fn drive(&mut self) {
        let now = self.a.now;
        let Some(mut c) = self.copier.take() else { return };
        for _ in 0..1000 {
            let mut moved = false;
            for side in Side::BOTH {
                let i = side.index();
                if c.flights[i].as_ref().is_some_and(|(at, _)| *at <= now) {
                    let (_, result) = c.flights[i].take().unwrap();
                    c.machine.complete(now, side, result);
                    c.wake = [0; 2];
                    moved = true;
                }
                if c.flights[i].is_some() {
                    continue;
                }
                match c.machine.step(now, side) {
                    Step::Do(op) => {
                        self.ops += 1;
                        if side == Side::Source {
                            assert!(!matches!(op, Op::Write { .. }), "the source is never written");
                        }
                        let device: &dyn BlockDevice = match side {
                            Side::Source => &*self.a.disk,
                            Side::Destination => &*self.b.disk,
                        };
                        let result = Self::execute(device, &self.pool, op);
                        if self.ops >= self.kill_at {
                            return;
                        }
                        c.flights[i] = Some((now + LATENCY, result));
                    }
                    Step::WaitUntil(at) => c.wake[i] = at.max(now + 1),
                    Step::Idle => c.wake[i] = Micros::MAX,
                    Step::Stopped(why) => panic!("{why}"),
                }
            }
            if !moved {
                break;
            }
        }
        c.notices.extend(c.machine.drain_notices());
        self.copier = Some(c);
    }

    fn due(&self) -> Micros {
        let mut due = self.a.due().min(self.b.due());
        if let Some(c) = &self.copier {
            for i in 0..2 {
                due = due.min(c.flights[i].as_ref().map_or(c.wake[i], |(at, _)| *at));
            }
        }
        due
    }

    pub fn tick(&mut self) {
        let now = self.due().max(self.a.now + 1);
        self.a.tick_at(now);
        self.drive();
        self.b.tick_at(now);
        // What the link tells node 1 by its acknowledgements.
        if let (Some(a), Some(b)) = (self.a.nodes.first_mut(), self.b.nodes.first()) {
            for (from, epoch, read) in b.reader.machine.cursors() {
                if from == 1 && epoch == a.permit.epoch() {
                    for ring in Ring::BOTH {
                        let was = self.told.entry((epoch, ring)).or_default();
                        if read[ring.index()] > *was {
                            *was = read[ring.index()];
                            a.writer.machine.released(2, ring, *was);
                            a.writer.wake_at(now);
                        }
                    }
                }
            }
        }
    }

    pub fn run(&mut self, us: Micros) {
        let until = self.a.now + us;
        while self.a.now < until {
            self.tick();
        }
    }

    pub fn until(&mut self, us: Micros, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.a.now + us;
        while !done(self) {
            if self.a.now >= until {
                return false;
            }
            self.tick();
        }
        true
    }

    pub fn judge(&self) -> &Judge {
        &self.b.nodes[0].judge
    }

    pub fn life(&self) -> u32 {
        self.a.nodes[0].life
    }

    /// Whether node 2 has read the newest frame of both rings.
    pub fn all_arrived(&self) -> bool {
        Ring::BOTH.iter().all(|&ring| {
            let n = self.a.sent.get(&(1, 2, ring, self.life())).copied().unwrap_or(0);
            n == 0 || self.judge().last(1, ring) == Some((self.life(), n))
        })
    }

    /// Something new on both rings and in the mailbox arrives.
    pub fn proves_itself(&mut self, what: &str) {
        for ring in Ring::BOTH {
            for len in [100, 5000] {
                let mut taken = false;
                for _ in 0..1000 {
                    taken = taken || self.store(ring, len);
                    if !taken {
                        self.run(5_000);
                    }
                }
                assert!(taken, "{what}: node 1 takes nothing");
            }
        }
        let text = format!("letter {}", self.a.now);
        self.a.letter(1, 2, text.as_bytes()).unwrap();
        let arrived = self.until(10_000_000, |p| {
            p.all_arrived() && p.judge().letters.iter().any(|l| l.1 == text.as_bytes())
        });
        let c = self.copier.as_ref();
        assert!(
            arrived,
            "{what}: want {:?}, life {}, read {:?}, letters {:?}, {:?} refused {:?} lag {:?} {:?}",
            self.a.sent,
            self.life(),
            Ring::BOTH.map(|r| self.judge().last(1, r)),
            self.judge().letters.last(),
            c.map(|c| c.machine.counters()),
            c.and_then(|c| c.machine.refusal()),
            c.map(|c| c.machine.lag(self.a.now)),
            c.map(|c| c.notices.iter().rev().take(6).collect::<Vec<_>>()),
        );
    }

    /// The newest entry of that node at the destination.
    pub fn there(&self, slot: usize) -> Option<volumes::Entry> {
        table(&self.b.disk.inner().inner, &self.volume).get(slot).cloned()
    }

    pub fn here(&self, slot: usize) -> Option<volumes::Entry> {
        table(self.a.disk.inner(), &self.volume).get(slot).cloned()
    }
}

fn table(device: &dyn BlockDevice, volume: &Superblock) -> Table {
    let mut bytes = vec![0; volume.geometry.table_region_bytes()];
    device.read_at(0, &mut bytes).unwrap();
    Table::decode(&bytes, volume)
}
