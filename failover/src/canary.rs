//! Bugs planted on purpose, so that the simulator can prove that it finds bugs.
//!
//! Without the feature `canary` nothing is ever planted and the compiler removes every trace; the
//! daemon is built without it. With it, one bug at a time is planted in the present thread.

/// What may be planted in the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The receiver forgets what it has seen.
    ForgetDuplicates,
    /// A completed write counts as arrived.
    TrustWrite,
    /// A frame sent again gets a new number.
    NewNumber,
    /// Packets are handed on past their time to live.
    PastTtl,
    /// Hearing the peer counts as being heard by it.
    ForgetOneWay,
    /// Frames do not wait for their predecessor.
    NoOrder,
    /// The network is trusted again without a hold time.
    ReturnAtOnce,
    /// A network that is down is not left.
    NoFailover,
    /// Receipts name what never arrived.
    AckUnread,
    /// What was under way is not sent by the new path.
    NoRewind,
    /// Losses are not counted.
    LoseQuietly,
    /// A new incarnation of the peer finds the old link.
    KeepOldLink,
    /// A peer met anew sees the same incarnation of us.
    SameEpoch,
    /// A clock that stood still is not noticed.
    TrustOldClock,
    /// Nothing is ever sent again.
    NoResend,
    /// The sender's floor covers what is under way.
    HighFloor,
    /// What waited for a lost predecessor is thrown away.
    DropHeld,
    /// Two control frames are sealed with one number.
    SameNonce,
    /// What a path may have lost of a session is not sent again.
    SessionNoRewind,
    /// What comes twice of a session is handed on twice.
    SessionDoubles,
    /// A session sends more than it was granted.
    SessionPastWindow,
    /// Sessions outlive the peer's incarnation.
    SessionSurvives,
    /// A session is forgotten before both sides have everything.
    SessionQuickBye,
}

/// Every bug with its name and what it does.
pub const ALL: &[(Bug, &str, &str)] = &[
    (Bug::ForgetDuplicates, "forget-duplicates", "the receiver forgets what it has seen"),
    (Bug::TrustWrite, "trust-write", "a completed write counts as arrived"),
    (Bug::NewNumber, "new-number", "a frame sent again gets a new number"),
    (Bug::PastTtl, "past-ttl", "packets are handed on past their time to live"),
    (Bug::ForgetOneWay, "forget-one-way", "hearing the peer counts as being heard by it"),
    (Bug::NoOrder, "no-order", "frames do not wait for their predecessor"),
    (Bug::ReturnAtOnce, "return-at-once", "the network is trusted again without a hold time"),
    (Bug::NoFailover, "no-failover", "a network that is down is not left"),
    (Bug::AckUnread, "ack-unread", "receipts name what never arrived"),
    (Bug::NoRewind, "no-rewind", "what was under way is not sent by the new path"),
    (Bug::LoseQuietly, "lose-quietly", "losses are not counted"),
    (Bug::KeepOldLink, "keep-old-link", "a new incarnation of the peer finds the old link"),
    (Bug::SameEpoch, "same-epoch", "a peer met anew sees the same incarnation of us"),
    (Bug::TrustOldClock, "trust-old-clock", "a clock that stood still is not noticed"),
    (Bug::NoResend, "no-resend", "nothing is ever sent again"),
    (Bug::HighFloor, "high-floor", "the sender's floor covers what is under way"),
    (Bug::DropHeld, "drop-held", "what waited for a lost predecessor is thrown away"),
    (Bug::SameNonce, "same-nonce", "two control frames are sealed with one number"),
    (Bug::SessionNoRewind, "session-no-rewind", "what was lost of a session is not sent again"),
    (Bug::SessionDoubles, "session-doubles", "what comes twice of a session is handed on twice"),
    (Bug::SessionPastWindow, "session-past-window", "a session sends more than it was granted"),
    (Bug::SessionSurvives, "session-survives", "sessions outlive the peer's incarnation"),
    (
        Bug::SessionQuickBye,
        "session-quick-bye",
        "a session is forgotten before both have everything",
    ),
];

#[cfg(feature = "canary")]
mod planting {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug in this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "canary")]
pub use planting::plant;
#[cfg(feature = "canary")]
pub(crate) use planting::planted;

/// Nothing is planted.
#[cfg(not(feature = "canary"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
