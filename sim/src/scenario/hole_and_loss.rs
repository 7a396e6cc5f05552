//! A wire that swallows large datagrams and loses many others. Small ones of the same class get
//! through and leave traces, so that the channel never falls silent; the large ones must not die of
//! age for it.

use crate::{
    net::Wire,
    plan::{Action, Expect, Plan},
    rng::Rng,
    workload::Flow,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("hole-and-loss", 30_000_000);
    plan.flows.clear();
    for express in [true, false] {
        plan.flows.push(Flow::steady(1, 2, express, 9_000));
        plan.flows.push(Flow { unit: 1300, ..Flow::steady(1, 2, express, 40_000) });
        plan.flows.push(Flow::steady(2, 1, express, 20_000));
    }
    let hole_over = Some(300 + rng.index(800));
    let loss = u32::try_from(rng.below(200_000)).unwrap_or(0);
    let wire = Wire { hole_over, loss, ..plan.healthy().0 };
    plan = plan.at(5_000, Action::Wire { from: 1, to: 2, wire });
    plan.expect = Expect { lossless: true, left_network: true, ..Expect::default() };
    plan
}
