//! The host-local lock: one daemon per node and volume on this machine.
//!
//! An open-file-description lock on the byte range of the node's own table entry, on the volume
//! itself: nothing is littered, many nodes can share one volume on one host, and the kernel
//! releases it when the process dies. Awkward case: it does not reach other hosts; there the
//! claim (watching the entry's beats) decides.
//!
//! A medium without a file here (NBD) has nothing to lock: an abstract socket's name, made of the
//! volume's UUID and the node, does the same, and the kernel lets go of it in the same way. Awkward
//! case: it reaches the processes of one network namespace, and any of them may take it; that can
//! keep a daemon out, never let two in.

use crate::format::superblock::{Superblock, Uuid};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

#[derive(Debug)]
pub struct HostLock {
    held: Held,
}

#[derive(Debug)]
enum Held {
    File(File),
    /// The name is taken as long as this lives.
    Name(#[allow(dead_code, reason = "held, not used")] UnixListener),
}

impl HostLock {
    /// Whether `path` still leads to what is locked. A file that was replaced is another one: our
    /// lock on the old one keeps nobody out of the new one.
    #[must_use]
    pub fn is_on(&self, path: &Path) -> bool {
        let id = |m: std::fs::Metadata| (m.dev(), m.ino());
        let Held::File(file) = &self.held else { return true };
        let held = file.metadata().map(id);
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
        Ok(_) => Ok(Some(HostLock { held: Held::File(file) })),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The same for a volume that is no file of this host.
pub fn take_name(volume: Uuid, node: u8) -> io::Result<Option<HostLock>> {
    take_abstract(format!("sidepath-volume-{volume}-{node}"))
}

fn take_abstract(name: String) -> io::Result<Option<HostLock>> {
    match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(listener) => Ok(Some(HostLock { held: Held::Name(listener) })),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(e) => Err(e),
    }
}

/// For a replica that is no file of this host: keeps a second replicator out. Replicas of one
/// volume have its UUID, so their place is a part of the name.
pub fn take_replica(volume: Uuid, place: &str) -> io::Result<Option<HostLock>> {
    take_abstract(format!("sidepath-replica-{volume}-{:08x}", crc32fast::hash(place.as_bytes())))
}

/// Whether a daemon on this host holds a node of that volume by name.
#[must_use]
pub fn is_named(volume: &Superblock) -> bool {
    let nodes = &volume.geometry.nodes;
    nodes.iter().any(|&node| matches!(take_name(volume.uuid, node), Ok(None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_per_name() {
        let volume = crate::format::superblock::tests::sample(&[1, 2]);
        assert!(!is_named(&volume));
        let first = take_name(volume.uuid, 1).unwrap();
        assert!(first.as_ref().is_some_and(|l| l.is_on(Path::new("nbd://h/"))));
        assert!(take_name(volume.uuid, 1).unwrap().is_none());
        assert!(take_name(volume.uuid, 2).unwrap().is_some(), "another node's");
        assert!(is_named(&volume));
        drop(first);
        assert!(take_name(volume.uuid, 1).unwrap().is_some());
    }

    #[test]
    fn one_replicator_per_place() {
        let uuid = crate::format::superblock::tests::sample(&[1, 9]).uuid;
        let first = take_replica(uuid, "nbd://h/a").unwrap();
        assert!(first.is_some() && take_replica(uuid, "nbd://h/a").unwrap().is_none());
        assert!(take_replica(uuid, "nbd://h/b").unwrap().is_some(), "another replica of it");
        assert!(take_name(uuid, 9).unwrap().is_some(), "its reader");
    }

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
