//! What an operator writes where a volume is wanted: a path, or a URL of a kind we know.
//!
//! Awkward cases: a path may hold colons and even `://` behind a slash, so only what looks like a
//! scheme from the first letter on is taken for one; an unknown scheme is an error and never a file of
//! that name; a path relative to a configuration's folder is joined with it, a URL never is.

use super::nbd::NbdUrl;
use super::nbd::url::{Server, UrlError};
use super::s3::{S3Url, Settings};
use crate::pace::Class;
use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// A file or block device of this host.
    Path(PathBuf),
    Nbd(NbdUrl),
    S3(Box<S3Url>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// The text itself is not repeated: it may hold a password.
    #[error("a URL of NBD: {0}")]
    Nbd(#[from] UrlError),
    #[error("a URL of S3: {0}")]
    S3(#[from] super::s3::url::UrlError),
    #[error(
        "`{scheme}://` is not known here; write a path (./{scheme}:... for a file of that name), \
         s3://BUCKET/PREFIX, nbd://, nbds://, nbd+unix:// or nbds+unix://"
    )]
    Scheme { scheme: String },
}

impl Location {
    pub fn parse(text: &str) -> Result<Self, LocationError> {
        if NbdUrl::is_meant(text) {
            return Ok(Self::Nbd(NbdUrl::parse(text)?));
        }
        if S3Url::is_meant(text) {
            return Ok(Self::S3(Box::new(S3Url::parse(text)?)));
        }
        let scheme = text.split_once("://").map(|(scheme, _)| scheme).filter(|s| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
            s.starts_with(|c: char| c.is_ascii_alphabetic()) && s.chars().all(plain)
        });
        match scheme {
            Some(scheme) => Err(LocationError::Scheme { scheme: scheme.to_owned() }),
            None => Ok(Self::Path(text.into())),
        }
    }

    /// For relative paths, the place of the words that named it.
    #[must_use]
    pub fn below(self, folder: &Path) -> Self {
        match self {
            Self::Path(path) => Self::Path(folder.join(path)),
            other => other,
        }
    }

    /// Whether both lead to one medium, as far as this host can tell: two names of a file, two
    /// nodes of a device. Two URLs of one export are not told.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let identity = |at: &Self| {
            let m = std::fs::metadata(at.path()?).ok()?;
            let device = m.file_type().is_block_device();
            Some(if device { (m.rdev(), 0) } else { (m.dev(), m.ino()) })
        };
        self == other || identity(self).is_some_and(|ours| identity(other) == Some(ours))
    }

    /// What a URL of S3 leaves out.
    #[must_use]
    pub fn with_s3_defaults(self, defaults: &Settings) -> Self {
        match self {
            Self::S3(url) => Self::S3(Box::new(S3Url { defaults: defaults.clone(), ..*url })),
            other => other,
        }
    }

    /// How fast what lies there is, as far as the words tell.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Path(_) => Class::Local,
            Self::Nbd(_) => Class::Remote,
            Self::S3(_) => Class::Object,
        }
    }

    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Nbd(_) | Self::S3(_) => None,
        }
    }

    /// What stands for it in errors and reports, where a path stands for others.
    #[must_use]
    pub fn label(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Nbd(url) => url.to_string().into(),
            Self::S3(url) => url.to_string().into(),
        }
    }

    /// What must be typed to destroy foreign data there.
    #[must_use]
    pub fn short_name(&self) -> String {
        let last = |path: &Path| {
            path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        };
        match self {
            Self::Path(path) => last(path),
            Self::S3(url) => url.short_name(),
            Self::Nbd(url) => match &url.server {
                _ if !url.export.is_empty() => last(Path::new(&url.export)),
                Server::Tcp { host, .. } => host.clone(),
                Server::Unix(socket) => last(socket),
            },
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Nbd(url) => write!(f, "{url}"),
            Self::S3(url) => write!(f, "{url}"),
        }
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        Self::parse(text)
    }
}

/// What is a path by its type is one whatever it looks like.
impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self::Path(path.clone())
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<NbdUrl> for Location {
    fn from(url: NbdUrl) -> Self {
        Self::Nbd(url)
    }
}

impl From<&Self> for Location {
    fn from(location: &Self) -> Self {
        location.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_is_no_url() {
        for text in ["/dev/sda", "v", "./nbd://x", "a b://c", "dir/x://y", "7://x", "", "C:x"] {
            assert_eq!(Location::parse(text), Ok(Location::Path(text.into())), "{text}");
        }
        let url = Location::parse("nbd+unix:///x?socket=/s").unwrap();
        assert!(matches!(&url, Location::Nbd(_)));
        assert_eq!(url.clone().below(Path::new("/etc")), url);
        let path = Location::parse("v").unwrap().below(Path::new("/etc"));
        assert_eq!(path, Location::Path("/etc/v".into()));
    }

    #[test]
    fn two_names_of_one_file_are_the_same() {
        let dir = crate::media::file::tests::scratch("same");
        let at = |name: &str| Location::from(dir.join(name));
        std::fs::write(dir.join("a"), "").unwrap();
        std::fs::write(dir.join("b"), "").unwrap();
        std::fs::hard_link(dir.join("a"), dir.join("c")).unwrap();
        std::os::unix::fs::symlink("a", dir.join("d")).unwrap();
        assert!(at("a").is_same(&at("c")) && at("d").is_same(&at("c")));
        assert!(!at("a").is_same(&at("b")) && !at("x").is_same(&at("y")));
        assert!(at("x").is_same(&at("x")), "also where nothing is yet");
        let url = |text| Location::parse(text).unwrap();
        assert!(url("nbd://h/a").is_same(&url("nbd://h/a")));
        assert!(
            !url("nbd://h/a").is_same(&url("nbd://h/b")) && !url("nbd://h/a").is_same(&at("a"))
        );
    }

    #[test]
    fn an_unknown_scheme_is_no_file() {
        for text in ["s4://bucket", "nbdx://h", "NBD://h", "http://u:secret@h"] {
            let e = Location::parse(text).unwrap_err();
            assert!(matches!(e, LocationError::Scheme { .. }), "{e}");
            assert!(e.to_string().contains("nbd+unix://") && !e.to_string().contains("secret"));
        }
        let e = Location::parse("nbds://u:secret@h/").unwrap_err().to_string();
        assert!(e.contains("pre-shared") && !e.contains("secret"), "{e}");
    }

    #[test]
    fn a_short_name_can_be_typed() {
        for (text, name) in [
            ("/dev/sda", "sda"),
            ("nbd://h/a/b", "b"),
            ("nbd://h", "h"),
            ("s3://bucket/a/lun7?endpoint=http://h", "lun7"),
            ("nbd+unix:?socket=/run/x.sock", "x.sock"),
        ] {
            assert_eq!(Location::parse(text).unwrap().short_name(), name);
        }
    }
}
