//! Two storage systems copy from each other, late and out of order, while the network is away. Order is
//! never inferred from the order of blocks.

use crate::{
    disk::MirrorSettings,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let usual = MirrorSettings { lag: 3_000, jitter: 2_000, reorder: 0 };
    let mut plan = Plan::quiet("mirror-lag", 60_000_000).at(4_000, Action::CutAll(true));
    plan.mirror = Some(usual);
    let worse = MirrorSettings {
        lag: rng.spread(10_000, 300_000),
        jitter: rng.spread(1_000, 50_000),
        reorder: u32::try_from(rng.spread(10_000, 400_000)).unwrap_or(0),
    };
    plan = plan.at(12_000, Action::Mirror(worse)).at(35_000, Action::Mirror(usual));
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
