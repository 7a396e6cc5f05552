//! A file that is being put in its place: written in order, compared, and only then given its name
//! (when it had none) and its attributes.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, ftruncate, openat, renameat, unlinkat},
    io::{Errno, pwrite},
};

use super::{TreeError, mark::partial_of, place::Place};
use crate::backup::{
    digest::Digest,
    entry::{Entry, Kind, Piece},
};

/// A file that is being put there.
#[derive(Debug)]
pub(crate) struct FilePlace {
    entry: Entry,
    fd: OwnedFd,
    /// What it is called until it is whole; none when it has its name already.
    meanwhile: Option<CString>,
    came: Digest,
    until: u64,
}

const NEW: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Nobody else's, and no other name of something elsewhere: it may be written to.
fn is_ours(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_nlink == 1
        && stat.st_uid == rustix::process::geteuid().as_raw()
}

impl Place {
    /// Begins a file. One that is written at once, where nothing is yet, has its name from the
    /// beginning: its time, which comes last, says that it is whole. Others get theirs at the end.
    pub(crate) fn begin(&mut self, entry: &Entry, at_once: bool) -> Result<FilePlace, TreeError> {
        let (folder, called) = self.parent(&entry.name)?;
        if at_once && let Ok(fd) = openat(folder, &called, NEW, MODE) {
            return Ok(FilePlace::new(entry, fd, None));
        }
        if Self::is_folder(folder, &called) {
            return Err(TreeError::InTheWay(entry.name.clone()));
        }
        let meanwhile = partial_of(&called);
        Self::clear(folder, &meanwhile, &entry.name)?;
        let fd = openat(folder, &meanwhile, NEW, MODE);
        let fd = fd.map_err(Self::fault("write", &entry.name))?;
        Ok(FilePlace::new(entry, fd, Some(meanwhile)))
    }

    /// How many of a large file's pieces are there: an interrupted try of the same restore had begun
    /// it, on this machine as it runs now.
    pub(crate) fn begun(&mut self, entry: &Entry, pieces: &[Piece]) -> usize {
        if !self.trusted || pieces.len() <= 1 {
            return 0;
        }
        let Ok((folder, called)) = self.parent(&entry.name) else { return 0 };
        let is = Self::stat(folder, &partial_of(&called)).filter(is_ours);
        let size = is.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or_default());
        pieces.iter().take_while(|piece| piece.end() <= size).count()
    }

    /// Goes on with a file of which these pieces are there, by [`Self::begun`].
    pub(crate) fn begin_again(
        &mut self,
        entry: &Entry,
        there: &[Piece],
    ) -> Result<FilePlace, TreeError> {
        let (folder, called) = self.parent(&entry.name)?;
        let meanwhile = partial_of(&called);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let what = "go on with what is there of";
        let fd = openat(folder, &meanwhile, flags, Mode::empty());
        let fd = fd.map_err(Self::fault(what, &entry.name))?;
        if !fstat(&fd).is_ok_and(|stat| is_ours(&stat)) {
            let other = io::Error::other("it is another file now; restore it again");
            return Err(Self::fault(what, &entry.name)(other));
        }
        let (file, mut came, mut bytes) = (File::from(fd), Digest::default(), Vec::new());
        for piece in there {
            bytes.resize(piece.length as usize, 0);
            file.read_exact_at(&mut bytes, piece.offset).map_err(Self::fault(what, &entry.name))?;
            came.update(piece.offset, &bytes);
        }
        let until = came.end();
        Ok(FilePlace { came, until, ..FilePlace::new(entry, file.into(), Some(meanwhile)) })
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
        let FilePlace { entry, fd, meanwhile, came, until } = file;
        let Kind::File { size, digest, .. } = entry.kind else { return Ok(()) };
        if came.finish() != digest {
            return Err(TreeError::Digest(entry.name.clone()));
        }
        if *until < size {
            // It ends with a hole.
            ftruncate(fd, size).map_err(Self::fault("write", &entry.name))?;
        }
        self.attributes(entry, Some(fd))?;
        if let Some(meanwhile) = meanwhile {
            let (folder, called) = self.parent(&entry.name)?;
            renameat(folder, meanwhile, folder, &called)
                .map_err(Self::fault("put in place", &entry.name))?;
        }
        Ok(())
    }

    /// The file will not be whole.
    pub(crate) fn give_up(&mut self, file: FilePlace) {
        if let Ok((folder, called)) = self.parent(&file.entry.name) {
            let called = file.meanwhile.unwrap_or(called);
            let _ = unlinkat(folder, &called, AtFlags::empty());
        }
    }
}

impl FilePlace {
    fn new(entry: &Entry, fd: OwnedFd, meanwhile: Option<CString>) -> Self {
        Self { entry: entry.clone(), fd, meanwhile, came: Digest::default(), until: 0 }
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
