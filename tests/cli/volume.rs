//! `sidepath volume` formats only what may be formatted, and shows what is there.

use crate::nbdkit::Nbdkit;
use crate::room::{Done, Room};

fn init(room: &Room, more: &[&str]) -> Done {
    let words = ["volume", "init", "v", "--nodes", "1,2", "--single-host"];
    room.run(&[&words[..], more].concat())
}

#[test]
fn a_file_is_created_only_with_a_size() {
    let room = Room::new();
    let done = init(&room, &["--name", "demo"]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(done.stderr.starts_with("error: v: does not exist\nhint: give --size"), "{done:?}");
    let done = init(&room, &["--name", "demo", "--size", "8MiB"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert!(done.stdout.starts_with("v: volume `demo`, "), "{done:?}");
    assert!(done.stdout.contains("nodes 1,2, 2 lanes of "), "{done:?}");
}

#[test]
fn what_somebody_may_need_is_not_destroyed() {
    let room = Room::new();
    assert_eq!(init(&room, &["--name", "demo", "--size", "8MiB"]).code, 0);
    let done = init(&room, &["--name", "other"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("it is the sidepath volume \"demo\""), "{done:?}");
    assert_eq!(init(&room, &["--name", "other", "--force"]).code, 2);
    let done = init(&room, &["--name", "demo", "--force"]);
    assert_eq!(done.code, 0, "{done:?}");
    let done = init(&room, &["--name", "demo", "--size", "64KiB", "--force"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("too few"), "{done:?}");
}

#[test]
fn a_fresh_volume_is_shown_and_whole() {
    let room = Room::new();
    assert_eq!(init(&room, &["--name", "demo", "--size", "8MiB"]).code, 0);
    let done = room.run(&["volume", "inspect", "v"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert!(done.stdout.starts_with("volume demo  "), "{done:?}");
    assert!(done.stdout.contains("node 1   never    has never been here\n"), "{done:?}");
    let json = room.run(&["volume", "inspect", "--json", "v"]).json();
    assert_eq!((&json["name"], &json["nodes"][1]["node"]), (&"demo".into(), &2.into()));
    let done = room.run(&["volume", "verify", "v"]);
    assert_eq!((done.code, done.stdout.ends_with("\nok\n")), (0, true), "{done:?}");
    assert_eq!(room.run(&["volume", "verify", "--json", "v"]).json()["ok"], true);
}

#[test]
fn damage_is_found_and_what_is_no_volume_is_said() {
    use std::os::unix::fs::FileExt;
    let room = Room::new();
    assert_eq!(init(&room, &["--name", "demo", "--size", "8MiB"]).code, 0);
    let file = std::fs::OpenOptions::new().write(true).open(room.join("v")).unwrap();
    file.write_all_at(b"scratched", 100).unwrap();
    let done = room.run(&["volume", "verify", "v"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("error: v: damaged"), "{done:?}");
    room.write("text", "no volume");
    for (verb, path) in [("inspect", "text"), ("verify", "text"), ("inspect", "nowhere")] {
        let done = room.run(&["volume", verb, path]);
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{done:?}");
        assert!(done.stderr.starts_with("error: "), "{done:?}");
    }
}

#[test]
fn a_bench_compares_ours_with_raw_and_leaves_nothing() {
    let room = Room::new();
    let words = ["volume", "bench", "v", "--single-host", "--duration", "300ms"];
    let done = room.run(&words);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("latency of 4 KiB, half within"), "{done:?}");
    let json = room.run(&[&words[..], &["--json"]].concat()).json();
    for field in ["record_latency", "raw_latency", "record_mb_s", "raw_mb_s"] {
        assert!(!json[field].is_null(), "{field} in {json}");
    }
    assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 0, "nothing is left behind");
}

/// Killed also when the test fails.
#[test]
fn an_export_is_a_volume_like_any_other() {
    let room = Room::new();
    let Some(server) = Nbdkit::start(&room, &["memory", "8M"]) else { return };
    let url = server.url("lun");
    let done = room.run(&["volume", "init", &url, "--name", "demo", "--nodes", "1,2"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.starts_with(&format!("{url}: volume `demo`, ")), "{done:?}");
    let done = room.run(&["volume", "init", &url, "--name", "x", "--nodes", "1,2"]);
    assert_eq!(done.code, 2, "{done:?}");
    let json = room.run(&["volume", "inspect", "--json", &url]).json();
    assert_eq!((&json["name"], &json["path"]), (&"demo".into(), &url.as_str().into()));
    let done = room.run(&["volume", "verify", &url]);
    assert_eq!((done.code, done.stdout.ends_with("\nok\n")), (0, true), "{done:?}");
    let done = room.run(&["volume", "bench", &url, "--duration", "300ms"]);
    assert!(done.code == 0 && done.stdout.contains("half within"), "{done:?}");
    for (wrong, word) in [("gs://bucket/x", "`gs://` is not known"), ("nbd://h:0/x", "no port")] {
        let done = room.run(&["volume", "inspect", wrong]);
        assert!(done.code == 2 && done.stderr.contains(word), "{done:?}");
    }
    let done = room.run(&["volume", "inspect", "nbd+unix:///x?socket=/nowhere"]);
    assert!(done.code == 1 && done.stderr.contains("cannot connect"), "{done:?}");
}
