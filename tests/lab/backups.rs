//! `sidepath backup` between the first two machines of a lab, and what may happen to it meanwhile.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::bench::Lab;
use super::node::binary;
use super::process::{Running, wait_child, wait_for};
use super::rng::Rng;
use super::tree;

const LIMIT: Duration = Duration::from_secs(600);
/// Storage is back some seconds after a daemon is; the network takes over meanwhile.
const WAIT: [&str; 2] = ["--wait", "1s"];

/// A store that the second machine serves to the first.
pub(crate) struct Store<'lab> {
    lab: &'lab Lab,
    pub(crate) path: PathBuf,
    serving: Option<Running>,
    runs: u32,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The program that sends or receives.
    Client,
    /// The one that has the store.
    Serve,
    /// The daemon of either machine.
    Daemon(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Cut,
    Heal,
    /// The volume loses its blocks, and gets them back.
    Detach,
    Attach,
    Kill(Victim),
}

/// A command of the first machine under way, its result in a file.
struct Client {
    program: Running,
    said: PathBuf,
}

impl<'lab> Store<'lab> {
    pub(crate) fn serve(lab: &'lab Lab) -> Self {
        let mut store = Self { lab, path: lab.dir.join("store"), serving: None, runs: 0 };
        store.serve_again();
        store
    }

    /// Kills the program that serves, and starts it again.
    fn serve_again(&mut self) {
        self.serving = None;
        let beta = self.lab.node(2);
        // Refused until its daemon listens.
        wait_for("somebody who serves", Duration::from_secs(20), || {
            let mut command = Command::new(binary());
            command.args(["backup", "serve", "--store"]).arg(&self.path);
            command.arg("--config").arg(&beta.config);
            let log = File::options().create(true).append(true).open(self.log("serve"));
            command.stderr(log.expect("a log"));
            let mut serving = Running::start(&mut command);
            match wait_child(&mut serving.0, Duration::from_millis(200)) {
                None => {
                    self.serving = Some(serving);
                    Ok(())
                }
                Some(ended) => Err(format!("{ended}")),
            }
        });
    }

    fn log(&self, of: &str) -> PathBuf {
        self.lab.dir.join(format!("{of}.log"))
    }

    fn start(&mut self, words: &[&str]) -> Client {
        self.runs += 1;
        let said = self.log(&format!("client{}", self.runs));
        let open = || File::options().create(true).append(true).open(&said).expect("a log");
        let alpha = self.lab.node(1);
        // In its machine: a command whose output is stored may ask a server there.
        let mut command = alpha.command(binary());
        command.args(words).args(["--json", "--config"]).arg(&alpha.config);
        command.stdin(Stdio::null()).stdout(open()).stderr(open()).current_dir(&self.lab.dir);
        Client { program: Running::start_as_is(&mut command), said }
    }

    /// Runs a command of the first machine that must end well; its result.
    #[track_caller]
    pub(crate) fn run(&mut self, words: &[&str]) -> serde_json::Value {
        let client = self.start(words);
        self.end(client)
    }

    #[track_caller]
    fn end(&self, mut client: Client) -> serde_json::Value {
        let ended = wait_child(&mut client.program.0, LIMIT);
        let said = fs::read_to_string(&client.said).unwrap_or_default();
        let serve = fs::read_to_string(self.log("serve")).unwrap_or_default();
        assert!(ended.is_some_and(|s| s.success()), "{ended:?}: {said}\n--\n{serve}");
        let last = said.lines().next_back().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    /// The same, with things happening when so many thousandths of `total` bytes are below
    /// `grows`. Its result, and how many bytes of sessions `sender` sent for it.
    #[track_caller]
    pub(crate) fn run_through(
        &mut self,
        words: &[&str],
        (grows, total): (&Path, u64),
        sender: usize,
        acts: &[(u64, Act)],
    ) -> (serde_json::Value, u64) {
        let began = Instant::now();
        let words = &[words, &WAIT].concat();
        let mut sent = Sent { node: sender, before: 0, since: 0 };
        sent.since = sent.counted(self.lab);
        let mut client = self.start(words);
        for (permille, act) in acts {
            let from = total * permille / 1000;
            let mut early = None;
            wait_for(&format!("{from} bytes for {act:?}"), LIMIT, || {
                early = client.program.0.try_wait().ok().flatten();
                let there = taken(grows);
                if early.is_some() || there >= from { Ok(()) } else { Err(there.to_string()) }
            });
            let said = || fs::read_to_string(&client.said).unwrap_or_default();
            assert!(
                early.is_none(),
                "it ended before {act:?} at {permille}: {early:?}\n{}",
                said()
            );
            println!(
                "  {:5.1} s, {:3} %: {act:?}, {} MiB sent",
                began.elapsed().as_secs_f64(),
                permille / 10,
                sent.total(self.lab) >> 20
            );
            match act {
                Act::Cut => self.lab.black_hole(),
                Act::Heal => self.lab.black_hole_heal(),
                Act::Detach => self.lab.disk().vanish(),
                Act::Attach => self.lab.disk().reappear(),
                Act::Kill(Victim::Client) => client = self.start_again(client, words),
                Act::Kill(Victim::Serve) => self.serve_again(),
                Act::Kill(Victim::Daemon(node)) => {
                    if *node == sender {
                        sent.forget(self.lab);
                    }
                    self.lab.node(*node).kill();
                    self.lab.node(*node).start();
                    if *node == 2 {
                        self.serve_again();
                    }
                }
            }
        }
        let result = self.end(client);
        (result, sent.total(self.lab))
    }

    fn start_again(&mut self, client: Client, words: &[&str]) -> Client {
        drop(client);
        self.start(words)
    }
}

/// Bytes of sessions that a daemon sent to the first of its peers, over its restarts.
struct Sent {
    node: usize,
    /// By those that were killed.
    before: u64,
    /// What the one that runs had sent already.
    since: u64,
}

impl Sent {
    fn counted(&self, lab: &Lab) -> u64 {
        let (status, _) = lab.node(self.node).await_status("", Duration::from_secs(10), |_| true);
        let sessions = &status.json()["peers"][0]["sessions"];
        let count = |name: &str| sessions[name].as_u64().expect("a counter");
        count("network_bytes") + count("storage_bytes")
    }

    fn total(&self, lab: &Lab) -> u64 {
        self.before + self.counted(lab) - self.since
    }

    /// The daemon is about to be killed.
    fn forget(&mut self, lab: &Lab) {
        self.before = self.total(lab);
        self.since = 0;
    }
}

/// Bytes of all files below a folder.
pub(crate) fn taken(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let each = entries.filter_map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => Some(taken(&entry.path())),
        Ok(meta) => Some(std::os::unix::fs::MetadataExt::blocks(&meta) * 512),
        Err(_) => None,
    });
    each.sum()
}

/// Makes a tree of one of everything, sparse images among it, and of so many bytes that do not
/// compress: a quarter of them in one file, the rest in so many.
pub(crate) fn grow(root: &Path, files: u64, bytes: u64) {
    let big = bytes / 4;
    tree::make(root, 5, usize::try_from(big).expect("a length"));
    let mut random = tree::Random(6);
    let mut rng = Rng::new(7);
    let (mut left, mean) = (bytes - big, (bytes - big) / files);
    for n in 0..files {
        let folder = root.join(format!("bulk/{}/{}", n / 2500, n / 50 % 50));
        if n % 50 == 0 {
            fs::create_dir_all(&folder).expect("a folder");
        }
        // Many small ones and few large ones.
        let length = mean * rng.below(1 << 10).pow(3) / (1 << 28);
        let length = if n + 1 == files { left } else { length.min(left) };
        left -= length;
        let content = random.bytes(usize::try_from(length).expect("a length"));
        fs::write(folder.join(format!("f{n}")), content).expect("a file");
    }
}
