//! Whole daemons in one process: what starts, what refuses to, and that they stop.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use failover::{ClassRules, NodeId};

use super::{request::Request, *};
use crate::config::{
    Config, HooksConfig, InterfaceConfig, NetworkConfig, NodeConfig, PeerConfig, key,
};

/// A node with a peer `beta` (2), or for node 2 a peer `alpha` (1).
pub(crate) fn config(id: u8, listen: &str) -> Config {
    let (name, peer, peer_name) = if id == 1 { ("alpha", 2, "beta") } else { ("beta", 1, "alpha") };
    Config {
        source: "/nowhere/config.toml".into(),
        node: NodeConfig {
            id: NodeId::new(id).unwrap(),
            name: name.into(),
            group: String::new(),
            key_file: "/nowhere/key".into(),
            control_socket: "/nowhere/socket".into(),
            state_dir: "/nowhere/state".into(),
        },
        interface: Some(InterfaceConfig {
            name: "sp0".into(),
            address: format!("10.98.0.{id}").parse().unwrap(),
            prefix: 24,
            mtu: None,
        }),
        network: Some(NetworkConfig {
            listen: listen.parse().unwrap(),
            heartbeat: Duration::from_millis(10),
            hold: Duration::from_secs(1),
        }),
        storage: None,
        replicate: Vec::new(),
        peers: vec![PeerConfig {
            id: NodeId::new(peer).unwrap(),
            name: peer_name.into(),
            public_key: [0; 32],
            endpoints: vec!["127.0.0.1:7441".parse().unwrap()],
            address: Some(format!("10.98.0.{peer}").parse().unwrap()),
        }],
        hooks: HooksConfig::default(),
        metrics: None,
        plaintext: false,
        sessions: crate::config::SessionsConfig::default(),
        backup_store: None,
        classes: ClassRules::default(),
    }
}

/// The same with files that exist.
fn runnable(id: u8, dir: &Path) -> Config {
    let mut config = config(id, "127.0.0.1:0");
    config.node.key_file = dir.join(format!("{id}.key"));
    config.node.state_dir = dir.join(format!("{id}.state"));
    let private = key::generate().unwrap();
    fs::write(&config.node.key_file, key::encode(&private)).unwrap();
    fs::set_permissions(&config.node.key_file, fs::Permissions::from_mode(0o600)).unwrap();
    config
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_daemon_starts_answers_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (application, device) = channel(16);
    let daemon = Daemon::start(runnable(1, dir.path()), Attachment::Channel(device)).unwrap();
    let (reply, answer) = mpsc::channel();
    daemon.requests().try_send(Request::Status { reply }).unwrap();
    let document = answer.recv_timeout(PATIENCE).unwrap();
    assert_eq!(document.node.name, "alpha");
    let mtu = usize::from(document.interface.as_ref().unwrap().mtu);
    assert_eq!(mtu, 9000 - 28 - OVERHEAD, "one datagram less what sealing adds");
    let requests = daemon.requests();
    assert!(daemon.stop(PATIENCE));
    let (reply, _answer) = mpsc::channel();
    assert!(matches!(
        requests.try_send(Request::Status { reply }),
        Err(Refused::Stopped(Request::Status { .. }))
    ));
    let packet = bytes::Bytes::from_static(&[0; 30]);
    assert_eq!(application.send(packet), Err(SendError::Closed));
}

#[test]
fn what_an_operator_got_wrong_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let good = runnable(1, dir.path());
    let refused = |config: Config, attachment: Attachment| {
        let error = Daemon::start(config, attachment).unwrap_err();
        assert!(error.is_input_error(), "{error}");
        assert!(!error.hint().is_empty());
        error
    };
    let mut wrong = good.clone();
    wrong.node.key_file = dir.path().join("none");
    assert!(matches!(refused(wrong, Attachment::None), StartError::Key { .. }));

    let mut wrong = good.clone();
    wrong.interface = None;
    assert!(matches!(refused(wrong, Attachment::Tun), StartError::NoInterface));

    let first = Daemon::start(good.clone(), Attachment::None).unwrap();
    assert!(matches!(refused(good.clone(), Attachment::None), StartError::Running { .. }));
    let mut second = runnable(2, dir.path());
    second.network.as_mut().unwrap().listen = first.listen().unwrap();
    assert!(matches!(refused(second, Attachment::None), StartError::Listen { .. }));
    assert!(first.stop(PATIENCE));
    assert!(Daemon::start(good, Attachment::None).unwrap().stop(PATIENCE));
}

#[test]
fn two_daemons_live_in_one_process_and_stop_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let one = Daemon::start(runnable(1, dir.path()), Attachment::None).unwrap();
    let mut config = runnable(2, dir.path());
    config.peers[0].endpoints = vec![one.listen().unwrap()];
    let two = Daemon::start(config, Attachment::None).unwrap();
    let start = Instant::now();
    one.requests().try_send(Request::Stop).unwrap();
    assert!(one.wait());
    assert!(two.stop(PATIENCE));
    // A watchdog, not a measurement.
    assert!(start.elapsed() < PATIENCE);
}
