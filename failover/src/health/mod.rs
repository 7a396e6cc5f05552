//! Verdicts from facts.
//!
//! A night watchman hears the colleague's steps every few seconds. One step late: he pricks up
//! his ears (`suspect`), which costs nothing and can be taken back. A good while later: he raises
//! the alarm (`down`). He learns how regular the colleague usually is, but not from the nights of
//! alarm; and when he dozed off himself, he does not blame the colleague for the steps he missed.
//!
//! `network` judges beats and data per direction, `storage` the volumes, `recovery` when a
//! network that was given up may be trusted again. Each verdict has a reason. Nothing here knows
//! what is done about a verdict: that is `path`.

mod lateness;
mod network;
mod recovery;
mod storage;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use network::{Network, Settings};
pub(crate) use recovery::Recovery;
pub(crate) use storage::Storage;

/// Our own loop may be late by this without being excused: beats carry the moment they came off
/// the wire, so only a pause of the whole process hides them.
pub(crate) const OWN_LATENESS: Duration = Duration::from_millis(100);

/// How a path stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Works, seen recently.
    Up,
    /// Late; may be nothing.
    Suspect,
    /// Given up until proven otherwise.
    Down,
    /// Not configured.
    Disabled,
}

/// Why a path is not up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is up.
    None,
    /// Not in the configuration.
    NotConfigured,
    /// Nothing was ever heard.
    NeverHeard,
    /// Beats are late.
    HeartbeatsMissed,
    /// Our own link is down.
    LinkDown,
    /// The operating system refuses to send, or an ICMP error came back.
    SendErrors,
    /// The peer says that it does not hear us.
    PeerDoesNotHearUs,
    /// Beats pass, data does not.
    DataStalls,
    /// Several copies of a frame left no trace, although others arrive.
    FramesStuck,
    /// The peer said goodbye.
    Goodbye,
    /// Our own entry is not written.
    OwnBeatLate,
    /// The node table is not read.
    TableUnread,
    /// The peer's entry stands still.
    PeerBeatLate,
    /// The peer says that it does not see us in storage.
    PeerDoesNotSeeUs,
    /// What the volume reported.
    Fault(crate::StorageFault),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::StorageFault as S;
        f.write_str(match self {
            Self::None => "",
            Self::NotConfigured => "not configured",
            Self::NeverHeard => "nothing heard yet",
            Self::HeartbeatsMissed => "heartbeats missed",
            Self::LinkDown => "own link down",
            Self::SendErrors => "sends refused",
            Self::PeerDoesNotHearUs => "peer does not hear us",
            Self::DataStalls => "data stalls while heartbeats pass",
            Self::FramesStuck => "some frames never arrive while others do",
            Self::Goodbye => "peer said goodbye",
            Self::OwnBeatLate => "own beat not written in time",
            Self::TableUnread => "node table not read in time",
            Self::PeerBeatLate => "peer's beat in storage stands still",
            Self::PeerDoesNotSeeUs => "peer does not see our beat in storage",
            Self::Fault(S::ReadError) => "read error",
            Self::Fault(S::WriteError) => "write error",
            Self::Fault(S::ReadOnly) => "volume is read-only",
            Self::Fault(S::Full) => "volume is full",
            Self::Fault(S::Gone) => "volume is gone",
            Self::Fault(S::Stalled) => "an operation is stuck",
            Self::Fault(S::Fenced) => "fenced: another writer or another volume",
            Self::Fault(S::NotAttached) => "volume is not attached",
        })
    }
}

/// A verdict and why.
pub(crate) type Judged = (Verdict, Reason);

/// The worse of two.
pub(crate) fn worse(a: Judged, b: Judged) -> Judged {
    if b.0 > a.0 { b } else { a }
}
