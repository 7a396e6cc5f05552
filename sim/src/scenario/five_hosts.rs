//! Five hosts on one volume; cuts separate some pairs and not others, then all, and two die.

use crate::{
    plan::{Action, Expect, Plan},
    rng::Rng,
    workload::Flow,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::quiet("five-hosts", 45_000_000);
    plan.hosts = 5;
    plan.flows = (1..=5)
        .flat_map(|a| (1..=5).filter(move |b| *b != a).map(move |b| (a, b)))
        .map(|(a, b)| Flow::steady(a, b, (a + b) % 2 == 0, 40_000))
        .collect();
    for n in 0..8 {
        let from = u8::try_from(rng.range(1, 5)).unwrap_or(1);
        let to = from % 5 + 1;
        let at = 4_000 + n * 1_500;
        plan = plan
            .at(at, Action::Cut { from, to, cut: true })
            .at(at + rng.spread(200, 6_000), Action::Cut { from, to, cut: false });
    }
    plan = plan.at(24_000, Action::CutAll(true)).at(34_000, Action::CutAll(false));
    for host in [2, 4] {
        plan = plan
            .at(26_000, Action::Crash { host, lose_state: false, reboot: host == 4 })
            .at(30_000, Action::Start { host });
    }
    plan.expect = Expect { storage_used: true, ..Expect::default() };
    plan
}
