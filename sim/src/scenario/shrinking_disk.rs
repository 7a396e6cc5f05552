//! The volume ends in the middle for a while, is read-only, full, gone; first beside a good network, then
//! without. The path is down with a cause and comes back by itself.

use crate::{
    disk::View,
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("shrinking-disk", 60_000_000);
    let good = plan.healthy().1;
    let bad = [
        View { shrunk: true, ..good },
        View { gone: true, ..good },
        View { refuses: Some(volumes::IoFaultKind::ReadOnly), ..good },
        View { refuses: Some(volumes::IoFaultKind::NoSpace), ..good },
    ];
    let mut at = 4_000;
    for view in bad {
        let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
        plan = plan
            .at(at, Action::View { host, view })
            .at(at + 4_000, Action::CutAll(true))
            .at(at + 6_000, Action::View { host, view: good })
            .at(at + 9_000, Action::CutAll(false));
        at += 13_000;
    }
    plan
}
