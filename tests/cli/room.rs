//! What the tests of the command line share: a folder of their own, the program, and a daemon
//! that answers as the test wants.
//!
//! The stand-in is the real control socket over a made-up turn loop, so that what is tested is
//! everything between an operator's words and the loop.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sidepath::{
    admin::{
        document::Document,
        socket::{self, ControlSocket, ReloadOutcome},
    },
    daemon::request::Request,
};

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// The last line of stdout.
    #[track_caller]
    pub(crate) fn last_json(&self) -> serde_json::Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }
}

/// A folder that goes with the test.
pub(crate) struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The program, in this folder, with nothing of the caller's environment that matters.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidepath"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_remove("RUST_LOG")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr> + std::fmt::Debug>(&self, arguments: &[S]) -> Done {
        finish(self.command(arguments), Duration::from_secs(60))
    }

    /// A key file; returns its public key.
    pub(crate) fn key(&self, name: &str) -> String {
        let done = self.run(&["keygen", "--out", name]);
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout.trim().to_string()
    }

    /// A good configuration of alpha with a peer beta, and both keys.
    pub(crate) fn config(&self) -> String {
        self.key("alpha.key");
        let beta = self.key("beta.key");
        format!(
            r#"[node]
id = 1
name = "alpha"
key_file = "alpha.key"
control_socket = "alpha.sock"
state_dir = "alpha.state"

[interface]
name = "sp0"
address = "10.98.0.1/24"

[network]
listen = "192.0.2.1:7440"
heartbeat = "10ms"
hold = "1s"

[storage]
volume = "/dev/null"
flush_bytes = "64KiB"
flush_delay = "500us"

[[peer]]
id = 2
name = "beta"
public_key = "{beta}"
endpoints = ["192.0.2.2:7440"]
address = "10.98.0.2"
"#
        )
    }
}

/// Waits for a command's end; kills it when it hangs.
#[track_caller]
pub(crate) fn finish(mut command: Command, limit: Duration) -> Done {
    let mut child = command.spawn().unwrap();
    let drain = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_string(&mut text);
            }
            text
        })
    };
    let stdout = drain(child.stdout.take().map(|s| Box::new(s) as _));
    let stderr = drain(child.stderr.take().map(|s| Box::new(s) as _));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} hangs: {:?} {:?}", stdout.join(), stderr.join());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Done {
        code: status.code().unwrap_or(-1),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// A daemon whose loop is a function.
pub(crate) struct StandIn {
    pub(crate) path: PathBuf,
    _socket: ControlSocket,
}

impl StandIn {
    pub(crate) fn start(
        room: &Room,
        turn: impl Fn(Request) + Send + Sync + 'static,
        reload: impl Fn() -> ReloadOutcome + Send + Sync + 'static,
    ) -> Self {
        let path = room.join("stand-in.sock");
        let ask = Arc::new(move |request| {
            turn(request);
            true
        });
        let socket = socket::reserve(&path).unwrap().serve(ask, Arc::new(reload)).unwrap();
        Self { path, _socket: socket }
    }

    /// One that always answers status with the same document, and nothing else.
    pub(crate) fn of(room: &Room, document: Document) -> Self {
        let document = Mutex::new(document);
        let turn = move |request| {
            if let Request::Status { reply } = request {
                let _ = reply.send(Box::new(document.lock().unwrap().clone()));
            }
        };
        Self::start(room, turn, || Ok(Vec::new()))
    }

    pub(crate) fn socket(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// Alpha, whose peer beta is reached by storage.
pub(crate) fn document() -> Document {
    serde_json::from_value(serde_json::json!({
        "node": {"id": 1, "name": "alpha", "version": "0.1.0", "uptime_s": 3725.5,
                 "realtime": true},
        "interface": {"name": "sp0", "address": "10.98.0.1/24", "mtu": 1420},
        "peers": [{
            "id": 2, "name": "beta", "state": "alive", "route": "storage",
            "peer_route": "storage",
            "network": {"state": "down", "reason": "heartbeats missed", "rtt_us": null,
                        "last_heard_ms": 5120},
            "storage": {"state": "up", "reason": null, "latency_us": 850, "last_heard_ms": 80},
            "counters": {"accepted": 9, "acknowledged": 8, "queued": 0, "lost": 1, "resent": 4,
                         "arrived": 12, "delivered": 9, "dropped": 3, "held": 0,
                         "lost_by_cause": {"ttl": 1}, "dropped_by_cause": {"duplicate": 3},
                         "network_bytes": 1024, "storage_bytes": 2048, "failovers": 1,
                         "failbacks": 0},
            "last_change": {"at": "2026-01-01T00:00:00.123Z", "from": "both", "to": "storage",
                            "reason": "network down"},
            "keys": true, "drill": null
        }],
        "volumes": [{"path": "/dev/sdz", "role": "shared", "state": "up", "reason": null,
                     "write_latency_us": 410,
                     "lanes": [{"to": 2, "used_bytes": 4096, "size_bytes": 16_777_216}]}],
        "refused": {"forged": 2},
        "unroutable": 3,
        "warnings": ["beats have no real-time priority"]
    }))
    .unwrap()
}

/// Mode bits of a file.
pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}
