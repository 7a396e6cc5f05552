//! Operators cut paths on command, one after the other, both, and refuse to wait. A drill that would isolate
//! is refused unless it is forced; all end by themselves.

use failover::Cut;

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("drills", 60_000_000);
    let mut at = 4_000;
    for cut in [Cut::Network, Cut::Storage, Cut::Both, Cut::Network] {
        let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
        let drill = Action::Drill {
            host,
            peer: 3 - host,
            cut,
            length: rng.spread(200_000, 5_000_000),
            force: cut == Cut::Both,
        };
        plan = plan.at(at, drill);
        at += 13_000;
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
