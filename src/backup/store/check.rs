//! What must hold of a version's entries, whoever says them: a client that sends them, or a
//! catalogue that is read.
//!
//! Awkward cases:
//! * A million names need not be kept to know that none comes twice: sixteen bytes of their BLAKE3
//!   stand for each.
//! * Whatever is counted or kept has a bound, so that a catalogue cannot ask for all memory.

use std::collections::HashMap;

use super::super::entry::{Entry, Kind, NAME_MAX, Name, Piece};

/// Bytes of an entry's extended attributes with their names, at most.
pub(crate) const XATTRS_MAX: usize = 4 << 20;
/// Bytes of memory that the entries of one version take, about and at most: some ten million.
pub(crate) const VERSION_COST_MAX: u64 = 4 << 30;
/// Of an attribute's name, as in Linux.
const XATTR_NAME_MAX: usize = 255;

/// The names that came so far, and what they are.
#[derive(Debug, Default)]
pub(super) struct Names {
    seen: HashMap<[u8; 16], Sort>,
    cost: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Folder,
    /// May have further names.
    File,
    Link,
}

impl Names {
    /// Takes note of an entry; says what is wrong with it here.
    pub(super) fn admit(&mut self, entry: &Entry) -> Result<(), String> {
        is_well_formed(entry)?;
        let name = &entry.name;
        let sort = match &entry.kind {
            Kind::Folder => Sort::Folder,
            Kind::HardLink(target) => {
                if self.sort(target) != Some(Sort::File) {
                    return Err(format!("{name}: a hard link to {target}, no file before it"));
                }
                Sort::Link
            }
            _ => Sort::File,
        };
        match name.split() {
            None if sort != Sort::Folder || !self.seen.is_empty() => {
                return Err("the root is a folder and comes first".into());
            }
            Some((folder, _)) if !folder.is_root() && self.sort(&folder) != Some(Sort::Folder) => {
                return Err(format!("{name}: {folder} is no folder before it"));
            }
            _ => {}
        }
        if self.seen.insert(key(name), sort).is_some() {
            return Err(format!("{name} comes twice"));
        }
        self.charge(cost(entry))
    }

    pub(super) fn count(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Counts bytes that are kept for the version.
    pub(super) fn charge(&mut self, cost: u64) -> Result<(), String> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > VERSION_COST_MAX {
            let count = self.count();
            return Err(format!("{count} entries with all of theirs are more than a version has"));
        }
        Ok(())
    }

    fn sort(&self, name: &Name) -> Option<Sort> {
        self.seen.get(&key(name)).copied()
    }
}

/// Bytes of memory an entry takes, about.
pub(super) fn cost(entry: &Entry) -> u64 {
    let link = match &entry.kind {
        Kind::Symlink(target) => target.len(),
        Kind::HardLink(target) => target.bytes().len(),
        _ => 0,
    };
    let xattrs: usize = entry.xattrs.iter().map(|x| size_of_val(x) + x.0.len() + x.1.len()).sum();
    (size_of::<Entry>() + 3 * size_of::<usize>() + entry.name.bytes().len() + link + xattrs) as u64
}

fn key(name: &Name) -> [u8; 16] {
    let digest = blake3::hash(name.bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&digest.as_bytes()[..16]);
    key
}

/// What holds of an entry by itself.
pub(super) fn is_well_formed(entry: &Entry) -> Result<(), String> {
    let name = &entry.name;
    let fine_xattr = |n: &[u8]| !n.is_empty() && n.len() <= XATTR_NAME_MAX && !n.contains(&0);
    let xattrs: usize = entry.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
    let wrong = if entry.mode > 0o7777 {
        "its mode has bits that are none"
    } else if entry.mtime.ns >= 1_000_000_000 || entry.ctime.ns >= 1_000_000_000 {
        "its time has more than a second of nanoseconds"
    } else if xattrs > XATTRS_MAX {
        "its extended attributes are too long"
    } else if !entry.xattrs.iter().all(|(n, _)| fine_xattr(n)) {
        "an extended attribute has no possible name"
    } else {
        match &entry.kind {
            Kind::File { size, .. } if i64::try_from(*size).is_err() => {
                "it is longer than a file can be"
            }
            Kind::Symlink(target)
                if target.is_empty() || target.len() > NAME_MAX || target.contains(&0) =>
            {
                "it links to no possible path"
            }
            Kind::HardLink(target) if target.is_root() => "it is a hard link to the root",
            _ => return Ok(()),
        }
    };
    Err(format!("{name}: {wrong}"))
}

/// Checks that pieces follow each other, none before `from`, each inside its block, whose raw length
/// is asked for. Says where they end.
pub(super) fn run(
    pieces: &[Piece],
    from: u64,
    raw: impl Fn(u32) -> Option<u32>,
) -> Result<u64, &'static str> {
    pieces.iter().try_fold(from, |from, piece| {
        let raw = raw(piece.block).ok_or("a piece of it is in a block that there is not")?;
        let inside = piece.within.checked_add(piece.length).is_some_and(|end| end <= raw);
        if piece.length == 0 || !inside {
            return Err("a piece of it does not lie in its block");
        }
        if piece.offset < from {
            return Err("its pieces overlap or go backwards");
        }
        piece.offset.checked_add(piece.length.into()).ok_or("a piece of it lies beyond any file")
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{entry, file, folder},
        *,
    };

    fn admit(entries: &[Entry]) -> Result<(), String> {
        let mut names = Names::default();
        entries.iter().try_for_each(|e| names.admit(e))
    }

    #[test]
    fn entries_come_in_an_order_that_can_be_restored() {
        let link = |name: &str, to: &str| entry(name, Kind::HardLink(Name::new(to).unwrap()));
        for good in [
            vec![folder(""), folder("a"), file("a/f", 1, [0; 32]), link("g", "a/f")],
            vec![file("f", 0, [0; 32]), folder("a"), entry("a/p", Kind::Fifo), link("p", "a/p")],
        ] {
            assert_eq!(admit(&good), Ok(()), "{good:?}");
        }
        for (bad, why) in [
            (vec![file("", 1, [0; 32])], "the root"),
            (vec![folder("a"), folder("")], "the root"),
            (vec![folder("a"), folder("a")], "comes twice"),
            (vec![file("a/f", 1, [0; 32])], "no folder before"),
            (vec![file("a", 1, [0; 32]), file("a/f", 1, [0; 32])], "no folder before"),
            (vec![entry("a", Kind::Symlink(b"/".to_vec())), folder("a/b")], "no folder before"),
            (vec![link("a", "b"), file("b", 1, [0; 32])], "no file before"),
            (vec![folder("a"), link("b", "a")], "no file before"),
            (vec![link("a", "a")], "no file before"),
            (vec![file("a", 1, [0; 32]), link("b", "a"), link("c", "b")], "no file before"),
        ] {
            let said = admit(&bad).unwrap_err();
            assert!(said.contains(why), "{bad:?}: {said}");
        }
    }

    #[test]
    fn impossible_attributes_are_refused() {
        let with = |change: &dyn Fn(&mut Entry)| {
            let mut it = file("f", 1, [0; 32]);
            change(&mut it);
            admit(&[it])
        };
        assert_eq!(with(&|e| e.mode = 0o7777), Ok(()));
        assert!(with(&|e| e.mode = 0o10000).is_err());
        assert_eq!(with(&|e| e.mtime.ns = 999_999_999), Ok(()));
        assert!(with(&|e| e.mtime.ns = 1_000_000_000).is_err());
        let xattr = |name: &[u8], value| with(&|e| e.xattrs = vec![(name.into(), vec![0; value])]);
        assert_eq!(xattr(b"user.a", XATTRS_MAX - 6), Ok(()));
        assert!(xattr(b"user.a", XATTRS_MAX - 5).is_err());
        assert!(
            xattr(b"", 1).is_err() && xattr(b"a\0", 1).is_err() && xattr(&[65; 256], 1).is_err()
        );
        let kind = |kind: Kind| with(&|e| e.kind = kind.clone());
        assert!(kind(Kind::Symlink(Vec::new())).is_err());
        assert!(kind(Kind::Symlink(b"a\0b".to_vec())).is_err());
        assert!(kind(Kind::Symlink(vec![b'a'; NAME_MAX + 1])).is_err());
        assert!(kind(Kind::HardLink(Name::default())).is_err());
        let size = |size| kind(Kind::File { size, digest: [0; 32], changed: false });
        assert_eq!(size(i64::MAX.unsigned_abs()), Ok(()));
        assert!(size(1 << 63).is_err());
    }

    #[test]
    fn pieces_stay_where_they_may() {
        let raw = |block| (block < 2).then_some(100);
        let piece = |offset, length, block, within| Piece { offset, length, block, within };
        assert_eq!(run(&[], 7, raw), Ok(7));
        assert_eq!(run(&[piece(0, 100, 0, 0), piece(500, 1, 1, 99)], 0, raw), Ok(501));
        for bad in [
            piece(0, 0, 0, 0),
            piece(0, 100, 0, 1),
            piece(0, 1, 0, 100),
            piece(0, u32::MAX, 0, u32::MAX),
            piece(0, 1, 2, 0),
            piece(9, 1, 0, 0),
            piece(u64::MAX, 2, 0, 0),
        ] {
            assert!(run(&[bad], 10, raw).is_err(), "{bad:?}");
        }
        assert!(run(&[piece(0, 5, 0, 0), piece(4, 1, 0, 5)], 0, raw).is_err());
    }
}
