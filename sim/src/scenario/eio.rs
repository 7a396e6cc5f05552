//! Storage carries everything, and one operation in twenty fails with an error. The path may be called
//! names; as long as most operations work, packets go through.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("eio", 30_000_000).at(4_000, Action::CutAll(true));
    let mut view = plan.healthy().1;
    view.read_error = u32::try_from(rng.spread(2_000, 60_000)).unwrap_or(0);
    view.write_error = u32::try_from(rng.spread(2_000, 60_000)).unwrap_or(0);
    for host in 1..=2 {
        plan = plan.at(6_000, Action::View { host, view });
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
