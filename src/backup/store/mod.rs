//! A store of backups: a folder with versions of trees, each of which is there whole or not at all.
//!
//! ```text
//!   STORE/sidepath-backups.json        the mark of a store
//!   STORE/NAME/00000007.version        a catalogue: what is in the version, and in which blocks
//!              00000008-0001.pack      blocks one after another
//!              00000008.journal        of the version being made: what would outlive a crash
//!              lock, readers           held by who writes, shared by who reads
//!
//!   begin ──> block, batch ──> packs, journal ──> finish ──> version, and old ones go
//!         <── crash: known ──────────┘
//! ```
//!
//! A version refers to the blocks of earlier ones for what did not change. It is complete by itself
//! all the same: any other may go, and only packs that nothing refers to are removed.
//!
//! All of this blocks; it is called from threads that may.
//!
//! Awkward cases:
//! * Files may be damaged, or made by somebody hostile: everything read is checked where it is read,
//!   see [`Catalogue`]. A last version that cannot be read is not gone on from.
//! * Two may want to write, or one to remove what another reads: see `folder.rs`.
//! * The disk may be full: the journal is good up to there, and the next attempt goes on.

mod blocks;
mod catalogue;
mod check;
mod draft;
mod error;
mod folder;
mod frames;
mod journal;
mod pack;
mod retain;
mod sync;
mod verify;
mod writer;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::talk::{About, Version};
use folder::{Folder, remove, sync_folder, write_whole};
use journal::Interrupted;

pub(crate) use blocks::Blocks;
#[cfg(test)]
pub(crate) use catalogue::BlockAt;
pub(crate) use catalogue::{Catalogue, Stored};
pub(crate) use error::StoreError;
pub(crate) use writer::Writer;

/// Marks a folder as a store.
const MARK: &str = "sidepath-backups.json";
const FORMAT: u32 = 1;

/// How long versions are kept: one goes when it is beyond both that are set. The last never goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Keep {
    pub(crate) count: Option<u32>,
    pub(crate) within: Option<Duration>,
}

#[derive(Debug, Clone)]
pub(crate) struct Store {
    path: PathBuf,
    keep: Keep,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    pack_max: u64,
    /// Stored bytes, or this time, after which what came is made durable.
    cut_bytes: u64,
    /// The same while nothing is on its way to the disk.
    cut_bytes_idle: u64,
    cut_every: Duration,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Mark {
    format: u32,
}

impl Store {
    /// The store in a folder. One that is empty, or not there, becomes a store.
    pub(crate) fn open(path: &Path, keep: Keep) -> Result<Self, StoreError> {
        let not = |reason: &str| StoreError::NotAStore { path: path.into(), reason: reason.into() };
        fs::create_dir_all(path).map_err(|e| match e.kind() {
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => not("it is no folder"),
            _ => StoreError::io("make the folder", path)(e),
        })?;
        let mark = path.join(MARK);
        match fs::read(&mark) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(Mark { format: FORMAT }) => {}
                Ok(Mark { format }) => {
                    return Err(not(&format!("it has format {format}; this is for {FORMAT}")));
                }
                Err(_) => return Err(not(&format!("{MARK} in it is no mark of one"))),
            },
            Err(e) if e.kind() == ErrorKind::NotFound => {
                for entry in fs::read_dir(path).map_err(StoreError::io("list", path))? {
                    let name = entry.map_err(StoreError::io("list", path))?.file_name();
                    // A new file system, or somebody killed while the mark was written.
                    let is_ours = name.to_str().is_some_and(|name| name.starts_with(MARK));
                    if name != "lost+found" && !is_ours {
                        return Err(not("it has other things in it"));
                    }
                }
                let text = serde_json::to_vec(&Mark { format: FORMAT }).unwrap_or_default();
                write_whole(&mark, |file| file.write_all(&text))?;
            }
            Err(e) => return Err(StoreError::io("read", &mark)(e)),
        }
        let limits = Limits {
            pack_max: catalogue::PACK_MAX,
            cut_bytes: 16 << 20,
            cut_bytes_idle: 2 << 20,
            cut_every: Duration::from_secs(5),
        };
        Ok(Self { path: path.into(), keep, limits })
    }

    /// The versions of one name, or of all, by name and number; and what is wrong with those that
    /// cannot be read.
    pub(crate) fn versions(
        &self,
        name: Option<&str>,
    ) -> Result<(Vec<Version>, Vec<String>), StoreError> {
        let (mut versions, mut findings) = (Vec::new(), Vec::new());
        for folder in self.folders(name)? {
            for number in folder.list()?.versions {
                match folder.head(number) {
                    Ok(head) => versions.push(head.version),
                    // Removed a moment ago.
                    Err(StoreError::NoVersion { .. }) => {}
                    Err(e) => findings.push(e.to_string()),
                }
            }
        }
        Ok((versions, findings))
    }

    fn folders(&self, name: Option<&str>) -> Result<Vec<Folder>, StoreError> {
        if let Some(name) = name {
            return Ok(vec![self.folder(name)?]);
        }
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(StoreError::io("list", &self.path))? {
            let entry = entry.map_err(StoreError::io("list", &self.path))?;
            let folder = entry.file_name().to_str().and_then(|name| self.folder(name).ok());
            folders.extend(folder.filter(|folder| folder.path.is_dir()));
        }
        folders.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(folders)
    }

    fn folder(&self, name: &str) -> Result<Folder, StoreError> {
        Folder::new(&self.path, name)
    }

    /// What a version holds; the last one, if none is named. Who wants to read its blocks, too,
    /// calls [`Self::reader`] before: then it cannot go in between.
    pub(crate) fn catalogue(
        &self,
        name: &str,
        version: Option<u32>,
    ) -> Result<Catalogue, StoreError> {
        let folder = self.folder(name)?;
        let last = folder.list()?.versions.last().copied();
        let Some(number) = version.or(last) else {
            return Err(StoreError::NoVersions { name: name.into() });
        };
        folder.catalogue(number)
    }

    /// For reading blocks of any version of a name.
    pub(crate) fn reader(&self, name: &str) -> Result<Blocks, StoreError> {
        Blocks::new(self.folder(name)?)
    }

    /// A new version. It goes on from an interrupted attempt and from the last version; a `fresh`
    /// one forgets the attempt and knows nothing.
    pub(crate) fn begin(
        &self,
        name: &str,
        about: About,
        fresh: bool,
    ) -> Result<Writer, StoreError> {
        let folder = self.folder(name)?;
        let lock = folder.create()?;
        let listing = folder.list()?;
        let last = listing.versions.last().copied();
        let going_on = listing.journals.last().copied().filter(|n| !fresh && Some(*n) > last);
        for number in listing.journals.into_iter().filter(|n| Some(*n) != going_on) {
            remove(&folder.journal(number))?;
        }
        let interrupted = going_on.map(|number| journal::load(&folder, number)).transpose()?;
        if let Some(interrupted) = &interrupted {
            interrupted.trim(&folder)?;
        }
        if let Some(_alone) = folder.without_readers()? {
            warned(&folder, "what was left behind stays", folder.collect());
        }
        let interrupted = match interrupted {
            Some(interrupted) => interrupted,
            None => {
                let number = folder.list()?.next().max(lock.noted().saturating_add(1));
                if number == u32::MAX {
                    let reason = "no number is left for a version".into();
                    return Err(StoreError::Damaged { path: folder.path, reason });
                }
                Interrupted { number, began_s: now_s(), ..Interrupted::default() }
            }
        };
        let versions = folder.list()?.versions.into_iter().rev().filter(|_| !fresh);
        let last = versions
            .filter_map(|n| warned(&folder, "a version is not gone on from", folder.catalogue(n)))
            .next();
        Writer::begin(self, (folder, lock), about, interrupted, last)
    }

    /// Removes a version.
    pub(crate) fn forget(&self, name: &str, version: u32) -> Result<(), StoreError> {
        let folder = self.folder(name)?;
        let _lock = folder.lock()?;
        let Some(_alone) = folder.without_readers()? else {
            let by = "it is being restored or verified, and nothing of it is removed meanwhile";
            return Err(StoreError::Busy { name: name.into(), by });
        };
        let path = folder.version(version);
        fs::remove_file(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => StoreError::NoVersion { name: name.into(), number: version },
            _ => StoreError::io("remove", &path)(e),
        })?;
        sync_folder(&folder.path)?;
        warned(&folder, "packs that nothing needs stay", folder.collect());
        Ok(())
    }
}

/// What came of something that may fail and be left at that.
fn warned<T>(folder: &Folder, what: &str, result: Result<T, StoreError>) -> Option<T> {
    result.inspect_err(|e| tracing::warn!("backup {:?}: {what}: {e}", folder.name)).ok()
}

/// Seconds since 1970.
fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
