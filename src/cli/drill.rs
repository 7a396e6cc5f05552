//! `sidepath drill`: a failover test on a live link.
//!
//! A fire drill, not a fire: the daemon drops one path's traffic, the peer knows, and everything
//! heals at the end, on Ctrl-C, and when this program dies, because the daemon ends the drill with
//! the connection it was asked on. Meanwhile a second connection watches the route and counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant, SystemTime},
};

use failover::{Cut, Route};
use serde::Serialize;

use super::{
    Failure, Out, Outcome,
    client::{Client, Target, unexpected},
    out::Tone,
    stamp,
    status::{route_word, word},
};
use crate::{
    admin::{
        document::Peer,
        protocol::{Answer, Verb},
    },
    config::quantity::{parse_duration, show_duration},
};

/// How often the route is looked at; the times of changes come from the daemon itself.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long to wait, after the heal, for packets to come back to where they were. A hold that was
/// doubled by flapping reaches 60 s.
const RETURN_WITHIN: Duration = Duration::from_secs(75);

/// Test a failover.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or id of the peer
    peer: String,
    /// Which path to cut
    #[arg(long, value_name = "PATH")]
    cut: CutWord,
    /// For how long
    #[arg(long = "for", value_name = "D", value_parser = parse_duration)]
    length: Duration,
    /// Also when the other path is not up, and for --cut both
    #[arg(long)]
    force: bool,
    /// One object with the result
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum CutWord {
    Network,
    Storage,
    Both,
}

impl From<CutWord> for Cut {
    fn from(word: CutWord) -> Self {
        match word {
            CutWord::Network => Self::Network,
            CutWord::Storage => Self::Storage,
            CutWord::Both => Self::Both,
        }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    peer: String,
    cut: Cut,
    asked_ms: u64,
    cut_ms: u64,
    interrupted: bool,
    /// From the cut to the first route without the cut path.
    failover_ms: Option<u64>,
    /// From the heal to the route it was before.
    failback_ms: Option<u64>,
    routes_seen: Vec<Route>,
    accepted: u64,
    lost: u64,
    resent: u64,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    if args.length.is_zero() {
        return Err(Failure::input("--for 0: a drill of no length").hint("for example: --for 10s"));
    }
    let mut watch = args.target.connect()?;
    let before = watch.peer(&args.peer)?;
    if args.cut == CutWord::Both && !args.force {
        return Err(Failure::failed(format!(
            "drill refused: without both paths {} cannot be reached at all",
            before.name
        ))
        .hint("add --force if that is what you want to see"));
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|e| Failure::failed(format!("cannot watch for Ctrl-C: {e}")))?;
    }

    let mut drill = args.target.connect()?;
    let answer = drill.ask(Verb::Drill {
        peer: before.id,
        cut: args.cut.into(),
        length_us: failover::micros(args.length),
        force: args.force,
    });
    match answer {
        Ok(Answer::DrillStarted) => {}
        Ok(other) => return Err(unexpected(&other)),
        Err(mut failure) if failure.code == 1 => {
            failure.message = format!("drill refused: {}", failure.message);
            let hint = "sidepath status shows both paths; --force drills all the same";
            return Err(if failure.hint.is_none() { failure.hint(hint) } else { failure });
        }
        Err(failure) => return Err(failure),
    }
    let story = Story::new(before, args.json);
    let measured = story.tell(args, watch, drill, &stop, out)?;
    report(args, &measured, out)
}

/// A drill in progress.
struct Story {
    before: Peer,
    started: Instant,
    started_at: SystemTime,
    quiet: bool,
    routes: Vec<Route>,
    seen: Option<String>,
    failover: Option<Duration>,
    failback: Option<Duration>,
    healed: Option<(Instant, SystemTime)>,
}

impl Story {
    fn new(before: Peer, quiet: bool) -> Self {
        let routes = vec![before.route];
        let seen = before.last_change.as_ref().map(|change| change.at.clone());
        Self {
            before,
            started: Instant::now(),
            started_at: SystemTime::now(),
            quiet,
            routes,
            seen,
            failover: None,
            failback: None,
            healed: None,
        }
    }

    fn tell(
        mut self,
        args: &Args,
        mut watch: Client,
        drill: Client,
        stop: &AtomicBool,
        out: &mut Out,
    ) -> Result<Measured, Failure> {
        let what = match args.cut {
            CutWord::Network => "the network",
            CutWord::Storage => "storage",
            CutWord::Both => "both paths",
        };
        self.say(
            out,
            &format!(
                "cut {what} to {} for {} (Ctrl-C heals at once)",
                self.before.name,
                show_duration(args.length)
            ),
        )?;
        // The connection lives in a thread that waits for the end; dropping it ends the drill.
        let (ended, end) = mpsc::channel();
        let mut waiting = drill;
        let connection = waiting.split()?;
        std::thread::spawn(move || {
            let _ = ended.send(waiting.hear(None));
        });
        let mut interrupted = false;
        let mut latest = self.before.clone();
        loop {
            latest = self.look(&mut watch, latest, out)?;
            if self.healed.is_none() {
                let end = match end.try_recv() {
                    Ok(Ok(Answer::DrillEnded)) => Some("healed"),
                    Ok(Ok(other)) => return Err(unexpected(&other)),
                    Ok(Err(failure)) => return Err(failure),
                    Err(_) if stop.swap(false, Ordering::Relaxed) => {
                        interrupted = true;
                        let _ = connection.shutdown(std::net::Shutdown::Both);
                        Some("interrupted; healed")
                    }
                    Err(_) => None,
                };
                if let Some(words) = end {
                    self.healed = Some((Instant::now(), SystemTime::now()));
                    self.say(out, words)?;
                }
            }
            if let Some((healed, _)) = self.healed {
                let home = latest.route == self.before.route && latest.drill.is_none();
                // A moment longer, so that a route that only has not moved yet is not taken for
                // one that came back.
                if home && healed.elapsed() > Duration::from_millis(100) {
                    break;
                }
                if healed.elapsed() > RETURN_WITHIN || stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let (then, now) = (&self.before.counters, &latest.counters);
        let cut = self.healed.map_or(args.length, |(at, _)| at.duration_since(self.started));
        Ok(Measured {
            peer: self.before.name.clone(),
            cut: args.cut.into(),
            asked_ms: millis(args.length),
            cut_ms: millis(cut),
            interrupted,
            failover_ms: self.failover.map(millis),
            failback_ms: self.failback.map(millis),
            routes_seen: self.routes,
            accepted: now.accepted.saturating_sub(then.accepted),
            lost: now.lost.saturating_sub(then.lost),
            resent: now.resent.saturating_sub(then.resent),
        })
    }

    /// Looks once, and tells what changed.
    fn look(&mut self, watch: &mut Client, before: Peer, out: &mut Out) -> Result<Peer, Failure> {
        let document = watch.document()?;
        let Some(peer) = document.peers.into_iter().find(|peer| peer.id == before.id) else {
            return Err(Failure::failed(format!("peer `{}` was removed meanwhile", before.name)));
        };
        let Some(change) = &peer.last_change else { return Ok(peer) };
        if self.seen.as_ref() == Some(&change.at) && peer.route == before.route {
            return Ok(peer);
        }
        self.seen = Some(change.at.clone());
        let at = stamp::parse(&change.at).unwrap_or_else(SystemTime::now);
        for route in [change.from, change.to] {
            if self.routes.last() != Some(&route) {
                self.routes.push(route);
            }
        }
        let home = peer.route == self.before.route;
        match self.healed {
            None if !home && self.failover.is_none() && peer.route != Route::Both => {
                self.failover = Some(at.duration_since(self.started_at).unwrap_or_default());
            }
            Some((_, healed)) if home => {
                self.failback = Some(at.duration_since(healed).unwrap_or_default());
            }
            _ => {}
        }
        let text = format!("route {}: {}", route_word(peer.route, out), change.reason);
        let offset = at.duration_since(self.started_at).unwrap_or_default();
        self.say_at(out, offset, &text)?;
        Ok(peer)
    }

    fn say(&self, out: &mut Out, text: &str) -> Outcome {
        self.say_at(out, self.started.elapsed(), text)
    }

    fn say_at(&self, out: &mut Out, at: Duration, text: &str) -> Outcome {
        let line = format!("{:8.3}s  {text}", at.as_secs_f64());
        if self.quiet {
            out.talk(line);
            return Ok(());
        }
        out.line(line)?;
        out.flush()
    }
}

fn report(args: &Args, measured: &Measured, out: &mut Out) -> Outcome {
    // Without both paths packets may outlive their time; anything else must lose nothing.
    let failed = measured.lost > 0 && args.cut != CutWord::Both;
    if args.json {
        out.json(measured, true)?;
        return if failed { Err(Failure::told(1)) } else { Ok(()) };
    }
    let show = |ms: u64| show_duration(Duration::from_millis(ms));
    out.line("")?;
    let moved = match (measured.failover_ms, args.cut) {
        (Some(ms), CutWord::Both) => format!("isolated after {}", show(ms)),
        (Some(ms), _) => format!("moved to {} after {}", word(&other(args.cut)), show(ms)),
        (None, _) => "packets did not need to move".to_string(),
    };
    out.line(format!("failover  {moved}"))?;
    if measured.failover_ms.is_some() {
        out.line(match measured.failback_ms {
            Some(ms) => format!("failback  {} after the heal", show(ms)),
            None => "failback  not yet; sidepath status shows the route".to_string(),
        })?;
    }
    let tone = if measured.lost == 0 { Tone::Good } else { Tone::Bad };
    let lost = out.paint(tone, format!("{} lost", measured.lost));
    out.line(format!(
        "packets   {} accepted meanwhile, {lost}, {} resent",
        measured.accepted, measured.resent
    ))?;
    if failed {
        return Err(Failure::failed(format!(
            "the drill lost {} packets that the other path should have carried",
            measured.lost
        ))
        .hint("sidepath status shows the causes"));
    }
    Ok(())
}

const fn other(cut: CutWord) -> Route {
    match cut {
        CutWord::Network => Route::Storage,
        CutWord::Storage => Route::Network,
        CutWord::Both => Route::Isolated,
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
