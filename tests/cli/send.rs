//! `sidepath send`, `recv` and `forward`: streams between two daemons of this machine, through
//! cuts, and what is said when there is nobody, or nobody any more.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};

use crate::pair::Pair;
use rustix::process::Signal;

/// Bytes that look like nothing else.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&(state >> 8).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn spawn(pair: &Pair, words: &[&str], node: &str) -> Child {
    let config = format!("{node}.toml");
    let mut command = pair.room.command(&[words, &["--config", &config]].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits, but not for ever.
#[track_caller]
fn done(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("it does not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until somebody listens for a service: a send that finds nobody is refused at once.
fn send_when_heard(pair: &Pair, words: &[&str]) -> Output {
    let started = Instant::now();
    loop {
        let output = done(spawn(pair, words, "alpha"));
        let nobody = text(&output.stderr).contains("nobody listens");
        if !nobody || started.elapsed() > Duration::from_secs(10) {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_file_arrives_whole_by_either_path_and_through_a_cut() {
    let pair = Pair::start();
    let bytes = noise(24 << 20);
    std::fs::write(pair.room.join("big"), &bytes).unwrap();
    for (via, drilled) in
        [("network-first", None), ("storage-first", None), ("network-first", Some("network"))]
    {
        let receiver = spawn(&pair, &["recv", "files", "--to-file", "got", "--json"], "beta");
        let drill = drilled.map(|cut| {
            let drill = spawn(&pair, &["drill", "beta", "--cut", cut, "--for", "700ms"], "alpha");
            std::thread::sleep(Duration::from_millis(200));
            drill
        });
        let words = ["send", "beta", "files", "--from-file", "big", "--via", via, "--json"];
        let sent = send_when_heard(&pair, &words);
        let received = done(receiver);
        assert!(sent.status.success(), "{via}: {sent:?}\n{}", pair.log("alpha"));
        assert!(received.status.success(), "{via}: {received:?}");
        assert!(std::fs::read(pair.room.join("got")).unwrap() == bytes, "{via}: not the same");
        assert!(!pair.room.join("got.partial").exists());
        std::fs::remove_file(pair.room.join("got")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&sent.stdout).unwrap();
        assert_eq!((&json["peer"], &json["bytes"]), (&"beta".into(), &(24 << 20).into()));
        let by = |path: &str| json[path].as_u64().unwrap();
        assert!(by("network_bytes") + by("storage_bytes") >= 24 << 20, "{json}");
        match (via, drilled) {
            ("storage-first", _) => assert!(by("storage_bytes") > 0, "{json}"),
            (_, Some(_)) => assert!(by("storage_bytes") > 0, "the network was cut: {json}"),
            _ => {}
        }
        let json: serde_json::Value = serde_json::from_slice(&received.stdout).unwrap();
        assert_eq!((&json["peer"], &json["bytes"]), (&"alpha".into(), &(24 << 20).into()));
        if let Some(drill) = drill {
            assert!(done(drill).status.success());
        }
    }
    pair.wait_for("sessions to be gone", |peer| {
        peer["sessions"]["open"] == 0
            && peer["sessions"]["granted_bytes"] == 0
            && peer["sessions"]["violations"] == 0
    });
}

#[test]
fn what_cannot_be_is_said() {
    let mut pair = Pair::start();
    let nobody = done(spawn(&pair, &["send", "beta", "nothing"], "alpha"));
    assert_eq!(nobody.status.code(), Some(1));
    let said = text(&nobody.stderr);
    assert!(said.contains("nobody listens there for that service"), "{said}");
    assert!(said.contains("hint: start the receiving program first"), "{said}");

    let stranger = done(spawn(&pair, &["send", "gamma", "x"], "alpha"));
    assert_eq!(stranger.status.code(), Some(2), "{stranger:?}");

    // One name, one listener: whichever comes second is refused.
    let mut both = [(); 2].map(|()| spawn(&pair, &["recv", "one"], "beta"));
    let started = Instant::now();
    let refused = loop {
        if let Some(index) = both.iter_mut().position(|c| c.try_wait().unwrap().is_some()) {
            break index;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "both listen");
        std::thread::sleep(Duration::from_millis(20));
    };
    let [first, second] = both;
    let (refused, mut listens) = if refused == 0 { (first, second) } else { (second, first) };
    let said = text(&refused.wait_with_output().unwrap().stderr);
    assert!(said.contains("somebody listens for service one already"), "{said}");
    assert!(listens.try_wait().unwrap().is_none(), "both were refused");
    let _ = listens.kill();
    let _ = listens.wait();

    // A program that dies in the middle: the other one hears of it, and nothing is kept.
    let receiver = spawn(&pair, &["recv", "cut", "--to-file", "half"], "beta");
    let mut command = pair.room.command(&["send", "beta", "cut", "--config", "alpha.toml"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut sender = loop {
        let mut sender = command.spawn().unwrap();
        let mut pipe = sender.stdin.take().unwrap();
        let written = pipe.write_all(&noise(1 << 20));
        std::thread::sleep(Duration::from_millis(200));
        if written.is_ok() && sender.try_wait().unwrap().is_none() {
            // Kept open: the stream has no end yet.
            std::mem::forget(pipe);
            break sender;
        }
        let _ = sender.wait();
        assert!(started.elapsed() < Duration::from_secs(20), "nobody receives");
    };
    sender.kill().unwrap();
    sender.wait().unwrap();
    let received = done(receiver);
    assert_eq!(received.status.code(), Some(1), "{received:?}");
    assert!(text(&received.stderr).contains("gave it up"), "{received:?}");
    assert!(!pair.room.join("half").exists(), "what is not whole has not its name");

    // A peer that is stopped for good: sessions end with a reason.
    let receiver = spawn(&pair, &["recv", "long"], "beta");
    std::thread::sleep(Duration::from_millis(300));
    let mut command = pair.room.command(&["send", "beta", "long", "--config", "alpha.toml"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut sender = command.spawn().unwrap();
    let pipe = sender.stdin.take();
    std::thread::sleep(Duration::from_millis(300));
    pair.signal(1, Signal::TERM);
    assert_eq!(pair.ended(1), Some(0));
    let sent = done(sender);
    drop(pipe);
    assert_eq!(sent.status.code(), Some(1), "{sent:?}");
    let said = text(&sent.stderr);
    assert!(said.contains("the peer's daemon stopped"), "{said}");
    assert_eq!(done(receiver).status.code(), Some(1));
}

/// An echo server on a free port of the loopback interface.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut other = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut other, &mut stream);
                let _ = stream.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}

/// Connects as soon as somebody listens there.
fn connected(address: &str) -> TcpStream {
    let started = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                return stream;
            }
            Err(e) => assert!(started.elapsed() < Duration::from_secs(10), "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_forwarded_port_is_the_port_there() {
    let pair = Pair::start();
    let port = echo();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let to = format!("beta:{port}");
    let listen = format!("127.0.0.1:{free}");
    let mut forward = spawn(&pair, &["forward", &listen, &to], "alpha");
    let mut stream = connected(&listen);
    let mut drill = None;
    for round in 0..40 {
        if round == 10 {
            let words = ["drill", "beta", "--cut", "network", "--for", "500ms"];
            drill = Some(spawn(&pair, &words, "alpha"));
        }
        let bytes = noise(1000 + round * 997);
        stream.write_all(&bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == bytes, "round {round}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(done(drill.unwrap()).status.success());
    // Our end of the stream reaches the other program, and its end us.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // A port nobody listens on: the connection ends at once, with a reason on stderr.
    let _ = forward.kill();
    let _ = forward.wait();
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let to = format!("beta:{nowhere}");
    let mut forward = spawn(&pair, &["forward", &listen, &to], "alpha");
    let mut stream = connected(&listen);
    assert!(stream.read(&mut [0]).map_or(true, |n| n == 0), "somebody answers");
    std::thread::sleep(Duration::from_millis(100));
    let _ = forward.kill();
    let said = text(&forward.wait_with_output().unwrap().stderr);
    assert!(said.contains(&format!("127.0.0.1:{nowhere} there")), "{said}");
}
