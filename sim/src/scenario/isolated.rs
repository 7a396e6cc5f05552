//! Network and storage die, both for a while; then storage alone comes back, then the network. Nothing
//! stale is delivered.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let dark = rng.range(3_000, 15_000);
    let mut plan = Plan::quiet("isolated", 40_000_000)
        .at(4_000, Action::CutAll(true))
        .at(6_000, Action::Stall { host: 0, length: dark * 1_000 });
    plan.expect = Expect { storage_used: true, isolated: true, ..Expect::default() };
    plan
}
