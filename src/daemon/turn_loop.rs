//! The loop that feeds the core and does what it says. The loop knows descriptors, not packets.
//!
//! ```text
//!   sleep ──> read a bounded batch of every ready plane, one `turn` per input
//!     ^                                   │
//!     │                                `finish`
//!     │                                   │
//!     └── one batched call per plane <── outputs
//! ```
//!
//! Nothing here waits: sockets and devices do not block, volumes and beats have threads of their
//! own, hooks and netlink too.
//!
//! Awkward cases:
//! * Readiness is told once (edge-triggered): a plane that stopped at its bound stays marked ready
//!   and the loop does not sleep.
//! * All that waited is handed over before anybody is judged (`finish`), so that a loop that was
//!   off the processor for a while does not take its own absence for a peer's.
//! * The loop runs at the best nice value, never under SCHED_FIFO: its work is unbounded. It turns
//!   at least every 50 ms, so that the age beats tell of it means something.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use failover::{
    Event, Input, NetworkFact, Node, Output, Time, VolumeFact, VolumeId, World,
    wire::FIRST_BYTE_BEAT,
};
use mio::{Events, Interest, Poll, Registry, Token, unix::SourceFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::{
    RequestQueue,
    asks::Asks,
    events::{self, RecentEvents},
    hooks::Hooks,
    replicas::Replicas,
    request::Request,
    settings::Identity,
};
use crate::{
    config::Config,
    planes::{
        beat::{BeatPlane, FromBeat},
        channel::ChannelDevice,
        netlink::{FromNetlink, NetlinkPlane},
        pipe::Pipes,
        queue::Bell,
        store::{StorePlan, StorePlane},
        store_queue::{FromStore, StoreQueue},
        tcp::Tcp,
        tun::Tun,
        udp::{Datagram, Udp},
    },
    sessions::hub::Counter,
    sys::{clock, sched},
};

const DEVICE: Token = Token(0);
const UDP: Token = Token(1);
pub(super) const BELL: Token = Token(2);
const TIMER: Token = Token(3);
/// The TCP plane has the tokens from here on.
pub(super) const TCP_TOKENS: usize = 16;
/// Pipes of sessions those from here on.
pub(super) const PIPE_TOKENS: usize = 1024;

/// Packets read from the interface per turn: 64 super-packets are 4 MiB.
const PACKETS_PER_TURN: usize = 64;
/// Receive calls per turn, of up to 16 merged messages.
const UDP_ROUNDS: usize = 4;
const SLEEP_MAX: Duration = Duration::from_millis(50);
const VOLUMES_END_WITHIN: Duration = Duration::from_secs(1);
const THREADS_END_WITHIN: Duration = Duration::from_millis(500);
/// How often path MTUs are asked for without a reason.
const MEASURE_EVERY: Duration = Duration::from_secs(30);
/// Routes change in bursts.
const MEASURE_AFTER_CHANGE: Duration = Duration::from_millis(100);

/// Where packets of applications come from.
#[derive(Debug)]
pub(super) enum Device {
    None,
    Tun(Box<Tun>),
    Channel { device: ChannelDevice, outgoing: Vec<bytes::Bytes> },
}

/// Everything the loop drives.
#[derive(Debug)]
pub(super) struct Planes {
    pub(super) device: Device,
    pub(super) udp: Option<Udp>,
    pub(super) tcp: Option<Tcp>,
    pub(super) pipes: Option<Pipes>,
    pub(super) beat: Option<BeatPlane>,
    pub(super) netlink: Option<NetlinkPlane>,
    pub(super) store: Option<StorePlane>,
    pub(super) store_queue: Arc<StoreQueue>,
}

/// What the core asks of its surroundings: outputs are collected, and acted upon after the turn.
#[derive(Debug, Default)]
pub(super) struct Hands {
    outputs: Vec<Output>,
}

impl World for Hands {
    fn random(&mut self, buffer: &mut [u8]) {
        // The source answered when the epoch was drawn, and Linux's never fails after that;
        // going on without it would mean guessable keys.
        getrandom::fill(buffer).expect("the random source answered at the start");
    }

    fn put(&mut self, output: Output) {
        self.outputs.push(output);
    }
}

/// Boxes that queues are emptied into, kept for their memory.
#[derive(Debug, Default)]
pub(super) struct Boxes {
    beats: VecDeque<FromBeat>,
    links: VecDeque<FromNetlink>,
    stored: VecDeque<FromStore>,
    pub(super) requests: VecDeque<Request>,
    tcp_tokens: Vec<(Token, bool)>,
    events: Vec<Event>,
}

/// What a loop is started with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) poll: Poll,
    pub(super) bell: Bell,
    pub(super) node: Node,
    pub(super) hands: Hands,
    pub(super) planes: Planes,
    pub(super) config: Config,
    pub(super) identity: Identity,
    pub(super) plan: Option<StorePlan>,
    pub(super) requests: Arc<RequestQueue>,
    /// Where applications' sessions are served.
    pub(super) counter: Counter,
    pub(super) progress: Arc<AtomicU64>,
    pub(super) replicas: Replicas,
    pub(super) hooks: Hooks,
    pub(super) recent: RecentEvents,
    pub(super) mtu: u16,
    pub(super) warnings: Vec<String>,
}

#[derive(Debug)]
pub(super) struct TurnLoop {
    pub(super) parts: Parts,
    pub(super) boxes: Boxes,
    pub(super) asks: Asks,
    timer: OwnedFd,
    armed: Time,
    pub(super) started: Time,
    device_ready: bool,
    udp_ready: bool,
    tcp_unread: bool,
    pub(super) device_trouble: Option<String>,
    pub(super) measure_at: Time,
    pub(super) stop_at: Option<Time>,
}

impl TurnLoop {
    /// Registers what the loop listens to.
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let registry = parts.poll.registry();
        let listen = |registry: &Registry, fd: i32, token| {
            registry.register(&mut SourceFd(&fd), token, Interest::READABLE)
        };
        listen(registry, timer.as_raw_fd(), TIMER)?;
        if let Device::Tun(tun) = &parts.planes.device {
            listen(registry, tun.fd(), DEVICE)?;
        }
        if let Some(udp) = &parts.planes.udp {
            listen(registry, udp.fd().as_raw_fd(), UDP)?;
        }
        Ok(Self {
            boxes: Boxes::default(),
            asks: Asks::default(),
            timer,
            armed: Time::ZERO,
            started: clock::now(),
            device_ready: true,
            udp_ready: true,
            tcp_unread: false,
            device_trouble: None,
            measure_at: Time::ZERO,
            stop_at: None,
            parts,
        })
    }

    /// Turns until told to stop, then winds everything up.
    pub(super) fn run(mut self) {
        let nice = sched::nicest();
        tracing::debug!(nice, "turn loop runs");
        let mut events = Events::with_capacity(256);
        loop {
            if self.stop_at.is_some_and(|at| at <= clock::now()) {
                break;
            }
            self.parts.bell.silence();
            let mut busy = self.read();
            let next = failover::finish(&mut self.parts.node, clock::now(), &mut self.parts.hands);
            busy |= self.act();
            let next = next.min(self.upkeep()).min(self.parts.counter.next());
            self.parts.progress.store(clock::now().micros(), Ordering::Release);
            if let Err(error) = self.sleep(next, busy, &mut events) {
                tracing::error!(%error, "the loop cannot wait for events");
                break;
            }
        }
        self.end();
    }

    fn sleep(&mut self, next: Time, busy: bool, events: &mut Events) -> io::Result<()> {
        let now = clock::now();
        let until = next.min(now + SLEEP_MAX).min(self.stop_at.unwrap_or(Time::NEVER));
        let timeout = if busy || until <= now {
            Some(Duration::ZERO)
        } else {
            // An earlier alarm wakes early, which is never wrong and saves a system call.
            if until < self.armed || self.armed <= now {
                let alarm = Itimerspec {
                    it_interval: clock::timespec(0),
                    it_value: clock::timespec(until.micros()),
                };
                timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &alarm)?;
                self.armed = until;
            }
            None
        };
        match self.parts.poll.poll(events, timeout) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(e) => return Err(e),
        }
        for event in events.iter() {
            match event.token() {
                DEVICE => self.device_ready = true,
                UDP => {
                    self.udp_ready = true;
                    if let (true, Some(udp)) = (event.is_error(), &mut self.parts.planes.udp) {
                        udp.complaints();
                    }
                }
                BELL | TIMER => {}
                token => self.boxes.tcp_tokens.push((token, event.is_read_closed())),
            }
        }
        Ok(())
    }

    /// Hands over what waits; true when a plane stopped at its bound.
    ///
    /// The clock is read after a plane gave what came from peers: whoever was stopped in between
    /// would take what came meanwhile for young. For our own packets it is read before.
    fn read(&mut self) -> bool {
        self.read_beats();
        self.read_links();
        self.read_network();
        self.read_storage();
        self.read_device();
        self.read_sessions();
        self.read_requests(clock::now());
        self.device_ready || self.udp_ready || self.tcp_unread
    }

    pub(super) fn turn(&mut self, now: Time, input: Input<'_>) {
        failover::turn(&mut self.parts.node, now, input, &mut self.parts.hands);
    }

    fn read_beats(&mut self) {
        let Some(beat) = &self.parts.planes.beat else { return };
        let mut beats = std::mem::take(&mut self.boxes.beats);
        beat.take(&mut beats);
        let now = clock::now();
        for item in beats.drain(..) {
            match item {
                FromBeat::Heard(heard) => self.turn(now, Input::Beat(heard)),
                FromBeat::Datagram { from, bytes } => {
                    self.turn(now, Input::Datagram { from, bytes: &bytes });
                }
            }
        }
        self.boxes.beats = beats;
    }

    fn read_links(&mut self) {
        let Some(netlink) = &self.parts.planes.netlink else { return };
        let mut links = std::mem::take(&mut self.boxes.links);
        netlink.take(&mut links);
        let now = clock::now();
        for item in links.drain(..) {
            match item {
                FromNetlink::Fact(fact) => self.turn(now, Input::Network(fact)),
                FromNetlink::RoutesChanged => {
                    self.measure_at = self.measure_at.min(now + MEASURE_AFTER_CHANGE);
                }
            }
        }
        self.boxes.links = links;
    }

    fn read_network(&mut self) {
        let Parts { node, hands, planes: Planes { udp, tcp, pipes, beat, .. }, .. } =
            &mut self.parts;
        if let (Some(udp), true) = (udp.as_mut(), self.udp_ready) {
            self.udp_ready = udp.receive(UDP_ROUNDS, &mut |now, from, bytes| match beat {
                Some(beat) if bytes.first() == Some(&FIRST_BYTE_BEAT) => beat.datagram(now, bytes),
                _ => failover::turn(node, now, Input::Datagram { from, bytes }, hands),
            });
        } else {
            self.udp_ready = false;
        }
        if let Some(tcp) = tcp {
            let mut take = |frame: Vec<u8>| {
                failover::turn(node, clock::now(), Input::TcpFrame(frame), hands);
            };
            let now = clock::now();
            if self.tcp_unread {
                self.tcp_unread = tcp.read_on(now, &mut take);
            }
            for (token, closed) in self.boxes.tcp_tokens.drain(..) {
                if let Some(pipes) = pipes.as_mut().filter(|p| p.owns(token)) {
                    pipes.ready(now, token);
                } else if tcp.owns(token) {
                    tcp.ready(now, token, closed, &mut take);
                }
            }
            self.tcp_unread |= tcp.has_unread();
        }
        let mut facts: Vec<NetworkFact> = Vec::new();
        if let Some(udp) = udp {
            facts.extend(udp.facts());
        }
        if let Some(tcp) = tcp {
            facts.extend(tcp.facts());
        }
        if let Some(pipes) = pipes {
            facts.extend(pipes.facts());
        }
        let now = clock::now();
        let resized = facts.iter().any(|f| matches!(f, NetworkFact::DatagramSize { .. }));
        for fact in facts {
            self.turn(now, Input::Network(fact));
        }
        if resized {
            self.fit_mtu();
        }
    }

    fn read_storage(&mut self) {
        let mut stored = std::mem::take(&mut self.boxes.stored);
        self.parts.planes.store_queue.take(&mut stored);
        let now = clock::now();
        for item in stored.drain(..) {
            match item {
                FromStore::Frames { from, frames } => {
                    for frame in frames {
                        self.turn(now, Input::Stored { from, bytes: &frame });
                    }
                }
                FromStore::Mailbox { from, bytes } => {
                    self.turn(now, Input::Mailbox { from, bytes: &bytes });
                }
                FromStore::Fact(volume, fact) => self.turn(now, Input::Volume(volume, fact)),
            }
        }
        self.boxes.stored = stored;
        let refusals: Vec<(VolumeId, VolumeFact)> =
            self.parts.planes.store.iter_mut().flat_map(StorePlane::refusals).collect();
        for (volume, fact) in refusals {
            self.turn(now, Input::Volume(volume, fact));
        }
    }

    fn read_device(&mut self) {
        let Parts { node, hands, planes, .. } = &mut self.parts;
        let now = clock::now();
        let mut take = |packet: &[u8]| failover::turn(node, now, Input::Packet(packet), hands);
        self.device_ready = match &mut planes.device {
            Device::None => false,
            // Its bell rings for every packet, so it is simply looked at.
            Device::Channel { device, .. } => device.read(PACKETS_PER_TURN, &mut take),
            Device::Tun(tun) if self.device_ready => match tun.read(PACKETS_PER_TURN, &mut take) {
                Ok(more) => more,
                Err(error) => {
                    if self.device_trouble.is_none() {
                        tracing::warn!(%error, "cannot read the virtual interface");
                        self.device_trouble = Some(format!("the virtual interface: {error}"));
                    }
                    false
                }
            },
            Device::Tun(_) => false,
        };
    }

    fn read_sessions(&mut self) {
        let Parts { counter, node, hands, .. } = &mut self.parts;
        counter.read(clock::now(), node, hands);
    }

    /// Does what the core said; true when that gave new facts to hand over.
    fn act(&mut self) -> bool {
        let now = clock::now();
        let mut outputs = std::mem::take(&mut self.parts.hands.outputs);
        let planes = &mut self.parts.planes;
        for output in outputs.drain(..) {
            match output {
                Output::Datagram { peer, to, frame } => {
                    if let Some(udp) = &mut planes.udp {
                        udp.put(Datagram { peer, to, frame });
                    }
                }
                Output::TcpFrame { peer, frame } => {
                    if let Some(tcp) = &mut planes.tcp {
                        tcp.put(now, peer, &frame);
                    }
                }
                Output::Store { volume, to, ring, frame } => {
                    if let Some(store) = &mut planes.store {
                        store.put(volume, to, ring, &frame);
                    }
                }
                Output::Mailbox { volume, to, message } => {
                    if let Some(store) = &mut planes.store {
                        store.mailbox(volume, to, &message);
                    }
                }
                Output::Volume(volume, order) => {
                    if let Some(store) = &mut planes.store {
                        store.order(volume, order);
                    }
                }
                Output::Packet(packet) => match &mut planes.device {
                    Device::None => {}
                    Device::Tun(tun) => tun.put(packet),
                    Device::Channel { outgoing, .. } => outgoing.push(packet),
                },
                Output::Beat(order) => {
                    if let Some(beat) = &mut planes.beat {
                        beat.order(order);
                    }
                }
                Output::Pipe { peer, frame } => {
                    if let Some(pipes) = &mut planes.pipes {
                        pipes.put(now, peer, frame);
                    }
                }
                Output::Session { peer, event } => self.parts.counter.event(peer, event),
                Output::Event(event) => self.boxes.events.push(event),
            }
        }
        self.parts.hands.outputs = outputs;
        if let Some(store) = &mut planes.store {
            store.flush();
        }
        self.parts.counter.wake();
        if let Some(udp) = &mut planes.udp {
            udp.flush();
        }
        match &mut planes.device {
            Device::None => {}
            Device::Tun(tun) => tun.flush(),
            Device::Channel { device, outgoing } => device.write(outgoing),
        }
        if let Some(beat) = &mut planes.beat {
            beat.flush();
        }
        if let Some(tcp) = &mut planes.tcp {
            tcp.flush(now);
        }
        if let Some(pipes) = &mut planes.pipes {
            pipes.flush(now);
        }
        let facts = planes.udp.as_ref().is_some_and(Udp::has_facts)
            || planes.tcp.as_ref().is_some_and(Tcp::has_facts)
            || planes.pipes.as_ref().is_some_and(Pipes::has_awaited_facts)
            || planes.store.as_ref().is_some_and(StorePlane::has_refusals)
            || self.parts.counter.has_orders()
            || self.parts.counter.is_hungry();
        for event in self.boxes.events.drain(..) {
            self.asks.tell(&event);
            events::tell(&event, now, &self.parts.config, &self.parts.hooks, &self.parts.recent);
        }
        facts
    }

    /// What is due by itself; when to come again.
    fn upkeep(&mut self) -> Time {
        let now = clock::now();
        self.parts.counter.turned(now);
        let planes = &mut self.parts.planes;
        let mut next = planes.tcp.as_mut().map_or(Time::NEVER, |tcp| tcp.tick(now));
        if let Some(pipes) = &mut planes.pipes {
            pipes.flush(now);
            next = next.min(pipes.next(now));
            if pipes.has_awaited_facts() {
                return now;
            }
        }
        if let Some(udp) = &mut planes.udp {
            if self.measure_at <= now {
                udp.measure_all();
                self.measure_at = now + MEASURE_EVERY;
                if udp.has_facts() {
                    return now;
                }
            }
            next = next.min(self.measure_at);
        }
        next
    }

    /// Ends every thread and gives everything back, within bounds.
    fn end(mut self) {
        self.parts.counter.stop();
        let Planes { device, mut beat, mut netlink, store, store_queue, .. } = self.parts.planes;
        let (mut hooks, mut replicas) = (self.parts.hooks, self.parts.replicas);
        let threads: Vec<JoinHandle<()>> = [
            beat.as_mut().and_then(BeatPlane::stop),
            netlink.as_mut().and_then(NetlinkPlane::stop),
            hooks.stop(),
            replicas.stop(),
        ]
        .into_iter()
        .flatten()
        .collect();
        if store.is_some_and(|store| !store.shutdown(VOLUMES_END_WITHIN)) {
            tracing::warn!("a volume's thread is stuck in the kernel and was left behind");
        }
        store_queue.close();
        // The interface goes away with its descriptor, and its addresses and routes with it.
        drop(device);
        let start = Instant::now();
        while start.elapsed() < THREADS_END_WITHIN && !threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for thread in threads.into_iter().filter(JoinHandle::is_finished) {
            if thread.join().is_err() {
                tracing::error!("a thread ended by a panic");
            }
        }
    }
}
