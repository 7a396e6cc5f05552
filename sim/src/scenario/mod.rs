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

/// A story: the plan of a seed.
pub type Story = fn(seed: u64) -> Plan;

/// Every story with a name.
pub const ALL: &[(&str, Story)] = &[
    ("clean-cut", clean_cut::plan),
    ("one-way-cut", one_way_cut::plan),
    ("flapping", flapping::plan),
    ("loss-and-reorder", loss_and_reorder::plan),
    ("storage-stall", storage_stall::plan),
    ("eio", eio::plan),
    ("torn-and-stale", torn_and_stale::plan),
    ("restart", restart::plan),
    ("cold-start", cold_start::plan),
    ("isolated", isolated::plan),
    ("pause", pause::plan),
    ("mtu-hole", mtu_hole::plan),
    ("bad-storage", bad_storage::plan),
    ("blind-return", blind_return::plan),
    ("blind-hold", blind_hold::plan),
];

/// The story of that name; `swarm` draws one from the seed.
#[must_use]
pub fn named(name: &str) -> Option<Story> {
    if name == "swarm" {
        return Some(swarm::plan);
    }
    ALL.iter().find(|(n, _)| *n == name).map(|(_, story)| *story)
}
