//! A TCP connection that goes out to a peer: made when it is needed, ended when it stands still,
//! made again ever more slowly while it fails, by one endpoint of the peer after the other.
//!
//! What it carries is its owner's; whoever accepts it never says anything.

use std::{
    io::{self, Read},
    net::SocketAddr,
    time::Duration,
};

use failover::Time;
use mio::{Interest, Registry, Token, net::TcpStream};
use socket2::{Domain, Socket, Type};

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// `TCP_USER_TIMEOUT`: the kernel gives up what was not acknowledged for so long.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_millis(1500);

/// The connection.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) endpoints: Vec<SocketAddr>,
    next_endpoint: usize,
    stream: Option<TcpStream>,
    connected: bool,
    /// Connecting: since when. Connected: when something was last written, or first waited.
    since: Time,
    retry_at: Time,
    back_off: Duration,
    /// The first wait after a failure, and the longest.
    back_offs: (Duration, Duration),
}

impl Outgoing {
    pub(super) const fn new(endpoints: Vec<SocketAddr>, back_offs: (Duration, Duration)) -> Self {
        Self {
            endpoints,
            next_endpoint: 0,
            stream: None,
            connected: false,
            since: Time::ZERO,
            retry_at: Time::ZERO,
            back_off: back_offs.0,
            back_offs,
        }
    }

    /// There is one, made or being made.
    pub(super) const fn exists(&self) -> bool {
        self.stream.is_some()
    }

    /// It is being made.
    pub(super) const fn is_connecting(&self) -> bool {
        self.stream.is_some() && !self.connected
    }

    /// When the next one may be made.
    pub(super) const fn retry_at(&self) -> Time {
        self.retry_at
    }

    /// Something begins to wait that nothing waited before, or was written.
    pub(super) const fn moved(&mut self, now: Time) {
        self.since = now;
    }

    /// Nothing that waits has moved for so long.
    pub(super) fn stands_still(&self, now: Time, patience: Duration) -> bool {
        now.since(self.since) > patience
    }

    /// The stream, once it is connected; begins to connect when there is none and it is time.
    pub(super) fn stream(
        &mut self,
        now: Time,
        listen: SocketAddr,
        (registry, token): (&Registry, Token),
    ) -> io::Result<Option<&mut TcpStream>> {
        if self.stream.is_none() {
            let to = self.endpoints.get(self.next_endpoint % self.endpoints.len().max(1));
            if let Some(to) = to.filter(|_| now >= self.retry_at) {
                let mut stream = connect(listen, *to)?;
                let interest = Interest::READABLE | Interest::WRITABLE;
                registry.register(&mut stream, token, interest)?;
                self.stream = Some(stream);
                self.connected = false;
                self.since = now;
            }
            // Whether it is made is told by an event.
            return Ok(None);
        }
        let Some(stream) = self.stream.as_mut() else {
            return Ok(None);
        };
        if !self.connected {
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            match stream.peer_addr() {
                Ok(_) => {
                    self.connected = true;
                    self.back_off = self.back_offs.0;
                    self.since = now;
                }
                Err(_) if now.since(self.since) < CONNECT_WITHIN => return Ok(None),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(Some(stream))
    }

    /// Whether the other side ended it, or said anything at all, which is as bad.
    pub(super) fn complaint(&mut self) -> Option<io::Error> {
        let stream = self.stream.as_mut().filter(|_| self.connected)?;
        match stream.read(&mut [0; 64]) {
            Ok(0) => Some(io::ErrorKind::ConnectionReset.into()),
            Ok(_) => Some(io::ErrorKind::InvalidData.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) => Some(e),
        }
    }

    /// Ends it; the next one goes to the next endpoint, after a while.
    pub(super) fn end(&mut self, now: Time, registry: &Registry) {
        if let Some(mut stream) = self.stream.take() {
            let _ = registry.deregister(&mut stream);
        }
        self.next_endpoint = self.next_endpoint.wrapping_add(1);
        self.connected = false;
        self.retry_at = now + self.back_off;
        self.back_off = (self.back_off * 2).min(self.back_offs.1);
    }
}

fn connect(listen: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // Refused on old kernels only; the stuck-buffer rule above then does the work alone.
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    if !listen.ip().is_unspecified() && listen.is_ipv4() == to.is_ipv4() {
        socket.bind(&SocketAddr::new(listen.ip(), 0).into())?;
    }
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(TcpStream::from_std(socket.into()))
}
