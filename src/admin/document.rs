//! The document `status --json` prints. Its names are a contract: fields may be added, these stay.

use failover::{
    Cut,
    session::SessionStatus,
    status::{Counters, NetworkStatus, PeerState, StorageStatus},
};
use serde::{Deserialize, Serialize};

/// The whole document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// This daemon.
    pub node: Node,
    /// The virtual interface, if it has one.
    pub interface: Option<Interface>,
    /// Everybody we talk to.
    pub peers: Vec<Peer>,
    /// Every volume in use.
    pub volumes: Vec<Volume>,
    /// Every replica this daemon fills.
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// Frames and messages refused before a peer could be named, by cause.
    pub refused: std::collections::BTreeMap<String, u64>,
    /// Packets from the interface that belong to no peer.
    pub unroutable: u64,
    /// What an operator should know, worst first: `security.plaintext`, no real-time priority, ...
    pub warnings: Vec<String>,
}

/// This daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// Since it started, seconds.
    pub uptime_s: f64,
    /// Its beat thread has real-time priority.
    pub realtime: bool,
}

/// The virtual interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Interface {
    /// Device name.
    pub name: String,
    /// Address and prefix length.
    pub address: String,
    /// Bytes.
    pub mtu: u16,
}

/// One peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub id: u8,
    /// Its name.
    pub name: String,
    /// `alive`, `dead`, `unknown`.
    pub state: PeerState,
    /// `network`, `both`, `storage`, `isolated`.
    pub route: failover::Route,
    /// The same as the peer last said, or `unknown`.
    pub peer_route: String,
    /// The network path.
    pub network: NetworkStatus,
    /// The storage path.
    pub storage: StorageStatus,
    /// Both balances.
    pub counters: Counters,
    /// Sessions with it.
    #[serde(default)]
    pub sessions: SessionStatus,
    /// The last change of route.
    pub last_change: Option<Change>,
    /// Keys agreed with its present incarnation.
    pub keys: bool,
    /// A drill of ours cuts this.
    pub drill: Option<Cut>,
}

/// The last change of route.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// RFC 3339, UTC, milliseconds.
    pub at: String,
    /// Before.
    pub from: failover::Route,
    /// After.
    pub to: failover::Route,
    /// Why.
    pub reason: String,
}

/// One volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// As configured.
    pub path: String,
    /// `shared`, `send`, `receive`.
    pub role: String,
    /// `up`, `suspect`, `down`.
    pub state: String,
    /// Why, unless up.
    pub reason: Option<String>,
    /// Smoothed, microseconds.
    pub write_latency_us: Option<u64>,
    /// Where each is billed: what was asked of the store since this daemon attached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<volumes::media::Requests>,
    /// Our lanes on it.
    pub lanes: Vec<Lane>,
}

/// One of our lanes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lane {
    /// Who reads it.
    pub to: u8,
    /// Written and not yet read.
    pub used_bytes: u64,
    /// Of its data ring.
    pub size_bytes: u64,
}

/// A replica this daemon fills; counters are since the daemon started, or the entry changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    /// The original.
    pub from: String,
    /// Its place.
    pub to: String,
    /// `continuous`, `interval`, `on-command`.
    pub mode: String,
    /// `starting`, `making`, `copying`, `in_sync`, `resting`, `stalled`, `failed`, `refused`, ...
    pub state: String,
    /// Why nothing moves.
    pub reason: Option<String>,
    /// Of the volume, once it was seen.
    pub name: Option<String>,
    /// Nodes whose lanes are copied.
    pub nodes: Vec<u8>,
    /// Announced at the original, and not yet at the replica.
    pub lag_records: u64,
    /// The same in bytes.
    pub lag_bytes: u64,
    /// Age of what is missing.
    pub lag_ms: f64,
    /// Copied.
    pub records: u64,
    /// Copied.
    pub bytes: u64,
    /// Records that were overwritten before they could be copied.
    pub missing: u64,
    /// Ended.
    pub rounds: u64,
    /// Blocks of a replica in the making: bytes written, bytes in all.
    pub making: Option<(u64, u64)>,
}
