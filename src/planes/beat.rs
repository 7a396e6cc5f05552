//! The thread that beats: it drives the core's [`Pulse`] with real-time priority, so that a machine
//! under load does not look dead and a busy loop does not look like a dead network.
//!
//! It owns a UDP socket on the same address and port as the data socket; the kernel sorts beats to
//! it ([`crate::sys::reuseport`]). It sleeps until the next beat is due or something arrives, and
//! does nothing else: no logging, no files, no locks it might wait for.
//!
//! Awkward cases:
//! * Both sockets accept both kinds: what the kernel missorted or merged is passed across, with
//!   the moment it came off the wire.
//! * Where there is no second socket, the data socket takes and sends everything; beats then only
//!   pass through the queue.
//! * A datagram that waited in the socket is dated by the kernel's stamp of its arrival, so that
//!   this thread's own lateness is not taken for the peer's.
//! * Orders and results go through queues whose locks it only tries: the other side may have been
//!   pushed off the processor while holding one. It comes back a millisecond later.
//! * Real-time scheduling and locked memory may be refused; the answer is reported, not assumed.

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use failover::{
    NodeId, Time,
    beat::{BeatOrder, Heard, Pulse},
    wire::FIRST_BYTE_BEAT,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::queue::{Bell, Queue};
use crate::sys::{
    clock,
    mmsg::{BATCH, ReceiveBatch, mapped},
    sched, sockopt,
};

/// Half of the real-time range, like other heartbeat daemons.
const PRIORITY: i32 = 50;
const QUEUE: usize = 1024;
/// Longest sleep; also how soon a lost wake-up is made good.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How soon to try a lock again.
const RETRY: Duration = Duration::from_millis(1);
/// Receive batches per round: under FIFO nobody else runs meanwhile.
const ROUNDS: usize = 4;
/// Merged datagrams may be as long as that.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// A stamp that claims a longer wait comes from a wall clock that was set meanwhile.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// What goes to the beat thread.
#[derive(Debug)]
enum ToBeat {
    Order(BeatOrder),
    Datagram { at: Time, bytes: Bytes },
}

/// What comes from it.
#[derive(Debug)]
pub(crate) enum FromBeat {
    /// A beat was opened.
    Heard(Heard),
    /// Something that is no beat came to the beat socket.
    Datagram {
        /// From where.
        from: SocketAddr,
        /// What.
        bytes: Bytes,
    },
}

/// Where beats are sent from.
#[derive(Debug)]
pub(crate) enum BeatSocket {
    /// A socket of its own, which also receives.
    Own(UdpSocket),
    /// The data socket, which receives everything: sent from, never read.
    Shared(UdpSocket),
}

/// What the system granted.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    /// SCHED_FIFO.
    pub(crate) realtime: bool,
    /// Why something was not granted.
    pub(crate) refusals: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    inbox: Queue<ToBeat>,
    outbox: Queue<FromBeat>,
    wake: OwnedFd,
    stop: AtomicBool,
    /// When the loop last ended a turn, microseconds.
    progress: Arc<AtomicU64>,
    bell: Bell,
}

/// The handle of the beat thread.
#[derive(Debug)]
pub(crate) struct BeatPlane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Orders that found the queue full; they are kept in order and handed over next.
    waiting: VecDeque<ToBeat>,
    pub(crate) granted: Granted,
    /// Datagrams dropped because the beat thread did not keep up.
    pub(crate) dropped: u64,
}

impl BeatPlane {
    /// Starts the thread; returns once it knows what the system grants it.
    pub(crate) fn start(
        id: NodeId,
        socket: BeatSocket,
        v6: bool,
        progress: Arc<AtomicU64>,
        bell: Bell,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            inbox: Queue::new(QUEUE),
            outbox: Queue::new(QUEUE),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
            progress,
            bell,
        });
        let (socket, own) = match socket {
            BeatSocket::Own(socket) => {
                // The kernel may lack stamps; then datagrams are dated when they are read.
                let _ = sockopt::receive_stamps(&socket);
                (socket, true)
            }
            BeatSocket::Shared(socket) => (socket, false),
        };
        let (tell, told) = mpsc::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("sidepath-beat".into()).spawn(move || {
            let mut work = Work {
                shared: for_thread,
                socket,
                own,
                v6,
                pulse: Pulse::new(id),
                received: ReceiveBatch::new(DATAGRAM_BYTES_MAX),
                inbox: VecDeque::with_capacity(QUEUE),
                outbox: VecDeque::with_capacity(QUEUE),
            };
            let _ = tell.send(ask_for_priority());
            drop(tell);
            work.run();
        })?;
        let granted = told.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| Granted {
            realtime: false,
            refusals: vec!["the beat thread did not start in time".into()],
        });
        Ok(Self { shared, thread: Some(thread), waiting: VecDeque::new(), granted, dropped: 0 })
    }

    /// Passes an order of the core on. Those that carry keys or addresses are never lost; of
    /// words, which are said again, the newest stay when the thread takes nothing.
    pub(crate) fn order(&mut self, order: BeatOrder) {
        if self.waiting.len() >= 2 * QUEUE {
            self.waiting.retain(|item| {
                !matches!(
                    item,
                    ToBeat::Datagram { .. }
                        | ToBeat::Order(BeatOrder::Say { .. } | BeatOrder::Now { .. })
                )
            });
        }
        self.waiting.push_back(ToBeat::Order(order));
    }

    /// Whether the thread still beats.
    pub(crate) fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Passes a beat on that arrived at the data socket.
    pub(crate) fn datagram(&mut self, at: Time, bytes: &[u8]) {
        if self.waiting.len() < QUEUE {
            self.waiting.push_back(ToBeat::Datagram { at, bytes: Bytes::copy_from_slice(bytes) });
        } else {
            self.dropped += 1;
        }
    }

    /// Hands over what waits, and wakes the thread if there was anything.
    pub(crate) fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        while let Some(item) = self.waiting.pop_front() {
            if let Err(item) = self.shared.inbox.push(item) {
                self.waiting.push_front(item);
                break;
            }
        }
        self.shared.wake();
    }

    /// Takes what the thread has for the loop.
    pub(crate) fn take(&self, into: &mut VecDeque<FromBeat>) {
        self.shared.outbox.take(into);
    }

    /// Tells the thread to end and gives its handle to whoever joins.
    pub(crate) fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        self.thread.take()
    }
}

impl Drop for BeatPlane {
    fn drop(&mut self) {
        // Not joined here: whoever wants that calls `stop`.
        drop(self.stop());
    }
}

impl Shared {
    fn wake(&self) {
        // Full means that the thread has been woken 2^64 times: it is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

fn ask_for_priority() -> Granted {
    let mut refusals = Vec::new();
    let realtime = sched::realtime(PRIORITY)
        .map_err(|e| refusals.push(format!("no real-time priority for heartbeats: {e}")))
        .is_ok();
    if !realtime {
        sched::nicest();
    }
    if let Err(e) = sched::lock_memory() {
        refusals.push(format!("memory is not locked: {e}"));
    }
    Granted { realtime, refusals }
}

/// What the thread owns.
struct Work {
    shared: Arc<Shared>,
    socket: UdpSocket,
    own: bool,
    v6: bool,
    pulse: Pulse,
    received: ReceiveBatch,
    inbox: VecDeque<ToBeat>,
    outbox: VecDeque<FromBeat>,
}

impl Work {
    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let mut again = self.take_inbox();
            again |= self.receive();
            self.send();
            again |= self.hand_over();
            self.sleep(again);
        }
        // The last word (a goodbye) may still wait in the queue.
        self.take_inbox();
        self.send();
    }

    /// True when the lock was held by somebody else.
    fn take_inbox(&mut self) -> bool {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut count);
        if !self.shared.inbox.try_take(&mut self.inbox) {
            return true;
        }
        while let Some(item) = self.inbox.pop_front() {
            match item {
                ToBeat::Order(order) => self.pulse.order(clock::now(), order),
                ToBeat::Datagram { at, bytes } => {
                    if let Some(heard) = self.pulse.open(at, &bytes) {
                        self.outbox.push_back(FromBeat::Heard(heard));
                    }
                }
            }
        }
        false
    }

    /// True when more may wait in the socket.
    fn receive(&mut self) -> bool {
        if !self.own {
            return false;
        }
        for _ in 0..ROUNDS {
            let Ok(count) = self.received.receive(&self.socket) else {
                // Nothing there, or an ICMP error of a beat of ours: the data socket reports those.
                return false;
            };
            let (now, wall_ns) = (clock::now(), clock::realtime_ns());
            for message in (0..count).filter_map(|i| self.received.get(i)) {
                let waited = message.stamp_ns.map_or(Duration::ZERO, |stamp| {
                    Duration::from_nanos(wall_ns.saturating_sub(stamp))
                });
                let at = if waited <= WAIT_MAX { now - waited } else { now };
                for bytes in message.datagrams() {
                    let item = if bytes.first() == Some(&FIRST_BYTE_BEAT) {
                        self.pulse.open(at, bytes).map(FromBeat::Heard)
                    } else {
                        let bytes = Bytes::copy_from_slice(bytes);
                        Some(FromBeat::Datagram { from: message.from, bytes })
                    };
                    // A flood must not make this grow: beats come again.
                    if self.outbox.len() < QUEUE {
                        self.outbox.extend(item);
                    }
                }
            }
            if count < BATCH {
                return false;
            }
        }
        true
    }

    fn send(&mut self) {
        let now = clock::now();
        let loop_age = now.since(Time(self.shared.progress.load(Ordering::Acquire)));
        let (socket, v6) = (&self.socket, self.v6);
        self.pulse.send(now, loop_age, &mut |_peer, to, beat| {
            let to = if v6 { mapped(to) } else { to };
            // The first try may report an error of an earlier datagram instead of sending.
            if socket.send_to(&beat, to).is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock) {
                let _ = socket.send_to(&beat, to);
            }
        });
    }

    /// True when something could not be handed over yet.
    fn hand_over(&mut self) -> bool {
        if self.outbox.is_empty() {
            return false;
        }
        let handed = self.shared.outbox.try_push_all(&mut self.outbox);
        self.shared.bell.ring();
        if handed && !self.outbox.is_empty() {
            // The loop is stuck with a full queue: the newest evidence is worth more than the
            // oldest, and the peers learn of the loop's state from `loop_age`.
            let spare = self.outbox.len().saturating_sub(QUEUE / 2);
            self.outbox.drain(..spare);
        }
        !self.outbox.is_empty()
    }

    fn sleep(&self, again: bool) {
        let until = self.pulse.next().since(clock::now()).min(SLEEP_MAX);
        let until = if again { until.min(RETRY) } else { until };
        let timeout = clock::timespec(failover::micros(until));
        let mut fds = [
            PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
        ];
        let fds = &mut fds[..if self.own { 2 } else { 1 }];
        // An interrupted sleep is a short sleep.
        let _ = poll(fds, Some(&timeout));
        if fds.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::ERR)) {
            // Until the complaints are read, the poll returns at once for ever.
            while let Ok(Some(_)) = crate::sys::errqueue::next(&self.socket) {}
            let _ = self.socket.take_error();
        }
    }
}
