//! What is in a peer's store: `list`, `show`, `verify`, `forget`.

use serde::Serialize;

use super::target::{Place, failure};
use crate::{
    backup::{
        entry::{Entry, Kind, Name},
        look,
        pair::{Line, Policy},
        talk::{self, Version},
    },
    cli::{Failure, Out, Outcome, client::Target, session::block_on, stamp},
    config::quantity::show_size,
    sessions::Endpoint,
};

/// Which store.
#[derive(Debug, clap::Args)]
struct Store {
    /// The service the store listens for
    #[arg(long, value_name = "NAME", default_value = talk::SERVICE)]
    service: String,
    #[command(flatten)]
    target: Target,
}

impl Store {
    fn endpoint(&self) -> Result<Endpoint, Failure> {
        Ok(Endpoint::open(&self.target.path()?))
    }

    fn line(&self, peer: &str) -> Line {
        let wait = std::time::Duration::ZERO;
        let (peer, service) = (peer.to_owned(), self.service.clone());
        Line { peer, service, streams: 1, policy: Policy::Preferred, wait }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// The peer with the store, or one backup there
    #[arg(value_name = "PEER[:NAME]")]
    what: String,
    /// An array of objects
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: Store,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// Which version; the last one, if none is named
    #[arg(value_name = "PEER:NAME[@VERSION]")]
    place: Place,
    /// Only this file or folder of it
    #[arg(value_name = "PATH")]
    path: Option<String>,
    /// One object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: Store,
}

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Which version; the last one, if none is named
    #[arg(value_name = "PEER:NAME[@VERSION]")]
    place: Place,
    /// One object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: Store,
}

#[derive(Debug, clap::Args)]
pub(super) struct ForgetArgs {
    /// Which version; it has to be named
    #[arg(value_name = "PEER:NAME@VERSION")]
    place: Place,
    #[command(flatten)]
    store: Store,
}

pub(super) fn list(args: &ListArgs, out: &mut Out) -> Outcome {
    let (peer, name) = match args.what.split_once(':') {
        Some(_) => {
            let place: Place = args.what.parse().map_err(Failure::input)?;
            (place.peer, Some(place.name))
        }
        None => (args.what.clone(), None),
    };
    let endpoint = args.store.endpoint()?;
    let line = args.store.line(&peer);
    let found = block_on(async { Ok(look::versions(&endpoint, &line, name).await) })?;
    let (versions, findings) = found.map_err(|e| failure(&e))?;
    if args.json {
        out.json(&versions, false)?;
    } else if versions.is_empty() {
        out.line("no backups yet")?;
    } else {
        table(&versions, out)?;
    }
    told(&findings, out)
}

fn table(versions: &[Version], out: &mut Out) -> Outcome {
    let named = |v: &Version| format!("{}@{}", v.name, v.number);
    let width = versions.iter().map(|v| named(v).len()).max().unwrap_or_default().max(7);
    out.line(format!(
        "{:width$}  {:20}  {:>9}  {:>10}  {:>10}  of",
        "VERSION", "ENDED (UTC)", "ENTRIES", "SIZE", "NEW, STORED"
    ))?;
    for version in versions {
        let problems = match version.problems {
            0 => String::new(),
            n => format!("  ({n} problems)"),
        };
        out.line(format!(
            "{:width$}  {:20}  {:>9}  {:>10}  {:>10}  {}: {}{problems}",
            named(version),
            stamp::of_seconds(version.ended_s),
            version.entries,
            show_size(version.bytes),
            show_size(version.stored_bytes),
            version.about.host,
            version.about.sources.join(" "),
        ))?;
    }
    Ok(())
}

/// What is wrong makes the command fail, after all else was shown.
fn told(findings: &[String], out: &mut Out) -> Outcome {
    out.flush()?;
    for finding in findings {
        out.talk(format!("warning: {finding}"));
    }
    if findings.is_empty() { Ok(()) } else { Err(Failure::told(1)) }
}

/// An entry as JSON.
#[derive(Debug, Serialize)]
struct Shown {
    path: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: Option<u64>,
    mtime_s: i64,
    mtime_ns: u32,
    target: Option<String>,
    digest: Option<String>,
    changed: bool,
    xattrs: Vec<String>,
}

pub(super) fn show(args: &ShowArgs, out: &mut Out) -> Outcome {
    let only = match &args.path {
        None => Name::default(),
        Some(path) => {
            let path = path.trim_start_matches("./").trim_end_matches('/');
            Name::new(if path == "." { "" } else { path })
                .map_err(|e| Failure::input(e.to_string()).hint("name it as `show` does"))?
        }
    };
    let endpoint = args.store.endpoint()?;
    let line = args.store.line(&args.place.peer);
    let (name, version) = (args.place.name.clone(), args.place.version);
    let found = block_on(async { Ok(look::catalogue(&endpoint, &line, name, version).await) })?;
    let catalogue = found.map_err(|e| failure(&e))?;
    let number = catalogue.version.number;
    let mut any = false;
    for stored in catalogue.entries.iter().filter(|stored| stored.entry.name.is_within(&only)) {
        any = true;
        if args.json {
            out.json(&shown(&stored.entry), true)?;
        } else {
            out.line(row(&stored.entry))?;
        }
    }
    if any || only.is_root() {
        return Ok(());
    }
    Err(Failure::input(format!("{}@{number} has no {only}", args.place.name))
        .hint("without a path, `sidepath backup show` lists all there is"))
}

fn shown(entry: &Entry) -> Shown {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (size, digest, changed) = match &entry.kind {
        Kind::File { size, digest, changed } => {
            (Some(*size), Some(blake3::Hash::from(*digest).to_hex().to_string()), *changed)
        }
        _ => (None, None, false),
    };
    Shown {
        path: entry.name.to_string(),
        kind: letter(&entry.kind).1,
        mode: format!("{:04o}", entry.mode),
        uid: entry.uid,
        gid: entry.gid,
        size,
        mtime_s: entry.mtime.s,
        mtime_ns: entry.mtime.ns,
        target: match &entry.kind {
            Kind::Symlink(target) => Some(text(target)),
            Kind::HardLink(first) => Some(first.to_string()),
            _ => None,
        },
        digest,
        changed,
        xattrs: entry.xattrs.iter().map(|(name, _)| text(name)).collect(),
    }
}

const fn letter(kind: &Kind) -> (char, &'static str) {
    match kind {
        Kind::Folder => ('d', "folder"),
        Kind::File { .. } => ('-', "file"),
        Kind::Symlink(_) => ('l', "symlink"),
        Kind::HardLink(_) => ('h', "hard_link"),
        Kind::CharDevice(_) => ('c', "char_device"),
        Kind::BlockDevice(_) => ('b', "block_device"),
        Kind::Fifo => ('p', "fifo"),
    }
}

/// As `ls -l` has it.
fn row(entry: &Entry) -> String {
    let size = match &entry.kind {
        Kind::File { size, .. } => size.to_string(),
        _ => "-".to_owned(),
    };
    let target = match &entry.kind {
        Kind::Symlink(target) => {
            // As a name that points somewhere: shown as harmlessly as names are.
            let shown = String::from_utf8_lossy(target);
            format!(" -> {}", shown.escape_debug())
        }
        Kind::HardLink(first) => format!(" = {first}"),
        Kind::File { changed: true, .. } => " (changed while it was read)".to_owned(),
        _ => String::new(),
    };
    format!(
        "{}{:04o} {:>5} {:>5} {:>12}  {}  {}{target}",
        letter(&entry.kind).0,
        entry.mode,
        entry.uid,
        entry.gid,
        size,
        stamp::of_seconds(entry.mtime.s),
        entry.name
    )
}

pub(super) fn verify(args: &VerifyArgs, out: &mut Out) -> Outcome {
    let endpoint = args.store.endpoint()?;
    let line = args.store.line(&args.place.peer);
    let (name, version) = (args.place.name.clone(), args.place.version);
    let found = block_on(async {
        let mut progress = |bytes, of| {
            out.progress(&format!("{} of {}", show_size(bytes), show_size(of)));
        };
        Ok(look::verify(&endpoint, &line, name, version, &mut progress).await)
    })?;
    out.progress_end();
    let findings = found.map_err(|e| failure(&e))?;
    if args.json {
        out.json(&serde_json::json!({ "findings": findings }), true)?;
    } else if findings.is_empty() {
        out.line(format!("{}: every byte is as it was", args.place.name))?;
    }
    told(&findings, out)
}

pub(super) fn forget(args: &ForgetArgs, out: &mut Out) -> Outcome {
    let Some(version) = args.place.version else {
        return Err(Failure::input("say which version is to go")
            .hint(format!("{}:{}@VERSION", args.place.peer, args.place.name)));
    };
    let endpoint = args.store.endpoint()?;
    let line = args.store.line(&args.place.peer);
    let name = args.place.name.clone();
    let done = block_on(async { Ok(look::forget(&endpoint, &line, name, version).await) })?;
    done.map_err(|e| failure(&e))?;
    out.line(format!("{}@{version} is gone", args.place.name))
}
