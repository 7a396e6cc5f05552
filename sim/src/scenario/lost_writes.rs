//! Storage carries everything and confirms writes that never land. Only the peer's receipt counts.

use crate::{
    disk::View,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("lost-writes", 40_000_000).at(4_000, Action::CutAll(true));
    let good = plan.healthy().1;
    let view = View { lost: u32::try_from(rng.spread(2_000, 150_000)).unwrap_or(0), ..good };
    for host in 1..=2 {
        plan = plan.at(6_000, Action::View { host, view });
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
