//! A deterministic simulator of sidepath: the very core and the very volume machines of the
//! daemon, in a world where every clock, cable and disk is made of dice.
//!
//! ```text
//!   plan (who, what flows, what breaks when)  +  seed
//!        |
//!      world: one heap of events, virtual microseconds
//!        |-- host: turn loop + node | beat thread + pulse | store: keeper, writer, reader
//!        |-- net: a wire per ordered pair      |-- disk: one for all, a view per host
//!        |-- check: the invariants             '-- truth: what really works, and since when
//! ```
//!
//! The same seed gives the same run to the last event, so that a failure found once can be looked
//! at as often as needed. [`scenario`] holds the stories; [`scenario::swarm`] draws one from a
//! seed. `docs/testing.md` says what each kind of fault must not break.
#![forbid(unsafe_code)]

pub mod canary;
pub mod check;
mod cluster;
pub mod disk;
pub mod fault;
mod host;
mod machines;
pub mod net;
mod nonces;
pub mod plan;
mod records;
pub mod rng;
mod run;
pub mod scenario;
pub mod shrink;
mod store;
mod stranger;
pub mod talks;
mod trace;
pub mod truth;
mod turning;
mod wires;
pub mod workload;
mod world;

pub use run::{Outcome, run};
pub use world::KINDS;
