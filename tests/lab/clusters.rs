//! A Corosync cluster on the machines of a lab, as a distribution ships it: knet, default token.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::bench::Lab;
use super::node::Node;
use super::process::{run, sh, wait_child, wait_for};
use super::sys;

pub(crate) const TOOLS_AND_NBDKIT: &[&str] =
    &["nbdkit", "corosync", "corosync-quorumtool", "corosync-cfgtool", "cc", "unshare"];
pub(crate) const TOOLS_AND_S3: &[&str] = &[
    "s3rver",
    "moto_server",
    "corosync",
    "corosync-quorumtool",
    "corosync-cfgtool",
    "cc",
    "unshare",
];
pub(crate) const TOOLS: &[&str] = TOOLS_AND_NBDKIT.split_at(1).1;

/// A token of 3000 ms grows by 650 ms per node above two; a lost one is followed by a consensus
/// of 1.2 tokens. Measured: others split after 7.6 to 8.0 s; a knet link goes down within 2 s.
pub(crate) const NOTICED_WITHIN: Duration = Duration::from_secs(12);

pub(crate) struct Cluster {
    members: Vec<Member>,
    /// Where the log of each member stood when the cluster had formed.
    formed: Vec<usize>,
}

struct Member {
    name: &'static str,
    id: usize,
    corosync: Mutex<Child>,
    log: PathBuf,
}

impl Cluster {
    /// Starts Corosync on every node, bound to the virtual interface, and waits for one ring.
    pub(crate) fn start(lab: &Lab) -> Self {
        Self::start_with(lab, "")
    }

    /// The same with more lines in the section `totem`.
    pub(crate) fn start_with(lab: &Lab, totem: &str) -> Self {
        let members = lab.nodes.iter().map(|node| Member::start(node, lab, totem)).collect();
        let mut cluster = Self { members, formed: Vec::new() };
        let everybody: Vec<usize> = lab.nodes.iter().map(|node| node.id).collect();
        cluster.await_ring(&everybody, Duration::from_secs(40));
        cluster.forget_logs();
        cluster
    }

    /// Waits until these nodes agree on a ring of exactly them; returns its id and the time.
    pub(crate) fn await_ring(&self, nodes: &[usize], limit: Duration) -> (String, Duration) {
        wait_for(&format!("one ring of the nodes {nodes:?}"), limit, || {
            let mut rings = Vec::new();
            for member in self.of(nodes) {
                let ring = member.ring()?;
                if ring.nodes != nodes.len() {
                    return Err(format!("{}: {ring:?}", member.name));
                }
                rings.push(ring.id);
            }
            rings.dedup();
            if rings.len() == 1 { Ok(rings.remove(0)) } else { Err(format!("rings {rings:?}")) }
        })
    }

    /// The ring every one of these nodes is in now, in their order.
    pub(crate) fn rings(&self, nodes: &[usize]) -> Vec<Result<String, String>> {
        self.of(nodes).map(|member| member.ring().map(|ring| ring.id)).collect()
    }

    /// From here on only what Corosync logs later counts.
    pub(crate) fn forget_logs(&mut self) {
        self.formed = self.members.iter().map(|member| member.log_text().len()).collect();
    }

    /// What Corosync complained about since the cluster had formed.
    pub(crate) fn complaints(&self, words: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for (member, from) in self.members.iter().zip(&self.formed) {
            let text = member.log_text();
            let fits = |line: &&str| words.iter().any(|word| line.contains(word));
            let lines = text.get(*from..).unwrap_or_default().lines().filter(fits);
            found.extend(lines.map(|line| format!("{}: {line}", member.name)));
        }
        found
    }

    /// SIGKILL for the Corosync of one node.
    pub(crate) fn kill(&self, node: usize) {
        for member in self.of(&[node]) {
            member.kill();
        }
    }

    fn of<'a>(&'a self, nodes: &'a [usize]) -> impl Iterator<Item = &'a Member> {
        self.members.iter().filter(|member| nodes.contains(&member.id))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &self.members {
            if std::thread::panicking() {
                let text = member.log_text();
                let lines: Vec<&str> = text.lines().collect();
                println!("corosync of {}, last 25 of {} lines:", member.name, lines.len());
                for line in lines.iter().skip(lines.len().saturating_sub(25)) {
                    println!("  {line}");
                }
            }
            member.kill();
        }
    }
}

/// Lines that mean the cluster noticed the fault. The first three are the acceptance list's.
pub(crate) const NOTICED: &[&str] =
    &["processor failed", "A new membership", "is down", "has no active links"];

/// Lines that mean it came close.
pub(crate) const WARNED: &[&str] = &["Token has not been received", "Retransmit List"];

#[derive(Debug)]
struct Ring {
    id: String,
    nodes: usize,
}

impl Member {
    fn start(node: &Node, lab: &Lab, totem: &str) -> Self {
        let file = |suffix: &str| lab.dir.join(format!("{}.corosync.{suffix}", node.name));
        let (log, config) = (file("log"), file("conf"));
        let nodes: String = lab
            .nodes
            .iter()
            .map(|n| {
                let (address, name, id) = (&n.overlay, n.name, n.id);
                format!(
                    "  node {{\n    ring0_addr: {address}\n    name: {name}\n    nodeid: {id}\n  }}\n"
                )
            })
            .collect();
        let text = format!(
            "totem {{\n  version: 2\n  cluster_name: lab\n  transport: knet\n{totem}}}\n\
             nodelist {{\n{nodes}}}\n\
             quorum {{\n  provider: corosync_votequorum\n}}\n\
             logging {{\n  to_logfile: yes\n  logfile: {}\n  to_syslog: no\n  timestamp: hires\n}}\n",
            log.display()
        );
        fs::write(&config, text).expect("a file in our own folder");
        // Corosync keeps state in folders that the machines of a lab would share.
        let mounts = "mount -t tmpfs tmpfs /var/lib/corosync && mount -t tmpfs tmpfs /dev/shm \
                      && mount -t tmpfs tmpfs /run && exec corosync -f -c \"$0\"";
        let said = File::create(file("out")).expect("a file in our own folder");
        let corosync = node
            .command("unshare")
            .args(["-m", "sh", "-c", mounts])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("a second handle"))
            .stderr(said)
            .spawn()
            .unwrap_or_else(|error| panic!("corosync on {}: {error}", node.name));
        Self { name: node.name, id: node.id, corosync: Mutex::new(corosync), log }
    }

    fn ring(&self) -> Result<Ring, String> {
        let done = run(self.tool("corosync-quorumtool").arg("-s"), Duration::from_secs(5))?;
        let field = |name: &str| {
            done.stdout
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim_start_matches(':').trim().to_owned())
                .ok_or_else(|| format!("{}: {}{}", self.name, done.stdout, done.stderr))
        };
        let nodes = field("Nodes")?.parse().map_err(|e| format!("{e}"))?;
        Ok(Ring { id: field("Ring ID")?, nodes })
    }

    /// A command that sees this Corosync's sockets and memory.
    fn tool(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.child().id().to_string(), "-m", "-n", "--"]).arg(program);
        command
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn kill(&self) {
        let mut child = self.child();
        sys::signal(child.id(), libc::SIGKILL);
        let _ = wait_child(&mut child, Duration::from_secs(5));
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.corosync.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One process per node that talks to the others through Corosync.
pub(crate) struct Load {
    talkers: Vec<Talker>,
}

struct Talker {
    name: &'static str,
    id: usize,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    file: PathBuf,
}

impl Load {
    /// 50 messages of 512 bytes per second from each node.
    pub(crate) fn start(lab: &Lab, cluster: &Cluster) -> Self {
        let program = compile(&lab.dir);
        let count = cluster.members.len().to_string();
        let start = |member: &Member| {
            let file = lab.dir.join(format!("{}.cpg", member.name));
            let mut child = member
                .tool(&program)
                .args([&count, "50", "512"])
                .arg(&file)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("the talker on {}: {error}", member.name));
            let orders = child.stdin.take().expect("a pipe");
            let answers = BufReader::new(child.stdout.take().expect("a pipe"));
            Talker { name: member.name, id: member.id, child, orders, answers, file }
        };
        let mut load = Self { talkers: cluster.members.iter().map(start).collect() };
        for talker in &mut load.talkers {
            assert_eq!(talker.answer(), "talking", "the talker on {} joins", talker.name);
        }
        load
    }

    /// Stops the talkers and checks that every node heard every message of every node once, and
    /// all in the same order. Returns how many were said and the longest silence between two
    /// messages heard at one node, in ms.
    pub(crate) fn assert_each_heard_once(mut self) -> (u64, f64) {
        for talker in &mut self.talkers {
            talker.order("stop");
        }
        std::thread::sleep(Duration::from_secs(3));
        for talker in &mut self.talkers {
            talker.order("finish");
            let ended = wait_child(&mut talker.child, Duration::from_secs(10));
            assert!(ended.is_some_and(|e| e.success()), "the talker on {} ends", talker.name);
        }
        let diaries: Vec<Diary> =
            self.talkers.iter().map(|talker| Diary::read(&talker.file)).collect();
        for (talker, diary) in self.talkers.iter().zip(&diaries) {
            for (other, said) in self.talkers.iter().zip(diaries.iter().map(|diary| diary.said)) {
                let heard: Vec<u64> = diary
                    .heard
                    .iter()
                    .filter(|(node, ..)| *node == other.id)
                    .map(|(_, number, _)| *number)
                    .collect();
                assert!(said > 0, "{} said nothing", other.name);
                let everything: Vec<u64> = (0..said).collect();
                assert!(
                    heard == everything,
                    "{} heard {} of the {said} messages of {}; the first that is not in its place: {:?}",
                    talker.name,
                    heard.len(),
                    other.name,
                    heard.iter().zip(0u64..).find(|(heard, place)| **heard != *place)
                );
            }
            let order = |diary: &Diary| -> Vec<(usize, u64)> {
                diary.heard.iter().map(|(node, number, _)| (*node, *number)).collect()
            };
            assert!(order(diary) == order(&diaries[0]), "{} heard another order", talker.name);
        }
        let silences = diaries.iter().flat_map(|diary| {
            diary.heard.windows(2).map(|pair| pair[1].2.saturating_sub(pair[0].2))
        });
        let silence = silences.max().unwrap_or(0) as f64 / 1e6;
        (diaries.iter().map(|diary| diary.said).sum(), silence)
    }
}

impl Talker {
    fn order(&mut self, word: &str) {
        // In one write: the talker takes what one read gives it for one order.
        let line = format!("{word}\n");
        if self.orders.write_all(line.as_bytes()).is_err() || self.answer() != word {
            let ended = wait_child(&mut self.child, Duration::from_secs(1));
            panic!("the talker on {} does not answer to {word}: {ended:?}", self.name);
        }
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        let _ = self.answers.read_line(&mut line);
        line.trim().to_owned()
    }
}

/// What one talker wrote down: how much it said, and (node, number, ns) of all it heard.
struct Diary {
    said: u64,
    heard: Vec<(usize, u64, u64)>,
}

impl Diary {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut diary = Self { said: 0, heard: Vec::new() };
        for line in text.lines() {
            let words: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            match (line.chars().next(), words.as_slice()) {
                (Some('D'), [node, number, at]) => {
                    diary.heard.push((*node as usize, *number, *at));
                }
                (Some('S'), [said]) => diary.said = *said,
                _ => {}
            }
        }
        diary
    }
}

fn compile(dir: &Path) -> PathBuf {
    let program = dir.join("cpg_load");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/cpg_load.c");
    sh(&format!("cc -O1 -Wall -o {} {} -lcpg", program.display(), source.display()));
    program
}
