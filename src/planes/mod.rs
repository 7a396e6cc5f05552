//! Drivers: bytes in, bytes out. A plane moves bytes and decides nothing.
//!
//! ```text
//!   tun | channel   packets of applications         udp, tcp, pipe   frames by the network
//!   beat            heartbeats, on their own clock  store      frames by storage
//!   netlink         interface set-up, link events
//! ```
//!
//! Planes owned by the turn loop (`tun`, `channel`, `udp`, `tcp`, `pipe`) are plain structs that never
//! block. Planes with threads of their own (`beat`, `store`, `netlink`) hand what they have to a
//! bounded `queue::Queue` and ring the `queue::Bell` of the loop.

pub(crate) mod beat;
pub mod channel;
mod framing;
pub(crate) mod netlink;
mod outgoing;
pub(crate) mod pipe;
pub(crate) mod queue;
pub(crate) mod store;
pub(crate) mod store_queue;
pub(crate) mod tcp;
pub(crate) mod tun;
pub(crate) mod udp;

/// Length of the `virtio_net_hdr` in front of every packet of the virtual interface.
pub const PACKET_HEADER: usize = 10;
/// Longest packet of the virtual interface, header included.
pub const PACKET_BYTES_MAX: usize = PACKET_HEADER + 65_535;
