//! One direction of the cable is cut for twenty seconds: one side hears and is not heard. Both must
//! find out, the one that hears only through storage.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let (from, to) = if rng.chance(500_000) { (1, 2) } else { (2, 1) };
    let cut = rng.range(4_000, 6_000);
    let mut plan = Plan::quiet("one-way-cut", 26_000_000)
        .at(cut, Action::Cut { from, to, cut: true })
        .at(cut + 20_000, Action::Cut { from, to, cut: false });
    plan.expect = Expect { lossless: true, storage_used: true, ..Expect::default() };
    plan
}
