//! Two nodes that start while the network is already dead find each other through storage.

use std::thread::sleep;
use std::time::Duration;

use crate::{Lab, Meter, Needs, Plan, Story};

pub(crate) fn stories() -> Vec<Story> {
    vec![Story {
        name: "network_dead_from_the_start",
        needs: Needs::Anyone,
        tools: &[],
        guard: Duration::from_secs(180),
        tell: network_dead_from_the_start,
    }]
}

fn network_dead_from_the_start() {
    let lab = Lab::new(Plan::default());
    lab.black_hole();
    lab.nodes.iter().for_each(crate::Node::start);
    let took = lab.await_route("storage", Duration::from_secs(20));
    println!("  talking through storage {:.1} s after the start", took.as_secs_f64());
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_secs(1));
    meter.mark("the network's first day");
    lab.black_hole_heal();
    let took = lab.await_network(Duration::from_secs(20));
    println!("  on the network {:.1} s after it came", took.as_secs_f64());
    sleep(Duration::from_millis(500));
    for stream in meter.finish(Duration::from_millis(500)) {
        stream.assert_perfect();
    }
    lab.await_settled(Duration::from_secs(10));
}
