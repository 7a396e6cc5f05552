//! The two nodes of the demo: everything a configuration would say, made up on the spot.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use failover::{ClassRules, Cut, NodeId, health::Verdict};

use crate::{
    admin::document::Document,
    config::{
        Config, HooksConfig, InterfaceConfig, NetworkConfig, NodeConfig, PeerConfig, StorageConfig,
        key,
    },
    daemon::{Attachment, Daemon, request::Request},
    planes::channel::{Application, channel},
    sessions::Endpoint,
};

/// Address of each node inside the demo.
pub const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];
/// Names of the nodes.
pub const NAMES: [&str; 2] = ["alpha", "beta"];
/// The second node, as the first knows it.
pub const PEER_OF_FIRST: NodeId = match NodeId::new(2) {
    Some(id) => id,
    None => unreachable!(),
};
const FIRST: NodeId = match NodeId::new(1) {
    Some(id) => id,
    None => unreachable!(),
};
/// Lanes of some MiB each way: seconds of traffic, and quick to write in full.
const VOLUME_BYTES: u64 = 32 << 20;
/// Packets the channel between a program and its node holds: more than any rate sends in the
/// moment a busy machine looks away.
const CHANNEL_PACKETS: usize = 1 << 16;

/// Two running daemons and the folder they live in.
#[derive(Debug)]
pub struct Nodes {
    // Daemons stop before their folder goes: fields are dropped in this order.
    daemons: Vec<Daemon>,
    applications: [Application; 2],
    /// The volume bypasses the page cache.
    pub direct_io: bool,
    volume: PathBuf,
    _folder: tempfile::TempDir,
}

impl Nodes {
    /// Makes keys, a volume, two configurations, and starts both daemons.
    ///
    /// # Errors
    /// In words: what could not be made.
    pub fn start() -> Result<Self, String> {
        Self::start_each(|_| {})
    }

    /// The same; `before` is called before each node starts, whose threads inherit from this one.
    ///
    /// # Errors
    /// In words: what could not be made.
    pub fn start_each(before: impl Fn(usize)) -> Result<Self, String> {
        Self::start_beside(&[], before)
    }

    /// The same; the volume has places for the nodes `spare`, too, whoever attaches as them.
    ///
    /// # Errors
    /// In words: what could not be made.
    pub fn start_beside(spare: &[u8], before: impl Fn(usize)) -> Result<Self, String> {
        let folder = tempfile::Builder::new()
            .prefix("sidepath-demo-")
            .tempdir()
            .map_err(|e| format!("no temporary folder: {e}"))?;
        let volume = folder.path().join("volume");
        let direct_io = format_volume(&volume, spare)?;
        let mut keys = Vec::new();
        for name in NAMES {
            let private = key::generate()?;
            let file = folder.path().join(format!("{name}.key"));
            write_key(&file, &private).map_err(|e| format!("cannot write a key: {e}"))?;
            keys.push((file, key::public_of(&private)?));
        }
        let ports = [free_port()?, free_port()?];
        let mut daemons = Vec::new();
        let mut ends = Vec::new();
        for (index, name) in NAMES.into_iter().enumerate() {
            let other = 1 - index;
            let ids = [FIRST, PEER_OF_FIRST];
            let config = Config {
                source: folder.path().join(format!("{name}.toml")),
                node: NodeConfig {
                    id: ids[index],
                    name: name.into(),
                    group: "demo".into(),
                    key_file: keys[index].0.clone(),
                    control_socket: folder.path().join(format!("{name}.sock")),
                    state_dir: folder.path().join(format!("{name}.state")),
                },
                interface: Some(InterfaceConfig {
                    name: "demo".into(),
                    address: IpAddr::V4(ADDRESSES[index]),
                    prefix: 24,
                    mtu: None,
                }),
                network: Some(NetworkConfig {
                    listen: ports[index],
                    heartbeat: Duration::from_millis(10),
                    hold: Duration::from_secs(1),
                }),
                storage: Some(StorageConfig {
                    send: volume.clone().into(),
                    receive: Vec::new(),
                    flush_bytes: 64 << 10,
                    flush_delay: Duration::from_micros(500),
                    single_host: !direct_io,
                }),
                replicate: Vec::new(),
                peers: vec![PeerConfig {
                    id: ids[other],
                    name: NAMES[other].into(),
                    public_key: keys[other].1,
                    endpoints: vec![ports[other]],
                    address: Some(IpAddr::V4(ADDRESSES[other])),
                }],
                hooks: HooksConfig::default(),
                metrics: None,
                plaintext: false,
                sessions: crate::config::SessionsConfig::default(),
                backup_store: None,
                classes: ClassRules::default(),
            };
            let (application, device) = channel(CHANNEL_PACKETS);
            before(index);
            let daemon = Daemon::start(config, Attachment::Channel(device))
                .map_err(|e| format!("cannot start {name}: {e}"))?;
            daemons.push(daemon);
            ends.push(application);
        }
        let applications =
            <[Application; 2]>::try_from(ends).map_err(|_| "two nodes have two ends")?;
        Ok(Self { daemons, applications, direct_io, volume, _folder: folder })
    }

    /// The programs' ends of both interfaces.
    #[must_use]
    pub fn applications(&self) -> [Application; 2] {
        self.applications.clone()
    }

    /// Both nodes, for programs that want sessions between them (the peers are called as in
    /// [`NAMES`]).
    #[must_use]
    pub fn endpoints(&self) -> [Endpoint; 2] {
        [Endpoint::of(&self.daemons[0]), Endpoint::of(&self.daemons[1])]
    }

    /// The file that is their volume.
    #[must_use]
    pub fn volume(&self) -> &Path {
        &self.volume
    }

    /// Cuts a path between the nodes for a while.
    ///
    /// # Errors
    /// When the first node has stopped.
    pub fn cut(&self, cut: Cut, length: Duration) -> Result<(), String> {
        let (reply, _steps) = mpsc::channel();
        let peer = PEER_OF_FIRST;
        self.ask(Request::Drill { peer, cut, length, force: true, reply })
    }

    /// Waits until both nodes reach each other by both paths.
    ///
    /// # Errors
    /// When they do not within ten seconds.
    pub fn met(&self) -> Result<(), String> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            let up = [self.document()?, self.other_document()?].iter().all(|d| {
                d.peers
                    .iter()
                    .all(|p| p.network.state == Verdict::Up && p.storage.state == Verdict::Up)
            });
            if up {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("the nodes do not meet by both paths".into())
    }

    /// Asks the first node.
    ///
    /// # Errors
    /// When it has stopped.
    pub fn ask(&self, request: Request) -> Result<(), String> {
        self.ask_node(0, request)
    }

    /// What the first node says of itself.
    ///
    /// # Errors
    /// When it has stopped or is stuck.
    pub fn document(&self) -> Result<Box<Document>, String> {
        self.document_of(0)
    }

    /// What the second node says of itself.
    ///
    /// # Errors
    /// When it has stopped or is stuck.
    pub fn other_document(&self) -> Result<Box<Document>, String> {
        self.document_of(1)
    }

    fn ask_node(&self, index: usize, request: Request) -> Result<(), String> {
        if self.daemons[index].requests().send(request) {
            Ok(())
        } else {
            Err(format!("{} has stopped", NAMES[index]))
        }
    }

    fn document_of(&self, index: usize) -> Result<Box<Document>, String> {
        let (reply, answer) = mpsc::channel();
        self.ask_node(index, Request::Status { reply })?;
        answer
            .recv_timeout(Duration::from_secs(5))
            .map_err(|_| format!("{} does not answer", NAMES[index]))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for daemon in self.daemons.drain(..) {
            daemon.stop(Duration::from_secs(2));
        }
    }
}

/// Formats the volume; false when the folder's file system cannot bypass the page cache, which is
/// fine here, because both nodes share one.
fn format_volume(path: &Path, spare: &[u8]) -> Result<bool, String> {
    let nodes = 2 + spare.len() as u64;
    let mut options = volumes::InitOptions {
        name: "demo".into(),
        nodes: vec![FIRST.get(), PEER_OF_FIRST.get()],
        spare: spare.to_vec(),
        // Lanes stay as long as they are between two.
        size: Some(VOLUME_BYTES / 2 * nodes * (nodes - 1)),
        ..volumes::InitOptions::default()
    };
    if volumes::init(path, &options, |_, _| {}).is_ok() {
        return Ok(true);
    }
    options.single_host = true;
    volumes::init(path, &options, |_, _| {})
        .map(|_| false)
        .map_err(|e| format!("cannot format a volume: {e}"))
}

fn write_key(file: &PathBuf, private: &key::PrivateKey) -> std::io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let text = zeroize::Zeroizing::new(format!("{}\n", key::encode(private)));
    let mut out =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(text.as_bytes())
}

/// A port of the loopback interface that is free for UDP and TCP. Somebody may take it before the
/// daemon does; then the demo says so and is started again.
fn free_port() -> Result<SocketAddr, String> {
    for _ in 0..32 {
        let Ok(udp) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) else { continue };
        let Ok(address) = udp.local_addr() else { continue };
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err("no free port on 127.0.0.1".into())
}
