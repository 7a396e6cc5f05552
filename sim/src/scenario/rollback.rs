//! An array's snapshot is restored under running daemons: one taken in this incarnation, then one from
//! before a restart. Old records are old; nothing is delivered again.

use crate::{
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    Plan::quiet("rollback", 60_000_000)
        .at(3_000, Action::CutAll(true))
        .at(6_000 + rng.below(500), Action::Snapshot)
        .at(9_000 + rng.below(3_000), Action::RollBack)
        .at(20_000, Action::Snapshot)
        .at(22_000, Action::Crash { host: 1, lose_state: rng.chance(500_000), reboot: false })
        .at(24_000, Action::Start { host: 1 })
        .at(32_000 + rng.below(3_000), Action::RollBack)
        .at(45_000, Action::CutAll(false))
}
