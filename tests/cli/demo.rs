//! `sidepath demo` needs nothing and loses nothing.

use std::time::Duration;

use crate::room::{Room, finish};

fn demo(cut: &str) -> (i32, serde_json::Value, String) {
    let room = Room::new();
    let mut command =
        room.command(&["demo", "--json", "--seconds", "8", "--rate", "200", "--cut", cut]);
    command.env("TMPDIR", room.path());
    let done = finish(command, Duration::from_secs(60));
    assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 0, "nothing is left behind");
    (done.code, done.last_json(), done.stderr)
}

#[test]
fn a_dead_network_costs_nothing() {
    let (code, json, story) = demo("network");
    for count in ["lost", "duplicated", "reordered", "damaged"] {
        assert_eq!(json[count], 0, "{count} in {json}\n{story}");
    }
    assert_eq!(json["sent"], json["delivered"], "{story}");
    assert!(json["sent"].as_u64().unwrap() > 1000, "{json}");
    let routes = json["routes_seen"].as_array().unwrap();
    assert!(routes.contains(&"storage".into()), "{json}\n{story}");
    assert_eq!(routes.last().unwrap(), "network", "{json}\n{story}");
    assert!(json["failover_silence_ms"].as_f64().unwrap() > 0.0, "{json}");
    assert!(json["failback_silence_ms"].as_f64().unwrap() > 0.0, "{json}");
    assert_eq!(code, 0, "{json}\n{story}");
}

#[test]
fn a_dead_storage_is_not_noticed() {
    let (code, json, story) = demo("storage");
    assert_eq!((code, &json["lost"]), (0, &0.into()), "{json}\n{story}");
    let routes = json["routes_seen"].as_array().unwrap();
    assert!(!routes.contains(&"storage".into()), "{json}\n{story}");
    assert_eq!(routes.last().unwrap(), "network", "{json}\n{story}");
}

#[test]
fn without_any_path_the_truth_is_told() {
    let (code, json, story) = demo("both");
    let clean = ["lost", "duplicated", "reordered"].iter().all(|count| json[*count] == 0);
    assert_eq!(code == 0, clean, "{json}\n{story}");
    // Nothing can have come through while nothing was there.
    let (silence, cut) = (&json["failover_silence_ms"], &json["cut_ms"]);
    assert!(silence.as_f64().unwrap() > cut.as_f64().unwrap() * 0.9, "{json}\n{story}");
    assert_eq!(json["duplicated"], 0, "{json}\n{story}");
}
