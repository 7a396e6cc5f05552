//! The turn loop of a host, and what it does with what the core says; applications, too.

use failover::{Event, Input, NodeId, Output, Time, VolumeId, finish, session::SessionEvent, turn};

use crate::{
    fault::Fault,
    host::{Hands, In, SLEEP_MAX, TUN_MAX, endpoint},
    net::Pipe,
    store::FromStore,
    talks, workload,
    world::{Ev, World},
};

/// Packets read from the interface in one turn.
const PACKETS_PER_TURN: usize = 64;
const VOLUME: VolumeId = VolumeId(0);

impl World {
    /// Gives the loop something; it wakes a little later.
    pub(crate) fn put(&mut self, host: u8, what: In) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        let Some(daemon) = &mut machine.daemon else { return };
        daemon.inbox.push_back(what);
        if daemon.turn_at <= now + 5 {
            return;
        }
        self.wake_soon(host);
    }

    pub(crate) fn wake_soon(&mut self, host: u8) {
        let (chance, most) = self.host(host).turn_late;
        let mut at = self.now + self.rng.range(3, 40);
        if self.rng.chance(chance) {
            at += self.rng.below(most + 1);
            self.fired.count(Fault::LateLoop);
        }
        self.wake(host, at);
    }

    pub(crate) fn wake(&mut self, host: u8, at: u64) {
        let machine = self.host(host);
        let incarnation = machine.incarnation;
        if let Some(daemon) = &mut machine.daemon
            && at < daemon.turn_at
        {
            daemon.turn_at = at;
            self.push(at, Ev::Turn { host, incarnation });
        }
    }

    /// Turns the loop at once.
    pub(crate) fn turn_now(&mut self, host: u8) {
        let now = self.now;
        let incarnation = self.host(host).incarnation;
        if let Some(daemon) = &mut self.host(host).daemon {
            daemon.turn_at = now;
            self.turn_due(host, incarnation);
        }
    }

    pub(crate) fn turn_due(&mut self, host: u8, incarnation: u32) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        if machine.incarnation != incarnation {
            return;
        }
        let (clock, paused_until) = (machine.clock, machine.paused_until);
        let Some(daemon) = machine.daemon.as_mut().filter(|d| d.turn_at == now) else { return };
        if paused_until > now {
            daemon.turn_at = paused_until;
            return self.push(paused_until, Ev::Turn { host, incarnation });
        }
        let shown = Time(clock.shows(now));
        let mut outputs = std::mem::take(&mut self.outputs);
        let mut hands = Hands { rng: &mut self.rng, outputs: &mut outputs };
        let node = &mut daemon.node;
        for what in daemon.inbox.drain(..) {
            match what {
                In::Datagram { from, bytes } => {
                    let from = endpoint(from);
                    turn(node, shown, Input::Datagram { from, bytes: &bytes }, &mut hands);
                }
                In::Tcp(bytes) => turn(node, shown, Input::TcpFrame(bytes.to_vec()), &mut hands),
                In::Heard(heard) => turn(node, shown, Input::Beat(heard), &mut hands),
                In::Network(fact) => turn(node, shown, Input::Network(fact), &mut hands),
                In::Command(order) => turn(node, shown, Input::Command(*order), &mut hands),
            }
        }
        for note in daemon.store.notes.drain(..) {
            self.trace.tell(now, host, "volume", note);
        }
        for item in daemon.store.out.drain(..) {
            match item {
                FromStore::Frames { from, frames } => {
                    for bytes in &frames {
                        turn(node, shown, Input::Stored { from, bytes }, &mut hands);
                    }
                }
                FromStore::Mailbox { from, bytes } => {
                    turn(node, shown, Input::Mailbox { from, bytes: &bytes }, &mut hands);
                }
                FromStore::Fact(fact) => {
                    if let failover::VolumeFact::Fault { fault, detail } = &fact {
                        self.trace.tell(now, host, "storage", format!("{fault:?} {detail}"));
                    }
                    if let failover::VolumeFact::Hangs { detail, .. } = &fact {
                        self.trace.tell(now, host, "storage", detail.clone());
                    }
                    turn(node, shown, Input::Volume(VOLUME, fact), &mut hands);
                }
            }
        }
        for _ in 0..PACKETS_PER_TURN {
            let Some((flow, first)) = machine.tun.pop_front() else { break };
            self.check.offered(now, flow, first);
            let packet = workload::packet(flow, &self.plan.flows[flow], first);
            turn(node, shown, Input::Packet(&packet), &mut hands);
        }
        let applications = (host, self.traffic);
        let hands_on = (&mut *node, &mut hands);
        daemon.talks.act(now, shown, applications, &self.plan.talks, hands_on, &mut self.talking);
        let more = !machine.tun.is_empty();
        let next = finish(node, shown, &mut hands);
        daemon.turned = shown.micros();
        daemon.turns += 1;
        let looks = daemon.turns % self.stride == 0;
        daemon.turn_at = u64::MAX;
        let next = clock.when(now, next.micros()).min(now + SLEEP_MAX);
        let next = if daemon.talks.is_idle() { next } else { next.min(daemon.talks.due) };
        for output in outputs.drain(..) {
            self.output(host, shown, output);
        }
        self.outputs = outputs;
        let Some(daemon) = self.host(host).daemon.as_mut() else { return };
        let refused = daemon.store.tell_refusals();
        self.wake_machines(host);
        self.beat_soon(host);
        self.wake(host, if refused || more { now + 3 } else { next });
        if looks {
            self.look(host);
        }
    }

    /// Looks at what the host's node says of its peers.
    pub(crate) fn look(&mut self, host: u8) {
        let now = self.now;
        let machine = &self.hosts[usize::from(host) - 1];
        let Some(daemon) = &machine.daemon else { return };
        if machine.node != host {
            return;
        }
        if let Some(breach) = self.disk.breach.take() {
            self.check.fail(now, "I7 containment", breach);
        }
        if let Some(why) = &daemon.store.fenced
            && !self.plan.may_fence()
        {
            let detail = format!("host {host} gave its volume up without a cause: {why}");
            self.check.fail(now, "I6 fence", detail);
        }
        for peer in daemon.node.status(Time(machine.clock.shows(now))).peers {
            self.check.status(now, host, &peer, &self.truth);
            if let Some((invariant, detail)) = talks::bounds(&peer.sessions) {
                self.check.fail(now, invariant, format!("host {host} to {}: {detail}", peer.id));
            }
            // Eight MiB of frames, and the headers of their records.
            if daemon.store.buffered(peer.id.get()) > 9 << 20 {
                self.check.fail(now, "I9 bounds", format!("host {host}: the outbox overflows"));
            }
        }
    }

    pub(crate) fn output(&mut self, host: u8, shown: Time, output: Output) {
        let now = self.now;
        let output = match output {
            Output::Datagram { to, frame, .. } => return self.send(host, to, frame),
            Output::TcpFrame { peer, frame } => {
                let frame = self.spoken(host, frame);
                return self.tcp(host, peer.get(), Pipe::Frames, &frame);
            }
            Output::Pipe { peer, frame } => {
                let frame = self.spoken(host, frame);
                return self.tcp(host, peer.get(), Pipe::Sessions, &frame);
            }
            Output::Session { peer, event } => return self.session(host, peer, event),
            Output::Store { volume, to, ring, frame } => {
                let frame = self.spoken(host, frame);
                self.record(host, to.get(), &frame);
                let by = (host, self.host(host).incarnation);
                self.records.stores(by, &frame);
                self.trace.note(now, host, "stores", (u64::from(to.get()), frame.len() as u64));
                Output::Store { volume, to, ring, frame }
            }
            Output::Mailbox { volume, to, message } => {
                let message = self.spoken(host, message);
                Output::Mailbox { volume, to, message }
            }
            other => other,
        };
        let machine = &mut self.hosts[usize::from(host) - 1];
        let node = machine.node;
        let Some(daemon) = &mut machine.daemon else { return };
        match output {
            Output::Datagram { .. }
            | Output::TcpFrame { .. }
            | Output::Pipe { .. }
            | Output::Session { .. } => {}
            Output::Store { to, ring, frame, .. } => {
                daemon.store.store(shown.micros(), to, ring, &frame);
            }
            Output::Mailbox { to, message, .. } => daemon.store.mailbox(to, &message),
            Output::Volume(_, order) => daemon.store.order(shown.micros(), order),
            Output::Packet(packet) => {
                self.trace.note(now, host, "delivers", (packet.len() as u64, 0));
                // The canary: one packet in three hundred is handed on twice, or not at all.
                let faulty = self.plan.canary && self.rng.chance(3_333);
                let times = if faulty { 2 * (now % 2) } else { 1 };
                for _ in 0..times {
                    self.check.delivered(now, (host, node), &packet, &self.truth);
                }
            }
            Output::Beat(order) => daemon.pulse.order(shown, order),
            Output::Event(event) => {
                match &event {
                    Event::RouteChanged { peer, from, to, .. } => {
                        self.check.changed(now, host, peer.get(), *from, *to);
                    }
                    Event::KeysAgreed { peer, peer_epoch, .. } => {
                        let before = self.agreed.insert((host, peer.get()), *peer_epoch);
                        if before == Some(*peer_epoch) {
                            self.fired.count(Fault::Rekey);
                        }
                    }
                    Event::DrillStarted { .. } => self.fired.count(Fault::Drill),
                    _ => {}
                }
                self.trace.tell(now, host, "event", format!("{event:?}"));
            }
        }
    }

    fn session(&mut self, host: u8, peer: NodeId, event: SessionEvent) {
        let now = self.now;
        if !matches!(event, SessionEvent::Data(..) | SessionEvent::Progress { .. }) {
            self.trace.tell(now, host, "session", format!("{peer} {event:?}"));
        }
        let (truth, node) = (&self.truth, self.hosts[usize::from(host) - 1].node);
        let works = |preference| truth.carries(now, (node, peer.get()), preference);
        let Some(daemon) = &mut self.hosts[usize::from(host) - 1].daemon else { return };
        let ends = (host, peer);
        let talking = &mut self.talking;
        if let Err((invariant, detail)) =
            daemon.talks.hear(ends, event, works, &mut self.rng, talking)
        {
            self.check.fail(now, invariant, detail);
        }
    }

    pub(crate) fn emit(&mut self, flow: usize) {
        let shape = &self.plan.flows[flow];
        let (host, burst, every) = (shape.from, shape.burst, shape.every);
        let next = self.now + every / 2 + self.rng.below(every + 1);
        self.push(next, Ev::Emit { flow });
        let now = self.now;
        let machine = &self.hosts[usize::from(host) - 1];
        if !self.traffic || machine.daemon.is_none() {
            return;
        }
        let paused = machine.paused_until > now;
        for _ in 0..burst {
            if self.host(host).tun.len() >= TUN_MAX {
                return;
            }
            let first = self.check.take_numbers(flow);
            self.host(host).tun.push_back((flow, first));
        }
        if !paused {
            self.wake_soon(host);
        }
    }
}
