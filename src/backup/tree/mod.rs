//! Trees of files, as they are read and as they are put back: names, attributes, bytes and holes.
//!
//! ```text
//!   sources ── Walk ──> Seen ── FileReader ──> runs of bytes        Entry, bytes ──> Place ──> DEST
//! ```

mod attributes;
mod exclude;
mod file;
mod mark;
mod place;
mod read;
mod walk;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub(crate) use exclude::Exclude;
pub(crate) use place::{Existing, Place};
pub(crate) use read::FileReader;
pub(crate) use walk::{Found, Problem, Seen, Walk, WalkOptions, count};

use super::entry::{BadName, Name};

/// What cannot be read, or put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("cannot read {}: {source}", .path.display())]
    Source { path: PathBuf, source: std::io::Error },
    #[error("two sources are called {0}: each would be stored under that name")]
    SameName(Name),
    #[error("{} has no name to be stored under", .0.display())]
    NoName(PathBuf),
    #[error("`{pattern}` is no pattern: {reason}")]
    Pattern { pattern: String, reason: String },
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} is no folder", .0.display())]
    NotAFolder(PathBuf),
    #[error("cannot {what} {}: {source}", .path.display())]
    Dest { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot {what} {name}: {source}")]
    Put { what: &'static str, name: Name, source: std::io::Error },
    #[error("{0} is not restored: a folder is in its way")]
    InTheWay(Name),
    #[error("{0} is not restored: a restore keeps that name for itself")]
    Reserved(Name),
    #[error("another restore is putting things into {}", .0.display())]
    Busy(PathBuf),
    #[error("{0} is not restored: its bytes are not those that were stored (digest)")]
    Digest(Name),
    #[error(transparent)]
    BadName(#[from] BadName),
}

impl TreeError {
    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::SameName(_) => "store them in two backups, or name the folder they are in".into(),
            Self::NotEmpty(_) => {
                "name an empty place, or say --overwrite: files of the same names are replaced, \
                 others stay"
                    .into()
            }
            Self::Busy(_) => "wait for its end, or name another place".into(),
            Self::NotAFolder(_) => "name a folder, or a place where none is yet".into(),
            Self::Pattern { .. } => "patterns are written as in .gitignore".into(),
            _ => return None,
        })
    }

    /// What was asked is wrong.
    pub(crate) fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Source { .. }
                | Self::SameName(_)
                | Self::NoName(_)
                | Self::Pattern { .. }
                | Self::NotEmpty(_)
                | Self::NotAFolder(_)
        )
    }

    /// There is no room for it: the same will be true of what follows.
    pub(crate) fn is_full(&self) -> bool {
        let (Self::Put { source, .. } | Self::Dest { source, .. }) = self else { return false };
        matches!(
            source.kind(),
            std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::QuotaExceeded
                | std::io::ErrorKind::ReadOnlyFilesystem
        )
    }
}
