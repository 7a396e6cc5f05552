//! What `send`, `recv` and `forward` share: the daemon's endpoint, a runtime, progress, a summary.

use std::{
    future::Future,
    io,
    time::{Duration, Instant},
};

use failover::{Path, session::Preference};
use serde::Serialize;

use super::{Failure, Out, Outcome};
use crate::{
    config::quantity::show_size,
    sessions::{SessionError, Stats},
};

/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Which path a session prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Via {
    /// The network; storage while the network is down
    NetworkFirst,
    /// Storage; the network while storage is down
    StorageFirst,
    /// The network or nothing
    NetworkOnly,
    /// Storage or nothing
    StorageOnly,
}

impl From<Via> for Preference {
    fn from(via: Via) -> Self {
        match via {
            Via::NetworkFirst => Self::NetworkFirst,
            Via::StorageFirst => Self::StorageFirst,
            Via::NetworkOnly => Self::NetworkOnly,
            Via::StorageOnly => Self::StorageOnly,
        }
    }
}

/// Runs what awaits; Ctrl-C ends the process as it does any other.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start: {e}")))?
        .block_on(work)
}

/// A session that could not be had, in words with a next step.
pub(super) fn failure(error: &SessionError) -> Failure {
    let words = error.to_string();
    match error {
        SessionError::NoSuchPeer(_) => {
            Failure::input(words).hint("`sidepath peers` lists them; this node itself is none")
        }
        SessionError::ServiceTaken(_) => {
            Failure::failed(words).hint("end the other program, or choose another name")
        }
        SessionError::Reserved(_) => Failure::input(words).hint("choose another name"),
        SessionError::MayNotOrder(_) => {
            Failure::failed(words).hint("run it as root, or as the user the daemon runs as")
        }
        SessionError::Refused { reason: crate::sessions::Refusal::NoSuchService, .. } => {
            Failure::failed(words).hint("start the receiving program first: sidepath recv SERVICE")
        }
        SessionError::Ended(crate::sessions::Ending::TimedOut) => {
            Failure::failed(words).hint("`sidepath status` shows both paths and what ails them")
        }
        SessionError::Daemon(_) | SessionError::Stopped => {
            Failure::failed(words).hint("is the daemon running? `sidepath status` asks it")
        }
        _ => Failure::failed(words),
    }
}

/// An error of reading or writing a stream.
pub(super) fn io_failure(what: &str, error: &io::Error) -> Failure {
    match error.get_ref().and_then(|e| e.downcast_ref::<SessionError>()) {
        Some(session) => failure(session),
        None => Failure::failed(format!("{what}: {error}")),
    }
}

/// How far it is, on a terminal.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    shown: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), shown: None }
    }

    pub(super) fn show(&mut self, out: &Out, bytes: u64, path: Option<Path>) {
        if self.shown.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        let path = path_word(path);
        out.progress(&format!("{}, {}/s, {path}", show_size(bytes), show_size(self.rate(bytes))));
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for people")]
    fn rate(&self, bytes: u64) -> u64 {
        (bytes as f64 / self.started.elapsed().as_secs_f64().max(0.001)) as u64
    }

    pub(super) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// The path that carries something now.
pub(super) const fn path_word(path: Option<Path>) -> &'static str {
    match path {
        Some(Path::Network) => "network",
        Some(Path::Storage) => "storage",
        None => "no path is up: waiting",
    }
}

/// What is said at the end.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    pub(super) peer: &'a str,
    pub(super) service: &'a str,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// Bytes of the session by path; what was sent again counts again.
    pub(super) network_bytes: u64,
    pub(super) storage_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
}

impl Summary<'_> {
    pub(super) fn tell(&self, out: &mut Out, json: bool, stdout_is_data: bool) -> Outcome {
        out.progress_end();
        if json && stdout_is_data {
            let text = serde_json::to_string(self)
                .map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
            out.talk(text);
            return Ok(());
        }
        if json {
            return out.json(self, true);
        }
        out.talk(format!(
            "{} in {:.1} s; {} by network, {} by storage",
            show_size(self.bytes),
            self.seconds,
            show_size(self.network_bytes),
            show_size(self.storage_bytes)
        ));
        Ok(())
    }
}

/// Bytes by path of what we sent.
pub(super) const fn sent(stats: &Stats) -> (u64, u64) {
    (stats.sent_by.network, stats.sent_by.storage)
}

/// Bytes by path of what came.
pub(super) const fn came(stats: &Stats) -> (u64, u64) {
    (stats.received_by.network, stats.received_by.storage)
}
