//! A wire gets slow: everything comes late by up to a second, or only a trickle gets through. Beats that
//! are late as a whole are no proof of death; whichever path is chosen, nothing comes twice.

use crate::{
    net::Wire,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("congestion", 45_000_000);
    let good = plan.healthy().0;
    let spike = Wire { spike: rng.spread(20_000, 1_000_000), ..good };
    let trickle = Wire { rate: rng.spread(4_000, 60_000), ..good };
    for (at, wire) in [(5_000, spike), (20_000, trickle)] {
        for (from, to) in [(1, 2), (2, 1)] {
            plan = plan
                .at(at, Action::Wire { from, to, wire })
                .at(at + 8_000, Action::Wire { from, to, wire: good });
        }
    }
    plan.expect = Expect { left_network: true, ..Expect::default() };
    plan
}
