//! The network is back, the hold time nearly over, and one host can read nothing from the disk any
//! more: what storage alone carries then must cross the network in time.
//!
//! Found by a drawn story: frames written in the last moments before the return waited for the
//! reader, and the network never took them over.

use crate::{
    disk::View,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
    let plan = Plan::quiet("blind-return", 20_000_000);
    let good = plan.healthy().1;
    let blind = View { read_error: 1_000_000, ..good };
    // Proof and hold take a little more than a second.
    let from = 8_900 + rng.below(150);
    let mut plan = plan
        .at(4_000, Action::CutAll(true))
        .at(8_000, Action::CutAll(false))
        .at(from, Action::View { host, view: blind })
        .at(from + 7_000, Action::View { host, view: good });
    plan.expect = Expect { lossless: true, storage_used: true, ..Expect::default() };
    plan
}
