//! Frames by UDP: received in batches and merged, sent in batches and segmented, never waiting.
//!
//! Awkward cases:
//! * One address that cannot be resolved fills a shared send buffer and starves the living peers
//!   (97 % of sends refused at the default size), hence buffers of 4 MiB. What is refused anyway
//!   is reported once per peer and flush and never retried: the link keeps the frame.
//! * An ICMP error about an earlier datagram fails the next, innocent send; it is tried once more.
//! * A segmented send may be refused where single ones pass (EIO without checksum offload, EINVAL
//!   on old kernels, EMSGSIZE after the path shrank): that run is sent one by one, and for EIO and
//!   EINVAL all later ones too.
//! * Fragments are forbidden, so the path MTU matters: it is asked of the kernel by a connected
//!   probe socket. Loopback claims 65,536; more than 9000 buys nothing, so that is the cap.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use bytes::Bytes;
use failover::{NetworkFact, NodeId, Time};
use socket2::{Domain, Socket, Type};

use crate::sys::{
    clock, errqueue,
    mmsg::{self, BATCH, ReceiveBatch, Run, SEGMENTS_MAX},
    sockopt,
};

const BUFFER_BYTES: i32 = 4 << 20;
/// Longest merged message of the kernel.
const MERGED_BYTES_MAX: usize = 65_536;
/// A run stays below what one IP packet holds.
const RUN_BYTES_MAX: usize = 65_000;
const MTU_MAX: usize = 9000;
/// Complaints read at one go.
const COMPLAINTS_MAX: usize = 64;

/// One datagram to send.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) peer: NodeId,
    pub(crate) to: SocketAddr,
    pub(crate) frame: Bytes,
}

impl AsRef<[u8]> for Datagram {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

/// A non-blocking socket on `listen`; several may share the address.
pub(crate) fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
    if listen.is_ipv6() {
        // An unspecified IPv6 address serves both families; the addresses are mapped.
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    sockopt::buffers(&socket, BUFFER_BYTES);
    // Speeds up suspicion and keeps the MTU right; its lack costs only that.
    if let Err(error) = sockopt::path_errors(&socket, listen.is_ipv6()) {
        tracing::debug!(%error, "the kernel does not report path errors");
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// The data socket.
#[derive(Debug)]
pub(crate) struct Udp {
    socket: UdpSocket,
    listen: SocketAddr,
    segmentation: bool,
    received: ReceiveBatch,
    outgoing: Vec<Datagram>,
    peers: BTreeMap<SocketAddr, NodeId>,
    sizes: BTreeMap<NodeId, usize>,
    facts: Vec<NetworkFact>,
    /// Datagrams the kernel did not take.
    pub(crate) refused: u64,
}

impl Udp {
    pub(crate) fn new(socket: UdpSocket, listen: SocketAddr) -> Self {
        if let Err(error) = sockopt::receive_merged(&socket) {
            tracing::debug!(%error, "datagrams arrive one by one");
        }
        Self {
            socket,
            listen,
            segmentation: true,
            received: ReceiveBatch::new(MERGED_BYTES_MAX),
            outgoing: Vec::new(),
            peers: BTreeMap::new(),
            sizes: BTreeMap::new(),
            facts: Vec::new(),
            refused: 0,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whose address is whose, for error reports and path MTU.
    pub(crate) fn set_peers(&mut self, peers: impl Iterator<Item = (NodeId, SocketAddr)>) {
        self.peers = peers.map(|(id, address)| (address, id)).collect();
        let known: BTreeSet<_> = self.peers.values().copied().collect();
        self.sizes.retain(|id, _| known.contains(id));
    }

    /// Facts since the last call.
    pub(crate) fn facts(&mut self) -> std::vec::Drain<'_, NetworkFact> {
        self.facts.drain(..)
    }

    pub(crate) fn has_facts(&self) -> bool {
        !self.facts.is_empty()
    }

    /// Hands what arrived to `take`, with the time when it had been read, at most `rounds` batches;
    /// true when more may wait.
    pub(crate) fn receive(
        &mut self,
        rounds: usize,
        take: &mut dyn FnMut(Time, SocketAddr, &[u8]),
    ) -> bool {
        for _ in 0..rounds {
            let count = match self.received.receive(&self.socket) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    // An ICMP error of something we sent: the queue has the details.
                    self.complaints();
                    continue;
                }
            };
            let now = clock::now();
            for message in (0..count).filter_map(|i| self.received.get(i)) {
                for datagram in message.datagrams() {
                    take(now, message.from, datagram);
                }
            }
            if count < BATCH {
                return false;
            }
        }
        true
    }

    pub(crate) fn put(&mut self, datagram: Datagram) {
        self.outgoing.push(datagram);
    }

    /// Sends everything put since the last call.
    pub(crate) fn flush(&mut self) {
        if self.outgoing.is_empty() {
            return;
        }
        let outgoing = std::mem::take(&mut self.outgoing);
        let mut rest = outgoing.as_slice();
        let mut refusals: BTreeMap<NodeId, io::Error> = BTreeMap::new();
        let mut resize = BTreeSet::new();
        while !rest.is_empty() {
            let (runs, taken) = self.runs(rest);
            self.send_runs(&runs, &mut refusals, &mut resize);
            rest = &rest[taken..];
        }
        for (peer, error) in refusals {
            self.facts.push(NetworkFact::SendError { peer, detail: error.to_string() });
        }
        for peer in resize {
            self.measure(peer);
        }
        self.outgoing = outgoing;
        self.outgoing.clear();
    }

    /// The first up to [`BATCH`] runs of `datagrams`, and how many datagrams they hold.
    fn runs<'a>(&self, datagrams: &'a [Datagram]) -> (Vec<Run<'a, Datagram>>, usize) {
        let mut runs = Vec::with_capacity(BATCH);
        let mut start = 0;
        while start < datagrams.len() && runs.len() < BATCH {
            let length = if self.segmentation { run_length(&datagrams[start..]) } else { 1 };
            let frames = &datagrams[start..start + length];
            runs.push(Run { to: frames[0].to, frames });
            start += length;
        }
        (runs, start)
    }

    fn send_runs(
        &mut self,
        mut runs: &[Run<'_, Datagram>],
        refusals: &mut BTreeMap<NodeId, io::Error>,
        resize: &mut BTreeSet<NodeId>,
    ) {
        let mut tried_again = false;
        while let [run, later @ ..] = runs {
            let error = match mmsg::send(&self.socket, self.listen.is_ipv6(), runs) {
                Ok(sent) if sent > 0 => {
                    runs = &runs[sent.min(runs.len())..];
                    tried_again = false;
                    continue;
                }
                Ok(_) => io::ErrorKind::WouldBlock.into(),
                Err(e) => e,
            };
            let peer = run.frames[0].peer;
            let code = error.raw_os_error();
            if run.frames.len() > 1
                && matches!(code, Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
            {
                if code != Some(libc::EMSGSIZE) {
                    tracing::info!(%error, "the kernel refuses segmented sends; sending singly");
                    self.segmentation = false;
                }
                let singles: Vec<_> =
                    run.frames.chunks(1).map(|frames| Run { to: run.to, frames }).collect();
                for batch in singles.chunks(BATCH) {
                    self.send_runs(batch, refusals, resize);
                }
                runs = later;
                continue;
            }
            let full = error.kind() == io::ErrorKind::WouldBlock || code == Some(libc::ENOBUFS);
            if full {
                // Nothing more fits now, for nobody. That says how busy we are and nothing about
                // any path: the frames stay unacknowledged, and the link sends them again.
                self.refused += runs.iter().map(|r| r.frames.len() as u64).sum::<u64>();
                return;
            }
            if code == Some(libc::EMSGSIZE) {
                resize.insert(peer);
            } else if !tried_again {
                tried_again = true;
                continue;
            }
            self.refused += run.frames.len() as u64;
            refusals.entry(peer).or_insert(error);
            tried_again = false;
            runs = later;
        }
    }

    /// Reads what the network complained about.
    pub(crate) fn complaints(&mut self) {
        let mut resize = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for _ in 0..COMPLAINTS_MAX {
            let Ok(Some(complaint)) = errqueue::next(&self.socket) else { break };
            let Some(peer) = complaint.to.and_then(|to| self.peers.get(&to)).copied() else {
                continue;
            };
            if complaint.too_large {
                resize.insert(peer);
            } else if seen.insert(peer) {
                let detail = complaint.error.to_string();
                self.facts.push(NetworkFact::SendError { peer, detail });
            }
        }
        for peer in resize {
            self.measure(peer);
        }
    }

    /// Asks for the path MTU to every peer again.
    pub(crate) fn measure_all(&mut self) {
        let peers: BTreeSet<_> = self.peers.values().copied().collect();
        for peer in peers {
            self.measure(peer);
        }
    }

    fn measure(&mut self, peer: NodeId) {
        let bytes = self
            .peers
            .iter()
            .filter(|(_, id)| **id == peer)
            .filter_map(|(address, _)| datagram_size(self.listen.ip(), *address).ok())
            .min();
        let Some(bytes) = bytes else { return };
        if self.sizes.insert(peer, bytes) != Some(bytes) {
            self.facts.push(NetworkFact::DatagramSize { peer, bytes });
        }
    }

    /// The smallest datagram size toward any peer, if any is known.
    pub(crate) fn size_min(&self) -> Option<usize> {
        self.sizes.values().copied().min()
    }
}

/// How many of the first datagrams may leave as one message.
fn run_length(datagrams: &[Datagram]) -> usize {
    let Some(first) = datagrams.first() else { return 0 };
    let size = first.frame.len();
    let mut total = size;
    let mut length = 1;
    for next in datagrams[1..].iter().take(SEGMENTS_MAX - 1) {
        total += next.frame.len();
        if next.to != first.to
            || next.frame.len() > size
            || next.frame.is_empty()
            || total >= RUN_BYTES_MAX
        {
            break;
        }
        length += 1;
        if next.frame.len() < size {
            break;
        }
    }
    length
}

/// Bytes one datagram to `to` may hold on the way the kernel would take now.
pub(crate) fn datagram_size(from: IpAddr, to: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    if !from.is_unspecified() && from.is_ipv4() == to.is_ipv4() {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect(&to.into())?;
    let mtu = sockopt::path_mtu(&socket, to.is_ipv6())?.min(MTU_MAX);
    let headers = if to.is_ipv6() { 48 } else { 28 };
    Ok(mtu.saturating_sub(headers))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn pair(address: &str) -> (Udp, Udp, SocketAddr) {
        let a = bind(address.parse().unwrap()).unwrap();
        let b = bind(address.parse().unwrap()).unwrap();
        let (at_a, at_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
        (Udp::new(a, at_a), Udp::new(b, at_b), at_b)
    }

    fn node(id: u8) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn exchange(address: &str, sizes: &[usize]) {
        let (mut a, mut b, to) = pair(address);
        for (n, size) in sizes.iter().enumerate() {
            let mut frame = vec![u8::try_from(n % 251).unwrap(); *size];
            frame[0] = 0x12;
            a.put(Datagram { peer: node(2), to, frame: frame.into() });
        }
        a.flush();
        assert_eq!(a.refused, 0);
        let mut got = Vec::new();
        let start = Instant::now();
        while got.len() < sizes.len() && start.elapsed() < Duration::from_secs(10) {
            b.receive(4, &mut |_, _, bytes| got.push((bytes.len(), bytes[bytes.len() - 1])));
        }
        let want: Vec<_> =
            sizes.iter().enumerate().map(|(n, s)| (*s, u8::try_from(n % 251).unwrap())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn runs_of_equal_frames_arrive_as_they_were_put() {
        let mut sizes = vec![1400; 150];
        sizes.extend([700, 1400, 1400, 33, 34, 8000, 8000]);
        exchange("127.0.0.1:0", &sizes);
        exchange("[::1]:0", &sizes);
    }

    #[test]
    fn a_run_ends_at_its_bounds() {
        let datagram = |size: usize, port: u16| Datagram {
            peer: node(1),
            to: ([127, 0, 0, 1], port).into(),
            frame: vec![0; size].into(),
        };
        let many: Vec<_> = (0..100).map(|_| datagram(100, 1)).collect();
        assert_eq!(run_length(&many), SEGMENTS_MAX);
        let long: Vec<_> = (0..100).map(|_| datagram(9000, 1)).collect();
        assert_eq!(run_length(&long), 7, "below 65,000 bytes");
        assert_eq!(run_length(&[datagram(9, 1), datagram(9, 2)]), 1, "one address");
        assert_eq!(run_length(&[datagram(9, 1), datagram(10, 1)]), 1, "none is longer");
        assert_eq!(run_length(&[datagram(9, 1), datagram(3, 1), datagram(3, 1)]), 2);
    }

    #[test]
    fn a_closed_port_is_reported_as_a_fact() {
        let (mut a, b, to) = pair("127.0.0.1:0");
        a.set_peers([(node(2), to)].into_iter());
        drop(b);
        a.put(Datagram { peer: node(2), to, frame: Bytes::from_static(b"x") });
        a.flush();
        let start = Instant::now();
        loop {
            a.complaints();
            let facts: Vec<_> = a.facts().collect();
            if let [NetworkFact::SendError { peer, .. }] = facts.as_slice() {
                assert_eq!(*peer, node(2));
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "no complaint: {facts:?}");
        }
    }

    #[test]
    fn loopback_counts_as_nine_thousand() {
        let size = datagram_size([127, 0, 0, 1].into(), ([127, 0, 0, 1], 9).into()).unwrap();
        assert_eq!(size, 9000 - 28);
    }
}
