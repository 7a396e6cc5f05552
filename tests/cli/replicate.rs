//! `[[replicate]]`: two daemons that meet by storage alone, over a replica that the first one's
//! daemon fills; and a replica that is filled on command, of this node or of another. The losses this prevents: a file that
//! does not arrive, or not whole, because copying ended with a daemon and did not go on with it.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sidepath::sessions::Endpoint;

use crate::{
    pair::Pair,
    room::{Done, Room},
};

/// Daemons by name; killed when the test fails.
struct Daemons<'a> {
    room: &'a Room,
    running: Vec<(&'static str, Child)>,
}

impl<'a> Daemons<'a> {
    fn start(&mut self, name: &'static str) {
        let path = self.room.join(&format!("{name}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mut command = self.room.command(&["run", "--config", &format!("{name}.toml")]);
        self.running.push((name, command.stderr(Stdio::from(log)).spawn().unwrap()));
    }

    /// SIGKILL: nothing is said and nothing wound up.
    fn kill(&mut self, name: &str) {
        let at = self.running.iter().position(|d| d.0 == name).unwrap();
        let (_, mut child) = self.running.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn ask(&self, name: &str, words: &[&str]) -> Done {
        self.room.run(&[words, &["--config", &format!("{name}.toml")]].concat())
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.room.join(&format!("{name}.log"))).unwrap_or_default()
    }

    #[track_caller]
    fn wait(&self, name: &str, what: &str, good: impl Fn(&serde_json::Value) -> bool) {
        let started = Instant::now();
        loop {
            let done = self.ask(name, &["status", "--json"]);
            if done.code == 0 && good(&done.json()) {
                return;
            }
            if started.elapsed() > Duration::from_secs(40) {
                panic!("{what}: {done:?}\n{}\n{}", self.log("alpha"), self.log("beta"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Daemons<'_> {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Two nodes without a network: each sends on a volume of its own and reads a replica of the other's.
fn site(room: &Room) -> [String; 2] {
    let names = ["alpha", "beta"];
    let keys = names.map(|name| room.key(&format!("{name}.key")));
    for name in names {
        let volume = format!("{name}.volume");
        let words = ["volume", "init", &volume, "--name", name, "--nodes", "1,2"];
        let done = room.run(&[&words[..], &["--size", "8MiB", "--single-host"]].concat());
        assert_eq!(done.code, 0, "{done:?}");
    }
    [0, 1].map(|index| {
        let (name, other) = (names[index], names[1 - index]);
        let text = format!(
            "[node]\nid = {}\nname = \"{name}\"\nkey_file = \"{name}.key\"\n\
             control_socket = \"{name}.sock\"\nstate_dir = \"{name}.state\"\n\
             [storage]\nsend = \"{name}.volume\"\nreceive = {{ {other} = \"{other}.replica\" }}\n\
             single_host = true\n\
             [[peer]]\nid = {}\nname = \"{other}\"\npublic_key = \"{}\"\n\
             [[replicate]]\nfrom = \"{name}.volume\"\nto = \"{name}.replica\"\n",
            index + 1,
            2 - index,
            keys[1 - index],
        );
        room.write(&format!("{name}.toml"), &text);
        text
    })
}

fn send_a_file(daemons: &Daemons<'_>, fill: u8) {
    let bytes: Vec<u8> = (0..600_000_u32).map(|i| (i * 7 / 5).to_le_bytes()[0] ^ fill).collect();
    std::fs::write(daemons.room.join("sent"), &bytes).unwrap();
    let words = ["recv", "files", "--to-file", "got", "--config", "beta.toml"];
    let mut receiver = daemons.room.command(&words).spawn().unwrap();
    let started = Instant::now();
    loop {
        let done = daemons.ask("alpha", &["send", "beta", "files", "--from-file", "sent"]);
        if done.code == 0 {
            break;
        }
        let late = started.elapsed() > Duration::from_secs(40);
        if late {
            let _ = receiver.kill();
        }
        assert!(!late, "{done:?}\n{}\n{}", daemons.log("alpha"), daemons.log("beta"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(receiver.wait().unwrap().success());
    assert!(std::fs::read(daemons.room.join("got")).unwrap() == bytes, "not the same");
    std::fs::remove_file(daemons.room.join("got")).unwrap();
}

#[test]
fn messages_arrive_by_a_replica_that_the_daemon_fills() {
    let room = Room::new();
    let texts = site(&room);
    let mut daemons = Daemons { room: &room, running: Vec::new() };
    daemons.start("alpha");
    daemons.start("beta");
    let met = |json: &serde_json::Value| {
        json["peers"][0]["route"] == "storage" && json["peers"][0]["peer_route"] == "storage"
    };
    daemons.wait("alpha", "the first meeting", met);
    send_a_file(&daemons, 1);
    daemons.wait("alpha", "the replica in sync", |json| {
        let replica = &json["replicas"][0];
        replica["state"] == "in_sync"
            && replica["lag_records"] == 0
            && replica["records"].as_u64() > Some(0)
            && replica["bytes"].as_u64() > Some(600_000)
            && replica["from"] == "alpha.volume"
            && replica["to"] == "alpha.replica"
            && replica["mode"] == "continuous"
    });
    let shown = daemons.ask("alpha", &["status"]).stdout;
    assert!(shown.contains("replica alpha.replica of alpha.volume (continuous)  "), "{shown}");

    // The replicator's daemon dies in the middle of it and begins again.
    daemons.kill("alpha");
    daemons.start("alpha");
    daemons.wait("alpha", "meeting again", met);
    send_a_file(&daemons, 2);

    // A reload takes an entry away and brings another; nothing is restarted for it.
    let limited = format!("{}limit = \"64MiB\"\n", texts[0]);
    room.write("alpha.toml", &limited);
    let done = daemons.ask("alpha", &["reload"]);
    assert_eq!(done.stdout, "replica alpha.replica: changed, begun anew\n", "{done:?}");
    send_a_file(&daemons, 3);
    daemons.wait("alpha", "in sync again", |json| json["replicas"][0]["state"] == "in_sync");
}

#[test]
fn a_replica_is_filled_on_command_and_troubles_are_told_once() {
    let room = Room::new();
    let texts = site(&room);
    room.write("alpha.toml", &format!("{}mode = \"on-command\"\n", texts[0]));
    let mut daemons = Daemons { room: &room, running: Vec::new() };
    daemons.start("alpha");
    let resting = |json: &serde_json::Value| json["replicas"][0]["state"] == "resting";
    daemons.wait("alpha", "the start", resting);
    assert!(!room.join("alpha.replica").exists());
    let done = daemons.ask("alpha", &["replicate", "--json"]);
    assert_eq!((done.code, done.json()["rounds"].as_u64()), (0, Some(1)), "{done:?}");
    assert_eq!(room.run(&["volume", "verify", "alpha.replica"]).code, 0);
    let done = daemons.ask("alpha", &["replicate", "nowhere"]);
    assert!(done.code == 2 && done.stderr.contains("there are: alpha.replica"), "{done:?}");

    // What is there is not replaced: refused, told once, in the status, and over when corrected.
    let foreign = "[[replicate]]\nfrom = \"alpha.volume\"\nto = \"foreign\"\n";
    room.write("foreign", &"somebody needs this ".repeat(500_000));
    room.write("alpha.toml", &format!("{}{foreign}", texts[0]));
    assert_eq!(daemons.ask("alpha", &["reload"]).code, 0);
    daemons.wait("alpha", "the refusal", |json| {
        let replica = &json["replicas"][1];
        replica["state"] == "refused" && replica["reason"].as_str().unwrap().contains("--force")
    });
    std::fs::remove_file(room.join("foreign")).unwrap();
    // The status is of now, the log of the last look.
    daemons.wait("alpha", "its end", |json| {
        let told = daemons.log("alpha").contains("the replica is copied again");
        told && json["replicas"][1]["state"] == "in_sync"
    });
    let log = daemons.log("alpha");
    assert_eq!(log.matches("the replica is not copied").count(), 1, "{log}");
    assert_eq!(log.matches("the replica is copied again").count(), 1, "{log}");

    // The same words refuse a start.
    daemons.kill("alpha");
    room.write("foreign", &"somebody needs this ".repeat(500_000));
    let done = room.run(&["run", "--config", "alpha.toml"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("cannot start: cannot copy to the replica: "), "{done:?}");
}

/// Gives beta entries that wait for a command.
fn give(pair: &Pair, entries: &str) {
    let path = pair.room.join("beta.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    pair.room.write("beta.toml", &format!("{text}{entries}"));
    let done = pair.room.run(&["reload", "--config", "beta.toml"]);
    assert_eq!(done.code, 0, "{done:?}");
}

const ENTRY: &str =
    "[[replicate]]\nfrom = \"volume\"\nto = \"beta.replica\"\nmode = \"on-command\"\n";

#[test]
fn a_peer_orders_a_copy_that_is_configured_here_and_no_other() {
    let pair = Pair::start();
    let done = pair.ask(&["replicate", "--at", "beta"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("beta says: no replica is filled on command"), "{done:?}");
    assert!(done.stderr.contains("hint: at beta: write mode"), "{done:?}");

    give(&pair, ENTRY);
    let done = pair.ask(&["replicate", "--at", "beta", "--json"]);
    assert_eq!((done.code, done.json()["rounds"].as_u64()), (0, Some(1)), "{done:?}");
    assert!(done.json()["to"].as_str().unwrap().ends_with("beta.replica"), "{done:?}");
    assert_eq!(pair.room.run(&["volume", "verify", "beta.replica"]).code, 0);
    let done = pair.ask(&["replicate", "beta.replica", "--at", "2"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.starts_with("at beta: volume -> beta.replica: "), "{done:?}");

    // The same as there: the code, and the list of what there is. No place is made.
    let done = pair.ask(&["replicate", "elsewhere", "--at", "beta"]);
    let there = pair.room.run(&["replicate", "elsewhere", "--config", "beta.toml"]);
    assert_eq!((done.code, there.code), (2, 2), "{done:?}");
    for said in [&done.stderr, &there.stderr] {
        assert!(said.contains("has `to` elsewhere; there are: beta.replica"), "{said}");
    }
    assert!(!pair.room.join("elsewhere").exists());

    let done = pair.ask(&["replicate", "--at", "gamma"]);
    assert!(done.code == 2 && done.stderr.contains("no peer `gamma`"), "{done:?}");

    // No program takes the place of a daemon.
    let done = pair.ask(&["recv", "sidepath.replicate"]);
    assert!(done.code == 2 && done.stderr.contains("the daemons' own"), "{done:?}");
    // What is no question gets an answer that says so; what is not ended gets none.
    pair.room.write("order", "copy /etc/shadow\n");
    let words = ["send", "beta", "sidepath.replicate", "--from-file", "order"];
    let done = pair.ask(&words);
    assert!(done.code == 1 && done.stderr.contains("not a question"), "{done:?}");
    pair.room.write("order", "{\"version\":1,\"verb\":\"reload\"}\n");
    let done = pair.ask(&words);
    assert!(done.code == 1 && done.stderr.contains("copies and nothing else"), "{done:?}");
    pair.room.write("order", &"x".repeat(100_000));
    assert_eq!(pair.ask(&words).code, 1);
    assert_eq!(pair.ask(&["replicate", "--at", "beta"]).code, 0, "still served");
}

#[test]
fn orders_of_a_copy_that_runs_are_answered_at_its_end() {
    let pair = Pair::start();
    // Enough to copy, slowly enough to be met while it runs: some 10 blocks of 4 KiB.
    let words = ["ping", "beta", "-c", "50", "-i", "5ms", "--via", "storage"];
    assert_eq!(pair.ask(&words).code, 0);
    give(&pair, &format!("{ENTRY}limit = \"8KiB\"\n"));
    let order = || {
        let words = ["replicate", "--at", "beta", "--json", "--config", "alpha.toml"];
        pair.room.command(&words).spawn().unwrap()
    };
    let asked = |what: &str, good: &dyn Fn(&serde_json::Value) -> bool| {
        let started = Instant::now();
        loop {
            let json = pair.room.run(&["status", "--json", "--config", "beta.toml"]).json();
            if good(&json) {
                return;
            }
            let late = started.elapsed() > Duration::from_secs(20);
            assert!(!late, "{what}: {json}\n{}", pair.log("beta"));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // Whoever begins it leaves.
    let mut leaver = order();
    asked("the round", &|json| json["replicas"][0]["state"] != "resting");
    leaver.kill().unwrap();
    leaver.wait().unwrap();
    asked("its end for the one who left", &|json| json["peers"][0]["sessions"]["open"] == 0);
    // Others join it, as many of a peer as may, and one at home.
    let crowd = [(); 5].map(|()| order());
    let here = pair.room.run(&["replicate", "--json", "--config", "beta.toml"]);
    assert_eq!((here.code, here.json()["rounds"].as_u64()), (0, Some(1)), "{here:?}");
    let mut refused = 0;
    for one in crowd {
        let done = one.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        if said.contains("beta takes no order now: refused: ") && done.status.code() == Some(1) {
            refused += 1;
            continue;
        }
        assert!(done.status.success(), "{done:?}");
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(json["rounds"].as_u64(), Some(1), "{json}");
    }
    assert_eq!(refused, 1);
    asked("the end", &|json| json["replicas"][0]["state"] == "resting");
}

#[test]
fn a_peer_that_takes_no_orders_is_told_from_one_that_refuses() {
    let mut pair = Pair::start();
    pair.signal(1, Signal::TERM);
    assert_eq!(pair.ended(1), Some(0));
    // A node inside a program has no services of a daemon's own, as an older daemon has none.
    let (config, _) = sidepath::config::load(&pair.room.join("beta.toml")).unwrap();
    let _beta = Endpoint::start(config).unwrap();
    let done = pair.ask(&["replicate", "--at", "beta"]);
    assert_eq!(done.code, 1, "{done:?}");
    let words = "beta does not offer that; is its sidepath older?";
    assert!(done.stderr.contains(words), "{done:?}");
}

#[test]
fn an_order_arrives_by_storage_while_the_network_is_cut() {
    let pair = Pair::start();
    give(&pair, ENTRY);
    let words = ["drill", "beta", "--cut", "network", "--for", "4s", "--config", "alpha.toml"];
    // Its daemon's end would be its own.
    let drill = pair.room.command(&words).spawn().unwrap();
    pair.wait_for("the cut", |peer| peer["route"] == "storage");
    let done = pair.ask(&["replicate", "--at", "beta", "--json"]);
    assert_eq!((done.code, done.json()["rounds"].as_u64()), (0, Some(1)), "{done:?}");
    // It was the cut that it went through.
    pair.wait_for("the cut to last", |peer| peer["route"] == "storage");
    let done = drill.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
}
