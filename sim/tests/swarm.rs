//! Thirty drawn stories, and the promise everything else rests on: a seed repeats to the last event.

use sim::{run, scenario::swarm};

#[test]
fn thirty_seeds() {
    for seed in 1..=30 {
        let outcome = run(swarm::of_length(seed, 20), seed, 16, false);
        if let Some(v) = outcome.violation {
            let last = outcome.last.join("\n");
            panic!("{last}\nseed {seed}: {} at {} us: {}", v.invariant, v.at, v.detail);
        }
    }
}

#[test]
fn a_seed_repeats() {
    for seed in [3, 8] {
        let one = run(swarm::of_length(seed, 15), seed, 16, false);
        let two = run(swarm::of_length(seed, 15), seed, 16, false);
        assert_eq!((one.digest, one.events, one.fired), (two.digest, two.events, two.fired));
        let other = run(swarm::of_length(seed, 15), seed + 100, 16, false);
        assert_ne!(one.digest, other.digest, "the seed is used");
    }
}

#[test]
fn a_faulty_interface_is_noticed() {
    for seed in 1..=5 {
        let plan = sim::plan::Plan { canary: true, ..swarm::of_length(seed, 15) };
        let violation = run(plan, seed, 16, false).violation.expect("noticed");
        assert!(violation.invariant.starts_with('I'), "{violation:?}");
    }
}
