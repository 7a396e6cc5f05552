//! The shortest story that still breaks: fewer steps, less time.
//!
//! Steps are taken away in ever smaller pieces (delta debugging, Zeller and Hildebrandt 2002) as
//! long as the same invariant breaks. Every candidate is run from the same seed; what is left is
//! named by the places of its steps, so that one command tells it again.

use crate::{Outcome, plan::Plan, run};

/// Candidates tried at most.
const TRIES: u32 = 60;

/// A part of a story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Places of the steps that are kept.
    pub steps: Vec<usize>,
    /// When all is healed, virtual microseconds.
    pub heal_at: u64,
}

impl Part {
    /// The story with only these steps.
    #[must_use]
    pub fn of(&self, plan: &Plan) -> Plan {
        let steps = self.steps.iter().filter_map(|i| plan.steps.get(*i)).cloned();
        Plan { steps: steps.collect(), heal_at: self.heal_at, ..plan.clone() }
    }
}

/// Finds a short part of `plan` that breaks the same invariant as `found`.
#[must_use]
pub fn shrink(plan: &Plan, seed: u64, stride: u64, found: &Outcome) -> (Part, Outcome) {
    let mut tries = 0;
    let invariant = found.violation.as_ref().map(|v| v.invariant);
    let mut best = Part { steps: (0..plan.steps.len()).collect(), heal_at: plan.heal_at };
    let mut outcome = None;
    let mut attempt = |part: &Part| -> Option<Outcome> {
        tries += 1;
        if tries > TRIES {
            return None;
        }
        let tried = run(part.of(plan), seed, stride, false);
        (tried.violation.as_ref().map(|v| v.invariant) == invariant).then_some(tried)
    };
    // What comes after the failure had no part in it.
    if let Some(v) = found.violation.as_ref().filter(|v| v.at < plan.heal_at) {
        best.steps.retain(|i| plan.steps[*i].0 <= v.at);
        best.heal_at = v.at + 1_000_000;
    }
    best.steps.retain(|i| plan.steps[*i].0 < best.heal_at);
    let mut size = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        while from < best.steps.len() {
            let mut steps = best.steps.clone();
            steps.drain(from..(from + size).min(steps.len()));
            let candidate = Part { steps, ..best.clone() };
            match attempt(&candidate) {
                Some(found) => (best, outcome) = (candidate, Some(found)),
                None => from += size,
            }
        }
        if size == 1 {
            break;
        }
        size = size.div_ceil(2);
    }
    // Less time.
    for _ in 0..6 {
        let last = best.steps.iter().map(|i| plan.steps[*i].0).max().unwrap_or(0);
        let shorter = Part { heal_at: (last + best.heal_at) / 2 + 1, ..best.clone() };
        match attempt(&shorter) {
            Some(found) => (best, outcome) = (shorter, Some(found)),
            None => break,
        }
    }
    let outcome = outcome.unwrap_or_else(|| run(best.of(plan), seed, stride, false));
    (best, outcome)
}
