//! One peer: the stages of its traffic, in order. Each stage is a function of its own room; this
//! one only brings them together.
//!
//! ```text
//!  in:   open (secure) -> beats and facts (health) -> acknowledgements, duplicates, order (link)
//!  turn: verdicts (health) -> route (path) -> expire -> seal (queue, link) -> send -> say
//! ```

mod inbound;
mod outbound;
mod speak;
mod streams;

pub(crate) use outbound::split_header;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;

pub(crate) use crate::secure::Agreed;
use crate::{
    Cut, Event, NodeId, Options, Output, Path, PeerOptions, Ring, Route, Time, Timing, World,
    beat::BeatOrder,
    canary::{Bug, planted},
    event,
    health::{self, Judged, Network, Reason, Recovery, Settings, Storage, Verdict, worse},
    link::{Receiver, Sender, Window},
    path::{Evidence, Machine, State},
    queue::Queues,
    secure::{Agreement, Keyring},
    session::{Ending, Pipe},
    status::{Change, Counters, NetworkStatus, PeerState, PeerStatus, StorageStatus},
    turn::VolumeOrder,
    wire::Channel,
};

/// Traffic within this time makes beats quick.
const BUSY: Duration = Duration::from_secs(2);
/// How long storage is given, on the way back to the network, to have its last frames read, and
/// the outbox to be empty once.
const DRAIN_PATIENCE: Duration = Duration::from_millis(100);
/// Keys are renewed after as many frames, whatever their age.
const REKEY_FRAMES: u64 = 1 << 32;

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) options: PeerOptions,
    us: NodeId,
    timing: Timing,
    agreement: Option<Agreement>,
    keyring: Keyring,
    /// The incarnation of the peer whose link this is; zero before the first.
    link_epoch: u64,
    /// Keys are asked for although some are there.
    wants_keys: bool,
    /// The peer opened something of ours under the current keys.
    keys_proved: bool,
    /// The generation of keys the pulse was given last.
    beat_generation: Option<u32>,
    queues: Queues,
    express: Kept,
    datagram: Kept,
    control_next: u64,
    control_seen: Window,
    stream_next: u64,
    stream_seen: Window,
    pipe: Pipe,
    /// Bytes the network's pipe takes.
    pipe_room: usize,
    /// Sessions come by storage, as of late.
    bulk_until: Time,
    /// When the peer's reader is to be woken again for sessions.
    knock_at: Time,
    network: Network,
    storage: Storage,
    recovery: Recovery,
    path: Machine,
    counters: Counters,
    state: PeerState,
    peer_route: Option<Route>,
    last_change: Option<Change>,
    drill: Option<Drill>,
    /// Which of the endpoints answers.
    endpoint: usize,
    /// Bytes one datagram holds.
    datagram_size: usize,
    busy_until: Time,
    storage_window: outbound::StorageWindow,
    /// Bytes that may still be hedged during this suspicion.
    hedge_left: usize,
    /// The outbox holds nothing for this peer.
    outbox_empty: bool,
    /// Something by storage is expected until then, although the network is up.
    storage_awake_until: Time,
    /// Last record read from each ring of the peer's lane, and whether the peer knows.
    cursors: BTreeMap<bool, u64>,
    cursors_due: Time,
    speech: speak::Speech,
    said: Option<Verdicts>,
    mailbox: Option<(Bytes, Time)>,
    /// The verdicts of the last finish.
    seen: Seen,
    wants: Wants,
    /// When finish has something to do; zero once anything was handed in.
    due: Time,
}

/// What the peer wants of its volumes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wants {
    /// Storage is needed or may be in a moment: lanes are to be polled eagerly.
    pub(crate) storage: bool,
    /// The network is not in order: storage beats are to be quick.
    pub(crate) quick_beats: bool,
}

/// Both directions of a kept channel.
#[derive(Debug)]
struct Kept {
    tx: Sender,
    rx: Receiver,
}

impl Kept {
    fn new(channel: Channel, ttl: Duration) -> Self {
        Self { tx: Sender::new(channel, ttl), rx: Receiver::new() }
    }
}

#[derive(Debug, Clone, Copy)]
struct Drill {
    cut: Cut,
    until: Time,
}

/// Verdicts last told as events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdicts {
    network: Verdict,
    storage: Verdict,
}

/// What health says at one moment: asked once per finish, used all through it.
#[derive(Debug, Clone, Copy)]
struct Seen {
    network_in: Judged,
    network_out: Judged,
    storage_in: Judged,
    storage_out: Judged,
}

impl Default for Seen {
    fn default() -> Self {
        let unheard = (Verdict::Down, Reason::NeverHeard);
        Self {
            network_in: unheard,
            network_out: unheard,
            storage_in: unheard,
            storage_out: unheard,
        }
    }
}

impl Seen {
    fn network(&self) -> Judged {
        worse(self.network_in, self.network_out)
    }

    fn storage(&self) -> Judged {
        worse(self.storage_out, self.storage_in)
    }
}

impl Peer {
    /// `epoch` is our incarnation as this peer is to see it.
    pub(crate) fn new(
        node: &Options,
        epoch: u64,
        options: PeerOptions,
        world: &mut dyn World,
    ) -> Self {
        let timing = node.timing.clone();
        let agreement = Agreement::new(
            (node.id, options.id),
            epoch,
            &node.private_key,
            options.public_key,
            &node.group,
            node.plaintext,
        );
        let peer = Self {
            us: node.id,
            agreement,
            keyring: Keyring::default(),
            link_epoch: 0,
            wants_keys: false,
            keys_proved: false,
            beat_generation: None,
            queues: Queues::new(timing.queue_bytes_max, timing.express_ttl, timing.write_ttl),
            express: Kept::new(Channel::Express, timing.express_ttl),
            datagram: Kept::new(Channel::Datagram, timing.write_ttl),
            control_next: 1,
            control_seen: Window::new(),
            stream_next: 1,
            stream_seen: Window::new(),
            pipe: Pipe::new(node.id, options.id, node.sessions.clone()),
            pipe_room: streams::ROOM_AT_FIRST,
            bulk_until: Time::ZERO,
            knock_at: Time::ZERO,
            network: Network::new(settings(&timing, &options)),
            storage: Storage::new(is_stored(&options), timing.storage_beat_idle),
            recovery: Recovery::default(),
            path: Machine::new(timing.hold),
            counters: Counters::default(),
            state: PeerState::Unknown,
            peer_route: None,
            last_change: None,
            drill: None,
            endpoint: 0,
            datagram_size: 1472,
            busy_until: Time::ZERO,
            storage_window: outbound::StorageWindow::default(),
            hedge_left: 0,
            outbox_empty: true,
            storage_awake_until: Time::ZERO,
            cursors: BTreeMap::new(),
            cursors_due: Time::NEVER,
            speech: speak::Speech::default(),
            said: None,
            mailbox: None,
            seen: Seen::default(),
            wants: Wants::default(),
            due: Time::ZERO,
            timing,
            options,
        };
        peer.target(world);
        peer
    }

    /// Settings changed; the peer itself stayed the same (key and id).
    pub(crate) fn configure(
        &mut self,
        node: &Options,
        options: PeerOptions,
        world: &mut dyn World,
    ) {
        self.touch();
        self.timing = node.timing.clone();
        self.options = options;
        self.endpoint = 0;
        self.network.configure(settings(&self.timing, &self.options));
        self.storage.configure(is_stored(&self.options));
        self.path.configure(self.timing.hold);
        self.target(world);
    }

    pub(crate) const fn id(&self) -> NodeId {
        self.options.id
    }

    // --- one turn ------------------------------------------------------------------------------

    /// Something was handed in, and believed: what strangers say is no work for the next finish.
    const fn touch(&mut self) {
        self.due = Time::ZERO;
    }

    /// Whether [`Self::finish`] has anything to do. Whoever slept excuses everybody.
    pub(crate) fn is_due(&self, now: Time, late: Duration) -> bool {
        now >= self.due || late >= health::OWN_LATENESS
    }

    pub(crate) const fn due(&self) -> Time {
        self.due
    }

    pub(crate) const fn wants(&self) -> Wants {
        self.wants
    }

    /// Everything that is worth doing once per batch of inputs.
    pub(crate) fn finish(&mut self, now: Time, late: Duration, world: &mut dyn World) {
        self.network.excuse(now, late);
        self.storage.excuse(now, late);
        self.end_drill(now, world);
        self.handshake(now, world);
        self.judge(now, world);
        self.expire(now);
        self.pump(now, world);
        self.streams(now, world);
        self.speak(now, world);
        self.beats(now, world);
        self.wants =
            Wants { storage: self.wants_storage(now), quick_beats: self.wants_quick_beats() };
        self.due = self.next(now);
    }

    fn look(&self, now: Time) -> Seen {
        Seen {
            network_in: self.network.inbound(now),
            network_out: self.network.outbound(now),
            storage_in: self.storage.inbound(now),
            storage_out: self.storage.outbound(now),
        }
    }

    fn judge(&mut self, now: Time, world: &mut dyn World) {
        let silence =
            |path| self.express.tx.silence(now, path).max(self.datagram.tx.silence(now, path));
        // Copies sent before the network was left say nothing about it now.
        let trusts = matches!(self.path.state(), State::Network | State::Hedging { .. });
        let stuck =
            |tx: &Sender| if trusts { tx.stuck(now, Path::Network) } else { Duration::ZERO };
        let stuck = stuck(&self.express.tx).max(stuck(&self.datagram.tx));
        self.network.data_silence(silence(Path::Network), stuck);
        // Half the time is left for the other path.
        let stored = silence(Path::Storage).max(self.pipe.silence(now, Path::Storage));
        self.storage.data_silence(stored, self.express_ttl(Path::Storage) / 2);
        self.network.update(now);
        self.seen = self.look(now);
        if self.seen.network().0 != Verdict::Up {
            self.recovery.reset();
        }
        // A chain of at most a few moves: each is a step of its own, with its own reason.
        for _ in 0..4 {
            let evidence = self.evidence(now);
            let Some(moved) = self.path.choose(now, &evidence) else { break };
            self.moved(now, &moved, world);
        }
        let way = match self.path.state() {
            State::Network => Path::Network,
            _ => Path::Storage,
        };
        let ttl = self.express_ttl(way);
        self.queues.set_express_ttl(ttl);
        // The receipt takes the same way back; on a disk that is no time.
        let slow = ttl > self.timing.express_ttl;
        self.express.tx.set_ttl(if slow { ttl * 2 } else { ttl });
        if let State::Returning { since } = self.path.state()
            && now.since(since) >= DRAIN_PATIENCE
        {
            self.take_over_from_storage();
        }
        self.tell(now, world);
    }

    /// How long express packets live that go that way. Half a second is nothing to a store whose
    /// requests take a tenth of it each: dropping them would serve nobody.
    fn express_ttl(&self, path: Path) -> Duration {
        let usual = self.timing.express_ttl;
        match path {
            Path::Network => usual,
            Path::Storage => usual.max(self.storage.passage().min(self.timing.write_ttl)),
        }
    }

    /// Since when the network has been good enough to come back to. One whose receipts return only
    /// when an express packet's time to live is half over is not: storage does better.
    fn proven_since(&self) -> Option<Time> {
        let slow = self.network.rtt().is_some_and(|rtt| rtt > self.timing.express_ttl / 2);
        self.recovery.proven_since().filter(|_| !slow)
    }

    fn evidence(&self, now: Time) -> Evidence {
        let keyed = self.keyring.current().is_some();
        let Seen { network_out: network, storage_out: storage, .. } = self.seen;
        let unkeyed = (Verdict::Down, Reason::NeverHeard);
        let (network, storage) = if keyed { (network, storage) } else { (unkeyed, unkeyed) };
        Evidence {
            network: network.0,
            network_reason: network.1,
            storage: storage.0,
            storage_reason: storage.1,
            proven_since: self.proven_since(),
            // Looked at only where it matters: it walks through everything kept. Copies of what the
            // network carries too may wait for ever in front of a medium slower than the traffic.
            drained: matches!(self.path.state(), State::Returning { since }
                if self.outbox_empty || now.since(since) >= DRAIN_PATIENCE)
                && self.express.tx.independent_of_storage()
                && self.datagram.tx.independent_of_storage(),
        }
    }

    fn moved(&mut self, now: Time, moved: &crate::path::Move, world: &mut dyn World) {
        let (from, to) = (moved.from.route(), moved.to.route());
        for tx in [&mut self.express.tx, &mut self.datagram.tx] {
            for path in [Path::Network, Path::Storage] {
                match (from.uses(path), to.uses(path)) {
                    // What storage carries need not cross the network as well.
                    (false, true) if matches!(moved.to, State::Returning { .. }) => tx.skip(path),
                    (false, true) if planted(Bug::NoRewind) => tx.skip(path),
                    (false, true) => tx.rewind(path),
                    (true, false) => tx.leave(path),
                    _ => {}
                }
            }
        }
        if moved.to == State::Network {
            self.take_over_from_storage();
        }
        let was_doubtful = matches!(moved.from, State::Doubtful { .. });
        match moved.to {
            State::Hedging { .. } => self.hedge_left = outbound::HEDGE_BYTES,
            State::Storage | State::Doubtful { .. }
                if from.uses(Path::Network) && !was_doubtful =>
            {
                if !matches!(moved.from, State::Returning { .. }) {
                    self.counters.failovers += 1;
                }
                self.recovery.reset();
            }
            // A first arrival on the network is not a return.
            State::Network if self.counters.failbacks < self.counters.failovers => {
                self.counters.failbacks += u64::from(!matches!(moved.from, State::Hedging { .. }));
            }
            _ => {}
        }
        self.speech.urge();
        world.put(Output::Beat(BeatOrder::Now { peer: self.id() }));
        if from == to {
            return;
        }
        self.last_change =
            Some(Change { at_us: now.micros(), from, to, reason: moved.reason.clone() });
        world.put(Output::Event(Event::RouteChanged {
            peer: self.id(),
            from,
            to,
            reason: moved.reason.clone(),
            drill: self.drill.is_some(),
        }));
    }

    /// What storage alone carries so far goes by the network, too: storage failed before it was
    /// read, and nobody would send it again.
    fn take_over_from_storage(&mut self) {
        for tx in [&mut self.express.tx, &mut self.datagram.tx] {
            if !tx.independent_of_storage() {
                tx.rewind(Path::Network);
            }
        }
    }

    /// Tells changes of verdicts and of the peer's state as events.
    fn tell(&mut self, now: Time, world: &mut dyn World) {
        let peer = self.id();
        let (network, storage) = (self.seen.network(), self.seen.storage());
        let verdicts = Verdicts { network: network.0, storage: storage.0 };
        let before = self.said.replace(verdicts);
        for (path, judged, before) in [
            (Path::Network, network, before.map(|b| b.network)),
            (Path::Storage, storage, before.map(|b| b.storage)),
        ] {
            if before.is_some_and(|b| b != judged.0) {
                let (state, reason) = (judged.0, judged.1.to_string());
                world.put(Output::Event(Event::PathState { peer, path, state, reason }));
                // Suspicion is told at once, by extra beats on both paths.
                self.speech.urge();
                world.put(Output::Beat(BeatOrder::Now { peer }));
            }
        }
        let (state, reason) = self.alive(now, verdicts);
        if state != self.state {
            self.state = state;
            let reason = reason.to_owned();
            world.put(Output::Event(event::Event::PeerState { peer, state, reason }));
        }
    }

    fn alive(&self, now: Time, verdicts: Verdicts) -> (PeerState, &'static str) {
        let heard = |v| v == Verdict::Up || v == Verdict::Suspect;
        if self.network.said_goodbye() {
            (PeerState::Dead, "it said goodbye")
        } else if self.keyring.current().is_some()
            && (heard(self.seen.network_in.0) || heard(self.seen.storage_in.0))
        {
            (PeerState::Alive, "heard")
        } else if !heard(verdicts.network) && self.storage.peer_stands_still(now) {
            (PeerState::Dead, "silent, and its beat in storage stands still while we read well")
        } else {
            (PeerState::Unknown, "silent, and nothing proves why")
        }
    }

    fn wants_storage(&self, now: Time) -> bool {
        self.storage.is_configured()
            && !self.network.said_goodbye()
            && (now < self.storage_awake_until
                || self.network.is_late(now)
                || self.path.route() != Route::Network
                || self.peer_route.is_some_and(|r| r != Route::Network))
    }

    fn wants_quick_beats(&self) -> bool {
        self.storage.is_configured()
            && (self.seen.network().0 != Verdict::Up || self.path.route() != Route::Network)
    }

    /// Traffic by storage is expected although the network is up: a ping, for one.
    fn wake_storage(&mut self, now: Time) {
        self.storage_awake_until = now + Duration::from_secs(2);
    }

    pub(crate) fn set_storage_interval(&mut self, now: Time, interval: Duration) {
        self.storage.set_interval(now, interval);
    }

    /// When something is due here by time alone.
    fn next(&self, now: Time) -> Time {
        let proven = self.proven_since();
        let mut next = self
            .network
            .next(now)
            .min(self.path.next(now, proven))
            .min(self.queues.next_stale())
            .min(self.speech.next())
            .min(self.cursors_due)
            .min(if self.keyring.current().is_some() { self.pipe.next() } else { Time::NEVER })
            .min(if self.probes_wanted() { self.recovery.next() } else { Time::NEVER })
            .min(if self.proving() { self.speech.proof_at() } else { Time::NEVER })
            .min(self.drill.map_or(Time::NEVER, |d| d.until));
        for kept in [&self.express, &self.datagram] {
            next = next.min(kept.tx.next_expiry()).min(kept.rx.next()).min(kept.rx.ack_at());
            if !kept.tx.is_empty() {
                next = next.min(now + Duration::from_millis(3));
            }
        }
        if self.keys_wanted(now)
            && let Some(agreement) = &self.agreement
        {
            next = next.min(agreement.next());
        }
        // Ages of storage beats and of reports are looked at a few times a second.
        next.min(now + Duration::from_millis(100))
    }

    // --- drills --------------------------------------------------------------------------------

    /// Starts, replaces or ends a drill.
    pub(crate) fn drill(
        &mut self,
        now: Time,
        cut: Cut,
        length: Duration,
        force: bool,
        world: &mut dyn World,
    ) {
        self.touch();
        let peer = self.id();
        if length.is_zero() {
            if let Some(drill) = &mut self.drill {
                drill.until = now;
            }
            return self.end_drill(now, world);
        }
        let refused = match cut {
            _ if force => None,
            Cut::Both => Some("cutting both paths isolates the peer; add --force to do it".to_owned()),
            Cut::Network => Some(self.look(now).storage()).filter(|j| j.0 != Verdict::Up).map(|j| {
                format!("the storage path, which would have to carry on, is not up ({}); add --force to do it all the same", j.1)
            }),
            Cut::Storage => Some(self.look(now).network()).filter(|j| j.0 != Verdict::Up).map(|j| {
                format!("the network path, which would have to carry on, is not up ({}); add --force to do it all the same", j.1)
            }),
        };
        if let Some(reason) = refused {
            world.put(Output::Event(Event::DrillRefused { peer, reason }));
            return;
        }
        self.drill = Some(Drill { cut, until: now + length });
        let mute = self.is_cut(Path::Network);
        world.put(Output::Beat(BeatOrder::Mute { peer, mute }));
        world.put(Output::Event(Event::DrillStarted { peer, cut }));
        self.speech.urge();
    }

    fn end_drill(&mut self, now: Time, world: &mut dyn World) {
        let Some(drill) = self.drill else { return };
        if now < drill.until {
            return;
        }
        self.drill = None;
        let peer = self.id();
        world.put(Output::Beat(BeatOrder::Mute { peer, mute: false }));
        world.put(Output::Event(Event::DrillEnded { peer }));
    }

    /// A drill cuts this path.
    pub(crate) const fn is_cut(&self, path: Path) -> bool {
        match self.drill {
            None => false,
            Some(drill) => matches!(
                (drill.cut, path),
                (Cut::Both, _) | (Cut::Network, Path::Network) | (Cut::Storage, Path::Storage)
            ),
        }
    }

    // --- getters -------------------------------------------------------------------------------

    /// What status shows.
    pub(crate) fn status(&self, now: Time) -> PeerStatus {
        let ms = |at: Option<Time>| {
            at.map(|at| now.since(at).as_millis().try_into().unwrap_or(u64::MAX))
        };
        let us = |span: Option<Duration>| span.map(crate::micros);
        let why = |judged: Judged| (judged.0 != Verdict::Up).then(|| judged.1.to_string());
        let seen = self.look(now);
        let (network, storage) = (seen.network(), seen.storage());
        let mut counters = self.counters.clone();
        counters.queued =
            self.queues.packets() + self.express.tx.packets() + self.datagram.tx.packets();
        counters.held = self.express.rx.held() + self.datagram.rx.held();
        PeerStatus {
            id: self.id(),
            name: self.options.name.clone(),
            state: self.state,
            route: self.path.route(),
            peer_route: self.peer_route,
            network: NetworkStatus {
                state: network.0,
                reason: why(network),
                rtt_us: us(self.network.rtt()).filter(|_| network.0 == Verdict::Up),
                last_heard_ms: ms(self.network.heard_at()),
            },
            storage: StorageStatus {
                state: storage.0,
                reason: why(storage),
                latency_us: us(self.storage.latency()),
                last_heard_ms: ms(self.storage.heard_at()),
            },
            counters,
            last_change: self.last_change.clone(),
            sessions: self.pipe.status(),
            keys: self.keyring.current().is_some(),
            drill: self.drill.map(|d| d.cut),
        }
    }

    fn kept(&mut self, channel: Channel) -> &mut Kept {
        if channel == Channel::Express { &mut self.express } else { &mut self.datagram }
    }

    fn target(&self, world: &mut dyn World) {
        world.put(Output::Beat(BeatOrder::Target {
            peer: self.id(),
            endpoints: self.options.endpoints.clone(),
            interval: self.speech.interval(&self.timing),
        }));
    }

    fn lose(&mut self, cause: &'static str, packets: u64) {
        if packets > 0 && !planted(Bug::LoseQuietly) {
            self.counters.lost += packets;
            *self.counters.lost_by_cause.entry(cause.to_owned()).or_default() += packets;
        }
    }

    fn drop_arrival(&mut self, cause: &'static str) {
        self.counters.dropped += 1;
        *self.counters.dropped_by_cause.entry(cause.to_owned()).or_default() += 1;
    }

    /// The address frames are sent to.
    fn address(&self) -> Option<SocketAddr> {
        self.options
            .endpoints
            .get(self.endpoint)
            .or_else(|| self.options.endpoints.first())
            .copied()
    }

    /// Sends one frame by a path, unless a drill cuts it.
    fn put(&mut self, path: Path, ring: Ring, frame: Bytes, world: &mut dyn World) {
        let (peer, length) = (self.id(), frame.len());
        match path {
            Path::Network => {
                self.counters.network_bytes += length as u64;
                if self.is_cut(path) {
                    return;
                }
                if length > self.datagram_size {
                    world.put(Output::TcpFrame { peer, frame });
                } else if let Some(to) = self.address() {
                    world.put(Output::Datagram { peer, to, frame });
                }
            }
            Path::Storage => {
                let Some(volume) = self.options.send_volume else { return };
                self.counters.storage_bytes += length as u64;
                if self.is_cut(path) {
                    return;
                }
                self.outbox_empty = false;
                world.put(Output::Store { volume, to: peer, ring, frame });
            }
        }
    }

    /// Releases what the old incarnation of the peer's reader had not read.
    fn reset_lane(&self, world: &mut dyn World) {
        if let Some(volume) = self.options.send_volume {
            world.put(Output::Volume(volume, VolumeOrder::ResetLane { to: self.id() }));
        }
    }

    /// The peer is taken out of the configuration.
    pub(crate) fn remove(&mut self, world: &mut dyn World) {
        self.pipe.stop(Ending::Closed);
        self.tell_sessions(world);
        world.put(Output::Beat(BeatOrder::Remove { peer: self.id() }));
    }
}

fn settings(timing: &Timing, options: &PeerOptions) -> Settings {
    Settings {
        suspect_floor: timing.suspect_floor,
        down_after: timing.down_after,
        configured: !options.endpoints.is_empty(),
    }
}

const fn is_stored(options: &PeerOptions) -> bool {
    options.send_volume.is_some() && options.receive_volume.is_some()
}
