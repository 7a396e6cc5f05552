//! Something else is written over the volume while it is in use: a partition table, a file system. Nothing of
//! ours is written into it.

use crate::{
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    Plan::quiet("foreign-data", 45_000_000)
        .at(5_000 + rng.below(900), Action::Overwrite { reinit: false })
        .at(15_000, Action::Restore)
        .at(22_000, Action::CutAll(true))
        .at(26_000 + rng.below(900), Action::Overwrite { reinit: false })
        .at(34_000, Action::Restore)
}
