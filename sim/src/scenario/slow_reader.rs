//! Storage carries everything and one side reads fifty times slower than the other writes. The ring is small;
//! the writer waits and overwrites nothing that was not read.

use crate::{
    disk::View,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("slow-reader", 45_000_000).at(3_000, Action::CutAll(true));
    plan.data_blocks = 64;
    let good = plan.healthy().1;
    let view = View { slow_reads: rng.range(10, 80), ..good };
    let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
    plan =
        plan.at(6_000, Action::View { host, view }).at(35_000, Action::View { host, view: good });
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
