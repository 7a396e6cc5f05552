//! `sidepath reload` prints what changed, or why nothing did.

use crate::room::{Room, StandIn};
use sidepath::admin::socket::ReloadRefused;

#[test]
fn changes_are_data() {
    let room = Room::new();
    let changes = || Ok(vec!["peer gamma added".to_string(), "hold 1s -> 2s".to_string()]);
    let daemon = StandIn::start(&room, |_| {}, changes);
    let done = room.run(&["reload", "--socket", daemon.socket()]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert_eq!(done.stdout, "peer gamma added\nhold 1s -> 2s\n");
    let done = room.run(&["reload", "--json", "--socket", daemon.socket()]);
    assert_eq!(done.json()["changes"][0], "peer gamma added");
}

#[test]
fn no_change_is_no_error() {
    let room = Room::new();
    let daemon = StandIn::start(&room, |_| {}, || Ok(Vec::new()));
    let done = room.run(&["reload", "--socket", daemon.socket()]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "nothing changed\n"));
}

#[test]
fn a_bad_configuration_ends_with_2_and_a_refused_change_with_1() {
    for (input, code) in [(true, 2), (false, 1)] {
        let room = Room::new();
        let refuse = move || Err(ReloadRefused { message: "because".into(), input });
        let daemon = StandIn::start(&room, |_| {}, refuse);
        let done = room.run(&["reload", "--socket", daemon.socket()]);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""));
        assert_eq!(done.stderr, "error: because\n");
    }
}
