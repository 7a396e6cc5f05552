//! How often a backup or a restore is tried, and how long.

use std::time::{Duration, Instant};

use super::{
    pair::PairError,
    send::{News, Watch},
};
use crate::sessions::{Ending, SessionError};

/// Between two tries.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Somebody else's backup of that name may be the end of our own that was killed.
const BUSY_WITHIN: Duration = Duration::from_secs(5);

/// How often something was tried, and how long it may be.
#[derive(Debug)]
pub(super) struct Tries {
    pub(super) count: u32,
    within: Duration,
    /// A path that is missing from the beginning is waited for, too.
    waits: bool,
    /// When this try was answered.
    answered: Option<Instant>,
    /// Whether the other side was there, and whether it ever did what we asked for.
    met: bool,
    ever: bool,
    /// Since when it fails without getting on.
    failing: Option<Instant>,
    wait: Duration,
}

impl Tries {
    pub(super) fn new(within: Duration, waits: bool) -> Self {
        let (answered, failing) = (None, None);
        let (met, ever, wait) = (false, false, RETRY_FIRST);
        Self { count: 0, within, waits, answered, met, ever, failing, wait }
    }

    /// The other side is there.
    pub(super) fn met(&mut self) {
        self.met = true;
    }

    /// The other side does what we ask for. That alone is no progress: else what always fails a
    /// little later would be tried for ever.
    pub(super) fn answered(&mut self) {
        (self.answered, self.ever) = (Some(Instant::now()), true);
    }

    /// Something came to its place for good.
    pub(super) fn got_on(&mut self) {
        (self.failing, self.wait) = (None, RETRY_FIRST);
    }

    /// Whether we ever did.
    pub(super) const fn is_through(&self) -> bool {
        self.ever
    }

    /// Waits before the next try, or gives up with this error.
    pub(super) async fn again(
        &mut self,
        error: PairError,
        watch: Watch<'_>,
    ) -> Result<(), PairError> {
        let within = match &error {
            PairError::Said(_) if !self.ever => self.within.min(BUSY_WITHIN),
            PairError::Session(SessionError::Ended(Ending::TimedOut)) if self.waits => self.within,
            // What was wrong from the beginning is for a person.
            _ if !self.met => Duration::ZERO,
            _ => self.within,
        };
        // A long try did something, be it that it read what the store has already.
        if self.answered.take().is_some_and(|at| at.elapsed() >= self.within) {
            self.got_on();
        }
        let since = *self.failing.get_or_insert_with(Instant::now);
        if !error.passes() || since.elapsed() >= within {
            return Err(error);
        }
        watch(News::Again(&error));
        self.count += 1;
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(RETRY_MAX);
        Ok(())
    }
}
