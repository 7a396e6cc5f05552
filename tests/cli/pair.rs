//! Two daemons on this machine, no root: they share a volume and a loopback network.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::room::{Done, Room};

/// Two daemons on this machine.
pub(crate) struct Pair {
    pub(crate) room: Room,
    pub(crate) daemons: Vec<Child>,
    /// Where alpha serves `/metrics`.
    pub(crate) metrics: u16,
}

pub(crate) const NAMES: [&str; 2] = ["alpha", "beta"];

/// A port that is free for both, of those the kernel rather gives to listeners than to connections.
fn free() -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (tcp, udp);
        }
    }
}

impl Pair {
    /// Both, running and met by both paths.
    pub(crate) fn start() -> Self {
        Self::start_with(["", ""])
    }

    /// With further sections in their configurations.
    pub(crate) fn start_with(more: [&str; 2]) -> Self {
        let room = Room::new();
        let volume = ["volume", "init", "volume", "--name", "pair", "--nodes", "1,2"];
        let done = room.run(&[&volume[..], &["--size", "8MiB", "--single-host"]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let keys = NAMES.map(|name| room.key(&format!("{name}.key")));
        let ports = [0, 1].map(|_| free());
        let ports = ports.map(|(socket, _)| socket.local_addr().unwrap().port());
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
                 [metrics]\nlisten = \"127.0.0.1:{}\"\n{}",
                index + 1,
                ports[index],
                other + 1,
                NAMES[other],
                keys[other],
                ports[other],
                metrics[index],
                more[index]
            );
            room.write(&format!("{name}.toml"), &text);
        }
        let mut pair = Self { room, daemons: Vec::new(), metrics: metrics[0] };
        for index in [0, 1] {
            let daemon = pair.daemon(index);
            pair.daemons.push(daemon);
        }
        pair.wait_until_met();
        pair
    }

    fn daemon(&self, index: usize) -> Child {
        let name = NAMES[index];
        let log = self.room.join(&format!("{name}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = self.room.command(&["run", "--config", &format!("{name}.toml")]);
        command.stderr(Stdio::from(log)).spawn().unwrap()
    }

    /// Kills one in the middle of whatever it does, and starts it again.
    pub(crate) fn restart(&mut self, index: usize) {
        self.daemons[index].kill().unwrap();
        self.daemons[index].wait().unwrap();
        self.daemons[index] = self.daemon(index);
    }

    pub(crate) fn wait_until_met(&self) {
        self.wait_for("both paths", |peer| {
            peer["network"]["state"] == "up"
                && peer["storage"]["state"] == "up"
                && peer["route"] == "network"
                && peer["peer_route"] == "network"
        });
    }

    pub(crate) fn ask(&self, words: &[&str]) -> Done {
        self.room.run(&[words, &["--config", "alpha.toml"]].concat())
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, good: impl Fn(&serde_json::Value) -> bool) {
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
    pub(crate) fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.room.join(&format!("{name}.log"))).unwrap()
    }

    pub(crate) fn signal(&self, index: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.daemons[index]), signal).unwrap();
    }

    pub(crate) fn ended(&mut self, index: usize) -> Option<i32> {
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
