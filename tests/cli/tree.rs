//! A small tree with one of everything a file system has, and the difference between two trees,
//! found by a walk of its own: nothing here shares code with what is tested.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr,
    lsetxattr, mknodat, utimensat,
};

/// Numbers that look like nothing, the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Bytes that do not compress.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A time before 1970 is one, too.
fn set_time(path: &Path, s: i64, ns: i64) {
    let stamp = Timespec { tv_sec: s, tv_nsec: ns };
    let times = Timestamps { last_access: stamp, last_modification: stamp };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Makes the tree: some hundred entries, about `big` + 8 MiB of bytes.
pub(crate) fn make(root: &Path, seed: u64, big: usize) {
    let mut random = Random(seed);
    fs::create_dir_all(root).unwrap();
    for n in 0..8 {
        let folder = root.join(format!("many/{n}"));
        fs::create_dir_all(&folder).unwrap();
        for m in 0..40 {
            let length = usize::try_from(random.below(30_000)).unwrap();
            let path = folder.join(format!("f{m}"));
            fs::write(&path, random.bytes(length)).unwrap();
            let ns = i64::try_from(random.below(1_000_000_000)).unwrap();
            set_time(&path, 1_600_000_000 + m, ns);
        }
    }
    fs::write(root.join("big"), random.bytes(big)).unwrap();
    fs::write(root.join("text"), "the same again and again\n".repeat(100_000)).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("borders"), random.bytes(1 << 20)).unwrap();
    sparse(root);
    odd_names(root);
    links(root);
    attributes(root);
    let deep: PathBuf = (0..40).map(|n| format!("deep{n}")).collect();
    fs::create_dir_all(root.join(&deep)).unwrap();
    fs::write(root.join(&deep).join("down"), "here").unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    set_time(&root.join("fifo"), 1_000_000_000, 1);
    set_time(&root.join("many"), 1_234_567_890, 987_654_321);
    set_time(root, 1_111_111_111, 222_222_222);
}

fn sparse(root: &Path) {
    for (name, data, size) in [
        ("hole at the end", &[0, 2 << 20][..], 9 << 20),
        ("hole at the beginning", &[6 << 20], (6 << 20) + 10),
        ("only a hole", &[], 5 << 20),
        ("holes", &[1 << 20, 3 << 20, 5 << 20], 6 << 20),
    ] {
        let mut file = File::create(root.join(name)).unwrap();
        for at in data {
            file.seek(SeekFrom::Start(*at)).unwrap();
            file.write_all(b"something").unwrap();
        }
        file.set_len(size).unwrap();
    }
}

fn odd_names(root: &Path) {
    let folder = root.join("odd");
    fs::create_dir(&folder).unwrap();
    let long = [b'x'; 255];
    for name in [
        &b"-rf"[..],
        b"new\nline",
        b" ",
        b"quote\"'`$(x)",
        b"\xff\xfe not utf-8",
        b"\x1b[31mred",
        b"back\\slash",
        b"...",
        b"a:b@3",
        &long,
    ] {
        fs::write(folder.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::create_dir(folder.join(OsStr::from_bytes(b"folder\n\xff"))).unwrap();
}

fn links(root: &Path) {
    let folder = root.join("links");
    fs::create_dir(&folder).unwrap();
    symlink("../text", folder.join("to a file")).unwrap();
    symlink("/nowhere/at/all", folder.join("to nothing")).unwrap();
    symlink("..", folder.join("up")).unwrap();
    symlink(OsStr::from_bytes(b"\xff"), folder.join("odd")).unwrap();
    set_time(&folder.join("odd"), 1_300_000_000, 5);
    fs::write(folder.join("first"), "three names").unwrap();
    fs::hard_link(folder.join("first"), folder.join("second")).unwrap();
    fs::hard_link(folder.join("first"), root.join("another of first")).unwrap();
    fs::hard_link(folder.join("odd"), folder.join("odd too")).unwrap();
}

fn attributes(root: &Path) {
    let folder = root.join("attributes");
    fs::create_dir(&folder).unwrap();
    for mode in [0o000, 0o400, 0o644, 0o755, 0o4755, 0o2711, 0o1777] {
        // What nobody may read, ordinary users cannot back up.
        if mode & 0o400 == 0 && !is_root() {
            continue;
        }
        let path = folder.join(format!("{mode:04o}"));
        fs::write(&path, "x").unwrap();
        set_mode(&path, mode);
    }
    fs::create_dir(folder.join("read only")).unwrap();
    fs::write(folder.join("read only/file"), "in it").unwrap();
    set_mode(&folder.join("read only"), 0o555);
    fs::create_dir(folder.join("sticky")).unwrap();
    set_mode(&folder.join("sticky"), 0o1777);
    let old = folder.join("before 1970");
    fs::write(&old, "").unwrap();
    set_time(&old, -86_400, 999_999_999);
    for name in ["with some", "folder with some"] {
        let path = folder.join(name);
        if name.starts_with("folder") {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, "x").unwrap();
        }
        // A file system without them is backed up, too.
        let _ = lsetxattr(&path, "user.comment", b"well\0done", XattrFlags::empty());
        let _ = lsetxattr(&path, "user.empty", b"", XattrFlags::empty());
        if is_root() {
            let _ = lsetxattr(&path, "trusted.mark", b"root's", XattrFlags::empty());
        }
    }
    if is_root() {
        let path = folder.join("of others");
        fs::write(&path, "x").unwrap();
        std::os::unix::fs::lchown(&path, Some(1234), Some(4321)).unwrap();
        symlink("nowhere", folder.join("link of others")).unwrap();
        std::os::unix::fs::lchown(folder.join("link of others"), Some(1), Some(2)).unwrap();
        // Not everywhere root may, as in some containers.
        let device = rustix::fs::makedev(1, 3);
        let mode = Mode::from_raw_mode(0o666);
        let _ = mknodat(CWD, folder.join("null"), FileType::CharacterDevice, mode, device);
    }
}

/// All of a thing that is compared.
#[derive(Debug, PartialEq, Eq)]
struct Thing {
    kind: String,
    mode: u32,
    owner: Option<(u32, u32)>,
    mtime: (i64, i64),
    size: u64,
    content: Vec<u8>,
    device: u64,
    target: Option<PathBuf>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of what is no folder: the first of its names, when it has several.
    first: Option<PathBuf>,
}

/// Everything below a folder and itself, by path; and bytes that files take on the disk.
fn things(root: &Path) -> (BTreeMap<PathBuf, Thing>, u64) {
    let (mut all, mut firsts, mut taken) = (BTreeMap::new(), BTreeMap::new(), 0);
    let mut left = vec![PathBuf::new()];
    while let Some(name) = left.pop() {
        let path = root.join(&name);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        if kind.is_dir() {
            let mut names: Vec<_> =
                fs::read_dir(&path).unwrap().map(|e| name.join(e.unwrap().file_name())).collect();
            names.sort_unstable_by(|a, b| b.cmp(a));
            left.extend(names);
        }
        let first = (!kind.is_dir() && meta.nlink() > 1)
            .then(|| firsts.entry(meta.ino()).or_insert_with(|| name.clone()).clone());
        if kind.is_file() {
            taken += meta.blocks() * 512;
        }
        let thing = Thing {
            kind: format!("{kind:?}"),
            mode: meta.mode(),
            owner: is_root().then(|| (meta.uid(), meta.gid())),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if kind.is_dir() { 0 } else { meta.len() },
            content: if kind.is_file() { fs::read(&path).unwrap() } else { Vec::new() },
            device: if kind.is_char_device() { meta.rdev() } else { 0 },
            target: kind.is_symlink().then(|| fs::read_link(&path).unwrap()),
            xattrs: xattrs(&path),
            first,
        };
        all.insert(name, thing);
    }
    (all, taken)
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut names, mut value) = (vec![0; 4096], vec![0; 4096]);
    let n = llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..n].split(|b| *b == 0).filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let n = lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..n].to_vec())
        })
        .collect();
    all.sort_unstable();
    all
}

/// What differs between two trees, in words; empty when they are the same.
pub(crate) fn difference(wanted: &Path, is: &Path) -> String {
    let ((wanted, wanted_taken), (is, taken)) = (things(wanted), things(is));
    let mut words = String::new();
    for (name, thing) in &wanted {
        let Some(other) = is.get(name) else {
            words.push_str(&format!("{name:?} is missing\n"));
            continue;
        };
        if thing == other {
            continue;
        }
        let same_content = thing.content == other.content;
        let brief = |t: &Thing| {
            format!(
                "{} {:o} {:?} {:?} {} {} {:?} {:?} {:?}",
                t.kind, t.mode, t.owner, t.mtime, t.size, t.device, t.target, t.xattrs, t.first
            )
        };
        let (thing, other) = (brief(thing), brief(other));
        words.push_str(&format!("{name:?}: {thing}\n   is {other}, content {same_content}\n"));
    }
    for name in is.keys().filter(|name| !wanted.contains_key(*name)) {
        words.push_str(&format!("{name:?} is too much\n"));
    }
    // Holes may end elsewhere by a block of the file system, for each.
    if taken > wanted_taken + (1 << 20) {
        words.push_str(&format!("takes {taken} bytes on the disk instead of {wanted_taken}\n"));
    }
    words
}

#[track_caller]
pub(crate) fn assert_same(wanted: &Path, is: &Path) {
    let difference = difference(wanted, is);
    assert!(difference.is_empty(), "{}", difference.chars().take(4000).collect::<String>());
}
