//! Copies between files as a program uses them: made, refused, followed, stopped, killed, resumed.

use crate::common::loops::Scratch;
use crate::common::threads::wait;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use volumes::media::{BlockDevice, FaultDevice, MemoryDevice};
use volumes::replicator::{Handle as Copy, NoticeSink, replicate_between};
use volumes::runtime::{Clock, Opener, Sink};
use volumes::{
    AttachError, AttachOptions, Consent, CopyError, CopyOptions, CopyState, Fact, Handle,
    InitError, InitOptions, IoFaultKind, Pace, Refusal, Ring, attach, init, inspect, replicate,
    verify,
};

fn options(name: &str) -> InitOptions {
    InitOptions {
        name: name.into(),
        nodes: vec![1, 2],
        size: Some(4 << 20),
        single_host: true,
        ..InitOptions::default()
    }
}

fn clock() -> Clock {
    let began = Instant::now();
    Arc::new(move || u64::try_from(began.elapsed().as_micros()).unwrap())
}

fn quiet() -> NoticeSink {
    Arc::new(|_| {})
}

fn opts(from: &Path, to: &Path, pace: Pace) -> CopyOptions {
    CopyOptions { single_host: true, ..CopyOptions::new(from, to, pace) }
}

fn copy(from: &Path, to: &Path, pace: Pace) -> Copy {
    replicate(opts(from, to, pace), clock(), quiet()).unwrap()
}

fn end(copy: &Copy) -> Result<(), Arc<CopyError>> {
    copy.wait(Duration::from_secs(30)).expect("it never ends")
}

fn once(from: &Path, to: &Path) -> Result<(), Arc<CopyError>> {
    end(&copy(from, to, Pace::Once))
}

/// An attached node and the numbers of the frames it has read, each once and in order.
struct Node {
    handle: Handle,
    read: Arc<Mutex<Vec<u64>>>,
    missing: Arc<Mutex<u64>>,
    /// Number of the newest record read.
    cursor: Arc<AtomicU64>,
}

impl Node {
    fn start(path: &Path, node: u8, sends: bool) -> Self {
        let (read, missing) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let cursor = Arc::new(AtomicU64::new(0));
        let (r, m, c) = (read.clone(), missing.clone(), cursor.clone());
        let sink: Sink = Arc::new(move |fact| match fact {
            Fact::Frames { frames, .. } => {
                let numbers = frames.iter().map(|f| u64::from_le_bytes(f[..8].try_into().unwrap()));
                r.lock().unwrap().extend(numbers);
            }
            Fact::Cursor { ring: Ring::Data, number, .. } => c.store(number, Ordering::Relaxed),
            Fact::Missing { first, last, .. } => *m.lock().unwrap() += last - first + 1,
            _ => {}
        });
        let o = AttachOptions {
            single_host: true,
            beat_interval: Duration::from_millis(20),
            sends,
            ..AttachOptions::new(path, node)
        };
        let handle = attach(o, clock(), sink).unwrap();
        wait("attach", || handle.epoch() != 0);
        Self { handle, read, missing, cursor }
    }

    fn store(&self, n: u64, len: usize) -> bool {
        let mut frame = n.to_le_bytes().to_vec();
        frame.resize(len.max(8), 7);
        self.handle.store(2, Ring::Data, &frame).is_ok()
    }

    fn count(&self) -> usize {
        self.read.lock().unwrap().len()
    }
}

#[test]
fn a_copy_is_made_followed_and_read() {
    let dir = Scratch::new("followed");
    let (from, to) = (dir.join("send"), dir.join("receive"));
    init(&from, &options("site"), |_, _| {}).unwrap();
    // Nobody sends yet: it is made, and that is all.
    once(&from, &to).unwrap();
    let seen = inspect(&to).unwrap();
    assert!(seen.replica && !inspect(&from).unwrap().replica);
    assert_eq!(seen.uuid, inspect(&from).unwrap().uuid);
    let writer = Node::start(&from, 1, true);
    let reader = Node::start(&to, 2, false);
    let copying = copy(&from, &to, Pace::Follow);
    wait("established", || copying.status().nodes == [1]);
    let mut next = 0;
    let until = Instant::now() + Duration::from_secs(30);
    while next < 4_000 {
        assert!(Instant::now() < until);
        // What the reader has read is released by hand, as the link does it.
        let read = reader.cursor.load(Ordering::Relaxed);
        writer.handle.released(2, Ring::Data, read);
        if writer.store(next, 300 + usize::try_from(next % 3000).unwrap()) {
            next += 1;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    wait("all", || {
        writer.handle.released(2, Ring::Data, reader.cursor.load(Ordering::Relaxed));
        reader.count() == 4_000
    });
    assert_eq!(*reader.read.lock().unwrap(), (0..4_000).collect::<Vec<_>>());
    assert_eq!(*reader.missing.lock().unwrap(), 0);
    wait("in sync", || copying.status().state == CopyState::InSync);
    let status = copying.status();
    assert_eq!((status.missing(), status.lag_records), (0, 0), "{status:?}");
    assert!(copying.stop(Duration::from_secs(5)));
    assert!(writer.handle.shutdown(Duration::from_secs(5)));
    assert!(reader.handle.shutdown(Duration::from_secs(5)));
    // The goodbye follows, and the same again changes nothing.
    once(&from, &to).unwrap();
    let (a, b) = (inspect(&from).unwrap(), inspect(&to).unwrap());
    assert_eq!((a.nodes[0].state, b.nodes[0].state), ("left", "left"));
    assert_eq!((a.nodes[0].epoch, a.nodes[0].beat), (b.nodes[0].epoch, b.nodes[0].beat));
    assert!(verify(&to).unwrap().ok);
    let before = std::fs::read(&to).unwrap();
    once(&from, &to).unwrap();
    assert!(std::fs::read(&to).unwrap() == before, "a second time is no change");
}

trait Missing {
    fn missing(&self) -> u64;
}
impl Missing for volumes::CopyStatus {
    fn missing(&self) -> u64 {
        self.counters.missing
    }
}

#[test]
fn wrong_directions_are_refused_by_name() {
    let dir = Scratch::new("directions");
    let [send, receive, other, foreign, small, clone] =
        ["send", "receive", "other", "foreign", "small", "clone"].map(|n| dir.join(n));
    init(&send, &options("site"), |_, _| {}).unwrap();
    init(&other, &options("payroll"), |_, _| {}).unwrap();
    std::fs::write(&foreign, [&b"precious"[..], &[0; 4 << 20]].concat()).unwrap();
    std::fs::write(&small, vec![0; 1 << 20]).unwrap();
    std::fs::copy(&send, &clone).unwrap();
    once(&send, &receive).unwrap();
    let before: Vec<_> = [&send, &receive, &other, &foreign, &small, &clone]
        .iter()
        .map(|p| std::fs::read(p).unwrap())
        .collect();
    let refused = |from: &Path, to: &Path| {
        let e = once(from, to).unwrap_err();
        assert!(e.is_input_error(), "{e}");
        e
    };
    // Swapped, and the copy of a copy.
    for to in [&send, &dir.join("third")] {
        let e = refused(&receive, to);
        let why = matches!(&*e, CopyError::Refused { why: Refusal::SourceIsReplica { .. }, .. });
        assert!(why && e.to_string().contains("swapped"), "{e}");
    }
    let e = refused(&send, &clone);
    let why = matches!(&*e, CopyError::Refused { why: Refusal::NotAReplica { .. }, .. });
    assert!(why && e.to_string().contains("--name site"), "{e}");
    let e = refused(&send, &other);
    assert!(matches!(&*e, CopyError::Make(InitError::IsAVolume { name, .. }) if name == "payroll"));
    let e = refused(&other, &receive);
    assert!(matches!(&*e, CopyError::Make(InitError::IsAVolume { name, .. }) if name == "site"));
    let e = refused(&send, &foreign);
    assert!(matches!(&*e, CopyError::Make(InitError::Foreign { .. })), "{e}");
    assert!(matches!(&*refused(&send, &small), CopyError::TooSmall { .. }));
    assert!(matches!(&*refused(&send, &send), CopyError::Same { .. }));
    std::fs::hard_link(&send, dir.join("alias")).unwrap();
    assert!(matches!(&*refused(&send, &dir.join("alias")), CopyError::Same { .. }));
    assert!(matches!(&*refused(&foreign, &receive), CopyError::Source(_)));
    let e = refused(&send, Path::new("/dev/sidepath-no-such-device"));
    assert!(matches!(&*e, CopyError::NoDevice { .. }), "{e}");
    for (path, bytes) in [&send, &receive, &other, &foreign, &small, &clone].iter().zip(&before) {
        assert!(std::fs::read(path).unwrap() == *bytes, "{} was touched", path.display());
    }
    assert!(!dir.join("third").exists());
    // A sender is refused on the replica; a reader is not.
    let o = AttachOptions { single_host: true, ..AttachOptions::new(&receive, 1) };
    let e = attach(o, clock(), Arc::new(|_| {})).unwrap_err();
    assert!(matches!(e, AttachError::IsReplica { .. }) && e.is_input_error(), "{e}");
    drop(Node::start(&receive, 2, false).handle);
}

#[test]
fn what_is_there_goes_only_by_name() {
    let dir = Scratch::new("consent");
    let [send, other] = ["send", "other"].map(|n| dir.join(n));
    init(&send, &options("site"), |_, _| {}).unwrap();
    init(&other, &options("payroll"), |_, _| {}).unwrap();
    for (force, name) in [(true, "site"), (false, "payroll"), (true, "")] {
        let consent = Consent { force, name: name.into() };
        let o = CopyOptions { consent, ..opts(&send, &other, Pace::Once) };
        let e = end(&replicate(o, clock(), quiet()).unwrap()).unwrap_err();
        assert!(matches!(&*e, CopyError::Make(InitError::IsAVolume { .. })), "{e}");
    }
    let by_name = |name: &str| {
        let consent = Consent { force: true, name: name.into() };
        let o = CopyOptions { consent, ..opts(&send, &other, Pace::Once) };
        end(&replicate(o, clock(), quiet()).unwrap())
    };
    by_name("payroll").unwrap();
    assert!(inspect(&other).unwrap().replica);
    // Never while somebody reads there.
    let reader = Node::start(&other, 2, false);
    let e = by_name("site").unwrap_err();
    let live = matches!(&*e, CopyError::Make(InitError::Attached { .. } | InitError::Live { .. }));
    assert!(live, "{e}");
    assert!(reader.handle.shutdown(Duration::from_secs(5)));
    by_name("site").unwrap();
}

#[test]
fn one_replicator_per_destination_and_init_keeps_off() {
    let dir = Scratch::new("locked");
    let [send, receive] = ["send", "receive"].map(|n| dir.join(n));
    init(&send, &options("site"), |_, _| {}).unwrap();
    let first = copy(&send, &receive, Pace::Follow);
    wait("in sync", || first.status().state == CopyState::InSync);
    let e = once(&send, &receive).unwrap_err();
    assert!(matches!(&*e, CopyError::Locked { .. }) && e.is_input_error(), "{e}");
    let e = init(&receive, &InitOptions { force: true, ..options("site") }, |_, _| {}).unwrap_err();
    assert!(matches!(e, InitError::Attached { .. }), "{e}");
    assert!(first.stop(Duration::from_secs(5)));
    once(&send, &receive).unwrap();
}

#[test]
fn media_that_appear_later_are_waited_for() {
    let dir = Scratch::new("later");
    let [send, receive] = ["send", "receive"].map(|n| dir.join(n));
    let o = CopyOptions { wait_for_media: true, ..opts(&send, &receive, Pace::Follow) };
    let copying = replicate(o, clock(), quiet()).unwrap();
    wait("a reason", || copying.status().reason.is_some());
    assert_eq!(copying.status().state, CopyState::Starting);
    init(&send, &options("site"), |_, _| {}).unwrap();
    wait("in sync", || copying.status().state == CopyState::InSync);
    assert!(copying.stop(Duration::from_secs(5)));
}

/// Memory with faults at both sides, opened as often as anybody wants.
fn media() -> ([Arc<FaultDevice<MemoryDevice>>; 2], [Opener; 2]) {
    let bytes = 4 << 20;
    let media = [(); 2].map(|()| Arc::new(FaultDevice::new(MemoryDevice::new(bytes))));
    volumes::init_medium(media[0].inner(), Path::new("send"), &options("site"), |_, _| {}).unwrap();
    let openers = [0, 1].map(|i| -> Opener {
        let device = media[i].clone();
        Arc::new(move || Ok(device.clone() as Arc<dyn BlockDevice>))
    });
    (media, openers)
}

#[test]
fn a_side_that_fails_or_hangs_is_told_and_comes_back() {
    let (media, openers) = media();
    let writer_opener = openers[0].clone();
    let o = AttachOptions {
        beat_interval: Duration::from_millis(20),
        ..AttachOptions::new(std::path::Path::new("send"), 1)
    };
    let inner: Opener = {
        // The writer's own way is never cut.
        let device = media[0].inner().clone();
        Arc::new(move || Ok(Arc::new(device.clone()) as Arc<dyn BlockDevice>))
    };
    drop(writer_opener);
    let writer = volumes::runtime::attach_to(o, inner, clock(), Arc::new(|_| {})).unwrap();
    wait("attach", || writer.epoch() != 0);
    let o = CopyOptions {
        io_deadline: Duration::from_millis(100),
        ..CopyOptions::new(Path::new("send"), Path::new("receive"), Pace::Follow)
    };
    let copying = replicate_between(o, openers, clock(), quiet()).unwrap();
    wait("in sync", || copying.status().state == CopyState::InSync);
    let send = |n: u8| {
        while writer.store(2, Ring::Data, &[n; 900]).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for (n, medium) in media.iter().enumerate() {
        let copied = copying.status().counters.records;
        medium.fail_reads(Some(IoFaultKind::Gone));
        medium.fail_writes(Some(IoFaultKind::Gone));
        send(1);
        wait("failed", || copying.status().state == CopyState::Failed);
        assert!(copying.status().reason.unwrap().starts_with(["source", "destination"][n]));
        medium.fail_reads(None);
        medium.fail_writes(None);
        wait("copied", || copying.status().counters.records > copied);
        wait("in sync", || copying.status().state == CopyState::InSync);
        medium.stall(true);
        wait("stalled", || copying.status().state == CopyState::Stalled);
        medium.stall(false);
        wait("in sync again", || copying.status().state == CopyState::InSync);
    }
    assert_eq!(copying.status().counters.missing, 0);
    media[1].stall(true);
    std::thread::sleep(Duration::from_millis(120));
    let began = Instant::now();
    assert!(!copying.stop(Duration::from_millis(200)), "left behind");
    assert!(began.elapsed() < Duration::from_secs(5));
    media[1].stall(false);
    let _ = writer.shutdown(Duration::from_secs(5));
}

/// Run with `cargo test --release -p sidepath-volumes --test all lag -- --ignored --nocapture`:
/// file to file at half the rate that one record after another reaches; from before the record is
/// stored to when the replica's reader hands it out.
#[test]
#[ignore = "a measurement"]
fn lag_under_half_load() {
    let dir = Scratch::new("lag");
    let (from, to) = (dir.join("send"), dir.join("receive"));
    let size = InitOptions { size: Some(64 << 20), ..options("site") };
    init(&from, &size, |_, _| {}).unwrap();
    let began = Instant::now();
    let us = move || u64::try_from(began.elapsed().as_micros()).unwrap();
    once(&from, &to).unwrap();
    let lags: Arc<Mutex<Vec<u64>>> = Arc::default();
    let cursor = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (l, c) = (lags.clone(), cursor.clone());
    let sink: Sink = Arc::new(move |fact| match fact {
        Fact::Frames { frames, .. } => {
            let now = us();
            let sent = |f: &bytes::Bytes| u64::from_le_bytes(f[..8].try_into().unwrap());
            l.lock().unwrap().extend(frames.iter().map(|f| now - sent(f)));
        }
        Fact::Cursor { number, .. } => c.store(number, std::sync::atomic::Ordering::Relaxed),
        _ => {}
    });
    let attach_as = |path: &Path, node, sends, sink| {
        let o = AttachOptions { single_host: true, sends, ..AttachOptions::new(path, node) };
        let handle = attach(o, clock(), sink).unwrap();
        wait("attach", || handle.epoch() != 0);
        handle
    };
    let writer = attach_as(&from, 1, true, Arc::new(|_| {}));
    let reader = attach_as(&to, 2, false, sink);
    let copying = copy(&from, &to, Pace::Follow);
    wait("established", || copying.status().nodes == [1]);
    let frame_len: usize = std::env::var("SIDEPATH_FRAME").map_or(4000, |v| v.parse().unwrap());
    let run = |gap: Option<Duration>, time: Duration| {
        let start = Instant::now();
        let (mut stored, mut due) = (0u64, Instant::now());
        while start.elapsed() < time {
            writer.released(2, Ring::Data, cursor.load(std::sync::atomic::Ordering::Relaxed));
            let mut frame = us().to_le_bytes().to_vec();
            frame.resize(frame_len, 1);
            if writer.store(2, Ring::Data, &frame).is_ok() {
                stored += 1;
            }
            match gap {
                Some(gap) => {
                    due += gap;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                // Full load: no more under way than the link's window.
                None => {
                    while stored.saturating_sub(lags.lock().unwrap().len() as u64) > 256 {
                        writer.released(
                            2,
                            Ring::Data,
                            cursor.load(std::sync::atomic::Ordering::Relaxed),
                        );
                        std::thread::sleep(Duration::from_micros(100));
                        if start.elapsed() > time {
                            break;
                        }
                    }
                }
            }
        }
        let done = lags.lock().unwrap().len();
        (stored, done as f64 / start.elapsed().as_secs_f64())
    };
    let (_, full) = run(None, Duration::from_secs(3));
    std::thread::sleep(Duration::from_millis(1_500));
    lags.lock().unwrap().clear();
    let gap = Duration::from_secs_f64(2.0 / full);
    // What the replicator knows of itself, beside what its reader sees.
    let mut own = Vec::new();
    let over = std::sync::atomic::AtomicBool::new(false);
    let (stored, rate) = std::thread::scope(|scope| {
        let sampled = scope.spawn(|| {
            let mut own = Vec::new();
            while !over.load(Ordering::Relaxed) {
                own.push(copying.status().lag_ms);
                std::thread::sleep(Duration::from_millis(3));
            }
            own
        });
        let ran = run(Some(gap), Duration::from_secs(10));
        over.store(true, Ordering::Relaxed);
        own.extend(sampled.join().unwrap());
        ran
    });
    own.sort_by(f64::total_cmp);
    println!(
        "the copy's own lag: p50 {:.3} ms, p99 {:.3} ms, worst {:.3} ms of {} samples",
        own[own.len() / 2],
        own[own.len() * 99 / 100],
        own[own.len() - 1],
        own.len()
    );
    std::thread::sleep(Duration::from_millis(200));
    let mut all = lags.lock().unwrap().clone();
    all.sort_unstable();
    let at = |p: usize| all[(all.len() - 1) * p / 1000] as f64 / 1000.0;
    println!(
        "full load {full:.0} frames/s of {frame_len} bytes; half: {rate:.0}/s, {} of {stored} \
         arrived, lag p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, worst {:.3} ms",
        all.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    );
    let distinct: BTreeSet<_> = [copying.status().counters.missing].into();
    assert_eq!(distinct, [0].into());
    copying.stop(Duration::from_secs(5));
    let _ = (writer.shutdown(Duration::from_secs(5)), reader.shutdown(Duration::from_secs(5)));
}
