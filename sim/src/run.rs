//! A run: the safety phase, in which anything may break, then the liveness phase, in which all is
//! well and everything must come right.

use failover::{Route, Time, status::PeerStatus};

use crate::{
    check::Violation,
    fault::Fired,
    plan::{Action, Expect, Plan},
    world::World,
};

const SECOND: u64 = 1_000_000;
/// After healing, traffic goes on for so long, so that nothing may be lost under load any more.
const LOADED: u64 = 14 * SECOND;
/// Then every queue must be empty within this.
const DRAIN: u64 = 2 * SECOND;
/// The hold time is at most a minute; proof and return take a little more.
const RETURN: u64 = 75 * SECOND;

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The first broken invariant, or a promise of the story.
    pub violation: Option<Violation>,
    /// The last things that happened.
    pub last: Vec<String>,
    /// Of everything that happened.
    pub digest: u64,
    /// Which faults really fired.
    pub fired: Fired,
    /// Virtual microseconds.
    pub simulated: u64,
    /// Events handled.
    pub events: u64,
    /// Events by kind, in the order of [`KINDS`](crate::KINDS).
    pub kinds: [u64; crate::KINDS.len()],
    /// Units offered, delivered, lost.
    pub units: (u64, u64, u64),
    /// Sessions closed and ended at either end, bytes they carried.
    pub sessions: (u64, u64, u64),
    /// Changes of route.
    pub changes: u64,
}

/// Runs a plan with a seed. `stride`: balances are looked at after every so many turns.
#[must_use]
pub fn run(plan: Plan, seed: u64, stride: u64, aloud: bool) -> Outcome {
    let (heal_at, expect) = (plan.heal_at, plan.expect);
    let mut world = World::new(plan, seed, stride.max(1), aloud);
    world.until(heal_at);
    if world.check.violation.is_none() {
        world.liveness(heal_at);
    }
    if world.check.violation.is_none() {
        world.promises(expect);
    }
    Outcome {
        last: world.trace.last(),
        digest: world.trace.digest(),
        simulated: world.now,
        events: world.events,
        kinds: world.kinds,
        units: (world.check.offered_units(), world.check.delivered, world.check.lost),
        sessions: (world.talking.closed, world.talking.ended, world.talking.bytes),
        changes: world.check.changes,
        fired: world.fired,
        violation: world.check.violation,
    }
}

impl World {
    fn until(&mut self, at: u64) {
        while self.advance(at) {}
    }

    fn statuses(&self) -> Vec<(u8, PeerStatus)> {
        let mut all = Vec::new();
        for host in &self.hosts {
            if let Some(daemon) = &host.daemon {
                let status = daemon.node.status(Time(host.clock.shows(self.now)));
                all.extend(status.peers.into_iter().map(|p| (host.id, p)));
            }
        }
        all
    }

    fn liveness(&mut self, healed: u64) {
        self.act(&Action::Heal);
        self.act(&Action::Traffic(true));
        self.until(healed + LOADED);
        self.act(&Action::Traffic(false));
        self.until(healed + LOADED + DRAIN);
        if self.check.violation.is_some() {
            return;
        }
        for (host, peer) in self.statuses() {
            let c = &peer.counters;
            if c.queued + c.held > 0 {
                let detail = format!(
                    "host {host} to {}: queued {} held {} {} s after all was healed; route {}",
                    peer.id,
                    c.queued,
                    c.held,
                    (LOADED + DRAIN) / SECOND,
                    peer.route
                );
                self.check.fail(self.now, "I5 backlog drains", detail);
            }
        }
        while self.check.violation.is_none() && !self.is_home() {
            let until = self.now + SECOND / 2;
            if until > healed + RETURN {
                self.tell_homeless();
                break;
            }
            self.until(until);
        }
        // The last word: a second of traffic, everything must arrive.
        let (lost, offered, delivered) =
            (self.check.lost, self.check.offered_units(), self.check.delivered);
        self.act(&Action::Traffic(true));
        self.until(self.now + SECOND);
        self.act(&Action::Traffic(false));
        self.until(self.now + DRAIN);
        if self.check.violation.is_some() {
            return;
        }
        let sent = self.check.offered_units() - offered;
        let came = self.check.delivered - delivered;
        if sent != came || lost != self.check.lost {
            let detail = format!("of {sent} units at the very end {came} came");
            self.check.fail(self.now, "I5 liveness", detail);
        }
        for host in 1..=self.plan.hosts {
            self.look(host);
        }
        self.sessions_end();
        self.check.settle(self.now);
    }

    /// Sessions whose applications finished are gone, and nothing is left of them.
    fn sessions_end(&mut self) {
        for (host, p) in self.statuses() {
            let s = &p.sessions;
            if s.open + s.granted_bytes + s.buffered_bytes > 0 {
                let detail = format!("host {host} to {}: {s:?}", p.id);
                self.check.fail(self.now, "S5 sessions end", detail);
            }
        }
        for host in &self.hosts {
            if let Some(daemon) = &host.daemon
                && !daemon.talks.is_idle()
            {
                let detail = format!("host {} was not told: {:?}", host.id, daemon.talks);
                self.check.fail(self.now, "S5 sessions end", detail);
            }
        }
    }

    fn is_home(&self) -> bool {
        let all = self.statuses();
        all.iter().all(|(_, p)| {
            p.route == Route::Network && p.peer_route == Some(Route::Network) && p.keys
        })
    }

    fn tell_homeless(&mut self) {
        for (host, p) in self.statuses() {
            let detail = format!(
                "host {host} to {}: route {}, peer's {:?}, network {:?} {:?}, storage {:?} {:?}, keys {}",
                p.id,
                p.route,
                p.peer_route,
                p.network.state,
                p.network.reason,
                p.storage.state,
                p.storage.reason,
                p.keys
            );
            self.trace.tell(self.now, host, "status", detail.clone());
            if p.route != Route::Network || p.peer_route != Some(Route::Network) {
                self.check.fail(self.now, "I5 routes return", detail);
            }
        }
    }

    fn promises(&mut self, expect: Expect) {
        let (now, routes) = (self.now, self.check.routes);
        let broken = [
            (expect.lossless && self.check.lost > 0, format!("{} units lost", self.check.lost)),
            (expect.storage_used && !routes[2], "storage never carried anything".into()),
            (expect.isolated && !routes[3], "no node was ever isolated".into()),
            (expect.left_network && !routes[1] && !routes[2], "no route left the network".into()),
            (
                expect.untouched_after.is_some_and(|at| self.check.last_change > at),
                format!("a route changed at {} us", self.check.last_change),
            ),
        ];
        for (_, detail) in broken.into_iter().filter(|b| b.0) {
            self.check.fail(now, "the story's promise", detail);
        }
    }
}
