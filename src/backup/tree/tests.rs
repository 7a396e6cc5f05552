//! Trees that are read and put back, and what somebody may do to lead that astray.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, lsetxattr, mknodat};
use tempfile::TempDir;

use super::{mark::partial_of, *};
use crate::backup::entry::{Entry, Kind, Stamp};

type Runs = Vec<(u64, Vec<u8>)>;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn name(bytes: impl Into<Vec<u8>>) -> Name {
    Name::new(bytes).unwrap()
}

/// As a client of a backup does: entries with their bytes, and problems.
fn read(sources: &[PathBuf], options: WalkOptions) -> (Vec<(Entry, Runs)>, Vec<String>) {
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    let mut walk = Walk::new(sources, options).unwrap();
    while let Some(found) = walk.next() {
        let seen = match found {
            Found::Seen(seen) => seen,
            Found::Problem(problem) => {
                problems.push(problem.what);
                continue;
            }
        };
        let xattrs = seen.xattrs().unwrap();
        if !matches!(seen.entry.kind, Kind::File { .. }) {
            entries.push((Entry { xattrs, ..seen.entry }, Vec::new()));
            continue;
        }
        match seen.open() {
            Err(error) => {
                walk.forget(seen.first());
                problems.push(format!("{}: {error}", seen.entry.name));
            }
            Ok(mut file) => {
                let (mut runs, mut buffer) = (Vec::new(), vec![0; 300_000]);
                while let Some((offset, n)) = file.next(&mut buffer).unwrap() {
                    runs.push((offset, buffer[..n].to_vec()));
                }
                entries.push((Entry { xattrs, ..file.finish().unwrap() }, runs));
            }
        }
    }
    (entries, problems)
}

fn all(source: &Path) -> Vec<(Entry, Runs)> {
    let (entries, problems) = read(&[source.to_owned()], WalkOptions::default());
    assert_eq!(problems, Vec::<String>::new());
    entries
}

fn lay_one(place: &mut Place, entry: &Entry, runs: &Runs) -> Result<(), TreeError> {
    if !matches!(entry.kind, Kind::File { .. }) {
        return place.put(entry);
    }
    let mut file = place.begin(entry, runs.len() <= 1)?;
    for (offset, bytes) in runs {
        if let Err(error) = file.write(*offset, bytes) {
            place.give_up(file);
            return Err(error);
        }
    }
    place.finish(file)
}

/// Everything that can be is put there; what cannot is told.
fn lay(entries: &[(Entry, Runs)], dest: &Path, existing: Existing) -> Vec<String> {
    let mut place = Place::new(dest, existing, "n@1 digest", true).unwrap();
    let mut told = Vec::new();
    for (entry, runs) in entries {
        told.extend(lay_one(&mut place, entry, runs).err().map(|e| e.to_string()));
    }
    told.extend(place.end().unwrap());
    told
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;
type Looks = (u32, (u32, u32), (i64, i64), Xattrs, Vec<u8>, u64);

/// By other means than those that are tested: kind and mode, owner, time, xattrs, content, links.
fn look(root: &Path) -> BTreeMap<PathBuf, Looks> {
    fn go(root: &Path, at: &Path, all: &mut BTreeMap<PathBuf, Looks>) {
        let meta = fs::symlink_metadata(at).unwrap();
        let mut names = vec![0; 4096];
        let n = llistxattr(at, &mut names[..]).unwrap_or(0);
        let mut xattrs: Xattrs = names[..n]
            .split(|b| *b == 0)
            .filter(|x| !x.is_empty())
            .map(|x| {
                let mut value = vec![0; 4096];
                let n = lgetxattr(at, x, &mut value[..]).unwrap();
                (x.to_vec(), value[..n].to_vec())
            })
            .collect();
        xattrs.sort();
        let content = if meta.is_file() {
            fs::read(at).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(at).unwrap().into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let times = (meta.mtime(), meta.mtime_nsec());
        let is = (meta.mode(), (meta.uid(), meta.gid()), times, xattrs, content, links);
        all.insert(at.strip_prefix(root).unwrap().to_owned(), is);
        if meta.is_dir() {
            for entry in fs::read_dir(at).unwrap() {
                go(root, &entry.unwrap().path(), all);
            }
        }
    }
    let mut all = BTreeMap::new();
    go(root, root, &mut all);
    all
}

fn mkfifo(at: &Path) {
    mknodat(CWD, at, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
}

fn mode(at: &Path, mode: u32) {
    fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
}

fn file_entry(named: &str, bytes: &[u8]) -> (Entry, Runs) {
    let digest = *blake3::hash(bytes).as_bytes();
    let kind = Kind::File { size: bytes.len() as u64, digest, changed: false };
    (entry(named, kind), vec![(0, bytes.to_vec())])
}

fn entry(named: &str, kind: Kind) -> Entry {
    Entry {
        name: name(named),
        kind,
        mode: 0o755,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Stamp { s: 1_000_000_000, ns: 7 },
        ctime: Stamp::default(),
        inode: 0,
        xattrs: Vec::new(),
    }
}

fn folder(named: &str) -> (Entry, Runs) {
    (entry(named, Kind::Folder), Vec::new())
}

fn link(named: &str, to: &Path) -> (Entry, Runs) {
    (entry(named, Kind::Symlink(to.as_os_str().as_bytes().to_vec())), Vec::new())
}

fn hard(named: &str, to: &str) -> (Entry, Runs) {
    (entry(named, Kind::HardLink(name(to))), Vec::new())
}

fn two() -> (TempDir, PathBuf, PathBuf) {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::create_dir(&a).unwrap();
    (dir, a, b)
}

#[test]
fn everything_comes_back_with_its_attributes() {
    let (_dir, from, to) = two();
    fs::create_dir_all(from.join("d/e/f")).unwrap();
    for odd in [&b"new\nline"[..], b"\xff\xfe", b"-rf", b" ", b"\\", &[b'x'; 255]] {
        fs::write(from.join("d").join(OsStr::from_bytes(odd)), odd).unwrap();
    }
    fs::write(from.join("empty"), "").unwrap();
    fs::write(from.join("large"), vec![b'l'; 3_000_000]).unwrap();
    fs::hard_link(from.join("large"), from.join("d/large too")).unwrap();
    symlink("/nowhere/\u{e4}", from.join("d/e/link")).unwrap();
    fs::hard_link(from.join("d/e/link"), from.join("d/e/link too")).unwrap();
    mkfifo(&from.join("d/fifo"));
    fs::hard_link(from.join("d/fifo"), from.join("fifo too")).unwrap();
    fs::write(from.join("read only"), "r").unwrap();
    let user = lsetxattr(from.join("read only"), "user.\u{e9}", b"value", XattrFlags::empty());
    let xattrs = user.is_ok();
    if !xattrs {
        eprintln!("no user.* attributes here: not tested");
    }
    mode(&from.join("read only"), 0o400);
    fs::write(from.join("setuid"), "s").unwrap();
    if is_root() {
        rustix::fs::chown(from.join("setuid"), Some(rustix::fs::Uid::from_raw(1234)), None)
            .unwrap();
        let device = rustix::fs::makedev(1, 3);
        let null = from.join("null");
        let made =
            mknodat(CWD, &null, FileType::CharacterDevice, Mode::from_raw_mode(0o620), device);
        made.unwrap_or_else(|e| eprintln!("no devices here: {e}"));
    } else {
        eprintln!("not root: owners and devices are not tested");
    }
    mode(&from.join("setuid"), 0o4711);
    mode(&from.join("d/e/f"), 0o1777);
    mode(&from.join("d/e"), 0o555);
    let read = all(&from);
    assert_eq!(lay(&read, &to, Existing::Refuse), Vec::<String>::new());
    let (was, is) = (look(&from), look(&to));
    assert_eq!(fs::metadata(to.join("large")).unwrap().nlink(), 2);
    assert_eq!(is, was);
    // Over itself: as it is.
    assert_eq!(lay(&read, &to, Existing::Overwrite), Vec::<String>::new());
    assert_eq!(look(&to).len(), was.len());
    mode(&from.join("d/e"), 0o755);
    mode(&to.join("d/e"), 0o755);
}

#[test]
fn holes_stay_holes() {
    let (_dir, from, to) = two();
    for (named, size, data) in [
        ("middle", 64 << 20, vec![0_u64, 32 << 20, (64 << 20) - 10]),
        ("end", 64 << 20, vec![1 << 20]),
        ("begin", 16 << 20, vec![(16 << 20) - 4096]),
        ("all", 1 << 30, vec![]),
    ] {
        let file = fs::File::create(from.join(named)).unwrap();
        file.set_len(size).unwrap();
        for at in data {
            file.write_all_at(b"0123456789", at).unwrap();
        }
        file.sync_all().unwrap();
    }
    assert_eq!(lay(&all(&from), &to, Existing::Refuse), Vec::<String>::new());
    for named in ["middle", "end", "begin", "all"] {
        let (was, is) = (from.join(named).metadata().unwrap(), to.join(named).metadata().unwrap());
        assert_eq!(is.len(), was.len());
        assert!(is.blocks() <= was.blocks() + 64, "{named}: {} {}", is.blocks(), was.blocks());
        if named != "all" {
            assert!(fs::read(to.join(named)).unwrap() == fs::read(from.join(named)).unwrap());
        }
    }
}

/// Folders deeper than a process may have files open, at least for whoever puts them back.
#[test]
fn deep_trees() {
    let (_dir, from, to) = two();
    let deep = vec!["d"; 400].join("/");
    fs::create_dir_all(from.join(&deep)).unwrap();
    fs::write(from.join(&deep).join("f"), "deep").unwrap();
    assert_eq!(lay(&all(&from), &to, Existing::Refuse), Vec::<String>::new());
    assert_eq!(fs::read(to.join(&deep).join("f")).unwrap(), b"deep");
    let mut entries: Vec<_> = (1..=1100).map(|n| folder(&vec!["y"; n].join("/"))).collect();
    entries.push(file_entry(&format!("{}/f", vec!["y"; 1100].join("/")), b"deeper"));
    assert_eq!(lay(&entries, &to, Existing::Overwrite), Vec::<String>::new());
    assert_eq!(fs::read(to.join(vec!["y"; 1100].join("/")).join("f")).unwrap(), b"deeper");
}

#[test]
fn what_cannot_be_stored_is_told() {
    let (_dir, from, _) = two();
    let _socket = UnixListener::bind(from.join("socket")).unwrap();
    fs::hard_link(from.join("socket"), from.join("socket too")).unwrap();
    fs::write(from.join(".sidepath-restore.partial"), "half").unwrap();
    fs::write(from.join("x"), "").unwrap();
    let (entries, problems) = read(std::slice::from_ref(&from), WalkOptions::default());
    assert_eq!(entries.len(), 2, "the root and x");
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[1].starts_with("socket: is not stored: sockets"), "{problems:?}");
    if is_root() {
        eprintln!("root: reads everything");
        return;
    }
    fs::create_dir(from.join("closed")).unwrap();
    mode(&from.join("closed"), 0o000);
    mode(&from.join("x"), 0o000);
    let (_, problems) = read(std::slice::from_ref(&from), WalkOptions::default());
    assert!(problems.iter().any(|p| p.starts_with("closed: is stored without")), "{problems:?}");
    assert!(problems.iter().any(|p| p.starts_with("x: Permission denied")), "{problems:?}");
    mode(&from.join("closed"), 0o700);
}

/// The first name of a file is gone when its turn comes: the next is the file.
#[test]
fn a_link_to_what_is_not_stored_is_the_file() {
    let (_dir, from, _) = two();
    fs::write(from.join("a"), "x").unwrap();
    fs::hard_link(from.join("a"), from.join("b")).unwrap();
    fs::hard_link(from.join("a"), from.join("c")).unwrap();
    let mut walk = Walk::new(std::slice::from_ref(&from), WalkOptions::default()).unwrap();
    let mut seen = || match walk.next() {
        Some(Found::Seen(seen)) => seen,
        other => panic!("{other:?}"),
    };
    assert!(seen().entry.name.is_root());
    let a = seen();
    fs::remove_file(from.join("a")).unwrap();
    assert!(a.open().is_err());
    walk.forget(a.first());
    let kinds: Vec<_> = walk
        .map(|found| match found {
            Found::Seen(seen) => seen.entry.kind,
            Found::Problem(problem) => panic!("{problem:?}"),
        })
        .collect();
    assert!(matches!(&kinds[0], Kind::File { size: 1, .. }), "{kinds:?}");
    assert_eq!(kinds[1], Kind::HardLink(name("b")));
}

#[test]
fn a_tree_that_changes_while_it_is_read() {
    let (_dir, from, _) = two();
    for named in ["d/x", "grows", "shrinks", "same", "hole", "gone", "swapped"] {
        fs::create_dir_all(from.join(named).parent().unwrap()).unwrap();
        fs::write(from.join(named), vec![b'a'; 100_000]).unwrap();
    }
    let hole = fs::OpenOptions::new().write(true).open(from.join("hole")).unwrap();
    hole.set_len(10 << 20).unwrap();
    let mut changed = BTreeMap::new();
    let mut problems = Vec::new();
    for found in Walk::new(std::slice::from_ref(&from), WalkOptions::default()).unwrap() {
        let seen = match found {
            Found::Problem(problem) => {
                problems.push(problem.what);
                continue;
            }
            Found::Seen(seen) => seen,
        };
        let named = seen.entry.name.to_string();
        match &*named {
            // Its names are listed already.
            "." => fs::remove_file(from.join("gone")).unwrap(),
            "d" => fs::remove_dir_all(from.join("d")).unwrap(),
            "swapped" => {
                fs::remove_file(from.join("swapped")).unwrap();
                symlink("/etc/passwd", from.join("swapped")).unwrap();
                assert!(seen.open().is_err());
                continue;
            }
            _ => {}
        }
        if !matches!(seen.entry.kind, Kind::File { .. }) {
            continue;
        }
        let mut file = seen.open().unwrap();
        let mut buffer = vec![0; 60_000];
        file.next(&mut buffer).unwrap();
        let open = fs::OpenOptions::new().write(true).open(from.join(&named)).unwrap();
        match &*named {
            "grows" => open.set_len(200_000).unwrap(),
            "shrinks" => open.set_len(70_000).unwrap(),
            "hole" => open.set_len(1 << 20).unwrap(),
            _ => {}
        }
        while file.next(&mut buffer).unwrap().is_some() {}
        changed.insert(named, file.finish().unwrap().kind);
    }
    let is = |named: &str| match changed[named] {
        Kind::File { size, changed, .. } => (size, changed),
        _ => panic!(),
    };
    assert_eq!(is("same"), (100_000, false));
    assert_eq!(is("grows"), (100_000, true));
    assert_eq!(is("shrinks"), (70_000, true));
    assert_eq!(is("hole"), (1 << 20, true));
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("d/x: is not stored: No such file"), "{problems:?}");
    assert!(problems[1].starts_with("gone: is not stored: No such file"), "{problems:?}");
}

#[test]
fn an_interrupted_file_goes_on_only_where_bytes_end() {
    let (_dir, from, _) = two();
    let file = fs::File::create(from.join("f")).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&[1; 1 << 20], 0).unwrap();
    file.write_all_at(&[2; 1 << 20], 4 << 20).unwrap();
    file.sync_all().unwrap();
    let open = || {
        let walk = Walk::new(&[from.join("f")], WalkOptions::default()).unwrap();
        walk.filter_map(|found| match found {
            Found::Seen(seen) => Some(seen.open().unwrap()),
            Found::Problem(_) => None,
        })
        .next()
        .unwrap()
    };
    let mut scratch = vec![0; 100_000];
    let whole = all(&from).pop().unwrap().0.kind;
    for (until, fits) in
        [(1 << 20, true), (700_000, true), (2 << 20, false), (5 << 20, true), (8 << 20, false)]
    {
        let mut reader = open();
        assert_eq!(reader.skip_to(until, &mut scratch).unwrap(), fits, "{until}");
        if fits {
            while let Some((offset, _)) = reader.next(&mut scratch).unwrap() {
                assert!(offset >= until);
            }
            assert_eq!(reader.finish().unwrap().kind, whole);
        }
    }
}

#[test]
fn what_is_left_out_is_left_out() {
    let (_dir, from, _) = two();
    fs::create_dir_all(from.join("keep/cache")).unwrap();
    for named in ["keep/a.tmp", "keep/cache/x", "keep/y"] {
        fs::write(from.join(named), "").unwrap();
    }
    let exclude = Exclude::new(&["*.tmp".into(), "cache/".into()]).unwrap();
    let options = WalkOptions { exclude, one_file_system: true };
    let (entries, _) = read(std::slice::from_ref(&from), options.clone());
    let names: Vec<_> = entries.iter().map(|(entry, _)| entry.name.to_string()).collect();
    assert_eq!(names, [".", "keep", "keep/y"]);
    // Several sources come under their names, once.
    let (entries, _) = read(&[from.join("keep/y"), from.join("keep")], options.clone());
    assert_eq!(entries[0].0.name, name("y"));
    assert_eq!(entries[2].0.name, name("keep/y"));
    assert!(matches!(
        Walk::new(&[from.join("keep"), from.join("keep")], options),
        Err(TreeError::SameName(_))
    ));
}

/// Names, links and pieces that lie, one after another into a DEST that is full of traps. Outside
/// of it nothing may change, and each is refused by name.
#[test]
fn nothing_leads_out_of_the_destination() {
    let mut tried = 0;
    for existing in [Existing::Refuse, Existing::Overwrite] {
        for (what, trap) in traps() {
            let dir = TempDir::new().unwrap();
            let (outside, dest) = (dir.path().join("outside"), dir.path().join("dest"));
            fs::create_dir_all(outside.join("sub")).unwrap();
            fs::create_dir(&dest).unwrap();
            fs::write(outside.join("secret"), "secret").unwrap();
            fs::write(outside.join("sub/x"), "x").unwrap();
            let before = look(&outside);
            if existing == Existing::Overwrite {
                symlink(&outside, dest.join("there")).unwrap();
                symlink(outside.join("secret"), dest.join("target")).unwrap();
                symlink(outside.join("secret"), dest.join(".sidepath-restore")).unwrap();
                for called in [c"there", c"target", c"lie"] {
                    let partial = partial_of(called).into_string().unwrap();
                    symlink(outside.join("secret"), dest.join(partial)).unwrap();
                }
            }
            let (entries, bad) = trap(&outside);
            let told = lay(&entries, &dest, existing);
            assert_eq!(look(&outside), before, "{what} ({existing:?})");
            for named in &bad {
                let named = name(&**named).to_string();
                assert!(told.iter().any(|t| t.contains(&named)), "{what}: {told:?} lacks {named}");
            }
            assert_eq!(told.len(), bad.len(), "{what} ({existing:?}): {told:?}");
            tried += 1;
        }
    }
    assert!(tried >= 100, "{tried}");
}

/// What is tried, and the names that must be refused.
type Trap = Box<dyn Fn(&Path) -> (Vec<(Entry, Runs)>, Vec<String>)>;

fn traps() -> Vec<(String, Trap)> {
    let mut traps: Vec<(String, Trap)> = Vec::new();
    let targets = ["", "sub", "secret", "sub/x", "sub/..", "nothing", "../outside"];
    for target in targets {
        for (kind, at) in (0..4).flat_map(|kind| ["a", "d/a"].map(|at| (kind, at))) {
            let trap = move |outside: &Path| {
                let below = format!("{at}/x");
                let through = match kind {
                    0 => file_entry(&below, b"evil"),
                    1 => folder(&below),
                    2 => link(&below, Path::new("evil")),
                    _ => hard("h", &below),
                };
                let bad = through.0.name.to_string();
                let link = link(at, &outside.join(target));
                (vec![folder("d"), link, through], vec![bad])
            };
            traps.push((format!("{kind} through link {at} to {target}"), Box::new(trap)));
        }
    }
    // Links that lie at the destination already are replaced, not followed.
    for at in ["there", "target"] {
        let file = move |_: &Path| (vec![file_entry(at, b"evil")], vec![]);
        traps.push((format!("file over link {at}"), Box::new(file)));
        let into = move |_: &Path| {
            let inside = file_entry(&format!("{at}/secret"), b"evil");
            (vec![folder(at), inside], vec![])
        };
        traps.push((format!("folder over link {at}"), Box::new(into)));
        let only = move |_: &Path| {
            let at = format!("{at}/secret");
            (vec![file_entry(&at, b"evil")], vec![at])
        };
        traps.push((format!("file in no folder {at}"), Box::new(only)));
        let linked = move |_: &Path| (vec![hard("h", at)], vec!["h".into()]);
        traps.push((format!("hard link to link {at}"), Box::new(linked)));
    }
    // Pieces and sizes that lie.
    type Lie = fn(&mut (Entry, Runs));
    let lies: [(&str, Lie); 8] = [
        ("beyond", |f| f.1[0].0 = 3),
        ("overflow", |f| f.1[0].0 = u64::MAX - 1),
        ("overlap", |f| f.1.push((1, b"vil".to_vec()))),
        ("flipped", |f| f.1[0].1[2] ^= 1),
        ("short", |f| f.1[0].1.truncate(3)),
        ("missing", |f| f.1.clear()),
        ("huge", |f| f.0.kind = Kind::File { size: u64::MAX, digest: [0; 32], changed: false }),
        ("tiny", |f| f.0.kind = Kind::File { size: 0, digest: [0; 32], changed: false }),
    ];
    for (lie, change) in lies {
        let trap = move |_: &Path| {
            let mut file = file_entry("lie", b"evil");
            change(&mut file);
            (vec![file, hard("other", "lie")], vec!["lie".into(), "other".into()])
        };
        traps.push((format!("a file that lies: {lie}"), Box::new(trap)));
    }
    for at in [".sidepath-restore", ".sidepath-restore.partial", ".sidepath-restore.partial/x"] {
        for kind in 0..3 {
            let trap = move |outside: &Path| {
                let it = match kind {
                    0 => file_entry(at, b"evil"),
                    1 => folder(at),
                    _ => link(at, outside),
                };
                (vec![it], vec![at.to_owned()])
            };
            traps.push((format!("{kind} called {at}"), Box::new(trap)));
        }
    }
    for (kind, what) in [
        (Kind::Fifo, "fifo"),
        (Kind::Symlink(b"/".to_vec()), "link"),
        (Kind::HardLink(name("a")), "hard link"),
    ] {
        let trap = move |_: &Path| (vec![(entry("", kind.clone()), vec![])], vec![String::new()]);
        traps.push((format!("the root as a {what}"), Box::new(trap)));
    }
    if !is_root() {
        for kind in [Kind::CharDevice(0x103), Kind::BlockDevice(0x800)] {
            let trap = move |_: &Path| {
                (vec![(entry("device", kind.clone()), vec![])], vec!["device".to_owned()])
            };
            traps.push(("a device of an ordinary user".into(), Box::new(trap)));
        }
    }
    traps
}

/// Somebody who may write to DEST swaps a folder for a link to the outside, over and over.
#[test]
fn swapped_folders_lead_nowhere() {
    let dir = TempDir::new().unwrap();
    let (outside, dest) = (dir.path().join("outside"), dir.path().join("dest"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&dest).unwrap();
    fs::write(outside.join("f"), "secret").unwrap();
    let before = look(&outside);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let (a, b) = (dest.join("a"), dest.join("b"));
            let mut swaps = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                if fs::rename(&a, &b).is_ok() {
                    let _ = symlink(&outside, &a);
                    std::thread::yield_now();
                    let _ = fs::remove_file(&a);
                    let _ = fs::rename(&b, &a);
                    swaps += 1;
                }
            }
            swaps
        });
        let entries: Vec<_> = [
            folder("a"),
            file_entry("a/f", b"evil"),
            file_entry("a/g", b"evil"),
            folder("a/s"),
            link("a/l", Path::new("/")),
            hard("a/h", "a/g"),
            (entry("a/p", Kind::Fifo), Vec::new()),
        ]
        .into();
        for n in 0..400 {
            let mut place = Place::new(&dest, Existing::Overwrite, "v", true).unwrap();
            for (entry, runs) in &entries {
                let _ = lay_one(&mut place, entry, runs);
                let _ = place.is_done(entry);
            }
            // It waits for the disk.
            if n % 20 == 0 {
                let _ = place.end();
            }
            let _ = fs::remove_dir_all(dest.join("b"));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(swapper.join().unwrap() > 0, "nothing was swapped");
    });
    assert_eq!(look(&outside), before);
}

/// What only looks like the file that is wanted is replaced; what an interrupted restore of the
/// same version left is taken for what it says it is.
#[test]
fn what_is_there_already_is_kept_if_it_is_the_same() {
    let (_dir, _, to) = two();
    let (good, runs) = file_entry("f", b"good");
    let done = |existing, version| {
        let mut place = Place::new(&to, existing, version, true).unwrap();
        (place.is_done(&good), place)
    };
    let (is, mut place) = done(Existing::Refuse, "n@1");
    assert!(!is);
    lay_one(&mut place, &good, &runs).unwrap();
    drop(place);
    assert!(done(Existing::Refuse, "n@1").0);
    assert!(matches!(Place::new(&to, Existing::Refuse, "n@2", true), Err(TreeError::NotEmpty(_))));
    // Another version over it: the same bytes are, others of the same length and time are not.
    let (is, mut place) = done(Existing::Overwrite, "n@2");
    assert!(is);
    mode(&to.join("f"), 0o4755);
    place.keep(&good).unwrap();
    assert_eq!(to.join("f").metadata().unwrap().mode() & 0o7777, 0o755);
    drop(place);
    let time = to.join("f").metadata().unwrap().modified().unwrap();
    fs::write(to.join("f"), "evil").unwrap();
    fs::File::options().write(true).open(to.join("f")).unwrap().set_modified(time).unwrap();
    let (is, place) = done(Existing::Overwrite, "n@2");
    assert!(!is);
    drop(place);
    let (is, place) = done(Existing::Refuse, "n@2");
    assert!(!is, "it was begun over other things");
    place.end().unwrap();
    assert!(!to.join(".sidepath-restore").exists());
}

/// A folder in the way of a file is not removed, and not the end of all.
#[test]
fn a_folder_in_the_way_stays() {
    let (_dir, _, to) = two();
    fs::create_dir_all(to.join("f/full")).unwrap();
    fs::create_dir(to.join("l")).unwrap();
    let entries = [
        file_entry("f", b"x"),
        link("l", Path::new("/")),
        folder("f/full/y/z"),
        file_entry("g", b"x"),
    ];
    let told = lay(&entries, &to, Existing::Overwrite);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].starts_with("f is not restored: a folder"), "{told:?}");
    assert!(told[1].starts_with("l is not restored: a folder"), "{told:?}");
    assert!(to.join("f/full").is_dir() && to.join("g").is_file());
}

/// A program that ran as its owner does not run as whoever restores it.
#[test]
fn set_id_bits_go_with_their_owner() {
    let (_dir, _, to) = two();
    let (mut program, runs) = file_entry("p", b"#!");
    (program.mode, program.uid) = (0o4755, program.uid + 1);
    let mut place = Place::new(&to, Existing::Refuse, "v", false).unwrap();
    lay_one(&mut place, &program, &runs).unwrap();
    assert!(place.is_done(&program));
    let told = place.end().unwrap();
    assert!(told[0].starts_with("p: not set: set-id bits"), "{told:?}");
    assert_eq!(to.join("p").metadata().unwrap().mode() & 0o7777, 0o755);
}
