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
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc::{Receiver, Sender, channel},
};

use super::{
    block::Block,
    store::{Store, StoreError, Writer},
    talk::{self, About, Ask, Batch, Complaint, Say, Tell, Want, kind},
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
/// Bytes of a catalogue in a frame.
const CATALOGUE_FRAME: usize = 1 << 20;
/// Blocks and batches between the runtime and the writing thread.
const WORK_QUEUE: usize = 4;
/// While nothing comes, what came is still saved in time.
const TICK: Duration = Duration::from_secs(1);
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
        Want::Backup { name, about, fresh } => backup(&mut ends, store, name, about, fresh).await,
        Want::Restore { name, version } => restore(&mut ends, store, name, version).await,
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
    let words = format!("verify of {name}");
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
    let words = match findings.len() {
        0 => return bye(ends, findings).await,
        n => format!("{words}: {n} findings"),
    };
    farewell(&mut ends.out, &Say::Findings(findings)).await;
    Ok(Some(words))
}

async fn bye(ends: &mut Ends, findings: Vec<String>) -> Result<Option<String>, Wrong> {
    farewell(&mut ends.out, &Say::Findings(findings)).await;
    Ok(None)
}

/// A client that is gone wants nothing verified.
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// For the writing thread.
enum Work {
    Block(Vec<u8>),
    Batch(Vec<u8>),
    Tick,
    Finish { blocks: u32, entries: u64, problems: Vec<String> },
}

/// From the writing thread.
enum News {
    Durable(u32, u64),
    Done(Box<talk::Version>),
    Failed(StoreError),
}

async fn backup(
    ends: &mut Ends,
    store: &Arc<Store>,
    name: String,
    about: About,
    fresh: bool,
) -> Result<Option<String>, Wrong> {
    let began = Instant::now();
    let writer = {
        let (store, name) = (Arc::clone(store), name.clone());
        apart(move || store.begin(&name, about, fresh)).await?
    };
    let go = Say::Go {
        name: name.clone(),
        version: writer.number(),
        known: writer.known().len() as u64,
        resumed_bytes: writer.resumed_bytes(),
    };
    talk::say(&mut ends.out, &go).await?;
    send_all(&mut ends.streams[0], writer.known()).await?;

    let (work, to_write) = channel(WORK_QUEUE);
    let (tell, mut news) = channel(WORK_QUEUE);
    let thread = std::thread::Builder::new().name("sidepath-store".into());
    thread.spawn(move || write(writer, to_write, &tell))?;
    let version = {
        let Ends { from, out, streams } = ends;
        let feeding = pin!(feed(from, streams, work));
        let telling = pin!(async {
            loop {
                match news.recv().await {
                    Some(News::Durable(blocks, bytes)) => {
                        talk::say(out, &Say::Stored { blocks, bytes }).await?;
                    }
                    Some(News::Done(version)) => return Ok(version),
                    Some(News::Failed(error)) => return Err(Wrong::Store(error)),
                    None => return Err(ended()),
                }
            }
        });
        match select(feeding, telling).await {
            Either::Left((Ok(()), telling)) => telling.await?,
            // What the store says explains more than that nobody took our bytes.
            Either::Left((Err(fed), telling)) => match telling.await {
                Err(Wrong::Store(error)) => return Err(error.into()),
                _ => return Err(fed),
            },
            Either::Right((told, _)) => told?,
        }
    };
    let words = format!(
        "backup of {name}@{}: {} entries, {} bytes, {} of them new, in {:.1} s",
        version.number,
        version.entries,
        version.bytes,
        version.new_bytes,
        began.elapsed().as_secs_f64()
    );
    farewell(&mut ends.out, &Say::Done(version)).await;
    Ok(Some(words))
}

/// From the streams to the writing thread, blocks in their order.
async fn feed(
    from: &mut OwnedReadHalf,
    streams: &mut [Stream],
    work: Sender<Work>,
) -> Result<(), Wrong> {
    let give = async |what| work.send(what).await.map_err(|_| ended());
    let mut next: u32 = 0;
    let mut rest = false;
    loop {
        let turn = if rest { 0 } else { next as usize % streams.len() };
        let frame = {
            let mut getting = pin!(talk::get(&mut streams[turn]));
            loop {
                match select(getting.as_mut(), pin!(tokio::time::sleep(TICK))).await {
                    Either::Left((frame, _)) => break frame?,
                    Either::Right(_) => give(Work::Tick).await?,
                }
            }
        };
        match frame {
            Some((kind::BLOCK, bytes)) if !rest => {
                let number = bytes.first_chunk().map(|n| u32::from_le_bytes(*n));
                if number != Some(next) {
                    return Err(nonsense("a block out of turn"));
                }
                give(Work::Block(bytes)).await?;
                next = next.checked_add(1).ok_or_else(|| nonsense("too many blocks"))?;
            }
            Some((kind::ENTRIES, bytes)) if turn == 0 => give(Work::Batch(bytes)).await?,
            Some((kind::END, _)) if turn == 0 => break,
            // There are no more blocks; what is left comes over the first stream.
            None if turn != 0 => rest = true,
            None => return Err(ended()),
            Some(_) => return Err(nonsense("a frame that belongs nowhere")),
        }
    }
    match talk::hear::<Tell>(from).await? {
        Some(Tell::Finish { blocks, entries, problems }) if blocks == next => {
            give(Work::Finish { blocks, entries, problems }).await
        }
        Some(_) => Err(nonsense("an end that does not fit what came")),
        None => Err(ended()),
    }
}

/// The writing thread.
fn write(mut writer: Writer, mut work: Receiver<Work>, news: &Sender<News>) {
    let bad = |what: String| StoreError::nonsense(what);
    let (mut told, mut durable) = (Instant::now(), (0, 0));
    let end = loop {
        let done = match work.blocking_recv() {
            None => {
                // The client is gone; what came is kept for its next attempt.
                if let Err(error) = writer.suspend() {
                    tracing::warn!("an interrupted backup: {error}");
                }
                return;
            }
            Some(Work::Block(mut bytes)) => {
                bytes.drain(..4);
                Block::parse(bytes).map_err(|e| bad(e.to_string())).and_then(|b| writer.block(&b))
            }
            Some(Work::Batch(bytes)) => talk::unpack::<Batch>(&bytes, UNPACKED_MAX)
                .map_err(|e| bad(e.to_string()))
                .and_then(|batch| writer.batch(batch)),
            Some(Work::Tick) => writer.tick(),
            Some(Work::Finish { blocks, entries, problems }) => {
                break writer.finish(blocks, entries, problems);
            }
        };
        if let Err(error) = done {
            break Err(error);
        }
        if told.elapsed() >= TELL_EVERY && writer.durable() != durable {
            (told, durable) = (Instant::now(), writer.durable());
            // A client that does not listen holds up nobody.
            let _ = news.try_send(News::Durable(durable.0, durable.1));
        }
    };
    let last = match end {
        Ok(version) => News::Done(Box::new(version)),
        Err(error) => News::Failed(error),
    };
    let _ = news.blocking_send(last);
}

/// A block by its number, or why there is none; or why there will be no more.
type Read = Result<(u32, Result<Block, StoreError>), StoreError>;

async fn restore(
    ends: &mut Ends,
    store: &Arc<Store>,
    name: String,
    version: Option<u32>,
) -> Result<Option<String>, Wrong> {
    let began = Instant::now();
    let (catalogue, blocks) = {
        let (store, name) = (Arc::clone(store), name.clone());
        // The reader first: nothing is removed while there is one.
        apart(move || {
            let blocks = store.reader(&name)?;
            Ok((store.catalogue(&name, version)?, blocks))
        })
        .await?
    };
    let number = catalogue.version.number;
    let go = Say::Go {
        name: name.clone(),
        version: number,
        known: catalogue.entries.len() as u64,
        resumed_bytes: 0,
    };
    talk::say(&mut ends.out, &go).await?;
    let mut bytes = Vec::new();
    catalogue.write_to(&mut bytes)?;
    for some in bytes.chunks(CATALOGUE_FRAME) {
        talk::put(&mut ends.streams[0], kind::CATALOGUE, &[some]).await?;
    }
    talk::put(&mut ends.streams[0], kind::END, &[]).await?;
    drop(bytes);

    let mut wanted = Vec::new();
    loop {
        match talk::get(&mut ends.streams[0]).await? {
            Some((kind::WANTED, bytes)) => {
                wanted.extend(talk::unpack::<Vec<(u32, u32)>>(&bytes, UNPACKED_MAX)?);
            }
            Some((kind::END, _)) => break,
            Some(_) => return Err(nonsense("a frame that belongs nowhere")),
            None => return Err(ended()),
        }
    }
    // A thread reads ahead of the streams.
    let (tell, mut read) = channel::<Read>(WORK_QUEUE);
    let table = catalogue.blocks;
    std::thread::Builder::new().name("sidepath-store".into()).spawn(move || {
        for (first, count) in wanted {
            for index in first..first.saturating_add(count) {
                let Some(at) = table.get(index as usize) else {
                    let _ = tell.blocking_send(Err(StoreError::nonsense(
                        "no such block is in the catalogue",
                    )));
                    return;
                };
                if tell.blocking_send(Ok((index, blocks.read(at)))).is_err() {
                    return;
                }
            }
        }
    })?;
    let mut sent = 0_usize;
    let mut bytes = 0_u64;
    let mut missing = None;
    while let Some(block) = read.recv().await {
        let (index, block) = block?;
        let turn = sent % ends.streams.len();
        let turn = &mut ends.streams[turn];
        let head = &index.to_le_bytes()[..];
        match block {
            Ok(block) => {
                talk::put(turn, kind::BLOCK, &[head, block.bytes()]).await?;
                bytes += block.raw_len() as u64;
            }
            // Files that need no such block are restored all the same.
            Err(error) => {
                talk::put(turn, kind::MISSING, &[head, error.to_string().as_bytes()]).await?;
                missing.get_or_insert((0_u64, error)).0 += 1;
            }
        }
        sent += 1;
    }
    for stream in &mut ends.streams {
        stream.shutdown().await?;
    }
    match talk::hear::<Tell>(&mut ends.from).await? {
        Some(Tell::Thanks) => {}
        Some(_) => return Err(nonsense("something else than thanks")),
        None => return Err(ended()),
    }
    farewell(&mut ends.out, &Say::Done(Box::new(catalogue.version))).await;
    let without = match missing {
        None => String::new(),
        Some((n, first)) => format!("; {n} blocks could not be read, the first: {first}"),
    };
    Ok(Some(format!(
        "restore of {name}@{number}: {bytes} bytes sent in {:.1} s{without}",
        began.elapsed().as_secs_f64()
    )))
}
