//! What operators do by mistake: one identity twice, a live volume formatted, the wrong device, the
//! wrong release. Each is refused or fenced, says why and what to do, and harms nobody who is right.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::process::{Done, have};
use crate::{Lab, Medium, Meter, Needs, Node, Plan, Story, run, sh, wait_for};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tell| Story {
        name,
        needs: Needs::Root,
        tools: &["losetup", "mkfs.ext4", "/dev/fuse"],
        guard: Duration::from_secs(120),
        tell,
    };
    vec![
        story("one_identity_on_two_hosts", one_identity_on_two_hosts),
        story("a_live_volume_is_not_formatted", a_live_volume_is_not_formatted),
        story("foreign_data_is_not_touched", foreign_data_is_not_touched),
        story("send_and_receive_swapped", send_and_receive_swapped),
        story("another_release_is_refused_by_name", another_release_is_refused_by_name),
    ]
}

fn sidepath(words: &[&str]) -> Done {
    let mut command = Command::new(crate::node::binary());
    run(command.args(words), Duration::from_secs(30)).unwrap_or_else(|error| panic!("{error}"))
}

fn plan() -> Plan {
    Plan { medium: Medium::Fuse, strangers: 1, ..Plan::default() }
}

/// A second machine gets a clone of alpha: its key, its id, its configuration, with the address of
/// the machine it runs on. `volume` is where that machine sees the array.
fn clone_of_alpha(lab: &Lab, volume: &str, state: &str) {
    let (alpha, host) = (lab.node(1), &lab.strangers[0]);
    let text = fs::read_to_string(&alpha.config).expect("alpha's configuration");
    let text = text
        .replace(&alpha.socket.display().to_string(), &host.socket.display().to_string())
        .replace("alpha.state", state)
        .replace(&format!("{}:7440", alpha.underlay), &format!("{}:7440", host.underlay))
        .replace(&lab.disk().path_of(1).display().to_string(), volume);
    fs::write(&host.config, text).expect("the clone's configuration");
}

/// A cloned virtual machine starts while the original works. The clone's claim on the volume is
/// refused with cause and next step; the original keeps its entry, and storage keeps working.
fn one_identity_on_two_hosts() {
    let lab = Lab::running(plan());
    let (alpha, clone) = (lab.node(1), &lab.strangers[0]);

    // On the same host, with everything else its own: the lock of the volume refuses it.
    clone_of_alpha(&lab, &lab.disk().path_of(1).display().to_string(), "second.state");
    let words = ["run", "--config", &clone.config.display().to_string()];
    let mut command = clone.command(crate::node::binary());
    let done = run(command.args(words), Duration::from_secs(20)).expect("it ends by itself");
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains("runs as node 1 on this volume; stop it first"), "{done:?}");

    // On another host: it must watch the volume to know.
    let beta = lab.node(2);
    let status = beta.status();
    let failovers = status.counter(1, "failovers");
    clone_of_alpha(&lab, &lab.disk().array().path(2).display().to_string(), "third.state");
    // Cut off from the network, so that only the volume can tell.
    clone.sh("ip link set eth0 down");
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    meter.mark("the clone on the volume");
    clone.start();
    let (status, took) = wait_for("the refusal", Duration::from_secs(10), || {
        let status = clone.try_status()?;
        let said = status.storage_complaints().join("; ");
        if said.contains("in use on this volume") { Ok(said) } else { Err(said) }
    });
    println!("  the clone says after {} ms: {status}", took.as_millis());
    assert!(status.contains("stop the other daemon or give this one another id"), "{status}");
    sleep(Duration::from_millis(500));
    assert!(alpha.status().storage_complaints().is_empty(), "{}", alpha.status().brief());
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    sleep(Duration::from_millis(500));
    lab.black_hole_heal();
    lab.await_network(Duration::from_secs(20));
    for stream in &meter.finish(Duration::from_millis(500)) {
        stream.assert_perfect();
    }
    assert!(beta.status().counter(1, "failovers") <= failovers + 1);

    // On the network as well: two incarnations answer for one key.
    let mut meter = Meter::start(&lab, 1, 2, 500);
    meter.mark("the clone on the network");
    clone.sh("ip link set eth0 up");
    clone.sh("ping -c 1 -W 2 192.0.2.2");
    sleep(Duration::from_millis(2500));
    for node in [alpha, clone, beta] {
        let brief = node.try_status().map_or_else(|e| e, |status| status.brief());
        println!("  {}: {brief}", node.name);
    }
    clone.kill();
    lab.await_network(Duration::from_secs(30));
    for stream in &meter.finish(Duration::from_millis(500)) {
        let (twice, phantoms) = (stream.duplicated(), stream.phantoms());
        println!("  {}: lost {} of {}", stream.name, stream.lost().len(), stream.sent.len());
        assert!(twice.is_empty() && phantoms.is_empty(), "{}", stream.tell(&twice));
    }
    for line in fs::read_to_string(&beta.log).unwrap_or_default().lines().rev().take(6) {
        println!("    {line}");
    }
    lab.await_settled(Duration::from_secs(10));
}

fn a_live_volume_is_not_formatted() {
    let lab = Lab::running(Plan { medium: Medium::Fuse, ..Plan::default() });
    // On the host of a daemon its lock tells; on a third one only the beats do.
    for host in 1..=3 {
        let path = lab.disk().path_of(host).display().to_string();
        let init = ["volume", "init", &path, "--name", "lab", "--nodes", "1,2"];
        for more in [&[][..], &["--force"]] {
            let done = sidepath(&[&init[..], more].concat());
            assert_eq!(done.code, Some(2), "{done:?}");
            let said = &done.stderr;
            println!("  host {host} {more:?}: {}", said.trim().replace('\n', "; "));
            let named = said.contains("a sidepath daemon on this host has it attached")
                || said.contains("is alive") && said.contains("stop its daemons first")
                || more.is_empty() && said.contains("it is the sidepath volume");
            assert!(named && said.contains("hint: "), "{said}");
        }
    }
    lab.await_network(Duration::from_secs(5));
    lab.node(1).kill();
    lab.node(2).kill();
    let path = lab.disk().path_of(1).display().to_string();
    let done = sidepath(&["volume", "init", &path, "--name", "other", "--nodes", "1,2", "--force"]);
    assert_eq!(done.code, Some(2), "the name must be typed: {done:?}");
    let done = sidepath(&["volume", "init", &path, "--name", "lab", "--nodes", "1,2", "--force"]);
    assert_eq!(done.code, Some(0), "nobody beats any more: {done:?}");
}

/// Real ones, made by the tools operators use, on a real block device.
fn foreign_data_is_not_touched() {
    let lab = Lab::bare(1);
    let image = lab.dir.join("device.img");
    for (tool, make, what) in [
        ("mkfs.ext4", "mkfs.ext4 -q -F", "ext"),
        ("mkfs.xfs", "mkfs.xfs -q -f", "xfs"),
        ("mkswap", "mkswap", "swap"),
        ("sfdisk", "printf 'label: gpt\\n,,\\n' | sfdisk -q --no-reread", "partition"),
        ("sfdisk", "printf 'label: dos\\n,,\\n' | sfdisk -q --no-reread", "partition"),
        ("pvcreate", "pvcreate -qq -ff -y", "LVM"),
        ("sbd", "sbd -d", ""),
    ] {
        if !have(tool) || tool == "sbd" {
            println!("  not tried, {tool} is not installed");
            continue;
        }
        sh(&format!("rm -f {0}; truncate -s 64M {0}", image.display()));
        let device = sh(&format!("losetup -f --show {}", image.display()));
        let device = device.trim();
        sh(&format!("{make} {device} >/dev/null 2>&1"));
        sh("sync");
        let digest = || sh(&format!("sha256sum < {device}"));
        let before = digest();
        let init = ["volume", "init", device, "--name", "lab", "--nodes", "1,2"];
        let refusals = [sidepath(&init), sidepath(&[&init[..], &["--force"]].concat())];
        let after = digest();
        sh(&format!("losetup -d {device}"));
        for done in refusals {
            assert_eq!(done.code, Some(2), "{tool}: {done:?}");
            println!("  {tool}: {}", done.stderr.lines().next().unwrap_or_default());
            assert!(done.stderr.to_lowercase().contains(&what.to_lowercase()), "{done:?}");
            assert!(done.stderr.contains("wipefs"), "a way on: {done:?}");
        }
        assert_eq!(before, after, "{tool}: untouched");
    }
    sh(&format!("rm -f {0}; truncate -s 256K {0}", image.display()));
    let path = image.display().to_string();
    let done = sidepath(&["volume", "init", &path, "--name", "lab", "--nodes", "1,2"]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains("262144 bytes are too few"), "numbers: {done:?}");
}

/// Beta's two volumes are swapped: the network is not harmed, both ends say that storage is not
/// there, and a corrected configuration needs a restart of beta alone.
fn send_and_receive_swapped() {
    let lab = Lab::new(Plan { medium: Medium::Fuse, ..Plan::default() });
    let other = lab.dir.join("other.img");
    let done = sidepath(&[
        "volume",
        "init",
        &other.display().to_string(),
        "--name",
        "other",
        "--nodes",
        "1,2",
        "--size",
        "32MiB",
    ]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let [one, two] = [lab.disk().path_of(1), other].map(|path| path.display().to_string());
    let configure = |node: &Node, send: &str, receive: &str| {
        let peer = lab.node(3 - node.id).name;
        let text = fs::read_to_string(&node.config).expect("a configuration");
        let lines: Vec<String> = text
            .lines()
            .map(|line| match line.split_once(" = ") {
                Some(("volume" | "send", _)) => format!("send = \"{send}\""),
                Some(("receive", _)) => format!("receive = {{ {peer} = \"{receive}\" }}"),
                _ => line.to_owned(),
            })
            .collect();
        let mut text = lines.join("\n") + "\n";
        if !text.contains("receive = ") {
            let send = format!("send = \"{send}\"\n");
            let receive = format!("{send}receive = {{ {peer} = \"{receive}\" }}\n");
            text = text.replace(&send, &receive);
        }
        fs::write(&node.config, text).expect("a configuration");
    };
    configure(lab.node(1), &one, &two);
    configure(lab.node(2), &one, &two);
    for node in &lab.nodes {
        node.start();
    }
    lab.await_route("network", Duration::from_secs(20));
    sleep(Duration::from_millis(2500));
    for (node, peer) in [(1, 2), (2, 1)] {
        let status = lab.node(node).status();
        println!("  {}: {}", lab.node(node).name, status.brief());
        assert_ne!(status.storage(peer), "up", "{}", status.brief());
        assert!(!status.storage_complaints().is_empty(), "a cause: {}", status.brief());
        let log = fs::read_to_string(&lab.node(node).log).unwrap_or_default();
        assert!(log.contains("must be `receive` in ours"), "a next step: {log}");
    }
    lab.node(2).kill();
    configure(lab.node(2), &two, &one);
    lab.node(2).start();
    lab.await_network(Duration::from_secs(20));
}

/// A volume of a later format, or with features this release does not know.
fn another_release_is_refused_by_name() {
    let lab = Lab::new(Plan { medium: Medium::Fuse, ..Plan::default() });
    let path = lab.disk().path_of(1);
    let file = fs::File::options().read(true).write(true).open(&path).expect("the volume");
    let mut good = vec![0; 4096];
    file.read_exact_at(&mut good, 0).expect("the superblock");
    for (at, value, words) in [(8, 2, "version 2"), (16, 0x80, "feature")] {
        let mut block = good.clone();
        block[at] = value;
        let sum = crc32(&block[..4092]);
        block[4092..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&block, 0).expect("a write");
        let config = lab.node(1).config.display().to_string();
        let mut command = lab.node(1).command(crate::node::binary());
        command.args(["run", "--config", &config]);
        let done = run(&mut command, Duration::from_secs(20)).expect("it ends by itself");
        assert_eq!(done.code, Some(2), "{done:?}");
        println!("  {}", done.stderr.lines().last().unwrap_or_default());
        assert!(done.stderr.contains(words), "{words}: {done:?}");
        assert!(done.stderr.contains("hint: "), "a way on: {done:?}");
        let inspected = sidepath(&["volume", "inspect", &path.display().to_string()]);
        assert!(inspected.code == Some(2) && inspected.stderr.contains(words), "{inspected:?}");
    }
    file.write_all_at(&good, 0).expect("a write");
    for node in &lab.nodes {
        node.start();
    }
    lab.await_network(Duration::from_secs(20));
}

/// The common one, as in zlib.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { (sum >> 1) ^ 0xEDB8_8320 } else { sum >> 1 }
        })
    })
}
