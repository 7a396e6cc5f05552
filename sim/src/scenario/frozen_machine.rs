//! A virtual machine is stopped with its clock and goes on elsewhere. Its stamps are late from then on;
//! round trips show it, and its packets are not taken for old ones.
//!
//! Found by a drawn story: peers dropped everything for its age for up to two minutes.

use crate::{
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
    let freeze = |host| Action::Freeze { host, length: 6_000_000 };
    Plan::quiet("frozen-machine", 60_000_000)
        .at(5_000 + rng.below(500), freeze(host))
        .at(25_000, Action::CutAll(true))
        .at(30_000 + rng.below(500), freeze(3 - host))
        .at(50_000, Action::CutAll(false))
}
