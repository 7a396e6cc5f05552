//! Sidepath keeps machines talking when the network between them dies, by carrying their packets
//! through the storage they can both still reach.
//!
//! ```text
//!  applications ──> virtual interface ──┐                          ┌──> UDP, TCP ──> network
//!                                       │                          │                     │
//!                               daemon::turn_loop ── failover ──> planes                peer
//!                                       │                          │                     │
//!  operator ──> cli ──> admin socket ───┘                          └──> volumes ──> storage
//! ```
//!
//! This crate is the hands: all that touches Linux or a human. What to do is decided by the pure
//! core in the crate `failover`; how bytes lie on a medium is known by the crate `volumes`.
//!
//! * [`config`]: words an operator wrote, turned into checked values.
//! * [`daemon`]: the loop that feeds the core and does what it says.
//! * [`sessions`]: sockets that survive, for programs.
//! * [`planes`]: drivers, bytes in and bytes out.
//! * [`admin`]: the control socket, metrics and logs.
//! * [`cli`]: one file per command.
//! * [`demo`]: two whole nodes in one process, for the curious.
//! * `sys`: the only unsafe code.
//!
//! A program that wants a daemon inside itself builds a [`config::Config`] (or reads one with
//! [`config::load`]) and gives it to `daemon::Daemon::start`.
#![deny(unsafe_code)]

pub mod admin;
mod backup;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod planes;
pub mod sessions;
#[allow(unsafe_code)]
mod sys;

pub use failover::Cut;
