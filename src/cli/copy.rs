//! `sidepath volume copy`: carries what nodes write on one volume to its replica.
//!
//! Without a word it copies all there is and ends; `--follow` goes on as records come, `--interval`
//! does a round at a time, both until they are interrupted. Every question of direction (which is
//! the original, what would be destroyed, who else writes there) is decided in the crate `volumes`.
//!
//! Awkward case: an interruption is the normal end of a copy that goes on, so it is no failure;
//! an interrupted round is one, because not everything may be there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use volumes::{
    Consent, CopyError, CopyOptions, CopyState, CopyStatus, Notice, Pace, media::Location,
    replicate, replicator::Handle,
};

use super::{Failure, Out, Outcome, volume};
use crate::config::{
    COPY_INTERVAL, COPY_LIMIT_MIN,
    quantity::{parse_duration, parse_size, show_duration, show_size},
};

/// How long threads get to end; one that is stuck in the kernel is left behind.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// A single round does not wait longer for a medium that fails or hangs; other copies do.
const PATIENCE: Duration = Duration::from_secs(30);

/// Copy a volume's records to its replica, once, at an interval, or as they come.
#[derive(Debug, clap::Args)]
#[command(after_help = "A blank DST becomes a replica of SRC: readers attach it as their receive \
                        volume. Only DST is ever written.")]
pub(super) struct Args {
    /// The volume that nodes write: block device, file or URL, as nbd://HOST/EXPORT
    #[arg(value_name = "SRC")]
    source: Location,
    /// Its replica, or a blank device, file or export of at least its size, or a path for a new file
    #[arg(value_name = "DST")]
    destination: Location,
    /// Go on until interrupted, as records come
    #[arg(long, conflicts_with = "interval")]
    follow: bool,
    /// Go on until interrupted, a round at this interval
    #[arg(long, value_name = "D", value_parser = parse_interval)]
    interval: Option<Duration>,
    /// Bytes per second at most, as in 10MiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit: Option<u64>,
    /// Make DST anew and destroy what is there; only when --name matches it
    #[arg(long, requires = "name")]
    force: bool,
    /// With --force, the name of what is there now
    #[arg(long)]
    name: Option<String>,
    /// This host alone uses both: the page cache may be used (tmpfs, tests)
    #[arg(long)]
    single_host: bool,
    /// One object at the end; with --follow or --interval, one per line and second
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|e| Failure::failed(format!("cannot watch for signals: {e}")))?;
    }
    let pace = match args.interval {
        Some(interval) => Pace::Every(u64::try_from(interval.as_micros()).unwrap_or(u64::MAX)),
        None if args.follow => Pace::Follow,
        None => Pace::Once,
    };
    let options = CopyOptions {
        bytes_per_s: args.limit,
        single_host: args.single_host,
        consent: Consent { force: args.force, name: args.name.clone().unwrap_or_default() },
        ..CopyOptions::new(&args.source, &args.destination, pace)
    };
    let began = Instant::now();
    let clock = Arc::new(move || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    let lives_on = pace != Pace::Once;
    let copy = replicate(options, clock, Arc::new(move |notice| say(&notice, lives_on)))
        .map_err(|e| failure(&e))?;
    let end = watch(args, &copy, &stop, pace, out);
    let status = copy.status();
    copy.stop(STOP_WITHIN);
    out.progress_end();
    if let Some(end) = end? {
        end.map_err(|e| failure(&e))?;
    } else if pace == Pace::Once {
        return Err(Failure::failed(format!("{}: interrupted", args.destination))
            .hint("start it again: it goes on from what has arrived"));
    }
    if args.json {
        return out.json(&status, lives_on);
    }
    summary(&status, began.elapsed(), out)
}

type End = Option<Result<(), Arc<CopyError>>>;

/// Until it ends or somebody interrupts; shows how far it is.
fn watch(
    args: &Args,
    copy: &Handle,
    stop: &AtomicBool,
    pace: Pace,
    out: &mut Out,
) -> Result<End, Failure> {
    let mut shown = Instant::now();
    let mut told = shown;
    let mut worked = shown;
    loop {
        if let Some(end) = copy.wait(Duration::from_millis(20)) {
            return Ok(Some(end));
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if shown.elapsed() >= Duration::from_millis(100) {
            shown = Instant::now();
            let status = copy.status();
            out.progress(&line(&status));
            if !matches!(status.state, CopyState::Failed | CopyState::Stalled) {
                worked = shown;
            } else if pace == Pace::Once && worked.elapsed() >= PATIENCE {
                let reason = status.reason.unwrap_or_default();
                let failure = Failure::failed(format!("{reason}, for {}", show_duration(PATIENCE)));
                return Err(failure.hint("start it again: it goes on from what has arrived"));
            }
        }
        if args.json && pace != Pace::Once && told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            out.json(&copy.status(), true)?;
            out.flush()?;
        }
    }
}

fn line(status: &CopyStatus) -> String {
    if let Some((done, all)) = status.making {
        return format!("making the replica, {} of {}", show_size(done), show_size(all));
    }
    let state = status.state.word().replace('_', " ");
    let c = &status.counters;
    let reason = status.reason.as_ref().map(|r| format!("  {r}")).unwrap_or_default();
    format!(
        "{state}  {} records, {} copied  behind by {} records, {}, {:.1} ms{reason}",
        c.records,
        show_size(c.bytes),
        status.lag_records,
        show_size(status.lag_bytes),
        status.lag_ms
    )
}

/// What an operator wants to read while it runs; the end of a single round is told as its error.
fn say(notice: &Notice, lives_on: bool) {
    match notice {
        Notice::Missing { from, to, ring, first, last } => {
            let ring = super::status::word(ring);
            eprintln!(
                "warning: lane {from} -> {to}, {ring}: records {first} to {last} were overwritten \
                 before they could be copied; their writer sends them again"
            );
        }
        Notice::Refused { why } if lives_on => eprintln!("warning: {why}"),
        Notice::Accepted => eprintln!("in order again"),
        Notice::Recovered { side } => eprintln!("the {side} works again"),
        _ => {}
    }
}

fn summary(status: &CopyStatus, took: Duration, out: &mut Out) -> Outcome {
    let c = &status.counters;
    let nodes: Vec<String> = status.nodes.iter().map(u8::to_string).collect();
    let nodes = match nodes.len() {
        0 => "no node sends there yet".to_string(),
        1 => format!("node {}", nodes[0]),
        _ => format!("nodes {}", nodes.join(",")),
    };
    let missing = match c.missing {
        0 => String::new(),
        n => format!(", {n} missing"),
    };
    out.line(format!(
        "{} -> {}: {} records, {} and {} messages of {nodes} in {}{missing}",
        status.source,
        status.destination,
        c.records,
        show_size(c.bytes),
        c.mailboxes,
        show_duration(Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)))
    ))
}

fn failure(error: &CopyError) -> Failure {
    volume::failure(&error.to_string(), error.is_input_error())
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if COPY_INTERVAL.contains(&interval) {
        return Ok(interval);
    }
    Err(format!("`{text}` is no interval for copies: 10ms to 24h"))
}

pub(super) fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = parse_size(text.strip_suffix("/s").unwrap_or(text))?;
    if rate >= COPY_LIMIT_MIN {
        return Ok(rate);
    }
    Err(format!("`{text}` is too slow: at least {} per second", show_size(COPY_LIMIT_MIN)))
}
