//! Doors for fuzzers into rooms that are closed to everybody else. No part of the interface.

use std::net::IpAddr;

use crate::{
    ClassRules,
    packet::{Fragments, View, Vnet, segments},
    secure::Agreement,
};

/// What the core sees of an IP packet: source, destination, flow.
#[must_use]
pub fn view(packet: &[u8]) -> Option<(IpAddr, IpAddr, u64)> {
    View::of(packet, &ClassRules::default(), &mut Fragments::default())
        .map(|view| (view.source, view.destination, view.flow))
}

/// A super-packet behind its `virtio_net_hdr`: how many packets it is counted as, and its
/// segments, if header and packet fit together.
#[must_use]
pub fn cut(raw: &[u8], headroom: usize) -> Option<(u64, Option<Vec<Vec<u8>>>)> {
    let (vnet, packet) = Vnet::read(raw)?;
    let parts = if vnet.is_super() { segments(&vnet, packet, headroom) } else { None };
    Some((vnet.count(packet), parts))
}

/// Completes the checksum of a packet behind its `virtio_net_hdr`, as the header asks.
#[must_use]
pub fn complete(raw: &[u8]) -> Option<(bool, Vec<u8>)> {
    let (vnet, packet) = Vnet::read(raw)?;
    let mut packet = packet.to_vec();
    Some((vnet.finish(&mut packet), packet))
}

/// Makes an agreement what it was when it was new, so that many inputs can share the cost of one.
pub fn forget(agreement: &mut Agreement) {
    agreement.forget();
}

/// A private key, and a public one or the base point.
#[cfg(fuzzing)]
type Factors = ([u8; 32], Option<[u8; 32]>);

/// A product on the curve, remembered: a fuzzer draws the same few keys in every input, and would
/// do little else than multiply them. Not in any other build, where secrets are wiped.
#[cfg(fuzzing)]
pub(crate) fn product(
    factors: Factors,
    multiply: impl FnOnce() -> Option<[u8; 32]>,
) -> Option<[u8; 32]> {
    use std::{cell::RefCell, collections::BTreeMap};

    thread_local! {
        static KNOWN: RefCell<BTreeMap<Factors, Option<[u8; 32]>>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        if known.len() > 10_000 {
            known.clear();
        }
        *known.entry(factors).or_insert_with(multiply)
    })
}
