//! When a network that was given up may be trusted again.
//!
//! Hearing the peer is not enough: our own way out may still be blocked (an unresolved neighbour
//! entry did that for 450-800 ms in a probe). What counts is a run of beats that each confirm that
//! a *new* one of ours arrived, and frames of data size that got through, acknowledged.

use std::time::Duration;

use crate::{Time, beat::Beat};

/// Confirming beats in a row.
const BEATS: u32 = 20;
/// Answered probes of data size.
const PROBES: u32 = 2;
/// Time between probes.
const PROBE_EVERY: Duration = Duration::from_millis(40);

/// Evidence that the network works again.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    beats: u32,
    last_echo: u64,
    good_since: Option<Time>,
    probe_at: Time,
    probe_id: u64,
    answered: u32,
}

impl Recovery {
    /// The network is not up: whatever was gathered is void.
    pub(crate) const fn reset(&mut self) {
        self.beats = 0;
        self.answered = 0;
        self.good_since = None;
    }

    /// A beat by the network while it is up.
    pub(crate) fn beat(&mut self, at: Time, beat: &Beat) {
        if let Some(echo) = beat.heard_network
            && echo.stamp > self.last_echo
            // A stamp from the future was made by an earlier incarnation of ours, before a reboot.
            && echo.stamp <= at.micros()
        {
            self.last_echo = echo.stamp;
            self.beats = self.beats.saturating_add(1);
            self.good_since.get_or_insert(at);
        }
    }

    /// A new incarnation of the peer has other stamps.
    pub(crate) fn forget(&mut self) {
        let probe_id = self.probe_id;
        *self = Self { probe_id, ..Self::default() };
    }

    /// The id of a probe to be sent now, if one is due.
    pub(crate) fn probe(&mut self, now: Time) -> Option<u64> {
        if self.beats < 2 || self.answered >= PROBES || now < self.probe_at {
            return None;
        }
        self.probe_at = now + PROBE_EVERY;
        self.probe_id += 1;
        Some(self.probe_id)
    }

    /// A probe was answered.
    pub(crate) const fn answered(&mut self, id: u64) {
        if id <= self.probe_id && self.good_since.is_some() {
            self.answered += 1;
        }
    }

    /// Since when the network has been good without a break, if all evidence is there.
    pub(crate) fn proven_since(&self) -> Option<Time> {
        self.good_since.filter(|_| self.beats >= BEATS && self.answered >= PROBES)
    }

    /// When [`Self::probe`] has something to do.
    pub(crate) const fn next(&self) -> Time {
        if self.beats < 2 || self.answered >= PROBES { Time::NEVER } else { self.probe_at }
    }
}
