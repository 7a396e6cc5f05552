//! Keeps the memory of this process, and the keys in it, from leaving it by way of the system.
//!
//! Awkward cases: a limit of zero stops core files but not a core that is piped to a collector
//! (systemd-coredump), which only a process that is not dumpable refuses; the same flag keeps
//! other processes of our user from reading `/proc/PID/mem` and from attaching as debuggers. It
//! goes with an exec, so hooks are ordinary programs.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// No core file, no core to a collector, no debugger of our own user.
pub(crate) fn keep_in_memory() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = setrlimit(Resource::Core, none);
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(limited?)
}
