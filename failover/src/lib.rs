//! The pure decision of sidepath.
//!
//! Packets of applications come in; sealed frames for the network or for storage go out, and the
//! other way round. In between this crate numbers, keeps, resends, drops doubles and orders them,
//! watches the health of both paths, and chooses. It has no sockets, files, threads or clock: the
//! contract is in [`mod@turn`], which is the page to read first.
#![forbid(unsafe_code)]

pub mod beat;
#[doc(hidden)]
pub mod canary;
mod clock;
pub mod event;
#[doc(hidden)]
pub mod fuzz;
pub mod health;
mod link;
mod node;
mod options;
mod packet;
pub mod path;
mod peer;
mod queue;
pub mod secure;
pub mod session;
pub mod status;
pub mod turn;
pub mod wire;

pub use clock::{Time, micros};
pub use event::Event;
pub use node::Node;
pub use options::{ClassRules, NodeId, Options, PeerOptions, Timing, VolumeId};
pub use path::Route;
pub use turn::{
    Command, Cut, Input, NetworkFact, Output, Path, Ring, StorageFault, Via, VolumeFact,
    VolumeOrder, World, finish, turn,
};
