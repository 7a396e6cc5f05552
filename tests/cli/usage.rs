//! Words that are no command end with code 2 and a way on; help and version are data.

use std::process::Stdio;

use crate::room::{Room, finish};

#[test]
fn help_and_version_are_data() {
    let room = Room::new();
    let done = room.run(&["--version"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert_eq!(done.stdout, format!("sidepath {}\n", env!("CARGO_PKG_VERSION")));
    let done = room.run(&["--help"]);
    assert_eq!(done.code, 0);
    for verb in
        ["demo", "keygen", "volume", "config", "run", "status", "reload", "peers", "ping", "drill"]
    {
        assert!(done.stdout.contains(&format!("  {verb} ")), "{verb} in {}", done.stdout);
    }
}

#[test]
fn wrong_words_end_with_code_2() {
    let room = Room::new();
    for words in [
        &["statsu"][..],
        &[],
        &["volume"],
        &["run"],
        &["drill", "beta", "--cut", "network"],
        &["drill", "beta", "--cut", "everything", "--for", "1s"],
        &["ping", "beta", "-i", "5"],
        &["ping", "beta", "-c", "0"],
        &["status", "--socket", "a", "--config", "b"],
        &["demo", "--rate", "0"],
        &["volume", "init", "x", "--name", "n", "--nodes", "1,65"],
        &["volume", "init", "x", "--name", "n", "--nodes", "1,2", "--size", "1GB"],
    ] {
        let done = room.run(words);
        assert_eq!(done.code, 2, "{words:?}: {done:?}");
        assert_eq!(done.stdout, "", "{words:?}");
        assert!(!done.stderr.is_empty(), "{words:?}");
    }
    let done = room.run(&["statsu"]);
    assert!(done.stderr.contains("'status'"), "{}", done.stderr);
    let done = room.run(&["ping", "beta", "-i", "5"]);
    assert!(done.stderr.contains("a duration needs a unit"), "{}", done.stderr);
    let done = room.run(&["volume", "init", "x", "--name", "n", "--nodes", "1,2", "--size", "1GB"]);
    assert!(done.stderr.contains("did you mean `GiB`"), "{}", done.stderr);
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    let room = Room::new();
    let mut child = room.command(&["--help"]).spawn().unwrap();
    drop(child.stdout.take());
    assert_ne!(child.wait().unwrap().code(), Some(101));

    // Data of a command: everything written after the reader left is nobody's loss.
    let config = room.config();
    let file = room.write("alpha.toml", &config);
    let mut command = room.command(&["config", "check", file.to_str().unwrap()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(Stdio::from(writer));
    let done = finish(command, std::time::Duration::from_secs(10));
    assert_eq!((done.code, done.stderr.contains("panicked")), (0, false), "{done:?}");
}
