//! `sidepath volume`: formats volumes, looks at them, checks them, measures them.
//!
//! The commands only turn words into the calls of the crate `volumes` and its answers into text;
//! every safety question (is it somebody's file system, is it alive?) is decided there.

use std::time::{Duration, Instant};

use volumes::{
    AttachError, BenchOptions, BenchReport, InitOptions, Inspection, Verification, media::Location,
};

use super::{Failure, Out, Outcome, copy, out::Tone};
use crate::config::quantity::{parse_duration, parse_size, show_duration, show_size};

/// Format and look at volumes.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Format a volume; creates a file when PATH does not exist and --size is given
    Init(Init),
    /// What a volume says about itself; also while it is in use
    Inspect(Look),
    /// Check every record; also while it is in use
    Verify(Look),
    /// Carry a volume's records to its replica: once, at an interval, or as they come
    Copy(copy::Args),
    /// Latency and throughput from record write to read, beside the raw medium
    Bench(Bench),
}

/// Format a volume.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// Block device, file or URL: nbd://HOST/EXPORT, nbds://, nbd+unix:///EXPORT?socket=/PATH
    #[arg(value_name = "PATH")]
    location: Location,
    /// Name of the volume; with --force, the name of what is there now
    #[arg(long)]
    name: String,
    /// Ids of the nodes that may use it: 1,2,3 or 1-3
    #[arg(long, value_name = "LIST", value_parser = parse_nodes)]
    nodes: Nodes,
    /// Size, when less than the whole device, or of the file to create
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Size of each lane's data ring; by default what is there is shared out
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    lane_size: Option<u64>,
    /// Least block unit in bytes, when another host's sectors are larger
    #[arg(long, value_name = "BYTES", value_parser = parse_sector)]
    sector: Option<u32>,
    /// Destroy what is there; only when --name matches it, and never while it is in use
    #[arg(long)]
    force: bool,
    /// All nodes run on this host: the page cache may be used (tmpfs, tests)
    #[arg(long)]
    single_host: bool,
}

/// Which volume to look at.
#[derive(Debug, clap::Args)]
pub(super) struct Look {
    /// Block device, file or URL: nbd://HOST/EXPORT, nbds://, nbd+unix:///EXPORT?socket=/PATH
    #[arg(value_name = "PATH")]
    location: Location,
    /// One object instead of text
    #[arg(long)]
    json: bool,
}

/// Measure a volume.
#[derive(Debug, clap::Args)]
pub(super) struct Bench {
    /// An idle volume on a block device or export, or a file: beside it a temporary volume is measured
    #[arg(value_name = "PATH")]
    location: Location,
    /// Length of each of the four measurements
    #[arg(long, value_name = "D", default_value = "3s", value_parser = parse_duration)]
    duration: Duration,
    /// All nodes run on this host: the page cache may be used (tmpfs, tests)
    #[arg(long)]
    single_host: bool,
    /// One object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone)]
struct Nodes(Vec<u8>);

pub(super) fn run(verb: &Verb, out: &mut Out) -> Outcome {
    match verb {
        Verb::Init(args) => init(args, out),
        Verb::Inspect(args) => inspect(args, out),
        Verb::Verify(args) => verify(args, out),
        Verb::Copy(args) => copy::run(args, out),
        Verb::Bench(args) => bench(args, out),
    }
}

fn init(args: &Init, out: &mut Out) -> Outcome {
    let options = InitOptions {
        name: args.name.clone(),
        nodes: args.nodes.0.clone(),
        size: args.size,
        lane_size: args.lane_size,
        sector: args.sector,
        force: args.force,
        spare: Vec::new(),
        single_host: args.single_host,
    };
    let started = Instant::now();
    let mut shown = None;
    let made = volumes::init(&args.location, &options, |done, all| {
        // Ten times a second is enough for eyes.
        let tick = started.elapsed().as_millis() / 100;
        if shown != Some(tick) {
            shown = Some(tick);
            out.progress(&progress_line("writing", done, all, started.elapsed()));
        }
    });
    out.progress_end();
    let volume = made.map_err(|e| failure(&e.to_string(), e.is_input_error()))?;
    let g = &volume.geometry;
    let block = u64::from(g.block_bytes);
    out.line(format!(
        "{}: volume `{}`, {}, nodes {}, {} lanes of {} + {} express, blocks of {}, uuid {}",
        args.location,
        volume.name,
        show_size(g.bytes()),
        list(&g.nodes),
        g.lanes(),
        show_size(u64::from(g.data_blocks) * block),
        show_size(u64::from(g.express_blocks) * block),
        show_size(block),
        volume.uuid
    ))
}

fn progress_line(what: &str, done: u64, all: u64, elapsed: Duration) -> String {
    let percent = (done * 100).checked_div(all).unwrap_or(100);
    let width = 30;
    let full = usize::try_from(percent * width / 100).unwrap_or(0);
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(30_usize.saturating_sub(full)));
    let rest = (elapsed.as_secs() * (all - done.min(all))).checked_div(done).unwrap_or(0);
    let rest = show_duration(Duration::from_secs(rest));
    format!("{what} [{bar}] {percent:3}%  {} of {}  {rest} left", show_size(done), show_size(all))
}

fn inspect(args: &Look, out: &mut Out) -> Outcome {
    let found = volumes::inspect(&args.location).map_err(|e| attach_failure(&e))?;
    if args.json {
        return out.json(&found, false);
    }
    show_inspection(&found, out)
}

fn show_inspection(found: &Inspection, out: &mut Out) -> Outcome {
    let name = out.paint(Tone::Strong, &found.name);
    out.line(format!(
        "volume {name}  {}  format {}  generation {}",
        found.uuid, found.version, found.generation
    ))?;
    let unused = found.medium_bytes.saturating_sub(found.size_bytes);
    let unused = if unused > 0 {
        format!(" of a medium of {}", show_size(found.medium_bytes))
    } else {
        String::new()
    };
    if found.replica {
        out.line("a replica: filled by `sidepath volume copy`, to be read only")?;
    }
    out.line(format!(
        "{}  {}{unused}, blocks of {}, lanes of {} + {} express",
        found.path,
        show_size(found.size_bytes),
        show_size(u64::from(found.block_bytes)),
        show_size(found.data_bytes),
        show_size(found.express_bytes)
    ))?;
    out.line("")?;
    for node in &found.nodes {
        let detail = match (node.epoch, node.beat, node.age_ms) {
            (Some(epoch), Some(beat), Some(age)) => format!(
                "epoch {epoch:x}, beat {beat}, written {} ago by its clock",
                show_duration(Duration::from_millis(age))
            ),
            _ => "has never been here".to_string(),
        };
        out.line(format!("node {:<2}  {:8} {detail}", node.node, node.state))?;
    }
    if !found.lanes.is_empty() {
        out.line("")?;
    }
    for lane in &found.lanes {
        let read = lane.read_up_to.map_or_else(
            || "not yet read".to_string(),
            |read| {
                let unread = (lane.head.number.saturating_sub(1)).saturating_sub(read);
                format!("read up to {read}, {unread} unread")
            },
        );
        let ring = super::status::word(&lane.ring);
        out.line(format!(
            "lane {} -> {}  {ring:8} next record {}, {read}",
            lane.from, lane.to, lane.head.number
        ))?;
    }
    Ok(())
}

fn verify(args: &Look, out: &mut Out) -> Outcome {
    let checked = volumes::verify(&args.location).map_err(|e| attach_failure(&e))?;
    if args.json {
        out.json(&checked, false)?;
    } else {
        show_verification(&checked, out)?;
    }
    if checked.ok {
        return Ok(());
    }
    Err(Failure::failed(format!("{}: damaged", args.location)).hint(
        "what was torn is sent again by its writer while it lives; if the superblocks or entries \
         are damaged, stop the daemons and format the volume anew",
    ))
}

fn show_verification(checked: &Verification, out: &mut Out) -> Outcome {
    out.line(format!("volume {}  {}", out.paint(Tone::Strong, &checked.name), checked.path))?;
    for (which, copy) in ["first", "last"].iter().zip(&checked.superblocks) {
        out.line(format!("superblock, {which} copy  {copy}"))?;
    }
    out.line(format!(
        "node entries  {} valid, {} blank, {} damaged",
        checked.entries_valid, checked.entries_blank, checked.entries_damaged
    ))?;
    let r = &checked.records;
    out.line(format!("records  {} valid, {} torn, {} stale", r.valid, r.torn, r.stale))?;
    for lane in checked.lanes.iter().filter(|lane| lane.counts.torn > 0) {
        let ring = super::status::word(&lane.ring);
        out.line(format!(
            "  {} torn in lane {} -> {}, {ring}",
            lane.counts.torn, lane.from, lane.to
        ))?;
    }
    let verdict =
        if checked.ok { out.paint(Tone::Good, "ok") } else { out.paint(Tone::Bad, "damaged") };
    out.line(verdict)
}

fn bench(args: &Bench, out: &mut Out) -> Outcome {
    let options = BenchOptions { duration: args.duration, single_host: args.single_host };
    out.talk(format!(
        "measuring {}: latency and throughput, ours and raw, {} each",
        args.location,
        show_duration(args.duration)
    ));
    let report = volumes::bench(&args.location, &options)
        .map_err(|e| failure(&e.to_string(), e.is_input_error()))?;
    if args.json {
        return out.json(&report, false);
    }
    show_bench(&report, out)
}

fn show_bench(report: &BenchReport, out: &mut Out) -> Outcome {
    let io = if report.direct_io { "direct I/O" } else { "through the page cache" };
    out.line(format!("{}  {io}", report.path))?;
    let head = format!("{:33} {:>9}  {:>9}  {:>9}", "", "records", "raw", "ratio");
    out.line(out.paint(Tone::Dim, head))?;
    let time = |us| show_duration(Duration::from_micros(us));
    let (ours, raw) = (&report.record_latency, &report.raw_latency);
    let mut row = |what: &str, ours: String, raw: String, ratio: f64| {
        out.line(format!("{what:33} {ours:>9}  {raw:>9}  {ratio:>7.2} x"))
    };
    let (p50, p99) = (report.latency_ratio_p50, report.latency_ratio_p99);
    row("latency of 4 KiB, half within", time(ours.p50_us), time(raw.p50_us), p50)?;
    row("latency of 4 KiB, 99 % within", time(ours.p99_us), time(raw.p99_us), p99)?;
    let rate = |mb_s: f64| format!("{mb_s:.0} MB/s");
    row(
        "throughput, writing and reading",
        rate(report.record_mb_s),
        rate(report.raw_mb_s),
        report.throughput_ratio,
    )?;
    out.line(format!(
        "raw throughput is the mean of {} written and {} read at the same time",
        rate(report.raw_write_mb_s),
        rate(report.raw_read_mb_s)
    ))
}

fn attach_failure(error: &AttachError) -> Failure {
    failure(&error.to_string(), error.is_input_error())
}

/// The crate's words are "where: what; what to do".
pub(super) fn failure(words: &str, input: bool) -> Failure {
    let (what, hint) = match words.rsplit_once("; ") {
        Some((what, hint)) => (what, Some(hint)),
        None => (words, None),
    };
    Failure::of(input, what).maybe_hint(hint)
}

fn parse_nodes(text: &str) -> Result<Nodes, String> {
    let mut ids = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let id = |word: &str| {
            word.trim()
                .parse::<u8>()
                .ok()
                .filter(|id| (1..=64).contains(id))
                .ok_or_else(|| format!("`{word}` is no node id: ids are 1 to 64, as in 1,2,3"))
        };
        let (first, last) = (id(first)?, id(last)?);
        if first > last {
            return Err(format!("`{part}` runs backwards"));
        }
        ids.extend(first..=last);
    }
    Ok(Nodes(ids))
}

fn parse_sector(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| bytes.is_power_of_two() && (512..=65_536).contains(bytes))
        .ok_or_else(|| format!("`{text}` is no sector size: a power of two from 512 to 64KiB"))
}

fn list(nodes: &[u8]) -> String {
    let words: Vec<String> = nodes.iter().map(u8::to_string).collect();
    words.join(",")
}
