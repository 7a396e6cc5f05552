//! A writer dies in the middle of a write that lands seconds later, over what its successor wrote; or sleeps,
//! is replaced and wakes. Records of older epochs are ignored and counted.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("old-writer", 60_000_000).at(3_000, Action::CutAll(true));
    let mut at = 6_000;
    for _ in 0..5 {
        let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
        plan = plan
            .at(at, Action::Crash { host, lose_state: rng.chance(300_000), reboot: false })
            .at(at + rng.spread(10, 1_500), Action::Start { host });
        at += 9_000;
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
