//! iperf3 through the interface beside the bare cable, and what each costs in processor time.
//! These figures are printed, not judged: they are the base line of the work on speed.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use crate::process::wait_child;
use crate::{Lab, Needs, Node, Plan, Story, run, wait_for};
use serde_json::Value;

pub(crate) fn stories() -> Vec<Story> {
    vec![Story {
        name: "beside_the_bare_cable",
        needs: Needs::Root,
        tools: &["iperf3"],
        guard: Duration::from_secs(240),
        tell: beside_the_bare_cable,
    }]
}

fn seconds() -> u64 {
    if crate::long() { 10 } else { 3 }
}

fn beside_the_bare_cable() {
    let lab = Lab::running(Plan::default());
    let bare = measure(&lab, |node| node.underlay.clone());
    println!("  bare cable   {bare}");
    let network = measure(&lab, |node| node.overlay.clone());
    println!("  network      {network}  ({:.2} of bare)", network.gbit_s / bare.gbit_s);
    let status = lab.node(1).status();
    assert_eq!(status.route(2), "network", "load is no failure: {}", status.brief());
    assert_eq!(status.counter(2, "failovers"), 0, "load is no failure: {}", status.brief());

    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    let storage = measure(&lab, |node| node.overlay.clone());
    println!("  storage      {storage}");
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(30));
    lab.await_settled(Duration::from_secs(10));
    for figure in [bare, network, storage] {
        assert!(figure.gbit_s > 0.0, "nothing went through");
    }
}

struct Figure {
    gbit_s: f64,
    iperf_cpu: f64,
    daemons_cpu: f64,
    retransmits: u64,
}

impl std::fmt::Display for Figure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{:6.3} Gbit/s, CPU s per Gbit: iperf3 {:.3}, daemons {:.3}; {} retransmits",
            self.gbit_s, self.iperf_cpu, self.daemons_cpu, self.retransmits
        )
    }
}

fn measure(lab: &Lab, address: fn(&Node) -> String) -> Figure {
    let (client, server) = (lab.node(1), lab.node(2));
    let target = address(server);
    let mut listener = server
        .command("iperf3")
        .args(["-s", "-1", "-B", &target])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("iperf3: {error}"));
    wait_for("iperf3 to listen", Duration::from_secs(5), || {
        let sockets = server.sh("ss -Hltn sport = 5201");
        if sockets.contains("5201") { Ok(()) } else { Err(sockets) }
    });
    sleep(Duration::from_millis(200));
    let cpu = |lab: &Lab| lab.nodes.iter().map(Node::cpu_seconds).sum::<f64>();
    let before = cpu(lab);
    let mut command = client.command("iperf3");
    command.args(["-c", &target, "-J", "-t", &seconds().to_string()]);
    let done = run(&mut command, Duration::from_secs(seconds() + 30));
    let daemons = cpu(lab) - before;
    let _ = wait_child(&mut listener, Duration::from_secs(5));
    let _ = listener.kill();
    let done = done.unwrap_or_else(|error| panic!("{error}"));
    let report: Value = serde_json::from_str(&done.stdout)
        .unwrap_or_else(|error| panic!("iperf3: {error}: {}{}", done.stdout, done.stderr));
    let end = &report["end"];
    let received = &end["sum_received"];
    let number = |value: &Value| {
        value.as_f64().unwrap_or_else(|| panic!("iperf3 reports no such figure: {report}"))
    };
    let (gbit_s, took) = (number(&received["bits_per_second"]) / 1e9, number(&received["seconds"]));
    let percent = number(&end["cpu_utilization_percent"]["host_total"])
        + number(&end["cpu_utilization_percent"]["remote_total"]);
    let gbit = gbit_s * took;
    Figure {
        gbit_s,
        iperf_cpu: percent / 100.0 * took / gbit,
        daemons_cpu: daemons / gbit,
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
    }
}
