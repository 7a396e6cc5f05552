//! Everything breaks, from a seed, and nothing false comes through.
//!
//! Two daemons (three in one story) on a volume behind FUSE, a numbered stream both ways and a TCP
//! connection each way throughout. Rounds draw kill -9, SIGSTOP, cuts of the network, faults of the
//! storage and rollbacks of the volume, mend everything and expect all of it back. After every
//! round: no number twice, none that was never said, none lost without a daemon reporting it, order
//! where no daemon stopped; at the end the TCP streams are equal to the last byte.
//!
//! `SIDEPATH_LAB=long` asks for 200 kills, 100 stops, 200 cuts and 50 rollbacks (about 25 minutes)
//! instead of some of each; `SIDEPATH_LAB_SEED=N` repeats a plan, `SIDEPATH_LAB_ROUNDS=N` its first
//! N rounds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::books::Books;
use crate::faults::{Act, Cut, Deeds, Plan, Storage, Wanted, run};
use crate::fuse::{Array, Rest, Stall};
use crate::rng::Rng;
use crate::transfer::Pair;
use crate::{Lab, Medium, Meter, Needs, Story, Summary};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, tell| Story {
        name,
        needs: Needs::Root,
        tools: &["/dev/fuse"],
        guard: Duration::from_secs(if crate::long() { 2700 } else { 240 }),
        tell,
    };
    vec![
        story("the_array_breaks_as_told", the_array_breaks_as_told),
        story("rounds", rounds),
        story("rolled_back_under_running_daemons", rolled_back_under_running_daemons),
        story("three_nodes", three_nodes),
        story("memory_stays_flat", memory_stays_flat),
    ]
}

/// Short, so that coming back from a cut takes no minute after the tenth.
const NETWORK: &str = "hold = \"200ms\"";
const RATE: u32 = 500;
const BACK: Duration = Duration::from_secs(75);

fn plan(nodes: usize) -> crate::Plan {
    crate::Plan { nodes, medium: Medium::Fuse, network: NETWORK, strangers: 0 }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

fn seed() -> u64 {
    number("SIDEPATH_LAB_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| u64::from(now.subsec_micros()))
    })
}

/// What each round asks for; together they reach the acceptance list.
fn wanted(round: u64) -> Wanted {
    // Of ten rounds: six with two kills, two with four, two with none, whose books have no excuse.
    match round % 10 {
        3 | 8 => Wanted { kills: 0, stops: 1, cuts: 3, storage: 3, ..Wanted::default() },
        1 => Wanted { kills: 4, stops: 1, cuts: 2, storage: 1, rollbacks: 1, down: false },
        6 => Wanted { kills: 2, stops: 1, cuts: 1, storage: 0, rollbacks: 1, down: true },
        5 => Wanted { kills: 2, stops: 1, cuts: 2, storage: 1, rollbacks: 1, down: true },
        0 | 9 => Wanted { kills: 2, stops: 1, cuts: 2, storage: 2, rollbacks: 1, down: false },
        _ => Wanted { kills: 2, stops: 1, cuts: 2, storage: 2, rollbacks: 0, down: false },
    }
}

fn done(deeds: &Deeds) -> bool {
    deeds.get("kill -9") >= 200
        && deeds.get("SIGSTOP") >= 100
        && deeds.get("cuts") >= 200
        && deeds.get("rollbacks") >= 50
}

fn rounds() {
    let seed = seed();
    println!("  seed {seed} (SIDEPATH_LAB_SEED={seed} repeats the plan)");
    let lab = Lab::running(plan(2));
    let mut deeds = Deeds::default();
    deeds.snapshot(&lab);
    let pair = Pair::start(&lab, 1, 2, 128 << 10);
    let default = if crate::long() { 130 } else { 1 };
    let limit = number("SIDEPATH_LAB_ROUNDS").unwrap_or(default);
    let began = Instant::now();
    let mut sums = Sums::default();
    for round in 0..limit {
        // Each round is drawn by itself, so that a later one can be repeated alone.
        let mut rng = Rng::new(seed.wrapping_mul(1_000_003).wrapping_add(round));
        let plan = Plan::draw(&mut rng, 2, wanted(round), &Storage::ALL);
        one_round(&lab, round, &plan, &mut deeds, &mut rng, &mut sums);
        if done(&deeds) {
            break;
        }
    }
    let bytes = pair.assert_equal(Duration::from_secs(150));
    table(&deeds, &sums, began.elapsed());
    println!("  TCP: {} and {} bytes, equal to the last", bytes[0], bytes[1]);
    if crate::long() && number("SIDEPATH_LAB_ROUNDS").is_none() {
        assert!(done(&deeds), "the plan was too small");
    }
}

/// What needs minutes to mean anything is told for `SIDEPATH_LAB=long` or a seed only.
fn only_long() -> bool {
    let short = !crate::long() && number("SIDEPATH_LAB_SEED").is_none();
    if short {
        println!("  not told: set SIDEPATH_LAB=long, or SIDEPATH_LAB_SEED for a short one");
    }
    short
}

#[derive(Default)]
struct Sums {
    rounds: u64,
    sent: u64,
    delivered: u64,
    excused: u64,
    reported: u64,
    overtaken: u64,
    back: Summary,
}

fn one_round(
    lab: &Lab,
    round: u64,
    plan: &Plan,
    deeds: &mut Deeds,
    rng: &mut Rng,
    sums: &mut Sums,
) {
    println!("  round {round}:{plan}");
    let mut books = Books::open(lab);
    let mut meter = Meter::start(lab, 1, 2, RATE);
    meter.mark("the start of the round");
    run(lab, plan, deeds, rng, |now, act| {
        meter.note(now, &format!("{act:?}"));
        if let Act::Kill(node) = act {
            books.before_kill(lab, node, now);
        }
    });
    let healed = Instant::now();
    meter.mark("the last repair");
    lab.disk().array().heal();
    // By itself, also after a roll-back: nobody is restarted.
    lab.await_network(BACK);
    sums.back.add(healed.elapsed().as_secs_f64() * 1e3);
    books.all_back(meter.mark("everything back"));
    sleep(Duration::from_millis(500));
    deeds.snapshot(lab);
    let streams = meter.finish(Duration::from_millis(500));
    let (excused, reported) = books.close(lab, &streams);
    for stream in &streams {
        stream.assert_never_twice();
        let phantoms = stream.phantoms();
        assert!(phantoms.is_empty(), "{}: never said {}", stream.name, stream.tell(&phantoms));
        let changed: Vec<_> =
            stream.errors.keys().filter(|error| error.contains("changed")).collect();
        assert!(changed.is_empty(), "{}: {changed:?}", stream.name);
        let late = stream.reordered();
        sums.overtaken += late.len() as u64;
        let stopped = plan.has(|act| matches!(act, Act::Kill(_) | Act::Stop(_)));
        assert!(late.is_empty() || stopped, "{}: out of order {}", stream.name, stream.tell(&late));
        sums.sent += stream.sent.len() as u64;
        sums.delivered += stream.arrivals.len() as u64;
    }
    sums.rounds += 1;
    sums.excused += excused as u64;
    sums.reported += reported as u64;
}

fn table(deeds: &Deeds, sums: &Sums, took: Duration) {
    println!("  {:<28} {:>8}", "done", "times");
    for (what, count) in &deeds.count {
        println!("  {what:<28} {count:>8}");
    }
    println!(
        "  {} rounds in {:.0} s: sent {}, delivered {}, lost with the killed {}, lost and reported \
         {}, overtaken across stops {}, twice 0, phantoms 0",
        sums.rounds,
        took.as_secs_f64(),
        sums.sent,
        sums.delivered,
        sums.excused,
        sums.reported,
        sums.overtaken
    );
    println!("  from the last repair to every route network, storage up: {}", sums.back);
}

/// The volume goes back in time while both daemons run: to a state of the same incarnations, then
/// to one from before a daemon's restart.
fn rolled_back_under_running_daemons() {
    let lab = Lab::running(plan(2));
    let array = lab.disk().array();
    let before_restart = array.snapshot();
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    let mut meter = Meter::start(&lab, 1, 2, RATE);
    for _ in 0..3 {
        let older = array.snapshot();
        sleep(Duration::from_millis(400));
        meter.mark("a rollback within one incarnation");
        array.roll_back(&older);
        sleep(Duration::from_millis(400));
    }
    let streams = meter.finish(Duration::from_millis(1500));
    for stream in &streams {
        stream.assert_perfect();
    }
    for node in &lab.nodes {
        let status = node.status();
        assert!(status.storage_complaints().is_empty(), "{}", status.brief());
    }
    lab.black_hole_heal();
    lab.await_network(BACK);

    // Beta is a new incarnation now, of which the older image knows nothing.
    lab.node(2).kill();
    lab.node(2).start();
    lab.await_network(BACK);
    let mut meter = Meter::start(&lab, 1, 2, RATE);
    sleep(Duration::from_millis(300));
    meter.mark("a rollback to before the restart");
    array.roll_back(&before_restart);
    sleep(Duration::from_millis(2500));
    for node in &lab.nodes {
        println!("  {}: {}", node.name, node.status().brief());
    }
    let back = lab.await_network(Duration::from_secs(30));
    println!("  storage up again {:.1} s later", back.as_secs_f64());
    meter.mark("a cut");
    lab.black_hole();
    lab.await_route("storage", Duration::from_secs(5));
    sleep(Duration::from_millis(500));
    for stream in &meter.finish(Duration::from_millis(1000)) {
        stream.assert_perfect();
    }
    lab.await_settled(Duration::from_secs(10));
}

fn three_nodes() {
    if only_long() {
        return;
    }
    let seed = seed();
    println!("  seed {seed}");
    let lab = Lab::running(plan(3));
    let mut deeds = Deeds::default();
    deeds.snapshot(&lab);
    let pair = Pair::start(&lab, 3, 1, 128 << 10);
    let mut sums = Sums::default();
    let began = Instant::now();
    for round in 0..if crate::long() { 10 } else { 1 } {
        let mut rng = Rng::new(seed.wrapping_mul(7919).wrapping_add(round));
        let wanted = Wanted { kills: 2, stops: 1, cuts: 2, storage: 2, rollbacks: 0, down: false };
        let plan = Plan::draw(&mut rng, 3, wanted, &Storage::ALL);
        one_round(&lab, round, &plan, &mut deeds, &mut rng, &mut sums);
    }
    pair.assert_equal(Duration::from_secs(150));
    table(&deeds, &sums, began.elapsed());
}

/// Nobody is killed; the network and the storage break again and again under load.
fn memory_stays_flat() {
    if only_long() {
        return;
    }
    let lab = Lab::running(plan(2));
    let mut rng = Rng::new(seed());
    let pair = Pair::start(&lab, 1, 2, 2 << 20);
    let meter = Meter::start(&lab, 1, 2, 1000);
    let mut deeds = Deeds::default();
    let length = Duration::from_secs(if crate::long() { 300 } else { 5 });
    let stop = AtomicBool::new(false);
    // Samples taken before the warm-up was over.
    let cold = AtomicUsize::new(0);
    let taken = AtomicUsize::new(0);
    let samples = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut samples = [Vec::new(), Vec::new()];
            while !stop.load(Ordering::Relaxed) {
                for (node, samples) in lab.nodes.iter().zip(&mut samples) {
                    samples.push(node.resident_kib());
                }
                taken.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(50));
            }
            samples
        });
        let mut cycle = || {
            for act in [Act::Cut(Cut::BlackHole), Act::Mend(Cut::BlackHole)] {
                deeds.perform(&lab, act, &mut rng);
                sleep(Duration::from_millis(500));
            }
            let fault = rng.pick(&[Storage::StallAll, Storage::SomeErrors, Storage::StaleReads]);
            for act in [Act::Storage(fault, 1), Act::Repair(1)] {
                deeds.perform(&lab, act, &mut rng);
                sleep(Duration::from_millis(250));
            }
        };
        // Warm up: queues, records and thread stacks have had their largest size once.
        cycle();
        cycle();
        let warm = Instant::now();
        let first = lab.nodes.iter().map(crate::Node::resident_kib).collect::<Vec<_>>();
        println!("  resident after the warm-up {first:?} KiB");
        cold.store(taken.load(Ordering::Relaxed), Ordering::Relaxed);
        while warm.elapsed() < length {
            cycle();
        }
        stop.store(true, Ordering::Relaxed);
        sampler.join().unwrap_or_default()
    });
    for (node, samples) in lab.nodes.iter().zip(samples) {
        let warm = &samples[cold.load(Ordering::Relaxed).min(samples.len())..];
        let quarter = warm.len() / 4;
        let (first, last) = (median(&warm[..quarter]), median(&warm[warm.len() - quarter..]));
        let growth = (last as f64 / first as f64 - 1.0) * 100.0;
        println!("  {}: median {first} KiB, then {last} KiB: {growth:+.1} %", node.name);
        assert!(growth < 5.0, "{} grew by {growth:.1} %", node.name);
    }
    lab.await_network(BACK);
    meter.finish(Duration::from_millis(500)).iter().for_each(crate::Stream::assert_never_twice);
    pair.assert_equal(Duration::from_secs(60));
    lab.await_settled(Duration::from_secs(10));
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

/// The faults themselves, without a daemon: a fault that is not one proves nothing.
fn the_array_breaks_as_told() {
    use std::os::unix::fs::FileExt;
    let folder = crate::runner::folder().join("faults");
    let array = Array::mount(&folder, 2, 1 << 20);
    let open = |host| {
        let file = std::fs::File::options().read(true).write(true).open(array.path(host));
        file.unwrap_or_else(|e| panic!("{}: {e}", array.path(host).display()))
    };
    let (one, two) = (open(1), open(2));
    let read = |file: &std::fs::File, at| {
        let mut bytes = vec![0; 8192];
        file.read_exact_at(&mut bytes, at).map(|()| bytes)
    };
    let errno = |result: std::io::Result<_>| {
        result.map(|()| 0).unwrap_or_else(|e| e.raw_os_error().unwrap_or(-1))
    };
    let old = array.snapshot();
    one.write_all_at(&[1; 8192], 0).expect("a write");
    assert_eq!(read(&two, 0).expect("a read"), [1; 8192], "one image");

    array.port(2).flip_reads(1);
    let flipped: u32 = read(&two, 0).expect("a read").iter().map(|b| (b ^ 1).count_ones()).sum();
    assert_eq!(flipped, 1, "one bit");
    assert_eq!(read(&one, 0).expect("a read"), [1; 8192], "only that host's");
    array.heal();

    array.stale(2);
    one.write_all_at(&[2; 8192], 0).expect("a write");
    assert_eq!(read(&two, 0).expect("a read"), [1; 8192], "stale");
    array.heal();
    assert_eq!(read(&two, 0).expect("a read"), [2; 8192]);

    for (rest, error) in [(Rest::Lie, 0), (Rest::Error, libc::EIO)] {
        array.port(1).tear_writes(1, rest);
        assert_eq!(errno(one.write_all_at(&[3; 8192], 8192)), error);
        array.heal();
        let torn = read(&two, 8192).expect("a read");
        assert!(torn[..4096] == [3; 4096] && torn[4096..] == [0; 4096], "half of it");
        one.write_all_at(&[0; 8192], 8192).expect("a write");
    }

    array.port(1).fail_writes(2, libc::ENOSPC);
    let errors: Vec<i32> = (0..4).map(|_| errno(one.write_all_at(&[4; 4096], 0))).collect();
    assert_eq!(errors.iter().filter(|e| **e == libc::ENOSPC).count(), 2, "{errors:?}");
    array.port(1).fail_reads(1, libc::EIO);
    assert_eq!(errno(read(&one, 0).map(|_| ())), libc::EIO);
    array.heal();

    // One operation sticks, others go on; a stall holds all.
    array.port(1).stick_next();
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| read(&one, 0).map(|_| ()));
        sleep(Duration::from_millis(50));
        let other = open(1);
        read(&other, 0).expect("another operation goes on");
        assert!(!stuck.is_finished(), "stuck");
        array.heal();
        stuck.join().expect("a thread").expect("released");
        array.port(1).stall(Stall::Writes);
        let held = scope.spawn(|| one.write_all_at(&[5; 4096], 0));
        sleep(Duration::from_millis(50));
        read(&other, 0).expect("reads go on");
        assert!(!held.is_finished(), "held");
        array.heal();
        held.join().expect("a thread").expect("released");
    });

    array.lie_about_flush(true);
    one.write_all_at(&[6; 65536], 0).expect("a write");
    one.sync_all().expect("a flush that lies");
    let lost = array.power_cut(Duration::from_secs(1), &mut Rng::new(1));
    assert!((1..16).contains(&lost), "{lost} of 16 blocks");
    array.heal();

    array.roll_back(&old);
    assert_eq!(read(&two, 0).expect("a read"), [0; 8192], "rolled back");
    drop((one, two));
    drop(array);
    assert!(std::fs::read_dir(&folder).is_ok_and(|mut inside| inside.next().is_none()));
}
