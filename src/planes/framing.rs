//! Frames in a stream of bytes: a u32 length in network order, then the frame.
//!
//! Awkward cases: a frame may come in any number of pieces; a length that no frame has, or a first
//! byte of another version, means that whoever sends is none of us.

/// Longest frame: a super-packet of 64 KiB and what sealing adds.
pub(super) const FRAME_BYTES_MAX: usize = 70_000;
/// No sealed frame or handshake is shorter.
const FRAME_BYTES_MIN: usize = 16;

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// The beginning of a frame whose end has not come yet.
    partial: Vec<u8>,
}

/// The bytes are not length-framed frames.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAFrame;

impl Framer {
    /// Hands each whole frame to `take`; their number.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<usize, NotAFrame> {
        let mut frames = 0;
        while !bytes.is_empty() {
            if self.partial.is_empty() {
                // The common case: whole frames in the read buffer, nothing is copied.
                if let Some((frame, rest)) = split(bytes)? {
                    take(frame);
                    frames += 1;
                    bytes = rest;
                    continue;
                }
            }
            let wanted = match self.partial.first_chunk() {
                Some(length) => 4 + checked(*length)?,
                None => 4,
            };
            let (now, later) = bytes.split_at(bytes.len().min(wanted - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = later;
            if let Some((frame, _)) = split(&self.partial)? {
                take(frame);
                frames += 1;
                self.partial.clear();
            }
        }
        Ok(frames)
    }
}

/// A frame and what follows it, or nothing whole yet.
type Split<'a> = Option<(&'a [u8], &'a [u8])>;

/// The first whole frame and what follows it.
fn split(bytes: &[u8]) -> Result<Split<'_>, NotAFrame> {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = checked(*length)?;
    let Some((frame, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    // High half of the first byte: the version of the wire format, the same in all kinds.
    let version = failover::wire::FIRST_BYTE_BEAT >> 4;
    if frame.first().is_none_or(|byte| byte >> 4 != version) {
        return Err(NotAFrame);
    }
    Ok(Some((frame, rest)))
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

    #[test]
    fn frames_survive_any_cutting() {
        let sizes = [16, 17, 4000, FRAME_BYTES_MAX, 16];
        let bytes: Vec<u8> =
            sizes.iter().zip(1..).flat_map(|(size, tag)| framed(*size, tag)).collect();
        for piece in [1, 2, 3, 5, 19, 1000, bytes.len()] {
            let mut framer = Framer::default();
            let mut got = Vec::new();
            for part in bytes.chunks(piece) {
                framer.push(part, &mut |f| got.push((f.len(), f[f.len() - 1]))).unwrap();
            }
            let want: Vec<_> = sizes.into_iter().zip(1_u8..).collect();
            assert_eq!(got, want, "pieces of {piece}");
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
    }
}
