//! What a store, or the way to it, refuses; in words that say what to do.
//!
//! Awkward cases: servers repeat what was sent to them in their error texts (signed strings among it),
//! so only the short error code is kept; AWS answers 403 for what is not there when the key may not
//! list the bucket.

use super::url::UrlError;
use crate::event::{IoFault, IoFaultKind};
use std::error::Error;
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum S3Error {
    #[error(
        "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file in \
         [storage.s3] credentials_file or in the URL (credentials-file=PATH)"
    )]
    NoCredentials,
    #[error("{}: {detail}", file.display())]
    CredentialsFile { file: PathBuf, detail: String },
    #[error("{}: {detail}; see ca-file", file.display())]
    Authorities { file: PathBuf, detail: String },
    #[error("settings: {0}")]
    Settings(#[from] UrlError),
    #[error("cannot set up the client: {detail}")]
    Setup { detail: String },
    #[error(
        "access denied ({code}); check the credentials and that they may get, put, list and delete \
         there (without the right to list, stores answer so for what does not exist)"
    )]
    Denied { code: String },
    #[error("there is no such bucket; create it, or check its name, region and endpoint")]
    NoBucket,
    #[error("the store asks for fewer requests ({code}); slowing down")]
    Throttled { code: String },
    #[error("the store answered {status} ({code})")]
    Status { status: u16, code: String },
    #[error("TLS failed: {detail}; check the server's certificate and ca-file")]
    Tls { detail: String },
    #[error("cannot connect: {detail}; is the server running, and is the endpoint right?")]
    Connect { detail: String },
    #[error("the connection failed: {detail}")]
    Broken { detail: String },
    #[error("no answer within {waited_ms} ms")]
    Silent { waited_ms: u128 },
}

impl S3Error {
    /// Whether the operator's words are at fault rather than the machine.
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        matches!(
            self,
            Self::NoCredentials
                | Self::CredentialsFile { .. }
                | Self::Authorities { .. }
                | Self::Settings(_)
                | Self::Denied { .. }
                | Self::NoBucket
        )
    }

    /// Whether the same words may work later without anybody changing them.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Broken { .. } | Self::Silent { .. })
            || self.is_trouble()
    }

    /// Whether the store answered, and that it cannot just now.
    pub(super) fn is_trouble(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Status { status: 500.., .. })
    }

    pub(super) fn fault(&self, what: &str) -> IoFault {
        let kind = match self {
            Self::Connect { .. } | Self::Tls { .. } | Self::NoBucket => IoFaultKind::Gone,
            Self::Silent { .. } => IoFaultKind::TimedOut,
            Self::Throttled { .. } => IoFaultKind::Throttled,
            Self::Status { status: 507, .. } => IoFaultKind::NoSpace,
            _ => IoFaultKind::Other,
        };
        IoFault::new(kind, format!("{what}: {self}"))
    }

    /// What an answer means that is no success.
    pub(super) fn of_answer(status: u16, body: &[u8]) -> Self {
        let code = code(body).unwrap_or_else(|| format!("HTTP {status}"));
        match (status, code.as_str()) {
            (404, "NoSuchBucket") => Self::NoBucket,
            (401 | 403, _) => Self::Denied { code },
            (429 | 503, _) | (_, "SlowDown" | "Throttling" | "RequestLimitExceeded") => {
                Self::Throttled { code }
            }
            _ => Self::Status { status, code },
        }
    }

    /// Finds what our own client said below what the library made of it.
    pub(super) fn below(e: &object_store::Error) -> Self {
        let mut at: Option<&(dyn Error + 'static)> = Some(e);
        while let Some(e) = at {
            if let Some(own) = e.downcast_ref::<Self>() {
                return own.clone();
            }
            at = e.source();
        }
        // Texts of the library hold addresses and answers; its kinds are enough here.
        let detail = match e {
            object_store::Error::NotFound { .. } => "it is not there",
            object_store::Error::Generic { .. } => "an answer that cannot be understood",
            _ => "an unexpected answer",
        };
        Self::Broken { detail: detail.into() }
    }

    /// What went wrong on the way.
    pub(super) fn of_transport(e: &(dyn Error + 'static), connecting: bool) -> Self {
        let mut detail = String::new();
        let mut at = Some(e);
        while let Some(e) = at {
            if let Some(tls) = e.downcast_ref::<rustls::Error>() {
                return Self::Tls { detail: tls.to_string() };
            }
            detail = e.to_string();
            // What an I/O error wraps is not its source, but that one's source is.
            let wrapped = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            at = match wrapped {
                Some(inner) => Some(inner),
                None => e.source(),
            };
        }
        if connecting { Self::Connect { detail } } else { Self::Broken { detail } }
    }
}

/// The text of `<Code>`, when it is a plain word.
fn code(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let code = text.split_once("<Code>")?.1.split_once("</Code>")?.0;
    let plain = code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
    plain.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_and_never_repeated() {
        let xml = |code: &str| format!("<Error><Code>{code}</Code><X>TOPSECRET</X></Error>");
        for (status, code, input, passes, kind) in [
            (403, "SignatureDoesNotMatch", true, false, IoFaultKind::Other),
            (404, "NoSuchBucket", true, false, IoFaultKind::Gone),
            (503, "SlowDown", false, true, IoFaultKind::Throttled),
            (429, "", false, true, IoFaultKind::Throttled),
            (500, "InternalError", false, true, IoFaultKind::Other),
            (400, "BadDigest", false, false, IoFaultKind::Other),
        ] {
            let e = S3Error::of_answer(status, xml(code).as_bytes());
            assert_eq!((e.is_input_error(), e.may_pass()), (input, passes), "{e}");
            let fault = e.fault("put x");
            assert_eq!(fault.kind, kind, "{fault}");
            assert!(fault.detail.starts_with("put x: ") && !fault.detail.contains("TOPSECRET"));
        }
        let e = S3Error::of_answer(403, b"<Code>a b <TOPSECRET></Code>");
        assert_eq!(e, S3Error::Denied { code: "HTTP 403".into() });
    }
}
