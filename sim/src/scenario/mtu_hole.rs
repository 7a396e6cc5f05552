//! Large datagrams vanish, small ones pass: beats look well while data starves. Data counts, not only
//! beats.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let hole = 200 + rng.index(1_000);
    let mut plan = Plan::quiet("mtu-hole", 30_000_000);
    let wire = crate::net::Wire { hole_over: Some(hole), ..plan.healthy().0 };
    for (from, to) in [(1, 2), (2, 1)] {
        plan = plan.at(5_000, Action::Wire { from, to, wire });
    }
    plan.expect = Expect { lossless: true, left_network: true, ..Expect::default() };
    plan
}
