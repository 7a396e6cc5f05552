//! Why a daemon did not start: what, where, why, and what to do next.

use std::{io, net::SocketAddr, path::PathBuf};

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The private key cannot be used.
    #[error("{message}")]
    Key {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path}: {source}")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon uses the state directory.
    #[error(
        "another daemon runs with the state directory {path}{}",
        pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
    )]
    Running {
        /// Which.
        path: PathBuf,
        /// Of the other daemon.
        pid: Option<u32>,
    },
    /// The number of this incarnation cannot be kept.
    #[error("cannot keep the incarnation number in {path}: {source}")]
    Epoch {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system has no random bytes.
    #[error("no random bytes from the operating system: {detail}")]
    Random {
        /// Why.
        detail: String,
    },
    /// The address of the network path cannot be used.
    #[error("cannot listen on {address} ({what}): {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The virtual interface cannot be made.
    #[error("cannot open the interface {name}: {source}")]
    Tun {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The virtual interface was made but cannot be set up.
    #[error("cannot set up the interface {name}: {detail}")]
    Interface {
        /// Its name.
        name: String,
        /// Why.
        detail: String,
    },
    /// A TUN device was asked for and the configuration names none.
    #[error("the configuration has no [interface]")]
    NoInterface,
    /// A volume cannot be used.
    #[error("cannot use the volume {path}: {error}")]
    Volume {
        /// Which.
        path: PathBuf,
        /// Why.
        error: volumes::AttachError,
    },
    /// A replica cannot be filled until an operator corrects something.
    #[error("cannot copy to the replica: {error}")]
    Replica {
        /// Which.
        to: PathBuf,
        /// Why.
        error: std::sync::Arc<volumes::CopyError>,
    },
    /// Something every program needs was refused.
    #[error("cannot start {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl StartError {
    /// Whether an operator has to correct something (exit code 2), rather than the machine
    /// failing.
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Key { .. } | Self::Running { .. } | Self::NoInterface => true,
            Self::StateDir { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::AlreadyExists
                    | io::ErrorKind::ReadOnlyFilesystem
            ),
            Self::Epoch { source, .. } => source.kind() == io::ErrorKind::InvalidData,
            Self::Listen { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::AddrInUse
                    | io::ErrorKind::AddrNotAvailable
                    | io::ErrorKind::PermissionDenied
            ),
            Self::Tun { source, .. } => source.kind() == io::ErrorKind::ResourceBusy,
            Self::Volume { error, .. } => error.is_input_error(),
            Self::Replica { error, .. } => error.is_input_error(),
            Self::Random { .. } | Self::Interface { .. } | Self::System { .. } => false,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Key { hint, .. } => hint.clone(),
            Self::StateDir { path, .. } => {
                format!("check who may write there: ls -ld {}", path.display())
            }
            Self::Running { pid: Some(pid), .. } => {
                format!("stop it first (kill {pid}), or give this one another state_dir")
            }
            Self::Running { .. } => "stop it first, or give this one another state_dir".into(),
            Self::Epoch { path, source } if source.kind() == io::ErrorKind::InvalidData => {
                format!("if nothing else uses it, remove {} and start again", path.display())
            }
            Self::Epoch { path, .. } => format!("check space and rights of {}", path.display()),
            Self::Random { .. } => "wait until the system has booted, then start again".into(),
            Self::Listen { address, source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    format!("see who uses port {}: ss -lunpt", address.port())
                }
                io::ErrorKind::AddrNotAvailable => {
                    format!("{} is no address of this machine: ip address", address.ip())
                }
                _ => "choose another network.listen".into(),
            },
            Self::Tun { name, source } => match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    "run as root or with CAP_NET_ADMIN and access to /dev/net/tun, or leave \
                     [interface] out"
                        .into()
                }
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    "load the driver: modprobe tun".into()
                }
                Some(libc::EBUSY) => {
                    format!("another program holds {name}: choose another interface.name")
                }
                _ => "see dmesg".into(),
            },
            Self::Interface { .. } => {
                "it needs CAP_NET_ADMIN; see whether the address is taken: ip address".into()
            }
            Self::NoInterface => "add [interface], or attach another interface".into(),
            Self::Volume { path, .. } => {
                format!("see what is there: sidepath volume inspect {}", path.display())
            }
            Self::Replica { to, .. } => {
                format!("see what is there: sidepath volume inspect {}", to.display())
            }
            Self::System { .. } => "see the limits of this process: ulimit -a".into(),
        }
    }
}
