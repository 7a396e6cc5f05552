//! From a checked [`Config`] to what the core and the planes want to be told.

use std::net::{IpAddr, SocketAddr};

use failover::{NodeId, Options, PeerOptions, Timing};
use zeroize::Zeroizing;

use crate::{config::Config, planes::store::StorePlan};

/// Lateness nobody is suspected for when heartbeats have no real-time priority: ordinary threads
/// showed gaps of 400 ms under load, and 300 ms is what their health can be judged by.
const SUSPECT_FLOOR_ORDINARY: std::time::Duration = std::time::Duration::from_millis(300);
/// Smallest MTU of an interface with IPv6 addresses (RFC 8200), and one for IPv4 that everything
/// survives (RFC 1122's 576).
const MTU_MIN_V6: usize = 1280;
const MTU_MIN_V4: usize = 576;
/// Of an Ethernet frame, less IPv4 and UDP headers: assumed while no path is known.
pub(super) const DATAGRAM_ASSUMED: usize = 1500 - 28;

/// What never changes while the daemon runs.
pub(super) struct Identity {
    pub(super) private_key: Zeroizing<[u8; 32]>,
    pub(super) epoch: u64,
    pub(super) realtime: bool,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("epoch", &self.epoch)
            .field("realtime", &self.realtime)
            .finish_non_exhaustive()
    }
}

/// Settings of the core.
pub(super) fn options(config: &Config, plan: Option<&StorePlan>, identity: &Identity) -> Options {
    let mut timing = Timing::default();
    if let Some(network) = &config.network {
        timing.heartbeat = network.heartbeat;
        timing.heartbeat_idle = timing.heartbeat_idle.max(network.heartbeat);
        timing.hold = network.hold;
    }
    if !identity.realtime {
        timing.suspect_floor = SUSPECT_FLOOR_ORDINARY;
    }
    Options {
        id: config.node.id,
        name: config.node.name.clone(),
        group: config.node.group.clone().into_bytes(),
        private_key: identity.private_key.clone(),
        epoch: identity.epoch,
        addresses: config.interface.iter().map(|i| i.address).collect(),
        peers: config.peers.iter().map(|peer| peer_options(config, plan, peer)).collect(),
        timing,
        sessions: failover::session::SessionLimits::default(),
        classes: config.classes.clone(),
        plaintext: config.plaintext,
    }
}

fn peer_options(
    config: &Config,
    plan: Option<&StorePlan>,
    peer: &crate::config::PeerConfig,
) -> PeerOptions {
    let endpoints = if config.network.is_some() { peer.endpoints.clone() } else { Vec::new() };
    PeerOptions {
        id: peer.id,
        name: peer.name.clone(),
        public_key: peer.public_key,
        endpoints,
        addresses: peer.address.into_iter().collect(),
        send_volume: plan.map(StorePlan::send_volume),
        receive_volume: plan.map(|plan| plan.receive_volume(&peer.name)),
    }
}

/// Every endpoint of every peer.
pub(super) fn endpoints(config: &Config) -> impl Iterator<Item = (NodeId, SocketAddr)> {
    config.peers.iter().flat_map(|peer| peer.endpoints.iter().map(|e| (peer.id, *e)))
}

/// The address whose route is watched for each peer: its first.
pub(super) fn watched(config: &Config) -> Vec<(NodeId, IpAddr)> {
    config.peers.iter().filter_map(|p| Some((p.id, p.endpoints.first()?.ip()))).collect()
}

/// Addresses of peers that our own prefix does not reach.
pub(super) fn routes(config: &Config) -> Vec<IpAddr> {
    let Some(interface) = &config.interface else { return Vec::new() };
    let ours = (interface.address, interface.prefix);
    config.peers.iter().filter_map(|p| p.address).filter(|a| !contains(ours, *a)).collect()
}

fn contains((network, prefix): (IpAddr, u8), address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            n.to_bits() & mask == a.to_bits() & mask
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            n.to_bits() & mask == a.to_bits() & mask
        }
        _ => false,
    }
}

/// What a packet of the interface may hold so that, sealed, it fits one datagram.
pub(super) fn interface_mtu(config: &Config, datagram: Option<usize>) -> u16 {
    let Some(interface) = &config.interface else { return 0 };
    interface.mtu.unwrap_or_else(|| {
        let least = if interface.address.is_ipv6() { MTU_MIN_V6 } else { MTU_MIN_V4 };
        let room = datagram.unwrap_or(DATAGRAM_ASSUMED).saturating_sub(super::OVERHEAD);
        u16::try_from(room.max(least)).unwrap_or(u16::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_contains_what_it_says() {
        let v4 = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(contains((v4("10.98.0.1"), 24), v4("10.98.0.77")));
        assert!(!contains((v4("10.98.0.1"), 24), v4("10.98.1.77")));
        assert!(contains((v4("10.98.0.1"), 0), v4("1.2.3.4")));
        assert!(!contains((v4("10.98.0.1"), 32), v4("10.98.0.2")));
        assert!(contains((v4("fd00::1"), 64), v4("fd00::2")));
        assert!(!contains((v4("fd00::1"), 64), v4("10.0.0.1")));
    }
}
