//! Sessions: reliable byte streams to a named service of a peer, many over one pipe.
//!
//! ```text
//!   application writes ─> Outgoing ─┐                          ┌─> Incoming ─> application takes
//!   application writes ─> Outgoing ─┼─> frame ─ path ─> frame ─┼─> Incoming ─> application takes
//!   application writes ─> Outgoing ─┘    (network or storage)  └─> Incoming ─> application takes
//!           ^                                                        │
//!           └────────────── received, taken, limit (credit) ─────────┘
//! ```
//!
//! A railway with two lines. Each session is a row of parcels with numbers (absolute offsets) and
//! prefers one line; trains (frames) take parcels of all sessions that go their way, a little of
//! each in turn, so that nobody's load makes the others wait. The station at the other end says
//! for each session up to where it has everything, up to where the customer fetched it, and for
//! how much more there is room. When a line is cut, its sessions change to the other and begin
//! again at the last parcel the other station is known to have; what comes twice is thrown away by
//! its number.
//!
//! Everything a peer says about a session is a statement that stays true (this much arrived, this
//! is the end, this was accepted), never a step, so statements may be lost, doubled and overtaken.
//! What needs an answer is said again after a loss, after a change of path, and once a second.
//!
//! Awkward cases:
//! * The last acknowledgement of a session may be lost, and whoever said it has already forgotten
//!   the session: asked about a session it has closed, a side answers [`Bye`](Segment::Bye), and it
//!   closes only what it knows to be finished on both sides.
//! * A carrier may lose frames in its middle (a connection that broke, a lane that was reset):
//!   the receiver counts the frames of each path, and a count that lags behind the numbers tells.
//! * A peer cannot make us hold more than we granted, and grants of all its sessions come out of
//!   one purse.

mod carrier;
mod incoming;
mod outgoing;
mod pipe;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;

pub use crate::wire::stream::{Ending, Preference, Refusal};
use crate::{Path, wire::stream::Segment};
pub(crate) use pipe::{Carried, Pipe};

/// One session with a peer, for as long as both daemons live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    number: u64,
    era: u32,
}

impl SessionId {
    /// The number on the wire, for people: unique while neither daemon restarts.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.number
    }
}

/// Bounds of the sessions with one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions at most.
    pub sessions_max: usize,
    /// Window of a new session, bytes.
    pub window_start: u64,
    /// The same when the purse is half empty, bytes.
    pub window_min: u64,
    /// Largest window, bytes.
    pub window_max: u64,
    /// Windows of all sessions together, bytes; half of it is kept for new sessions.
    pub granted_max: u64,
    /// Written and not yet received, all sessions together, bytes.
    pub buffered_max: usize,
    /// How long nothing may get through before a session gives up.
    pub timeout: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            sessions_max: 4096,
            window_start: 64 << 10,
            window_min: 16 << 10,
            window_max: 8 << 20,
            granted_max: 128 << 20,
            buffered_max: 64 << 20,
            timeout: Duration::from_secs(60),
        }
    }
}

/// What an application wants of a session.
#[derive(Debug, Clone)]
pub enum SessionOrder {
    /// A new one; answered at once by [`SessionEvent::Opening`] or [`SessionEvent::NotOpened`].
    Open {
        /// Comes back in the answer.
        token: u64,
        /// Whom it is for.
        service: String,
        /// Which path it prefers.
        preference: Preference,
    },
    /// A session that was [offered](SessionEvent::Offered) is accepted.
    Accept(SessionId),
    /// It is not.
    Refuse(SessionId, Refusal, String),
    /// Bytes to send; never more than [`Node::session_room`](crate::Node::session_room) says.
    Write(SessionId, Bytes),
    /// There are no more.
    Finish(SessionId),
    /// The application took so many bytes.
    Take(SessionId, u64),
    /// The application wants no more bytes.
    Abandon(SessionId),
    /// Give it up: the other side is told, nothing more is delivered.
    Reset(SessionId),
}

/// What an application is told about its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// The order with that token made this session; the destination is asked.
    Opening {
        /// Of the order.
        token: u64,
        /// The session.
        id: SessionId,
    },
    /// The order with that token made none.
    NotOpened {
        /// Of the order.
        token: u64,
        /// There are as many sessions as there may be, or the name is too long.
        reason: NotOpened,
    },
    /// The peer asks for a session; to be accepted or refused.
    Offered {
        /// The session.
        id: SessionId,
        /// Whom it is for.
        service: String,
        /// Which path it prefers.
        preference: Preference,
    },
    /// The destination accepted.
    Accepted(SessionId),
    /// The destination did not; the session is over.
    Refused(SessionId, Refusal, String),
    /// Bytes, in order.
    Data(SessionId, Bytes),
    /// There will be no more. Bytes that came so far, copies included.
    Finished(SessionId, ByPath),
    /// The peer has, and its application took, everything below these offsets.
    Progress {
        /// The session.
        id: SessionId,
        /// Bytes that arrived there.
        received: u64,
        /// Bytes its application took.
        taken: u64,
        /// Bytes we put so far; what was sent again counts again.
        sent: ByPath,
    },
    /// It takes another path now; none while no path it may take is up.
    Moved(SessionId, Option<Path>),
    /// It ended before both sides were done.
    Ended(SessionId, Ending),
    /// Both sides are done.
    Closed(SessionId),
}

/// Bytes of one session by the path they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ByPath {
    /// By the network.
    pub network: u64,
    /// By storage.
    pub storage: u64,
}

impl ByPath {
    const fn add(&mut self, path: Path, bytes: usize) {
        match path {
            Path::Network => self.network += bytes as u64,
            Path::Storage => self.storage += bytes as u64,
        }
    }
}

/// Why no session was opened.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum NotOpened {
    /// There are as many sessions with this peer as there may be.
    #[error("as many sessions with this peer are open as may be")]
    TooMany,
    /// The name is empty or longer than 255 bytes.
    #[error("a service's name has 1 to 255 bytes")]
    Name,
    /// No such peer.
    #[error("there is no such peer")]
    NoSuchPeer,
}

/// Counts of the sessions with one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SessionStatus {
    /// Sessions there are now.
    pub open: u64,
    /// Opened by us and accepted there.
    pub opened: u64,
    /// Opened by the peer and accepted here.
    pub accepted: u64,
    /// Refused there or here.
    pub refused: u64,
    /// Closed with everything delivered.
    pub closed: u64,
    /// Ended before.
    pub ended: u64,
    /// Bytes of applications put into frames, by the network; what was sent again counts again.
    pub network_bytes: u64,
    /// The same by storage.
    pub storage_bytes: u64,
    /// Bytes of the peer's applications handed on.
    pub delivered_bytes: u64,
    /// Written and not yet received there, bytes.
    pub buffered_bytes: u64,
    /// Windows of all sessions together, bytes.
    pub granted_bytes: u64,
    /// Times a carrier was found to have lost frames.
    pub carrier_losses: u64,
    /// Segments that broke the rules.
    pub violations: u64,
}

fn key(segment: &Segment<'_>) -> u64 {
    match segment {
        Segment::Open { id, .. }
        | Segment::Accepted { id, .. }
        | Segment::Refused { id, .. }
        | Segment::Data { id, .. }
        | Segment::Ack { id, .. }
        | Segment::Reset { id, .. }
        | Segment::Bye { id } => *id,
        Segment::Seen { .. } => 0,
    }
}
