//! What is told in the lab, in the order of telling.

use crate::File;

mod backup;
mod bench;
mod busy;
mod cold_start;
mod corosync;
mod daemon_faults;
mod death;
mod iperf;
mod media;
mod mistakes;
mod postgres;
mod s3;
mod security;
mod sessions;
mod shutdown;
mod storage_faults;
mod tcp_transfer;
mod trust;
mod udp_stream;

/// A file that is missing here is code that nobody uses, and clippy says so.
pub(crate) const ALL: &[File] = &[
    File { name: "backup", stories: backup::stories },
    File { name: "bench", stories: bench::stories },
    File { name: "busy", stories: busy::stories },
    File { name: "cold_start", stories: cold_start::stories },
    File { name: "corosync", stories: corosync::stories },
    File { name: "daemon_faults", stories: daemon_faults::stories },
    File { name: "death", stories: death::stories },
    File { name: "iperf", stories: iperf::stories },
    File { name: "media", stories: media::stories },
    File { name: "mistakes", stories: mistakes::stories },
    File { name: "postgres", stories: postgres::stories },
    File { name: "s3", stories: s3::stories },
    File { name: "security", stories: security::stories },
    File { name: "sessions", stories: sessions::stories },
    File { name: "shutdown", stories: shutdown::stories },
    File { name: "storage_faults", stories: storage_faults::stories },
    File { name: "tcp_transfer", stories: tcp_transfer::stories },
    File { name: "trust", stories: trust::stories },
    File { name: "udp_stream", stories: udp_stream::stories },
];

/// Stories that mostly wait, and whose promises are about what arrives within seconds, not about
/// milliseconds: they are told last, two at a time, the longest first. What judges silences,
/// latencies or near misses of a cluster is told alone.
pub(crate) const PATIENT: &[&str] = &[
    "daemon_faults::killed_on_network",
    "daemon_faults::paused_on_storage",
    "daemon_faults::paused_on_network",
    "postgres::without_sidepath_it_stands_still",
    "backup::databases_come_back",
    "backup::all_is_cut_and_killed",
    "media::nbd_with_errors",
    "media::two_volumes_and_a_replicator",
    "corosync::without_sidepath_it_splits",
    "sessions::storage_stalls_and_vanishes",
    "trust::rolled_back_under_running_daemons",
    "media::nbd_with_slow_writes",
    "death::isolated_then_storage",
    "daemon_faults::killed_on_storage",
    "tcp_transfer::kept_open_across_failback",
    "sessions::programs_through_forward",
    "mistakes::one_identity_on_two_hosts",
    "sessions::the_peer_dies",
    "backup::the_wires_carry_next_to_nothing",
    "mistakes::send_and_receive_swapped",
    "mistakes::a_live_volume_is_not_formatted",
];
