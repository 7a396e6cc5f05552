//! Looking at an IP packet: addresses, flow, class.
//!
//! A class is a property of the flow and never of a packet's size. Fragments follow their first
//! one: only the first carries ports, so a short memory of (addresses, identification) lends its
//! flow to the others; a fragment whose first was not seen belongs to the pair of addresses.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::Class;
use crate::ClassRules;

/// What was seen of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Same for all packets of a flow; two flows share it with a probability of 2^-64.
    pub(crate) flow: u64,
    pub(crate) class: Class,
}

/// First fragments seen lately, newest last.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    seen: VecDeque<(u64, u64, Class)>,
}

const FRAGMENTS_MAX: usize = 64;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const FRAGMENT6: u8 = 44;

/// The network part, before ports.
struct Network<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    dscp: u8,
    /// Identification, when the packet is a fragment; true when it is the first.
    fragment: Option<(u32, bool)>,
    transport: &'a [u8],
}

impl View {
    /// Looks at a packet; `None` when it is no IP packet.
    pub(crate) fn of(packet: &[u8], rules: &ClassRules, fragments: &mut Fragments) -> Option<Self> {
        let network = match packet.first()? >> 4 {
            4 => ipv4(packet)?,
            6 => ipv6(packet)?,
            _ => return None,
        };
        let mut hash = Hash::new();
        hash.address(network.source);
        hash.address(network.destination);
        hash.add(&[network.protocol]);
        let pair = hash.0;
        let (flow, class) = match network.fragment {
            Some((id, false)) => {
                hash.add(&id.to_le_bytes());
                fragments.find(hash.0).unwrap_or_else(|| (pair, class(&network, None, rules)))
            }
            fragment => {
                let ports = ports(network.protocol, network.transport);
                let class = class(&network, ports, rules);
                let mut flow = Hash(pair);
                if let Some((from, to)) = ports {
                    flow.add(&from.to_le_bytes());
                    flow.add(&to.to_le_bytes());
                }
                flow.add(&[network.dscp]);
                if let Some((id, _)) = fragment {
                    hash.add(&id.to_le_bytes());
                    fragments.remember(hash.0, flow.0, class);
                }
                (flow.0, class)
            }
        };
        Some(Self { source: network.source, destination: network.destination, flow, class })
    }
}

impl Fragments {
    fn find(&self, packet: u64) -> Option<(u64, Class)> {
        self.seen.iter().rev().find(|s| s.0 == packet).map(|s| (s.1, s.2))
    }

    fn remember(&mut self, packet: u64, flow: u64, class: Class) {
        if self.seen.len() == FRAGMENTS_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back((packet, flow, class));
    }
}

fn ipv4(packet: &[u8]) -> Option<Network<'_>> {
    let header = packet.first_chunk::<20>()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let offset_and_flags = u16::from_be_bytes([header[6], header[7]]);
    let more = offset_and_flags & 0x2000 != 0;
    let offset = offset_and_flags & 0x1fff;
    let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
    Some(Network {
        source: Ipv4Addr::from([header[12], header[13], header[14], header[15]]).into(),
        destination: Ipv4Addr::from([header[16], header[17], header[18], header[19]]).into(),
        protocol: header[9],
        dscp: header[1] >> 2,
        fragment: (more || offset != 0).then_some((id, offset == 0)),
        transport: packet.get(length.max(20)..)?,
    })
}

fn ipv6(packet: &[u8]) -> Option<Network<'_>> {
    let header = packet.first_chunk::<40>()?;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes).into())
    };
    let mut protocol = header[6];
    let mut at = 40;
    let mut fragment = None;
    // Extension headers that may precede the transport part; more than four is nobody's traffic.
    for _ in 0..4 {
        match protocol {
            0 | 43 | 60 => {
                let extension = packet.get(at..at + 2)?;
                protocol = extension[0];
                at += (usize::from(extension[1]) + 1) * 8;
            }
            FRAGMENT6 => {
                let extension: [u8; 8] = packet.get(at..at + 8)?.try_into().ok()?;
                let offset = u16::from_be_bytes([extension[2], extension[3]]) >> 3;
                let id =
                    u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
                fragment = Some((id, offset == 0));
                protocol = extension[0];
                at += 8;
            }
            _ => break,
        }
    }
    Some(Network {
        source: address(8)?,
        destination: address(24)?,
        protocol,
        dscp: (header[0] << 4 | header[1] >> 4) >> 2,
        fragment,
        transport: packet.get(at..)?,
    })
}

fn ports(protocol: u8, transport: &[u8]) -> Option<(u16, u16)> {
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let ports = transport.first_chunk::<4>()?;
    Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
}

fn class(network: &Network<'_>, ports: Option<(u16, u16)>, rules: &ClassRules) -> Class {
    let either = |list: &[u16]| ports.is_some_and(|(a, b)| list.contains(&a) || list.contains(&b));
    let echo = match (network.protocol, network.transport.first()) {
        (ICMP, Some(kind)) => matches!(kind, 0 | 8),
        (ICMP6, Some(kind)) => matches!(kind, 128 | 129),
        _ => false,
    };
    let express = rules.express_dscp.contains(&network.dscp)
        || (network.protocol == UDP && either(&rules.express_udp_ports))
        || (network.protocol == TCP && either(&rules.express_tcp_ports))
        || (rules.express_echo && echo);
    if express {
        Class::Express
    } else if network.protocol == UDP && either(&rules.read_udp_ports) {
        Class::Read
    } else {
        Class::Write
    }
}

/// FNV-1a, 64 bit: the same on every run and every node.
struct Hash(u64);

impl Hash {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(a) => self.add(&a.octets()),
            IpAddr::V6(a) => self.add(&a.octets()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A UDP packet from 10.0.0.1 to 10.0.0.2.
    pub(crate) fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 9, 0, 0, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend_from_slice(&ports.0.to_be_bytes());
        packet.extend_from_slice(&ports.1.to_be_bytes());
        packet.extend_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(payload);
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet
    }

    fn view(packet: &[u8]) -> View {
        View::of(packet, &ClassRules::default(), &mut Fragments::default()).unwrap()
    }

    #[test]
    fn flows_differ_by_ports_and_not_by_content() {
        let one = view(&udp((1, 2), b"a"));
        assert_eq!(one.flow, view(&udp((1, 2), b"bcd")).flow);
        assert_ne!(one.flow, view(&udp((1, 3), b"a")).flow);
        assert_eq!(one.destination, IpAddr::from([10, 0, 0, 2]));
    }

    #[test]
    fn corosync_echo_and_marked_flows_are_express() {
        assert_eq!(view(&udp((5405, 5405), b"")).class, Class::Express);
        assert_eq!(view(&udp((1, 2), b"")).class, Class::Write);
        let mut marked = udp((1, 2), b"");
        marked[1] = 46 << 2;
        assert_eq!(view(&marked).class, Class::Express);
        let mut echo = udp((0, 0), b"");
        echo[9] = ICMP;
        echo[20] = 8;
        assert_eq!(view(&echo).class, Class::Express);
    }

    #[test]
    fn fragments_follow_their_first() {
        let mut memory = Fragments::default();
        let rules = ClassRules::default();
        let mut first = udp((5405, 5405), b"abcdefgh");
        first[6] = 0x20;
        let mut second = udp((0, 0), b"ijkl");
        second[7] = 2;
        let first = View::of(&first, &rules, &mut memory).unwrap();
        let second = View::of(&second, &rules, &mut memory).unwrap();
        assert_eq!((first.flow, first.class), (second.flow, second.class));
    }

    #[test]
    fn short_and_strange_packets_are_refused_without_panic() {
        let packet = udp((1, 2), b"abc");
        for end in 0..packet.len() {
            let _ = View::of(&packet[..end], &ClassRules::default(), &mut Fragments::default());
        }
        let mut six = vec![0x60, 0, 0, 0, 0, 0, 0, 64];
        six.resize(40, 0);
        for end in 0..six.len() {
            assert!(
                View::of(&six[..end], &ClassRules::default(), &mut Fragments::default()).is_none()
            );
        }
    }

    /// An IPv6 packet from fd00::1 to fd00::2; `headers` follow the fixed one, whose next is `next`.
    fn six(next: u8, headers: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        for last in [1, 2] {
            packet.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        packet.extend_from_slice(headers);
        packet
    }

    fn six_udp(from: u16, to: u16) -> Vec<u8> {
        [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, 0, 0]].concat()
    }

    #[test]
    fn ipv6_is_sorted_as_ipv4_is() {
        let plain = view(&six(UDP, &six_udp(1, 2)));
        assert_eq!(plain.source, "fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!(plain.destination, "fd00::2".parse::<IpAddr>().unwrap());
        assert_eq!(plain.class, Class::Write);
        assert_ne!(plain.flow, view(&six(UDP, &six_udp(1, 3))).flow);
        assert_eq!(view(&six(UDP, &six_udp(5405, 9))).class, Class::Express);
        for (kind, class) in [(128, Class::Express), (129, Class::Express), (135, Class::Write)] {
            assert_eq!(view(&six(ICMP6, &[kind, 0, 0, 0])).class, class, "{kind}");
        }
        let mut marked = six(UDP, &six_udp(1, 2));
        (marked[0], marked[1]) = (0x60 | 46 >> 2, (46 << 6 & 0xff) as u8);
        assert_eq!(view(&marked).class, Class::Express);
    }

    #[test]
    fn ports_are_found_behind_extension_headers() {
        let plain = view(&six(UDP, &six_udp(1, 2)));
        // Hop-by-hop of eight bytes, then destination options of sixteen.
        let long = [&[60, 0, 0, 0, 0, 0, 0, 0, UDP, 1][..], &[0; 14], &six_udp(1, 2)].concat();
        assert_eq!(view(&six(0, &long)).flow, plain.flow);
        let cut = six(0, &long[..9]);
        let seen = View::of(&cut, &ClassRules::default(), &mut Fragments::default());
        assert_eq!(seen, None, "it ends within a header");
    }

    #[test]
    fn fragments_of_ipv6_follow_their_first() {
        let mut memory = Fragments::default();
        let mut see = |offset: u16, id: u8, rest: &[u8]| {
            let [high, low] = (offset << 3 | 1).to_be_bytes();
            let header = [UDP, 0, high, low, 0, 0, 0, id];
            let packet = six(FRAGMENT6, &[&header[..], rest].concat());
            let seen = View::of(&packet, &ClassRules::default(), &mut memory).unwrap();
            (seen.flow, seen.class)
        };
        let first = see(0, 7, &six_udp(5405, 5405));
        assert_eq!(first.1, Class::Express);
        assert_eq!(see(181, 7, b"the rest"), first);
        assert_ne!(see(181, 8, b"of another packet"), first);
    }
}
