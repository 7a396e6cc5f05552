//! Frames in a stream of bytes: a u32 length in network order, then the frame.
//!
//! ```text
//!   socket ─ read ─┬─> a large frame that has begun, and the first bytes behind it ─> take
//!                  └─> scratch: cut here ─> take, or begins a frame
//! ```
//!
//! A large frame is read into memory of its own, which the core then keeps: its bytes are not
//! copied, and nothing is written there before them. Small frames come many in a read, and are
//! copied.
//!
//! Awkward cases: a frame may come in any number of pieces; a length that no frame has, or a first
//! byte of another version, means that whoever sends is none of us.

use std::io;

/// Longest frame: a super-packet of 64 KiB and what sealing adds.
pub(super) const FRAME_BYTES_MAX: usize = 70_000;
/// No sealed frame or handshake is shorter.
const FRAME_BYTES_MIN: usize = 16;
/// A frame longer than this has memory of its own from the start.
const LARGE: usize = 16 << 10;
/// Behind a large frame so much is read at a time, in bytes: the length of the next frame and its
/// beginning, which are copied.
const BEHIND_LARGE: usize = 4 << 10;

/// Where bytes come from.
pub(super) trait Source {
    /// Reads into `into`; zero is the end.
    fn fill(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// Reads behind what `into` holds, at most into the memory it has; zero is the end.
    fn append(&mut self, into: &mut Vec<u8>) -> io::Result<usize>;
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// The length of the next frame, as far as it came.
    length: [u8; 4],
    length_came: usize,
    /// What came of a frame whose end has not come yet, and its length.
    frame: Vec<u8>,
    whole: usize,
    /// The last frame was large: the next one will be, too.
    large: bool,
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
        from: &mut impl Source,
        scratch: &mut [u8],
        take: &mut dyn FnMut(Vec<u8>),
    ) -> io::Result<Got> {
        let (n, room, frames);
        if self.whole > LARGE {
            room = self.frame.capacity() - self.frame.len();
            n = from.append(&mut self.frame)?;
            let behind = self.frame.split_off(self.frame.len().min(self.whole));
            frames = self.finish(take).and_then(|first| Ok(first + self.push(&behind, take)?));
        } else {
            room = if self.large { BEHIND_LARGE.min(scratch.len()) } else { scratch.len() };
            n = from.fill(&mut scratch[..room])?;
            frames = self.push(&scratch[..n], take);
        }
        if n == 0 {
            return Ok(Got::End);
        }
        Ok(frames.map_or(Got::End, |frames| Got::Frames(frames, n < room)))
    }

    /// Hands on the frame that was begun, if it is whole.
    fn finish(&mut self, take: &mut dyn FnMut(Vec<u8>)) -> Result<usize, NotAFrame> {
        // High half of the first byte: the version of the wire format, the same in all kinds.
        const VERSION: u8 = failover::wire::FIRST_BYTE_BEAT >> 4;
        match self.frame.first() {
            None => return Ok(0),
            Some(first) if first >> 4 != VERSION => return Err(NotAFrame),
            Some(_) if self.frame.len() < self.whole => return Ok(0),
            Some(_) => {}
        }
        self.whole = 0;
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
            if self.whole == 0 {
                let (now, later) = bytes.split_at(bytes.len().min(4 - self.length_came));
                self.length[self.length_came..][..now.len()].copy_from_slice(now);
                self.length_came += now.len();
                bytes = later;
                if self.length_came == 4 {
                    self.length_came = 0;
                    self.begin(checked(self.length)?);
                }
                continue;
            }
            let missing = self.whole - self.frame.len();
            let (now, later) = bytes.split_at(bytes.len().min(missing));
            self.frame.extend_from_slice(now);
            bytes = later;
            frames += self.finish(take)?;
        }
        Ok(frames)
    }

    fn begin(&mut self, length: usize) {
        self.large = length > LARGE;
        self.whole = length;
        self.frame = Vec::with_capacity(if self.large { length + BEHIND_LARGE } else { length });
    }
}

fn checked(length: [u8; 4]) -> Result<usize, NotAFrame> {
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| NotAFrame)?;
    if (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&length) { Ok(length) } else { Err(NotAFrame) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn framed(size: usize, tag: u8) -> Vec<u8> {
        let mut bytes = u32::try_from(size).unwrap().to_be_bytes().to_vec();
        bytes.push(failover::wire::FIRST_BYTE_BEAT);
        bytes.resize(4 + size, tag);
        bytes
    }

    /// Gives at most so many bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Source for Drip<'_> {
        fn fill(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let most = into.len().min(self.1);
            self.0.read(&mut into[..most])
        }

        fn append(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
            let most = self.1.min(into.capacity() - into.len()).min(self.0.len());
            let (now, later) = self.0.split_at(most);
            into.extend_from_slice(now);
            self.0 = later;
            Ok(most)
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

    /// Counts what passes through scratch.
    struct Counted<'a>(Drip<'a>, usize);

    impl Source for Counted<'_> {
        fn fill(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.0.fill(into)?;
            self.1 += n;
            Ok(n)
        }

        fn append(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
            self.0.append(into)
        }
    }

    #[test]
    fn large_frames_are_read_where_they_stay() {
        let bytes: Vec<u8> = (0..10).flat_map(|tag| framed(65_000, tag)).collect();
        // Also when the bytes come in pieces that end anywhere.
        for piece in [5_000, 32_768, 65_536, bytes.len()] {
            let mut from = Counted(Drip(&bytes, piece), 0);
            let (mut framer, mut scratch) = (Framer::default(), vec![0; 64 << 10]);
            // The first read cannot know what comes.
            assert!(matches!(
                framer.read(&mut from, &mut scratch, &mut |_| {}),
                Ok(Got::Frames(..))
            ));
            let first = std::mem::take(&mut from.1);
            assert!(first <= piece.min(64 << 10));
            let mut frames = 0;
            let mut reads = 0;
            while let Ok(Got::Frames(..)) =
                framer.read(&mut from, &mut scratch, &mut |_| frames += 1)
            {
                reads += 1;
            }
            assert!(frames >= 9, "{frames}");
            assert!(from.1 <= 10 * BEHIND_LARGE, "{} bytes were copied", from.1);
            assert!(reads <= 2 * (bytes.len() / piece) + 20, "{reads} reads");
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
