//! `sidepath send` on one machine and `sidepath recv` on another, a stream of numbered lines
//! between them, and the pauses its reader saw.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use super::node::{Node, binary};
use super::process::{wait_child, wait_for};

/// What every line begins with: found wherever the stream can be read.
pub(crate) const MARKER: &str = "MARKER-of-what-nobody-may-read-on-the-way ";
const LINE: usize = 64;
/// Shorter pauses are not noted.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) struct Flow {
    send: Child,
    recv: Child,
    enough: Arc<AtomicBool>,
    got: Arc<AtomicU64>,
    pauses: Arc<Mutex<Vec<(Instant, Instant)>>>,
    feeder: JoinHandle<u64>,
    reader: JoinHandle<u64>,
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) bytes: u64,
    pub(crate) network_bytes: u64,
    pub(crate) storage_bytes: u64,
}

impl Flow {
    /// Sends `total` bytes, or until told that it is enough, at most `pace` bytes a second (0: as
    /// fast as it goes).
    pub(crate) fn start(from: &Node, to: &Node, via: &str, total: u64, pace: u64) -> Self {
        let program = |node: &Node, words: &[&str]| {
            let mut command = Command::new(binary());
            command.args(words).arg("--config").arg(&node.config);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let spawn = |mut command: Command| {
            command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
        };
        let mut recv = spawn(program(to, &["recv", "flow"]));
        // Refused while nobody listens yet.
        let (mut send, _) = wait_for("somebody who receives", Duration::from_secs(10), || {
            let command = program(from, &["send", to.name, "flow", "--json", "--via", via]);
            let mut send = spawn(command);
            sleep(Duration::from_millis(200));
            match send.try_wait() {
                Ok(None) => Ok(send),
                ended => Err(format!("{ended:?}")),
            }
        });
        let (enough, got) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pauses = Arc::new(Mutex::new(Vec::new()));
        let (mut into, stop) = (send.stdin.take().expect("a pipe"), Arc::clone(&enough));
        let feeder = thread::spawn(move || {
            let (began, mut sent) = (Instant::now(), 0);
            while sent < total && !stop.load(Relaxed) {
                let piece = lines(sent, (total - sent).min(64 << 10));
                if into.write_all(&piece).is_err() {
                    break;
                }
                sent += piece.len() as u64;
                if pace > 0 {
                    let due = began + Duration::from_secs_f64(sent as f64 / pace as f64);
                    sleep(due.saturating_duration_since(Instant::now()));
                }
            }
            sent
        });
        let mut out = recv.stdout.take().expect("a pipe");
        let (count, noted) = (Arc::clone(&got), Arc::clone(&pauses));
        let reader = thread::spawn(move || {
            let (mut buffer, mut at, mut last) = (vec![0; 64 << 10], 0_u64, Instant::now());
            loop {
                let n = out.read(&mut buffer).expect("a pipe");
                if n == 0 {
                    return at;
                }
                if last.elapsed() > PAUSE {
                    noted.lock().expect("a list").push((last, Instant::now()));
                }
                last = Instant::now();
                let skip = at as usize % LINE;
                let wanted = lines(at - skip as u64, (skip + n) as u64);
                assert!(buffer[..n] == wanted[skip..skip + n], "other bytes from {at} on");
                at += n as u64;
                count.store(at, Relaxed);
            }
        });
        Self { send, recv, enough, got, pauses, feeder, reader }
    }

    pub(crate) fn got(&self) -> u64 {
        self.got.load(Relaxed)
    }

    #[track_caller]
    pub(crate) fn await_bytes(&self, bytes: u64, limit: Duration) {
        wait_for("bytes that arrive", limit, || {
            let got = self.got();
            if got >= bytes { Ok(()) } else { Err(format!("{got} of {bytes}")) }
        });
    }

    /// The longest pause that had begun or ended in that time, in milliseconds.
    pub(crate) fn longest_pause(&self, from: Instant, to: Instant) -> f64 {
        let pauses = self.pauses.lock().expect("a list");
        let within = pauses.iter().filter(|(began, ended)| *ended >= from && *began <= to);
        let longest = within.map(|(began, ended)| *ended - *began).max();
        longest.unwrap_or_default().as_secs_f64() * 1e3
    }

    /// Waits until both programs gave up, which they must by themselves; what each said.
    #[track_caller]
    pub(crate) fn broken(mut self, limit: Duration) -> [String; 2] {
        let words = [&mut self.send, &mut self.recv].map(|program| {
            let ended = wait_child(program, limit);
            assert_eq!(ended.and_then(|status| status.code()), Some(1), "{program:?}");
            let mut said = String::new();
            let _ = program.stderr.take().expect("a pipe").read_to_string(&mut said);
            said
        });
        self.enough.store(true, Relaxed);
        let _ = self.feeder.join();
        let _ = self.reader.join();
        words
    }

    /// Ends it; every byte must have arrived, and both programs must end well.
    #[track_caller]
    pub(crate) fn finish(mut self, limit: Duration) -> Ended {
        self.enough.store(true, Relaxed);
        let sent = self.feeder.join().expect("a feeder that ends");
        let ended = wait_child(&mut self.send, limit);
        let mut said = [String::new(), String::new()];
        let _ = self.send.stdout.take().expect("a pipe").read_to_string(&mut said[0]);
        let _ = self.send.stderr.take().expect("a pipe").read_to_string(&mut said[1]);
        assert!(ended.is_some_and(|status| status.success()), "send: {ended:?} {said:?}");
        let ended = wait_child(&mut self.recv, limit);
        assert!(ended.is_some_and(|status| status.success()), "recv: {ended:?}");
        let got = self.reader.join().expect("a reader that ends");
        assert_eq!(got, sent, "bytes that arrived");
        let summary: serde_json::Value = serde_json::from_str(&said[0]).expect("a summary");
        let count = |name: &str| summary[name].as_u64().expect("a number");
        Ended {
            bytes: count("bytes"),
            network_bytes: count("network_bytes"),
            storage_bytes: count("storage_bytes"),
        }
    }
}

/// Lines from that place on, of so many bytes.
fn lines(at: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length as usize + LINE);
    let mut number = at / LINE as u64;
    while (bytes.len() as u64) < length {
        let width = LINE - MARKER.len() - 1;
        bytes.extend_from_slice(MARKER.as_bytes());
        bytes.extend_from_slice(format!("{number:0width$}\n").as_bytes());
        number += 1;
    }
    bytes.truncate(length as usize);
    bytes
}
