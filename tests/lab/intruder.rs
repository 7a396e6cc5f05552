//! Programs of those who should not be there, and the ear on the wire that watches them.
//!
//! `sniff` writes down every frame of an interface; `courier` sends a known text over UDP and TCP;
//! `flood` sends as fast as it can what no peer would; `crowd` opens connections and keeps them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::node::Node;
use super::process::wait_child;
use super::rng::Rng;
use super::runner;
use super::sys;

const PORT: u16 = 9100;

/// One of the programs, running on a machine until its standard input ends.
pub(crate) struct Helper {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Helper {
    pub(crate) fn start(node: &Node, arguments: &[&str]) -> Self {
        let (_, executable) = runner::helper("intruder");
        Self::start_as(node, "0", &executable, arguments)
    }

    /// The same as another user, who must be able to run the executable.
    pub(crate) fn start_as(node: &Node, uid: &str, executable: &Path, arguments: &[&str]) -> Self {
        let (variable, _) = runner::helper("intruder");
        let mut child = node
            .command("setpriv")
            .args(["--reuid", uid, "--regid", uid, "--clear-groups", "env"])
            .arg(variable)
            .arg(executable)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{arguments:?} on {}: {error}", node.name));
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        let _ = output.read_line(&mut line);
        assert_eq!(line.trim(), "ready", "{arguments:?} on {}", node.name);
        Self { child, output }
    }

    /// Ends it; what it has to say.
    pub(crate) fn finish(mut self) -> String {
        drop(self.child.stdin.take());
        let ended = wait_child(&mut self.child, Duration::from_secs(20));
        assert!(ended.is_some_and(|status| status.success()), "a helper ends: {ended:?}");
        let mut text = String::new();
        let _ = self.output.read_to_string(&mut text);
        text.trim().to_owned()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that passed one interface.
pub(crate) struct Ear {
    helper: Helper,
    file: PathBuf,
}

impl Ear {
    pub(crate) fn listen(node: &Node, interface: &str, file: &Path) -> Self {
        let helper = Helper::start(node, &["sniff", interface, &file.display().to_string()]);
        Self { helper, file: file.to_owned() }
    }

    /// The frames: whether it came in (rather than left), and its bytes.
    pub(crate) fn frames(self) -> Vec<(bool, Vec<u8>)> {
        self.helper.finish();
        let bytes = std::fs::read(&self.file).unwrap_or_default();
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let [kind, a, b, c, d, tail @ ..] = rest {
            let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            let (frame, behind) = tail.split_at(length.min(tail.len()));
            frames.push((*kind != libc::PACKET_OUTGOING, frame.to_vec()));
            rest = behind;
        }
        frames
    }
}

/// Where `text` stands in `bytes`, if it does.
pub(crate) fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    let first = *text.first()?;
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|b| *b == first) {
        if bytes[from + at..].starts_with(text) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

pub(crate) fn helper(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        set.store(true, Ordering::Relaxed);
    });
    let done = match words[..] {
        ["sniff", interface, file] => sniff(interface, Path::new(file), &stop),
        ["courier", "to", remote, text] => send_text(remote, text.as_bytes(), &stop),
        ["courier", "at", local] => receive_text(local, &stop),
        ["flood", target, seed] => flood(target, seed.parse().unwrap_or(1), &stop),
        ["knock", target, count] => knock(target, count.parse().unwrap_or(1), &stop),
        ["crowd", path, count] => crowd(path, count.parse().unwrap_or(1), &stop),
        _ => panic!("intruder: {words:?}"),
    };
    match done {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{words:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ready() {
    println!("ready");
    let _ = std::io::stdout().flush();
}

fn sniff(interface: &str, file: &Path, stop: &AtomicBool) -> std::io::Result<String> {
    let socket = sys::packet_socket(interface)?;
    sys::big_receive_buffer(&socket);
    let mut out = std::io::BufWriter::with_capacity(1 << 20, File::create(file)?);
    let mut buffer = vec![0; 1 << 17];
    let mut count = 0u64;
    ready();
    // What is under way when told to stop is still heard.
    let mut until = None;
    loop {
        if stop.load(Ordering::Relaxed) && until.is_none() {
            until = Some(Instant::now() + Duration::from_millis(100));
        }
        if until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        let Some((kind, length)) = sys::receive_packet(&socket, &mut buffer)? else { continue };
        out.write_all(&[kind])?;
        out.write_all(&(length as u32).to_le_bytes())?;
        out.write_all(&buffer[..length])?;
        count += 1;
    }
    out.flush()?;
    Ok(count.to_string())
}

fn send_text(remote: &str, text: &[u8], stop: &AtomicBool) -> std::io::Result<String> {
    let udp = UdpSocket::bind(("0.0.0.0", 0))?;
    udp.connect((remote, PORT))?;
    let mut tcp = TcpStream::connect((remote, PORT))?;
    let mut sent = 0u64;
    ready();
    while !stop.load(Ordering::Relaxed) {
        udp.send(text)?;
        tcp.write_all(&text.repeat(40))?;
        sent += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(sent.to_string())
}

fn receive_text(local: &str, stop: &AtomicBool) -> std::io::Result<String> {
    let udp = UdpSocket::bind((local, PORT))?;
    let listener = TcpListener::bind((local, PORT))?;
    udp.set_read_timeout(Some(Duration::from_millis(50)))?;
    std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept()?;
        std::io::copy(&mut tcp, &mut std::io::sink())
    });
    ready();
    let (mut buffer, mut received) = ([0; 2048], 0u64);
    while !stop.load(Ordering::Relaxed) {
        received += u64::from(udp.recv(&mut buffer).is_ok());
    }
    Ok(received.to_string())
}

/// Garbage of all lengths, and garbage that begins like the frames of a peer.
fn flood(target: &str, seed: u64, stop: &AtomicBool) -> std::io::Result<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(target)?;
    let mut rng = Rng::new(seed);
    let packets: Vec<Vec<u8>> = (0..512u64)
        .map(|n| {
            let length = rng.pick(&[1, 8, 16, 31, 48, 64, 96, 128, 256, 512, 1200, 1400]);
            let mut packet: Vec<u8> = (0..length).map(|_| rng.next() as u8).collect();
            packet[0] = (n % 32) as u8;
            packet
        })
        .collect();
    let mut sent = 0u64;
    ready();
    for packet in packets.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        sent += u64::from(socket.send(packet).is_ok());
    }
    Ok(sent.to_string())
}

/// Connections that send nothing, half a frame, garbage or a frame of nobody's, and stay.
fn knock(target: &str, count: usize, stop: &AtomicBool) -> std::io::Result<String> {
    let (mut streams, mut replied, mut rng) = (Vec::new(), 0, Rng::new(7));
    let address = target.parse().map_err(std::io::Error::other)?;
    for n in 0..count {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else {
            continue;
        };
        let garbage: Vec<u8> = (0..600).map(|_| rng.next() as u8).collect();
        let _ = match n % 4 {
            0 => Ok(()),
            1 => stream.write_all(&[0, 0]),
            2 => stream.write_all(&garbage),
            _ => stream
                .write_all(&512u32.to_be_bytes())
                .and_then(|()| stream.write_all(&garbage[..512])),
        };
        stream.set_nonblocking(true)?;
        streams.push(stream);
    }
    ready();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let (mut open, mut buffer) = (0, [0; 64]);
    for stream in &mut streams {
        match stream.read(&mut buffer) {
            Ok(0) => {}
            Ok(_) => replied += 1,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => open += 1,
            Err(_) => {}
        }
    }
    Ok(format!("{} connected, {open} open, {replied} answered", streams.len()))
}

/// Connections to a control socket: one after the other, of which up to a few hundred stay and
/// never read; every third says nonsense, every fourth half a question.
fn crowd(path: &str, count: usize, stop: &AtomicBool) -> std::io::Result<String> {
    let mut kept = std::collections::VecDeque::new();
    let mut refused = 0;
    for n in 0..count {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let Ok(mut stream) = UnixStream::connect(path) else {
            refused += 1;
            continue;
        };
        stream.set_nonblocking(true)?;
        let _ = match n % 4 {
            1 => stream.write_all(b"{\"version\":1,\"verb\":\"stat"),
            2 => stream.write_all(&[0xFF; 3000]),
            3 => stream.write_all(&b"{\"version\":1,\"verb\":\"status\"}\n".repeat(50)),
            _ => Ok(()),
        };
        kept.push_back(stream);
        if kept.len() > 300 {
            kept.pop_front();
        }
    }
    ready();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(format!("{refused} refused"))
}
