//! Frames of sessions, by TCP: a connection of its own per peer, so that bulk does not stand before
//! packets. Framed as in [`super::tcp`], and accepted there: whoever accepts does not care which
//! connection it is.
//!
//! The core is told how many bytes the pipe takes, and hands over no more: a batch is cut when the
//! one before it was written, and whatever waits meanwhile shares the next one.
//!
//! Awkward cases: a connection that lived through an outage is ended from our side, as the other
//! one is; what it had been given may or may not have arrived, which the core is told, too. While
//! there is nothing to send no connection is made; after one ended, the next is made at once when
//! something waits, later ones ever more slowly.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IoSlice, Write},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use failover::{NetworkFact, NodeId, Time};
use mio::{Registry, Token};

use super::{framing::FRAME_BYTES_MAX, outgoing::Outgoing};

/// Bytes a pipe holds.
const BUFFER_BYTES_MAX: usize = 512 << 10;
/// The core is told of room once there is so much more than it knows of.
const TELL_BYTES: usize = 128 << 10;
/// Frames of one write.
const SLICES: usize = 32;
const STUCK_AFTER: Duration = Duration::from_millis(1500);
const BACK_OFFS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// All pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    registry: Registry,
    first_token: usize,
    listen: SocketAddr,
    pipes: BTreeMap<NodeId, Pipe>,
    facts: Vec<NetworkFact>,
    /// The core waits for one of them.
    awaited: bool,
}

#[derive(Debug)]
struct Pipe {
    connection: Outgoing,
    /// Frames behind their lengths, and bytes of the first that are written.
    queue: VecDeque<([u8; 4], Bytes)>,
    written: usize,
    bytes: usize,
    /// The room the core knows of.
    told: usize,
}

impl Pipe {
    const fn new(endpoints: Vec<SocketAddr>) -> Self {
        let connection = Outgoing::new(endpoints, BACK_OFFS);
        Self { connection, queue: VecDeque::new(), written: 0, bytes: 0, told: 0 }
    }

    const fn room(&self) -> usize {
        BUFFER_BYTES_MAX.saturating_sub(self.bytes)
    }

    /// Writes what fits, on a connection that is made when something waits.
    fn drive(
        &mut self,
        now: Time,
        listen: SocketAddr,
        (registry, token): (&Registry, Token),
    ) -> io::Result<()> {
        let Self { connection, queue, written, bytes, .. } = self;
        while !queue.is_empty() {
            let Some(stream) = connection.stream(now, listen, (registry, token))? else {
                return Ok(());
            };
            let mut slices = Vec::with_capacity(2 * SLICES);
            let mut skip = *written;
            for (length, frame) in queue.iter().take(SLICES) {
                for part in [&length[..], &frame[..]] {
                    let from = skip.min(part.len());
                    skip -= from;
                    if from < part.len() {
                        slices.push(IoSlice::new(&part[from..]));
                    }
                }
            }
            match stream.write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    connection.moved(now);
                    *written += n;
                    while let Some((length, frame)) = queue.front()
                        && *written >= length.len() + frame.len()
                    {
                        *written -= length.len() + frame.len();
                        *bytes -= length.len() + frame.len();
                        queue.pop_front();
                    }
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
}

impl Pipes {
    /// Uses the tokens from `first_token` on, one per node id.
    pub(crate) fn new(registry: Registry, first_token: usize, listen: SocketAddr) -> Self {
        Self {
            registry,
            first_token,
            listen,
            pipes: BTreeMap::new(),
            facts: Vec::new(),
            awaited: false,
        }
    }

    /// Who may be sent to. Pipes to others end; those whose endpoints changed start anew.
    pub(crate) fn set_peers(&mut self, peers: impl Iterator<Item = (NodeId, Vec<SocketAddr>)>) {
        let mut before = std::mem::take(&mut self.pipes);
        for (peer, endpoints) in peers {
            let kept = before.remove(&peer).filter(|p| p.connection.endpoints == endpoints);
            let fresh = kept.is_none();
            self.pipes.insert(peer, kept.unwrap_or_else(|| Pipe::new(endpoints)));
            if fresh {
                self.facts.push(NetworkFact::PipeBroke { peer });
                self.tell(peer, true);
            }
        }
    }

    pub(crate) fn owns(&self, token: Token) -> bool {
        token.0 >= self.first_token
    }

    /// What the core is to know.
    pub(crate) fn facts(&mut self) -> impl Iterator<Item = NetworkFact> + use<> {
        self.awaited = false;
        std::mem::take(&mut self.facts).into_iter()
    }

    /// The core is to know something before the loop sleeps. Other facts have time until the next
    /// turn.
    pub(crate) const fn has_awaited_facts(&self) -> bool {
        self.awaited
    }

    /// Takes one frame. The core never hands over more than it was told is taken.
    pub(crate) fn put(&mut self, now: Time, peer: NodeId, frame: Bytes) {
        let Some(pipe) = self.pipes.get_mut(&peer) else { return };
        let Ok(length) = u32::try_from(frame.len()) else { return };
        if pipe.queue.is_empty() && !pipe.connection.is_connecting() {
            pipe.connection.moved(now);
        }
        let bytes = 4 + frame.len();
        pipe.bytes += bytes;
        pipe.told = pipe.told.saturating_sub(frame.len());
        pipe.queue.push_back((length.to_be_bytes(), frame));
    }

    fn tell(&mut self, peer: NodeId, broke: bool) {
        if let Some(pipe) = self.pipes.get_mut(&peer) {
            // With room for a frame left the core did not stop for want of it.
            self.awaited |= broke || pipe.told < FRAME_BYTES_MAX;
            pipe.told = pipe.room();
            self.facts.push(NetworkFact::PipeTakes { peer, bytes: pipe.told });
        }
    }

    /// Writes what fits, connects where frames wait, and ends what is stuck.
    pub(crate) fn flush(&mut self, now: Time) {
        for peer in self.pipes.keys().copied().collect::<Vec<_>>() {
            self.flush_one(now, peer);
        }
    }

    fn flush_one(&mut self, now: Time, peer: NodeId) {
        let token = Token(self.first_token + usize::from(peer.get()));
        let Some(pipe) = self.pipes.get_mut(&peer) else { return };
        if let Err(error) = pipe.drive(now, self.listen, (&self.registry, token)) {
            self.end(now, peer, &error);
        } else if pipe.room() >= pipe.told + TELL_BYTES {
            self.tell(peer, false);
        }
    }

    fn end(&mut self, now: Time, peer: NodeId, error: &io::Error) {
        tracing::debug!(peer = peer.get(), %error, "pipe ended");
        let Some(pipe) = self.pipes.get_mut(&peer) else { return };
        pipe.connection.end(now, &self.registry);
        pipe.queue.clear();
        (pipe.written, pipe.bytes) = (0, 0);
        self.facts.push(NetworkFact::PipeBroke { peer });
        self.tell(peer, true);
    }

    /// Something happened at a token.
    pub(crate) fn ready(&mut self, now: Time, token: Token) {
        let peer = token.0.checked_sub(self.first_token).and_then(|i| u8::try_from(i).ok());
        let Some(peer) = peer.and_then(NodeId::new) else { return };
        match self.pipes.get_mut(&peer).and_then(|pipe| pipe.connection.complaint()) {
            Some(error) => self.end(now, peer, &error),
            None => self.flush_one(now, peer),
        }
    }

    /// When something is due by time alone.
    pub(crate) fn next(&self, now: Time) -> Time {
        let next = |pipe: &Pipe| match (pipe.connection.exists(), pipe.queue.is_empty()) {
            (_, true) => Time::NEVER,
            (false, false) => pipe.connection.retry_at(),
            (true, false) => now + Duration::from_millis(100),
        };
        self.pipes.values().map(next).min().unwrap_or(Time::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener, time::Instant};

    use super::*;

    fn peer() -> NodeId {
        NodeId::new(2).unwrap()
    }

    fn takes(facts: impl Iterator<Item = NetworkFact>) -> Vec<Option<usize>> {
        facts
            .map(|f| match f {
                NetworkFact::PipeTakes { bytes, .. } => Some(bytes),
                NetworkFact::PipeBroke { .. } => None,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn frames_arrive_in_order_and_room_is_told() {
        let poll = mio::Poll::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut pipes = Pipes::new(poll.registry().try_clone().unwrap(), 10, at);
        pipes.set_peers([(peer(), vec![at])].into_iter());
        assert_eq!(takes(pipes.facts()), [None, Some(BUFFER_BYTES_MAX)]);
        for tag in 0..7 {
            pipes.put(Time(1), peer(), vec![tag; 60_000].into());
        }
        pipes.flush(Time(1));
        let (mut stream, _) = listener.accept().unwrap();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            while got.len() < 7 {
                let mut length = [0; 4];
                stream.read_exact(&mut length).unwrap();
                let mut frame = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut frame).unwrap();
                got.push((frame.len(), frame[0], frame[59_999]));
            }
            got
        });
        let start = Instant::now();
        let mut now = 2;
        while !reader.is_finished() && start.elapsed() < Duration::from_secs(10) {
            now += 1000;
            pipes.flush(Time(now));
            std::thread::sleep(Duration::from_millis(1));
        }
        let got = reader.join().unwrap();
        assert_eq!(got, (0..7).map(|tag| (60_000, tag, tag)).collect::<Vec<_>>());
        assert_eq!(takes(pipes.facts()).pop(), Some(Some(BUFFER_BYTES_MAX)));
        assert!(!pipes.has_awaited_facts());
        // The reader is gone: whatever was given to the connection may be.
        let start = Instant::now();
        let mut facts = Vec::new();
        while facts.is_empty() && start.elapsed() < Duration::from_secs(10) {
            pipes.ready(Time(now), Token(12));
            facts = takes(pipes.facts());
        }
        assert_eq!(facts, [None, Some(BUFFER_BYTES_MAX)]);
    }

    /// Room of which the core had enough can wait; room it stopped for cannot.
    #[test]
    fn the_core_is_told_of_room_at_once_only_when_it_waits_for_it() {
        let poll = mio::Poll::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut pipes = Pipes::new(poll.registry().try_clone().unwrap(), 10, at);
        pipes.set_peers([(peer(), vec![at])].into_iter());
        assert!(pipes.has_awaited_facts(), "it knows of none yet");
        let reader = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 20];
            while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
        });
        for awaited in [false, true] {
            let told = takes(pipes.facts()).pop().flatten().unwrap();
            assert!(!pipes.has_awaited_facts());
            let mut left = if awaited { told - 1000 } else { told / 4 };
            while left > 0 {
                let frame = left.min(60_000);
                pipes.put(Time(1), peer(), vec![1; frame].into());
                left -= frame;
            }
            let start = Instant::now();
            while !pipes.pipes[&peer()].queue.is_empty() {
                assert!(start.elapsed() < Duration::from_secs(10), "it stands still");
                pipes.flush(Time(1));
            }
            assert_eq!(pipes.has_awaited_facts(), awaited, "told {told}");
        }
        drop(pipes);
        reader.join().unwrap();
    }
}
