//! The network is fine and the storage goes bad: traffic is untouched, the status names the cause
//! within two seconds, and the path comes back by itself when the storage does.

use std::fs;

use std::thread::sleep;
use std::time::Duration;

use crate::node::INTERFACE;
use crate::{Lab, Medium, Meter, Needs, Plan, Story, wait_for};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, needs, tell| Story {
        name,
        needs,
        tools: if needs == Needs::Root { &["losetup", "fsfreeze", "mkfs.ext4"] } else { &[] },
        guard: Duration::from_secs(180),
        tell,
    };
    // An ordinary user's servers are no different.
    let nbd = |name, tell| Story { tools: &["nbdkit"], ..story(name, Needs::Root, tell) };
    vec![
        story("device_turns_read_only", Needs::Root, || {
            fault(Medium::Array, |lab| lab.disk().read_only(), |lab| lab.disk().read_write());
        }),
        story("device_vanishes", Needs::Root, || {
            fault(Medium::Array, |lab| lab.disk().vanish(), |lab| lab.disk().reappear());
        }),
        story("device_returns_eio", Needs::Root, || {
            fault(Medium::Array, |lab| lab.disk().fail(), |lab| lab.disk().unfail());
        }),
        story("device_stalls", Needs::Root, || {
            fault(Medium::Array, |lab| lab.disk().freeze(), |lab| lab.disk().thaw());
        }),
        story("file_returns_eio", Needs::Root, || {
            fault(Medium::FileOnArray, |lab| lab.disk().fail(), |lab| lab.disk().unfail());
        }),
        story("file_system_stalls", Needs::Root, || {
            fault(Medium::FileOnArray, |lab| lab.disk().freeze(), |lab| lab.disk().thaw());
        }),
        story("file_vanishes", Needs::Anyone, || {
            fault(Medium::File, |lab| set_aside(lab, None), bring_back);
        }),
        story("file_is_replaced", Needs::Anyone, || {
            fault(Medium::File, |lab| set_aside(lab, Some("another")), bring_back);
        }),
        story("ends_while_storage_stalls", Needs::Root, ends_while_storage_stalls),
        nbd("nbd_server_dies", || {
            fault(SLOW_NBD, |lab| lab.disk().export().kill(), |lab| lab.disk().export().restart());
        }),
        nbd("nbd_server_hangs", || {
            fault(SLOW_NBD, |lab| lab.disk().export().hang(), |lab| lab.disk().export().go_on());
        }),
        nbd("nbd_server_pauses", || {
            fault(SLOW_NBD, |lab| lab.disk().export().pause(), |lab| lab.disk().export().resume());
        }),
    ]
}

const SLOW_NBD: Medium = Medium::Nbd { write_delay_ms: 5 };
/// The design's bound for naming the cause, and the time to read the status.
const CAUSE: Duration = Duration::from_millis(2000 + 100);

fn fault(medium: Medium, break_it: fn(&Lab), heal_it: fn(&Lab)) {
    let lab = Lab::running(Plan { medium, ..Plan::default() });
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_millis(500));
    let broken = meter.mark("the fault");
    break_it(&lab);
    let mut asked = CAUSE;
    for node in &lab.nodes {
        let (status, took) = node.await_status("the cause of the fault", asked, |status| {
            !status.storage_complaints().is_empty()
        });
        asked = asked.saturating_sub(took);
        println!("  {} says: {}", node.name, status.storage_complaints().join("; "));
    }
    sleep(Duration::from_secs(1));
    for (node, peer) in [(1, 2), (2, 1)] {
        let status = lab.node(node).status();
        assert_eq!(status.network(peer), "up", "{}", status.brief());
        assert_ne!(status.storage(peer), "up", "{}", status.brief());
        assert_eq!(status.route(peer), "network", "{}", status.brief());
    }
    let healed = meter.mark("the repair");
    heal_it(&lab);
    let back = lab.await_network(Duration::from_secs(20));
    println!("  storage up again {:.1} s after the repair", back.as_secs_f64());
    for node in &lab.nodes {
        let limit = Duration::from_secs(5);
        let (_, took) = node.await_status("no complaint after the repair", limit, |status| {
            status.storage_complaints().is_empty()
        });
        if took > Duration::from_millis(100) {
            println!("  {} still complained for {} ms", node.name, took.as_millis());
        }
    }
    let settled = meter.mark("a cut to prove it");
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    sleep(Duration::from_millis(300));
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(20));
    sleep(Duration::from_millis(300));

    let streams = meter.finish(Duration::from_millis(500));
    for stream in &streams {
        let silence = stream.silence_ms(broken, settled - 1);
        println!("  {}: longest silence from fault to repair {silence:.1} ms", stream.name);
    }
    for stream in &streams {
        stream.assert_perfect();
        // Ten times what an unhurt stream shows on a busy machine.
        let silence = stream.silence_ms(broken, healed);
        assert!(silence < 250.0, "{}: traffic was silent for {silence:.0} ms", stream.name);
    }
    lab.await_settled(Duration::from_secs(10));
}

/// Moves the volume's file away and, if told so, puts a new volume in its place.
fn set_aside(lab: &Lab, replacement: Option<&str>) {
    let path = &lab.disk().path;
    let aside = path.with_extension("aside");
    if let Some(name) = replacement {
        let other = path.with_extension("other");
        crate::sh(&format!(
            "{} volume init {} --name {name} --nodes 1,2 --size 64MiB",
            crate::node::binary().display(),
            other.display()
        ));
        fs::hard_link(path, &aside).expect("a second name");
        fs::rename(&other, path).expect("the new file in the old place");
    } else {
        fs::rename(path, &aside).expect("the file at another place");
    }
}

fn bring_back(lab: &Lab) {
    let path = &lab.disk().path;
    fs::rename(path.with_extension("aside"), path).expect("the old file in its place");
}

/// The flusher hangs in the kernel; the daemon must end all the same. What is left of the process
/// can only be what the kernel will not let go before the write ends.
fn ends_while_storage_stalls() {
    let lab = Lab::running(Plan { medium: Medium::Array, ..Plan::default() });
    lab.disk().freeze();
    let alpha = lab.node(1);
    alpha.await_status("the cause of the stall", CAUSE, |status| {
        !status.storage_complaints().is_empty()
    });
    let pid = alpha.pid();
    crate::sys::signal(pid, libc::SIGTERM);
    let limit = Duration::from_secs(5);
    let (_, took) = wait_for("the end of the daemon", limit, || {
        let left = alpha.sh("ip -o link; ip route show table all");
        if left.contains(INTERFACE) {
            return Err(left);
        }
        if alpha.socket.exists() {
            return Err("the socket file".to_owned());
        }
        // The first thread ends even when another one hangs in the kernel.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let state = status.lines().find(|line| line.starts_with("State")).unwrap_or_default();
        if status.is_empty() || state.contains('Z') { Ok(()) } else { Err(state.to_owned()) }
    });
    println!("  ended {} ms after SIGTERM, storage still stalled", took.as_millis());
    lab.node(2)
        .await_status("peer dead", Duration::from_secs(2), |status| status.state(1) == "dead");
    lab.disk().thaw();
    let ended = alpha.terminate(Duration::from_secs(5));
    assert_eq!(ended.code(), Some(0), "how the daemon ended: {ended}");
    lab.node(1).start();
    lab.await_network(Duration::from_secs(20));
}
