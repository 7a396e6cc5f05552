//! Words an operator wrote, turned into a [`Config`] that holds only checked values.
//!
//! [`file`] knows the words (TOML, spans, carets), [`check`] knows what they may mean. Nothing
//! behind this room ever sees an unchecked value.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use failover::{ClassRules, NodeId};

/// Everything `sidepath run` needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it came from; relative paths inside it are relative to its folder.
    pub source: PathBuf,
    /// Who we are.
    pub node: NodeConfig,
    /// The virtual interface; `None` runs without a TUN device.
    pub interface: Option<InterfaceConfig>,
    /// The network path.
    pub network: Option<NetworkConfig>,
    /// The storage path.
    pub storage: Option<StorageConfig>,
    /// Everybody we talk to.
    pub peers: Vec<PeerConfig>,
    /// Programs run on events.
    pub hooks: HooksConfig,
    /// Where `/metrics` is served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Frames travel unencrypted. For benchmarks only.
    pub plaintext: bool,
    /// Which flows are express.
    pub classes: ClassRules,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// 1..=64.
    pub id: NodeId,
    /// For people.
    pub name: String,
    /// Nodes of different groups never talk; empty by default.
    pub group: String,
    /// Private key, mode 0600.
    pub key_file: PathBuf,
    /// Where the CLI finds the daemon.
    pub control_socket: PathBuf,
    /// Where the incarnation counter lives.
    pub state_dir: PathBuf,
}

/// `[interface]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Device name, at most 15 bytes.
    pub name: String,
    /// Our address on it.
    pub address: IpAddr,
    /// Length of its network prefix, bits.
    pub prefix: u8,
    /// Set by hand; otherwise what one datagram of the network path carries, less our overhead.
    pub mtu: Option<u16>,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// Beat interval while traffic flows.
    pub heartbeat: Duration,
    /// Good network time before failback.
    pub hold: Duration,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageConfig {
    /// Where our lanes are written.
    pub send: PathBuf,
    /// Where the lanes of peers are read, when not on `send`: peer name to path.
    pub receive: Vec<(String, PathBuf)>,
    /// Fill mark of the buffer, bytes.
    pub flush_bytes: usize,
    /// Age mark of the buffer.
    pub flush_delay: Duration,
    /// All nodes run on this host: the page cache may be used (tmpfs, tests).
    pub single_host: bool,
}

/// `[[peer]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// 1..=64.
    pub id: NodeId,
    /// For people.
    pub name: String,
    /// X25519.
    pub public_key: [u8; 32],
    /// UDP and TCP.
    pub endpoints: Vec<SocketAddr>,
    /// Its address inside the interface.
    pub address: Option<IpAddr>,
}

/// `[hooks]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HooksConfig {
    /// Program and arguments; gets JSON on standard input.
    pub on_route_change: Vec<String>,
}
