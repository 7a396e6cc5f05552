//! The sending half of a session: what the application wrote and the peer has not confirmed.
//!
//! ```text
//!   base ........ cursor ........ written       limit
//!    | under way   |  waits        |              |
//!    received by the peer           end, once named   granted
//! ```
//!
//! Awkward cases: the cursor goes back to the base when a path may have lost something, and what
//! arrives twice is the receiver's to drop. An end without bytes is a segment of its own. With the
//! window closed and something left to say, an empty segment asks for the window again.

use std::{collections::VecDeque, fmt};

use bytes::Bytes;

use crate::canary::{Bug, planted};

/// The sending half.
pub(super) struct Outgoing {
    chunks: VecDeque<Bytes>,
    base: u64,
    cursor: u64,
    /// Where the cursor stands: a chunk, and bytes of it that are before the cursor.
    at: (usize, usize),
    written: u64,
    end: Option<u64>,
    end_sent: bool,
    /// The peer has everything and knows that there is no more.
    complete: bool,
    taken: u64,
    limit: u64,
    /// Bytes below were put at least once.
    highest: u64,
}

/// Without the bytes: they are the application's and nobody else's.
impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, cursor, written, end, complete, taken, limit, .. } = self;
        write!(f, "received {base} taken {taken} put {cursor} written {written} end {end:?} ")?;
        write!(f, "complete {complete} limit {limit}")
    }
}

/// A piece that is to be put next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) last: bool,
}

impl Outgoing {
    pub(super) const fn new(limit: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            base: 0,
            cursor: 0,
            at: (0, 0),
            written: 0,
            end: None,
            end_sent: false,
            complete: false,
            taken: 0,
            limit,
            highest: 0,
        }
    }

    pub(super) fn grant(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// Takes what the application wrote; nothing after the end.
    pub(super) fn write(&mut self, bytes: Bytes) {
        if self.end.is_none() && !bytes.is_empty() {
            self.written += bytes.len() as u64;
            self.chunks.push_back(bytes);
        }
    }

    /// The application will write no more.
    pub(super) fn finish(&mut self) {
        self.end.get_or_insert(self.written);
    }

    pub(super) const fn is_finished(&self) -> bool {
        self.end.is_some()
    }

    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Written and not yet received by the peer, bytes.
    pub(super) fn buffered(&self) -> usize {
        usize::try_from(self.written - self.base).unwrap_or(usize::MAX)
    }

    pub(super) const fn received(&self) -> u64 {
        self.base
    }

    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Nothing is under way, as far as is known.
    pub(super) const fn is_idle(&self) -> bool {
        self.cursor == self.base
    }

    /// Bytes the peer has room for beyond those it has.
    pub(super) const fn window(&self) -> u64 {
        self.limit.saturating_sub(self.base)
    }

    /// Something was put and is not confirmed.
    pub(super) const fn is_unconfirmed(&self) -> bool {
        !self.complete && (self.cursor > self.base || self.end_sent)
    }

    /// The next piece, at most `room` bytes of it.
    pub(super) fn peek(&self, room: usize) -> Option<Piece> {
        if self.complete {
            return None;
        }
        let limit = if planted(Bug::SessionPastWindow) { u64::MAX } else { self.limit };
        let open = limit.min(self.written).saturating_sub(self.cursor);
        let length = usize::try_from(open).unwrap_or(usize::MAX).min(room);
        let last = self.end == Some(self.cursor + length as u64);
        let piece = Piece { offset: self.cursor, length, last };
        (length > 0 || last && !self.end_sent).then_some(piece)
    }

    /// Something waits, and only the window is in the way.
    pub(super) const fn is_blocked(&self) -> bool {
        !self.complete && self.cursor < self.written && self.cursor >= self.limit
    }

    /// Copies a piece behind `body`, and goes on behind it.
    pub(super) fn put(&mut self, piece: Piece, body: &mut Vec<u8>) {
        let mut left = piece.length;
        while left > 0 {
            let (chunk, skip) = self.at;
            let Some(bytes) = self.chunks.get(chunk) else { break };
            let take = left.min(bytes.len() - skip);
            body.extend_from_slice(&bytes[skip..skip + take]);
            left -= take;
            self.at =
                if skip + take == bytes.len() { (chunk + 1, 0) } else { (chunk, skip + take) };
        }
        self.cursor += (piece.length - left) as u64;
        self.highest = self.highest.max(self.cursor);
        self.end_sent |= piece.last;
    }

    /// A path may have lost what was under way: once more from the last confirmed byte.
    pub(super) fn rewind(&mut self) {
        if planted(Bug::SessionNoRewind) {
            return;
        }
        self.cursor = self.base;
        self.at = (0, 0);
        self.end_sent = false;
    }

    /// The peer says what it has. False when it cannot have that.
    pub(super) fn acknowledged(&mut self, received: u64, taken: u64, complete: bool) -> bool {
        let honest = received <= self.highest
            && taken <= received
            && (!complete || self.end == Some(received));
        if !honest {
            return false;
        }
        self.taken = self.taken.max(taken);
        self.complete |= complete;
        if received > self.base {
            self.drop_below(received);
        }
        true
    }

    fn drop_below(&mut self, received: u64) {
        let mut left = received - self.base;
        let mut whole = 0;
        while let Some(front) = self.chunks.front_mut() {
            let length = front.len() as u64;
            if left < length {
                let _ = front.split_to(usize::try_from(left).unwrap_or(0));
                break;
            }
            left -= length;
            self.chunks.pop_front();
            whole += 1;
        }
        self.base = received;
        if self.cursor < received {
            // After a rewind: what was thought lost had arrived.
            self.cursor = received;
            self.at = (0, 0);
        } else if self.at.0 > whole {
            self.at.0 -= whole;
        } else if self.at.0 == whole && left > 0 {
            self.at = (0, self.at.1 - usize::try_from(left).unwrap_or(0));
        } else {
            self.at.0 = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_and_the_end_bound_what_is_put() {
        let mut o = Outgoing::new(5);
        assert_eq!(o.peek(100), None);
        o.write(Bytes::from_static(b"hello world"));
        assert_eq!(o.peek(3), Some(Piece { offset: 0, length: 3, last: false }));
        let piece = o.peek(100).unwrap();
        assert_eq!(piece.length, 5);
        let mut body = Vec::new();
        o.put(piece, &mut body);
        assert_eq!((&body[..], o.peek(100), o.is_blocked()), (&b"hello"[..], None, true));
        o.grant(4);
        assert_eq!(o.peek(100), None, "a limit never goes back");
        o.finish();
        o.write(Bytes::from_static(b"!"));
        o.grant(100);
        let piece = o.peek(100).unwrap();
        assert_eq!(piece, Piece { offset: 5, length: 6, last: true });
        o.put(piece, &mut body);
        assert_eq!((o.peek(100), o.is_blocked()), (None, false));
        assert!(!o.acknowledged(12, 0, false), "more than was put");
        assert!(!o.acknowledged(5, 6, false), "more taken than received");
        assert!(!o.acknowledged(5, 5, true), "the end is elsewhere");
        assert!(o.acknowledged(11, 5, false) && !o.is_complete());
        assert!(o.acknowledged(11, 11, true) && o.is_complete());
        assert_eq!(o.buffered(), 0);
    }

    #[test]
    fn an_empty_session_sends_its_end_once() {
        let mut o = Outgoing::new(0);
        o.finish();
        let end = Piece { offset: 0, length: 0, last: true };
        assert_eq!(o.peek(10), Some(end));
        o.put(end, &mut Vec::new());
        assert_eq!(o.peek(10), None);
        o.rewind();
        assert_eq!(o.peek(10), Some(end));
    }

    proptest! {
        /// Whatever is written, put, confirmed and rewound: every piece is what was written there.
        #[test]
        fn pieces_are_what_was_written(steps in prop::collection::vec((0..5_u8, 0..40_usize), 1..200)) {
            let mut o = Outgoing::new(0);
            let (mut all, mut limit, mut high) = (Vec::new(), 0_u64, 0_u64);
            for (what, n) in steps {
                match what {
                    0 => {
                        let bytes: Vec<u8> = (0..n).map(|i| (all.len() + i).to_le_bytes()[0]).collect();
                        all.extend_from_slice(&bytes);
                        o.write(bytes.into());
                    }
                    1 => {
                        limit += n as u64;
                        o.grant(limit);
                    }
                    2 => {
                        if let Some(piece) = o.peek(n) {
                            let mut body = vec![7];
                            o.put(piece, &mut body);
                            let from = usize::try_from(piece.offset).unwrap();
                            prop_assert_eq!(&body[1..], &all[from..from + piece.length]);
                            high = high.max(piece.offset + piece.length as u64);
                            prop_assert!(high <= limit);
                        }
                    }
                    3 => {
                        let received = (o.received() + n as u64).min(high);
                        prop_assert!(o.acknowledged(received, received, false));
                        prop_assert_eq!(o.received(), received);
                    }
                    _ => o.rewind(),
                }
                prop_assert_eq!(o.buffered() as u64, all.len() as u64 - o.received());
            }
        }
    }
}
