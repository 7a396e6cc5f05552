//! A mirror is torn apart and brought together again, with and without a network. Each side sees the other
//! stand still, then everything at once.

use crate::{
    disk::MirrorSettings,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("mirror-split", 60_000_000);
    plan.mirror = Some(MirrorSettings { lag: 2_000, jitter: 2_000, reorder: 100_000 });
    plan = plan
        .at(4_000, Action::Split { length: rng.spread(500_000, 6_000_000) })
        .at(16_000, Action::CutAll(true))
        .at(20_000, Action::Split { length: rng.spread(500_000, 6_000_000) })
        .at(45_000, Action::CutAll(false));
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
