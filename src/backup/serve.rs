//! The receiving role: answers who backs up to, restores from and looks into a store.
//!
//! ```text
//!   listener ── control ──> a task per pair: Ask ──> backup: frames ── a thread ──> Writer
//!                                             └────> restore: Blocks ── a thread ──> frames
//! ```
//!
//! The runtime's thread only moves bytes; whatever touches the store runs in threads of its own.
//!
//! Awkward cases:
//! * A pair that says nothing, or not what the protocol says, ends alone, within bounded time.
//! * A client that vanishes leaves its version unfinished: the next backup of that name goes on from
//!   what is on the disk.

mod give;
mod take;

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio::sync::mpsc::channel;

use super::{
    block::Block,
    store::{Store, StoreError},
    talk::{self, Ask, Complaint, Say, Want, kind},
};
use crate::sessions::{DataSocket, Endpoint, OwnedReadHalf, OwnedWriteHalf, SessionError, Stream};

/// Pairs at a time; each may hold some MiB.
const PAIRS_MAX: usize = 32;
/// How long a pair may take to say what it wants.
const ASK_WITHIN: Duration = Duration::from_secs(60);
/// How long the client's goodbye is waited for.
const BYE_WITHIN: Duration = Duration::from_secs(5);
/// Entries in a frame.
const ENTRIES_PER_FRAME: usize = 1024;
/// What a frame of entries may hold, unpacked, bytes.
pub(crate) const UNPACKED_MAX: usize = 64 << 20;
/// Blocks and batches between the runtime and the writing thread.
const WORK_QUEUE: usize = 4;
/// How often a client is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What a store has to tell whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) peer: String,
    pub(crate) what: String,
    pub(crate) good: bool,
}

pub(crate) type Teller = Arc<dyn Fn(Told) + Send + Sync>;

/// Serves a store until the node stops.
pub(crate) async fn serve(
    endpoint: Endpoint,
    service: &str,
    store: Arc<Store>,
    tell: Teller,
) -> Result<(), SessionError> {
    let listener = endpoint.listen(service).await?;
    let pairs = Arc::new(AtomicUsize::new(0));
    loop {
        let control = listener.accept().await?;
        let place = Place(Arc::clone(&pairs));
        if pairs.fetch_add(1, Ordering::Relaxed) >= PAIRS_MAX {
            control.reset();
            continue;
        }
        let (endpoint, store, tell) = (endpoint.clone(), Arc::clone(&store), Arc::clone(&tell));
        tokio::spawn(async move {
            let _place = place;
            let peer = control.peer().to_owned();
            let say = |what: String, good| tell(Told { peer: peer.clone(), what, good });
            match pair(&endpoint, control, &store).await {
                Ok(Some(done)) => say(done, true),
                Ok(None) => {}
                Err(error) => say(error.to_string(), false),
            }
        });
    }
}

struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a pair ended early, for the store's log.
#[derive(Debug, thiserror::Error)]
enum PairEnd {
    #[error("{what}: {error}")]
    Store { what: String, error: StoreError },
    #[error("{what}: interrupted: {error}")]
    Stream { what: String, error: io::Error },
    #[error("{0}")]
    Other(String),
}

impl From<&StoreError> for Complaint {
    fn from(error: &StoreError) -> Self {
        Self {
            message: error.to_string(),
            hint: error.hint(),
            input: error.is_input(),
            passes: error.passes(),
        }
    }
}

/// Both directions of control, and the streams.
struct Ends {
    from: OwnedReadHalf,
    out: OwnedWriteHalf,
    streams: Vec<Stream>,
}

async fn pair(
    endpoint: &Endpoint,
    control: Stream,
    store: &Arc<Store>,
) -> Result<Option<String>, PairEnd> {
    let asked = async {
        let DataSocket { control, streams } = DataSocket::accepted(endpoint, control).await?;
        let (mut from, out) = control.into_split();
        let ask = talk::hear::<Ask>(&mut from).await?;
        Ok::<_, io::Error>((Ends { from, out, streams }, ask))
    };
    let (mut ends, ask) = match tokio::time::timeout(ASK_WITHIN, asked).await {
        Ok(Ok((ends, Some(ask)))) => (ends, ask),
        // Somebody who looked whether we are there, or gave up.
        Ok(Ok((_, None)) | Err(_)) => return Ok(None),
        Err(_) => return Err(PairEnd::Other("somebody asked for nothing".into())),
    };
    if ask.version != talk::VERSION {
        let message = format!(
            "this store speaks version {} of the backup protocol, the client {}",
            talk::VERSION,
            ask.version
        );
        let hint = Some("use the same release of sidepath on both nodes".into());
        let no = Complaint { message: message.clone(), hint, input: false, passes: false };
        farewell(&mut ends.out, &Say::No(no)).await;
        return Err(PairEnd::Other(message));
    }
    let what = what(&ask.want);
    let done = match ask.want {
        Want::Backup { name, about, fresh } => {
            take::backup(&mut ends, store, name, about, fresh).await
        }
        Want::Restore { name, version } => give::restore(&mut ends, store, name, version).await,
        Want::List { name } => list(&mut ends, store, name).await,
        Want::Verify { name, version } => verify(&mut ends, store, name, version).await,
        Want::Forget { name, version } => forget(&mut ends, store, name, version).await,
    };
    match done {
        Ok(done) => Ok(done),
        Err(Wrong::Store(error)) => {
            farewell(&mut ends.out, &Say::No((&error).into())).await;
            Err(PairEnd::Store { what, error })
        }
        Err(Wrong::Stream(error)) => Err(PairEnd::Stream { what, error }),
    }
}

fn what(want: &Want) -> String {
    let at = |version: &Option<u32>| version.map(|v| format!("@{v}")).unwrap_or_default();
    match want {
        Want::Backup { name, .. } => format!("backup of {name}"),
        Want::Restore { name, version } => format!("restore of {name}{}", at(version)),
        Want::List { .. } => "list".into(),
        Want::Verify { name, version } => format!("verify of {name}{}", at(version)),
        Want::Forget { name, version } => format!("forget of {name}@{version}"),
    }
}

enum Wrong {
    Store(StoreError),
    Stream(io::Error),
}

impl From<StoreError> for Wrong {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

fn ended() -> Wrong {
    Wrong::Stream(io::ErrorKind::UnexpectedEof.into())
}

fn nonsense(what: &str) -> Wrong {
    Wrong::Stream(talk::invalid(what))
}

/// The last word: the client reads it before it sees the end.
async fn farewell(out: &mut OwnedWriteHalf, say: &Say) {
    let bye = async {
        talk::say(out, say).await?;
        out.stream().closed().await.map_err(io::Error::from)
    };
    let _ = tokio::time::timeout(BYE_WITHIN, bye).await;
}

/// Runs what blocks in a thread of its own.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Wrong> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Wrong::Stream(io::Error::other("a thread of the store panicked"))),
    }
}

/// Sends things in packed frames, and the end of them.
async fn send_all<T: serde::Serialize>(out: &mut Stream, things: &[T]) -> io::Result<()> {
    for some in things.chunks(ENTRIES_PER_FRAME) {
        talk::put(out, kind::ENTRIES, &[&talk::pack(&some)?]).await?;
    }
    talk::put(out, kind::END, &[]).await
}

async fn list(
    ends: &mut Ends,
    store: &Arc<Store>,
    name: Option<String>,
) -> Result<Option<String>, Wrong> {
    let store = Arc::clone(store);
    let (versions, findings) = apart(move || store.versions(name.as_deref())).await?;
    for some in versions.chunks(ENTRIES_PER_FRAME) {
        talk::say(&mut ends.out, &Say::Versions(some.to_vec())).await?;
    }
    farewell(&mut ends.out, &Say::Findings(findings)).await;
    Ok(None)
}

async fn forget(
    ends: &mut Ends,
    store: &Arc<Store>,
    name: String,
    version: u32,
) -> Result<Option<String>, Wrong> {
    let words = format!("{name}@{version} is forgotten");
    let store = Arc::clone(store);
    apart(move || store.forget(&name, version)).await?;
    farewell(&mut ends.out, &Say::Findings(Vec::new())).await;
    Ok(Some(words))
}

async fn verify(
    ends: &mut Ends,
    store: &Arc<Store>,
    name: String,
    version: Option<u32>,
) -> Result<Option<String>, Wrong> {
    let of = name.clone();
    let gone = Arc::new(AtomicBool::new(false));
    let (tell, mut so_far) = channel(1);
    let work = {
        let (store, gone) = (Arc::clone(store), Arc::clone(&gone));
        apart(move || {
            let mut told = Instant::now();
            let mut progress = |bytes, of| {
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    let _ = tell.try_send((bytes, of));
                }
            };
            store.verify(&name, version, &mut progress, &|| gone.load(Ordering::Relaxed))
        })
    };
    let _stop = StopWhenDropped(gone);
    let mut work = pin!(work);
    let findings = loop {
        match select(work.as_mut(), pin!(so_far.recv())).await {
            Either::Left((findings, _)) => break findings?,
            Either::Right((Some((bytes, of)), _)) => {
                talk::say(&mut ends.out, &Say::Verified { bytes, of }).await?;
            }
            Either::Right((None, _)) => break work.await?,
        }
    };
    let bad = findings.len();
    farewell(&mut ends.out, &Say::Findings(findings)).await;
    Ok((bad > 0).then(|| format!("verify of {of}: {bad} findings")))
}

/// A client that is gone wants nothing verified.
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
