//! Sessions through the socket of a daemon on this machine, and what is said over it.
//!
//! ```text
//!   program: Stream ─ Port ─ two tasks ══ socket ══ two tasks ─ Port ─ turn loop : daemon
//! ```
//!
//! One connection per session; a message is a u32 length (little-endian), a kind, and so many
//! bytes. The daemon tells the peer that bytes were taken only when the program took them, so what
//! lies in the socket is neither acknowledged nor beyond the window.

use std::{
    io,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use failover::{NodeId, Path, session::Preference};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
};

use super::{SessionError, Stats, Stream, port::Port, stream::Teller};

/// Of what is said here.
pub(super) const VERSION: u32 = 1;
/// Longest message, bytes.
pub(super) const MESSAGE_MAX: usize = 64 << 10;

/// Kinds of messages.
pub(super) mod kind {
    /// JSON: [`super::Hello`] from the program, [`super::Ready`] from the daemon.
    pub(crate) const HELLO: u8 = 0;
    /// Bytes of the session.
    pub(crate) const DATA: u8 = 1;
    /// There will be no more.
    pub(crate) const END: u8 = 2;
    /// The program gives the session up.
    pub(crate) const RESET: u8 = 3;
    /// JSON: the [`SessionError`] why there is no session, or no more.
    pub(crate) const FAILED: u8 = 4;
    /// JSON: [`super::News`].
    pub(crate) const NEWS: u8 = 5;
    /// The program took so many bytes (u64, little-endian).
    pub(crate) const TAKEN: u8 = 6;
    /// The program wants no more bytes.
    pub(crate) const ABANDON: u8 = 7;
    /// Both sides are done.
    pub(crate) const CLOSED: u8 = 8;
}

/// What a program wants.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) want: Want,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Want {
    /// A session.
    Connect { peer: String, service: String, preference: Preference },
    /// To listen, for as long as the connection lives.
    Listen { service: String },
    /// The next session of a service somebody listens for.
    Accept { service: String },
}

/// It is so.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) peer: Option<String>,
}

/// How things stand.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct News {
    pub(super) path: Option<Path>,
    pub(super) stats: Stats,
}

/// The socket of sessions beside a control socket.
pub(super) fn beside(control_socket: &FilePath) -> PathBuf {
    let mut path = control_socket.as_os_str().to_owned();
    path.push(".sessions");
    path.into()
}

/// Writes one message, its head and its bytes at once: the other side is woken for both.
pub(super) async fn say(out: &mut OwnedWriteHalf, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut head = [0; 5];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4] = kind;
    out.write_all_buf(&mut Buf::chain(&head[..], bytes)).await
}

/// Writes one message that is JSON.
pub(super) async fn say_json(
    out: &mut OwnedWriteHalf,
    kind: u8,
    what: &impl Serialize,
) -> io::Result<()> {
    say(out, kind, &serde_json::to_vec(what)?).await
}

/// Reads one message into `into`; its kind, or nothing at the end.
pub(super) async fn hear(from: &mut OwnedReadHalf, into: &mut Vec<u8>) -> io::Result<Option<u8>> {
    let mut head = [0; 5];
    if let Err(error) = from.read_exact(&mut head).await {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Ok(None),
            _ => Err(error),
        };
    }
    let length = head.first_chunk().map_or(0, |l| u32::from_le_bytes(*l));
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without end"));
    }
    into.resize(length, 0);
    from.read_exact(into).await?;
    Ok(Some(head[4]))
}

fn broken(error: &io::Error) -> SessionError {
    SessionError::Daemon(format!("the daemon's socket: {error}"))
}

/// Asks, and waits for the answer.
async fn ask(
    control_socket: &FilePath,
    want: Want,
) -> Result<(OwnedReadHalf, OwnedWriteHalf, Ready), SessionError> {
    let path = beside(control_socket);
    let socket = UnixStream::connect(&path).await.map_err(|error| {
        SessionError::Daemon(format!("no daemon answers on {}: {error}", path.display()))
    })?;
    let (mut from, mut out) = socket.into_split();
    let hello = Hello { version: VERSION, want };
    say_json(&mut out, kind::HELLO, &hello).await.map_err(|e| broken(&e))?;
    let mut bytes = Vec::new();
    let answer = hear(&mut from, &mut bytes).await.map_err(|e| broken(&e))?;
    match answer {
        Some(kind::HELLO) => {
            let ready = serde_json::from_slice(&bytes).map_err(|e| broken(&e.into()))?;
            Ok((from, out, ready))
        }
        Some(kind::FAILED) => {
            Err(serde_json::from_slice(&bytes).unwrap_or_else(|e| broken(&e.into())))
        }
        _ => Err(SessionError::Stopped),
    }
}

/// A session by way of a daemon.
pub(super) async fn connect(
    control_socket: &FilePath,
    peer: &str,
    service: &str,
    preference: Preference,
) -> Result<Stream, SessionError> {
    let want = Want::Connect { peer: peer.to_owned(), service: service.to_owned(), preference };
    let (from, out, ready) = ask(control_socket, want).await?;
    Ok(begin(from, out, ready, service))
}

/// The program's side of a session that was accepted.
fn begin(from: OwnedReadHalf, out: OwnedWriteHalf, ready: Ready, service: &str) -> Stream {
    // The daemon knows which peer it is; here the name is enough.
    let nobody = NodeId::new(1).unwrap_or_else(|| unreachable!("1 is an id"));
    let port = Arc::new(Port::new(nobody, ready.peer.unwrap_or_default(), service.to_owned()));
    port.lock().open = true;
    let notify = Arc::new(Notify::new());
    tokio::spawn(receive(from, Arc::clone(&port)));
    tokio::spawn(send(out, Arc::clone(&port), Arc::clone(&notify)));
    Stream::new(Teller::Task(notify), port)
}

async fn receive(mut from: OwnedReadHalf, port: Arc<Port>) {
    let mut bytes = Vec::new();
    loop {
        let heard = hear(&mut from, &mut bytes).await;
        let mut state = port.lock();
        match heard {
            Ok(Some(kind::DATA)) => state.arrived(std::mem::take(&mut bytes).into()),
            Ok(Some(kind::END)) => {
                state.ended = true;
                state.wake_all();
            }
            Ok(Some(kind::NEWS)) => {
                if let Ok(News { path, stats }) = serde_json::from_slice(&bytes) {
                    state.path = path;
                    state.received_there = stats.received_there;
                    state.taken_there = stats.taken_there;
                    (state.sent, state.came) = (stats.sent_by, stats.received_by);
                    state.wake_watchers();
                }
            }
            Ok(Some(kind::CLOSED)) => {
                state.closed = true;
                return state.wake_all();
            }
            Ok(Some(kind::FAILED)) => {
                let why = serde_json::from_slice(&bytes).unwrap_or_else(|e| broken(&e.into()));
                return state.fail(why);
            }
            Ok(Some(_)) => {}
            Ok(None) => return state.fail(SessionError::Stopped),
            Err(error) => return state.fail(broken(&error)),
        }
    }
}

async fn send(mut out: OwnedWriteHalf, port: Arc<Port>, notify: Arc<Notify>) {
    let (mut ended, mut abandoned) = (false, false);
    loop {
        notify.notified().await;
        let mut messages: Vec<(u8, Bytes)> = Vec::new();
        {
            let mut state = port.lock();
            if state.error.is_some() || state.closed {
                return;
            }
            if state.reset {
                messages.push((kind::RESET, Bytes::new()));
            }
            let taken = std::mem::take(&mut state.taken);
            if taken > 0 {
                messages.push((kind::TAKEN, Bytes::copy_from_slice(&taken.to_le_bytes())));
            }
            while let Some(bytes) = state.outgoing.pop(MESSAGE_MAX) {
                messages.push((kind::DATA, bytes));
                state.wake_writer();
            }
            if state.finish && !std::mem::replace(&mut ended, true) {
                messages.push((kind::END, Bytes::new()));
            }
            if state.abandon && !std::mem::replace(&mut abandoned, true) {
                messages.push((kind::ABANDON, Bytes::new()));
            }
        }
        for (kind, bytes) in messages {
            if say(&mut out, kind, &bytes).await.is_err() {
                // The receiving task says why.
                return;
            }
            if kind == kind::RESET {
                return;
            }
        }
    }
}

/// Listening by way of a daemon.
#[derive(Debug)]
pub(super) struct RemoteListener {
    control_socket: PathBuf,
    service: String,
    /// The service lives as long as this connection.
    _registered: (OwnedReadHalf, OwnedWriteHalf),
}

impl RemoteListener {
    pub(super) async fn new(
        control_socket: &FilePath,
        service: &str,
    ) -> Result<Self, SessionError> {
        let want = Want::Listen { service: service.to_owned() };
        let (from, out, _) = ask(control_socket, want).await?;
        Ok(Self {
            control_socket: control_socket.to_owned(),
            service: service.to_owned(),
            _registered: (from, out),
        })
    }

    pub(super) fn service(&self) -> &str {
        &self.service
    }

    pub(super) async fn accept(&self) -> Result<Stream, SessionError> {
        let want = Want::Accept { service: self.service.clone() };
        let (from, out, ready) = ask(&self.control_socket, want).await?;
        Ok(begin(from, out, ready, &self.service))
    }
}
