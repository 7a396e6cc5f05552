//! What is known of one thing in a tree: its name, what it is, its attributes, where its bytes lie.
//!
//! Awkward cases:
//! * Names are bytes, not text; they come from a catalogue that may be hostile, so only what cannot
//!   leave the place it is restored to can be a [`Name`] at all.
//! * A file of holes has fewer bytes than its size says: pieces name their offset, what no piece
//!   covers reads as zeros.
//! * A file that changed while it was read is stored with the length that was read, and marked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest path, bytes, as in Linux.
pub(crate) const NAME_MAX: usize = 4096;
/// Longest component of a path, bytes.
const COMPONENT_MAX: usize = 255;

/// A path below the root of a version: components by `/`, none of them empty, `.` or `..`, no NUL.
/// The empty one is the root itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub(crate) struct Name(Vec<u8>);

/// Not a name of anything below a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no path below the root of a version")]
pub(crate) struct BadName(String);

impl Name {
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, BadName> {
        let bytes = bytes.into();
        let fine = |c: &[u8]| {
            !c.is_empty() && c != b"." && c != b".." && c.len() <= COMPONENT_MAX && !c.contains(&0)
        };
        if bytes.len() <= NAME_MAX && (bytes.is_empty() || bytes.split(|b| *b == b'/').all(fine)) {
            return Ok(Self(bytes));
        }
        let shown = &bytes[..bytes.len().min(200)];
        Err(BadName(String::from_utf8_lossy(shown).into_owned()))
    }

    /// The thing `component` in this folder.
    pub(crate) fn join(&self, component: &[u8]) -> Result<Self, BadName> {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(component);
        Self::new(bytes)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The folder it is in, and its name there; none for the root.
    pub(crate) fn split(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => (Self(self.0[..at].to_vec()), &self.0[at + 1..]),
            None => (Self::default(), &self.0[..]),
        })
    }

    /// Whether it is `folder` or below it.
    pub(crate) fn is_within(&self, folder: &Self) -> bool {
        folder.is_root()
            || self
                .0
                .strip_prefix(&folder.0[..])
                .is_some_and(|r| r.first().is_none_or(|b| *b == b'/'))
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = BadName;
    fn try_from(bytes: Vec<u8>) -> Result<Self, BadName> {
        Self::new(bytes)
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// For people: control characters and what is not UTF-8 are escaped, so that a name cannot move the
/// cursor of a terminal.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || c == '\\' {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) s: i64,
    pub(crate) ns: u32,
}

/// One thing in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    /// Permission bits, set-id and sticky bits: the low twelve of `st_mode`.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Stamp,
    /// With the inode: tells a file that is as it was last time.
    pub(crate) ctime: Stamp,
    pub(crate) inode: u64,
    /// Extended attributes by name, POSIX ACLs (`system.posix_acl_*`) among them.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Folder,
    File {
        /// Bytes, holes included.
        size: u64,
        /// BLAKE3 of its bytes in order; holes are not hashed, but each run of bytes behind one
        /// is preceded by its offset (u64, little-endian).
        digest: [u8; 32],
        /// It changed while it was read: this is what was read.
        changed: bool,
    },
    Symlink(Vec<u8>),
    /// Another name of what has that name and came before: anything but a folder.
    HardLink(Name),
    CharDevice(u64),
    BlockDevice(u64),
    Fifo,
}

impl Entry {
    /// Whether a file can be taken for the one that was stored as `self`, without reading it.
    pub(crate) fn is_unchanged(&self, now: &Self) -> bool {
        let size = |entry: &Self| match entry.kind {
            Kind::File { size, changed: false, .. } => Some(size),
            _ => None,
        };
        size(self).is_some()
            && size(self) == size(now)
            && (self.mtime, self.ctime, self.inode) == (now.mtime, now.ctime, now.inode)
    }
}

/// A run of a file's bytes, and where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// In the file.
    pub(crate) offset: u64,
    pub(crate) length: u32,
    /// Which block: in a catalogue, its place in the table of blocks; on the wire, its number
    /// since the session began.
    pub(crate) block: u32,
    /// Where in the block, uncompressed.
    pub(crate) within: u32,
}

impl Piece {
    /// Where in the file it ends.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_below_its_root_is_a_name() {
        for good in ["", "a", "a/b", "...", "a..", "\u{7f}x", "-", " "] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
        let long = "x".repeat(256);
        for bad in ["/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b", &long] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        assert!(Name::new(vec![b'a'; NAME_MAX + 1]).is_err());
    }

    #[test]
    fn folders_and_what_is_in_them() {
        let name = |s: &str| Name::new(s).unwrap();
        assert_eq!(name("a/b").split(), Some((name("a"), &b"b"[..])));
        assert_eq!(name("a").split(), Some((name(""), &b"a"[..])));
        assert_eq!(name("").split(), None);
        assert!(name("a/b").is_within(&name("a")) && name("a").is_within(&name("a")));
        assert!(!name("ab").is_within(&name("a")) && name("ab").is_within(&name("")));
        assert_eq!(name("").join(b"x").unwrap(), name("x"));
        assert!(name("a").join(b"..").is_err());
    }

    #[test]
    fn a_name_cannot_paint_a_terminal() {
        let name = Name::new(b"a\x1b[2J\xff\\\n".to_vec()).unwrap();
        assert_eq!(name.to_string(), "a\\u{1b}[2J\\xff\\\\\\n");
    }
}
