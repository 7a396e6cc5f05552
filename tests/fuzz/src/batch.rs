//! Datagrams that the kernel merged into one message.

use std::net::SocketAddr;

use super::{
    meter::bounded,
    mmsg::{Notes, Received, notes},
};

const KINDS: [(i32, i32); 4] = [
    (libc::SOL_UDP, libc::UDP_GRO),
    (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    (libc::IPPROTO_IP, libc::IP_TTL),
];

/// Control messages say how long the datagrams of a message are, whatever else they hold, and the
/// message is cut into all of its bytes in order. The first byte: how many bytes of control
/// messages follow, raw if it is odd; the rest are datagrams.
pub(crate) fn batch(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    let (control, bytes) = rest.split_at(rest.len().min(usize::from(mode >> 1)));
    let read = |control: &[u8]| bounded(control, 0, 0, || notes(control));
    let said = if mode & 1 == 1 {
        read(control)
    } else {
        let (control, padding, expected) = build(control);
        let said = read(&control);
        assert_eq!(said, expected);
        // The padding behind the last message may be missing.
        assert_eq!(read(&control[..control.len() - padding]), expected);
        said
    };
    let segment = said.segment.unwrap_or_else(|| bytes.len().max(1));
    let from = SocketAddr::from(([192, 0, 2, 1], 7440));
    let received = Received { from, bytes, segment, stamp_ns: said.stamp_ns };
    let (mut joined, mut short) = (Vec::new(), false);
    for datagram in received.datagrams() {
        assert!(!short, "only the last may be shorter");
        assert!(!datagram.is_empty() && datagram.len() <= segment);
        short = datagram.len() < segment;
        joined.extend_from_slice(datagram);
    }
    assert_eq!(joined, bytes);
}

/// Control messages as a kernel lays them out, how much of their end is padding, and what they
/// say; `plan`: kind, length, content.
fn build(mut plan: &[u8]) -> (Vec<u8>, usize, Notes) {
    let (mut control, mut padding, mut expected) = (Vec::new(), 0, Notes::default());
    while let Some(([kind, length], rest)) = plan.split_first_chunk().map(|(c, r)| (*c, r)) {
        let (level, kind) = KINDS[usize::from(kind) % KINDS.len()];
        let (content, rest) = rest.split_at(rest.len().min(usize::from(length & 31)));
        plan = rest;
        control.extend_from_slice(&(16 + content.len()).to_ne_bytes());
        control.extend_from_slice(&level.to_ne_bytes());
        control.extend_from_slice(&kind.to_ne_bytes());
        control.extend_from_slice(content);
        padding = control.len().next_multiple_of(8) - control.len();
        control.resize(control.len() + padding, 0xaa);
        match (kind, content) {
            (libc::UDP_GRO, [a, b, c, d, ..]) if level == libc::SOL_UDP => {
                let size = i32::from_ne_bytes([*a, *b, *c, *d]);
                expected.segment = Some(usize::try_from(size.max(1)).expect("positive"));
            }
            (libc::SCM_TIMESTAMPNS, content) if content.len() >= 16 => {
                let number = |at: usize| {
                    let bytes = content[at..at + 8].try_into().expect("eight bytes");
                    u64::try_from(i64::from_ne_bytes(bytes)).ok()
                };
                expected.stamp_ns = number(0)
                    .and_then(|seconds| seconds.checked_mul(1_000_000_000))
                    .and_then(|stamp| stamp.checked_add(number(8)?));
            }
            _ => {}
        }
    }
    (control, padding, expected)
}
