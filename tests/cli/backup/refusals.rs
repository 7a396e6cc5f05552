//! What is asked in vain: what is said, and the exit code; 2 for what was named wrongly.

use std::{fs, time::Duration};

use super::{Rig, Running, number};
use crate::{
    pair::Pair,
    tree::{self, is_root},
};

fn spawn(pair: &Pair, node: &str, words: &[&str]) -> Running {
    let config = format!("{node}.toml");
    Running(pair.room.command(&[words, &["--config", &config]].concat()).spawn().unwrap())
}

#[test]
fn without_a_store_the_next_step_is_said() {
    let pair = Pair::start();
    pair.room.write("file", "x");
    for words in [
        &["backup", "file", "beta:x"][..],
        &["backup", "file", "beta:x", "--policy", "fail"],
        &["restore", "beta:x", "got"],
        &["backup", "list", "beta"],
        &["backup", "show", "beta:x"],
        &["backup", "verify", "beta:x"],
        &["backup", "forget", "beta:x@1"],
    ] {
        let done = pair.ask(words);
        assert_eq!(done.code, 1, "{words:?}: {done:?}");
        assert!(done.stderr.contains("nobody there receives backups"), "{done:?}");
        assert!(done.stderr.contains("hint: on the peer: `sidepath backup serve"), "{done:?}");
    }
    assert!(!pair.room.join("got").exists());
    let done = pair.ask(&["backup", "file", "gamma:x"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("no peer is called gamma"), "{done:?}");
    // No daemon here.
    let done = pair.room.run(&["backup", "list", "beta", "--socket", "nowhere.sock"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("nowhere.sock") && done.stderr.contains("hint: "), "{done:?}");

    // One name, one who serves.
    let first = spawn(&pair, "beta", &["backup", "serve", "--store", "store"]);
    let again = || {
        let end = spawn(&pair, "beta", &["backup", "serve", "--store", "other"]);
        end.end(Duration::from_secs(20))
    };
    pair.wait_for("the store", |_| pair.ask(&["backup", "list", "beta"]).code == 0);
    let said = again();
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("somebody listens for service backup already"), "{said:?}");
    assert!(said.stderr.contains("hint: end the other program"), "{said:?}");
    drop(first);
    // Places that cannot be stores.
    fs::create_dir(pair.room.join("mine")).unwrap();
    pair.room.write("mine/letter", "dear");
    for (folder, says) in [("mine", "other things in it"), ("file", "it is no folder")] {
        let said = spawn(&pair, "beta", &["backup", "serve", "--store", folder]);
        let said = said.end(Duration::from_secs(20));
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.stderr.contains(says) && said.stderr.contains("hint: "), "{said:?}");
    }
    assert_eq!(fs::read_dir(pair.room.join("mine")).unwrap().count(), 1);
}

#[test]
fn what_is_named_wrongly_is_bad_input() {
    let rig = Rig::start();
    tree::make(&rig.path("tree"), 6, 1000);
    rig.result(&["backup", "tree", "beta:tree"]);
    let not = |words: &[&str], says: &[&str]| rig.fails(2, words, says);
    for name in ["beta:", "beta:.x", "beta:-x", "beta:a/b", "beta:a b", "beta:../x", ":x", "x"] {
        not(&["backup", "tree", name], &["error: ", "SOURCE... PEER:NAME"]);
        assert_eq!(rig.run(&["restore", name, "got"]).code, 2, "{name}");
    }
    not(&["backup", "tree", "beta:tree@2"], &["the next number by itself", "leave out `@2`"]);
    not(&["restore", "beta:tree@0", "got"], &["`0` is no version"]);
    not(&["restore", "beta:tree@7", "got"], &["has no version 7", "`sidepath backup list`"]);
    not(&["restore", "beta:other", "got"], &["no backup \"other\"", "`sidepath backup list`"]);
    not(&["backup", "list", "beta:other"], &["no backup \"other\""]);
    not(&["backup", "verify", "beta:tree@7"], &["has no version 7"]);
    not(&["backup", "show", "beta:tree", "a/../b"], &["a/../b"]);
    not(&["restore", "beta:tree", "got", "--only", "nothing"], &["tree@1 has no nothing"]);
    not(&["restore", "beta:tree", "got", "--only", "/etc"], &["backup show"]);
    not(&["restore", "beta:tree", "got", "--policy", "sometimes"], &["preferred"]);
    not(&["backup", "tree", "beta:x", "--exclude", "[z-a"], &["pattern"]);
    not(
        &["backup", "tree", "beta:x", "--limit-rate", "0"],
        &["is too slow: at least 4KiB per second"],
    );
    not(&["backup", "tree", "beta:x", "--compress", "99"], &["-7 to 19, or off"]);
    not(&["backup", "tree", "beta:x", "--streams", "0"], &["--streams"]);

    not(&["backup", "nowhere", "beta:x"], &["cannot read nowhere: No such file"]);
    not(&["backup", "tree", "nowhere", "beta:x"], &["cannot read nowhere"]);
    not(&["backup", "tree/many", "tree/many/../many", "beta:x"], &["two sources are called many"]);
    let list = rig.run(&["backup", "list", "beta", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1, "nothing was stored meanwhile: {list}");

    fs::create_dir(rig.path("full")).unwrap();
    rig.pair.room.write("full/letter", "dear");
    not(&["restore", "beta:tree", "full"], &["full is not empty", "--overwrite"]);
    assert_eq!(fs::read_dir(rig.path("full")).unwrap().count(), 1);
    fs::create_dir_all(rig.path("full/text")).unwrap();
    rig.pair.room.write("full/empty", "not empty");
    // A folder in the way of a file stays, everything else is there.
    let done =
        rig.fails(1, &["restore", "beta:tree", "full", "--overwrite"], &["1 entry is missing"]);
    assert!(done.stderr.contains("text is not restored: a folder is in its way"), "{done:?}");
    assert_eq!(fs::read(rig.path("full/letter")).unwrap(), b"dear");
    assert_eq!(fs::read(rig.path("full/empty")).unwrap(), b"");
    fs::remove_dir(rig.path("full/text")).unwrap();
    rig.result(&["restore", "beta:tree", "full", "--overwrite"]);
    fs::remove_file(rig.path("full/letter")).unwrap();
    // Only the folder's own time differs now.
    let differs = tree::difference(&rig.path("tree"), &rig.path("full"));
    assert!(differs.lines().count() <= 2, "{differs}");
    // A file where a folder should be made.
    not(&["restore", "beta:tree", "full/empty"], &["full/empty is no folder", "hint: "]);
}

#[test]
fn of_two_backups_of_one_name_the_second_is_refused() {
    let rig = Rig::start();
    fs::write(rig.path("file"), tree::Random(7).bytes(6 << 20)).unwrap();
    let slow = ["backup", "file", "beta:one", "--limit-rate", "2MiB", "--json"];
    let first = rig.spawn("alpha", &slow);
    std::thread::sleep(Duration::from_millis(1200));
    let second = ["backup", "file", "beta:one", "--retry", "0s"];
    rig.fails(1, &second, &["backup \"one\" is busy: ", "hint: try again when that has ended"]);
    // One of another name goes on beside it.
    rig.result(&["backup", "file", "beta:two"]);
    let first = first.end(Duration::from_secs(20));
    assert_eq!(first.code, 0, "{first:?}");
    assert_eq!(number(&first.last_json(), "version"), 1);
    assert!(first.stdout.lines().any(|line| line.contains("\"event\":\"progress\"")), "{first:?}");
    // One that reads keeps its version from going.
    let words = ["restore", "beta:one", "--to-command", "sleep 2; cat > /dev/null"];
    fs::write(rig.path("stream"), tree::Random(8).bytes(48 << 20)).unwrap();
    rig.result(&["backup", "--from-command", "cat stream", "beta:one"]);
    let reading = rig.spawn("alpha", &words);
    std::thread::sleep(Duration::from_millis(1000));
    rig.fails(1, &["backup", "forget", "beta:one@1"], &["is busy: it is being restored"]);
    assert_eq!(reading.end(Duration::from_secs(20)).code, 0);
}

#[test]
fn a_source_that_vanishes_is_told_and_all_else_is_stored() {
    let rig = Rig::start();
    fs::create_dir_all(rig.path("tree/b")).unwrap();
    fs::write(rig.path("tree/a"), tree::Random(9).bytes(12 << 20)).unwrap();
    for n in 0..300 {
        fs::write(rig.path(&format!("tree/b/{n}")), tree::Random(n).bytes(20_000)).unwrap();
    }
    fs::write(rig.path("tree/c"), "the last one").unwrap();
    let words = ["backup", "tree", "beta:tree", "--limit-rate", "8MiB", "--json"];
    let running = rig.spawn("alpha", &words);
    std::thread::sleep(Duration::from_millis(700));
    fs::remove_dir_all(rig.path("tree/b")).unwrap();
    let done = running.end(Duration::from_secs(20));
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("could not be stored; all else is in tree@1"), "{done:?}");
    assert!(done.stdout.contains("\"event\":\"problem\",\"message\":\"b"), "{done:?}");
    let result = done.last_json();
    assert!(number(&result, "problems") > 0, "{result}");
    let list = rig.run(&["backup", "list", "beta", "--json"]).json();
    assert_eq!(list[0]["problems"], result["problems"], "{list}");
    rig.result(&["restore", "beta:tree", "got"]);
    assert_eq!(fs::read(rig.path("got/c")).unwrap(), b"the last one");
    assert!(fs::read(rig.path("got/a")).unwrap() == fs::read(rig.path("tree/a")).unwrap());
}

#[test]
fn what_may_not_be_read_is_told() {
    if is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let rig = Rig::start();
    tree::make(&rig.path("tree"), 10, 1000);
    let close = |name: &str, mode| {
        fs::set_permissions(rig.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    close("tree/text", 0o000);
    close("tree/many", 0o000);
    let done = rig.run(&["backup", "tree", "beta:tree"]);
    assert_eq!(done.code, 1, "{done:?}");
    for part in [
        "warning: text: is not stored: Permission denied",
        "warning: many: is stored without what is in it: Permission denied",
        "2 things could not be stored; all else is in tree@1",
    ] {
        assert!(done.stderr.contains(part), "{part} in {done:?}");
    }
    close("tree/text", 0o644);
    close("tree/many", 0o755);
    rig.result(&["backup", "tree", "beta:tree"]);
    rig.result(&["restore", "beta:tree", "got"]);
    tree::assert_same(&rig.path("tree"), &rig.path("got"));
}

#[test]
fn a_socket_is_told_and_is_no_failure() {
    let rig = Rig::start();
    fs::create_dir(rig.path("tree")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rig.path("tree/socket")).unwrap();
    let done = rig.run(&["backup", "tree", "beta:tree"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("warning: socket: is not stored: sockets live"), "{done:?}");
}
