//! A daemon dies without a word and starts again, on the network, then on storage, on either side, with
//! and without its state. The survivor counts what was unconfirmed; nothing is delivered twice.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("restart", 50_000_000);
    let mut at = 4_000;
    for round in 0..4 {
        let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
        let (lose_state, reboot) = (rng.chance(300_000), rng.chance(300_000));
        plan = plan
            .at(at, Action::Crash { host, lose_state, reboot })
            .at(at + rng.spread(50, 4_000), Action::Start { host });
        at += 8_000;
        if round == 1 {
            plan = plan.at(at - 1_500, Action::CutAll(true));
        }
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
