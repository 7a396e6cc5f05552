//! The daemon's side of the socket of sessions: programs of this machine come in here.
//!
//! A thread of its own with a small runtime; per connection two tasks that move bytes between the
//! socket and a session of the daemon's own node. Awkward cases: a program that dies resets its
//! session; one that does not read holds nobody up but itself, because the peer may send only what
//! it took; connections are bounded; a service of the other daemon's own is an order, which only
//! those may give who may give them to this daemon.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    io::ReadBuf,
    net::{
        TcpStream, UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, Semaphore, oneshot},
};

use super::{
    Endpoint, Listener, SessionError, Stats, Stream,
    hub::{TCP_PORTS, is_own},
    port::State,
    remote::{Hello, MESSAGE_MAX, News, Ready, VERSION, Want, beside, hear, kind, say, say_json},
};
use crate::admin::socket::may_change;

/// Programs' connections at the same time.
const CONNECTIONS_MAX: usize = 8192;
/// A program that says nothing for so long is sent away.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A thread that takes longer to end is left behind.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// How often news of progress is told while there is more to come.
const NEWS_EVERY: Duration = Duration::from_millis(50);

/// The open gate; closes when dropped.
#[derive(Debug)]
pub(crate) struct Gate {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Gate {
    /// Opens the gate beside a control socket that is already ours.
    /// `forward_ports`: ports of our loopback address that peers may reach; all when it is `None`.
    /// `own`: serves the daemon's own services, until it is dropped.
    pub(crate) fn open(
        control_socket: &FilePath,
        endpoint: Endpoint,
        forward_ports: Option<Vec<u16>>,
        own: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Self> {
        let path = beside(control_socket);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _inside = runtime.enter();
        // Whoever holds the control socket holds this one: what lies here was left behind.
        let fresh = path.with_extension("sessions.new");
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&fresh, &path)?;
        let (stop, stopped) = oneshot::channel();
        drop(_inside);
        let thread = std::thread::Builder::new().name("sidepath-gate".into()).spawn(move || {
            let forwarding = runtime.spawn(forward(endpoint.clone(), forward_ports));
            let own = runtime.spawn(own);
            runtime.block_on(serve(listener, endpoint, stopped));
            forwarding.abort();
            own.abort();
            runtime.shutdown_timeout(Duration::from_millis(200));
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread), path })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return };
        let start = Instant::now();
        while !thread.is_finished() && start.elapsed() < STOP_WITHIN {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !thread.is_finished() {
            tracing::error!("the thread of sessions did not end in time and was left behind");
        } else if thread.join().is_err() {
            tracing::error!("the thread of sessions ended by a panic");
        }
    }
}

/// Services programs listen for.
type Services = Arc<Mutex<BTreeMap<String, Arc<Listener>>>>;

async fn serve(listener: UnixListener, endpoint: Endpoint, stopped: oneshot::Receiver<()>) {
    let services = Services::default();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async {
        loop {
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept programs that want sessions");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tokio::spawn(async move {
                    let words = format!("{CONNECTIONS_MAX} programs hold sessions, as many as may");
                    let (_from, mut out) = socket.into_split();
                    let _ = say_json(&mut out, kind::FAILED, &SessionError::Daemon(words)).await;
                });
                continue;
            };
            let (endpoint, services) = (endpoint.clone(), Arc::clone(&services));
            tokio::spawn(async move {
                if let Err(error) = client(socket, endpoint, services).await {
                    tracing::debug!(%error, "a program's connection ended");
                }
                drop(place);
            });
        }
    };
    let mut accept = std::pin::pin!(accept);
    let mut stopped = std::pin::pin!(stopped);
    poll_fn(|cx| {
        let _ = accept.as_mut().poll(cx);
        stopped.as_mut().poll(cx).map(|_| ())
    })
    .await;
}

/// Sessions that peers want with a TCP port of this machine.
async fn forward(endpoint: Endpoint, ports: Option<Vec<u16>>) {
    let Ok(listener) = endpoint.listen(TCP_PORTS).await else { return };
    while let Ok(incoming) = listener.incoming().await {
        let port = incoming.service().strip_prefix("tcp:").and_then(|p| p.parse::<u16>().ok());
        let Some(port) = port.filter(|p| ports.as_ref().is_none_or(|ports| ports.contains(p)))
        else {
            let service = incoming.service().to_owned();
            incoming.refuse(&format!(
                "{service} is not among the forward_ports of its [sessions] configuration"
            ));
            continue;
        };
        tracing::info!(peer = incoming.peer(), port, "forwards a connection");
        tokio::spawn(async move {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                Ok(local) => carry(local, incoming.accept()).await,
                Err(error) => incoming.refuse(&format!("127.0.0.1:{port} there: {error}")),
            }
        });
    }
}

async fn client(socket: UnixStream, endpoint: Endpoint, services: Services) -> io::Result<()> {
    let (may_order, uid) = (may_change(&socket), socket.peer_cred()?.uid());
    let (mut from, mut out) = socket.into_split();
    let mut bytes = Vec::new();
    let Ok(heard) = tokio::time::timeout(HELLO_WITHIN, hear(&mut from, &mut bytes)).await else {
        return Ok(());
    };
    let Some(kind::HELLO) = heard? else { return Ok(()) };
    let hello: Hello = serde_json::from_slice(&bytes)?;
    if hello.version != VERSION {
        let words = format!("this daemon speaks version {VERSION} of the socket of sessions");
        return say_json(&mut out, kind::FAILED, &SessionError::Daemon(words)).await;
    }
    let made = match hello.want {
        Want::Connect { service, .. } if is_own(&service) && !may_order => {
            Err(SessionError::MayNotOrder(uid))
        }
        Want::Connect { peer, service, preference } => {
            let connect = endpoint.connect(&peer, &service, preference);
            let Some(made) = unless_gone(&from, connect).await? else { return Ok(()) };
            made
        }
        Want::Accept { service } => {
            let listener = lock(&services).get(&service).cloned();
            match listener {
                Some(listener) => {
                    let Some(made) = unless_gone(&from, listener.accept()).await? else {
                        return Ok(());
                    };
                    made
                }
                None => Err(SessionError::Daemon(format!("nobody listens for {service}"))),
            }
        }
        Want::Listen { service } => return listen(from, out, &endpoint, services, service).await,
    };
    match made {
        Ok(stream) => {
            let ready = Ready { peer: Some(stream.peer().to_owned()) };
            say_json(&mut out, kind::HELLO, &ready).await?;
            session(from, out, stream).await
        }
        Err(error) => say_json(&mut out, kind::FAILED, &error).await,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something for a program, unless it leaves meanwhile.
async fn unless_gone<T>(
    from: &OwnedReadHalf,
    work: impl Future<Output = T>,
) -> io::Result<Option<T>> {
    let mut work = std::pin::pin!(work);
    let gone = async {
        let mut byte = [0; 1];
        loop {
            from.readable().await?;
            match from.try_read(&mut byte) {
                Ok(0) => return Ok(()),
                // Nothing may be said before the answer.
                Ok(_) => return Err(io::Error::from(io::ErrorKind::InvalidData)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    };
    let mut gone = std::pin::pin!(gone);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(Some(done)));
        }
        gone.as_mut().poll(cx).map(|left: io::Result<()>| left.map(|()| None))
    })
    .await
}

/// A service lives as long as the connection that asked for it.
async fn listen(
    mut from: OwnedReadHalf,
    mut out: OwnedWriteHalf,
    endpoint: &Endpoint,
    services: Services,
    service: String,
) -> io::Result<()> {
    match endpoint.listen(&service).await {
        Ok(listener) => {
            lock(&services).insert(service.clone(), Arc::new(listener));
            let said = say_json(&mut out, kind::HELLO, &Ready { peer: None }).await;
            if said.is_ok() {
                let _ = hear(&mut from, &mut Vec::new()).await;
            }
            lock(&services).remove(&service);
            said
        }
        Err(error) => say_json(&mut out, kind::FAILED, &error).await,
    }
}

/// Moves bytes both ways until both sides are done. An error at one side is one at the other.
pub(crate) async fn carry(mut local: TcpStream, mut stream: Stream) {
    let _ = local.set_nodelay(true);
    let size = 128 << 10;
    if tokio::io::copy_bidirectional_with_sizes(&mut local, &mut stream, size, size).await.is_err()
    {
        let _ = local.set_zero_linger();
        stream.reset();
    }
}

/// Moves bytes between a program and its session until both are done.
async fn session(from: OwnedReadHalf, out: OwnedWriteHalf, stream: Stream) -> io::Result<()> {
    let stream = Arc::new(stream);
    let left = Arc::new(Notify::new());
    let reader = tokio::spawn(from_program(from, Arc::clone(&stream), Arc::clone(&left)));
    let done = to_program(out, &stream, &left).await;
    reader.abort();
    done
}

/// What the program says. When it is gone without a word, so is its session.
async fn from_program(mut from: OwnedReadHalf, stream: Arc<Stream>, left: Arc<Notify>) {
    let mut bytes = Vec::new();
    let (mut ended, mut abandoned) = (false, false);
    while let Ok(Some(said)) = hear(&mut from, &mut bytes).await {
        match said {
            kind::DATA => {
                if !stream.put_all(&bytes).await {
                    break;
                }
            }
            kind::END => {
                ended = true;
                stream.finish();
            }
            kind::TAKEN => {
                if let Some(taken) = bytes.first_chunk() {
                    stream.take(u64::from_le_bytes(*taken));
                }
            }
            kind::ABANDON => {
                abandoned = true;
                stream.abandon();
            }
            _ => break,
        }
    }
    if !(ended && abandoned) {
        stream.give_up();
        left.notify_one();
    }
}

/// What the program is told.
async fn to_program(mut out: OwnedWriteHalf, stream: &Stream, left: &Notify) -> io::Result<()> {
    let port = stream.port();
    let mut buffer = vec![0; MESSAGE_MAX];
    let mut told: Option<News> = None;
    let mut told_at = tokio::time::Instant::now();
    let mut told_end = false;
    loop {
        let mut gone = std::pin::pin!(left.notified());
        let mut pause = std::pin::pin!(tokio::time::sleep_until(told_at + NEWS_EVERY));
        let next = poll_fn(|cx| {
            if gone.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Next::Gone);
            }
            let mut may_wait = || pause.as_mut().poll(cx).is_pending();
            // One lock from the look to the waker: nothing may come in between.
            let mut state = port.lock();
            let next = Next::of(&mut state, &mut buffer, told.as_ref(), told_end, &mut may_wait);
            if next.is_none() {
                state.read_waker = Some(cx.waker().clone());
            }
            state.watch(cx, next)
        })
        .await;
        match next {
            Next::Gone => return Ok(()),
            Next::Data(length) => say(&mut out, kind::DATA, &buffer[..length]).await?,
            Next::End => {
                told_end = true;
                // How it came is known now, and is news.
                told = None;
                say(&mut out, kind::END, &[]).await?;
            }
            Next::News(news) => {
                say_json(&mut out, kind::NEWS, &news).await?;
                told = Some(news);
                told_at = tokio::time::Instant::now();
            }
            Next::Failed(error) => return say_json(&mut out, kind::FAILED, &error).await,
            Next::Closed(news) => {
                say_json(&mut out, kind::NEWS, &news).await?;
                return say(&mut out, kind::CLOSED, &[]).await;
            }
        }
    }
}

/// What is to be said next.
enum Next {
    Gone,
    Data(usize),
    End,
    News(News),
    Failed(SessionError),
    Closed(News),
}

impl Next {
    /// Bytes before errors, errors before ends. News of progress that goes on may wait.
    fn of(
        state: &mut State,
        buffer: &mut [u8],
        told: Option<&News>,
        told_end: bool,
        may_wait: &mut dyn FnMut() -> bool,
    ) -> Option<Self> {
        let length = state.incoming.read(&mut ReadBuf::new(buffer));
        if length > 0 {
            return Some(Self::Data(length));
        }
        if let Some(error) = &state.error {
            return Some(Self::Failed(error.clone()));
        }
        if state.ended && !told_end {
            return Some(Self::End);
        }
        let news = state.news();
        if state.closed {
            return Some(Self::Closed(news));
        }
        let urgent = told.is_none_or(|told| told.path != news.path)
            || news.stats.taken_there >= news.stats.written;
        // Bytes that came are no news: they are told by being there.
        let received = news.stats.received;
        let same = told
            .is_some_and(|t| t.path == news.path && Stats { received, ..t.stats } == news.stats);
        (!same && (urgent || !may_wait())).then_some(Self::News(news))
    }
}

impl Stream {
    /// Writes all; false when the session is over.
    async fn put_all(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Ok(n) = poll_fn(|cx| self.write(cx, bytes)).await else { return false };
            bytes = &bytes[n..];
        }
        true
    }

    fn take(&self, bytes: u64) {
        let mut state = self.port().lock();
        state.taken += bytes;
        self.tell(state);
    }

    fn abandon(&self) {
        let mut state = self.port().lock();
        state.abandon = true;
        self.tell(state);
    }

    fn give_up(&self) {
        let mut state = self.port().lock();
        state.reset = true;
        self.tell(state);
    }
}
