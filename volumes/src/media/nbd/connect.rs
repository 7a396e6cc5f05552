//! From a URL to a connection that takes requests: socket, TLS, handshake, within one deadline.

use super::handshake::{Handshake, HandshakeError, Step};
use super::link::{Deadlines, Link};
use super::transport::{Transport, left};
use super::url::NbdUrl;
use super::{NbdError, Options, tls};
use std::io;
use std::time::Instant;

/// Under TLS 1.3 a client is done before the server has looked at its certificate, and some servers
/// say nothing and close.
const REFUSED: &str = "the server closed the connection right after; it may want another certificate \
                       from us (client-cert.pem), and its log may say why";

fn refused(done: &io::Result<bool>) -> bool {
    match done {
        Ok(whole) => !whole,
        Err(e) => matches!(
            e.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        ),
    }
}

pub(super) fn connect(url: &NbdUrl, o: &Options) -> Result<Link, NbdError> {
    let at = url.to_string();
    // What is wrong with our own certificates is said first; there is no need to ask anybody.
    let mut secure = url.tls.as_ref().map(tls::client).transpose()?;
    let until = Instant::now() + o.connect_deadline;
    let io = |e: &io::Error| io_error(&at, o, e);
    let mut transport = Transport::connect(&at, &url.server, until)?;
    let mut handshake = Handshake::new(&url.export, url.tls.is_some());
    let (mut buf, mut just_secured) = (Vec::new(), false);
    let export = loop {
        buf.resize(handshake.wants(), 0);
        let received = receive(&transport, &mut buf, until);
        if just_secured && refused(&received) {
            return Err(NbdError::Tls { at, detail: REFUSED.to_owned() });
        }
        just_secured = false;
        if !received.map_err(|e| io(&e))? {
            return Err(NbdError::Handshake { at, source: handshake.closed() });
        }
        let mut step = handshake
            .take(&buf)
            .map_err(|source| NbdError::Handshake { at: at.clone(), source })?;
        if step == Step::StartTls {
            let Some(client) = secure.take() else {
                let what = "TLS that nobody asked for".to_owned();
                return Err(NbdError::Handshake { at, source: HandshakeError::Broken { what } });
            };
            transport.secure(client, until).map_err(|e| tls_error(&at, o, &e))?;
            step = handshake.secured();
            just_secured = true;
        }
        match step {
            Step::Done(export) => break export,
            Step::Send(bytes) => {
                let sent = send(&transport, &bytes, until).map(|()| true);
                if just_secured && refused(&sent) {
                    return Err(NbdError::Tls { at, detail: REFUSED.to_owned() });
                }
                sent.map_err(|e| io(&e))?;
            }
            Step::More | Step::StartTls => {}
        }
    };
    if o.write && export.read_only() {
        return Err(NbdError::ReadOnly { at });
    }
    if o.write && !export.can_flush() {
        return Err(NbdError::NoFlush { at });
    }
    if o.write && !export.multi_conn() {
        tracing::warn!(
            volume = %at,
            "this NBD server does not promise that its other clients see what is written here \
             (no multi-conn): fine if it has no cache of its own per client; for qemu-nbd give \
             --shared 0"
        );
    }
    let deadlines = Deadlines {
        request: o.request_deadline,
        flush: o.flush_deadline,
        silence: o.silence_deadline,
    };
    Ok(Link::new(transport, export, deadlines))
}

/// `false`: the peer closed the connection.
fn receive(transport: &Transport, buf: &mut [u8], until: Instant) -> io::Result<bool> {
    let mut done = 0;
    while done < buf.len() {
        match transport.recv(&mut buf[done..]) {
            Ok(0) => return Ok(false),
            Ok(n) => done += n,
            Err(e) => wait(transport, e, true, until)?,
        }
    }
    Ok(true)
}

fn send(transport: &Transport, bytes: &[u8], until: Instant) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match transport.send(&bytes[done..], b"") {
            Ok(n) => done += n,
            Err(e) => wait(transport, e, false, until)?,
        }
    }
    loop {
        match transport.flush() {
            Ok(()) => return Ok(()),
            Err(e) => wait(transport, e, false, until)?,
        }
    }
}

fn wait(transport: &Transport, e: io::Error, read: bool, until: Instant) -> io::Result<()> {
    if e.kind() != io::ErrorKind::WouldBlock {
        return Err(e);
    }
    if left(until).is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    transport.poll(read, !read, left(until))
}

fn io_error(at: &str, o: &Options, e: &io::Error) -> NbdError {
    let at = at.to_owned();
    if e.kind() == io::ErrorKind::TimedOut {
        return NbdError::Silent { at, waited_ms: o.connect_deadline.as_millis() };
    }
    let detail = e.to_string();
    // Under TLS 1.3 a server's refusal of our certificate comes with the first answer.
    if e.get_ref().is_some_and(|e| e.is::<rustls::Error>()) {
        return NbdError::Tls { at, detail };
    }
    NbdError::Io { at, detail }
}

fn tls_error(at: &str, o: &Options, e: &io::Error) -> NbdError {
    match io_error(at, o, e) {
        NbdError::Io { at, detail } => NbdError::Tls { at, detail },
        other => other,
    }
}
