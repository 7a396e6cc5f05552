//! Every storage fault there is, one after the other, while the network is fine. Traffic does not
//! notice, no route changes, and the path comes back by itself.

use crate::{
    disk::View,
    plan::{Action, Expect, Plan},
    rng::Rng,
};

/// The story.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    use volumes::IoFaultKind::{NoSpace, ReadOnly};
    let mut plan = Plan::quiet("bad-storage", 60_000_000);
    let good = plan.healthy().1;
    let bad = [
        View { read_error: 1_000_000, ..good },
        View { write_error: 1_000_000, ..good },
        View { refuses: Some(ReadOnly), ..good },
        View { refuses: Some(NoSpace), ..good },
        View { gone: true, ..good },
        View { stuck: 200_000, ..good },
        View { torn: 500_000, stale: 50_000, flip: 50_000, ..good },
        View { slow: 100, ..good },
    ];
    let mut at = 4_000;
    for view in bad {
        let host = u8::try_from(rng.range(1, 2)).unwrap_or(1);
        plan = plan
            .at(at, Action::View { host, view })
            .at(at + 4_000, Action::View { host, view: good })
            .at(at + 4_500, Action::Stall { host: 3 - host, length: 1_500_000 });
        at += 6_500;
    }
    plan.expect = Expect { lossless: true, untouched_after: Some(3_000_000), ..Expect::default() };
    plan
}
