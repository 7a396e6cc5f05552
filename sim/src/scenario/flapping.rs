//! The cable has a loose contact: gone and back within 50 ms to 5 s, a dozen times. Leaving is quick,
//! coming back slow, nothing is lost, and switches stay few.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("flapping", 60_000_000);
    let mut at = 5_000;
    for _ in 0..12 {
        plan = plan.at(at, Action::CutAll(true));
        at += rng.spread(50, 5_000);
        plan = plan.at(at, Action::CutAll(false));
        at += rng.spread(100, 5_000);
    }
    plan.expect = Expect { lossless: true, left_network: true, ..Expect::default() };
    plan
}
