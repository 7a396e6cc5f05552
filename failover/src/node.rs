//! Dispatch: which peer an input is about. No condition on path, class or time belongs here.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, time::Duration};

use crate::{
    Command, Event, Input, NodeId, Options, Output, Path, Time, VolumeFact, VolumeId, World,
    canary::{Bug, planted},
    packet::{Fragments, View},
    peer::{Peer, split_header},
    session::SessionId,
    status::Status,
    turn::{NetworkFact, VolumeOrder},
    wire::{Channel, HEADER, Header, Malformed, hello::Handshake},
};

/// A whole node: everything it knows and wants, without a single descriptor.
#[derive(Debug)]
pub struct Node {
    options: Options,
    peers: BTreeMap<NodeId, Peer>,
    by_address: BTreeMap<IpAddr, NodeId>,
    fragments: Fragments,
    volumes: BTreeMap<VolumeId, Volume>,
    refused: BTreeMap<&'static str, u64>,
    unroutable: u64,
    /// The moment the last finish asked to be called at.
    promised: Option<Time>,
    /// Peers that were forgotten so far.
    removed: u64,
}

/// What a volume was last told.
#[derive(Debug, Default)]
struct Volume {
    active: Option<bool>,
    interval: Option<Duration>,
}

impl Node {
    /// A node that has heard of nobody yet.
    #[must_use]
    pub fn new(options: Options, world: &mut dyn World) -> Self {
        let mut node = Self {
            options,
            peers: BTreeMap::new(),
            by_address: BTreeMap::new(),
            fragments: Fragments::default(),
            volumes: BTreeMap::new(),
            refused: BTreeMap::new(),
            unroutable: 0,
            promised: None,
            removed: 0,
        };
        for peer in node.options.peers.clone() {
            node.peers.insert(peer.id, Peer::new(&node.options, node.options.epoch, peer, world));
        }
        node.index();
        node
    }

    fn index(&mut self) {
        self.by_address = self
            .options
            .peers
            .iter()
            .flat_map(|p| p.addresses.iter().map(|a| (*a, p.id)))
            .collect();
        self.volumes = self
            .options
            .peers
            .iter()
            .flat_map(|p| [p.send_volume, p.receive_volume])
            .flatten()
            .map(|id| (id, Volume::default()))
            .collect();
    }

    pub(crate) fn handle(&mut self, now: Time, input: Input<'_>, world: &mut dyn World) {
        let refused = match input {
            Input::Packet(raw) => {
                self.packet(now, raw);
                return;
            }
            Input::Datagram { from, bytes } => {
                self.frame(now, Path::Network, Some(from), bytes.into(), world)
            }
            Input::TcpFrame(bytes) => self.frame(now, Path::Network, None, bytes.into(), world),
            Input::Stored { from, bytes } | Input::Mailbox { from, bytes } => match bytes.get(1) {
                Some(id) if *id == from.get() => {
                    self.frame(now, Path::Storage, None, bytes.into(), world)
                }
                _ => Err("misplaced"),
            },
            Input::Beat(heard) => {
                if let Some(peer) = self.peers.get_mut(&heard.peer) {
                    peer.beat(now, &heard, world);
                }
                return;
            }
            Input::Volume(volume, fact) => {
                self.volume(now, volume, &fact);
                return;
            }
            Input::Network(fact) => {
                self.network(now, &fact);
                return;
            }
            Input::Session { peer, order } => {
                match self.peers.get_mut(&peer) {
                    Some(peer) => peer.session(now, order, world),
                    None => {
                        if let Some(event) = Peer::nobody(&order) {
                            world.put(Output::Session { peer, event });
                        }
                    }
                }
                return;
            }
            Input::Command(command) => {
                self.command(now, command, world);
                return;
            }
        };
        if let Err(cause) = refused {
            *self.refused.entry(cause).or_default() += 1;
        }
    }

    fn packet(&mut self, now: Time, raw: &[u8]) {
        let seen = split_header(raw).and_then(|(vnet, packet)| {
            let view = View::of(packet, &self.options.classes, &mut self.fragments)?;
            let peer = self.by_address.get(&view.destination)?;
            let ours = self.options.addresses.contains(&view.source);
            Some((self.peers.get_mut(peer).filter(|_| ours)?, view, vnet, packet))
        });
        match seen {
            Some((peer, view, vnet, packet)) => peer.accept(now, &view, &vnet, packet, raw),
            None => self.unroutable += 1,
        }
    }

    fn frame(
        &mut self,
        now: Time,
        path: Path,
        from: Option<std::net::SocketAddr>,
        bytes: Cow<'_, [u8]>,
        world: &mut dyn World,
    ) -> Result<(), &'static str> {
        let header = Header::read(&bytes).map_err(Malformed::cause)?;
        if header.to != self.options.id.get() {
            return Err("not_for_us");
        }
        let peer = NodeId::new(header.from).and_then(|id| self.peers.get_mut(&id));
        let peer = peer.ok_or("unknown_peer")?;
        match header.channel {
            Channel::Handshake => {
                let message = Handshake::read(&bytes[HEADER..]).ok_or("handshake_malformed")?;
                peer.handshake_message(now, path, &header, message, world)
            }
            // Beats belong to the pulse, which the hands sort out by the first byte.
            Channel::Beat => Err("astray"),
            _ => peer.frame(now, path, from, &header, bytes, world),
        }
    }

    fn volume(&mut self, now: Time, volume: VolumeId, fact: &VolumeFact) {
        for peer in self.peers.values_mut() {
            peer.volume(now, volume, fact);
        }
    }

    fn network(&mut self, now: Time, fact: &NetworkFact) {
        let (NetworkFact::Link { peer, .. }
        | NetworkFact::SendError { peer, .. }
        | NetworkFact::DatagramSize { peer, .. }
        | NetworkFact::PipeTakes { peer, .. }
        | NetworkFact::PipeBroke { peer }
        | NetworkFact::TcpRefused { peer }) = fact;
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.network(now, fact);
        }
    }

    fn command(&mut self, now: Time, command: Command, world: &mut dyn World) {
        match command {
            Command::Ping { peer, id, via } => {
                let sent = match self.peers.get_mut(&peer) {
                    Some(peer) => peer.ping(now, id, via, world),
                    None => Err("no such peer".to_owned()),
                };
                if let Err(reason) = sent {
                    world.put(Output::Event(Event::PingRefused { peer, id, reason }));
                }
            }
            Command::Drill { peer, cut, length, force } => match self.peers.get_mut(&peer) {
                Some(peer) => peer.drill(now, cut, length, force, world),
                None => {
                    let reason = "no such peer".to_owned();
                    world.put(Output::Event(Event::DrillRefused { peer, reason }));
                }
            },
            Command::Configure(options) => self.configure(*options, world),
            Command::Goodbye => {
                for peer in self.peers.values_mut() {
                    peer.goodbye(now, world);
                }
            }
        }
    }

    fn configure(&mut self, options: Options, world: &mut dyn World) {
        let before = std::mem::replace(&mut self.options, options);
        for old in &before.peers {
            let new = self.options.peers.iter().find(|p| p.id == old.id);
            // Another key is another peer.
            if new.is_none_or(|new| new.public_key != old.public_key)
                && let Some(mut gone) = self.peers.remove(&old.id)
            {
                gone.remove(world);
                self.removed += 1;
            }
        }
        for new in self.options.peers.clone() {
            match self.peers.get_mut(&new.id) {
                Some(peer) => peer.configure(&self.options, new, world),
                None => {
                    // A peer that was known before must see another incarnation of us: the numbers
                    // of our frames begin anew.
                    let removed = if planted(Bug::SameEpoch) { 0 } else { self.removed };
                    let epoch = self.options.epoch.saturating_add(removed);
                    self.peers.insert(new.id, Peer::new(&self.options, epoch, new, world));
                }
            }
        }
        self.index();
    }

    pub(crate) fn finish(&mut self, now: Time, world: &mut dyn World) -> Time {
        let late = self.promised.map_or(Duration::ZERO, |promised| now.since(promised));
        // Most turns are about one peer: the others would only find that nothing changed.
        let mut news = false;
        for peer in self.peers.values_mut().filter(|p| p.is_due(now, late)) {
            peer.finish(now, late, world);
            news = true;
        }
        if news {
            self.volumes(now, world);
        }
        let next = self.peers.values().map(Peer::due).min().unwrap_or(Time::NEVER);
        let next = next.max(now + Duration::from_micros(1));
        self.promised = Some(next);
        next
    }

    /// Tells volumes how eager to be: as eager as the most eager peer needs.
    fn volumes(&mut self, now: Time, world: &mut dyn World) {
        for (id, volume) in &mut self.volumes {
            let on = |peer: &Peer| {
                peer.options.send_volume == Some(*id) || peer.options.receive_volume == Some(*id)
            };
            let (mut active, mut quick) = (false, false);
            for peer in self.peers.values().filter(|p| on(p)) {
                active |= peer.wants().storage;
                quick |= peer.wants().quick_beats;
            }
            if volume.active != Some(active) {
                volume.active = Some(active);
                world.put(Output::Volume(*id, VolumeOrder::Poll { active }));
            }
            let timing = &self.options.timing;
            let interval =
                if quick { timing.storage_beat_active } else { timing.storage_beat_idle };
            if volume.interval != Some(interval) {
                volume.interval = Some(interval);
                world.put(Output::Volume(*id, VolumeOrder::BeatEvery(interval)));
                for peer in self.peers.values_mut().filter(|p| on(p)) {
                    peer.set_storage_interval(now, interval);
                }
            }
        }
    }

    /// Keys as if a handshake had made them: hostile tests seal what they like under their own.
    #[doc(hidden)]
    pub fn agree(
        &mut self,
        now: Time,
        peer: NodeId,
        keys: crate::peer::Agreed,
        world: &mut dyn World,
    ) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.agree(now, keys, world);
        }
    }

    /// How many bytes an application may write into a session now.
    #[must_use]
    pub fn session_room(&self, peer: NodeId, id: SessionId) -> usize {
        self.peers.get(&peer).map_or(0, |p| p.session_room(id))
    }

    /// The path that carries a session now.
    #[must_use]
    pub fn session_path(&self, peer: NodeId, id: SessionId) -> Option<Path> {
        self.peers.get(&peer).and_then(|p| p.session_path(id))
    }

    /// What status shows.
    #[must_use]
    pub fn status(&self, now: Time) -> Status {
        Status {
            peers: self.peers.values().map(|p| p.status(now)).collect(),
            refused: self.refused.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
            unroutable: self.unroutable,
        }
    }
}
