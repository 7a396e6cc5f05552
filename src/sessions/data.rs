//! The data storage system socket: a pair of programs that talk over the network and move bulk
//! through storage, both connected in parallel, either able to take over from the other.
//!
//! ```text
//!   connect                                         accept
//!      │ ── control session (network first) ──────────> │  agreed service
//!      │ ── "streams N, service X" ───────────────────> │  listens for X
//!      │ <──────────────────────────────── "ready" ──── │
//!      │ ── N sessions of X (storage first) ──────────> │
//! ```
//!
//! The service of the streams is a fresh name for each pair, agreed over the control stream, so
//! that any number of pairs share one public service.

use failover::session::Preference;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Endpoint, Listener, SessionError, Stream};

/// Streams of one pair at most.
const STREAMS_MAX: u8 = 64;
const NAME_MAX: u8 = 64;

/// A control stream and streams for bulk.
#[derive(Debug)]
pub struct DataSocket {
    /// By the network, while that works.
    pub control: Stream,
    /// Through storage, while that works; in the order of their opening at both ends.
    pub streams: Vec<Stream>,
}

impl DataSocket {
    /// Connects to a program that accepts pairs under `service`, with so many streams (1..=64).
    ///
    /// # Errors
    /// As [`Endpoint::connect`]; when the other program does not speak this protocol.
    pub async fn connect(
        endpoint: &Endpoint,
        peer: &str,
        service: &str,
        streams: u8,
    ) -> Result<Self, SessionError> {
        Self::connect_by(endpoint, peer, service, streams, Preference::StorageFirst).await
    }

    /// The same, with streams that prefer another path.
    ///
    /// # Errors
    /// As [`DataSocket::connect`].
    pub async fn connect_by(
        endpoint: &Endpoint,
        peer: &str,
        service: &str,
        streams: u8,
        preference: Preference,
    ) -> Result<Self, SessionError> {
        let streams = streams.clamp(1, STREAMS_MAX);
        let mut control = endpoint.connect(peer, service, Preference::NetworkFirst).await?;
        control.write_all(&[streams]).await.map_err(|e| failed(&e))?;
        let name = read_name(&mut control).await?;
        let mut opened = Vec::new();
        for index in 0..streams {
            let mut stream = endpoint.connect(peer, &name, preference).await?;
            stream.write_all(&[index]).await.map_err(|e| failed(&e))?;
            opened.push(stream);
        }
        Ok(Self { control, streams: opened })
    }

    /// Accepts the next pair of a listener.
    ///
    /// # Errors
    /// When the node has stopped, or the other program does not speak this protocol.
    pub async fn accept(endpoint: &Endpoint, listener: &Listener) -> Result<Self, SessionError> {
        Self::accepted(endpoint, listener.accept().await?).await
    }

    /// The pair whose control stream a listener has accepted: for who accepts many, so that one
    /// that says nothing keeps no other waiting.
    ///
    /// # Errors
    /// As [`DataSocket::accept`].
    pub async fn accepted(endpoint: &Endpoint, mut control: Stream) -> Result<Self, SessionError> {
        let streams = control.read_u8().await.map_err(|e| failed(&e))?;
        if !(1..=STREAMS_MAX).contains(&streams) {
            return Err(SessionError::Daemon(format!("a pair of {streams} streams")));
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|e| SessionError::Daemon(format!("no random bytes: {e}")))?;
        let name = format!("{}#{:016x}", control.service(), u64::from_le_bytes(random));
        let own = endpoint.listen(&name).await?;
        write_name(&mut control, &name).await?;
        let mut accepted: Vec<Option<Stream>> = (0..streams).map(|_| None).collect();
        for _ in 0..streams {
            let mut stream = own.accept().await?;
            let index = stream.read_u8().await.map_err(|e| failed(&e))?;
            match accepted.get_mut(usize::from(index)) {
                Some(place @ None) => *place = Some(stream),
                _ => return Err(SessionError::Daemon(format!("two streams of number {index}"))),
            }
        }
        Ok(Self { control, streams: accepted.into_iter().flatten().collect() })
    }
}

async fn write_name(control: &mut Stream, name: &str) -> Result<(), SessionError> {
    let length = u8::try_from(name.len())
        .ok()
        .filter(|n| *n <= 3 * NAME_MAX)
        .ok_or_else(|| SessionError::Daemon("the service's name is too long for a pair".into()))?;
    control.write_all(&[length]).await.map_err(|e| failed(&e))?;
    control.write_all(name.as_bytes()).await.map_err(|e| failed(&e))
}

async fn read_name(control: &mut Stream) -> Result<String, SessionError> {
    let length = control.read_u8().await.map_err(|e| failed(&e))?;
    let mut name = vec![0; usize::from(length)];
    control.read_exact(&mut name).await.map_err(|e| failed(&e))?;
    String::from_utf8(name)
        .map_err(|_| SessionError::Daemon("the other program accepts no pairs".into()))
}

fn failed(error: &std::io::Error) -> SessionError {
    error
        .get_ref()
        .and_then(|e| e.downcast_ref::<SessionError>())
        .cloned()
        .unwrap_or_else(|| SessionError::Daemon(format!("the control stream: {error}")))
}
