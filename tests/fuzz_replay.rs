//! Gives every file of the fuzz corpora to its target, on the stable compiler.
//!
//! `tests/fuzz/src` holds the targets' bodies; this file includes it as it is. A crash found by
//! fuzzing becomes a file of the corpus and thereby a test. A failure names the file; to run one
//! alone: `SIDEPATH_FUZZ_FILE=path cargo test --test fuzz_replay one_file`. Takes a few seconds,
//! has no longer form: the longer form is fuzzing (docs/testing.md).

#[path = "fuzz/src/lib.rs"]
mod targets;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn run(target: &str, file: &Path) {
    let data = fs::read(file).expect("a readable file");
    let ran = std::panic::catch_unwind(|| targets::run(target, &data));
    assert!(ran.is_ok(), "target {target} fails on {}", file.display());
}

#[test]
fn every_file_of_the_corpora_is_harmless() {
    let mut bytes = 0;
    for (target, _) in targets::TARGETS {
        let files = files(&fuzz().join("corpus").join(target));
        assert!(!files.is_empty(), "no corpus for {target}");
        for file in files {
            bytes += fs::metadata(&file).expect("a readable file").len();
            run(target, &file);
        }
    }
    assert!(bytes < 300_000, "{bytes} bytes: minimise the corpora with `cargo fuzz cmin`");
}

#[test]
fn every_seed_is_harmless_and_every_target_has_one() {
    let mut seen = BTreeSet::new();
    for (target, name, data) in targets::seeds::seeds() {
        seen.insert(target);
        if let Some(folder) = std::env::var_os("SIDEPATH_SEEDS") {
            let folder = Path::new(&folder).join(target);
            fs::create_dir_all(&folder).expect("a folder for seeds");
            fs::write(folder.join(name), &data).expect("a seed is written");
        }
        targets::run(target, &data);
    }
    let known: BTreeSet<_> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(seen, known);
}

#[test]
fn every_target_can_be_fuzzed() {
    let bodies = files(&fuzz().join("fuzz_targets"));
    let bodies: Vec<_> = bodies.iter().filter_map(|f| f.file_stem()?.to_str()).collect();
    let known: Vec<_> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(bodies, known, "fuzz_targets/ and TARGETS name the same");
}

#[test]
fn one_file() {
    let Some(file) = std::env::var_os("SIDEPATH_FUZZ_FILE").map(PathBuf::from) else { return };
    let folder = file.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let target = std::env::var("SIDEPATH_FUZZ_TARGET").ok();
    run(target.as_deref().or(folder).expect("a file in a target's folder"), &file);
}
