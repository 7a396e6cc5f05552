//! Which numbers arrived: the duplicate and replay window, and the source of acknowledgements.
//!
//! A row of pigeon-holes on a wheel. Everything below `base` is settled (arrived, or its sender
//! said it will never come); above it a bit per number. The sender keeps within half the wheel
//! above its floor, so an honest number always has a hole; a number beyond the wheel is refused.

/// Numbers the wheel holds.
pub(super) const SIZE: u64 = 1 << 17;
const WORDS: usize = 1 << 11;
const _: () = assert!(WORDS as u64 * 64 == SIZE);

/// The window of one channel.
#[derive(Debug)]
pub(crate) struct Window {
    base: u64,
    /// One above the highest number that arrived.
    end: u64,
    bits: Vec<u64>,
}

/// What became of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Insert {
    /// First time.
    New,
    /// Arrived before, or settled.
    Duplicate,
    /// So far ahead that no honest sender is there.
    Beyond,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { base: 1, end: 1, bits: vec![0; WORDS] }
    }

    /// Everything below is settled.
    pub(crate) const fn base(&self) -> u64 {
        self.base
    }

    fn slot(number: u64) -> (usize, u64) {
        let place = number % SIZE;
        (usize::try_from(place / 64).unwrap_or(0), 1 << (place % 64))
    }

    fn bit(&self, number: u64) -> bool {
        let (word, mask) = Self::slot(number);
        self.bits[word] & mask != 0
    }

    /// The number arrived or is settled.
    pub(crate) fn contains(&self, number: u64) -> bool {
        number < self.base || (number < self.end && self.bit(number))
    }

    /// Notes an arrival.
    pub(crate) fn insert(&mut self, number: u64) -> Insert {
        if self.contains(number) {
            return Insert::Duplicate;
        }
        // The last number of all is nobody's: one above it there is none.
        if number - self.base >= SIZE || number == u64::MAX {
            return Insert::Beyond;
        }
        let (word, mask) = Self::slot(number);
        self.bits[word] |= mask;
        self.end = self.end.max(number + 1);
        self.advance();
        Insert::New
    }

    /// Notes a replay-only arrival, where old numbers may simply fall off: the wheel turns with
    /// the newest number.
    pub(crate) fn insert_sliding(&mut self, number: u64) -> Insert {
        if number.saturating_sub(self.base) >= SIZE / 2 {
            self.raise(number - SIZE / 2 + 1);
        }
        self.insert(number)
    }

    /// The sender will send nothing below `floor` any more.
    pub(crate) fn raise(&mut self, floor: u64) {
        if floor <= self.base {
            return;
        }
        if floor - self.base >= SIZE {
            self.bits.fill(0);
        } else {
            for number in self.base..floor {
                let (word, mask) = Self::slot(number);
                self.bits[word] &= !mask;
            }
        }
        self.base = floor;
        self.end = self.end.max(floor);
        self.advance();
    }

    fn advance(&mut self) {
        while self.base < self.end && self.bit(self.base) {
            let (word, mask) = Self::slot(self.base);
            self.bits[word] &= !mask;
            self.base += 1;
        }
    }

    /// A number above `base` arrived while `base` did not.
    pub(crate) const fn has_gap(&self) -> bool {
        self.end > self.base
    }

    /// Runs of arrived numbers above `base`, oldest first, at most `max`: (gap before, length).
    pub(crate) fn ranges(&self, max: usize) -> Vec<(u32, u32)> {
        let mut ranges = Vec::new();
        let (mut gap, mut run) = (0, 0);
        for number in self.base..self.end {
            if self.bit(number) {
                run += 1;
            } else {
                if run > 0 {
                    ranges.push((gap, run));
                    (gap, run) = (0, 0);
                    if ranges.len() == max {
                        return ranges;
                    }
                }
                gap += 1;
            }
        }
        if run > 0 {
            ranges.push((gap, run));
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn whatever_a_sender_may_number_above_its_floor_has_a_place() {
        let mut window = Window::new();
        // The first is lost; the furthest of the others comes first.
        assert_eq!(window.insert(crate::link::NUMBERS_MAX), Insert::New);
        assert_eq!(window.insert(crate::link::NUMBERS_MAX), Insert::Duplicate);
        assert_eq!(window.insert(1), Insert::New);
    }

    #[test]
    fn agrees_with_a_set() {
        // A small generator is enough here: any sequence will do, as long as it is the same.
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut window = Window::new();
        let mut model = BTreeSet::new();
        let mut floor = 1;
        for _ in 0..20_000 {
            if random(50) == 0 {
                floor += random(40);
                window.raise(floor);
            }
            let number = window.base().saturating_sub(20).max(1) + random(300);
            let expected = if number < floor || model.contains(&number) {
                Insert::Duplicate
            } else {
                model.insert(number);
                Insert::New
            };
            assert_eq!(window.insert(number), expected, "number {number}");
            let mut at = window.base();
            for (gap, run) in window.ranges(usize::MAX) {
                at += u64::from(gap);
                for number in at..at + u64::from(run) {
                    assert!(model.contains(&number));
                }
                at += u64::from(run);
            }
        }
    }

    #[test]
    fn the_edges_of_the_wheel() {
        let mut window = Window::new();
        assert_eq!(window.insert(SIZE), Insert::New);
        assert_eq!(window.insert(SIZE + 1), Insert::Beyond);
        window.raise(2);
        assert_eq!(window.insert(SIZE + 1), Insert::New);
        window.raise(10 * SIZE);
        assert_eq!(window.insert(SIZE + 1), Insert::Duplicate);
        assert_eq!(window.insert(10 * SIZE), Insert::New);
        assert_eq!(window.insert(u64::MAX), Insert::Beyond);
    }

    #[test]
    fn nothing_wraps_at_the_last_number() {
        let mut window = Window::new();
        assert_eq!(window.insert_sliding(u64::MAX - 1), Insert::New);
        assert_eq!(window.insert_sliding(u64::MAX), Insert::Beyond);
        assert_eq!(window.insert_sliding(u64::MAX - 1), Insert::Duplicate);
        assert_eq!(window.insert_sliding(0), Insert::Duplicate);
        window.raise(u64::MAX);
        assert_eq!(window.insert(u64::MAX), Insert::Beyond);
        assert_eq!(window.insert(1), Insert::Duplicate);
        assert_eq!((window.base(), window.ranges(9)), (u64::MAX, vec![]));
    }

    #[test]
    fn a_sliding_window_forgets_the_old() {
        let mut window = Window::new();
        assert_eq!(window.insert_sliding(5 * SIZE), Insert::New);
        assert_eq!(window.insert_sliding(5 * SIZE), Insert::Duplicate);
        assert_eq!(window.insert_sliding(5 * SIZE - 3), Insert::New);
        assert_eq!(window.insert_sliding(3), Insert::Duplicate);
    }

    #[test]
    fn a_sliding_window_reaches_half_the_wheel_back() {
        let newest = 5 * SIZE;
        let mut window = Window::new();
        assert_eq!(window.insert_sliding(newest), Insert::New);
        assert_eq!(window.insert_sliding(newest - SIZE / 2), Insert::Duplicate, "fell off");
        assert_eq!(window.insert_sliding(newest - SIZE / 2 + 1), Insert::New);
        // It turns as soon as it must, and not before.
        let mut window = Window::new();
        assert_eq!(window.insert_sliding(SIZE + SIZE / 2), Insert::New);
        let mut window = Window::new();
        assert_eq!(window.insert_sliding(SIZE / 2), Insert::New);
        assert_eq!(window.insert_sliding(1), Insert::New);
    }

    #[test]
    fn a_place_on_the_wheel_is_clean_when_its_turn_comes_again() {
        for floor in [SIZE, SIZE + 1, SIZE + 2] {
            let mut window = Window::new();
            assert_eq!(window.insert(5), Insert::New);
            window.raise(floor);
            assert_eq!((window.base(), window.has_gap()), (floor, false));
            assert_eq!(window.insert(SIZE + 5), Insert::New, "5 was here before");
        }
    }

    #[test]
    fn a_gap_is_a_number_missing_below_one_that_came() {
        let mut window = Window::new();
        assert!(!window.has_gap());
        window.insert(1);
        assert!(!window.has_gap());
        window.insert(3);
        assert!(window.has_gap());
        window.insert(2);
        assert!(!window.has_gap());
    }

    #[test]
    fn runs_are_named_oldest_first_and_not_too_many() {
        let mut window = Window::new();
        for number in [2, 4, 5, 8] {
            window.insert(number);
        }
        assert_eq!(window.ranges(1), [(1, 1)]);
        assert_eq!(window.ranges(2), [(1, 1), (1, 2)]);
        assert_eq!(window.ranges(3), [(1, 1), (1, 2), (2, 1)]);
        assert_eq!(window.ranges(4), window.ranges(3));
    }
}
