//! Bytes at rest: opaque frames go in on one node and come out on another.
//!
//! ```text
//!  store(to, ring, frame)                                  Fact::Frames { from, frames }
//!        |                                                             ^
//!     outbox  -> log::send::Writer -> [ medium ] -> log::receive::Reader
//!                      ^   permit        ^  ^            ^ table
//!                      +----------- keeper::Keeper ------+
//! ```
//!
//! A [`log::replicate::Replicator`] carries all of that from one volume to its replica.
//!
//! Pure machines (`Writer`, `Reader`, `Keeper`, `Replicator`) say what to read or write next; each
//! has at most one operation in flight per medium and takes the time as an argument. The threads
//! of [`runtime`] and [`replicator`] are thin wrappers around them, and a simulator can drive the
//! very same machines over simulated disks. This crate knows nothing of health, packets, sessions
//! or cryptography: it reports facts ([`event::Fact`]) and draws no verdicts.
//!
//! The bytes are described by `docs/volume-format.md`, which is normative.
#![deny(unsafe_code)]

pub mod bench;
pub mod buffer;
#[doc(hidden)]
pub mod canary;
pub mod event;
pub mod fence;
mod flusher;
pub mod format;
pub mod init;
pub mod inspect;
pub mod keeper;
pub mod lock;
pub mod log;
pub mod media;
pub mod outbox;
pub mod pace;
pub mod probe;
mod reader;
pub mod replica;
pub mod replicator;
pub mod runtime;
pub mod status;
pub mod verify;

pub use bench::{BenchError, BenchOptions, BenchReport, bench};
pub use event::{
    Fact, FenceReason, IoFault, IoFaultKind, Micros, Op, Reason, RecordName, Ring, Step,
};
pub use fence::Permit;
pub use format::superblock::{Geometry, Superblock, Uuid};
pub use format::table::{Entry, Table};
pub use init::{InitError, InitOptions, init, init_medium};
pub use inspect::{Inspection, inspect, inspect_medium};
pub use keeper::Keeper;
pub use log::receive::{Mode, Reader};
pub use log::replicate::{Lag, Notice, Pace, Refusal, Side};
pub use log::send::{Refused, Writer};
pub use pace::Class;
pub use replica::{Consent, CopyError};
pub use replicator::{CopyOptions, CopyState, CopyStatus, replicate};
pub use runtime::{AttachError, AttachOptions, Handle, attach};
pub use status::VolumeStatus;
pub use verify::{Verification, verify, verify_medium};
