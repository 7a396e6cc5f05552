//! One connection (or pair) per URL in a process, and one attempt at a time to make it.
//!
//! ```text
//!   flusher, reader, keeper -> Connector -> slot of the URL -> live? it : connecting? wait : connect
//! ```
//!
//! Awkward cases: nobody holds a connection but those who use it, so the last one who lets go closes
//! it; who comes while an attempt runs gets its result, also when it failed, instead of trying again
//! behind it; after a failure there is a pause, in which the failure is the answer; what is found
//! after a reconnect must be as large as what was there before.

use super::pair::{self, Pair};
use super::{BlockDevice, NbdDevice, NbdError, NbdUrl, Options};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

const PAUSE_MIN: Duration = Duration::from_millis(20);
/// A server that returns is found within this time; an attempt costs a refused connection.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// A server that refused a second connection is not asked again for so long.
const SINGLE_FOR: Duration = Duration::from_secs(60);

type Key = (NbdUrl, Options);

static SLOTS: Mutex<BTreeMap<Key, Arc<Slot>>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pair: Weak<Pair>,
    connecting: bool,
    failed: Option<Failure>,
    single_until: Option<Instant>,
}

#[derive(Debug)]
struct Failure {
    error: NbdError,
    pause: Duration,
    until: Instant,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pair(&self, (url, o): &Key) -> Result<Arc<Pair>, NbdError> {
        let mut state = self.lock();
        if state.connecting {
            let patience = 2 * o.connect_deadline + PAUSE_MAX;
            let waited = self.changed.wait_timeout_while(state, patience, |s| s.connecting);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.connecting {
                let waited_ms = patience.as_millis();
                return Err(NbdError::Silent { at: url.to_string(), waited_ms });
            }
        }
        if let Some(pair) = state.pair.upgrade().filter(|pair| !pair.has_ended()) {
            return Ok(pair);
        }
        let pause = match &state.failed {
            Some(f) if Instant::now() < f.until => return Err(f.error.clone()),
            Some(f) => (f.pause * 2).min(PAUSE_MAX),
            None => PAUSE_MIN,
        };
        let single = state.single_until.is_some_and(|until| Instant::now() < until);
        state.connecting = true;
        drop(state);
        let made = pair::connect(url, o, single).map(Arc::new);
        let mut state = self.lock();
        state.connecting = false;
        match &made {
            Ok(pair) => {
                state.pair = Arc::downgrade(pair);
                state.failed = None;
                if pair.was_refused() {
                    state.single_until = Some(Instant::now() + SINGLE_FOR);
                }
            }
            Err(e) => {
                let until = Instant::now() + pause;
                state.failed = Some(Failure { error: e.clone(), pause, until });
            }
        }
        drop(state);
        self.changed.notify_all();
        made
    }

    fn is_idle(&self) -> bool {
        let state = self.lock();
        let paused = state.failed.as_ref().is_some_and(|f| Instant::now() < f.until);
        !state.connecting && !paused && state.pair.strong_count() == 0
    }
}

fn slot(key: &Key) -> Arc<Slot> {
    let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    slots.retain(|k, slot| k == key || Arc::strong_count(slot) > 1 || !slot.is_idle());
    slots.entry(key.clone()).or_default().clone()
}

/// Opens one export again and again, and notices when it is no longer what it was.
#[derive(Debug)]
pub struct Connector {
    key: Key,
    /// Size and block at first.
    seen: Mutex<Option<(u64, u32)>>,
}

impl Connector {
    #[must_use]
    pub fn new(url: NbdUrl, o: Options) -> Self {
        Self { key: (url, o), seen: Mutex::new(None) }
    }

    pub fn open(&self) -> Result<NbdDevice, NbdError> {
        let pair = slot(&self.key).pair(&self.key)?;
        let device = NbdDevice { pair, write: self.key.1.write };
        let is = (device.size(), device.logical_block());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let was = *seen.get_or_insert(is);
        if was == is {
            return Ok(device);
        }
        let what = if was.0 == is.0 {
            format!("its blocks had {} bytes and have {}", was.1, is.1)
        } else {
            format!("it had {} bytes and has {}", was.0, is.0)
        };
        Err(NbdError::Changed { at: self.key.0.to_string(), what })
    }
}
