//! Streams from and to commands: how a command ends counts at both ends.

use super::{Rig, number};

#[test]
fn a_command_s_output_is_stored_when_it_ended_well() {
    let rig = Rig::start();
    let seq = "seq 1 400000";
    let done = rig.result(&["backup", "--from-command", seq, "beta:numbers"]);
    assert_eq!((number(&done, "entries"), number(&done, "bytes")), (1, 2_688_895), "{done}");
    let to = "cat > out && touch ended";
    let never = ["restore", "beta:numbers", "--policy", "never", "--to-command", "wc -c"];
    let got = rig.run(&never);
    assert_eq!((got.code, got.stdout.trim()), (0, "2688895"), "{got:?}");
    let got = rig.run(&["restore", "beta:numbers", "--to-command", to]);
    assert_eq!((got.code, got.stdout.as_str()), (0, ""), "{got:?}");
    assert!(rig.path("ended").exists());
    let numbers = std::fs::read_to_string(rig.path("out")).unwrap();
    assert!(numbers.len() == 2_688_895 && numbers.ends_with("\n399999\n400000\n"));
    // As a file of a folder, too; and what the command writes is alone on standard output.
    rig.result(&["restore", "beta:numbers", "folder"]);
    assert_eq!(std::fs::read_to_string(rig.path("folder/stream")).unwrap(), numbers);
    let got = rig.run(&["restore", "beta:numbers", "--to-command", "tail -n 1", "--json"]);
    assert_eq!((got.code, got.stdout.as_str()), (0, "400000\n"), "{got:?}");
    assert!(got.stderr.contains("\"event\":\"done\""), "{got:?}");
    // An empty one is one, too.
    let done = rig.result(&["backup", "--from-command", "true", "beta:empty"]);
    assert_eq!(number(&done, "bytes"), 0);
    let got = rig.run(&["restore", "beta:empty", "--to-command", "wc -c"]);
    assert_eq!((got.code, got.stdout.trim()), (0, "0"), "{got:?}");

    let backup = |command: &str, says: &[&str]| {
        rig.fails(1, &["backup", "--from-command", command, "beta:bad"], says);
        let list = rig.run(&["backup", "list", "beta", "--json"]).json();
        assert!(list.as_array().unwrap().iter().all(|v| v["name"] != "bad"), "{list}");
    };
    backup("seq 1 400000; exit 3", &["`seq 1 400000; exit 3` failed (exit status: 3): nothing is"]);
    backup("no-such-command-here", &["failed (exit status: 127)"]);
    backup("seq 1 9; kill -9 $$", &["failed (signal: 9"]);
    rig.fails(2, &["restore", "beta:bad", "x"], &["no version yet", "hint: "]);

    let to = |command: &str, says: &[&str]| {
        rig.fails(1, &["restore", "beta:numbers", "--to-command", command], says);
    };
    to("cat > /dev/null; exit 4", &["`cat > /dev/null; exit 4` failed (exit status: 4)"]);
    to("exit 5", &["failed (exit status: 5)"]);
    to("head -c 10", &["`head -c 10` ended before it had read everything"]);
    to("no-such-command-here", &["failed (exit status: 127)"]);
}

#[test]
fn streams_and_trees_are_not_taken_for_each_other() {
    let rig = Rig::start();
    std::fs::write(rig.path("file"), "x").unwrap();
    rig.result(&["backup", "file", "beta:tree"]);
    let words = ["restore", "beta:tree", "--to-command", "touch ran"];
    rig.fails(2, &words, &["tree@1 is no stream but a tree", "restore PEER:NAME DEST"]);
    assert!(!rig.path("ran").exists());
    let words = ["backup", "file", "--from-command", "true", "beta:x"];
    rig.fails(2, &words, &["not both"]);
    rig.fails(2, &["backup", "--from-command", "true", "--dry-run", "beta:x"], &["cannot be used"]);
    rig.fails(2, &["restore", "beta:tree", "dest", "--to-command", "true"], &["cannot be used"]);
    rig.fails(2, &["restore", "beta:tree"], &["DEST"]);
    rig.fails(2, &["backup", "beta:x"], &["nothing to store is named", "--from-command"]);
}
