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

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use bytes::Bytes;
use failover::{NetworkFact, Output};

use crate::{
    check::Check,
    disk::Disk,
    fault::{Fault, Fired},
    host::{Host, In, node_id, public_keys},
    machines::WATCH_EVERY,
    net::{Net, Pipe},
    nonces::Nonces,
    plan::Plan,
    records::Records,
    rng::Rng,
    store::Role,
    stranger::Stranger,
    talks::Talking,
    trace::Trace,
    truth::Truth,
};

/// The kernel's stamps are believed for waits up to this.
const STAMP_MAX: u64 = 500_000;
/// Turns of one loop in a second: beats, packets and storage never need as many.
const TURNS_MAX: u64 = 20_000;
/// How long a crash waits for a write to be under way.
const CRASH_WAITS: u64 = 1_200_000;

#[derive(Debug)]
pub(crate) enum Ev {
    Turn { host: u8, incarnation: u32 },
    Pulse { host: u8, incarnation: u32 },
    Seat { host: u8, incarnation: u32, role: Role },
    Watch { host: u8, incarnation: u32 },
    Datagram { from: u8, to: u8, bytes: Bytes, stamp: u64 },
    TcpFrame { from: u8, to: u8, pipe: Pipe, incarnations: (u32, u32), bytes: Bytes },
    TcpRetry { from: u8, to: u8, pipe: Pipe },
    Link { host: u8, up: bool },
    Emit { flow: usize },
    Resume { host: u8 },
    Stranger,
    Key { host: u8, peer: u8, wrong: bool },
    Step(usize),
    Tick,
}

/// Kinds of events, for the summary: where the time goes.
pub const KINDS: [&str; 8] =
    ["turn", "beat", "keeper", "writer", "reader", "arrival", "emission", "other"];

impl Ev {
    const fn kind(&self) -> usize {
        match self {
            Self::Turn { .. } => 0,
            Self::Pulse { .. } => 1,
            Self::Seat { role, .. } => 2 + *role as usize,
            Self::Datagram { .. } | Self::TcpFrame { .. } => 5,
            Self::Emit { .. } => 6,
            _ => 7,
        }
    }
}

/// When an event happens, after which others of that moment, and where it is kept: small, because
/// the heap moves it about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Scheduled {
    at: u64,
    order: u64,
    slot: usize,
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    /// Events by slot, and slots that are free.
    waiting: Vec<Option<Ev>>,
    free: Vec<usize>,
    order: u64,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) hosts: Vec<Host>,
    pub(crate) keys: Vec<[u8; 32]>,
    pub(crate) net: Net,
    pub(crate) disk: Disk,
    pub(crate) check: Check,
    pub(crate) truth: Truth,
    pub(crate) trace: Trace,
    pub(crate) fired: Fired,
    pub(crate) traffic: bool,
    pub(crate) stranger: Stranger,
    /// Drills under way at most until then: host, peer.
    pub(crate) nonces: Nonces,
    pub(crate) records: Records,
    pub(crate) talking: Talking,
    /// Records may be missing: storage lies, is copied, or loses a writer.
    pub(crate) may_miss: bool,
    pub(crate) drills: Vec<(u8, u8, u64)>,
    /// The peer's incarnation at the last agreement, to tell a renewal of keys.
    pub(crate) agreed: BTreeMap<(u8, u8), u64>,
    pub(crate) events: u64,
    /// Events by kind, in the order of [`KINDS`].
    pub(crate) kinds: [u64; KINDS.len()],
    /// Balances are looked at after every so many turns.
    pub(crate) stride: u64,
    pub(crate) outputs: Vec<Output>,
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64, stride: u64, aloud: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x51de_9a7b);
        let machines = plan.hosts + u8::from(plan.has_twin());
        let hosts = (1..=machines).map(|id| Host::new(id, &mut rng)).collect();
        let mut world = Self {
            now: 0,
            heap: BinaryHeap::new(),
            waiting: Vec::new(),
            free: Vec::new(),
            order: 0,
            hosts,
            keys: public_keys(plan.hosts),
            net: Net::new(machines, plan.delay),
            disk: Disk::new(
                (plan.hosts, machines),
                plan.data_blocks,
                plan.latency,
                rng.draw(),
                plan.mirror,
            ),
            check: Check::new(&plan.flows),
            truth: Truth::default(),
            trace: Trace::new(aloud),
            fired: Fired::default(),
            traffic: false,
            stranger: Stranger::default(),
            nonces: Nonces::default(),
            records: Records::default(),
            talking: Talking::new(plan.has_twin()),
            may_miss: plan.may_miss(),
            drills: Vec::new(),
            agreed: BTreeMap::new(),
            events: 0,
            kinds: [0; KINDS.len()],
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
            // Nothing breaks any more once all is healed.
            if world.plan.steps[step].0 >= world.plan.heal_at {
                continue;
            }
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
        let slot = self.free.pop().unwrap_or_else(|| {
            self.waiting.push(None);
            self.waiting.len() - 1
        });
        self.waiting[slot] = Some(event);
        self.heap.push(Reverse(Scheduled { at: at.max(self.now), order: self.order, slot }));
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
        let Some(Reverse(Scheduled { at, slot, .. })) = self.heap.pop() else { return false };
        let Some(event) = self.waiting[slot].take() else { return false };
        self.free.push(slot);
        self.now = at;
        self.events += 1;
        self.handle(event);
        true
    }

    fn handle(&mut self, event: Ev) {
        self.kinds[event.kind()] += 1;
        match event {
            Ev::Turn { host, incarnation } => self.turn_due(host, incarnation),
            Ev::Pulse { host, incarnation } => self.pulse_due(host, incarnation),
            Ev::Seat { host, incarnation, role } => self.seat_due(host, incarnation, role),
            Ev::Watch { host, incarnation } => self.watch_due(host, incarnation),
            Ev::Datagram { from, to, bytes, stamp } => self.arrives(from, to, bytes, stamp),
            Ev::TcpFrame { from, to, pipe, incarnations, bytes } => {
                self.tcp_arrives((from, to, pipe), incarnations, bytes);
            }
            Ev::TcpRetry { from, to, pipe } => self.tcp_retry(from, to, pipe),
            Ev::Link { host, up } => {
                let peers = (1..=self.plan.hosts).filter(|p| *p != host);
                for peer in peers.map(node_id).collect::<Vec<_>>() {
                    self.put(host, In::Network(NetworkFact::Link { peer, up }));
                }
            }
            Ev::Emit { flow } => self.emit(flow),
            Ev::Resume { host } => self.resume(host),
            Ev::Stranger => self.stranger_acts(),
            Ev::Key { host, peer, wrong } => self.key(host, peer, wrong),
            Ev::Step(step) => {
                let (at, action) = self.plan.steps[step].clone();
                // Many a crash comes in the middle of a write: that is when it hurts.
                if let crate::plan::Action::Crash { host, .. } = action
                    && step % 4 != 0
                    && self.now < (at + CRASH_WAITS).min(self.plan.heal_at - 100_000)
                    && !self.host(host).is_writing()
                {
                    return self.push(self.now + 61, Ev::Step(step));
                }
                self.act(&action);
            }
            Ev::Tick => {
                self.refresh();
                self.count_turns();
                self.push(self.now + 1_000_000, Ev::Tick);
            }
        }
    }

    /// A loop that has nothing to do sleeps.
    fn count_turns(&mut self) {
        let now = self.now;
        for host in &mut self.hosts {
            let Some(daemon) = &mut host.daemon else { continue };
            let turns = daemon.turns - std::mem::replace(&mut daemon.turns_told, daemon.turns);
            if turns > TURNS_MAX {
                let detail = format!("host {} turned {turns} times in a second", host.id);
                self.check.fail(now, "I9 busy loop", detail);
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
        machine.start(now, keys, self.plan.rekey, disk, &mut self.rng);
        self.fired.count(Fault::WallClock);
        let incarnation = machine.incarnation;
        self.trace.tell(now, host, "starts", format!("incarnation {incarnation}"));
        self.wake(host, now);
        self.wake_machines(host);
        self.push(now + WATCH_EVERY, Ev::Watch { host, incarnation });
        let node = self.host(host).node;
        self.truth.restart(now, node);
        self.talking.restarted(now, node);
    }

    /// How many machines there are, a second daemon's included.
    pub(crate) fn machines(&self) -> u8 {
        u8::try_from(self.hosts.len()).unwrap_or(u8::MAX)
    }

    pub(crate) fn crash(&mut self, host: u8) {
        let now = self.now;
        let machine = &mut self.hosts[usize::from(host) - 1];
        let Some(mut daemon) = machine.daemon.take() else { return };
        machine.paused_until = 0;
        machine.thaw();
        machine.socket.clear();
        machine.tun.clear();
        for seat in &mut daemon.store.seats {
            if let Some(pending) = seat.pending.take() {
                self.disk.abandon(now, pending, &mut self.rng, &mut self.fired);
            }
        }
        self.net.reset(host);
        let node = self.host(host).node;
        if node == host {
            self.check.restarted(host);
        } else {
            self.check.reincarnated(node);
        }
        self.drills.retain(|d| d.0 != host);
        self.talking.restarted(now, node);
        self.truth.restart(now, node);
    }

    fn resume(&mut self, host: u8) {
        let machine = self.host(host);
        let frozen = machine.frozen > 0;
        machine.thaw();
        if frozen {
            let now = self.now;
            self.truth.thaw(now, host);
        }
        let machine = self.host(host);
        if machine.daemon.is_none() {
            return;
        }
        let socket = std::mem::take(&mut machine.socket);
        self.trace.tell(self.now, host, "resumes", format!("{} datagrams wait", socket.len()));
        for (stamp, from, bytes) in socket {
            let kept = !frozen && self.now - stamp <= STAMP_MAX;
            let stamp = if kept { stamp } else { self.now };
            self.arrives(from, host, bytes, stamp);
        }
        self.wake_soon(host);
        let node = self.host(host).node;
        self.truth.restart(self.now, node);
    }
}
