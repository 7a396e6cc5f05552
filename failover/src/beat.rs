//! The pulse: small sealed datagrams on a schedule of their own.
//!
//! A nurse who takes a pulse must not be the one who carries the stretchers. Beats are sent and
//! opened by a [`Pulse`] of its own, which the hands drive from a thread with real-time priority,
//! while the node may be busy with a million packets. The two talk by messages: the node gives
//! [`BeatOrder`]s (keys, addresses, intervals), the pulse reports each [`Heard`] beat with the
//! moment it came off the wire. The pulse judges nobody; that is `health`.
//!
//! A beat says when the next is due, what its sender last heard from the receiver by each path,
//! and how far its node's turn loop has come, so that a live pulse cannot hide a stuck daemon.
//!
//! Awkward cases: after a re-key both keys of the peer open beats until the node drops the old
//! one; a beat number is never reused under a key, also not across [`BeatOrder::Keys`], because a
//! generation starts a key of its own; a replayed beat is older than the newest and is refused.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;

use crate::{NodeId, Path, Time, path::Route, secure::FrameKey, wire};

/// Content of a beat, also carried by storage as a pulse frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Sender's clock when it was sealed.
    pub sent_at: Time,
    /// How long until the next, at the latest.
    pub next_due: Duration,
    /// How long ago the sender's turn loop last ended a turn.
    pub loop_age: Duration,
    /// The newest beat the sender heard from us by the network.
    pub heard_network: Option<Echo>,
    /// Our newest sign of life the sender saw in storage.
    pub heard_storage: Option<Echo>,
    /// The route the sender's packets to us take.
    pub route: Route,
    /// The sender is about to stop.
    pub goodbye: bool,
    /// The sender drills this path to us.
    pub drill: Option<Path>,
}

/// What somebody last heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The `sent_at` of what was heard (hearer does not interpret it), or the counter of a storage
    /// beat.
    pub stamp: u64,
    /// How long before this beat was sealed it was heard.
    pub age: Duration,
}

/// A beat that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// From whom.
    pub peer: NodeId,
    /// When it came off the wire, by our clock.
    pub at: Time,
    /// Which one.
    pub number: u64,
    /// What it said.
    pub beat: Beat,
}

/// What the node tells the pulse.
#[derive(Debug, Clone)]
pub enum BeatOrder {
    /// Beat toward a peer from now on, or with new settings.
    Target {
        /// The peer.
        peer: NodeId,
        /// Where to; empty while nothing is known.
        endpoints: Vec<SocketAddr>,
        /// How often.
        interval: Duration,
    },
    /// Keys of a generation. Sending switches to them at once; the keys before stay for opening.
    Keys {
        /// The peer.
        peer: NodeId,
        /// Which generation.
        generation: u32,
        /// Ours.
        seal: FrameKey,
        /// Theirs.
        open: FrameKey,
    },
    /// What to say in the next beats.
    Say {
        /// The peer.
        peer: NodeId,
        /// Our newest sight of it in storage: stamp and when.
        heard_storage: Option<(u64, Time)>,
        /// Our route to it.
        route: Route,
        /// A drill of ours.
        drill: Option<Path>,
        /// We are about to stop.
        goodbye: bool,
    },
    /// Send one now, besides the schedule.
    Now {
        /// The peer.
        peer: NodeId,
    },
    /// Neither send to nor hear a peer (a drill), or do again.
    Mute {
        /// The peer.
        peer: NodeId,
        /// On or off.
        mute: bool,
    },
    /// Forget a peer.
    Remove {
        /// The peer.
        peer: NodeId,
    },
}

/// Sends and opens beats. Drive it from one thread: give it orders and datagrams as they come,
/// call [`Pulse::send`] when [`Pulse::next`] is due.
#[derive(Debug)]
pub struct Pulse {
    #[allow(dead_code)]
    id: NodeId,
    #[allow(dead_code)]
    peers: BTreeMap<NodeId, ()>,
}

impl Pulse {
    /// A pulse that beats toward nobody yet.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        let _ = wire::FIRST_BYTE_BEAT;
        Self { id, peers: BTreeMap::new() }
    }

    /// Takes an order of the node.
    pub fn order(&mut self, _now: Time, _order: BeatOrder) {}

    /// Opens a datagram that came at `now`; `None` unless it is a fresh, authentic beat.
    pub fn open(&mut self, _now: Time, _bytes: &[u8]) -> Option<Heard> {
        None
    }

    /// Hands every beat that is due to `put`; `loop_age` is how long ago the turn loop last ended
    /// a turn.
    pub fn send(
        &mut self,
        _now: Time,
        _loop_age: Duration,
        _put: &mut dyn FnMut(NodeId, SocketAddr, Bytes),
    ) {
    }

    /// When the next beat is due.
    #[must_use]
    pub fn next(&self) -> Time {
        Time::NEVER
    }
}
