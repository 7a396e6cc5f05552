//! The doors to the kernel that no safe crate opens; the only room with unsafe code.
//!
//! Every function here is a thin, checked wrapper around one or two system calls and knows nothing
//! of peers, frames or turns. Each unsafe block says why it is sound. What `rustix`, `socket2` or
//! `mio` already do safely is not repeated here.

pub(crate) mod clock;
pub(crate) mod errqueue;
pub(crate) mod mmsg;
pub(crate) mod reuseport;
pub(crate) mod sched;
pub(crate) mod secrets;
pub(crate) mod sockopt;
