//! One flushed batch on a ring: a header, then frames, padded to whole blocks.
//!
//! ```text
//!   0 magic "SPR1"   4 type u8 (1 data, 2 wrap)   5 ring u8   6 writer u8   7 reader u8
//!   8 uuid [16]   24 epoch u64   32 number u64   40 place u32   44 blocks u32
//!  48 body length u32   52 frames u32   56 CRC-32 of the body   60 CRC-32 of bytes 0..60
//!  64 body: per frame its length u32, then its bytes; then zeros up to the block
//! ```
//!
//! The header names volume, lane, ring, epoch, number and place, so bytes that landed elsewhere
//! or belong to an earlier time never pass. Awkward cases: a wrap record claims all blocks to the
//! end of the ring but only its first block is written; a torn record whose tear lies in the
//! padding is whole.

use super::bytes::{array16_at, len_u32, put, put_u32, put_u64, u8_at, u32_at, u64_at};
use super::superblock::Uuid;
use super::{HEADER_BYTES, RECORD_BYTES_MAX, crc32};
use crate::buffer::AlignedBuf;
use crate::event::Ring;
use bytes::Bytes;
use std::ops::Range;

pub const MAGIC: &[u8; 4] = b"SPR1";
const TYPE_DATA: u8 = 1;
const TYPE_WRAP: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Data,
    /// Fills the ring up to its end; the next record is at place 0.
    Wrap,
}

/// Which ring of which volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub uuid: Uuid,
    pub from: u8,
    pub to: u8,
    pub ring: Ring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub epoch: u64,
    pub number: u64,
    pub place: u32,
    pub blocks: u32,
    pub body_len: u32,
    pub frames: u32,
    pub body_crc: u32,
}

impl Header {
    /// Writes the first 64 bytes.
    pub fn encode(&self, address: &Address, b: &mut [u8]) {
        put(b, 0, MAGIC);
        b[4] = if self.kind == Kind::Data { TYPE_DATA } else { TYPE_WRAP };
        b[5] = u8::from(address.ring == Ring::Data);
        b[6] = address.from;
        b[7] = address.to;
        put(b, 8, &address.uuid.0);
        put_u64(b, 24, self.epoch);
        put_u64(b, 32, self.number);
        put_u32(b, 40, self.place);
        put_u32(b, 44, self.blocks);
        put_u32(b, 48, self.body_len);
        put_u32(b, 52, self.frames);
        put_u32(b, 56, self.body_crc);
        let crc = crc32(&b[..60]);
        put_u32(b, 60, crc);
    }

    /// Reads a header; `None` unless it is whole and belongs to this ring and this place.
    #[must_use]
    pub fn decode(b: &[u8], address: &Address, place: u32) -> Option<Self> {
        if b.len() < HEADER_BYTES || b[..4] != *MAGIC || crc32(&b[..60]) != u32_at(b, 60) {
            return None;
        }
        let kind = match u8_at(b, 4) {
            TYPE_DATA => Kind::Data,
            TYPE_WRAP => Kind::Wrap,
            _ => return None,
        };
        let here = array16_at(b, 8) == address.uuid.0
            && b[5] == u8::from(address.ring == Ring::Data)
            && (b[6], b[7]) == (address.from, address.to)
            && u32_at(b, 40) == place;
        let header = Self {
            kind,
            epoch: u64_at(b, 24),
            number: u64_at(b, 32),
            place,
            blocks: u32_at(b, 44),
            body_len: u32_at(b, 48),
            frames: u32_at(b, 52),
            body_crc: u32_at(b, 56),
        };
        (here && header.blocks > 0).then_some(header)
    }

    /// Whether the sizes are possible for a ring of `ring_blocks` blocks of `block` bytes.
    #[must_use]
    pub fn fits(&self, ring_blocks: u32, block: usize) -> bool {
        let end = u64::from(self.place) + u64::from(self.blocks);
        let whole = HEADER_BYTES + self.body_len as usize;
        match self.kind {
            Kind::Wrap => end == u64::from(ring_blocks) && self.body_len == 0,
            Kind::Data => {
                end <= u64::from(ring_blocks)
                    && whole <= RECORD_BYTES_MAX
                    && whole.div_ceil(block) == self.blocks as usize
            }
        }
    }

    /// Bytes of the record that carry meaning.
    #[must_use]
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.body_len as usize
    }
}

/// Where a record says that it stands; not checked.
pub(crate) fn place_of(b: &[u8]) -> u32 {
    if b.len() < HEADER_BYTES { 0 } else { u32_at(b, 40) }
}

/// Checks the body and cuts it into frames that share `record`'s memory.
/// `None`: not (yet) what the header promises.
#[must_use]
pub fn open(record: &Bytes, header: &Header) -> Option<Vec<Bytes>> {
    let room = (header.frames as usize).min(header.body_len as usize / 4);
    let mut frames = Vec::with_capacity(room);
    walk(record, header, |frame| frames.push(record.slice(frame)))?;
    Some(frames)
}

/// The same check for who wants no frames.
#[must_use]
pub fn is_whole(record: &[u8], header: &Header) -> bool {
    walk(record, header, |_| {}).is_some()
}

fn walk(record: &[u8], header: &Header, mut each: impl FnMut(Range<usize>)) -> Option<()> {
    let body = record.get(HEADER_BYTES..header.bytes())?;
    if crc32(body) != header.body_crc {
        return None;
    }
    let mut at = HEADER_BYTES;
    for _ in 0..header.frames {
        let start = at.checked_add(4).filter(|&s| s <= header.bytes())?;
        let end = start.checked_add(u32_at(record, at) as usize)?;
        if end > header.bytes() {
            return None;
        }
        each(start..end);
        at = end;
    }
    (at == header.bytes()).then_some(())
}

/// A record being filled: room for the header, then frames.
#[derive(Debug)]
pub struct Draft {
    buf: AlignedBuf,
    frames: u32,
}

impl Draft {
    #[must_use]
    pub fn new(mut buf: AlignedBuf) -> Self {
        buf.set_len(HEADER_BYTES);
        Self { buf, frames: 0 }
    }

    /// Header, frames and their lengths, without padding.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buf.len()
    }

    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The one copy between a sealed frame and the medium.
    pub fn push(&mut self, frame: &[u8]) {
        self.buf.extend(&len_u32(frame.len()).to_le_bytes());
        self.buf.extend(frame);
        self.frames += 1;
    }

    /// Completes the record for its place.
    #[must_use]
    pub fn seal(
        mut self,
        address: &Address,
        epoch: u64,
        number: u64,
        place: u32,
        block: usize,
    ) -> (Header, Bytes) {
        let body_crc = crc32(&self.buf.as_ref()[HEADER_BYTES..]);
        let header = Header {
            kind: Kind::Data,
            epoch,
            number,
            place,
            blocks: len_u32(self.buf.len().div_ceil(block)),
            body_len: len_u32(self.buf.len() - HEADER_BYTES),
            frames: self.frames,
            body_crc,
        };
        header.encode(address, self.buf.as_mut());
        self.buf.pad_to(block);
        (header, self.buf.freeze())
    }
}

/// The record that fills a ring from `place` to its end: one block.
#[must_use]
pub fn wrap(
    mut buf: AlignedBuf,
    address: &Address,
    epoch: u64,
    number: u64,
    place: u32,
    blocks: u32,
) -> (Header, Bytes) {
    let body_crc = crc32(&[]);
    let header =
        Header { kind: Kind::Wrap, epoch, number, place, blocks, body_len: 0, frames: 0, body_crc };
    buf.as_mut().fill(0);
    header.encode(address, buf.as_mut());
    (header, buf.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;

    fn address() -> Address {
        Address { uuid: Uuid(*b"0123456789abcdef"), from: 1, to: 2, ring: Ring::Data }
    }

    fn sealed(frames: &[&[u8]], number: u64) -> Bytes {
        let mut draft = Draft::new(Pool::new().take(4096));
        frames.iter().for_each(|f| draft.push(f));
        draft.seal(&address(), 7, number, 3, 4096).1
    }

    #[test]
    fn golden_bytes() {
        let b = sealed(&[b"ab", b""], 5);
        assert_eq!(b.len(), 4096);
        let want = b"SPR1\x01\x01\x01\x020123456789abcdef\x07\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x03\0\0\0\x01\0\0\0\x0a\0\0\0\x02\0\0\0";
        assert_eq!(&b[..56], want);
        assert_eq!(&b[64..80], b"\x02\0\0\0ab\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(u32_at(&b, 56), crc32(b"\x02\0\0\0ab\0\0\0\0"));
        let (h, w) = wrap(Pool::new().take_len(4096), &address(), 7, 6, 4, 60);
        assert_eq!(
            (w[4], u32_at(&w, 44), h.fits(64, 4096), h.fits(65, 4096)),
            (2, 60, true, false)
        );
    }

    #[test]
    fn a_record_passes_only_at_its_place_and_on_its_ring() {
        let b = sealed(&[b"one", b"two"], 5);
        let h = Header::decode(&b, &address(), 3).unwrap();
        assert!(h.fits(64, 4096));
        assert_eq!(open(&b, &h).unwrap(), vec![&b"one"[..], &b"two"[..]]);
        assert_eq!(Header::decode(&b, &address(), 4), None);
        assert_eq!(Header::decode(&b, &Address { ring: Ring::Express, ..address() }, 3), None);
        assert_eq!(Header::decode(&b, &Address { from: 2, to: 1, ..address() }, 3), None);
        assert_eq!(Header::decode(&b, &Address { uuid: Uuid([1; 16]), ..address() }, 3), None);
    }

    #[test]
    fn no_prefix_of_a_record_over_an_older_one_passes() {
        let old = sealed(&[&[1; 9000]], 4);
        let new = sealed(&[&[2; 9000]], 5);
        for cut in (0..=new.len()).step_by(512) {
            let mut torn = old.to_vec();
            torn[..cut].copy_from_slice(&new[..cut]);
            let torn = Bytes::from(torn);
            let h = Header::decode(&torn, &address(), 3).unwrap();
            let passed = open(&torn, &h).is_some();
            let whole = cut == 0 || cut >= h.bytes();
            assert_eq!(passed, whole, "torn at {cut}");
        }
    }

    #[test]
    fn lying_frame_lengths_are_refused() {
        let b = sealed(&[b"abcdef"], 5).to_vec();
        for len in [0u32, 5, 7, 4000, u32::MAX] {
            let mut bad = b.clone();
            put_u32(&mut bad, 64, len);
            let mut h = Header::decode(&bad, &address(), 3).unwrap();
            h.body_crc = crc32(&bad[64..74]);
            assert_eq!(open(&Bytes::from(bad), &h), None, "{len}");
        }
    }
}
