//! The power of the storage is cut, and each unflushed sector keeps any of its versions.
//!
//! The losses this prevents: a reader that takes half a record for a whole one, an epoch that is
//! handed out twice, a volume without a superblock, a node that goes on writing where it must not.
//!
//! `cargo test` explores 5,000 distinct states (and a twentieth and a tenth of that of the other two
//! kinds) in a few seconds;
//! `SIDEPATH_CUTS=100000 cargo test --release -p sidepath-volumes --test all power_cut -- --nocapture`
//! explores more and prints the rates. `SIDEPATH_SEED` moves all seeds; a failure names its cut.

use crate::common::world::World;
use crate::common::{Rng, SMALL_BYTES, from_env, small};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use volumes::format::superblock::{Copy, Superblock};
use volumes::media::{BlockDevice, MemoryDevice, PowerCutDevice};
use volumes::runtime::read_superblock;
use volumes::{FenceReason, InitError, InitOptions, Ring, Table, init_medium, verify_medium};

type Disk = PowerCutDevice<MemoryDevice>;

fn label() -> &'static Path {
    Path::new("lun7")
}

fn disk() -> Arc<Disk> {
    Arc::new(PowerCutDevice::new(MemoryDevice::new(SMALL_BYTES)))
}

fn cuts() -> u64 {
    from_env("SIDEPATH_CUTS", 5_000)
}

fn seed() -> u64 {
    from_env("SIDEPATH_SEED", 1)
}

fn told(what: &str, states: &HashSet<u64>, cuts: u64, began: Instant) {
    let rate = cuts as f64 / began.elapsed().as_secs_f64();
    println!("{what}: {cuts} cuts, {} distinct states, {rate:.0} cuts/s", states.len());
}

/// What distinguishes two states: the bytes that the cut added, and those below.
fn fingerprint(step: u64, survivors: &[(u64, Vec<u8>)]) -> u64 {
    let mut h = DefaultHasher::new();
    (step, survivors).hash(&mut h);
    h.finish()
}

/// The medium after the cut, without the cache.
fn after(disk: &Disk, survivors: &[(u64, Vec<u8>)]) -> Arc<Disk> {
    let medium = MemoryDevice::new(SMALL_BYTES);
    medium.restore(disk.inner().snapshot());
    for (offset, bytes) in survivors {
        medium.write_at(*offset, bytes).unwrap();
    }
    Arc::new(PowerCutDevice::new(medium))
}

/// Both nodes start anew on what was left. Their daemons remember their epochs, or not.
fn recover(before: &World<Disk>, medium: Arc<Disk>, epochs: [u64; 2], seed: u64, what: &str) {
    let volume = read_superblock(&*medium, label()).expect(what);
    assert_eq!(volume, before.volume, "{what}");
    let mut region = vec![0; volume.geometry.table_region_bytes()];
    medium.read_at(0, &mut region).unwrap();
    let table = Table::decode(&region, &volume);
    let on_disk = [0, 1].map(|slot| table.get(slot).map_or(0, |e| e.epoch));
    let report = verify_medium(&*medium, label()).expect(what);
    assert_eq!(report.superblocks, ["ok", "ok"], "{what}");

    let mut w = World::new(volume, medium);
    (w.now, w.lives) = (before.now, before.lives + 100);
    w.sent = before.sent.clone();
    w.start(1, epochs[0]);
    w.start(2, epochs[1]);
    if !seed.is_multiple_of(8) {
        w.standby(1, 20_000);
        w.standby(2, 20_000);
    }
    assert!(w.until(10_000_000, |w| w.attached()), "{what}: never attached");
    for (i, node) in w.nodes.iter().enumerate() {
        let epoch = node.permit.epoch();
        assert!(epoch > epochs[i] && epoch > on_disk[i], "{what}: epoch {epoch} is not new");
    }
    w.run(45_000);
    if let Err(e) = w.proves_itself() {
        panic!("{what}: {e}");
    }
    assert!(w.nodes.iter().all(|n| n.judge.fenced.is_empty()), "{what}");
}

/// One step of a life that never ends: frames both ways, letters, now and then a restart.
fn live(w: &mut World<Disk>, rng: &mut Rng) {
    for (from, to) in [(1, 2), (2, 1)] {
        if rng.chance(60) {
            let ring = if rng.chance(30) { Ring::Express } else { Ring::Data };
            let len = if rng.chance(4) { 30_000 } else { 24 + rng.index(2_500) };
            let _ = w.store(from, to, ring, len);
        }
        if rng.chance(3) {
            let _ = w.letter(from, to, format!("step {}", w.now).as_bytes());
        }
    }
    let pause = 200 + rng.below(3_000);
    w.run(pause);
}

fn attached_world(disk: &Arc<Disk>) -> World<Disk> {
    let volume = init_medium(&**disk, label(), &small(), |_, _| {}).unwrap();
    disk.destage(20);
    let mut w = World::new(volume, disk.clone());
    w.start(1, 0);
    w.start(2, 0);
    w.standby(1, 5_000);
    w.standby(2, 5_000);
    w
}

#[test]
fn after_a_cut_both_nodes_start_anew_on_what_was_left() {
    let (cuts, began) = (cuts(), Instant::now());
    let mut rng = Rng::new(seed() + 1);
    let disk = disk();
    let mut w = attached_world(&disk);
    let (mut states, mut done, mut step) = (HashSet::new(), 0, 0);
    while done < cuts {
        step += 1;
        // The claims are cut at every moment, the rest of the life at every step of it.
        if w.attached() {
            live(&mut w, &mut rng)
        } else {
            w.tick()
        }
        if rng.chance(1) && w.attached() {
            let old = w.kill(1);
            w.start(1, old.permit.epoch());
            w.nodes.rotate_right(1);
            w.standby(1, 5_000);
        }
        for _ in 0..(cuts / 500).clamp(4, 40) {
            let seed = rng.next();
            let survivors = disk.survivors(seed);
            if !states.insert(fingerprint(step, &survivors)) {
                continue;
            }
            // An epoch of which nothing was flushed, and that nobody remembers, never was.
            let known = [0, 1].map(|i| w.nodes[i].permit.epoch());
            let epochs = if seed & 2 == 0 { known } else { [0; 2] };
            let what = format!("step {step}, cut {seed}");
            recover(&w, after(&disk, &survivors), epochs, seed >> 8, &what);
            done += 1;
        }
    }
    told("restart of both", &states, done, began);
}

#[test]
fn nodes_that_live_on_through_cuts_of_the_storage_deliver_nothing_wrong() {
    let (cuts, began) = (cuts() / 20, Instant::now());
    let (mut done, mut fenced, mut missing, mut life) = (0, 0u64, 0, 0);
    let mut states = HashSet::new();
    while done < cuts {
        life += 1;
        let mut rng = Rng::new(seed() + 1000 + life);
        let disk = disk();
        let mut w = attached_world(&disk);
        assert!(w.until(10_000_000, |w| w.attached()));
        for cut in 0..20 {
            for _ in 0..rng.below(12) {
                live(&mut w, &mut rng);
            }
            let seed = rng.next();
            states.insert(fingerprint(life * 1000 + cut, &disk.survivors(seed)));
            disk.cut(seed).unwrap();
            done += 1;
            let at = w.now;
            while w.now < at + 250_000 {
                live(&mut w, &mut rng);
            }
            // The newest entry may be gone: then that incarnation is in doubt for two seconds,
            // ends, and says why.
            let decided = |w: &World<Disk>| {
                w.nodes.iter().all(|n| n.permit.fenced() || n.permit.valid(w.now))
            };
            assert!(w.until(20_000_000, decided), "life {life}, cut {cut}");
            for id in [1, 2] {
                let node = w.node(id);
                if node.permit.fenced() {
                    let why = node.judge.fenced.clone();
                    let told = why.iter().all(|w| matches!(w, FenceReason::RolledBack { .. }));
                    assert!(told && !why.is_empty(), "life {life}, cut {cut}: {why:?}");
                    let old = w.kill(id);
                    missing += old.judge.missing;
                    fenced += 1;
                    w.start(id, old.permit.epoch());
                    w.nodes.sort_by_key(|n| n.id);
                }
            }
        }
        w.nodes.sort_by_key(|n| n.id);
        assert!(w.until(20_000_000, |w| w.attached()), "life {life}");
        w.run(100_000);
        if let Err(e) = w.proves_itself() {
            panic!("life {life}: {e}");
        }
        missing += w.nodes.iter().map(|n| n.judge.missing).sum::<u64>();
    }
    told("living on", &states, done, began);
    println!("living on: {fenced} fenced as rolled back, {missing} records missing and said so");
}

#[test]
fn an_init_that_was_cut_leaves_a_volume_or_none() {
    let (cuts, began) = (cuts() / 10, Instant::now());
    let mut rng = Rng::new(seed() + 2);
    let mut states = HashSet::new();
    // Formatting zeros, and formatting over a volume in use.
    let full = {
        let disk = disk();
        let mut w = attached_world(&disk);
        assert!(w.until(10_000_000, |w| w.attached()));
        for _ in 0..60 {
            live(&mut w, &mut rng);
        }
        // With a goodbye, so that nobody need watch its beats before it is replaced.
        for node in &mut w.nodes {
            node.keeper.machine.goodbye();
        }
        assert!(w.until(10_000_000, |w| w.nodes.iter().all(|n| n.keeper.stopped.is_some())));
        disk.flush().unwrap();
        disk.inner().snapshot()
    };
    let old = {
        let medium = MemoryDevice::new(SMALL_BYTES);
        medium.restore(full.clone());
        read_superblock(&medium, label()).unwrap()
    };
    for n in 0..cuts {
        let over = n % 2 == 0;
        let medium = MemoryDevice::new(SMALL_BYTES);
        if over {
            medium.restore(full.clone());
        }
        let disk = PowerCutDevice::new(medium);
        let o = InitOptions { force: over, ..small() };
        let operations = rng.below(26);
        disk.cut_after(operations);
        let result = init_medium(&disk, label(), &o, |_, _| {});
        let seed = rng.next();
        states.insert(fingerprint(operations * 2 + n % 2, &disk.survivors(seed)));
        disk.cut(seed).unwrap();
        let what = format!("cut {n} (seed {seed}) after {operations} operations: {result:?}");
        let bytes = disk.inner().snapshot();
        match read_superblock(disk.inner(), label()) {
            Ok(s) if s == old => {
                // Not begun: all but the superblocks is as it was.
                let body = 4096..usize::try_from(s.geometry.last_offset()).unwrap();
                assert!(
                    over && bytes[body.clone()] == full[body],
                    "{what}: half of the old volume"
                );
            }
            Ok(s) => {
                let body = 4096..usize::try_from(s.geometry.last_offset()).unwrap();
                assert!(bytes[body].iter().all(|&b| b == 0), "{what}: half of the new volume");
                if let Ok(made) = &result {
                    assert_eq!(&s, made, "{what}");
                }
            }
            Err(_) => {
                assert!(result.is_err(), "{what}: it was done and is gone");
                let ends = [
                    Superblock::decode(&bytes[..4096], Copy::First),
                    Superblock::decode(&bytes[bytes.len() - 4096..], Copy::Last),
                ];
                assert!(ends.iter().all(Result::is_err), "{what}");
                // It can be repeated; by the name of the device when half a superblock is there.
                let again = init_medium(disk.inner(), label(), &small(), |_, _| {});
                let again = match again {
                    Err(InitError::Foreign { .. }) => {
                        let o = InitOptions { force: true, name: "lun7".into(), ..small() };
                        init_medium(disk.inner(), label(), &o, |_, _| {})
                    }
                    other => other,
                };
                assert!(again.is_ok(), "{what}: {again:?}");
            }
        }
    }
    told("init", &states, cuts, began);
}
