//! What is left out, in the words of `.gitignore`: `*.tmp` anywhere, `/var/cache` and `a/b` from the
//! root of the version, `node_modules/` folders only; `*` and `?` stay within a component, `**` does
//! not. There is no `!`.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::TreeError;
use crate::backup::entry::Name;

/// Patterns; by default none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exclude {
    any: GlobSet,
    folders: GlobSet,
}

impl Exclude {
    pub(crate) fn new(patterns: &[String]) -> Result<Self, TreeError> {
        let (mut any, mut folders) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let bad = |reason: String| TreeError::Pattern { pattern: pattern.clone(), reason };
            let (body, folder) = match pattern.strip_suffix('/') {
                Some(body) => (body, true),
                None => (pattern.as_str(), false),
            };
            if body.is_empty() {
                return Err(bad("it is empty".into()));
            }
            if body.starts_with('!') {
                return Err(bad("what is left out cannot be taken in again".into()));
            }
            let glob = match body.strip_prefix('/') {
                Some(anchored) => anchored.to_owned(),
                None if body.contains('/') => body.to_owned(),
                None => format!("**/{body}"),
            };
            let glob = GlobBuilder::new(&glob)
                .literal_separator(true)
                .build()
                .map_err(|e| bad(e.kind().to_string()))?;
            if folder { &mut folders } else { &mut any }.add(glob);
        }
        let built = |set: &GlobSetBuilder| {
            set.build().map_err(|e| TreeError::Pattern {
                pattern: patterns.join(" "),
                reason: e.kind().to_string(),
            })
        };
        Ok(Self { any: built(&any)?, folders: built(&folders)? })
    }

    pub(super) fn leaves_out(&self, name: &Name, is_folder: bool) -> bool {
        if self.any.is_empty() && self.folders.is_empty() {
            return false;
        }
        let path = Path::new(OsStr::from_bytes(name.bytes()));
        self.any.is_match(path) || is_folder && self.folders.is_match(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_do_in_gitignore() {
        let out = |pattern: &str, name: &[u8], folder| {
            let exclude = Exclude::new(&[pattern.to_owned()]).unwrap();
            exclude.leaves_out(&Name::new(name).unwrap(), folder)
        };
        assert!(out("*.tmp", b"a.tmp", false) && out("*.tmp", b"x/y/a.tmp", true));
        assert!(!out("*.tmp", b"a.tmp/x", false), "its folder was left out before");
        assert!(out("/a", b"a", true) && !out("/a", b"b/a", true));
        assert!(out("a/*.o", b"a/x.o", false) && !out("a/*.o", b"a/b/x.o", false));
        assert!(out("a/**/x", b"a/b/c/x", false) && out("**/x", b"x", false));
        assert!(out("node_modules/", b"b/node_modules", true));
        assert!(!out("node_modules/", b"node_modules", false));
        assert!(out("?", b"\xff", false) && out("[ab]", b"b", false) && !out("[ab]", b"c", false));
        assert!(!Exclude::default().leaves_out(&Name::new("a").unwrap(), false));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "/", "!a", "[", "a{"] {
            let error = Exclude::new(&[bad.to_owned()]).unwrap_err();
            assert!(error.to_string().contains("is no pattern"), "{bad}: {error}");
        }
    }
}
