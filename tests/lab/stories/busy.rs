//! Sixteen busy loops on the machine of both nodes, and a healthy network: a late process is not
//! a dead network. An occasional suspicion is normal; a `down` is a defect.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{Lab, Meter, Needs, Plan, Story};

pub(crate) fn stories() -> Vec<Story> {
    vec![Story {
        name: "no_false_alarm",
        needs: Needs::Root,
        tools: &[],
        guard: Duration::from_secs(4000),
        tell: no_false_alarm,
    }]
}

struct Spinners(Vec<Child>);

impl Spinners {
    fn start(lab: &Lab) -> Self {
        let spin = |number: usize| -> Child {
            // In a namespace of the lab, so that it is swept up with it.
            let node = &lab.nodes[number % lab.nodes.len()];
            let mut command: Command = node.command("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            command.spawn().expect("a shell")
        };
        Self((0..16).map(spin).collect())
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for spinner in &mut self.0 {
            let _ = spinner.kill();
            let _ = spinner.wait();
        }
    }
}

fn no_false_alarm() {
    let seconds = if crate::long() { 3600 } else { 15 };
    let lab = Lab::running(Plan::default());
    let meter = Meter::start(&lab, 1, 2, 100);
    let spinners = Spinners::start(&lab);
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        for (node, peer) in [(1, 2), (2, 1)] {
            // The command may wait for the processor as everybody else.
            let Ok(status) = lab.node(node).try_status() else { continue };
            let told = status.brief();
            assert_eq!(status.counter(peer, "failovers"), 0, "a false alarm: {told}");
            assert_ne!(status.network(peer), "down", "a false alarm: {told}");
        }
        sleep(Duration::from_millis(500));
    }
    drop(spinners);
    for stream in meter.finish(Duration::from_secs(1)) {
        let last = stream.sent.last().copied().unwrap_or(0);
        let silence = stream.silence_ms(stream.sent_at(0), last);
        println!("  {}: longest silence {silence:.0} ms", stream.name);
        stream.assert_perfect();
    }
    for (node, peer) in [(1, 2), (2, 1)] {
        let status = lab.node(node).status();
        println!("  {}", status.brief());
        assert_eq!(status.counter(peer, "failovers"), 0, "a false alarm: {}", status.brief());
    }
    lab.await_settled(Duration::from_secs(10));
}
