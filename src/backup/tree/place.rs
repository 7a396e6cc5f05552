//! Putting a tree back below one folder, and nowhere else.
//!
//! ```text
//!   DEST (open) ── component by component, no link is followed ──> folder (open) ── one component
//! ```
//!
//! A name of a version has no `..` and is not absolute (see [`Name`]). Every folder on the way is
//! opened from the one before without following links, so neither a link that lay there, nor one
//! that was just restored, nor one that somebody puts there meanwhile leads out of DEST.
//!
//! Awkward cases:
//! * Folders get their attributes last: a folder nobody may write to is filled first, and filling
//!   changes its time.
//! * What is not permitted or not possible (owners for ordinary users, attributes the file system has
//!   not) is counted by its kind and told once, and does not end the restore.
//! * A folder that is moved while it is filled is filled where it is then: whoever moves it may move
//!   what is in it, too.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, Stat, fsync, linkat, mkdirat, mknodat, openat,
        statat, symlinkat, syncfs, unlinkat,
    },
    io::Errno,
};

use super::{
    TreeError,
    attributes::{chmod, mtime, put},
    mark::{self, is_reserved},
    read::FileReader,
};
use crate::backup::entry::{Entry, Kind, Name};

/// Open folders that are remembered, at most: a deeper one is opened again each time.
const CHAIN_MAX: usize = 64;
/// Kinds of trouble that are told apart, at most.
const TROUBLES_MAX: usize = 100;

/// What may be at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Nothing, but what an interrupted restore of the same version left.
    Refuse,
    /// Anything: files of the same names are replaced.
    Overwrite,
}

const FOLDER: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Bytes that are read at once for a comparison.
const SCRATCH: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    root: OwnedFd,
    owners: bool,
    /// What looks restored was restored.
    pub(super) trusted: bool,
    /// The folder that was used last, and those above it.
    chain: Vec<(Vec<u8>, OwnedFd)>,
    /// That folder, if it is too deep for the chain.
    deep: Option<OwnedFd>,
    /// Whose attributes are put at the end.
    folders: Vec<Entry>,
    /// What is neither file nor folder, and was made here: it may have further names.
    specials: HashSet<Name>,
    /// How often, and where first.
    troubles: BTreeMap<String, (u64, Name)>,
    scratch: Vec<u8>,
}

fn component(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(Into::into)
}

impl Place {
    /// DEST is made if it is not there. `version` tells an interrupted restore of the same from
    /// other things there. Owners are put back by root, if wanted.
    pub(crate) fn new(
        path: &Path,
        existing: Existing,
        version: &str,
        owners: bool,
    ) -> Result<Self, TreeError> {
        let bad = |what| move |source| TreeError::Dest { what, path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                TreeError::NotAFolder(path.to_owned())
            }
            _ => bad("make the folder")(e),
        })?;
        // DEST itself may be a link: it was named by who may.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).map_err(|e| bad("open")(e.into()))?;
        if !mark::lock(&root) {
            return Err(TreeError::Busy(path.to_owned()));
        }
        let mark = mark::look(&root, version);
        if existing == Existing::Refuse && !mark.ours {
            let mut others = std::fs::read_dir(path).map_err(bad("list"))?.filter(|entry| {
                // What `mkfs` makes is no content.
                entry.as_ref().is_ok_and(|entry| entry.file_name() != "lost+found")
            });
            if others.next().is_some() {
                return Err(TreeError::NotEmpty(path.to_owned()));
            }
        }
        if !mark.ours {
            mark::write(&root, version, existing).map_err(bad("write to"))?;
        }
        let owners = owners && rustix::process::geteuid().is_root();
        Ok(Self::of(path.to_owned(), root, owners, mark.trusted))
    }

    fn of(path: PathBuf, root: OwnedFd, owners: bool, trusted: bool) -> Self {
        Self {
            path,
            root,
            owners,
            trusted,
            chain: Vec::new(),
            deep: None,
            folders: Vec::new(),
            specials: HashSet::new(),
            troubles: BTreeMap::new(),
            scratch: Vec::new(),
        }
    }

    /// For another thread, which puts files of the same restore there.
    pub(crate) fn another(&self) -> io::Result<Self> {
        let root = self.root.try_clone()?;
        Ok(Self::of(self.path.clone(), root, self.owners, self.trusted))
    }

    /// That other thread is done: what it could not set is told with the rest.
    pub(crate) fn absorb(&mut self, other: Self) {
        for (what, (times, name)) in other.troubles {
            self.troubles.entry(what).or_insert((0, name)).0 += times;
        }
    }

    pub(super) fn fault<E: Into<io::Error>>(
        what: &'static str,
        name: &Name,
    ) -> impl FnOnce(E) -> TreeError {
        let name = name.clone();
        move |error| TreeError::Put { what, name, source: error.into() }
    }

    /// The folder something is in, and what it is called there.
    pub(super) fn parent(&mut self, name: &Name) -> Result<(&OwnedFd, CString), TreeError> {
        if is_reserved(name) {
            return Err(TreeError::Reserved(name.clone()));
        }
        let put = |source| TreeError::Put { what: "reach", name: name.clone(), source };
        let Some((folder, called)) = name.split() else {
            return Err(put(io::Error::other("it is the root itself")));
        };
        let called = component(called).map_err(put)?;
        let put = |source| TreeError::Put { what: "reach", name: name.clone(), source };
        let steps: Vec<&[u8]> = if folder.is_root() {
            Vec::new()
        } else {
            folder.bytes().split(|b| *b == b'/').collect()
        };
        let same = self.chain.iter().zip(&steps).take_while(|((have, _), step)| have == *step);
        let same = same.count();
        self.chain.truncate(same);
        self.deep = None;
        for step in &steps[same..] {
            let above = self.last_folder();
            let called = component(step).map_err(put)?;
            let fd = openat(above, &called, FOLDER, Mode::empty()).map_err(|e| put(e.into()))?;
            if self.chain.len() < CHAIN_MAX {
                self.chain.push((step.to_vec(), fd));
            } else {
                self.deep = Some(fd);
            }
        }
        Ok((self.last_folder(), called))
    }

    fn last_folder(&self) -> &OwnedFd {
        let chained = || self.chain.last().map_or(&self.root, |(_, fd)| fd);
        self.deep.as_ref().unwrap_or_else(chained)
    }

    pub(super) fn stat(folder: &OwnedFd, called: &CStr) -> Option<Stat> {
        statat(folder, called, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    /// Whether a file is there as it should be: by size, time (which it gets last) and mode, and if
    /// it may be somebody else's, by its digest and having no other name. Set-id bits are not always
    /// permitted.
    pub(crate) fn is_done(&mut self, entry: &Entry) -> bool {
        let Kind::File { size, .. } = entry.kind else { return false };
        let mut scratch = std::mem::take(&mut self.scratch);
        let trusted = self.trusted;
        let Ok((folder, called)) = self.parent(&entry.name) else { return false };
        let done = Self::stat(folder, &called).is_some_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && u64::try_from(stat.st_size).ok() == Some(size)
                && mtime(&stat) == entry.mtime
                && (stat.st_mode ^ entry.mode) & 0o1777 == 0
                && (trusted || stat.st_nlink == 1)
        }) && (trusted || Self::is_same(folder, &called, entry, &mut scratch));
        self.scratch = scratch;
        done
    }

    fn is_same(folder: &OwnedFd, called: &CStr, entry: &Entry, scratch: &mut Vec<u8>) -> bool {
        let read = |scratch: &mut Vec<u8>| {
            scratch.resize(SCRATCH, 0);
            let mut file = FileReader::open(folder, called, entry.name.clone())?;
            while file.next(scratch)?.is_some() {}
            file.finish()
        };
        // Whether it changed once before is no matter.
        let content = |kind: &Kind| match kind {
            Kind::File { size, digest, .. } => Some((*size, *digest)),
            _ => None,
        };
        read(scratch).is_ok_and(|is| {
            content(&is.kind) == content(&entry.kind)
                && !matches!(is.kind, Kind::File { changed: true, .. })
        })
    }

    /// A file that is done already: somebody else's gets its attributes.
    pub(crate) fn keep(&mut self, entry: &Entry) -> Result<(), TreeError> {
        if self.trusted {
            return Ok(());
        }
        let (folder, called) = self.parent(&entry.name)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = openat(folder, &called, flags, Mode::empty())
            .map_err(Self::fault("set the attributes of", &entry.name))?;
        self.attributes(entry, Some(&fd))
    }

    /// Makes room for what is no folder.
    pub(super) fn clear(folder: &OwnedFd, called: &CStr, name: &Name) -> Result<(), TreeError> {
        match unlinkat(folder, called, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) if Self::is_folder(folder, called) => {
                Err(TreeError::InTheWay(name.clone()))
            }
            Err(error) => Err(Self::fault("replace", name)(error)),
        }
    }

    pub(super) fn is_folder(folder: &OwnedFd, called: &CStr) -> bool {
        Self::stat(folder, called)
            .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Everything that is no file.
    pub(crate) fn put(&mut self, entry: &Entry) -> Result<(), TreeError> {
        match &entry.kind {
            Kind::Folder => return self.folder(entry),
            Kind::HardLink(first) => return self.hard_link(&entry.name, first),
            _ => {}
        }
        let (folder, called) = self.parent(&entry.name)?;
        Self::clear(folder, &called, &entry.name)?;
        let mode = Mode::from_raw_mode(0o600);
        let made = match &entry.kind {
            Kind::Symlink(target) => symlinkat(&target[..], folder, &called),
            Kind::Fifo => mknodat(folder, &called, FileType::Fifo, mode, 0),
            Kind::CharDevice(device) => {
                mknodat(folder, &called, FileType::CharacterDevice, mode, *device)
            }
            Kind::BlockDevice(device) => {
                mknodat(folder, &called, FileType::BlockDevice, mode, *device)
            }
            Kind::Folder | Kind::File { .. } | Kind::HardLink(_) => Ok(()),
        };
        made.map_err(Self::fault("make", &entry.name))?;
        self.specials.insert(entry.name.clone());
        self.attributes(entry, None)
    }

    fn folder(&mut self, entry: &Entry) -> Result<(), TreeError> {
        if entry.name.is_root() {
            self.folders.push(entry.clone());
            return Ok(());
        }
        let (folder, called) = self.parent(&entry.name)?;
        let mode = Mode::RWXU;
        match mkdirat(folder, &called, mode) {
            Err(Errno::EXIST) if Self::is_folder(folder, &called) => {
                // It has its own mode already, which need not let us in.
                let is = Self::stat(folder, &called).map_or(0o700, |stat| stat.st_mode & 0o7777);
                if is & 0o700 != 0o700 {
                    let _ = chmod(folder.as_fd(), &called, None, Mode::from_raw_mode(is | 0o700));
                }
                Ok(())
            }
            Err(Errno::EXIST) => {
                Self::clear(folder, &called, &entry.name)?;
                mkdirat(folder, &called, mode)
            }
            made => made,
        }
        .map_err(Self::fault("make the folder", &entry.name))?;
        self.folders.push(entry.clone());
        Ok(())
    }

    fn hard_link(&mut self, name: &Name, first: &Name) -> Result<(), TreeError> {
        let is_ours = self.specials.contains(first);
        let (from, old) = self.parent(first)?;
        let fault = Self::fault("link", name);
        let from = from.try_clone().map_err(|source| TreeError::Put {
            what: "link",
            name: name.clone(),
            source,
        })?;
        let (folder, called) = self.parent(name)?;
        // What was there before is not ours to give names.
        let may_be = |stat: &Stat| match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => true,
            FileType::Directory => false,
            _ => is_ours,
        };
        let Some(wanted) = Self::stat(&from, &old).filter(may_be) else {
            return Err(fault(Errno::NOENT));
        };
        if Self::stat(folder, &called)
            .is_some_and(|is| (is.st_dev, is.st_ino) == (wanted.st_dev, wanted.st_ino))
        {
            return Ok(());
        }
        Self::clear(folder, &called, name)?;
        // A link that lies at the end of `old` is linked, not followed.
        linkat(&from, &old, folder, &called, AtFlags::empty()).map_err(fault)
    }

    pub(super) fn attributes(
        &mut self,
        entry: &Entry,
        open: Option<&OwnedFd>,
    ) -> Result<(), TreeError> {
        let owners = self.owners;
        let mut troubles = std::mem::take(&mut self.troubles);
        let mut trouble = |what: &str, errno: Errno| {
            let mut what = format!("{what}: {}", io::Error::from(errno));
            if troubles.len() >= TROUBLES_MAX && !troubles.contains_key(&what) {
                what = "others".into();
            }
            troubles.entry(what).or_insert_with(|| (0, entry.name.clone())).0 += 1;
        };
        let done = if entry.name.is_root() {
            Ok(put(&self.root, c".", None, entry, owners, &mut trouble))
        } else {
            self.parent(&entry.name)
                .map(|(folder, called)| put(folder, &called, open, entry, owners, &mut trouble))
        };
        self.troubles = troubles;
        done?.map_err(Self::fault("set the attributes of", &entry.name))
    }

    /// Everything is there: folders get their attributes, deepest first, and all of it reaches the
    /// disk. What was not permitted or possible, and how often.
    pub(crate) fn end(mut self) -> Result<Vec<String>, (TreeError, Vec<String>)> {
        let done = self.end_inner();
        let said = self.troubles.iter().map(|(what, (n, name))| match n {
            1 => format!("{name}: not set: {what}"),
            n => format!("{name} and {} others: not set: {what}", n - 1),
        });
        match done {
            Ok(mut folders) => {
                folders.extend(said);
                Ok(folders)
            }
            Err(error) => Err((error, said.collect())),
        }
    }

    /// What is wrong with folders.
    fn end_inner(&mut self) -> Result<Vec<String>, TreeError> {
        let bad = |what, path: &Path, error: Errno| TreeError::Dest {
            what,
            path: path.to_owned(),
            source: error.into(),
        };
        let mut folders = std::mem::take(&mut self.folders);
        folders.sort_by(|a, b| b.name.cmp(&a.name));
        let root = folders.pop_if(|last| last.name.is_root());
        let mut wrong = Vec::new();
        let mut put = |this: &mut Self, folder: &Entry| match this.attributes(folder, None) {
            Err(error) if error.is_full() => Err(error),
            Err(error) if wrong.len() < TROUBLES_MAX => {
                wrong.push(error.to_string());
                Ok(())
            }
            _ => Ok(()),
        };
        for folder in &folders {
            put(self, folder)?;
        }
        // The mark goes when all else has reached the disk: until then the restore can go on. The
        // root's time is changed by that.
        syncfs(&self.root).map_err(|e| bad("sync", &self.path, e))?;
        mark::remove(&self.root).map_err(|source| TreeError::Dest {
            what: "write to",
            path: self.path.clone(),
            source,
        })?;
        if let Some(root) = root {
            put(self, &root)?;
        }
        fsync(&self.root).map_err(|e| bad("sync", &self.path, e))?;
        Ok(wrong)
    }
}
