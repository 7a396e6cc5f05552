//! The folder of one backup: what its files are called, who may change it, what may go.
//!
//! ```text
//!   STORE/NAME/  lock              by who writes: a backup, or a version being removed; has the
//!                                  last number of a version in it
//!                readers           shared by who reads; nothing is removed meanwhile
//!                00000007.version  a catalogue
//!                00000008.journal  of the version being made
//!                00000008-0001.pack
//! ```
//!
//! Awkward cases:
//! * A version may refer to packs of any other. While the head of one cannot be read, nobody knows
//!   what it needs, so no pack goes.
//! * A restore knows packs by a catalogue that may go: it holds `readers`, and what should be removed
//!   meanwhile is removed after the next backup.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{
    MARK,
    catalogue::{self, Catalogue},
    error::StoreError,
    frames::Head,
    journal,
};

/// Longest name of a backup.
const NAME_MAX: usize = 64;

#[derive(Debug, Clone)]
pub(super) struct Folder {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// What is in a folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) versions: BTreeSet<u32>,
    /// Version and number.
    pub(super) packs: BTreeSet<(u32, u32)>,
    pub(super) journals: BTreeSet<u32>,
    /// Files that were being written when somebody was killed.
    leftovers: Vec<PathBuf>,
}

impl Listing {
    /// A number that no version has, and none that left anything behind.
    pub(super) fn next(&self) -> u32 {
        let packs = self.packs.last().map(|(version, _)| *version);
        let last = self.versions.last().copied().max(packs).max(self.journals.last().copied());
        last.map_or(1, |n| n.saturating_add(1))
    }

    /// The last number a pack of this version has.
    pub(super) fn last_pack(&self, version: u32) -> u32 {
        self.packs.range((version, 0)..=(version, u32::MAX)).last().map_or(0, |(_, pack)| *pack)
    }
}

/// A lock on a file, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// The last number that was given to a version, whatever has become of it.
    pub(super) fn noted(&self) -> u32 {
        let mut text = [0; 10];
        let length = self.0.read_at(&mut text, 0).unwrap_or(0);
        let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
        text.trim_end().parse().unwrap_or(0)
    }

    /// Keeps that in mind, so that a number never means two versions. Only a comfort: no error.
    pub(super) fn note(&self, number: u32) {
        let _ = self.0.write_all_at(format!("{number:010}").as_bytes(), 0);
    }
}

impl Drop for Lock {
    /// Closing it would do, unless a process that was just started has it, too, for a moment.
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Folder {
    pub(super) fn new(store: &Path, name: &str) -> Result<Self, StoreError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let good = (1..=NAME_MAX).contains(&name.len())
            && name.chars().all(fine)
            && !name.starts_with(['.', '-'])
            && !name.starts_with(MARK);
        if !good {
            return Err(StoreError::BadName { name: name.chars().take(100).collect() });
        }
        Ok(Self { name: name.to_owned(), path: store.join(name) })
    }

    pub(super) fn version(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:08}.version"))
    }

    pub(super) fn journal(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:08}.journal"))
    }

    pub(super) fn pack(&self, (version, pack): (u32, u32)) -> PathBuf {
        self.path.join(format!("{version:08}-{pack:04}.pack"))
    }

    pub(super) fn list(&self) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(&self.path).map_err(|e| self.missing(e))? {
            let path = entry.map_err(StoreError::io("list", &self.path))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            // Only what is written exactly so is ours.
            let number = |text: &str, digits| {
                let number: u32 = text.parse().ok()?;
                (number > 0 && format!("{number:0digits$}") == text).then_some(number)
            };
            match name.rsplit_once('.') {
                Some((stem, "version")) => listing.versions.extend(number(stem, 8)),
                Some((stem, "journal")) => listing.journals.extend(number(stem, 8)),
                Some((stem, "pack")) => listing.packs.extend(
                    stem.split_once('-').and_then(|(v, p)| Some((number(v, 8)?, number(p, 4)?))),
                ),
                Some((_, "new")) => listing.leftovers.push(path),
                _ => {}
            }
        }
        Ok(listing)
    }

    /// The error of opening something in it: of the whole, when it is not there at all.
    fn missing(&self, e: io::Error) -> StoreError {
        let store = self.path.parent().unwrap_or(&self.path).to_owned();
        if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
            return StoreError::NoName { name: self.name.clone(), store };
        }
        StoreError::io("open", &self.path)(e)
    }

    /// For who writes; made together with the folder.
    pub(super) fn create(&self) -> Result<Lock, StoreError> {
        match fs::create_dir(&self.path) {
            Ok(()) => sync_folder(self.path.parent().unwrap_or(&self.path))?,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(StoreError::io("make the folder", &self.path)(e)),
        }
        self.lock()
    }

    /// For who writes, when there is something.
    pub(super) fn lock(&self) -> Result<Lock, StoreError> {
        self.exclusive("lock")?.ok_or_else(|| StoreError::Busy {
            name: self.name.clone(),
            by: "another backup to this name is under way, or a version of it is being removed",
        })
    }

    /// For who removes; none while somebody reads.
    pub(super) fn without_readers(&self) -> Result<Option<Lock>, StoreError> {
        self.exclusive("readers")
    }

    /// For who reads. A store that cannot be written to needs no lock.
    pub(super) fn reading(&self) -> Result<Option<Lock>, StoreError> {
        let path = self.path.join("readers");
        let file = match open_lock(&path) {
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied
                ) =>
            {
                return Ok(None);
            }
            file => file.map_err(|e| self.missing(e))?,
        };
        flock(&file, FlockOperation::LockShared)
            .map_err(|e| StoreError::io("lock", &path)(e.into()))?;
        Ok(Some(Lock(file)))
    }

    fn exclusive(&self, file: &str) -> Result<Option<Lock>, StoreError> {
        let path = self.path.join(file);
        let file = open_lock(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => self.missing(e),
            _ => StoreError::io("open", &path)(e),
        })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(StoreError::io("lock", &path)(e.into())),
        }
    }

    /// A version without its entries.
    pub(super) fn head(&self, number: u32) -> Result<Head, StoreError> {
        let path = self.version(number);
        let read = || {
            let mut file = BufReader::new(File::open(&path)?);
            let mut head = catalogue::begin(&mut file)?;
            file.seek(SeekFrom::End(-32))?;
            let mut digest = [0; 32];
            file.read_exact(&mut digest)?;
            head.version.digest = blake3::Hash::from(digest).to_hex().to_string();
            Ok(head)
        };
        let mut head = read().map_err(|e| self.no_version(number, &path, e))?;
        self.check_number(number, head.version.number)?;
        head.version.name.clone_from(&self.name);
        Ok(head)
    }

    pub(super) fn catalogue(&self, number: u32) -> Result<Catalogue, StoreError> {
        let path = self.version(number);
        let read =
            || Catalogue::read_from(&mut BufReader::with_capacity(1 << 16, File::open(&path)?));
        let mut catalogue = read().map_err(|e| self.no_version(number, &path, e))?;
        self.check_number(number, catalogue.version.number)?;
        catalogue.version.name.clone_from(&self.name);
        Ok(catalogue)
    }

    fn no_version(&self, number: u32, path: &Path, e: io::Error) -> StoreError {
        match e.kind() {
            ErrorKind::NotFound => StoreError::NoVersion { name: self.name.clone(), number },
            _ => StoreError::io("read", path)(e),
        }
    }

    fn check_number(&self, number: u32, says: u32) -> Result<(), StoreError> {
        if number == says {
            return Ok(());
        }
        let reason = format!("it says that it is version {says}");
        Err(StoreError::Damaged { path: self.version(number), reason })
    }

    /// Removes what was left behind and the packs that nothing refers to. The caller writes, and
    /// nobody reads.
    pub(super) fn collect(&self) -> Result<(), StoreError> {
        let listing = self.list()?;
        for path in &listing.leftovers {
            remove(path)?;
        }
        let mut needed = BTreeSet::new();
        for number in &listing.versions {
            needed.extend(self.head(*number)?.packs);
        }
        for number in &listing.journals {
            needed.extend(journal::packs(&self.journal(*number))?);
        }
        for pack in listing.packs.difference(&needed) {
            remove(&self.pack(*pack))?;
        }
        Ok(())
    }
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Makes what was created, renamed or removed in a folder outlive a crash.
pub(super) fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(StoreError::io("sync the folder", path))
}

/// Writes a file that is there either whole or not at all, also after a crash. It stays open.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<File, StoreError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        Ok(file)
    };
    let file = write().map_err(|e| {
        let error = StoreError::io("write", path)(e);
        let _ = fs::remove_file(&new);
        error
    })?;
    sync_folder(path.parent().unwrap_or(path))?;
    Ok(file)
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}
