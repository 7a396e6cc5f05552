//! A file that is being put in its place: written in order, compared, and only then given its name
//! (when it had none) and its attributes.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ftruncate, openat, renameat, unlinkat},
    io::{Errno, pwrite},
};

use super::{TreeError, mark::PARTIAL, place::Place};
use crate::backup::{
    digest::Digest,
    entry::{Entry, Kind},
};

/// A file that is being put there.
#[derive(Debug)]
pub(crate) struct FilePlace {
    entry: Entry,
    fd: OwnedFd,
    /// It has its name already; otherwise it gets it at the end.
    named: bool,
    came: Digest,
    until: u64,
}

const NEW: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

impl Place {
    /// Begins a file. One that is not written at once, or replaces something, gets its name at the
    /// end.
    pub(crate) fn begin(&mut self, entry: &Entry, at_once: bool) -> Result<FilePlace, TreeError> {
        if at_once && let Some(file) = self.begin_new(entry)? {
            return Ok(file);
        }
        let (folder, called) = self.parent(&entry.name)?;
        if Self::is_folder(folder, &called) {
            return Err(TreeError::InTheWay(entry.name.clone()));
        }
        Self::clear(folder, PARTIAL, &entry.name)?;
        let fd = openat(folder, PARTIAL, NEW, MODE);
        let fd = fd.map_err(Self::fault("write", &entry.name))?;
        Ok(FilePlace::new(entry, fd, false))
    }

    /// Begins a file that is written at once, where nothing is yet: it has its name from the
    /// beginning, and its time, which comes last, says that it is whole. None when something is
    /// there, or it cannot be made: [`Self::begin`] says why.
    pub(crate) fn begin_new(&mut self, entry: &Entry) -> Result<Option<FilePlace>, TreeError> {
        let (folder, called) = self.parent(&entry.name)?;
        let fd = openat(folder, &called, NEW, MODE).ok();
        Ok(fd.map(|fd| FilePlace::new(entry, fd, true)))
    }

    /// The file is whole: compared with its digest, then given its attributes and its name.
    pub(crate) fn finish(&mut self, file: FilePlace) -> Result<(), TreeError> {
        let done = self.finish_inner(&file);
        if done.is_err() {
            self.give_up(file);
        }
        done
    }

    fn finish_inner(&mut self, file: &FilePlace) -> Result<(), TreeError> {
        let FilePlace { entry, fd, named, came, until } = file;
        let Kind::File { size, digest, .. } = entry.kind else { return Ok(()) };
        if came.finish() != digest {
            return Err(TreeError::Digest(entry.name.clone()));
        }
        if *until < size {
            // It ends with a hole.
            ftruncate(fd, size).map_err(Self::fault("write", &entry.name))?;
        }
        self.attributes(entry, Some(fd))?;
        if !named {
            let (folder, called) = self.parent(&entry.name)?;
            renameat(folder, PARTIAL, folder, &called)
                .map_err(Self::fault("put in place", &entry.name))?;
        }
        Ok(())
    }

    /// The file will not be whole.
    pub(crate) fn give_up(&mut self, file: FilePlace) {
        if let Ok((folder, called)) = self.parent(&file.entry.name) {
            let called = if file.named { &*called } else { PARTIAL };
            let _ = unlinkat(folder, called, AtFlags::empty());
        }
    }
}

impl FilePlace {
    fn new(entry: &Entry, fd: OwnedFd, named: bool) -> Self {
        Self { entry: entry.clone(), fd, named, came: Digest::default(), until: 0 }
    }

    /// Bytes at an offset, in ascending order; what is left out is a hole.
    pub(crate) fn write(&mut self, offset: u64, mut bytes: &[u8]) -> Result<(), TreeError> {
        let Kind::File { size, .. } = self.entry.kind else { return Ok(()) };
        let end = offset.checked_add(bytes.len() as u64);
        if offset < self.until || end.is_none_or(|end| end > size) {
            let source = io::Error::other("its pieces overlap, or go beyond its end");
            return Err(TreeError::Put { what: "write", name: self.entry.name.clone(), source });
        }
        self.came.update(offset, bytes);
        let mut at = offset;
        while !bytes.is_empty() {
            match pwrite(&self.fd, bytes, at) {
                Ok(0) => return Err(Place::fault("write", &self.entry.name)(Errno::NOSPC)),
                Ok(n) => {
                    bytes = &bytes[n..];
                    at += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Place::fault("write", &self.entry.name)(error)),
            }
        }
        self.until = at;
        Ok(())
    }
}
