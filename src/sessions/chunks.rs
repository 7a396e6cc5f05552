//! A queue of bytes that are copied in once and leave as they are.
//!
//! ```text
//!   push(&[u8]) ─> tail ── full, or a whole piece comes behind it ──> whole ─> pop, read
//! ```
//!
//! Small pieces share an allocation (the tail), so that a thousand of a hundred bytes are not a
//! thousand of them; what is taken from the tail shares it, too, and is not moved. Large pieces
//! that came as [`Bytes`] stay what they are.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Capacity of a tail at least, and at most.
const TAIL: (usize, usize) = (8 << 10, 64 << 10);
/// A piece smaller than this is copied into the tail, so that it does not keep a whole frame in
/// memory.
const COPY_BELOW: usize = 4 << 10;

#[derive(Default)]
pub(super) struct Chunks {
    whole: VecDeque<Bytes>,
    tail: BytesMut,
    length: usize,
}

impl Chunks {
    pub(super) const fn len(&self) -> usize {
        self.length
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies bytes in.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            let mut room = self.tail.capacity() - self.tail.len();
            if room == 0 {
                self.seal();
                if !self.tail.try_reclaim(TAIL.0) {
                    self.tail = BytesMut::with_capacity(bytes.len().clamp(TAIL.0, TAIL.1));
                }
                room = self.tail.capacity();
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.tail.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Takes a piece over.
    pub(super) fn give(&mut self, bytes: Bytes) {
        if bytes.len() < COPY_BELOW {
            return self.push(&bytes);
        }
        self.seal();
        self.length += bytes.len();
        self.whole.push_back(bytes);
    }

    /// What lies in the tail becomes a piece of its own.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.whole.push_back(self.tail.split().freeze());
        }
    }

    /// The next piece, of at most `most` bytes.
    pub(super) fn pop(&mut self, most: usize) -> Option<Bytes> {
        if most == 0 {
            return None;
        }
        let piece = if let Some(front) = self.whole.front_mut() {
            if front.len() <= most { self.whole.pop_front()? } else { front.split_to(most) }
        } else if self.tail.is_empty() {
            return None;
        } else {
            let most = most.min(self.tail.len());
            self.tail.split_to(most).freeze()
        };
        self.length -= piece.len();
        Some(piece)
    }

    /// Copies what there is into `into`; how many bytes.
    pub(super) fn read(&mut self, into: &mut tokio::io::ReadBuf<'_>) -> usize {
        let before = into.filled().len();
        while into.remaining() > 0 {
            let whole = self.whole.front_mut();
            let front: &[u8] = whole.as_deref().map_or(&self.tail[..], |bytes| bytes);
            let n = front.len().min(into.remaining());
            if n == 0 {
                break;
            }
            into.put_slice(&front[..n]);
            match whole {
                Some(bytes) if bytes.len() == n => drop(self.whole.pop_front()),
                Some(bytes) => bytes.advance(n),
                None => self.tail.advance(n),
            }
        }
        let read = into.filled().len() - before;
        self.length -= read;
        read
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes by any mixture of calls come out once and in order.
    #[test]
    fn what_goes_in_comes_out() {
        for seed in 1..200_u64 {
            let mut state = seed;
            let mut random = move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                usize::try_from(state % below).unwrap()
            };
            let (mut chunks, mut sent, mut got) = (Chunks::default(), Vec::new(), Vec::new());
            for _ in 0..60 {
                let most = [5, 300, 9_000, 150_000][random(4)];
                let size = random(most);
                match random(4) {
                    0 | 1 => {
                        let bytes: Vec<u8> = (sent.len()..sent.len() + size)
                            .map(|i| u8::try_from(i % 251).unwrap())
                            .collect();
                        sent.extend_from_slice(&bytes);
                        if random(2) == 0 {
                            chunks.push(&bytes);
                        } else {
                            chunks.give(bytes.into());
                        }
                    }
                    2 => {
                        if let Some(piece) = chunks.pop(size) {
                            assert!(!piece.is_empty() && piece.len() <= size);
                            got.extend_from_slice(&piece);
                        }
                    }
                    _ => {
                        let mut buffer = vec![0; size];
                        let mut into = tokio::io::ReadBuf::new(&mut buffer);
                        let n = chunks.read(&mut into);
                        assert_eq!(n, into.filled().len());
                        got.extend_from_slice(into.filled());
                    }
                }
                assert_eq!(chunks.len(), sent.len() - got.len());
                assert_eq!(chunks.is_empty(), sent.len() == got.len());
            }
            while let Some(piece) = chunks.pop(usize::MAX) {
                got.extend_from_slice(&piece);
            }
            assert!(got == sent, "seed {seed}");
        }
    }

    #[test]
    fn small_pieces_share_memory_and_large_ones_are_not_copied() {
        let mut chunks = Chunks::default();
        for _ in 0..3 {
            chunks.push(&[1; 100]);
        }
        let large = Bytes::from(vec![2; 10_000]);
        chunks.give(large.clone());
        assert_eq!(chunks.pop(usize::MAX).unwrap().len(), 300);
        assert_eq!(chunks.pop(usize::MAX).unwrap().as_ptr(), large.as_ptr());
        assert!(chunks.pop(usize::MAX).is_none());
    }
}
