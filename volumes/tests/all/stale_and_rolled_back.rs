//! Old bytes: from a cache that catches up (nothing new, nothing lost), or for ever (fence).
//!
//! The losses this prevents: a node that leaves for good because an array's cache was stale for a
//! second, and a node that writes on into a volume somebody restored from a copy.

use crate::common::world::{Medium, World};
use crate::common::{SMALL_BYTES, small};
use std::path::Path;
use std::sync::{Arc, Mutex};
use volumes::fence::ROLLED_BACK_AFTER;
use volumes::media::{BlockDevice, MemoryDevice};
use volumes::{FenceReason, IoFault, Refused, Ring, init_medium};

/// Reads come from an old picture while there is one; writes land.
#[derive(Debug)]
struct StaleDevice {
    inner: MemoryDevice,
    old: Mutex<Option<MemoryDevice>>,
}

impl StaleDevice {
    fn thaw(&self) {
        *self.old.lock().unwrap() = None;
    }
}

impl BlockDevice for StaleDevice {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn logical_block(&self) -> u32 {
        self.inner.logical_block()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        match &*self.old.lock().unwrap() {
            Some(old) => old.read_at(offset, buf),
            None => self.inner.read_at(offset, buf),
        }
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        self.inner.write_at(offset, data)
    }
    fn flush(&self) -> Result<(), IoFault> {
        Ok(())
    }
}
impl Medium for StaleDevice {}

/// Both attached; what the volume was before node 1 claimed it.
fn attached() -> (World<StaleDevice>, Vec<u8>) {
    let inner = MemoryDevice::new(SMALL_BYTES);
    let volume = init_medium(&inner, Path::new("lun7"), &small(), |_, _| {}).unwrap();
    let disk = Arc::new(StaleDevice { inner, old: Mutex::default() });
    let mut w = World::new(volume, disk);
    w.start(2, 0);
    assert!(w.until(5_000_000, |w| w.attached()));
    w.run(200_000);
    let before = w.disk.inner.snapshot();
    w.start(1, 0);
    assert!(w.until(5_000_000, |w| w.attached()));
    w.run(100_000);
    w.proves_itself().unwrap();
    (w, before)
}

/// What node 1 sees of the volume is as old as `before`, for that long.
fn stale_for(us: u64) -> World<StaleDevice> {
    let (mut w, before) = attached();
    let old = MemoryDevice::new(SMALL_BYTES);
    old.restore(before);
    *w.disk.old.lock().unwrap() = Some(old);
    // The Writer looks, too: it has something to write.
    w.store(1, 2, Ring::Data, 100).unwrap();
    w.run(us);
    w
}

#[test]
fn a_cache_that_catches_up_fences_nobody() {
    for us in [30_000, 100_000, 800_000, ROLLED_BACK_AFTER - 100_000] {
        let mut w = stale_for(us);
        w.disk.thaw();
        w.run(1_500_000);
        for node in &w.nodes {
            assert!(node.judge.fenced.is_empty(), "stale for {us} us: {:?}", node.judge.fenced);
        }
        w.proves_itself().unwrap_or_else(|e| panic!("stale for {us} us: {e}"));
    }
}

#[test]
fn stale_looks_now_and_then_never_add_up() {
    let (mut w, before) = attached();
    for _ in 0..40 {
        let old = MemoryDevice::new(SMALL_BYTES);
        old.restore(before.clone());
        *w.disk.old.lock().unwrap() = Some(old);
        w.run(70_000);
        w.disk.thaw();
        w.run(1_200_000);
        let _ = w.store(1, 2, Ring::Data, 100);
    }
    assert!(w.nodes.iter().all(|n| n.judge.fenced.is_empty()));
    w.proves_itself().unwrap();
}

#[test]
fn while_it_is_in_doubt_nothing_is_written_and_then_it_is_fenced() {
    let (mut w, before) = attached();
    w.node(2).asleep = true;
    w.disk.inner.restore(before.clone());
    // One beat may have been permitted by the look before.
    w.run(25_000);
    let at = w.disk.inner.snapshot();
    w.store(1, 2, Ring::Data, 100).unwrap();
    w.run(ROLLED_BACK_AFTER - 200_000);
    assert!(w.disk.inner.snapshot() == at, "written while in doubt");
    assert!(!w.node(1).permit.fenced());
    w.run(1_500_000);
    let node = w.node(1);
    let why = node.judge.fenced.clone();
    assert!(matches!(why[..], [FenceReason::RolledBack { .. }, ..]), "{why:?}");
    assert_eq!(w.store(1, 2, Ring::Data, 10), Err(Refused::Fenced));
    assert!(w.disk.inner.snapshot() == at);
}

#[test]
fn a_letter_is_read_before_the_next_look_at_the_table() {
    let (mut w, _) = attached();
    let now = w.now;
    let keeper = &mut w.node(2).keeper.machine;
    keeper.set_interval(5_000_000);
    w.run(100_000);
    assert!(w.now < now + 4_000_000);
    for text in [&b"first"[..], b"second"] {
        w.letter(1, 2, text).unwrap();
        w.run(30_000);
        let letters = &w.node(2).judge.letters;
        assert_eq!(letters.iter().filter(|l| l.1 == text).count(), 1, "{text:?}: {letters:?}");
    }
    // A reader that stands by looks at what is announced only.
    w.standby(2, 1_000_000);
    w.letter(1, 2, b"third").unwrap();
    w.run(60_000);
    assert!(!w.node(2).judge.letters.iter().any(|l| l.1 == b"third"[..]));
    w.node(2).keeper.machine.beat_now();
    w.node(2).keeper.machine.set_interval(20_000);
    w.run(6_000_000);
    assert_eq!(w.node(2).judge.letters.iter().filter(|l| l.1 == b"third"[..]).count(), 1);
}
