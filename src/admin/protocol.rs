//! What is said over the control socket: one JSON object per line.
//!
//! A client writes a [`Question`], the daemon answers with one [`Answer`] (a drill with two: one
//! when it starts, one when it ends). A connection may carry any number of questions, one after
//! the other. Both sides name the version; a daemon refuses one it does not know in words.

use failover::{Cut, Path, Via};
use serde::{Deserialize, Serialize};

use super::document::{Document, Replica};

/// Of this protocol.
pub const VERSION: u32 = 1;

/// A question is far shorter; a line that is longer is none.
pub const QUESTION_BYTES_MAX: usize = 4096;

/// One line from a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Question {
    /// Of the protocol.
    pub version: u32,
    /// What is asked.
    #[serde(flatten)]
    pub verb: Verb,
}

impl Question {
    /// What a line asks, or why that is nothing that can be answered.
    pub(super) fn read(line: &str) -> Result<Verb, Answer> {
        let refused = |message: String, hint: Option<&str>| Answer::Refused {
            message,
            hint: hint.map(Into::into),
            input: true,
        };
        match serde_json::from_str::<Self>(line) {
            Err(e) => Err(refused(format!("not a question of this protocol: {e}"), None)),
            Ok(question) if question.version != VERSION => Err(refused(
                format!(
                    "this daemon speaks version {VERSION} of the control protocol, not {}",
                    question.version
                ),
                Some("use the sidepath program of the same release"),
            )),
            Ok(question) => Ok(question.verb),
        }
    }

    /// The line that asks, with its end.
    pub(crate) fn line(verb: Verb) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&Self { version: VERSION, verb })?;
        line.push(b'\n');
        Ok(line)
    }
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// The whole document.
    Status,
    /// One probe.
    Ping {
        /// Id of the peer.
        peer: u8,
        /// By which path.
        via: Via,
        /// How long to wait for the answer.
        timeout_ms: u64,
    },
    /// Cut a path for a while; ends when this connection does.
    Drill {
        /// Id of the peer.
        peer: u8,
        /// Which path.
        cut: Cut,
        /// For how long.
        length_us: u64,
        /// Also when the other path is bad.
        force: bool,
    },
    /// Read the configuration again.
    Reload,
    /// A round of a replica that is filled on command; answered at its end.
    Replicate {
        /// Its place, as status shows it; none when there is only one.
        #[serde(default)]
        to: Option<String>,
    },
}

impl Verb {
    /// Whether it only looks.
    #[must_use]
    pub const fn only_reads(&self) -> bool {
        matches!(self, Self::Status | Self::Ping { .. })
    }
}

/// One line from the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// Of the protocol.
    pub version: u32,
    /// What it answers.
    #[serde(flatten)]
    pub answer: Answer,
}

impl Reply {
    /// The line that answers, with its end.
    pub(super) fn line(answer: Answer) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&Self { version: VERSION, answer })?;
        line.push(b'\n');
        Ok(line)
    }
}

/// What can be answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To `status`.
    Status {
        /// All of it.
        document: Box<Document>,
    },
    /// A probe came back.
    Pong {
        /// How the request travelled.
        out: Path,
        /// How the answer travelled.
        back: Path,
        /// From request to answer.
        round_trip_us: u64,
    },
    /// A probe did not come back in time.
    Lost,
    /// The path is cut.
    DrillStarted,
    /// The path is healed.
    DrillEnded,
    /// The configuration was taken over.
    Reloaded {
        /// What changed, one line each.
        changes: Vec<String>,
    },
    /// A round of a replica has ended.
    Replicated {
        /// As it stands now.
        replica: Box<Replica>,
    },
    /// It was not done.
    Refused {
        /// Why.
        message: String,
        /// What to do.
        hint: Option<String>,
        /// The fault is in what was asked or configured (exit code 2), not in the doing (1).
        input: bool,
    },
}

impl Answer {
    /// It was not done, and this is why.
    #[must_use]
    pub fn refused(message: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), hint: None, input: false }
    }
}
