//! Frames in a stream of bytes: a u32 length in network order, then the frame.
//!
//! ```text
//!   socket ─ readv ─┬─> the frame that has begun          ─> take
//!                   └─> scratch: what follows it, cut here ─> take, or begins the next
//! ```
//!
//! A large frame is read into memory of its own, which the core then keeps: its bytes are not
//! copied. Small frames come many in a read, and are.
//!
//! Awkward cases: a frame may come in any number of pieces; a length that no frame has, or a first
//! byte of another version, means that whoever sends is none of us.

use std::io::{self, IoSliceMut, Read};

/// Longest frame: a super-packet of 64 KiB and what sealing adds.
pub(super) const FRAME_BYTES_MAX: usize = 70_000;
/// No sealed frame or handshake is shorter.
const FRAME_BYTES_MIN: usize = 16;
/// With more than this missing of a frame, little is read of what follows it.
const LARGE: usize = 16 << 10;
/// So much, in bytes: the length of the next frame, and its beginning.
const BEHIND_LARGE: usize = 4 << 10;

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// The length of the next frame, as far as it came.
    length: [u8; 4],
    length_came: usize,
    /// A frame whose end has not come yet, in its full length, and how much of it came.
    frame: Vec<u8>,
    came: usize,
}

/// The bytes are not length-framed frames.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAFrame;

/// What one read gave.
#[derive(Debug)]
pub(super) enum Got {
    /// So many frames; and no more bytes lay there than came.
    Frames(usize, bool),
    /// The end, or what is none of us.
    End,
}

impl Framer {
    /// Reads once, and hands each frame that is whole to `take`.
    pub(super) fn read(
        &mut self,
        from: &mut impl Read,
        scratch: &mut [u8],
        take: &mut dyn FnMut(Vec<u8>),
    ) -> io::Result<Got> {
        let missing = self.frame.len() - self.came;
        let behind = if missing > LARGE { BEHIND_LARGE.min(scratch.len()) } else { scratch.len() };
        let scratch = &mut scratch[..behind];
        let n = if missing == 0 {
            from.read(scratch)?
        } else {
            let begun = IoSliceMut::new(&mut self.frame[self.came..]);
            from.read_vectored(&mut [begun, IoSliceMut::new(scratch)])?
        };
        if n == 0 {
            return Ok(Got::End);
        }
        let drained = n < missing + behind;
        self.came += n.min(missing);
        let frames = self.whole(take).and_then(|first| {
            let rest = self.push(&scratch[..n - n.min(missing)], take)?;
            Ok(first + rest)
        });
        Ok(frames.map_or(Got::End, |frames| Got::Frames(frames, drained)))
    }

    /// Hands on the frame that was begun, if it is whole.
    fn whole(&mut self, take: &mut dyn FnMut(Vec<u8>)) -> Result<usize, NotAFrame> {
        // High half of the first byte: the version of the wire format, the same in all kinds.
        const VERSION: u8 = failover::wire::FIRST_BYTE_BEAT >> 4;
        if self.came == 0 {
            return Ok(0);
        }
        if self.frame[0] >> 4 != VERSION {
            return Err(NotAFrame);
        }
        if self.came < self.frame.len() {
            return Ok(0);
        }
        self.came = 0;
        take(std::mem::take(&mut self.frame));
        Ok(1)
    }

    /// Hands each whole frame to `take`; their number.
    fn push(
        &mut self,
        mut bytes: &[u8],
        take: &mut dyn FnMut(Vec<u8>),
    ) -> Result<usize, NotAFrame> {
        let mut frames = 0;
        while !bytes.is_empty() {
            if self.frame.is_empty() {
                let (now, later) = bytes.split_at(bytes.len().min(4 - self.length_came));
                self.length[self.length_came..][..now.len()].copy_from_slice(now);
                self.length_came += now.len();
                bytes = later;
                if self.length_came == 4 {
                    self.length_came = 0;
                    self.frame = vec![0; checked(self.length)?];
                }
                continue;
            }
            let missing = self.frame.len() - self.came;
            let (now, later) = bytes.split_at(bytes.len().min(missing));
            self.frame[self.came..][..now.len()].copy_from_slice(now);
            self.came += now.len();
            bytes = later;
            frames += self.whole(take)?;
        }
        Ok(frames)
    }
}

fn checked(length: [u8; 4]) -> Result<usize, NotAFrame> {
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| NotAFrame)?;
    if (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&length) { Ok(length) } else { Err(NotAFrame) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(size: usize, tag: u8) -> Vec<u8> {
        let mut bytes = u32::try_from(size).unwrap().to_be_bytes().to_vec();
        bytes.push(failover::wire::FIRST_BYTE_BEAT);
        bytes.resize(4 + size, tag);
        bytes
    }

    /// Gives at most so many bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let most = into.len().min(self.1);
            self.0.read(&mut into[..most])
        }

        fn read_vectored(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
            let mut left = self.1;
            let mut all = 0;
            for slice in into {
                let most = slice.len().min(left);
                let n = self.0.read(&mut slice[..most])?;
                (left, all) = (left - n, all + n);
            }
            Ok(all)
        }
    }

    #[test]
    fn frames_survive_any_cutting() {
        let sizes = [16, 17, 4000, FRAME_BYTES_MAX, 16, 30_000, 30_000];
        let bytes: Vec<u8> =
            sizes.iter().zip(1..).flat_map(|(size, tag)| framed(*size, tag)).collect();
        for scratch in [5, 1000, 1 << 16] {
            for piece in [1, 2, 3, 5, 19, 1000, bytes.len()] {
                let (mut framer, mut from) = (Framer::default(), Drip(&bytes, piece));
                let (mut got, mut counted) = (Vec::new(), 0);
                let mut scratch = vec![0; scratch];
                loop {
                    let mut take = |f: Vec<u8>| {
                        assert!(f[1..].iter().all(|byte| *byte == f[1]));
                        got.push((f.len(), f[f.len() - 1]));
                    };
                    match framer.read(&mut from, &mut scratch, &mut take).unwrap() {
                        Got::Frames(n, _) => counted += n,
                        Got::End => break,
                    }
                }
                let want: Vec<_> = sizes.into_iter().zip(1_u8..).collect();
                assert_eq!(got, want, "pieces of {piece}");
                assert_eq!(counted, want.len());
            }
        }
    }

    #[test]
    fn bytes_that_are_no_frames_are_refused() {
        let refuse = |bytes: &[u8]| Framer::default().push(bytes, &mut |_| {});
        assert_eq!(refuse(b"GET / HTTP/1.1\r\n"), Err(NotAFrame));
        assert_eq!(refuse(&framed(FRAME_BYTES_MAX + 1, 0)), Err(NotAFrame));
        assert_eq!(refuse(&framed(FRAME_BYTES_MIN - 1, 0)), Err(NotAFrame));
        let mut other = framed(16, 0);
        other[4] = 0xf1;
        assert_eq!(refuse(&other), Err(NotAFrame));
        assert_eq!(refuse(&other[..5]), Err(NotAFrame), "with its first byte");
    }
}
