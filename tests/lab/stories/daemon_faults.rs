//! A daemon is killed, or stopped for ten seconds and resumed, on either side and either path:
//! the peer notices, nothing is delivered twice or stale, and everything comes back.

use std::thread::sleep;
use std::time::Duration;

use crate::{Lab, Meter, Needs, Plan, Story, Stream};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, needs, tell| Story {
        name,
        needs,
        tools: &[],
        guard: Duration::from_secs(240),
        tell,
    };
    vec![
        story("killed_on_network", Needs::Anyone, || killed(NETWORK)),
        story("killed_on_storage", Needs::Root, || killed(STORAGE)),
        story("paused_on_network", Needs::Root, || paused(NETWORK)),
        story("paused_on_storage", Needs::Root, || paused(STORAGE)),
    ]
}

const NETWORK: &str = "network";
const STORAGE: &str = "storage";

/// A restarted daemon is back within this time, says the acceptance list.
const REJOIN: Duration = Duration::from_secs(10);

/// Time to live of ordinary packets, and what a busy machine may add.
const STALE_NS: u64 = 5_500_000_000;

/// What a node that is stopped may have in its hands: one turn of the interface, and how long
/// before the stop, or between the order to stop and the stop, it was sent.
const IN_HAND_MAX: usize = 64;
const IN_HAND_MS: u64 = 50;

/// Own beats stand still for five intervals of one second; reading them takes up to one more.
const DEAD: Duration = Duration::from_secs(8);

/// What queued up meanwhile may go first, but within this time new numbers must arrive too.
const FRESH: Duration = Duration::from_secs(3);

fn killed(path: &str) {
    let lab = ready(path);
    for victim in [1, 2] {
        let survivor = 3 - victim;
        let mut meter = Meter::start(&lab, survivor, victim, 1000);
        sleep(Duration::from_millis(500));
        meter.mark("the kill");
        lab.node(victim).kill();
        let (_, noticed) = notice(&lab, survivor, victim);
        let (_, dead) = lab
            .node(survivor)
            .await_status("peer dead", DEAD, |status| status.state(victim) == "dead");
        meter.mark("the restart");
        lab.node(victim).start();
        let back = await_path(&lab, path, REJOIN);
        println!(
            "  node {victim} killed: down after {} ms, dead {} ms later, back after {} ms",
            noticed.as_millis(),
            dead.as_millis(),
            back.as_millis()
        );
        let streams = finish(meter);
        for stream in &streams {
            check(stream, 0);
        }
        lab.await_settled(Duration::from_secs(10));
    }
}

fn paused(path: &str) {
    let lab = ready(path);
    for victim in [1, 2] {
        let survivor = 3 - victim;
        let mut meter = Meter::start(&lab, survivor, victim, 1000);
        sleep(Duration::from_millis(500));
        let stopped = meter.mark("the stop");
        lab.node(victim).pause();
        let (_, noticed) = notice(&lab, survivor, victim);
        let (_, dead) = lab
            .node(survivor)
            .await_status("peer not alive", DEAD, |status| status.state(victim) != "alive");
        let resume_at = stopped + 10_000_000_000;
        crate::sys::sleep_until_ns(resume_at);
        meter.mark("the resume");
        lab.node(victim).resume();
        let back = await_path(&lab, path, REJOIN);
        println!(
            "  node {victim} stopped 10 s: down after {} ms, not alive {} ms later, back {} ms \
             after the resume",
            noticed.as_millis(),
            dead.as_millis(),
            back.as_millis()
        );
        let [to_victim, from_victim] = finish(meter);
        check(&to_victim, stopped);
        from_victim.assert_never_twice();
        // What waited in the stopped node's interface is as old as the stop when its daemon
        // first sees it: its age cannot be known, so it is told, not judged.
        println!("  oldest from the stopped node {:.0} ms", from_victim.oldest_ms(0, u64::MAX));
        lab.await_settled(Duration::from_secs(10));
    }
}

fn ready(path: &str) -> Lab {
    let lab = Lab::running(Plan::default());
    if path == STORAGE {
        lab.black_hole();
        lab.await_route(STORAGE, Duration::from_secs(5));
    }
    lab
}

/// The survivor stops sending by a path nobody listens on.
fn notice(lab: &Lab, survivor: usize, victim: usize) -> (crate::Status, Duration) {
    lab.node(survivor).await_status("the loss of the peer", Duration::from_secs(3), |status| {
        status.network(victim) == "down" && status.route(victim) != "network"
    })
}

fn await_path(lab: &Lab, path: &str, limit: Duration) -> Duration {
    if path == NETWORK { lab.await_network(limit) } else { lab.await_route(STORAGE, limit) }
}

fn finish(mut meter: Meter) -> [Stream; 2] {
    let again = meter.mark("the return");
    sleep(FRESH);
    let streams = meter.finish(Duration::from_millis(500));
    for stream in &streams {
        let fresh: Vec<u64> = stream
            .arrivals
            .iter()
            .filter(|arrival| arrival.sent > again)
            .map(|arrival| arrival.heard - again)
            .collect();
        println!(
            "  {}: {} of {} lost, the first fresh one {:?} ms after the return, {} in all",
            stream.name,
            stream.lost().len(),
            stream.sent.len(),
            fresh.first().map(|after| after / 1_000_000),
            fresh.len()
        );
        assert!(
            fresh.len() > 500,
            "{}: only {} numbers after the return",
            stream.name,
            fresh.len()
        );
    }
    streams
}

/// Nothing twice, nothing out of order, nothing stale. A receiver stopped (at `stopped`) between
/// its look at the clock and the write to its interface hands on, when it is resumed, what it had
/// in its hands: no more than one turn's worth, all of it sent just before.
fn check(stream: &Stream, stopped: u64) {
    stream.assert_never_twice();
    let late = stream.reordered();
    assert!(late.is_empty(), "{}: out of order {}", stream.name, stream.tell(&late));
    let stale: Vec<_> = (stream.arrivals.iter())
        .filter(|a| a.heard.saturating_sub(a.sent) > STALE_NS)
        .map(|a| (a.number, a.sent.abs_diff(stopped) / 1_000_000))
        .collect();
    if !stale.is_empty() {
        println!("  {}: in the hands of the stopped node: {stale:?}", stream.name);
    }
    let in_hand = stale.iter().all(|(_, ms)| *ms <= IN_HAND_MS) && stale.len() <= IN_HAND_MAX;
    assert!(in_hand, "{}: stale numbers, and ms from the stop: {stale:?}", stream.name);
}
