//! Stories of a store, with a small client: what is stored, goes, is damaged, is read meanwhile.

use super::{
    testing::{Client, Random, Rig, Tree, random_tree, tree},
    *,
};

fn keep(count: u32) -> Keep {
    Keep { count: Some(count), within: None }
}

#[test]
fn what_is_stored_is_there_version_by_version() {
    let mut random = Random(2);
    let rig = Rig::new(Keep::default());
    let mut trees: Vec<Tree> = Vec::new();
    for number in 1..=12 {
        let mut tree = trees.last().cloned().unwrap_or_else(|| random_tree(&mut random));
        for (n, bytes) in random_tree(&mut random) {
            match random.below(4) {
                0 => drop(tree.remove(&n)),
                1 => drop(tree.insert(n, bytes)),
                _ => {}
            }
        }
        let version = rig.backup(&tree);
        assert_eq!((version.number, version.name.as_str()), (number, "n"));
        let bytes: usize = tree.values().map(Vec::len).sum();
        assert_eq!(version.bytes, bytes as u64);
        assert_eq!(rig.store.versions(None).unwrap().0.last(), Some(&version));
        trees.push(tree);
    }
    for (number, tree) in (1..).zip(&trees) {
        assert_eq!(&rig.restored(number), tree);
        assert_eq!(rig.findings(Some(number)), [""; 0]);
    }
}

#[test]
fn what_did_not_change_is_not_stored_again() {
    let rig = Rig::new(Keep::default());
    let mut tree = tree(&[("a", &[1; 3000]), ("b", &[2; 100]), ("c", &[3; 100])]);
    let first = rig.backup(&tree);
    assert_eq!(first.new_bytes, 3200);
    assert!(first.stored_bytes > 3200);
    let packs = rig.files("pack");
    let second = rig.backup(&tree);
    assert_eq!((second.new_bytes, second.stored_bytes), (0, 0));
    assert_eq!(rig.files("pack"), packs);
    tree.insert("b".into(), vec![4; 50]);
    assert_eq!(rig.backup(&tree).new_bytes, 50);
    assert_eq!(rig.files("pack").len(), packs.len() + 1);
    assert_eq!((rig.restored(3), rig.numbers()), (tree, vec![1, 2, 3]));
}

/// Prevents: a version that cannot be restored because another went.
#[test]
fn old_versions_go_and_what_only_they_needed() {
    let mut random = Random(4);
    let rig = Rig::new(keep(3));
    let mut tree = random_tree(&mut random);
    for number in 1..=10_u32 {
        let name = format!("d0/g{}", number % 4);
        let length = 2000 + random.index(500);
        tree.insert(name, random.bytes(length));
        rig.backup(&tree);
        let kept: Vec<u32> = (number.saturating_sub(2).max(1)..=number).collect();
        assert_eq!(rig.numbers(), kept);
        for number in kept {
            assert_eq!(rig.findings(Some(number)), [""; 0]);
        }
    }
    assert_eq!(rig.restored(10), tree);
    let needed: std::collections::BTreeSet<_> = [8, 9, 10]
        .iter()
        .flat_map(|n| rig.store.catalogue("n", Some(*n)).unwrap().blocks)
        .map(|block| (block.version, block.pack))
        .collect();
    assert_eq!(rig.files("pack").len(), needed.len());
    for number in [9, 10] {
        rig.store.forget("n", number).unwrap();
    }
    assert_eq!((rig.numbers(), rig.findings(None)), (vec![8], vec![]));
    rig.store.forget("n", 8).unwrap();
    assert_eq!((rig.numbers().len(), rig.files("pack").len()), (0, 0));
    // No number is given twice.
    assert_eq!(rig.begin().number(), 11);
    let none = rig.store.catalogue("n", None).unwrap_err();
    assert!(matches!(none, StoreError::NoVersions { .. }) && none.hint().is_some());
}

#[test]
fn what_an_interrupted_attempt_took_from_a_version_outlives_it() {
    let rig = Rig::new(Keep::default());
    let old = tree(&[("a", &[1; 3000])]);
    rig.backup(&old);
    // The bytes of `a`, and more: the journal needs a pack of the version.
    let mut longer = old["a"].clone();
    longer.extend([2; 3000]);
    let mut writer = rig.begin();
    let sealed = super::super::block::Sealer::new(None).unwrap().seal(&[2; 3000]);
    writer.block(&sealed).unwrap();
    let piece = super::super::entry::Piece { offset: 3000, length: 3000, block: 0, within: 0 };
    let entry = testing::file("a", 6000, *blake3::hash(&longer).as_bytes());
    let coming =
        super::super::talk::Coming { entry, known: Some(0), pieces: vec![piece], more: false };
    writer.batch(super::super::talk::Batch { after: 1, entries: vec![coming] }).unwrap();
    writer.suspend().unwrap();
    rig.store.forget("n", 1).unwrap();
    let tree = tree(&[("a", &longer)]);
    assert_eq!(rig.check_known(&rig.begin(), &tree), 6000);
    rig.backup(&tree);
    assert_eq!((rig.restored(2), rig.findings(None)), (tree, vec![]));
}

#[test]
fn one_writes_and_nothing_goes_that_is_read() {
    let rig = Rig::new(keep(1));
    rig.backup(&tree(&[("a", &[1; 1000])]));
    let writer = rig.begin();
    let busy = rig.store.begin("n", About::default(), false).unwrap_err();
    assert!(matches!(busy, StoreError::Busy { .. }) && busy.passes(), "{busy}");
    assert!(matches!(rig.store.forget("n", 1), Err(StoreError::Busy { .. })));
    rig.store.begin("other", About::default(), false).unwrap();
    let reader = rig.store.reader("n").unwrap();
    let catalogue = rig.store.catalogue("n", None).unwrap();
    let mut client = Client::new(writer, usize::MAX);
    client.send(&tree(&[("a", &[2; 1000])])).unwrap();
    client.finish().unwrap();
    // The first one is beyond what is kept, but is being read.
    assert_eq!(rig.numbers(), [1, 2]);
    assert!(catalogue.blocks.iter().all(|block| reader.read(block).is_ok()));
    assert!(matches!(rig.store.forget("n", 1), Err(StoreError::Busy { .. })));
    drop(reader);
    rig.backup(&tree(&[("a", &[2; 1000])]));
    assert_eq!(rig.numbers(), [3]);
}

/// Prevents: one damaged file that takes other versions with it.
#[test]
fn a_damaged_version_is_named_and_harms_no_other() {
    let rig = Rig::new(keep(2));
    let mut tree = tree(&[("a", &[1; 1000])]);
    for n in 0..3 {
        tree.insert("b".into(), vec![n; 700]);
        rig.backup(&tree);
    }
    assert_eq!(rig.numbers(), [2, 3]);
    let path = &rig.files("version")[1];
    let good = fs::read(path).unwrap();
    // Its first frame is what a list reads.
    let mut bad = good.clone();
    bad[20] ^= 1;
    fs::write(path, bad).unwrap();
    let (versions, findings) = rig.store.versions(Some("n")).unwrap();
    assert_eq!((versions.len(), versions[0].number), (1, 2));
    assert!(findings[0].contains("00000003.version is damaged"), "{findings:?}");
    let damaged = rig.store.catalogue("n", None).unwrap_err();
    assert!(matches!(damaged, StoreError::Damaged { .. }) && damaged.hint().is_some());
    assert!(rig.findings(None)[0].contains("00000003.version"));
    // It goes on from the one before; no pack goes, as nobody knows what the damaged one has.
    let packs = rig.files("pack").len();
    tree.insert("b".into(), vec![9; 700]);
    assert_eq!(rig.backup(&tree).new_bytes, 700);
    assert_eq!(rig.restored(4), tree);
    assert_eq!(rig.files("pack").len(), packs + 1);
    // Mended from elsewhere it is as it was.
    fs::write(path, good).unwrap();
    assert_eq!(rig.findings(Some(3)), [""; 0]);
    // Under another number it is not taken for that one.
    fs::copy(path, rig.folder.path().join("n/00000007.version")).unwrap();
    let other = rig.store.catalogue("n", Some(7)).unwrap_err().to_string();
    assert!(other.contains("it says that it is version 3"), "{other}");
}

#[test]
fn a_lost_pack_is_sent_again() {
    let rig = Rig::new(Keep::default());
    let tree = tree(&[("a", &[1; 500]), ("b", &[2; 9000])]);
    rig.backup(&tree);
    fs::remove_file(&rig.files("pack")[0]).unwrap();
    assert!(rig.findings(None)[0].contains("is missing"));
    let again = rig.backup(&tree);
    assert!(again.new_bytes > 500, "{again:?}");
    assert_eq!((rig.restored(2), rig.findings(None)), (tree, vec![]));
}

#[test]
fn a_crash_behind_the_catalogue_leaves_nothing_that_harms() {
    let rig = Rig::new(keep(1));
    let tree = tree(&[("a", &[1; 3000])]);
    let mut client = Client::new(rig.begin(), usize::MAX);
    client.send(&tree).unwrap();
    let (blocks, entries) = (client.blocks, client.entries);
    client.writer.suspend().unwrap();
    let journal = fs::read(&rig.files("journal")[0]).unwrap();
    assert!(blocks > 0 && entries == 1);
    rig.backup(&tree);
    // The version is there, its journal still, and a file half written.
    fs::write(rig.folder.path().join("n/00000001.journal"), journal).unwrap();
    fs::write(rig.folder.path().join("n/00000002.version.new"), b"half").unwrap();
    let writer = rig.begin();
    assert_eq!((writer.number(), writer.resumed_bytes()), (2, 0));
    assert_eq!(rig.check_known(&writer, &tree), 3000);
    assert!(rig.files("new").is_empty() && rig.files("journal").len() == 1);
}

#[test]
fn only_an_empty_folder_becomes_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    Store::open(&path, Keep::default()).unwrap();
    fs::write(path.join("more"), b"").unwrap();
    Store::open(&path, Keep::default()).unwrap();
    let reason = |path: &Path| {
        let error = Store::open(path, Keep::default()).unwrap_err();
        assert!(error.is_input() && error.hint().is_some());
        error.to_string()
    };
    assert!(reason(folder.path()).contains("other things in it"));
    assert!(reason(&path.join("more")).contains("no folder"));
    fs::write(path.join(MARK), br#"{"format":2}"#).unwrap();
    assert!(reason(&path).contains("it has format 2; this is for 1"));
    fs::write(path.join(MARK), b"{").unwrap();
    assert!(reason(&path).contains("no mark of one"));
    // Somebody was killed while it became one, on a new file system.
    fs::remove_file(path.join(MARK)).unwrap();
    fs::rename(path.join("more"), path.join(format!("{MARK}.new"))).unwrap();
    fs::create_dir(path.join("lost+found")).unwrap();
    let store = Store::open(&path, Keep::default()).unwrap();
    assert_eq!(store.versions(None).unwrap(), (vec![], vec![]));
}

#[test]
fn names_that_are_none() {
    let rig = Rig::new(Keep::default());
    let long = "a".repeat(65);
    for name in ["", ".", "..", ".a", "-a", "a/b", "../n", "a b", "\u{e4}", MARK, &long] {
        let bad = rig.store.begin(name, About::default(), false).unwrap_err();
        assert!(matches!(bad, StoreError::BadName { .. }), "{name}: {bad}");
        assert!(matches!(rig.store.reader(name), Err(StoreError::BadName { .. })));
    }
    for name in ["a", "A.b_c-9", &long[1..]] {
        assert!(rig.store.begin(name, About::default(), false).is_ok());
    }
    let no_name = |error| matches!(error, StoreError::NoName { .. });
    assert!(no_name(rig.store.catalogue("none", None).unwrap_err()));
    assert!(no_name(rig.store.reader("none").unwrap_err()));
    assert!(no_name(rig.store.forget("none", 1).unwrap_err()));
    assert!(no_name(rig.store.versions(Some("none")).unwrap_err()));
    rig.backup(&tree(&[("a", b"1")]));
    for error in [
        rig.store.catalogue("n", Some(2)).unwrap_err(),
        rig.store.forget("n", 2).unwrap_err(),
        rig.store.verify("n", Some(2), &mut |_, _| {}, &|| false).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::NoVersion { number: 2, .. }) && error.is_input());
    }
    assert_eq!(rig.store.versions(None).unwrap().0.len(), 1);
}
