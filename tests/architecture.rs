//! The never-arrows of the house, as tests: which crate, and which room of a crate, may name which.
//!
//! A line that breaks one of these is a decision for a person, not for a compiler: change the
//! table here and the reason in `docs/architecture.md` in the same commit.

#![allow(clippy::disallowed_methods, reason = "the ban on shelling out is for the running daemon")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the house").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds no source");
    found.sort();
    found
}

/// Lines of a file that are code: comments and the tests at its end left out.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).expect("a readable source");
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("#[cfg(test)]") {
            break;
        }
        let line = line.split("//").next().unwrap_or_default();
        lines.push((number + 1, line.to_owned()));
    }
    lines
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Our crates that a crate of ours depends on, by cargo's own account.
fn depends_on(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-p", package, "-e", "normal", "--prefix", "none"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("sidepath") && *name != package)
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_point_one_way() {
    let none = BTreeSet::new();
    assert_eq!(depends_on("sidepath-failover"), none, "the core names nobody");
    assert_eq!(depends_on("sidepath-volumes"), none, "volumes names nobody");
    let cores = ["sidepath-failover", "sidepath-volumes"].map(str::to_owned).into();
    assert_eq!(depends_on("sidepath-sim"), cores, "the simulator never names the hands");
    assert_eq!(depends_on("sidepath"), cores, "the hands never name the simulator");
}

/// Rooms of `failover/src` and the rooms each may name. Facts of the crate (time, ids, options,
/// inputs and outputs, events, status) are open to all.
const FAILOVER: &[(&str, &[&str])] = &[
    ("wire", &["beat", "path"]),
    ("secure", &["wire"]),
    ("packet", &["wire"]),
    ("queue", &["packet"]),
    ("link", &["packet", "queue", "secure", "wire"]),
    ("health", &["beat", "path"]),
    ("path", &["health"]),
    ("beat", &["path", "secure", "wire"]),
    ("peer", &["beat", "health", "link", "packet", "path", "queue", "secure", "wire"]),
    ("node", &["packet", "peer", "wire"]),
];

/// Rooms of `volumes/src` that must not name these.
const VOLUMES_NEVER: &[(&str, &[&str])] = &[
    ("format", &["log", "media", "keeper", "runtime", "flusher", "reader", "outbox", "init"]),
    ("log", &["media", "runtime", "flusher", "reader", "init"]),
];

fn rooms(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").map(|(at, _)| {
        let rest = &line[at + "crate::".len()..];
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
    })
}

/// Rooms named by a file: `crate::room` in a line, and rooms inside `use crate::{...}`.
fn named(path: &Path) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut depth = 0_usize;
    for (number, line) in code(path) {
        if depth == 0 {
            found.extend(rooms(&line).filter(|r| !r.is_empty()).map(|r| (number, r.to_owned())));
            if let Some(at) = line.find("use crate::{") {
                depth = 1;
                depth = brackets(&line[at + "use crate::{".len()..], depth, number, &mut found);
            }
        } else {
            depth = brackets(&line, depth, number, &mut found);
        }
    }
    found
}

/// Walks through the inside of `use crate::{...}`; words at depth one are rooms (or items of the
/// crate's root, which no table names).
fn brackets(
    text: &str,
    mut depth: usize,
    number: usize,
    found: &mut Vec<(usize, String)>,
) -> usize {
    let mut word = String::new();
    let mut first = true;
    for c in text.chars().chain([' ']) {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            if depth == 1 && first {
                found.push((number, word.clone()));
            }
            first = false;
            word.clear();
        }
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return 0;
                }
            }
            ',' if depth == 1 => first = true,
            _ => {}
        }
    }
    depth
}

fn room_of(path: &Path, crate_src: &str) -> String {
    let relative = path.strip_prefix(root().join(crate_src)).expect("below the crate");
    let first = relative.iter().next().unwrap_or_default().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn rooms_of_the_core_name_only_what_they_may() {
    let known: BTreeSet<_> = FAILOVER.iter().map(|(room, _)| *room).collect();
    let mut broken = Vec::new();
    for file in sources("failover/src") {
        let room = room_of(&file, "failover/src");
        let Some((_, allowed)) = FAILOVER.iter().find(|(name, _)| *name == room) else { continue };
        for (line, other) in named(&file) {
            if known.contains(other.as_str()) && other != room && !allowed.contains(&other.as_str())
            {
                broken.push(format!("{}:{line}: {room} names {other}", shown(&file)));
            }
        }
    }
    assert!(broken.is_empty(), "never-arrows broken:\n{}", broken.join("\n"));
}

#[test]
fn rooms_of_volumes_never_look_outward() {
    let mut broken = Vec::new();
    for (room, never) in VOLUMES_NEVER {
        for file in sources(&format!("volumes/src/{room}")) {
            if file.ends_with("tests.rs") {
                continue;
            }
            for (line, other) in named(&file) {
                if never.contains(&other.as_str()) {
                    broken.push(format!("{}:{line}: {room} names {other}", shown(&file)));
                }
            }
        }
    }
    assert!(broken.is_empty(), "never-arrows broken:\n{}", broken.join("\n"));
}

#[test]
fn planes_and_the_command_line_stay_apart() {
    let mut broken = Vec::new();
    for file in sources("src/planes") {
        for (line, other) in named(&file) {
            if ["daemon", "cli", "admin", "demo"].contains(&other.as_str()) {
                broken.push(format!("{}:{line}: a plane names {other}", shown(&file)));
            }
        }
    }
    for file in sources("src/cli") {
        for (line, other) in named(&file) {
            if ["planes", "sys"].contains(&other.as_str()) {
                broken.push(format!("{}:{line}: cli names {other}", shown(&file)));
            }
        }
    }
    assert!(broken.is_empty(), "never-arrows broken:\n{}", broken.join("\n"));
}

/// Trees and stores of backups are files; who carries their bytes is none of their business.
#[test]
fn backups_know_no_more_of_the_house_than_sessions() {
    let mut broken = Vec::new();
    for file in sources("src/backup") {
        let inner = room_of(&file, "src/backup");
        let may: &[&str] = match inner.as_str() {
            "tree" | "store" | "entry" | "block" | "talk" | "pack" => &["backup"],
            _ => &["backup", "sessions"],
        };
        for (line, other) in named(&file) {
            if !may.contains(&other.as_str()) {
                broken.push(format!("{}:{line}: {inner} names {other}", shown(&file)));
            }
        }
    }
    assert!(broken.is_empty(), "never-arrows broken:\n{}", broken.join("\n"));
}

#[test]
fn the_pure_core_asks_nothing_of_the_world() {
    const BANNED: &[&str] = &[
        "std::fs",
        "std::thread",
        "std::process",
        "std::env",
        "std::io",
        "std::sync::mpsc",
        "HashMap",
        "HashSet",
        "Instant::now",
        "SystemTime",
        "getrandom",
        "UdpSocket",
        "TcpStream",
        "tokio",
        "tracing",
    ];
    let mut broken = Vec::new();
    for file in sources("failover/src") {
        for (number, line) in code(&file) {
            for word in BANNED.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{}:{number}: the core names {word}", shown(&file)));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn unsafe_lives_in_one_room() {
    let mut broken = Vec::new();
    for folder in ["src", "failover/src", "volumes/src", "sim/src"] {
        for file in sources(folder) {
            if file.starts_with(root().join("src/sys")) {
                continue;
            }
            for (number, line) in code(&file) {
                if line.contains("unsafe ") || line.contains("unsafe{") {
                    broken.push(format!("{}:{number}: unsafe outside src/sys", shown(&file)));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
