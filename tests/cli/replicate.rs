//! `[[replicate]]`: two daemons that meet by storage alone, over a replica that the first one's
//! daemon fills; and a replica that is filled on command. The losses this prevents: a file that
//! does not arrive, or not whole, because copying ended with a daemon and did not go on with it.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crate::room::{Done, Room};

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
