//! One machine of the lab and the daemon on it.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::process::{Done, run, wait_child, wait_for};
use super::status::Status;
use super::sys;

/// The program under test. `.ci/run` names a copy of it where an ordinary user may read it.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("SIDEPATH_LAB_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_sidepath").into(), PathBuf::from)
}

pub(crate) const INTERFACE: &str = "sp0";

pub(crate) struct Node {
    /// As in the configuration, from 1.
    pub(crate) id: usize,
    pub(crate) name: &'static str,
    /// Its network namespace.
    pub(crate) ns: String,
    /// Address on the cable.
    pub(crate) underlay: String,
    /// Address on the virtual interface.
    pub(crate) overlay: String,
    pub(crate) config: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
    dir: PathBuf,
    public_key: String,
    daemon: Mutex<Option<Child>>,
}

impl Node {
    pub(crate) fn new(id: usize, prefix: &str, dir: &Path) -> Self {
        let name = ["alpha", "beta", "gamma", "delta"][id - 1];
        Self {
            id,
            name,
            ns: format!("{prefix}-{name}"),
            underlay: format!("192.0.2.{id}"),
            overlay: format!("10.98.0.{id}"),
            config: dir.join(format!("{name}.toml")),
            socket: dir.join(format!("{name}.sock")),
            log: dir.join(format!("{name}.log")),
            dir: dir.to_owned(),
            public_key: String::new(),
            daemon: Mutex::new(None),
        }
    }

    /// A command inside this machine. `nsenter` becomes the command, so its process id is ours.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.ns)).arg("--").arg(program);
        command
    }

    /// Runs a shell line inside this machine that must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        match run(self.command("sh").args(["-c", line]), Duration::from_secs(60)) {
            Ok(done) if done.ok() => done.stdout,
            other => panic!("`{line}` on {}: {other:?}", self.name),
        }
    }

    /// Runs `sidepath` with these arguments and this node's configuration.
    pub(crate) fn cli(&self, arguments: &[&str], limit: Duration) -> Result<Done, String> {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--config").arg(&self.config);
        run(&mut command, limit)
    }

    pub(crate) fn make_key(&mut self) {
        let mut command = Command::new(binary());
        command.args(["keygen", "--out"]).arg(self.dir.join(format!("{}.key", self.name)));
        match run(&mut command, Duration::from_secs(10)) {
            Ok(done) if done.ok() => done.stdout.trim().clone_into(&mut self.public_key),
            other => panic!("{command:?}: {other:?}"),
        }
    }

    pub(crate) fn write_config(&self, volume: &Path, peers: &[&Self], network: &str) {
        let (id, name, dir) = (self.id, self.name, self.dir.display());
        let mut text = format!(
            "[node]\nid = {id}\nname = \"{name}\"\nkey_file = \"{dir}/{name}.key\"\n\
             control_socket = \"{}\"\nstate_dir = \"{dir}/{name}.state\"\n\n\
             [interface]\nname = \"{INTERFACE}\"\naddress = \"{}/24\"\n\n\
             [network]\nlisten = \"{}:7440\"\n{network}\n\n\
             [storage]\nvolume = \"{}\"\n",
            self.socket.display(),
            self.overlay,
            self.underlay,
            volume.display(),
        );
        for peer in peers {
            text += &format!(
                "\n[[peer]]\nid = {}\nname = \"{}\"\npublic_key = \"{}\"\n\
                 endpoints = [\"{}:7440\"]\naddress = \"{}\"\n",
                peer.id, peer.name, peer.public_key, peer.underlay, peer.overlay
            );
        }
        fs::write(&self.config, text).expect("a file in our own folder");
    }

    /// Starts the daemon; what it says goes to this node's log.
    pub(crate) fn start(&self) {
        self.start_with(&[]);
    }

    /// The same with more arguments.
    pub(crate) fn start_with(&self, more: &[&str]) {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log file");
        let also = log.try_clone().expect("a second handle of the log");
        let child = self
            .command(binary())
            .args(["run", "--config"])
            .arg(&self.config)
            .args(more)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(also)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary().display()));
        *self.daemon() = Some(child);
    }

    /// Process id of the running daemon.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon().as_ref().expect("a running daemon").id()
    }

    /// Kills the daemon as a power switch would. Does nothing when none runs.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.daemon().take() {
            let _ = child.kill();
            let _ = wait_child(&mut child, Duration::from_secs(5));
        }
    }

    /// Resident memory of the daemon, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// Packets the virtual interface had no room for: the daemon did not read them in time.
    pub(crate) fn interface_drops(&self) -> u64 {
        let line = format!("ip -s -j link show {INTERFACE} 2>/dev/null");
        let shown = run(self.command("sh").args(["-c", &line]), Duration::from_secs(5));
        let shown = shown.map(|done| done.stdout).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
        json[0]["stats64"]["tx"]["dropped"].as_u64().unwrap_or(0)
    }

    pub(crate) fn pause(&self) {
        sys::signal(self.pid(), libc::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        sys::signal(self.pid(), libc::SIGCONT);
    }

    /// SIGTERM, and how the daemon ended.
    #[track_caller]
    pub(crate) fn terminate(&self, limit: Duration) -> ExitStatus {
        let mut child = self.daemon().take().expect("a running daemon");
        sys::signal(child.id(), libc::SIGTERM);
        wait_child(&mut child, limit).unwrap_or_else(|| {
            let stacks = fs::read_to_string(format!("/proc/{}/stack", child.id()));
            let _ = child.kill();
            panic!("{} still runs {limit:?} after SIGTERM; kernel stack {stacks:?}", self.name)
        })
    }

    /// Seconds of processor time the daemon has used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields: Vec<&str> =
            stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
        ticks as f64 / 100.0
    }

    /// The status, when the daemon answers. A daemon that has ended is a failure at once.
    pub(crate) fn try_status(&self) -> Result<Status, String> {
        if let Some(child) = self.daemon().as_mut()
            && let Ok(Some(ended)) = child.try_wait()
        {
            panic!("the daemon of {} ended by itself: {ended}", self.name);
        }
        let done = self.cli(&["status", "--json"], Duration::from_secs(3))?;
        if !done.ok() {
            return Err(format!("{}: exit {:?}: {}", self.name, done.code, done.stderr.trim()));
        }
        Status::parse(&done.stdout, self.name)
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|error| panic!("status: {error}"))
    }

    /// Waits until the status of this node fits; returns it and the time it took.
    #[track_caller]
    pub(crate) fn await_status(
        &self,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Status) -> bool,
    ) -> (Status, Duration) {
        wait_for(&format!("{}: {what}", self.name), limit, || {
            let status = self.try_status()?;
            if fits(&status) { Ok(status) } else { Err(status.brief()) }
        })
    }

    /// Prints what helps to understand a failure.
    pub(crate) fn describe(&self) {
        let status = self.cli(&["status", "--json"], Duration::from_secs(3));
        match status {
            Ok(done) if done.ok() => {
                let compact = serde_json::from_str::<serde_json::Value>(&done.stdout)
                    .map_or(done.stdout, |value| value.to_string());
                println!("{} status: {compact}", self.name);
            }
            other => println!("{} status: {other:?}", self.name),
        }
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        println!("{} log, last 40 of {} lines:", self.name, lines.len());
        for line in lines.iter().skip(lines.len().saturating_sub(40)) {
            println!("  {line}");
        }
        let link =
            run(self.command("ip").args(["-s", "link", "show", INTERFACE]), Duration::from_secs(5));
        if let Ok(link) = link {
            println!("{} interface: {}{}", self.name, link.stdout, link.stderr);
        }
    }

    fn daemon(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
