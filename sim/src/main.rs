//! `sidepath-sim`: runs seeds, says what broke and how to see it again.
//!
//! ```text
//! sidepath-sim --seeds 1000                   seeds 1 to 1000, each a story of its own
//! sidepath-sim --start 77 --seeds 1 --trace   one seed, everything printed
//! sidepath-sim --scenario pause --seeds 100   one story, many seeds
//! sidepath-sim --canary                       planted bugs: each must be found
//! ```
//!
//! The last line is a summary; the exit code is 0, or 1 when an invariant broke or, in a run of two
//! hundred seeds or more over all faults, when a kind of fault never fired.

mod words;

use std::process::ExitCode;
use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use sim::{
    KINDS, Outcome, canary,
    fault::Fired,
    plan::Plan,
    run,
    scenario::{self, swarm},
    shrink::{Part, shrink},
};
use words::{USAGE, Words};

/// A run allocates a few times per event: a tenth of its time less than with the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Failures after which a run stops.
const FAILURES_MAX: usize = 10;
/// Seeds of which every kind of fault is expected.
const ENOUGH: u64 = 200;
/// Failures that are shrunk: it takes its time.
const SHRUNK_MAX: usize = 3;

fn plan(words: &Words, seed: u64) -> Option<Plan> {
    let plan = match words.scenario.as_str() {
        "swarm" => swarm::of_length(seed, words.seconds),
        name => scenario::named(name)?(seed),
    };
    let part = Part {
        steps: words.only.clone().unwrap_or_else(|| (0..plan.steps.len()).collect()),
        heal_at: words.heal.map_or(plan.heal_at, |us| us),
    };
    Some(Plan { canary: words.faulty, ..part.of(&plan) })
}

/// User and system time of this process so far, in microseconds.
fn cpu() -> u64 {
    // /proc/self/stat: fields 14 and 15, in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<u64>().ok()).sum::<u64>() * 10_000
}

fn tell(words: &Words, seed: u64, outcome: &Outcome, may_shrink: bool) {
    let Some(v) = &outcome.violation else { return };
    println!("--- seed {seed} ({}) broke: {}: {}", words.scenario, v.invariant, v.detail);
    let Some(whole) = plan(words, seed) else { return };
    let (mut again, mut last, mut part) = (String::new(), outcome.last.clone(), None);
    if may_shrink && words.only.is_none() && !words.aloud {
        let (short, shrunk) = shrink(&whole, seed, words.stride, outcome);
        if let Some(v) = &shrunk.violation {
            let steps: Vec<_> = short.steps.iter().map(ToString::to_string).collect();
            again = format!(" --only {} --heal {}", steps.join(","), short.heal_at);
            println!("shrunk from {} steps to {}; then:", whole.steps.len(), steps.len());
            println!(
                "at {}.{:06} s: {}: {}",
                v.at / 1_000_000,
                v.at % 1_000_000,
                v.invariant,
                v.detail
            );
            last.clone_from(&shrunk.last);
            part = Some(short.of(&whole));
        }
    }
    let told = part.unwrap_or(whole);
    println!(
        "story: {} hosts, wire {} us, disk {} us, mirror {:?}, keys {} s, healed at {} ms",
        told.hosts,
        told.delay,
        told.latency,
        told.mirror,
        told.rekey,
        told.heal_at / 1_000
    );
    for (at, action) in told.steps.iter().filter(|s| s.0 < told.heal_at) {
        println!("  {:>8} ms  {action:?}", at / 1_000);
    }
    if words.brief {
        return;
    }
    println!("the last that happened:");
    last.iter().for_each(|line| println!("{line}"));
    println!("at {}.{:06} s: {}: {}", v.at / 1_000_000, v.at % 1_000_000, v.invariant, v.detail);
    println!("commit {}", option_env!("SIDEPATH_COMMIT").unwrap_or("unknown"));
    println!(
        "again: cargo run --release -p sidepath-sim -- --scenario {} --start {seed} --seeds 1 \
         --seconds {} --stride {}{again} --trace",
        words.scenario, words.seconds, words.stride
    );
}

/// What all runs came to.
#[derive(Debug, Default)]
struct Sum {
    fired: Fired,
    simulated: u64,
    events: u64,
    kinds: [u64; KINDS.len()],
    digest: u64,
    units: (u64, u64, u64),
    sessions: (u64, u64, u64),
    done: u64,
    failed: Vec<u64>,
}

/// Runs the seeds on as many threads as asked for; seeds share nothing.
fn run_all(words: &Words) -> Sum {
    let next = AtomicU64::new(words.start);
    let end = words.start.saturating_add(words.seeds);
    let sum = Mutex::new(Sum::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let Some(plan) = plan(words, seed) else { return };
            let outcome = run(plan, seed, words.stride, words.aloud);
            let failed = outcome.violation.is_some() != words.faulty;
            let mut shrinks = false;
            if let Ok(mut sum) = sum.lock() {
                sum.done += 1;
                sum.fired.add(&outcome.fired);
                sum.simulated += outcome.simulated;
                sum.events += outcome.events;
                for (all, one) in sum.kinds.iter_mut().zip(outcome.kinds) {
                    *all += one;
                }
                sum.units.0 += outcome.units.0;
                sum.units.1 += outcome.units.1;
                sum.units.2 += outcome.units.2;
                sum.sessions.0 += outcome.sessions.0;
                sum.sessions.1 += outcome.sessions.1;
                sum.sessions.2 += outcome.sessions.2;
                // Whatever the order in which threads finish.
                sum.digest ^= outcome.digest.rotate_left(u32::try_from(seed % 64).unwrap_or(0));
                if failed {
                    sum.failed.push(seed);
                    shrinks = sum.failed.len() <= SHRUNK_MAX;
                    if sum.failed.len() >= FAILURES_MAX && !words.keep_going {
                        next.store(end, Ordering::Relaxed);
                    }
                }
            }
            if failed && !words.faulty {
                tell(words, seed, &outcome, shrinks);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..words.threads.max(1) {
            scope.spawn(work);
        }
    });
    let mut sum = sum.into_inner().unwrap_or_default();
    sum.failed.sort_unstable();
    sum
}

/// Plants one bug after the other and says which seed found it.
fn canaries(words: &Words) -> ExitCode {
    // A panic of a planted bug is a finding, not news.
    std::panic::set_hook(Box::new(|_| {}));
    let all = canary::all();
    let seeds = if words.seeds > 1 { words.seeds } else { 100 };
    let next = AtomicU64::new(0);
    let found = Mutex::new(vec![None; all.len()]);
    std::thread::scope(|scope| {
        for _ in 0..words.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let n = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
                    let Some(bug) = all.get(n) else { return };
                    if words.bug.as_ref().is_some_and(|wanted| *wanted != bug.name.1) {
                        continue;
                    }
                    let one = canary::hunt(bug, words.start, seeds, words.seconds, words.stride);
                    if let Ok(mut found) = found.lock() {
                        found[n] = one;
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_default();
    let mut missed = 0;
    println!("{:<9} {:<18} {:>5}  {:<22} what it does", "crate", "bug", "seeds", "broke");
    for (bug, found) in all.iter().zip(&found) {
        if words.bug.as_ref().is_some_and(|wanted| *wanted != bug.name.1) {
            continue;
        }
        let (seeds, broke) = match found {
            Some(found) => (found.seeds.to_string(), found.invariant.as_str()),
            None => {
                missed += 1;
                ("-".to_owned(), "NOT FOUND")
            }
        };
        let (crate_, name) = bug.name;
        println!("{crate_:<9} {name:<18} {seeds:>5}  {broke:<22} {}", bug.what);
    }
    let most = found.iter().flatten().map(|f| f.seeds).max().unwrap_or(0);
    println!(
        "{} bugs planted, {missed} not found within {seeds} seeds; {most} seeds for the hardest; \
         {} CPU s",
        all.len(),
        cpu() / 1_000_000
    );
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let words = match words::read() {
        Ok(words) if words.scenario == "list" => {
            for story in scenario::ALL {
                println!("{:<20} {}", story.name, story.lines.join(" "));
            }
            println!("{:<20} all of them, drawn", "swarm");
            return ExitCode::SUCCESS;
        }
        Ok(words) => words,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if words.scenario != "swarm" && scenario::named(&words.scenario).is_none() {
        eprintln!("no story is called {}; `--scenario list` names them", words.scenario);
        return ExitCode::from(2);
    }
    if words.canary {
        return canaries(&words);
    }
    let Sum { fired, simulated, events, kinds, digest, units, sessions, done, failed } =
        run_all(&words);
    let never: Vec<_> = fired.each().filter(|(_, n)| *n == 0).map(|(word, _)| word).collect();
    let faults: Vec<_> = fired.each().map(|(word, n)| format!("{word} {n}")).collect();
    println!("faults: {}", faults.join(", "));
    let kinds: Vec<_> = KINDS.iter().zip(kinds).map(|(word, n)| format!("{word} {n}")).collect();
    println!("events: {}", kinds.join(", "));
    println!(
        "units: {} offered, {} delivered, {} given up; {events} events; digest {digest:016x}",
        units.0, units.1, units.2
    );
    println!(
        "sessions: {} ends closed, {} ended before; {} bytes delivered",
        sessions.0, sessions.1, sessions.2
    );
    let missing = !words.faulty && words.scenario == "swarm" && done >= ENOUGH && !never.is_empty();
    if missing {
        println!("never fired: {}", never.join(", "));
    }
    if !failed.is_empty() {
        let what = if words.faulty { "the broken interface was not noticed by" } else { "failing" };
        println!("{what} seeds: {failed:?}");
    }
    let (seconds, cpu) = (simulated / 1_000_000, cpu().max(1));
    println!(
        "{done} seeds, {seconds} simulated s, {} simulated s per CPU s, {} faults, {} failures",
        simulated / cpu,
        fired.each().map(|f| f.1).sum::<u64>(),
        failed.len()
    );
    if failed.is_empty() && !missing { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
