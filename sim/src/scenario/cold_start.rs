//! Both nodes start while the network is already dead. They find each other, agree on keys and carry
//! packets, all through storage; the network comes later.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let late = rng.spread(1, 8_000);
    let mut plan = Plan::quiet("cold-start", 25_000_000)
        .at(0, Action::CutAll(true))
        .at(late, Action::Start { host: 2 });
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
