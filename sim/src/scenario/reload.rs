//! The configuration is read again and again, on the network, on storage and on the way back. Nobody notices.
//! (A file with an error in it changes nothing: `tests/cli/reload.rs`.)

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("reload", 40_000_000)
        .at(8_000, Action::CutAll(true))
        .at(20_000, Action::CutAll(false));
    for _ in 0..12 {
        let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
        plan = plan.at(2_000 + rng.below(36_000), Action::Reload { host });
    }
    plan.expect = Expect { lossless: true, storage_used: true, ..Expect::default() };
    plan
}
