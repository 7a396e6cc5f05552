//! The stories: each file is one, told as a plan. [`swarm`] draws one at random.

pub mod bad_storage;
pub mod bit_rot;
pub mod blind_hold;
pub mod blind_return;
pub mod clean_cut;
pub mod cold_start;
pub mod congestion;
pub mod drills;
pub mod eio;
pub mod five_hosts;
pub mod flapping;
pub mod foreign_data;
pub mod frozen_machine;
pub mod hole_and_loss;
pub mod isolated;
pub mod loss_and_reorder;
pub mod lost_writes;
pub mod mirror_lag;
pub mod mirror_split;
pub mod misdirected;
pub mod mixed_versions;
pub mod mtu_hole;
pub mod old_writer;
pub mod one_way_cut;
pub mod pause;
pub mod pieces;
pub mod reinit;
pub mod rekey;
pub mod reload;
pub mod restart;
pub mod rollback;
pub mod shrinking_disk;
pub mod slow_network;
pub mod slow_reader;
pub mod storage_stall;
pub mod stranger;
pub mod swarm;
pub mod torn_and_stale;
pub mod two_daemons;
pub mod wrap_around;
pub mod wrong_key;
pub mod wrong_volume;

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
    story("hole-and-loss", &["N1", "N5"], hole_and_loss::plan),
    story("bad-storage", &["S1", "S2", "S8"], bad_storage::plan),
    story("blind-return", &["S1", "N3"], blind_return::plan),
    story("blind-hold", &["S1", "N3"], blind_hold::plan),
    story("congestion", &["N6"], congestion::plan),
    story("slow-network", &["N6"], slow_network::plan),
    story("stranger", &["N7"], stranger::plan),
    story("pieces", &["N7"], pieces::plan),
    story("lost-writes", &["S4"], lost_writes::plan),
    story("misdirected", &["S5"], misdirected::plan),
    story("bit-rot", &["S6"], bit_rot::plan),
    story("shrinking-disk", &["S8"], shrinking_disk::plan),
    story("mirror-lag", &["S9", "S10"], mirror_lag::plan),
    story("mirror-split", &["S10", "S11"], mirror_split::plan),
    story("rollback", &["S11"], rollback::plan),
    story("frozen-machine", &["H3", "H4"], frozen_machine::plan),
    story("two-daemons", &["H5", "H6"], two_daemons::plan),
    story("old-writer", &["H7"], old_writer::plan),
    story("slow-reader", &["H8"], slow_reader::plan),
    story("reinit", &["O1"], reinit::plan),
    story("foreign-data", &["O2"], foreign_data::plan),
    story("wrong-volume", &["O3"], wrong_volume::plan),
    story("wrong-key", &["O4"], wrong_key::plan),
    story("rekey", &["O4"], rekey::plan),
    story("wrap-around", &["S3", "H8"], wrap_around::plan),
    story("mixed-versions", &["O5"], mixed_versions::plan),
    story("reload", &["O6"], reload::plan),
    story("drills", &["O6"], drills::plan),
    story("five-hosts", &["N2", "N3"], five_hosts::plan),
];

/// The story of that name; `swarm` draws one from the seed.
#[must_use]
pub fn named(name: &str) -> Option<fn(u64) -> Plan> {
    if name == "swarm" {
        return Some(swarm::plan);
    }
    ALL.iter().find(|s| s.name == name).map(|s| s.plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_fault_table_has_a_story() {
        let lines = [("N", 7), ("S", 11), ("H", 8), ("O", 6)];
        for line in lines.iter().flat_map(|(l, n)| (1..=*n).map(move |i| format!("{l}{i}"))) {
            assert!(ALL.iter().any(|s| s.lines.contains(&line.as_str())), "no story tells {line}");
        }
    }

    #[test]
    fn every_story_has_one_name() {
        for (i, story) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|s| s.name != story.name), "{}", story.name);
        }
    }
}
