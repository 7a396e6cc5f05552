//! The invariants, looked at after every turn.
//!
//! | | |
//! | --- | --- |
//! | I1 | no unit is delivered twice, whatever incarnation receives it |
//! | I2 | units of a flow are delivered in order, also across changes of path |
//! | I3 | every unit delivered was sent to this host, unchanged |
//! | I4 | both balances hold on every node at all times; nothing is lost while a path works |
//! | I5 | when all is healed, backlogs drain and routes return to the network |
//! | I8 | changes of path per minute are bounded; both ends agree |
//! | I9 | queues are bounded |
//! | age | nothing is delivered that outlived its time to live |

use std::collections::{BTreeMap, VecDeque};

use failover::{
    Route,
    status::{Counters, PeerStatus},
};

use crate::{
    truth::Truth,
    workload::{self, Flow},
};

/// Units are remembered for so long: far beyond any time to live.
const REMEMBER: u64 = 60_000_000;
/// Beyond its time to live: what clocks may differ, plus the way and the last turn.
const AGE_TOLERANCE: u64 = 150_000;
/// Changes of route per peer and minute: a hedge may come and go ten times a second at most, but
/// giving a path up is damped.
const FAILOVERS_PER_MINUTE: usize = 12;
const CHANGES_PER_MINUTE: usize = 400;
const QUEUED_MAX: u64 = 100_000;
const HELD_MAX: u64 = 16_384;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When, in virtual microseconds.
    pub at: u64,
    /// Which.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

#[derive(Debug)]
struct Sent {
    number: u64,
    at: u64,
    delivered: bool,
}

#[derive(Debug, Default)]
struct Book {
    sent: VecDeque<Sent>,
    next: u64,
    highest: Option<u64>,
    offered: u64,
    delivered: u64,
}

/// What one host's daemon was given for and gave from a peer.
#[derive(Debug, Default)]
struct Pair {
    offered: u64,
    delivered: u64,
    lost: BTreeMap<String, u64>,
    dropped: BTreeMap<String, u64>,
    restarts: u64,
    changes: VecDeque<u64>,
    failovers: VecDeque<u64>,
}

/// All books of a run.
#[derive(Debug)]
pub struct Check {
    flows: Vec<Flow>,
    books: Vec<Book>,
    pairs: BTreeMap<(u8, u8), Pair>,
    /// The first broken invariant.
    pub violation: Option<Violation>,
    /// Units lost or dropped for age, excused or not.
    pub lost: u64,
    /// Units delivered.
    pub delivered: u64,
    /// Changes of route.
    pub changes: u64,
    /// When the last one was.
    pub last_change: u64,
    /// Routes that were ever taken, by place in network, both, storage, isolated.
    pub routes: [bool; 4],
    crashes: u64,
}

impl Check {
    /// Empty books for these flows.
    #[must_use]
    pub fn new(flows: &[Flow]) -> Self {
        Self {
            flows: flows.to_vec(),
            books: flows.iter().map(|_| Book::default()).collect(),
            pairs: BTreeMap::new(),
            violation: None,
            lost: 0,
            delivered: 0,
            changes: 0,
            last_change: 0,
            routes: [false; 4],
            crashes: 0,
        }
    }

    /// Notes a broken invariant, unless there is one already.
    pub fn fail(&mut self, at: u64, invariant: &'static str, detail: String) {
        self.violation.get_or_insert(Violation { at, invariant, detail });
    }

    fn pair(&mut self, host: u8, peer: u8) -> &mut Pair {
        self.pairs.entry((host, peer)).or_default()
    }

    // --- what happens --------------------------------------------------------------------------

    /// The number of the next unit of a flow; `units` numbers are taken.
    pub fn take_numbers(&mut self, flow: usize) -> u64 {
        let first = self.books[flow].next;
        self.books[flow].next += self.flows[flow].units;
        first
    }

    /// A packet was handed to the sender's daemon.
    pub fn offered(&mut self, now: u64, flow: usize, first: u64) {
        let Flow { from, to, units, .. } = self.flows[flow];
        self.pair(from, to).offered += units;
        let book = &mut self.books[flow];
        book.offered += units;
        for number in first..first + units {
            book.sent.push_back(Sent { number, at: now, delivered: false });
        }
        while book.sent.front().is_some_and(|s| s.at + REMEMBER < now) {
            book.sent.pop_front();
        }
    }

    /// A daemon handed a packet to its interface.
    pub fn delivered(&mut self, now: u64, (host, node): (u8, u8), packet: &[u8], truth: &Truth) {
        let (id, numbers) = match workload::read(packet, &self.flows) {
            Ok(read) => read,
            Err(why) => return self.fail(now, "I3 no phantom", format!("host {host}: {why}")),
        };
        let flow = self.flows[id].clone();
        if flow.to != node {
            return self.fail(now, "I3 no phantom", format!("flow {id} came to host {host}"));
        }
        self.pair(host, flow.from).delivered += 1;
        let ttl = if flow.express { 500_000 } else { 5_000_000 };
        for number in numbers {
            self.delivered += 1;
            let book = &mut self.books[id];
            book.delivered += 1;
            let found = book.sent.binary_search_by_key(&number, |s| s.number);
            let Some(sent) = found.ok().and_then(|i| book.sent.get_mut(i)) else {
                let detail = format!("flow {id}: unit {number} was never sent");
                return self.fail(now, "I3 no phantom", detail);
            };
            if std::mem::replace(&mut sent.delivered, true) {
                let detail = format!("flow {id}: unit {number} came twice");
                return self.fail(now, "I1 at most once", detail);
            }
            let age = now - sent.at;
            if age > ttl + AGE_TOLERANCE && !truth.excuses_age(sent.at, (flow.from, flow.to)) {
                let detail = format!("flow {id}: unit {number} came {} ms old", age / 1000);
                return self.fail(now, "age", detail);
            }
            let highest = book.highest.replace(number.max(book.highest.unwrap_or(0)));
            if highest.is_some_and(|h| h > number)
                && !truth.excuses_disorder(now, (flow.from, flow.to))
            {
                let detail =
                    format!("flow {id}: unit {number} came after {}", highest.unwrap_or(0));
                return self.fail(now, "I2 order", detail);
            }
        }
    }

    /// A route changed.
    pub fn changed(&mut self, now: u64, host: u8, peer: u8, from: Route, to: Route) {
        self.changes += 1;
        self.last_change = now;
        self.routes[to as usize] = true;
        let pair = self.pair(host, peer);
        pair.changes.push_back(now);
        if to == Route::Storage && from != Route::Isolated {
            pair.failovers.push_back(now);
        }
        for times in [&mut pair.changes, &mut pair.failovers] {
            while times.front().is_some_and(|t| t + 60_000_000 < now) {
                times.pop_front();
            }
        }
        let (changes, failovers) = (pair.changes.len(), pair.failovers.len());
        if changes > CHANGES_PER_MINUTE || failovers > FAILOVERS_PER_MINUTE {
            let detail = format!(
                "host {host} to {peer}: {changes} changes, {failovers} failovers in a minute"
            );
            self.fail(now, "I8 bounded switches", detail);
        }
    }

    /// A host's daemon is another one: its books begin anew, and so do orders of flows.
    pub fn restarted(&mut self, host: u8) {
        self.crashes += 1;
        for ((at, peer), pair) in &mut self.pairs {
            if *at == host {
                let restarts = pair.restarts;
                *pair = Pair { restarts, ..Pair::default() };
            } else if *peer == host {
                pair.restarts += 1;
            }
        }
        self.orders_begin_anew(|flow| flow.from == host || flow.to == host);
    }

    /// A second daemon of that node came or went: its peers may lose what was under way.
    pub fn reincarnated(&mut self, node: u8) {
        self.crashes += 1;
        for ((_, peer), pair) in &mut self.pairs {
            if *peer == node {
                pair.restarts += 1;
            }
        }
        self.orders_begin_anew(|flow| flow.from == node || flow.to == node);
    }

    /// A host forgot a peer and meets it anew: both begin new books of each other.
    pub fn forgotten(&mut self, host: u8, peer: u8) {
        self.crashes += 1;
        *self.pair(host, peer) = Pair { restarts: 1, ..Pair::default() };
        self.pair(peer, host).restarts += 1;
        self.orders_begin_anew(|flow| {
            (flow.from, flow.to) == (host, peer) || (flow.from, flow.to) == (peer, host)
        });
    }

    fn orders_begin_anew(&mut self, which: impl Fn(&Flow) -> bool) {
        for (flow, book) in self.flows.iter().zip(&mut self.books) {
            if which(flow) {
                book.highest = None;
            }
        }
    }

    // --- looks ---------------------------------------------------------------------------------

    /// What a node says of one peer.
    pub fn status(&mut self, now: u64, host: u8, status: &PeerStatus, truth: &Truth) {
        let peer = status.id.get();
        let c = &status.counters;
        if let Some(detail) = unbalanced(c) {
            return self.fail(now, "I4 balance", format!("host {host} to {peer}: {detail}"));
        }
        if c.queued > QUEUED_MAX || c.held > HELD_MAX {
            let detail = format!("host {host} to {peer}: queued {} held {}", c.queued, c.held);
            return self.fail(now, "I9 bounds", detail);
        }
        let pair = self.pair(host, peer);
        if (c.accepted, c.delivered) != (pair.offered, pair.delivered) {
            let detail = format!(
                "host {host} to {peer}: accepted {} of {} offered, delivered {}, the interface saw {}",
                c.accepted, pair.offered, c.delivered, pair.delivered
            );
            return self.fail(now, "I4 conservation", detail);
        }
        if pair.lost == c.lost_by_cause && pair.dropped == c.dropped_by_cause {
            return;
        }
        let restarts = pair.restarts;
        let lost = news(&mut pair.lost, &c.lost_by_cause);
        let dropped = news(&mut pair.dropped, &c.dropped_by_cause);
        for (cause, many) in lost {
            self.lost += many;
            let excused = match cause.as_str() {
                "ttl" => truth.excuses_loss(now, (host, peer)),
                "unconfirmed" => restarts > 0,
                "queue_full" => truth.excuses_overflow(now, (host, peer)),
                _ => false,
            };
            if !excused {
                let detail = format!(
                    "host {host} lost {many} to {peer} ({cause}) while a path worked; route {}, network {:?} ({}), storage {:?} ({})",
                    status.route,
                    status.network.state,
                    status.network.reason.as_deref().unwrap_or(""),
                    status.storage.state,
                    status.storage.reason.as_deref().unwrap_or(""),
                );
                return self.fail(now, "I4 no loss", detail);
            }
        }
        for (cause, many) in dropped {
            let excused = match cause.as_str() {
                "duplicate" => true,
                "ttl" => {
                    self.lost += many;
                    truth.excuses_loss(now, (peer, host))
                }
                "peer_restarted" => restarts > 0,
                _ => false,
            };
            if !excused {
                let detail = format!("host {host} dropped {many} from {peer} ({cause})");
                return self.fail(now, "I4 no loss", detail);
            }
        }
    }

    /// At the very end, traffic long stopped: whatever was offered and not delivered must be
    /// accounted for by somebody who still lives.
    pub fn settle(&mut self, now: u64) {
        let offered: u64 = self.books.iter().map(|b| b.offered).sum();
        let missing = offered - self.delivered.min(offered);
        if self.crashes == 0 && missing > 0 && self.lost == 0 {
            let detail = format!("{missing} of {offered} units are gone and nobody says so");
            self.fail(now, "I4 silent loss", detail);
        }
    }

    /// Units that were offered in all.
    #[must_use]
    pub fn offered_units(&self) -> u64 {
        self.books.iter().map(|b| b.offered).sum()
    }
}

fn unbalanced(c: &Counters) -> Option<String> {
    let sum = |m: &BTreeMap<String, u64>| m.values().sum::<u64>();
    if c.accepted != c.acknowledged + c.lost + c.queued {
        Some(format!(
            "accepted {} != acknowledged {} + lost {} + queued {}",
            c.accepted, c.acknowledged, c.lost, c.queued
        ))
    } else if c.arrived != c.delivered + c.dropped + c.held {
        Some(format!(
            "arrived {} != delivered {} + dropped {} + held {}",
            c.arrived, c.delivered, c.dropped, c.held
        ))
    } else if c.lost != sum(&c.lost_by_cause) || c.dropped != sum(&c.dropped_by_cause) {
        Some("the causes do not add up".into())
    } else {
        None
    }
}

/// What grew since the last look.
fn news(known: &mut BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let grown = now.iter().filter_map(|(cause, many)| {
        let more = many - known.get(cause).copied().unwrap_or(0).min(*many);
        (more > 0).then(|| (cause.clone(), more))
    });
    let grown = grown.collect();
    known.clone_from(now);
    grown
}
