//! What a replicator says: why it refuses, what happened, how much and how late.

use super::Side;
use crate::event::{IoFault, Ring};
use serde::Serialize;

/// Why nothing is written. It is looked at again, unless it refuses the beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    #[error(
        "the {side} now holds another volume, {name:?} (uuid {uuid}); check the path, it is looked \
         at again until ours is back"
    )]
    OtherVolume { side: Side, name: String, uuid: String },
    #[error(
        "the {side} has another generation or geometry of the volume ({found} instead of {ours}): \
         it was formatted anew; make the replica anew"
    )]
    Generation { side: Side, ours: u64, found: u64 },
    #[error(
        "the source is a replica of volume {name:?}, not the original: source and destination are \
         swapped, or this is the copy of a copy; copy from the original"
    )]
    SourceIsReplica { name: String },
    #[error(
        "the destination is an original of the same volume {name:?}, not a replica (a block clone, \
         or the source by another path); to turn it into a replica give --force together with \
         --name {name}"
    )]
    NotAReplica { name: String },
    #[error(
        "the destination is ahead of the source for node {node} (epoch {there:x} beat {there_beat}, \
         the source has epoch {here:x} beat {here_beat}): the source was rolled back, or is a clone \
         that stood still; attach the newer source, or start node {node} on this one so that it \
         takes a new epoch, or make the replica anew with --force --name"
    )]
    Ahead { node: u8, there: u64, there_beat: u64, here: u64, here_beat: u64 },
    #[error(
        "the destination went back to an older state for node {node} (epoch {found:x}, we wrote \
         {ours:x}): it was rolled back; start the copy again to go on from what it holds now"
    )]
    WentBack { node: u8, ours: u64, found: u64 },
    #[error(
        "another replicator writes to the destination (it copied node {node} while we watched); \
         stop one of the two"
    )]
    AnotherReplicator { node: u8 },
    #[error(
        "node {node} sends on the source, but also lives on the destination; it must attach its \
         own send volume only, and let its peers read the replica"
    )]
    LivesThere { node: u8 },
    #[error(
        "node {node} writes records of its own on the destination, so that is a live volume and no \
         replica; detach the node there, or choose another destination"
    )]
    WritesThere { node: u8 },
}

/// What happened, for the log.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notice {
    /// That node's lanes are copied from now on; `resumed`: from where an earlier run stopped.
    Begun {
        node: u8,
        epoch: u64,
        resumed: bool,
    },
    /// These records were gone before they could be copied.
    Missing {
        from: u8,
        to: u8,
        ring: Ring,
        first: u64,
        last: u64,
    },
    Failed {
        side: Side,
        fault: IoFault,
    },
    /// An operation succeeded after failures.
    Recovered {
        side: Side,
    },
    Refused {
        why: Refusal,
    },
    /// What was refused is in order again.
    Accepted,
    /// All that the source announced when the round began is there.
    RoundDone,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ReplicaCounters {
    pub records: u64,
    pub bytes: u64,
    pub mailboxes: u64,
    pub entries: u64,
    pub rounds: u64,
    pub missing: u64,
    /// Reads that found the expected header with a body not whole yet.
    pub torn: u64,
    pub source_failures: u64,
    pub destination_failures: u64,
    pub polls: u64,
}

/// How far the destination is behind what is known of the source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    pub records: u64,
    pub bytes: u64,
    /// Age of the oldest record that is known and not yet there.
    pub us: u64,
}
