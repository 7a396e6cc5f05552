//! How far apart the beats of an entry are, and what peers were told of that.

use crate::common::world::World;
use crate::common::{SMALL_BYTES, small};
use std::path::Path;
use std::sync::Arc;
use volumes::buffer::Pool;
use volumes::event::{Fact, Op};
use volumes::keeper::KeeperOptions;
use volumes::media::{BlockDevice, MemoryDevice};
use volumes::{Class, Keeper, Permit, Step, init_medium};

const QUICK: u64 = 20_000;
const SLOW: u64 = 200_000;
/// A beat reads the table before it writes, and counts from the write.
const READING: u64 = 1_000;

#[track_caller]
fn assert_near(at: u64, expected: u64) {
    assert!((expected..=expected + READING).contains(&at), "{at} instead of {expected}");
}

/// Node 1 alone, attached, its next beat planned.
fn attached() -> World<MemoryDevice> {
    let disk = MemoryDevice::new(SMALL_BYTES);
    let volume = init_medium(&disk, Path::new("lun7"), &small(), |_, _| {}).unwrap();
    let mut w = World::new(volume, Arc::new(disk));
    w.start(1, 0);
    assert!(w.until(5_000_000, |w| w.attached()));
    w
}

/// When the next beat is due, once the one under way has ended.
fn next_beat(w: &mut World<MemoryDevice>) -> u64 {
    for _ in 0..100 {
        let now = w.now;
        if let Step::WaitUntil(at) = w.node(1).keeper.machine.step(now) {
            return at;
        }
        w.tick();
    }
    panic!("the keeper never waits");
}

#[test]
fn whoever_slows_down_keeps_the_beat_it_announced() {
    let mut w = attached();
    let promised = next_beat(&mut w);
    w.node(1).keeper.machine.set_interval(SLOW);
    assert_eq!(next_beat(&mut w), promised, "peers count on it");
    w.run(promised + 5_000 - w.now);
    // That one announces the one after.
    let after = next_beat(&mut w);
    assert_near(after, promised + SLOW);
}

#[test]
fn whoever_hurries_does_so_at_once() {
    let mut w = attached();
    let last = next_beat(&mut w) - QUICK;
    w.node(1).keeper.machine.set_interval(SLOW);
    w.run(QUICK + 5_000);
    let slow = next_beat(&mut w);
    assert_near(slow, last + QUICK + SLOW);
    w.node(1).keeper.machine.set_interval(QUICK);
    assert_eq!(next_beat(&mut w), slow - SLOW + QUICK);
}

/// A keeper alone on a medium whose operations take as long as is said.
struct Slow {
    disk: MemoryDevice,
    keeper: Keeper,
    permit: Arc<Permit>,
    pool: Pool,
    now: u64,
    /// When the last look was issued.
    looked: u64,
}

impl Slow {
    fn new(asked: u64) -> Self {
        let disk = MemoryDevice::new(SMALL_BYTES);
        let superblock = init_medium(&disk, Path::new("store"), &small(), |_, _| {}).unwrap();
        let (permit, pool) = (Arc::new(Permit::default()), Pool::new());
        let keeper = Keeper::new(KeeperOptions {
            node: 1,
            superblock,
            epoch: 0,
            nonce: 7,
            interval: asked,
            wall_unix_us_at_zero: 0,
            permit: permit.clone(),
            pool: pool.clone(),
        });
        let keeper = keeper.unwrap().timed(Class::Object.times());
        Self { disk, keeper, permit, pool, now: 1, looked: 0 }
    }

    /// One step: whether it was a look, and of an entry that was written the interval it announces
    /// and the age of the look it followed.
    fn step(&mut self, takes: u64) -> (bool, Option<(u64, u64)>) {
        let mut done = (false, None);
        let result = match self.keeper.step(self.now) {
            Step::WaitUntil(at) => {
                self.now = at.max(self.now + 1);
                return done;
            }
            Step::Do(Op::Read { offset, len, .. }) => {
                (self.looked, done.0) = (self.now, true);
                let mut buf = self.pool.take_len(len);
                self.disk.read_at(offset, buf.as_mut()).unwrap();
                buf.freeze()
            }
            Step::Do(Op::Write { offset, data }) => {
                let interval = u64::from_le_bytes(data[56..64].try_into().unwrap());
                done.1 = Some((interval, self.now - self.looked));
                self.disk.write_at(offset, &data).unwrap();
                bytes::Bytes::new()
            }
            Step::Do(Op::Flush) => bytes::Bytes::new(),
            other => panic!("{other:?}"),
        };
        self.now += takes;
        self.keeper.complete(self.now, Ok(result));
        done
    }

    /// Looks and writes take so long, for so long; what happened meanwhile, and the intervals in the
    /// entries written, each with the age of the look it followed.
    fn run(&mut self, takes: u64, lasts: u64) -> (Vec<Fact>, Vec<(u64, u64)>) {
        let end = self.now + lasts;
        let (mut facts, mut entries) = (Vec::new(), Vec::new());
        while self.now < end {
            entries.extend(self.step(takes).1);
            facts.extend(self.keeper.drain_facts());
        }
        (facts, entries)
    }
}

fn told(facts: &[Fact]) -> Vec<u64> {
    let told = facts.iter().filter_map(|f| match f {
        Fact::BeatsEvery { interval } => Some(*interval),
        _ => None,
    });
    told.collect()
}

#[test]
fn beats_follow_a_store_that_becomes_slow_and_quick_again() {
    const ASKED: u64 = 500_000;
    let mut slow = Slow::new(ASKED);
    let (facts, entries) = slow.run(20_000, 10_010_000);
    // Three requests a beat, fewer than four a second.
    let usual = Class::Object.times().beat(ASKED, 0, 2);
    assert!(slow.keeper.is_attached() && told(&facts) == [usual], "{:?}", told(&facts));
    assert!(entries.iter().all(|e| e.0 == usual), "{entries:?}");

    // A look takes longer than a permit lasts: by its own rule it could not even say so.
    let takes = usual + 50_000;
    let (facts, entries) = slow.run(takes, 60_000_000);
    let longer = Class::Object.times().beat(ASKED, takes, 2);
    assert_eq!(told(&facts), [longer]);
    assert!(entries.len() > 5 && entries.iter().all(|e| e.0 == longer), "{entries:?}");
    assert!(entries.iter().all(|e| e.1 < longer), "each follows a look: {entries:?}");
    while !slow.step(takes).0 {}
    assert!(slow.permit.valid(slow.now), "records may be written");

    let (facts, entries) = slow.run(20_000, 120_000_000);
    assert_eq!(told(&facts).last(), Some(&usual), "whoever waits for beats hears it");
    assert_eq!(entries.last().map(|e| e.0), Some(usual));
}

#[test]
fn who_slept_before_announcing_longer_beats_looks_again() {
    let mut slow = Slow::new(500_000);
    slow.run(20_000, 10_000_000);
    // One slow look, and the process is stopped before it writes the entry that says so.
    while !slow.step(900_000).0 {}
    slow.now += 60_000_000;
    let step = slow.keeper.step(slow.now);
    assert!(matches!(step, Step::Do(Op::Read { .. })), "{step:?}");
}
