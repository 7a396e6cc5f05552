//! Fills the document of `status --json`.

use failover::{Node, Time, status::PeerStatus};
use volumes::status::{VolumeState, VolumeStatus};

use super::events::date;
use crate::{
    admin::document::{self, Document},
    planes::store::Role,
};

/// What the document says besides peers and volumes.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) node: document::Node,
    pub(super) interface: Option<document::Interface>,
    pub(super) replicas: Vec<document::Replica>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn document(
    node: &Node,
    now: Time,
    around: Surroundings,
    volumes: impl Iterator<Item = (Role, VolumeStatus)>,
) -> Document {
    let status = node.status(now);
    Document {
        node: around.node,
        interface: around.interface,
        peers: status.peers.into_iter().map(peer).collect(),
        volumes: volumes.map(|(role, status)| volume(role, status)).collect(),
        replicas: around.replicas,
        refused: status.refused,
        unroutable: status.unroutable,
        warnings: around.warnings,
    }
}

fn peer(status: PeerStatus) -> document::Peer {
    let word = |route| match route {
        failover::Route::Network => "network",
        failover::Route::Both => "both",
        failover::Route::Storage => "storage",
        failover::Route::Isolated => "isolated",
    };
    document::Peer {
        id: status.id.get(),
        name: status.name,
        state: status.state,
        route: status.route,
        peer_route: status.peer_route.map_or("unknown", word).into(),
        network: status.network,
        storage: status.storage,
        counters: status.counters,
        sessions: status.sessions,
        last_change: status.last_change.map(|change| document::Change {
            at: date(Time(change.at_us)),
            from: change.from,
            to: change.to,
            reason: change.reason,
        }),
        keys: status.keys,
        drill: status.drill,
    }
}

fn volume(role: Role, status: VolumeStatus) -> document::Volume {
    let state = match status.state {
        VolumeState::Up => "up",
        VolumeState::Stalled => "suspect",
        VolumeState::Attaching
        | VolumeState::Failed
        | VolumeState::Fenced
        | VolumeState::Stopped => "down",
    };
    let lanes = match role {
        // Nothing of ours is written there.
        Role::Receive => Vec::new(),
        Role::Shared | Role::Send => status
            .lanes
            .into_iter()
            .map(|lane| document::Lane {
                to: lane.to,
                used_bytes: lane.used_bytes,
                size_bytes: lane.size_bytes,
            })
            .collect(),
    };
    document::Volume {
        path: status.path,
        role: role.word().into(),
        state: state.into(),
        reason: status.reason.or_else(|| {
            (status.state == VolumeState::Stopped).then(|| "the daemon is stopping".into())
        }),
        write_latency_us: status.write_latency_us,
        requests: status.requests,
        lanes,
    }
}
