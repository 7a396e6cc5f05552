//! What a backup reads: a tree, compared with what the store knows, or the output of a command.
//!
//! Awkward cases: files that cannot be read, vanish or change meanwhile are told, and all else is
//! read; a command that fails has no output worth keeping.

use std::{
    collections::HashMap,
    io::Read,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
};

use tokio::sync::mpsc::{Receiver, channel};

use super::{
    digest::Digest,
    entry::{Entry, Kind, Name, Piece, Stamp},
    pack::{Gone, Made, Packer},
    pair::PairError,
    talk::{Coming, Known},
    tree::{self, FileReader, Found, Problem, Seen, Walk, WalkOptions},
};

/// Sealed blocks and batches that wait to be sent.
const MADE_QUEUE: usize = 4;
/// Pieces of a stream that are announced together.
const STREAM_PIECES: usize = 1024;

/// What is to be stored.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Tree {
        sources: Vec<PathBuf>,
        options: WalkOptions,
    },
    /// For `sh -c`.
    Command(String),
}

/// Begins to read, in threads of its own; what they make is to be sent in that order.
pub(super) fn start_reading(
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
    let (mut pieces, mut size, mut digest) = (Vec::new(), 0_u64, Digest::default());
    loop {
        let room = packer.room();
        let n = match from.read(room) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StreamEnd::Read(error)),
        };
        digest.update(size, &room[..n]);
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
    let entry = stream_entry(size, digest.finish());
    packer.entry(Coming { entry, known: None, pieces, more: false })?;
    Ok(())
}

pub(super) fn walk(sources: &[PathBuf], options: &WalkOptions) -> Result<Walk, PairError> {
    Ok(Walk::new(sources, options.clone())?)
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
