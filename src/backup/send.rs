//! The client of a backup: reads a tree or a command's output, and sends what the store lacks.
//!
//! ```text
//!   reading thread ── Packer ── sealing thread ── Made ──> this task ──> streams in turn
//!                                                              └──<── control: how far it is stored
//! ```
//!
//! Awkward cases:
//! * Whatever ends a pair on the way (a daemon that restarts, a store that does) is tried again: the
//!   store knows what it has, so only the rest is sent.
//! * A command cannot be read twice: what it wrote is sent again from its beginning, by another run.

use std::{
    collections::HashMap,
    io::Read,
    path::PathBuf,
    pin::pin,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc::{Receiver, channel},
};

use super::{
    entry::{Entry, Kind, Name, Piece, Stamp},
    look,
    pack::{Gone, Made, Packer},
    pair::{Carried, Line, PairError, beside, listen, path_of, receive_all, word},
    talk::{self, About, Ask, Coming, Known, Say, Tell, Version, Want, kind},
    tree::{self, FileReader, Found, Problem, Seen, Walk, WalkOptions},
};
use crate::sessions::{DataSocket, Ending, Endpoint, Path, SessionError, Stream};

/// Sealed blocks and batches that wait to be sent.
const MADE_QUEUE: usize = 4;
/// Between two tries.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Somebody else's backup of that name may be the end of our own that was killed.
const BUSY_WITHIN: Duration = Duration::from_secs(5);
/// How long the store's goodbye is waited for.
pub(super) const BYE_WITHIN: Duration = Duration::from_secs(5);
/// Problems a version carries; further ones are counted.
const PROBLEMS_MAX: usize = 1000;
/// Pieces of a stream that are announced together.
const STREAM_PIECES: usize = 1024;

/// What is to be stored, and where.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) line: Line,
    pub(crate) name: String,
    pub(crate) content: Content,
    /// Of zstd; none leaves bytes as they are.
    pub(crate) level: Option<i32>,
    /// Bytes per second at most, as sent.
    pub(crate) limit: Option<u64>,
    /// Nothing of an interrupted one is used.
    pub(crate) fresh: bool,
    /// How long to try again without getting through.
    pub(crate) retry: Duration,
    pub(crate) host: String,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Tree {
        sources: Vec<PathBuf>,
        options: WalkOptions,
    },
    /// For `sh -c`.
    Command(String),
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SoFar {
    pub(crate) entries: u64,
    /// Bytes of files that are dealt with: sent, or known to the store.
    pub(crate) bytes: u64,
    /// Bytes as sent.
    pub(crate) sent: u64,
    pub(crate) path: Option<Path>,
}

/// What a client tells whoever watches.
#[derive(Debug)]
pub(crate) enum News<'a> {
    SoFar(SoFar),
    /// Something is not stored, or not as it should be.
    Problem(&'a str),
    /// It was interrupted and is tried again.
    Again(&'a PairError),
    /// It goes on where an interrupted one ended.
    Resumed(u64),
}

pub(crate) type Watch<'a> = &'a mut dyn FnMut(News<'_>);

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) version: Version,
    /// All tries together.
    pub(crate) carried: Carried,
    pub(crate) resumed_bytes: u64,
    pub(crate) tries: u32,
    /// Things that could not be stored.
    pub(crate) bad: u64,
}

/// Backs up, trying again as long as may be.
pub(crate) async fn backup(
    endpoint: &Endpoint,
    plan: &Plan,
    watch: Watch<'_>,
) -> Result<Report, PairError> {
    if let Content::Tree { sources, options } = &plan.content {
        // What is not there is found before anybody is asked or waited for.
        walk(sources, options)?;
    }
    let mut carried = Carried::default();
    let mut tries = Tries::new(plan.retry, plan.line.waits());
    loop {
        // A try that did not begin has forgotten nothing yet.
        let mut fresh = plan.fresh && !tries.is_through();
        fresh |= matches!(plan.content, Content::Command(_));
        let tried = attempt(endpoint, plan, fresh, &mut carried, &mut tries, watch).await;
        match tried {
            Ok(report) => return Ok(Report { carried, tries: tries.count + 1, ..report }),
            Err(error) => tries.again(error, watch).await?,
        }
    }
}

/// How often something was tried, and how long it may be.
#[derive(Debug)]
pub(super) struct Tries {
    pub(super) count: u32,
    within: Duration,
    /// A path that is missing from the beginning is waited for, too.
    waits: bool,
    /// When this try was answered.
    answered: Option<Instant>,
    /// Whether the other side was there, and whether it ever did what we asked for.
    met: bool,
    ever: bool,
    /// Since when it fails without getting on.
    failing: Option<Instant>,
    wait: Duration,
}

impl Tries {
    pub(super) fn new(within: Duration, waits: bool) -> Self {
        let (answered, failing) = (None, None);
        let (met, ever, wait) = (false, false, RETRY_FIRST);
        Self { count: 0, within, waits, answered, met, ever, failing, wait }
    }

    /// The other side is there.
    pub(super) fn met(&mut self) {
        self.met = true;
    }

    /// The other side does what we ask for. That alone is no progress: else what always fails a
    /// little later would be tried for ever.
    pub(super) fn answered(&mut self) {
        (self.answered, self.ever) = (Some(Instant::now()), true);
    }

    /// Something came to its place for good.
    pub(super) fn got_on(&mut self) {
        (self.failing, self.wait) = (None, RETRY_FIRST);
    }

    /// Whether we ever did.
    pub(super) const fn is_through(&self) -> bool {
        self.ever
    }

    /// Waits before the next try, or gives up with this error.
    pub(super) async fn again(
        &mut self,
        error: PairError,
        watch: Watch<'_>,
    ) -> Result<(), PairError> {
        let within = match &error {
            PairError::Said(_) if !self.ever => self.within.min(BUSY_WITHIN),
            PairError::Session(SessionError::Ended(Ending::TimedOut)) if self.waits => self.within,
            // What was wrong from the beginning is for a person.
            _ if !self.met => Duration::ZERO,
            _ => self.within,
        };
        // A long try did something, be it that it read what the store has already.
        if self.answered.take().is_some_and(|at| at.elapsed() >= self.within) {
            self.got_on();
        }
        let since = *self.failing.get_or_insert_with(Instant::now);
        if !error.passes() || since.elapsed() >= within {
            return Err(error);
        }
        watch(News::Again(&error));
        self.count += 1;
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(RETRY_MAX);
        Ok(())
    }
}

async fn attempt(
    endpoint: &Endpoint,
    plan: &Plan,
    fresh: bool,
    carried: &mut Carried,
    tries: &mut Tries,
    watch: Watch<'_>,
) -> Result<Report, PairError> {
    let pair = plan.line.connect(endpoint).await?;
    tries.met();
    plan.line.settle(&pair).await?;
    let DataSocket { control, mut streams } = pair;
    let (from, mut out) = control.into_split();
    let mut said = listen(from);
    let done = async {
        let about = About {
            sources: match &plan.content {
                Content::Tree { sources, .. } => {
                    sources.iter().map(|s| s.display().to_string()).collect()
                }
                Content::Command(command) => vec![command.clone()],
            },
            stream: matches!(plan.content, Content::Command(_)),
            host: plan.host.clone(),
        };
        let want = Want::Backup { name: plan.name.clone(), about, fresh };
        talk::say(&mut out, &Ask { version: talk::VERSION, want }).await?;
        let resumed_bytes = match word(said.recv().await)? {
            Say::Go { resumed_bytes, .. } => resumed_bytes,
            other => return Err(PairError::Nonsense(format!("{other:?}"))),
        };
        tries.answered();
        if resumed_bytes > 0 {
            watch(News::Resumed(resumed_bytes));
        }
        let known: Vec<Known> = receive_all(&mut streams[0]).await?;
        let mut sender = Sender {
            streams: &mut streams,
            limit: plan.limit.map(Limit::new),
            so_far: SoFar::default(),
            problems: Vec::new(),
            bad: 0,
        };
        let made = start_reading(&plan.content, known, plan.level)?;
        let mut on = |said| {
            if matches!(said, Say::Stored { .. }) {
                tries.got_on();
            }
        };
        let (blocks, entries) = beside(sender.send(made, watch), &mut said, &mut on).await?;
        let (problems, bad) = (sender.problems, sender.bad);
        talk::say(&mut out, &Tell::Finish { blocks, entries, problems }).await?;
        loop {
            match word(said.recv().await)? {
                Say::Done(version) => {
                    return Ok(Report {
                        version: *version,
                        carried: Carried::default(),
                        resumed_bytes,
                        tries: 0,
                        bad,
                    });
                }
                Say::Stored { .. } => tries.got_on(),
                other => return Err(PairError::Nonsense(format!("{other:?}"))),
            }
        }
    };
    let done = done.await;
    if done.is_ok() {
        // It is stored; this is for the counters of both sides.
        let _ = tokio::time::timeout(BYE_WITHIN, out.stream().closed()).await;
    }
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

struct Sender<'a> {
    streams: &'a mut [Stream],
    limit: Option<Limit>,
    so_far: SoFar,
    problems: Vec<String>,
    bad: u64,
}

impl Sender<'_> {
    /// Sends all that is made; how many blocks and entries that were.
    async fn send(
        &mut self,
        mut made: Receiver<Made>,
        watch: Watch<'_>,
    ) -> Result<(u32, u64), PairError> {
        loop {
            let next = {
                // Streams that end while nothing is written are not noticed by writing.
                let failing = pin!(self.streams[0].failed());
                match select(pin!(made.recv()), failing).await {
                    Either::Left((next, _)) => next,
                    Either::Right((error, _)) => return Err(error.into()),
                }
            };
            match next {
                Some(Made::Block(number, block)) => {
                    let turn = number as usize % self.streams.len();
                    if let Some(limit) = &mut self.limit {
                        limit.wait(block.bytes().len()).await;
                    }
                    let parts = [&number.to_le_bytes()[..], block.bytes()];
                    talk::put(&mut self.streams[turn], kind::BLOCK, &parts).await?;
                    self.so_far.bytes += block.raw_len() as u64;
                    self.so_far.sent += block.bytes().len() as u64;
                }
                Some(Made::Entries { bytes, entries, known_bytes }) => {
                    talk::put(&mut self.streams[0], kind::ENTRIES, &[&bytes]).await?;
                    self.so_far.entries += entries;
                    self.so_far.bytes += known_bytes;
                    self.so_far.sent += bytes.len() as u64;
                }
                Some(Made::Problem(problem)) => {
                    watch(News::Problem(&problem.what));
                    self.bad += u64::from(problem.bad);
                    if self.problems.len() < PROBLEMS_MAX {
                        self.problems.push(problem.what);
                    }
                }
                Some(Made::End(blocks, entries)) => {
                    talk::put(&mut self.streams[0], kind::END, &[]).await?;
                    for stream in self.streams.iter_mut() {
                        stream.shutdown().await?;
                    }
                    return Ok((blocks, entries));
                }
                Some(Made::Failed(why)) => return Err(PairError::here(why)),
                None => return Err(PairError::here("the reading thread ended early")),
            }
            self.so_far.path = path_of(self.streams.iter());
            watch(News::SoFar(self.so_far));
        }
    }
}

/// Bytes per second at most; what was not used for a while is not saved up.
#[derive(Debug)]
struct Limit {
    per_s: u64,
    /// When what was sent so far is through.
    free_at: Instant,
}

impl Limit {
    fn new(per_s: u64) -> Self {
        Self { per_s: per_s.max(1), free_at: Instant::now() }
    }

    async fn wait(&mut self, bytes: usize) {
        let now = Instant::now();
        let begin = self.free_at.max(now);
        if begin > now {
            tokio::time::sleep(begin - now).await;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.per_s as f64);
        self.free_at = begin + takes;
    }
}

fn start_reading(
    content: &Content,
    known: Vec<Known>,
    level: Option<i32>,
) -> Result<Receiver<Made>, PairError> {
    let system = |e: std::io::Error| PairError::here(format!("cannot begin to read: {e}"));
    let (tell, made) = channel(MADE_QUEUE);
    let packer = Packer::start(level, tell).map_err(system)?;
    let thread = std::thread::Builder::new().name("sidepath-read".into());
    match content {
        Content::Tree { sources, options } => {
            let walk = walk(sources, options)?;
            thread.spawn(move || read_tree(walk, &known, packer)).map_err(system)?;
        }
        Content::Command(command) => {
            let child = Command::new("sh")
                .args(["-c", command])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|e| PairError::here(format!("cannot start sh: {e}")))?;
            let command = command.clone();
            thread.spawn(move || read_command(child, &command, packer)).map_err(system)?;
        }
    }
    Ok(made)
}

/// Reads a tree for the packer; nothing is left to do when whoever sends is gone.
fn read_tree(mut walk: Walk, known: &[Known], mut packer: Packer) {
    let by_name: HashMap<&Name, u32> =
        known.iter().zip(0..).map(|(known, i)| (&known.entry.name, i)).collect();
    while let Some(found) = walk.next() {
        let done = match found {
            Found::Problem(problem) => packer.problem(problem),
            Found::Seen(seen) => {
                let before = by_name.get(&seen.entry.name).copied();
                let before = before.map(|i| (i, &known[i as usize]));
                let first = seen.first();
                let stored = read_entry(seen, before, &mut packer);
                if matches!(stored, Ok(false)) {
                    walk.forget(first);
                }
                stored.map(|_| ())
            }
        };
        if done.is_err() {
            return;
        }
    }
    let _ = packer.end();
}

fn bad(name: &Name, what: &str, error: &std::io::Error) -> Problem {
    Problem { what: format!("{name}: {what}: {error}"), bad: true }
}

/// Whether it is stored.
fn read_entry(
    mut seen: Seen,
    before: Option<(u32, &Known)>,
    packer: &mut Packer,
) -> Result<bool, Gone> {
    let before = before.filter(|(_, known)| known.entry.is_unchanged(&seen.entry));
    if let Some((index, Known { entry, until: None })) = before {
        if let Kind::File { size, .. } = entry.kind {
            packer.knows(size);
        }
        let entry = entry.clone();
        let coming = Coming { entry, known: Some(index), pieces: Vec::new(), more: false };
        return packer.entry(coming).map(|()| true);
    }
    match seen.xattrs() {
        Ok(xattrs) => seen.entry.xattrs = xattrs,
        Err(error) => {
            packer.problem(bad(&seen.entry.name, "extended attributes are not stored", &error))?;
        }
    }
    if !matches!(seen.entry.kind, Kind::File { .. }) {
        let entry = seen.entry;
        let coming = Coming { entry, known: None, pieces: Vec::new(), more: false };
        return packer.entry(coming).map(|()| true);
    }
    let not_stored = |packer: &mut Packer, error| {
        packer.problem(bad(&seen.entry.name, "is not stored", &error)).map(|()| false)
    };
    let mut file = match seen.open() {
        Ok(file) => file,
        Err(error) => return not_stored(packer, error),
    };
    // It may have changed since it was seen.
    let mut known = before.filter(|(_, known)| known.entry.is_unchanged(file.entry()));
    if let Some(until) = known.and_then(|(_, known)| known.until) {
        if matches!(file.skip_to(until, &mut vec![0; 256 << 10]), Ok(true)) {
            packer.knows(until);
        } else {
            known = None;
            file = match seen.open() {
                Ok(file) => file,
                Err(error) => return not_stored(packer, error),
            };
        }
    }
    read_file(file, seen.entry.xattrs, known.map(|(index, _)| index), packer)
}

fn read_file(
    mut file: FileReader,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    mut known: Option<u32>,
    packer: &mut Packer,
) -> Result<bool, Gone> {
    let mut failed = None;
    packer.make_room(file.size())?;
    let mut pieces = Vec::new();
    while failed.is_none() {
        match file.next(packer.room()) {
            Ok(Some((offset, length))) => {
                pieces.push(packer.filled(offset, length)?);
                packer.so_far(file.entry(), &mut known, &mut pieces)?;
            }
            Ok(None) => break,
            Err(error) => failed = Some(error),
        }
    }
    let name = file.entry().name.clone();
    let entry = match failed {
        None => file.finish(),
        Some(error) => {
            packer.problem(bad(&name, "only what could be read is stored", &error))?;
            Ok(file.give_up())
        }
    };
    let mut entry = match entry {
        Ok(entry) => entry,
        Err(error) => {
            return packer.problem(bad(&name, "is not stored", &error)).map(|()| false);
        }
    };
    if matches!(entry.kind, Kind::File { changed: true, .. }) {
        let what = format!("{name}: changed while it was read: stored as it was read");
        packer.problem(Problem { what, bad: false })?;
    }
    entry.xattrs = xattrs;
    packer.entry(Coming { entry, known, pieces, more: false }).map(|()| true)
}

/// The one entry of a stream.
fn stream_entry(size: u64, digest: [u8; 32]) -> Entry {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mtime = now.map_or_else(
        |_| Stamp::default(),
        |since| Stamp { s: i64::try_from(since.as_secs()).unwrap_or(0), ns: since.subsec_nanos() },
    );
    Entry {
        name: Name::new("stream").unwrap_or_default(),
        kind: Kind::File { size, digest, changed: false },
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime,
        ctime: Stamp::default(),
        inode: 0,
        xattrs: Vec::new(),
    }
}

fn read_command(mut child: Child, command: &str, mut packer: Packer) {
    let Some(mut output) = child.stdout.take() else { return };
    let read = read_stream(&mut output, &mut packer);
    drop(output);
    if matches!(read, Err(StreamEnd::Gone)) {
        let _ = child.kill();
    }
    let status = child.wait();
    let why = match (read, status) {
        (Err(StreamEnd::Gone), _) => return,
        (Err(StreamEnd::Read(error)), _) => {
            format!("cannot read the output of `{command}`: {error}")
        }
        (Ok(()), Ok(status)) if status.success() => {
            let _ = packer.end();
            return;
        }
        (Ok(()), Ok(status)) => format!("`{command}` failed ({status}): nothing is stored"),
        (Ok(()), Err(error)) => format!("cannot learn how `{command}` ended: {error}"),
    };
    packer.failed(why);
}

enum StreamEnd {
    Gone,
    Read(std::io::Error),
}

impl From<Gone> for StreamEnd {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

fn read_stream(from: &mut impl Read, packer: &mut Packer) -> Result<(), StreamEnd> {
    let (mut pieces, mut size, mut hasher) = (Vec::new(), 0_u64, blake3::Hasher::new());
    loop {
        let room = packer.room();
        let n = match from.read(room) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StreamEnd::Read(error)),
        };
        hasher.update(&room[..n]);
        let piece = packer.filled(size, n)?;
        match pieces.last_mut() {
            // Pipes give little at a time: what follows in the same block is the same piece.
            Some(Piece { block, length, .. }) if *block == piece.block => *length += piece.length,
            _ => pieces.push(piece),
        }
        size += n as u64;
        if pieces.len() > STREAM_PIECES {
            // All but the last, which may still grow.
            let rest = pieces.split_off(pieces.len() - 1);
            let entry = stream_entry(size, [0; 32]);
            let pieces = std::mem::replace(&mut pieces, rest);
            packer.entry(Coming { entry, known: None, pieces, more: true })?;
        }
    }
    let entry = stream_entry(size, *hasher.finalize().as_bytes());
    packer.entry(Coming { entry, known: None, pieces, more: false })?;
    Ok(())
}

/// What a tree holds, compared with what the store has of it.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Compared {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) changed_files: u64,
    pub(crate) changed_bytes: u64,
    pub(crate) problems: Vec<String>,
}

/// Looks and compares; nothing is sent.
pub(crate) async fn compare(endpoint: &Endpoint, plan: &Plan) -> Result<Compared, PairError> {
    let Content::Tree { sources, options } = &plan.content else {
        return Err(PairError::here("a command's output is not known before it runs"));
    };
    let walk = walk(sources, options)?;
    // So little is not worth waiting for storage.
    let line = Line { wait: Duration::ZERO, ..plan.line.clone() };
    let (versions, _) = look::versions(endpoint, &line, None).await?;
    let known = if versions.iter().any(|version| version.name == plan.name) {
        look::catalogue(endpoint, &line, plan.name.clone(), None).await?.entries
    } else {
        Vec::new()
    };
    let known: HashMap<&Name, &Entry> =
        known.iter().map(|stored| (&stored.entry.name, &stored.entry)).collect();
    let mut compared = Compared::default();
    for found in walk {
        match found {
            Found::Problem(problem) => compared.problems.push(problem.what),
            Found::Seen(seen) => {
                compared.entries += 1;
                if let Kind::File { size, .. } = seen.entry.kind {
                    compared.bytes += size;
                    if !known.get(&seen.entry.name).is_some_and(|is| is.is_unchanged(&seen.entry)) {
                        compared.changed_files += 1;
                        compared.changed_bytes += size;
                    }
                }
            }
        }
    }
    Ok(compared)
}

fn walk(sources: &[PathBuf], options: &WalkOptions) -> Result<Walk, PairError> {
    Walk::new(sources, options.clone()).map_err(|error| PairError::Here {
        message: error.to_string(),
        hint: error.hint(),
        input: true,
    })
}

/// Bytes of the files to come, as soon as they are counted; never, for a command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ahead(Arc<OnceLock<u64>>);

impl Ahead {
    pub(crate) fn get(&self) -> Option<u64> {
        self.0.get().copied()
    }
}

/// Counts beside the backup, for whoever watches.
pub(crate) fn count_ahead(content: &Content) -> Ahead {
    let ahead = Ahead::default();
    if let Content::Tree { sources, options } = content.clone() {
        let told = ahead.clone();
        std::thread::spawn(move || told.0.set(tree::count(&sources, &options).0));
    }
    ahead
}
