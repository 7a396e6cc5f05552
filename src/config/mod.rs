//! Words an operator wrote, turned into a [`Config`] that holds only checked values.
//!
//! `file` knows the words (TOML and where they stand), `check` knows what they may mean
//! and `contradict` what cannot stand together, [`report`] shows what is wrong, line and caret. Nothing behind this room ever sees an
//! unchecked value.

mod backup;
mod check;
mod contradict;
mod file;
pub mod key;
mod places;
pub mod quantity;
mod replicate;
pub mod report;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use failover::{ClassRules, NodeId};
pub(crate) use replicate::{COPY_INTERVAL, COPY_LIMIT_MIN};
use report::Report;
use volumes::media::Location;

/// Where the control socket is unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/sidepath/control.sock";
/// Where the state lies unless the configuration says otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/sidepath";
/// A configuration of 63 peers has some 20 KiB; anything far above is another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads and checks a configuration. The report that comes with a good one holds its warnings.
///
/// # Errors
/// The report of everything that is wrong.
pub fn load(file: &Path) -> Result<(Config, Report), Report> {
    parse(file, &read(file)?)
}

/// The same with the text already read; `file` says where it came from.
///
/// # Errors
/// The report of everything that is wrong.
pub fn parse(file: &Path, text: &str) -> Result<(Config, Report), Report> {
    let mut report = Report::new(file, text);
    match check::check(file, text, &mut report) {
        Some(config) => Ok((config, report)),
        None => Err(report),
    }
}

/// Only the path of the control socket: a command that talks to a daemon need not be able to read
/// its key, and a mistake elsewhere in the file must not stop an operator from asking for status.
///
/// # Errors
/// When the file cannot be read, or has no such place.
pub fn control_socket(file: &Path) -> Result<PathBuf, Report> {
    let text = read(file)?;
    let mut report = Report::new(file, &text);
    let table = file::parse(&text, &mut report);
    let base = folder(file);
    let mut root = file::Section::root(&table);
    let socket = match root.section("node", &mut report) {
        Some(mut node) => node.text("control_socket", &mut report),
        None => None,
    };
    match socket {
        Some(word) => Ok(base.join(word.value)),
        None if report.has_errors() => Err(report),
        None => Ok(PathBuf::from(DEFAULT_SOCKET)),
    }
}

/// Where relative paths of a file begin.
fn folder(file: &Path) -> PathBuf {
    file.parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn read(file: &Path) -> Result<String, Report> {
    use std::io::Read;
    let refuse = |message: String, hint: &str| {
        let mut report = Report::new(file, "");
        report.about_file(message, hint);
        report
    };
    let cannot = |e: std::io::Error| {
        refuse(format!("cannot read the configuration: {}", key::plain(&e)), "check the path")
    };
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refuse("larger than 1 MiB: not a configuration".into(), "check the path"));
    }
    String::from_utf8(bytes)
        .map_err(|_| refuse("not text in UTF-8".into(), "a configuration is a TOML file"))
}

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
    /// Volumes we copy to their replicas.
    pub replicate: Vec<ReplicateConfig>,
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
    /// What peers may do with sessions.
    pub sessions: SessionsConfig,
    /// Where backups of peers are put, if anywhere.
    pub backup_store: Option<BackupStoreConfig>,
}

/// `[backup_store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStoreConfig {
    /// A folder; a new or an empty one becomes a store.
    pub path: PathBuf,
    /// The service it listens for.
    pub service: String,
    /// Versions of each name that stay; all, when neither this nor the next is said.
    pub keep: Option<u32>,
    /// How long versions stay; one goes when it is beyond both, the last never.
    pub keep_within: Option<Duration>,
}

/// `[sessions]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionsConfig {
    /// Ports of our loopback address that peers may reach by `sidepath forward`; all when it is
    /// not said.
    pub forward_ports: Option<Vec<u16>>,
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
    pub send: Location,
    /// Where the lanes of peers are read, when not on `send`: peer name to place.
    pub receive: Vec<(String, Location)>,
    /// Fill mark of the buffer, bytes.
    pub flush_bytes: usize,
    /// Age mark of the buffer.
    pub flush_delay: Duration,
    /// All nodes run on this host: the page cache may be used (tmpfs, tests).
    pub single_host: bool,
}

/// `[[replicate]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicateConfig {
    /// The volume that nodes write; never written by a copy.
    pub from: Location,
    /// Its replica.
    pub to: Location,
    /// When to copy.
    pub mode: ReplicaMode,
    /// Bytes per second at most.
    pub limit: Option<u64>,
}

/// When a replica is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaMode {
    /// As records come.
    Continuous,
    /// All there is, at this interval.
    Interval(Duration),
    /// All there is, when somebody says so.
    OnCommand,
}

impl ReplicaMode {
    /// As it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Continuous => "continuous",
            Self::Interval(_) => "interval",
            Self::OnCommand => "on-command",
        }
    }
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
