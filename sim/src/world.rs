//! The world: one heap of events, virtual time, and what each event does.
//!
//! ```text
//!   turn of a node   beat of a pulse   look of a volume machine   arrival   emission   step
//!        `----------------`---------------- heap -----------------'---------'-----------'
//! ```
//!
//! Every timer is one field (when it is due) and any number of events in the heap; an event whose
//! time is not the field's is void. Nothing here decides anything about packets: the core does, the
//! world only carries, late and damaged.

use std::{cmp::Reverse, collections::BinaryHeap};

use bytes::Bytes;
use failover::{
    Event, Input, NetworkFact, Output, Time, VolumeId, finish, turn, wire::FIRST_BYTE_BEAT,
};

use crate::{
    check::Check,
    disk::Disk,
    fault::{Fault, Fired},
    host::{Hands, Host, In, SLEEP_MAX, SOCKET_MAX, TUN_MAX, endpoint, node_id, public_keys},
    net::{Net, Retry, Tcp},
    plan::Plan,
    rng::Rng,
    store::{FromStore, Role, Want},
    trace::Trace,
    truth::Truth,
    workload,
};

/// The kernel's stamps are believed for waits up to this.
const STAMP_MAX: u64 = 500_000;
/// Packets read from the interface in one turn.
const PACKETS_PER_TURN: usize = 64;
/// How long a crash waits for a write to be under way.
const CRASH_WAITS: u64 = 300_000;
/// How often operations that do not return are looked for.
const WATCH_EVERY: u64 = 250_000;
const VOLUME: VolumeId = VolumeId(0);

#[derive(Debug)]
pub(crate) enum Ev {
    Turn { host: u8, incarnation: u32 },
    Pulse { host: u8, incarnation: u32 },
    Seat { host: u8, incarnation: u32, role: Role },
    Watch { host: u8, incarnation: u32 },
    Datagram { from: u8, to: u8, bytes: Bytes, stamp: u64 },
    TcpFrame { to: u8, incarnation: u32, bytes: Bytes },
    TcpRetry { from: u8, to: u8 },
    Link { host: u8, up: bool },
    Emit { flow: usize },
    Resume { host: u8 },
    Step(usize),
    Tick,
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    event: Ev,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) hosts: Vec<Host>,
    keys: Vec<[u8; 32]>,
    pub(crate) net: Net,
    pub(crate) disk: Disk,
    pub(crate) check: Check,
    pub(crate) truth: Truth,
    pub(crate) trace: Trace,
    pub(crate) fired: Fired,
    pub(crate) traffic: bool,
    pub(crate) events: u64,
    /// Balances are looked at after every so many turns.
    stride: u64,
    outputs: Vec<Output>,
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64, stride: u64, aloud: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x51de_9a7b);
        let hosts = (1..=plan.hosts).map(|id| Host::new(id, &mut rng)).collect();
        let mut world = Self {
            now: 0,
            heap: BinaryHeap::new(),
            order: 0,
            hosts,
            keys: public_keys(plan.hosts),
            net: Net::new(plan.hosts, plan.delay),
            disk: Disk::new(plan.hosts, plan.data_blocks, plan.latency, rng.draw()),
            check: Check::new(&plan.flows),
            truth: Truth::default(),
            trace: Trace::new(aloud),
            fired: Fired::default(),
            traffic: false,
            events: 0,
            stride,
            outputs: Vec::new(),
            rng,
            plan,
        };
        for flow in 0..world.plan.flows.len() {
            let at = world.rng.below(world.plan.flows[flow].every);
            world.push(at, Ev::Emit { flow });
        }
        for step in 0..world.plan.steps.len() {
            world.push(world.plan.steps[step].0, Ev::Step(step));
        }
        let late = |plan: &Plan, host| {
            let starts = |(_, a): &&(u64, crate::plan::Action)| matches!(a, crate::plan::Action::Start { host: h } if *h == host);
            let first = |(_, a): &&(u64, crate::plan::Action)| matches!(a, crate::plan::Action::Crash { host: h, .. } if *h == host);
            let started = plan.steps.iter().find(starts).map(|s| s.0);
            let crashed = plan.steps.iter().find(first).map(|s| s.0);
            started.is_some_and(|s| crashed.is_none_or(|c| s < c))
        };
        for host in 1..=world.plan.hosts {
            if !late(&world.plan, host) {
                world.start(host);
            }
        }
        world.push(0, Ev::Tick);
        world.refresh();
        world
    }

    pub(crate) fn push(&mut self, at: u64, event: Ev) {
        self.order += 1;
        self.heap.push(Reverse(Scheduled { at: at.max(self.now), order: self.order, event }));
    }

    pub(crate) fn host(&mut self, host: u8) -> &mut Host {
        &mut self.hosts[usize::from(host) - 1]
    }

    /// The next event; false when time is up or an invariant broke.
    pub(crate) fn advance(&mut self, until: u64) -> bool {
        if self.check.violation.is_some() {
            return false;
        }
        let Some(Reverse(next)) = self.heap.peek() else { return false };
        if next.at > until {
            self.now = until;
            return false;
        }
        let Some(Reverse(Scheduled { at, event, .. })) = self.heap.pop() else { return false };
        self.now = at;
        self.events += 1;
        self.handle(event);
        true
    }

    fn handle(&mut self, event: Ev) {
        match event {
            Ev::Turn { host, incarnation } => self.turn_due(host, incarnation),
            Ev::Pulse { host, incarnation } => self.pulse_due(host, incarnation),
            Ev::Seat { host, incarnation, role } => self.seat_due(host, incarnation, role),
            Ev::Watch { host, incarnation } => self.watch_due(host, incarnation),
            Ev::Datagram { from, to, bytes, stamp } => self.arrives(from, to, bytes, stamp),
            Ev::TcpFrame { to, incarnation, bytes } => {
                if self.host(to).incarnation == incarnation {
                    self.put(to, In::Tcp(bytes));
                }
            }
            Ev::TcpRetry { from, to } => self.tcp_retry(from, to),
            Ev::Link { host, up } => {
                let peers = (1..=self.plan.hosts).filter(|p| *p != host);
                for peer in peers.map(node_id).collect::<Vec<_>>() {
                    self.put(host, In::Network(NetworkFact::Link { peer, up }));
                }
            }
            Ev::Emit { flow } => self.emit(flow),
            Ev::Resume { host } => self.resume(host),
            Ev::Step(step) => {
                let (at, action) = self.plan.steps[step].clone();
                // Many a crash comes in the middle of a write: that is when it hurts.
                if let crate::plan::Action::Crash { host, .. } = action
                    && step % 2 == 0
                    && self.now < at + CRASH_WAITS
                    && !self.host(host).is_writing()
                {
                    return self.push(self.now + 137, Ev::Step(step));
                }
                self.act(&action);
            }
            Ev::Tick => {
                self.refresh();
                self.push(self.now + 1_000_000, Ev::Tick);
            }
        }
    }

    // --- starting and stopping -----------------------------------------------------------------

    pub(crate) fn start(&mut self, host: u8) {
        let now = self.now;
        let (keys, disk) = (&self.keys, &self.disk);
        let machine = &mut self.hosts[usize::from(host) - 1];
        if machine.daemon.is_some() {
            return;
        }
        machine.start(now, keys, disk, &mut self.rng);
        let incarnation = machine.incarnation;
        self.trace.tell(now, host, "starts", format!("incarnation {incarnation}"));
        self.wake(host, now);
        self.wake_machines(host);
        self.push(now + WATCH_EVERY, Ev::Watch { host, incarnation });
        self.truth.restart(now, host);
    }

    pub(crate) fn crash(&mut self, host: u8) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        let Some(mut daemon) = machine.daemon.take() else { return };
        machine.paused_until = 0;
        machine.socket.clear();
        machine.tun.clear();
        for seat in &mut daemon.store.seats {
            if let Some(pending) = seat.pending.take() {
                self.disk.abandon(now, pending, &mut self.rng, &mut self.fired);
            }
        }
        self.net.reset(host);
        self.check.restarted(host);
        self.truth.restart(now, host);
    }

    fn resume(&mut self, host: u8) {
        let machine = self.host(host);
        if machine.daemon.is_none() {
            return;
        }
        let socket = std::mem::take(&mut machine.socket);
        self.trace.tell(self.now, host, "resumes", format!("{} datagrams wait", socket.len()));
        for (stamp, from, bytes) in socket {
            let stamp = if self.now - stamp <= STAMP_MAX { stamp } else { self.now };
            self.arrives(from, host, bytes, stamp);
        }
        self.wake_soon(host);
        self.truth.restart(self.now, host);
    }

    // --- the turn loop -------------------------------------------------------------------------

    /// Gives the loop something; it wakes a little later.
    fn put(&mut self, host: u8, what: In) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        let Some(daemon) = &mut machine.daemon else { return };
        daemon.inbox.push_back(what);
        if daemon.turn_at <= now + 5 {
            return;
        }
        self.wake_soon(host);
    }

    fn wake_soon(&mut self, host: u8) {
        let (chance, most) = self.host(host).turn_late;
        let mut at = self.now + self.rng.range(3, 40);
        if self.rng.chance(chance) {
            at += self.rng.below(most + 1);
            self.fired.count(Fault::LateLoop);
        }
        self.wake(host, at);
    }

    fn wake(&mut self, host: u8, at: u64) {
        let machine = self.host(host);
        let incarnation = machine.incarnation;
        if let Some(daemon) = &mut machine.daemon
            && at < daemon.turn_at
        {
            daemon.turn_at = at;
            self.push(at, Ev::Turn { host, incarnation });
        }
    }

    fn turn_due(&mut self, host: u8, incarnation: u32) {
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
                In::Tcp(bytes) => turn(node, shown, Input::TcpFrame(&bytes), &mut hands),
                In::Heard(heard) => turn(node, shown, Input::Beat(heard), &mut hands),
                In::Network(fact) => turn(node, shown, Input::Network(fact), &mut hands),
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
        let more = !machine.tun.is_empty();
        let next = finish(node, shown, &mut hands);
        daemon.turned = shown.micros();
        daemon.turns += 1;
        let looks = daemon.turns % self.stride == 0;
        daemon.turn_at = u64::MAX;
        let next = clock.when(now, next.micros()).min(now + SLEEP_MAX);
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
        for peer in daemon.node.status(Time(machine.clock.shows(now))).peers {
            self.check.status(now, host, &peer, &self.truth);
            if daemon.store.buffered(peer.id.get()) > 8 << 20 {
                self.check.fail(now, "I9 bounds", format!("host {host}: the outbox overflows"));
            }
        }
    }

    fn output(&mut self, host: u8, shown: Time, output: Output) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        let Some(daemon) = &mut machine.daemon else { return };
        match output {
            Output::Datagram { to, frame, .. } => self.send(host, to, frame),
            Output::TcpFrame { peer, frame } => self.tcp(host, peer.get(), &frame),
            Output::Store { to, ring, frame, .. } => {
                self.trace.note(now, host, "stores", (u64::from(to.get()), frame.len() as u64));
                daemon.store.store(shown.micros(), to, ring, &frame);
            }
            Output::Mailbox { to, message, .. } => daemon.store.mailbox(to, &message),
            Output::Volume(_, order) => daemon.store.order(shown.micros(), order),
            Output::Packet(packet) => {
                self.trace.note(now, host, "delivers", (packet.len() as u64, 0));
                self.check.delivered(now, host, &packet, &self.truth);
            }
            Output::Beat(order) => daemon.pulse.order(shown, order),
            Output::Event(event) => {
                if let Event::RouteChanged { peer, from, to, .. } = &event {
                    self.check.changed(now, host, peer.get(), *from, *to);
                }
                self.trace.tell(now, host, "event", format!("{event:?}"));
            }
        }
    }

    // --- the network ---------------------------------------------------------------------------

    fn send(&mut self, host: u8, to: std::net::SocketAddr, frame: Bytes) {
        let std::net::IpAddr::V4(address) = to.ip() else { return };
        let to = address.octets()[3];
        let now = self.now;
        self.trace.note(now, host, "sends", (u64::from(to), frame.len() as u64));
        if !self.hosts[usize::from(host) - 1].carrier {
            self.fired.count(Fault::CarrierLost);
            if self.rng.chance(50_000) {
                let (peer, detail) = (node_id(to), "Network is down".to_owned());
                self.put(host, In::Network(NetworkFact::SendError { peer, detail }));
            }
            return;
        }
        let mut arrivals = Vec::new();
        let put = |at, bytes| arrivals.push((at, bytes));
        self.net.send(now, (host, to), frame, &mut self.rng, &mut self.fired, put);
        for (at, bytes) in arrivals {
            self.push(at, Ev::Datagram { from: host, to, bytes, stamp: at });
        }
    }

    fn arrives(&mut self, from: u8, to: u8, bytes: Bytes, stamp: u64) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(to) - 1];
        let Some(daemon) = &mut machine.daemon else { return };
        if machine.paused_until > now {
            if machine.socket.len() < SOCKET_MAX {
                machine.socket.push_back((stamp, from, bytes));
            }
            return;
        }
        if bytes.first() != Some(&FIRST_BYTE_BEAT) {
            return self.put(to, In::Datagram { from, bytes });
        }
        let (chance, most) = machine.beat_late;
        if stamp == now && chance > 0 && self.rng.chance(chance) {
            self.fired.count(Fault::LateBeat);
            let at = now + 1 + self.rng.below(most + 1);
            return self.push(at, Ev::Datagram { from, to, bytes, stamp });
        }
        let at = Time(machine.clock.shows(stamp));
        if let Some(heard) = daemon.pulse.open(at, &bytes) {
            self.put(to, In::Heard(heard));
        }
    }

    fn tcp(&mut self, from: u8, to: u8, frame: &Bytes) {
        let now = self.now;
        match self.net.stream(now, (from, to), frame, &mut self.rng, &mut self.fired) {
            Tcp::Arrives(at) => {
                let incarnation = self.host(to).incarnation;
                self.push(at, Ev::TcpFrame { to, incarnation, bytes: frame.clone() });
            }
            Tcp::Waits(0) => {}
            Tcp::Waits(at) => self.push(at, Ev::TcpRetry { from, to }),
            Tcp::Refused => {
                self.put(from, In::Network(NetworkFact::TcpRefused { peer: node_id(to) }));
            }
        }
    }

    fn tcp_retry(&mut self, from: u8, to: u8) {
        match self.net.retry(self.now, (from, to), &mut self.rng, &mut self.fired) {
            Retry::Flows(frames) => {
                let incarnation = self.host(to).incarnation;
                for (at, bytes) in frames {
                    self.push(at, Ev::TcpFrame { to, incarnation, bytes });
                }
            }
            Retry::Later(at) => self.push(at, Ev::TcpRetry { from, to }),
            Retry::Broke => {
                self.put(from, In::Network(NetworkFact::TcpRefused { peer: node_id(to) }));
            }
        }
    }

    // --- the beat thread -----------------------------------------------------------------------

    fn beat_soon(&mut self, host: u8) {
        let now = self.now;
        let machine = self.host(host);
        let (clock, incarnation) = (machine.clock, machine.incarnation);
        let Some(daemon) = &mut machine.daemon else { return };
        let next = daemon.pulse.next();
        if next == Time::NEVER {
            return;
        }
        let at = clock.when(now, next.micros()).max(now + 1);
        // A sleeping thread is awake some microseconds after its time.
        if at + 60 < daemon.pulse_at {
            let (chance, most) = machine.beat_late;
            let mut at = at + self.rng.below(60);
            if chance > 0 && self.rng.chance(chance) {
                self.fired.count(Fault::LateBeat);
                at += self.rng.below(most + 1);
            }
            if let Some(daemon) = &mut self.host(host).daemon {
                daemon.pulse_at = at;
            }
            self.push(at, Ev::Pulse { host, incarnation });
        }
    }

    fn pulse_due(&mut self, host: u8, incarnation: u32) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        if machine.incarnation != incarnation {
            return;
        }
        let shown = machine.clock.shows(now);
        let age = machine.loop_age(shown);
        let Some(daemon) = machine.daemon.as_mut().filter(|d| d.pulse_at == now) else { return };
        if machine.paused_until > now {
            daemon.pulse_at = machine.paused_until;
            let at = machine.paused_until;
            return self.push(at, Ev::Pulse { host, incarnation });
        }
        daemon.pulse_at = u64::MAX;
        let mut beats = Vec::new();
        daemon.pulse.send(Time(shown), age, &mut |_, to, frame| beats.push((to, frame)));
        for (to, frame) in beats {
            self.send(host, to, frame);
        }
        self.beat_soon(host);
    }

    // --- the machines of volumes ---------------------------------------------------------------

    fn wake_machines(&mut self, host: u8) {
        let machine = self.host(host);
        let incarnation = machine.incarnation;
        let Some(daemon) = &mut machine.daemon else { return };
        let woken = std::mem::take(&mut daemon.store.woken);
        for role in woken {
            let at = self.now + self.rng.range(3, 30);
            let Some(daemon) = &mut self.host(host).daemon else { return };
            let seat = &mut daemon.store.seats[role as usize];
            if seat.pending.is_none()
                && seat.ended.is_none()
                && !seat.stopped
                && (seat.due > at || seat.due <= self.now)
            {
                self.set_due(host, incarnation, role, at);
            }
        }
    }

    fn set_due(&mut self, host: u8, incarnation: u32, role: Role, at: u64) {
        if let Some(daemon) = &mut self.host(host).daemon {
            daemon.store.seats[role as usize].due = at;
            self.push(at, Ev::Seat { host, incarnation, role });
        }
    }

    fn seat_due(&mut self, host: u8, incarnation: u32, role: Role) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        if machine.incarnation != incarnation {
            return;
        }
        let shown = machine.clock.shows(now);
        let paused_until = machine.paused_until;
        let Some(daemon) = &mut machine.daemon else { return };
        let seat = &mut daemon.store.seats[role as usize];
        if seat.due != now {
            return;
        }
        if let Some(pending) = seat.pending.take() {
            let ends_at = self.disk.ends_at(&pending, &mut self.fired);
            if ends_at > now {
                seat.pending = Some(pending);
                return self.set_due(host, incarnation, role, ends_at);
            }
            let result = self.disk.end(now, pending, &mut self.rng, &mut self.fired);
            if paused_until > now {
                // The medium does its part while the process sleeps, which learns of it later.
                seat.ended = Some(result);
                return self.set_due(host, incarnation, role, paused_until);
            }
            daemon.store.complete(role, shown, result);
        } else if let Some(result) = seat.ended.take_if(|_| paused_until <= now) {
            daemon.store.complete(role, shown, result);
        } else if paused_until > now {
            return self.set_due(host, incarnation, role, paused_until);
        }
        self.look_at(host, role);
    }

    /// Asks a machine what it wants, and begins it.
    fn look_at(&mut self, host: u8, role: Role) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        let (clock, incarnation) = (machine.clock, machine.incarnation);
        let shown = clock.shows(now);
        let Some(daemon) = &mut machine.daemon else { return };
        // A descriptor that must be opened anew may fail an operation at once; not for ever.
        for _ in 0..8 {
            match daemon.store.look(role, shown) {
                Want::Do(op) => {
                    let gone = self.disk.view(host).gone;
                    if let Err(fault) = daemon.store.reopen(role, &op, gone) {
                        daemon.store.complete(role, shown, Err(fault));
                        continue;
                    }
                    let (rng, fired) = (&mut self.rng, &mut self.fired);
                    let pending = self.disk.begin(now, host, op, rng, fired);
                    let at = pending.done_at;
                    daemon.store.seats[role as usize].pending = Some(pending);
                    self.set_due(host, incarnation, role, at);
                }
                Want::At(at) => {
                    let at = clock.when(now, at).max(now + 1);
                    self.set_due(host, incarnation, role, at);
                }
                Want::Nothing => {}
            }
            break;
        }
        self.after_machines(host);
    }

    fn after_machines(&mut self, host: u8) {
        let now = self.now;
        let Some(daemon) = &mut self.host(host).daemon else { return };
        let news = !daemon.store.out.is_empty();
        if news && daemon.turn_at > now + 5 {
            self.wake_soon(host);
        }
        self.wake_machines(host);
    }

    fn watch_due(&mut self, host: u8, incarnation: u32) {
        let now = self.now;
        let machine = self.host(host);
        if machine.incarnation != incarnation {
            return;
        }
        let shown = machine.clock.shows(now);
        if machine.paused_until <= now
            && let Some(daemon) = &mut machine.daemon
        {
            daemon.store.watch(shown);
            self.after_machines(host);
        }
        self.push(now + WATCH_EVERY, Ev::Watch { host, incarnation });
    }

    // --- applications --------------------------------------------------------------------------

    fn emit(&mut self, flow: usize) {
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
