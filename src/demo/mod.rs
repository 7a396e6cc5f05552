//! Two whole nodes in one process, a stream of numbered packets each way, and a cut.
//!
//! Everything is real but the cable: two daemons with keys and beats of their own, UDP and TCP
//! over the loopback interface, and a volume in a file; only the virtual interfaces are channels,
//! so that nobody needs to be root. The cut is a drill: one daemon drops every byte of the path,
//! in and out, and neither side's detector is told.
//!
//! [`nodes`] builds the two, [`stream`] makes and counts the packets, and [`Demo`] tells the story
//! in the order in which it happens. Showing it is the business of `cli`.

pub mod nodes;
pub mod stream;

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use failover::{Cut, Route, health::Verdict, status::PeerState};

use crate::{
    admin::document::{Document, Peer},
    daemon::request::{DrillStep, Request},
};
use nodes::{Nodes, PEER_OF_FIRST};
use stream::{Streams, Tally};

/// How long the two may take to find each other.
const MEET_WITHIN: Duration = Duration::from_secs(10);
/// How long a packet may be under way after the last was sent: the longest time to live (5 s) and
/// a little.
const DRAIN_WITHIN: Duration = Duration::from_millis(5_500);

/// How long to listen on when everything has come: a double may follow.
const LISTEN_ON: Duration = Duration::from_millis(300);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is cut.
    pub cut: Cut,
    /// Packets per second, each way.
    pub rate: u32,
    /// Length of the stream.
    pub length: Duration,
}

impl Plan {
    /// From the first packet to the cut: a quarter, at most 3 s.
    #[must_use]
    pub fn cut_after(&self) -> Duration {
        (self.length / 4).min(Duration::from_secs(3))
    }

    /// Length of the cut: a third, at most 4 s; what is left is for the way back.
    #[must_use]
    pub fn cut_for(&self) -> Duration {
        (self.length / 3).min(Duration::from_secs(4))
    }
}

/// Where the story is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Both paths work.
    Calm,
    /// The path is cut.
    Cut,
    /// It works again.
    Healed,
    /// Nothing is sent any more; what is under way arrives.
    Draining,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Happening {
    /// Since the first packet.
    pub at: Duration,
    /// In plain words.
    pub text: String,
}

/// What it came to.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcome {
    /// Packets handed to an interface, both ways.
    pub sent: u64,
    /// Packets that came out of the other, each counted once.
    pub delivered: u64,
    /// Sent and not delivered.
    pub lost: u64,
    /// Delivered again.
    pub duplicated: u64,
    /// Delivered after a later one.
    pub reordered: u64,
    /// Longest time a packet was under way and none arrived, around the cut; the worse of the two
    /// directions.
    pub failover_silence_ms: f64,
    /// The same around the heal and after it.
    pub failback_silence_ms: f64,
    /// Every route the packets of the first node took, in order.
    pub routes_seen: Vec<Route>,
    /// Delivered with other bytes than were sent.
    pub damaged: u64,
    /// What was cut.
    pub cut: Cut,
    /// Length of the cut as it came to be.
    pub cut_ms: f64,
    /// Why packets were given up, both nodes.
    pub lost_by_cause: std::collections::BTreeMap<String, u64>,
    /// Beats had real-time priority.
    pub realtime: bool,
    /// The volume bypassed the page cache.
    pub direct_io: bool,
}

impl Outcome {
    /// Whether sidepath kept its promise.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.damaged == 0
    }
}

/// A demo at work.
#[derive(Debug)]
pub struct Demo {
    plan: Plan,
    nodes: Nodes,
    streams: Streams,
    stage: Stage,
    story: Vec<Happening>,
    routes: Vec<Route>,
    latest: Option<Box<Document>>,
    seen_change: Option<String>,
    drill: Option<mpsc::Receiver<Result<DrillStep, String>>>,
    cut_at: Option<Duration>,
    healed_at: Option<Duration>,
}

impl Demo {
    /// Builds the nodes, waits until they have met by both paths, and starts the streams.
    ///
    /// # Errors
    /// In words: what could not be built, or that the nodes did not meet.
    pub fn start(plan: Plan, stop: &dyn Fn() -> bool) -> Result<Self, String> {
        let nodes = Nodes::start()?;
        let started = Instant::now();
        let first = loop {
            let document = nodes.document()?;
            if document.peers.first().is_some_and(has_met) {
                break document;
            }
            if stop() {
                return Err("interrupted".into());
            }
            if started.elapsed() > MEET_WITHIN {
                let state = document.peers.first().map_or_else(String::new, describe);
                return Err(format!(
                    "the two nodes did not meet within {} s ({state})",
                    MEET_WITHIN.as_secs()
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let met = started.elapsed();
        let streams = Streams::start(nodes.applications(), plan.rate)?;
        let route = first.peers.first().map_or(Route::Network, |peer| peer.route);
        let seen_change = change_of(&first);
        let mut demo = Self {
            plan,
            nodes,
            streams,
            stage: Stage::Calm,
            story: Vec::new(),
            routes: vec![route],
            latest: Some(first),
            seen_change,
            drill: None,
            cut_at: None,
            healed_at: None,
        };
        demo.tell(format!(
            "alpha and beta met after {} ms, by network and by storage; packets go by {}",
            met.as_millis(),
            route_name(route)
        ));
        Ok(demo)
    }

    /// Where the story is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Since the first packet.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.streams.elapsed()
    }

    /// Everything that happened.
    #[must_use]
    pub fn story(&self) -> &[Happening] {
        &self.story
    }

    /// What alpha's `status --json` says.
    #[must_use]
    pub fn document(&self) -> Option<&Document> {
        self.latest.as_deref()
    }

    /// Both directions as counted.
    #[must_use]
    pub fn tallies(&self) -> [Tally; 2] {
        self.streams.tallies()
    }

    /// Longest time without a packet since this was asked last, either direction.
    pub fn silence_since_last(&mut self) -> Duration {
        self.streams.silence_since_last()
    }

    /// Goes on with the story; `Some` when it is over.
    ///
    /// # Errors
    /// In words, when a node fails.
    pub fn step(&mut self) -> Result<Option<Outcome>, String> {
        self.look()?;
        let now = self.elapsed();
        match self.stage {
            Stage::Calm if now >= self.plan.cut_after() => self.cut()?,
            Stage::Cut => self.heal()?,
            Stage::Healed if now >= self.plan.length => {
                self.streams.stop_sending();
                self.stage = Stage::Draining;
            }
            Stage::Draining => {
                let over = now.saturating_sub(self.streams.sent_for());
                let quiet = over > LISTEN_ON && self.streams.all_arrived();
                if quiet || over > DRAIN_WITHIN {
                    return self.outcome().map(Some);
                }
            }
            Stage::Calm | Stage::Healed => {}
        }
        Ok(None)
    }

    fn cut(&mut self) -> Result<(), String> {
        let (reply, steps) = mpsc::channel();
        self.nodes.ask(Request::Drill {
            peer: PEER_OF_FIRST,
            cut: self.plan.cut,
            length: self.plan.cut_for(),
            force: true,
            reply,
        })?;
        // The moment is taken before the answer: nothing may look shorter than it was.
        let before = self.elapsed();
        match steps.recv_timeout(Duration::from_secs(2)) {
            Ok(Ok(DrillStep::Started)) => {}
            Ok(Ok(DrillStep::Ended)) => return Err("the cut ended before it began".into()),
            Ok(Err(why)) => return Err(format!("the path cannot be cut: {why}")),
            Err(_) => return Err("the path cannot be cut: the node does not answer".into()),
        }
        self.drill = Some(steps);
        self.cut_at = Some(before);
        self.stage = Stage::Cut;
        self.streams.mark_cut(before);
        let what = cut_name(self.plan.cut);
        self.tell_at(before, format!("CUT: {what}: every byte is dropped, nobody is told"));
        Ok(())
    }

    fn heal(&mut self) -> Result<(), String> {
        let Some(steps) = &self.drill else { return Ok(()) };
        let late = self
            .cut_at
            .is_some_and(|at| self.elapsed() > at + self.plan.cut_for() + Duration::from_secs(3));
        match steps.try_recv() {
            Ok(Ok(DrillStep::Ended)) => {}
            Ok(Err(why)) => return Err(format!("the cut failed: {why}")),
            Ok(Ok(DrillStep::Started)) | Err(mpsc::TryRecvError::Empty) if !late => return Ok(()),
            _ => return Err("the cut did not end in time".into()),
        }
        let now = self.elapsed();
        self.healed_at = Some(now);
        self.stage = Stage::Healed;
        self.streams.mark_healed(now);
        self.tell_at(now, format!("HEAL: {} again", cut_healed(self.plan.cut)));
        Ok(())
    }

    /// Looks at the first node, and tells what changed.
    fn look(&mut self) -> Result<(), String> {
        let document = self.nodes.document()?;
        let Some(peer) = document.peers.first() else { return Err("the peer is gone".into()) };
        let changed = change_of(&document);
        if changed != self.seen_change {
            let change = peer.last_change.clone();
            self.seen_change = changed;
            if let Some(change) = change {
                for route in [change.from, change.to] {
                    if self.routes.last() != Some(&route) {
                        self.routes.push(route);
                    }
                }
                let meaning = meaning(change.to);
                self.tell(format!(
                    "route {}: {} ({meaning})",
                    route_name(change.to),
                    change.reason
                ));
            }
        }
        self.latest = Some(document);
        Ok(())
    }

    fn tell(&mut self, text: String) {
        self.tell_at(self.elapsed(), text);
    }

    fn tell_at(&mut self, at: Duration, text: String) {
        self.story.push(Happening { at, text });
    }

    fn outcome(&mut self) -> Result<Outcome, String> {
        let tallies = self.streams.finish();
        let mut lost_by_cause = std::collections::BTreeMap::new();
        for document in [self.nodes.document()?, self.nodes.other_document()?] {
            for peer in &document.peers {
                for (cause, count) in &peer.counters.lost_by_cause {
                    *lost_by_cause.entry(cause.clone()).or_insert(0) += count;
                }
            }
        }
        let sum = |field: fn(&Tally) -> u64| tallies.iter().map(field).sum::<u64>();
        let worst = |field: fn(&Tally) -> Duration| {
            let worst = tallies.iter().map(field).max().unwrap_or_default();
            (worst.as_secs_f64() * 10_000.0).round() / 10.0
        };
        let cut = match (self.cut_at, self.healed_at) {
            (Some(cut), Some(healed)) => healed.saturating_sub(cut),
            _ => Duration::ZERO,
        };
        let (sent, delivered) = (sum(|t| t.sent), sum(|t| t.delivered));
        Ok(Outcome {
            sent,
            delivered,
            lost: sent.saturating_sub(delivered),
            duplicated: sum(|t| t.duplicated),
            reordered: sum(|t| t.reordered),
            failover_silence_ms: worst(|t| t.silence_at_cut),
            failback_silence_ms: worst(|t| t.silence_at_heal),
            routes_seen: self.routes.clone(),
            damaged: sum(|t| t.damaged),
            cut: self.plan.cut,
            cut_ms: (cut.as_secs_f64() * 10_000.0).round() / 10.0,
            lost_by_cause,
            realtime: self.latest.as_ref().is_some_and(|document| document.node.realtime),
            direct_io: self.nodes.direct_io,
        })
    }
}

/// Both paths work, both ways, and a packet would be delivered.
fn has_met(peer: &Peer) -> bool {
    peer.state == PeerState::Alive
        && peer.keys
        && peer.route == Route::Network
        && peer.network.state == Verdict::Up
        && peer.storage.state == Verdict::Up
        && peer.peer_route == "network"
}

fn describe(peer: &Peer) -> String {
    let path = |name: &str, state: Verdict, reason: &Option<String>| {
        let reason = reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("{name} {state:?}{reason}").to_lowercase()
    };
    format!(
        "{}; {}; keys {}",
        path("network", peer.network.state, &peer.network.reason),
        path("storage", peer.storage.state, &peer.storage.reason),
        if peer.keys { "agreed" } else { "not agreed" }
    )
}

fn change_of(document: &Document) -> Option<String> {
    let change = document.peers.first()?.last_change.as_ref()?;
    Some(format!("{} {:?} {:?}", change.at, change.from, change.to))
}

/// What a cut cuts.
#[must_use]
pub fn cut_name(cut: Cut) -> &'static str {
    match cut {
        Cut::Network => "the network",
        Cut::Storage => "the storage",
        Cut::Both => "network and storage",
    }
}

fn cut_healed(cut: Cut) -> &'static str {
    match cut {
        Cut::Network => "the network works",
        Cut::Storage => "the storage works",
        Cut::Both => "network and storage work",
    }
}

/// A route, for people.
#[must_use]
pub fn route_name(route: Route) -> &'static str {
    match route {
        Route::Network => "network",
        Route::Both => "both",
        Route::Storage => "storage",
        Route::Isolated => "isolated",
    }
}

fn meaning(route: Route) -> &'static str {
    match route {
        Route::Network => "packets go by the network again",
        Route::Both => "packets go both ways, the first copy wins",
        Route::Storage => "packets go through the shared volume",
        Route::Isolated => "no path: packets wait for their time to live",
    }
}
