//! Why a session could not be had, or ended.

use std::io;

use failover::session::{Ending, NotOpened, Refusal};

/// Why a session could not be had, or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionError {
    /// The destination said no.
    #[error("refused: {}{}", refusal(*reason), in_brackets(.detail))]
    Refused {
        /// Why.
        reason: Refusal,
        /// In the destination's words; may be empty.
        detail: String,
    },
    /// It ended before both sides were done.
    #[error("the session ended: {}", ending(*.0))]
    Ended(Ending),
    /// It was not even asked for.
    #[error("{0}")]
    NotOpened(NotOpened),
    /// No peer has that name or id.
    #[error("no peer is called {0}")]
    NoSuchPeer(String),
    /// Somebody listens for that service already.
    #[error("somebody listens for service {0} already")]
    ServiceTaken(String),
    /// Services of that name are the daemons' own.
    #[error("services called sidepath.* are the daemons' own, {0} among them")]
    Reserved(String),
    /// Who runs the program may hold sessions, but not order anything.
    #[error("uid {0} may hold sessions but not order anything")]
    MayNotOrder(u32),
    /// The node has stopped, or is not there.
    #[error("the node has stopped")]
    Stopped,
    /// The daemon's socket failed.
    #[error("{0}")]
    Daemon(String),
}

const fn refusal(reason: Refusal) -> &'static str {
    match reason {
        Refusal::NoSuchService => "nobody listens there for that service",
        Refusal::Busy => "as many sessions wait there to be accepted as may wait",
        Refusal::TooMany => "the destination holds as many sessions with us as it may",
        Refusal::Rejected => "the listener did not want it",
    }
}

fn in_brackets(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

const fn ending(ending: Ending) -> &'static str {
    match ending {
        Ending::Reset => "the other application gave it up",
        Ending::Unread => "the other application reads no more",
        Ending::Violation => "a rule of the protocol was broken; are both daemons of one release?",
        Ending::TimedOut => {
            "nothing got through by any path it may take for as long as it may wait"
        }
        Ending::PeerRestarted => "the peer's daemon is another one than before",
        Ending::PeerStopped => "the peer's daemon stopped",
        Ending::Closed => "this node stopped, or the peer was taken out of the configuration",
    }
}

impl From<SessionError> for io::Error {
    fn from(error: SessionError) -> Self {
        let kind = match &error {
            SessionError::Refused { .. } => io::ErrorKind::ConnectionRefused,
            SessionError::Ended(Ending::Unread) => io::ErrorKind::BrokenPipe,
            SessionError::Ended(Ending::TimedOut) => io::ErrorKind::TimedOut,
            SessionError::Ended(Ending::PeerRestarted | Ending::PeerStopped | Ending::Closed) => {
                io::ErrorKind::ConnectionAborted
            }
            SessionError::Ended(_) => io::ErrorKind::ConnectionReset,
            SessionError::ServiceTaken(_) => io::ErrorKind::AddrInUse,
            SessionError::NoSuchPeer(_) => io::ErrorKind::NotFound,
            SessionError::Reserved(_) => io::ErrorKind::InvalidInput,
            SessionError::MayNotOrder(_) => io::ErrorKind::PermissionDenied,
            SessionError::Stopped => io::ErrorKind::NotConnected,
            SessionError::NotOpened(_) | SessionError::Daemon(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
