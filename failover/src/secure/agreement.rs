//! Agreeing on keys with one peer: Noise `KK`, two messages, over whichever path answers.
//!
//! Both know the other's static key beforehand, so the first message already proves its sender.
//! The lower id initiates. The higher one, when it has no keys, asks by a *hello*. Every message
//! carries a code under the pair's static secret, so that strangers cannot make anybody work; the
//! code covers the clear header, so what the header says of epochs may be believed as far as the
//! sender is. Epochs travel inside the Noise payloads, too, and are part of the transcript.
//!
//! ```text
//!   lower id (initiator)                      higher id (responder)
//!        |          <- hello(epoch) --             |   only while it has no keys
//!        |  -- init(key name, epoch, time) ->      |   newer than any init seen, else ignored
//!        |  <- response(epoch) --                  |   keys exist, but wait
//!   sends under the new keys                       |
//!        |  -- any frame under them ->             |   now it does, too, and forgets old ones
//! ```
//!
//! The awkward cases. A replayed init makes the responder answer, and nothing else: the replayer
//! cannot produce a frame under the keys, and an init that is not newer than the newest of its
//! epoch is refused by the clock in its clear part, before any work is done. A repeated init (the
//! answer was lost) gets the same answer again. A response to an init we have given up on opens
//! nothing. An older epoch than one we agreed with is refused: a cloned or rolled-back machine
//! must not take over. A replayed hello makes us renew keys, and never more often than an
//! unanswered init would be repeated.

use std::{fmt, time::Duration};

use aws_lc_rs::hmac;
use bytes::Bytes;
use snow::{Builder, HandshakeState, params::NoiseParams};
use zeroize::Zeroizing;

use super::{
    FrameKey,
    primitives::{Primitives, bury, shared},
};
use crate::{
    NodeId, Time, World,
    wire::{
        Channel, HEADER, Header,
        hello::{CODE, CONTENT, Handshake, Kind},
        u32_at, u64_at,
    },
};

const PATTERN: &str = "Noise_KK_25519_AESGCM_SHA256";
/// Key name, epoch, time, format version.
const INIT_PAYLOAD: usize = 4 + 8 + 8 + 1;
/// Epoch, format version.
const RESPONSE_PAYLOAD: usize = 8 + 1;
/// The initiator's clock in front of the first Noise message.
const CLOCK: usize = 8;
/// An init without an answer is given up after this.
const INIT_LIFE: Duration = Duration::from_secs(3);
/// Time between two sendings of an unanswered init or hello; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Keys both ends have now.
#[derive(Debug, Clone)]
pub struct Agreed {
    /// Their name in frame headers.
    pub generation: u32,
    /// The peer's incarnation.
    pub peer_epoch: u64,
    /// Seals our frames.
    pub seal: FrameKey,
    /// Opens theirs.
    pub open: FrameKey,
    /// Seals our beats.
    pub beat_seal: FrameKey,
    /// Opens theirs.
    pub beat_open: FrameKey,
    /// The peer has proved that it has them (we got its response, or a frame).
    pub confirmed: bool,
}

/// Why a handshake message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeRefused {
    /// Does not parse, or comes from the wrong side.
    Malformed,
    /// Not made with the key we expect of that peer.
    Forged,
    /// Already seen, or older than one seen.
    Replayed,
    /// Of an incarnation older than one we agreed with.
    OldIncarnation,
}

impl HandshakeRefused {
    /// The cause as counters name it.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Malformed => "handshake_malformed",
            Self::Forged => "handshake_forged",
            Self::Replayed => "handshake_replayed",
            Self::OldIncarnation => "old_incarnation",
        }
    }
}

/// The handshakes with one peer.
pub struct Agreement {
    us: NodeId,
    peer: NodeId,
    epoch: u64,
    /// Boxed: what is moved leaves its old bytes behind.
    private_key: Box<Zeroizing<[u8; 32]>>,
    public_key: [u8; 32],
    /// Of the codes; both sides have the same.
    code_key: hmac::Key,
    prologue: Vec<u8>,
    plaintext: bool,
    /// Greatest epoch of the peer that proved itself.
    peer_epoch: u64,
    /// Initiator: what we sent and wait for.
    pending: Option<Pending>,
    /// Responder: newest init answered, and the answer.
    answered: Option<Answered>,
    /// When the last hello or init went out.
    sent_at: Option<Time>,
    /// When the next hello or init may go out, and the step after it.
    retry_at: Time,
    retry_step: Duration,
}

struct Pending {
    noise: Box<HandshakeState>,
    generation: u32,
    message: Bytes,
    started: Time,
}

struct Answered {
    epoch: u64,
    time: u64,
    init: Bytes,
    response: Bytes,
}

impl fmt::Debug for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agreement")
            .field("peer", &self.peer)
            .field("peer_epoch", &self.peer_epoch)
            .field("pending", &self.pending.is_some())
            .finish_non_exhaustive()
    }
}

impl Agreement {
    /// Nothing agreed yet. `None` when the peer's public key is no usable key.
    pub fn new(
        (us, peer): (NodeId, NodeId),
        epoch: u64,
        private_key: &Zeroizing<[u8; 32]>,
        public_key: [u8; 32],
        group: &[u8],
        plaintext: bool,
    ) -> Option<Self> {
        if public_key == [0; 32] {
            return None;
        }
        let secret = shared(private_key, &public_key)?;
        let (low, high) = if us < peer { (us, peer) } else { (peer, us) };
        let mut prologue = b"sidepath handshake v1".to_vec();
        prologue.extend_from_slice(&(group.len() as u64).to_le_bytes());
        prologue.extend_from_slice(group);
        prologue.extend_from_slice(&[low.get(), high.get()]);
        // Room for all of it beforehand: a vector that grows leaves its old bytes behind.
        let mut code_secret = Zeroizing::new(Vec::with_capacity(secret.len() + prologue.len()));
        code_secret.extend_from_slice(&secret[..]);
        code_secret.extend_from_slice(&prologue);
        Some(Self {
            us,
            peer,
            epoch,
            private_key: Box::new(private_key.clone()),
            public_key,
            code_key: hmac::Key::new(hmac::HMAC_SHA256, &code_secret),
            prologue,
            plaintext,
            peer_epoch: 0,
            pending: None,
            answered: None,
            sent_at: None,
            retry_at: Time::ZERO,
            retry_step: RETRY_FIRST,
        })
    }

    /// As after [`Self::new`], without the multiplications on the curve that cost most of it.
    pub(crate) fn forget(&mut self) {
        self.peer_epoch = 0;
        self.pending = None;
        self.answered = None;
        self.sent_at = None;
        self.retry_at = Time::ZERO;
        self.retry_step = RETRY_FIRST;
    }

    /// Whether this side sends the first Noise message.
    #[must_use]
    pub fn initiates(&self) -> bool {
        self.us < self.peer
    }

    /// The newest incarnation that proved itself; zero before the first.
    #[must_use]
    pub const fn peer_epoch(&self) -> u64 {
        self.peer_epoch
    }

    /// When [`Self::poll`] has something to do, if keys are wanted.
    #[must_use]
    pub const fn next(&self) -> Time {
        self.retry_at
    }

    /// The message to send now, while keys are wanted: an init, the same again, or a hello.
    pub fn poll(&mut self, now: Time, world: &mut dyn World) -> Option<Bytes> {
        if now < self.retry_at {
            return None;
        }
        self.sent_at = Some(now);
        self.retry_at = now + self.retry_step;
        self.retry_step = (self.retry_step * 2).min(RETRY_MAX);
        if !self.initiates() {
            return Some(self.hello());
        }
        if self.pending.as_ref().is_none_or(|p| now.since(p.started) > INIT_LIFE) {
            self.start(now, world);
        }
        self.pending.as_ref().map(|p| p.message.clone())
    }

    /// Asks for keys at once and from the start, because the peer seems to have none.
    pub fn restart(&mut self, now: Time) {
        if self.pending.is_none() {
            let soonest = self.sent_at.map_or(now, |at| now.max(at + RETRY_FIRST));
            self.retry_at = self.retry_at.min(soonest);
            self.retry_step = RETRY_FIRST;
        }
    }

    fn hello(&self) -> Bytes {
        self.message(0, Kind::Hello, &[])
    }

    /// The code of a message whose header and body are these; the place of the code is left out.
    fn code(&self, header: &[u8], kind: Kind, content: &[u8]) -> [u8; CODE] {
        let mut context = hmac::Context::with_key(&self.code_key);
        context.update(header);
        context.update(&[kind as u8]);
        context.update(content);
        let mut code = [0; CODE];
        code.copy_from_slice(&context.sign().as_ref()[..CODE]);
        code
    }

    fn message(&self, generation: u32, kind: Kind, content: &[u8]) -> Bytes {
        let mut bytes = vec![0; HEADER + CONTENT];
        bytes.extend_from_slice(content);
        Header {
            channel: Channel::Handshake,
            from: self.us.get(),
            to: self.peer.get(),
            generation,
            number: self.epoch,
            length: u32::try_from(CONTENT + content.len()).unwrap_or(u32::MAX),
        }
        .write(&mut bytes);
        let code = self.code(&bytes[..HEADER], kind, content);
        bytes[HEADER] = kind as u8;
        bytes[HEADER + 1..HEADER + CONTENT].copy_from_slice(&code);
        bytes.into()
    }

    fn noise(&self, initiator: bool, world: &mut dyn World) -> Option<HandshakeState> {
        let mut seed = Zeroizing::new([0; 32]);
        world.random(&mut seed[..]);
        self.state(initiator, &self.private_key, seed)
    }

    /// A handshake that knows nothing, to overwrite one that did.
    fn blank(&self) -> Option<HandshakeState> {
        self.state(true, &[1; 32], Zeroizing::new([0; 32]))
    }

    fn state(
        &self,
        initiator: bool,
        private_key: &[u8; 32],
        seed: Zeroizing<[u8; 32]>,
    ) -> Option<HandshakeState> {
        let params: NoiseParams = PATTERN.parse().ok()?;
        let builder = Builder::with_resolver(params, Box::new(Primitives { seed }))
            .local_private_key(private_key)
            .and_then(|b| b.remote_public_key(&self.public_key))
            .and_then(|b| b.prologue(&self.prologue))
            .ok()?;
        if initiator { builder.build_initiator() } else { builder.build_responder() }.ok()
    }

    fn start(&mut self, now: Time, world: &mut dyn World) {
        self.pending = None;
        let mut name = [0; 4];
        world.random(&mut name);
        let generation = u32::from_le_bytes(name) | 1;
        let Some(mut noise) = self.noise(true, world) else { return };
        let mut payload = [0; INIT_PAYLOAD];
        payload[..4].copy_from_slice(&generation.to_le_bytes());
        payload[4..12].copy_from_slice(&self.epoch.to_le_bytes());
        payload[12..20].copy_from_slice(&now.micros().to_le_bytes());
        payload[20] = crate::wire::VERSION;
        let mut out = [0; 256];
        out[..CLOCK].copy_from_slice(&now.micros().to_le_bytes());
        let Ok(length) = noise.write_message(&payload, &mut out[CLOCK..]) else { return };
        let message = self.message(generation, Kind::Init, &out[..CLOCK + length]);
        self.pending = Some(Pending { noise: Box::new(noise), generation, message, started: now });
    }

    /// Takes a handshake message of this peer. Returns keys, when it completed an agreement, and
    /// an answer, when it wants one.
    pub fn receive(
        &mut self,
        now: Time,
        header: &Header,
        handshake: Handshake<'_>,
        world: &mut dyn World,
    ) -> Result<(Option<Agreed>, Option<Bytes>), HandshakeRefused> {
        let mut clear = [0; HEADER];
        header.write(&mut clear);
        let Handshake { kind, code, content } = handshake;
        if !constant_time_eq(&self.code(&clear, kind, content), code) {
            return Err(HandshakeRefused::Forged);
        }
        if header.number < self.peer_epoch {
            return Err(HandshakeRefused::OldIncarnation);
        }
        match kind {
            Kind::Hello => self.on_hello(now).map(|()| (None, None)),
            Kind::Init => self.on_init(header, content, world),
            Kind::Response => self.on_response(now, header, content).map(|k| (k, None)),
        }
    }

    fn on_hello(&mut self, now: Time) -> Result<(), HandshakeRefused> {
        if !self.initiates() {
            return Err(HandshakeRefused::Malformed);
        }
        self.restart(now);
        Ok(())
    }

    fn on_init(
        &mut self,
        header: &Header,
        message: &[u8],
        world: &mut dyn World,
    ) -> Result<(Option<Agreed>, Option<Bytes>), HandshakeRefused> {
        if self.initiates() {
            return Err(HandshakeRefused::Malformed);
        }
        if let Some(answered) = &self.answered
            && answered.init == message
        {
            return Ok((None, Some(answered.response.clone())));
        }
        let (clock, noise_message) =
            message.split_first_chunk().ok_or(HandshakeRefused::Malformed)?;
        let time = u64::from_le_bytes(*clock);
        if self.answered.as_ref().is_some_and(|a| (header.number, time) <= (a.epoch, a.time)) {
            return Err(HandshakeRefused::Replayed);
        }
        let mut noise = Box::new(self.noise(false, world).ok_or(HandshakeRefused::Forged)?);
        let mut payload = [0; 128];
        let length = noise
            .read_message(noise_message, &mut payload)
            .map_err(|_| HandshakeRefused::Forged)?;
        if length != INIT_PAYLOAD || payload[20] != crate::wire::VERSION {
            return Err(HandshakeRefused::Malformed);
        }
        let generation = u32_at(&payload, 0);
        let epoch = u64_at(&payload, 4);
        let clear = (header.generation, header.number, time);
        if (generation, epoch, u64_at(&payload, 12)) != clear {
            return Err(HandshakeRefused::Forged);
        }
        let mut answer = [0; RESPONSE_PAYLOAD];
        answer[..8].copy_from_slice(&self.epoch.to_le_bytes());
        answer[8] = crate::wire::VERSION;
        let mut out = [0; 256];
        let length =
            noise.write_message(&answer, &mut out).map_err(|_| HandshakeRefused::Forged)?;
        let response = self.message(generation, Kind::Response, &out[..length]);
        self.answered = Some(Answered {
            epoch,
            time,
            init: Bytes::copy_from_slice(message),
            response: response.clone(),
        });
        let keys = self.agreed(&mut noise, generation, epoch, false);
        bury(&mut noise, self.blank());
        Ok((Some(keys), Some(response)))
    }

    fn on_response(
        &mut self,
        now: Time,
        header: &Header,
        message: &[u8],
    ) -> Result<Option<Agreed>, HandshakeRefused> {
        let Some(mut pending) = self.pending.take() else {
            return Err(HandshakeRefused::Replayed);
        };
        let mut payload = [0; 128];
        let read = if pending.generation == header.generation {
            pending.noise.read_message(message, &mut payload)
        } else {
            self.pending = Some(pending);
            return Err(HandshakeRefused::Replayed);
        };
        let Ok(length) = read else {
            // A failed read leaves snow's state unusable. Only the peer itself gets that far,
            // because of the code: it made us start over, which costs one exchange.
            self.retry_at = self.retry_at.min(now + RETRY_FIRST);
            return Err(HandshakeRefused::Forged);
        };
        let epoch = u64_at(&payload, 0);
        if length != RESPONSE_PAYLOAD || payload[8] != crate::wire::VERSION {
            return Err(HandshakeRefused::Malformed);
        }
        if epoch < self.peer_epoch {
            return Err(HandshakeRefused::OldIncarnation);
        }
        self.confirm(epoch);
        let keys = self.agreed(&mut pending.noise, pending.generation, epoch, true);
        bury(&mut pending.noise, self.blank());
        Ok(Some(keys))
    }

    /// The peer proved this incarnation: older ones are refused from now on.
    pub fn confirm(&mut self, epoch: u64) {
        self.peer_epoch = self.peer_epoch.max(epoch);
        self.retry_step = RETRY_FIRST;
    }

    fn agreed(
        &self,
        noise: &mut HandshakeState,
        generation: u32,
        peer_epoch: u64,
        confirmed: bool,
    ) -> Agreed {
        let (first, second) = noise.dangerously_get_raw_split();
        let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
        let (ours, theirs) = if self.initiates() { (first, second) } else { (second, first) };
        let key = |half: &[u8; 32], label: &[u8]| {
            if self.plaintext { FrameKey::plaintext() } else { FrameKey::derive(half, label) }
        };
        Agreed {
            generation,
            peer_epoch,
            seal: key(&ours, b"frames"),
            open: key(&theirs, b"frames"),
            beat_seal: key(&ours, b"beats"),
            beat_open: key(&theirs, b"beats"),
            confirmed,
        }
    }
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}
