//! What happened, as plain data; and what a machine wants done.
//!
//! Facts are never verdicts: "this write took 900 ms" is a fact, "the storage is down" is for
//! whoever collects them. Awkward cases: a fact may repeat (a write that keeps failing says so at
//! each retry, slowed by back-off), and facts of one machine are in order while those of
//! different machines are not ordered among each other.

use bytes::Bytes;
use serde::Serialize;

/// Monotonic microseconds; the origin is the caller's.
pub type Micros = u64;

/// One of the two rings of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ring {
    /// Small; looked at first, so that nothing urgent queues behind bulk.
    Express,
    Data,
}

impl Ring {
    pub const BOTH: [Self; 2] = [Self::Express, Self::Data];

    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Express => 0,
            Self::Data => 1,
        }
    }
}

/// Tells one record of a volume from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordName {
    pub from: u8,
    pub to: u8,
    pub ring: Ring,
    pub epoch: u64,
    pub number: u64,
}

/// What a machine wants done on its medium.
#[derive(Debug, Clone)]
pub enum Op {
    Read {
        offset: u64,
        len: usize,
        /// What is looked for there, for media that know records by their names.
        record: Option<RecordName>,
    },
    /// `data` starts at an address fit for direct I/O and is whole blocks long.
    Write {
        offset: u64,
        data: Bytes,
    },
    Flush,
}

/// What a machine wants next.
#[derive(Debug, Clone)]
pub enum Step {
    /// Do this, then call `complete`; `step` is not called before.
    Do(Op),
    /// Call `step` again at this time (at once when it has passed), or earlier when woken.
    WaitUntil(Micros),
    /// Nothing to do until somebody calls a method of the machine.
    Idle,
    /// Never anything to do again.
    Stopped(Reason),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("writing stopped: {0}")]
    Fenced(FenceReason),
    #[error("{0}")]
    ClaimRefused(crate::keeper::ClaimError),
    #[error("said goodbye")]
    Goodbye,
}

/// Why this node must not write to the volume any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FenceReason {
    #[error(
        "another daemon (epoch {epoch}) writes as this node; stop one of the two, or give it another id"
    )]
    ForeignEpoch { epoch: u64 },
    #[error("the medium now holds another volume (uuid {found}); check the path or re-attach")]
    OtherVolume { found: String },
    #[error(
        "the volume's generation went from {ours} to {found}: it was formatted anew or rolled back; re-attach"
    )]
    Generation { ours: u64, found: u64 },
    #[error(
        "the volume no longer holds this node's epoch {ours} (found {found}): it was rolled back to an older state and is claimed anew"
    )]
    RolledBack { ours: u64, found: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IoFaultKind {
    Eio,
    ReadOnly,
    NoSpace,
    /// The device or file is no longer there.
    Gone,
    TimedOut,
    ShortRead,
    /// It asks for fewer requests.
    Throttled,
    Other,
}

/// One operation that failed on the medium.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct IoFault {
    pub kind: IoFaultKind,
    pub detail: String,
}

impl IoFault {
    pub fn new(kind: IoFaultKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Fact {
    /// The claim is done: our epoch is on the volume and writing may begin.
    Attached {
        epoch: u64,
    },
    /// The claim was refused; nothing will be written.
    ClaimRefused {
        error: crate::keeper::ClaimError,
    },
    BeatWritten {
        latency: Micros,
    },
    /// The medium took a record. Not a receipt: only the reader's cursor is.
    RecordWritten {
        to: u8,
        ring: Ring,
        number: u64,
        bytes: usize,
        frames: usize,
        latency: Micros,
    },
    MailboxWritten {
        to: u8,
    },
    WriteFailed {
        fault: IoFault,
    },
    ReadFailed {
        fault: IoFault,
    },
    /// How far apart our beats are from now on; the medium may not bear what was asked for.
    BeatsEvery {
        interval: Micros,
    },
    /// Our read of superblock and node table succeeded.
    TableRead {
        latency: Micros,
    },
    /// A peer's entry advanced since the last read.
    PeerBeat {
        node: u8,
        epoch: u64,
        beat: u64,
        interval: Micros,
    },
    /// A peer's entry says that it stopped on purpose.
    PeerLeft {
        node: u8,
        epoch: u64,
    },
    /// A peer attached this volume only to read: what it sends lies on another one.
    PeerSendsElsewhere {
        node: u8,
    },
    /// A peer's entry says that it has read our records up to `number`.
    PeerRead {
        node: u8,
        ring: Ring,
        number: u64,
    },
    /// A peer's entry went backwards (stale read, or the volume was rolled back): ignored.
    PeerWentBack {
        node: u8,
        epoch: u64,
        beat: u64,
        known_epoch: u64,
        known_beat: u64,
    },
    /// A record was read and verified.
    Frames {
        from: u8,
        ring: Ring,
        number: u64,
        frames: Vec<Bytes>,
    },
    Mailbox {
        from: u8,
        bytes: Bytes,
    },
    /// Everything up to `number` was read; tell the writer.
    Cursor {
        from: u8,
        ring: Ring,
        number: u64,
    },
    /// These records are lost to us; reading goes on after `last`.
    Missing {
        from: u8,
        ring: Ring,
        first: u64,
        last: u64,
    },
    /// The expected record stays damaged after the deadline; it is still being retried.
    CorruptRecord {
        from: u8,
        ring: Ring,
        number: u64,
    },
    /// A peer's entry or record carries an epoch older than one already seen: ignored.
    StaleEpoch {
        from: u8,
        seen: u64,
        current: u64,
    },
    /// Nothing buffered or in flight for that node.
    Drained {
        to: u8,
    },
    /// Nothing will be written by this incarnation any more.
    Fenced {
        why: FenceReason,
    },
    /// An operation is stuck since then; nothing else waits for it.
    Stalled {
        op: &'static str,
        since: Micros,
    },
    /// A stuck operation came back.
    Returned {
        op: &'static str,
    },
    /// An operation succeeded after a stall or after failures.
    Recovered,
}
