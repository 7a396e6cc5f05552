//! `/metrics` for Prometheus: the counters of status, in its text format 0.0.4.
//!
//! The responder knows one path, answers a few clients at a time, reads at most 8 KiB of a
//! request and closes every connection after its answer. Counters start at zero when the daemon
//! does and never go back; gauges are as of the moment of the request.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use failover::{Route, health::Verdict, status::PeerState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use volumes::media::Requests;

use super::{
    Ask,
    document::{Document, Peer, Replica},
};

/// Connections served at the same time; a scraper needs one.
const CLIENTS_MAX: usize = 8;
/// A request is a line and a few headers.
const REQUEST_BYTES_MAX: usize = 8192;
/// From connection to answer; slower clients are cut off.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(5);

/// A responder at work; stops when dropped.
#[derive(Debug)]
pub struct Metrics {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Starts to answer at `address`.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve(address: SocketAddr, ask: Ask) -> io::Result<Metrics> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || accept(&listener, &ask, &stopped))?;
    Ok(Metrics { stop, thread: Some(thread), address })
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, ask: &Ask, stop: &AtomicBool) {
    let clients = Arc::new(AtomicUsize::new(0));
    let pause = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    while !stop.load(Ordering::Acquire) {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&pause)), Ok(ready) if ready > 0) {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        if clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS_MAX {
            clients.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (ask, counted) = (ask.clone(), clients.clone());
        let spawned = std::thread::Builder::new().name("metrics-client".into()).spawn(move || {
            // A scraper that leaves early is its own affair.
            let _ = answer(stream, &ask);
            counted.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            clients.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn answer(mut stream: TcpStream, ask: &Ask) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.set_write_timeout(Some(CLIENT_TIME_MAX))?;
    let started = Instant::now();
    let mut request = Vec::new();
    let mut piece = [0_u8; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > REQUEST_BYTES_MAX || started.elapsed() > CLIENT_TIME_MAX {
            return respond(&mut stream, "400 Bad Request", "request too long or too slow\n", true);
        }
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => request.extend_from_slice(&piece[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
    }
    let text = String::from_utf8_lossy(&request);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return respond(&mut stream, "400 Bad Request", "not HTTP/1\n", true);
    }
    let body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return respond(&mut stream, "405 Method Not Allowed", "only GET\n", true),
    };
    let path = target.split('?').next().unwrap_or_default();
    if path != "/metrics" {
        return respond(&mut stream, "404 Not Found", "metrics are at /metrics\n", body);
    }
    match super::document(ask) {
        Ok(document) => respond(&mut stream, "200 OK", &render(&document), body),
        Err(why) => respond(&mut stream, "503 Service Unavailable", &format!("{why}\n"), body),
    }
}

fn respond(stream: &mut TcpStream, status: &str, text: &str, body: bool) -> io::Result<()> {
    let mut reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    if body {
        reply.push_str(text);
    }
    stream.write_all(reply.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// The whole page.
#[must_use]
pub fn render(document: &Document) -> String {
    let mut page = Page::default();
    let node = &document.node;
    page.family("sidepath_info", "gauge", "Always 1; what runs where.");
    page.sample(
        "sidepath_info",
        &[("node", &node.name), ("id", &node.id.to_string()), ("version", &node.version)],
        1_u8,
    );
    page.family("sidepath_uptime_seconds", "gauge", "Since the daemon started.");
    page.sample("sidepath_uptime_seconds", &[], format!("{:.3}", node.uptime_s));
    page.family("sidepath_realtime", "gauge", "1 when beats have real-time priority.");
    page.sample("sidepath_realtime", &[], u8::from(node.realtime));
    page.family("sidepath_warnings", "gauge", "Warnings shown by status.");
    page.sample("sidepath_warnings", &[], document.warnings.len());
    peers(&mut page, &document.peers);
    page.family("sidepath_refused_total", "counter", "Frames refused before a peer was known.");
    for (cause, count) in &document.refused {
        page.sample("sidepath_refused_total", &[("cause", cause)], count);
    }
    page.family("sidepath_unroutable_total", "counter", "Packets that belong to no peer.");
    page.sample("sidepath_unroutable_total", &[], document.unroutable);
    volumes(&mut page, document);
    replicas(&mut page, &document.replicas);
    page.text
}

fn peers(page: &mut Page, peers: &[Peer]) {
    states(page, "sidepath_peer_state", "1 for the state a peer is in.", peers, |peer| {
        let all = [PeerState::Alive, PeerState::Dead, PeerState::Unknown];
        all.iter().map(|state| (word(state), *state == peer.state)).collect()
    });
    states(page, "sidepath_route", "1 for the route packets to a peer take.", peers, |peer| {
        let all = [Route::Network, Route::Both, Route::Storage, Route::Isolated];
        all.iter().map(|route| (word(route), *route == peer.route)).collect()
    });
    page.family("sidepath_path_state", "gauge", "1 for the state a path to a peer is in.");
    for peer in peers {
        for (path, now) in [("network", peer.network.state), ("storage", peer.storage.state)] {
            let all = [Verdict::Up, Verdict::Suspect, Verdict::Down, Verdict::Disabled];
            for state in &all {
                let labels =
                    [("peer", peer.name.as_str()), ("path", path), ("state", &word(state))];
                page.sample("sidepath_path_state", &labels, u8::from(*state == now));
            }
        }
    }
    let gauge = |page: &mut Page, name, help, value: fn(&Peer) -> Option<u64>, unit: f64| {
        page.family(name, "gauge", help);
        for peer in peers {
            if let Some(value) = value(peer) {
                #[expect(clippy::cast_precision_loss, reason = "microseconds, far below 2^53")]
                let value = value as f64 / unit;
                page.sample(name, &[("peer", &peer.name)], value);
            }
        }
    };
    gauge(
        page,
        "sidepath_network_rtt_seconds",
        "Smoothed round trip by the network.",
        |peer| peer.network.rtt_us,
        1e6,
    );
    gauge(
        page,
        "sidepath_storage_latency_seconds",
        "Smoothed time to the peer by storage.",
        |peer| peer.storage.latency_us,
        1e6,
    );
    gauge(
        page,
        "sidepath_network_last_heard_seconds",
        "Since the peer was heard by the network.",
        |peer| peer.network.last_heard_ms,
        1e3,
    );
    gauge(
        page,
        "sidepath_storage_last_heard_seconds",
        "Since the peer was heard by storage.",
        |peer| peer.storage.last_heard_ms,
        1e3,
    );
    counters(page, peers);
}

fn counters(page: &mut Page, peers: &[Peer]) {
    type Counter = (&'static str, &'static str, &'static str, fn(&Peer) -> u64);
    let all: [Counter; 13] = [
        ("sidepath_accepted_packets_total", "counter", "Taken from applications.", |p| {
            p.counters.accepted
        }),
        ("sidepath_acknowledged_packets_total", "counter", "Confirmed by the peer.", |p| {
            p.counters.acknowledged
        }),
        ("sidepath_queued_packets", "gauge", "Waiting, or kept until confirmed.", |p| {
            p.counters.queued
        }),
        ("sidepath_lost_packets_total", "counter", "Given up, all causes.", |p| p.counters.lost),
        ("sidepath_resent_frames_total", "counter", "Copies sent again.", |p| p.counters.resent),
        ("sidepath_arrived_packets_total", "counter", "Came from the peer, with copies.", |p| {
            p.counters.arrived
        }),
        ("sidepath_delivered_packets_total", "counter", "Handed to applications.", |p| {
            p.counters.delivered
        }),
        ("sidepath_dropped_packets_total", "counter", "Not handed on, all causes.", |p| {
            p.counters.dropped
        }),
        ("sidepath_held_packets", "gauge", "Waiting for a predecessor.", |p| p.counters.held),
        ("sidepath_network_bytes_total", "counter", "Frames sent by the network.", |p| {
            p.counters.network_bytes
        }),
        ("sidepath_storage_bytes_total", "counter", "Frames sent by storage.", |p| {
            p.counters.storage_bytes
        }),
        ("sidepath_failovers_total", "counter", "Changes to storage alone.", |p| {
            p.counters.failovers
        }),
        ("sidepath_failbacks_total", "counter", "Changes back.", |p| p.counters.failbacks),
    ];
    for (name, kind, help, value) in all {
        page.family(name, kind, help);
        for peer in peers {
            page.sample(name, &[("peer", &peer.name)], value(peer));
        }
    }
    page.family("sidepath_lost_by_cause_total", "counter", "Given up, by cause.");
    for peer in peers {
        for (cause, count) in &peer.counters.lost_by_cause {
            let labels = [("peer", peer.name.as_str()), ("cause", cause)];
            page.sample("sidepath_lost_by_cause_total", &labels, count);
        }
    }
    page.family("sidepath_dropped_by_cause_total", "counter", "Not handed on, by cause.");
    for peer in peers {
        for (cause, count) in &peer.counters.dropped_by_cause {
            let labels = [("peer", peer.name.as_str()), ("cause", cause)];
            page.sample("sidepath_dropped_by_cause_total", &labels, count);
        }
    }
}

fn volumes(page: &mut Page, document: &Document) {
    page.family("sidepath_volume_up", "gauge", "1 when the volume works.");
    for volume in &document.volumes {
        let labels = [("path", volume.path.as_str()), ("role", &volume.role)];
        page.sample("sidepath_volume_up", &labels, u8::from(volume.state == "up"));
    }
    page.family("sidepath_volume_write_latency_seconds", "gauge", "Smoothed, of one write.");
    for volume in &document.volumes {
        if let Some(us) = volume.write_latency_us {
            #[expect(clippy::cast_precision_loss, reason = "microseconds, far below 2^53")]
            let seconds = us as f64 / 1e6;
            let labels = [("path", volume.path.as_str())];
            page.sample("sidepath_volume_write_latency_seconds", &labels, seconds);
        }
    }
    store_requests(page, document);
    let lanes = [("sidepath_lane_used_bytes", true), ("sidepath_lane_size_bytes", false)];
    for (name, used) in lanes {
        let help = if used { "Written and not yet read." } else { "Of the data ring." };
        page.family(name, "gauge", help);
        for volume in &document.volumes {
            for lane in &volume.lanes {
                let value = if used { lane.used_bytes } else { lane.size_bytes };
                let labels = [("path", volume.path.as_str()), ("to", &lane.to.to_string())];
                page.sample(name, &labels, value);
            }
        }
    }
}

fn store_requests(page: &mut Page, document: &Document) {
    let stores = || document.volumes.iter().filter_map(|v| Some((v.path.as_str(), v.requests?)));
    if stores().next().is_none() {
        return;
    }
    page.family("sidepath_store_requests_total", "counter", "Asked of an object store.");
    for (path, requests) in stores() {
        for (kind, count) in requests.by_kind() {
            let labels = [("path", path), ("kind", kind)];
            page.sample("sidepath_store_requests_total", &labels, count);
        }
    }
    type Value = (&'static str, &'static str, fn(&Requests) -> u64);
    const MORE: [Value; 3] = [
        ("sidepath_store_throttled_total", "Answers that asked for fewer requests.", |r| {
            r.throttled
        }),
        ("sidepath_store_sent_bytes_total", "Bodies of requests.", |r| r.sent_bytes),
        ("sidepath_store_received_bytes_total", "Bodies of answers.", |r| r.received_bytes),
    ];
    for (name, help, value) in MORE {
        page.family(name, "counter", help);
        for (path, requests) in stores() {
            page.sample(name, &[("path", path)], value(&requests));
        }
    }
}

fn replicas(page: &mut Page, replicas: &[Replica]) {
    type Value = (&'static str, &'static str, &'static str, fn(&Replica) -> f64);
    #[expect(clippy::cast_precision_loss, reason = "exact to 2^53, and nobody counts as far")]
    const ALL: [Value; 6] = [
        ("sidepath_replica_lag_records", "gauge", "Not yet at the replica.", |r| {
            r.lag_records as f64
        }),
        ("sidepath_replica_lag_bytes", "gauge", "Not yet at the replica.", |r| r.lag_bytes as f64),
        ("sidepath_replica_lag_seconds", "gauge", "Age of what is not yet there.", |r| {
            r.lag_ms / 1e3
        }),
        ("sidepath_replica_records_total", "counter", "Records copied.", |r| r.records as f64),
        ("sidepath_replica_bytes_total", "counter", "Bytes copied.", |r| r.bytes as f64),
        (
            "sidepath_replica_missing_total",
            "counter",
            "Overwritten before they were copied.",
            |r| r.missing as f64,
        ),
    ];
    for (name, kind, help, value) in ALL {
        page.family(name, kind, help);
        for replica in replicas {
            let labels = [("from", replica.from.as_str()), ("to", &replica.to)];
            page.sample(name, &labels, value(replica));
        }
    }
    page.family("sidepath_replica_state", "gauge", "1 for the state a copy is in.");
    for replica in replicas {
        for state in volumes::CopyState::ALL.map(volumes::CopyState::word) {
            let labels = [("from", replica.from.as_str()), ("to", &replica.to), ("state", state)];
            page.sample("sidepath_replica_state", &labels, u8::from(replica.state == state));
        }
    }
}

fn states(
    page: &mut Page,
    name: &str,
    help: &str,
    peers: &[Peer],
    all: impl Fn(&Peer) -> Vec<(String, bool)>,
) {
    page.family(name, "gauge", help);
    for peer in peers {
        for (state, on) in all(peer) {
            page.sample(name, &[("peer", &peer.name), ("state", &state)], u8::from(on));
        }
    }
}

/// The word status uses for it.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(name);
        for (index, (key, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{key}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}
