//! What an all-knowing observer says about the paths, and since when.
//!
//! The nodes guess; this knows. A loss is excused only while, and shortly after, no path between
//! the two was usable without a break.

use std::collections::BTreeMap;

use failover::{Path, session::Preference};

/// A path must have worked for so long before a loss is nobody's fault but ours. It covers the
/// time to live of a packet (5 s) and the time in which a path is found good again.
pub const SETTLED: u64 = 10_000_000;

/// An interface queue of 500 super-packets is more than a class queue holds; it is swallowed whole
/// when a process goes on after a pause.
const BURST: u64 = 2_000_000;

/// Since when each path from one host to another works.
#[derive(Debug, Default)]
pub struct Truth {
    pairs: BTreeMap<(u8, u8), Pair>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Pair {
    network: Option<u64>,
    storage: Option<u64>,
    /// Until when packets may overtake each other.
    disorder: u64,
    /// A clock stood still until then: the age of what was under way cannot be known.
    thawed: u64,
    /// Until when a burst that waited out a pause may overflow a queue.
    burst: u64,
}

impl Truth {
    /// How things are now.
    pub fn set(&mut self, now: u64, ends: (u8, u8), network: bool, storage: bool) {
        let pair = self.pairs.entry(ends).or_default();
        pair.network = network.then(|| pair.network.unwrap_or(now));
        pair.storage = storage.then(|| pair.storage.unwrap_or(now));
    }

    /// A host started, stopped or slept: whatever worked works from now on.
    pub fn restart(&mut self, now: u64, host: u8) {
        for (ends, pair) in &mut self.pairs {
            if ends.0 == host || ends.1 == host {
                pair.network = pair.network.map(|_| now);
                pair.storage = pair.storage.map(|_| now);
                pair.disorder = pair.disorder.max(now + SETTLED);
                pair.burst = now + BURST;
            }
        }
    }

    /// A host's clock goes on after it stood still.
    pub fn thaw(&mut self, now: u64, host: u8) {
        for (ends, pair) in &mut self.pairs {
            if ends.0 == host || ends.1 == host {
                pair.thawed = now;
            }
        }
    }

    /// Whether nobody could know how old something is that was sent at `sent`.
    #[must_use]
    pub fn excuses_age(&self, sent: u64, ends: (u8, u8)) -> bool {
        self.pairs.get(&ends).is_some_and(|p| sent < p.thawed)
    }

    /// Packets may overtake each other until then.
    pub fn disorder(&mut self, until: u64, ends: (u8, u8)) {
        let pair = self.pairs.entry(ends).or_default();
        pair.disorder = pair.disorder.max(until);
    }

    /// Whether a full queue is excused.
    #[must_use]
    pub fn excuses_overflow(&self, now: u64, ends: (u8, u8)) -> bool {
        self.pairs.get(&ends).is_some_and(|p| now < p.burst)
    }

    /// Whether an overtaking is excused.
    #[must_use]
    pub fn excuses_disorder(&self, now: u64, ends: (u8, u8)) -> bool {
        self.pairs.get(&ends).is_some_and(|p| now < p.disorder)
    }

    /// Whether sessions with that preference had a path for long: a network that came back is on
    /// hold for up to a minute.
    #[must_use]
    pub fn carries(&self, now: u64, (a, b): (u8, u8), preference: Preference) -> bool {
        let pairs = [self.pairs.get(&(a, b)), self.pairs.get(&(b, a))];
        let long = |since: Option<u64>, time| since.is_some_and(|s| s + time <= now);
        let works = |path: Path| {
            pairs.iter().all(|pair| {
                pair.is_some_and(|p| match path {
                    Path::Network => long(p.network, SETTLED + 65_000_000),
                    Path::Storage => long(p.storage, SETTLED),
                })
            })
        };
        [Path::Network, Path::Storage].into_iter().any(|p| preference.allows(p) && works(p))
    }

    /// Whether a packet that found no way in time is excused.
    #[must_use]
    pub fn excuses_loss(&self, now: u64, ends: (u8, u8)) -> bool {
        let settled = |since: Option<u64>| since.is_some_and(|s| s + SETTLED <= now);
        self.pairs.get(&ends).is_none_or(|p| !settled(p.network) && !settled(p.storage))
    }
}
