//! Volumes whose bytes were changed behind everybody's back, opened by all who read them.
//!
//! The losses this prevents: a crash on bytes of a disk, a write outside the node's own blocks, a
//! record that is delivered although it is not this lane's, this epoch's, this place's, a record
//! that vanishes uncounted. This crate has checksums only; that nothing forged is *believed* is
//! for the seal, see `tests/mutated_volumes.rs` of the workspace.
//!
//! `cargo test` mutates 1,000 volumes; `SIDEPATH_MUTATIONS=10000` as many as that.

use crate::common::mutate::{BLOCK, KINDS, Kind, Shelf, crc32, mutate, u32_at, u64_at};
use crate::common::world::{World, parse};
use crate::common::{Rng, SMALL_BYTES, from_env, small};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use volumes::format::table::Head;
use volumes::log::receive::ReaderOptions;
use volumes::media::{BlockDevice, MemoryDevice};
use volumes::runtime::read_superblock;
use volumes::{
    Fact, Op, Reader, Ring, Step, Superblock, Table, init_medium, inspect_medium, verify_medium,
};

fn label() -> &'static Path {
    Path::new("lun7")
}

/// A volume at the end of some life, and the places where a reader may stand.
struct Shape {
    name: &'static str,
    image: Vec<u8>,
    volume: Superblock,
    sent: crate::common::world::Sent,
}

fn snapshot(name: &'static str, w: &World<MemoryDevice>) -> Shape {
    let (image, volume) = (w.disk.snapshot(), w.volume.clone());
    Shape { name, image, volume, sent: w.sent.clone() }
}

fn traffic(w: &mut World<MemoryDevice>, n: u32) {
    for i in 0..n {
        for (from, to) in [(1, 2), (2, 1)] {
            let ring = if i % 3 == 0 { Ring::Express } else { Ring::Data };
            w.store(from, to, ring, if i % 11 == 5 { 9_000 } else { 600 }).unwrap();
        }
        w.run(3_000);
    }
    w.run(50_000);
}

/// The same volume through its life, and another volume.
fn shapes(seed: u64) -> (Vec<Shape>, Shelf) {
    let world = || {
        let disk = Arc::new(MemoryDevice::new(SMALL_BYTES));
        let volume = init_medium(&*disk, label(), &small(), |_, _| {}).unwrap();
        let mut w = World::new(volume, disk);
        w.lives = u32::try_from(seed).unwrap() * 100;
        w.start(1, 0);
        w.start(2, 0);
        assert!(w.until(10_000_000, |w| w.attached()));
        w
    };
    let mut w = world();
    let mut all = vec![snapshot("fresh", &w)];
    traffic(&mut w, 20);
    w.letter(1, 2, b"hello").unwrap();
    w.letter(2, 1, b"there").unwrap();
    w.run(100_000);
    all.push(snapshot("with mailboxes", &w));
    traffic(&mut w, 120);
    all.push(snapshot("wrapped", &w));
    // Node 2 reads no more: what follows is announced and unread.
    w.node(2).asleep = true;
    for _ in 0..25 {
        w.store(1, 2, Ring::Data, 700).unwrap();
        w.store(1, 2, Ring::Express, 90).unwrap();
        w.run(3_000);
    }
    w.run(60_000);
    all.push(snapshot("unread", &w));
    let old = w.kill(1);
    w.start(1, old.permit.epoch());
    w.nodes.rotate_right(1);
    w.node(2).asleep = false;
    assert!(w.until(10_000_000, |w| w.attached()));
    traffic(&mut w, 30);
    all.push(snapshot("after a restart", &w));
    let mut other = world();
    traffic(&mut other, 60);
    let older = all.iter().map(|s| s.image.clone()).collect();
    (all, Shelf { older, other: other.disk.snapshot() })
}

/// Records of `from` to `to` in this image: where a reader may stand.
fn heads(image: &[u8], volume: &Superblock, from: u8, to: u8, ring: Ring, epoch: u64) -> Vec<Head> {
    let base = usize::try_from(volume.geometry.ring_offset(from, to, ring).unwrap()).unwrap();
    let mut heads = Vec::new();
    for place in 0..volume.geometry.ring_blocks(ring) {
        let b = &image[base + place as usize * BLOCK..];
        if b.starts_with(b"SPR1") && u64_at(b, 24) == epoch {
            heads.push(Head { number: u64_at(b, 32), place });
        }
    }
    heads.sort_by_key(|h| h.number);
    heads
}

/// Whether the image really holds that record, by a reading of the format page of its own.
fn is_there(
    image: &[u8],
    volume: &Superblock,
    (from, to, ring): (u8, u8, Ring),
    (epoch, number): (u64, u64),
    frames: &[Bytes],
) -> bool {
    let base = usize::try_from(volume.geometry.ring_offset(from, to, ring).unwrap()).unwrap();
    (0..volume.geometry.ring_blocks(ring)).any(|place| {
        let b = &image[base + place as usize * BLOCK..];
        let len = u32_at(b, 48) as usize;
        if !b.starts_with(b"SPR1")
            || u32_at(b, 60) != crc32(&b[..60])
            || (b[4], b[5], b[6], b[7]) != (1, u8::from(ring == Ring::Data), from, to)
            || b[8..24] != volume.uuid.0
            || (u64_at(b, 24), u64_at(b, 32), u32_at(b, 40)) != (epoch, number, place)
            || b.len() < 64 + len
            || u32_at(b, 56) != crc32(&b[64..64 + len])
        {
            return false;
        }
        let mut rest = &b[64..64 + len];
        frames.iter().all(|f| {
            let ok = rest.len() >= 4 + f.len()
                && u32_at(rest, 0) as usize == f.len()
                && rest[4..4 + f.len()] == f[..];
            if ok {
                rest = &rest[4 + f.len()..];
            }
            ok
        }) && rest.is_empty()
    })
}

type Causes = BTreeMap<&'static str, u64>;

fn count(causes: &mut Causes, cause: &'static str, n: u64) {
    *causes.entry(cause).or_default() += n;
}

/// A reader in the middle of its life stands somewhere in the genuine volume; then the bytes change.
fn reader(shape: &Shape, image: &[u8], rng: &mut Rng, causes: &mut Causes, what: &str) {
    let medium = MemoryDevice::new(image.len() as u64);
    medium.restore(image.to_vec());
    let (from, to) = if rng.chance(50) { (1, 2) } else { (2, 1) };
    let volume = &shape.volume;
    let genuine = Table::decode(&shape.image[..volume.geometry.table_region_bytes()], volume);
    let slot = volume.geometry.slot(from).unwrap();
    let epoch = genuine.get(slot).unwrap().epoch;
    let mut start = [Head::START; 2];
    for ring in Ring::BOTH {
        let all = heads(&shape.image, volume, from, to, ring, epoch);
        if !all.is_empty() {
            start[ring.index()] = all[rng.index(all.len())];
        }
    }
    let mut r = Reader::new(ReaderOptions { node: to, superblock: volume.clone() }).unwrap();
    r.resume(from, epoch, start);
    let mut numbers: [Vec<(u64, u64, bool)>; 2] = [Vec::new(), Vec::new()];
    let (mut now, mut table_at) = (1, 0);
    while now < 400_000 {
        if now >= table_at {
            table_at = now + 20_000;
            let mut region = vec![0; volume.geometry.table_region_bytes()];
            match medium.read_at(0, &mut region) {
                Ok(()) => {
                    let table = Table::decode(&region, volume);
                    count(causes, "entry damaged", table.damaged as u64);
                    r.table_update(now, &table);
                }
                Err(_) => count(causes, "table unreadable", 1),
            }
        }
        let epoch_now = r.cursors().find(|c| c.0 == from).unwrap().1;
        match r.step(now) {
            Step::Do(Op::Read { offset, len, .. }) => {
                let mut buf = vec![0; len];
                let result = medium.read_at(offset, &mut buf).map(|()| buf.into());
                now += 100;
                r.complete(now, result);
            }
            Step::Do(op) => panic!("{what}: a reader wants {op:?}"),
            Step::WaitUntil(at) => now = at.clamp(now + 1, now.max(table_at)),
            Step::Idle => now = table_at.max(now + 1),
            Step::Stopped(why) => panic!("{what}: a reader stopped: {why}"),
        }
        for fact in r.drain_facts() {
            match fact {
                Fact::Frames { from: f, ring, number, frames } if f == from => {
                    let at = ((from, to, ring), (epoch_now, number));
                    let there = is_there(image, volume, at.0, at.1, &frames);
                    assert!(there, "{what}: {ring:?} {number} of epoch {epoch_now} is not there");
                    let sent = frames.iter().all(|f| {
                        parse(f).is_some_and(|(stream, n)| {
                            (stream.0, stream.1, stream.2) == (from, to, ring)
                                && n <= shape.sent.get(&stream).copied().unwrap_or(0)
                        })
                    });
                    let known = if sent { "delivered, as sent" } else { "delivered, forged" };
                    count(causes, known, 1);
                    numbers[ring.index()].push((epoch_now, number, true));
                }
                Fact::Missing { from: f, ring, first, last } if f == from => {
                    assert!(first <= last, "{what}");
                    numbers[ring.index()].push((epoch_now, first, false));
                    numbers[ring.index()].push((epoch_now, last, false));
                }
                Fact::StaleEpoch { .. } => count(causes, "older epoch in the table", 1),
                Fact::CorruptRecord { .. } => count(causes, "damaged record reported", 1),
                _ => {}
            }
        }
    }
    for of_ring in &numbers {
        for pair in of_ring.windows(2) {
            let ((e0, n0, d0), (e1, n1, d1)) = (pair[0], pair[1]);
            let same_gap = !d0 && !d1;
            assert!((e1, n1) > (e0, n0) || same_gap && (e1, n1) >= (e0, n0), "{what}: {of_ring:?}");
        }
    }
    let c = r.counters();
    count(causes, "body not whole", c.torn);
    count(causes, "older record in its place", c.stale);
    count(causes, "missing", u64::from(c.missing > 0));
    count(causes, "read failed", u64::from(c.faults > 0));
    // What the genuine table announces as unread was delivered, or the reader said why not.
    let entry = genuine.get(slot).unwrap();
    let head = entry.head(volume.geometry.slot(to).unwrap(), Ring::Data).number;
    let (_, epoch_now, cursor) = r.cursors().find(|c| c.0 == from).unwrap();
    let stuck = epoch_now == epoch && cursor[1] + 1 < head;
    if stuck {
        let announced = {
            let region = image.get(..volume.geometry.table_region_bytes());
            let entry = region.and_then(|r| Table::decode(r, volume).get(slot).cloned());
            entry.is_some_and(|e| e.epoch == epoch && e.head(1 - slot, Ring::Data).number >= head)
        };
        assert!(!announced || c.faults > 0, "{what}: stuck at {cursor:?} of {head}, no cause");
        count(causes, "not announced any more", 1);
    }
}

/// Commands and daemons that start on it.
fn all_others(shape: &Shape, image: &[u8], causes: &mut Causes, what: &str) {
    let medium = Arc::new(MemoryDevice::new(image.len() as u64));
    medium.restore(image.to_vec());
    let inspected = inspect_medium(&*medium, label());
    let verified = verify_medium(&*medium, label());
    assert_eq!(inspected.is_ok(), verified.is_ok(), "{what}");
    if let Ok(v) = &verified {
        count(causes, if v.ok { "verify: ok" } else { "verify: damage named" }, 1);
    }
    assert!(medium.snapshot() == image, "{what}: inspect or verify wrote");
    let volume = match read_superblock(&*medium, label()) {
        Ok(s) if s.geometry.bytes() > medium.size() => {
            return count(causes, "attach: too small", 1);
        }
        Ok(s) => s,
        Err(_) => return count(causes, "attach: no superblock", 1),
    };
    if [1, 2].iter().any(|&id| volume.geometry.slot(id).is_none()) {
        return count(causes, "attach: no such node", 1);
    }
    let genuine = volume == shape.volume;
    // `World` asserts that each node writes its own bytes only.
    let mut w = World::new(volume, medium);
    w.lives = 5_000;
    for id in [1, 2] {
        w.start(id, 0);
        w.node(id).judge.believes = true;
        w.standby(id, 20_000);
    }
    // A forged interval of beats lengthens the watch to six seconds at most.
    let done = |w: &World<_>| {
        w.nodes.iter().all(|n| n.keeper.machine.is_attached() || n.keeper.stopped.is_some())
    };
    let attached = w.until(15_000_000, done);
    assert!(attached || !genuine, "{what}: neither attached nor refused");
    let refused = w.nodes.iter().filter(|n| n.keeper.stopped.is_some()).count();
    count(causes, "attach: refused later", refused as u64);
    if attached && refused == 0 {
        w.run(100_000);
        count(causes, "attach: works", 1);
    }
}

#[test]
fn mutated_volumes_harm_nobody() {
    let n = from_env("SIDEPATH_MUTATIONS", 1_000);
    let mut rng = Rng::new(from_env("SIDEPATH_SEED", 7));
    let (shapes, shelf) = shapes(1);
    let mut by_kind: BTreeMap<Kind, Causes> = BTreeMap::new();
    for i in 0..n {
        let shape = &shapes[rng.index(shapes.len())];
        let first = KINDS[usize::try_from(i).unwrap() % KINDS.len()];
        let mut image = shape.image.clone();
        let mut done = mutate(&mut image, first, &shape.volume, &shelf, &mut rng);
        // Half of them meet a second misfortune.
        if rng.chance(50) && image.len() as u64 == SMALL_BYTES {
            done |=
                mutate(&mut image, KINDS[rng.index(KINDS.len())], &shape.volume, &shelf, &mut rng);
        }
        if !done {
            continue;
        }
        let causes = by_kind.entry(first).or_default();
        let what = format!("volume {i}, {}, {first:?}", shape.name);
        reader(shape, &image, &mut rng, causes, &what);
        if i % 2 == 0 {
            all_others(shape, &image, causes, &what);
        }
    }
    for (kind, causes) in &by_kind {
        println!("{kind:?}: {causes:?}");
    }
    let all = by_kind.values().flatten().fold(Causes::new(), |mut all, (cause, n)| {
        count(&mut all, cause, *n);
        all
    });
    println!("{n} mutated volumes: {all:?}");
    for must in ["delivered, as sent", "missing", "body not whole", "attach: no superblock"] {
        assert!(all.get(must).is_some_and(|&n| n > 0), "never seen: {must}");
    }
    // Without a forger nothing is delivered that was not sent.
    for kind in [Kind::MoveBlock, Kind::SwapBlocks, Kind::RollBack, Kind::SpliceOther] {
        assert!(by_kind.contains_key(&kind));
    }
}
