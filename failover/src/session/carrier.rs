//! One path as a carrier of frames: what we put on it, what came by it.
//!
//! The numbers of frames are shared by both paths; each path is counted by itself. The receiver
//! says the highest number that came by a path and how many did; frames of a path arrive in order,
//! so a count that lags behind our own count of frames up to that number tells what was lost.
//! Whoever hears and repeats our frames can make them come by another path first, which spoils the
//! counts; then what is missing is found by its sessions, which wait in vain, a second later.
//!
//! Frames that only acknowledge are counted but not waited for, or two idle ends would
//! acknowledge each other's acknowledgements for ever.

use std::{collections::VecDeque, time::Duration};

use crate::Time;

/// Longest wait between two attempts on a carrier that gives no sign of life.
const PATIENCE_MAX: Duration = Duration::from_secs(30);

/// One path.
#[derive(Debug, Default)]
pub(super) struct Carrier {
    flights: VecDeque<Flight>,
    /// Bytes in flight.
    pub(super) bytes: usize,
    /// Frames put.
    sent: u64,
    /// Frames that were lost, as of the last receipt. What was given up may be among them or only be
    /// late: that cannot be told, so the first receipt after it counts as news.
    lost: u64,
    /// When a receipt last moved on.
    moved_at: Time,
    /// When the last silence was noticed.
    noticed_at: Time,
    /// Silences in a row without one.
    silences: u32,
    /// The highest number that came from the peer, how many did, and what it was told of.
    highest: u64,
    count: u64,
    told: u64,
    /// Bytes that came since it was told.
    untold_bytes: usize,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    /// Frames put by this path up to this one.
    index: u64,
    bytes: usize,
    at: Time,
    /// A receipt is owed.
    awaited: bool,
}

/// What a receipt told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Age of the newest frame it covers.
    pub(crate) delay: Option<Duration>,
    /// Frames were lost.
    pub(super) lost: bool,
}

impl Carrier {
    /// A frame was put.
    pub(super) fn put(&mut self, now: Time, number: u64, bytes: usize, awaited: bool) {
        self.sent += 1;
        self.bytes += bytes;
        self.flights.push_back(Flight { number, index: self.sent, bytes, at: now, awaited });
    }

    /// The peer's receipt.
    pub(super) fn seen(&mut self, now: Time, highest: u64, count: u64) -> Carried {
        let mut last = None;
        while self.flights.front().is_some_and(|f| f.number <= highest)
            && let Some(flight) = self.flights.pop_front()
        {
            self.bytes -= flight.bytes;
            last = Some(flight);
        }
        let Some(last) = last else { return Carried::default() };
        self.moved_at = now;
        self.silences = 0;
        let lost = last.index.saturating_sub(count);
        let news = lost > self.lost;
        self.lost = lost;
        Carried { delay: Some(now.since(last.at)), lost: news }
    }

    /// Whatever is under way is believed to be lost. True when there was something.
    pub(super) fn give_up(&mut self, now: Time) -> bool {
        self.bytes = 0;
        self.moved_at = now;
        let awaited = self.flights.iter().any(|f| f.awaited);
        self.flights.clear();
        awaited
    }

    /// How long a receipt has been owed without a sign of life.
    pub(super) fn silence(&self, now: Time) -> Duration {
        let oldest = self.flights.iter().find(|f| f.awaited);
        oldest.map_or(Duration::ZERO, |f| now.since(f.at.max(self.moved_at)))
    }

    /// When the silence has lasted for `patience`, doubled for each silence before it.
    pub(super) fn stalls_at(&self, patience: Duration) -> Time {
        let oldest = self.flights.iter().find(|f| f.awaited);
        let patience = (patience * (1 << self.silences.min(8))).min(PATIENCE_MAX);
        let since = |f: &Flight| f.at.max(self.moved_at).max(self.noticed_at);
        oldest.map_or(Time::NEVER, |f| since(f) + patience)
    }

    /// The silence was noticed: it is noticed again after twice the time.
    pub(super) const fn stalled(&mut self, now: Time) {
        self.noticed_at = now;
        self.silences = self.silences.saturating_add(1);
    }

    /// A frame came by this path.
    pub(super) fn arrived(&mut self, number: u64, bytes: usize) {
        self.highest = self.highest.max(number);
        self.count += 1;
        self.untold_bytes += bytes;
    }

    /// So much came since the last receipt that the sender's window may be waiting for one.
    pub(super) const fn owes_receipt(&self) -> bool {
        self.untold_bytes >= 128 << 10
    }

    /// The receipt, if it says something new: highest number, count.
    pub(super) fn receipt(&mut self) -> Option<(u64, u64)> {
        let news = self.told != self.count;
        self.told = self.count;
        self.untold_bytes = 0;
        news.then_some((self.highest, self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_lags_tells_of_losses_once() {
        let mut c = Carrier::default();
        for number in [1, 2, 5, 6, 7] {
            c.put(Time(number), number, 100, true);
        }
        assert_eq!(c.bytes, 500);
        let carried = |delay, lost| Carried { delay: Some(Duration::from_micros(delay)), lost };
        assert_eq!(c.seen(Time(10), 2, 2), carried(8, false));
        assert_eq!(c.seen(Time(20), 6, 3), carried(14, true), "5 or 6 did not come");
        assert_eq!(c.seen(Time(20), 7, 4), carried(13, false), "known already");
        c.put(Time(20), 8, 100, true);
        assert!(!c.seen(Time(20), 8, 99).lost, "more than were put: another path's, repeated");
        assert_eq!(c.bytes, 0);
    }

    #[test]
    fn what_was_given_up_may_still_come() {
        let mut c = Carrier::default();
        c.put(Time(1), 1, 10, true);
        assert_eq!(c.stalls_at(Duration::from_micros(9)), Time(10));
        c.stalled(Time(10));
        assert_eq!(c.stalls_at(Duration::from_micros(9)), Time(28), "twice as patient");
        assert!(c.give_up(Time(10)));
        assert_eq!((c.silence(Time(50)), c.give_up(Time(50))), (Duration::ZERO, false));
        c.put(Time(60), 2, 10, true);
        assert_eq!(c.stalls_at(Duration::from_micros(9)), Time(78));
        assert!(!c.seen(Time(70), 2, 2).lost, "it was only late");
        c.put(Time(80), 3, 10, true);
        c.put(Time(80), 4, 10, true);
        assert!(c.seen(Time(90), 4, 3).lost);
    }

    #[test]
    fn acknowledgements_alone_are_not_waited_for() {
        let mut c = Carrier::default();
        c.put(Time(1), 1, 10, false);
        assert_eq!(c.silence(Time(1_000_000)), Duration::ZERO);
        assert_eq!(c.stalls_at(Duration::from_secs(1)), Time::NEVER);
    }

    #[test]
    fn receipts_say_news_only() {
        let mut c = Carrier::default();
        assert_eq!(c.receipt(), None);
        c.arrived(4, 100 << 10);
        assert!(!c.owes_receipt());
        c.arrived(3, 28 << 10);
        assert!(c.owes_receipt());
        assert_eq!((c.receipt(), c.receipt()), (Some((4, 2)), None));
    }
}
