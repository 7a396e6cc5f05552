//! Three nodes, a Corosync cluster on the virtual interface, messages flowing. Every network goes
//! dark; the cluster must not notice. Then one cable is pulled: the other pair keeps to the
//! network. The control run shows what happens without sidepath.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::clusters::{
    Cluster, Load, NOTICED, NOTICED_WITHIN, TOOLS, TOOLS_AND_NBDKIT, TOOLS_AND_S3, WARNED,
};
use crate::s3::Kind;
use crate::sites::Sites;
use crate::{Lab, Medium, Needs, Node, Plan, Story};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tell| Story {
        name,
        needs: Needs::Root,
        tools: TOOLS,
        guard: Duration::from_secs(400),
        tell,
    };
    let mut all = vec![
        story("without_sidepath_it_splits", without_sidepath_it_splits),
        story("all_networks_dark", || all_networks_dark(Plan::default().medium, "")),
        Story {
            tools: TOOLS_AND_NBDKIT,
            ..story("all_networks_dark_nbd", || {
                all_networks_dark(Medium::Nbd { write_delay_ms: 5 }, "")
            })
        },
        story("all_networks_dark_replicas", all_networks_dark_replicas),
        story("one_cable_pulled", one_cable_pulled),
    ];
    if crate::long() {
        // A token of 3.65 s bears few requests that are late by a second, and servers of tests have
        // such on a busy machine.
        let s3 = story("all_networks_dark_s3", all_networks_dark_s3);
        all.push(Story { tools: TOOLS_AND_S3, ..s3 });
    }
    all
}

const ALL: &[usize] = &[1, 2, 3];

fn dark_for() -> Duration {
    Duration::from_secs(if crate::long() { 60 } else { 10 })
}

fn without_sidepath_it_splits() {
    let lab = Lab::bare(3);
    for node in &lab.nodes {
        node.sh(&format!("ip addr add {}/24 dev eth0", node.overlay));
    }
    let cluster = Cluster::start(&lab);
    let load = Load::start(&lab, &cluster);
    sleep(Duration::from_secs(1));
    let (said, silence) = load.assert_each_heard_once();
    println!("  {said} messages on a whole network, longest silence {silence:.0} ms");
    let (ring, _) = cluster.await_ring(ALL, Duration::from_secs(10));
    let began = Instant::now();
    lab.black_hole();
    for node in ALL {
        cluster.await_ring(&[*node], NOTICED_WITHIN);
    }
    println!("  split into three after {:.1} s", began.elapsed().as_secs_f64());
    lab.black_hole_heal();
    let (again, took) = cluster.await_ring(ALL, Duration::from_secs(30));
    println!("  one ring again {:.1} s after the heal; {ring} became {again}", took.as_secs_f64());
    assert_ne!(ring, again, "the ring id counts the change");
    assert!(!cluster.complaints(NOTICED).is_empty(), "the log tells of it");
}

/// Each request takes 15 ms and what the server takes: s3rver some 5 ms; moto, one process in Python
/// that three nodes ask at once, 200 to 400 ms, which is no medium for a token of 3.65 s.
fn all_networks_dark_s3() {
    let medium = |kind| Medium::S3 { kind, delay_ms: 15 };
    all_networks_dark(medium(Kind::S3rver), "");
    if crate::long() {
        all_networks_dark(medium(Kind::Moto), "  token: 20000\n");
    }
}

fn all_networks_dark(medium: Medium, totem: &str) {
    let lab = Lab::running(Plan { nodes: 3, medium, ..Plan::default() });
    stays_together(&lab, totem);
}

/// Three volumes, three replicas on another file system, a continuous copy between each.
fn all_networks_dark_replicas() {
    let lab = Lab::new(Sites::plan(3));
    let _copies = Sites::build(&lab);
    lab.nodes.iter().for_each(Node::start);
    lab.await_network(Duration::from_secs(30));
    stays_together(&lab, "");
}

fn stays_together(lab: &Lab, totem: &str) {
    let mut cluster = Cluster::start_with(lab, totem);
    let load = Load::start(lab, &cluster);
    let (ring, _) = cluster.await_ring(ALL, Duration::from_secs(10));
    sleep(Duration::from_secs(2));
    cluster.forget_logs();

    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(10));
    let healed_at = Instant::now() + dark_for();
    while Instant::now() < healed_at {
        // Reading the status checks both balances.
        lab.nodes.iter().for_each(|node| drop(node.status()));
        assert_same_ring(&cluster, &ring);
        sleep(Duration::from_millis(500));
    }
    lab.black_hole_heal();
    let back = lab.await_network(Duration::from_secs(30));
    sleep(Duration::from_secs(5));

    assert_same_ring(&cluster, &ring);
    let (said, silence) = load.assert_each_heard_once();
    lab.await_network(Duration::from_secs(5));
    lab.await_settled(Duration::from_secs(10));
    assert_unnoticed(&cluster, &ring);
    println!(
        "  dark for {} s, back on the network {:.1} s after the heal; {said} messages, each heard \
         once by each; longest silence {silence:.0} ms; near misses in the log: {}",
        dark_for().as_secs(),
        back.as_secs_f64(),
        cluster.complaints(WARNED).len()
    );
}

fn one_cable_pulled() {
    let lab = Lab::running(Plan { nodes: 3, ..Plan::default() });
    let mut cluster = Cluster::start(&lab);
    let load = Load::start(&lab, &cluster);
    let (ring, _) = cluster.await_ring(ALL, Duration::from_secs(10));
    sleep(Duration::from_secs(1));
    // Three corosyncs that lock their memory at once keep two processors for some 40 ms: a node
    // may have been silent for too long before this story begins.
    lab.await_network(Duration::from_secs(5));
    cluster.forget_logs();
    let untouched = [(1, 2), (2, 1)];
    let failovers = |(node, peer)| lab.node(node).status().counter(peer, "failovers");
    let before = untouched.map(failovers);

    lab.pull_cable(3);
    for (node, peer) in [(1, 3), (2, 3), (3, 1), (3, 2)] {
        lab.node(node).await_status("route storage", Duration::from_secs(5), |status| {
            status.route(peer) == "storage"
        });
    }
    let until = Instant::now() + dark_for();
    while Instant::now() < until {
        for ((node, peer), before) in untouched.into_iter().zip(before) {
            let status = lab.node(node).status();
            assert_eq!(status.route(peer), "network", "the untouched pair: {}", status.brief());
            assert_eq!(status.counter(peer, "failovers"), before, "{}", status.brief());
        }
        drop(lab.node(3).status());
        assert_same_ring(&cluster, &ring);
        sleep(Duration::from_millis(500));
    }
    lab.plug_cable(3);
    lab.await_network(Duration::from_secs(30));
    sleep(Duration::from_secs(3));

    let (said, silence) = load.assert_each_heard_once();
    lab.await_settled(Duration::from_secs(10));
    assert_unnoticed(&cluster, &ring);
    println!("  {said} messages, each heard once by each; longest silence {silence:.0} ms");
}

fn assert_same_ring(cluster: &Cluster, ring: &str) {
    for (node, now) in ALL.iter().zip(cluster.rings(ALL)) {
        assert_eq!(now.as_deref(), Ok(ring), "the ring of node {node}");
    }
}

fn assert_unnoticed(cluster: &Cluster, ring: &str) {
    assert_same_ring(cluster, ring);
    let noticed = cluster.complaints(NOTICED);
    assert!(noticed.is_empty(), "corosync noticed:\n  {}", noticed.join("\n  "));
}
