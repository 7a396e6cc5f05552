//! The state of a node as status shows it: the names in `status --json` are a contract.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{NodeId, health::Verdict, path::Route};

/// Whether a peer's daemon lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Heard from by some path lately.
    Alive,
    /// Said goodbye, or silent on a network that is down while its beat in storage stands still.
    Dead,
    /// Silent, and nothing proves why.
    Unknown,
}

/// One peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Alive, dead or unknown.
    pub state: PeerState,
    /// The route of our packets to it.
    pub route: Route,
    /// The route of its packets to us, as it last said; `None` renders as `unknown`.
    #[serde(with = "peer_route")]
    pub peer_route: Option<Route>,
    /// The network path.
    pub network: NetworkStatus,
    /// The storage path.
    pub storage: StorageStatus,
    /// What was sent and received.
    pub counters: Counters,
    /// The last change of route.
    pub last_change: Option<Change>,
    /// Sessions.
    pub sessions: crate::session::SessionStatus,
    /// Keys agreed with its present incarnation.
    pub keys: bool,
    /// A drill of ours runs on this path.
    pub drill: Option<crate::turn::Cut>,
}

/// `Route` or `unknown`.
mod peer_route {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::path::Route;

    pub(super) fn serialize<S: Serializer>(v: &Option<Route>, s: S) -> Result<S::Ok, S::Error> {
        match v {
            Some(route) => route.serialize(s),
            None => "unknown".serialize(s),
        }
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<Option<Route>, D::Error> {
        Ok(match String::deserialize(d)?.as_str() {
            "network" => Some(Route::Network),
            "both" => Some(Route::Both),
            "storage" => Some(Route::Storage),
            "isolated" => Some(Route::Isolated),
            _ => None,
        })
    }
}

/// The network path to one peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Verdict, the worse of the two directions.
    pub state: Verdict,
    /// Why, unless up.
    pub reason: Option<String>,
    /// Smoothed round trip, microseconds.
    pub rtt_us: Option<u64>,
    /// Since anything authentic came from it by this path, milliseconds.
    pub last_heard_ms: Option<u64>,
}

/// The storage path to one peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StorageStatus {
    /// Verdict, the worse of the two directions.
    pub state: Verdict,
    /// Why, unless up.
    pub reason: Option<String>,
    /// Smoothed time from our write to the peer's acknowledgement when the path carries traffic,
    /// otherwise the write latency of our beat, microseconds.
    pub latency_us: Option<u64>,
    /// Since anything of it came by this path, milliseconds.
    pub last_heard_ms: Option<u64>,
}

/// What was sent to and received from one peer since this daemon started. Packets, unless said
/// otherwise; a super-packet that is split counts as its segments from then on.
///
/// `accepted = acknowledged + queued + lost` and `arrived = delivered + dropped + held`, always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Taken from applications for this peer.
    pub accepted: u64,
    /// Received by the peer, as it confirmed.
    pub acknowledged: u64,
    /// Waiting or kept until acknowledged.
    pub queued: u64,
    /// Given up, see `lost_by_cause`.
    pub lost: u64,
    /// Frames sent again (copies, not packets).
    pub resent: u64,
    /// Authentic data frames from this peer, copies included.
    pub arrived: u64,
    /// Handed to applications.
    pub delivered: u64,
    /// Not handed on, see `dropped_by_cause`.
    pub dropped: u64,
    /// Waiting for a predecessor.
    pub held: u64,
    /// By cause: `queue_full`, `ttl`, `unconfirmed`, `read_class`, `malformed`, `no_keys`.
    pub lost_by_cause: BTreeMap<String, u64>,
    /// By cause: `duplicate`, `ttl`, `source`, `beyond_window`, `peer_restarted`.
    pub dropped_by_cause: BTreeMap<String, u64>,
    /// Bytes of frames sent by the network.
    pub network_bytes: u64,
    /// Bytes of frames put into the outbox.
    pub storage_bytes: u64,
    /// Changes from a route with the network to one without, while storage carried on.
    pub failovers: u64,
    /// Changes back.
    pub failbacks: u64,
}

/// The last change of route.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// This node's monotonic time; the hands turn it into a date.
    pub at_us: u64,
    /// Before.
    pub from: Route,
    /// After.
    pub to: Route,
    /// Why.
    pub reason: String,
}

/// The whole node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Everybody.
    pub peers: Vec<PeerStatus>,
    /// Frames and messages refused before a peer could be named, by cause.
    pub refused: BTreeMap<String, u64>,
    /// Packets from the interface that belong to no peer.
    pub unroutable: u64,
}
