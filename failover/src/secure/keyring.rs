//! The keys of one peer: the one we seal with, the ones that still open.
//!
//! A responder's new keys wait until something opened under them; only then are they used for
//! sealing, so that replaying an old handshake message changes nothing. Keys of an older
//! incarnation go the moment a newer one proved itself. Older keys of the same incarnation go
//! [`Keyring::retire`]d, once no frame sealed under them can be alive any more.

use std::time::Duration;

use super::{Agreed, FrameKey};
use crate::{Time, wire::Header};

/// Keys of one peer. At most one unconfirmed and two confirmed sets.
#[derive(Debug, Default)]
pub struct Keyring {
    /// Seals, and opens.
    current: Option<Held>,
    /// Opens what was sealed before the last re-key.
    previous: Option<Agreed>,
    /// Opens, and becomes current when it has.
    waiting: Option<Agreed>,
}

#[derive(Debug)]
struct Held {
    keys: Agreed,
    since: Time,
    /// Frames sealed: keys are renewed long before nonces run out.
    frames: u64,
}

/// A frame that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Length of the body behind the header.
    pub body: usize,
    /// The frame proved waiting keys: they are current from now on.
    pub confirmed: bool,
}

impl Keyring {
    /// Adds keys. Unconfirmed ones wait for proof and replace others that wait.
    pub fn add(&mut self, now: Time, keys: Agreed) {
        if keys.confirmed {
            self.promote(now, keys);
        } else {
            self.waiting = Some(keys);
        }
    }

    fn promote(&mut self, now: Time, mut keys: Agreed) {
        keys.confirmed = true;
        let epoch = keys.peer_epoch;
        let before = self.current.replace(Held { keys, since: now, frames: 0 });
        self.previous = before.map(|h| h.keys).filter(|k| k.peer_epoch == epoch);
        self.waiting = None;
    }

    /// The keys to seal with.
    #[must_use]
    pub fn current(&self) -> Option<&Agreed> {
        self.current.as_ref().map(|h| &h.keys)
    }

    /// Keys exist that may still be proved.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// The key to seal the next frame with, and its name.
    pub fn seal(&mut self) -> Option<(u32, FrameKey)> {
        let held = self.current.as_mut()?;
        held.frames += 1;
        Some((held.keys.generation, held.keys.seal.clone()))
    }

    /// Whether the current keys are older than `age` or sealed more than `frames` frames.
    #[must_use]
    pub fn worn(&self, now: Time, age: Duration, frames: u64) -> bool {
        self.current.as_ref().is_some_and(|h| now.since(h.since) > age || h.frames > frames)
    }

    /// Opens a frame in place. `None`: no key of ours fits, or the bytes are not what was sealed.
    pub fn open(&mut self, now: Time, header: &Header, frame: &mut [u8]) -> Option<Opened> {
        let current = self.current.as_ref().map(|h| &h.keys);
        let keys = [current, self.previous.as_ref(), self.waiting.as_ref()]
            .into_iter()
            .flatten()
            .find(|k| k.generation == header.generation)?;
        let body = keys.open.open(header, frame)?;
        Some(Opened { body, confirmed: self.prove(now, header.generation) })
    }

    /// Whether keys of that name exist here.
    #[must_use]
    pub fn knows(&self, generation: u32) -> bool {
        let current = self.current.as_ref().map(|h| &h.keys);
        [current, self.previous.as_ref(), self.waiting.as_ref()]
            .into_iter()
            .flatten()
            .any(|k| k.generation == generation)
    }

    /// Something opened under this generation. True when that proved waiting keys.
    pub fn prove(&mut self, now: Time, generation: u32) -> bool {
        match self.waiting.take_if(|k| k.generation == generation) {
            Some(keys) => {
                self.promote(now, keys);
                true
            }
            None => false,
        }
    }

    /// Forgets the keys before the current ones when those are older than `life`, the longest time
    /// a frame lives. True when there were some.
    pub fn retire(&mut self, now: Time, life: Duration) -> bool {
        self.current.as_ref().is_some_and(|h| now.since(h.since) > life)
            && self.previous.take().is_some()
    }

    /// Forgets everything: the peer is gone.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
