//! What can go wrong with a store, by who must act.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// Who asks named what cannot be named so.
    #[error(
        "{name:?} cannot be the name of a backup: 1 to 64 letters, digits, dots, hyphens and \
         underscores are, with no dot or hyphen at the beginning"
    )]
    BadName { name: String },
    #[error("there is no backup {name:?} in the store {}", .store.display())]
    NoName { name: String, store: PathBuf },
    #[error("backup {name:?} has no version {number}")]
    NoVersion { name: String, number: u32 },
    #[error("backup {name:?} has no version yet")]
    NoVersions { name: String },
    #[error("{} is no store of backups: {reason}", .path.display())]
    NotAStore { path: PathBuf, reason: String },
    /// Somebody else is at it; later it may do.
    #[error("backup {name:?} is busy: {by}")]
    Busy { name: String, by: &'static str },
    /// The store's file system does not do what it is asked to.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("no space is left for {}: {free} bytes are free there", .path.display())]
    Full { path: PathBuf, free: u64 },
    /// What was stored is not there any more as it was.
    #[error("{} is damaged: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: String },
    /// Who sends a backup does not keep to what was agreed.
    #[error("what was sent is no backup: {what}")]
    Nonsense { what: String },
    /// The caller wanted no more of it.
    #[error("stopped before the end")]
    Stopped,
}

impl StoreError {
    /// For `map_err`: cannot do `what` with `path`. A full file system is told from other troubles,
    /// and so is a file that ends early or is not what it should be.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    let folder = path.parent().unwrap_or(&path);
                    let free = rustix::fs::statvfs(folder)
                        .map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
                    Self::Full { path, free }
                }
                ErrorKind::UnexpectedEof => {
                    Self::Damaged { path, reason: "it ends too early".into() }
                }
                ErrorKind::InvalidData => Self::Damaged { path, reason: source.to_string() },
                _ => Self::Io { what, path, source },
            }
        }
    }

    pub(crate) fn nonsense(what: impl Into<String>) -> Self {
        Self::Nonsense { what: what.into() }
    }

    /// What was asked is wrong, not what was done.
    pub(crate) fn is_input(&self) -> bool {
        matches!(
            self,
            Self::BadName { .. }
                | Self::NoName { .. }
                | Self::NoVersion { .. }
                | Self::NoVersions { .. }
                | Self::NotAStore { .. }
        )
    }

    /// Trying again later may do.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }

    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoName { .. } | Self::NoVersion { .. } => {
                "`sidepath backup list` shows what there is".into()
            }
            Self::NoVersions { .. } => {
                "a version appears when its backup has ended; an interrupted one goes on when it \
                 is started again"
                    .into()
            }
            Self::NotAStore { .. } => "name an empty folder, or one that is not there yet".into(),
            Self::Busy { .. } => "try again when that has ended".into(),
            Self::Full { .. } => {
                "free some space, let old versions go (`keep`, or `sidepath backup \
                 forget`), then start the backup again: it goes on where it was"
                    .into()
            }
            Self::Damaged { .. } => {
                "restore another version; `sidepath backup --no-resume` stores everything anew"
                    .into()
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_troubles() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pack");
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            let full = StoreError::io("write", &path)(errno.into());
            assert!(matches!(full, StoreError::Full { free, .. } if free > 0), "{full:?}");
            assert!(!full.passes() && full.to_string().contains("x.pack"));
            assert!(full.hint().is_some());
        }
        let other = StoreError::io("write", &path)(rustix::io::Errno::IO.into());
        assert!(other.to_string().starts_with("cannot write /"), "{other}");
        assert!(!other.passes() && !other.is_input() && other.hint().is_none());
        let early = StoreError::io("read", &path)(ErrorKind::UnexpectedEof.into());
        assert!(early.to_string().ends_with("x.pack is damaged: it ends too early"), "{early}");
    }
}
