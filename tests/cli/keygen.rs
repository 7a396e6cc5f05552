//! `sidepath keygen` makes an identity once and never replaces it.

use crate::room::{Room, mode};

#[test]
fn the_private_key_is_private_and_the_public_one_is_data() {
    let room = Room::new();
    let done = room.run(&["keygen", "--out", "alpha.key"]);
    assert_eq!(done.code, 0, "{done:?}");
    let public = done.stdout.strip_suffix('\n').unwrap();
    assert_eq!((public.len(), public.ends_with('=')), (44, true));
    let private = std::fs::read_to_string(room.join("alpha.key")).unwrap();
    assert_eq!(private.len(), 45);
    assert_eq!(mode(&room.join("alpha.key")), 0o600);
    assert!(!done.stdout.contains(private.trim()) && !done.stderr.contains(private.trim()));
    assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn without_a_name_it_is_sidepath_key() {
    let room = Room::new();
    assert_eq!(room.run(&["keygen"]).code, 0);
    assert_eq!(mode(&room.join("sidepath.key")), 0o600);
}

#[test]
fn an_existing_file_is_never_replaced() {
    let room = Room::new();
    room.write("alpha.key", "precious");
    let done = room.run(&["keygen", "--out", "alpha.key"]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""));
    assert_eq!(
        done.stderr,
        "error: alpha.key exists already\n\
         hint: choose another name with --out, or move the old key away first\n"
    );
    assert_eq!(std::fs::read_to_string(room.join("alpha.key")).unwrap(), "precious");
    std::os::unix::fs::symlink("nowhere", room.join("link")).unwrap();
    assert_eq!(room.run(&["keygen", "--out", "link"]).code, 2);
}

#[test]
fn a_folder_that_is_not_there_is_said() {
    let room = Room::new();
    let done = room.run(&["keygen", "--out", "keys/alpha.key"]);
    assert_eq!(done.code, 2);
    assert_eq!(done.stderr, "error: no folder keys\nhint: mkdir -p keys\n");
}
