//! The names a restore keeps for itself in DEST, and the mark: which version is being restored
//! there, and whether what is found there can only have come from that.
//!
//! ```text
//!   DEST/.sidepath-restore           NAME@VERSION DIGEST \n BOOT empty|full \n
//!   DEST/…/.sidepath-restore.partial.HASH   a file that is not whole yet, by its own name
//! ```
//!
//! Awkward cases:
//! * What was in DEST before, or was written before the machine last started (and may not have
//!   reached the disk), may look like what was restored: it is compared with its digest.
//! * An earlier try of the same process may still be putting its last blocks in place: DEST is
//!   locked, and waited for.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, flock, fstat, openat, unlinkat},
    io::Errno,
};

use super::place::Existing;
use crate::backup::entry::Name;

const MARK: &CStr = c".sidepath-restore";
/// What the names of files begin with that are not whole yet, in their folders.
const PARTIAL: &CStr = c".sidepath-restore.partial";
/// Bytes behind the version, at most.
const REST_MAX: usize = 256;
/// How long another restore's end is waited for.
const LOCK_WITHIN: Duration = Duration::from_secs(10);

/// Whether something of that name would be taken for a restore's own.
pub(super) fn is_reserved(name: &Name) -> bool {
    name.bytes() == MARK.to_bytes() || name.bytes().split(|b| *b == b'/').any(is_partial)
}

fn is_partial(component: &[u8]) -> bool {
    component.starts_with(PARTIAL.to_bytes())
}

/// What a file is called, in its folder, until it is whole: threads that put several there do not
/// meet, and a later try knows it by that.
pub(super) fn partial_of(called: &CStr) -> CString {
    let hash = blake3::hash(called.to_bytes()).to_hex();
    let name = [PARTIAL.to_bytes(), b".", &hash.as_bytes()[..16]].concat();
    CString::new(name).unwrap_or_else(|_| PARTIAL.into())
}

/// What the mark in DEST says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// A restore of this version was interrupted there.
    pub(super) ours: bool,
    /// Nothing else was there when it began, and the machine was not started since.
    pub(super) trusted: bool,
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().into()
}

fn text(version: &str, was: &str) -> String {
    format!("{version}\n{} {was}\n", boot())
}

pub(super) fn look(root: &OwnedFd, version: &str) -> Mark {
    let text = text(version, "empty");
    let is = read(root, version.len() + REST_MAX).unwrap_or_default();
    let ours = is.strip_prefix(version.as_bytes()).is_some_and(|rest| rest.starts_with(b"\n"));
    Mark { ours, trusted: is == text.as_bytes() }
}

fn read(root: &OwnedFd, max: usize) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = openat(root, MARK, flags, Mode::empty())?;
    let mut bytes = Vec::new();
    if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::RegularFile {
        File::from(fd).take(max as u64).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Of a restore that begins.
pub(super) fn write(root: &OwnedFd, version: &str, existing: Existing) -> io::Result<()> {
    remove(root)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = openat(root, MARK, flags | OFlags::NOFOLLOW, Mode::RUSR | Mode::WUSR)?;
    let was = if existing == Existing::Refuse { "empty" } else { "full" };
    File::from(fd).write_all(text(version, was).as_bytes())
}

pub(super) fn remove(root: &OwnedFd) -> io::Result<()> {
    match unlinkat(root, MARK, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Keeps other restores out as long as `root` is open; false if one goes on and on. File systems
/// that know of no such locks do not.
pub(super) fn lock(root: &OwnedFd) -> bool {
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        match flock(root, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => return false,
            _ => return true,
        }
    }
}
