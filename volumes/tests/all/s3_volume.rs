//! Whole volumes in object stores: two nodes, servers that die, stall, throttle and are slow, and what
//! it costs.

use crate::common::loops::Scratch;
use crate::common::s3::door::Door;
use crate::common::s3::{Kind, Store};
use crate::common::threads::{Facts, clock, numbers, send, try_up, up, wait};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use volumes::log::receive::Mode;
use volumes::media::Location;
use volumes::status::VolumeState;
use volumes::{
    AttachError, AttachOptions, BenchError, BenchOptions, CopyError, CopyOptions, Fact, Handle,
    InitError, InitOptions, Pace, Refusal, Ring, bench, init, inspect, replicate, verify,
};

fn place(url: &str) -> Location {
    Location::parse(url).unwrap()
}

fn node(url: &str, node: u8) -> AttachOptions {
    AttachOptions::new(place(url), node)
}

/// A volume behind a door, and a node on either side.
struct Site {
    door: Door,
    a: (Handle, Facts),
    b: (Handle, Facts),
    store: Store,
    _dir: Scratch,
}

impl Site {
    fn start(name: &str) -> Option<Self> {
        let dir = Scratch::new(name);
        let store = Store::start(Kind::Moto, &dir.0)?;
        let door = Door::new(store.port);
        let url = store.url_at("lun", &format!("http://127.0.0.1:{}", door.port));
        format(&url);
        let (a, b) = (up(node(&url, 1)), up(node(&url, 2)));
        acquainted([&a.1, &b.1]);
        Some(Self { door, a, b, store, _dir: dir })
    }
}

fn join(at: &Location, node: u8, sends: bool) -> (Handle, Facts) {
    up(AttachOptions { sends, single_host: true, ..AttachOptions::new(at.clone(), node) })
}

fn format(url: &str) {
    let o = InitOptions { name: "lun".into(), nodes: vec![1, 2], ..InitOptions::default() };
    init(place(url), &o, |_, _| {}).unwrap();
}

/// Both see each other's beats.
fn acquainted(facts: [&Facts; 2]) {
    wait("beats", || {
        let is = |f: &Facts| f.lock().unwrap().iter().any(|f| matches!(f, Fact::PeerBeat { .. }));
        facts.iter().all(|f| is(f))
    });
}

fn in_order(facts: &Facts, upto: u32) {
    wait("all", || numbers(facts).len() >= upto as usize);
    assert!(numbers(facts).into_iter().eq(0..upto), "in order, none twice, none lost");
}

fn states(a: &Handle, b: &Handle) -> (VolumeState, VolumeState) {
    (a.status().state, b.status().state)
}

const UP: (VolumeState, VolumeState) = (VolumeState::Up, VolumeState::Up);

#[test]
fn records_and_messages_cross_both_ways() {
    for kind in Kind::BOTH {
        let dir = Scratch::new("s3-cross");
        let Some(store) = Store::start(kind, &dir.0) else { continue };
        let url = store.url("lun");
        format(&url);
        let ((a, a_facts), (b, b_facts)) = (up(node(&url, 1)), up(node(&url, 2)));
        acquainted([&a_facts, &b_facts]);
        a.mailbox(2, b"key").unwrap();
        for round in 0..5 {
            send(&a, 2, round * 100..round * 100 + 100);
            send(&b, 1, round * 100..round * 100 + 100);
        }
        in_order(&a_facts, 500);
        in_order(&b_facts, 500);
        let key = |f: &Fact| matches!(f, Fact::Mailbox { from: 1, bytes } if bytes == &b"key"[..]);
        wait("mailbox", || b_facts.lock().unwrap().iter().any(key));
        wait("release", || a.status().lanes[0].used_bytes == 0);
        assert_eq!(states(&a, &b), UP);
        // One daemon per node and host, and no init over a living volume.
        let e = try_up(node(&url, 1)).unwrap_err();
        assert!(matches!(e, AttachError::Locked { node: 1, .. }), "{e}");
        let force = InitOptions {
            name: "lun".into(),
            nodes: vec![1, 2],
            force: true,
            ..InitOptions::default()
        };
        let e = init(place(&url), &force, |_, _| {}).unwrap_err();
        assert!(matches!(e, InitError::Attached { .. }), "{e}");
        let e = bench(place(&url), &BenchOptions::default()).unwrap_err();
        assert!(matches!(e, BenchError::Objects) && e.is_input_error(), "{e}");
        // What was read is deleted.
        wait("deleted", || a.status().requests.unwrap().delete > 0);
        assert!(a.shutdown(Duration::from_secs(10)) && b.shutdown(Duration::from_secs(10)));
        let report = verify(place(&url)).unwrap();
        assert!(report.ok && report.records.torn == 0, "{report:?}");
        let seen = inspect(place(&url)).unwrap();
        assert!(seen.nodes.iter().all(|n| n.state == "left"), "{seen:?}");
        init(place(&url), &force, |_, _| {}).unwrap();
    }
}

#[test]
fn nothing_is_lost_when_the_server_is_killed_in_the_middle() {
    // Only this one keeps its objects over its death.
    let dir = Scratch::new("s3-killed");
    let Some(mut store) = Store::start(Kind::S3rver, &dir.0) else { return };
    let url = store.url("lun");
    format(&url);
    let ((a, a_facts), (b, b_facts)) = (up(node(&url, 1)), up(node(&url, 2)));
    acquainted([&a_facts, &b_facts]);
    let mut sent = 0;
    for _ in 0..3 {
        send(&a, 2, sent..sent + 200);
        send(&b, 1, sent..sent + 200);
        store.kill();
        send(&a, 2, sent + 200..sent + 250);
        wait("it is noticed", || a.status().state == VolumeState::Failed);
        let reason = a.status().reason.unwrap_or_default();
        assert!(reason.contains("cannot connect") || reason.contains("connection"), "{reason}");
        store.run();
        send(&b, 1, sent + 200..sent + 250);
        sent += 250;
        in_order(&a_facts, sent);
        in_order(&b_facts, sent);
    }
    wait("recovery", || states(&a, &b) == UP);
    assert!(a.shutdown(Duration::from_secs(10)) && b.shutdown(Duration::from_secs(10)));
    assert!(verify(place(&url)).unwrap().ok);
}

#[test]
fn a_server_that_stalls_throttles_or_is_slow_loses_nothing() {
    let Some(site) = Site::start("s3-slow") else { return };
    let Site { door, a: (a, a_facts), b: (b, b_facts), store, .. } = &site;
    let mut sent = 0;
    let both = |sent: &mut u32| {
        for _ in 0..5 {
            send(a, 2, *sent..*sent + 20);
            send(b, 1, *sent..*sent + 20);
            *sent += 20;
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let reason = || a.status().reason.unwrap_or_default();
    for (rule, value) in [
        (&door.rules.throttled_percent, 30),
        (&door.rules.dropped_percent, 20),
        (&door.rules.delay_ms, 50),
        (&door.rules.delay_ms, 300),
    ] {
        rule.store(value, Ordering::Relaxed);
        both(&mut sent);
        in_order(a_facts, sent);
        in_order(b_facts, sent);
        rule.store(0, Ordering::Relaxed);
    }
    assert!(a.status().requests.unwrap().throttled > 0);
    // All requests, for a while.
    door.rules.throttled_percent.store(100, Ordering::Relaxed);
    both(&mut sent);
    wait("its reason", || reason().contains("SlowDown"));
    door.rules.throttled_percent.store(0, Ordering::Relaxed);
    in_order(b_facts, sent);
    door.rules.closed.store(true, Ordering::Relaxed);
    both(&mut sent);
    wait("its reason", || reason().contains("connection"));
    door.rules.closed.store(false, Ordering::Relaxed);
    in_order(b_facts, sent);
    store.signal("-STOP");
    both(&mut sent);
    wait("its reason", || matches!(a.status().state, VolumeState::Stalled | VolumeState::Failed));
    store.signal("-CONT");
    in_order(a_facts, sent);
    in_order(b_facts, sent);
    wait("recovery", || states(a, b) == UP);
    let said = format!("{:?} {:?}", a.status(), a_facts.lock().unwrap());
    assert!(!said.contains("TOPSECRET"));
}

#[test]
fn an_idle_pair_asks_less_than_twice_a_second_each() {
    let dir = Scratch::new("s3-idle");
    let Some(store) = Store::start(Kind::Moto, &dir.0) else { return };
    let url = store.url("lun");
    format(&url);
    let ((a, a_facts), (b, b_facts)) = (up(node(&url, 1)), up(node(&url, 2)));
    acquainted([&a_facts, &b_facts]);
    send(&a, 2, 0..10);
    in_order(&b_facts, 10);
    for h in [&a, &b] {
        // As the core orders it while the network is up.
        h.set_beat_interval(Duration::from_secs(1));
        h.set_reader_mode(Mode::Standby { interval: 1_000_000 });
    }
    // What is under way ends, and so do deletions.
    std::thread::sleep(Duration::from_secs(3));
    let counts = || [&a, &b].map(|h| h.status().requests.unwrap().all());
    let (before, began) = (counts(), Instant::now());
    std::thread::sleep(Duration::from_secs(12));
    let after = counts();
    let seconds = began.elapsed().as_secs_f64();
    for (before, after) in before.iter().zip(after) {
        #[allow(clippy::cast_precision_loss, reason = "a count of dozens")]
        let rate = (after - before) as f64 / seconds;
        println!("idle: {rate:.2} requests/s");
        assert!(rate > 0.5 && rate <= 2.0, "{rate}");
    }
    // Announced by the table alone, then awake at once.
    send(&a, 2, 10..20);
    in_order(&b_facts, 20);
    assert_eq!(states(&a, &b), UP);
}

/// One side of the copy is a store and the other a file: a replica is a replica.
#[test]
fn a_store_is_copied_from_and_to() {
    let dir = Scratch::new("s3-copied");
    let Some(store) = Store::start(Kind::S3rver, &dir.0) else { return };
    let file = |name: &str| Location::from(dir.join(name));
    let object = |name: &str| place(&store.url(name));
    for (original, replica) in
        [(file("original"), object("replica")), (object("original"), file("replica"))]
    {
        // Small rings, so that places are used again.
        let o = InitOptions {
            name: "site".into(),
            nodes: vec![1, 2],
            size: Some(4 << 20),
            lane_size: Some(1 << 20),
            single_host: true,
            ..InitOptions::default()
        };
        init(original.clone(), &o, |_, _| {}).unwrap();
        let follow = || {
            let o = CopyOptions::new(original.clone(), replica.clone(), Pace::Follow);
            let o = CopyOptions { single_host: true, ..o };
            replicate(o, clock(), Arc::new(|_| {})).unwrap()
        };
        let copy = follow();
        let (a, _) = join(&original, 1, true);
        a.mailbox(2, b"key").unwrap();
        wait("replica", || inspect(replica.clone()).is_ok_and(|i| i.replica));
        let (b, facts) = join(&replica, 2, false);
        // What was written before the reader first looked is its peer's to repeat.
        wait("the beat", || {
            facts.lock().unwrap().iter().any(|f| matches!(f, Fact::PeerBeat { .. }))
        });
        // What was read is released, as the link does it.
        let released = |upto: u32| {
            wait("all", || numbers(&facts).len() >= upto as usize);
            let facts = facts.lock().unwrap();
            let cursors = facts.iter().filter_map(|f| match f {
                Fact::Cursor { ring: Ring::Data, number, .. } => Some(*number),
                _ => None,
            });
            a.released(2, Ring::Data, cursors.max().unwrap());
        };
        let mut sent = 0;
        let mut write = |count: u32| {
            send(&a, 2, sent..sent + count);
            sent += count;
            sent
        };
        for _ in 0..4 {
            released(write(500));
        }
        assert!(copy.stop(Duration::from_secs(30)));
        write(100);
        let copy = follow();
        let all = write(100);
        in_order(&facts, all);
        let key = |f: &Fact| matches!(f, Fact::Mailbox { from: 1, bytes } if bytes == &b"key"[..]);
        wait("mailbox", || facts.lock().unwrap().iter().any(key));
        assert!(copy.stop(Duration::from_secs(30)));
        assert!(verify(replica.clone()).unwrap().ok);

        // The original's ring was used twice; nobody's cursor stands there.
        let deleted = || a.status().requests.is_none_or(|r| r.delete > 0);
        wait("old records are deleted", deleted);

        // Swapped.
        let o = CopyOptions::new(replica.clone(), original.clone(), Pace::Once);
        let swapped = replicate(CopyOptions { single_host: true, ..o }, clock(), Arc::new(|_| {}));
        let end = swapped.unwrap().wait(Duration::from_secs(30)).unwrap();
        let e = end.unwrap_err();
        let named = matches!(
            &*e,
            CopyError::Refused { why: Refusal::SourceIsReplica { name }, .. } if name == "site"
        );
        assert!(named, "{e}");
        assert!(a.shutdown(Duration::from_secs(10)) && b.shutdown(Duration::from_secs(10)));
    }
}

/// A store that loses some requests costs each of them half a second, not its deadline.
#[test]
fn a_request_without_an_answer_is_sent_again() {
    let Some(site) = Site::start("s3-lost") else { return };
    let Site { door, a: (a, a_facts), b: (_, b_facts), .. } = &site;
    // Every hundredth: what is sent again half a second later is not another one.
    door.rules.lost_percent.store(1, Ordering::Relaxed);
    // Until several were lost.
    let mut sent = 0;
    while door.rules.requests.load(Ordering::Relaxed) < 500 {
        send(a, 2, sent..sent + 10);
        sent += 10;
        in_order(b_facts, sent);
    }
    let failed = |facts: &Facts| {
        let facts = facts.lock().unwrap();
        let faults = facts.iter().filter_map(|f| match f {
            Fact::ReadFailed { fault } | Fact::WriteFailed { fault } => Some(&fault.detail),
            _ => None,
        });
        // A beat is not sent twice: it would land after a newer one.
        faults.filter(|detail| !detail.starts_with("write our beat")).count()
    };
    let (here, there) = (failed(a_facts), failed(b_facts));
    assert_eq!((here, there), (0, 0), "requests that were given up");
    door.rules.lost_percent.store(0, Ordering::Relaxed);
}

/// Who runs a command does not want to hear of a single answer that the next one contradicts.
#[test]
fn a_command_asks_again_where_a_store_answers_with_trouble() {
    let dir = Scratch::new("s3-asked");
    let Some(store) = Store::start(Kind::Moto, &dir.0) else { return };
    let door = Door::new(store.port);
    let url = store.url_at("lun", &format!("http://127.0.0.1:{}", door.port));
    format(&url);
    door.rules.throttled_percent.store(10, Ordering::Relaxed);
    for _ in 0..20 {
        inspect(place(&url)).unwrap();
    }
    assert!(door.rules.requests.load(Ordering::Relaxed) > 50, "several were refused");
    // A store that goes on refusing is told as that, and soon.
    door.rules.throttled_percent.store(100, Ordering::Relaxed);
    let e = inspect(place(&url)).unwrap_err();
    assert!(!e.is_input_error() && e.to_string().contains("SlowDown"), "{e}");
}
