//! Who we are to the store.
//!
//! ```text
//!   credentials_file, or else AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
//! ```
//!
//! Awkward cases: a file that others may read is refused like a key file; an error names file and
//! line and never what stands there; nothing here can be printed.

use super::trouble::S3Error;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zeroize::Zeroizing;

/// Anything longer is another file.
const FILE_BYTES_MAX: u64 = 64 << 10;

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) key: Zeroizing<String>,
    pub(super) secret: Zeroizing<String>,
    pub(super) token: Option<Zeroizing<String>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    pub(super) fn find(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, S3Error> {
        if let Some(file) = file {
            return Self::from_file(file);
        }
        let word = |name| environment(name).filter(|v| !v.is_empty()).map(Zeroizing::new);
        match (word("AWS_ACCESS_KEY_ID"), word("AWS_SECRET_ACCESS_KEY")) {
            (Some(key), Some(secret)) => Ok(Self { key, secret, token: word("AWS_SESSION_TOKEN") }),
            _ => Err(S3Error::NoCredentials),
        }
    }

    fn from_file(path: &Path) -> Result<Self, S3Error> {
        let fail = |detail: String| S3Error::CredentialsFile { file: path.to_owned(), detail };
        let file = std::fs::File::open(path).map_err(|e| fail(e.to_string()))?;
        // Asked of the open file, so that it cannot be exchanged between check and read.
        let mode = file.metadata().map_err(|e| fail(e.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(fail(format!(
                "others may read it (mode {:o}); chmod 600 {}",
                mode & 0o777,
                path.display()
            )));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|e| fail(e.to_string()))?;
        Self::parse(&text).map_err(fail)
    }

    /// The section `[default]`, or what stands above any section.
    fn parse(text: &str) -> Result<Self, String> {
        let (mut key, mut secret, mut token) = (None, None, None);
        let mut here = true;
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') {
                here = line == "[default]";
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                return Err(format!("line {number} is neither a section nor name = value"));
            };
            let value = Some(Zeroizing::new(value.trim().to_owned())).filter(|v| !v.is_empty());
            match name.trim() {
                "aws_access_key_id" if here => key = value,
                "aws_secret_access_key" if here => secret = value,
                "aws_session_token" if here => token = value,
                _ => {}
            }
        }
        match (key, secret) {
            (Some(key), Some(secret)) => Ok(Self { key, secret, token }),
            _ => {
                Err("it must hold aws_access_key_id and aws_secret_access_key under [default]"
                    .into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_is_private() {
        let dir = crate::media::file::tests::scratch("s3-credentials");
        let path = dir.join("c");
        let text = "# x\n[other]\naws_access_key_id=no\n[default]\naws_access_key_id = K\n\
                    aws_secret_access_key=TOPSECRET\n";
        std::fs::write(&path, text).unwrap();
        let mode = |m| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(m)).unwrap();
        mode(0o644);
        let e = Credentials::find(Some(&path), |_| None).unwrap_err().to_string();
        assert!(e.contains("chmod 600"), "{e}");
        mode(0o600);
        let c = Credentials::find(Some(&path), |_| Some("env".into())).unwrap();
        assert_eq!((c.key.as_str(), c.secret.as_str(), &c.token), ("K", "TOPSECRET", &None));
        assert!(!format!("{c:?}").contains("TOPSECRET"));
        for bad in ["TOPSECRET", "[default]\naws_secret_access_key = TOPSECRET\n", ""] {
            std::fs::write(&path, bad).unwrap();
            let e = Credentials::find(Some(&path), |_| None).unwrap_err();
            assert!(!format!("{e} {e:?}").contains("TOPSECRET"), "{e}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_environment_is_asked_without_a_file() {
        let c = Credentials::find(None, |name| Some(name.to_lowercase())).unwrap();
        assert_eq!((c.key.as_str(), c.token.is_some()), ("aws_access_key_id", true));
        let e = Credentials::find(None, |n| (n == "AWS_ACCESS_KEY_ID").then(|| "K".into()));
        assert_eq!(e, Err(S3Error::NoCredentials));
    }
}
