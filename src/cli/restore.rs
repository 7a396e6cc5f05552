//! `sidepath restore PEER:NAME[@VERSION] DEST`.

use std::{path::PathBuf, time::Instant};

use serde::Serialize;

use super::{
    Failure, Out, Outcome,
    backup::{Carrying, Place, Shown, failure},
    client::Target,
    session::block_on,
};
use crate::{
    backup::{
        entry::Name,
        fetch::{self, Destination, Plan},
        send::News,
        tree::Existing,
    },
    config::quantity::show_size,
    sessions::Endpoint,
};

/// Bring a stored version back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Started again after an interruption, a restore goes on: what is there \
                        already is not sent again.")]
pub(super) struct Args {
    /// Which version; the last one, if none is named
    #[arg(value_name = "PEER:NAME[@VERSION]")]
    place: Place,
    /// The folder to restore to; made if it is not there
    #[arg(value_name = "DEST", required_unless_present = "to_command")]
    dest: Option<PathBuf>,
    /// Give a stream to this command (of sh) as its standard input, instead
    #[arg(long, value_name = "CMD", conflicts_with_all = ["dest", "overwrite", "only"])]
    to_command: Option<String>,
    /// Only this file or folder of the version, with its path; may be repeated
    #[arg(long, value_name = "PATH")]
    only: Vec<String>,
    /// Restore into a folder with other things in it: files of the same names are replaced
    #[arg(long)]
    overwrite: bool,
    /// Let everything belong to who restores; for others than root that is so anyway
    #[arg(long)]
    no_owner: bool,
    /// One object per line: progress, problems, and the result
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    carrying: Carrying,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Serialize)]
struct Done<'a> {
    event: &'static str,
    peer: &'a str,
    name: &'a str,
    version: u32,
    entries: u64,
    bytes: u64,
    kept: u64,
    missing: u64,
    tries: u32,
    seconds: f64,
    network_bytes: u64,
    storage_bytes: u64,
    digest: &'a str,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let to = match (&args.to_command, &args.dest) {
        (Some(command), _) => Destination::Command(command.clone()),
        (None, Some(path)) => Destination::Folder {
            path: path.clone(),
            existing: if args.overwrite { Existing::Overwrite } else { Existing::Refuse },
            owners: !args.no_owner,
        },
        (None, None) => return Err(Failure::input("say where to: DEST or --to-command CMD")),
    };
    let only = args.only.iter().map(|path| {
        let path = path.trim_start_matches("./").trim_end_matches('/');
        Name::new(path).map_err(|e| {
            Failure::input(e.to_string()).hint("name it as `sidepath backup show` does")
        })
    });
    let plan = Plan {
        line: args.carrying.line(&args.place.peer),
        name: args.place.name.clone(),
        version: args.place.version,
        to,
        only: only.collect::<Result<_, _>>()?,
        retry: args.carrying.retry,
    };
    let endpoint = Endpoint::open(&args.target.path()?);
    let mut shown = Shown::new(args.json);
    let began = Instant::now();
    let report = block_on(async {
        let mut watch = |news: News<'_>| shown.news(&news, None, out);
        Ok(fetch::restore(&endpoint, &plan, &mut watch).await)
    })?;
    out.progress_end();
    let report = report.map_err(|e| failure(&e))?;
    let (version, placed) = (&report.version, &report.placed);
    let seconds = began.elapsed().as_secs_f64();
    for problem in &placed.problems {
        shown.news(&News::Problem(problem), None, out);
    }
    let to_command = args.to_command.is_some();
    if args.json {
        let done = Done {
            event: "done",
            peer: &args.place.peer,
            name: &version.name,
            version: version.number,
            entries: placed.entries,
            bytes: placed.bytes,
            kept: placed.kept,
            missing: placed.missing,
            tries: report.tries,
            seconds,
            network_bytes: report.carried.network_bytes,
            storage_bytes: report.carried.storage_bytes,
            digest: &version.digest,
        };
        if to_command {
            // Standard output is the command's.
            let text = serde_json::to_string(&done)
                .map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
            out.talk(text);
        } else {
            out.json(&done, true)?;
        }
    } else {
        let kept = match placed.kept {
            0 => String::new(),
            n => format!(", {n} files of these were there already"),
        };
        out.talk(format!(
            "{}@{}: {} entries, {}{kept}, in {seconds:.1} s; by storage {}, by network {}",
            version.name,
            version.number,
            placed.entries,
            show_size(placed.bytes),
            show_size(report.carried.storage_bytes),
            show_size(report.carried.network_bytes)
        ));
    }
    match placed.missing {
        0 => Ok(()),
        n => Err(Failure::failed(format!(
            "{n} {} missing at the destination; all else is there",
            if n == 1 { "entry is" } else { "entries are" }
        ))
        .hint("they are named above; `sidepath backup verify` says what the store has")),
    }
}
