//! Going through a tree, folders before what is in them, names in the order of their bytes.
//!
//! ```text
//!   sources ──> a stack of folders, each open, each with the names still to come ──> Found
//! ```
//!
//! Everything is reached from an open folder by one component and without following links, so a
//! tree that is being rearranged leads nowhere else.
//!
//! Awkward cases:
//! * What cannot be read, or is gone when its turn comes, is told and left out; the walk goes on.
//! * A second name of a file, or of a link, FIFO or device, comes as a link to the first. Numbers of
//!   inodes are used again while a long walk goes on, so it is also known by when it was born.
//! * Sockets cannot be stored; they are told.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, CString},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
    vec,
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatxFlags, openat, readlinkat, statat,
        statx,
    },
    io::Errno,
};

use super::{
    TreeError,
    attributes::{entry_of, xattrs},
    exclude::Exclude,
    mark::is_reserved,
    read::FileReader,
};
use crate::backup::entry::{Entry, Kind, Name};

#[derive(Debug, Clone, Default)]
pub(crate) struct WalkOptions {
    pub(crate) exclude: Exclude,
    pub(crate) one_file_system: bool,
}

/// What the walk comes to.
#[derive(Debug)]
pub(crate) enum Found {
    Seen(Seen),
    Problem(Problem),
}

/// Something that is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) what: String,
    /// It should have been; a socket, for one, cannot be.
    pub(crate) bad: bool,
}

/// Something in the tree, and where to get the rest of it.
#[derive(Debug)]
pub(crate) struct Seen {
    /// By its stat: files have no digest, nothing has extended attributes yet.
    pub(crate) entry: Entry,
    folder: Arc<OwnedFd>,
    component: CString,
    /// Of a file that other names may link to.
    first: Option<Inode>,
}

/// A file for as long as it lives: device, inode, birth, and what it is, where births are not known.
type Inode = (u64, u64, (i64, u32), u32);

impl Seen {
    /// For [`Walk::forget`].
    pub(crate) const fn first(&self) -> Option<Inode> {
        self.first
    }

    /// Opens a file.
    pub(crate) fn open(&self) -> io::Result<FileReader> {
        FileReader::open(&*self.folder, &self.component, self.entry.name.clone())
    }

    /// Extended attributes.
    pub(crate) fn xattrs(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        xattrs(&*self.folder, &self.component)
    }
}

struct Level {
    name: Name,
    fd: Arc<OwnedFd>,
    device: u64,
    names: vec::IntoIter<CString>,
}

pub(crate) struct Walk {
    options: WalkOptions,
    /// Sources still to come, last first: under which name, in which folder, called what.
    sources: Vec<(Name, Arc<OwnedFd>, CString)>,
    levels: Vec<Level>,
    /// First names of files that have several.
    links: HashMap<Inode, Name>,
    /// To be told next.
    pending: Option<Found>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("depth", &self.levels.len()).finish_non_exhaustive()
    }
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

impl Walk {
    /// Of one folder its content, of several sources, or of files, each under its name. Sources
    /// themselves may be links.
    pub(crate) fn new(sources: &[PathBuf], options: WalkOptions) -> Result<Self, TreeError> {
        let bad = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| TreeError::Source { path, source }
        };
        let mut found = Vec::new();
        for path in sources {
            let meta = std::fs::metadata(path).map_err(bad(path))?;
            let alone = sources.len() == 1 && meta.is_dir();
            // Links in the path are followed here, once.
            let real = path.canonicalize().map_err(bad(path))?;
            if alone {
                let flags = FOLDER.difference(OFlags::NOFOLLOW);
                let fd =
                    openat(CWD, &real, flags, Mode::empty()).map_err(|e| bad(path)(e.into()))?;
                found.push((Name::default(), Arc::new(fd), c".".to_owned()));
                continue;
            }
            let (Some(parent), Some(called)) = (real.parent(), real.file_name()) else {
                return Err(TreeError::NoName(path.clone()));
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = openat(CWD, parent, flags, Mode::empty()).map_err(|e| bad(path)(e.into()))?;
            // Under the name it was given, not the one a link leads to.
            let name = Name::new(path.file_name().unwrap_or(called).as_bytes())?;
            let called = CString::new(called.as_bytes()).map_err(|e| bad(path)(e.into()))?;
            found.push((name, Arc::new(fd), called));
        }
        let mut names = HashSet::new();
        if let Some((name, ..)) = found.iter().find(|(name, ..)| !names.insert(name.clone())) {
            return Err(TreeError::SameName(name.clone()));
        }
        found.reverse();
        Ok(Self {
            options,
            sources: found,
            levels: Vec::new(),
            links: HashMap::new(),
            pending: None,
        })
    }

    /// A file that was seen is not stored: its next name is the first.
    pub(crate) fn forget(&mut self, first: Option<Inode>) {
        if let Some(inode) = first {
            self.links.remove(&inode);
        }
    }

    fn problem(name: &Name, what: &str, error: &io::Error) -> Found {
        let what = format!("{name}: {what}: {error}");
        Found::Problem(Problem { what, bad: true })
    }

    /// What lies there, gone into if it is a folder.
    fn see(
        &mut self,
        name: Name,
        folder: Arc<OwnedFd>,
        component: CString,
        device: Option<u64>,
    ) -> Option<Found> {
        let stat = match statat(&*folder, &component, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return Some(Self::problem(&name, "is not stored", &error.into())),
        };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let is_folder = file_type == FileType::Directory;
        if !name.is_root() && self.options.exclude.leaves_out(&name, is_folder) {
            return None;
        }
        if !name.is_root() && is_remains(&name, file_type) {
            let what = format!("{name}: is not stored: an interrupted restore left it");
            return Some(Found::Problem(Problem { what, bad: false }));
        }
        let mut first = None;
        if !matches!(file_type, FileType::Directory | FileType::Socket) && stat.st_nlink > 1 {
            let inode = inode(&folder, &component, &stat);
            if let Some(first) = self.links.get(&inode) {
                let entry = entry_of(name, Kind::HardLink(first.clone()), &stat);
                return Some(Found::Seen(Seen { entry, folder, component, first: None }));
            }
            self.links.insert(inode, name.clone());
            first = Some(inode);
        }
        let kind = match file_type {
            FileType::Directory => Kind::Folder,
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                Kind::File { size, digest: [0; 32], changed: false }
            }
            FileType::Symlink => match readlinkat(&*folder, &component, Vec::new()) {
                Ok(target) => Kind::Symlink(target.into_bytes()),
                Err(error) => {
                    self.forget(first);
                    return Some(Self::problem(&name, "is not stored", &error.into()));
                }
            },
            FileType::CharacterDevice => Kind::CharDevice(stat.st_rdev),
            FileType::BlockDevice => Kind::BlockDevice(stat.st_rdev),
            FileType::Fifo => Kind::Fifo,
            _ => {
                let what = format!("{name}: is not stored: sockets live with their programs only");
                return Some(Found::Problem(Problem { what, bad: false }));
            }
        };
        if is_folder
            && (device.is_none_or(|d| d == stat.st_dev) || !self.options.one_file_system)
            && let Err(error) = self.go_into(&name, &folder, &component, &stat)
        {
            let what = "is stored without what is in it";
            self.pending = Some(Self::problem(&name, what, &error));
        }
        Some(Found::Seen(Seen { entry: entry_of(name, kind, &stat), folder, component, first }))
    }

    fn go_into(
        &mut self,
        name: &Name,
        folder: &Arc<OwnedFd>,
        component: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let fd = match openat(&**folder, component, FOLDER | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => openat(&**folder, component, FOLDER, Mode::empty())?,
            fd => fd?,
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        self.levels.push(Level {
            name: name.clone(),
            fd: Arc::new(fd),
            device: stat.st_dev,
            names: names.into_iter(),
        });
        Ok(())
    }
}

fn inode(folder: &OwnedFd, component: &CStr, stat: &Stat) -> Inode {
    let link = AtFlags::SYMLINK_NOFOLLOW;
    let birth = statx(folder, component, link, StatxFlags::BTIME)
        .ok()
        .filter(|is| is.stx_mask & StatxFlags::BTIME.bits() != 0)
        .map_or((0, 0), |is| (is.stx_btime.tv_sec, is.stx_btime.tv_nsec));
    (stat.st_dev, stat.st_ino, birth, FileType::from_raw_mode(stat.st_mode).as_raw_mode())
}

/// What a restore keeps for itself; see `place.rs`.
fn is_remains(name: &Name, file_type: FileType) -> bool {
    file_type == FileType::RegularFile && is_reserved(name)
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if self.pending.is_some() {
            return self.pending.take();
        }
        loop {
            let Some(level) = self.levels.last_mut() else {
                let (name, folder, component) = self.sources.pop()?;
                match self.see(name, folder, component, None) {
                    None => continue,
                    found => return found,
                }
            };
            let Some(component) = level.names.next() else {
                self.levels.pop();
                continue;
            };
            let (folder, device) = (Arc::clone(&level.fd), level.device);
            let found = match level.name.join(component.to_bytes()) {
                Ok(name) => self.see(name, folder, component, Some(device)),
                Err(error) => {
                    let what = format!("{error}: its path is too long to be stored");
                    Some(Found::Problem(Problem { what, bad: true }))
                }
            };
            if found.is_some() {
                return found;
            }
        }
    }
}

/// Bytes and entries below these sources; what cannot be read counts nothing.
pub(crate) fn count(sources: &[PathBuf], options: &WalkOptions) -> (u64, u64) {
    let Ok(walk) = Walk::new(sources, options.clone()) else { return (0, 0) };
    walk.fold((0, 0), |(bytes, entries), found| match found {
        Found::Seen(Seen { entry: Entry { kind: Kind::File { size, .. }, .. }, .. }) => {
            (bytes + size, entries + 1)
        }
        Found::Seen(_) => (bytes, entries + 1),
        Found::Problem(_) => (bytes, entries),
    })
}
