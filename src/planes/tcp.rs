//! Frames too large for a datagram, by TCP: a u32 length in network order, then the frame.
//!
//! One outgoing connection per peer carries our frames; accepted connections only receive. Whose
//! they are is nobody's business here: identity comes from the sealed frames.
//!
//! The connection is made at the first frame that needs it and then kept while it works. Keeping
//! one warm to every living peer would save one round trip at the first large frame after a
//! failback, and cost a connection per pair of nodes that hardly ever carries a byte; frames wait
//! in the buffer while it connects, so that round trip refuses nothing.
//!
//! Awkward cases:
//! * A connection that lived through an outage sits in TCP's exponential back-off and would stay
//!   silent long after the network is well. `TCP_USER_TIMEOUT` ends it after 1.5 s without an
//!   acknowledgement, and a buffer that has not moved for a second ends it from our side.
//! * What was buffered for a connection that ended is dropped and reported: the link keeps it.
//! * Anybody may connect: the number is bounded, the oldest goes first, bytes that are not frames
//!   close the connection, and so do ten seconds before the first frame or sixty between two.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use failover::{NetworkFact, NodeId, Time};
use mio::{
    Interest, Registry, Token,
    net::{TcpListener, TcpStream},
};
use rustix::buffer::spare_capacity;
use socket2::{Domain, Socket, Type};

use super::{
    framing::{FRAME_BYTES_MAX, Framer, Got, Source},
    outgoing::Outgoing,
};

impl Source for TcpStream {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read(into)
    }

    fn append(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        Ok(rustix::io::read(&*self, spare_capacity(into))?)
    }
}

const BUFFER_BYTES_MAX: usize = 1 << 20;
const ACCEPTED_MAX: usize = 128;
const FIRST_FRAME_WITHIN: Duration = Duration::from_secs(10);
const NEXT_FRAME_WITHIN: Duration = Duration::from_secs(60);
const STUCK_AFTER: Duration = Duration::from_secs(1);
const BACK_OFFS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Reads per connection and turn, of up to 64 KiB.
const READS_PER_TURN: usize = 8;

/// Outgoing connections use these tokens, by node id; accepted ones those after.
const OUTGOING_TOKENS: usize = 65;

/// The TCP plane.
#[derive(Debug)]
pub(crate) struct Tcp {
    registry: Registry,
    first_token: usize,
    listen: SocketAddr,
    listener: TcpListener,
    outgoing: BTreeMap<NodeId, Carried>,
    accepted: Vec<Option<Accepted>>,
    refused: BTreeSet<NodeId>,
    scratch: Vec<u8>,
    /// Tokens of accepted connections with bytes left unread.
    unread: BTreeSet<usize>,
}

#[derive(Debug)]
struct Carried {
    connection: Outgoing,
    buffer: VecDeque<u8>,
}

#[derive(Debug)]
struct Accepted {
    stream: TcpStream,
    framer: Framer,
    deadline: Time,
}

/// Binds the listener; a second daemon on the same address is refused here, because UDP sockets
/// that share an address would quietly let it in.
pub(crate) fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    if listen.is_ipv6() {
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    // Only against the wait after a restart: two listeners are refused all the same.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(64)?;
    Ok(TcpListener::from_std(socket.into()))
}

impl Tcp {
    /// Uses the tokens from `first_token` on.
    pub(crate) fn new(
        registry: Registry,
        first_token: usize,
        listen: SocketAddr,
        mut listener: TcpListener,
    ) -> io::Result<Self> {
        registry.register(&mut listener, Token(first_token), Interest::READABLE)?;
        Ok(Self {
            registry,
            first_token,
            listen,
            listener,
            outgoing: BTreeMap::new(),
            accepted: Vec::new(),
            refused: BTreeSet::new(),
            scratch: vec![0; 64 * 1024],
            unread: BTreeSet::new(),
        })
    }

    /// Who may be sent to. Connections to others end; those whose endpoints changed start anew.
    pub(crate) fn set_peers(&mut self, peers: impl Iterator<Item = (NodeId, Vec<SocketAddr>)>) {
        let mut before = std::mem::take(&mut self.outgoing);
        for (peer, endpoints) in peers {
            let kept = before.remove(&peer).filter(|o| o.connection.endpoints == endpoints);
            self.outgoing.insert(
                peer,
                kept.unwrap_or_else(|| Carried {
                    connection: Outgoing::new(endpoints, BACK_OFFS),
                    buffer: VecDeque::new(),
                }),
            );
        }
    }

    /// Frames that were not taken, or dropped with their connection, since the last call.
    pub(crate) fn facts(&mut self) -> impl Iterator<Item = NetworkFact> + use<> {
        std::mem::take(&mut self.refused).into_iter().map(|peer| NetworkFact::TcpRefused { peer })
    }

    pub(crate) fn has_facts(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Whether an accepted connection was left with bytes unread.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Takes one frame for a peer.
    pub(crate) fn put(&mut self, now: Time, peer: NodeId, frame: &Bytes) {
        let taken = self.outgoing.get_mut(&peer).is_some_and(|o| {
            let fits = o.buffer.len() + 4 + frame.len() <= BUFFER_BYTES_MAX;
            let waits = !o.connection.exists() && now < o.connection.retry_at();
            if !fits || waits || o.connection.endpoints.is_empty() || frame.len() > FRAME_BYTES_MAX
            {
                return false;
            }
            let Ok(length) = u32::try_from(frame.len()) else { return false };
            if o.buffer.is_empty() && !o.connection.is_connecting() {
                o.connection.moved(now);
            }
            o.buffer.extend(length.to_be_bytes());
            o.buffer.extend(frame.iter());
            true
        });
        if !taken {
            self.refused.insert(peer);
        }
    }

    /// Writes what fits, connects where frames wait, and ends what is stuck.
    pub(crate) fn flush(&mut self, now: Time) {
        let peers: Vec<_> = self
            .outgoing
            .iter()
            .filter(|(_, o)| !o.buffer.is_empty() || o.connection.is_connecting())
            .map(|(peer, _)| *peer)
            .collect();
        for peer in peers {
            if let Err(error) = self.drive(now, peer) {
                self.end(now, peer, &error);
            }
        }
    }

    fn drive(&mut self, now: Time, peer: NodeId) -> io::Result<()> {
        let token = Token(self.first_token + usize::from(peer.get()));
        let Some(Carried { connection, buffer }) = self.outgoing.get_mut(&peer) else {
            return Ok(());
        };
        if connection.is_connecting()
            && connection.stream(now, self.listen, (&self.registry, token))?.is_none()
        {
            return Ok(());
        }
        while !buffer.is_empty() {
            let Some(stream) = connection.stream(now, self.listen, (&self.registry, token))? else {
                return Ok(());
            };
            let (front, back) = buffer.as_slices();
            let slices = [io::IoSlice::new(front), io::IoSlice::new(back)];
            match stream.write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    buffer.drain(..n);
                    connection.moved(now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if connection.stands_still(now, STUCK_AFTER) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn end(&mut self, now: Time, peer: NodeId, error: &io::Error) {
        tracing::debug!(peer = peer.get(), %error, "TCP connection ended");
        let Some(o) = self.outgoing.get_mut(&peer) else { return };
        o.connection.end(now, &self.registry);
        if !o.buffer.is_empty() {
            self.refused.insert(peer);
        }
        o.buffer = VecDeque::new();
    }

    /// Whether a token is of this plane, or of those after it.
    pub(crate) const fn owns(&self, token: Token) -> bool {
        token.0 >= self.first_token
    }

    /// Something happened at a token: accepts, reads, notes what ended. `closed` when the event
    /// says that the other side will send no more. Frames go to `take`.
    pub(crate) fn ready(
        &mut self,
        now: Time,
        token: Token,
        closed: bool,
        take: &mut dyn FnMut(Vec<u8>),
    ) {
        let Some(index) = token.0.checked_sub(self.first_token) else { return };
        if index == 0 {
            self.accept(now);
        } else if let Some(slot) = index.checked_sub(OUTGOING_TOKENS) {
            self.read(now, slot, closed, take);
        } else if let Some(peer) = u8::try_from(index).ok().and_then(NodeId::new) {
            self.outgoing_ready(now, peer);
        }
    }

    /// Reads on where the last turn stopped at its bound; true when more is left.
    pub(crate) fn read_on(&mut self, now: Time, take: &mut dyn FnMut(Vec<u8>)) -> bool {
        for slot in std::mem::take(&mut self.unread) {
            // The end may have come meanwhile.
            self.read(now, slot, true, take);
        }
        !self.unread.is_empty()
    }

    fn outgoing_ready(&mut self, now: Time, peer: NodeId) {
        let Some(o) = self.outgoing.get_mut(&peer) else { return };
        let ended = o.connection.complaint();
        if let Some(error) = ended {
            self.end(now, peer, &error);
        } else if let Err(error) = self.drive(now, peer) {
            self.end(now, peer, &error);
        }
    }

    fn accept(&mut self, now: Time) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept TCP connections");
                    return;
                }
            };
            let slot = self.free_slot();
            let token = Token(self.first_token + OUTGOING_TOKENS + slot);
            if self.registry.register(&mut stream, token, Interest::READABLE).is_err() {
                continue;
            }
            self.accepted[slot] = Some(Accepted {
                stream,
                framer: Framer::default(),
                deadline: now + FIRST_FRAME_WITHIN,
            });
        }
    }

    /// A free slot; when there is none, that of the connection nearest its deadline.
    fn free_slot(&mut self) -> usize {
        if let Some(slot) = self.accepted.iter().position(Option::is_none) {
            return slot;
        }
        if self.accepted.len() < ACCEPTED_MAX {
            self.accepted.push(None);
            return self.accepted.len() - 1;
        }
        let oldest = self
            .accepted
            .iter()
            .enumerate()
            .min_by_key(|(_, a)| a.as_ref().map(|a| a.deadline))
            .map_or(0, |(slot, _)| slot);
        self.close(oldest);
        oldest
    }

    fn close(&mut self, slot: usize) {
        if let Some(mut accepted) = self.accepted.get_mut(slot).and_then(Option::take) {
            let _ = self.registry.deregister(&mut accepted.stream);
        }
    }

    fn read(&mut self, now: Time, slot: usize, closed: bool, take: &mut dyn FnMut(Vec<u8>)) {
        let Some(Some(accepted)) = self.accepted.get_mut(slot) else { return };
        for _ in 0..READS_PER_TURN {
            match accepted.framer.read(&mut accepted.stream, &mut self.scratch, take) {
                Ok(Got::Frames(frames, drained)) => {
                    if frames > 0 {
                        accepted.deadline = now + NEXT_FRAME_WITHIN;
                    }
                    // What comes from now on is an event of its own. The end is not, if it came
                    // together with these bytes: then it was part of the event.
                    if drained && !closed {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Got::End) | Err(_) => return self.close(slot),
            }
        }
        self.unread.insert(slot);
    }

    /// Ends what has waited too long; when to call again at the latest.
    pub(crate) fn tick(&mut self, now: Time) -> Time {
        for slot in 0..self.accepted.len() {
            if self.accepted[slot].as_ref().is_some_and(|a| a.deadline <= now) {
                self.close(slot);
            }
        }
        self.flush(now);
        let waiting = self.outgoing.values().any(|o| o.connection.exists() && !o.buffer.is_empty());
        let accepted = self.accepted.iter().flatten().map(|a| a.deadline).min();
        let outgoing = if waiting { now + Duration::from_millis(250) } else { Time::NEVER };
        accepted.unwrap_or(Time::NEVER).min(outgoing)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn frames_wait_while_the_connection_is_made_and_then_arrive() {
        let mut poll = mio::Poll::new().unwrap();
        let peer = NodeId::new(2).unwrap();
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let at = listener.local_addr().unwrap();
        assert!(bind(at).is_err(), "a second listener is refused");
        let mut tcp = Tcp::new(poll.registry().try_clone().unwrap(), 10, at, listener).unwrap();
        tcp.set_peers([(peer, vec![at])].into_iter());
        let frame = Bytes::copy_from_slice(&vec![failover::wire::FIRST_BYTE_BEAT; 60_000]);
        for _ in 0..30 {
            tcp.put(Time(1), peer, &frame);
        }
        assert_eq!(tcp.facts().count(), 1, "30 times 60,000 bytes are more than the buffer");
        let mut got = 0;
        let start = Instant::now();
        let mut events = mio::Events::with_capacity(16);
        while got < 17 && start.elapsed() < Duration::from_secs(10) {
            tcp.flush(Time(2));
            poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            let mut take = |f: Vec<u8>| {
                assert_eq!(f, &frame[..]);
                got += 1;
            };
            for event in &events {
                tcp.ready(Time(2), event.token(), event.is_read_closed(), &mut take);
            }
            tcp.read_on(Time(2), &mut take);
        }
        assert_eq!(got, 17);
        assert_eq!(tcp.facts().count(), 0);
    }

    /// Bytes and the end of a connection that are one event: both are noticed.
    #[test]
    fn an_end_that_comes_with_bytes_is_seen() {
        let mut poll = mio::Poll::new().unwrap();
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let at = listener.local_addr().unwrap();
        let mut tcp = Tcp::new(poll.registry().try_clone().unwrap(), 10, at, listener).unwrap();
        let mut other = std::net::TcpStream::connect(at).unwrap();
        other.write_all(&16_u32.to_be_bytes()).unwrap();
        other.write_all(&[failover::wire::FIRST_BYTE_BEAT; 16]).unwrap();
        drop(other);
        let (mut got, mut accepted) = (0, false);
        let start = Instant::now();
        let mut events = mio::Events::with_capacity(16);
        while (!accepted || tcp.accepted.iter().any(Option::is_some))
            && start.elapsed() < Duration::from_secs(10)
        {
            poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            for event in &events {
                let closed = event.is_read_closed();
                tcp.ready(Time(1), event.token(), closed, &mut |_| got += 1);
            }
            accepted |= !tcp.accepted.is_empty();
        }
        assert_eq!(got, 1);
        assert!(accepted && tcp.accepted.iter().all(Option::is_none), "it is closed");
    }
}
