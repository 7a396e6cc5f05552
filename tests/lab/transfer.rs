//! One TCP connection that carries a known stream of bytes, checked byte by byte as it arrives.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::bench::Lab;
use super::node::Node;
use super::process::{wait_child, wait_for};
use super::runner;

const PORT: u16 = 9001;

/// A transfer under way.
pub(crate) struct Transfer {
    sender: Child,
    receiver: Child,
    lines: mpsc::Receiver<String>,
    received: u64,
    verdict: Option<String>,
    began: Instant,
}

impl Transfer {
    /// Sends `bytes` from one node to another; `pace` limits bytes per second (0: as fast as it
    /// goes).
    pub(crate) fn start(lab: &Lab, from: usize, to: usize, bytes: u64, pace: u64) -> Self {
        let (from, to) = (lab.node(from), lab.node(to));
        let mut receiver = spawn(to, &["sink", &to.overlay, &bytes.to_string()]);
        let (tell, lines) = mpsc::channel();
        let output = BufReader::new(receiver.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let ready = lines.recv_timeout(Duration::from_secs(10));
        assert_eq!(ready.as_deref(), Ok("ready"), "the receiver listens on {}", to.overlay);
        let sender = spawn(from, &["source", &to.overlay, &bytes.to_string(), &pace.to_string()]);
        Self { sender, receiver, lines, received: 0, verdict: None, began: Instant::now() }
    }

    /// Waits until so many bytes have arrived.
    pub(crate) fn await_bytes(&mut self, bytes: u64, limit: Duration) {
        wait_for(&format!("{bytes} bytes over one TCP connection"), limit, || {
            self.poll();
            if self.received >= bytes {
                return Ok(());
            }
            if let Some(verdict) = &self.verdict {
                panic!("the transfer ended after {} bytes: {verdict}", self.received);
            }
            Err(format!("{} bytes", self.received))
        });
    }

    /// What has arrived so far.
    pub(crate) fn poll(&mut self) -> u64 {
        while let Ok(line) = self.lines.try_recv() {
            match line.parse() {
                Ok(bytes) => self.received = bytes,
                Err(_) => self.verdict = Some(line),
            }
        }
        self.received
    }

    /// Waits for the end: all bytes, each equal, no error at either end.
    pub(crate) fn assert_whole(mut self, limit: Duration) -> Duration {
        wait_for("the end of the transfer", limit, || {
            self.poll();
            self.verdict.clone().ok_or_else(|| format!("{} bytes", self.received))
        });
        let took = self.began.elapsed();
        assert_eq!(self.verdict.as_deref(), Some("equal"), "what the receiver says");
        let sender = wait_child(&mut self.sender, Duration::from_secs(10));
        let receiver = wait_child(&mut self.receiver, Duration::from_secs(10));
        assert!(sender.is_some_and(|status| status.success()), "the sender ends well: {sender:?}");
        assert!(receiver.is_some_and(|status| status.success()), "so does the receiver");
        took
    }
}

/// A connection each way between two nodes, for as long as a story takes.
pub(crate) struct Pair {
    ends: [Endless; 2],
}

struct Endless {
    name: String,
    sender: Child,
    receiver: Child,
}

impl Pair {
    /// Starts to send `pace` bytes per second each way.
    pub(crate) fn start(lab: &Lab, one: usize, other: usize, pace: u64) -> Self {
        let (one, other) = (lab.node(one), lab.node(other));
        Self { ends: [Endless::start(one, other, pace), Endless::start(other, one, pace)] }
    }

    /// Ends both; every byte sent was received, unchanged and in its place. Returns their number.
    #[track_caller]
    pub(crate) fn assert_equal(self, limit: Duration) -> [u64; 2] {
        self.ends.map(|end| end.assert_equal(limit))
    }
}

impl Endless {
    fn start(from: &Node, to: &Node, pace: u64) -> Self {
        let mut receiver = spawn(to, &["sink", &to.overlay, ENDLESS]);
        let mut ready = [0; 6];
        let output = receiver.stdout.as_mut().expect("a pipe");
        output.read_exact(&mut ready).expect("the receiver says that it listens");
        let sender = spawn(from, &["source", &to.overlay, ENDLESS, &pace.to_string()]);
        Self { name: format!("{} -> {}", from.name, to.name), sender, receiver }
    }

    fn assert_equal(mut self, limit: Duration) -> u64 {
        drop(self.sender.stdin.take());
        let name = &self.name;
        let told = |child: &mut Child| {
            let ended = wait_child(child, limit);
            let mut text = String::new();
            if let Some(mut output) = child.stdout.take().filter(|_| ended.is_some()) {
                let _ = output.read_to_string(&mut text);
            }
            (ended, text.trim().to_owned())
        };
        let (ended, sent) = told(&mut self.sender);
        assert!(ended.is_some_and(|s| s.success()), "{name}: the sender ends well: {ended:?}");
        let (ended, received) = told(&mut self.receiver);
        assert!(ended.is_some(), "{name}: the receiver ends");
        assert_eq!(received, format!("equal {sent}"), "{name}: what the receiver says");
        sent.parse().unwrap_or(0)
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        for child in [&mut self.sender, &mut self.receiver] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A number of bytes no story reaches; the sender ends when its standard input does, and both say
/// how far they came.
const ENDLESS: &str = "18446744073709551615";

fn spawn(node: &Node, arguments: &[&str]) -> Child {
    let (variable, executable) = runner::helper("transfer");
    let child = node
        .command("env")
        .arg(variable)
        .arg(executable)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    child.unwrap_or_else(|error| panic!("a transfer on {}: {error}", node.name))
}

/// The process on a node: `sink ADDRESS BYTES` or `source ADDRESS BYTES PACE`.
pub(crate) fn helper(arguments: &[String]) -> ExitCode {
    let address = (arguments[1].as_str(), PORT);
    let bytes: u64 = arguments[2].parse().expect("a number of bytes");
    if arguments[0] == "sink" {
        println!("{}", sink(&TcpListener::bind(address).expect("a free port"), bytes));
        return ExitCode::SUCCESS;
    }
    match source(address, bytes, arguments[3].parse().expect("a pace")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sender: {error}");
            ExitCode::FAILURE
        }
    }
}

fn source(address: (&str, u16), bytes: u64, pace: u64) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let mut pattern = Pattern::new();
    let mut block = [0u8; 1 << 16];
    let mut block_size = block.len() as u64;
    let (began, mut sent) = (Instant::now(), 0);
    let endless = bytes == u64::MAX;
    let stop = Arc::new(AtomicBool::new(false));
    if endless {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            stop.store(true, Ordering::Relaxed);
        });
        block_size = 1 << 14;
    }
    while sent < bytes && !stop.load(Ordering::Relaxed) {
        let length = (bytes - sent).min(block_size) as usize;
        pattern.fill(&mut block[..length]);
        stream.write_all(&block[..length])?;
        sent += length as u64;
        if pace > 0 {
            let due = Duration::from_secs_f64(sent as f64 / pace as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    if endless {
        println!("{sent}");
    }
    // The other end closes once it has everything; an error here is a reset.
    stream.read_to_end(&mut Vec::new()).map(|_| ())
}

fn sink(listener: &TcpListener, bytes: u64) -> String {
    println!("ready");
    let mut stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(error) => return format!("accept: {error}"),
    };
    let mut pattern = Pattern::new();
    let (mut block, mut expected) = (vec![0u8; 1 << 18], vec![0u8; 1 << 18]);
    let (mut received, mut told) = (0u64, 0);
    loop {
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(length) => {
                pattern.fill(&mut expected[..length]);
                if block[..length] != expected[..length] {
                    let first = block.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                    return format!("differs at byte {}", received + first as u64);
                }
                received += length as u64;
                if bytes == u64::MAX {
                    continue;
                }
                if received - told >= 1 << 18 || received == bytes {
                    println!("{received}");
                    told = received;
                }
            }
            Err(error) => return format!("after {received} bytes: {error}"),
        }
    }
    if bytes == u64::MAX {
        return format!("equal {received}");
    }
    if received == bytes { "equal".to_owned() } else { format!("ended after {received} bytes") }
}

/// Bytes that never repeat, the same in both processes (xorshift64).
struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    fn new() -> Self {
        Self { state: 0x9E37_79B9_7F4A_7C15, word: [0; 8], used: 8 }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let (rest, bytes) = bytes.split_at_mut((8 - self.used).min(bytes.len()));
        rest.copy_from_slice(&self.word[self.used..self.used + rest.len()]);
        self.used += rest.len();
        let mut words = bytes.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next());
        }
        let last = words.into_remainder();
        if !last.is_empty() {
            self.word = self.next();
            self.used = last.len();
            last.copy_from_slice(&self.word[..last.len()]);
        }
    }

    fn next(&mut self) -> [u8; 8] {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.to_le_bytes()
    }
}
