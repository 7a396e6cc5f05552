//! The replicator between a source that lives and a replica that is read, step by step.
//!
//! The losses this prevents: a record that arrives twice, torn, out of order or never; an entry
//! that announces what is not there; a destination that goes back in time (the Guard looks at
//! every block after every write, whoever wrote it).
//!
//! `cargo test` draws 40 lives; `SIDEPATH_LIVES=1000 cargo test --release -p sidepath-volumes
//! --test replicate` draws more, `SIDEPATH_SEED` moves them.

use crate::common::pair::Pair;
use crate::common::world::dooms;
use crate::common::{Rng, from_env};
use volumes::Ring;
use volumes::log::replicate::{Notice, Pace, Side};
use volumes::media::Doom;

#[test]
fn records_letters_and_beats_cross() {
    let mut p = Pair::new().attached();
    for i in 0..300 {
        let ring = if i % 3 == 0 { Ring::Express } else { Ring::Data };
        assert!(p.store(ring, 100 + i * 37 % 9000));
        p.run(700);
    }
    p.a.letter(1, 2, b"key").unwrap();
    assert!(p.until(1_000_000, |p| p.all_arrived()));
    p.run(100_000);
    assert_eq!(p.judge().letters.last().unwrap().1, &b"key"[..]);
    assert_eq!((p.judge().missing, p.machine().counters().missing), (0, 0));
    let (here, there) = (p.here(0).unwrap(), p.there(0).unwrap());
    assert_eq!(here.epoch, there.epoch);
    assert!(here.beat - there.beat <= 2, "{} and {}", here.beat, there.beat);
    assert_eq!(here.cells[1].heads, there.cells[1].heads);
    // Node 2 reads only; what it says stays its own.
    assert!(!p.there(1).unwrap().sends_to(0));
    assert_eq!(p.here(1), None);
    let now = p.now();
    assert_eq!(p.machine().lag(now).records, 0);
    assert!(p.machine().is_established());
}

#[test]
fn many_laps_of_both_rings() {
    let mut p = Pair::new().attached();
    let mut stored = 0;
    while stored < 400 {
        stored += u32::from(p.store(Ring::Data, 9_000));
        let _ = p.store(Ring::Express, 5_000);
        p.run(500);
    }
    assert!(p.until(2_000_000, |p| p.all_arrived()));
    assert_eq!((p.judge().missing, p.machine().counters().missing), (0, 0));
    p.proves_itself("after many laps");
}

/// A life of a pair with a replicator that is killed at every so-manieth operation, a sender and a
/// reader that restart, and faults at both sides.
fn life(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut p = Pair::new().attached();
    // Without restarts and lost releases nothing may ever be missing.
    let strict = seed.is_multiple_of(2);
    let kills = rng.chance(70);
    let faults = rng.chance(70);
    let mut every = 20 + rng.below(400);
    if kills {
        p.kill_at = p.ops + every;
    }
    for step in 0..1500 {
        if rng.chance(60) {
            let ring = if rng.chance(30) { Ring::Express } else { Ring::Data };
            let len = if rng.chance(5) { 30_000 } else { 24 + rng.index(2_500) };
            p.store(ring, len);
        }
        if rng.chance(2) {
            let _ = p.a.letter(1, 2, format!("step {step}").as_bytes());
        }
        if faults && rng.chance(2) {
            let ops = p.b.disk.operations();
            let all = dooms(rng.next());
            // A late completion needs a driver with a clock; a torn write needs no more here.
            let doom = all[rng.index(7)];
            p.b.disk.doom(ops + rng.below(20)..ops + 20 + rng.below(30), doom);
        }
        if faults && rng.chance(2) {
            let ops = p.a.disk.operations();
            let doom = [Doom::Fails(volumes::IoFaultKind::Eio), dooms(1)[1]][rng.index(2)];
            p.a.disk.doom(ops + rng.below(20)..ops + 20 + rng.below(30), doom);
        }
        if !strict && rng.chance(1) {
            match rng.below(4) {
                0 => p.restart_sender(),
                1 => {
                    let now = p.now();
                    let node = p.a.node(1);
                    node.keeper.machine.goodbye();
                    node.keeper.wake_at(now);
                    p.until(2_000_000, |p| p.a.nodes[0].keeper.stopped.is_some());
                    p.restart_sender();
                }
                2 => p.restart_reader(),
                // Acknowledged by another path: places are used again before they were copied.
                _ => {
                    let wild = p.a.node(1);
                    for ring in Ring::BOTH {
                        wild.writer.machine.released(2, ring, u64::MAX >> 8);
                    }
                }
            }
        }
        if p.copier.is_none() {
            let pause = rng.below(40_000);
            p.run(pause);
            every = 20 + rng.below(400);
            p.kill_at = p.ops + every;
            p.follow();
        }
        let pause = rng.below(2_500);
        p.run(pause);
    }
    p.a.disk.heal();
    p.b.disk.heal();
    p.kill_at = u64::MAX;
    if p.copier.is_none() {
        p.follow();
    }
    let what = format!("seed {seed}");
    p.until(20_000_000, |p| p.a.attached() && p.b.attached());
    for node in p.a.nodes.iter().chain(&p.b.nodes) {
        assert!(!node.permit.fenced(), "{what}: {:?}", node.judge.fenced);
    }
    // Back-offs of a second end, and so does what the reader still has to give up.
    p.run(3_000_000);
    p.proves_itself(&what);
    if strict && !faults {
        assert_eq!(p.judge().missing, 0, "{what}");
    }
    let now = p.now();
    assert_eq!(p.machine().lag(now).records, 0, "{what}");
}

#[test]
fn a_life_with_kills_restarts_and_faults_ends_well() {
    let first = from_env("SIDEPATH_SEED", 1) * 10_000;
    for seed in first..first + from_env("SIDEPATH_LIVES", 40) {
        if std::env::var_os("SIDEPATH_SAY").is_some() {
            println!("seed {seed}");
        }
        life(seed);
    }
}

#[test]
fn killed_at_every_operation_nothing_is_lost_doubled_or_moved_back() {
    // From one life: the beginning at every operation, then a spread.
    let mut n = 1;
    while n < 1500 {
        let mut p = Pair::new().attached();
        p.kill_at = p.ops + n;
        for i in 0..120 {
            let ring = if i % 4 == 0 { Ring::Express } else { Ring::Data };
            p.store(ring, 100 + i * 371 % 20_000);
            p.run(900);
            if p.copier.is_none() {
                p.kill_at = p.ops + n;
                p.follow();
            }
        }
        p.kill_at = u64::MAX;
        if p.copier.is_none() {
            p.follow();
        }
        p.proves_itself(&format!("killed every {n} operations"));
        let missing = (p.judge().missing, p.machine().counters().missing);
        let notices = &p.copier.as_ref().unwrap().notices;
        assert_eq!(missing, (0, 0), "killed every {n} operations: {notices:?}");
        n += if n < 24 { 1 } else { n / 3 };
    }
}

#[test]
fn a_round_copies_all_and_ends() {
    let mut p = Pair::new().attached();
    p.copier = None;
    for i in 0..40 {
        assert!(p.store(Ring::Data, 100 + i * 20));
        p.run(500);
    }
    p.a.letter(1, 2, b"key").unwrap();
    p.run(60_000);
    p.start(Pace::Once);
    assert!(p.until(3_000_000, |p| p.copier.as_ref().unwrap().machine.finished().is_some()));
    assert_eq!(p.machine().finished(), Some(Ok(())));
    p.run(50_000);
    assert!(p.all_arrived());
    assert_eq!(p.judge().letters.last().unwrap().1, &b"key"[..]);
    assert_eq!(p.judge().missing, 0);
    // Again, with nothing new: nothing is copied.
    p.start(Pace::Once);
    assert!(p.until(3_000_000, |p| p.copier.as_ref().unwrap().machine.finished().is_some()));
    assert_eq!(p.machine().counters().records, 0);
}

#[test]
fn what_a_killed_writer_did_not_announce_is_copied_too() {
    let mut p = Pair::new().attached();
    p.copier = None;
    p.run(25_000);
    for _ in 0..5 {
        assert!(p.store(Ring::Data, 500));
        p.run(600);
    }
    // Written, and no beat since: the table does not say so.
    p.a.kill(1);
    let head = p.here(0).unwrap().cells[1].heads[1].number;
    p.start(Pace::Once);
    assert!(p.until(3_000_000, |p| p.copier.as_ref().unwrap().machine.finished().is_some()));
    p.run(50_000);
    let read = p.b.nodes[0].reader.machine.cursors().find(|c| c.0 == 1).unwrap().2[1];
    assert!(read >= head, "read {read}, announced {head}");
    let (last, sent) = (p.judge().last(1, Ring::Data).unwrap(), &p.a.sent);
    assert_eq!(Some(&last.1), sent.get(&(1, 2, Ring::Data, last.0)));
    let (here, there) = (p.here(0).unwrap(), p.there(0).unwrap());
    assert_eq!((here.epoch, here.beat), (there.epoch, there.beat));
}

#[test]
fn an_interval_rests_in_between_and_lags_no_longer() {
    let mut p = Pair::new().attached();
    p.start(Pace::Every(500_000));
    p.run(100_000);
    assert!(p.machine().resting());
    let rounds = p.machine().counters().rounds;
    let ops = p.ops;
    assert!(p.store(Ring::Data, 500));
    p.run(300_000);
    assert_eq!((p.ops, p.machine().counters().rounds), (ops, rounds), "at rest");
    assert!(p.until(300_000, |p| p.all_arrived()), "interval and a tenth");
    p.run(2_000_000);
    let rounds = p.machine().counters().rounds - rounds;
    assert!((4..=5).contains(&rounds), "{rounds}");
}

#[test]
fn a_throttle_holds_records_back_and_beats_go_on() {
    let mut p = Pair::new().attached();
    p.bytes_per_s = Some(200_000);
    p.follow();
    p.run(100_000);
    let bytes = p.machine().counters().bytes;
    let (mut beats, mut told) = (p.there(0).unwrap().beat, 0);
    for _ in 0..20 {
        for _ in 0..4 {
            p.store(Ring::Data, 8_000);
        }
        p.run(100_000);
        let entry = p.there(0).unwrap();
        assert!(entry.beat > beats, "beats stand still");
        beats = entry.beat;
        // Never announced before it arrived.
        let head = entry.cells[1].heads[1].number;
        assert!(head >= told);
        told = head;
        assert_eq!(p.judge().missing, 0);
    }
    let copied = p.machine().counters().bytes - bytes;
    assert!((300_000..600_000).contains(&copied), "{copied} bytes in 2 s");
    let now = p.now();
    assert!(p.machine().lag(now).us > 100_000);
    assert!(p.until(20_000_000, |p| p.all_arrived()));
    assert_eq!(p.judge().missing, 0);
}

#[test]
fn either_side_vanishes_and_comes_back() {
    for side in Side::BOTH {
        let mut p = Pair::new().attached();
        for _ in 0..20 {
            assert!(p.store(Ring::Data, 900));
            p.run(500);
        }
        let gone = Some(volumes::IoFaultKind::Gone);
        // The replicator's view alone: the nodes go on.
        match side {
            Side::Source => p.a.disk.fail_reads(gone),
            Side::Destination => p.b.disk.fail_writes(gone),
        }
        for _ in 0..200 {
            p.store(Ring::Data, 900);
            p.run(2_000);
        }
        let failing = p.machine().failing(side).map(str::to_owned);
        assert!(failing.is_some(), "{side}");
        p.a.disk.fail_reads(None);
        p.b.disk.fail_writes(None);
        p.machine().reopened(side);
        p.proves_itself(&format!("{side} came back"));
        assert_eq!((p.judge().missing, p.machine().failing(side)), (0, None), "{side}");
        let recovered = |n: &Notice| matches!(n, Notice::Recovered { side: s } if *s == side);
        assert!(p.copier.as_ref().unwrap().notices.iter().any(recovered));
    }
}

#[test]
fn a_place_used_again_before_it_was_copied_is_missing_and_the_rest_goes_on() {
    let mut p = Pair::new().attached();
    p.copier = None;
    // Three laps while nobody copies; all acknowledged by another path.
    for _ in 0..120 {
        assert!(p.store(Ring::Data, 8_000));
        p.run(1_000);
        p.a.node(1).writer.machine.released(2, Ring::Data, u64::MAX >> 8);
    }
    p.follow();
    p.proves_itself("after a lap");
    let missing = p.machine().counters().missing;
    assert!(missing > 60 && missing < 110, "{missing} missing: a ring holds 30 of 120");
    // What is still there reaches the reader: the head it jumps to is where copying began again.
    assert_eq!(p.judge().missing, missing);
}
