//! The command line from outside: a file for each command, `room` and `pair` for what they share.
//!
//! All are one program, because linking each of them took longer than running it. So they run side
//! by side: nothing here changes what the process has only one of, and every test has a folder,
//! ports and sockets of its own.

mod backup;
mod config;
mod copy;
mod demo;
mod drill;
mod keygen;
mod nbdkit;
mod pair;
mod peers;
mod ping;
mod reload;
mod replicate;
mod room;
mod run;
mod send;
mod socket;
mod status;
mod tree;
mod usage;
mod volume;
