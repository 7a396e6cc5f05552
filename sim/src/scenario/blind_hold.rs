//! One host can read nothing from the disk, and the network blinks: the other host goes to storage
//! for the hold time although nobody reads it there. Receipts must come back all the same, or data
//! in the good direction seems to stall.
//!
//! Found by a drawn story: a blink of 27 ms stopped the other direction for half a second.

use crate::{
    disk::View,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("blind-hold", 40_000_000);
    let good = plan.healthy().1;
    let blind = View { read_error: 1_000_000, ..good };
    for at in [10_000, 20_000, 30_000] {
        // Host 2 has heard for two seconds that its beat is not seen: merely suspect so far.
        plan = plan
            .at(at - rng.range(1_850, 2_250), Action::View { host: 1, view: blind })
            .at(at, Action::Cut { from: 2, to: 1, cut: true })
            .at(at + 32, Action::Cut { from: 2, to: 1, cut: false })
            .at(at + 95, Action::Carrier { host: 2, up: false })
            .at(at + 95 + rng.range(22, 30), Action::Carrier { host: 2, up: true })
            .at(at + 3_000, Action::View { host: 1, view: good });
    }
    plan.expect = Expect { left_network: true, ..Expect::default() };
    plan
}
