//! The copies of `[[replicate]]`: started, looked after, and stopped.
//!
//! ```text
//!   loop ── entries, rounds on command, stop ──> sidepath-copies ── start, stop ──> replicator
//!   loop <── status, at once ─────────────────── the same handles <── sp-copy threads
//! ```
//!
//! A copy's threads are ordinary ones and its start and end may take a while, so a thread of our
//! own does both; the loop only reads statuses, which wait for no medium.
//!
//! Awkward cases:
//! * A medium that is not there yet is waited for. What an operator must correct refuses the start
//!   when it shows at once; later (also after a reload) it is logged, stands in the status, and is
//!   tried again every few seconds, so that correcting it is enough.
//! * A copy that is begun anew starts its counters at zero; ours never go back.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use volumes::{
    CopyError, CopyOptions, CopyState, CopyStatus, Notice, Pace, replicate, replicator::Handle,
};

use super::StartError;
use crate::{
    admin::document,
    config::{ReplicaMode, ReplicateConfig},
    sys::clock,
};

/// Troubles that pass sooner are not told.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long a start waits for what only the media can tell.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const STOP_WITHIN: Duration = Duration::from_millis(500);

/// What a round on command came to.
pub type RoundReply = Sender<Result<document::Replica, RoundRefused>>;

/// Why there was no round, or not a whole one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundRefused {
    /// For people.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The fault is in what was asked, not in the copying.
    pub input: bool,
}

impl RoundRefused {
    fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, input: false }
    }

    fn input(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { message: message.into(), hint, input: true }
    }
}

#[derive(Debug)]
pub(super) struct Replicas {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    single_host: bool,
    orders: Mutex<Orders>,
    changed: Condvar,
    copies: Mutex<Vec<Copy>>,
}

#[derive(Debug)]
struct Orders {
    wanted: Vec<ReplicateConfig>,
    rounds: Vec<(Option<String>, RoundReply)>,
    stop: bool,
}

#[derive(Debug)]
struct Copy {
    config: ReplicateConfig,
    handle: Option<Handle>,
    /// Of the copies before this one: records, bytes, missing, rounds.
    before: [u64; 4],
    /// It could not even be begun.
    refused: Option<String>,
    begun: Instant,
    /// A trouble that was told and is not over.
    told: bool,
    waiting: Vec<RoundReply>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replicas {
    /// Starts every entry that copies by itself.
    pub(super) fn start(
        entries: &[ReplicateConfig],
        single_host: bool,
    ) -> Result<Self, StartError> {
        let copies: Vec<Copy> = entries.iter().map(|e| Copy::start(e, single_host)).collect();
        let until = Instant::now() + FIRST_LOOK;
        while copies.iter().any(Copy::is_looking) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        for copy in &copies {
            if let Some(error) = copy.ended_badly().filter(|e| e.is_input_error()) {
                return Err(StartError::Replica { to: copy.config.to.label(), error });
            }
        }
        let orders = Orders { wanted: entries.to_vec(), rounds: Vec::new(), stop: false };
        let shared = Arc::new(Shared {
            single_host,
            orders: Mutex::new(orders),
            changed: Condvar::new(),
            copies: Mutex::new(copies),
        });
        let tended = shared.clone();
        let thread = std::thread::Builder::new()
            .name("sidepath-copies".into())
            .spawn(move || tended.tend())
            .map_err(|source| StartError::System { what: "the thread of copies", source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes over changed entries: what is gone is stopped, what is new started, what changed both.
    pub(super) fn set(&self, entries: &[ReplicateConfig]) {
        locked(&self.shared.orders).wanted = entries.to_vec();
        self.shared.changed.notify_all();
    }

    /// A round of an entry that waits for commands (the only one when none is named); the answer
    /// comes at its end.
    pub(super) fn round(&self, to: Option<String>, reply: RoundReply) {
        locked(&self.shared.orders).rounds.push((to, reply));
        self.shared.changed.notify_all();
    }

    pub(super) fn status(&self) -> Vec<document::Replica> {
        locked(&self.shared.copies).iter().map(Copy::document).collect()
    }

    /// Orders the end; the thread is through within about half a second.
    pub(super) fn stop(&mut self) -> Option<JoinHandle<()>> {
        locked(&self.shared.orders).stop = true;
        self.shared.changed.notify_all();
        self.thread.take()
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

impl Shared {
    fn tend(&self) {
        loop {
            let (wanted, rounds) = {
                let mut orders = locked(&self.orders);
                if !orders.stop && orders.rounds.is_empty() {
                    let waited = self.changed.wait_timeout(orders, LOOK_EVERY);
                    orders = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                if orders.stop {
                    break;
                }
                (orders.wanted.clone(), std::mem::take(&mut orders.rounds))
            };
            self.fit(&wanted);
            for (to, reply) in rounds {
                self.begin_round(to.as_deref(), reply);
            }
            for copy in locked(&self.copies).iter_mut() {
                copy.look(self.single_host);
            }
        }
        let copies = std::mem::take(&mut *locked(&self.copies));
        stop(copies);
    }

    /// What runs becomes what is wanted, in that order.
    fn fit(&self, wanted: &[ReplicateConfig]) {
        if locked(&self.copies).iter().map(|c| &c.config).eq(wanted) {
            return;
        }
        let (mut keep, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut *locked(&self.copies))
            .into_iter()
            .partition(|copy| wanted.contains(&copy.config));
        // A changed entry locks the same medium: the old copy ends before the new one begins.
        stop(gone);
        let mut fitted = Vec::with_capacity(wanted.len());
        for config in wanted {
            let known = keep.iter().position(|copy| copy.config == *config);
            fitted.push(
                known.map_or_else(
                    || Copy::start(config, self.single_host),
                    |at| keep.swap_remove(at),
                ),
            );
        }
        *locked(&self.copies) = fitted;
    }

    fn begin_round(&self, to: Option<&str>, reply: RoundReply) {
        let mut copies = locked(&self.copies);
        let meant = chosen(copies.iter().map(|copy| &copy.config), to);
        let copy = match meant.map(|at| copies.get_mut(at)) {
            Ok(Some(copy)) => copy,
            Ok(None) => return,
            Err(refused) => return drop(reply.send(Err(refused))),
        };
        if copy.handle.is_none() {
            copy.begin(Pace::Once, self.single_host);
        }
        copy.waiting.push(reply);
    }
}

/// Which entry a command means.
fn chosen<'a>(
    entries: impl Iterator<Item = &'a ReplicateConfig>,
    to: Option<&str>,
) -> Result<usize, RoundRefused> {
    let entries: Vec<(String, ReplicaMode)> =
        entries.map(|entry| (entry.to.to_string(), entry.mode)).collect();
    let on_command = |(_, mode): &(String, ReplicaMode)| *mode == ReplicaMode::OnCommand;
    let waiting: Vec<&str> =
        entries.iter().filter(|e| on_command(e)).map(|(to, _)| to.as_str()).collect();
    match (to, waiting.len()) {
        (Some(to), _) => match entries.iter().position(|(place, _)| place == to) {
            Some(at) if on_command(&entries[at]) => Ok(at),
            Some(at) => Err(RoundRefused::input(
                format!("{to} is copied by itself, in mode {}", entries[at].1.word()),
                None,
            )),
            None => {
                let known: Vec<&str> = entries.iter().map(|(to, _)| to.as_str()).collect();
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                Err(RoundRefused::input(
                    format!("no [[replicate]] has `to` {to}; there are: {known}"),
                    None,
                ))
            }
        },
        (None, 1) => entries.iter().position(on_command).ok_or_else(none_waits),
        (None, 0) => Err(none_waits()),
        (None, _) => Err(RoundRefused::input(
            "several replicas are filled on command",
            Some(format!("say which: {}", waiting.join(", "))),
        )),
    }
}

fn none_waits() -> RoundRefused {
    let hint = "write mode = \"on-command\" into a [[replicate]], and reload";
    RoundRefused::input("no replica is filled on command", Some(hint.into()))
}

/// Within one bound for all of them together.
fn stop(copies: Vec<Copy>) {
    let until = Instant::now() + STOP_WITHIN;
    for copy in copies {
        for reply in copy.waiting {
            let _ = reply.send(Err(RoundRefused::failed("the copy was stopped")));
        }
        let Some(handle) = copy.handle else { continue };
        if !handle.stop(until.saturating_duration_since(Instant::now())) {
            let to = copy.config.to;
            tracing::warn!(%to, "a thread of a copy is stuck in the kernel and was left behind");
        }
    }
}

impl Copy {
    fn start(config: &ReplicateConfig, single_host: bool) -> Self {
        let mut copy = Self {
            config: config.clone(),
            handle: None,
            before: [0; 4],
            refused: None,
            begun: Instant::now(),
            told: false,
            waiting: Vec::new(),
        };
        match config.mode {
            ReplicaMode::Continuous => copy.begin(Pace::Follow, single_host),
            ReplicaMode::Interval(every) => {
                copy.begin(Pace::Every(failover::micros(every)), single_host);
            }
            ReplicaMode::OnCommand => {}
        }
        copy
    }

    fn begin(&mut self, pace: Pace, single_host: bool) {
        if let Some(old) = self.handle.take() {
            self.before = self.totals(&old.status());
        }
        let config = &self.config;
        let options = CopyOptions {
            bytes_per_s: config.limit,
            single_host,
            // Somebody waits for a round on command, and is told at once.
            wait_for_media: pace != Pace::Once,
            ..CopyOptions::new(&config.from, &config.to, pace)
        };
        let to = config.to.to_string();
        let sink = Arc::new(move |notice| tell(&to, &notice));
        self.begun = Instant::now();
        match replicate(options, Arc::new(|| clock::now().micros()), sink) {
            Ok(handle) => (self.handle, self.refused) = (Some(handle), None),
            Err(error) => self.refused = Some(error.to_string()),
        }
    }

    fn ended_badly(&self) -> Option<Arc<CopyError>> {
        self.handle.as_ref()?.ended()?.err()
    }

    /// It may still be refused at once.
    fn is_looking(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| {
            let status = handle.status();
            status.state == CopyState::Starting && status.reason.is_none() && status.uuid.is_none()
        })
    }

    fn totals(&self, status: &CopyStatus) -> [u64; 4] {
        let c = &status.counters;
        let now = [c.records, c.bytes, c.missing, c.rounds];
        std::array::from_fn(|i| self.before[i].saturating_add(now[i]))
    }

    /// Tells of troubles once, and begins anew what ended.
    fn look(&mut self, single_host: bool) {
        if self.config.mode == ReplicaMode::OnCommand {
            return self.look_at_round();
        }
        let shown = self.document();
        let to = shown.to;
        match shown.reason {
            Some(reason) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(to, state = shown.state, reason, "the replica is not copied");
                }
            }
            // Between two attempts a copy looks for a moment: the trouble is not over yet.
            None if shown.state == CopyState::Starting.word() => {}
            None => {
                if std::mem::take(&mut self.told) {
                    tracing::info!(to, state = shown.state, "the replica is copied again");
                }
            }
        }
        let ended = self.handle.as_ref().is_none_or(|handle| handle.ended().is_some());
        if ended && self.begun.elapsed() >= AGAIN_AFTER {
            let pace = match self.config.mode {
                ReplicaMode::Interval(every) => Pace::Every(failover::micros(every)),
                _ => Pace::Follow,
            };
            self.begin(pace, single_host);
        }
    }

    fn look_at_round(&mut self) {
        let Some(end) = self.handle.as_ref().and_then(Handle::ended) else { return };
        let document = self.document();
        if let Some(handle) = self.handle.take() {
            self.before = self.totals(&handle.status());
        }
        self.refused = end.as_ref().err().map(ToString::to_string);
        for reply in self.waiting.drain(..) {
            let refused = |error: &Arc<CopyError>| RoundRefused::failed(error.to_string());
            let end = end.as_ref().map(|()| document.clone()).map_err(refused);
            let _ = reply.send(end);
        }
    }

    fn document(&self) -> document::Replica {
        let mut shown = document::Replica {
            from: self.config.from.to_string(),
            to: self.config.to.to_string(),
            mode: self.config.mode.word().into(),
            state: match self.refused {
                Some(_) => CopyState::Refused,
                None => CopyState::Resting,
            }
            .word()
            .into(),
            reason: self.refused.clone(),
            ..document::Replica::default()
        };
        [shown.records, shown.bytes, shown.missing, shown.rounds] = self.before;
        let Some(handle) = &self.handle else { return shown };
        let status = handle.status();
        [shown.records, shown.bytes, shown.missing, shown.rounds] = self.totals(&status);
        shown.state = status.state.word().into();
        shown.reason = status.reason;
        shown.name = status.name;
        shown.nodes = status.nodes;
        shown.lag_records = status.lag_records;
        shown.lag_bytes = status.lag_bytes;
        shown.lag_ms = status.lag_ms;
        shown.making = status.making;
        shown
    }
}

/// Troubles are told by [`Copy::look`].
fn tell(replica: &str, notice: &Notice) {
    match notice {
        Notice::Begun { node, resumed, .. } => {
            tracing::info!(replica, node, resumed, "copying the records of a node");
        }
        Notice::Missing { from, to, first, last, .. } => tracing::warn!(
            replica,
            from,
            to,
            first,
            last,
            "records were overwritten before they could be copied; their writer sends them again"
        ),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(to: &str, mode: ReplicaMode) -> ReplicateConfig {
        let place = |path: &str| volumes::media::Location::Path(path.into());
        ReplicateConfig { from: place("original"), to: place(to), mode, limit: None }
    }

    #[test]
    fn a_command_means_one_entry_that_waits_for_it() {
        let a = entry("a", ReplicaMode::OnCommand);
        let b = entry("b", ReplicaMode::Continuous);
        let c = entry("c", ReplicaMode::OnCommand);
        let meant = |entries: &[&ReplicateConfig], to| chosen(entries.iter().copied(), to);
        assert_eq!(meant(&[&b, &a], None), Ok(1));
        assert_eq!(meant(&[&a, &b, &c], Some("c")), Ok(2));
        for (entries, to, words) in [
            (&[&a, &b, &c][..], None, "several replicas"),
            (&[&b][..], None, "no replica is filled on command"),
            (&[&a, &b][..], Some("b"), "in mode continuous"),
            (&[&a, &b][..], Some("original"), "there are: a, b"),
            (&[][..], Some("a"), "there are: none"),
        ] {
            let refused = meant(entries, to).unwrap_err();
            assert!(refused.input && refused.message.contains(words), "{refused:?}");
        }
        let refused = meant(&[&a, &c], None).unwrap_err();
        assert_eq!(refused.hint.as_deref(), Some("say which: a, c"));
    }
}
