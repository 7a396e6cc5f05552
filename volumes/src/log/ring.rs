//! A ring's places: which are free, where the next record goes.
//!
//! ```text
//!   place 0        released          unread                head        end
//!   |...............|[n-2][n-1 ....][n  ]|.................| wrap -> 0
//! ```
//!
//! Places are freed in the order of their numbers only. Awkward cases: a record never straddles
//! the end, so what is left there goes to a wrap record with a number of its own; a place counts
//! as used from the moment its write is planned.

use crate::format::table::Head;
use std::collections::VecDeque;

/// Where the next record can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    At(Head),
    /// First fill this many blocks up to the end.
    Wrap(Head, u32),
    /// The reader has not read enough.
    Full,
}

#[derive(Debug)]
pub struct RingSpace {
    blocks: u32,
    next: Head,
    used: u32,
    /// Number and blocks of what is written (or planned) and not released.
    unread: VecDeque<(u64, u32)>,
}

impl RingSpace {
    #[must_use]
    pub fn new(blocks: u32) -> Self {
        Self { blocks, next: Head::START, used: 0, unread: VecDeque::new() }
    }

    #[must_use]
    pub fn used_blocks(&self) -> u32 {
        self.used
    }

    #[must_use]
    pub fn next(&self) -> Head {
        self.next
    }

    #[must_use]
    pub fn room(&self, blocks: u32) -> Room {
        let to_end = self.blocks - self.next.place;
        let (take, room) = if blocks <= to_end {
            (blocks, Room::At(self.next))
        } else {
            (to_end, Room::Wrap(self.next, to_end))
        };
        if self.used + take <= self.blocks { room } else { Room::Full }
    }

    /// Takes the places of the next record.
    pub fn place(&mut self, blocks: u32) {
        assert!(self.next.place + blocks <= self.blocks, "a record never straddles the end");
        assert!(self.used + blocks <= self.blocks, "unread records are never overrun");
        self.unread.push_back((self.next.number, blocks));
        self.used += blocks;
        self.next.number += 1;
        self.next.place = (self.next.place + blocks) % self.blocks;
    }

    /// Everything up to `number` was read. Returns whether that freed anything.
    pub fn release(&mut self, number: u64) -> bool {
        let before = self.used;
        while let Some(&(n, blocks)) = self.unread.front()
            && n <= number
        {
            self.unread.pop_front();
            self.used -= blocks;
        }
        self.used != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_wraps_and_waits_for_the_reader() {
        let mut r = RingSpace::new(10);
        assert_eq!(r.room(6), Room::At(Head { number: 1, place: 0 }));
        r.place(6);
        assert_eq!(r.room(4), Room::At(Head { number: 2, place: 6 }));
        assert_eq!(r.room(5), Room::Wrap(Head { number: 2, place: 6 }, 4));
        r.place(4);
        assert_eq!(r.room(1), Room::Full);
        assert!(!r.release(0));
        assert!(r.release(1));
        assert_eq!(r.room(6), Room::At(Head { number: 3, place: 0 }));
        assert_eq!(r.room(7), Room::Full);
        assert!(r.release(99));
        assert_eq!(r.used_blocks(), 0);
    }
}
