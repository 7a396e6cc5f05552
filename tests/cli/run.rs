//! `sidepath run`: two daemons on this machine, no root: they meet, are asked, drilled, reloaded
//! and stopped, and leave nothing behind.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{pair::Pair, room::Room};
use rustix::process::Signal;

#[test]
fn a_pair_from_start_to_stop() {
    let mut pair = Pair::start();

    let done = pair.ask(&["ping", "beta", "-c", "2", "-i", "10ms"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("beta seq=1 out=network back=network time="), "{done:?}");
    let done = pair.ask(&["ping", "beta", "-c", "1", "--via", "storage"]);
    assert!(done.stdout.contains("beta seq=1 out=storage back=storage time="), "{done:?}");

    let page = pair.http("GET /metrics HTTP/1.1\r\nHost: alpha\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let route = "\nsidepath_route{peer=\"beta\",state=\"network\"} 1\n";
    assert!(page.contains(route), "{page}");
    assert!(pair.http("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(pair.http("PUT /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(pair.http("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));

    let done = pair.ask(&["drill", "beta", "--cut", "network", "--for", "1s", "--json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let json = done.last_json();
    assert!(json["failover_ms"].as_u64().is_some_and(|ms| ms < 900), "{json} {}", done.stderr);
    assert!(json["failback_ms"].as_u64().is_some(), "{json} {}", done.stderr);

    // A second one for the same place is refused and harms nobody.
    let done = pair.room.run(&["run", "--config", "alpha.toml"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("another daemon answers on control socket alpha.sock"));
    assert_eq!(pair.ask(&["status"]).code, 0);

    // The survivor of a goodbye knows at once.
    pair.signal(1, Signal::TERM);
    assert_eq!(pair.ended(1), Some(0), "{}", pair.log("beta"));
    assert!(!pair.room.join("beta.sock").exists());
    pair.wait_for("beta is dead", |peer| peer["state"] == "dead");
    pair.signal(0, Signal::INT);
    assert_eq!(pair.ended(0), Some(0), "{}", pair.log("alpha"));
    assert!(!pair.room.join("alpha.sock").exists());
    let leftover = std::fs::read_dir(pair.room.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.contains(".sock"));
    assert_eq!(leftover, None);
}

#[test]
fn a_reload_is_whole_or_nothing() {
    let pair = Pair::start();
    let good = std::fs::read_to_string(pair.room.join("alpha.toml")).unwrap();
    let listen = good.find("[storage]").unwrap();
    let changed = format!("{}hold = \"2s\"\n{}", &good[..listen], &good[listen..]);
    pair.room.write("alpha.toml", &changed);
    let done = pair.ask(&["reload"]);
    assert_eq!((done.code, done.stdout.contains("hold")), (0, true), "{done:?}");
    assert_eq!(pair.ask(&["reload"]).stdout, "nothing changed\n");

    pair.room.write("alpha.toml", &changed.replace("hold", "hodl"));
    let done = pair.ask(&["reload"]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert!(done.stderr.starts_with("error: unknown key `hodl` in [network]\n"), "{done:?}");
    let line = 1 + changed.lines().position(|line| line.starts_with("hold")).unwrap();
    assert!(done.stderr.contains(&format!("alpha.toml:{line}:")), "where: {done:?}");
    assert!(done.stderr.contains("hint: "), "a way on: {done:?}");
    assert_eq!(pair.ask(&["status"]).code, 0, "the old one works on");
    pair.signal(0, Signal::HUP);
    let started = Instant::now();
    while !pair.log("alpha").contains("reading the configuration again") {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    pair.room.write("alpha.toml", &changed.replace("alpha.sock", "other.sock"));
    let done = pair.room.run(&["reload", "--socket", "alpha.sock"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("`control_socket` cannot change while the daemon runs"));
    pair.room.write("alpha.toml", &good);
    assert_eq!(pair.ask(&["status"]).code, 0);
}

#[test]
fn a_killed_one_is_replaced() {
    let mut pair = Pair::start();
    pair.signal(0, Signal::KILL);
    assert_eq!(pair.ended(0), None);
    assert!(pair.room.join("alpha.sock").exists(), "nobody could remove it");
    let done = pair.ask(&["status"]);
    assert!(done.stderr.contains("was left by one that died"), "{done:?}");
    let log = std::fs::File::create(pair.room.join("alpha.log")).unwrap();
    let mut command = pair.room.command(&["run", "--config", "alpha.toml"]);
    pair.daemons[0] = command.stderr(Stdio::from(log)).spawn().unwrap();
    pair.wait_for("they meet again", |peer| peer["network"]["state"] == "up");
}

#[test]
fn what_is_wrong_before_the_start_is_said_with_code_2() {
    let room = Room::new();
    let done = room.run(&["run", "--config", "nowhere.toml"]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    let config = room.config();
    room.write("alpha.toml", &config.replace("id = 1", "id = 0"));
    let done = room.run(&["run", "--config", "alpha.toml"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("`id` is 0, but ids are 1 to 64"), "{done:?}");
    room.write("alpha.toml", &config);
    let done = room.run(&["run", "--config", "alpha.toml", "--log", "=loud"]);
    assert_eq!(done.code, 2, "{done:?}");
    // 192.0.2.1 is no address of any machine.
    let network = config.replace("[interface]\nname = \"sp0\"\naddress = \"10.98.0.1/24\"\n", "");
    room.write("alpha.toml", &network);
    let done = room.run(&["run", "--config", "alpha.toml"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("cannot listen on 192.0.2.1:7440"), "{done:?}");
    assert!(done.stderr.contains("hint: "), "{done:?}");
    assert!(!room.join("alpha.sock").exists());
}
