//! `sidepath peers` is a short table.

use crate::room::{Room, StandIn, document};

#[test]
fn one_line_per_peer() {
    let room = Room::new();
    let mut all = document();
    let mut gamma = all.peers[0].clone();
    (gamma.id, gamma.name) = (3, "gamma-far-away".into());
    (gamma.network.last_heard_ms, gamma.storage.last_heard_ms) = (None, None);
    all.peers.push(gamma);
    let daemon = StandIn::of(&room, all);
    let done = room.run(&["peers", "--socket", daemon.socket()]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(
        done.stdout,
        "ID  NAME            STATE    ROUTE     NETWORK   STORAGE       LOST  LAST HEARD\n \
          2  beta            alive    storage   down      up               1  heard 80ms ago\n \
          3  gamma-far-away  alive    storage   down      up               1  never heard\n"
    );
    let done = room.run(&["peers", "--json", "--socket", daemon.socket()]);
    assert_eq!(done.json()[1]["name"], "gamma-far-away");
}

#[test]
fn a_daemon_without_peers_says_so() {
    let room = Room::new();
    let mut alone = document();
    alone.peers.clear();
    let daemon = StandIn::of(&room, alone);
    let done = room.run(&["peers", "--socket", daemon.socket()]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""));
    assert_eq!(done.stderr, "no peers configured\n");
}
