//! `sidepath ping` shows the path of each leg, and fails when nothing comes back.

use std::time::Duration;

use crate::room::{Room, StandIn, document};
use failover::{Path, Via};
use sidepath::daemon::request::{PingAnswer, Request};

/// Answers every second probe.
fn start(room: &Room, answers: bool) -> StandIn {
    let probes = std::sync::atomic::AtomicU64::new(0);
    StandIn::start(
        room,
        move |request| match request {
            Request::Status { reply } => {
                let _ = reply.send(Box::new(document()));
            }
            Request::Ping { peer, via, reply } => {
                assert_eq!(peer.get(), 2);
                let number = probes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let out = if via == Via::Storage { Path::Storage } else { Path::Network };
                if answers && number.is_multiple_of(2) {
                    let round_trip = Duration::from_micros(400 + 100 * number);
                    let answer = PingAnswer::Reply { out, back: Path::Storage, round_trip };
                    let _ = reply.send(answer);
                }
            }
            _ => panic!("not asked for"),
        },
        || Ok(Vec::new()),
    )
}

#[test]
fn a_line_per_reply_and_a_summary() {
    let room = Room::new();
    let daemon = start(&room, true);
    let words = ["ping", "beta", "-c", "3", "-i", "10ms", "-W", "50ms", "--socket"];
    let done = room.run(&[&words[..], &[daemon.socket()]].concat());
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(
        done.stdout,
        "beta seq=1 out=network back=storage time=400us\n\
         beta seq=2 no reply within 50ms\n\
         beta seq=3 out=network back=storage time=600us\n\
         \n\
         beta: 3 sent, 2 received, 33% lost; min 400us avg 500us max 600us\n"
    );
    let words = ["ping", "2", "-c", "1", "--via", "storage", "--json", "--socket"];
    let done = room.run(&[&words[..], &[daemon.socket()]].concat());
    assert_eq!(done.last_json()["sent"], 1);
}

#[test]
fn nothing_back_is_a_failure() {
    let room = Room::new();
    let daemon = start(&room, false);
    let words = ["ping", "beta", "-c", "2", "-i", "1ms", "-W", "20ms", "--socket"];
    let done = room.run(&[&words[..], &[daemon.socket()]].concat());
    assert_eq!(done.code, 1);
    assert!(done.stdout.ends_with("beta: 2 sent, 0 received, 100% lost\n"), "{done:?}");
}

#[test]
fn an_unknown_peer_is_bad_input() {
    let room = Room::new();
    let daemon = start(&room, true);
    let done = room.run(&["ping", "betta", "--socket", daemon.socket()]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert_eq!(done.stderr, "error: no peer `betta`\nhint: did you mean `beta`?\n");
    let done = room.run(&["ping", "alpha", "--socket", daemon.socket()]);
    assert_eq!(done.stderr, "error: no peer `alpha`\nhint: that is this node; peers are: beta\n");
}
