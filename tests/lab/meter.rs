//! A numbered stream of small datagrams in both directions, and what became of each.
//!
//! Like two people counting aloud into telephones, one number each millisecond, each writing down
//! when they said a number and when they heard one. All clocks are one clock (the nodes are one
//! machine), so the times can be compared. The meter runs with real-time priority where that is
//! allowed, so that a gap it shows is a gap of the line and not of its own sleep; its own longest
//! gap between two sends is printed beside the results.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::bench::Lab;
use super::node::Node;
use super::process::wait_child;
use super::rng::Rng;
use super::runner;
use super::sys;

const PORT: u16 = 9000;
const PAYLOAD: usize = 64;
const MS: u64 = 1_000_000;

/// Two running meters, one on each node.
pub(crate) struct Meter {
    ends: [End; 2],
    marks: Vec<(u64, String)>,
}

struct End {
    name: &'static str,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    file: PathBuf,
}

impl Meter {
    /// Starts to send `rate` datagrams per second both ways between two nodes, over the virtual
    /// interface.
    pub(crate) fn start(lab: &Lab, one: usize, other: usize, rate: u32) -> Self {
        let (one, other) = (lab.node(one), lab.node(other));
        let end = |here: &Node, there: &Node| {
            End::start(here, there, rate, &lab.dir.join(format!("{}.meter", here.name)))
        };
        let mut ends = [end(one, other), end(other, one)];
        // Both listen before either speaks.
        ends.iter_mut().for_each(|end| end.order("go"));
        Self { ends, marks: Vec::new() }
    }

    /// Notes what happens now. Returns the instant.
    pub(crate) fn mark(&mut self, what: &str) -> u64 {
        let now = sys::monotonic_ns();
        self.marks.push((now, what.to_owned()));
        now
    }

    /// The same for an instant that has passed.
    pub(crate) fn note(&mut self, at: u64, what: &str) {
        self.marks.push((at, what.to_owned()));
    }

    /// Stops sending, leaves `drain` for what is under way, and returns the stream of each
    /// direction: from the first node to the second, and back.
    pub(crate) fn finish(mut self, drain: Duration) -> [Stream; 2] {
        for end in &mut self.ends {
            end.order("stop");
        }
        thread::sleep(drain);
        for end in &mut self.ends {
            end.order("finish");
        }
        let [first, second] = self.ends.map(End::collect);
        let marks = self.marks;
        [Stream::new(&first, &second, marks.clone()), Stream::new(&second, &first, marks)]
    }
}

impl End {
    fn start(here: &Node, there: &Node, rate: u32, file: &Path) -> Self {
        let (variable, executable) = runner::helper("meter");
        let mut words: Vec<String> =
            runner::realtime_prefix().iter().map(|word| (*word).to_owned()).collect();
        words.extend(["env".to_owned(), variable, executable.display().to_string()]);
        words.extend([here.overlay.clone(), there.overlay.clone(), rate.to_string()]);
        words.push(file.display().to_string());
        let mut child = here
            .command(&words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("the meter on {}: {error}", here.name));
        let orders = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut end = Self { name: here.name, child, orders, answers, file: file.to_owned() };
        assert_eq!(end.answer(), "ready", "the meter on {} starts", end.name);
        end
    }

    fn order(&mut self, word: &str) {
        writeln!(self.orders, "{word}").unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert_eq!(self.answer(), word, "the meter on {} answers", self.name);
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        let _ = self.answers.read_line(&mut line);
        line.trim().to_owned()
    }

    fn collect(mut self) -> Log {
        let ended = wait_child(&mut self.child, Duration::from_secs(10));
        assert!(ended.is_some_and(|status| status.success()), "the meter on {} ends", self.name);
        Log::read(self.name, &self.file)
    }
}

/// What one meter wrote down.
struct Log {
    name: &'static str,
    sent: Vec<u64>,
    heard: Vec<Arrival>,
    errors: BTreeMap<String, u64>,
    overflowed: u64,
}

/// A number, when it was said and when it was heard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) number: u64,
    pub(crate) sent: u64,
    pub(crate) heard: u64,
}

impl Log {
    fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        let mut put = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
        put(self.overflowed);
        put(self.sent.len() as u64);
        put(self.heard.len() as u64);
        self.sent.iter().for_each(|at| put(*at));
        for arrival in &self.heard {
            [arrival.number, arrival.sent, arrival.heard].into_iter().for_each(&mut put);
        }
        for (error, count) in &self.errors {
            writeln!(bytes, "{count} {error}")?;
        }
        fs::write(path, bytes)
    }

    fn read(name: &'static str, path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut words = bytes.chunks_exact(8);
        let mut get = || {
            let word = words.next().expect("a whole log");
            u64::from_le_bytes(word.try_into().expect("eight bytes"))
        };
        let (overflowed, sent, heard) = (get(), get(), get());
        let sent: Vec<u64> = (0..sent).map(|_| get()).collect();
        let heard: Vec<Arrival> =
            (0..heard).map(|_| Arrival { number: get(), sent: get(), heard: get() }).collect();
        let text = &bytes[8 * (3 + sent.len() + 3 * heard.len())..];
        let errors = String::from_utf8_lossy(text)
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(count, error)| (error.to_owned(), count.parse().unwrap_or(0)))
            .collect();
        Self { name, sent, heard, errors, overflowed }
    }
}

/// One direction of the traffic.
pub(crate) struct Stream {
    pub(crate) name: String,
    /// When each number was said.
    pub(crate) sent: Vec<u64>,
    pub(crate) arrivals: Vec<Arrival>,
    /// Errors the sending application saw, by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Datagrams the receiver's own socket had no room for: a fault of the meter.
    pub(crate) overflowed: u64,
    marks: Vec<(u64, String)>,
}

impl Stream {
    fn new(from: &Log, to: &Log, marks: Vec<(u64, String)>) -> Self {
        Self {
            name: format!("{} -> {}", from.name, to.name),
            sent: from.sent.clone(),
            arrivals: to.heard.clone(),
            errors: from.errors.clone(),
            overflowed: to.overflowed,
            marks,
        }
    }

    /// When a number was said.
    pub(crate) fn sent_at(&self, number: u64) -> u64 {
        self.sent.get(number as usize).copied().unwrap_or(0)
    }

    pub(crate) fn lost(&self) -> Vec<u64> {
        let mut seen = vec![false; self.sent.len()];
        for arrival in &self.arrivals {
            if let Some(seen) = seen.get_mut(arrival.number as usize) {
                *seen = true;
            }
        }
        (0u64..).zip(&seen).filter(|(_, seen)| !**seen).map(|(number, _)| number).collect()
    }

    pub(crate) fn duplicated(&self) -> Vec<u64> {
        let mut seen = vec![false; self.sent.len()];
        let again = |arrival: &&Arrival| {
            seen.get_mut(arrival.number as usize).is_none_or(|seen| std::mem::replace(seen, true))
        };
        self.arrivals.iter().filter(again).map(|arrival| arrival.number).collect()
    }

    /// Numbers heard that were never said, or not at the time they claim.
    pub(crate) fn phantoms(&self) -> Vec<u64> {
        let said =
            |arrival: &&Arrival| self.sent.get(arrival.number as usize) == Some(&arrival.sent);
        self.arrivals
            .iter()
            .filter(|arrival| !said(arrival))
            .map(|arrival| arrival.number)
            .collect()
    }

    /// Numbers heard after a larger one.
    pub(crate) fn reordered(&self) -> Vec<u64> {
        let mut top = None;
        let late = |arrival: &&Arrival| {
            let late = top.is_some_and(|top| arrival.number < top);
            top = top.max(Some(arrival.number));
            late
        };
        self.arrivals.iter().filter(late).map(|arrival| arrival.number).collect()
    }

    /// The longest time without an arrival that touches this window, in ms. A stream that is
    /// still silent when the window ends is silent until its next arrival.
    pub(crate) fn silence_ms(&self, from: u64, to: u64) -> f64 {
        longest_gap_ms(self.arrivals.iter().map(|arrival| arrival.heard), from, to)
    }

    /// The same of the sender: what the meter itself missed by not being scheduled.
    pub(crate) fn own_gap_ms(&self, from: u64, to: u64) -> f64 {
        longest_gap_ms(self.sent.iter().copied(), from, to)
    }

    /// The oldest datagram heard in this window, by the time it was under way, in ms.
    pub(crate) fn oldest_ms(&self, from: u64, to: u64) -> f64 {
        let under_way = |arrival: &Arrival| arrival.heard.saturating_sub(arrival.sent);
        let within = |arrival: &&Arrival| (from..=to).contains(&arrival.heard);
        self.arrivals.iter().filter(within).map(under_way).max().unwrap_or(0) as f64 / MS as f64
    }

    /// Nothing lost, nothing twice, everything in order, and no error shown to the application.
    pub(crate) fn assert_perfect(&self) {
        let flaws = self.flaws();
        println!("  {}: sent {}, {} flaws", self.name, self.sent.len(), flaws.len());
        assert!(flaws.is_empty(), "{}: {}", self.name, flaws.join("\n  "));
    }

    /// What is wrong with this stream, if anything.
    pub(crate) fn flaws(&self) -> Vec<String> {
        let mut flaws = Vec::new();
        for (what, numbers) in [
            ("lost", self.lost()),
            ("delivered twice", self.duplicated()),
            ("never said", self.phantoms()),
            ("out of order", self.reordered()),
        ] {
            if !numbers.is_empty() {
                flaws.push(format!("{what} {}", self.tell(&numbers)));
            }
        }
        if self.sent.is_empty() {
            flaws.push("nothing was sent".to_owned());
        }
        if !self.errors.is_empty() {
            flaws.push(format!("the application saw {:?}", self.errors));
        }
        if self.overflowed > 0 {
            flaws.push(format!("the meter's own socket overflowed by {}", self.overflowed));
        }
        flaws
    }

    pub(crate) fn assert_never_twice(&self) {
        let twice = self.duplicated();
        assert!(twice.is_empty(), "{}: delivered twice {}", self.name, self.tell(&twice));
    }

    /// Numbers with the time they were sent and heard, counted from the mark before.
    pub(crate) fn tell(&self, numbers: &[u64]) -> String {
        let mut text = format!("{} of {}:", numbers.len(), self.sent.len());
        for number in numbers.iter().take(12) {
            let sent = self.sent_at(*number);
            let heard: Vec<String> = self
                .arrivals
                .iter()
                .filter(|arrival| arrival.number == *number)
                .map(|arrival| format!("{:.1}", (arrival.heard - arrival.sent) as f64 / 1e6))
                .collect();
            text += &format!("\n    no. {number} sent {}", self.since_mark(sent));
            if !heard.is_empty() {
                text += &format!(", heard after ms {}", heard.join(" and "));
            }
        }
        if numbers.len() > 12 {
            let last = numbers.last().copied().unwrap_or(0);
            let sent = self.sent_at(last);
            text += &format!("\n    ... up to no. {last} sent {}", self.since_mark(sent));
        }
        text
    }

    fn since_mark(&self, at: u64) -> String {
        match self.marks.iter().rev().find(|(mark, _)| *mark <= at) {
            Some((mark, what)) => format!("{:.1} ms after {what}", (at - mark) as f64 / 1e6),
            None => "before the first mark".to_owned(),
        }
    }
}

fn longest_gap_ms(times: impl Iterator<Item = u64>, from: u64, to: u64) -> f64 {
    let (mut last, mut longest) = (None, 0);
    for at in times {
        if let Some(last) = last
            && at >= from
            && last <= to
        {
            longest = longest.max(at.saturating_sub(last));
        }
        last = Some(at);
    }
    // A stream that never came back is silent for the whole rest of the window.
    if let Some(last) = last.filter(|last| *last < to) {
        longest = longest.max(to - last.max(from));
    }
    longest as f64 / MS as f64
}

/// Samples, told as median, 99th percentile and largest.
#[derive(Default)]
pub(crate) struct Summary(Vec<f64>);

impl Summary {
    pub(crate) fn add(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    pub(crate) fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99, max) = (self.at(0.5), self.at(0.99), self.max());
        write!(out, "p50 {p50:.1}  p99 {p99:.1}  max {max:.1} ms  (n={})", self.0.len())
    }
}

/// The process on a node: `LOCAL REMOTE RATE FILE`, orders on standard input.
pub(crate) fn helper(arguments: &[String]) -> ExitCode {
    let [local, remote, rate, file] = arguments else { panic!("meter: {arguments:?}") };
    let socket = UdpSocket::bind((local.as_str(), PORT)).expect("the interface's address");
    sys::big_receive_buffer(&socket);
    socket.connect((remote.as_str(), PORT)).expect("a route to the peer");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let [go, stop, finish] = [const { AtomicBool::new(false) }; 3];
    let period = 1_000_000_000 / rate.parse::<u64>().expect("a rate");

    let log = thread::scope(|scope| {
        let sender = scope.spawn(|| send_numbers(&socket, period, &go, &stop));
        let receiver = scope.spawn(|| hear_numbers(&socket, &finish));
        let mut out = std::io::stdout();
        let mut say = |word: &str| {
            let _ = writeln!(out, "{word}");
            let _ = out.flush();
        };
        say("ready");
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let flag = match line.as_str() {
                "go" => &go,
                "stop" => &stop,
                _ => &finish,
            };
            flag.store(true, Ordering::Relaxed);
            say(&line);
            if line == "finish" {
                break;
            }
        }
        // The pipe may also have closed because the test is gone.
        stop.store(true, Ordering::Relaxed);
        finish.store(true, Ordering::Relaxed);
        let (sent, mut errors) = sender.join().expect("the sender");
        let (heard, more) = receiver.join().expect("the receiver");
        for (error, count) in more {
            *errors.entry(error).or_default() += count;
        }
        Log { name: "", sent, heard, errors, overflowed: dropped_by_socket() }
    });
    log.write(Path::new(file)).expect("the meter's file");
    ExitCode::SUCCESS
}

type Errors = BTreeMap<String, u64>;

fn send_numbers(
    socket: &UdpSocket,
    period: u64,
    go: &AtomicBool,
    stop: &AtomicBool,
) -> (Vec<u64>, Errors) {
    let (mut sent, mut errors) = (Vec::with_capacity(1 << 20), Errors::new());
    while !go.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1));
    }
    let mut due = sys::monotonic_ns();
    let mut packet = [0u8; PAYLOAD];
    while !stop.load(Ordering::Relaxed) {
        due += period;
        sys::sleep_until_ns(due);
        let now = sys::monotonic_ns();
        packet[..8].copy_from_slice(&(sent.len() as u64).to_le_bytes());
        packet[8..16].copy_from_slice(&now.to_le_bytes());
        packet[16..].copy_from_slice(&filling(sent.len() as u64, now));
        match socket.send(&packet) {
            Ok(_) => sent.push(now),
            // Nothing left this machine: the number is said again.
            Err(error) => *errors.entry(format!("send: {error}")).or_default() += 1,
        }
    }
    (sent, errors)
}

/// The rest of a datagram follows from its number and its time.
fn filling(number: u64, time: u64) -> [u8; PAYLOAD - 16] {
    let mut rng = Rng::new(number ^ time.rotate_left(32));
    std::array::from_fn(|_| rng.next() as u8)
}

fn hear_numbers(socket: &UdpSocket, finish: &AtomicBool) -> (Vec<Arrival>, Errors) {
    let (mut heard, mut errors) = (Vec::with_capacity(1 << 20), Errors::new());
    let mut packet = [0u8; 2048];
    while !finish.load(Ordering::Relaxed) {
        match socket.recv(&mut packet) {
            Ok(length) if length == PAYLOAD => {
                let now = sys::monotonic_ns();
                let word = |at: usize| {
                    u64::from_le_bytes(packet[at..at + 8].try_into().expect("eight bytes"))
                };
                heard.push(Arrival { number: word(0), sent: word(8), heard: now });
                if packet[16..PAYLOAD] != filling(word(0), word(8)) {
                    *errors.entry(format!("no. {} arrives changed", word(0))).or_default() += 1;
                }
            }
            Ok(length) => *errors.entry(format!("length {length}")).or_default() += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => *errors.entry(format!("receive: {error}")).or_default() += 1,
        }
    }
    (heard, errors)
}

/// The last column of /proc/net/udp counts what a socket had no room for.
fn dropped_by_socket() -> u64 {
    let table = fs::read_to_string("/proc/self/net/udp").unwrap_or_default();
    let port = format!(":{PORT:04X} ");
    let line = table.lines().find(|line| line.contains(&port)).unwrap_or_default();
    line.split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(0)
}
