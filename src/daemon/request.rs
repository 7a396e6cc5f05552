//! What the control socket (or a program that embeds the daemon) may ask of a running daemon.
//!
//! Every request carries the sender of its answer; the loop never waits for a receiver, and a
//! receiver that has gone away is no error.

use std::{sync::mpsc::Sender, time::Duration};

use failover::{Cut, NodeId, Path, Via};

use super::replicas::RoundReply;
use crate::{admin::document::Document, config::Config};

/// One request.
#[derive(Debug)]
pub enum Request {
    /// The whole document of `status --json`.
    Status {
        /// Gets it.
        reply: Sender<Box<Document>>,
    },
    /// One probe.
    Ping {
        /// To whom.
        peer: NodeId,
        /// By which path.
        via: Via,
        /// Gets one answer, or none when the probe is lost.
        reply: Sender<PingAnswer>,
    },
    /// Cut a path to a peer for a while, live.
    Drill {
        /// With whom.
        peer: NodeId,
        /// Which path.
        cut: Cut,
        /// For how long; zero ends a running drill.
        length: Duration,
        /// Also when the other path is bad.
        force: bool,
        /// Gets `Ok` when it started and, later, once more when it ended; `Err` with the reason
        /// when it was refused. A front end whose client goes away sends a zero length: the loop
        /// cannot see that a receiver was dropped until it has something to say.
        reply: Sender<Result<DrillStep, String>>,
    },
    /// Take over a changed configuration, whole or not at all.
    Reload {
        /// Already checked.
        config: Box<Config>,
        /// Gets what changed, one line each, or why it cannot be applied.
        reply: Sender<Result<Vec<String>, String>>,
    },
    /// A round of a replica that is filled on command.
    Replicate {
        /// Its place, as the document shows it; none when there is only one.
        to: Option<String>,
        /// Gets the replica at the round's end, or why there is none.
        reply: RoundReply,
    },
    /// Say goodbye and stop.
    Stop,
}

/// How far a drill is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillStep {
    /// The path is cut.
    Started,
    /// It is healed again.
    Ended,
}

/// The answer to a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PingAnswer {
    /// It came back.
    Reply {
        /// How the request travelled.
        out: Path,
        /// How the answer travelled.
        back: Path,
        /// From request to answer.
        round_trip: Duration,
    },
    /// It could not be sent.
    Refused(String),
}
