//! Volumes in an object store, which is slow by nature, throttles, hangs and dies: the same streams
//! as on a LUN, the same promise. Nothing lost, nothing twice, nothing out of order; and while the
//! network is whole, nothing of the store's troubles is felt.

use std::thread::sleep;
use std::time::Duration;

use crate::s3::Kind;
use crate::store::ObjectStore;
use crate::{Lab, Medium, Meter, Needs, Plan, Story, Summary};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tool, tell| Story {
        name,
        needs: Needs::Root,
        tools: tool,
        guard: Duration::from_secs(240),
        tell,
    };
    let mut all = vec![
        story("cuts_under_a_stream", &["moto_server"], cuts_under_a_stream),
        story("the_store_has_trouble", &["s3rver"], the_store_has_trouble),
    ];
    if crate::long() {
        // The crate of volumes plays the same without daemons, each time.
        let name = "cuts_while_the_store_is_bad";
        all.push(story(name, &["s3rver"], cuts_while_the_store_is_bad));
    }
    all
}

/// Between what clouds in reach show (15 to 40 ms) and the servers' own 5 to 10 ms.
const DELAY_MS: u64 = 15;
/// The design's bound for naming a cause, on a medium that may need as long for one operation
/// before it is called stuck.
const CAUSE: Duration = Duration::from_secs(6);

fn plan(kind: Kind) -> Plan {
    Plan { medium: Medium::S3 { kind, delay_ms: DELAY_MS }, ..Plan::default() }
}

fn say_latency(lab: &Lab) {
    for node in &lab.nodes {
        let latencies = node.status().write_latencies_ms();
        println!("  {}: a PUT takes {latencies:.1?} ms", node.name);
    }
}

fn report(streams: &[crate::Stream], windows: &[(u64, u64)]) {
    for stream in streams {
        let (mut silence, mut oldest) = (Summary::default(), Summary::default());
        for &(from, to) in windows {
            silence.add(stream.silence_ms(from, to));
            oldest.add(stream.oldest_ms(from, to));
        }
        println!("  {}: silence {silence}; oldest {oldest}", stream.name);
    }
}

fn cuts_under_a_stream() {
    let lab = Lab::running(plan(Kind::Moto));
    say_latency(&lab);
    // First what the beginning costs: keys, and what was there before.
    sleep(Duration::from_secs(5));
    // A beat that is late on a busy machine wakes the readers for a moment: the best of a few spans.
    let mut idle = f64::INFINITY;
    for _ in 0..4 {
        let before = lab.disk().store().requests();
        sleep(Duration::from_secs(10));
        idle = idle.min((lab.disk().store().requests() - before) as f64 / 10.0);
        if idle <= 4.0 {
            break;
        }
    }
    println!("  idle: {idle:.1} requests a second of both nodes together");
    for node in &lab.nodes {
        println!("  {}: {}", node.name, node.status().json()["volumes"][0]["requests"]);
    }
    // Two nodes at two each.
    assert!(idle <= 4.0, "an idle store is billed for {idle:.1} requests a second");
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_secs(1));
    let mut windows = Vec::new();
    for number in 1..=if crate::long() { 20 } else { 1 } {
        let down = meter.mark(&format!("cut {number}"));
        lab.black_hole();
        lab.await_route("storage", Duration::from_secs(20));
        sleep(Duration::from_secs(3));
        lab.black_hole_heal();
        lab.await_network(Duration::from_secs(90));
        sleep(Duration::from_secs(2));
        windows.push((down, meter.mark(&format!("healed {number}"))));
        sleep(Duration::from_secs(2));
    }
    say_latency(&lab);
    let streams = meter.finish(Duration::from_secs(3));
    lab.await_settled(Duration::from_secs(30));
    report(&streams, &windows);
    for stream in &streams {
        stream.assert_perfect();
    }
}

/// The network is whole: the cause is named, nobody's traffic feels it, and it heals by itself.
fn the_store_has_trouble() {
    let lab = Lab::running(plan(Kind::S3rver));
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_millis(500));
    let began = meter.mark("the first fault");
    trouble(&lab, ObjectStore::kill, ObjectStore::restart);
    trouble(&lab, ObjectStore::hang, ObjectStore::go_on);
    trouble(&lab, |store| store.throttle(100), |store| store.throttle(0));
    let settled = meter.mark("a cut to prove it");
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(20));
    sleep(Duration::from_secs(1));
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(90));
    sleep(Duration::from_millis(500));
    let after = meter.mark("the end");
    let streams = meter.finish(Duration::from_secs(2));
    for stream in &streams {
        let silence = stream.silence_ms(began, settled - 1);
        println!("  {}: longest silence of all the troubles {silence:.1} ms", stream.name);
    }
    report(&streams, &[(settled, after)]);
    for stream in &streams {
        stream.assert_perfect();
        // Ten times what an unhurt stream shows on a busy machine.
        let silence = stream.silence_ms(began, settled - 1);
        assert!(silence < 250.0, "{}: traffic was silent for {silence:.0} ms", stream.name);
    }
    lab.await_settled(Duration::from_secs(30));
}

fn trouble(lab: &Lab, break_it: fn(&ObjectStore), heal_it: fn(&ObjectStore)) {
    break_it(lab.disk().store());
    let mut asked = CAUSE;
    for node in &lab.nodes {
        let (status, took) = node.await_status("the cause of the fault", asked, |status| {
            !status.storage_complaints().is_empty()
        });
        asked = asked.saturating_sub(took);
        let (said, took) = (status.storage_complaints().join("; "), took.as_secs_f64());
        println!("  {} says after {took:.1} s: {said}", node.name);
    }
    lab.await_status("storage not up", Duration::from_secs(10), |status, peer| {
        status.storage(peer) != "up"
    });
    for (node, peer) in [(1, 2), (2, 1)] {
        let status = lab.node(node).status();
        assert_eq!(status.network(peer), "up", "{}", status.brief());
        assert_eq!(status.route(peer), "network", "{}", status.brief());
    }
    heal_it(lab.disk().store());
    let back = lab.await_network(Duration::from_secs(30));
    println!("  storage up again {:.1} s after the repair", back.as_secs_f64());
}

/// No network, and a store that refuses some requests, forgets to answer others, is slow and is
/// gone for a while: what was handed over arrives, late.
fn cuts_while_the_store_is_bad() {
    let lab = Lab::running(plan(Kind::S3rver));
    let mut meter = Meter::start(&lab, 1, 2, 200);
    sleep(Duration::from_secs(1));
    let store = lab.disk().store();
    let mut windows = Vec::new();
    for (name, break_it, heal_it) in [
        ("throttled", throttle as fn(&ObjectStore), all_well as fn(&ObjectStore)),
        ("killed", ObjectStore::kill, ObjectStore::restart),
        ("answers dropped", |store| store.drop_answers(20), all_well),
        ("slow", |store| store.delay(200), all_well),
    ] {
        let down = meter.mark(name);
        lab.black_hole();
        lab.await_route("storage", Duration::from_secs(20));
        sleep(Duration::from_secs(1));
        break_it(store);
        sleep(Duration::from_secs(2));
        heal_it(store);
        sleep(Duration::from_secs(1));
        lab.black_hole_heal();
        lab.await_network(Duration::from_secs(90));
        sleep(Duration::from_secs(1));
        windows.push((name, down, meter.mark("healed")));
        sleep(Duration::from_secs(1));
    }
    let streams = meter.finish(Duration::from_secs(5));
    lab.await_settled(Duration::from_secs(30));
    for (name, from, to) in windows {
        println!("  {name}:");
        report(&streams, &[(from, to)]);
    }
    for stream in &streams {
        stream.assert_perfect();
    }
}

fn throttle(store: &ObjectStore) {
    store.throttle(30);
}

fn all_well(store: &ObjectStore) {
    store.throttle(0);
    store.drop_answers(0);
    store.delay(DELAY_MS);
}
