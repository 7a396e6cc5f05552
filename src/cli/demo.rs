//! `sidepath demo`: shows the whole thing at work, on this machine, in some seconds.
//!
//! On a terminal the picture is redrawn in place ten times a second; elsewhere each happening is
//! a line. With `--json` the story goes to stderr and stdout holds one object.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use failover::{Cut, Route, health::Verdict};

use super::{Failure, Out, Outcome as Done, drill::CutWord, out::Tone};
use crate::{
    config::quantity::show_duration,
    demo::{Demo, Happening, Outcome, Plan, Stage, cut_name, route_name, stream::Tally},
};

/// How often nodes are looked at; changes of route are some tens of milliseconds apart.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often the picture is redrawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Lines of the picture above the story.
const PICTURE_HEAD: usize = 13;
/// Bars of the graph.
const BARS: usize = 60;
const GRAPH: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Show it at work.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End with one object on stdout; the story goes to stderr
    #[arg(long)]
    json: bool,
    /// Which path dies for a while
    #[arg(long, value_name = "PATH", default_value = "network")]
    cut: CutWord,
    /// Packets per second, each way
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    rate: u32,
    /// Length of the stream; a third of it the path is dead (at most 4 s)
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(6..=600))]
    seconds: u64,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Done {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|e| Failure::failed(format!("cannot watch for Ctrl-C: {e}")))?;
    }
    let plan =
        Plan { cut: args.cut.into(), rate: args.rate, length: Duration::from_secs(args.seconds) };
    let mut view = View::new(args, plan.clone(), out);
    view.opening(out)?;
    let mut demo = Demo::start(plan, &|| stop.load(Ordering::Relaxed)).map_err(Failure::failed)?;
    let outcome = loop {
        let over = demo.step().map_err(Failure::failed)?;
        view.draw(&mut demo, over.is_some(), out)?;
        if let Some(outcome) = over {
            break outcome;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::failed("interrupted; everything is cleaned up"));
        }
        std::thread::sleep(LOOK_EVERY);
    };
    drop(demo);
    if args.json {
        out.json(&outcome, true)?;
    } else {
        report(&outcome, out)?;
    }
    verdict(&outcome)
}

/// What is shown while it runs.
struct View {
    json: bool,
    live: bool,
    plan: Plan,
    told: usize,
    lines: usize,
    drawn: Option<Instant>,
    counted: u64,
    graph: VecDeque<Duration>,
}

impl View {
    fn new(args: &Args, plan: Plan, out: &Out) -> Self {
        let (columns, rows) = out.size();
        let live = out.is_live() && !args.json && columns >= 60 && rows >= 20;
        Self {
            json: args.json,
            live,
            plan,
            told: 0,
            lines: 0,
            drawn: None,
            counted: 0,
            graph: VecDeque::new(),
        }
    }

    fn opening(&self, out: &mut Out) -> Done {
        let title = out.paint(Tone::Strong, "sidepath demo");
        self.say(
            out,
            &format!(
                "{title}: two nodes, alpha and beta, joined by a network (UDP and TCP on \
                 127.0.0.1)\nand by a shared volume (a file). {} numbered packets per second flow \
                 each way;\nafter {} {} {} for {}.\n",
                self.plan.rate,
                show_duration(self.plan.cut_after()),
                cut_name(self.plan.cut),
                if self.plan.cut == Cut::Both { "die" } else { "dies" },
                show_duration(self.plan.cut_for()),
            ),
        )
    }

    fn say(&self, out: &mut Out, text: &str) -> Done {
        if self.json {
            out.talk(text);
            return Ok(());
        }
        out.line(text)?;
        out.flush()
    }

    fn draw(&mut self, demo: &mut Demo, last: bool, out: &mut Out) -> Done {
        if !self.live {
            return self.tell(demo, out);
        }
        let due = self.drawn.is_none_or(|at| at.elapsed() >= DRAW_EVERY);
        if !due && !last {
            return Ok(());
        }
        self.drawn = Some(Instant::now());
        if demo.stage() < Stage::Draining {
            self.graph.push_back(demo.silence_since_last());
            if self.graph.len() > BARS {
                self.graph.pop_front();
            }
        }
        let picture = self.picture(demo, out);
        // Up to the first line of the picture before, then over it, line by line: no flicker.
        let mut text = String::new();
        if self.lines > 0 {
            text.push_str(&format!("\x1b[{}A", self.lines));
        }
        let (width, rows) = out.size();
        self.lines = 0;
        // Taller than the screen it could not be redrawn; the oldest of the story goes.
        let too_many = (picture.len() + 1).saturating_sub(rows);
        let (head, story) = picture.split_at(PICTURE_HEAD.min(picture.len()));
        for line in head.iter().chain(story.iter().skip(too_many)) {
            text.push_str(&fit(line, width));
            text.push_str("\x1b[K\n");
            self.lines += 1;
        }
        text.push_str("\x1b[J");
        out.raw(&text)?;
        out.flush()
    }

    /// Line by line: what happened, and once a second the counts.
    fn tell(&mut self, demo: &Demo, out: &mut Out) -> Done {
        for happening in &demo.story()[self.told..] {
            self.say(out, &story_line(happening))?;
        }
        self.told = demo.story().len();
        let second = demo.elapsed().as_secs();
        if second > self.counted && demo.stage() < Stage::Draining {
            self.counted = second;
            let [a, b] = demo.tallies();
            self.say(
                out,
                &format!(
                    "{:7.3}s    alpha > beta {} of {}, beta > alpha {} of {} delivered",
                    demo.elapsed().as_secs_f64(),
                    a.delivered,
                    a.sent,
                    b.delivered,
                    b.sent
                ),
            )?;
        }
        Ok(())
    }

    fn picture(&self, demo: &Demo, out: &Out) -> Vec<String> {
        let mut lines = Vec::new();
        let peer = demo.document().and_then(|document| document.peers.first());
        let route = peer.map_or(Route::Isolated, |peer| peer.route);
        let elapsed = demo.elapsed().min(self.plan.length);
        let now = match demo.stage() {
            Stage::Calm => "both paths work".to_string(),
            Stage::Cut => format!("{} is dead", capital(cut_name(self.plan.cut))),
            Stage::Healed => format!("{} is back", capital(cut_name(self.plan.cut))),
            Stage::Draining => "waiting for what is under way".to_string(),
        };
        let now = if self.plan.cut == Cut::Both { now.replace(" is ", " are ") } else { now };
        lines.push(format!(
            " {:4.1} s of {}   {}",
            elapsed.as_secs_f64(),
            show_duration(self.plan.length),
            out.paint(Tone::Strong, now)
        ));
        lines.push(String::new());
        let cut = |what: Cut| {
            demo.stage() == Stage::Cut && (self.plan.cut == what || self.plan.cut == Cut::Both)
        };
        let uses_network = matches!(route, Route::Network | Route::Both);
        let uses_storage = matches!(route, Route::Storage | Route::Both);
        let network = wire("network", uses_network, cut(Cut::Network), out);
        let storage = wire("storage", uses_storage, cut(Cut::Storage), out);
        let state = |verdict: Option<Verdict>| {
            let word = verdict.map(|verdict| super::status::word(&verdict)).unwrap_or_default();
            let tone = match verdict {
                Some(Verdict::Up) => Tone::Good,
                Some(Verdict::Suspect) => Tone::Warn,
                _ => Tone::Bad,
            };
            out.paint(tone, word)
        };
        let (net, sto) = (peer.map(|peer| peer.network.state), peer.map(|peer| peer.storage.state));
        lines.push(format!("  ┌───────┐  {network}  ┌──────┐   network {}", state(net)));
        lines.push(format!("  │ alpha │  {:29}  │ beta │   storage {}", "", state(sto)));
        lines.push(format!("  └───────┘  {storage}  └──────┘   route   {}", route_name(route)));
        lines.push(String::new());
        let head =
            "                      sent   delivered  under way  doubled  reordered   latency";
        lines.push(out.paint(Tone::Dim, head));
        let [a, b] = demo.tallies();
        lines.push(tally_line("alpha > beta", &a));
        lines.push(tally_line("beta > alpha", &b));
        lines.push(String::new());
        let worst = self.graph.iter().max().copied().unwrap_or_default();
        let graph: String = self.graph.iter().map(|silence| bar(*silence)).collect();
        lines.push(format!("  silence  {graph}"));
        let scale = format!(
            "  longest time without a packet, per 0.1 s; tallest of these {:.1} ms",
            worst.as_secs_f64() * 1e3
        );
        lines.push(out.paint(Tone::Dim, scale));
        lines.push(String::new());
        lines.extend(demo.story().iter().map(story_line));
        lines
    }
}

/// A wire between the two, 29 columns.
fn wire(name: &str, used: bool, cut: bool, out: &Out) -> String {
    match (cut, used) {
        (true, _) => out.paint(Tone::Bad, format!("╌╌╌╌╌ {name} ╌╌ ✂ cut ╌╌╌╌╌╌")),
        (false, true) => out.paint(Tone::Good, format!("<━━━━━━━━━ {name} ━━━━━━━━━>")),
        (false, false) => out.paint(Tone::Dim, format!("────────── {name} ──────────")),
    }
}

fn tally_line(name: &str, tally: &Tally) -> String {
    format!(
        "  {name:14} {:>9} {:>11} {:>10} {:>8} {:>10}   {}",
        tally.sent,
        tally.delivered,
        tally.sent.saturating_sub(tally.delivered),
        tally.duplicated,
        tally.reordered,
        show_duration(Duration::from_micros(
            u64::try_from(tally.latency.as_micros()).unwrap_or_default()
        ))
    )
}

/// A bar on a logarithmic scale: 2 ms, 4 ms, ... 128 ms and more.
fn bar(silence: Duration) -> char {
    let ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
    let height = usize::try_from(ms.max(1).ilog2()).unwrap_or(0);
    GRAPH[height.min(GRAPH.len() - 1)]
}

fn story_line(happening: &Happening) -> String {
    format!("{:7.3}s  {}", happening.at.as_secs_f64(), happening.text)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Cuts a line to the width of the terminal; a line that wraps would spoil the redrawing. Colour
/// codes take no room.
fn fit(line: &str, width: usize) -> String {
    let mut kept = String::new();
    let mut room = width.saturating_sub(1);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if letter == '\x1b' {
            kept.push(letter);
            for code in letters.by_ref() {
                kept.push(code);
                if code.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if room > 0 {
            room -= 1;
            kept.push(letter);
        }
    }
    kept
}

fn report(outcome: &Outcome, out: &mut Out) -> Done {
    let ms = |value: f64| format!("{value:.1} ms");
    let what = capital(cut_name(outcome.cut));
    let verb = if outcome.cut == Cut::Both { "were" } else { "was" };
    out.line("")?;
    let head = format!("{what} {verb} dead for {:.1} s.", outcome.cut_ms / 1e3);
    let noticed = "What the programs at both ends noticed of it:";
    out.line(format!("{} {noticed}\n", out.paint(Tone::Strong, head)))?;
    out.line(format!("  at the cut    {:>9} without a packet", ms(outcome.failover_silence_ms)))?;
    out.line(format!("  at the heal   {:>9} without a packet", ms(outcome.failback_silence_ms)))?;
    let mut routes: Vec<&str> = outcome.routes_seen.iter().map(|r| route_name(*r)).collect();
    if routes.len() == 1 {
        routes.push("(never moved)");
    }
    out.line(format!("  route         {}", routes.join(" > ")))?;
    let tone = if outcome.is_clean() { Tone::Good } else { Tone::Bad };
    let counts = format!(
        "{} lost, {} duplicated, {} reordered",
        outcome.lost, outcome.duplicated, outcome.reordered
    );
    out.line(format!(
        "  packets       {} sent, {} delivered: {}",
        outcome.sent,
        outcome.delivered,
        out.paint(tone, counts)
    ))?;
    let causes: Vec<String> =
        outcome.lost_by_cause.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    if !causes.is_empty() {
        out.line(format!("  given up      {}", causes.join(", ")))?;
    }
    if !outcome.realtime {
        out.line(
            "\nBeats ran without real-time priority, so a path is given up only after 0.3 s of\n\
             silence; with it (as root) it takes some 40 ms.",
        )?;
    }
    if !outcome.direct_io {
        out.line("The file system has no direct I/O; the volume went through the page cache.")?;
    }
    if outcome.cut == Cut::Both && outcome.lost == 0 {
        out.line("\nWithout any path packets waited for one; none was older than it may become.")?;
    }
    Ok(())
}

fn verdict(outcome: &Outcome) -> Done {
    if outcome.is_clean() {
        return Ok(());
    }
    let failure = Failure::failed(format!(
        "{} lost, {} duplicated, {} reordered, {} damaged",
        outcome.lost, outcome.duplicated, outcome.reordered, outcome.damaged
    ));
    Err(if outcome.cut == Cut::Both {
        failure.hint("without any path a packet outlives its time to live (5 s) and is given up")
    } else {
        failure
            .hint("that should not be; please report it with the output of `sidepath demo --json`")
    })
}
