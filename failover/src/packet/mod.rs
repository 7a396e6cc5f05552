//! What the core sees of a packet, and nothing more: who talks to whom, how urgent it is, and
//! where it may be cut.

mod checksum;
mod flow;
mod segment;

pub(crate) use flow::{Fragments, View};
pub(crate) use segment::{VNET, Vnet, segments};

/// How urgent a flow is. Strict priority, each bounded in bytes and age per peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Latency-critical.
    Express,
    /// Everything that must reach the peer.
    Write,
    /// Requests their sender repeats by itself; never by storage.
    Read,
}
