//! A host is given another volume in place of the right one: the same size, another name. It writes nothing
//! there and returns by itself.

use crate::{
    disk::View,
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("wrong-volume", 45_000_000);
    let good = plan.healthy().1;
    let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
    for at in [5_000, 20_000] {
        plan = plan
            .at(at, Action::View { host, view: View { gone: true, ..good } })
            .at(at + rng.below(300), Action::View { host, view: View { wrong: true, ..good } })
            .at(at + 8_000, Action::View { host, view: good });
    }
    plan.at(18_000, Action::CutAll(true)).at(40_000, Action::CutAll(false))
}
