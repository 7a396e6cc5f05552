//! Somebody without a key plays frames again, sends them back, forges their headers (who sends, to whom,
//! which channel, which keys) and makes up his own. Identity comes from keys alone: no route moves,
//! nothing is lost. (Link-id spoofing is what CVE-2026-15812 was.)

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("stranger", 40_000_000)
        .at(3_000, Action::Stranger { every: rng.spread(1_000, 20_000) })
        .at(38_000, Action::Stranger { every: 0 });
    plan.expect = Expect { lossless: true, untouched_after: Some(3_000_000), ..Expect::default() };
    plan
}
