//! Scheduling: real time for the beat thread, a good seat for the turn loop, memory that stays.
//!
//! Awkward cases: SCHED_FIFO is refused to ordinary users, in user namespaces and in cgroups
//! without real-time budget, so the answer is returned and shown, never assumed. Threads started
//! by a real-time thread must not inherit its priority (`SCHED_RESET_ON_FORK`). Locking all
//! *future* memory without the real capability makes the next thread or large allocation fail
//! under an 8 MiB limit, so only a process with CAP_IPC_LOCK asks for that.

use std::io;

use rustix::{
    mm::{MlockAllFlags, mlockall},
    thread::{CapabilitySet, capabilities, gettid},
};

/// Gives the calling thread SCHED_FIFO with this priority (1..=99).
pub(crate) fn realtime(priority: i32) -> io::Result<()> {
    // SAFETY: sched_param is a plain C struct for which all zeroes is a valid value.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = priority;
    // SAFETY: pid 0 is the calling thread; `param` is initialised and only read during the call.
    let result = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const param)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread the best nice value the system allows, and returns it.
pub(crate) fn nicest() -> i32 {
    // Linux keeps a nice value per thread; a thread id is taken where a process id is asked for.
    let me = gettid();
    for nice in [-20, -15, -10, -5] {
        if rustix::process::setpriority_process(Some(me), nice).is_ok() {
            return nice;
        }
    }
    0
}

/// Keeps the memory of this process from being paged out, as far as that is safe. Returns whether
/// present memory is locked.
pub(crate) fn lock_memory() -> io::Result<()> {
    mlockall(MlockAllFlags::CURRENT)?;
    let capable =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if capable {
        // On fault: what is never touched costs nothing.
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    }
    Ok(())
}
