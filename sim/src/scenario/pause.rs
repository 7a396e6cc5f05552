//! A daemon is stopped for ten seconds and goes on, on the network or on storage, with writes under way.
//! It looks at the fence again before it writes; peers have moved on; nothing comes twice.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
    let mut plan = Plan::quiet("pause", 45_000_000)
        .at(5_000 + rng.below(500), Action::Pause { host, length: 10_000_000 })
        .at(22_000, Action::CutAll(true))
        .at(26_000 + rng.below(500), Action::Pause { host: 3 - host, length: 10_000_000 });
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
