//! Files and block devices through pread and pwrite, with O_DIRECT.
//!
//! Awkward cases: a file system without direct I/O says EINVAL at open, which is accepted only
//! where one host alone uses the medium; a file that was renamed or replaced is noticed by
//! [`BlockDevice::still_there`]; a read at the end of a truncated file is short, which is a fault.

use super::BlockDevice;
use crate::event::{IoFault, IoFaultKind};
use crate::log::receive::short_read;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// What a path turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Block,
}

/// Whether the page cache may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    Required,
    /// One host alone uses the medium.
    Preferred,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: no such file or device; create it with `sidepath volume init`")]
    Missing { path: PathBuf },
    #[error("{path}: permission denied; run as a user that may read and write it")]
    Denied { path: PathBuf },
    #[error("{path}: it is neither a file nor a block device")]
    NotAMedium { path: PathBuf },
    #[error("{path}: it is in use by the kernel (mounted, or part of a RAID or LVM)")]
    InUse { path: PathBuf },
    #[error(
        "{path}: no direct I/O here, so hosts would read each other's stale page cache; \
         use a block device or another file system (or allow the page cache when one host alone uses it)"
    )]
    NoDirectIo { path: PathBuf },
    #[error("{path}: cannot open: {source}")]
    Other { path: PathBuf, source: Errno },
    #[error(transparent)]
    Nbd(super::nbd::NbdError),
    #[error("{place}: {source}")]
    S3 { place: PathBuf, source: super::s3::S3Error },
}

impl OpenError {
    /// Whether the operator's words are at fault rather than the machine.
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Other { .. } => false,
            Self::Nbd(e) => e.is_input_error(),
            Self::S3 { source, .. } => source.is_input_error(),
            _ => true,
        }
    }

    /// Whether the same words may work later without anybody changing them.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::Other { .. } => true,
            Self::Nbd(e) => e.may_pass(),
            Self::S3 { source, .. } => source.may_pass(),
            _ => false,
        }
    }
}

#[derive(Debug)]
pub struct FileDevice {
    fd: OwnedFd,
    path: PathBuf,
    kind: Kind,
    size: u64,
    logical_block: u32,
    direct: bool,
    identity: (u64, u64, u64),
}

/// How to open.
#[derive(Debug, Clone, Copy)]
pub struct How {
    pub write: bool,
    pub direct: Direct,
    /// Refuse a block device that the kernel uses.
    pub exclusive: bool,
}

pub fn open(path: &Path, how: How) -> Result<FileDevice, OpenError> {
    open_as(path, how, true)
}

fn open_as(path: &Path, how: How, try_direct: bool) -> Result<FileDevice, OpenError> {
    let fail = |e: Errno| {
        let path = path.to_owned();
        match e {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => OpenError::Missing { path },
            Errno::ACCESS | Errno::PERM | Errno::ROFS => OpenError::Denied { path },
            Errno::ISDIR => OpenError::NotAMedium { path },
            Errno::BUSY => OpenError::InUse { path },
            source => OpenError::Other { path, source },
        }
    };
    let meta = rustix::fs::stat(path).map_err(fail)?;
    let kind = match FileType::from_raw_mode(meta.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::BlockDevice => Kind::Block,
        _ => return Err(OpenError::NotAMedium { path: path.to_owned() }),
    };
    let mut flags = OFlags::CLOEXEC | if how.write { OFlags::RDWR } else { OFlags::RDONLY };
    if how.exclusive && kind == Kind::Block {
        flags |= OFlags::EXCL;
    }
    let tried = if try_direct {
        rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty())
    } else {
        Err(Errno::INVAL)
    };
    let (fd, direct) = match tried {
        Ok(fd) => (fd, true),
        Err(Errno::INVAL) if how.direct == Direct::Preferred => {
            (rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?, false)
        }
        Err(Errno::INVAL) => return Err(OpenError::NoDirectIo { path: path.to_owned() }),
        Err(e) => return Err(fail(e)),
    };
    let meta = rustix::fs::fstat(&fd).map_err(fail)?;
    let (size, logical_block) = match kind {
        Kind::File => (u64::try_from(meta.st_size).unwrap_or(0), 512),
        Kind::Block => (
            rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0)).map_err(fail)?,
            rustix::fs::ioctl_blksszget(&fd).map_err(fail)?,
        ),
    };
    let identity = identity(&meta);
    Ok(FileDevice { fd, path: path.to_owned(), kind, size, logical_block, direct, identity })
}

/// Through the page cache, whatever the file system can do; for a medium of this host alone.
pub fn open_buffered(path: &Path, write: bool) -> Result<FileDevice, OpenError> {
    open_as(path, How { write, direct: Direct::Preferred, exclusive: false }, false)
}

fn identity(meta: &rustix::fs::Stat) -> (u64, u64, u64) {
    (meta.st_dev, meta.st_ino, meta.st_rdev)
}

fn fault(what: &str, offset: u64, e: Errno) -> IoFault {
    let kind = match e {
        Errno::IO => IoFaultKind::Eio,
        Errno::ROFS | Errno::PERM | Errno::BADF => IoFaultKind::ReadOnly,
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => IoFaultKind::NoSpace,
        Errno::NODEV | Errno::NXIO | Errno::NOENT | Errno::STALE => IoFaultKind::Gone,
        Errno::TIMEDOUT | Errno::TIME => IoFaultKind::TimedOut,
        _ => IoFaultKind::Other,
    };
    IoFault::new(kind, format!("{what} at {offset}: {e}"))
}

impl FileDevice {
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn logical_block(&self) -> u32 {
        self.logical_block
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoFault> {
        let want = buf.len();
        let mut done = 0;
        while done < want {
            match rustix::io::pread(&self.fd, &mut buf[done..], offset + done as u64) {
                Ok(0) => return Err(short_read(offset, want, done)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(fault("read", offset, e)),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), IoFault> {
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&self.fd, &data[done..], offset + done as u64) {
                Ok(0) => return Err(fault("write", offset, Errno::IO)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(fault("write", offset, e)),
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), IoFault> {
        rustix::fs::fdatasync(&self.fd).map_err(|e| fault("flush", 0, e))
    }

    fn still_there(&self) -> bool {
        rustix::fs::stat(&self.path).is_ok_and(|m| identity(&m) == self.identity)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::conformance;
    use super::*;

    /// A fresh folder for one test.
    pub(crate) fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sidepath-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    const HOW: How = How { write: true, direct: Direct::Preferred, exclusive: false };

    #[test]
    fn a_file_conforms_and_a_replaced_one_is_noticed() {
        let dir = scratch("file");
        let path = dir.join("v");
        assert!(matches!(open(&path, HOW), Err(OpenError::Missing { .. })));
        assert!(matches!(open(&dir, HOW), Err(OpenError::NotAMedium { .. })));
        std::fs::write(&path, vec![0; 2 << 20]).unwrap();
        let device = open(&path, HOW).unwrap();
        conformance::run(&device).unwrap();
        assert!(device.still_there());
        std::fs::rename(&path, dir.join("w")).unwrap();
        assert!(!device.still_there());
        std::fs::write(&path, vec![0; 2 << 20]).unwrap();
        assert!(!device.still_there());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
