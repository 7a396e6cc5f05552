//! The receiving half of a session: what came, what is missing, what is granted.
//!
//! Bytes go on in order; those behind a hole wait for it, within the granted window, so a session
//! that changes its path does not have to be sent again. What comes twice is dropped by its
//! offset.
//!
//! The window starts small and doubles whenever the sender used it up between two grants, as long
//! as the pipe has memory: a fast session gets what its path needs, a thousand idle ones cost
//! little. Awkward cases: a peer that names two ends, or sends past the limit, broke the rules; one
//! that sends a byte at a time behind a hole may hold so many pieces and no more.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;

use crate::canary::{Bug, planted};

/// Pieces behind a hole at most; more are dropped and come again.
const PIECES_MAX: usize = 1024;
/// A piece smaller than this is copied, so that it does not keep a whole frame in memory.
const COPY_BELOW: usize = 8 << 10;
/// The window is told when it moved by half, or by so much: half of a large one would come as a
/// burst, and the carrier run empty before it.
const GRANT_STEP: u64 = 256 << 10;
/// So much that came is acknowledged though nothing was taken. More than is granted at once, so that
/// as long as the application takes, one acknowledgement says both.
const ACK_STEP: u64 = 512 << 10;

/// The receiving half.
pub(super) struct Incoming {
    next: u64,
    held: BTreeMap<u64, Bytes>,
    held_bytes: u64,
    taken: u64,
    limit: u64,
    window: u64,
    end: Option<u64>,
    /// What the last acknowledgement said: received, limit.
    told: (u64, u64),
    /// Bytes are no longer wanted.
    abandoned: bool,
}

/// Without the bytes: they are the application's and nobody else's.
impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { next, held, held_bytes, taken, limit, window, end, told, abandoned } = self;
        write!(f, "received {next} taken {taken} limit {limit} window {window} end {end:?} ")?;
        write!(f, "held {held_bytes} in {} told {told:?} abandoned {abandoned}", held.len())
    }
}

/// The peer broke the rules.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation;

impl Incoming {
    pub(super) const fn new(window: u64) -> Self {
        Self {
            next: 0,
            held: BTreeMap::new(),
            held_bytes: 0,
            taken: 0,
            limit: window,
            window,
            end: None,
            told: (0, window),
            abandoned: false,
        }
    }

    /// All bytes below arrived.
    pub(super) const fn received(&self) -> u64 {
        self.next
    }

    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    /// All there will ever be arrived.
    pub(super) fn is_complete(&self) -> bool {
        self.end == Some(self.next)
    }

    /// And the application took it.
    pub(super) fn is_done(&self) -> bool {
        self.end == Some(self.taken)
    }

    /// Takes a piece; what may be handed on goes to `out`. True when it was worth an answer at
    /// once: it came twice, or leaves a hole, or was the last.
    pub(super) fn arrive(
        &mut self,
        offset: u64,
        bytes: Bytes,
        last: bool,
        out: &mut Vec<Bytes>,
    ) -> Result<bool, Violation> {
        let end = offset + bytes.len() as u64;
        if end > self.limit || self.end.is_some_and(|e| end > e || last && end != e) {
            return Err(Violation);
        }
        if last {
            let highest = self.held.last_key_value().map_or(0, |(at, b)| at + b.len() as u64);
            if end < self.next.max(highest) {
                return Err(Violation);
            }
            self.end = Some(end);
        }
        if end <= self.next {
            // Also an empty segment, which asks for the window.
            return Ok(true);
        }
        if offset > self.next {
            let length = bytes.len() as u64;
            let before = self.held.get(&offset).map_or(0, |h| h.len() as u64);
            // Overlapping pieces must not hold more memory than was granted.
            let fits = self.held_bytes - before + length <= self.window;
            if self.held.len() < PIECES_MAX && before < length && fits && !self.abandoned {
                self.held_bytes += length - before;
                self.held.insert(offset, keep(bytes));
            }
            return Ok(true);
        }
        self.hand_on(offset, bytes, out);
        while let Some(entry) = self.held.first_entry() {
            if *entry.key() > self.next {
                break;
            }
            let (offset, bytes) = entry.remove_entry();
            self.held_bytes -= bytes.len() as u64;
            self.hand_on(offset, bytes, out);
        }
        Ok(last || !self.held.is_empty())
    }

    fn hand_on(&mut self, offset: u64, bytes: Bytes, out: &mut Vec<Bytes>) {
        let skip = usize::try_from(self.next - offset).unwrap_or(usize::MAX);
        let skip = if planted(Bug::SessionDoubles) { 0 } else { skip };
        if skip < bytes.len() {
            let bytes = bytes.slice(skip..);
            self.next += bytes.len() as u64;
            if self.abandoned {
                self.taken = self.next;
            } else {
                out.push(bytes);
            }
        }
    }

    /// The application took so many bytes.
    pub(super) fn take(&mut self, bytes: u64) {
        self.taken = (self.taken + bytes).min(self.next);
    }

    /// The application wants no more. True when it had everything there is.
    pub(super) fn abandon(&mut self) -> bool {
        let done = self.is_complete();
        self.abandoned = true;
        self.held.clear();
        self.held_bytes = 0;
        self.taken = self.next;
        done
    }

    pub(super) const fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// Raises the limit to a window above what was taken, if that is worth saying; `spare` is the
    /// memory by which the window may grow. Returns by how much it did.
    pub(super) fn grant(&mut self, spare: u64, window_max: u64) -> u64 {
        let mut grown = 0;
        let step = (self.window / 2).min(GRANT_STEP);
        if self.taken + self.window < self.limit + step || self.end.is_some() {
            return 0;
        }
        // The sender had nearly used up what it was granted.
        if self.next + self.window / 4 >= self.limit {
            grown = self.window.min(spare).min(window_max.saturating_sub(self.window));
            self.window += grown;
        }
        self.limit = self.limit.max(self.taken + self.window);
        grown
    }

    /// Enough changed since the last acknowledgement that the sender should hear of it now.
    pub(super) fn is_urgent(&self) -> bool {
        self.limit > self.told.1 || self.next - self.told.0 >= (self.window / 4).min(ACK_STEP)
    }

    /// An acknowledgement was written.
    pub(super) const fn told(&mut self) {
        self.told = (self.next, self.limit);
    }
}

fn keep(bytes: Bytes) -> Bytes {
    if bytes.len() < COPY_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(from: usize, to: usize) -> Bytes {
        (from..to).map(|i| i.to_le_bytes()[0]).collect::<Vec<_>>().into()
    }

    #[test]
    fn holes_are_waited_for_and_doubles_dropped() {
        let mut i = Incoming::new(100);
        let mut out = Vec::new();
        assert_eq!(i.arrive(10, piece(10, 20), false, &mut out), Ok(true));
        assert!(out.is_empty());
        assert_eq!(i.arrive(0, piece(0, 12), false, &mut out), Ok(false));
        assert_eq!(out.concat(), piece(0, 20));
        assert_eq!(i.arrive(5, piece(5, 15), false, &mut out), Ok(true), "twice: answered");
        assert_eq!((out.concat().len(), i.received()), (20, 20));
        assert_eq!(i.arrive(20, piece(20, 30), true, &mut out), Ok(true));
        assert!(i.is_complete() && !i.is_done());
        i.take(30);
        assert!(i.is_done());
    }

    #[test]
    fn rules_are_kept() {
        let mut i = Incoming::new(100);
        let mut out = Vec::new();
        assert_eq!(i.arrive(90, piece(90, 101), false, &mut out), Err(Violation), "past the limit");
        assert_eq!(i.arrive(90, piece(90, 100), false, &mut out), Ok(true));
        assert_eq!(i.arrive(80, piece(80, 90), true, &mut out), Err(Violation), "ends too early");
        assert_eq!(i.arrive(0, piece(0, 95), false, &mut out), Ok(false));
        assert_eq!(i.arrive(100, Bytes::new(), true, &mut out), Ok(true));
        assert_eq!(i.arrive(99, piece(99, 100), true, &mut out), Ok(true), "said again");
        assert_eq!(i.arrive(50, piece(50, 60), true, &mut out), Err(Violation), "another end");
    }

    #[test]
    fn a_window_that_was_used_grows_and_one_that_was_not_does_not() {
        let mut i = Incoming::new(100);
        let mut out = Vec::new();
        i.arrive(0, piece(0, 40), false, &mut out).unwrap();
        i.take(40);
        assert_eq!((i.grant(1000, 1000), i.limit()), (0, 100), "not worth saying");
        i.arrive(40, piece(40, 60), false, &mut out).unwrap();
        i.take(20);
        assert_eq!((i.grant(1000, 1000), i.limit(), i.is_urgent()), (0, 160, true));
        i.told();
        i.arrive(60, piece(60, 160), false, &mut out).unwrap();
        i.take(100);
        assert_eq!((i.grant(30, 1000), i.limit()), (30, 290), "the pipe has no more");
        i.arrive(160, piece(160, 290), false, &mut out).unwrap();
        i.take(130);
        assert_eq!((i.grant(1000, 200), i.limit()), (70, 490), "the largest window");
    }

    proptest! {
        /// Pieces in any order, overlapping, twice: the application gets every byte once, in order.
        #[test]
        fn any_order_gives_the_same_bytes(
            mut pieces in prop::collection::vec((0..300_usize, 1..60_usize), 1..80),
            seed in any::<u64>(),
        ) {
            let whole = 320;
            pieces.extend((0..whole / 10).map(|i| (i * 10, 10)));
            // Shuffled by a fixed rule.
            let mut rng = seed | 1;
            for i in (1..pieces.len()).rev() {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                pieces.swap(i, (rng >> 33) as usize % (i + 1));
            }
            let mut incoming = Incoming::new(whole as u64);
            let mut out = Vec::new();
            // What was dropped for want of memory comes again.
            for (from, length) in pieces.iter().cycle().take(pieces.len() * whole) {
                let to = (from + length).min(whole);
                if *from < to {
                    let last = to == whole;
                    let bytes = piece(*from, to);
                    prop_assert!(incoming.arrive(*from as u64, bytes, last, &mut out).is_ok());
                    prop_assert!(incoming.held_bytes <= whole as u64);
                }
            }
            prop_assert_eq!(Bytes::from(out.concat()), piece(0, whole));
            prop_assert!(incoming.is_complete());
        }
    }
}
