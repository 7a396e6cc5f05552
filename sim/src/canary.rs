//! Bugs planted on purpose: each must be found, or the simulator proves nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{plan::Plan, run, scenario::swarm};

/// A bug and where it is planted.
#[derive(Debug, Clone, Copy)]
pub enum Planted {
    /// In the core.
    Core(failover::canary::Bug),
    /// In a volume machine.
    Volume(volumes::canary::Bug),
    /// One packet in three hundred is handed on twice, or not at all.
    Interface,
}

/// A bug by its name.
#[derive(Debug, Clone, Copy)]
pub struct Canary {
    /// Where.
    pub planted: Planted,
    /// Crate and name.
    pub name: (&'static str, &'static str),
    /// What it does.
    pub what: &'static str,
}

/// When and how a bug was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Seeds tried before one broke, that one included.
    pub seeds: u64,
    /// What broke.
    pub invariant: String,
}

/// Every bug there is to plant.
#[must_use]
pub fn all() -> Vec<Canary> {
    let core = failover::canary::ALL.iter().map(|(bug, name, what)| Canary {
        planted: Planted::Core(*bug),
        name: ("failover", name),
        what,
    });
    let volume = volumes::canary::ALL.iter().map(|(bug, name, what)| Canary {
        planted: Planted::Volume(*bug),
        name: ("volumes", name),
        what,
    });
    let interface = Canary {
        planted: Planted::Interface,
        name: ("sim", "interface"),
        what: "one packet in three hundred comes twice, or not at all",
    };
    core.chain(volume).chain([interface]).collect()
}

fn plant(planted: Option<Planted>) {
    failover::canary::plant(match planted {
        Some(Planted::Core(bug)) => Some(bug),
        _ => None,
    });
    volumes::canary::plant(match planted {
        Some(Planted::Volume(bug)) => Some(bug),
        _ => None,
    });
}

/// Runs a seed with the bug planted; says what broke.
#[must_use]
pub fn run_with(canary: &Canary, plan: Plan, seed: u64, stride: u64) -> Option<String> {
    let plan = Plan { canary: matches!(canary.planted, Planted::Interface), ..plan };
    plant(Some(canary.planted));
    let outcome = catch_unwind(AssertUnwindSafe(|| run(plan, seed, stride, false)));
    plant(None);
    match outcome {
        Ok(outcome) => outcome.violation.map(|v| v.invariant.to_owned()),
        // An assertion is as good a witness as an invariant.
        Err(_) => Some("panic".to_owned()),
    }
}

/// Looks for the bug with the seeds `start..start + seeds` of a drawn story.
#[must_use]
pub fn hunt(canary: &Canary, start: u64, seeds: u64, seconds: u64, stride: u64) -> Option<Found> {
    (0..seeds).find_map(|n| {
        let seed = start + n;
        let invariant = run_with(canary, swarm::of_length(seed, seconds), seed, stride)?;
        Some(Found { seeds: n + 1, invariant })
    })
}
