//! A second daemon with the same number and key starts on another machine, as a cloned virtual machine
//! does, with and without a network. One of them is told to stop; no packet comes twice.

use crate::{
    plan::{Action, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
    let twin = |runs| Action::Twin { host, runs };
    Plan::quiet("two-daemons", 60_000_000)
        .at(5_000, twin(true))
        .at(5_000 + rng.spread(500, 8_000), twin(false))
        .at(20_000, Action::CutAll(true))
        .at(25_000, twin(true))
        .at(25_000 + rng.spread(500, 8_000), twin(false))
        .at(45_000, Action::CutAll(false))
}
