//! What goes to the peer: accepted, queued, sealed, sent, sent again, given up.

use std::time::Duration;

use super::Peer;
use crate::{
    Path, Ring, Route, Time, World,
    canary::{Bug, planted},
    link::Sealer,
    packet::{Class, VNET, View, Vnet, segments},
    path::State,
    queue::Queued,
    wire::{Channel, HEADER, OVERHEAD, data::PREFIX},
};

/// Room in front of a packet for the frame's header and prefix.
pub(crate) const HEADROOM: usize = HEADER + PREFIX;
/// Bytes that one suspicion may send by storage before it is confirmed.
pub(super) const HEDGE_BYTES: usize = 4 << 20;
/// Frames sent again in one turn at most, per path and channel.
const RESEND_MAX: usize = 64;
/// Time a frame is given by storage before it is written again: a loss there is rare, a wait for
/// the medium is not. Express packets do not live long enough to wait like the others.
const STORAGE_PATIENCE_MIN: Duration = Duration::from_millis(500);
const STORAGE_PATIENCE_EXPRESS_MIN: Duration = Duration::from_millis(120);

/// How many bytes may be on their way by storage: enough to keep the medium busy, few enough that
/// latency stays low (what is unread, divided by the bandwidth, is the latency under load).
#[derive(Debug)]
pub(super) struct StorageWindow {
    bytes: usize,
    least: Duration,
}

impl Default for StorageWindow {
    fn default() -> Self {
        Self { bytes: 2 << 20, least: Duration::from_millis(100) }
    }
}

impl StorageWindow {
    const MIN: usize = 1 << 20;
    const MAX: usize = 4 << 20;

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// A frame took so long from our write to its acknowledgement.
    pub(super) fn measured(&mut self, delay: Duration) {
        // The least delay ages, slowly, so that a path that got longer is learned.
        self.least =
            (self.least + Duration::from_micros(5)).min(delay).max(Duration::from_millis(1));
        if delay > self.least * 3 + Duration::from_millis(15) {
            self.bytes = (self.bytes - self.bytes / 16).max(Self::MIN);
        } else {
            self.bytes = (self.bytes + 16_384).min(Self::MAX);
        }
    }
}

impl Peer {
    /// A packet from the interface for this peer.
    pub(crate) fn accept(
        &mut self,
        now: Time,
        view: &View,
        vnet: &Vnet,
        packet: &[u8],
        raw: &[u8],
    ) {
        self.touch();
        self.busy_until = now + super::BUSY;
        let is_super = vnet.is_super();
        let content = if is_super { raw } else { packet };
        let mut frame = Vec::with_capacity(HEADROOM + content.len() + crate::wire::TAG);
        frame.resize(HEADROOM, 0);
        frame.extend_from_slice(content);
        let packets = vnet.count(packet);
        self.counters.accepted += packets;
        if !is_super && !vnet.finish(&mut frame[HEADROOM..]) {
            return self.lose("malformed", packets);
        }
        let (class, flow) = (view.class, view.flow);
        let queued = Queued { frame, is_super, packets, class, flow, accepted_at: now };
        if let Err(refused) = self.queues.push(queued) {
            self.lose("queue_full", refused.packets);
        }
    }

    /// Gives up what outlived its class's time to live, waiting or kept.
    pub(super) fn expire(&mut self, now: Time) {
        while let Some(stale) = self.queues.pop_stale(now) {
            self.lose("ttl", stale.packets);
        }
        for channel in [Channel::Express, Channel::Datagram] {
            let lost = self.kept(channel).tx.expire(now);
            if lost > 0 {
                self.lose("ttl", lost);
                // The receiver may hold frames for what will not come: tell it the new floor.
                self.speech.acknowledge(now);
            }
        }
    }

    /// Seals what the route has room for and sends it; sends again what is overdue.
    pub(super) fn pump(&mut self, now: Time, world: &mut dyn World) {
        let mut out = Vec::new();
        for channel in [Channel::Express, Channel::Datagram] {
            self.kept(channel).rx.poll(now, &mut out);
        }
        self.deliver(now, out, world);
        if self.path.route() == Route::Isolated || self.keyring.current().is_none() {
            return;
        }
        self.resend(now, world);
        for class in [Class::Express, Class::Write, Class::Read] {
            let channel = channel(class);
            loop {
                self.send(now, channel, world);
                if !self.seal_next(class) {
                    break;
                }
            }
            self.send(now, channel, world);
        }
    }

    /// Moves packets of a class from its queue into the link, if the route has room. False when it
    /// has none or nothing waits.
    fn seal_next(&mut self, class: Class) -> bool {
        let route = self.path.route();
        if class == Class::Read && route == Route::Storage {
            while let Some(read) = self.queues.pop(class) {
                self.lose("read_class", read.packets);
            }
            return false;
        }
        if self.queues.front(class).is_none() || !self.has_room(class, route) {
            return false;
        }
        let Some(packet) = self.queues.pop(class) else { return false };
        if !packet.is_super || !route.uses(Path::Network) {
            self.seal(packet);
            return true;
        }
        let cut = Vnet::read(&packet.frame[HEADROOM..])
            .and_then(|(vnet, bytes)| segments(&vnet, bytes, HEADROOM));
        let Some(cut) = cut else {
            self.lose("malformed", packet.packets);
            return true;
        };
        // The estimate made at acceptance gives way to the real number.
        self.counters.accepted = self.counters.accepted - packet.packets + cut.len() as u64;
        let Queued { class, flow, accepted_at, .. } = packet;
        for frame in cut {
            self.seal(Queued { frame, is_super: false, packets: 1, class, flow, accepted_at });
        }
        true
    }

    fn has_room(&self, class: Class, route: Route) -> bool {
        let kept = if class == Class::Express { &self.express } else { &self.datagram };
        // Room for the segments of one super-packet, so that it is never cut in half.
        let bound = self.timing.kept_bytes_max;
        let bound = if class == Class::Express { bound / 8 } else { bound };
        let memory = kept.tx.bytes() + (128 << 10) < bound && kept.tx.has_number();
        let storage = route != Route::Storage
            || kept.tx.in_flight(Path::Storage) < self.storage_window.bytes
                && kept.tx.bytes() < self.storage_window.bytes * 2;
        memory && storage
    }

    fn seal(&mut self, packet: Queued) {
        let Some((generation, key)) = self.keyring.seal() else {
            return self.lose("no_keys", packet.packets);
        };
        let strict = self.path.route() != Route::Network;
        let ends = (self.us.get(), self.id().get());
        let channel = channel(packet.class);
        self.kept(channel).tx.seal(packet, &Sealer { key, generation, ends, strict });
    }

    /// Sends every frame that a path of the route has not carried yet and has room for.
    fn send(&mut self, now: Time, channel: Channel, world: &mut dyn World) {
        let route = self.path.route();
        if route.uses(Path::Network) {
            while let Some(frame) = self.kept(channel).tx.take(now, Path::Network) {
                self.put(Path::Network, ring(channel), frame, world);
            }
        }
        if !route.uses(Path::Storage) {
            return;
        }
        let hedging = matches!(self.path.state(), State::Hedging { .. });
        let window = self.storage_window.bytes;
        while let Some(length) = self.kept(channel).tx.peek(Path::Storage) {
            let in_flight = self.kept(channel).tx.in_flight(Path::Storage);
            if in_flight > 0 && in_flight + length > window {
                break;
            }
            if hedging && length > self.hedge_left {
                break;
            }
            let Some(frame) = self.kept(channel).tx.take(now, Path::Storage) else { break };
            if hedging {
                self.hedge_left -= length;
            }
            #[cfg(feature = "canary")]
            if planted(Bug::TrustWrite) {
                let packets = self.kept(channel).tx.settle_last(now, Path::Storage);
                self.counters.acknowledged += packets;
            }
            self.put(Path::Storage, ring(channel), frame, world);
        }
    }

    fn resend(&mut self, now: Time, world: &mut dyn World) {
        if planted(Bug::NoResend) {
            return;
        }
        let route = self.path.route();
        let storage = self.storage.latency().unwrap_or_default() * 8;
        for (path, patience) in [(Path::Network, self.network.patience()), (Path::Storage, storage)]
        {
            if !route.uses(path) {
                continue;
            }
            // What waits in the outbox is late for a reason that more copies would not cure.
            if path == Path::Storage && !self.outbox_empty {
                continue;
            }
            for channel in [Channel::Express, Channel::Datagram] {
                let patience = match (path, channel) {
                    (Path::Network, _) => patience,
                    (_, Channel::Express) => patience.max(STORAGE_PATIENCE_EXPRESS_MIN),
                    _ => patience.max(STORAGE_PATIENCE_MIN),
                };
                for frame in self.kept(channel).tx.overdue(now, path, patience, RESEND_MAX) {
                    self.counters.resent += 1;
                    #[cfg(feature = "canary")]
                    if planted(Bug::NewNumber) {
                        self.renumber(&frame, channel);
                        continue;
                    }
                    self.put(path, ring(channel), frame, world);
                }
            }
        }
    }

    /// For a planted bug: seals what a frame holds once more.
    #[cfg(feature = "canary")]
    fn renumber(&mut self, frame: &[u8], channel: Channel) {
        use crate::wire::{Header, data::Prefix};
        let mut clear = frame.to_vec();
        let Ok(header) = Header::read(frame) else { return };
        let Some((_, key)) = self.keyring.seal() else { return };
        let Some(length) = key.open(&header, &mut clear) else { return };
        clear.truncate(HEADER + length);
        let Some(prefix) = Prefix::read(header.number, &clear[HEADER..]) else { return };
        let class = if channel == Channel::Express { Class::Express } else { Class::Write };
        self.seal(Queued {
            frame: clear,
            is_super: prefix.is_super,
            packets: 0,
            class,
            flow: header.number,
            accepted_at: prefix.accepted_at,
        });
    }

    /// Length of packet for which a network frame just fills a datagram.
    pub(super) const fn packet_size(&self) -> usize {
        self.datagram_size - OVERHEAD
    }
}

const fn channel(class: Class) -> Channel {
    match class {
        Class::Express => Channel::Express,
        Class::Write | Class::Read => Channel::Datagram,
    }
}

const fn ring(channel: Channel) -> Ring {
    match channel {
        Channel::Datagram => Ring::Data,
        _ => Ring::Express,
    }
}

/// A packet as the hands give it: `virtio_net_hdr` in front.
pub(crate) fn split_header(raw: &[u8]) -> Option<(Vnet, &[u8])> {
    let (vnet, packet) = Vnet::read(raw)?;
    debug_assert_eq!(raw.len(), VNET + packet.len());
    Some((vnet, packet))
}
