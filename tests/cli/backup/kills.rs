//! `kill -9` of every program that takes part, at moments that nobody chose: it goes on and ends,
//! what comes back is equal, and little is sent twice.
//!
//! `SIDEPATH_KILLS=50 cargo test --test cli kills -- --nocapture` kills each so often and prints
//! how much was sent again; `SIDEPATH_SEED` chooses other moments.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{Rig, number};
use crate::tree::{self, Random, assert_same};

const MIB: u64 = 1 << 20;
/// Of these, each is killed so often by default.
const KILLS: u64 = 2;
/// What may be sent twice in all, as promised.
const TWICE_MAX: u64 = 64 * MIB;
/// What one kill may cost on a disk that others use, too: what was not made durable yet, and what
/// was on its way. Of two, less than all there is.
const TWICE_EACH: u64 = 13 * MIB;
/// Keeps a backup going for longer than it takes to be killed.
const RATE: &str = "12MiB";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|word| word.parse().ok()).unwrap_or(default)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Client,
    Serve,
    Alpha,
    Beta,
}

/// Some MiB in files of all sizes.
fn fill(rig: &Rig) -> u64 {
    let tree = rig.path("tree");
    tree::make(&tree, 11, 12 << 20);
    for n in 0..10 {
        fs::write(tree.join(format!("mib{n}")), Random(n).bytes(1 << 20)).unwrap();
    }
    24 * MIB
}

impl Rig {
    fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Client => {}
            Victim::Serve => self.serve(),
            Victim::Alpha => self.pair.restart(0),
            Victim::Beta => {
                self.pair.restart(1);
                self.serve();
            }
        }
    }

    /// Runs a command while its victim is killed again and again; gives its report.
    fn through(
        &mut self,
        words: &[&str],
        (victim, mut kills): (Victim, u64),
        mut pause: impl FnMut() -> u64,
    ) -> serde_json::Value {
        let words = [words, &["--json"]].concat();
        let mut client = self.spawn("alpha", &words);
        while kills > 0 {
            std::thread::sleep(Duration::from_millis(pause()));
            if client.0.try_wait().unwrap().is_some() {
                break;
            }
            kills -= 1;
            if victim == Victim::Client {
                client.kill();
                client = self.spawn("alpha", &words);
            } else {
                self.kill(victim);
            }
        }
        let done = client.end(Duration::from_secs(60));
        let logs = [self.log(), self.pair.log("alpha"), self.pair.log("beta")];
        assert_eq!(done.code, 0, "{victim:?}: {done:?}\n{}", logs.join("\n--\n"));
        done.last_json()
    }
}

fn survives(victim: Victim) {
    let mut random = Random(setting("SIDEPATH_SEED", 1) * 10 + victim as u64);
    let mut rig = Rig::start();
    fill(&rig);
    let kills = setting("SIDEPATH_KILLS", KILLS);
    let began = Instant::now();
    // Storage comes back some seconds after a daemon was killed; the network takes over meanwhile.
    let words = ["backup", "tree", "beta:tree", "--limit-rate", RATE, "--wait", "1s"];
    let stored = rig.through(&words, (victim, kills), || 300 + random.below(900));
    let sent = number(&stored, "network_bytes") + number(&stored, "storage_bytes");
    let twice = sent.saturating_sub(number(&stored, "stored_bytes"));
    println!("{victim:?}: backup in {:?}: {stored}", began.elapsed());
    if victim != Victim::Client {
        assert!(twice < TWICE_MAX.min(TWICE_EACH * kills), "{twice} bytes twice: {stored}");
        assert!(number(&stored, "tries") > 1, "nothing was interrupted: {stored}");
    }
    let list = rig.run(&["backup", "list", "beta", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1, "one version came of it: {list}");
    rig.result(&["backup", "verify", "beta:tree"]);

    let began = Instant::now();
    let words = ["restore", "beta:tree", "got", "--wait", "1s"];
    let restored = rig.through(&words, (victim, kills.div_ceil(2)), || 50 + random.below(300));
    println!("{victim:?}: restore in {:?}: {restored}", began.elapsed());
    assert_same(&rig.path("tree"), &rig.path("got"));
    assert_eq!(restored["digest"], stored["digest"]);
}

#[test]
fn the_client_may_be_killed() {
    survives(Victim::Client);
}

#[test]
fn who_serves_may_be_killed() {
    survives(Victim::Serve);
}

#[test]
fn our_daemon_may_be_killed() {
    survives(Victim::Alpha);
}

#[test]
fn the_store_s_daemon_may_be_killed() {
    survives(Victim::Beta);
}

#[test]
fn what_was_sent_before_a_kill_is_not_sent_again() {
    let rig = Rig::start();
    let all = fill(&rig);
    let words = ["backup", "tree", "beta:tree", "--limit-rate", RATE, "--json"];
    let mut client = rig.spawn("alpha", &words);
    std::thread::sleep(Duration::from_millis(1500));
    client.kill();
    let done = rig.result(&["backup", "tree", "beta:tree"]);
    let resumed = number(&done, "resumed_bytes");
    assert!(resumed > 8 * MIB, "{done}");
    let sent = number(&done, "network_bytes") + number(&done, "storage_bytes");
    assert!(sent + resumed < all + 4 * MIB, "{done}");
    // Whoever does not want that says so.
    let mut client = rig.spawn("alpha", &[&words[..], &["--no-resume"]].concat());
    std::thread::sleep(Duration::from_millis(1000));
    client.kill();
    let done = rig.result(&["backup", "tree", "beta:tree", "--no-resume"]);
    assert_eq!(number(&done, "resumed_bytes"), 0, "{done}");
    assert!(number(&done, "new_bytes") > 20 * MIB, "{done}");
}

#[test]
fn a_restore_goes_on_where_it_was_interrupted() {
    let rig = Rig::start();
    fill(&rig);
    rig.result(&["backup", "tree", "beta:tree"]);
    let mut client = rig.spawn("alpha", &["restore", "beta:tree", "got"]);
    let until = Instant::now() + Duration::from_secs(20);
    // Of the last files by name, one is there: most of them are.
    while !rig.path("got/mib0").exists() {
        assert!(Instant::now() < until && client.0.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    client.kill();
    // Another version has no business there.
    fs::write(rig.path("tree/new"), "new").unwrap();
    rig.result(&["backup", "tree", "beta:tree"]);
    rig.fails(2, &["restore", "beta:tree", "got"], &["got is not empty", "--overwrite"]);
    fs::remove_file(rig.path("tree/new")).unwrap();
    let done = rig.result(&["restore", "beta:tree@1", "got"]);
    assert!(number(&done, "kept") > 20, "{done}");
    assert!(number(&done, "storage_bytes") < 16 * MIB, "{done}");
    let differs = tree::difference(&rig.path("tree"), &rig.path("got"));
    // The time of the root of the original has changed meanwhile.
    assert_eq!(differs.lines().count(), 2, "{differs}");
}
