//! The network is cut, and while storage carries everything the disk answers nobody for up to three
//! seconds. Express packets may die of age, nothing else, and nothing stale is delivered after.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("storage-stall", 34_000_000).at(4_000, Action::CutAll(true));
    let mut at = 7_000;
    for _ in 0..3 {
        let length = rng.spread(300_000, 3_000_000);
        let host = u8::try_from(rng.below(3)).unwrap_or(0);
        plan = plan.at(at, Action::Stall { host, length });
        at += 8_000;
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
