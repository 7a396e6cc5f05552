//! Storage carries everything; readers see halves of records, bits turned, and old bytes for a while.
//! Checksums, numbers and epochs sort it out; nothing is lost.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("torn-and-stale", 30_000_000).at(6_000, Action::CutAll(true));
    let mut view = plan.healthy().1;
    view.torn = 300_000;
    view.stale = u32::try_from(rng.spread(100, 3_000)).unwrap_or(0);
    view.flip = u32::try_from(rng.spread(100, 5_000)).unwrap_or(0);
    for host in 1..=2 {
        plan = plan.at(3_000, Action::View { host, view });
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
