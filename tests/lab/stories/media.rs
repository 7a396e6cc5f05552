//! Volumes that are not a shared LUN: an NBD server that is slow and fails, and two volumes in two
//! places with a replicator between them. The same stream as on a LUN, the same promise: nothing
//! lost, nothing twice, nothing out of order. (A server that dies or hangs while the network is
//! whole is among the storage faults.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::{Lab, Medium, Meter, Needs, Plan, Story, Summary};

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
    let lab = Lab::new(Plan { medium: Medium::File, ..Plan::default() });
    let site = |name: &str, file: &str| {
        let folder = lab.dir.join(name);
        fs::create_dir_all(&folder).expect("a folder of our own");
        folder.join(file)
    };
    let sends = [site("here", "alpha.send"), site("there", "beta.send")];
    let replicas = [site("there", "alpha.replica"), site("here", "beta.replica")];
    let mut copies = Vec::new();
    for (send, replica) in sends.iter().zip(&replicas) {
        crate::sh(&format!(
            "{} volume init {} --name {} --nodes 1,2 --size 64MiB --lane-size 8MiB",
            crate::node::binary().display(),
            send.display(),
            send.file_stem().unwrap_or_default().to_string_lossy(),
        ));
        copies.push(Copy::start(send, replica));
    }
    for (node, (send, replica)) in
        lab.nodes.iter().zip([(&sends[0], &replicas[1]), (&sends[1], &replicas[0])])
    {
        let peer = if node.id == 1 { "beta" } else { "alpha" };
        let text = fs::read_to_string(&node.config).expect("a configuration");
        let shared = format!("volume = \"{}\"", lab.disk().path.display());
        let separate = format!(
            "send = \"{}\"\nreceive = {{ {peer} = \"{}\" }}",
            send.display(),
            replica.display()
        );
        assert!(text.contains(&shared));
        fs::write(&node.config, text.replace(&shared, &separate)).expect("a configuration");
        node.start();
    }
    lab.await_network(Duration::from_secs(30));
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_secs(1));
    say_latency(&lab);
    let mut windows = cuts(&lab, &mut meter);
    // A replicator that dies under traffic is started again and goes on.
    let down = meter.mark("a cut, and both copies die");
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(10));
    for (copy, (send, replica)) in copies.iter_mut().zip(sends.iter().zip(&replicas)) {
        copy.kill();
        *copy = Copy::start(send, replica);
    }
    sleep(Duration::from_secs(1));
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(90));
    windows.push((down, meter.mark("healed")));
    finish(&lab, meter, &windows);
}

/// `sidepath volume copy --follow`, killed at the end.
struct Copy(Child);

impl Copy {
    fn start(from: &Path, to: &PathBuf) -> Self {
        let child = Command::new(crate::node::binary())
            .args(["volume", "copy", "--follow"])
            .args([from, to])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let copy = Self(child.expect("the program under test"));
        crate::wait_for("the replica", Duration::from_secs(30), || {
            crate::run(
                Command::new(crate::node::binary()).args(["volume", "inspect"]).arg(to),
                Duration::from_secs(10),
            )
            .and_then(|done| if done.ok() { Ok(()) } else { Err(done.stderr) })
        });
        copy
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.kill();
    }
}
