//! What the operator sees of a volume.

use crate::format::superblock::Uuid;
use crate::media::Requests;
use crate::pace::Class;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Waiting for the medium, or claiming.
    Attaching,
    Up,
    /// An operation is stuck in the kernel.
    Stalled,
    /// Operations fail; they are being retried.
    Failed,
    /// This incarnation writes no more.
    Fenced,
    Stopped,
}

#[derive(Debug, Clone, Serialize)]
pub struct LaneStatus {
    pub to: u8,
    /// Written and not read by the peer, both rings.
    pub used_bytes: u64,
    pub size_bytes: u64,
    /// Waiting to be written.
    pub buffered_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct VolumeCounters {
    pub frames_written: u64,
    pub records_written: u64,
    pub bytes_written: u64,
    pub write_failures: u64,
    /// Looks at the table that a write had to wait for.
    pub checks: u64,
    pub frames_reset: u64,
    pub marks_reached: u64,
    pub polls: u64,
    pub records_read: u64,
    pub bytes_read: u64,
    pub torn_reads: u64,
    pub missing: u64,
    pub stale: u64,
    pub read_failures: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct VolumeStatus {
    pub path: String,
    pub node: u8,
    pub uuid: Option<Uuid>,
    pub name: Option<String>,
    pub epoch: u64,
    pub state: VolumeState,
    pub reason: Option<String>,
    /// Moving average of record and beat writes.
    pub write_latency_us: Option<u64>,
    pub lanes: Vec<LaneStatus>,
    pub class: Class,
    /// Where each is billed: what was asked of the store since this daemon attached it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    pub counters: VolumeCounters,
}
