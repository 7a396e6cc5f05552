//! Writes land elsewhere: on another lane, another ring, the node table. A record says where it belongs;
//! whatever it overwrote is found missing and sent again.

use crate::{
    disk::View,
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("misdirected", 40_000_000).at(4_000, Action::CutAll(true));
    let good = plan.healthy().1;
    let view = View { misdirected: u32::try_from(rng.spread(1_000, 30_000)).unwrap_or(0), ..good };
    for host in 1..=2 {
        plan = plan.at(6_000, Action::View { host, view });
    }
    plan
}
