//! The client of a restore: asks for what is missing at its destination, and puts it there.
//!
//! ```text
//!   catalogue ── what is wanted ──> store ── blocks in that order ──> this task ──> placing thread
//! ```
//!
//! Awkward cases:
//! * A file is not whole before its digest is right.
//! * What was restored by an interrupted try is recognised (size, time, mode) and left alone; a large
//!   file that it had begun is gone on with.
//! * A command reads a stream's bytes once: an interruption ends it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::sync::{
    mpsc::{Sender, channel},
    oneshot,
};

use super::{
    block::Block,
    client::{BYE_WITHIN, Client},
    entry::{Kind, Name},
    lay::{
        Got, Placed, Source, There, choose, feed, lacking, missing, put_all, runs, there, wanted,
    },
    look,
    pair::{Carried, Line, PairError, beside, path_of, word},
    send::{News, SoFar, Watch},
    store::{Catalogue, Stored},
    talk::{self, Frame, Say, Tell, Version, kind},
    tree::{Existing, Place},
    tries::Tries,
};
use crate::sessions::{Endpoint, Stream};

/// Blocks between the runtime and the placing thread.
const PLACE_QUEUE: usize = 4;
/// Runs of blocks in a frame.
const RUNS_PER_FRAME: usize = 4096;

/// What is to be restored, and where.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) line: Line,
    pub(crate) name: String,
    pub(crate) version: Option<u32>,
    pub(crate) to: Destination,
    /// Only these and what is in them; none means all.
    pub(crate) only: Vec<Name>,
    pub(crate) retry: Duration,
}

#[derive(Debug, Clone)]
pub(crate) enum Destination {
    Folder {
        path: PathBuf,
        existing: Existing,
        owners: bool,
    },
    /// For `sh -c`, of a version that is a stream.
    Command(String),
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) version: Version,
    pub(crate) carried: Carried,
    pub(crate) tries: u32,
    pub(crate) placed: Placed,
}

/// Restores, trying again as long as may be.
pub(crate) async fn restore(
    endpoint: &Endpoint,
    plan: &Plan,
    watch: Watch<'_>,
) -> Result<Report, PairError> {
    let mut carried = Carried::default();
    let mut tries = Tries::new(plan.retry, plan.line.waits());
    // A later try is of the same version, whatever was stored meanwhile.
    let mut plan = plan.clone();
    loop {
        match attempt(endpoint, &mut plan, &mut carried, &mut tries, watch).await {
            Ok((version, placed)) => {
                return Ok(Report { version, carried, tries: tries.count + 1, placed });
            }
            Err(error) if matches!(plan.to, Destination::Command(_)) && tries.is_through() => {
                return Err(error);
            }
            Err(error) => tries.again(error, watch).await?,
        }
    }
}

async fn attempt(
    endpoint: &Endpoint,
    plan: &mut Plan,
    carried: &mut Carried,
    tries: &mut Tries,
    watch: Watch<'_>,
) -> Result<(Version, Placed), PairError> {
    let mut client = Client::meet(endpoint, &plan.line, tries).await?;
    let done = fetch(&mut client, plan, tries, watch).await;
    if done.is_ok() {
        let Client { out, said, .. } = &mut client;
        let bye = async {
            let _ = talk::say(out, &Tell::Thanks).await;
            while !matches!(word(said.recv().await), Ok(Say::Done(_)) | Err(_)) {}
        };
        let _ = tokio::time::timeout(BYE_WITHIN, bye).await;
        client.bye().await;
    }
    client.end(&plan.line, carried, done)
}

async fn fetch(
    client: &mut Client,
    plan: &mut Plan,
    tries: &mut Tries,
    watch: Watch<'_>,
) -> Result<(Version, Placed), PairError> {
    let catalogue = look::receive(client, plan.name.clone(), plan.version).await?;
    plan.version = Some(catalogue.version.number);
    let version = catalogue.version.clone();
    // What is there may have to be read.
    let (of, spawn) = (plan.clone(), tokio::task::spawn_blocking);
    let sink = spawn(move || begin(&of, catalogue)).await;
    let sink = sink.unwrap_or_else(|_| Err(PairError::here("cannot look at what is there")))?;
    let Sink { wanted, kept_bytes, to, done } = sink;
    tries.answered();
    let Client { said, streams, .. } = client;
    let receiving = async {
        for some in runs(&wanted).chunks(RUNS_PER_FRAME) {
            talk::put(&mut streams[0], kind::WANTED, &[&talk::pack(&some)?]).await?;
        }
        talk::put(&mut streams[0], kind::END, &[]).await?;
        receive(streams, &wanted, kept_bytes, to, tries, watch).await
    };
    let received = beside(receiving, said, &mut |_| {}).await;
    // Also when nothing more comes: two at once would put things in each other's way.
    let placed =
        done.await.unwrap_or_else(|_| Err(PairError::here("the placing thread ended early")));
    match (received, placed) {
        // Whatever became of the pair: all is in its place, and the mark of a restore is gone.
        (_, Ok(placed)) => Ok((version, placed)),
        (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(error),
    }
}

/// What the placing thread has to do, and which blocks that takes.
struct Sink {
    wanted: Vec<u32>,
    /// Bytes that are there already.
    kept_bytes: u64,
    to: Sender<Got>,
    done: oneshot::Receiver<Result<Placed, PairError>>,
}

fn begin(plan: &Plan, catalogue: Catalogue) -> Result<Sink, PairError> {
    let Catalogue { version, mut entries, .. } = catalogue;
    let (to, blocks) = channel(PLACE_QUEUE);
    let (tell, done) = oneshot::channel();
    let thread = std::thread::Builder::new().name("sidepath-place".into());
    let system = |e: std::io::Error| PairError::here(format!("cannot begin: {e}"));
    let source = Source::new(blocks);
    match &plan.to {
        Destination::Command(command) => {
            let [Stored { pieces, entry }] = &entries[..] else {
                return Err(not_a_stream(&version));
            };
            if !version.about.stream {
                return Err(not_a_stream(&version));
            }
            let wanted = wanted(pieces.iter());
            let child = Command::new("sh")
                .args(["-c", command])
                .stdin(Stdio::piped())
                .spawn()
                .map_err(|e| PairError::here(format!("cannot start sh: {e}")))?;
            let (entry, pieces, command) = (entry.clone(), pieces.clone(), command.clone());
            thread
                .spawn(move || {
                    let _ = tell.send(feed(child, &command, &entry, &pieces, source));
                })
                .map_err(system)?;
            Ok(Sink { wanted, kept_bytes: 0, to, done })
        }
        Destination::Folder { path, existing, owners } => {
            let mark = format!("{}@{} {}", version.name, version.number, version.digest);
            let names = missing(&entries, &plan.only);
            if !names.is_empty() {
                return Err(PairError::Here {
                    message: format!(
                        "{}@{} has no {}",
                        version.name,
                        version.number,
                        names.join(", ")
                    ),
                    hint: Some("`sidepath backup show` lists what it has".into()),
                    input: true,
                });
            }
            let mut place = Place::new(path, *existing, &mark, *owners).map_err(PairError::from)?;
            choose(&mut entries, &plan.only);
            let mut placed = Placed::default();
            let mut kept_bytes = 0;
            let there = there(&mut place, &entries);
            for (Stored { entry, pieces }, there) in entries.iter().zip(&there) {
                match (&entry.kind, there) {
                    (Kind::File { size, .. }, There::All) => {
                        placed.kept += 1;
                        kept_bytes += size;
                    }
                    (_, There::All) => {}
                    (_, There::Pieces(n)) => {
                        kept_bytes += pieces[..*n].iter().map(|p| u64::from(p.length)).sum::<u64>();
                    }
                }
            }
            let wanted = wanted(lacking(&entries, &there));
            thread
                .spawn(move || {
                    let _ = tell.send(put_all(place, placed, &entries, &there, source));
                })
                .map_err(system)?;
            Ok(Sink { wanted, kept_bytes, to, done })
        }
    }
}

fn not_a_stream(version: &Version) -> PairError {
    PairError::Here {
        message: format!("{}@{} is no stream but a tree", version.name, version.number),
        hint: Some("restore it to a folder: sidepath restore PEER:NAME DEST".into()),
        input: true,
    }
}

/// Longest reason that is shown, bytes.
const REASON_MAX: usize = 500;

/// Blocks as they come, in turn over the streams, to the placing thread.
async fn receive(
    streams: &mut [Stream],
    wanted: &[u32],
    kept_bytes: u64,
    to: Sender<Got>,
    tries: &mut Tries,
    watch: Watch<'_>,
) -> Result<(), PairError> {
    let mut so_far = SoFar { bytes: kept_bytes, ..SoFar::default() };
    for (n, index) in wanted.iter().enumerate() {
        let turn = n % streams.len();
        let Frame { kind: of, number, mut bytes } = match talk::get(&mut streams[turn]).await? {
            Some(frame) if kind::has_number(frame.kind) => frame,
            Some(_) => return Err(PairError::Nonsense("a frame that belongs nowhere".into())),
            None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        };
        if number != *index {
            return Err(PairError::Nonsense("a block out of turn".into()));
        }
        let block = if of == kind::MISSING {
            bytes.truncate(REASON_MAX);
            Err(String::from_utf8_lossy(&bytes).escape_debug().to_string())
        } else {
            let block = Block::parse(bytes).map_err(|e| {
                PairError::Nonsense(format!("block {index} came as something else: {e}"))
            })?;
            so_far.bytes += block.raw_len() as u64;
            so_far.sent += block.bytes().len() as u64;
            Ok(block)
        };
        tries.got_on();
        if to.send((*index, block)).await.is_err() {
            // The thread knows why.
            break;
        }
        so_far.path = path_of(streams.iter());
        watch(News::SoFar(so_far));
    }
    Ok(())
}
