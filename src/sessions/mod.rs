//! Sockets that survive: reliable streams to a named service of a peer, by the network or by
//! storage, whichever works.
//!
//! ```text
//!   Stream ── write ──> Port ──┐                       ┌──> Port ── read ──> Stream
//!   Stream ── write ──> Port ──┼─> turn loop = = = = = ┼──> Port ── read ──> Stream
//!                              │   (failover::session) │
//!   Listener <── accept ───────┘                       └─── connect ── Endpoint
//! ```
//!
//! * [`Endpoint`]: a node of this process ([`Endpoint::start`], [`Endpoint::of`]) or a daemon that
//!   runs elsewhere on this machine ([`Endpoint::open`]). The same calls for both.
//! * [`Endpoint::connect`] returns when the destination accepted, [`Endpoint::listen`] gives a
//!   [`Listener`], both give [`Stream`]s: `AsyncRead + AsyncWrite`.
//! * [`DataSocket`]: a pair of a control stream and streams for bulk through storage.
//!
//! # At a change of path
//! Nothing happens that a program could notice but a pause: bytes that the other side has not
//! confirmed go once more by the other path, and arrive once. [`Stream::path`] says which one
//! carries them now.
//!
//! # Ends
//! `shutdown` (or dropping the stream) ends our direction after what was written; the other side
//! reads it to the end. [`Stream::delivered`] waits until the other application took it all. What
//! ends before comes as an [`std::io::Error`] that holds a [`SessionError`].
//!
//! # Needs
//! A tokio runtime to await in; for [`Endpoint::open`] one with I/O enabled.

mod chunks;
mod data;
mod endpoint;
mod error;
pub(crate) mod gate;
pub(crate) mod hub;
mod listener;
mod pace;
mod port;
mod remote;
mod stream;

pub use data::DataSocket;
pub use endpoint::Endpoint;
pub use error::SessionError;
pub use failover::{
    Path,
    session::{ByPath, Ending, Preference, Refusal},
};
pub use listener::{Incoming, Listener};
pub use stream::{OwnedReadHalf, OwnedWriteHalf, Stats, Stream};
