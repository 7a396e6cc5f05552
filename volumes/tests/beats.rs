//! How far apart the beats of an entry are, and what peers were told of that.

mod common;

use common::world::World;
use common::{SMALL_BYTES, small};
use std::path::Path;
use std::sync::Arc;
use volumes::media::MemoryDevice;
use volumes::{Step, init_medium};

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
