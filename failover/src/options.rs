//! What the node is told before it starts: checked values, no words.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::session::SessionLimits;

/// A machine of the group, 1..=64.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(u8);

impl NodeId {
    /// The id, if it lies in 1..=64.
    #[must_use]
    pub const fn new(id: u8) -> Option<Self> {
        if id >= 1 && id <= 64 { Some(Self(id)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A volume this node uses; the hands number them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeId(pub u8);

/// Settings of the whole node. Everything but the identity may change by a reload.
#[derive(Clone)]
pub struct Options {
    /// This node.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Bytes that all nodes of one group share and others do not; bound into handshakes.
    pub group: Vec<u8>,
    /// Private X25519 key.
    pub private_key: Zeroizing<[u8; 32]>,
    /// This incarnation: greater than any earlier one of this node, with random low bits.
    pub epoch: u64,
    /// Addresses of our own interface; packets from peers must be for one of them.
    pub addresses: Vec<IpAddr>,
    /// Everybody we talk to.
    pub peers: Vec<PeerOptions>,
    /// Times and bounds.
    pub timing: Timing,
    /// Bounds of the sessions with each peer.
    pub sessions: SessionLimits,
    /// Which packets are express, write or read.
    pub classes: ClassRules,
    /// Frames travel unencrypted. For benchmarks only.
    pub plaintext: bool,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("epoch", &self.epoch)
            .field("peers", &self.peers)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerOptions {
    /// Its id.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Its public X25519 key.
    pub public_key: [u8; 32],
    /// Where its network plane listens. Beats and handshakes go to all of them, data to the one
    /// that was heard from last.
    pub endpoints: Vec<SocketAddr>,
    /// Its addresses inside the virtual interface: packets to them go to it, packets from it must
    /// come from them.
    pub addresses: Vec<IpAddr>,
    /// The volume our lane to it lies on.
    pub send_volume: Option<VolumeId>,
    /// The volume its lane to us is read from.
    pub receive_volume: Option<VolumeId>,
}

/// Times and bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Beat interval while traffic flows.
    pub heartbeat: Duration,
    /// Beat interval when idle.
    pub heartbeat_idle: Duration,
    /// Good network time before failback; doubled per flap, 60 s cap.
    pub hold: Duration,
    /// Lateness below which nobody is suspected (20 ms with a real-time beat thread, else 300 ms).
    pub suspect_floor: Duration,
    /// How long after suspicion a path is given up, at least.
    pub down_after: Duration,
    /// Beat interval in the node table while the network is up.
    pub storage_beat_idle: Duration,
    /// The same when it is not.
    pub storage_beat_active: Duration,
    /// Time to live of express packets.
    pub express_ttl: Duration,
    /// Time to live of write (and read) packets.
    pub write_ttl: Duration,
    /// Age at which session keys are renewed.
    pub rekey_after: Duration,
    /// Bytes kept unacknowledged per peer at most.
    pub kept_bytes_max: usize,
    /// Bytes waiting per peer and class at most.
    pub queue_bytes_max: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(10),
            heartbeat_idle: Duration::from_millis(50),
            hold: Duration::from_secs(1),
            suspect_floor: Duration::from_millis(20),
            down_after: Duration::from_millis(20),
            storage_beat_idle: Duration::from_secs(1),
            storage_beat_active: Duration::from_millis(100),
            express_ttl: Duration::from_millis(500),
            write_ttl: Duration::from_secs(5),
            rekey_after: Duration::from_secs(3600),
            kept_bytes_max: 32 << 20,
            queue_bytes_max: 8 << 20,
        }
    }
}

/// Which flows are express. A class is a property of the flow, never of a packet's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRules {
    /// UDP ports (either end) whose flows are express: Corosync's by default.
    pub express_udp_ports: Vec<u16>,
    /// TCP ports (either end) whose flows are express.
    pub express_tcp_ports: Vec<u16>,
    /// DSCP values whose flows are express.
    pub express_dscp: Vec<u8>,
    /// ICMP and ICMPv6 echo are express.
    pub express_echo: bool,
    /// UDP ports whose flows are `read`: dropped on the storage path.
    pub read_udp_ports: Vec<u16>,
}

impl Default for ClassRules {
    fn default() -> Self {
        Self {
            express_udp_ports: (5404..=5412).collect(),
            express_tcp_ports: Vec::new(),
            // Expedited Forwarding (RFC 3246) and class selector 6, network control (RFC 4594).
            express_dscp: vec![46, 48],
            express_echo: true,
            read_udp_ports: Vec::new(),
        }
    }
}
