//! The network dies silently, both ways at once, and comes back after twenty seconds. Nobody is
//! told. Nothing may be lost, doubled or overtaken.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let cut = rng.range(4_000, 6_000);
    let mut plan = Plan::quiet("clean-cut", 26_000_000)
        .at(cut, Action::CutAll(true))
        .at(cut + 20_000, Action::CutAll(false));
    plan.expect = Expect { lossless: true, storage_used: true, ..Expect::default() };
    plan
}
