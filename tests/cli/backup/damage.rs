//! What rots in a store is found, named, and costs no more than what it is part of.

use std::{fs, path::PathBuf};

use super::{Rig, number};
use crate::tree::{self, difference};

fn of_kind(rig: &Rig, kind: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(rig.path("store/tree")).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == kind)).collect();
    files.sort();
    files
}

#[test]
fn a_damaged_pack_is_found_and_all_else_is_restored() {
    let rig = Rig::start();
    tree::make(&rig.path("tree"), 5, 3 << 20);
    rig.result(&["backup", "tree", "beta:tree"]);
    let pack = of_kind(&rig, "pack").remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 0x10;
    fs::write(&pack, &bytes).unwrap();

    let found = rig.run(&["backup", "verify", "beta:tree", "--json"]);
    assert_eq!(found.code, 1, "{found:?}");
    let findings = found.json()["findings"].as_array().unwrap().clone();
    let named: Vec<String> = findings
        .iter()
        .map(|f| f.as_str().unwrap().split_once(": ").unwrap().0.to_owned())
        .collect();
    assert!(!named.is_empty() && named.len() < 200, "{findings:?}");
    assert!(found.stderr.contains("warning: "), "{found:?}");

    let got = rig.run(&["restore", "beta:tree", "got", "--json"]);
    assert_eq!(got.code, 1, "{got:?}");
    let done = got.last_json();
    assert_eq!(number(&done, "missing"), named.len() as u64, "{done}");
    assert!(got.stderr.contains("missing at the destination; all else is there"), "{got:?}");
    assert!(got.stderr.contains("hint: "), "{got:?}");
    for name in &named {
        assert!(got.stdout.contains(&format!("{name} is not restored: ")), "{name} in {got:?}");
    }
    assert!(got.stdout.contains(pack.file_name().unwrap().to_str().unwrap()), "{got:?}");
    let differs = difference(&rig.path("tree"), &rig.path("got"));
    assert_eq!(differs.lines().count(), named.len(), "{differs}");
    assert!(differs.lines().all(|line| line.ends_with(" is missing")), "{differs}");
    let log = rig.log();
    assert!(log.contains("blocks could not be read, the first: "), "{log}");

    // A backup does not know that; one that uses nothing that is there mends it.
    rig.result(&["backup", "tree", "beta:tree"]);
    rig.fails(1, &["backup", "verify", "beta:tree"], &["warning: "]);
    let anew = rig.result(&["backup", "tree", "beta:tree", "--no-resume"]);
    assert!(number(&anew, "new_bytes") > 3 << 20, "{anew}");
    rig.result(&["backup", "verify", "beta:tree"]);
    rig.result(&["restore", "beta:tree", "got", "--overwrite"]);
    tree::assert_same(&rig.path("tree"), &rig.path("got"));

    // Packs and catalogues that are gone or cut.
    fs::remove_file(&pack).unwrap();
    rig.fails(1, &["backup", "verify", "beta:tree@1"], &["it is missing"]);
    rig.fails(
        1,
        &["restore", "beta:tree@1", "less"],
        &["is missing", "missing at the destination"],
    );
    let version = of_kind(&rig, "version").remove(1);
    let bytes = fs::read(&version).unwrap();
    fs::write(&version, &bytes[..bytes.len() - 5]).unwrap();
    rig.fails(1, &["backup", "verify", "beta:tree@2"], &["00000002.version", "damaged"]);
    rig.fails(1, &["restore", "beta:tree@2", "none"], &["00000002.version", "damaged", "hint: "]);
    // The others are listed, and the damaged one is named.
    fs::write(&version, &bytes[..10]).unwrap();
    let list = rig.run(&["backup", "list", "beta", "--json"]);
    assert_eq!((list.code, list.json().as_array().unwrap().len()), (1, 2), "{list:?}");
    assert!(list.stderr.contains("00000002.version"), "{list:?}");
}
