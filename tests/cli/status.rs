//! `sidepath status` says what an operator needs, and `--json` keeps its contract.

use crate::room::{Room, StandIn, document};

#[test]
fn people_read_it_top_down() {
    let room = Room::new();
    let daemon = StandIn::of(&room, document());
    let done = room.run(&["status", "--socket", daemon.socket()]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    let mut lines: Vec<&str> = done.stdout.lines().collect();
    // How long ago a fixed day was depends on today.
    let peer = lines.remove(4);
    assert!(peer.starts_with("peer beta (2)  alive  route storage for "), "{peer}");
    assert!(peer.ends_with(" (was both: network down)"), "{peer}");
    assert_eq!(
        lines.join("\n"),
        "alpha (node 1)  sidepath 0.1.0  up 62m 5s  real-time beats\n\
         interface sp0  10.98.0.1/24  mtu 1420\n\
         warning  beats have no real-time priority\n\
         \n  \
           network   down, heartbeats missed, heard 5.12s ago\n  \
           storage   up, latency 850us, heard 80ms ago\n  \
           sent      9 accepted = 8 acknowledged + 0 queued + 1 lost (ttl 1)\n  \
           received  12 arrived = 9 delivered + 0 held + 3 dropped (duplicate 3)\n  \
           moved     1KiB by network, 2KiB by storage; 4 resent; failovers 1, failbacks 0\n\
         \n\
         volume /dev/sdz (shared)  up, write 410us\n  \
           lane to beta (2): 4KiB of 16MiB unread\n\
         \n\
         refused before a peer was known: 2 frames (forged 2)\n\
         packets that belong to no peer: 3"
    );
}

#[test]
fn replicas_have_a_line_and_metrics() {
    let room = Room::new();
    let mut document = document();
    let replica = serde_json::json!({
        "from": "/dev/a", "to": "nbd://h/b", "mode": "interval", "state": "failed",
        "reason": "destination: gone", "name": "site", "nodes": [1], "lag_records": 3,
        "lag_bytes": 4096, "lag_ms": 1500.0, "records": 7, "bytes": 8192, "missing": 2,
        "rounds": 1, "making": null
    });
    document.replicas = vec![serde_json::from_value(replica.clone()).unwrap()];
    let page = sidepath::admin::metrics::render(&document);
    for line in [
        "sidepath_replica_lag_records{from=\"/dev/a\",to=\"nbd://h/b\"} 3\n",
        "sidepath_replica_lag_bytes{from=\"/dev/a\",to=\"nbd://h/b\"} 4096\n",
        "sidepath_replica_lag_seconds{from=\"/dev/a\",to=\"nbd://h/b\"} 1.5\n",
        "sidepath_replica_records_total{from=\"/dev/a\",to=\"nbd://h/b\"} 7\n",
        "sidepath_replica_bytes_total{from=\"/dev/a\",to=\"nbd://h/b\"} 8192\n",
        "sidepath_replica_missing_total{from=\"/dev/a\",to=\"nbd://h/b\"} 2\n",
        "sidepath_replica_state{from=\"/dev/a\",to=\"nbd://h/b\",state=\"failed\"} 1\n",
        "sidepath_replica_state{from=\"/dev/a\",to=\"nbd://h/b\",state=\"in_sync\"} 0\n",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    let daemon = StandIn::of(&room, document);
    let done = room.run(&["status", "--socket", daemon.socket()]);
    let line = "replica nbd://h/b of /dev/a (interval)  failed, destination: gone, behind by 3 \
                records, 4KiB, 1.5s, 7 records, 8KiB copied, 2 missing\n";
    assert!(done.stdout.contains(line), "{done:?}");
    let json = room.run(&["status", "--json", "--socket", daemon.socket()]).json();
    assert_eq!(json["replicas"][0], replica);
}

#[test]
fn json_is_the_contract() {
    let room = Room::new();
    let daemon = StandIn::of(&room, document());
    let json = room.run(&["status", "--json", "--socket", daemon.socket()]).json();
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let has = |value: &serde_json::Value, names: &[&str]| {
        for name in names {
            assert!(keys(value).iter().any(|key| key == name), "{name} in {value}");
        }
    };
    has(&json, &["node", "interface", "peers", "volumes"]);
    has(&json["node"], &["id", "name", "version", "uptime_s", "realtime"]);
    has(&json["interface"], &["name", "address", "mtu"]);
    let peer = &json["peers"][0];
    has(
        peer,
        &[
            "id",
            "name",
            "state",
            "route",
            "peer_route",
            "network",
            "storage",
            "counters",
            "last_change",
        ],
    );
    has(&peer["network"], &["state", "reason", "rtt_us", "last_heard_ms"]);
    has(&peer["storage"], &["state", "reason", "latency_us", "last_heard_ms"]);
    has(
        &peer["counters"],
        &[
            "accepted",
            "acknowledged",
            "queued",
            "lost",
            "resent",
            "arrived",
            "delivered",
            "dropped",
            "held",
            "lost_by_cause",
            "dropped_by_cause",
            "network_bytes",
            "storage_bytes",
            "failovers",
            "failbacks",
        ],
    );
    has(&peer["last_change"], &["at", "from", "to", "reason"]);
    let volume = &json["volumes"][0];
    has(volume, &["path", "role", "state", "reason", "write_latency_us", "lanes"]);
    has(&volume["lanes"][0], &["to", "used_bytes", "size_bytes"]);
    assert_eq!((&peer["state"], &peer["route"]), (&"alive".into(), &"storage".into()));
    assert_eq!(peer["network"]["state"], "down");
    assert_eq!(peer["network"]["rtt_us"], serde_json::Value::Null);
}

#[test]
fn the_configuration_leads_to_the_socket() {
    let room = Room::new();
    let daemon = StandIn::of(&room, document());
    // Neither its key nor the rest of it need be readable to whoever only asks.
    let text = format!("[node]\ncontrol_socket = \"{}\"\nnonsense = 1\n", daemon.socket());
    room.write("alpha.toml", &text);
    assert_eq!(room.run(&["status", "--config", "alpha.toml"]).code, 0);
    room.write("alpha.toml", "[node]\ncontrol_socket = 7\n");
    let done = room.run(&["status", "--config", "alpha.toml"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("`control_socket` is a text, not a number"), "{done:?}");
}

#[test]
fn no_daemon_is_said_with_a_way_on() {
    let room = Room::new();
    let done = room.run(&["status", "--socket", "nowhere.sock"]);
    assert_eq!((done.code, done.stdout.as_str()), (1, ""));
    assert_eq!(
        done.stderr,
        "error: no daemon: control socket nowhere.sock is not there\n\
         hint: start it with `sidepath run --config FILE`\n"
    );
    drop(std::os::unix::net::UnixListener::bind(room.join("dead.sock")).unwrap());
    let done = room.run(&["status", "--socket", "dead.sock"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("was left by one that died"), "{done:?}");
}

#[test]
fn colour_only_where_it_is_wanted() {
    let room = Room::new();
    let daemon = StandIn::of(&room, document());
    let plain = room.run(&["status", "--socket", daemon.socket()]);
    assert!(!plain.stdout.contains('\x1b'));
    let painted = room.run(&["status", "--color", "always", "--socket", daemon.socket()]);
    assert!(painted.stdout.contains("\x1b[31mdown\x1b[0m"));
}
