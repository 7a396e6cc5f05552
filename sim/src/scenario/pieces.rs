//! Super-packets of many pieces cross a wire that loses, doubles, damages and reorders, and a hole for
//! long frames, while forged frames arrive. What is put together is what was sent, or nothing.
//! (Corruption in reassembly is what CVE-2026-15813 was.)

use crate::{
    net::Wire,
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("pieces", 40_000_000);
    for flow in &mut plan.flows {
        flow.units = 2 + rng.below(30);
        flow.unit = 200 + rng.index(1_100);
        flow.every = 60_000;
    }
    let good = plan.healthy().0;
    let wire = Wire {
        loss: u32::try_from(rng.spread(1_000, 100_000)).unwrap_or(0),
        duplicate: 100_000,
        reorder: 100_000,
        corrupt: 20_000,
        jitter: 5_000,
        ..good
    };
    let hole = Wire { hole_over: Some(600), ..good };
    plan = plan.at(3_000, Action::Stranger { every: 3_000 });
    for (from, to) in [(1, 2), (2, 1)] {
        plan = plan
            .at(4_000, Action::Wire { from, to, wire })
            .at(18_000, Action::Wire { from, to, wire: hole })
            .at(26_000, Action::Wire { from, to, wire: good });
    }
    plan.at(38_000, Action::Stranger { every: 0 })
}
