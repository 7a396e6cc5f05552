//! Somebody who can send to every host, heard what was said, and has no key.
//!
//! It plays frames again, sends them back to who sent them or to somebody else, forges their clear
//! headers and makes up its own. Nothing of that may do anything at all: no path is excused for it.

use std::collections::VecDeque;

use bytes::Bytes;
use failover::wire::HEADER;

use crate::{
    fault::Fault,
    world::{Ev, World},
};

/// Frames it remembers.
const REMEMBERS: usize = 96;
/// The number of its own machine, which nobody knows.
const NOWHERE: u8 = 250;

/// The stranger.
#[derive(Debug, Default)]
pub(crate) struct Stranger {
    /// Sends each so many microseconds; 0: is not there.
    pub(crate) every: u64,
    heard: VecDeque<(u8, u8, Bytes)>,
}

impl World {
    /// It listens on every wire.
    pub(crate) fn record(&mut self, from: u8, to: u8, frame: &Bytes) {
        if self.stranger.every == 0 || !self.events.is_multiple_of(7) {
            return;
        }
        let heard = &mut self.stranger.heard;
        if heard.len() == REMEMBERS {
            heard.pop_front();
        }
        heard.push_back((from, to, frame.clone()));
    }

    pub(crate) fn stranger_comes(&mut self, every: u64) {
        if self.stranger.every == 0 && every > 0 {
            self.push(self.now + every, Ev::Stranger);
        }
        self.stranger.every = every;
    }

    pub(crate) fn stranger_acts(&mut self) {
        let every = self.stranger.every;
        if every == 0 {
            return;
        }
        let now = self.now;
        let next = now + every / 2 + self.rng.below(every + 1);
        self.push(next, Ev::Stranger);
        let machines = u64::from(self.machines());
        let anybody =
            |rng: &mut crate::rng::Rng| u8::try_from(1 + rng.below(machines)).unwrap_or(1);
        let kind = self.rng.below(5);
        let many = self.stranger.heard.len();
        if kind == 4 || many == 0 {
            let mut bytes = vec![0; self.rng.index(1_500)];
            self.rng.fill(&mut bytes);
            if let Some(first) = bytes.first_mut() {
                // Of a version and channel there are.
                *first = (failover::wire::VERSION << 4) | (*first % 5);
            }
            self.fired.count(Fault::Garbage);
            let to = anybody(&mut self.rng);
            return self
                .push(now, Ev::Datagram { from: NOWHERE, to, bytes: bytes.into(), stamp: now });
        }
        let pick = self.rng.index(many);
        let (from, to, bytes) = self.stranger.heard[pick].clone();
        let source = if self.rng.chance(500_000) { from } else { NOWHERE };
        let (source, to, bytes) = match kind {
            0 => {
                self.fired.count(Fault::Replayed);
                (source, to, bytes)
            }
            1 => {
                self.fired.count(Fault::Reflected);
                (to, from, bytes)
            }
            2 => {
                self.fired.count(Fault::Replayed);
                (source, anybody(&mut self.rng), bytes)
            }
            _ => {
                self.fired.count(Fault::Forged);
                let mut forged = bytes.to_vec();
                for _ in 0..=self.rng.below(2) {
                    let at = self.rng.index(HEADER.min(forged.len()).max(1));
                    if let Some(byte) = forged.get_mut(at) {
                        *byte ^= u8::try_from(1 + self.rng.below(255)).unwrap_or(1);
                    }
                }
                (source, to, forged.into())
            }
        };
        self.push(now, Ev::Datagram { from: source, to, bytes, stamp: now });
    }
}
