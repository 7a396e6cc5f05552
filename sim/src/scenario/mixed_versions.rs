//! One side speaks a newer version for a while, as in the middle of an upgrade. The other refuses by name,
//! guesses nothing, and everything is well when both speak one.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
    let version = |other| Action::Version { host, other };
    let mut plan = Plan::quiet("mixed-versions", 45_000_000)
        .at(5_000, version(true))
        .at(5_000 + rng.spread(500, 8_000), version(false))
        .at(20_000, Action::CutAll(true))
        .at(25_000, version(true))
        .at(25_000 + rng.spread(500, 8_000), version(false))
        .at(40_000, Action::CutAll(false));
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
