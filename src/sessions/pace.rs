//! Whether applications ring for the loop, or the loop comes by itself.
//!
//! On a busy processor the loop is there before an application has written twice, and does a whole
//! turn for one small message. When it was called about [`RINGS`] times in a row, each within
//! [`SOON`] and two turns, it comes every [`GATHER`] instead, [`GATHERINGS`] times, and nobody rings:
//! a frame then holds what many wrote. Whoever writes now and then never waits, nor does a question
//! that is asked again as soon as it is answered: that takes four turns, two at each end.
//!
//! Awkward cases:
//! * Where calling and coming cost much (processors of a virtual machine wake each other by way of
//!   its host), frames hold little even so. As long as [`MANY`] had something each time, the
//!   loop comes half as often, down to every [`GATHER_MAX`].
//! * Whoever reads a flood rings a few times per frame and pauses until the next: pauses make up for
//!   [`PAUSE`] rings, not for all.
//! * Writers whose room is full pause together: a gathering that finds nothing shortens the rest to
//!   a quarter, so that their end costs four timers.

use std::time::Duration;

use failover::Time;

const SOON: Duration = Duration::from_micros(40);
const GATHER: Duration = Duration::from_micros(150);
/// What a message of a flood waits for the loop at most.
const GATHER_MAX: Duration = Duration::from_micros(1200);
const RINGS: u32 = 16;
const PAUSE: u32 = 2;
const GATHERINGS: u32 = 64;
/// Of a thousand that write now and then, 20 times a second each, a few have something at a time.
const MANY: usize = 32;

#[derive(Debug)]
pub(super) struct Pace {
    /// When something was last found.
    found_at: Time,
    /// How long the turn took that found it.
    turn: Duration,
    /// Something was found in the turn under way.
    turning: bool,
    /// How many times in a row that was soon after the time before.
    rings: u32,
    /// How many more times the loop comes by itself.
    left: u32,
    /// How often it does.
    gather: Duration,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self {
            found_at: Time::ZERO,
            turn: Duration::ZERO,
            turning: false,
            rings: 0,
            left: 0,
            gather: GATHER,
        }
    }

    /// The loop came, and found so many that had something. True when nobody need ring: it comes
    /// again at [`Self::next`].
    pub(super) fn came(&mut self, now: Time, found: usize) -> bool {
        if found > 0 {
            let many = found >= MANY;
            let soon = many || now.since(self.found_at) < SOON + 2 * self.turn;
            (self.found_at, self.turning) = (now, true);
            if self.left > 0 {
                self.left -= 1;
                self.gather = if many { GATHER_MAX.min(2 * self.gather) } else { GATHER };
            } else {
                self.rings = if soon { self.rings + 1 } else { self.rings.saturating_sub(PAUSE) };
                if self.rings >= RINGS {
                    (self.rings, self.left) = (0, GATHERINGS);
                }
            }
        } else if now >= self.next() {
            (self.left, self.gather) = (self.left / 4, GATHER);
            self.found_at = now;
        }
        self.left > 0
    }

    /// The loop has done what it came for.
    pub(super) fn turned(&mut self, now: Time) {
        if std::mem::take(&mut self.turning) {
            self.turn = now.since(self.found_at);
        }
    }

    /// When the loop is to come by itself.
    pub(super) fn next(&self) -> Time {
        if self.left > 0 { self.found_at + self.gather } else { Time::NEVER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(n: u64) -> Time {
        Time(1_000_000 + n)
    }

    /// Called every `step` microseconds, for `found` each: how many of `times` nobody need ring
    /// after.
    fn quiet(pace: &mut Pace, step: u64, times: u64, found: usize) -> u64 {
        (0..times).map(|n| u64::from(pace.came(micros(n * step), found))).sum()
    }

    #[test]
    fn whoever_writes_now_and_then_rings() {
        let mut pace = Pace::new();
        assert_eq!(quiet(&mut pace, 40, 1000, 1), 0);
        assert_eq!(pace.next(), Time::NEVER);
        // A question and its answer ring close together, then comes the way there and back.
        let mut pace = Pace::new();
        for round in 0..1000 {
            assert!(!pace.came(micros(round * 100), 1));
            assert!(!pace.came(micros(round * 100 + 5), 1));
        }
    }

    #[test]
    fn a_question_asked_again_when_it_is_answered_rings_however_long_turns_take() {
        let mut pace = Pace::new();
        for round in 0..1000 {
            // Four turns of 50 us, and 40 for waking up.
            assert!(!pace.came(micros(round * 240), 1));
            pace.turned(micros(round * 240 + 50));
        }
        // Twice as often it is a flood for such turns.
        let mut pace = Pace::new();
        let quiet = (0..1000).filter(|n| {
            let quiet = pace.came(micros(n * 120), 1);
            pace.turned(micros(n * 120 + 50));
            quiet
        });
        assert!(quiet.count() > 500);
    }

    #[test]
    fn a_flood_is_gathered_for_a_while_and_then_tried_again() {
        let mut pace = Pace::new();
        // The first is no ring; sixteen rings; then 64 that come by themselves.
        assert_eq!(quiet(&mut pace, 1, 17, 1), 1);
        assert_eq!(pace.next(), micros(16) + GATHER);
        for n in 1..64 {
            assert!(pace.came(micros(16 + 150 * n), 1), "{n}");
        }
        assert!(!pace.came(micros(16 + 150 * 64), 1));
        assert_eq!(pace.next(), Time::NEVER);
    }

    #[test]
    fn whoever_reads_a_flood_is_gathered_too() {
        let mut pace = Pace::new();
        let mut frames = 0..40_u64;
        // Four rings for each frame, one frame each 300 us.
        let gathered = frames.find(|f| (0..4).any(|n| pace.came(micros(f * 300 + n * 10), 1)));
        assert!(gathered.is_some_and(|f| f < 20), "{gathered:?}");
    }

    #[test]
    fn the_more_have_something_the_less_often_the_loop_comes() {
        let mut pace = Pace::new();
        quiet(&mut pace, 1, 17, 1);
        let mut now = micros(16);
        let mut steps = Vec::new();
        for _ in 0..6 {
            now = pace.next();
            assert!(pace.came(now, MANY));
            steps.push(pace.next().since(now).as_micros());
        }
        assert_eq!(steps, [300, 600, 1200, 1200, 1200, 1200]);
        assert!(pace.came(now, MANY - 1));
        assert_eq!(pace.next(), now + GATHER);
    }

    #[test]
    fn gatherings_that_find_nothing_are_few() {
        let mut pace = Pace::new();
        assert_eq!(quiet(&mut pace, 1, 17, 1), 1);
        assert!(pace.came(micros(17), 0), "it is not due yet");
        let mut idle = 0;
        while pace.next() < Time::NEVER {
            pace.came(pace.next(), 0);
            idle += 1;
        }
        assert_eq!(idle, 4);
    }
}
