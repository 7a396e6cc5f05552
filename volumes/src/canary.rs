//! Bugs planted on purpose, so that the simulator can prove that it finds bugs.
//!
//! Without the feature `canary` nothing is ever planted and the compiler removes every trace; the
//! daemon is built without it. With it, one bug at a time is planted in the present thread.

/// What may be planted in the volume machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The reader takes records of any epoch.
    AnyEpoch,
    /// The reader takes records of any number.
    AnyNumber,
    /// The writer never looks whether the volume is still ours.
    NoFence,
    /// The writer overwrites what nobody has read.
    OverwriteUnread,
    /// A new incarnation writes under its old epoch.
    SameEpoch,
}

/// Every bug with its name and what it does.
pub const ALL: &[(Bug, &str, &str)] = &[
    (Bug::AnyEpoch, "any-epoch", "the reader takes records of any epoch"),
    (Bug::AnyNumber, "any-number", "the reader takes records of any number"),
    (Bug::NoFence, "no-fence", "the writer never looks whether the volume is still ours"),
    (Bug::OverwriteUnread, "overwrite-unread", "the writer overwrites what nobody has read"),
    (Bug::SameEpoch, "same-epoch", "a new incarnation writes under its old epoch"),
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
