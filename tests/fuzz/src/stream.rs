//! Frames in a TCP stream.

use super::{
    framing::{FRAME_BYTES_MAX, Framer, Got, Source},
    meter::bounded,
};

impl Source for &[u8] {
    fn fill(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        std::io::Read::read(self, into)
    }

    fn append(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize> {
        let (now, later) = self.split_at(self.len().min(into.capacity() - into.len()));
        into.extend_from_slice(now);
        *self = later;
        Ok(now.len())
    }
}

/// A stream is cut into the same frames, and refused at the same place, however it was chopped.
/// The first two bytes say into which pieces.
pub(crate) fn stream(data: &[u8]) {
    let Some((pieces, bytes)) = data.split_first_chunk::<2>() else { return };
    let whole = framed(bytes, bytes.len().max(1));
    assert!(whole.0.iter().map(|f| f.len() + 4).sum::<usize>() <= bytes.len());
    let mut joined = Vec::new();
    for frame in &whole.0 {
        assert!(frame.len() <= FRAME_BYTES_MAX);
        joined.extend_from_slice(&u32::try_from(frame.len()).expect("short").to_be_bytes());
        joined.extend_from_slice(frame);
    }
    assert!(bytes.starts_with(&joined), "frames are what lay in the stream");
    for piece in [usize::from(pieces[0]) + 1, usize::from(pieces[1]) * 256 + 1] {
        assert_eq!(framed(bytes, piece), whole, "pieces of {piece}");
    }
}

fn framed(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let mut framer = Framer::default();
    let mut frames = Vec::new();
    let mut scratch = vec![0; 4096];
    for mut part in bytes.chunks(piece) {
        while !part.is_empty() {
            let mut cut = Vec::new();
            // A frame that was begun has its full length already.
            let base = 4096 + FRAME_BYTES_MAX;
            let got = bounded(bytes, base, 16, || {
                framer.read(&mut part, &mut scratch, &mut |frame| cut.push(frame))
            });
            frames.extend(cut);
            if !matches!(got, Ok(Got::Frames(..))) {
                return (frames, true);
            }
        }
    }
    (frames, false)
}
