//! `sidepath backup` and `sidepath restore` between two daemons of this machine: what comes back is
//! what was there, whatever is killed meanwhile, and what cannot be is said with its exit code.

mod commands;
mod damage;
mod kills;
mod refusals;
mod room_left;

use std::{
    cell::RefCell,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    pair::Pair,
    room::{Done, finish},
    tree::{self, assert_same},
};

/// A child that does not outlive the test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Its end, with what it said.
    #[track_caller]
    pub(crate) fn end(mut self, within: Duration) -> Done {
        let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
            std::thread::spawn(move || {
                let mut text = String::new();
                let _ = stream.map(|mut s| s.read_to_string(&mut text));
                text
            })
        };
        let stdout = read(self.0.stdout.take().map(|s| Box::new(s) as _));
        let stderr = read(self.0.stderr.take().map(|s| Box::new(s) as _));
        let until = Instant::now() + within;
        let code = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status.code().unwrap_or(-1);
            }
            if Instant::now() > until {
                self.kill();
                panic!("it hangs: {:?} {:?}", stdout.join(), stderr.join());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Done { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two daemons, and a store that beta serves.
pub(crate) struct Rig {
    pub(crate) pair: Pair,
    serving: RefCell<Option<Running>>,
}

impl Rig {
    pub(crate) fn start() -> Self {
        let rig = Self { pair: Pair::start(), serving: RefCell::default() };
        rig.serve();
        rig
    }

    /// The store is beta's own: no program serves it.
    fn configured(section: &str) -> Self {
        let pair = Pair::start_with(["", &format!("[backup_store]\npath = \"store\"\n{section}")]);
        Self { pair, serving: RefCell::default() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.pair.room.join(name)
    }

    pub(crate) fn spawn(&self, node: &str, words: &[&str]) -> Running {
        let config = format!("{node}.toml");
        let mut command = self.pair.room.command(&[words, &["--config", &config]].concat());
        Running(command.spawn().unwrap())
    }

    /// Starts the program that serves, anew if it is there already.
    pub(crate) fn serve(&self) {
        self.serving.take();
        let mut options = std::fs::OpenOptions::new();
        let log = options.create(true).append(true).open(self.path("serve.log")).unwrap();
        let words = ["backup", "serve", "--store", "store", "--config", "beta.toml"];
        let mut command = self.pair.room.command(&words);
        let child = command.stdout(Stdio::null()).stderr(Stdio::from(log)).spawn().unwrap();
        *self.serving.borrow_mut() = Some(Running(child));
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let done = self.run(&["backup", "list", "beta"]);
            if done.code == 0 {
                return;
            }
            let mut serving = self.serving.borrow_mut();
            // The daemon did not answer yet.
            let ended = serving.as_mut().unwrap().0.try_wait().unwrap().is_some();
            drop(serving);
            assert!(Instant::now() < until, "nobody serves: {done:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
            if ended {
                return self.serve();
            }
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("serve.log")).unwrap_or_default()
    }

    /// A command of alpha.
    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> Done {
        let words = [words, &["--config", "alpha.toml"]].concat();
        finish(self.pair.room.command(&words), Duration::from_secs(60))
    }

    /// One that ends well; its last line, which is the result.
    #[track_caller]
    pub(crate) fn result(&self, words: &[&str]) -> Value {
        let done = self.run(&[words, &["--json"]].concat());
        assert_eq!(done.code, 0, "{done:?}\n{}\n{}", self.log(), self.pair.log("alpha"));
        done.last_json()
    }

    /// One that ends with this code, and says this.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, words: &[&str], says: &[&str]) -> Done {
        let done = self.run(words);
        assert_eq!(done.code, code, "{words:?}: {done:?}");
        for part in says {
            assert!(done.stderr.contains(part), "{words:?} does not say {part:?}: {done:?}");
        }
        done
    }
}

pub(crate) fn number(json: &Value, what: &str) -> u64 {
    json[what].as_u64().unwrap_or_else(|| panic!("no {what} in {json}"))
}

#[test]
fn a_tree_comes_back_as_it_was_and_is_not_sent_twice() {
    let rig = Rig::start();
    tree::make(&rig.path("tree"), 1, 6 << 20);
    let first = rig.result(&["backup", "tree", "beta:tree"]);
    assert_eq!((&first["event"], &first["peer"]), (&"done".into(), &"beta".into()), "{first}");
    assert_eq!((number(&first, "version"), number(&first, "problems")), (1, 0), "{first}");
    assert!(number(&first, "new_bytes") > 10 << 20, "{first}");
    assert!(number(&first, "storage_bytes") >= number(&first, "stored_bytes"), "{first}");
    assert!(number(&first, "network_bytes") < 64 << 10, "{first}");

    let restored = rig.result(&["restore", "beta:tree", "restored"]);
    assert_same(&rig.path("tree"), &rig.path("restored"));
    assert_eq!(restored["digest"], first["digest"]);
    assert_eq!((number(&restored, "missing"), number(&restored, "kept")), (0, 0), "{restored}");
    assert_eq!(restored["bytes"], first["bytes"]);
    assert!(number(&restored, "network_bytes") < 64 << 10, "{restored}");
    assert!(number(&restored, "storage_bytes") > 6 << 20, "{restored}");

    let second = rig.result(&["backup", "tree", "beta:tree"]);
    assert_eq!((number(&second, "version"), number(&second, "new_bytes")), (2, 0), "{second}");
    assert_eq!(second["entries"], first["entries"]);
    assert!(number(&second, "storage_bytes") < 512 << 10, "{second}");
    let dry = rig.result(&["backup", "tree", "beta:tree", "--dry-run"]);
    assert_eq!((number(&dry, "changed_files"), number(&dry, "changed_bytes")), (0, 0), "{dry}");

    std::fs::write(rig.path("tree/text"), "something else").unwrap();
    let dry = rig.result(&["backup", "tree", "beta:tree", "--dry-run"]);
    assert_eq!((number(&dry, "changed_files"), number(&dry, "changed_bytes")), (1, 14), "{dry}");
    let third = rig.result(&["backup", "tree", "beta:tree", "--exclude", "/odd"]);
    assert_eq!((number(&third, "version"), number(&third, "new_bytes")), (3, 14), "{third}");
    looked_into(&rig);
    forgotten(&rig);
}

/// Three versions of `tree` are there.
fn looked_into(rig: &Rig) {
    let list = rig.run(&["backup", "list", "beta", "--json"]).json();
    let numbers: Vec<_> = list.as_array().unwrap().iter().map(|v| number(v, "number")).collect();
    assert_eq!(numbers, [1, 2, 3], "{list}");
    assert_eq!(
        (&list[0]["name"], &list[0]["about"]["sources"][0]),
        (&"tree".into(), &"tree".into())
    );
    assert!(number(&list[0], "ended_s") >= number(&list[0], "began_s"));
    let shown = rig.run(&["backup", "list", "beta:tree"]);
    assert!(shown.stdout.starts_with("VERSION") && shown.stdout.contains("tree@3"), "{shown:?}");

    let all = rig.run(&["backup", "show", "beta:tree@1", "--json"]);
    let all: Vec<Value> = all.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(all.len() as u64, number(&list[0], "entries"));
    let of = |path: &str| {
        let found = all.iter().find(|entry| entry["path"] == path);
        found.unwrap_or_else(|| panic!("no {path}"))
    };
    assert_eq!((&of("fifo")["kind"], &of("fifo")["mode"]), (&"fifo".into(), &"0640".into()));
    assert_eq!(of("links/up")["target"], "..");
    assert_eq!(of("big")["size"], 6 << 20);
    let digest = blake3::hash(&std::fs::read(rig.path("tree/big")).unwrap());
    assert_eq!(of("big")["digest"], digest.to_hex().as_str());
    assert_eq!(
        (&of(".")["mtime_s"], &of(".")["mtime_ns"]),
        (&1_111_111_111.into(), &222_222_222.into())
    );
    assert_eq!(of("odd/new\\nline")["kind"], "file");
    let links = all.iter().filter(|e| e["kind"] == "hard_link").count();
    // Two further names of a file, one of a symbolic link.
    assert_eq!(links, 3);

    let some = rig.run(&["backup", "show", "beta:tree@1", "many/3/"]);
    assert_eq!((some.code, some.stdout.lines().count()), (0, 41), "{some:?}");
    let none = rig.run(&["backup", "show", "beta:tree", "odd"]);
    assert_eq!(none.code, 2, "it was left out of the third: {none:?}");
    assert!(none.stderr.contains("tree@3 has no odd"), "{none:?}");

    rig.result(&["restore", "beta:tree@2", "some", "--only", "links/second", "--only", "many/3"]);
    assert_same(&rig.path("tree/many/3"), &rig.path("some/many/3"));
    assert_eq!(std::fs::read(rig.path("some/links/second")).unwrap(), b"three names");
    assert!(!rig.path("some/links/first").exists() && !rig.path("some/big").exists());
    let found = rig.result(&["backup", "verify", "beta:tree@1"]);
    assert_eq!(found["findings"], serde_json::json!([]));
    let said = rig.run(&["backup", "verify", "beta:tree"]);
    assert!(said.code == 0 && said.stdout.contains("every byte is as it was"), "{said:?}");
}

fn forgotten(rig: &Rig) {
    rig.fails(2, &["backup", "forget", "beta:tree"], &["say which version", "beta:tree@VERSION"]);
    let gone = rig.run(&["backup", "forget", "beta:tree@1"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (0, "tree@1 is gone\n"), "{gone:?}");
    rig.fails(2, &["backup", "forget", "beta:tree@1"], &["has no version 1", "backup list"]);
    // What the others share with it is still there.
    let said = rig.run(&["backup", "verify", "beta:tree@2"]);
    assert_eq!(said.code, 0, "{said:?}");
}

#[test]
fn several_sources_keep_their_names() {
    let rig = Rig::start();
    tree::make(&rig.path("a"), 2, 1000);
    std::fs::write(rig.path("b"), "a file").unwrap();
    let words = ["backup", "a", "b", "beta:both"];
    rig.result(&words);
    rig.result(&["restore", "beta:both", "got", "--streams", "3"]);
    assert_same(&rig.path("a"), &rig.path("got/a"));
    assert_eq!(std::fs::read(rig.path("got/b")).unwrap(), b"a file");
    let words = ["backup", "a", "--streams", "4", "--compress", "off", "beta:one", "--limit-rate"];
    rig.result(&[&words[..], &["1GiB"]].concat());
    rig.result(&["restore", "beta:one", "one", "--streams", "2"]);
    assert_same(&rig.path("a"), &rig.path("one"));
    // People are told the same.
    let said = rig.run(&["backup", "a", "beta:one"]);
    assert_eq!((said.code, said.stdout.as_str()), (0, ""), "{said:?}");
    assert!(said.stderr.contains("beta:one@2: ") && said.stderr.contains("by storage"), "{said:?}");
}

#[test]
fn a_daemon_may_have_the_store() {
    let mut rig = Rig::configured("keep = 2\n");
    tree::make(&rig.path("tree"), 3, 1 << 20);
    for version in 1..=3 {
        let done = rig.result(&["backup", "tree", "beta:tree"]);
        assert_eq!(number(&done, "version"), version);
    }
    let list = rig.run(&["backup", "list", "beta:tree", "--json"]).json();
    let numbers: Vec<_> = list.as_array().unwrap().iter().map(|v| number(v, "number")).collect();
    assert_eq!(numbers, [2, 3], "as many as are kept");
    rig.pair.restart(1);
    rig.pair.wait_until_met();
    rig.result(&["restore", "beta:tree@2", "got"]);
    assert_same(&rig.path("tree"), &rig.path("got"));
    let log = rig.pair.log("beta");
    assert!(log.contains("backup of tree@3") && log.contains("restore of tree@2"), "{log}");
    // A change needs a restart, and says so.
    let config = std::fs::read_to_string(rig.path("beta.toml")).unwrap();
    rig.pair.room.write("beta.toml", &config.replace("keep = 2", "keep = 3"));
    let done = rig.pair.room.run(&["reload", "--config", "beta.toml"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("[backup_store] cannot change"), "{done:?}");
    // A folder that is none of ours is left alone.
    std::fs::create_dir(rig.path("mine")).unwrap();
    rig.pair.room.write("mine/letter", "dear");
    rig.pair.room.write(
        "gamma.toml",
        &config.replace("\"store\"", "\"mine\"").replace("beta.sock", "g.sock"),
    );
    let done = rig.pair.room.run(&["run", "--config", "gamma.toml"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("[backup_store]: ") && done.stderr.contains("hint: "), "{done:?}");
}

#[test]
fn policies_say_what_a_missing_path_means() {
    let mut rig = Rig::start();
    std::fs::write(rig.path("file"), tree::Random(4).bytes(2 << 20)).unwrap();
    let backup = |policy: &str, more: &[&str]| {
        rig.result(
            &[&["backup", "file", "beta:f", "--no-resume", "--policy", policy], more].concat(),
        )
    };
    let never = backup("never", &[]);
    assert_eq!(number(&never, "storage_bytes"), 0, "{never}");
    assert!(number(&never, "network_bytes") > 2 << 20, "{never}");
    assert!(number(&backup("fail", &[]), "network_bytes") < 64 << 10);

    // A volume that stands still for a while: both sides see it, and go on.
    let mut drill = rig.spawn("alpha", &["drill", "beta", "--cut", "storage", "--for", "20s"]);
    rig.pair.wait_for("the cut", |peer| peer["storage"]["state"] == "down");
    // One direction may be seen to be gone before the other: a session that began in between is one
    // that loses storage on its way, which is borne for longer.
    std::thread::sleep(Duration::from_secs(3));
    let words = ["backup", "file", "beta:f", "--no-resume", "--policy"];
    let failed = [&words[..], &["fail"]].concat();
    rig.fails(1, &failed, &["--policy fail takes no other path", "sidepath status"]);
    assert!(drill.0.try_wait().unwrap().is_none(), "it fails before storage is back");
    let preferred = backup("preferred", &["--wait", "100ms"]);
    assert!(number(&preferred, "network_bytes") > 2 << 20, "{preferred}");
    let always = backup("always", &[]);
    assert!(number(&always, "storage_bytes") > 2 << 20, "{always}");
    assert!(number(&always, "network_bytes") < 64 << 10, "{always}");
    assert_eq!(drill.end(Duration::from_secs(30)).code, 0);

    // Beta has no volume at all.
    let config = std::fs::read_to_string(rig.path("beta.toml")).unwrap();
    let without = config.replace("[storage]\nvolume = \"volume\"\nsingle_host = true\n", "");
    rig.pair.room.write("beta.toml", &without);
    rig.pair.restart(1);
    rig.pair.wait_for("the network", |peer| peer["network"]["state"] == "up");
    rig.serve();
    let restore = ["restore", "beta:f", "got", "--policy", "fail"];
    rig.fails(1, &restore, &["--policy fail takes no other path", "sidepath status"]);
    let done = rig.result(&["restore", "beta:f", "got", "--wait", "100ms"]);
    assert!(number(&done, "network_bytes") > 2 << 20, "{done}");
    assert_eq!(number(&done, "storage_bytes"), 0, "{done}");
    let same = std::fs::read(rig.path("got/file")).unwrap();
    assert!(same == std::fs::read(rig.path("file")).unwrap());
}
