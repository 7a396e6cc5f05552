//! Keys are renewed every few seconds, over the network, over storage, across a restart and with frames of
//! the old keys still under way. No number is used twice, nothing is lost. (Keys that outlive their
//! renewal are what CVE-2026-15811 was; `failover/tests` looks for them in memory.)

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("rekey", 60_000_000);
    plan.rekey = rng.range(2, 5);
    plan = plan
        .at(10_000, Action::CutAll(true))
        .at(30_000, Action::CutAll(false))
        .at(40_000, Action::Crash { host: 1, lose_state: false, reboot: false })
        .at(41_000, Action::Start { host: 1 });
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
