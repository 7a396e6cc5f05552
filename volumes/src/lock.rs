//! The host-local lock: one daemon per node and volume on this machine.
//!
//! An open-file-description lock on the byte range of the node's own table entry, on the volume
//! itself: nothing is littered, many nodes can share one volume on one host, and the kernel
//! releases it when the process dies. Awkward case: it does not reach other hosts; there the
//! claim (watching the entry's beats) decides.

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[derive(Debug)]
pub struct HostLock {
    file: File,
}

impl HostLock {
    /// Whether `path` still leads to what is locked. A file that was replaced is another one: our
    /// lock on the old one keeps nobody out of the new one.
    #[must_use]
    pub fn is_on(&self, path: &Path) -> bool {
        let id = |m: std::fs::Metadata| (m.dev(), m.ino());
        let held = self.file.metadata().map(id);
        held.is_ok_and(|held| std::fs::metadata(path).map(id).is_ok_and(|now| now == held))
    }
}

/// `Ok(None)`: another daemon on this host holds it.
pub fn take(path: &Path, start: u64, len: u64) -> io::Result<Option<HostLock>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let range = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or(1),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: i64::try_from(start).unwrap_or(i64::MAX),
        l_len: i64::try_from(len).unwrap_or(0),
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(Some(HostLock { file })),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_per_range() {
        let dir = crate::media::file::tests::scratch("lock");
        let path = dir.join("v");
        std::fs::write(&path, [0; 100]).unwrap();
        let first = take(&path, 0, 10).unwrap();
        assert!(first.is_some());
        assert!(take(&path, 5, 10).unwrap().is_none(), "overlaps");
        assert!(take(&path, 10, 10).unwrap().is_some(), "another node's");
        drop(first);
        let held = take(&path, 0, 10).unwrap().unwrap();
        assert!(held.is_on(&path));
        std::fs::rename(&path, dir.join("w")).unwrap();
        assert!(!held.is_on(&path), "gone");
        std::fs::write(&path, [0; 100]).unwrap();
        assert!(!held.is_on(&path), "another one");
        assert!(take(&path, 0, 10).unwrap().is_some());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
