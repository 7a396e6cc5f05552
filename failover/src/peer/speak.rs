//! What we say to the peer besides data: receipts, pulses by storage, probes, pings, handshakes,
//! and what the beats are to say.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use super::Peer;
use crate::{
    Output, Path, Ring, Route, Time, Timing, Via, World,
    beat::{Beat, BeatOrder, Echo},
    canary::{Bug, planted},
    clock::micros,
    health::Verdict,
    turn::VolumeOrder,
    wire::{
        Channel, HEADER, TAG,
        control::{self, Ack, Control, Padding},
    },
};

/// Time between pulses by storage while the network is not in order.
const PULSE_EVERY: Duration = Duration::from_millis(100);
/// Time between proofs that we have new keys, until the peer shows that it knows.
const PROVE_EVERY: Duration = Duration::from_millis(50);
/// Pings under way at most.
const PINGS_MAX: usize = 64;
/// Answers to pings and probes waiting at most; more in one turn is nobody's honest traffic.
const ANSWERS_MAX: usize = 64;

/// What is to be said.
#[derive(Debug, Default)]
pub(super) struct Speech {
    /// A pulse at once, besides the schedule.
    urgent: bool,
    pulse_at: Time,
    /// A receipt at once, whether or not anything arrived.
    receipt_at: Option<Time>,
    prove_at: Time,
    probe_answers: Vec<u64>,
    ping_answers: Vec<(u64, Path, bool)>,
    pings: BTreeMap<u64, Time>,
    /// What the beats say now.
    interval: Option<Duration>,
    saying: Option<Saying>,
    storage_beat: Option<(u64, Time)>,
    /// The newest pulse that came by storage: its stamp, and when.
    pub(super) heard_pulse: Option<(u64, Time)>,
    pub(super) goodbye: bool,
    peer_drills: Option<Path>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Saying {
    storage_beat: Option<u64>,
    route: Route,
    drill: Option<Path>,
    goodbye: bool,
}

impl Speech {
    /// Something changed that the peer should hear of now.
    pub(super) const fn urge(&mut self) {
        self.urgent = true;
    }

    /// A receipt is to go out although nothing arrived.
    pub(super) fn acknowledge(&mut self, now: Time) {
        self.receipt_at = Some(self.receipt_at.map_or(now, |at| at.min(now)));
    }

    pub(super) const fn storage_beat(&mut self, beat: u64, now: Time) {
        self.storage_beat = Some((beat, now));
    }

    pub(super) fn answer_probe(&mut self, id: u64) {
        if self.probe_answers.len() < ANSWERS_MAX {
            self.probe_answers.push(id);
        }
    }

    pub(super) fn answer_ping(&mut self, id: u64, came: Path, back_as_came: bool) {
        if self.ping_answers.len() < ANSWERS_MAX {
            self.ping_answers.push((id, came, back_as_came));
        }
    }

    pub(super) fn ping_returned(&mut self, id: u64) -> Option<Time> {
        self.pings.remove(&id)
    }

    /// True when that is news.
    pub(super) fn peer_drills(&mut self, path: Path) -> bool {
        self.peer_drills.replace(path) != Some(path)
    }

    pub(super) const fn peer_drill_ended(&mut self) {
        self.peer_drills = None;
    }

    /// How often beats are sent now.
    pub(super) fn interval(&self, timing: &Timing) -> Duration {
        self.interval.unwrap_or(timing.heartbeat_idle)
    }

    /// When the peer is shown again that we have its keys.
    pub(super) const fn proof_at(&self) -> Time {
        self.prove_at
    }

    pub(super) fn next(&self) -> Time {
        if self.urgent {
            Time::ZERO
        } else {
            self.pulse_at.min(self.receipt_at.unwrap_or(Time::NEVER))
        }
    }
}

impl Peer {
    /// The peer has not shown yet that it knows of our keys.
    pub(super) fn proving(&self) -> bool {
        self.keyring.current().is_some() && !self.keys_proved
    }

    /// Everything that is to be said now.
    pub(super) fn speak(&mut self, now: Time, world: &mut dyn World) {
        if self.keyring.current().is_none() {
            // Nothing can be said without keys; whatever is due would be due for ever.
            self.speech.urgent = false;
            self.speech.pulse_at = Time::NEVER;
            self.speech.receipt_at = None;
            self.cursors_due = Time::NEVER;
            return;
        }
        self.receipts(now, world);
        self.probes(now, world);
        self.answers(world);
        self.pulses(now, world);
    }

    fn receipts(&mut self, now: Time, world: &mut dyn World) {
        let proving = self.proving() && now >= self.speech.prove_at;
        let due = self.express.rx.ack_at() <= now
            || self.datagram.rx.ack_at() <= now
            || self.cursors_due <= now
            || self.speech.receipt_at.is_some_and(|at| at <= now)
            || proving;
        if !due {
            return;
        }
        self.speech.receipt_at = None;
        self.cursors_due = Time::NEVER;
        if proving {
            self.speech.prove_at = now + PROVE_EVERY;
        }
        let ack = Ack {
            express: self.express.rx.acknowledge(),
            datagram: self.datagram.rx.acknowledge(),
            floors: (self.express.tx.floor(), self.datagram.tx.floor()),
            cursors: self.cursors.iter().map(|(ring, number)| (*ring, *number)).collect(),
        };
        let route = self.path.route();
        let frame = self.control_frame(&Control::Ack(ack));
        // While isolated or unproven, whatever path may work: the receipt costs little.
        let try_all = route == Route::Isolated || !self.keys_proved;
        // A network that is up again but still on hold carries receipts already: our storage may
        // be blind on the other side, and without receipts the peer's data seems to stall.
        let held_back = self.seen.network_out.0 == Verdict::Up;
        for path in [Path::Network, Path::Storage] {
            if let Some(frame) = frame.clone()
                && (route.uses(path) || try_all || held_back && path == Path::Network)
            {
                self.put(path, Ring::Express, frame, world);
            }
        }
    }

    /// Only a way back to the network needs proof.
    pub(super) fn probes_wanted(&self) -> bool {
        self.path.route() != Route::Network && self.seen.network_in.0 == Verdict::Up
    }

    fn probes(&mut self, now: Time, world: &mut dyn World) {
        if !self.probes_wanted() {
            return;
        }
        if let Some(id) = self.recovery.probe(now) {
            // As long as a full data frame: what matters is whether such frames get through.
            let room = self.packet_size().saturating_sub(16);
            let probe = Control::Probe { id, padding: Padding(room) };
            if let Some(frame) = self.control_frame(&probe) {
                self.put(Path::Network, Ring::Express, frame, world);
            }
        }
    }

    fn answers(&mut self, world: &mut dyn World) {
        for id in std::mem::take(&mut self.speech.probe_answers) {
            if let Some(frame) = self.control_frame(&Control::ProbeReply { id }) {
                self.put(Path::Network, Ring::Express, frame.clone(), world);
                if self.path.route().uses(Path::Storage) {
                    self.put(Path::Storage, Ring::Express, frame, world);
                }
            }
        }
        for (id, came, back_as_came) in std::mem::take(&mut self.speech.ping_answers) {
            let pong = Control::Pong { id, out_by_storage: came == Path::Storage };
            let path = if back_as_came { came } else { self.auto_path(came) };
            if let Some(frame) = self.control_frame(&pong) {
                self.put(path, Ring::Express, frame, world);
            }
        }
    }

    fn auto_path(&self, otherwise: Path) -> Path {
        match self.path.route() {
            Route::Network | Route::Both => Path::Network,
            Route::Storage => Path::Storage,
            Route::Isolated => otherwise,
        }
    }

    fn pulses(&mut self, now: Time, world: &mut dyn World) {
        let wanted = self.wants_quick_beats() || self.speech.goodbye;
        let urgent = std::mem::take(&mut self.speech.urgent);
        if !(wanted || urgent && self.storage.is_configured()) {
            self.speech.pulse_at = Time::NEVER;
            return;
        }
        if !urgent && now < self.speech.pulse_at && self.speech.pulse_at != Time::NEVER {
            return;
        }
        self.speech.pulse_at = if wanted { now + PULSE_EVERY } else { Time::NEVER };
        let message = self.pulse_message(now);
        if let Some(frame) = self.control_frame(&message) {
            self.put(Path::Storage, Ring::Express, frame, world);
        }
    }

    fn pulse_message(&self, now: Time) -> Control {
        let heard = self.speech.heard_pulse.map(|(stamp, at)| (stamp, micros(now.since(at))));
        Control::Pulse { beat: self.pulse(now).into(), heard }
    }

    fn pulse(&self, now: Time) -> Beat {
        let echo = |heard: Option<(u64, Time)>| {
            heard.map(|(stamp, at)| Echo { stamp, age: now.since(at) })
        };
        Beat {
            sent_at: now,
            next_due: PULSE_EVERY,
            loop_age: Duration::ZERO,
            heard_network: echo(self.network.newest()),
            heard_storage: echo(self.storage.newest()),
            route: self.path.route(),
            goodbye: self.speech.goodbye,
            drill: self.drilled_path(),
        }
    }

    const fn drilled_path(&self) -> Option<Path> {
        if self.is_cut(Path::Network) {
            Some(Path::Network)
        } else if self.is_cut(Path::Storage) {
            Some(Path::Storage)
        } else {
            None
        }
    }

    /// Tells the pulse what to say and how often.
    pub(super) fn beats(&mut self, now: Time, world: &mut dyn World) {
        let busy = now < self.busy_until
            || self.path.route() != Route::Network
            || self.seen.network().0 != Verdict::Up;
        let interval = if busy { self.timing.heartbeat } else { self.timing.heartbeat_idle };
        if self.speech.interval != Some(interval) {
            self.speech.interval = Some(interval);
            self.network.set_our_interval(now, interval);
            self.target(world);
        }
        let saying = Saying {
            storage_beat: self.speech.storage_beat.map(|b| b.0),
            route: self.path.route(),
            drill: self.drilled_path(),
            goodbye: self.speech.goodbye,
        };
        if self.speech.saying != Some(saying) {
            self.speech.saying = Some(saying);
            world.put(Output::Beat(BeatOrder::Say {
                peer: self.id(),
                heard_storage: self.speech.storage_beat,
                route: saying.route,
                drill: saying.drill,
                goodbye: saying.goodbye,
            }));
        }
    }

    pub(super) fn control_frame(&mut self, message: &Control) -> Option<Bytes> {
        let mut number = self.control_next;
        // A number names a nonce: none is used twice, also not after the last one.
        self.control_next = number.checked_add(1)?;
        if planted(Bug::SameNonce) && number.is_multiple_of(8) {
            number -= 1;
        }
        let (generation, key) = self.keyring.seal()?;
        let mut frame = control::write(message, vec![0; HEADER]);
        frame.reserve_exact(TAG);
        let ends = (self.us.get(), self.id().get());
        key.seal(Channel::Control, ends, generation, number, &mut frame);
        Some(frame.into())
    }

    // --- commands ------------------------------------------------------------------------------

    /// Sends a ping, or says why not.
    pub(crate) fn ping(
        &mut self,
        now: Time,
        id: u64,
        via: Via,
        world: &mut dyn World,
    ) -> Result<(), String> {
        self.touch();
        let path = match via {
            Via::Network => Path::Network,
            Via::Storage => Path::Storage,
            Via::Auto if self.path.route() == Route::Isolated => {
                return Err("no path is up".to_owned());
            }
            Via::Auto => self.auto_path(Path::Network),
        };
        if path == Path::Storage && !self.storage.is_configured() {
            return Err("no storage is configured for this peer".to_owned());
        }
        if path == Path::Network && self.options.endpoints.is_empty() {
            return Err("no endpoint is configured for this peer".to_owned());
        }
        if path == Path::Storage && self.path.route() == Route::Network {
            // Both readers are in standby, and would look once a second.
            self.wake_storage(now);
            if let Some(knock) = self.control_frame(&Control::Knock) {
                self.put(Path::Network, Ring::Express, knock, world);
            }
        }
        let message = Control::Ping { id, back_as_came: via != Via::Auto };
        let Some(frame) = self.control_frame(&message) else {
            return Err("no keys agreed with this peer yet".to_owned());
        };
        while self.speech.pings.len() >= PINGS_MAX {
            self.speech.pings.pop_first();
        }
        self.speech.pings.insert(id, now);
        self.put(path, Ring::Express, frame, world);
        Ok(())
    }

    /// Says goodbye over every path.
    pub(crate) fn goodbye(&mut self, now: Time, world: &mut dyn World) {
        self.touch();
        self.speech.goodbye = true;
        self.speech.urge();
        self.beats(now, world);
        world.put(Output::Beat(BeatOrder::Now { peer: self.id() }));
        let message = self.pulse_message(now);
        if let Some(frame) = self.control_frame(&message) {
            self.put(Path::Network, Ring::Express, frame, world);
        }
    }

    // --- handshakes ----------------------------------------------------------------------------

    pub(super) fn keys_wanted(&self, now: Time) -> bool {
        let worn = self.keyring.worn(now, self.timing.rekey_after, super::REKEY_FRAMES)
            && self.agreement.as_ref().is_some_and(crate::secure::Agreement::initiates);
        // A responder whose answer is under way waits for the proof of it, and asks again only
        // when none comes: the initiator repeats its init by itself.
        let none = self.keyring.current().is_none();
        none || worn || self.wants_keys
    }

    pub(super) fn handshake(&mut self, now: Time, world: &mut dyn World) {
        if self.keyring.retire(now, self.timing.write_ttl * 2) {
            world.put(Output::Beat(BeatOrder::Retire { peer: self.id() }));
        }
        if self.speech.goodbye || !self.keys_wanted(now) {
            return;
        }
        let Some(agreement) = &mut self.agreement else { return };
        if let Some(message) = agreement.poll(now, world) {
            self.put_handshake(now, message, world);
        }
    }

    /// Sends a handshake message by every path there is.
    pub(super) fn put_handshake(&mut self, now: Time, message: Bytes, world: &mut dyn World) {
        let peer = self.id();
        if !self.is_cut(Path::Network) {
            for to in &self.options.endpoints {
                world.put(Output::Datagram { peer, to: *to, frame: message.clone() });
            }
        }
        let Some(volume) = self.options.send_volume.filter(|_| !self.is_cut(Path::Storage)) else {
            return;
        };
        // The mailbox keeps what it holds: the same message is not written again at once.
        let held = self
            .mailbox
            .as_ref()
            .is_some_and(|(held, at)| *held == message && now.since(*at) < Duration::from_secs(1));
        if !held {
            self.mailbox = Some((message.clone(), now));
            world.put(Output::Mailbox { volume, to: peer, message });
            world.put(Output::Volume(volume, VolumeOrder::BeatNow));
        }
    }
}
