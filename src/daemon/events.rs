//! What happened, told to people: one log line per event, a hook where one is configured, and a
//! ring of the last ones.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use failover::{Event, NodeId, Time, health::Verdict};

use super::hooks::Hooks;
use crate::{config::Config, sys::clock};

/// How many events are kept.
const RING: usize = 64;

/// The last events of a daemon, oldest first; clones look at the same ring.
#[derive(Debug, Clone, Default)]
pub struct RecentEvents(Arc<Mutex<VecDeque<(String, Event)>>>);

impl RecentEvents {
    /// Each with its time (RFC 3339, UTC).
    #[must_use]
    pub fn list(&self) -> Vec<(String, Event)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn push(&self, at: String, event: Event) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back((at, event));
    }
}

/// A moment of our clock as a date: RFC 3339, UTC, milliseconds.
pub(super) fn date(at: Time) -> String {
    let wall = SystemTime::now() - clock::now().since(at);
    jiff::Timestamp::try_from(wall).map_or_else(|_| String::new(), |stamp| format!("{stamp:.3}"))
}

fn name(config: &Config, id: NodeId) -> &str {
    config.peers.iter().find(|p| p.id == id).map_or("?", |p| p.name.as_str())
}

/// Logs an event, keeps it, and runs hooks for it.
pub(super) fn tell(event: &Event, now: Time, config: &Config, hooks: &Hooks, ring: &RecentEvents) {
    log(event, config);
    let at = date(now);
    if let Event::RouteChanged { peer, from, to, reason, drill } = event {
        let json = serde_json::json!({
            "event": "route_changed",
            "at": at,
            "node": {"id": config.node.id, "name": config.node.name},
            "peer": {"id": peer, "name": name(config, *peer)},
            "from": from,
            "to": to,
            "reason": reason,
            "drill": drill,
        });
        hooks.run(&config.hooks.on_route_change, &json);
    }
    ring.push(at, event.clone());
}

fn log(event: &Event, config: &Config) {
    let name = |id: &NodeId| name(config, *id);
    match event {
        Event::RouteChanged { peer, from, to, reason, drill } => {
            tracing::info!(peer = name(peer), ?from, ?to, reason, drill, "route changed");
        }
        Event::PeerState { peer, state, reason } => {
            tracing::info!(peer = name(peer), ?state, reason, "peer state");
        }
        Event::PathState { peer, path, state, reason } if *state == Verdict::Down => {
            tracing::warn!(peer = name(peer), ?path, reason, "path down");
        }
        Event::PathState { peer, path, state, reason } => {
            tracing::info!(peer = name(peer), ?path, ?state, reason, "path state");
        }
        Event::KeysAgreed { peer, generation, peer_epoch } => {
            tracing::info!(peer = name(peer), generation, peer_epoch, "keys agreed");
        }
        Event::PeerRestarted { peer, unconfirmed } => {
            tracing::info!(peer = name(peer), unconfirmed, "peer restarted");
        }
        Event::PingReply { peer, out, back, round_trip, .. } => {
            tracing::debug!(peer = name(peer), ?out, ?back, ?round_trip, "ping answered");
        }
        Event::PingRefused { peer, reason, .. } => {
            tracing::debug!(peer = name(peer), reason, "ping refused");
        }
        Event::DrillStarted { peer, cut } => {
            tracing::warn!(peer = name(peer), ?cut, "drill started");
        }
        Event::DrillRefused { peer, reason } => {
            tracing::info!(peer = name(peer), reason, "drill refused");
        }
        Event::DrillEnded { peer } => {
            tracing::warn!(peer = name(peer), "drill ended");
        }
        Event::PeerDrill { peer, cut } => {
            tracing::warn!(peer = name(peer), ?cut, "the peer drills the path to us");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_rfc_3339_with_milliseconds() {
        let text = date(clock::now());
        assert_eq!(text.len(), "2026-01-01T00:00:00.123Z".len(), "{text}");
        assert!(text.ends_with('Z'));
    }

    #[test]
    fn the_ring_keeps_the_newest() {
        let ring = RecentEvents::default();
        for id in 1..=64 {
            for _ in 0..2 {
                let peer = NodeId::new(id).unwrap();
                ring.push(String::new(), Event::DrillEnded { peer });
            }
        }
        let list = ring.list();
        assert_eq!(list.len(), RING);
        assert_eq!(list[0].1, Event::DrillEnded { peer: NodeId::new(33).unwrap() });
    }
}
