//! What strangers, onlookers and local users can see or disturb, with real daemons: nothing.
//!
//! `SIDEPATH_LAB=long` floods for 20 s instead of 2 and waits until strangers' connections have
//! timed out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::fuse::Array;
use crate::intruder::{Ear, Helper, find};
use crate::process::Done;
use crate::{Lab, Medium, Meter, Needs, Node, Plan, Story, run, sh, wait_for};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tell| Story {
        name,
        needs: Needs::Root,
        tools: &["setpriv", "ss"],
        guard: Duration::from_secs(180),
        tell,
    };
    vec![
        story("payload_is_seen_nowhere", payload_is_seen_nowhere),
        story("keys_stay_in_the_process", keys_stay_in_the_process),
        story("the_control_socket_knows_whom_it_serves", the_control_socket_knows_whom_it_serves),
        story("a_hostile_client_disturbs_nobody", a_hostile_client_disturbs_nobody),
        story("floods_from_a_stranger", floods_from_a_stranger),
    ]
}

/// An ordinary user of every Linux.
const NOBODY: &str = "65534";

/// A copy of the program where everybody may read it.
fn program(lab: &Lab) -> PathBuf {
    let copy = lab.dir.join("sidepath");
    if !copy.exists() {
        fs::copy(crate::node::binary(), &copy).expect("room for a copy of the program");
        let _ = fs::set_permissions(&copy, fs::Permissions::from_mode(0o755));
    }
    copy
}

/// Runs `sidepath` as an ordinary user with this group.
fn as_nobody(lab: &Lab, group: &str, node: &Node, arguments: &[&str]) -> Done {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", group, "--clear-groups"]);
    command.arg(program(lab)).args(arguments).arg("--socket").arg(&node.socket);
    run(&mut command, Duration::from_secs(10)).unwrap_or_else(|error| panic!("{error}"))
}

/// A text that is found on the virtual interface must not be found on the wire, on the volume, in
/// a log, or in anything a daemon says, while it travels by network and by storage.
fn payload_is_seen_nowhere() {
    assert!(Array::possible(), "/dev/fuse");
    let lab = Lab::new(Plan { medium: Medium::Fuse, ..Plan::default() });
    for node in &lab.nodes {
        node.start_with(&["--log", "trace"]);
    }
    lab.await_network(Duration::from_secs(20));
    let marker = format!("MARKER-{}-of-what-nobody-may-read", crate::sys::monotonic_ns());
    let (alpha, beta) = (lab.node(1), lab.node(2));
    let ears = [(alpha, "eth0"), (beta, "eth0"), (alpha, "sp0"), (beta, "sp0")];
    let ears = ears.map(|(node, interface)| {
        let file = lab.dir.join(format!("{}-{interface}.frames", node.name));
        (format!("{interface} of {}", node.name), Ear::listen(node, interface, &file))
    });
    let inbox = Helper::start(beta, &["courier", "at", &beta.overlay]);
    let courier = Helper::start(alpha, &["courier", "to", &beta.overlay, &marker]);
    let array = lab.disk().array();
    let mut images = Vec::new();
    sleep(Duration::from_millis(700));
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    for _ in 0..3 {
        sleep(Duration::from_millis(300));
        images.push(array.snapshot());
    }
    lab.black_hole_heal();
    let mut said = String::new();
    for node in &lab.nodes {
        for words in [
            &["status", "--json"][..],
            &["status"],
            &["peers"],
            &["ping", if node.id == 1 { "beta" } else { "alpha" }, "-c", "1"],
        ] {
            let done = node.cli(words, Duration::from_secs(10)).unwrap_or_else(|e| panic!("{e}"));
            said += &done.stdout;
            said += &done.stderr;
        }
    }
    let sent: u64 = courier.finish().parse().unwrap_or(0);
    let received: u64 = inbox.finish().parse().unwrap_or(0);
    assert!(sent > 300 && received > sent / 2, "sent {sent}, received {received}");

    for (name, ear) in ears {
        let frames = ear.frames();
        let with = frames.iter().filter(|(_, f)| find(f, marker.as_bytes()).is_some()).count();
        println!("  {name}: {} frames, {with} with the marker", frames.len());
        if name.starts_with("sp0") {
            assert!(with > 300, "the search finds it where it must be: {with} on {name}");
        } else {
            assert!(frames.len() > 300, "{name} was heard: {}", frames.len());
            assert_eq!(with, 0, "plain text on {name}");
        }
    }
    // Something was on the volume, and none of it was plain.
    for image in &images {
        assert!(find(image, b"SPR1").is_some(), "no record on the volume");
        assert_eq!(find(image, marker.as_bytes()), None, "plain text on the volume");
    }
    assert_eq!(find(said.as_bytes(), marker.as_bytes()), None, "plain text in what daemons say");
    let files = everything_but_captures(&lab);
    for (file, bytes) in &files {
        assert_eq!(find(bytes, marker.as_bytes()), None, "plain text in {file}");
    }
    let logs: usize = files.iter().filter(|(f, _)| f.ends_with(".log")).map(|f| f.1.len()).sum();
    assert!(logs > 10_000, "the logs were full: {logs} bytes");
    println!("  {} images, {} files, {} bytes of logs: nothing", images.len(), files.len(), logs);
}

fn everything_but_captures(lab: &Lab) -> Vec<(String, Vec<u8>)> {
    let listed = sh(&format!(
        "find {} -xdev -type f ! -name '*.frames' ! -name sidepath",
        lab.dir.display()
    ));
    let read = |file: &str| (file.to_owned(), fs::read(file).unwrap_or_default());
    listed.lines().map(read).collect()
}

/// No core dump, nothing in /proc, no key in a log or a status.
fn keys_stay_in_the_process() {
    let lab = Lab::new(Plan::default());
    for node in &lab.nodes {
        node.start_with(&["--log", "trace"]);
    }
    lab.await_network(Duration::from_secs(20));
    for node in &lab.nodes {
        let pid = node.pid();
        let read = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let limits = String::from_utf8_lossy(&read("limits")).into_owned();
        let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap_or_default();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        let key = fs::read_to_string(lab.dir.join(format!("{}.key", node.name)));
        let key = key.expect("the key file").trim().to_owned();
        let secret = key.lines().last().unwrap_or_default().trim().to_owned();
        assert!(secret.len() >= 40, "a whole key: {}", secret.len());
        let status = node.cli(&["status", "--json"], Duration::from_secs(5)).expect("a status");
        let log = fs::read(&node.log).unwrap_or_default();
        for (place, bytes) in [
            ("environ", read("environ")),
            ("cmdline", read("cmdline")),
            ("status", status.stdout.into_bytes()),
            ("log", log),
        ] {
            assert!(!bytes.is_empty(), "{place} can be read");
            assert_eq!(find(&bytes, secret.as_bytes()), None, "the key in {place}");
        }
        let mode =
            fs::metadata(lab.dir.join(format!("{}.key", node.name))).map(|m| m.permissions());
        assert_eq!(mode.expect("the key file").mode() & 0o777, 0o600);
    }
    // A process that must not be dumped belongs to root in /proc, whoever runs it.
    let folder = lab.dir.join("ordinary");
    fs::create_dir(&folder).expect("a folder");
    let text = fs::read_to_string(&lab.node(1).config).expect("the configuration");
    let from = lab.dir.display().to_string();
    let text = text.replace(&from, &folder.display().to_string()).replace(":7440", ":7441");
    let begin = text.find("[interface]").expect("an interface");
    let end = text.find("[network]").expect("a network");
    let storage = text.find("[storage]").expect("storage");
    let peer = text.find("[[peer]]").expect("a peer");
    let text = format!("{}{}{}", &text[..begin], &text[end..storage], &text[peer..]);
    let text: String = text
        .lines()
        .filter(|l| !l.starts_with("address"))
        .fold(String::new(), |all, line| all + line + "\n");
    let config = folder.join("alpha.toml");
    fs::write(&config, text).expect("a configuration");
    fs::copy(lab.dir.join("alpha.key"), folder.join("alpha.key")).expect("a key");
    sh(&format!("chown -R {NOBODY}:{NOBODY} {}", folder.display()));
    let program = program(&lab);
    let mut child = lab
        .node(1)
        .command("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(program)
        .args(["run", "--config"])
        .arg(&config)
        .spawn()
        .expect("a daemon of an ordinary user");
    let socket = folder.join("alpha.sock");
    wait_for("the daemon of an ordinary user", Duration::from_secs(10), || {
        if let Ok(Some(ended)) = child.try_wait() {
            return Ok(Err(ended));
        }
        if socket.exists() { Ok(Ok(())) } else { Err("no socket".to_owned()) }
    })
    .0
    .unwrap_or_else(|ended| panic!("it ended: {ended}"));
    let owner = fs::metadata(format!("/proc/{}/environ", child.id()));
    let owner = owner.map(|m| std::os::unix::fs::MetadataExt::uid(&m));
    let copied = run(
        Command::new("setpriv")
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .args(["cat", &format!("/proc/{}/environ", child.id())]),
        Duration::from_secs(5),
    );
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(owner.ok(), Some(0), "not dumpable");
    assert!(!copied.expect("cat runs").ok(), "another process of the same user looks inside");
}

fn the_control_socket_knows_whom_it_serves() {
    let lab = Lab::running(Plan::default());
    let alpha = lab.node(1);
    let mode = fs::metadata(&alpha.socket).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let reload = ["reload"];
    let drill = ["drill", "beta", "--cut", "network", "--for", "100ms"];

    for words in [&["status"][..], &reload, &drill] {
        let done = as_nobody(&lab, NOBODY, alpha, words);
        assert!(!done.ok(), "{words:?} by a stranger: {done:?}");
        assert!(done.stderr.contains("ermission denied"), "{done:?}");
    }
    // In the group of the socket: may look, not touch.
    let done = as_nobody(&lab, "0", alpha, &["status", "--json"]);
    assert!(done.ok(), "status by the group: {done:?}");
    assert!(as_nobody(&lab, "0", alpha, &["ping", "beta", "-c", "1"]).ok());
    for words in [&reload[..], &drill] {
        let done = as_nobody(&lab, "0", alpha, words);
        assert_eq!(done.code, Some(1), "{words:?} by the group: {done:?}");
        assert!(done.stderr.contains("may look but not change"), "{done:?}");
        assert!(done.stderr.contains("hint"), "a way on: {done:?}");
    }
    assert_eq!(alpha.status().counter(2, "failovers"), 0, "nothing was cut");
    assert!(alpha.cli(&reload, Duration::from_secs(10)).is_ok_and(|done| done.ok()));
}

/// Ten thousand connections, garbage, half questions, answers never read, by a user of the group.
fn a_hostile_client_disturbs_nobody() {
    let lab = Lab::running(Plan::default());
    let alpha = lab.node(1);
    let meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_millis(300));
    let before = alpha.resident_kib();
    // As root it would have an operator's rights: a crowd of onlookers is what is meant.
    let socket = alpha.socket.display().to_string();
    sh(&format!("chgrp {NOBODY} {socket}"));
    let executable = lab.dir.join("crowd");
    fs::copy(std::env::current_exe().expect("this file"), &executable).expect("a copy");
    let _ = fs::set_permissions(&executable, fs::Permissions::from_mode(0o755));
    let crowd = Helper::start_as(alpha, NOBODY, &executable, &["crowd", &socket, "10000"]);
    // The crowd is still in the room; whoever may change something still gets in.
    let done = alpha.cli(&["status", "--json"], Duration::from_secs(5)).expect("an answer");
    assert!(done.ok(), "status for root in the crowd: {done:?}");
    let drilled = alpha
        .cli(&["drill", "beta", "--cut", "network", "--for", "200ms"], Duration::from_secs(20));
    assert!(drilled.as_ref().is_ok_and(|done| done.ok()), "a drill in the crowd: {drilled:?}");
    let crowded = alpha.resident_kib();
    println!("  the crowd: {}", crowd.finish());
    wait_for("room again for the group", Duration::from_secs(15), || {
        let done = as_nobody(&lab, NOBODY, alpha, &["status"]);
        if done.ok() { Ok(()) } else { Err(done.stderr) }
    });
    let streams = meter.finish(Duration::from_millis(500));
    streams.iter().for_each(crate::Stream::assert_perfect);
    println!(
        "  resident {before} KiB before, {crowded} in the crowd, {} after",
        alpha.resident_kib()
    );
    assert!(crowded < before + before / 5 + 4096, "from {before} to {crowded} KiB");
}

fn floods_from_a_stranger() {
    let plan = Plan { strangers: 1, ..Plan::default() };
    let lab = Lab::running(plan);
    let (alpha, stranger) = (lab.node(1), &lab.strangers[0]);
    let length = Duration::from_secs(if crate::long() { 20 } else { 2 });
    let target = format!("{}:7440", alpha.underlay);
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    sleep(Duration::from_millis(500));
    let before = alpha.resident_kib();
    let ear = Ear::listen(stranger, "eth0", &lab.dir.join("stranger.frames"));
    let began = meter.mark("the flood");
    let flood = Helper::start(stranger, &["flood", &target, "1"]);
    sleep(length);
    let crest = alpha.resident_kib();
    let sent = flood.finish();
    let ended = meter.mark("the end of the flood");
    let knock = Helper::start(stranger, &["knock", &target, "400"]);
    let open = sockets(alpha);
    if crate::long() {
        sleep(Duration::from_secs(12));
    } else {
        sleep(Duration::from_millis(300));
    }
    let left = sockets(alpha);
    let knocked = knock.finish();
    let frames = ear.frames();
    println!(
        "  {sent} datagrams in {length:?}; {knocked}; sockets of strangers {open}, then {left}"
    );
    assert!(sent.parse::<u64>().is_ok_and(|sent| sent > 20_000), "a flood: {sent}");
    assert!(open <= 128, "{open} connections of strangers");
    assert!(!crate::long() || left == 0, "{left} connections of strangers after their time");
    assert!(knocked.ends_with(" 0 answered"), "{knocked}");

    // No byte comes back: no UDP or ICMP at all, and of TCP nothing but its own handshake.
    let replies: Vec<String> = frames
        .iter()
        .filter(|(incoming, _)| *incoming)
        .filter_map(|(_, frame)| answer(frame))
        .collect();
    assert!(
        replies.is_empty(),
        "{} answers: {:?}",
        replies.len(),
        &replies[..replies.len().min(5)]
    );

    let streams = meter.finish(Duration::from_millis(1000));
    for stream in &streams {
        let silence = stream.silence_ms(began, ended);
        println!("  {}: longest silence in the flood {silence:.1} ms", stream.name);
        stream.assert_perfect();
    }
    println!("  resident {before} KiB before, {crest} in the flood");
    assert!(crest < before + before / 20 + 2048, "memory grew from {before} to {crest} KiB");
    let status = alpha.status();
    let refused = &status.json()["refused"];
    println!("  refused: {refused}");
    assert!(
        refused.as_object().is_some_and(|causes| !causes.is_empty()),
        "each is counted: {refused}"
    );
    lab.await_network(Duration::from_secs(30));
    lab.await_settled(Duration::from_secs(10));
}

/// Established TCP connections of the stranger at the daemon's port.
fn sockets(node: &Node) -> usize {
    let shown = node.sh("ss -Htn state established '( sport = :7440 )'");
    shown.lines().filter(|line| line.contains("192.0.2.3:")).count()
}

/// What an Ethernet frame answers, if it carries anything of an answer.
fn answer(frame: &[u8]) -> Option<String> {
    if frame.get(12..14)? != [0x08, 0x00] {
        return None;
    }
    let ip = &frame[14..];
    let head = usize::from(ip[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]])).min(ip.len());
    let body = ip.get(head..total)?;
    match ip[9] {
        6 => {
            let payload = body.len().checked_sub(usize::from(body.get(12)? >> 4) * 4)?;
            (payload > 0).then(|| format!("TCP, {payload} bytes"))
        }
        protocol => Some(format!("protocol {protocol}, {} bytes", body.len())),
    }
}
