//! Doors for fuzzers into rooms that are closed to everybody else. No part of the interface.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;

use crate::{
    ClassRules, NodeId, Path, Time,
    packet::{Fragments, View, Vnet, segments},
    secure::Agreement,
    session::{Pipe, SessionEvent, SessionId, SessionLimits, SessionOrder},
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

/// All sessions with one peer that may say anything.
#[derive(Debug)]
pub struct Sessions {
    pipe: Pipe,
    limits: SessionLimits,
    now: Time,
    came: u64,
    put: u64,
    usable: [bool; 2],
    open: Vec<SessionId>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new()
    }
}

impl Sessions {
    /// Ours is the higher id, and one session of ours is asked for.
    #[must_use]
    pub fn new() -> Self {
        let ids = (NodeId::new(2), NodeId::new(1));
        let (Some(us), Some(peer)) = ids else { unreachable!("1 and 2 are ids") };
        let limits = SessionLimits {
            sessions_max: 8,
            granted_max: 1 << 20,
            buffered_max: 1 << 18,
            timeout: Duration::from_secs(10),
            ..SessionLimits::default()
        };
        let mut sessions = Self {
            pipe: Pipe::new(us, peer, limits.clone()),
            limits,
            now: Time(1_000_000),
            came: 0,
            put: 0,
            usable: [true; 2],
            open: Vec::new(),
        };
        sessions.pipe.paths(sessions.now, [true; 2], [Duration::from_millis(500); 2]);
        let preference = crate::session::Preference::NetworkFirst;
        let order = SessionOrder::Open { token: 1, service: "x".into(), preference };
        sessions.pipe.order(sessions.now, order);
        sessions.look();
        sessions
    }

    /// An authentic frame.
    pub fn frame(&mut self, body: &Bytes, stored: bool) {
        self.came += 1;
        let path = if stored { Path::Storage } else { Path::Network };
        let _ = self.pipe.handle(self.now, path, self.came, body);
        self.look();
    }

    /// Something of ours happens.
    pub fn step(&mut self, what: u8) {
        let of = usize::from(what >> 4);
        let id = self.open.get(of % self.open.len().max(1)).copied();
        match (what & 15, id) {
            (0, _) => {
                self.now += Duration::from_millis(700);
                self.pipe.tick(self.now, of % 2 == 0);
            }
            (1, Some(id)) => self.pipe.order(self.now, SessionOrder::Accept(id)),
            (2, Some(id)) if self.pipe.room(id) > 0 => {
                let bytes = Bytes::from(vec![5; self.pipe.room(id).min(40_000)]);
                self.pipe.order(self.now, SessionOrder::Write(id, bytes));
            }
            (3, _) => {
                for path in [Path::Network, Path::Storage] {
                    self.put += 1;
                    let _ = self.pipe.poll(self.now, path, self.put, 3000);
                }
            }
            (4, Some(id)) => self.pipe.order(self.now, SessionOrder::Take(id, 2)),
            (5, Some(id)) => self.pipe.order(self.now, SessionOrder::Finish(id)),
            (6, Some(id)) => self.pipe.order(self.now, SessionOrder::Abandon(id)),
            (7, Some(id)) => self.pipe.order(self.now, SessionOrder::Reset(id)),
            (8, _) => {
                self.usable = [of & 1 == 0, of & 2 == 0];
                self.pipe.paths(self.now, self.usable, [Duration::from_millis(500); 2]);
            }
            (9, _) => self.pipe.broken(self.now, Path::Network),
            _ => {}
        }
        self.look();
    }

    /// What must hold after every step.
    fn look(&mut self) {
        while let Some(event) = self.pipe.event() {
            match event {
                SessionEvent::Opening { id, .. } | SessionEvent::Offered { id, .. } => {
                    self.open.push(id);
                }
                SessionEvent::Ended(id, _)
                | SessionEvent::Closed(id)
                | SessionEvent::Refused(id, ..) => self.open.retain(|open| *open != id),
                _ => {}
            }
        }
        let status = self.pipe.status();
        assert!(status.open <= self.limits.sessions_max as u64, "{status:?}");
        assert!(status.granted_bytes <= self.limits.granted_max, "{status:?}");
        let most = self.limits.buffered_max as u64 + 8 * 16 * 1024 + (4 << 20);
        assert!(status.buffered_bytes <= most, "{status:?}");
    }
}
