//! Volumes that are not a shared LUN: an NBD server that is slow and fails, and two volumes in two
//! places with a replicator between them. The same stream as on a LUN, the same promise: nothing
//! lost, nothing twice, nothing out of order. (A server that dies or hangs while the network is
//! whole is among the storage faults.)

use std::thread::sleep;
use std::time::Duration;

use crate::sites::Sites;
use crate::{Lab, Medium, Meter, Needs, Node, Plan, Story, Summary};

pub(crate) fn stories() -> Vec<Story> {
    // An ordinary user's servers are no different, and a run costs a minute.
    let story = |name, tell| Story {
        name,
        needs: Needs::Root,
        tools: &["nbdkit"],
        guard: Duration::from_secs(180),
        tell,
    };
    vec![
        story("nbd_with_slow_writes", nbd_with_slow_writes),
        story("nbd_with_errors", nbd_with_errors),
        Story {
            needs: Needs::Anyone,
            tools: &[],
            ..story("two_volumes_and_a_replicator", two_volumes_and_a_replicator)
        },
    ]
}

const SLOW: Medium = Medium::Nbd { write_delay_ms: 5 };

fn count() -> usize {
    if crate::long() { 20 } else { 2 }
}

/// Cuts the network again and again under a stream each way, and prints what was noticed.
fn cuts(lab: &Lab, meter: &mut Meter) -> Vec<(u64, u64)> {
    let mut windows = Vec::new();
    for number in 1..=count() {
        let down = meter.mark(&format!("cut {number}"));
        lab.black_hole();
        lab.await_route("storage", Duration::from_secs(10));
        sleep(Duration::from_secs(1));
        lab.black_hole_heal();
        lab.await_network(Duration::from_secs(90));
        sleep(Duration::from_millis(700));
        windows.push((down, meter.mark(&format!("healed {number}"))));
        sleep(Duration::from_millis(1500));
    }
    windows
}

fn finish(lab: &Lab, meter: Meter, windows: &[(u64, u64)]) {
    lab.await_network(Duration::from_secs(10));
    let streams = meter.finish(Duration::from_millis(500));
    lab.await_settled(Duration::from_secs(10));
    for stream in &streams {
        let (mut silence, mut oldest) = (Summary::default(), Summary::default());
        for &(from, to) in windows {
            silence.add(stream.silence_ms(from, to));
            oldest.add(stream.oldest_ms(from, to));
        }
        println!("  {}: silence {silence}; oldest {oldest}", stream.name);
    }
    for stream in &streams {
        stream.assert_perfect();
    }
}

/// The medium's own latency, to judge silences by.
fn say_latency(lab: &Lab) {
    for node in &lab.nodes {
        let latencies = node.status().write_latencies_ms();
        println!("  {}: a write takes {latencies:.1?} ms", node.name);
    }
}

fn nbd_with_slow_writes() {
    let lab = Lab::running(Plan { medium: SLOW, ..Plan::default() });
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_secs(1));
    say_latency(&lab);
    let windows = cuts(&lab, &mut meter);
    finish(&lab, meter, &windows);
}

/// One write in ten and one read in fifty fails, all the time.
fn nbd_with_errors() {
    let lab = Lab::running(Plan { medium: Medium::Nbd { write_delay_ms: 1 }, ..Plan::default() });
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_millis(500));
    let mut windows = Vec::new();
    for number in 1..=count() {
        let down = meter.mark(&format!("cut {number}"));
        lab.black_hole();
        lab.await_route("storage", Duration::from_secs(10));
        lab.disk().export().err();
        sleep(Duration::from_secs(2));
        lab.disk().export().err_no_more();
        lab.black_hole_heal();
        lab.await_network(Duration::from_secs(90));
        windows.push((down, meter.mark(&format!("healed {number}"))));
        sleep(Duration::from_millis(1500));
    }
    finish(&lab, meter, &windows);
}

/// Each node sends on a volume at its own site, which is copied to the other one.
fn two_volumes_and_a_replicator() {
    let lab = Lab::new(Sites::plan(2));
    let mut sites = Sites::build(&lab);
    lab.nodes.iter().for_each(Node::start);
    lab.await_network(Duration::from_secs(30));
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_secs(1));
    say_latency(&lab);
    let mut windows = cuts(&lab, &mut meter);
    // A replicator that dies under traffic is started again and goes on.
    let down = meter.mark("a cut, and both copies die");
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(10));
    sites.kill_and_restart();
    sleep(Duration::from_secs(1));
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(90));
    windows.push((down, meter.mark("healed")));
    finish(&lab, meter, &windows);
}
