//! `sidepath-sim`: runs seeds, says what broke and how to see it again.
//!
//! ```text
//! sidepath-sim --seeds 500                    seeds 1 to 500, each a story of its own
//! sidepath-sim --start 77 --seeds 1 --trace   one seed, everything printed
//! sidepath-sim --scenario pause --seeds 100   one story, many seeds
//! ```
//!
//! The last line is a summary; the exit code is 0, or 1 when an invariant broke or, in a run of two
//! hundred seeds or more over all faults, when a kind of fault never fired.

use std::process::ExitCode;

use sim::{
    Outcome,
    fault::Fired,
    plan::Plan,
    run,
    scenario::{self, swarm},
};

const USAGE: &str = "usage: sidepath-sim [--seeds N] [--start SEED] [--scenario NAME] \
[--seconds N] [--stride N] [--trace] [--keep-going] [--canary]
  --seeds N        how many seeds to run (1)
  --start SEED     the first (1)
  --scenario NAME  one story instead of one drawn from each seed; `list` names them
  --seconds N      longest safety phase of a drawn story (40)
  --stride N       look at the balances after every N turns (8)
  --trace          print everything that happens (also --seed-verbose)
  --keep-going     do not stop at the tenth failure
  --canary         break the interface on purpose: every seed must fail";

/// Failures after which a run stops.
const FAILURES_MAX: u64 = 10;
/// Seeds of which every kind of fault is expected.
const ENOUGH: u64 = 200;

#[derive(Debug)]
struct Words {
    seeds: u64,
    start: u64,
    scenario: String,
    seconds: u64,
    stride: u64,
    aloud: bool,
    keep_going: bool,
    canary: bool,
}

fn words() -> Result<Words, String> {
    let mut words = Words {
        seeds: 1,
        start: 1,
        scenario: "swarm".into(),
        seconds: 40,
        stride: 8,
        aloud: false,
        keep_going: false,
        canary: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(word) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |v: String| v.parse::<u64>().map_err(|_| format!("{v} is no number"));
        match word.as_str() {
            "--seeds" => words.seeds = number(value()?)?,
            "--start" => words.start = number(value()?)?,
            "--seconds" => words.seconds = number(value()?)?.max(10),
            "--stride" => words.stride = number(value()?)?.max(1),
            "--scenario" => words.scenario = value()?,
            "--trace" | "--seed-verbose" => words.aloud = true,
            "--canary" => words.canary = true,
            "--keep-going" => words.keep_going = true,
            _ => return Err(format!("unknown word {word}")),
        }
    }
    Ok(words)
}

fn plan(words: &Words, seed: u64) -> Option<Plan> {
    match words.scenario.as_str() {
        "swarm" => Some(swarm::of_length(seed, words.seconds)),
        name => scenario::named(name).map(|story| story(seed)),
    }
}

/// User time of this process so far, in microseconds.
fn cpu() -> u64 {
    // /proc/self/stat: fields 14 and 15 are user and system time in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<u64>().ok()).sum::<u64>() * 10_000
}

fn tell(words: &Words, seed: u64, outcome: &Outcome) {
    let Some(v) = &outcome.violation else { return };
    println!("--- seed {seed} ({}) broke: {}", words.scenario, v.invariant);
    for line in &outcome.last {
        println!("{line}");
    }
    println!("at {}.{:06} s: {}: {}", v.at / 1_000_000, v.at % 1_000_000, v.invariant, v.detail);
    println!("commit {}", option_env!("SIDEPATH_COMMIT").unwrap_or("unknown"));
    println!(
        "again: cargo run --release -p sidepath-sim -- --scenario {} --start {seed} --seeds 1 \
         --seconds {} --stride {} --trace",
        words.scenario, words.seconds, words.stride
    );
}

fn main() -> ExitCode {
    let words = match words() {
        Ok(words) if words.scenario == "list" => {
            scenario::ALL.iter().for_each(|(name, _)| println!("{name}"));
            println!("swarm");
            return ExitCode::SUCCESS;
        }
        Ok(words) => words,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let (mut fired, mut simulated, mut events) = (Fired::default(), 0, 0);
    let (mut failed, mut done, mut digest) = (Vec::new(), 0, 0_u64);
    let mut units = (0, 0, 0);
    for seed in words.start..words.start.saturating_add(words.seeds) {
        let Some(plan) = plan(&words, seed) else {
            eprintln!("no story is called {}; `--scenario list` names them", words.scenario);
            return ExitCode::from(2);
        };
        let plan = Plan { canary: words.canary, ..plan };
        let outcome = run(plan, seed, words.stride, words.aloud);
        done += 1;
        fired.add(&outcome.fired);
        simulated += outcome.simulated;
        events += outcome.events;
        units.0 += outcome.units.0;
        units.1 += outcome.units.1;
        units.2 += outcome.units.2;
        digest = digest.rotate_left(1) ^ outcome.digest;
        if words.canary {
            failed.extend(outcome.violation.is_none().then_some(seed));
        } else if outcome.violation.is_some() {
            tell(&words, seed, &outcome);
            failed.push(seed);
            if failed.len() as u64 >= FAILURES_MAX && !words.keep_going {
                println!("stopped after {FAILURES_MAX} failures");
                break;
            }
        }
    }
    let never: Vec<_> = fired.each().filter(|(_, n)| *n == 0).map(|(word, _)| word).collect();
    let faults: Vec<_> = fired.each().map(|(word, n)| format!("{word} {n}")).collect();
    println!("faults: {}", faults.join(", "));
    println!(
        "units: {} offered, {} delivered, {} given up; {events} events; digest {digest:016x}",
        units.0, units.1, units.2
    );
    let missing = !words.canary && words.scenario == "swarm" && done >= ENOUGH && !never.is_empty();
    if missing {
        println!("never fired: {}", never.join(", "));
    }
    if !failed.is_empty() {
        let what = if words.canary { "the canary was not noticed by" } else { "failing" };
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
