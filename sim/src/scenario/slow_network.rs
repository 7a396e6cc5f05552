//! The network gets slow and stays so: a round trip takes longer than half the time an express packet has
//! to live. Beats pass evenly, so it looks well; storage does better, and keeps the traffic.
//!
//! Found by a drawn story: the route came back, data seemed to stall, and express packets were lost.

use crate::{
    net::Wire,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("slow-network", 45_000_000);
    let good = plan.healthy().0;
    let slow = Wire { spike: rng.range(150_000, 700_000), ..good };
    for (from, to) in [(1, 2), (2, 1)] {
        plan = plan
            .at(8_000, Action::Wire { from, to, wire: slow })
            .at(30_000, Action::Wire { from, to, wire: good });
    }
    plan.expect = Expect { lossless: true, storage_used: true, ..Expect::default() };
    plan
}
