//! Sessions inside one process: two nodes on the loopback interface with one volume, and programs
//! that use them as a library does.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::mpsc,
    time::{Duration, Instant},
};

use sidepath::{
    config::{self, Config, key},
    daemon::{Attachment, Daemon, request::Request},
    sessions::{DataSocket, Ending, Endpoint, Path, Preference, Refusal, SessionError, Stream},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(60);

/// Two nodes that met by both paths.
struct Two {
    daemons: Vec<Daemon>,
    ends: Vec<Endpoint>,
    _folder: tempfile::TempDir,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Two {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let options = volumes::InitOptions {
            name: "two".into(),
            nodes: vec![1, 2],
            size: Some(32 << 20),
            single_host: true,
            ..volumes::InitOptions::default()
        };
        volumes::init(path("volume"), &options, |_, _| {}).unwrap();
        let keys = ["alpha", "beta"].map(|name| {
            let private = key::generate().unwrap();
            fs::write(path(&format!("{name}.key")), key::encode(&private)).unwrap();
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(path(&format!("{name}.key")), mode).unwrap();
            key::encode(&key::public_of(&private).unwrap())
        });
        let ports = [free_port(), free_port()];
        let configs: Vec<Config> = [(0, "alpha", "beta"), (1, "beta", "alpha")]
            .into_iter()
            .map(|(index, name, other)| {
                let there = 1 - index;
                let text = format!(
                    "[node]\nid = {}\nname = \"{name}\"\nkey_file = \"{name}.key\"\n\
                     control_socket = \"{name}.sock\"\nstate_dir = \"{name}.state\"\n\
                     [network]\nlisten = \"127.0.0.1:{}\"\n\
                     [storage]\nvolume = \"volume\"\nsingle_host = true\n\
                     [[peer]]\nid = {}\nname = \"{other}\"\npublic_key = \"{}\"\n\
                     endpoints = [\"127.0.0.1:{}\"]\n",
                    index + 1,
                    ports[index],
                    there + 1,
                    keys[there],
                    ports[there],
                );
                config::parse(&path(&format!("{name}.toml")), &text).unwrap().0
            })
            .collect();
        let daemons: Vec<Daemon> = configs
            .into_iter()
            .map(|config| Daemon::start(config, Attachment::None).unwrap())
            .collect();
        let ends = daemons.iter().map(Endpoint::of).collect();
        let two = Self { daemons, ends, _folder: folder };
        let started = Instant::now();
        while !two.peer(0).1 {
            assert!(started.elapsed() < PATIENCE, "they never meet");
            std::thread::sleep(Duration::from_millis(20));
        }
        two
    }

    /// What a node says of sessions with the other, and whether both paths are up.
    fn peer(&self, index: usize) -> (failover::session::SessionStatus, bool) {
        let (reply, answer) = mpsc::channel();
        assert!(self.daemons[index].requests().send(Request::Status { reply }));
        let peer = answer.recv_timeout(PATIENCE).unwrap().peers.remove(0);
        let up = failover::health::Verdict::Up;
        (peer.sessions, peer.network.state == up && peer.storage.state == up)
    }

    fn drill(&self, cut: failover::Cut, length: Duration) {
        let (reply, _steps) = mpsc::channel();
        let peer = failover::NodeId::new(2).unwrap();
        let order = Request::Drill { peer, cut, length, force: true, reply };
        assert!(self.daemons[0].requests().send(order));
    }

    /// Nothing is left of any session.
    #[track_caller]
    fn is_clean(&self) {
        let started = Instant::now();
        loop {
            let all = [self.peer(0).0, self.peer(1).0];
            if all.iter().all(|s| s.open + s.granted_bytes + s.buffered_bytes == 0) {
                assert!(all.iter().all(|s| s.violations == 0), "{all:?}");
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{all:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        tokio::time::timeout(PATIENCE * 3, work).await.expect("it hangs");
    });
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&(state >> 8).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

async fn echo(mut stream: Stream) {
    let mut buffer = vec![0; 20_000];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => stream.write_all(&buffer[..n]).await.unwrap(),
            Err(error) => panic!("echo: {error}"),
        }
    }
    stream.closed().await.unwrap();
}

#[test]
fn a_thousand_sessions_at_once_through_cuts_of_both_paths() {
    let two = Two::start();
    run(async {
        let listener = two.ends[1].listen("echo").await.unwrap();
        let server = tokio::spawn(async move {
            let mut served = Vec::new();
            for _ in 0..1000 {
                served.push(tokio::spawn(echo(listener.accept().await.unwrap())));
            }
            for one in served {
                one.await.unwrap();
            }
        });
        let mut clients = Vec::new();
        for number in 0..1000_u64 {
            let end = two.ends[0].clone();
            let preference = [
                Preference::NetworkFirst,
                Preference::StorageFirst,
                Preference::NetworkFirst,
                Preference::StorageOnly,
            ][(number % 4) as usize];
            clients.push(tokio::spawn(async move {
                let stream = end.connect("beta", "echo", preference).await.unwrap();
                let length = if number % 100 == 0 { 1 << 20 } else { 1 + (number * 37 % 5000) };
                let bytes = noise(number, usize::try_from(length).unwrap());
                let (mut read, mut write) = stream.into_split();
                let sent = bytes.clone();
                let writer = tokio::spawn(async move {
                    for piece in sent.chunks(777) {
                        write.write_all(piece).await.unwrap();
                    }
                    write.shutdown().await.unwrap();
                    write
                });
                let mut back = Vec::new();
                read.read_to_end(&mut back).await.unwrap();
                assert!(back == bytes, "session {number}");
                let write = writer.await.unwrap();
                write.stream().delivered().await.unwrap();
                assert_eq!(write.stream().stats().taken_there, bytes.len() as u64);
            }));
        }
        for cut in [failover::Cut::Network, failover::Cut::Storage, failover::Cut::Network] {
            tokio::time::sleep(Duration::from_millis(150)).await;
            two.drill(cut, Duration::from_millis(400));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        for client in clients {
            client.await.unwrap();
        }
        server.await.unwrap();
    });
    two.is_clean();
}

#[test]
fn refusals_resets_and_leavers() {
    let two = Two::start();
    run(async {
        let [alpha, beta] = [&two.ends[0], &two.ends[1]];
        let to = |service: &'static str| alpha.connect("beta", service, Preference::NetworkFirst);
        let refused = to("nobody").await.unwrap_err();
        assert!(
            matches!(refused, SessionError::Refused { reason: Refusal::NoSuchService, .. }),
            "{refused}"
        );
        // The longest name there may be, of letters of two bytes: it harms nobody to ask for it.
        let long = format!("{}x", "é".repeat(127));
        let refused = alpha.connect("beta", &long, Preference::NetworkFirst).await.unwrap_err();
        assert!(matches!(refused, SessionError::Refused { .. }), "{refused}");
        let stranger = alpha.connect("gamma", "x", Preference::NetworkFirst).await.unwrap_err();
        assert_eq!(stranger, SessionError::NoSuchPeer("gamma".into()));

        let listener = beta.listen("picky").await.unwrap();
        let taken = beta.listen("picky").await.unwrap_err();
        assert_eq!(taken, SessionError::ServiceTaken("picky".into()));
        let (no, ()) = futures_util::join!(to("picky"), async {
            let offer = listener.incoming().await.unwrap();
            assert_eq!((offer.peer(), offer.service()), ("alpha", "picky"));
            offer.refuse("not today");
        });
        let no = no.unwrap_err();
        assert!(no.to_string().contains("not today"), "{no}");
        assert_eq!(std::io::Error::from(no).kind(), std::io::ErrorKind::ConnectionRefused);

        // One gives it up, the other one's read and write fail.
        let (ours, theirs) = futures_util::join!(to("picky"), listener.accept());
        let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        ours.reset();
        assert_eq!(theirs.failed().await, SessionError::Ended(Ending::Reset));
        let error = theirs.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(theirs.write(b"x").await.is_err());

        // One leaves without reading; the other one is told when it goes on writing.
        let (ours, theirs) = futures_util::join!(to("picky"), listener.accept());
        let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        drop(ours);
        assert_eq!(theirs.read(&mut [0; 8]).await.unwrap(), 0, "its direction ended well");
        theirs.write_all(b"anybody there?").await.unwrap();
        assert_eq!(theirs.failed().await, SessionError::Ended(Ending::Unread));

        // A listener that goes away refuses what waits.
        let waiting = tokio::spawn({
            let alpha = alpha.clone();
            async move { alpha.connect("beta", "picky", Preference::NetworkFirst).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(listener);
        assert!(waiting.await.unwrap().is_err());
        assert!(matches!(to("picky").await, Err(SessionError::Refused { .. })));
    });
    two.is_clean();
}

#[test]
fn who_does_not_read_stops_its_sender_and_nobody_else() {
    let two = Two::start();
    run(async {
        let listener = two.ends[1].listen("slow").await.unwrap();
        let to = || two.ends[0].connect("beta", "slow", Preference::NetworkFirst);
        let (ours, theirs) = futures_util::join!(to(), listener.accept());
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        let bytes = noise(1, 16 << 20);
        let mut written = 0;
        // It stops somewhere: at what the windows and the buffers hold.
        while let Ok(n) =
            tokio::time::timeout(Duration::from_millis(500), ours.write(&bytes[written..])).await
        {
            written += n.unwrap();
            assert!(written < bytes.len(), "nobody reads, and all of it was taken");
        }
        let status = two.peer(1).0;
        assert!(status.delivered_bytes <= 64 << 10, "{status:?}");
        // Others go on.
        let (other, there) = futures_util::join!(to(), listener.accept());
        let (mut other, mut there) = (other.unwrap(), there.unwrap());
        other.write_all(b"hello").await.unwrap();
        let mut hello = [0; 5];
        there.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        // And the slow one gets every byte when it reads at last.
        let mut got = vec![0; written];
        theirs.read_exact(&mut got).await.unwrap();
        assert!(got == bytes[..written]);
        assert_eq!(ours.path(), Some(Path::Network));
        ours.delivered().await.unwrap();
    });
    two.is_clean();
}

#[test]
fn a_pair_of_control_and_bulk() {
    let two = Two::start();
    run(async {
        let listener = two.ends[1].listen("backup").await.unwrap();
        let (ours, theirs) = futures_util::join!(
            DataSocket::connect(&two.ends[0], "beta", "backup", 3),
            DataSocket::accept(&two.ends[1], &listener)
        );
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!((ours.streams.len(), theirs.streams.len()), (3, 3));
        ours.control.write_all(b"go").await.unwrap();
        let mut go = [0; 2];
        theirs.control.read_exact(&mut go).await.unwrap();
        for (index, (mut from, mut to)) in ours.streams.into_iter().zip(theirs.streams).enumerate()
        {
            assert_eq!(from.path(), Some(Path::Storage));
            let bytes = noise(index as u64, 3 << 20);
            let mut got = vec![0; bytes.len()];
            let (sent, read) = futures_util::join!(from.write_all(&bytes), to.read_exact(&mut got));
            sent.unwrap();
            read.unwrap();
            assert!(got == bytes, "stream {index}");
            from.delivered().await.unwrap();
            let by = from.stats().sent_by;
            assert!(by.storage >= 3 << 20 && by.network == 0, "{by:?}");
        }
        assert_eq!(ours.control.path(), Some(Path::Network));
    });
    two.is_clean();
}

/// Ten thousand, or as many as `SIDEPATH_OPENS` says.
#[test]
fn many_openings_leave_nothing() {
    let wanted = std::env::var("SIDEPATH_OPENS").ok().and_then(|n| n.parse().ok());
    let hundreds: u64 = wanted.unwrap_or(10_000_u64).div_ceil(100);
    let two = Two::start();
    run(async {
        let listener = two.ends[1].listen("door").await.unwrap();
        let server = tokio::spawn(async move {
            while let Ok(mut stream) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    let n = stream.read(&mut byte).await.unwrap_or(0);
                    let _ = stream.write_all(&byte[..n]).await;
                });
            }
        });
        for _ in 0..hundreds {
            let mut opened = Vec::new();
            for number in 0..100_u8 {
                let end = two.ends[0].clone();
                opened.push(tokio::spawn(async move {
                    let service = if number % 10 == 9 { "wall" } else { "door" };
                    let made = end.connect("beta", service, Preference::NetworkFirst).await;
                    match made {
                        Ok(mut stream) => {
                            stream.write_all(&[number]).await.unwrap();
                            assert_eq!(stream.read_u8().await.unwrap(), number);
                        }
                        Err(error) => assert_eq!(service, "wall", "{error}"),
                    }
                }));
            }
            for one in opened {
                one.await.unwrap();
            }
        }
        server.abort();
    });
    two.is_clean();
    let status = two.peer(0).0;
    assert_eq!((status.opened, status.refused), (90 * hundreds, 10 * hundreds), "{status:?}");
}

#[test]
fn a_node_that_stops_ends_its_sessions() {
    let mut two = Two::start();
    run(async {
        let listener = two.ends[1].listen("last").await.unwrap();
        let (ours, theirs) = futures_util::join!(
            two.ends[0].connect("beta", "last", Preference::NetworkFirst),
            listener.accept()
        );
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        assert!(two.daemons.remove(1).stop(PATIENCE));
        assert_eq!(theirs.failed().await, SessionError::Ended(Ending::Closed));
        assert_eq!(ours.failed().await, SessionError::Ended(Ending::PeerStopped));
        assert_eq!(listener.accept().await.unwrap_err(), SessionError::Stopped);
        let late = two.ends[1].listen("later").await.unwrap_err();
        assert_eq!(late, SessionError::Stopped);
    });
}
