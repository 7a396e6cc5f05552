//! Somebody formats the live volume again. Whoever used it stops writing at the next look, says so, and
//! comes back when the right volume is back.

use crate::{
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    Plan::quiet("reinit", 60_000_000)
        .at(5_000 + rng.below(900), Action::Overwrite { reinit: true })
        .at(15_000, Action::Restore)
        .at(25_000, Action::CutAll(true))
        .at(30_000 + rng.below(900), Action::Overwrite { reinit: true })
        .at(38_000, Action::Restore)
        .at(50_000, Action::CutAll(false))
}
