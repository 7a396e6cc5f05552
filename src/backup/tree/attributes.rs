//! Attributes: read into an [`Entry`], and put back.
//!
//! Extended attributes are read and written by way of `/proc/self/fd`, because that reaches symbolic
//! links and what may not be opened, too, and needs one call where there are none.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fd::{AsRawFd, BorrowedFd},
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
        chmodat, chownat, fchmod, fchown, fsetxattr, fstat, futimens, lgetxattr, llistxattr,
        lsetxattr, openat, utimensat,
    },
    io::Errno,
};

use crate::backup::entry::{Entry, Kind, Name, Stamp};

/// Bytes of names, and of one value, as Linux allows.
const XATTR_MAX: usize = 64 << 10;
/// Bytes of all of one thing's, as a version takes.
const XATTRS_MAX: usize = 4 << 20;
/// They depend on the mode.
const ACL: &[u8] = b"system.posix_acl_";

/// An entry by its stat; extended attributes are not in it, files have no digest yet.
pub(super) fn entry_of(name: Name, kind: Kind, stat: &Stat) -> Entry {
    Entry {
        name,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime(stat),
        ctime: Stamp { s: stat.st_ctime, ns: nanoseconds(stat.st_ctime_nsec) },
        inode: stat.st_ino,
        xattrs: Vec::new(),
    }
}

pub(super) fn mtime(stat: &Stat) -> Stamp {
    Stamp { s: stat.st_mtime, ns: nanoseconds(stat.st_mtime_nsec) }
}

fn nanoseconds(ns: u64) -> u32 {
    u32::try_from(ns).unwrap_or_default()
}

/// By way of its folder; the folder itself is `.`.
fn by_proc(folder: BorrowedFd<'_>, component: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
    path.extend_from_slice(component.to_bytes());
    path
}

/// Extended attributes by name.
pub(super) fn xattrs(folder: impl AsFd, component: &CStr) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = by_proc(folder.as_fd(), component);
    let mut few = [0; 1024];
    let names = match llistxattr(&path[..], &mut few[..]) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(n) => few[..n].to_vec(),
        Err(Errno::RANGE) => {
            let mut many = vec![0; XATTR_MAX];
            let n = llistxattr(&path[..], &mut many[..])?;
            many.truncate(n);
            many
        }
        Err(error) => return Err(error.into()),
    };
    let (mut all, mut length) = (Vec::new(), 0);
    let mut value = vec![0; XATTR_MAX];
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        match lgetxattr(&path[..], name, &mut value[..]) {
            Ok(n) => {
                length += name.len() + n;
                all.push((name.to_vec(), value[..n].to_vec()));
            }
            // Gone since, or nobody may read it (of `trusted.`).
            Err(Errno::NODATA | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if length > XATTRS_MAX {
        return Err(io::Error::other("they are more than a version takes"));
    }
    all.sort_unstable();
    Ok(all)
}

/// Puts attributes on `component` of an open folder, or on `open` if it is a file; a link that
/// somebody puts there meanwhile is not followed. Owner before mode (changing it clears set-id
/// bits), extended attributes before a mode that may forbid them, ACLs behind it, times last. What
/// is not permitted or not possible there is named to `trouble`, and left.
pub(super) fn put(
    folder: impl AsFd,
    component: &CStr,
    open: Option<&OwnedFd>,
    entry: &Entry,
    owners: bool,
    trouble: &mut dyn FnMut(&str, Errno),
) -> rustix::io::Result<()> {
    let folder = folder.as_fd();
    let link = AtFlags::SYMLINK_NOFOLLOW;
    if owners {
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        let done = match open {
            Some(open) => fchown(open, uid, gid),
            None => chownat(folder, component, uid, gid, link),
        };
        soft("owner", done, trouble)?;
    }
    let (acls, plain): (Vec<_>, Vec<_>) =
        entry.xattrs.iter().partition(|(name, _)| name.starts_with(ACL));
    let xattr = |(name, value): &(Vec<u8>, Vec<u8>), trouble: &mut dyn FnMut(&str, Errno)| {
        let done = match open {
            Some(open) => fsetxattr(open, &name[..], value, XattrFlags::empty()),
            None => {
                let path = by_proc(folder, component);
                lsetxattr(&path[..], &name[..], value, XattrFlags::empty())
            }
        };
        // Too long for this file system is no full disk, though some say so.
        let done = match done {
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::NAMETOOLONG) => {
                Err(Errno::NOTSUP)
            }
            done => done,
        };
        let what = String::from_utf8_lossy(name);
        soft(&format!("attribute {}", what.escape_debug()), done, trouble)
    };
    plain.into_iter().try_for_each(|it| xattr(it, trouble))?;
    if !matches!(entry.kind, Kind::Symlink(_)) {
        let mode = permitted(entry, open)?;
        if mode != entry.mode {
            trouble("set-id bits of another owner", Errno::PERM);
        }
        let done = chmod(folder, component, open, Mode::from_raw_mode(mode));
        soft("mode", done, trouble)?;
    }
    acls.into_iter().try_for_each(|it| xattr(it, trouble))?;
    let stamp = Timespec { tv_sec: entry.mtime.s, tv_nsec: entry.mtime.ns.into() };
    let times = Timestamps { last_access: stamp, last_modification: stamp };
    let done = match open {
        Some(open) => futimens(open, &times),
        None => utimensat(folder, component, &times, link),
    };
    soft("times", done, trouble)
}

/// What is not permitted or not possible is told.
fn soft(
    what: &str,
    done: rustix::io::Result<()>,
    trouble: &mut dyn FnMut(&str, Errno),
) -> rustix::io::Result<()> {
    match done {
        Err(errno @ (Errno::PERM | Errno::NOTSUP | Errno::ACCESS | Errno::INVAL)) => {
            trouble(what, errno);
            Ok(())
        }
        done => done,
    }
}

/// The mode of an entry without set-id bits that would lend the rights of whoever owns it here, if
/// that is somebody else than there.
fn permitted(entry: &Entry, open: Option<&OwnedFd>) -> rustix::io::Result<u32> {
    let mut mode = entry.mode;
    if mode & 0o6000 != 0
        && let Some(open) = open
    {
        let is = fstat(open)?;
        if is.st_uid != entry.uid {
            mode &= !0o4000;
        }
        if is.st_gid != entry.gid {
            mode &= !0o2000;
        }
    }
    Ok(mode)
}

/// `chmodat` that follows no link: Linux has had one since 6.6 only.
pub(super) fn chmod(
    folder: BorrowedFd<'_>,
    component: &CStr,
    open: Option<&OwnedFd>,
    mode: Mode,
) -> rustix::io::Result<()> {
    if let Some(open) = open {
        return fchmod(open, mode);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(folder, component, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    chmodat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), mode, AtFlags::empty())
}
