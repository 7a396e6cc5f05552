//! `sidepath run`: two daemons on this machine, no root: they meet, are asked, drilled, reloaded
//! and stopped, and leave nothing behind.
mod cli;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use cli::{Done, Room};
use rustix::process::{Pid, Signal, kill_process};

struct Pair {
    room: Room,
    daemons: Vec<Child>,
    /// Where alpha serves `/metrics`.
    metrics: u16,
}

const NAMES: [&str; 2] = ["alpha", "beta"];

impl Pair {
    /// Both, running and met by both paths.
    fn start() -> Self {
        let room = Room::new();
        let volume = ["volume", "init", "volume", "--name", "pair", "--nodes", "1,2"];
        let done = room.run(&[&volume[..], &["--size", "8MiB", "--single-host"]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let keys = NAMES.map(|name| room.key(&format!("{name}.key")));
        let ports = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let ports = ports.map(|socket| socket.local_addr().unwrap().port());
        let metrics = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let metrics = metrics.map(|socket| socket.local_addr().unwrap().port());
        for (index, name) in NAMES.iter().enumerate() {
            let other = 1 - index;
            let text = format!(
                "[node]\nid = {}\nname = \"{name}\"\nkey_file = \"{name}.key\"\n\
                 control_socket = \"{name}.sock\"\nstate_dir = \"{name}.state\"\n\
                 [network]\nlisten = \"127.0.0.1:{}\"\n\
                 [storage]\nvolume = \"volume\"\nsingle_host = true\n\
                 [[peer]]\nid = {}\nname = \"{}\"\npublic_key = \"{}\"\n\
                 endpoints = [\"127.0.0.1:{}\"]\n\
                 [metrics]\nlisten = \"127.0.0.1:{}\"\n",
                index + 1,
                ports[index],
                other + 1,
                NAMES[other],
                keys[other],
                ports[other],
                metrics[index]
            );
            room.write(&format!("{name}.toml"), &text);
        }
        let mut pair = Self { room, daemons: Vec::new(), metrics: metrics[0] };
        for name in NAMES {
            let log = std::fs::File::create(pair.room.join(&format!("{name}.log"))).unwrap();
            let config = format!("{name}.toml");
            let mut command = pair.room.command(&["run", "--config", &config]);
            pair.daemons.push(command.stderr(Stdio::from(log)).spawn().unwrap());
        }
        pair.wait_for("both paths", |peer| {
            peer["network"]["state"] == "up"
                && peer["storage"]["state"] == "up"
                && peer["route"] == "network"
                && peer["peer_route"] == "network"
        });
        pair
    }

    fn ask(&self, words: &[&str]) -> Done {
        self.room.run(&[words, &["--config", "alpha.toml"]].concat())
    }

    #[track_caller]
    fn wait_for(&self, what: &str, good: impl Fn(&serde_json::Value) -> bool) {
        let started = Instant::now();
        loop {
            let done = self.ask(&["status", "--json"]);
            if done.code == 0 && good(&done.json()["peers"][0]) {
                return;
            }
            if started.elapsed() > Duration::from_secs(20) {
                let logs = NAMES.map(|name| self.log(name));
                panic!("{what}: {done:?}\n{}\n{}", logs[0], logs[1]);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// One HTTP request to alpha's metrics.
    fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.room.join(&format!("{name}.log"))).unwrap()
    }

    fn signal(&self, index: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.daemons[index]), signal).unwrap();
    }

    fn ended(&mut self, index: usize) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.daemons[index].try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < Duration::from_secs(10), "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn a_pair_from_start_to_stop() {
    let mut pair = Pair::start();

    let done = pair.ask(&["ping", "beta", "-c", "2", "-i", "10ms"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("beta seq=1 out=network back=network time="), "{done:?}");
    let done = pair.ask(&["ping", "beta", "-c", "1", "--via", "storage"]);
    assert!(done.stdout.contains("beta seq=1 out=storage back=storage time="), "{done:?}");

    let page = pair.http("GET /metrics HTTP/1.1\r\nHost: alpha\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let route = "\nsidepath_route{peer=\"beta\",state=\"network\"} 1\n";
    assert!(page.contains(route), "{page}");
    assert!(pair.http("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(pair.http("PUT /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(pair.http("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));

    let done = pair.ask(&["drill", "beta", "--cut", "network", "--for", "1s", "--json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let json = done.last_json();
    assert!(json["failover_ms"].as_u64().is_some_and(|ms| ms < 900), "{json} {}", done.stderr);
    assert!(json["failback_ms"].as_u64().is_some(), "{json} {}", done.stderr);

    // A second one for the same place is refused and harms nobody.
    let done = pair.room.run(&["run", "--config", "alpha.toml"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("another daemon answers on control socket alpha.sock"));
    assert_eq!(pair.ask(&["status"]).code, 0);

    // The survivor of a goodbye knows at once.
    pair.signal(1, Signal::TERM);
    assert_eq!(pair.ended(1), Some(0), "{}", pair.log("beta"));
    assert!(!pair.room.join("beta.sock").exists());
    pair.wait_for("beta is dead", |peer| peer["state"] == "dead");
    pair.signal(0, Signal::INT);
    assert_eq!(pair.ended(0), Some(0), "{}", pair.log("alpha"));
    assert!(!pair.room.join("alpha.sock").exists());
    let leftover = std::fs::read_dir(pair.room.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.contains(".sock"));
    assert_eq!(leftover, None);
}

#[test]
fn a_reload_is_whole_or_nothing() {
    let pair = Pair::start();
    let good = std::fs::read_to_string(pair.room.join("alpha.toml")).unwrap();
    let listen = good.find("[storage]").unwrap();
    let changed = format!("{}hold = \"2s\"\n{}", &good[..listen], &good[listen..]);
    pair.room.write("alpha.toml", &changed);
    let done = pair.ask(&["reload"]);
    assert_eq!((done.code, done.stdout.contains("hold")), (0, true), "{done:?}");
    assert_eq!(pair.ask(&["reload"]).stdout, "nothing changed\n");

    pair.room.write("alpha.toml", &changed.replace("hold", "hodl"));
    let done = pair.ask(&["reload"]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(done.stderr.starts_with("error: unknown key `hodl` in [network]\n"), "{done:?}");
    let line = 1 + changed.lines().position(|line| line.starts_with("hold")).unwrap();
    assert!(done.stderr.contains(&format!("alpha.toml:{line}:")), "where: {done:?}");
    assert!(done.stderr.contains("hint: "), "a way on: {done:?}");
    assert_eq!(pair.ask(&["status"]).code, 0, "the old one works on");
    pair.signal(0, Signal::HUP);
    let started = Instant::now();
    while !pair.log("alpha").contains("reading the configuration again") {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    pair.room.write("alpha.toml", &changed.replace("alpha.sock", "other.sock"));
    let done = pair.room.run(&["reload", "--socket", "alpha.sock"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("`control_socket` cannot change while the daemon runs"));
    pair.room.write("alpha.toml", &good);
    assert_eq!(pair.ask(&["status"]).code, 0);
}

#[test]
fn a_killed_one_is_replaced() {
    let mut pair = Pair::start();
    pair.signal(0, Signal::KILL);
    assert_eq!(pair.ended(0), None);
    assert!(pair.room.join("alpha.sock").exists(), "nobody could remove it");
    let done = pair.ask(&["status"]);
    assert!(done.stderr.contains("was left by one that died"), "{done:?}");
    let log = std::fs::File::create(pair.room.join("alpha.log")).unwrap();
    let mut command = pair.room.command(&["run", "--config", "alpha.toml"]);
    pair.daemons[0] = command.stderr(Stdio::from(log)).spawn().unwrap();
    pair.wait_for("they meet again", |peer| peer["network"]["state"] == "up");
}

#[test]
fn what_is_wrong_before_the_start_is_said_with_code_2() {
    let room = Room::new();
    let done = room.run(&["run", "--config", "nowhere.toml"]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    let config = room.config();
    room.write("alpha.toml", &config.replace("id = 1", "id = 0"));
    let done = room.run(&["run", "--config", "alpha.toml"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("`id` is 0, but ids are 1 to 64"), "{done:?}");
    room.write("alpha.toml", &config);
    let done = room.run(&["run", "--config", "alpha.toml", "--log", "=loud"]);
    assert_eq!(done.code, 2, "{done:?}");
    // 192.0.2.1 is no address of any machine.
    let network = config.replace("[interface]\nname = \"sp0\"\naddress = \"10.98.0.1/24\"\n", "");
    room.write("alpha.toml", &network);
    let done = room.run(&["run", "--config", "alpha.toml"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("cannot listen on 192.0.2.1:7440"), "{done:?}");
    assert!(done.stderr.contains("hint: "), "{done:?}");
    assert!(!room.join("alpha.sock").exists());
}
