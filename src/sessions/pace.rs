//! Whether applications ring for the loop, or the loop comes by itself.
//!
//! On a busy processor the loop is there before an application has written twice, and does a whole
//! turn for one small message. When it was called [`RINGS`] times in a row, each within [`SOON`],
//! it comes every [`GATHER`] instead, [`GATHERINGS`] times, and nobody rings: a frame then holds
//! what many wrote. Whoever writes now and then never waits.

use std::time::Duration;

use failover::Time;

const SOON: Duration = Duration::from_micros(40);
const GATHER: Duration = Duration::from_micros(150);
const RINGS: u32 = 16;
const GATHERINGS: u32 = 64;

#[derive(Debug)]
pub(super) struct Pace {
    /// When something was last found.
    found_at: Time,
    /// How many times in a row that was soon after the time before.
    rings: u32,
    /// How many more times the loop comes by itself.
    left: u32,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self { found_at: Time::ZERO, rings: 0, left: 0 }
    }

    /// The loop came, and found something or nothing. True when nobody need ring: it comes again
    /// at [`Self::next`].
    pub(super) fn came(&mut self, now: Time, found: bool) -> bool {
        if found {
            let soon = now.since(self.found_at) < SOON;
            self.found_at = now;
            if self.left > 0 {
                self.left -= 1;
            } else {
                self.rings = if soon { self.rings + 1 } else { 0 };
                if self.rings >= RINGS {
                    (self.rings, self.left) = (0, GATHERINGS);
                }
            }
        } else if now >= self.next() {
            self.left = 0;
        }
        self.left > 0
    }

    /// When the loop is to come by itself.
    pub(super) fn next(&self) -> Time {
        if self.left > 0 { self.found_at + GATHER } else { Time::NEVER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(n: u64) -> Time {
        Time(1_000_000 + n)
    }

    /// Called every `step` microseconds: how many of `times` nobody need ring after.
    fn quiet(pace: &mut Pace, step: u64, times: u64) -> u64 {
        (0..times).map(|n| u64::from(pace.came(micros(n * step), true))).sum()
    }

    #[test]
    fn whoever_writes_now_and_then_rings() {
        let mut pace = Pace::new();
        assert_eq!(quiet(&mut pace, 40, 1000), 0);
        assert_eq!(pace.next(), Time::NEVER);
        // Fifteen in a row are not enough, however often.
        let mut pace = Pace::new();
        for round in 0..100 {
            for n in 0..16 {
                assert!(!pace.came(micros(round * 1000 + n), true));
            }
        }
    }

    #[test]
    fn a_flood_is_gathered_for_a_while_and_then_tried_again() {
        let mut pace = Pace::new();
        // The first is no ring; sixteen rings; then 64 that come by themselves.
        assert_eq!(quiet(&mut pace, 1, 17), 1);
        assert_eq!(pace.next(), micros(16) + GATHER);
        for n in 1..64 {
            assert!(pace.came(micros(16 + 150 * n), true), "{n}");
        }
        assert!(!pace.came(micros(16 + 150 * 64), true));
        assert_eq!(pace.next(), Time::NEVER);
    }

    #[test]
    fn a_gathering_that_finds_nothing_is_the_last() {
        let mut pace = Pace::new();
        assert_eq!(quiet(&mut pace, 1, 17), 1);
        assert!(pace.came(micros(17), false), "it is not due yet");
        assert!(!pace.came(micros(16) + GATHER, false));
        assert_eq!(pace.next(), Time::NEVER);
    }
}
