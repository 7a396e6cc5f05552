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
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio::{io::AsyncWriteExt, sync::mpsc::Receiver};

use super::{
    client::Client,
    entry::{Entry, Kind, Name},
    look,
    pack::Made,
    pair::{Carried, Line, PairError, beside, path_of, receive_all, word},
    source::{Content, start_reading, walk},
    talk::{self, About, Known, Say, Tell, Version, Want, kind},
    tree::Found,
    tries::Tries,
};
use crate::sessions::{Endpoint, Path, Stream};

/// Problems a version carries; further ones are counted.
const PROBLEMS_MAX: usize = 1000;

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
    pub(crate) stored: Stored,
    /// All tries together.
    pub(crate) carried: Carried,
    pub(crate) tries: u32,
}

/// What is in the store now.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) version: Version,
    /// Of these, bytes of an interrupted try.
    pub(crate) resumed_bytes: u64,
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
            Ok(stored) => return Ok(Report { stored, carried, tries: tries.count + 1 }),
            Err(error) => tries.again(error, watch).await?,
        }
    }
}

async fn attempt(
    endpoint: &Endpoint,
    plan: &Plan,
    fresh: bool,
    carried: &mut Carried,
    tries: &mut Tries,
    watch: Watch<'_>,
) -> Result<Stored, PairError> {
    let mut client = Client::meet(endpoint, &plan.line, tries).await?;
    let done = store(&mut client, plan, fresh, tries, watch).await;
    if done.is_ok() {
        client.bye().await;
    }
    client.end(&plan.line, carried, done)
}

async fn store(
    client: &mut Client,
    plan: &Plan,
    fresh: bool,
    tries: &mut Tries,
    watch: Watch<'_>,
) -> Result<Stored, PairError> {
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
    client.ask(Want::Backup { name: plan.name.clone(), about, fresh }).await?;
    let Client { out, said, streams } = client;
    let resumed_bytes = match word(said.recv().await)? {
        Say::Go { resumed_bytes } => resumed_bytes,
        other => return Err(PairError::Nonsense(format!("{other:?}"))),
    };
    tries.answered();
    if resumed_bytes > 0 {
        watch(News::Resumed(resumed_bytes));
    }
    let known: Vec<Known> = receive_all(&mut streams[0]).await?;
    let made = start_reading(&plan.content, known, plan.level)?;
    let limit = plan.limit.map(Limit::new);
    let mut sender =
        Sender { streams, limit, so_far: SoFar::default(), problems: Vec::new(), bad: 0 };
    let mut on = |said| {
        if matches!(said, Say::Stored { .. }) {
            tries.got_on();
        }
    };
    let (blocks, entries) = beside(sender.send(made, watch), said, &mut on).await?;
    let Sender { problems, bad, .. } = sender;
    talk::say(out, &Tell::Finish { blocks, entries, problems }).await?;
    loop {
        match word(said.recv().await)? {
            Say::Done(version) => return Ok(Stored { version: *version, resumed_bytes, bad }),
            Say::Stored { .. } => tries.got_on(),
            other => return Err(PairError::Nonsense(format!("{other:?}"))),
        }
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
