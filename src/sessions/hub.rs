//! Where applications and the turn loop meet: what applications want of the loop, and the services
//! they listen for. [`Counter`] is the loop's side of it.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Waker,
};

use failover::{
    Input, Node, NodeId, Time, World,
    session::{Ending, NotOpened, Preference, Refusal, SessionEvent, SessionId, SessionOrder},
};

use super::{
    SessionError,
    pace::Pace,
    port::{Guard, OUTGOING_MAX, Port, State},
};
use crate::planes::queue::Bell;

/// Who listens for this gets every session of a service `tcp:PORT` that nobody else listens for.
pub(super) const TCP_PORTS: &str = "tcp:*";
/// Services whose names begin so are answered by daemons themselves.
const OWN: &str = "sidepath.";
/// Sessions that wait for a listener to accept them.
const BACKLOG: usize = 1024;

/// Shared by all endpoints of a node and its loop.
#[derive(Debug)]
pub(crate) struct Hub {
    bell: Bell,
    inbox: Mutex<Inbox>,
    services: Mutex<BTreeMap<String, Weak<Service>>>,
    peers: Mutex<Vec<(NodeId, String)>>,
}

#[derive(Debug, Default)]
struct Inbox {
    opens: Vec<(Arc<Port>, Preference)>,
    ports: Vec<Arc<Port>>,
    /// The loop comes by itself soon: nobody need ring.
    gathering: bool,
    stopped: bool,
}

/// Somebody listens.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: String,
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    offers: VecDeque<(Arc<Port>, Preference)>,
    wakers: Vec<Waker>,
    stopped: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a service is a daemon's own: no program may listen for it.
pub(super) fn is_own(service: &str) -> bool {
    service.starts_with(OWN)
}

impl Service {
    /// The next session that is offered.
    pub(super) fn poll(
        &self,
        waker: &Waker,
    ) -> std::task::Poll<Result<(Arc<Port>, Preference), SessionError>> {
        let mut waiting = lock(&self.state);
        if let Some(offer) = waiting.offers.pop_front() {
            return std::task::Poll::Ready(Ok(offer));
        }
        if waiting.stopped {
            return std::task::Poll::Ready(Err(SessionError::Stopped));
        }
        if !waiting.wakers.iter().any(|w| w.will_wake(waker)) {
            waiting.wakers.push(waker.clone());
        }
        std::task::Poll::Pending
    }

    /// False when as many wait as may.
    fn offer(&self, port: Arc<Port>, preference: Preference) -> bool {
        let mut waiting = lock(&self.state);
        if waiting.offers.len() >= BACKLOG {
            return false;
        }
        waiting.offers.push_back((port, preference));
        for waker in waiting.wakers.drain(..) {
            waker.wake();
        }
        true
    }

    fn stop(&self) {
        let mut waiting = lock(&self.state);
        waiting.stopped = true;
        for waker in waiting.wakers.drain(..) {
            waker.wake();
        }
    }

    /// What nobody will accept any more.
    pub(super) fn drain(&self) -> VecDeque<(Arc<Port>, Preference)> {
        mem::take(&mut lock(&self.state).offers)
    }
}

impl Hub {
    pub(crate) fn new(bell: Bell) -> Self {
        Self { bell, inbox: Mutex::default(), services: Mutex::default(), peers: Mutex::default() }
    }

    pub(crate) fn set_peers(&self, peers: impl Iterator<Item = (NodeId, String)>) {
        *lock(&self.peers) = peers.collect();
    }

    /// The peer with that name or id.
    pub(super) fn peer(&self, word: &str) -> Result<(NodeId, String), SessionError> {
        let id = word.parse::<u8>().ok();
        let found = lock(&self.peers)
            .iter()
            .find(|(node, name)| name == word || Some(node.get()) == id)
            .cloned();
        found.ok_or_else(|| SessionError::NoSuchPeer(word.to_owned()))
    }

    /// The loop is to come to a port.
    pub(super) fn tell(&self, port: &Arc<Port>, mut state: Guard<'_>) {
        if mem::replace(&mut state.told, true) {
            return;
        }
        // The loop comes at once, and wants the lock.
        drop(state);
        let mut inbox = lock(&self.inbox);
        if inbox.stopped {
            return;
        }
        let first = inbox.ports.is_empty() && !inbox.gathering;
        inbox.ports.push(Arc::clone(port));
        drop(inbox);
        if first {
            self.bell.ring();
        }
    }

    /// A session is wanted.
    pub(super) fn open(
        &self,
        port: &Arc<Port>,
        preference: Preference,
    ) -> Result<(), SessionError> {
        let mut inbox = lock(&self.inbox);
        if inbox.stopped {
            return Err(SessionError::Stopped);
        }
        inbox.opens.push((Arc::clone(port), preference));
        drop(inbox);
        self.bell.ring();
        Ok(())
    }

    /// Listens for a service until the result is dropped.
    pub(super) fn listen(&self, name: &str) -> Result<Arc<Service>, SessionError> {
        if lock(&self.inbox).stopped {
            return Err(SessionError::Stopped);
        }
        let mut services = lock(&self.services);
        services.retain(|_, service| service.strong_count() > 0);
        if services.contains_key(name) {
            return Err(SessionError::ServiceTaken(name.to_owned()));
        }
        let service = Arc::new(Service { name: name.to_owned(), state: Mutex::default() });
        services.insert(name.to_owned(), Arc::downgrade(&service));
        Ok(service)
    }

    /// Nobody comes any more.
    pub(crate) fn stop(&self) {
        let mut inbox = lock(&self.inbox);
        inbox.stopped = true;
        let ports = mem::take(&mut inbox.ports);
        let opens = mem::take(&mut inbox.opens);
        drop(inbox);
        for port in ports.iter().chain(opens.iter().map(|(port, _)| port)) {
            port.lock().fail(SessionError::Stopped);
        }
        for service in lock(&self.services).values().filter_map(Weak::upgrade) {
            service.stop();
            for (port, _) in service.drain() {
                port.lock().fail(SessionError::Stopped);
            }
        }
    }
}

/// The loop's side: which port is which session.
#[derive(Debug)]
pub(crate) struct Counter {
    hub: Arc<Hub>,
    ports: BTreeMap<(NodeId, SessionId), Arc<Port>>,
    opening: BTreeMap<u64, Arc<Port>>,
    next_token: u64,
    /// Ports with bytes the core had no room for.
    hungry: Vec<Arc<Port>>,
    orders: Vec<(NodeId, SessionOrder)>,
    pace: Pace,
    /// Orders out of one port; empty between two.
    gathered: Vec<SessionOrder>,
    /// Who is to be woken when the loop has gone through all there was: whoever wakes earlier may
    /// take the processor, for one message of many.
    due: Vec<Waker>,
}

/// What an open session's application wants.
fn gather(state: &mut State, id: SessionId, mut room: usize, orders: &mut Vec<SessionOrder>) {
    let taken = mem::take(&mut state.taken);
    if taken > 0 {
        orders.push(SessionOrder::Take(id, taken));
    }
    if mem::take(&mut state.abandon) {
        orders.push(SessionOrder::Abandon(id));
    }
    while let Some(bytes) = state.outgoing.pop(room) {
        room -= bytes.len();
        orders.push(SessionOrder::Write(id, bytes));
    }
    // Not for every bit of room: whoever is woken is to have something to do.
    if state.outgoing.len() <= OUTGOING_MAX / 2 {
        state.wake_writer();
    }
    if state.finish && !state.finished && state.outgoing.is_empty() {
        state.finished = true;
        orders.push(SessionOrder::Finish(id));
    }
}

impl Counter {
    pub(crate) const fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            ports: BTreeMap::new(),
            opening: BTreeMap::new(),
            next_token: 0,
            hungry: Vec::new(),
            orders: Vec::new(),
            pace: Pace::new(),
            gathered: Vec::new(),
            due: Vec::new(),
        }
    }

    pub(crate) fn set_peers(&self, peers: impl Iterator<Item = (NodeId, String)>) {
        self.hub.set_peers(peers);
    }

    /// Orders wait that came of what the core said.
    pub(crate) fn has_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Tells the core what applications want.
    pub(crate) fn read(&mut self, now: Time, node: &mut Node, world: &mut dyn World) {
        for (peer, order) in self.orders.drain(..) {
            failover::turn(node, now, Input::Session { peer, order }, world);
        }
        let (opens, ports) = {
            let mut inbox = lock(&self.hub.inbox);
            inbox.gathering = self.pace.came(now, inbox.ports.len());
            (mem::take(&mut inbox.opens), mem::take(&mut inbox.ports))
        };
        for (port, preference) in opens {
            self.next_token += 1;
            let token = self.next_token;
            let (peer, service) = (port.peer, port.service.clone());
            self.opening.insert(token, port);
            let order = SessionOrder::Open { token, service, preference };
            failover::turn(node, now, Input::Session { peer, order }, world);
        }
        for port in mem::take(&mut self.hungry) {
            self.serve(now, &port, node, world);
        }
        for port in ports {
            self.serve(now, &port, node, world);
        }
        self.wake();
    }

    /// The loop has done what it came for.
    pub(crate) fn turned(&mut self, now: Time) {
        self.pace.turned(now);
    }

    /// When the loop is to come by itself.
    pub(crate) fn next(&self) -> Time {
        self.pace.next()
    }

    /// Takes what lies in a port, and says it when the port is free again: the application is not
    /// to wait for the core.
    fn serve(&mut self, now: Time, port: &Arc<Port>, node: &mut Node, world: &mut dyn World) {
        let mut state = port.lock();
        state.told = false;
        let (peer, Some(id)) = (port.peer, state.id) else { return };
        let mut orders = mem::take(&mut self.gathered);
        let mut over = true;
        if let Some(detail) = state.refuse.take() {
            orders.push(SessionOrder::Refuse(id, Refusal::Rejected, detail));
        } else {
            if mem::take(&mut state.accept) {
                state.open = true;
                orders.push(SessionOrder::Accept(id));
            }
            over = mem::take(&mut state.reset);
            if over {
                orders.push(SessionOrder::Reset(id));
            } else {
                gather(&mut state, id, node.session_room(peer, id), &mut orders);
            }
        }
        state.free(&mut self.due);
        for order in orders.drain(..) {
            failover::turn(node, now, Input::Session { peer, order }, world);
        }
        self.gathered = orders;
        if over {
            self.ports.remove(&(peer, id));
        }
    }

    /// The core says something.
    pub(crate) fn event(&mut self, peer: NodeId, event: SessionEvent) {
        match event {
            SessionEvent::Opening { token, id } => {
                if let Some(port) = self.opening.remove(&token) {
                    let mut state = port.lock();
                    state.id = Some(id);
                    // The application may have left meanwhile.
                    self.hub.tell(&port, state);
                    self.ports.insert((peer, id), port);
                }
            }
            SessionEvent::NotOpened { token, reason } => {
                if let Some(port) = self.opening.remove(&token) {
                    port.lock().fail(match reason {
                        NotOpened::NoSuchPeer => SessionError::NoSuchPeer(port.peer_name.clone()),
                        other => SessionError::NotOpened(other),
                    });
                }
            }
            SessionEvent::Offered { id, service, preference } => {
                self.offered(peer, id, service, preference);
            }
            SessionEvent::Accepted(id) => self.with(peer, id, |state| {
                state.open = true;
                state.wake_all();
            }),
            SessionEvent::Refused(id, reason, detail) => {
                self.with(peer, id, |state| state.fail(SessionError::Refused { reason, detail }));
                self.ports.remove(&(peer, id));
            }
            SessionEvent::Data(id, bytes) => self.with(peer, id, |state| state.arrived(bytes)),
            SessionEvent::Finished(id, came) => self.with(peer, id, |state| {
                state.came = came;
                state.ended = true;
                state.wake_all();
            }),
            SessionEvent::Progress { id, received, taken, sent } => {
                let Some(port) = self.ports.get(&(peer, id)) else { return };
                let mut state = port.lock();
                (state.received_there, state.taken_there) = (received, taken);
                state.sent = sent;
                state.wake_watchers();
                if !state.outgoing.is_empty() {
                    self.hungry.push(Arc::clone(port));
                }
                state.free(&mut self.due);
            }
            SessionEvent::Moved(id, path) => self.with(peer, id, |state| {
                state.path = path;
                state.wake_watchers();
            }),
            SessionEvent::Ended(id, ending) => {
                self.with(peer, id, |state| state.fail(SessionError::Ended(ending)));
                self.ports.remove(&(peer, id));
            }
            SessionEvent::Closed(id) => {
                self.with(peer, id, |state| {
                    state.closed = true;
                    state.wake_all();
                });
                self.ports.remove(&(peer, id));
            }
        }
    }

    /// Ports the core has room for again, or orders of our own: the loop must not sleep.
    pub(crate) fn is_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    fn with(&mut self, peer: NodeId, id: SessionId, change: impl FnOnce(&mut State)) {
        if let Some(port) = self.ports.get(&(peer, id)) {
            let mut state = port.lock();
            change(&mut state);
            state.free(&mut self.due);
        }
    }

    /// Wakes whoever heard something.
    pub(crate) fn wake(&mut self) {
        self.due.drain(..).for_each(Waker::wake);
    }

    fn offered(&mut self, peer: NodeId, id: SessionId, name: String, preference: Preference) {
        let service = {
            let services = lock(&self.hub.services);
            let any = || services.get(TCP_PORTS).filter(|_| name.starts_with("tcp:"));
            services.get(&name).or_else(any).and_then(Weak::upgrade)
        };
        let reason = match service {
            None => Some(Refusal::NoSuchService),
            Some(service) => {
                let peer_name = self
                    .hub
                    .peer(&peer.to_string())
                    .map_or_else(|_| peer.to_string(), |(_, name)| name);
                let port = Arc::new(Port::new(peer, peer_name, name));
                port.lock().id = Some(id);
                self.ports.insert((peer, id), Arc::clone(&port));
                let taken = service.offer(port, preference);
                if !taken {
                    self.ports.remove(&(peer, id));
                }
                (!taken).then_some(Refusal::Busy)
            }
        };
        if let Some(reason) = reason {
            self.orders.push((peer, SessionOrder::Refuse(id, reason, String::new())));
        }
    }

    /// The loop ends.
    pub(crate) fn stop(&mut self) {
        for port in self.ports.values().chain(self.opening.values()) {
            port.lock().fail(SessionError::Ended(Ending::Closed));
        }
        self.ports.clear();
        self.opening.clear();
        self.hub.stop();
    }
}
