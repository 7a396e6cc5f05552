//! One session, as a program holds it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use failover::{Path, session::ByPath};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    task::coop::poll_proceed,
};

use super::{
    SessionError,
    hub::Hub,
    port::{Guard, OUTGOING_MAX, Port},
};

/// A reliable stream of bytes both ways.
///
/// # Reading and writing
/// `AsyncRead + AsyncWrite`. Both are cancel safe: what was not returned as read or written was
/// not. A write returns when the bytes are taken over, not when they arrived; `flush` does nothing
/// more. Errors are [`io::Error`]s that hold a [`SessionError`]; after one, nothing more comes.
///
/// # Ends
/// `shutdown` ends our direction and returns at once. Dropping the stream does so, too, and says
/// that nothing more is read; what was written still arrives. [`Stream::reset`] gives it up.
#[derive(Debug)]
pub struct Stream {
    teller: Teller,
    port: Arc<Port>,
}

/// Who is told that something lies in the port.
#[derive(Debug, Clone)]
pub(super) enum Teller {
    /// The loop of this process's node.
    Loop(Arc<Hub>),
    /// The task that holds the daemon's socket.
    Task(Arc<Notify>),
}

impl Teller {
    pub(super) fn tell(&self, port: &Arc<Port>, state: Guard<'_>) {
        match self {
            Self::Loop(hub) => hub.tell(port, state),
            Self::Task(notify) => {
                drop(state);
                notify.notify_one();
            }
        }
    }
}

/// What became of a stream so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// Bytes the program wrote.
    pub written: u64,
    /// Bytes of these that arrived at the peer.
    pub received_there: u64,
    /// Bytes of these that the application there took.
    pub taken_there: u64,
    /// Bytes that came from there.
    pub received: u64,
    /// Bytes we sent, by path; what was sent again counts again. As of the last acknowledgement.
    pub sent_by: ByPath,
    /// Bytes that came, by path, copies included. Known when the other side finished.
    pub received_by: ByPath,
}

impl Stream {
    pub(super) const fn new(teller: Teller, port: Arc<Port>) -> Self {
        Self { teller, port }
    }

    /// The other node.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.port.peer_name
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.port.service
    }

    /// Which path carries what we send; none while no path it may take is up.
    #[must_use]
    pub fn path(&self) -> Option<Path> {
        self.port.lock().path
    }

    /// What became of it so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.port.lock().stats()
    }

    /// Waits until the application at the other end took everything that was written so far.
    ///
    /// # Cancel safety
    /// Nothing is changed by waiting.
    ///
    /// # Errors
    /// When the session ended before that.
    pub async fn delivered(&self) -> Result<(), SessionError> {
        self.port.delivered().await
    }

    /// Ends our direction and waits until both sides are done: everything was taken here and there,
    /// and both know. A process that ends before that may leave the other side with an error.
    ///
    /// # Errors
    /// When the session ended before that.
    pub async fn closed(&self) -> Result<(), SessionError> {
        self.finish();
        self.port.closed().await
    }

    /// Waits until the session ends before both sides are done, also while nothing is read or
    /// written: for ever, if that never happens.
    pub async fn failed(&self) -> SessionError {
        self.port.failed().await
    }

    /// Gives the session up: the other side gets an error, nothing more is delivered either way.
    pub fn reset(self) {
        let mut state = self.port.lock();
        state.reset = true;
        self.teller.tell(&self.port, state);
    }

    /// Two halves that can be used by two tasks. Dropping the writing half ends our direction,
    /// dropping both ends the session as dropping the stream does.
    #[must_use]
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let whole = Arc::new(self);
        (OwnedReadHalf(Arc::clone(&whole)), OwnedWriteHalf(whole))
    }

    pub(super) fn tell(&self, state: Guard<'_>) {
        self.teller.tell(&self.port, state);
    }

    pub(super) const fn port(&self) -> &Arc<Port> {
        &self.port
    }

    fn read(&self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A task that always finds something gives way to others now and then, as with sockets.
        let turn = ready!(poll_proceed(cx));
        let mut state = self.port.lock();
        let n = state.incoming.read(into);
        if n > 0 {
            turn.made_progress();
            state.taken += n as u64;
            self.teller.tell(&self.port, state);
            return Poll::Ready(Ok(()));
        }
        if state.ended || state.closed || into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone().into()));
        }
        state.read_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let turn = ready!(poll_proceed(cx));
        let mut state = self.port.lock();
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone().into()));
        }
        if state.finish {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = OUTGOING_MAX.saturating_sub(state.outgoing.len());
        if room == 0 && !bytes.is_empty() {
            state.write_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = bytes.len().min(room);
        state.outgoing.push(&bytes[..n]);
        state.written += n as u64;
        turn.made_progress();
        self.teller.tell(&self.port, state);
        Poll::Ready(Ok(n))
    }

    pub(super) fn finish(&self) {
        let mut state = self.port.lock();
        if !std::mem::replace(&mut state.finish, true) {
            self.teller.tell(&self.port, state);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.port.lock();
        state.finish = true;
        state.abandon = true;
        self.teller.tell(&self.port, state);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.read(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

/// The reading half of a [`Stream`].
#[derive(Debug)]
pub struct OwnedReadHalf(Arc<Stream>);

/// The writing half of a [`Stream`].
#[derive(Debug)]
pub struct OwnedWriteHalf(Arc<Stream>);

impl AsyncRead for OwnedReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.read(cx, into)
    }
}

impl AsyncWrite for OwnedWriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.finish();
        Poll::Ready(Ok(()))
    }
}

impl OwnedReadHalf {
    /// The whole, for its path, its statistics and its peer.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.0
    }
}

impl OwnedWriteHalf {
    /// The whole, for its path, its statistics and its peer.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.0
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        self.0.finish();
    }
}
