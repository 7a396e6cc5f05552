//! Cutting a segmentation-offload super-packet into packets that fit a datagram, as a network
//! card would (TSO for TCP, USO for UDP), and reading the `virtio_net_hdr` that describes it.
//!
//! The hands give us packets with that header in front; a super-packet crosses storage whole and
//! is cut only when it must cross the network.

use super::checksum::{add, complete, fold, pseudo};

/// Length of a `virtio_net_hdr`, bytes.
pub(crate) const VNET: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Explicit congestion notification is in use; may accompany TCP.
const GSO_ECN: u8 = 0x80;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A `virtio_net_hdr` (virtio 1.2, section 5.1.6), native byte order on little-endian machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Vnet {
    flags: u8,
    gso_type: u8,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Vnet {
    /// Reads the header in front of `bytes`; the packet is the rest.
    pub(crate) fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, packet) = bytes.split_at_checked(VNET)?;
        let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let vnet = Self {
            flags: header[0],
            gso_type: header[1],
            gso_size: field(4),
            checksum_start: field(6),
            checksum_offset: field(8),
        };
        Some((vnet, packet))
    }

    /// It describes more than one packet.
    pub(crate) const fn is_super(&self) -> bool {
        self.gso_type != GSO_NONE
    }

    /// How many packets it describes.
    pub(crate) fn count(&self, packet: &[u8]) -> u64 {
        if !self.is_super() || self.gso_size == 0 {
            return 1;
        }
        let payload = packet.len().saturating_sub(self.payload_at(packet).unwrap_or(0));
        payload.div_ceil(usize::from(self.gso_size)).max(1) as u64
    }

    /// Completes the checksum if the kernel left that to us. False when the header lies.
    pub(crate) fn finish(&self, packet: &mut [u8]) -> bool {
        self.flags & NEEDS_CHECKSUM == 0
            || complete(packet, self.checksum_start.into(), self.checksum_offset.into())
    }

    fn payload_at(&self, packet: &[u8]) -> Option<usize> {
        let start = usize::from(self.checksum_start);
        match self.gso_type & !GSO_ECN {
            GSO_UDP => Some(start + 8),
            GSO_TCP4 | GSO_TCP6 => {
                let words = packet.get(start + 12)? >> 4;
                Some(start + usize::from(words) * 4)
            }
            _ => None,
        }
    }
}

/// Cuts a super-packet; each segment is a whole packet of its own with right lengths and
/// checksums, `headroom` zero bytes in front. `None` when header and packet do not fit together.
pub(crate) fn segments(vnet: &Vnet, packet: &[u8], headroom: usize) -> Option<Vec<Vec<u8>>> {
    let start = usize::from(vnet.checksum_start);
    let payload_at = vnet.payload_at(packet)?;
    let size = usize::from(vnet.gso_size);
    let (headers, payload) = packet.split_at_checked(payload_at)?;
    let minimum = if packet.first()? >> 4 == 4 { 20 } else { 40 };
    let transport = if vnet.gso_type == GSO_UDP { 8 } else { 20 };
    if size == 0 || start < minimum || payload_at < start + transport {
        return None;
    }
    let count = payload.len().div_ceil(size).max(1);
    let mut out = Vec::with_capacity(count);
    for index in 0..count {
        let part = &payload[index * size..payload.len().min((index + 1) * size)];
        let mut segment =
            Vec::with_capacity(headroom + headers.len() + part.len() + super::super::wire::TAG);
        segment.resize(headroom, 0);
        segment.extend_from_slice(headers);
        segment.extend_from_slice(part);
        let whole = &mut segment[headroom..];
        network_header(whole, start, index);
        if vnet.gso_type == GSO_UDP {
            udp_header(whole, start);
        } else {
            tcp_header(whole, start, index * size, index == 0, index + 1 == count);
        }
        out.push(segment);
    }
    Some(out)
}

fn network_header(packet: &mut [u8], start: usize, index: usize) {
    let length = packet.len();
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&short(length).to_be_bytes());
        let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(short(index));
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[10..12].fill(0);
        let sum = fold(add(0, &packet[..start]));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&short(length - 40).to_be_bytes());
    }
}

fn udp_header(packet: &mut [u8], start: usize) {
    let length = packet.len() - start;
    packet[start + 4..start + 6].copy_from_slice(&short(length).to_be_bytes());
    transport_checksum(packet, start, 6, 17);
}

fn tcp_header(packet: &mut [u8], start: usize, offset: usize, first: bool, last: bool) {
    let at = start + 4;
    let sequence = u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let sequence = sequence.wrapping_add(u32::try_from(offset).unwrap_or(0));
    packet[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
    let flags = &mut packet[start + 13];
    if !last {
        *flags &= !(FIN | PSH);
    }
    if !first {
        *flags &= !CWR;
    }
    transport_checksum(packet, start, 16, 6);
}

fn transport_checksum(packet: &mut [u8], start: usize, offset: usize, protocol: u8) {
    let field = start + offset;
    packet[field..field + 2].fill(0);
    let sum = pseudo(packet, protocol, packet.len() - start);
    let sum = match fold(add(sum, &packet[start..])) {
        0 => 0xffff,
        sum => sum,
    };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A length that fits because a super-packet is at most 64 KiB.
fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp4(payload: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend_from_slice(&[0, 80, 0, 81, 0, 0, 0, 100, 0, 0, 0, 0, 0x50, 0x19, 1, 0]);
        packet.extend_from_slice(&[0, 0, 0, 0]);
        packet.extend((0..payload).map(|i| u8::try_from(i % 251).unwrap()));
        packet
    }

    fn vnet(gso_type: u8, gso_size: u16, offset: u16) -> Vnet {
        Vnet { flags: 1, gso_type, gso_size, checksum_start: 20, checksum_offset: offset }
    }

    fn checksum_is_right(packet: &[u8], protocol: u8) -> bool {
        let sum = pseudo(packet, protocol, packet.len() - 20);
        fold(add(sum, &packet[20..])) == 0 && fold(add(0, &packet[..20])) == 0
    }

    #[test]
    fn tcp_is_cut_and_adds_up() {
        let packet = tcp4(2500);
        let parts = segments(&vnet(GSO_TCP4, 1000, 16), &packet, 3).unwrap();
        assert_eq!(parts.iter().map(|p| p.len() - 43).collect::<Vec<_>>(), [1000, 1000, 500]);
        let mut payload = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let part = &part[3..];
            assert!(checksum_is_right(part, 6), "segment {index}");
            assert_eq!(usize::from(part[26]) * 256 + usize::from(part[27]), 100 + index * 1000);
            assert_eq!(part[33] & (FIN | PSH) != 0, index == 2, "FIN and PSH only on the last");
            assert_eq!(part[5], 7 + u8::try_from(index).unwrap());
            payload.extend_from_slice(&part[40..]);
        }
        assert_eq!(payload, packet[40..]);
        assert_eq!(vnet(GSO_TCP4, 1000, 16).count(&packet), 3);
    }

    #[test]
    fn udp_is_cut_and_adds_up() {
        let mut packet = tcp4(0)[..20].to_vec();
        packet[9] = 17;
        packet.extend_from_slice(&[0, 80, 0, 81, 0, 0, 0, 0]);
        packet.extend_from_slice(&[7; 250]);
        let parts = segments(&vnet(GSO_UDP, 100, 6), &packet, 0).unwrap();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [128, 128, 78]);
        assert!(parts.iter().all(|p| checksum_is_right(p, 17)));
    }

    #[test]
    fn lying_headers_are_refused() {
        let packet = tcp4(100);
        assert!(segments(&vnet(GSO_TCP4, 0, 16), &packet, 0).is_none());
        for start in 0..200 {
            let mut lie = vnet(GSO_TCP4, 10, 16);
            lie.checksum_start = start;
            let _ = segments(&lie, &packet, 0);
            let _ = lie.count(&packet);
            let _ = lie.finish(&mut packet.clone());
        }
        for end in 0..60 {
            let _ = segments(&vnet(GSO_TCP4, 10, 16), &packet[..end], 0);
        }
    }
}
