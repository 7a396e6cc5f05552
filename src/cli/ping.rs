//! `sidepath ping`: probes a peer, a line per reply with the path of each leg.
//!
//! Probes are answered by the peer's daemon, not by its applications. A probe is never sent
//! again: what is lost here is the truth about a path, while packets of applications are resent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use failover::{Path, Via};
use serde::Serialize;

use super::{Failure, Out, Outcome, client::Target, client::unexpected, status::word};
use crate::{
    admin::protocol::{Answer, Verb},
    config::quantity::{parse_duration, show_duration},
};

/// Probe a peer.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or id of the peer
    peer: String,
    /// How many probes; without it, until Ctrl-C
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Time between probes
    #[arg(short = 'i', long, value_name = "D", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
    /// Time to wait for a reply
    #[arg(short = 'W', long, value_name = "D", default_value = "2s", value_parser = parse_duration)]
    timeout: Duration,
    /// Which path the probe takes; `auto` takes the route of packets
    #[arg(long, value_name = "PATH", default_value = "auto")]
    via: ViaWord,
    /// One object per probe and one for the summary
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ViaWord {
    Network,
    Storage,
    Auto,
}

impl From<ViaWord> for Via {
    fn from(word: ViaWord) -> Self {
        match word {
            ViaWord::Network => Self::Network,
            ViaWord::Storage => Self::Storage,
            ViaWord::Auto => Self::Auto,
        }
    }
}

#[derive(Serialize)]
struct Probe<'a> {
    seq: u64,
    peer: &'a str,
    replied: bool,
    out: Option<Path>,
    back: Option<Path>,
    time_us: Option<u64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Summary<'a> {
    peer: &'a str,
    sent: u64,
    received: u64,
    lost: u64,
    min_us: Option<u64>,
    avg_us: Option<u64>,
    max_us: Option<u64>,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let mut client = args.target.connect()?;
    let peer = client.peer(&args.peer)?;
    let (name, id) = (peer.name, peer.id);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|e| Failure::failed(format!("cannot watch for Ctrl-C: {e}")))?;
    }
    let timeout_ms = u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut times = Vec::new();
    let mut sent = 0;
    while args.count.is_none_or(|count| sent < count) && !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + args.interval;
        sent += 1;
        client.say(Verb::Ping { peer: id, via: args.via.into(), timeout_ms })?;
        let answer = match client.hear(Some(args.timeout + Duration::from_secs(5))) {
            Ok(answer) => Ok(answer),
            // A probe that cannot be sent now may be possible later: a route comes back.
            Err(failure) if failure.code == 1 && failure.hint.is_none() => Err(failure.message),
            Err(failure) => return Err(failure),
        };
        let mut probe = Probe {
            seq: sent,
            peer: &name,
            replied: false,
            out: None,
            back: None,
            time_us: None,
            error: None,
        };
        match answer {
            Ok(Answer::Pong { out: there, back, round_trip_us }) => {
                probe.replied = true;
                (probe.out, probe.back) = (Some(there), Some(back));
                probe.time_us = Some(round_trip_us);
                times.push(round_trip_us);
            }
            Ok(Answer::Lost) => {
                probe.error = Some(format!("no reply within {}", show_duration(args.timeout)));
            }
            Ok(other) => return Err(unexpected(&other)),
            Err(why) => probe.error = Some(why),
        }
        if args.json {
            out.json(&probe, true)?;
        } else {
            out.line(line(&probe))?;
        }
        out.flush()?;
        let last = args.count.is_some_and(|count| sent >= count);
        while !last && !stop.load(Ordering::Relaxed) {
            let rest = due.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            std::thread::sleep(rest.min(Duration::from_millis(50)));
        }
    }
    summary(args.json, &name, sent, &times, out)?;
    if times.is_empty() { Err(Failure::told(1)) } else { Ok(()) }
}

fn line(probe: &Probe<'_>) -> String {
    let start = format!("{} seq={}", probe.peer, probe.seq);
    match (probe.out, probe.back, probe.time_us) {
        (Some(out), Some(back), Some(us)) => format!(
            "{start} out={} back={} time={}",
            word(&out),
            word(&back),
            show_duration(Duration::from_micros(us))
        ),
        _ => format!("{start} {}", probe.error.as_deref().unwrap_or("no reply")),
    }
}

fn summary(json: bool, peer: &str, sent: u64, times: &[u64], out: &mut Out) -> Outcome {
    let received = times.len() as u64;
    let (min, max) = (times.iter().min().copied(), times.iter().max().copied());
    let avg = times.iter().sum::<u64>().checked_div(received);
    if json {
        let (min_us, avg_us, max_us) = (min, avg, max);
        let lost = sent - received;
        let all = Summary { peer, sent, received, lost, min_us, avg_us, max_us };
        return out.json(&all, true);
    }
    let loss = ((sent - received) * 100).checked_div(sent).unwrap_or(0);
    let mut text = format!("\n{peer}: {sent} sent, {received} received, {loss}% lost");
    if let (Some(min), Some(avg), Some(max)) = (min, avg, max) {
        let show = |us| show_duration(Duration::from_micros(us));
        text.push_str(&format!("; min {} avg {} max {}", show(min), show(avg), show(max)));
    }
    out.line(text)
}
