//! Which path a node's packets to one peer take.
//!
//! ```text
//!            suspect                    down
//!  Network ----------> Hedging ------------------> Storage <-----+
//!     ^  <----------      |                         |    |       | suspect, down
//!     |       up          | storage gone            |    |       | (a flap)
//!     |                   v                         |    v       |
//!     +<------------- (Network)      storage gone   |   Returning
//!     |                                             |    |
//!     +<--------------------------------------------|----+ network acknowledged, outbox empty
//!     |  up                                         v
//!     +<------------------------------------- Isolated  (no path is up)
//! ```
//!
//! Leaving the network is quick, coming back is slow: a hold time that doubles with every flap and
//! decays in quiet times. Hedging is cheap and can be taken back, so it needs no hold. Coming back
//! goes through a time on both paths, so that there is no second silence.
//!
//! Storage that is only *suspect* never carries a peer alone when the network may still help:
//! then the state is `Doubtful`, both ways, until one of the two is known to be good or gone.
//!
//! The machine compares verdicts; it does nothing. What happens to frames on a move is `link`'s.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Path, Time,
    canary::{Bug, planted},
    health::{Reason, Verdict},
};

/// The route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The network alone.
    Network,
    /// Both at once (hedging, failback).
    Both,
    /// Storage alone.
    Storage,
    /// No path is up.
    Isolated,
}

impl Route {
    /// Whether frames go that way.
    #[must_use]
    pub const fn uses(self, path: Path) -> bool {
        matches!(
            (self, path),
            (Self::Both, _) | (Self::Network, Path::Network) | (Self::Storage, Path::Storage)
        )
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Both => "both",
            Self::Storage => "storage",
            Self::Isolated => "isolated",
        })
    }
}

/// Where the machine stands, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The network alone.
    Network,
    /// The network is suspect: both ways until it is cleared or given up, and at least so long.
    Hedging { least: Time },
    /// The network is down.
    Storage,
    /// Neither path is known to be good: both ways. `since` the last doubt about storage.
    Doubtful { since: Time },
    /// The network is good again: both ways until nothing depends on storage.
    Returning { since: Time },
    /// Nothing works; packets wait for as long as they live.
    Isolated,
}

impl State {
    pub(crate) const fn route(self) -> Route {
        match self {
            Self::Network => Route::Network,
            Self::Hedging { .. } | Self::Doubtful { .. } | Self::Returning { .. } => Route::Both,
            Self::Storage => Route::Storage,
            Self::Isolated => Route::Isolated,
        }
    }
}

/// What the choice depends on, all about our own direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evidence {
    pub(crate) network: Verdict,
    pub(crate) network_reason: Reason,
    pub(crate) storage: Verdict,
    pub(crate) storage_reason: Reason,
    /// Since when the network has been proven good without a break.
    pub(crate) proven_since: Option<Time>,
    /// Nothing unacknowledged was sent by storage alone, and the outbox is empty.
    pub(crate) drained: bool,
}

/// A move from one state to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) reason: String,
}

/// Hold time never exceeds this.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// Giving up the network within so many (undoubled) hold times of coming back to it is a flap.
const FLAP_HOLDS: u32 = 2;
/// One flap is forgotten for so many (undoubled) hold times on the network without another.
const FLAP_DECAY_HOLDS: u32 = 10;
/// Hedging lasts at least so long: suspicion that comes and goes is one suspicion.
const HEDGE_MIN: Duration = Duration::from_millis(100);
/// Coming back lasts at least so long.
const RETURN_MIN: Duration = Duration::from_millis(50);

/// Chooses the route to one peer.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    hold: Duration,
    flaps: u32,
    /// When the machine last came back to the network it had given up.
    returned_at: Option<Time>,
    /// The network was given up and not come back to. Before the first time there is nothing to
    /// hold against it.
    gave_up: bool,
}

impl Machine {
    pub(crate) const fn new(hold: Duration) -> Self {
        Self { state: State::Isolated, hold, flaps: 0, returned_at: None, gave_up: false }
    }

    pub(crate) const fn configure(&mut self, hold: Duration) {
        self.hold = hold;
    }

    /// The present route.
    pub(crate) const fn route(&self) -> Route {
        self.state.route()
    }

    /// The present state.
    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// How long the network must have been good before it is used again.
    pub(crate) fn hold_now(&self) -> Duration {
        if self.gave_up && !planted(Bug::ReturnAtOnce) {
            (self.hold * (1 << self.flaps.min(10))).min(HOLD_MAX)
        } else {
            Duration::ZERO
        }
    }

    /// Nothing proves that a hole for some data has closed but trying it again, once in a while.
    fn hedge_min(&self, e: &Evidence) -> Duration {
        if e.network_reason == Reason::FramesStuck { self.hold.max(HEDGE_MIN) } else { HEDGE_MIN }
    }

    /// Compares what is known with where we are; moves at most one step.
    pub(crate) fn choose(&mut self, now: Time, e: &Evidence) -> Option<Move> {
        let usable = |v| v == Verdict::Up || v == Verdict::Suspect;
        let network = e.network == Verdict::Up;
        let storage = usable(e.storage);
        if let State::Doubtful { since } = &mut self.state
            && e.storage == Verdict::Suspect
        {
            *since = now;
        }
        // Where to go from the network when that is down.
        let doubtful = State::Doubtful { since: now };
        let away = if e.storage == Verdict::Up { State::Storage } else { doubtful };
        let to = match self.state {
            State::Network if network || planted(Bug::NoFailover) => return None,
            State::Network if storage => match e.network {
                Verdict::Suspect => State::Hedging { least: now + self.hedge_min(e) },
                _ => away,
            },
            State::Network if e.network == Verdict::Suspect => return None,
            State::Network => State::Isolated,

            State::Hedging { least } if network && now < least => return None,
            State::Hedging { .. } if network => State::Network,
            State::Hedging { .. } => match (e.network, storage) {
                (Verdict::Suspect, true) => return None,
                (Verdict::Suspect, false) => State::Network,
                (_, true) => away,
                (_, false) => State::Isolated,
            },

            State::Storage if !storage && network => State::Network,
            State::Storage if !storage && !usable(e.network) => State::Isolated,
            State::Storage => match e.proven_since {
                Some(since) if network && now.since(since) >= self.hold_now() => {
                    State::Returning { since: now }
                }
                _ if e.storage == Verdict::Suspect && usable(e.network) => doubtful,
                _ => return None,
            },

            // Doubt that comes and goes is one doubt, for a hold time.
            State::Doubtful { since }
                if e.storage == Verdict::Up
                    && (now.since(since) >= self.hold || !usable(e.network)) =>
            {
                State::Storage
            }
            State::Doubtful { .. } if !storage && usable(e.network) => State::Network,
            State::Doubtful { .. } if !storage => State::Isolated,
            State::Doubtful { .. } => match e.proven_since {
                Some(since) if network && now.since(since) >= self.hold_now() => {
                    State::Returning { since: now }
                }
                _ => return None,
            },

            State::Returning { .. } if !network && storage => away,
            State::Returning { .. } if !network && !usable(e.network) => State::Isolated,
            State::Returning { .. } if !storage => State::Network,
            State::Returning { since } if e.drained && now.since(since) >= RETURN_MIN => {
                State::Network
            }
            State::Returning { .. } => return None,

            State::Isolated if network => State::Network,
            State::Isolated if storage => away,
            State::Isolated => return None,
        };
        Some(self.go(now, to, e))
    }

    fn go(&mut self, now: Time, to: State, e: &Evidence) -> Move {
        let from = self.state;
        let reason = match to {
            State::Network if matches!(from, State::Returning { .. }) => {
                "network proven, storage drained".to_owned()
            }
            State::Network if matches!(from, State::Storage | State::Doubtful { .. }) => {
                format!("storage {}: {}", word(e.storage), e.storage_reason)
            }
            State::Network => "network up".to_owned(),
            State::Returning { .. } => "network good again, hold time over".to_owned(),
            State::Storage if matches!(from, State::Isolated | State::Doubtful { .. }) => {
                "storage up".to_owned()
            }
            State::Isolated | State::Doubtful { .. } => format!(
                "network {}: {}; storage {}: {}",
                word(e.network),
                e.network_reason,
                word(e.storage),
                e.storage_reason
            ),
            State::Hedging { .. } | State::Storage => {
                format!("network {}: {}", word(e.network), e.network_reason)
            }
        };
        if to == State::Network && std::mem::take(&mut self.gave_up) {
            self.returned_at = Some(now);
        }
        let gives_up =
            matches!(from, State::Network | State::Hedging { .. } | State::Returning { .. });
        self.gave_up |=
            gives_up && matches!(to, State::Storage | State::Doubtful { .. } | State::Isolated);
        if gives_up && matches!(to, State::Storage | State::Doubtful { .. }) {
            let quiet = self.returned_at.map_or(Duration::MAX, |at| now.since(at));
            let decay = (self.hold * FLAP_DECAY_HOLDS).as_micros().max(1);
            let decayed = u32::try_from(quiet.as_micros() / decay).unwrap_or(u32::MAX);
            self.flaps = self.flaps.saturating_sub(decayed);
            if matches!(from, State::Returning { .. }) || quiet < self.hold * FLAP_HOLDS {
                self.flaps += 1;
            }
        }
        self.state = to;
        Move { from, to, reason }
    }

    /// When the choice may change by time alone; never, when only new evidence can change it.
    pub(crate) fn next(&self, now: Time, proven_since: Option<Time>) -> Time {
        let at = match (self.state, proven_since) {
            (State::Hedging { least }, _) => least,
            (State::Returning { since }, _) => since + RETURN_MIN,
            (State::Doubtful { since }, proven) => {
                let settled = since + self.hold;
                let back = proven.map_or(Time::NEVER, |p| p + self.hold_now());
                [settled, back].into_iter().filter(|at| *at > now).min().unwrap_or(Time::NEVER)
            }
            (State::Storage, Some(since)) => since + self.hold_now(),
            _ => Time::NEVER,
        };
        if at > now { at } else { Time::NEVER }
    }
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Up => "up",
        Verdict::Suspect => "suspect",
        Verdict::Down => "down",
        Verdict::Disabled => "disabled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Time = Time(1_000_000_000);

    fn evidence(network: Verdict, storage: Verdict) -> Evidence {
        Evidence {
            network,
            network_reason: Reason::HeartbeatsMissed,
            storage,
            storage_reason: Reason::TableUnread,
            proven_since: None,
            drained: true,
        }
    }

    fn machine(state: State) -> Machine {
        Machine { state, gave_up: true, ..Machine::new(Duration::from_secs(1)) }
    }

    /// The whole table: every state, every pair of verdicts, long after any minimum time, with
    /// nothing proven.
    #[test]
    fn the_whole_table() {
        use Route::{Both, Isolated, Network, Storage};
        use Verdict::{Down, Suspect, Up};
        let past = Time(1);
        let states = [
            State::Network,
            State::Hedging { least: past },
            State::Storage,
            State::Doubtful { since: past },
            State::Returning { since: past },
            State::Isolated,
        ];
        // Rows: network up, suspect, down. Columns within a row: storage up, suspect, down.
        let expected = [
            [[Network; 3], [Both, Both, Network], [Storage, Both, Isolated]],
            [[Network; 3], [Both, Both, Network], [Storage, Both, Isolated]],
            [[Storage, Both, Network], [Storage, Both, Storage], [Storage, Storage, Isolated]],
            [[Storage, Both, Network], [Storage, Both, Network], [Storage, Both, Isolated]],
            [[Network; 3], [Storage, Both, Network], [Storage, Both, Isolated]],
            [[Network; 3], [Storage, Both, Isolated], [Storage, Both, Isolated]],
        ];
        for (state, table) in states.into_iter().zip(expected) {
            for (network, row) in [Up, Suspect, Down].into_iter().zip(table) {
                for (storage, route) in [Up, Suspect, Down].into_iter().zip(row) {
                    let mut machine = machine(state);
                    machine.choose(T0, &evidence(network, storage));
                    assert_eq!(machine.route(), route, "{state:?} {network:?} {storage:?}");
                }
            }
        }
    }

    #[test]
    fn coming_back_needs_proof_hold_and_a_drained_outbox() {
        let mut machine = machine(State::Storage);
        let mut e = evidence(Verdict::Up, Verdict::Up);
        e.drained = false;
        assert!(machine.choose(T0, &e).is_none(), "nothing proven");
        e.proven_since = Some(T0);
        assert!(machine.choose(T0 + Duration::from_millis(999), &e).is_none(), "hold");
        assert!(machine.choose(T0 + Duration::from_secs(1), &e).is_some());
        assert_eq!(machine.route(), Route::Both);
        assert!(machine.choose(T0 + Duration::from_secs(5), &e).is_none(), "not drained");
        e.drained = true;
        assert!(machine.choose(T0 + Duration::from_secs(5), &e).is_some());
        assert_eq!(machine.route(), Route::Network);
    }

    #[test]
    fn a_minimum_time_that_is_over_asks_for_no_more_turns() {
        let machine = machine(State::Hedging { least: T0 + HEDGE_MIN });
        assert_eq!(machine.next(T0, None), T0 + HEDGE_MIN);
        assert_eq!(machine.next(T0 + HEDGE_MIN, None), Time::NEVER);
    }

    #[test]
    fn a_hole_for_data_is_tried_again_after_a_hold_time_and_silence_soon() {
        for (reason, least) in
            [(Reason::FramesStuck, Duration::from_secs(1)), (Reason::HeartbeatsMissed, HEDGE_MIN)]
        {
            let mut machine = machine(State::Network);
            let doubt =
                Evidence { network_reason: reason, ..evidence(Verdict::Suspect, Verdict::Up) };
            machine.choose(T0, &doubt);
            assert_eq!(machine.route(), Route::Both);
            let well = evidence(Verdict::Up, Verdict::Up);
            let early = T0 + least - Duration::from_micros(1);
            assert!(machine.choose(early, &well).is_none(), "{reason}");
            assert!(machine.choose(T0 + least, &well).is_some(), "{reason}");
        }
    }

    #[test]
    fn flaps_double_the_hold_up_to_a_minute_and_decay() {
        let mut machine = machine(State::Network);
        let mut now = T0;
        machine.returned_at = Some(now);
        for expected in [2, 4, 8, 16, 32, 60, 60] {
            now += Duration::from_millis(500);
            machine.choose(now, &evidence(Verdict::Down, Verdict::Up));
            assert_eq!(machine.hold_now(), Duration::from_secs(expected));
            let mut e = evidence(Verdict::Up, Verdict::Up);
            e.proven_since = Some(now);
            now += machine.hold_now();
            machine.choose(now, &e);
            now += RETURN_MIN;
            machine.choose(now, &e);
            assert_eq!(machine.route(), Route::Network);
        }
        now += Duration::from_secs(70);
        machine.choose(now, &evidence(Verdict::Down, Verdict::Up));
        assert_eq!(machine.hold_now(), Duration::from_secs(1));
    }

    #[test]
    fn a_network_that_was_never_given_up_needs_no_hold() {
        let mut machine = Machine::new(Duration::from_secs(1));
        machine.choose(T0, &evidence(Verdict::Down, Verdict::Up));
        assert_eq!(machine.route(), Route::Storage, "storage was there first");
        let mut e = evidence(Verdict::Up, Verdict::Up);
        e.proven_since = Some(T0);
        machine.choose(T0, &e);
        machine.choose(T0 + RETURN_MIN, &e);
        assert_eq!(machine.route(), Route::Network);
    }

    #[test]
    fn doubt_that_comes_and_goes_is_one_doubt() {
        let mut machine = machine(State::Storage);
        let doubt = evidence(Verdict::Up, Verdict::Suspect);
        let well = evidence(Verdict::Up, Verdict::Up);
        assert_eq!(machine.choose(T0, &doubt).map(|m| m.to), Some(State::Doubtful { since: T0 }));
        let soon = T0 + Duration::from_millis(999);
        assert_eq!(machine.choose(soon, &well), None);
        assert_eq!(machine.next(soon, None), T0 + Duration::from_secs(1));
        assert_eq!(machine.choose(soon, &doubt), None);
        assert_eq!(machine.choose(T0 + Duration::from_millis(1998), &well), None, "doubted again");
        let later = soon + Duration::from_secs(1);
        assert_eq!(machine.choose(later, &well).map(|m| m.to), Some(State::Storage));
    }
}
