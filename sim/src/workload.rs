//! Applications: flows of numbered packets in every direction and class.
//!
//! A flow is a row of *units*. A plain packet holds one unit, a segmentation-offload super-packet
//! several, each of which is a packet of its own once it was cut. A unit names its flow, its
//! number and its length, and the rest is filled from these, so that a unit that was changed,
//! invented or cut short shows.

use std::net::{IpAddr, Ipv4Addr};

use failover::wire::OVERHEAD;

use crate::rng::Rng;

/// Bytes of a `virtio_net_hdr`, an IPv4 and a UDP header.
const VNET: usize = 10;
const HEADERS: usize = 28;
/// Flow, length, number.
const UNIT_MIN: usize = 16;
/// What fits a datagram of 1472 bytes once sealed.
const UNIT_MAX: usize = 1472 - OVERHEAD - HEADERS;

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Sender.
    pub from: u8,
    /// Receiver.
    pub to: u8,
    /// Latency-critical, by its port.
    pub express: bool,
    /// Bytes of a unit.
    pub unit: usize,
    /// Units of a packet: more than one makes it a super-packet.
    pub units: u64,
    /// Between two bursts, microseconds.
    pub every: u64,
    /// Packets of a burst.
    pub burst: u64,
}

impl Flow {
    /// A thin steady flow.
    #[must_use]
    pub const fn steady(from: u8, to: u8, express: bool, every: u64) -> Self {
        Self { from, to, express, unit: 100, units: 1, every, burst: 1 }
    }

    /// A flow of random shape.
    pub fn random(from: u8, to: u8, rng: &mut Rng) -> Self {
        let express = rng.chance(400_000);
        let is_super = rng.chance(250_000);
        let unit = match rng.below(3) {
            0 => UNIT_MIN,
            1 => UNIT_MAX,
            _ => UNIT_MIN + rng.index(UNIT_MAX - UNIT_MIN),
        };
        let units = if is_super { rng.range(2, (60_000 / unit as u64).min(40)) } else { 1 };
        let burst = if is_super { 1 } else { rng.spread(1, 16) };
        let every = rng.spread(10_000, 200_000) * burst.max(units / 4).max(1);
        Self { from, to, express, unit, units, every, burst }
    }
}

/// The address of a host inside the virtual interface.
#[must_use]
pub const fn address(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 98, 0, host))
}

fn short(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn fill(flow: u16, number: u64) -> u8 {
    number.to_le_bytes()[0] ^ flow.to_le_bytes()[0] ^ 0x5a
}

/// The packet that holds the units of `flow` from `first` on, as an interface hands it over.
#[must_use]
pub fn packet(id: usize, flow: &Flow, first: u64) -> Vec<u8> {
    let payload = flow.unit * usize::try_from(flow.units).unwrap_or(1);
    let mut p = Vec::with_capacity(VNET + HEADERS + payload);
    p.extend_from_slice(&[0; VNET]);
    if flow.units > 1 {
        p[0] = 1;
        p[1] = 5;
        p[2..4].copy_from_slice(&short(HEADERS).to_ne_bytes());
        p[4..6].copy_from_slice(&short(flow.unit).to_ne_bytes());
        p[6..8].copy_from_slice(&20_u16.to_ne_bytes());
        p[8..10].copy_from_slice(&6_u16.to_ne_bytes());
    }
    let mut ip = [0; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&short(HEADERS + payload).to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&[10, 98, 0, flow.from]);
    ip[16..20].copy_from_slice(&[10, 98, 0, flow.to]);
    p.extend_from_slice(&ip);
    let port: u16 = if flow.express { 5405 } else { 9000 };
    p.extend_from_slice(&(20_000 + short(id)).to_be_bytes());
    p.extend_from_slice(&port.to_be_bytes());
    p.extend_from_slice(&short(8 + payload).to_be_bytes());
    p.extend_from_slice(&[0; 2]);
    for number in first..first + flow.units {
        let end = p.len() + flow.unit;
        p.extend_from_slice(b"unit");
        p.extend_from_slice(&short(id).to_le_bytes());
        p.extend_from_slice(&short(flow.unit).to_le_bytes());
        p.extend_from_slice(&number.to_le_bytes());
        p.resize(end, fill(short(id), number));
    }
    p
}

/// What a delivered packet holds: its flow and the numbers of its units. `Err` says what is wrong.
pub fn read(packet: &[u8], flows: &[Flow]) -> Result<(usize, Vec<u64>), &'static str> {
    let ip = packet.get(VNET..).ok_or("shorter than its header")?;
    let total = ip.get(2..4).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    let is_super = packet[1] != 0;
    if total != ip.len() && !is_super {
        return Err("its length is not what it says");
    }
    let mut rest = ip.get(HEADERS..).ok_or("too short")?;
    let mut found = None;
    let mut numbers = Vec::with_capacity(1);
    while !rest.is_empty() {
        let head = rest.get(..UNIT_MIN).ok_or("half a unit")?;
        if &head[..4] != b"unit" {
            return Err("no unit");
        }
        let word = u16::from_le_bytes([head[4], head[5]]);
        let id = usize::from(word);
        let unit = usize::from(u16::from_le_bytes([head[6], head[7]]));
        let flow = flows.get(id).ok_or("no such flow")?;
        let number = u64::from_le_bytes(head[8..16].try_into().map_err(|_| "half a unit")?);
        let body = rest.get(..unit.max(UNIT_MIN)).ok_or("cut short")?;
        // Without a way out of the loop it is done many bytes at a time.
        let fill = fill(word, number);
        let differs = body[UNIT_MIN..].iter().fold(0, |all, b| all | (b ^ fill));
        if unit != flow.unit || differs != 0 {
            return Err("changed");
        }
        if found.is_some_and(|f| f != id)
            || ip[12..20] != [10, 98, 0, flow.from, 10, 98, 0, flow.to]
        {
            return Err("mixed up");
        }
        found = Some(id);
        numbers.push(number);
        rest = &rest[body.len()..];
    }
    if !is_super && numbers.len() > 1 {
        return Err("several units but not marked as a super-packet");
    }
    Ok((found.ok_or("empty")?, numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_read_and_damage_shows() {
        let mut flows = vec![Flow::steady(1, 2, true, 1000)];
        flows.push(Flow { units: 5, unit: 1000, ..flows[0].clone() });
        assert_eq!(read(&packet(0, &flows[0], 7), &flows), Ok((0, vec![7])));
        let mut p = packet(1, &flows[1], 10);
        assert_eq!(read(&p, &flows), Ok((1, vec![10, 11, 12, 13, 14])));
        let last = p.len() - 1;
        p[last] ^= 1;
        assert_eq!(read(&p, &flows), Err("changed"));
    }
}
