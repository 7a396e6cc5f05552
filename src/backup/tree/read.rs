//! Reading a file: its bytes in runs, without its holes, and what it is by BLAKE3.
//!
//! Awkward cases: a file may change, grow or shrink meanwhile. No more is read than its size when it
//! was opened; what was read is its size; whether it changed is told at the end.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat, seek},
    io::{Errno, pread},
};

use super::attributes::entry_of;
use crate::backup::digest::Digest;
use crate::backup::entry::{Entry, Kind, Name, Stamp};

#[derive(Debug)]
pub(crate) struct FileReader {
    fd: OwnedFd,
    entry: Entry,
    /// Where the next read begins.
    at: u64,
    /// Where reading ends.
    end: u64,
    /// Up to here there is no hole, as far as is known.
    data_until: u64,
    digest: Digest,
    shrank: bool,
}

impl FileReader {
    /// Opens it; its attributes are those of the open file, extended ones are not in it.
    pub(super) fn open(folder: impl AsFd, component: &CStr, name: Name) -> io::Result<Self> {
        // Nobody waits for a FIFO that took its place.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let folder = folder.as_fd();
        let fd = match openat(folder, component, flags | OFlags::NOATIME, Mode::empty()) {
            // Only its owner may leave the access time alone.
            Err(Errno::PERM) => openat(folder, component, flags, Mode::empty())?,
            fd => fd?,
        };
        let stat = fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no file any more"));
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let sparse = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512) < size;
        let kind = Kind::File { size, digest: [0; 32], changed: false };
        Ok(Self {
            entry: entry_of(name, kind, &stat),
            fd,
            at: 0,
            end: size,
            data_until: if sparse { 0 } else { u64::MAX },
            digest: Digest::default(),
            shrank: false,
        })
    }

    /// As it was opened.
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(crate) fn size(&self) -> u64 {
        self.end
    }

    /// The next run of bytes into `buffer`: where in the file, and how many; nothing at the end.
    pub(crate) fn next(&mut self, buffer: &mut [u8]) -> io::Result<Option<(u64, usize)>> {
        if self.at >= self.end {
            return Ok(None);
        }
        if self.at >= self.data_until && !self.find_data()? {
            return Ok(None);
        }
        let most = (self.data_until.min(self.end) - self.at).min(buffer.len() as u64);
        let most = usize::try_from(most).unwrap_or(buffer.len());
        let n = loop {
            match pread(&self.fd, &mut buffer[..most], self.at) {
                Err(Errno::INTR) => {}
                n => break n?,
            }
        };
        if n == 0 {
            (self.end, self.shrank) = (self.at, true);
            return Ok(None);
        }
        let offset = self.at;
        self.digest.update(offset, &buffer[..n]);
        self.at += n as u64;
        Ok(Some((offset, n)))
    }

    /// Goes on at a hole's end; false when nothing but a hole is left.
    fn find_data(&mut self) -> io::Result<bool> {
        let data = match seek(&self.fd, SeekFrom::Data(self.at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => {
                self.at = self.end;
                return Ok(false);
            }
            // The file system knows of no holes.
            Err(Errno::INVAL | Errno::NOTSUP) => {
                self.data_until = u64::MAX;
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        self.at = data;
        self.data_until = match seek(&self.fd, SeekFrom::Hole(data)) {
            Ok(hole) => hole,
            Err(Errno::NXIO) => self.end,
            Err(error) => return Err(error.into()),
        };
        Ok(self.at < self.end && self.at < self.data_until)
    }

    /// Reads what is known already, up to that offset, for the digest alone. False when no run of
    /// bytes ends there any more: the file is to be read from its beginning.
    pub(crate) fn skip_to(&mut self, until: u64, scratch: &mut [u8]) -> io::Result<bool> {
        while self.at < until {
            let most = usize::try_from(until - self.at).unwrap_or(usize::MAX).min(scratch.len());
            if self.next(&mut scratch[..most])?.is_none() {
                break;
            }
        }
        Ok(self.at == until && self.digest.end() == until)
    }

    /// The entry of what was read.
    pub(crate) fn finish(self) -> io::Result<Entry> {
        let now = fstat(&self.fd)?;
        let times = |stat: &Stat| {
            let entry = entry_of(Name::default(), Kind::Fifo, stat);
            (entry.mtime, entry.ctime)
        };
        let before: (Stamp, Stamp) = (self.entry.mtime, self.entry.ctime);
        let now_size = u64::try_from(now.st_size).unwrap_or_default();
        let changed = self.shrank || now_size != self.end || times(&now) != before;
        // It may have lost some of the hole it ended with.
        let size = self.end.min(now_size.max(self.digest.end()));
        let digest = self.digest.finish();
        Ok(Entry { kind: Kind::File { size, digest, changed }, ..self.entry })
    }

    /// It could not be read to its end: what was read is what there is.
    pub(crate) fn give_up(self) -> Entry {
        let size = self.at.min(self.end);
        let kind = Kind::File { size, digest: self.digest.finish(), changed: true };
        Entry { kind, ..self.entry }
    }
}
