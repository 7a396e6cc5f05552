//! A configuration with a wrong key of the peer is loaded, and corrected. While it is wrong nothing gets
//! through and the loop sleeps; when it is right everything does, at once.
//!
//! Found by drawn stories: a loop that spun, and a window that took new frames for old ones.

use crate::{
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
    let key = |wrong| Action::Key { host, peer: 3 - host, wrong };
    Plan::quiet("wrong-key", 45_000_000)
        .at(5_000 + rng.below(900), key(true))
        .at(10_000 + rng.below(900), key(false))
        .at(20_000, Action::CutAll(true))
        .at(24_000 + rng.below(900), key(true))
        .at(28_000 + rng.below(900), key(false))
        .at(40_000, Action::CutAll(false))
}
