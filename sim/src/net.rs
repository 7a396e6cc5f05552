//! The network: a wire for each ordered pair of hosts, and what befalls what is sent on it.
//!
//! Datagrams are dropped, doubled, delayed, overtaken and damaged; a cut swallows them silently. A
//! wire without jitter and reordering keeps their order, as a cable does. TCP is a stream over the
//! same wires: reliable and in order, it stands still while either direction is cut (no
//! acknowledgement returns) and breaks when that lasts.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::{
    fault::{Fault, Fired},
    rng::Rng,
};

/// A TCP sender that moved nothing for so long gives the connection up.
const TCP_STUCK: u64 = 1_500_000;
/// How often a standing stream tries again.
pub(crate) const TCP_RETRY: u64 = 100_000;
const TCP_BUFFER: usize = 1 << 20;
/// What a pipe of sessions takes before some of it has arrived.
const PIPE_BUFFER: usize = 256 << 10;
/// What a slow wire lets wait, microseconds.
pub const QUEUE: u64 = 200_000;

/// How a wire behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// One way, microseconds.
    pub delay: u64,
    /// Added at random, up to this; order is kept.
    pub jitter: u64,
    /// Chance of each, in parts per million.
    pub loss: u32,
    /// The datagram comes twice.
    pub duplicate: u32,
    /// The datagram is held back by up to 20 ms while others pass.
    pub reorder: u32,
    /// A bit is turned.
    pub corrupt: u32,
    /// Longer datagrams vanish.
    pub hole_over: Option<usize>,
    /// Bytes per second that get through, 0 for all; what would wait longer than
    /// [`QUEUE`] is dropped.
    pub rate: u64,
    /// Added to the delay of everything, microseconds.
    pub spike: u64,
    /// Everything vanishes.
    pub cut: bool,
}

impl Wire {
    /// A good cable.
    #[must_use]
    pub const fn good(delay: u64) -> Self {
        Self {
            delay,
            jitter: 0,
            loss: 0,
            duplicate: 0,
            reorder: 0,
            corrupt: 0,
            hole_over: None,
            rate: 0,
            spike: 0,
            cut: false,
        }
    }

    /// Nothing is lost here.
    #[must_use]
    pub const fn works(&self) -> bool {
        !self.cut
            && self.hole_over.is_none()
            && self.rate == 0
            && self.spike == 0
            && self.loss + self.corrupt <= 20_000
    }

    /// Order may change, or single datagrams be missing.
    #[must_use]
    pub const fn is_disorderly(&self) -> bool {
        self.loss + self.corrupt + self.reorder != 0 || self.rate != 0
    }
}

#[derive(Debug)]
struct Line {
    wire: Wire,
    last_arrival: u64,
    /// A slow wire is busy until then.
    busy_until: u64,
    /// Large frames; sessions.
    streams: [Stream; 2],
}

/// Which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pipe {
    /// Frames too large for a datagram.
    Frames,
    /// Frames of sessions.
    Sessions,
}

/// One TCP connection's sending side.
#[derive(Debug, Default)]
struct Stream {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    stuck_since: Option<u64>,
    last_arrival: u64,
    /// Bytes that were put and have not arrived.
    under_way: usize,
}

/// What became of a frame given to TCP.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tcp {
    /// It arrives then.
    Arrives(u64),
    /// It waits; try the stream again then.
    Waits(u64),
    /// The buffer is full.
    Refused,
}

/// What a standing stream does when it tries again.
#[derive(Debug)]
pub(crate) enum Retry {
    /// It flows again: these frames arrive then.
    Flows(Vec<(u64, Bytes)>),
    /// It tries again then.
    Later(u64),
    /// The connection broke, and what waited is gone.
    Broke,
}

/// All wires.
#[derive(Debug)]
pub struct Net {
    lines: BTreeMap<(u8, u8), Line>,
}

impl Net {
    /// Good cables between all of `hosts`.
    #[must_use]
    pub fn new(hosts: u8, delay: u64) -> Self {
        let mut lines = BTreeMap::new();
        for from in 1..=hosts {
            for to in (1..=hosts).filter(|to| *to != from) {
                let line = Line {
                    wire: Wire::good(delay),
                    last_arrival: 0,
                    busy_until: 0,
                    streams: Default::default(),
                };
                lines.insert((from, to), line);
            }
        }
        Self { lines }
    }

    /// The wire from one host to another.
    #[must_use]
    pub fn wire(&self, from: u8, to: u8) -> Wire {
        self.lines.get(&(from, to)).map_or(Wire::good(0), |l| l.wire)
    }

    /// Changes the wire from one host to another.
    pub fn change(&mut self, from: u8, to: u8, change: impl FnOnce(&mut Wire)) {
        if let Some(line) = self.lines.get_mut(&(from, to)) {
            change(&mut line.wire);
        }
    }

    /// Sends a datagram: when it arrives, and as what (never, once or twice).
    pub(crate) fn send(
        &mut self,
        now: u64,
        (from, to): (u8, u8),
        bytes: Bytes,
        rng: &mut Rng,
        fired: &mut Fired,
        mut put: impl FnMut(u64, Bytes),
    ) {
        let back_cut = self.wire(to, from).cut;
        let Some(line) = self.lines.get_mut(&(from, to)) else { return };
        let wire = line.wire;
        if wire.cut {
            fired.count(if back_cut { Fault::FullCut } else { Fault::OneWayCut });
            return;
        }
        if wire.hole_over.is_some_and(|most| bytes.len() > most) {
            fired.count(Fault::MtuHole);
            return;
        }
        if rng.chance(wire.loss) {
            fired.count(Fault::Loss);
            return;
        }
        let mut arrival = now + wire.delay + wire.spike;
        if wire.spike > 0 {
            fired.count(Fault::Spike);
        }
        if let Some(takes) = (bytes.len() as u64 * 1_000_000).checked_div(wire.rate) {
            let waits = line.busy_until.saturating_sub(now);
            if waits > QUEUE {
                fired.count(Fault::Collapse);
                return;
            }
            line.busy_until = now + waits + takes;
            arrival += waits + takes;
        }
        if wire.jitter > 0 {
            arrival += rng.below(wire.jitter);
            fired.count(Fault::Jitter);
        }
        arrival = arrival.max(line.last_arrival);
        if rng.chance(wire.reorder) {
            fired.count(Fault::Reorder);
            arrival += rng.range(1_000, 20_000);
        } else {
            line.last_arrival = arrival;
        }
        let mut bytes = bytes;
        if rng.chance(wire.corrupt) {
            fired.count(Fault::Corrupt);
            let mut damaged = bytes.to_vec();
            let at = rng.index(damaged.len());
            damaged[at] ^= 1 << rng.below(8);
            bytes = damaged.into();
        }
        if rng.chance(wire.duplicate) {
            fired.count(Fault::Duplicate);
            put(arrival + rng.below(5_000), bytes.clone());
        }
        put(arrival, bytes);
    }

    fn passes(&self, from: u8, to: u8) -> bool {
        !self.wire(from, to).cut && !self.wire(to, from).cut
    }

    /// Puts a frame into the stream.
    pub(crate) fn stream(
        &mut self,
        now: u64,
        (from, to, pipe): (u8, u8, Pipe),
        frame: &Bytes,
        rng: &mut Rng,
        fired: &mut Fired,
    ) -> Tcp {
        let passes = self.passes(from, to);
        let Some(line) = self.lines.get_mut(&(from, to)) else { return Tcp::Refused };
        let stream = &mut line.streams[pipe as usize];
        stream.under_way += frame.len();
        if passes && stream.waiting.is_empty() {
            return Tcp::Arrives(line.flow(now, pipe, frame.len(), rng));
        }
        if stream.bytes + frame.len() > TCP_BUFFER {
            stream.under_way -= frame.len();
            return Tcp::Refused;
        }
        fired.count(Fault::TcpStall);
        stream.bytes += frame.len();
        stream.waiting.push_back(frame.clone());
        if stream.stuck_since.is_none() {
            stream.stuck_since = Some(now);
            return Tcp::Waits(now + TCP_RETRY);
        }
        Tcp::Waits(0)
    }

    /// A standing stream tries again.
    pub(crate) fn retry(
        &mut self,
        now: u64,
        (from, to, pipe): (u8, u8, Pipe),
        rng: &mut Rng,
        fired: &mut Fired,
    ) -> Retry {
        let passes = self.passes(from, to);
        let Some(line) = self.lines.get_mut(&(from, to)) else { return Retry::Broke };
        let stream = &mut line.streams[pipe as usize];
        let Some(since) = stream.stuck_since else { return Retry::Flows(Vec::new()) };
        if passes {
            let waiting = std::mem::take(&mut stream.waiting);
            stream.stuck_since = None;
            stream.bytes = 0;
            let out =
                waiting.into_iter().map(|f| (line.flow(now, pipe, f.len(), rng), f)).collect();
            return Retry::Flows(out);
        }
        if now.saturating_sub(since) > TCP_STUCK {
            fired.count(Fault::TcpBroken);
            *stream = Stream::default();
            return Retry::Broke;
        }
        Retry::Later(now + TCP_RETRY)
    }

    /// A host died: its connections are gone.
    pub(crate) fn reset(&mut self, host: u8) {
        for (ends, line) in &mut self.lines {
            if ends.0 == host || ends.1 == host {
                line.streams = Default::default();
            }
        }
    }

    /// A frame of sessions arrived; how many bytes the pipe takes now.
    pub(crate) fn room(&mut self, from: u8, to: u8, arrived: usize) -> usize {
        let Some(line) = self.lines.get_mut(&(from, to)) else { return 0 };
        let stream = &mut line.streams[Pipe::Sessions as usize];
        stream.under_way = stream.under_way.saturating_sub(arrived);
        PIPE_BUFFER.saturating_sub(stream.under_way)
    }
}

impl Line {
    /// When a frame put into a flowing stream arrives.
    fn flow(&mut self, now: u64, pipe: Pipe, length: usize, rng: &mut Rng) -> u64 {
        // A gigabit, and a retransmission for each segment lost on the way.
        let slow = (length as u64 * 1_000_000).checked_div(self.wire.rate).unwrap_or(0);
        let mut at = now + self.wire.delay * 2 + self.wire.spike + length as u64 / 125 + slow;
        if rng.chance(self.wire.loss.saturating_mul(4)) {
            at += 200_000;
        }
        let stream = &mut self.streams[pipe as usize];
        stream.last_arrival = stream.last_arrival.max(at);
        stream.last_arrival
    }
}
