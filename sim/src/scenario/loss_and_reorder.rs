//! The network loses, doubles, delays and damages a few datagrams in a hundred, but lives. Holes are
//! repaired within the time to live; no copy is delivered twice.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("loss-and-reorder", 30_000_000);
    let mut wire = plan.healthy().0;
    wire.loss = u32::try_from(rng.spread(1_000, 18_000)).unwrap_or(0);
    wire.corrupt = u32::try_from(rng.below(2_000)).unwrap_or(0);
    wire.duplicate = u32::try_from(rng.spread(1_000, 100_000)).unwrap_or(0);
    wire.reorder = u32::try_from(rng.spread(1_000, 50_000)).unwrap_or(0);
    wire.jitter = rng.spread(100, 8_000);
    for (from, to) in [(1, 2), (2, 1)] {
        plan = plan.at(3_000, Action::Wire { from, to, wire });
    }
    plan.expect = Expect { lossless: true, ..Expect::default() };
    plan
}
