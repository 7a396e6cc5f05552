//! A mailbox: one block per lane, overwritten in place; the newest message is the only one.
//!
//! ```text
//!   0 magic "SPMB"   4 zero [2]   6 writer u8   7 reader u8
//!   8 uuid [16]   24 epoch u64   32 counter u64   40 zero [8]
//!  48 body length u32   52 zero   56 CRC-32 of the body   60 CRC-32 of bytes 0..60
//!  64 body
//! ```
//!
//! The writer's table entry announces the counter. Awkward case: a reader may find a counter
//! newer than the one announced; it is taken, and the announcement is then old news.

use super::bytes::{array16_at, len_u32, put, put_u32, put_u64, u32_at, u64_at};
use super::superblock::Uuid;
use super::table::COUNTER_END;
use super::{HEADER_BYTES, crc32};
use crate::buffer::AlignedBuf;
use bytes::Bytes;

pub const MAGIC: &[u8; 4] = b"SPMB";

/// A message as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub epoch: u64,
    pub counter: u64,
    pub body: Bytes,
}

/// Fills `buf` (one block long).
#[must_use]
pub fn encode(
    mut buf: AlignedBuf,
    (uuid, from, to): (Uuid, u8, u8),
    (epoch, counter): (u64, u64),
    body: &[u8],
) -> Bytes {
    let b = buf.as_mut();
    b.fill(0);
    put(b, 0, MAGIC);
    b[6] = from;
    b[7] = to;
    put(b, 8, &uuid.0);
    put_u64(b, 24, epoch);
    put_u64(b, 32, counter);
    put_u32(b, 48, len_u32(body.len()));
    put_u32(b, 56, crc32(body));
    let crc = crc32(&b[..60]);
    put_u32(b, 60, crc);
    put(b, HEADER_BYTES, body);
    buf.freeze()
}

/// `None` when blank, torn or another lane's.
#[must_use]
pub fn decode(b: &Bytes, (uuid, from, to): (Uuid, u8, u8)) -> Option<Message> {
    if b.len() < HEADER_BYTES || b[..4] != *MAGIC || crc32(&b[..60]) != u32_at(b, 60) {
        return None;
    }
    if array16_at(b, 8) != uuid.0 || (b[6], b[7]) != (from, to) {
        return None;
    }
    if !(1..COUNTER_END).contains(&u64_at(b, 32)) {
        return None;
    }
    let end = HEADER_BYTES.checked_add(u32_at(b, 48) as usize).filter(|&e| e <= b.len())?;
    let body = b.slice(HEADER_BYTES..end);
    (crc32(&body) == u32_at(b, 56)).then(|| Message {
        epoch: u64_at(b, 24),
        counter: u64_at(b, 32),
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;

    #[test]
    fn golden_bytes_and_damage() {
        let lane = (Uuid(*b"0123456789abcdef"), 1, 2);
        let b = encode(Pool::new().take_len(4096), lane, (7, 5), b"hi");
        let want = b"SPMB\0\0\x01\x020123456789abcdef\x07\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0";
        assert_eq!((&b[..56], &b[64..67]), (&want[..], &b"hi\0"[..]));
        let m = decode(&b, lane).unwrap();
        assert_eq!((m.epoch, m.counter, &m.body[..]), (7, 5, &b"hi"[..]));
        assert_eq!(decode(&b, (lane.0, 2, 1)), None);
        for (counter, passes) in [
            (0, false),
            (1, true),
            (COUNTER_END - 1, true),
            (COUNTER_END, false),
            (u64::MAX, false),
        ] {
            let b = encode(Pool::new().take_len(4096), lane, (7, counter), b"hi");
            assert_eq!(decode(&b, lane).is_some(), passes, "{counter}");
        }
        for at in (0..4).chain(6..40).chain([65]) {
            let mut bad = b.to_vec();
            bad[at] ^= 0x10;
            assert_eq!(decode(&Bytes::from(bad), lane), None, "{at}");
        }
    }
}
