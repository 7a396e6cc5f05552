//! What an operator writes to name an export, by the NBD project's URI specification.
//!
//! ```text
//!   nbd://host[:10809]/export              nbd+unix:///export?socket=/run/nbd.sock
//!   nbds://host/export?tls-certificates=DIR&tls-hostname=NAME           nbds+unix:...
//! ```
//!
//! Awkward cases: the export's name is all that follows the first slash, may be empty and may hold
//! slashes; an IPv6 address stands in brackets; a user name belongs to pre-shared keys, which are not
//! supported, and is never repeated in an error, for a password may stand beside it.

use std::fmt;
use std::path::{Path, PathBuf};

/// The port that IANA assigned.
pub const PORT_DEFAULT: u16 = 10809;
/// By the protocol, for all its strings.
pub const EXPORT_BYTES_MAX: usize = 4096;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Certificates instead of trust in the network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tls {
    /// Holds `ca-cert.pem` and, when the server asks who we are, `client-cert.pem` and
    /// `client-key.pem`.
    pub certificates: PathBuf,
    /// What the server's certificate must be made out to.
    pub hostname: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NbdUrl {
    pub server: Server,
    pub export: String,
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("`{found}` is no scheme of NBD; write nbd://, nbds://, nbd+unix:// or nbds+unix://")]
    Scheme { found: String },
    #[error(
        "a user name is for pre-shared keys, which are not supported; use tls-certificates=DIR"
    )]
    User,
    #[error("no host; write nbd://HOST[:PORT]/EXPORT")]
    NoHost,
    #[error("`{found}` is no port; write a number from 1 to 65535, or none for {PORT_DEFAULT}")]
    Port { found: String },
    #[error("a socket has no host; write nbd+unix:///EXPORT?socket=/PATH with three slashes")]
    HostWithSocket,
    #[error("no socket; write nbd+unix:///EXPORT?socket=/PATH")]
    NoSocket,
    #[error("socket={found} is no absolute path; relative ones depend on where the daemon starts")]
    SocketRelative { found: String },
    #[error("tls-certificates={found} is no absolute path; write the folder's whole path")]
    CertificatesRelative { found: String },
    #[error(
        "no certificates to check the server with; add ?tls-certificates=DIR, a folder with \
         ca-cert.pem (and client-cert.pem, client-key.pem if the server asks for them)"
    )]
    NoCertificates,
    #[error("`{name}` has no meaning without TLS; write nbds:// or nbds+unix://, or leave it out")]
    OnlyWithTls { name: &'static str },
    #[error("pre-shared keys (`{name}`) are not supported; use tls-certificates=DIR")]
    PreSharedKey { name: String },
    #[error("`{name}` is not known here; known are socket, tls-certificates and tls-hostname")]
    Parameter { name: String },
    #[error("`{name}` is given twice")]
    Twice { name: String },
    #[error("`%` must be followed by two hexadecimal digits of UTF-8 text; a plain % is %25")]
    Percent,
    #[error("the export's name has {bytes} bytes; the protocol allows {EXPORT_BYTES_MAX}")]
    ExportTooLong { bytes: usize },
    #[error("a control character; write the URL on one line, without tabs or zero bytes")]
    Control,
    #[error("a fragment (#...) has no meaning here; a plain # is %23")]
    Fragment,
}

impl NbdUrl {
    /// Whether a text wants to be such a URL, well-formed or not.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        ["nbd", "nbds", "nbd+unix", "nbds+unix"].iter().any(|s| {
            text.strip_prefix(s).is_some_and(|rest| {
                rest.starts_with("://") || (s.ends_with("unix") && rest.starts_with(':'))
            })
        })
    }

    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        let (with_tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => {
                let found = scheme.split('@').next_back().unwrap_or_default().to_owned();
                return Err(UrlError::Scheme { found });
            }
        };
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match place.strip_prefix("//") {
            Some(place) => place.split_once('/').unwrap_or((place, "")),
            // `nbd+unix:/export?socket=...` is the short form.
            None if unix => ("", place.strip_prefix('/').unwrap_or(place)),
            None => return Err(UrlError::NoHost),
        };
        if authority.contains('@') {
            return Err(UrlError::User);
        }
        let export = decode(path)?;
        if export.len() > EXPORT_BYTES_MAX {
            return Err(UrlError::ExportTooLong { bytes: export.len() });
        }
        let words = Words::parse(query)?;
        let server = if unix {
            if !authority.is_empty() {
                return Err(UrlError::HostWithSocket);
            }
            let socket = words.socket.ok_or(UrlError::NoSocket)?;
            if !Path::new(&socket).is_absolute() {
                return Err(UrlError::SocketRelative { found: socket });
            }
            Server::Unix(socket.into())
        } else {
            if words.socket.is_some() {
                return Err(UrlError::Parameter { name: "socket".into() });
            }
            tcp(authority)?
        };
        let tls = if with_tls {
            let certificates = words.certificates.ok_or(UrlError::NoCertificates)?;
            if !Path::new(&certificates).is_absolute() {
                return Err(UrlError::CertificatesRelative { found: certificates });
            }
            let hostname = words.hostname.unwrap_or_else(|| match &server {
                Server::Tcp { host, .. } => host.clone(),
                Server::Unix(_) => "localhost".into(),
            });
            Some(Tls { certificates: certificates.into(), hostname })
        } else {
            match (words.certificates, words.hostname) {
                (Some(_), _) => return Err(UrlError::OnlyWithTls { name: "tls-certificates" }),
                (_, Some(_)) => return Err(UrlError::OnlyWithTls { name: "tls-hostname" }),
                _ => None,
            }
        };
        Ok(Self { server, export, tls })
    }
}

fn tcp(authority: &str) -> Result<Server, UrlError> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(UrlError::NoHost)?;
        (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("")))
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("")),
        }
    };
    let port = port.ok_or_else(|| UrlError::Port { found: authority.to_owned() })?;
    let number = if port.is_empty() { Ok(PORT_DEFAULT) } else { port.parse() };
    let port =
        number.ok().filter(|&p| p != 0).ok_or_else(|| UrlError::Port { found: port.to_owned() })?;
    let host = decode(host)?;
    if host.is_empty() { Err(UrlError::NoHost) } else { Ok(Server::Tcp { host, port }) }
}

#[derive(Default)]
struct Words {
    socket: Option<String>,
    certificates: Option<String>,
    hostname: Option<String>,
}

impl Words {
    fn parse(query: &str) -> Result<Self, UrlError> {
        let mut words = Self::default();
        for word in query.split('&').filter(|w| !w.is_empty()) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let place = match name {
                "socket" => &mut words.socket,
                "tls-certificates" => &mut words.certificates,
                "tls-hostname" => &mut words.hostname,
                "tls-psk-file" | "tls-username" => {
                    return Err(UrlError::PreSharedKey { name: name.to_owned() });
                }
                _ => return Err(UrlError::Parameter { name: name.to_owned() }),
            };
            if place.replace(decode(value)?).is_some() {
                return Err(UrlError::Twice { name: name.to_owned() });
            }
        }
        Ok(words)
    }
}

fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let value = rest.next().and_then(|b| char::from(b).to_digit(16));
            value.and_then(|v| u8::try_from(v).ok()).ok_or(UrlError::Percent)
        };
        bytes.push(digit()? << 4 | digit()?);
    }
    let text = String::from_utf8(bytes).map_err(|_| UrlError::Percent)?;
    if text.chars().any(char::is_control) { Err(UrlError::Control) } else { Ok(text) }
}

fn encode(text: &str, plain: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    text.bytes().try_for_each(|b| match char::from(b) {
        c if c.is_ascii_alphanumeric() || "-._~/".contains(c) || plain.contains(c) => {
            write!(f, "{c}")
        }
        _ => write!(f, "%{b:02X}"),
    })
}

/// The same words in the same order whatever was written: equal exports on equal ways look equal.
impl fmt::Display for NbdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nbd{}", if self.tls.is_some() { "s" } else { "" })?;
        match &self.server {
            Server::Unix(_) => write!(f, "+unix:///")?,
            Server::Tcp { host, port } => {
                write!(f, "://")?;
                if host.contains(':') {
                    write!(f, "[{host}]")?;
                } else {
                    encode(host, "", f)?;
                }
                if *port != PORT_DEFAULT {
                    write!(f, ":{port}")?;
                }
                write!(f, "/")?;
            }
        }
        encode(&self.export, ":@", f)?;
        let mut mark = '?';
        let mut word = |f: &mut fmt::Formatter<'_>, name: &str, value: &str| {
            write!(f, "{mark}{name}=")?;
            mark = '&';
            encode(value, ":", f)
        };
        if let Server::Unix(socket) = &self.server {
            word(f, "socket", &socket.to_string_lossy())?;
        }
        if let Some(tls) = &self.tls {
            word(f, "tls-certificates", &tls.certificates.to_string_lossy())?;
            let default = match &self.server {
                Server::Tcp { host, .. } => host.as_str(),
                Server::Unix(_) => "localhost",
            };
            if tls.hostname != default {
                word(f, "tls-hostname", &tls.hostname)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_understood_and_shown_again() {
        let tcp = |host: &str, port| Server::Tcp { host: host.into(), port };
        let unix = || Server::Unix("/run/a b".into());
        for (text, shown, server, export) in [
            ("nbd://h/disk", "nbd://h/disk", tcp("h", 10809), "disk"),
            ("nbd://h:10809/", "nbd://h/", tcp("h", 10809), ""),
            ("nbd://h", "nbd://h/", tcp("h", 10809), ""),
            ("nbd://h:7/a/b", "nbd://h:7/a/b", tcp("h", 7), "a/b"),
            ("nbd://[::1]:7/a%20b%3f", "nbd://[::1]:7/a%20b%3F", tcp("::1", 7), "a b?"),
            ("nbd://[fe80::2]/x", "nbd://[fe80::2]/x", tcp("fe80::2", 10809), "x"),
            ("nbd+unix:///x?socket=/run/a%20b", "nbd+unix:///x?socket=/run/a%20b", unix(), "x"),
            ("nbd+unix:?socket=/run/a%20b", "nbd+unix:///?socket=/run/a%20b", unix(), ""),
        ] {
            assert!(NbdUrl::is_meant(text), "{text}");
            let url = NbdUrl::parse(text).unwrap();
            assert_eq!((url.to_string().as_str(), &url.server), (shown, &server));
            assert_eq!((url.export.as_str(), &url.tls), (export, &None));
            assert_eq!(NbdUrl::parse(shown).unwrap(), url);
        }
    }

    #[test]
    fn tls_names_its_certificates_and_whom_it_expects() {
        let url = NbdUrl::parse("nbds://h/x?tls-certificates=/etc/pki").unwrap();
        assert_eq!(url.tls, Some(Tls { certificates: "/etc/pki".into(), hostname: "h".into() }));
        assert_eq!(url.to_string(), "nbds://h/x?tls-certificates=/etc/pki");
        let text = "nbds+unix:///x?socket=/s&tls-certificates=/c&tls-hostname=nas.example";
        let url = NbdUrl::parse(text).unwrap();
        assert_eq!(url.tls.as_ref().unwrap().hostname, "nas.example");
        assert_eq!(url.to_string(), text);
        let url = NbdUrl::parse("nbds+unix:///x?socket=/s&tls-certificates=/c").unwrap();
        assert_eq!(url.tls.unwrap().hostname, "localhost");
    }

    #[test]
    fn what_cannot_be_meant_is_named_and_no_secret_is_repeated() {
        let long = format!("nbd://h/{}", "x".repeat(EXPORT_BYTES_MAX + 1));
        for (text, word) in [
            ("nbd:///x", "no host"),
            ("nbd:x", "no host"),
            ("nbd://h:0/x", "no port"),
            ("nbd://h:70000/x", "no port"),
            ("nbd://[::1]7/x", "no port"),
            ("nbd://[::1/x", "no host"),
            ("nbd+unix:///x", "no socket"),
            ("nbd+unix://h/x?socket=/s", "no host"),
            ("nbd+unix:///x?socket=s", "absolute"),
            ("nbd://h/x?socket=/s", "`socket`"),
            ("nbd://h/x?colour=red", "`colour`"),
            ("nbd://h/x?tls-certificates=/c", "without TLS"),
            ("nbd://h/x?tls-hostname=a", "without TLS"),
            ("nbds://h/x", "tls-certificates=DIR"),
            ("nbds://h/x?tls-certificates=c", "absolute"),
            ("nbds://h/x?tls-psk-file=/secret", "pre-shared"),
            ("nbds://h/x?tls-certificates=/c&tls-certificates=/d", "twice"),
            ("nbds://secret:secret@h/x?tls-certificates=/c", "pre-shared"),
            ("nbd://h/%4", "two hexadecimal"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd://h/a%00b", "control"),
            ("nbd://h/a#b", "fragment"),
            ("secret@nbdx://h", "scheme"),
            (long.as_str(), "4096"),
        ] {
            let e = NbdUrl::parse(text).unwrap_err().to_string();
            assert!(e.contains(word) && !e.contains("secret"), "{text}: {e}");
        }
        for text in ["/dev/sda", "nbd", "nbd:x", "s3://h", "nbdx://h", "./nbd://h"] {
            assert!(!NbdUrl::is_meant(text), "{text}");
        }
    }
}
