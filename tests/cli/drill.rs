//! `sidepath drill` ends when it should: in time, on Ctrl-C, and when it is killed.

use std::{
    process::Child,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use crate::room::{Room, StandIn, document};
use failover::{Cut, Route};
use sidepath::{
    admin::document::Document,
    daemon::request::{DrillStep, Request},
};

/// A loop with one path to cut.
#[derive(Default)]
struct Loop {
    document: Option<Document>,
    until: Option<Instant>,
    asked: Option<mpsc::Sender<Result<DrillStep, String>>>,
    drills: Vec<(Cut, Duration)>,
}

impl Loop {
    fn change(&mut self, to: Route, now: &str) {
        let peer = &mut self.document.as_mut().unwrap().peers[0];
        let mut change = peer.last_change.clone().unwrap();
        (change.from, change.to, change.at) = (peer.route, to, now.to_string());
        change.reason = "as the test says".into();
        (peer.route, peer.last_change) = (to, Some(change));
    }

    fn turn(&mut self, request: Request) {
        match request {
            Request::Drill { length, .. } if length.is_zero() => {
                self.drills.push((Cut::Network, length));
                self.until = None;
                self.change(Route::Network, "2026-01-01T00:00:02.000Z");
            }
            Request::Drill { force, .. } if !force => {
                panic!("the tests force");
            }
            Request::Drill { cut: Cut::Storage, reply, .. } => {
                let _ = reply.send(Err("the network is down".into()));
            }
            Request::Drill { cut, length, reply, .. } => {
                self.drills.push((cut, length));
                self.until = Some(Instant::now() + length);
                let _ = reply.send(Ok(DrillStep::Started));
                self.asked = Some(reply);
                self.change(Route::Storage, "2026-01-01T00:00:01.000Z");
            }
            Request::Status { reply } => {
                if self.until.is_some_and(|until| Instant::now() > until) {
                    self.until = None;
                    self.change(Route::Network, "2026-01-01T00:00:02.000Z");
                    let _ = self.asked.take().unwrap().send(Ok(DrillStep::Ended));
                }
                let _ = reply.send(Box::new(self.document.clone().unwrap()));
            }
            _ => panic!("not asked for"),
        }
    }
}

fn start(room: &Room) -> (StandIn, Arc<Mutex<Loop>>) {
    let mut document = document();
    document.peers[0].route = Route::Network;
    document.peers[0].counters.lost = 0;
    let state = Arc::new(Mutex::new(Loop { document: Some(document), ..Loop::default() }));
    let shared = state.clone();
    let daemon = StandIn::start(
        room,
        move |request| shared.lock().unwrap().turn(request),
        || Ok(Vec::new()),
    );
    (daemon, state)
}

fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_measures_and_ends_in_time() {
    let room = Room::new();
    let (daemon, state) = start(&room);
    let words = ["drill", "beta", "--cut", "network", "--for", "300ms", "--force", "--socket"];
    let done = room.run(&[&words[..], &[daemon.socket()]].concat());
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    for part in ["cut the network to beta for 300ms", "route storage", "healed", "0 lost"] {
        assert!(done.stdout.contains(part), "{part} in {}", done.stdout);
    }
    assert_eq!(state.lock().unwrap().drills, [(Cut::Network, Duration::from_millis(300))]);
    let words = ["drill", "2", "--cut", "network", "--for", "50ms", "--force", "--json"];
    let done = room.run(&[&words[..], &["--socket", daemon.socket()]].concat());
    let json = done.last_json();
    assert_eq!(json["routes_seen"], serde_json::json!(["network", "storage", "network"]));
    assert_eq!((&json["lost"], &json["cut"]), (&0.into(), &"network".into()));
}

/// Runs a long drill, ends it by a signal, and waits until the daemon healed the path.
fn ended_by(signal: i32) -> (Child, String) {
    let room = Room::new();
    let (daemon, state) = start(&room);
    let words = ["drill", "beta", "--cut", "network", "--for", "1h", "--force", "--socket"];
    let mut child = room.command(&[&words[..], &[daemon.socket()]].concat()).spawn().unwrap();
    let limit = Duration::from_secs(10);
    wait_for("the drill starts", limit, || state.lock().unwrap().until.is_some());
    // The program must be past its start to take a signal as an order to heal.
    std::thread::sleep(Duration::from_millis(200));
    let pid = rustix::process::Pid::from_child(&child);
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    wait_for("the path is healed", limit, || state.lock().unwrap().until.is_none());
    wait_for("the program ends", limit, || child.try_wait().unwrap().is_some());
    let mut stdout = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut stdout).unwrap();
    (child, stdout)
}

#[test]
fn ctrl_c_heals_at_once() {
    let (mut child, stdout) = ended_by(libc::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(0), "{stdout}");
    assert!(stdout.contains("interrupted; healed"), "{stdout}");
}

#[test]
fn a_killed_drill_heals() {
    let (mut child, _) = ended_by(libc::SIGKILL);
    assert_eq!(child.wait().unwrap().code(), None);
}

#[test]
fn a_refused_drill_says_why() {
    let room = Room::new();
    let (daemon, _state) = start(&room);
    let words = ["drill", "beta", "--cut", "storage", "--for", "1s", "--force", "--socket"];
    let done = room.run(&[&words[..], &[daemon.socket()]].concat());
    assert_eq!((done.code, done.stdout.as_str()), (1, ""));
    assert_eq!(
        done.stderr,
        "error: drill refused: the network is down\n\
         hint: sidepath status shows both paths; --force drills all the same\n"
    );
    let words = ["drill", "beta", "--cut", "both", "--for", "1s", "--socket"];
    let done = room.run(&[&words[..], &[daemon.socket()]].concat());
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("hint: add --force"), "{done:?}");
    let words = ["drill", "beta", "--cut", "network", "--for", "0s", "--socket"];
    assert_eq!(room.run(&[&words[..], &[daemon.socket()]].concat()).code, 2);
}
