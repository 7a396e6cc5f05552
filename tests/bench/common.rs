//! What all contenders need: two ends, a clock, and the processor's account.

use std::{
    fs,
    future::Future,
    net::TcpListener,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::poll_fn;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use sidepath::{
    demo::nodes::Nodes,
    sessions::{Endpoint, Preference},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    task::LocalSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Duplex for T {}

/// A stream of any contender.
pub(crate) type Any = Pin<Box<dyn Duplex>>;

pub(crate) fn any(stream: impl Duplex) -> Any {
    Box::pin(stream)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TCP connection per session.
    Tcp,
    /// A TCP connection with TLS 1.3 per session.
    Tls,
    /// yamux over one of these.
    Yamux,
    /// Sessions of sidepath, by the network.
    Sidepath,
    /// The same, by storage.
    Storage,
}

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) only: Option<Kind>,
}

impl Plan {
    /// Runs the contenders in turn and gives the best of each, as `better` makes it of two.
    pub(crate) fn best<T: Copy>(
        &self,
        kinds: &[Kind],
        run: impl Fn(Kind) -> T,
        better: impl Fn(T, T) -> T,
    ) -> Vec<(Kind, T)> {
        let mut best: Vec<(Kind, T)> = Vec::new();
        for round in 0..self.rounds.max(1) {
            let kinds = kinds.iter().copied().filter(|k| self.only.is_none_or(|o| o == *k));
            for (index, kind) in kinds.enumerate() {
                let result = run(kind);
                if round == 0 {
                    best.push((kind, result));
                } else {
                    best[index].1 = better(best[index].1, result);
                }
            }
        }
        best
    }
}

/// How a contender does beside another one, in words.
pub(crate) fn beside<T>(best: &[(Kind, T)], other: Kind, ratio: impl Fn(&T) -> f64) -> String {
    let found = best.iter().find(|(kind, _)| *kind == other);
    found.map_or_else(String::new, |(kind, t)| format!("{:.2} x {}", ratio(t), kind.name()))
}

impl Kind {
    pub(crate) fn of(word: &str) -> Option<Self> {
        Some(match word {
            "tcp" => Self::Tcp,
            "tls" => Self::Tls,
            "yamux" => Self::Yamux,
            "sidepath" => Self::Sidepath,
            _ => return None,
        })
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "plain TCP",
            Self::Tls => "TCP + rustls",
            Self::Yamux => "yamux over rustls",
            Self::Sidepath => "sidepath",
            Self::Storage => "sidepath, storage",
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// CPU seconds this process has used, user and system.
pub(crate) fn cpu_seconds() -> f64 {
    let mut ticks = 0.0;
    for task in fs::read_dir("/proc/self/task").expect("proc is mounted").flatten() {
        let line = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let ran = line.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default();
        ticks += ran;
    }
    ticks / 1e9
}

/// Keeps this thread, and those it starts from now on, on the processor of one end: two machines
/// would not take turns on one. Where there are not two, everything stays where it is.
pub(crate) fn pin(end: usize) {
    let mut wanted = CpuSet::new();
    let Ok(can) = sched_getaffinity(None) else { return };
    let given = || (0..CpuSet::MAX_CPU).filter(|cpu| can.is_set(*cpu)).collect();
    let allowed = ALLOWED.get_or_init(given);
    if allowed.len() >= 2 {
        // The upper half is the second end's.
        let half = allowed.len() / 2;
        let cpus = if end == 0 { &allowed[..half] } else { &allowed[half..] };
        cpus.iter().for_each(|cpu| wanted.set(*cpu));
        let _ = sched_setaffinity(None, &wanted);
    }
}

/// The processors this process was given.
static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();

fn tls() -> (TlsConnector, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a key");
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("our own certificate");
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("our own certificate");
    (TlsConnector::from(Arc::new(client)), TlsAcceptor::from(Arc::new(server)))
}

/// Runs both ends, each in a thread of its own, with `count` sessions between them, opened by the
/// first. Returns what they return.
pub(crate) fn between<A, B>(
    kind: Kind,
    count: usize,
    first: impl AsyncFnOnce(Vec<Any>) -> A + Send,
    second: impl AsyncFnOnce(Vec<Any>) -> B + Send,
) -> (A, B)
where
    A: Send,
    B: Send,
{
    let nodes = preference(kind).map(|_| nodes(&[]));
    between_nodes(kind, nodes.as_ref(), count, first, second)
}

/// Two nodes that have met, each on the processors of its end; their volume has places for `spare`.
pub(crate) fn nodes(spare: &[u8]) -> Nodes {
    let nodes = Nodes::start_beside(spare, pin).expect("two nodes");
    nodes.met().expect("nodes that meet");
    nodes
}

const fn preference(kind: Kind) -> Option<Preference> {
    match kind {
        Kind::Sidepath => Some(Preference::NetworkOnly),
        Kind::Storage => Some(Preference::StorageOnly),
        Kind::Tcp | Kind::Tls | Kind::Yamux => None,
    }
}

/// The same, with nodes that are there already.
pub(crate) fn between_nodes<A, B>(
    kind: Kind,
    nodes: Option<&Nodes>,
    count: usize,
    first: impl AsyncFnOnce(Vec<Any>) -> A + Send,
    second: impl AsyncFnOnce(Vec<Any>) -> B + Send,
) -> (A, B)
where
    A: Send,
    B: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let at = listener.local_addr().expect("an address");
    let preference = preference(kind);
    let ends = nodes.map(Nodes::endpoints);
    let [alpha, beta] = match ends {
        Some([alpha, beta]) => [Some(alpha), Some(beta)],
        None => [None, None],
    };
    let (connector, acceptor) = tls();
    thread::scope(|scope| {
        let two = scope.spawn(|| {
            pin(1);
            let local = LocalSet::new();
            local.block_on(&runtime(), async {
                let streams = match beta {
                    Some(beta) => sidepath_accept(&beta, count).await,
                    None => accept(kind, count, listener, acceptor).await,
                };
                second(streams).await
            })
        });
        let one = scope.spawn(|| {
            pin(0);
            let local = LocalSet::new();
            local.block_on(&runtime(), async {
                let streams = match alpha {
                    Some(alpha) => sidepath_connect(&alpha, count, preference).await,
                    None => connect(kind, count, at, connector).await,
                };
                first(streams).await
            })
        });
        (one.join().expect("the first end"), two.join().expect("the second end"))
    })
}

async fn sidepath_accept(end: &Endpoint, count: usize) -> Vec<Any> {
    let listener = end.listen("bench").await.expect("a listener");
    let mut streams = Vec::new();
    while streams.len() < count {
        streams.push(any(listener.accept().await.expect("a session")));
    }
    streams
}

async fn sidepath_connect(
    end: &Endpoint,
    count: usize,
    preference: Option<Preference>,
) -> Vec<Any> {
    let preference = preference.unwrap_or_default();
    let mut streams = Vec::new();
    while streams.len() < count {
        // The other end may not listen yet.
        match end.connect("beta", "bench", preference).await {
            Ok(stream) => streams.push(any(stream)),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    streams
}

async fn accept(
    kind: Kind,
    count: usize,
    listener: TcpListener,
    acceptor: TlsAcceptor,
) -> Vec<Any> {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let mut streams = Vec::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        match kind {
            Kind::Tcp => streams.push(any(stream)),
            Kind::Tls => streams.push(any(acceptor.accept(stream).await.expect("TLS"))),
            Kind::Yamux => {
                let stream = acceptor.accept(stream).await.expect("TLS");
                let mut mux =
                    yamux::Connection::new(stream.compat(), yamux_config(), yamux::Mode::Server);
                while streams.len() < count {
                    let next = poll_fn(|cx| mux.poll_next_inbound(cx)).await;
                    let mut stream = next.expect("a connection").expect("a stream").compat();
                    // Its peer learns with the first byte from here that the stream is accepted,
                    // and opens no more than 256 before.
                    stream.write_all(&[HELLO]).await.expect("a new stream takes a byte");
                    streams.push(any(stream));
                }
                drive(mux);
                return streams;
            }
            Kind::Sidepath | Kind::Storage => unreachable!("have ends of their own"),
        }
        if streams.len() == count {
            return streams;
        }
    }
}

async fn connect(
    kind: Kind,
    count: usize,
    at: std::net::SocketAddr,
    connector: TlsConnector,
) -> Vec<Any> {
    let mut streams = Vec::new();
    let name = ServerName::try_from("localhost").expect("a name");
    while streams.len() < count {
        let stream = TcpStream::connect(at).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        match kind {
            Kind::Tcp => streams.push(any(stream)),
            Kind::Tls => {
                streams.push(any(connector.connect(name.clone(), stream).await.expect("TLS")));
            }
            Kind::Yamux => {
                let stream = connector.connect(name.clone(), stream).await.expect("TLS");
                let mux =
                    yamux::Connection::new(stream.compat(), yamux_config(), yamux::Mode::Client);
                return yamux_open(mux, count).await;
            }
            Kind::Sidepath | Kind::Storage => unreachable!("have ends of their own"),
        }
    }
    streams
}

fn yamux_config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(2048);
    config.set_max_connection_receive_window(Some(2 << 30));
    config
}

async fn yamux_open<T>(mut mux: yamux::Connection<Compat<T>>, count: usize) -> Vec<Any>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut streams: Vec<Any> = Vec::new();
    // A stream is announced with its first byte; answers are heard while it is polled.
    poll_fn(|cx: &mut Context<'_>| {
        loop {
            if streams.len() == count {
                return Poll::Ready(());
            }
            match mux.poll_new_outbound(cx) {
                Poll::Ready(stream) => {
                    let mut stream = stream.expect("a stream").compat();
                    let wrote = Pin::new(&mut stream).poll_write(cx, &[HELLO]);
                    assert!(matches!(wrote, Poll::Ready(Ok(1))), "a new stream takes a byte");
                    streams.push(any(stream));
                }
                Poll::Pending => {
                    let next = mux.poll_next_inbound(cx);
                    assert!(next.is_pending(), "the other side opens none");
                    return Poll::Pending;
                }
            }
        }
    })
    .await;
    drive(mux);
    streams
}

/// The byte that announces a stream of yamux; its reader has to skip it.
pub(crate) const HELLO: u8 = 0xa5;

/// A connection of yamux moves only while it is polled.
fn drive<T>(mut mux: yamux::Connection<Compat<T>>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    tokio::task::spawn_local(async move {
        while let Some(Ok(stream)) = poll_fn(|cx| mux.poll_next_inbound(cx)).await {
            drop(stream);
        }
    });
}

/// Runs tasks to their end and gives what they give.
pub(crate) async fn all<T: 'static>(tasks: Vec<impl Future<Output = T> + 'static>) -> Vec<T> {
    let tasks: Vec<_> = tasks.into_iter().map(tokio::task::spawn_local).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.expect("a task that ends"));
    }
    results
}

/// The one of which `of` is less.
pub(crate) fn least<T>(a: T, b: T, of: impl Fn(&T) -> f64) -> T {
    if of(&b) < of(&a) { b } else { a }
}

/// What one round took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
}

/// Measures from now on.
pub(crate) struct Watch(Instant, f64);

impl Watch {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), cpu_seconds())
    }

    pub(crate) fn stop(&self) -> Took {
        Took { seconds: self.0.elapsed().as_secs_f64(), cpu: cpu_seconds() - self.1 }
    }
}
