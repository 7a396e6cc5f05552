//! Packets of applications: what is seen of them, and how super-packets are cut.

use std::net::IpAddr;

use super::meter::bounded;

const VNET: usize = 10;

/// A packet is looked at: addresses come from their places, the flow depends on no payload.
pub(crate) fn view(data: &[u8]) {
    let Some((source, destination, flow)) = bounded(data, 1024, 0, || failover::fuzz::view(data))
    else {
        return;
    };
    match data[0] >> 4 {
        4 => {
            assert_eq!(source, address::<4>(&data[12..]));
            assert_eq!(destination, address::<4>(&data[16..]));
        }
        6 => {
            assert_eq!(source, address::<16>(&data[8..]));
            assert_eq!(destination, address::<16>(&data[24..]));
        }
        version => panic!("IP version {version} was taken for a packet"),
    }
    // Its last byte belongs to the payload once four extension headers, which may be long, and
    // ports are past.
    let mut longer = data.to_vec();
    longer.push(1);
    let with = |last: u8| {
        let mut packet = longer.clone();
        *packet.last_mut().expect("not empty") = last;
        failover::fuzz::view(&packet).map(|seen| seen.2)
    };
    if data.len() > 60 + 8 && data[0] >> 4 == 4 {
        assert_eq!(with(1), Some(flow));
        assert_eq!(with(2), Some(flow), "payload is no part of a flow");
    }
}

fn address<const N: usize>(bytes: &[u8]) -> IpAddr
where
    IpAddr: From<[u8; N]>,
{
    IpAddr::from(*bytes.first_chunk::<N>().expect("a packet that was taken is long enough"))
}

/// A super-packet is cut: the parts join to the same payload, and each is a whole packet with
/// right lengths and checksums. Reads `virtio_net_hdr` and packet; with an odd first byte the
/// rest is made into a header that mostly tells the truth.
pub(crate) fn segment(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    let built = mode & 1 == 1;
    let raw = if built { build(mode >> 1, rest) } else { rest.to_vec() };
    if raw.len() > VNET + 65_535 {
        return;
    }
    let headroom = usize::from(mode >> 2);
    // Each part repeats the headers: at most 60 + 60 bytes and the headroom for one of payload.
    let Some((count, parts)) =
        bounded(&raw, 4096, 512 + headroom, || failover::fuzz::cut(&raw, headroom))
    else {
        return;
    };
    let (vnet, packet) = raw.split_at(VNET);
    if let Some((done, completed)) = failover::fuzz::complete(&raw) {
        assert_eq!(completed.len(), packet.len());
        let changed = completed.iter().zip(packet).filter(|(a, b)| a != b).count();
        assert!(if done { changed <= 2 } else { changed == 0 }, "only the checksum is completed");
    }
    let Some(parts) = parts else {
        assert!(!built || packet.len() < 8, "an honest super-packet was refused");
        return;
    };
    assert_eq!(parts.len() as u64, count, "counted as many packets as it is cut into");
    let start = usize::from(u16::from_ne_bytes([vnet[6], vnet[7]]));
    let udp = vnet[1] == 5;
    let payload_at = start + if udp { 8 } else { usize::from(packet[start + 12] >> 4) * 4 };
    let size = usize::from(u16::from_ne_bytes([vnet[4], vnet[5]]));
    let mut payload = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let (room, part) = part.split_at(headroom);
        assert!(room.iter().all(|b| *b == 0));
        assert!(part.len() - payload_at <= size);
        assert!(index + 1 == parts.len() || part.len() - payload_at == size);
        lengths_and_sums(part, start, udp, built);
        let part_of = |at: usize| [part[at], part[at + 1], part[at + 2], part[at + 3]];
        if !udp {
            let first = u32::from_be_bytes([
                packet[start + 4],
                packet[start + 5],
                packet[start + 6],
                packet[start + 7],
            ]);
            let offset = u32::try_from(index * size).expect("64 KiB at most");
            assert_eq!(u32::from_be_bytes(part_of(start + 4)), first.wrapping_add(offset));
        }
        payload.extend_from_slice(&part[payload_at..]);
    }
    assert_eq!(payload, packet[payload_at..], "the parts join to what was cut");
}

fn lengths_and_sums(part: &[u8], start: usize, udp: bool, built: bool) {
    let four = part[0] >> 4 == 4;
    let short = |at: usize| usize::from(u16::from_be_bytes([part[at], part[at + 1]]));
    if part.len() <= 65_535 {
        assert_eq!(if four { short(2) } else { short(4) + 40 }, part.len());
        assert!(!udp || short(start + 4) == part.len() - start);
    }
    if four {
        assert_eq!(sum(&[&part[..start]]), 0xffff, "sum of the IP header");
    }
    if !built {
        return;
    }
    let addresses = if four { &part[12..20] } else { &part[8..40] };
    let protocol = if udp { 17 } else { 6 };
    let length = u16::try_from(part.len() - start).expect("64 KiB at most").to_be_bytes();
    let pseudo = [0, protocol, length[0], length[1]];
    assert_eq!(sum(&[addresses, &pseudo, &part[start..]]), 0xffff, "sum of the transport part");
}

/// The ones' complement sum, written apart from the product's.
fn sum(parts: &[&[u8]]) -> u64 {
    let mut total = 0_u64;
    for part in parts {
        for (at, byte) in part.iter().enumerate() {
            total += u64::from(*byte) << (if at % 2 == 0 { 8 } else { 0 });
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

/// A super-packet as a kernel would hand it over; `rest`: size of a segment, then bytes that vary
/// the headers, then payload.
fn build(kind: u8, rest: &[u8]) -> Vec<u8> {
    let (vary, payload) = rest.split_at(rest.len().min(8));
    let byte = |at: usize| vary.get(at).copied().unwrap_or(0);
    let (six, udp) = (kind & 1 == 1, kind & 2 == 2);
    let size = u16::from_ne_bytes([byte(0), byte(1) & 0x3f]).max(1);
    let payload = &payload[..payload.len().min(60_000)];
    let start: u16 = if six { 40 } else { 20 + u16::from(byte(2) & 7) * 4 };
    let protocol = if udp { 17 } else { 6 };
    let mut packet = vec![0; usize::from(start)];
    if six {
        packet[0] = 0x60;
        packet[6] = protocol;
        packet[8..40].fill(byte(3));
    } else {
        packet[0] = 0x40 | u8::try_from(start / 4).expect("a small number");
        packet[4] = byte(4);
        packet[9] = protocol;
        packet[12..20].fill(byte(3));
    }
    if udp {
        packet.extend_from_slice(&[0, 80, 0, 81, 0, 0, byte(5), byte(6)]);
    } else {
        let words = 5 + (byte(5) & 7);
        packet.extend_from_slice(&[0, 80, 0, 81, byte(6), 255, 255, byte(7), 1, 2, 3, 4]);
        packet.extend_from_slice(&[words << 4, byte(4), 1, 0, 9, 9, 0, 0]);
        packet.resize(usize::from(start) + usize::from(words) * 4, 1);
    }
    packet.extend_from_slice(payload);
    let gso = if udp {
        5
    } else if six {
        4
    } else {
        1
    };
    let mut raw = vec![1, gso, 0, 0];
    for field in [size, start, if udp { 6 } else { 16 }] {
        raw.extend_from_slice(&field.to_ne_bytes());
    }
    raw.extend_from_slice(&packet);
    raw
}
