//! The books of a round: what was sent, what arrived, what the daemons say they lost.
//!
//! For each direction: a number that never arrived must be covered by a loss somebody reported:
//! the sender's daemon (`lost`), the receiver's (`dropped`, doubles apart), or the sender's
//! interface (it has no room while a daemon is stopped). A daemon that was killed takes what it
//! held with it; that, and what was sent while nobody ran, is excused, and nothing else.

use std::time::Duration;

use super::bench::Lab;
use super::meter::Stream;
use super::status::Status;

/// Counters of one end about the other, at one instant.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    lost: u64,
    dropped: u64,
    interface: u64,
    pending: u64,
}

impl Sample {
    fn take(lab: &Lab, node: usize, peer: usize) -> Self {
        let status = lab.node(node).status();
        let interface = lab.node(node).interface_drops();
        Self::of(&status, peer, interface)
    }

    fn of(status: &Status, peer: usize, interface: u64) -> Self {
        let counters = &status.peer(peer)["counters"];
        let doubles = counters["dropped_by_cause"]["duplicate"].as_u64().unwrap_or(0);
        Self {
            lost: status.counter(peer, "lost"),
            dropped: status.counter(peer, "dropped") - doubles,
            interface,
            pending: status.counter(peer, "queued") + status.counter(peer, "held"),
        }
    }
}

/// The books of the pair of nodes 1 and 2 for one round.
pub(crate) struct Books {
    base: [Sample; 2],
    /// Reported by incarnations that are gone, and what they had in hand.
    gone: [Sample; 2],
    /// From just before a kill until everything ran again.
    windows: Vec<(u64, u64)>,
}

/// Between the last look at a daemon and its death, and for what the kernel had in hand.
const BEFORE_NS: u64 = 150_000_000;
const AFTER_NS: u64 = 300_000_000;

impl Books {
    pub(crate) fn open(lab: &Lab) -> Self {
        let base = [Sample::take(lab, 1, 2), Sample::take(lab, 2, 1)];
        Self { base, gone: [Sample::default(); 2], windows: Vec::new() }
    }

    /// Call just before a daemon is killed.
    pub(crate) fn before_kill(&mut self, lab: &Lab, node: usize, now: u64) {
        if node > 2 {
            return;
        }
        if let Ok(status) = lab.node(node).try_status() {
            let last = Sample::of(&status, 3 - node, lab.node(node).interface_drops());
            let (base, gone) = (&mut self.base[node - 1], &mut self.gone[node - 1]);
            gone.lost += last.lost.saturating_sub(base.lost);
            gone.dropped += last.dropped.saturating_sub(base.dropped);
            gone.interface += last.interface.saturating_sub(base.interface);
            gone.pending += last.pending;
        }
        self.base[node - 1] = Sample::default();
        self.windows.push((now.saturating_sub(BEFORE_NS), u64::MAX));
    }

    /// Call when everything runs and talks again.
    pub(crate) fn all_back(&mut self, now: u64) {
        for (_, until) in &mut self.windows {
            *until = (*until).min(now + AFTER_NS);
        }
    }

    /// Closes the books of both directions. Returns (lost and excused, lost and reported).
    #[track_caller]
    pub(crate) fn close(&self, lab: &Lab, streams: &[Stream; 2]) -> (usize, usize) {
        lab.await_settled(Duration::from_secs(15));
        let now = [Sample::take(lab, 1, 2), Sample::take(lab, 2, 1)];
        let (mut excused, mut covered) = (0, 0);
        for (from, stream) in streams.iter().enumerate() {
            let to = 1 - from;
            let lost = stream.lost();
            let outside: Vec<u64> = lost
                .iter()
                .copied()
                .filter(|number| {
                    let at = stream.sent_at(*number);
                    !self.windows.iter().any(|(since, until)| (*since..=*until).contains(&at))
                })
                .collect();
            let (base, gone) = (&self.base, &self.gone);
            let reported = now[from].lost - base[from].lost
                + gone[from].lost
                + now[from].interface.saturating_sub(base[from].interface)
                + gone[from].interface
                + now[to].dropped
                - base[to].dropped
                + gone[to].dropped;
            let held = gone[from].pending + gone[to].pending;
            assert!(
                outside.len() as u64 <= reported + held,
                "{}: lost without a word: {reported} reported, {held} held by the killed; {}",
                stream.name,
                stream.tell(&outside)
            );
            excused += lost.len() - outside.len();
            covered += outside.len();
        }
        (excused, covered)
    }
}
