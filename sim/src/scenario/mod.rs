//! The stories: each file is one, told as a plan. [`swarm`] draws one at random.

pub mod bad_storage;
pub mod blind_hold;
pub mod blind_return;
pub mod clean_cut;
pub mod cold_start;
pub mod eio;
pub mod flapping;
pub mod isolated;
pub mod loss_and_reorder;
pub mod mtu_hole;
pub mod one_way_cut;
pub mod pause;
pub mod restart;
pub mod storage_stall;
pub mod swarm;
pub mod torn_and_stale;

use crate::plan::Plan;

/// A story with a name.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Lines of the fault table (`docs/testing.md`) it tells.
    pub lines: &'static [&'static str],
    /// The plan of a seed.
    pub plan: fn(seed: u64) -> Plan,
}

const fn story(name: &'static str, lines: &'static [&'static str], plan: fn(u64) -> Plan) -> Story {
    Story { name, lines, plan }
}

/// Every story with a name.
pub const ALL: &[Story] = &[
    story("clean-cut", &["N2"], clean_cut::plan),
    story("one-way-cut", &["N3"], one_way_cut::plan),
    story("flapping", &["N4"], flapping::plan),
    story("loss-and-reorder", &["N1"], loss_and_reorder::plan),
    story("storage-stall", &["S2"], storage_stall::plan),
    story("eio", &["S1"], eio::plan),
    story("torn-and-stale", &["S3", "S7"], torn_and_stale::plan),
    story("restart", &["H1", "H2"], restart::plan),
    story("cold-start", &["H1"], cold_start::plan),
    story("isolated", &["N2", "S8"], isolated::plan),
    story("pause", &["H4"], pause::plan),
    story("mtu-hole", &["N5"], mtu_hole::plan),
    story("bad-storage", &["S1", "S2", "S8"], bad_storage::plan),
    story("blind-return", &["S1", "N3"], blind_return::plan),
    story("blind-hold", &["S1", "N3"], blind_hold::plan),
];

/// The story of that name; `swarm` draws one from the seed.
#[must_use]
pub fn named(name: &str) -> Option<fn(u64) -> Plan> {
    if name == "swarm" {
        return Some(swarm::plan);
    }
    ALL.iter().find(|s| s.name == name).map(|s| s.plan)
}
