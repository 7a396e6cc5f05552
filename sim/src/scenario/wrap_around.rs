//! The smallest rings there are, gone round hundreds of times, with torn writes. A place says nothing about
//! a number. (A sequence that wrapped was Kronosnet's defect of June 2026; `failover/tests` runs
//! numbers to their end.)

use crate::{
    disk::View,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("wrap-around", 60_000_000).at(3_000, Action::CutAll(true));
    plan.data_blocks = 64;
    for flow in &mut plan.flows {
        flow.every /= 3;
    }
    let view = View { torn: u32::try_from(rng.below(200_000)).unwrap_or(0), ..plan.healthy().1 };
    for host in 1..=2 {
        plan = plan.at(10_000, Action::View { host, view });
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
