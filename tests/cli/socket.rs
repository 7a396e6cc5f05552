//! The control socket keeps its manners whatever a client says.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

use crate::room::{Room, StandIn, document, mode};
use sidepath::admin::socket::{self, SocketError};

fn say(daemon: &StandIn, text: &str) -> serde_json::Value {
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    if line.is_empty() { serde_json::Value::Null } else { serde_json::from_str(&line).unwrap() }
}

#[test]
fn it_has_its_mode_and_goes_with_the_daemon() {
    let room = Room::new();
    let daemon = StandIn::of(&room, document());
    let path = daemon.path.clone();
    assert_eq!(mode(&path), 0o660);
    assert!(matches!(socket::reserve(&path), Err(SocketError::Busy(_))));
    assert!(path.exists(), "the living one's file stays");
    drop(daemon);
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 0);
}

#[test]
fn a_dead_ones_file_is_replaced_but_no_other_file() {
    let room = Room::new();
    drop(std::os::unix::net::UnixListener::bind(room.join("dead.sock")).unwrap());
    drop(socket::reserve(&room.join("dead.sock")).unwrap());
    let file = room.write("precious", "text");
    assert!(matches!(socket::reserve(&file), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "text");
}

#[test]
fn nonsense_is_refused_in_words() {
    let room = Room::new();
    let daemon = StandIn::of(&room, document());
    for (text, part) in [
        ("hello\n", "not a question of this protocol"),
        ("{\"version\":1,\"verb\":\"explode\"}\n", "not a question of this protocol"),
        ("{\"version\":2,\"verb\":\"status\"}\n", "speaks version 1"),
        ("{\"version\":1,\"verb\":\"ping\",\"peer\":65,\"via\":\"auto\",\"timeout_ms\":1}\n", "65"),
    ] {
        let answer = say(&daemon, text);
        assert_eq!(answer["answer"], "refused", "{text}");
        assert!(answer["message"].as_str().unwrap().contains(part), "{answer}");
    }
    assert_eq!(say(&daemon, &"x".repeat(5000)), serde_json::Value::Null, "sent away");
    let answer = say(&daemon, "{\"version\":1,\"verb\":\"status\"}\n");
    assert_eq!(answer["document"]["node"]["name"], "alpha");
}

#[test]
fn a_crowd_is_bounded_and_leaves_room_again() {
    let room = Room::new();
    let daemon = StandIn::of(&room, document());
    let crowd: Vec<_> = (0..32).map(|_| UnixStream::connect(&daemon.path).unwrap()).collect();
    let answer = say(&daemon, "");
    assert!(answer["message"].as_str().unwrap().contains("32 clients"), "{answer}");
    drop(crowd);
    let question = "{\"version\":1,\"verb\":\"status\"}\n";
    let started = std::time::Instant::now();
    while say(&daemon, question)["answer"] != "status" {
        assert!(started.elapsed().as_secs() < 10, "clerks never come back");
    }
}
