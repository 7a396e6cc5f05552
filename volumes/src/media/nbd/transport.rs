//! One socket, in the clear or under TLS, that never blocks: who has to wait calls [`Transport::poll`].
//!
//! ```text
//!   send: head + data -> [TLS records] -> socket          recv: socket -> [TLS records] -> buffer
//! ```
//!
//! Awkward cases: under TLS both directions share one state and one mutex, which is held for
//! computing and for system calls that return at once, never for waiting, so that a full send buffer
//! cannot keep replies from being read; what was decrypted already is invisible to `poll`, so a reader
//! polls only after [`Transport::recv`] said `WouldBlock`; a closed peer is an error, never a signal.

use super::NbdError;
use super::url::Server;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustls::ClientConnection;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

pub(super) struct Transport {
    fd: OwnedFd,
    tls: Option<Mutex<ClientConnection>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// The bare socket as rustls wants it.
struct Raw<'a>(&'a OwnedFd);

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (n, _) = again(|| rustix::net::recv(self.0, &mut *buf, RecvFlags::DONTWAIT))?;
        Ok(n)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        send(self.0, &[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self.0, bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send(fd: &OwnedFd, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    again(|| rustix::net::sendmsg(fd, bufs, &mut SendAncillaryBuffer::default(), flags))
}

fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(Into::into),
        }
    }
}

/// What is left until then; zero when it has passed.
pub(super) fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

impl Transport {
    pub(super) fn connect(at: &str, server: &Server, until: Instant) -> Result<Self, NbdError> {
        let fd = match server {
            Server::Tcp { host, port } => tcp(at, host, *port, until)?,
            Server::Unix(path) => unix(at, path, until)?,
        };
        Ok(Self { fd, tls: None })
    }

    /// Speaks TLS from here on.
    pub(super) fn secure(&mut self, mut tls: ClientConnection, until: Instant) -> io::Result<()> {
        let mut raw = Raw(&self.fd);
        while tls.is_handshaking() || tls.wants_write() {
            let did =
                if tls.wants_write() { tls.write_tls(&mut raw) } else { tls.read_tls(&mut raw) };
            match did {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if left(until).is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.poll(!tls.wants_write(), tls.wants_write(), left(until))?;
                }
                Err(e) => return Err(e),
            }
            if let Err(e) = tls.process_new_packets() {
                // So that the server's log tells the same story.
                let _ = tls.write_tls(&mut raw);
                return Err(io::Error::new(io::ErrorKind::InvalidData, e));
            }
        }
        self.tls = Some(Mutex::new(tls));
        Ok(())
    }

    fn locked(&self) -> Option<MutexGuard<'_, ClientConnection>> {
        self.tls.as_ref().map(|tls| tls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes some bytes of both in a row; `WouldBlock` when it can take none.
    pub(super) fn send(&self, head: &[u8], data: &[u8]) -> io::Result<usize> {
        let bufs = [IoSlice::new(head), IoSlice::new(data)];
        let Some(mut tls) = self.locked() else { return send(&self.fd, &bufs) };
        write_out(&mut tls, &self.fd)?;
        let taken = tls.writer().write_vectored(&bufs)?;
        match write_out(&mut tls, &self.fd) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(taken),
        }
    }

    /// Whether all that was taken is with the kernel; `WouldBlock`: not yet.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.locked().map_or(Ok(()), |mut tls| write_out(&mut tls, &self.fd))
    }

    /// 0: the peer closed.
    pub(super) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(mut tls) = self.locked() else { return Raw(&self.fd).read(buf) };
        loop {
            match tls.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if tls.read_tls(&mut Raw(&self.fd))? == 0 {
                return Ok(0);
            }
            let processed = tls.process_new_packets();
            // A key update or an alert may want to be answered; the next sender has more patience.
            let _ = write_out(&mut tls, &self.fd);
            processed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        }
    }

    /// Whether an incomplete `recv` means that nothing more is there.
    pub(super) fn short_is_empty(&self) -> bool {
        self.tls.is_none()
    }

    /// Returns when one of the two may go on, at the latest after `patience`.
    pub(super) fn poll(&self, read: bool, write: bool, patience: Duration) -> io::Result<()> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, read);
        flags.set(PollFlags::OUT, write);
        let patience = patience.try_into().unwrap_or_default();
        match poll(&mut [PollFd::new(&self.fd, flags)], Some(&patience)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Wakes whoever polls; nothing works afterwards.
    pub(super) fn shutdown(&self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    /// Says goodbye if that is possible without waiting.
    pub(super) fn farewell(&self, last: &[u8]) {
        let _ = self.send(last, b"");
        if let Some(mut tls) = self.locked() {
            tls.send_close_notify();
            let _ = write_out(&mut tls, &self.fd);
        }
    }
}

fn write_out(tls: &mut ClientConnection, fd: &OwnedFd) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut Raw(fd))?;
    }
    Ok(())
}

fn tcp(at: &str, host: &str, port: u16, until: Instant) -> Result<OwnedFd, NbdError> {
    let fail = |detail: String| NbdError::Connect { at: at.to_owned(), detail };
    let mut last = "its name leads nowhere".to_owned();
    for address in resolve(host, port, until).map_err(fail)?.into_iter().take(ADDRESSES_MAX) {
        let patience = left(until);
        if patience.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|e| fail(e.to_string()))?;
                return Ok(stream.into());
            }
            Err(e) => last = e.to_string(),
        }
    }
    Err(fail(last))
}

/// A resolver has a patience of its own, which nobody can change: a thread waits for it.
fn resolve(host: &str, port: u16, until: Instant) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (tell, told) = mpsc::sync_channel(1);
    let name = host.to_owned();
    let work = move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
        let _ = tell.send(found.map_err(|e| e.to_string()));
    };
    let spawned = std::thread::Builder::new().name("sp-resolve".into()).spawn(work);
    spawned.map_err(|e| e.to_string())?;
    let found = told.recv_timeout(left(until));
    found.unwrap_or_else(|_| Err("no answer from the name server".to_owned()))
}

fn unix(at: &str, path: &Path, until: Instant) -> Result<OwnedFd, NbdError> {
    let fail = |e: Errno| NbdError::Connect { at: at.to_owned(), detail: e.to_string() };
    let address = SocketAddrUnix::new(path).map_err(fail)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(fail)?;
    loop {
        match rustix::net::connect(&fd, &address) {
            Ok(()) => return Ok(fd),
            // Its queue is full.
            Err(Errno::AGAIN) if !left(until).is_zero() => {
                std::thread::sleep(Duration::from_millis(10).min(left(until)));
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(fail(e)),
        }
    }
}
