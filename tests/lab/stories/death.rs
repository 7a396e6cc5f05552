//! Real death is not masked. Corosync dies, or the daemon dies, while the network is dark: the
//! others notice within Corosync's own bounds. With both paths gone nodes say so, and what waited
//! too long is not delivered late.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::clusters::{Cluster, NOTICED_WITHIN, TOOLS};
use crate::{Lab, Medium, Meter, Needs, Plan, Story};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tools, tell| Story {
        name,
        needs: Needs::Root,
        tools,
        guard: Duration::from_secs(300),
        tell,
    };
    vec![
        story("corosync_killed_in_the_dark", TOOLS, corosync_killed_in_the_dark),
        story("daemon_killed_in_the_dark", TOOLS, daemon_killed_in_the_dark),
        story("isolated_then_storage", &["losetup", "mkfs.ext4"], isolated_then_storage),
    ]
}

fn dark_cluster() -> (Lab, Cluster) {
    let lab = Lab::running(Plan { nodes: 3, ..Plan::default() });
    let cluster = Cluster::start(&lab);
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    sleep(Duration::from_secs(2));
    (lab, cluster)
}

fn corosync_killed_in_the_dark() {
    let (lab, cluster) = dark_cluster();
    cluster.await_ring(&[1, 2, 3], Duration::from_secs(5));
    cluster.kill(3);
    let (_, took) = cluster.await_ring(&[1, 2], NOTICED_WITHIN);
    println!("  the others went on without it after {:.1} s", took.as_secs_f64());
    for node in [1, 2] {
        let status = lab.node(node).status();
        assert_eq!(status.state(3), "alive", "its daemon lives: {}", status.brief());
    }
}

fn daemon_killed_in_the_dark() {
    let (lab, cluster) = dark_cluster();
    let killed = Instant::now();
    lab.node(3).kill();
    // While the network is down beats on storage come every 100 ms; five of them stand still.
    for node in [1, 2] {
        lab.node(node).await_status("peer 3 dead", Duration::from_secs(5), |status| {
            status.state(3) == "dead"
        });
    }
    println!("  its peers call it dead after {:.1} s", killed.elapsed().as_secs_f64());
    cluster.await_ring(&[1, 2], NOTICED_WITHIN);
    let took = killed.elapsed();
    assert!(took <= NOTICED_WITHIN + Duration::from_secs(1), "{took:?}");
    println!("  Corosync went on without it after {:.1} s", took.as_secs_f64());

    lab.node(3).start();
    let took = lab.await_route("storage", Duration::from_secs(10));
    println!("  the restarted daemon was back after {:.1} s", took.as_secs_f64());
    let (_, took) = cluster.await_ring(&[1, 2, 3], Duration::from_secs(60));
    println!("  and Corosync was whole {:.1} s later", took.as_secs_f64());
}

fn isolated_then_storage() {
    let lab = Lab::running(Plan { medium: Medium::Array, ..Plan::default() });
    let mut meter = Meter::start(&lab, 1, 2, 200);
    sleep(Duration::from_millis(500));
    meter.mark("the network's cut");
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    sleep(Duration::from_millis(500));
    let cut = meter.mark("the storage's cut");
    lab.disk().fail();
    let took = lab.await_route("isolated", Duration::from_secs(5));
    println!("  isolated after {} ms", took.as_millis());
    // Longer than an ordinary packet may live.
    sleep(Duration::from_secs(7));
    for (node, peer) in [(1, 2), (2, 1)] {
        let status = lab.node(node).status();
        assert_eq!(status.route(peer), "isolated", "{}", status.brief());
        assert_eq!(status.state(peer), "unknown", "silence is not death: {}", status.brief());
        assert!(status.counter(peer, "lost") > 0, "what expired is counted: {}", status.brief());
    }
    let healed = meter.mark("the storage's return");
    lab.disk().unfail();
    let took = lab.await_route("storage", Duration::from_secs(15));
    println!("  storage carries again after {:.1} s", took.as_secs_f64());
    let again = meter.mark("the route's return");
    sleep(Duration::from_secs(1));
    meter.mark("the network's return");
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(30));
    sleep(Duration::from_millis(500));
    for stream in meter.finish(Duration::from_millis(500)) {
        let (lost, oldest) = (stream.lost(), stream.oldest_ms(0, u64::MAX));
        println!("  {}: lost {}, oldest delivered {oldest:.0} ms", stream.name, lost.len());
        stream.assert_never_twice();
        let late = stream.reordered();
        assert!(late.is_empty(), "{}: out of order {}", stream.name, stream.tell(&late));
        assert!(oldest <= 5500.0, "{}: stale by {oldest:.0} ms", stream.name);
        // Sent while isolated for longer than its time to live: cannot be delivered in time.
        assert!(!lost.is_empty(), "{}: 7 s of isolation lose something", stream.name);
        let outside: Vec<u64> = lost
            .into_iter()
            .filter(|number| {
                let sent = stream.sent_at(*number);
                sent < cut.saturating_sub(1_000_000_000) || sent > again
            })
            .collect();
        assert!(
            outside.is_empty(),
            "{}: lost outside of the isolation {}",
            stream.name,
            stream.tell(&outside)
        );
        assert!(healed > cut);
    }
    lab.await_settled(Duration::from_secs(10));
}
