//! The client of a restore: asks for what is missing at its destination, and puts it there.
//!
//! ```text
//!   catalogue ── what is wanted ──> store ── blocks in that order ──> this task ──> placing thread
//! ```
//!
//! Awkward cases:
//! * A block may hold bytes of many files, and be needed again later: the last ones stay open, and
//!   what is asked for is planned with the same memory, so that nothing comes twice for nothing.
//! * A file is not whole before its digest is right.
//! * What was restored by an interrupted try is recognised (size, time, mode) and left alone.
//! * A command reads a stream's bytes once: an interruption ends it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use tokio::sync::{
    mpsc::{Receiver, Sender, channel},
    oneshot,
};

use super::{
    block::Block,
    entry::{Entry, Kind, Name, Piece},
    look,
    pair::{Carried, Line, PairError, beside, listen, path_of, word},
    send::{News, SoFar, Tries, Watch},
    store::{Catalogue, Stored},
    talk::{self, Say, Tell, Version, kind},
    tree::{Existing, Place, TreeError},
};
use crate::sessions::{DataSocket, Endpoint, Stream};

/// Opened blocks that are remembered, at most a MiB each.
const REMEMBERED: usize = 32;
/// Blocks between the runtime and the placing thread.
const PLACE_QUEUE: usize = 4;
/// Runs of blocks in a frame.
const RUNS_PER_FRAME: usize = 4096;
/// Problems that are told; further ones are counted.
const PROBLEMS_MAX: usize = 1000;

/// What is to be restored, and where.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) line: Line,
    pub(crate) name: String,
    pub(crate) version: Option<u32>,
    pub(crate) to: Destination,
    /// Only these and what is in them; none means all.
    pub(crate) only: Vec<Name>,
    pub(crate) retry: std::time::Duration,
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

/// What is at the destination.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Files that were there already.
    pub(crate) kept: u64,
    /// What is missing, or not as it should be.
    pub(crate) missing: u64,
    pub(crate) problems: Vec<String>,
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
    let pair = plan.line.connect(endpoint).await?;
    tries.met();
    plan.line.settle(&pair).await?;
    let DataSocket { control, mut streams } = pair;
    let (from, mut out) = control.into_split();
    let mut said = listen(from);
    let done = async {
        let first = &mut streams[0];
        let catalogue =
            look::receive(&mut out, &mut said, first, plan.name.clone(), plan.version).await?;
        plan.version = Some(catalogue.version.number);
        let version = catalogue.version.clone();
        // What is there may have to be read.
        let (of, spawn) = (plan.clone(), tokio::task::spawn_blocking);
        let sink = spawn(move || begin(&of, catalogue)).await;
        let sink = sink.unwrap_or_else(|_| Err(PairError::here("cannot look at what is there")))?;
        let Sink { wanted, kept_bytes, to, done } = sink;
        tries.answered();
        let receiving = async {
            for some in runs(&wanted).chunks(RUNS_PER_FRAME) {
                talk::put(&mut streams[0], kind::WANTED, &[&talk::pack(&some)?]).await?;
            }
            talk::put(&mut streams[0], kind::END, &[]).await?;
            receive(&mut streams, &wanted, kept_bytes, to, tries, watch).await
        };
        let received = beside(receiving, &mut said, &mut |_| {}).await;
        // Also when nothing more comes: two at once would put things in each other's way.
        let placed =
            done.await.unwrap_or_else(|_| Err(PairError::here("the placing thread ended early")));
        let placed = match (received, placed) {
            // Whatever became of the pair: all is in its place, and the mark of a restore is gone.
            (_, Ok(placed)) => placed,
            (Err(error), Err(_)) | (Ok(_), Err(error)) => return Err(error),
        };
        // It is all here; this is for the counters of both sides.
        let _ = tokio::time::timeout(super::send::BYE_WITHIN, async {
            let _ = talk::say(&mut out, &Tell::Thanks).await;
            while !matches!(word(said.recv().await), Ok(Say::Done(_)) | Err(_)) {}
            let _ = out.stream().closed().await;
        })
        .await;
        Ok((version, placed))
    };
    let done = done.await;
    carried.add(&out.stream().stats());
    for stream in &streams {
        carried.add(&stream.stats());
    }
    if done.is_err() {
        for stream in streams {
            stream.reset();
        }
    }
    match done {
        Err(error) => Err(plan.line.judged(error)),
        done => done,
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

fn tree_error(error: &TreeError) -> PairError {
    PairError::Here { message: error.to_string(), hint: error.hint(), input: error.is_input() }
}

fn begin(plan: &Plan, catalogue: Catalogue) -> Result<Sink, PairError> {
    let Catalogue { version, mut entries, .. } = catalogue;
    let (to, blocks) = channel(PLACE_QUEUE);
    let (tell, done) = oneshot::channel();
    let thread = std::thread::Builder::new().name("sidepath-place".into());
    let system = |e: std::io::Error| PairError::here(format!("cannot begin: {e}"));
    let source = Source { blocks, shelf: Shelf::default() };
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
            let mut place =
                Place::new(path, *existing, &mark, *owners).map_err(|e| tree_error(&e))?;
            choose(&mut entries, &plan.only);
            let mut placed = Placed::default();
            let mut kept_bytes = 0;
            // Folders are not there yet at the first try, so nothing is found in them.
            let keep: Vec<bool> = entries.iter().map(|s| place.is_done(&s.entry)).collect();
            for (stored, keep) in entries.iter().zip(&keep) {
                if let (Kind::File { size, .. }, true) = (&stored.entry.kind, keep) {
                    placed.kept += 1;
                    kept_bytes += size;
                }
            }
            let missing = entries.iter().zip(&keep).filter(|(_, keep)| !**keep);
            let wanted = wanted(missing.flat_map(|(stored, _)| &stored.pieces));
            thread
                .spawn(move || {
                    let _ = tell.send(put_all(place, placed, &entries, &keep, source));
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

/// What is wanted and not there.
fn missing(entries: &[Stored], only: &[Name]) -> Vec<String> {
    let is_there = |name: &Name| entries.iter().any(|stored| stored.entry.name.is_within(name));
    only.iter().filter(|name| !is_there(name)).map(ToString::to_string).collect()
}

/// Leaves what is wanted, and the folders it is in. A link whose first name is not among it becomes
/// the file itself.
fn choose(entries: &mut Vec<Stored>, only: &[Name]) {
    if only.is_empty() {
        return;
    }
    let is_wanted = |name: &Name| only.iter().any(|folder| name.is_within(folder));
    let mut promoted: HashMap<Name, Name> = HashMap::new();
    for Stored { entry, .. } in &*entries {
        if let Kind::HardLink(first) = &entry.kind
            && is_wanted(&entry.name)
            && !is_wanted(first)
        {
            promoted.entry(first.clone()).or_insert_with(|| entry.name.clone());
        }
    }
    let mut files: HashMap<Name, (Kind, Vec<Piece>)> = entries
        .iter()
        .filter_map(|Stored { entry, pieces }| {
            let now = promoted.get(&entry.name)?;
            Some((now.clone(), (entry.kind.clone(), pieces.clone())))
        })
        .collect();
    let above = |name: &Name| only.iter().any(|wanted| wanted.is_within(name));
    let mut any = false;
    entries.retain_mut(|Stored { entry, pieces }| {
        let name = &entry.name;
        if !is_wanted(name) {
            return entry.kind == Kind::Folder && above(name) && !name.is_root();
        }
        any = true;
        if let Kind::HardLink(first) = &mut entry.kind {
            if let Some((kind, bytes)) = files.remove(name) {
                (entry.kind, *pieces) = (kind, bytes);
            } else if let Some(now) = promoted.get(first) {
                *first = now.clone();
            }
        }
        true
    });
    if !any {
        entries.clear();
    }
}

/// A block of the catalogue's table, or why the store has it not.
type Got = (u32, Result<Block, String>);

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
        let (of, mut bytes) = match talk::get(&mut streams[turn]).await? {
            Some((of @ (kind::BLOCK | kind::MISSING), bytes)) => (of, bytes),
            Some(_) => return Err(PairError::Nonsense("a frame that belongs nowhere".into())),
            None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        };
        if bytes.first_chunk().map(|n| u32::from_le_bytes(*n)) != Some(*index) {
            return Err(PairError::Nonsense("a block out of turn".into()));
        }
        bytes.drain(..4);
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

/// Opened blocks, as the placing thread needs them.
struct Source {
    blocks: Receiver<Got>,
    /// What is in them, or why that is not known.
    shelf: Shelf<Result<Vec<u8>, String>>,
}

/// No more blocks come: the pair ended early.
struct NoMore;

impl Source {
    /// The bytes of a piece.
    fn bytes(&mut self, piece: &Piece) -> Result<Result<&[u8], String>, NoMore> {
        while self.shelf.get(piece.block).is_none() {
            let (index, block) = self.blocks.blocking_recv().ok_or(NoMore)?;
            let opened = block.and_then(|b| b.open().map_err(|e| format!("block {index}: {e}")));
            self.shelf.put(index, opened);
        }
        let bytes = match self.shelf.get(piece.block) {
            Some(Err(why)) => return Ok(Err(why.clone())),
            Some(Ok(bytes)) => &bytes[..],
            None => &[],
        };
        let from = piece.within as usize;
        let bytes = bytes.get(from..from + piece.length as usize);
        Ok(bytes.ok_or_else(|| format!("block {} is shorter than it should be", piece.block)))
    }
}

/// The placing thread.
fn put_all(
    mut place: Place,
    mut placed: Placed,
    entries: &[Stored],
    keep: &[bool],
    mut source: Source,
) -> Result<Placed, PairError> {
    let early = || PairError::here("the store's blocks ended early");
    // What has one of their names may be of another version.
    let mut without: HashSet<&Name> = HashSet::new();
    for (stored, keep) in entries.iter().zip(keep) {
        let done = if *keep {
            place.keep(&stored.entry).map_err(|e| (e.is_full(), e.to_string()))
        } else if let Kind::HardLink(first) = &stored.entry.kind
            && without.contains(first)
        {
            let name = &stored.entry.name;
            Err((false, format!("{name} is not restored: it is another name of {first}")))
        } else if matches!(stored.entry.kind, Kind::File { .. }) {
            match put_file(&mut place, stored, &mut source) {
                Err(NoMore) => return Err(early()),
                Ok(done) => done,
            }
        } else {
            place.put(&stored.entry).map_err(|e| (e.is_full(), e.to_string()))
        };
        match done {
            Ok(()) => {
                placed.entries += 1;
                if let Kind::File { size, .. } = stored.entry.kind {
                    placed.bytes += size;
                }
            }
            Err((true, why)) => {
                return Err(PairError::Here {
                    message: why,
                    hint: Some("make room, then start the restore again: it goes on".into()),
                    input: false,
                });
            }
            Err((false, why)) => {
                placed.missing += 1;
                if matches!(stored.entry.kind, Kind::File { .. }) {
                    without.insert(&stored.entry.name);
                }
                if placed.problems.len() < PROBLEMS_MAX {
                    placed.problems.push(why);
                }
            }
        }
    }
    match place.end() {
        Ok(troubles) => {
            placed.problems.extend(troubles);
            Ok(placed)
        }
        Err((error, _)) => Err(tree_error(&error)),
    }
}

/// A file; when it cannot be put there (and whether nothing can), its blocks are taken all the same.
fn put_file(
    place: &mut Place,
    stored: &Stored,
    source: &mut Source,
) -> Result<Result<(), (bool, String)>, NoMore> {
    let words = |e: TreeError| (e.is_full(), e.to_string());
    let Stored { entry, pieces } = stored;
    let mut file = place.begin(entry, pieces.len() <= 1).map_err(words);
    for piece in pieces {
        let bytes = source.bytes(piece)?;
        let wrote = match (&mut file, bytes) {
            (Err(_), _) => continue,
            (Ok(_), Err(why)) => Err((false, format!("{} is not restored: {why}", entry.name))),
            (Ok(file), Ok(bytes)) => file.write(piece.offset, bytes).map_err(words),
        };
        if let Err(why) = wrote
            && let Ok(begun) = std::mem::replace(&mut file, Err(why))
        {
            place.give_up(begun);
        }
    }
    Ok(file.and_then(|file| place.finish(file).map_err(words)))
}

/// A stream to a command; done when it ended well.
fn feed(
    mut child: Child,
    command: &str,
    entry: &Entry,
    pieces: &[Piece],
    mut source: Source,
) -> Result<Placed, PairError> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes_fed = 0;
    // It reads no more: how it ended says why.
    let mut left = false;
    let mut fed = Ok(());
    if let Some(mut input) = child.stdin.take() {
        for piece in pieces {
            let bytes = match source.bytes(piece) {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(why)) => {
                    fed = Err(why);
                    break;
                }
                Err(NoMore) => {
                    fed = Err("the store's blocks ended early".into());
                    break;
                }
            };
            if piece.offset != bytes_fed {
                fed = Err("the stream has gaps".into());
                break;
            }
            hasher.update(bytes);
            bytes_fed += bytes.len() as u64;
            if let Err(error) = input.write_all(bytes) {
                left = error.kind() == std::io::ErrorKind::BrokenPipe;
                fed = Err(if left {
                    format!("`{command}` ended before it had read everything")
                } else {
                    format!("cannot write to `{command}`: {error}")
                });
                break;
            }
        }
        if fed.is_ok()
            && let Kind::File { size, digest, .. } = entry.kind
            && (bytes_fed != size || *hasher.finalize().as_bytes() != digest)
        {
            fed = Err("the bytes are not those that were stored (digest)".into());
        }
        if fed.is_err() && !left {
            // It must not take what it got for all there is.
            let _ = child.kill();
        }
    }
    let status = child.wait().map_err(|e| PairError::here(format!("`{command}`: {e}")))?;
    if !status.success() && (left || fed.is_ok()) {
        return Err(PairError::here(format!("`{command}` failed ({status})")));
    }
    fed.map_err(PairError::here)?;
    Ok(Placed { entries: 1, bytes: bytes_fed, ..Placed::default() })
}

/// Blocks that are remembered: first in, first out, so that planning and placing see the same.
#[derive(Debug)]
struct Shelf<T> {
    held: HashMap<u32, T>,
    order: VecDeque<u32>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { held: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Shelf<T> {
    fn get(&self, block: u32) -> Option<&T> {
        self.held.get(&block)
    }

    fn put(&mut self, block: u32, what: T) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.held.remove(&oldest);
        }
        self.order.push_back(block);
        self.held.insert(block, what);
    }
}

/// Which blocks are to be asked for, in order, so that these pieces can be placed one after another.
fn wanted<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Vec<u32> {
    let mut shelf = Shelf::default();
    let mut wanted = Vec::new();
    for piece in pieces {
        if shelf.get(piece.block).is_none() {
            shelf.put(piece.block, ());
            wanted.push(piece.block);
        }
    }
    wanted
}

/// First and count of runs.
fn runs(blocks: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(*block) => *count += 1,
            _ => runs.push((*block, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
