//! What a replicator refuses, by name, and what it does when the reason is gone.
//!
//! The losses this prevents: a newer destination overwritten by an older source, a live volume
//! overwritten by a copy, two replicators that undo each other's work.

use crate::common::pair::{Copier, Pair, replica_of};
use volumes::format::superblock::{Superblock, Uuid};
use volumes::log::replicate::{Notice, Pace, Refusal, Side};
use volumes::media::BlockDevice;
use volumes::{Micros, Ring};

fn traffic(p: &mut Pair, count: usize) {
    for i in 0..count {
        p.store(Ring::Data, 300 + i * 10);
        p.run(1_000);
    }
}

fn end(p: &mut Pair, us: Micros) -> Refusal {
    let ended = p.until(us, |p| p.copier.as_ref().unwrap().machine.finished().is_some());
    assert!(ended, "not refused: {:?}", p.copier.as_ref().unwrap().notices);
    p.machine().finished().unwrap().unwrap_err().clone()
}

/// Both superblocks of a side become these.
fn remark(device: &dyn BlockDevice, s: &Superblock) {
    for (offset, bytes) in s.image() {
        device.write_at(offset, &bytes).unwrap();
    }
}

#[test]
fn a_source_that_was_rolled_back_is_behind_and_nothing_is_written() {
    let mut p = Pair::new().attached();
    traffic(&mut p, 20);
    let old = p.a.disk.inner().snapshot();
    traffic(&mut p, 60);
    p.run(100_000);
    p.a.kill(1);
    p.a.disk.inner().restore(old);
    p.b.kill(2);
    let before = p.b.disk.inner().inner.snapshot();
    for pace in [Pace::Once, Pace::Follow] {
        p.start(pace);
        let why = end(&mut p, 4_000_000);
        assert!(matches!(why, Refusal::Ahead { node: 1, .. }), "{why}");
        assert!(why.to_string().contains("make the replica anew"), "{why}");
    }
    assert!(p.b.disk.inner().inner.snapshot() == before, "written");
    // The node runs anew on the older source: its epoch is above all that the destination has.
    let epoch = p.there(0).unwrap().epoch;
    p.a.start(1, epoch);
    p.start_reader(1 << 40);
    assert!(p.until(5_000_000, |p| p.a.attached() && p.b.attached()));
    p.follow();
    p.run(1_000_000);
    p.proves_itself("anew on the older source");
}

#[test]
fn a_source_rolled_back_under_a_running_copy_is_said_and_waited_out() {
    let p = Pair::new();
    let old = p.a.disk.inner().snapshot();
    let mut p = p.attached();
    traffic(&mut p, 60);
    p.a.disk.inner().restore(old);
    let refused = |p: &Pair| {
        let why = p.copier.as_ref().unwrap().machine.refusal();
        matches!(why, Some(Refusal::Ahead { node: 1, .. }))
    };
    assert!(p.until(5_000_000, refused));
    // Its keeper finds out by itself and claims anew, as a daemon does.
    assert!(p.until(5_000_000, |p| p.a.nodes[0].permit.fenced()));
    p.restart_sender();
    p.proves_itself("claimed anew");
    let notices = &p.copier.as_ref().unwrap().notices;
    assert!(notices.iter().any(|n| matches!(n, Notice::Accepted)));
}

#[test]
fn a_stale_look_at_either_side_refuses_nothing() {
    for side in Side::BOTH {
        let mut p = Pair::new().attached();
        traffic(&mut p, 20);
        let old = match side {
            Side::Source => p.a.disk.inner().snapshot(),
            Side::Destination => p.b.disk.inner().inner.snapshot(),
        };
        traffic(&mut p, 40);
        p.run(50_000);
        // The present state goes away for a second and comes back.
        let present = match side {
            Side::Source => p.a.disk.inner().snapshot(),
            Side::Destination => p.b.disk.inner().inner.snapshot(),
        };
        p.a.node(1).asleep = true;
        p.b.node(2).asleep = true;
        match side {
            Side::Source => p.a.disk.inner().restore(old),
            Side::Destination => p.b.disk.inner().inner.restore(old),
        }
        p.run(1_000_000);
        let written = p.b.disk.inner().inner.snapshot();
        match side {
            Side::Source => p.a.disk.inner().restore(present),
            Side::Destination => p.b.disk.inner().inner.restore(present),
        }
        if side == Side::Source {
            assert!(written == p.b.disk.inner().inner.snapshot());
        }
        p.a.node(1).asleep = false;
        p.b.node(2).asleep = false;
        p.proves_itself(&format!("stale {side}"));
        let notices = &p.copier.as_ref().unwrap().notices;
        let refused = notices.iter().any(|n| matches!(n, Notice::Refused { .. }));
        assert!(!refused, "{side}: {notices:?}");
        assert_eq!(p.judge().missing, 0, "{side}");
    }
}

#[test]
fn a_destination_that_was_rolled_back_is_not_written() {
    let mut p = Pair::new().attached();
    traffic(&mut p, 20);
    let old = p.b.disk.inner().inner.snapshot();
    traffic(&mut p, 60);
    p.b.node(2).asleep = true;
    p.b.disk.inner().inner.restore(old.clone());
    p.b.disk.inner().forget();
    // A look may be as old as the lease.
    p.run(110_000);
    let at = p.b.disk.inner().inner.snapshot();
    p.store(Ring::Data, 500);
    let refused = |p: &Pair| {
        let why = p.copier.as_ref().unwrap().machine.refusal();
        matches!(why, Some(Refusal::WentBack { node: 1, .. }))
    };
    assert!(p.until(5_000_000, refused));
    assert!(p.b.disk.inner().inner.snapshot() == at, "written while in doubt");
    // As it says: started again, it goes on from what is there, and nothing comes twice.
    p.b.node(2).asleep = false;
    p.follow();
    p.run(4_000_000);
    if p.b.nodes[0].permit.fenced() {
        p.restart_reader();
        p.until(5_000_000, |p| p.b.attached());
    }
    p.run(500_000);
    p.proves_itself("from the older state");
}

#[test]
fn another_volume_in_place_of_either_side_is_left_alone_until_ours_is_back() {
    for side in Side::BOTH {
        let mut p = Pair::new().attached();
        traffic(&mut p, 10);
        let other = Superblock { uuid: Uuid([9; 16]), name: "payroll".into(), ..p.volume.clone() };
        let ours = match side {
            Side::Source => p.volume.clone(),
            Side::Destination => replica_of(&p.volume),
        };
        p.b.node(2).asleep = true;
        p.a.node(1).asleep = true;
        match side {
            Side::Source => remark(p.a.disk.inner(), &other),
            Side::Destination => remark(&p.b.disk.inner().inner, &other),
        }
        p.run(150_000);
        let at = p.b.disk.inner().inner.snapshot();
        p.a.node(1).asleep = side == Side::Source;
        let _ = p.store(Ring::Data, 500);
        p.run(1_000_000);
        let why = p.machine().refusal().cloned();
        let named = matches!(&why, Some(Refusal::OtherVolume { side: s, name, .. })
            if *s == side && name == "payroll");
        assert!(named, "{why:?}");
        assert!(p.b.disk.inner().inner.snapshot() == at, "{side}: written");
        match side {
            Side::Source => remark(p.a.disk.inner(), &ours),
            Side::Destination => remark(&p.b.disk.inner().inner, &ours),
        }
        p.a.node(1).asleep = false;
        p.b.node(2).asleep = false;
        p.proves_itself(&format!("{side} is back"));
    }
}

#[test]
fn marks_are_looked_at_while_it_runs() {
    type Case = (Side, fn(&Superblock) -> Superblock, fn(&Refusal) -> bool);
    let cases: [Case; 4] = [
        (Side::Source, replica_of, |r| matches!(r, Refusal::SourceIsReplica { .. })),
        (Side::Destination, Superblock::clone, |r| matches!(r, Refusal::NotAReplica { .. })),
        (
            Side::Destination,
            |s| Superblock { generation: s.generation + 1, ..replica_of(s) },
            |r| matches!(r, Refusal::Generation { side: Side::Destination, .. }),
        ),
        (
            Side::Source,
            |s| Superblock { generation: s.generation + 1, ..s.clone() },
            |r| matches!(r, Refusal::Generation { side: Side::Source, .. }),
        ),
    ];
    for (i, (side, marked, is)) in cases.into_iter().enumerate() {
        let mut p = Pair::new().attached();
        p.a.node(1).asleep = true;
        p.b.node(2).asleep = true;
        match side {
            Side::Source => remark(p.a.disk.inner(), &marked(&p.volume)),
            Side::Destination => remark(&p.b.disk.inner().inner, &marked(&p.volume)),
        }
        p.run(200_000);
        let why = p.machine().refusal().cloned();
        assert!(why.as_ref().is_some_and(is), "case {i}: {why:?}");
        // At the beginning it is the end.
        p.start(Pace::Follow);
        let why = end(&mut p, 1_000_000);
        assert!(is(&why), "case {i}: {why}");
    }
}

#[test]
fn a_damaged_first_superblock_is_covered_by_the_last() {
    let mut p = Pair::new().attached();
    p.a.disk.inner().write_at(0, &[7; 512]).unwrap();
    p.b.disk.inner().inner.write_at(0, &[7; 512]).unwrap();
    p.follow();
    p.proves_itself("with the last copies");
}

/// Time passes for two replicators at once.
fn both(p: &mut Pair, other: &mut Option<Copier>, us: Micros) {
    let until = p.now() + us;
    while p.now() < until {
        p.tick();
        std::mem::swap(&mut p.copier, other);
        p.drive();
        std::mem::swap(&mut p.copier, other);
    }
}

#[test]
fn a_second_replicator_on_another_machine_is_refused_and_the_first_goes_on() {
    let mut p = Pair::new().attached();
    traffic(&mut p, 10);
    p.nonce += 1;
    p.host = 8;
    let mut second = Some(p.copier(Pace::Follow));
    both(&mut p, &mut second, 500_000);
    let end = second.as_ref().unwrap().machine.finished();
    assert!(matches!(end, Some(Err(Refusal::AnotherReplicator { node: 1 }))), "{end:?}");
    p.proves_itself("the first one");
}

#[test]
fn a_replicator_on_another_machine_takes_over_from_a_dead_one() {
    let mut p = Pair::new().attached();
    traffic(&mut p, 10);
    p.host = 8;
    p.follow();
    let at = p.now();
    assert!(p.until(5_000_000, |p| p.copier.as_ref().unwrap().machine.is_established()));
    let waited = p.now() - at;
    assert!((60_000..200_000).contains(&waited), "three beats of 20 ms: {waited}");
    p.proves_itself("the second machine");
    assert_eq!(p.judge().missing, 0);
    // On the machine where the lock was held there is nothing to wait for.
    p.follow();
    let at = p.now();
    assert!(p.until(5_000_000, |p| p.copier.as_ref().unwrap().machine.is_established()));
    assert!(p.now() - at < 5_000, "{}", p.now() - at);
}

#[test]
fn a_sender_that_reads_its_own_replica_is_refused() {
    let mut p = Pair::new().attached();
    traffic(&mut p, 10);
    p.b.start(1, 0);
    p.b.node(1).reads_only = true;
    // It cannot even claim its place while its entry is copied there, or it is seen at once.
    let seen = |p: &Pair| {
        let why = p.copier.as_ref().unwrap().machine.refusal();
        matches!(why, Some(Refusal::LivesThere { node: 1 })) || p.b.node_stopped(1)
    };
    assert!(p.until(10_000_000, seen));
    p.b.kill(1);
}

#[test]
fn a_node_that_writes_records_on_the_destination_is_refused() {
    let mut p = Pair::new().attached();
    p.copier = None;
    p.a.kill(1);
    p.run(200_000);
    // A program that knows no marks attaches the replica as a sender.
    p.b.start(1, 0);
    assert!(p.until(5_000_000, |p| p.b.attached()));
    p.start(Pace::Follow);
    let why = end(&mut p, 4_000_000);
    assert!(matches!(why, Refusal::WritesThere { node: 1 }), "{why}");
}

#[test]
fn a_node_that_moved_to_the_destination_to_read_is_left_alone() {
    let mut p = Pair::new().attached();
    // Node 2 once sent on the source, too.
    p.a.start(2, 0);
    assert!(p.until(5_000_000, |p| p.a.attached()));
    p.run(200_000);
    p.a.kill(2);
    // It lives on the destination since: nothing of it is copied.
    p.follow();
    p.run(500_000);
    let nodes: Vec<u8> = p.machine().copied_nodes().collect();
    assert_eq!(nodes, [1]);
    p.proves_itself("the other one is copied");
    assert!(!p.there(1).unwrap().sends_to(0));
}
