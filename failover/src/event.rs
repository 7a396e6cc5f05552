//! What may be observed. Logs, metrics, hooks and test snapshots are made from these.

use std::time::Duration;

use crate::{NodeId, Path, path::Route, status::PeerState, turn::Cut};

/// Something that happened, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Our packets to that peer take another route now.
    RouteChanged {
        /// The peer.
        peer: NodeId,
        /// Before.
        from: Route,
        /// After.
        to: Route,
        /// Why.
        reason: String,
        /// A drill caused it.
        drill: bool,
    },
    /// A peer became alive, dead or unknown.
    PeerState {
        /// The peer.
        peer: NodeId,
        /// What it is now.
        state: PeerState,
        /// Why.
        reason: String,
    },
    /// A path's verdict changed.
    PathState {
        /// The peer.
        peer: NodeId,
        /// Which path.
        path: Path,
        /// up, suspect, down or disabled.
        state: crate::health::Verdict,
        /// Why, empty when up.
        reason: String,
    },
    /// Fresh keys are in use with a peer.
    KeysAgreed {
        /// The peer.
        peer: NodeId,
        /// Which generation.
        generation: u32,
        /// The peer's incarnation.
        peer_epoch: u64,
    },
    /// The peer's daemon is another incarnation than before; unacknowledged frames are lost.
    PeerRestarted {
        /// The peer.
        peer: NodeId,
        /// Packets counted as `lost(unconfirmed)`.
        unconfirmed: u64,
    },
    /// A ping came back.
    PingReply {
        /// The peer.
        peer: NodeId,
        /// As given in the command.
        id: u64,
        /// How the request travelled.
        out: Path,
        /// How the answer travelled.
        back: Path,
        /// From command to answer.
        round_trip: Duration,
    },
    /// A ping could not be sent.
    PingRefused {
        /// The peer.
        peer: NodeId,
        /// As given in the command.
        id: u64,
        /// Why.
        reason: String,
    },
    /// A drill runs.
    DrillStarted {
        /// With whom.
        peer: NodeId,
        /// Which path.
        cut: Cut,
    },
    /// A drill was refused; nothing was dropped.
    DrillRefused {
        /// With whom.
        peer: NodeId,
        /// Why, and what to do.
        reason: String,
    },
    /// A drill is over, by time or by order.
    DrillEnded {
        /// With whom.
        peer: NodeId,
    },
    /// A peer said it drills the path to us.
    PeerDrill {
        /// Who.
        peer: NodeId,
        /// Which path.
        cut: Cut,
    },
}
