//! A lab: machines made of network namespaces, cables made of veth pairs, a shared disk made of
//! a loop device.
//!
//! Think of a bench with a few computers, one switch and one disk array. A test plugs things in,
//! pulls a cable, freezes the array, and looks at what the programs on the computers noticed.
//! [`bench`] builds the room, [`disk`] the array, [`node`] runs the daemons, [`meter`] measures
//! traffic, [`runner`] lets one story run at a time and sweeps up after those that were killed.
//!
//! The awkward cases: a story that panics must leave no namespace behind; a run that is killed
//! must not either (a watchdog child waits for the end of its pipe); an ordinary user has no loop
//! devices and no real-time priority, and gets a short lab in namespaces of its own.

// Every test binary compiles this module and uses a part of it.
#![allow(dead_code, unused_imports)]
// Lengths, nanoseconds and process ids of a test fit where they are put.
#![allow(clippy::cast_possible_truncation)]

pub(crate) mod bench;
pub(crate) mod books;
pub(crate) mod clusters;
pub(crate) mod disk;
pub(crate) mod export;
pub(crate) mod faults;
pub(crate) mod flow;
pub(crate) mod fuse;
pub(crate) mod intruder;
pub(crate) mod meter;
pub(crate) mod node;
pub(crate) mod process;
pub(crate) mod rng;
pub(crate) mod runner;
pub(crate) mod status;
pub(crate) mod sys;
pub(crate) mod talkers;
pub(crate) mod transfer;

pub(crate) use bench::{Lab, Plan};
pub(crate) use disk::Medium;
pub(crate) use meter::{Meter, Stream, Summary};
pub(crate) use node::Node;
pub(crate) use process::{run, sh, wait_for};
pub(crate) use runner::{Needs, Story, long, main};
pub(crate) use status::Status;
