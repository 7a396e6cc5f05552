//! Full disks, at the store and at the destination: small file systems in memory, which only root
//! may mount.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Rig, number};
use crate::tree::{self, assert_same, is_root};

/// A mounted file system that goes with the test.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let option = format!("size={size}");
        let mounted = is_root() && run("mount", &["-t", "tmpfs", "-o", &option, "none"], path);
        if !mounted {
            eprintln!("skipped: only root may mount a file system");
        }
        mounted.then(|| Self(path.to_owned()))
    }

    fn grow(&self, size: &str) {
        assert!(run("mount", &["-o", &format!("remount,size={size}")], &self.0));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["-l"], &self.0);
    }
}

fn run(program: &str, words: &[&str], path: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(words).arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn a_full_store_says_so_and_goes_on_when_there_is_room() {
    let rig = Rig::start();
    // The store of a second service, so that what serves ends before the file system goes.
    let Some(small) = Small::mount(&rig.path("small"), "24m") else { return };
    fs::create_dir(rig.path("tree")).unwrap();
    for n in 0..10 {
        fs::write(rig.path(&format!("tree/{n}")), tree::Random(n).bytes(4 << 20)).unwrap();
    }
    let words = ["backup", "serve", "--store", "small/store", "--service", "small"];
    let serving = rig.spawn("beta", &words);
    rig.pair.wait_for("the store", |_| {
        rig.run(&["backup", "list", "beta", "--service", "small"]).code == 0
    });
    let words = ["backup", "tree", "beta:tree", "--service", "small"];
    let said = rig.fails(1, &words, &["error: no space is left for ", "bytes are free there"]);
    assert!(said.stderr.contains("hint: free some space, let old versions go"), "{said:?}");
    let list = rig.run(&["backup", "list", "beta", "--service", "small", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 0, "{list}");
    small.grow("64m");
    let done = rig.result(&words);
    // What was on its way to the disk when that was full may have to come again.
    let known = number(&done, "resumed_bytes");
    let again = number(&done, "storage_bytes") + number(&done, "network_bytes");
    assert!(known >= 4 << 20 && again < (41 << 20) - known, "sent again: {done}");
    rig.result(&["backup", "verify", "beta:tree", "--service", "small"]);
    rig.result(&["restore", "beta:tree", "got", "--service", "small"]);
    assert_same(&rig.path("tree"), &rig.path("got"));
    drop(serving);
}

#[test]
fn a_full_destination_says_so_and_goes_on_when_there_is_room() {
    let rig = Rig::start();
    let Some(small) = Small::mount(&rig.path("small"), "8m") else { return };
    fs::create_dir(rig.path("tree")).unwrap();
    for n in 0..12 {
        fs::write(rig.path(&format!("tree/{n:02}")), tree::Random(n).bytes(1 << 20)).unwrap();
    }
    rig.result(&["backup", "tree", "beta:tree"]);
    let words = ["restore", "beta:tree", "small/got"];
    let said = rig.fails(1, &words, &["No space left on device", "hint: make room, then start"]);
    assert!(said.stderr.contains("cannot write 0"), "it names what had no room: {said:?}");
    small.grow("32m");
    let done = rig.result(&words);
    assert!(number(&done, "kept") >= 5, "{done}");
    assert!(number(&done, "storage_bytes") < 8 << 20, "{done}");
    assert_same(&rig.path("tree"), &rig.path("small/got"));
}
