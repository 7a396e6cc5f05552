//! What an operator writes to name a volume in an object store.
//!
//! ```text
//!   s3://BUCKET/PREFIX[?endpoint=URL&region=NAME&path-style=BOOL&ca-file=PATH&credentials-file=PATH]
//! ```
//!
//! What the URL leaves out comes from `[storage.s3]`, then from the usual environment
//! (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_CA_BUNDLE`). Awkward cases: a key and its secret never stand
//! in a URL, for URLs are shown, logged and visible in lists of processes; an error never repeats what
//! it found in their place.

use std::fmt;
use std::path::{Path, PathBuf};

/// Longest prefix; S3 allows 1024 bytes for a whole key, ours need 120 behind it.
pub const PREFIX_BYTES_MAX: usize = 512;

/// How to reach the store; nothing secret is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Settings {
    /// `http://` or `https://`; the one of AWS when left out.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// The bucket stands in the path instead of the host name; usual where an endpoint is given.
    pub path_style: Option<bool>,
    /// Whom to trust instead of the system's authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// In the format of `~/.aws/credentials`, readable by its owner alone.
    pub credentials_file: Option<PathBuf>,
}

impl Settings {
    /// What is not said here is taken from there.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            endpoint: self.endpoint.or_else(|| other.endpoint.clone()),
            region: self.region.or_else(|| other.region.clone()),
            path_style: self.path_style.or(other.path_style),
            ca_file: self.ca_file.or_else(|| other.ca_file.clone()),
            credentials_file: self.credentials_file.or_else(|| other.credentials_file.clone()),
        }
    }

    /// What the environment says, by words that `look` finds.
    #[must_use]
    pub fn from_environment(look: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|n| look(n).filter(|v| !v.is_empty()));
        Self {
            endpoint: first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
            region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
            path_style: None,
            ca_file: first(&["AWS_CA_BUNDLE"]).map(PathBuf::from),
            credentials_file: None,
        }
    }

    /// What is wrong with it, for whoever wrote it.
    pub fn check(&self) -> Result<(), UrlError> {
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(endpoint)?;
        }
        let files = [("ca-file", &self.ca_file), ("credentials-file", &self.credentials_file)];
        for (name, file) in files {
            if file.as_ref().is_some_and(|f| !f.is_absolute()) {
                return Err(UrlError::Relative { name });
            }
        }
        if self.region.as_ref().is_some_and(|r| !is_word(r, "-")) {
            return Err(UrlError::Region);
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct S3Url {
    pub bucket: String,
    /// Without a slash at either end; may be empty.
    pub prefix: String,
    /// As far as the URL itself says.
    pub settings: Settings,
    /// The rest, from the configuration; not shown.
    pub defaults: Settings,
}

/// None repeats what was found: a secret may have been written there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error(
        "credentials do not belong into a URL, which is logged and shown; set AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY, or name a file with credentials-file"
    )]
    Secret,
    #[error(
        "the bucket's name must have 3 to 63 lower-case letters, digits, dots, dashes or \
         underscores; write s3://BUCKET/PREFIX"
    )]
    Bucket,
    #[error(
        "the prefix may have letters, digits and . _ - /, no empty part, no part of dots alone, and at \
         most {PREFIX_BYTES_MAX} bytes"
    )]
    Prefix,
    #[error("the endpoint must be http://HOST[:PORT] or https://HOST[:PORT], without a path")]
    Endpoint,
    #[error("{name} is no absolute path; relative ones depend on where the daemon starts")]
    Relative { name: &'static str },
    #[error("the region may have lower-case letters, digits and dashes")]
    Region,
    #[error("path-style must be true or false")]
    PathStyle,
    #[error(
        "an unknown parameter; known are endpoint, region, path-style, ca-file and credentials-file"
    )]
    Parameter,
    #[error("`{name}` is given twice")]
    Twice { name: &'static str },
    #[error("`%` must be followed by two hexadecimal digits of UTF-8 text")]
    Percent,
}

fn is_word(text: &str, also: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c);
    !text.is_empty() && text.chars().all(plain)
}

fn check_endpoint(text: &str) -> Result<(), UrlError> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let rest = rest.map(|r| r.strip_suffix('/').unwrap_or(r)).ok_or(UrlError::Endpoint)?;
    if rest.contains('@') {
        return Err(UrlError::Secret);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    if rest.is_empty() || !rest.chars().all(plain) { Err(UrlError::Endpoint) } else { Ok(()) }
}

fn percent(text: &str) -> Result<String, UrlError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let digit = |d: Option<u8>| d.and_then(|d| char::from(d).to_digit(16));
        out.push(match b {
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(h), Some(l)) => u8::try_from(h * 16 + l).map_err(|_| UrlError::Percent)?,
                _ => return Err(UrlError::Percent),
            },
            b => b,
        });
    }
    String::from_utf8(out).map_err(|_| UrlError::Percent)
}

impl S3Url {
    /// Whether a text wants to be such a URL, well-formed or not.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("s3://")
    }

    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let rest = text.strip_prefix("s3://").ok_or(UrlError::Bucket)?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        if place.contains('@') {
            return Err(UrlError::Secret);
        }
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if !(3..=63).contains(&bucket.len()) || !is_word(bucket, ".-_") {
            return Err(UrlError::Bucket);
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let part = |p: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !p.is_empty() && p.chars().all(plain) && !p.chars().all(|c| c == '.')
        };
        if prefix.len() > PREFIX_BYTES_MAX || !(prefix.is_empty() || prefix.split('/').all(part)) {
            return Err(UrlError::Prefix);
        }
        let settings = words(query)?;
        settings.check()?;
        Ok(Self {
            bucket: bucket.into(),
            prefix: prefix.into(),
            settings,
            defaults: Settings::default(),
        })
    }

    /// URL, then configuration, then environment.
    #[must_use]
    pub fn effective(&self) -> Settings {
        let environment = Settings::from_environment(|name| std::env::var(name).ok());
        self.settings.clone().or(&self.defaults).or(&environment)
    }

    /// What must be typed to write among foreign objects.
    #[must_use]
    pub fn short_name(&self) -> String {
        let last = self.prefix.rsplit('/').next().filter(|p| !p.is_empty());
        last.unwrap_or(&self.bucket).to_owned()
    }
}

fn words(query: &str) -> Result<Settings, UrlError> {
    fn once<T>(name: &'static str, at: &mut Option<T>, value: T) -> Result<(), UrlError> {
        if at.replace(value).is_some() { Err(UrlError::Twice { name }) } else { Ok(()) }
    }
    let mut s = Settings::default();
    for word in query.split('&').filter(|w| !w.is_empty()) {
        let (name, value) = word.split_once('=').ok_or(UrlError::Parameter)?;
        let value = percent(value)?;
        match name {
            "endpoint" => once("endpoint", &mut s.endpoint, value)?,
            "region" => once("region", &mut s.region, value)?,
            "path-style" => {
                let value = value.parse().map_err(|_| UrlError::PathStyle)?;
                once("path-style", &mut s.path_style, value)?;
            }
            "ca-file" => once("ca-file", &mut s.ca_file, PathBuf::from(value))?,
            "credentials-file" => {
                once("credentials-file", &mut s.credentials_file, PathBuf::from(value))?;
            }
            _ => return Err(UrlError::Parameter),
        }
    }
    Ok(s)
}

impl fmt::Display for S3Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let s = &self.settings;
        let path = |p: &Option<PathBuf>| p.as_deref().map(Path::display).map(|d| d.to_string());
        let words = [
            ("endpoint", s.endpoint.clone()),
            ("region", s.region.clone()),
            ("path-style", s.path_style.map(|p| p.to_string())),
            ("ca-file", path(&s.ca_file)),
            ("credentials-file", path(&s.credentials_file)),
        ];
        let mut mark = '?';
        for (name, value) in words {
            if let Some(value) = value {
                let value = value.replace('%', "%25").replace('&', "%26");
                write!(f, "{mark}{name}={value}")?;
                mark = '&';
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_was_written() {
        for text in [
            "s3://bucket",
            "s3://my-bucket.x/a/b_c/lun-7",
            "s3://bucket/p?endpoint=http://127.0.0.1:5000",
            "s3://bucket/p?endpoint=https://[::1]:9000&region=eu-west-1&path-style=true&ca-file=/a%26b",
            "s3://bucket/p?credentials-file=/etc/sidepath/s3",
        ] {
            let url = S3Url::parse(text).unwrap();
            assert_eq!(url.to_string(), text);
            assert_eq!(S3Url::parse(&url.to_string()), Ok(url));
        }
        assert_eq!(S3Url::parse("s3://bucket/a/b/").unwrap().short_name(), "b");
        assert_eq!(S3Url::parse("s3://bucket").unwrap().short_name(), "bucket");
    }

    #[test]
    fn what_is_wrong_is_named_and_secrets_are_not_repeated() {
        for (text, want) in [
            ("s3://", UrlError::Bucket),
            ("s3://Bucket/p", UrlError::Bucket),
            ("s3://key:TOPSECRET@bucket/p", UrlError::Secret),
            ("s3://bucket/a//b", UrlError::Prefix),
            ("s3://bucket/a/../b", UrlError::Prefix),
            ("s3://bucket/a?endpoint=host:9000", UrlError::Endpoint),
            ("s3://bucket/a?endpoint=http://u:TOPSECRET@h", UrlError::Secret),
            ("s3://bucket/a?endpoint=http://h/path", UrlError::Endpoint),
            ("s3://bucket/a?secret=TOPSECRET", UrlError::Parameter),
            ("s3://bucket/a?TOPSECRET", UrlError::Parameter),
            ("s3://bucket/a?path-style=TOPSECRET", UrlError::PathStyle),
            ("s3://bucket/a?region=x&region=y", UrlError::Twice { name: "region" }),
            ("s3://bucket/a?ca-file=TOPSECRET", UrlError::Relative { name: "ca-file" }),
            ("s3://bucket/a?region=%GG", UrlError::Percent),
        ] {
            let e = S3Url::parse(text).unwrap_err();
            assert_eq!(e, want, "{text}");
            assert!(!format!("{e} {e:?}").contains("TOPSECRET"), "{e}");
        }
    }

    #[test]
    fn the_url_wins_over_the_configuration_and_that_over_the_environment() {
        let mut url = S3Url::parse("s3://bucket/p?region=one").unwrap();
        let two = Some("two".to_owned());
        url.defaults = Settings { region: two.clone(), endpoint: two, ..Settings::default() };
        let e = Settings::from_environment(|name| (name == "AWS_CA_BUNDLE").then(|| "/ca".into()));
        let s = url.settings.clone().or(&url.defaults).or(&e);
        assert_eq!((s.region.as_deref(), s.endpoint.as_deref()), (Some("one"), Some("two")));
        assert_eq!(s.ca_file, Some("/ca".into()));
    }
}
