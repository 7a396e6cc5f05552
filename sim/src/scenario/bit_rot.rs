//! What was written rots on the medium, bit by bit. Damage is noticed, named and repaired from the source.

use crate::{
    disk::View,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("bit-rot", 40_000_000).at(4_000, Action::CutAll(true));
    let good = plan.healthy().1;
    let view = View { rot: u32::try_from(rng.spread(2_000, 100_000)).unwrap_or(0), ..good };
    for host in 1..=2 {
        plan = plan.at(6_000, Action::View { host, view });
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
