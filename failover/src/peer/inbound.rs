//! What comes from the peer: opened, believed, handed on.

use std::{borrow::Cow, net::SocketAddr};

use bytes::Bytes;

use super::{Kept, Peer};
use crate::{
    Event, Output, Path, Ring, Time, VolumeFact, World,
    beat::{Beat, BeatOrder, Echo, Heard},
    canary::{Bug, planted},
    link::{Arrival, Delivery, Insert, Window},
    packet::VNET,
    secure::Agreed,
    turn::{NetworkFact, VolumeOrder},
    wire::{
        Channel, HEADER, Header,
        control::{self, Ack, Control},
        data::{PREFIX, Prefix},
        hello::{Handshake, Kind},
    },
};

/// A packet held to the end of its life may be handed on by a turn that is late by so much.
const TURN_LATENESS: std::time::Duration = std::time::Duration::from_millis(30);

/// How long the place up to which a lane was read may wait to be told, without and with bulk.
const CURSOR_TOLD: std::time::Duration = std::time::Duration::from_millis(400);
const CURSOR_TOLD_IN_BULK: std::time::Duration = std::time::Duration::from_millis(4);

impl Peer {
    /// A frame whose header names this peer and us. `Err` carries the cause of a refusal that
    /// cannot be held against the peer, because anybody could have sent it.
    pub(crate) fn frame(
        &mut self,
        now: Time,
        path: Path,
        from: Option<SocketAddr>,
        header: &Header,
        bytes: Cow<'_, [u8]>,
        world: &mut dyn World,
    ) -> Result<(), &'static str> {
        if self.is_cut(path) {
            return Ok(());
        }
        let mut frame = bytes.into_owned();
        let Some(opened) = self.keyring.open(now, header, &mut frame) else {
            if self.keyring.knows(header.generation) {
                return Err("forged");
            }
            self.prompted(now);
            return Err("unknown_key");
        };
        self.touch();
        if opened.confirmed {
            self.new_keys(now, world);
        }
        if self.keyring.current().is_some_and(|k| k.generation == header.generation) {
            self.proved(world);
        }
        match path {
            Path::Network => {
                self.network.heard(now);
                if let Some(at) =
                    from.and_then(|f| self.options.endpoints.iter().position(|e| *e == f))
                {
                    self.endpoint = at;
                }
            }
            Path::Storage => self.storage.heard(now),
        }
        frame.truncate(HEADER + opened.body);
        match header.channel {
            Channel::Control => self.control(now, path, header.number, &frame[HEADER..], world),
            Channel::Express | Channel::Datagram => self.data(now, path, header, frame, world),
            Channel::Stream => {
                if self.stream_seen.insert_sliding(header.number) != Insert::New {
                    return Err("repeated");
                }
                let body = Bytes::from(frame).slice(HEADER..);
                self.stream(now, path, header.number, &body, world)
            }
            Channel::Handshake | Channel::Beat => Err("malformed"),
        }
    }

    /// The peer has our current keys: beats may be sealed with them.
    fn proved(&mut self, world: &mut dyn World) {
        if self.keys_proved {
            return;
        }
        self.keys_proved = true;
        self.beat_keys(world);
    }

    /// Gives the pulse the current keys, once: a beat's number is never used again under a key.
    fn beat_keys(&mut self, world: &mut dyn World) {
        let peer = self.id();
        if let Some(keys) = self.keyring.current()
            && self.beat_generation != Some(keys.generation)
        {
            self.beat_generation = Some(keys.generation);
            world.put(Output::Beat(BeatOrder::Keys {
                peer,
                peer_epoch: keys.peer_epoch,
                generation: keys.generation,
                seal: keys.beat_seal.clone(),
                open: keys.beat_open.clone(),
            }));
        }
    }

    // --- handshake -----------------------------------------------------------------------------

    /// Something sealed under keys we do not have claims to come from this peer. That proves
    /// nothing, but if the peer has been silent otherwise, it may have lost its keys or we ours.
    fn prompted(&mut self, now: Time) {
        if self.is_quiet(now) && self.keyring.current().is_some() {
            self.wants_keys = true;
            self.touch();
        }
    }

    /// Nothing authentic came from this peer of late.
    fn is_quiet(&self, now: Time) -> bool {
        [self.network.heard_at(), self.storage.heard_at()]
            .into_iter()
            .flatten()
            .all(|at| now.since(at).as_millis() > 200)
    }

    /// A handshake message whose header names this peer and us.
    pub(crate) fn handshake_message(
        &mut self,
        now: Time,
        path: Path,
        header: &Header,
        message: Handshake<'_>,
        world: &mut dyn World,
    ) -> Result<(), &'static str> {
        if self.is_cut(path) {
            return Ok(());
        }
        // A peer that speaks under the keys of its present incarnation has not lost them: this is
        // an old hello, come late or repeated by somebody else.
        let keyed = self.keyring.current().is_some_and(|k| k.peer_epoch == header.number);
        if message.kind == Kind::Hello && keyed && !self.is_quiet(now) {
            return Err("handshake_replayed");
        }
        let Some(agreement) = &mut self.agreement else { return Err("handshake_forged") };
        let (keys, answer) =
            agreement.receive(now, header, message, world).map_err(|r| r.cause())?;
        self.touch();
        if message.kind == Kind::Hello {
            self.wants_keys = true;
        }
        if let Some(answer) = answer {
            self.put_handshake(now, answer, world);
        }
        if let Some(keys) = keys {
            self.agree(now, keys, world);
        }
        Ok(())
    }

    /// A handshake made keys.
    pub(crate) fn agree(&mut self, now: Time, keys: Agreed, world: &mut dyn World) {
        self.touch();
        let confirmed = keys.confirmed;
        self.keyring.add(now, keys);
        if confirmed {
            self.new_keys(now, world);
        }
    }

    /// The keyring's current keys changed.
    fn new_keys(&mut self, now: Time, world: &mut dyn World) {
        let Some(Agreed { generation, peer_epoch, .. }) = self.keyring.current().cloned() else {
            return;
        };
        self.wants_keys = false;
        self.keys_proved = false;
        if let Some(agreement) = &mut self.agreement {
            agreement.confirm(peer_epoch);
        }
        let peer = self.id();
        if peer_epoch != self.link_epoch {
            self.new_incarnation(peer_epoch, world);
            // There are no older keys that work: waiting for the proof would make both deaf to
            // beats, and a peer that believes only in storage may have no other way to prove it.
            self.beat_keys(world);
        }
        world.put(Output::Event(Event::KeysAgreed { peer, generation, peer_epoch }));
        // Whatever comes first under the new keys proves them to the peer.
        self.speech.urge();
        self.speech.acknowledge(now);
    }

    /// Another incarnation of the peer: what was kept for the old one is lost, unconfirmed; what
    /// waits unsealed goes to the new one.
    fn new_incarnation(&mut self, epoch: u64, world: &mut dyn World) {
        let unconfirmed = self.express.tx.packets() + self.datagram.tx.packets();
        self.lose("unconfirmed", unconfirmed);
        let held = self.express.rx.held() + self.datagram.rx.held();
        for _ in 0..held {
            self.drop_arrival("peer_restarted");
        }
        let restarted = self.link_epoch != 0;
        self.link_epoch = epoch;
        if planted(Bug::KeepOldLink) {
            return;
        }
        self.express = Kept::new(Channel::Express, self.timing.express_ttl);
        self.datagram = Kept::new(Channel::Datagram, self.timing.write_ttl);
        self.control_next = 1;
        self.control_seen = Window::new();
        self.stream_next = 1;
        self.stream_seen = Window::new();
        self.cursors.clear();
        self.cursors_due = Time::NEVER;
        self.network.forget();
        self.storage.forget();
        self.recovery.forget();
        self.speech.heard_pulse = None;
        self.peer_route = None;
        self.reset_lane(world);
        if restarted {
            self.end_sessions(world);
            let peer = self.id();
            world.put(Output::Event(Event::PeerRestarted { peer, unconfirmed }));
        }
    }

    // --- beats and facts -----------------------------------------------------------------------

    /// A beat by the network, opened by the pulse.
    pub(crate) fn beat(&mut self, now: Time, heard: &Heard, world: &mut dyn World) {
        let known = self.keyring.knows(heard.generation);
        if self.is_cut(Path::Network) || !known {
            return;
        }
        self.touch();
        if self.keyring.prove(now, heard.generation) {
            self.new_keys(now, world);
        }
        if self.keyring.current().is_some_and(|k| k.generation == heard.generation) {
            self.proved(world);
        }
        self.network.beat(heard.at, &heard.beat);
        self.recovery.beat(heard.at, &heard.beat);
        self.said(now, &heard.beat, world);
    }

    fn said(&mut self, now: Time, beat: &Beat, world: &mut dyn World) {
        self.storage.said(now, beat);
        self.peer_route = Some(beat.route);
        if let Some(path) = beat.drill
            && self.speech.peer_drills(path)
        {
            let cut = match path {
                Path::Network => crate::Cut::Network,
                Path::Storage => crate::Cut::Storage,
            };
            world.put(Output::Event(Event::PeerDrill { peer: self.id(), cut }));
        } else if beat.drill.is_none() {
            self.speech.peer_drill_ended();
        }
    }

    /// A fact about a volume this peer may be reached by.
    pub(crate) fn volume(&mut self, now: Time, volume: crate::VolumeId, fact: &VolumeFact) {
        let sends = self.options.send_volume == Some(volume);
        let receives = self.options.receive_volume == Some(volume);
        if !sends && !receives {
            return;
        }
        self.touch();
        if self.is_cut(Path::Storage) {
            // As if the volume were gone: neither our beats nor our reads count for this peer.
            match fact {
                VolumeFact::Drained { .. } => self.outbox_empty = true,
                // What hangs is counted: who hears of one must hear of both.
                VolumeFact::Hangs { .. } | VolumeFact::Returned { .. } => {
                    self.storage.fact(now, fact, sends, receives);
                }
                _ => {}
            }
            return;
        }
        self.storage.fact(now, fact, sends, receives);
        match fact {
            VolumeFact::PeerBeat { node, epoch, beat, interval }
                if *node == self.id() && receives && !self.storage.reads_hang() =>
            {
                // (While our reads hang, the peer must learn that it cannot reach us this way, so
                // its beat is not confirmed, though the keeper still sees it.)
                self.storage.peer_beat(now, *epoch, *beat, *interval);
                self.speech.storage_beat(*beat, now);
            }
            VolumeFact::Drained { to } if *to == self.id() && sends => self.outbox_empty = true,
            VolumeFact::Cursor { from, ring, number } if *from == self.id() && receives => {
                self.cursors.insert(*ring == Ring::Data, *number);
                // Told with the next acknowledgement; alone only after a while, because a receipt
                // by storage is itself a record. Sessions are acknowledged by themselves, and fill
                // a ring in no time.
                let bulk = now < self.bulk_until;
                let patience = if bulk { CURSOR_TOLD_IN_BULK } else { CURSOR_TOLD };
                self.cursors_due = self.cursors_due.min(now + patience);
            }
            _ => {}
        }
    }

    /// A fact about the network toward this peer.
    pub(crate) fn network(&mut self, now: Time, fact: &NetworkFact) {
        self.touch();
        match fact {
            NetworkFact::Link { up, .. } => self.network.link(now, *up),
            NetworkFact::SendError { .. } => self.network.send_error(now),
            NetworkFact::DatagramSize { bytes, .. } => self.datagram_size = (*bytes).max(512),
            NetworkFact::TcpRefused { .. } => {}
            NetworkFact::PipeTakes { bytes, .. } => self.pipe_takes(*bytes),
            NetworkFact::PipeBroke { .. } => self.pipe_broke(now),
        }
    }

    // --- control frames ------------------------------------------------------------------------

    fn control(
        &mut self,
        now: Time,
        path: Path,
        number: u64,
        body: &[u8],
        world: &mut dyn World,
    ) -> Result<(), &'static str> {
        if self.control_seen.insert_sliding(number) != Insert::New {
            // The same frame may come by both paths; only an attacker repeats it on purpose.
            return Err("repeated");
        }
        let message: Control = control::read(body).ok_or("malformed")?;
        match message {
            Control::Ack(ack) => self.ack(now, &ack, world),
            Control::Pulse { beat, heard } => {
                let beat = Beat::from(beat);
                if path == Path::Storage {
                    let heard = heard.map(Echo::from);
                    self.network.pulse(now, &beat, heard);
                    self.speech.heard_pulse = Some((beat.sent_at.micros(), now));
                }
                self.said(now, &beat, world);
            }
            Control::Probe { id, .. } => self.speech.answer_probe(id),
            Control::ProbeReply { id } => self.recovery.answered(id),
            Control::Ping { id, back_as_came } => self.speech.answer_ping(id, path, back_as_came),
            Control::Knock => self.wake_storage(now),
            Control::Pong { id, out_by_storage } => {
                if let Some(started) = self.speech.ping_returned(id) {
                    world.put(Output::Event(Event::PingReply {
                        peer: self.id(),
                        id,
                        out: if out_by_storage { Path::Storage } else { Path::Network },
                        back: path,
                        round_trip: now.since(started),
                    }));
                }
            }
        }
        Ok(())
    }

    fn ack(&mut self, now: Time, ack: &Ack, world: &mut dyn World) {
        for (channel, receipt, floor) in [
            (Channel::Express, &ack.express, ack.floors.0),
            (Channel::Datagram, &ack.datagram, ack.floors.1),
        ] {
            let mut out = Vec::new();
            let kept = self.kept(channel);
            let acked = kept.tx.acknowledged(now, receipt);
            kept.rx.raise(floor, &mut out);
            self.counters.acknowledged += acked.packets;
            if let Some(delay) = acked.storage_delay {
                self.storage.measured(delay);
                self.storage_window.measured(delay);
            }
            self.deliver(now, out, world);
        }
        if let Some(volume) = self.options.send_volume {
            for (data, number) in ack.cursors.iter().take(2) {
                let ring = if *data { Ring::Data } else { Ring::Express };
                let order = VolumeOrder::Released { to: self.id(), ring, number: *number };
                world.put(Output::Volume(volume, order));
            }
        }
    }

    // --- data frames ---------------------------------------------------------------------------

    fn data(
        &mut self,
        now: Time,
        path: Path,
        header: &Header,
        mut frame: Vec<u8>,
        world: &mut dyn World,
    ) -> Result<(), &'static str> {
        let number = header.number;
        let prefix = Prefix::read(number, &frame[HEADER..]).ok_or("malformed")?;
        self.busy_until = now + super::BUSY;
        self.counters.arrived += 1;
        // The packet is handed on with a `virtio_net_hdr` in front. A super-packet brought its
        // own; for a plain one the bytes before it, which are of no use any more, are zeroed.
        let start = HEADER + PREFIX - if prefix.is_super { 0 } else { VNET };
        if !prefix.is_super {
            frame[start..start + VNET].fill(0);
        }
        let packet = Bytes::from(frame).slice(start..);
        let ttl = match header.channel {
            Channel::Express => self.express_ttl(path),
            _ => self.timing.write_ttl,
        };
        let left = match self.network.age(now, prefix.accepted_at) {
            Some(_) if planted(Bug::PastTtl) => Some(ttl),
            Some(age) => ttl.checked_sub(age),
            None => Some(ttl),
        };
        let delay = match path {
            Path::Network => std::time::Duration::from_millis(2),
            Path::Storage => std::time::Duration::from_millis(4),
        };
        let mut out = Vec::new();
        let arrival = Arrival { path, number, prefix, packet, left };
        if let Err(dropped) = self.kept(header.channel).rx.arrive(now, arrival, delay, &mut out) {
            self.drop_arrival(dropped.cause());
        }
        self.deliver(now, out, world);
        Ok(())
    }

    /// Hands packets on, if they are what this peer may send.
    pub(super) fn deliver(&mut self, now: Time, packets: Vec<Delivery>, world: &mut dyn World) {
        for Delivery { packet, expires } in packets {
            if now > expires + TURN_LATENESS {
                self.drop_arrival("ttl");
                continue;
            }
            let source = packet.get(VNET..).and_then(source);
            if source.is_none_or(|s| !self.options.addresses.contains(&s)) {
                self.drop_arrival("source");
                continue;
            }
            self.counters.delivered += 1;
            world.put(Output::Packet(packet));
        }
    }
}

/// Source address of an IP packet.
fn source(packet: &[u8]) -> Option<std::net::IpAddr> {
    match packet.first()? >> 4 {
        4 => packet.get(12..16).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Into::into),
        6 => packet.get(8..24).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(Into::into),
        _ => None,
    }
}
