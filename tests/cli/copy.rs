//! `sidepath volume copy` copies once, at an interval and continuously, refuses wrong directions,
//! ends on a signal, and survives being killed: the losses this prevents are a record that is
//! gone, comes twice, or an entry that moves back after a `kill -9`.
//!
//! `SIDEPATH_KILLS=100 cargo test --test cli copy -- --nocapture` kills a hundred times per mode
//! and side that fails (6) and prints how long the copies took to go on.

use std::{
    io::Read,
    process::Child,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::nbdkit::Nbdkit;
use crate::room::{Done, Room};
use volumes::{AttachOptions, Fact, Handle, Ring, attach, inspect};

fn init(room: &Room, name: &str) {
    let words = ["volume", "init", name, "--nodes", "1,2", "--single-host", "--size", "8MiB"];
    let done = room.run(&[&words[..], &["--name", "site"]].concat());
    assert_eq!(done.code, 0, "{done:?}");
}

fn copy(room: &Room, more: &[&str]) -> Done {
    room.run(&[&["volume", "copy", "--single-host"], more].concat())
}

#[test]
fn a_copy_is_made_once_and_again() {
    let room = Room::new();
    init(&room, "send");
    let done = copy(&room, &["send", "receive"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert!(done.stdout.starts_with("send -> receive: 0 records, "), "{done:?}");
    assert!(done.stdout.contains("no node sends there yet"), "{done:?}");
    let json = copy(&room, &["send", "receive", "--json"]).json();
    assert_eq!((&json["state"], &json["name"]), (&"done".into(), &"site".into()), "{json}");
    let shown = room.run(&["volume", "inspect", "receive"]);
    assert!(shown.stdout.contains("a replica: filled by"), "{shown:?}");
    assert_eq!(room.run(&["volume", "inspect", "receive", "--json"]).json()["replica"], true);
}

#[test]
fn wrong_directions_are_refused_with_a_next_step() {
    let room = Room::new();
    init(&room, "send");
    init(&room, "other");
    assert_eq!(copy(&room, &["send", "receive"]).code, 0);
    for (from, to, what, hint) in [
        ("receive", "send", "source and destination are swapped", "copy from the original"),
        ("send", "other", "it is the sidepath volume", "--force"),
        ("send", "send", "are the same medium", "give two"),
        ("nowhere", "receive", "no such file or device", "create it"),
    ] {
        let done = copy(&room, &[from, to]);
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{done:?}");
        assert!(done.stderr.contains(what), "{done:?}");
        assert!(done.stderr.contains("\nhint: ") && done.stderr.contains(hint), "{done:?}");
    }
    for words in [
        &["send", "receive", "--follow", "--interval", "1s"][..],
        &["send", "receive", "--limit", "1"],
        &["send", "receive", "--interval", "1ms"],
        &["send", "receive", "--force"],
        &["send"],
    ] {
        assert_eq!(copy(&room, words).code, 2, "{words:?}");
    }
}

struct Node {
    handle: Handle,
    read: Arc<Mutex<Vec<(u64, Instant)>>>,
    missing: Arc<Mutex<u64>>,
    /// Number of the newest record read.
    cursor: Arc<AtomicU64>,
}

impl Node {
    fn start(room: &Room, name: &str, node: u8, sends: bool) -> Self {
        let (read, missing) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let cursor = Arc::new(AtomicU64::new(0));
        let (r, m, c) = (read.clone(), missing.clone(), cursor.clone());
        let began = Instant::now();
        let clock = move || u64::try_from(began.elapsed().as_micros()).unwrap();
        let sink = move |fact| match fact {
            Fact::Frames { frames, .. } => {
                let numbers = frames.iter().map(|f| u64::from_le_bytes(f[..8].try_into().unwrap()));
                let now = Instant::now();
                r.lock().unwrap().extend(numbers.map(|n| (n, now)));
            }
            Fact::Cursor { ring: Ring::Data, number, .. } => c.store(number, Ordering::Relaxed),
            Fact::Missing { first, last, .. } => *m.lock().unwrap() += last - first + 1,
            _ => {}
        };
        let o =
            AttachOptions { single_host: true, sends, ..AttachOptions::new(room.join(name), node) };
        let handle = attach(o, Arc::new(clock), Arc::new(sink)).unwrap();
        let node = Self { handle, read, missing, cursor };
        wait("attach", || node.handle.epoch() != 0);
        node
    }

    fn count(&self) -> usize {
        self.read.lock().unwrap().len()
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Every tenth request of each kind fails; what became of them is in the log.
fn failing(room: &Room, volume: &str) -> Option<Nbdkit> {
    let file = format!("file={volume}");
    let rates = ["error-pwrite-rate=10%", "error-pread-rate=10%"];
    let words = ["--filter=log", "--filter=error", "file", &file, "logfile=requests.log"];
    Nbdkit::start(room, &[&words[..], &rates].concat())
}

/// What is copied how.
struct Course<'a> {
    room: &'a Room,
    from: &'a str,
    to: &'a str,
    mode: &'a [&'a str],
    /// A single round may end badly.
    fails: bool,
}

impl Course<'_> {
    fn start(&self) -> Copy {
        let words = ["volume", "copy", "--single-host", self.from, self.to];
        Copy(self.room.command(&[&words[..], self.mode].concat()).spawn().unwrap())
    }

    /// A single round that ended is followed by another one.
    fn again(&self, copying: &mut Copy) {
        if let Some(end) = copying.0.try_wait().unwrap() {
            let code = end.code().expect("nobody else kills it");
            let mut said = String::new();
            copying.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            let may = code == 0 || self.fails && code == 1;
            assert!(may, "{:?}: exit code {code}: {said}", self.mode);
            *copying = self.start();
        }
    }
}

/// A copy that goes on; killed when the test fails.
struct Copy(Child);

impl Copy {
    /// SIGKILL, as `kill -9`.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes that tell moments apart; no test needs them good.
fn scatter(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A sender that stores all the time, a copy that is killed at random moments, and a reader; one
/// side may fail all the while, for the copy alone.
fn killed(mode: &[&str], side: Option<&str>) {
    let kills: u64 = std::env::var("SIDEPATH_KILLS").map_or(6, |n| n.parse().unwrap()).max(2);
    let room = Room::new();
    init(&room, "send");
    assert_eq!(copy(&room, &["send", "receive"]).code, 0);
    let sender = Node::start(&room, "send", 1, true);
    let reader = Node::start(&room, "receive", 2, false);
    let (mut from, mut to) = ("send".to_owned(), "receive".to_owned());
    let mut server = None;
    if let Some(side) = side {
        let Some(there) = failing(&room, side) else { return };
        *if side == "send" { &mut from } else { &mut to } = there.url("");
        server = Some(there);
    }
    let course = Course { room: &room, from: &from, to: &to, mode, fails: side.is_some() };
    let mut stored = 0_u64;
    let mut frame = |to_go: usize| {
        for _ in 0..to_go {
            // What the reader has read is released by hand, as the link does it.
            let read = reader.cursor.load(Ordering::Relaxed);
            sender.handle.released(2, Ring::Data, read);
            let mut bytes = stored.to_le_bytes().to_vec();
            bytes.resize(24 + usize::try_from(stored * 37 % 5000).unwrap(), 1);
            if sender.handle.store(2, Ring::Data, &bytes).is_ok() {
                stored += 1;
            }
        }
        stored
    };
    let (mut state, mut resumed, mut moved) = (0x9e37_79b9_u64, Vec::new(), (0, 0));
    for kill in 0..kills {
        let count = reader.count();
        let began = Instant::now();
        let mut copying = course.start();
        wait("the copy goes on", || {
            frame(1);
            course.again(&mut copying);
            reader.count() > count
        });
        // The first start follows no kill: the reader rests, for nobody has sent yet.
        if kill > 0 {
            resumed.push(reader.read.lock().unwrap()[count].1.duration_since(began));
        }
        let until = Instant::now() + Duration::from_micros(scatter(&mut state) % 150_000);
        while Instant::now() < until {
            frame(1);
            course.again(&mut copying);
            std::thread::sleep(Duration::from_micros(200));
        }
        copying.kill();
        // No entry of the sender moves back.
        let entry = &inspect(room.join("receive")).unwrap().nodes[0];
        let now = (entry.epoch.unwrap(), entry.beat.unwrap());
        assert!(now >= moved, "kill {kill}: {now:?} after {moved:?}");
        moved = now;
        frame(5);
    }
    let mut copying = course.start();
    let all = frame(10);
    wait("all frames", || {
        course.again(&mut copying);
        let read = reader.cursor.load(Ordering::Relaxed);
        sender.handle.released(2, Ring::Data, read);
        reader.count() as u64 >= all
    });
    copying.kill();
    let read: Vec<u64> = reader.read.lock().unwrap().iter().map(|r| r.0).collect();
    assert_eq!(read, (0..all).collect::<Vec<_>>(), "lost, doubled or out of order");
    assert_eq!(*reader.missing.lock().unwrap(), 0);
    if server.is_some() {
        let requests = std::fs::read_to_string(room.join("requests.log")).unwrap();
        assert!(requests.contains("error="), "nothing failed");
    }
    resumed.sort_unstable();
    println!(
        "{mode:?}, {side:?} failing: {kills} kills, {all} frames, 0 lost; on again after {:?} \
         (half within), {:?} at worst, process start included",
        resumed[resumed.len() / 2],
        resumed[resumed.len() - 1]
    );
    let _ = sender.handle.shutdown(Duration::from_secs(5));
    let _ = reader.handle.shutdown(Duration::from_secs(5));
}

const FOLLOW: &[&str] = &["--follow"];
const INTERVAL: &[&str] = &["--interval", "50ms"];
const ONCE: &[&str] = &["--limit", "1MiB"];

#[test]
fn a_following_copy_that_is_killed_loses_and_doubles_nothing() {
    killed(FOLLOW, None);
}

#[test]
fn a_copy_at_an_interval_that_is_killed_loses_and_doubles_nothing() {
    killed(INTERVAL, None);
}

#[test]
fn a_single_copy_that_is_killed_can_be_repeated() {
    killed(ONCE, None);
}

#[test]
fn a_copy_that_is_killed_while_its_source_fails_loses_and_doubles_nothing() {
    for mode in [FOLLOW, INTERVAL, ONCE] {
        killed(mode, Some("send"));
    }
}

#[test]
fn a_copy_that_is_killed_while_its_destination_fails_loses_and_doubles_nothing() {
    for mode in [FOLLOW, INTERVAL, ONCE] {
        killed(mode, Some("receive"));
    }
}

#[test]
fn a_signal_ends_a_copy_that_goes_on_well() {
    let room = Room::new();
    init(&room, "send");
    let mode = &["--follow", "--json"];
    let course = Course { room: &room, from: "send", to: "receive", mode, fails: false };
    let mut copying = course.start();
    wait("made", || room.join("receive").exists());
    std::thread::sleep(Duration::from_millis(300));
    let pid = i32::try_from(copying.0.id()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut text = String::new();
    copying.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let mut talk = String::new();
    copying.0.stderr.take().unwrap().read_to_string(&mut talk).unwrap();
    assert_eq!(copying.0.wait().unwrap().code(), Some(0), "{text}{talk}");
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["state"], "in_sync", "{last}");
    assert_eq!(last["lag_records"], 0);
}
