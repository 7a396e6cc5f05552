//! The body of a stream frame, and what it does to the sessions it names.

use bytes::Bytes;
use failover::{
    fuzz::Sessions,
    wire::stream::{Segment, read, write},
};

/// Segments are read as they are written, and whatever an authentic peer says, sessions stay
/// within their bounds and nothing panics.
///
/// Bytes of the input: a row of steps, each a byte and what it needs. High bit: so many bytes (the
/// other bits, and the next byte) are a frame; else time passes, offers are accepted, bytes are
/// written and taken, frames are sent, paths change.
pub(crate) fn sessions(data: &[u8]) {
    let mut sessions = Sessions::new();
    let mut rest = data;
    while let Some((step, after)) = rest.split_first() {
        rest = after;
        if step & 0x80 == 0 {
            sessions.step(*step);
            continue;
        }
        let Some((low, after)) = rest.split_first() else { break };
        let length = (usize::from(step & 0x3f) << 8 | usize::from(*low)).min(after.len());
        let (body, after) = after.split_at(length);
        rest = after;
        let body = Bytes::copy_from_slice(body);
        round_trip(&body);
        sessions.frame(&body, step & 0x40 != 0);
    }
}

fn round_trip(body: &Bytes) {
    let mut again = Vec::new();
    let mut pieces = 0;
    let whole = read(body, |segment, bytes| {
        write(&segment, &mut again);
        again.extend_from_slice(&bytes);
        pieces += bytes.len();
        if let Segment::Data { length, .. } = segment {
            assert_eq!(bytes.len(), length as usize);
        }
    });
    assert!(pieces <= body.len());
    if whole.is_some() {
        // Numbers have more than one spelling; what was read is written in the shortest.
        let shortest = Bytes::from(again);
        let mut twice = Vec::new();
        let read_again = read(&shortest, |segment, bytes| {
            write(&segment, &mut twice);
            twice.extend_from_slice(&bytes);
        });
        assert!(read_again.is_some() && twice == shortest && shortest.len() <= body.len());
    }
}
