//! One clock for all threads: CLOCK_MONOTONIC in microseconds, so that the moment a beat came off
//! the wire can be compared with the moment the loop reads of it.
//!
//! Awkward case: CLOCK_MONOTONIC stands still while the machine sleeps. That is what we want: a
//! machine that slept has not been silent by its own clock, and its peers see its silence anyway.

use failover::Time;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Nanoseconds of a timespec; clocks of the kernel never run negative.
fn nanos(at: Timespec) -> u64 {
    let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
    let rest = u64::try_from(at.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Now.
pub(crate) fn now() -> Time {
    Time(nanos(clock_gettime(ClockId::Monotonic)) / 1000)
}

/// Wall clock, nanoseconds since 1970: kernel receive stamps are in it.
pub(crate) fn realtime_ns() -> u64 {
    nanos(clock_gettime(ClockId::Realtime))
}

/// A span or moment in the shape the kernel wants.
pub(crate) fn timespec(micros: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
        // Below 1,000,000,000 by construction.
        tv_nsec: i64::try_from(micros % 1_000_000 * 1000).unwrap_or(0),
    }
}
