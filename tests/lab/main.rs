//! A lab: machines made of network namespaces, cables made of veth pairs, a shared disk made of
//! a loop device.
//!
//! Think of a bench with a few computers, one switch and one disk array. A test plugs things in,
//! pulls a cable, freezes the array, and looks at what the programs on the computers noticed.
//! [`bench`] builds the room, [`disk`] the array, [`node`] runs the daemons, [`meter`] measures
//! traffic, [`runner`] lets one story run at a time and sweeps up after those that were killed.
//! The stories are below `stories/`, a file for each thing to show; all are one program, because
//! compiling and linking the room for each of them took minutes.
//!
//! The awkward cases: a story that panics must leave no namespace behind; a run that is killed
//! must not either (a watchdog child waits for the end of its pipe); an ordinary user has no loop
//! devices and no real-time priority, and gets a short lab in namespaces of its own.

// Lengths, nanoseconds and process ids of a test fit where they are put.
#![allow(clippy::cast_possible_truncation)]

mod backups;
mod bench;
mod books;
mod clusters;
mod database;
mod disk;
mod export;
mod faults;
mod flow;
mod fuse;
mod intruder;
mod lanes;
mod meter;
mod node;
mod process;
mod rng;
mod runner;
// The crate of volumes tests with the same servers, and with more of them.
#[allow(dead_code)]
#[path = "../../volumes/tests/all/common/s3/mod.rs"]
mod s3;
mod sites;
mod status;
mod store;
mod stories;
mod sys;
mod talkers;
mod transfer;
// What backups are of, and how trees are compared.
#[path = "../cli/tree.rs"]
mod tree;

pub(crate) use bench::{Lab, Plan};
pub(crate) use disk::Medium;
pub(crate) use meter::{Meter, Stream, Summary};
pub(crate) use node::Node;
pub(crate) use process::{run, sh, wait_for};
pub(crate) use runner::{File, Needs, Story, long};
pub(crate) use status::Status;

fn main() -> std::process::ExitCode {
    runner::main(stories::ALL, stories::PATIENT)
}
