//! `sidepath backup SOURCE... PEER:NAME`.

use std::{
    ffi::OsString,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    shown::Shown,
    target::{Place, failure},
};
use crate::{
    backup::{
        pair::{Line, Policy},
        send::{self, News, Plan},
        source::{Content, count_ahead},
        talk,
        tree::{Exclude, WalkOptions},
    },
    cli::{Failure, Out, Outcome, client::Target, copy::parse_rate, session::block_on},
    config::quantity::{parse_duration, show_size},
    sessions::Endpoint,
};

/// Streams of a pair, unless said otherwise: one is enough for one medium.
const STREAMS: u8 = 1;
const STREAMS_MAX: i64 = 16;

/// How bulk is carried, for backups and restores.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Carrying {
    /// What to do when the storage path is missing
    #[arg(long, value_name = "POLICY", default_value = "preferred")]
    pub(in crate::cli) policy: Policy,
    /// How long `preferred` waits for storage before it takes the network
    #[arg(long, value_name = "D", default_value = "30s", value_parser = parse_duration)]
    pub(in crate::cli) wait: Duration,
    /// Streams in parallel
    #[arg(long, value_name = "N", default_value_t = STREAMS,
          value_parser = clap::value_parser!(u8).range(1..=STREAMS_MAX))]
    pub(in crate::cli) streams: u8,
    /// How long to try again after an interruption without getting through
    #[arg(long, value_name = "D", default_value = "5m", value_parser = parse_duration)]
    pub(in crate::cli) retry: Duration,
    /// The service the store listens for
    #[arg(long, value_name = "NAME", default_value = talk::SERVICE)]
    pub(in crate::cli) service: String,
}

impl Carrying {
    pub(in crate::cli) fn line(&self, peer: &str) -> Line {
        Line {
            peer: peer.to_owned(),
            service: self.service.clone(),
            streams: self.streams,
            policy: self.policy,
            wait: self.wait,
        }
    }
}

/// What to store, and where.
#[derive(Debug, clap::Args)]
pub(super) struct Make {
    /// What to store, and where: one folder's content, or several files and folders by their names
    #[arg(value_name = "SOURCE... PEER:NAME", required = true, num_args = 1..)]
    what: Vec<OsString>,
    /// Store what this command (of sh) writes to its standard output, instead of SOURCEs
    #[arg(long, value_name = "CMD")]
    from_command: Option<String>,
    /// Leave out what matches, as in .gitignore: `*.tmp`, `/var/cache`, `node_modules/`
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Do not go into folders where something else is mounted
    #[arg(long)]
    one_file_system: bool,
    /// Look and compare only; send nothing
    #[arg(long, conflicts_with = "from_command")]
    dry_run: bool,
    /// Bytes per second at most, as in 50MiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_rate: Option<u64>,
    /// Level of compression (zstd), or `off`
    #[arg(long, value_name = "LEVEL", default_value = "1", value_parser = parse_level)]
    compress: Level,
    /// Go on where an interrupted backup of that name ended; the default
    #[arg(long, overrides_with = "no_resume")]
    resume: bool,
    /// Send everything: use nothing the store has, of an interrupted backup or of earlier versions
    #[arg(long)]
    no_resume: bool,
    /// One object per line: progress, problems, and the result
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    carrying: Carrying,
    #[command(flatten)]
    target: Target,
}

/// Of zstd, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level(Option<i32>);

fn parse_level(text: &str) -> Result<Level, String> {
    if text == "off" {
        return Ok(Level(None));
    }
    let level = text.parse().ok().filter(|level| (-7..=19).contains(level) && *level != 0);
    level.map(|level| Level(Some(level))).ok_or_else(|| format!("`{text}`: -7 to 19, or off"))
}

#[derive(Debug, Serialize)]
struct Done<'a> {
    event: &'static str,
    peer: &'a str,
    name: &'a str,
    version: u32,
    entries: u64,
    bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    resumed_bytes: u64,
    problems: u64,
    tries: u32,
    seconds: f64,
    network_bytes: u64,
    storage_bytes: u64,
    digest: &'a str,
}

pub(super) fn run(args: &Make, out: &mut Out) -> Outcome {
    let (place, sources) = what(args)?;
    if place.version.is_some() {
        return Err(Failure::input("a new version gets the next number by itself")
            .hint(format!("leave out `@{}`", place.version.unwrap_or_default())));
    }
    let content = match &args.from_command {
        Some(command) => Content::Command(command.clone()),
        None => Content::Tree {
            sources,
            options: WalkOptions {
                exclude: Exclude::new(&args.exclude).map_err(|e| failure(&e.into()))?,
                one_file_system: args.one_file_system,
            },
        },
    };
    let plan = Plan {
        line: args.carrying.line(&place.peer),
        name: place.name.clone(),
        content,
        level: args.compress.0,
        limit: args.limit_rate,
        fresh: args.no_resume,
        retry: args.carrying.retry,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    let endpoint = Endpoint::open(&args.target.path()?);
    if args.dry_run {
        return dry(&endpoint, &plan, args, out);
    }
    let total = count_ahead(&plan.content);
    let mut shown = Shown::new(args.json);
    let began = Instant::now();
    let report = block_on(async {
        let mut watch = |news: News<'_>| shown.news(&news, total.get(), out);
        Ok(send::backup(&endpoint, &plan, &mut watch).await)
    })?;
    out.progress_end();
    let report = report.map_err(|e| failure(&e))?;
    let stored = &report.stored;
    let version = &stored.version;
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        out.json(
            &Done {
                event: "done",
                peer: &place.peer,
                name: &version.name,
                version: version.number,
                entries: version.entries,
                bytes: version.bytes,
                new_bytes: version.new_bytes,
                stored_bytes: version.stored_bytes,
                resumed_bytes: stored.resumed_bytes,
                problems: version.problems,
                tries: report.tries,
                seconds,
                network_bytes: report.carried.network_bytes,
                storage_bytes: report.carried.storage_bytes,
                digest: &version.digest,
            },
            true,
        )?;
    } else {
        out.talk(format!(
            "{}:{}@{}: {} entries, {}, of these {} new ({} as stored), in {seconds:.1} s",
            place.peer,
            version.name,
            version.number,
            version.entries,
            show_size(version.bytes),
            show_size(version.new_bytes),
            show_size(version.stored_bytes),
        ));
        out.talk(format!(
            "by storage {}, by network {}",
            show_size(report.carried.storage_bytes),
            show_size(report.carried.network_bytes)
        ));
    }
    match stored.bad {
        0 => Ok(()),
        n => Err(Failure::failed(format!(
            "{n} {} could not be stored; all else is in {}@{}",
            if n == 1 { "thing" } else { "things" },
            version.name,
            version.number
        ))
        .hint("they are named above; a backup started again stores what it then can")),
    }
}

/// The last word is where; the others are what.
fn what(args: &Make) -> Result<(Place, Vec<PathBuf>), Failure> {
    let (last, sources) = args
        .what
        .split_last()
        .ok_or_else(|| Failure::input("say what to store, and where: SOURCE... PEER:NAME"))?;
    let place = last.to_string_lossy().parse::<Place>().map_err(|why| {
        Failure::input(why).hint("the last word says where: sidepath backup SOURCE... PEER:NAME")
    })?;
    match (&args.from_command, sources.is_empty()) {
        (None, true) => {
            return Err(Failure::input("nothing to store is named")
                .hint("sidepath backup SOURCE... PEER:NAME, or --from-command CMD PEER:NAME"));
        }
        (Some(_), false) => {
            return Err(Failure::input("a version is of files or of a command's output, not both"));
        }
        _ => {}
    }
    Ok((place, sources.iter().map(PathBuf::from).collect()))
}

fn dry(endpoint: &Endpoint, plan: &Plan, args: &Make, out: &mut Out) -> Outcome {
    let found = block_on(async { Ok(send::compare(endpoint, plan).await) })?;
    let found = found.map_err(|e| failure(&e))?;
    for problem in &found.problems {
        out.talk(format!("warning: {problem}"));
    }
    if args.json {
        return out.json(&found, true);
    }
    out.line(format!(
        "{} entries, {}; {} files with {} would be sent",
        found.entries,
        show_size(found.bytes),
        found.changed_files,
        show_size(found.changed_bytes)
    ))
}
