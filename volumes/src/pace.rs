//! How fast a kind of medium is, and what follows for whoever waits for it.
//!
//! ```text
//!   medium -> Class -> Times: naps and deadlines of the Reader, beats of the Keeper, io deadline
//! ```
//!
//! A disk answers in 50 us and a look costs nothing; a store over HTTP answers in 50 ms and somebody
//! is billed for each look. The same machines serve both. Awkward cases: beats that follow each other
//! faster than the medium works would leave no valid permit; a store without traffic is looked at only
//! as often as the beats go, for the table announces what there is to read.

use crate::event::Micros;
use serde::Serialize;

/// What an operation takes, in orders of magnitude, and costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// 50 us to 5 ms; looking is free.
    #[default]
    Local,
    /// The same behind a network; looking is nearly free.
    Remote,
    /// 2 to 200 ms, and each request is billed.
    Object,
}

/// The times that follow from a [`Class`], microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long what should be there may be unreadable before it counts as missing.
    pub deadline: Micros,
    /// After traffic, rings are looked at without a pause for so long.
    pub spin: Micros,
    /// The first pause, and for how long it stays that short.
    pub nap: Micros,
    pub nap_long_after: Micros,
    pub nap_max: Micros,
    /// Before a look at what is announced and not there.
    pub retry: Micros,
    /// While active and idle, each mailbox is looked at this often without being announced.
    pub letter_look: Micros,
    /// While bulk flows, silent rings are looked at this often: a read of a block waits behind
    /// those of a mebibyte, and took an eighth of the reader's time when it came with each of them.
    pub silent_look: Micros,
    /// Whether rings are looked at in standby although the table announces nothing.
    pub standby_looks: bool,
    /// A replicator looks at the table of its source so many times a beat, never further apart
    /// than this...
    pub copy_looks_per_beat: u64,
    pub copy_look_max: Micros,
    /// ...at its destination this often, and writes nothing there that long after a look began.
    pub copy_destination_look: Micros,
    pub copy_lease: Micros,
    /// An operation may always take so long before it is called stuck.
    pub stuck_after_min: Micros,
    beat_min: Micros,
    beat_max: Micros,
    /// For each node and one more (reads and the write of a beat), percent of the interval asked for.
    beat_percent_per_request: u64,
    /// How many looks at the table a beat is at least long; 0 for media where that needs no thought.
    beat_looks: u64,
}

/// Longest beat interval that whoever watches an entry takes into account.
const WATCHED_BEAT_MAX: Micros = 4_000_000;
const WATCHED_BEAT_MIN: Micros = 10_000;

/// How long a beat counts for whoever watches whether an entry moves, when it announces this.
#[must_use]
pub fn watched_beat(announced: Micros) -> Micros {
    announced.clamp(WATCHED_BEAT_MIN, WATCHED_BEAT_MAX)
}

const LOCAL: Times = Times {
    deadline: 50_000,
    spin: 1_000,
    nap: 50,
    nap_long_after: 20_000,
    nap_max: 2_000,
    retry: 500,
    letter_look: 5_000,
    silent_look: 2_000,
    standby_looks: true,
    copy_looks_per_beat: 4,
    copy_look_max: 100_000,
    copy_destination_look: 50_000,
    copy_lease: 100_000,
    stuck_after_min: 0,
    beat_min: 5_000,
    beat_max: 10_000_000,
    beat_percent_per_request: 0,
    beat_looks: 0,
};

const REMOTE: Times = Times { deadline: 200_000, retry: 1_000, ..LOCAL };

const OBJECT: Times = Times {
    deadline: 2_000_000,
    // One request after the other while records flow: they come in their own time.
    spin: 300_000,
    nap: 2_000,
    nap_long_after: 500_000,
    nap_max: 100_000,
    retry: 20_000,
    letter_look: 1_000_000,
    // A look takes as long as what it delays; and the table announces records at the next beat.
    silent_look: 250_000,
    standby_looks: false,
    copy_looks_per_beat: 1,
    copy_look_max: WATCHED_BEAT_MAX,
    copy_destination_look: 2_000_000,
    copy_lease: 4_000_000,
    stuck_after_min: 2_000_000,
    // Five operations of 50 ms.
    beat_min: 250_000,
    beat_max: WATCHED_BEAT_MAX,
    // Two nodes that are asked for a beat a second beat every 1.95 s: three requests.
    beat_percent_per_request: 65,
    beat_looks: 4,
};

impl Class {
    #[must_use]
    pub const fn times(self) -> Times {
        match self {
            Self::Local => LOCAL,
            Self::Remote => REMOTE,
            Self::Object => OBJECT,
        }
    }
}

impl Times {
    /// The beat interval to keep when `asked` for one, where a look takes so long, on a volume for so
    /// many nodes.
    #[must_use]
    pub fn beat(&self, asked: Micros, look: Micros, nodes: usize) -> Micros {
        let percent = self.beat_percent_per_request * (nodes as u64 + 1);
        let asked = asked.clamp(LOCAL.beat_min, LOCAL.beat_max);
        (asked * percent.max(100) / 100)
            .max(look * self.beat_looks)
            .clamp(self.beat_min, self.beat_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_as_asked_where_looking_is_free() {
        for class in [Class::Local, Class::Remote] {
            for asked in [5_000, 100_000, 1_000_000, 10_000_000] {
                assert_eq!(class.times().beat(asked, 1_000_000, 64), asked);
            }
            assert_eq!(class.times().beat(1, 0, 2), 5_000);
        }
    }

    #[test]
    fn an_idle_pair_sends_fewer_than_two_requests_a_second() {
        let times = Class::Object.times();
        let second = 1_000_000;
        // Per beat both entries are read and one is written; the superblock every ten seconds.
        let idle = times.beat(second, 50_000, 2);
        assert!(3 * second / idle < 2 && idle <= WATCHED_BEAT_MAX, "{idle}");
        assert!(!times.standby_looks);
        assert_eq!(times.beat(100_000, 50_000, 2), 250_000, "five operations of 50 ms");
        assert_eq!(times.beat(100_000, 300_000, 2), 1_200_000, "four slow looks");
        assert_eq!(times.beat(second, 0, 64), WATCHED_BEAT_MAX, "a watching claimant must see it");
    }
}
