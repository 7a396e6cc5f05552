//! Every n-th operation fails, for n = 0 to the end of a scripted life of a volume, in every way.
//!
//! The loss this prevents: an error path that nobody ever walked, which drops, doubles or reorders
//! a record, writes where it must not, or leaves a volume that cannot be used again.
//!
//! `cargo test` walks every n of init and a spread of the rest of the life (about 4 s);
//! `SIDEPATH_NTH=1 cargo test --release -p sidepath-volumes --test all nth_failure` walks every n.

use crate::common::world::{World, dooms};
use crate::common::{SMALL_BYTES, from_env, small};
use std::path::Path;
use std::sync::Arc;
use volumes::format::superblock::{Copy, Superblock};
use volumes::media::{BlockDevice, Doom, FaultDevice, MemoryDevice};
use volumes::replica::make_replica;
use volumes::runtime::read_superblock;
use volumes::{
    Consent, InitError, InitOptions, IoFaultKind, Ring, init_medium, inspect_medium, verify_medium,
};

type Disk = FaultDevice<MemoryDevice>;

/// Bytes behind the volume that are nobody's; zero, or init would refuse them.
const BEHIND: u64 = 64 << 10;

fn label() -> &'static Path {
    Path::new("lun7")
}

fn options() -> InitOptions {
    InitOptions { size: Some(SMALL_BYTES), ..small() }
}

fn disk() -> Arc<Disk> {
    Arc::new(FaultDevice::new(MemoryDevice::new(SMALL_BYTES + BEHIND)))
}

/// Formats, again when that failed. A failed init leaves nothing that looks like a volume.
fn init(disk: &Disk, lasts: bool, what: &str) -> Superblock {
    for _ in 0..60 {
        match init_medium(disk, label(), &options(), |_, _| {}) {
            Ok(s) => return s,
            Err(InitError::Io { .. }) => {
                let bytes = disk.inner().snapshot();
                let first = Superblock::decode(&bytes[..4096], Copy::First);
                let last = usize::try_from(SMALL_BYTES).unwrap();
                let last = Superblock::decode(&bytes[last - 4096..last], Copy::Last);
                if !lasts {
                    assert!(first.is_err() && last.is_err(), "{what}: a failed init left a volume");
                }
                let bare = bytes.iter().all(|&b| b == 0);
                if !bare {
                    // The medium failed again while init undid its work: by name only.
                    let o = InitOptions { force: true, name: "lun7".into(), ..options() };
                    if let Ok(s) = init_medium(disk, label(), &o, |_, _| {}) {
                        return s;
                    }
                }
            }
            // It could not undo its work either, for the medium went on failing; what it left
            // is a whole volume then.
            Err(InitError::IsAVolume { .. }) if lasts => {
                let s = read_superblock(disk.inner(), label()).unwrap();
                let bytes = disk.inner().snapshot();
                let body = 4096..usize::try_from(s.geometry.last_offset()).unwrap();
                assert!(bytes[body].iter().all(|&b| b == 0), "{what}: half a volume");
                return s;
            }
            Err(e) => panic!("{what}: {e}"),
        }
    }
    panic!("{what}: init never succeeds")
}

/// The whole life. Returns the operations it took.
fn life(n: u64, times: u64, doom: Doom) -> u64 {
    let what = format!("operations {n}..{} {doom:?}", n + times);
    if std::env::var_os("SIDEPATH_SAY").is_some() {
        println!("{what}");
    }
    let disk = disk();
    disk.doom(n..n + times, doom);
    let volume = init(&disk, times > 1, &what);
    let mut w = World::new(volume, disk.clone());
    for id in [1, 2] {
        w.start(id, 0);
    }
    w.standby(2, 20_000);
    let attached = |w: &World<Disk>| w.attached();
    assert!(w.until(60_000_000, attached), "{what}: never attached");
    traffic(&mut w, 90);
    assert!(w.letter(1, 2, b"key").is_ok(), "{what}");
    w.run(100_000);
    // A crash of node 1: nothing said, operations under way are forgotten.
    let old = w.kill(1);
    assert!(old.judge.fenced.is_empty(), "{what}: {:?}", old.judge.fenced);
    w.start(1, old.permit.epoch());
    w.standby(2, 20_000);
    assert!(w.until(60_000_000, attached), "{what}: never attached again");
    traffic(&mut w, 20);
    for id in [1, 2] {
        let fenced = &w.node(id).judge.fenced;
        assert!(fenced.is_empty(), "{what}: node {id} was fenced: {fenced:?}");
    }
    for node in &mut w.nodes {
        node.keeper.machine.goodbye();
    }
    w.until(10_000_000, |w| w.nodes.iter().all(|n| n.keeper.stopped.is_some()));
    // Reading commands either succeed or name the fault.
    let verified = verify_medium(&*disk, label());
    assert!(verified.is_ok_and(|v| v.ok) || n + times >= disk.operations() - 60, "{what}: verify");
    let _ = inspect_medium(&*disk, label());
    let operations = disk.operations();

    // Healed, it is as good as new.
    disk.heal();
    w.nodes.clear();
    for id in [1, 2] {
        w.start(id, 0);
    }
    assert!(w.until(60_000_000, attached), "{what}: not usable afterwards");
    w.run(50_000);
    if let Err(e) = w.proves_itself() {
        panic!("{what}: afterwards: {e}");
    }
    let report = verify_medium(&*disk, label()).unwrap();
    assert!(report.ok, "{what}: {report:?}");
    assert!(inspect_medium(&*disk, label()).unwrap().nodes.iter().all(|n| n.state == "present"));
    let bytes = disk.inner().snapshot();
    let behind = usize::try_from(SMALL_BYTES).unwrap();
    assert!(bytes[behind..].iter().all(|&b| b == 0), "{what}: written behind the volume");
    assert!(read_superblock(disk.inner(), label()).is_ok());
    operations
}

/// Enough small records to go round the rings, and a few large ones.
fn traffic(w: &mut World<Disk>, n: u32) {
    for i in 0..n {
        for (from, to) in [(1, 2), (2, 1)] {
            let ring = if i % 5 == 0 { Ring::Express } else { Ring::Data };
            let len = if i % 16 == 7 { 20_000 } else { 700 };
            // A full outbox or a node that is cut off takes nothing; that is its right.
            let _ = w.store(from, to, ring, len);
        }
        w.run(2_000);
    }
    w.until(5_000_000, |w| {
        w.nodes.iter().all(|n| {
            [1, 2].iter().all(|&to| n.writer.machine.buffered_bytes(to) == 0)
                && !n.writer.machine.is_writing()
        })
    });
    w.run(60_000);
}

#[test]
fn every_nth_operation_fails_and_the_life_ends_well() {
    let whole = life(u64::MAX - 100, 1, Doom::Late);
    let init_ops = {
        let disk = disk();
        init_medium(&*disk, label(), &options(), |_, _| {}).unwrap();
        disk.operations()
    };
    let all = from_env("SIDEPATH_NTH", 0) > 0;
    let spread = if all { 1 } else { whole / 60 };
    let (mut lives, mut n) = (0u64, 0);
    while n < whole {
        // The whole init and the claims always; the long middle as far as time allows.
        let all_ways = dooms(n);
        let count = if all || n < init_ops { 8 } else { 2 };
        for way in 0..count {
            let at = usize::try_from((way * 3 + n) % 8).unwrap();
            let times = [1, 1, 4, 40][usize::try_from((n + way) % 4).unwrap()];
            life(n, times, all_ways[at]);
            lives += 1;
        }
        n += if n < init_ops { 1 } else { spread };
    }
    println!("{lives} lives of about {whole} operations, {init_ops} of them init");
}

#[test]
fn a_failing_init_never_touches_what_is_not_its_own() {
    let whole = |disk: &Disk| {
        let _ = init_medium(disk, label(), &small(), |_, _| {});
        disk.operations()
    };
    // A file system, somebody's bytes, a volume in use by name; the operator typed the device's.
    type Fill = fn(&MemoryDevice);
    let fills: [Fill; 3] = [
        |m| m.write_at(1080, b"\x53\xef").unwrap(),
        |m| m.write_at(700_000, b"precious").unwrap(),
        |m| {
            let o = InitOptions { name: "payroll".into(), ..small() };
            init_medium(m, label(), &o, |_, _| {}).unwrap();
        },
    ];
    for (i, fill) in fills.iter().enumerate() {
        let blank = disk();
        fill(blank.inner());
        let before = blank.inner().snapshot();
        let ops = whole(&blank).max(4);
        for n in 0..ops + 2 {
            for doom in dooms(n) {
                for force in [false, true] {
                    let disk = disk();
                    disk.inner().restore(before.clone());
                    disk.doom(n..n + 1, doom);
                    // `lun7` is the name of the device: enough to give up foreign data, but not
                    // a volume, whose own name must be typed.
                    let name = if i == 2 { "lun7" } else { "lun" };
                    let o = InitOptions { name: name.into(), force, ..small() };
                    let e = init_medium(&*disk, label(), &o, |_, _| {});
                    assert!(e.is_err(), "fill {i}, operation {n} {doom:?}, force {force}");
                    let untouched = disk.inner().snapshot() == before;
                    assert!(untouched, "fill {i}, operation {n} {doom:?}, force {force}: {e:?}");
                }
            }
        }
    }
}

/// A replica that cannot be read for a moment is not taken for something else, which an operator
/// would be asked to destroy.
#[test]
fn a_replica_that_fails_is_told_as_that() {
    // The last copy is found at the end of the medium.
    let exact = || FaultDevice::new(MemoryDevice::new(SMALL_BYTES));
    let original = exact();
    let superblock = init_medium(&original, label(), &options(), |_, _| {}).unwrap();
    let again = |disk: &Disk| make_replica(disk, label(), &superblock, &Consent::default());
    let blank = exact();
    again(&blank).unwrap();
    let whole = blank.inner().snapshot();
    for damaged in [0, 4096] {
        let mut bytes = whole.clone();
        bytes[..damaged].fill(0);
        for n in 0..40 {
            let disk = exact();
            disk.inner().restore(bytes.clone());
            disk.doom(n..n + 1, Doom::Fails(IoFaultKind::Other));
            if let Err(e) = again(&disk) {
                assert!(!e.is_input_error(), "{damaged} bytes gone, operation {n}: {e}");
            } else {
                assert!(n > 0, "it does not read");
            }
            assert!(disk.inner().snapshot() == bytes, "{damaged} bytes gone, operation {n}");
        }
    }
}
