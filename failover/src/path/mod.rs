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

    #[test]
    fn suspicion_and_return_last_a_least_time() {
        let well = evidence(Verdict::Up, Verdict::Up);
        for (state, least) in [
            (State::Hedging { least: T0 + HEDGE_MIN }, HEDGE_MIN),
            (State::Returning { since: T0 }, RETURN_MIN),
        ] {
            let mut machine = machine(state);
            let early = T0 + (least - Duration::from_micros(1));
            assert_eq!(machine.choose(early, &well), None, "{state:?}");
            assert_eq!(machine.next(early, None), T0 + least, "{state:?}");
            assert_eq!(machine.choose(T0 + least, &well).map(|m| m.to), Some(State::Network));
        }
    }

    #[test]
    fn a_return_waits_for_the_outbox_unless_storage_is_gone() {
        let past = State::Returning { since: Time(1) };
        let mut e = evidence(Verdict::Up, Verdict::Suspect);
        e.drained = false;
        assert_eq!(machine(past).choose(T0, &e), None);
        e.storage = Verdict::Down;
        assert_eq!(machine(past).choose(T0, &e).map(|m| m.to), Some(State::Network));
    }

    #[test]
    fn doubt_ends_before_the_hold_time_only_when_the_network_cannot_help() {
        let doubt = State::Doubtful { since: T0 };
        let soon = T0 + Duration::from_millis(1);
        for (network, to) in [
            (Verdict::Up, None),
            (Verdict::Suspect, None),
            (Verdict::Down, Some(State::Storage)),
            (Verdict::Disabled, Some(State::Storage)),
        ] {
            let moved = machine(doubt).choose(soon, &evidence(network, Verdict::Up));
            assert_eq!(moved.map(|m| m.to), to, "{network:?}");
        }
    }

    #[test]
    fn doubt_ends_by_the_network_once_that_is_proven_for_the_hold_time() {
        let mut e = evidence(Verdict::Up, Verdict::Suspect);
        e.proven_since = Some(T0);
        let mut machine = machine(State::Doubtful { since: Time(1) });
        let hold = Duration::from_secs(1);
        assert_eq!(machine.choose(T0 + (hold - Duration::from_micros(1)), &e), None);
        let back = State::Returning { since: T0 + hold };
        assert_eq!(machine.choose(T0 + hold, &e).map(|m| m.to), Some(back));
    }

    /// The hold time after the network was given up so long after coming back to it.
    fn hold_after(flaps: u32, from: State, quiet: Duration) -> Duration {
        let mut machine = Machine { flaps, returned_at: Some(T0), ..machine(from) };
        machine.gave_up = false;
        let moved = machine.choose(T0 + quiet, &evidence(Verdict::Down, Verdict::Up));
        assert_eq!(moved.map(|m| m.to), Some(State::Storage));
        machine.hold_now()
    }

    #[test]
    fn giving_up_soon_after_coming_back_is_a_flap() {
        let (second, tick) = (Duration::from_secs(1), Duration::from_micros(1));
        for from in [State::Network, State::Hedging { least: T0 }] {
            assert_eq!(hold_after(0, from, 2 * second - tick), 2 * second, "{from:?}");
            assert_eq!(hold_after(0, from, 2 * second), second, "{from:?}");
        }
        let returning = State::Returning { since: T0 };
        assert_eq!(hold_after(0, returning, 5 * second), 2 * second, "it did not even arrive");
        // One is forgotten per ten quiet hold times.
        assert_eq!(hold_after(3, State::Network, 10 * second - tick), 8 * second);
        assert_eq!(hold_after(3, State::Network, 10 * second), 4 * second);
        assert_eq!(hold_after(3, State::Network, 20 * second), 2 * second);
        assert_eq!(hold_after(3, State::Network, 90 * second), second);
    }

    #[test]
    fn without_any_path_a_network_that_is_back_is_used_at_once_but_not_forgiven() {
        let mut machine = machine(State::Network);
        machine.gave_up = false;
        let nothing = evidence(Verdict::Down, Verdict::Down);
        assert_eq!(machine.choose(T0, &nothing).map(|m| m.to), Some(State::Isolated));
        assert_eq!(machine.hold_now(), Duration::from_secs(1));
        let up = evidence(Verdict::Up, Verdict::Down);
        assert_eq!(machine.choose(T0, &up).map(|m| m.to), Some(State::Network));
        assert_eq!(machine.hold_now(), Duration::ZERO);
        let soon = T0 + Duration::from_secs(1);
        machine.choose(soon, &evidence(Verdict::Down, Verdict::Up));
        assert_eq!(machine.hold_now(), Duration::from_secs(2), "a flap");
    }

    #[test]
    fn from_isolation_to_storage_nothing_was_given_up() {
        let mut machine = Machine::new(Duration::from_secs(1));
        machine.choose(T0, &evidence(Verdict::Down, Verdict::Up));
        assert_eq!((machine.route(), machine.hold_now()), (Route::Storage, Duration::ZERO));
        machine.choose(T0, &evidence(Verdict::Suspect, Verdict::Suspect));
        assert_eq!((machine.route(), machine.hold_now()), (Route::Both, Duration::ZERO));
    }

    #[test]
    fn a_new_hold_time_counts_from_now_on() {
        let mut machine = machine(State::Storage);
        machine.flaps = 1;
        machine.configure(Duration::from_secs(3));
        assert_eq!(machine.hold_now(), Duration::from_secs(6));
    }

    #[test]
    fn a_turn_is_asked_for_when_time_alone_may_move_us() {
        let at = |ms| T0 + Duration::from_millis(ms);
        let next = |state, now, proven| machine(state).next(now, proven);
        assert_eq!(next(State::Network, T0, Some(T0)), Time::NEVER);
        assert_eq!(next(State::Isolated, T0, Some(T0)), Time::NEVER);
        assert_eq!(next(State::Storage, T0, None), Time::NEVER);
        assert_eq!(next(State::Storage, at(999), Some(T0)), at(1000));
        assert_eq!(next(State::Storage, at(1000), Some(T0)), Time::NEVER);
        let returning = State::Returning { since: T0 };
        assert_eq!(next(returning, T0, None), T0 + RETURN_MIN);
        assert_eq!(next(returning, T0 + RETURN_MIN, None), Time::NEVER);
        // Doubt: the hold time of the doubt itself, or of the proof.
        let doubt = State::Doubtful { since: T0 };
        assert_eq!(next(doubt, at(999), None), at(1000));
        assert_eq!(next(doubt, at(999), Some(at(100))), at(1000));
        assert_eq!(next(doubt, at(1000), Some(at(100))), at(1100));
        assert_eq!(next(doubt, at(1000), None), Time::NEVER);
        assert_eq!(next(doubt, at(1100), Some(at(100))), Time::NEVER);
    }

    #[test]
    fn every_move_says_why() {
        use Verdict::{Down, Suspect, Up};
        let why = |state, network, storage| {
            let mut e = evidence(network, storage);
            e.proven_since = Some(Time(1));
            machine(state).choose(T0, &e).map(|m| m.reason).unwrap_or_default()
        };
        let (n, s) = (Reason::HeartbeatsMissed, Reason::TableUnread);
        let past = Time(1);
        let doubt = State::Doubtful { since: past };
        let returning = State::Returning { since: past };
        let both = |nw: &str, st: &str| format!("network {nw}: {n}; storage {st}: {s}");
        assert_eq!(why(State::Network, Suspect, Up), format!("network suspect: {n}"));
        assert_eq!(why(State::Network, Down, Up), format!("network down: {n}"));
        assert_eq!(why(State::Network, Down, Suspect), both("down", "suspect"));
        assert_eq!(why(State::Network, Verdict::Disabled, Down), both("disabled", "down"));
        assert_eq!(why(State::Hedging { least: past }, Up, Up), "network up");
        assert_eq!(why(State::Storage, Up, Down), format!("storage down: {s}"));
        assert_eq!(why(State::Storage, Up, Up), "network good again, hold time over");
        assert_eq!(why(doubt, Up, Down), format!("storage down: {s}"));
        assert_eq!(why(doubt, Down, Up), "storage up");
        assert_eq!(why(returning, Up, Up), "network proven, storage drained");
        assert_eq!(why(State::Isolated, Down, Up), "storage up");
        assert_eq!(why(State::Isolated, Up, Down), "network up");
    }

    #[test]
    fn routes_are_shown_as_the_words_of_the_status() {
        for route in [Route::Network, Route::Both, Route::Storage, Route::Isolated] {
            assert_eq!(route.to_string(), format!("{route:?}").to_lowercase());
        }
    }
}
