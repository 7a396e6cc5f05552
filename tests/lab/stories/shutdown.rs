//! SIGTERM leaves nothing behind: no interface, no socket, no route; the peers were told.

use std::time::Duration;

use crate::node::INTERFACE;
use crate::{Lab, Needs, Node, Plan, Story, wait_for};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tell| Story {
        name,
        needs: Needs::Anyone,
        tools: &[],
        guard: Duration::from_secs(180),
        tell,
    };
    vec![
        story("leaves_nothing", leaves_nothing),
        story("says_goodbye_through_storage", says_goodbye_through_storage),
        story("starts_again", starts_again),
    ]
}

/// How long an orderly end may take. It says goodbye and closes; nothing in it waits for a peer.
const END: Duration = Duration::from_secs(3);

/// A goodbye is one message; hearing it must not take as long as noticing a silence does.
const TOLD: Duration = Duration::from_millis(1500);

fn leaves_nothing() {
    let lab = Lab::running(Plan::default());
    let alpha = lab.node(1);
    let before = alpha.sh("ip -o link; ip route; ip rule");
    assert!(before.contains(INTERFACE), "the interface is there before: {before}");
    assert!(alpha.socket.exists(), "and so is the socket");
    let ended = alpha.terminate(END);
    assert_eq!(ended.code(), Some(0), "the exit code after SIGTERM: {ended}");
    assert_gone(alpha);
    let (_, took) = lab.node(2).await_status("peer dead", TOLD, |status| status.state(1) == "dead");
    println!("  the peer knew after {} ms", took.as_millis());
    // Nobody answers for it.
    let ping = lab.node(2).cli(&["ping", "1", "-c", "1"], Duration::from_secs(20));
    assert!(ping.as_ref().is_ok_and(|done| !done.ok()), "a dead peer does not answer: {ping:?}");
}

fn says_goodbye_through_storage() {
    let lab = Lab::running(Plan::default());
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    lab.node(2).terminate(END);
    assert_gone(lab.node(2));
    let (_, took) = lab.node(1).await_status("peer dead", TOLD, |status| status.state(2) == "dead");
    println!("  the peer knew after {} ms", took.as_millis());
}

fn starts_again() {
    let lab = Lab::running(Plan::default());
    for _ in 0..2 {
        lab.node(2).terminate(END);
        lab.node(1).await_status("peer dead", TOLD, |status| status.state(2) == "dead");
        lab.node(2).start();
        let took = lab.await_network(Duration::from_secs(10));
        println!("  back after {:.1} s", took.as_secs_f64());
    }
}

fn assert_gone(node: &Node) {
    // The kernel takes an interface down with its last descriptor, after the process has ended.
    wait_for("no interface and no route", Duration::from_secs(1), || {
        let left = node.sh("ip -o link; ip route show table all; ip rule");
        if left.contains(INTERFACE) { Err(left) } else { Ok(()) }
    });
    assert!(!node.socket.exists(), "no socket file is left");
}
