//! Sessions as frames: which paths they may take now, what is sealed and put, what was opened.

use std::time::Duration;

use bytes::Bytes;

use super::Peer;
use crate::{
    Output, Path, Ring, Route, Time, World,
    canary::{Bug, planted},
    health::Verdict,
    session::{Carried, Ending, SessionEvent, SessionId, SessionOrder},
    wire::{Channel, FRAME_MAX, HEADER, TAG, control::Control},
};

/// Bytes of a frame's body at most.
const BODY_MAX: usize = 64 << 10;
const _: () = assert!(HEADER + BODY_MAX + TAG <= FRAME_MAX);
/// Bytes the pipe is handed before its plane said how many it takes: the first frame makes the
/// connection.
pub(super) const ROOM_AT_FIRST: usize = 128 << 10;
/// Time the network's carrier is given before its frames are sent again: its plane tells of broken
/// connections itself, and sooner.
const NETWORK_PATIENCE: Duration = Duration::from_secs(2);
const STORAGE_PATIENCE_MIN: Duration = Duration::from_millis(500);
/// For so long after a frame of sessions came by storage more are expected.
const BULK: Duration = Duration::from_millis(100);
/// While sessions use storage although the network is up, the peer's reader is kept awake.
const KNOCK_EVERY: Duration = Duration::from_secs(1);

impl Peer {
    /// An application wants something of its session.
    pub(crate) fn session(&mut self, now: Time, order: SessionOrder, world: &mut dyn World) {
        self.touch();
        self.pipe.order(now, order);
        self.tell_sessions(world);
    }

    /// How many bytes an application may write.
    pub(crate) fn session_room(&self, id: SessionId) -> usize {
        self.pipe.room(id)
    }

    /// The path that carries a session.
    pub(crate) fn session_path(&self, id: SessionId) -> Option<Path> {
        self.pipe.path(id)
    }

    /// A frame of sessions was opened.
    pub(super) fn stream(
        &mut self,
        now: Time,
        path: Path,
        number: u64,
        body: &Bytes,
        world: &mut dyn World,
    ) -> Result<(), &'static str> {
        self.busy_until = now + super::BUSY;
        if path == Path::Storage {
            self.wake_storage(now);
            self.bulk_until = now + BULK;
        }
        let (Carried { delay, .. }, read) = self.pipe.handle(now, path, number, body);
        if let Some(delay) = delay {
            self.storage_window.measured(delay);
        }
        self.tell_sessions(world);
        read
    }

    /// The plane takes so many bytes for the pipe.
    pub(super) const fn pipe_takes(&mut self, bytes: usize) {
        self.pipe_room = bytes;
    }

    /// What the plane was given for the pipe is gone.
    pub(super) fn pipe_broke(&mut self, now: Time) {
        self.pipe.broken(now, Path::Network);
    }

    /// The paths sessions may take. A path under suspicion is better than none.
    fn stream_paths(&self) -> [bool; 2] {
        if self.keyring.current().is_none() || self.speech.goodbye {
            return [false; 2];
        }
        let network = self.path.route().uses(Path::Network);
        let storage = match self.seen.storage_out.0 {
            Verdict::Up => true,
            Verdict::Suspect => !network,
            _ => false,
        };
        [network, storage]
    }

    /// Everything sessions have to send by the paths there are.
    pub(super) fn streams(&mut self, now: Time, world: &mut dyn World) {
        if self.network.said_goodbye() && !self.pipe.is_empty() {
            self.pipe.stop(Ending::PeerStopped);
        }
        let storage = self.storage.latency().unwrap_or_default() * 8;
        let patience = [NETWORK_PATIENCE, storage.max(STORAGE_PATIENCE_MIN)];
        let usable = self.stream_paths();
        self.pipe.paths(now, usable, patience);
        self.pipe.tick(now, self.outbox_empty);
        if usable[0] {
            while self.pipe_room >= BODY_MAX {
                let Some(frame) = self.stream_frame(now, Path::Network, BODY_MAX) else { break };
                self.pipe_room = self.pipe_room.saturating_sub(frame.len());
                self.counters.network_bytes += frame.len() as u64;
                if !self.is_cut(Path::Network) {
                    world.put(Output::Pipe { peer: self.id(), frame });
                }
            }
        }
        if usable[1] {
            let mut stored = false;
            while self.storage_has_room() {
                let Some(frame) = self.stream_frame(now, Path::Storage, BODY_MAX) else { break };
                self.put(Path::Storage, Ring::Data, frame, world);
                stored = true;
            }
            if stored {
                self.keep_storage_awake(now, world);
            }
        }
        self.tell_sessions(world);
    }

    fn storage_has_room(&self) -> bool {
        let packets = self.datagram.tx.in_flight(Path::Storage);
        self.pipe.in_flight(Path::Storage) + packets < self.storage_window.bytes()
    }

    fn keep_storage_awake(&mut self, now: Time, world: &mut dyn World) {
        if !self.path.route().uses(Path::Network) {
            // Otherwise receipts come by the network, and nothing is to be read.
            self.wake_storage(now);
        }
        if self.path.route() == Route::Network && now >= self.knock_at {
            self.knock_at = now + KNOCK_EVERY;
            if let Some(knock) = self.control_frame(&Control::Knock) {
                self.put(Path::Network, Ring::Express, knock, world);
            }
        }
    }

    fn stream_frame(&mut self, now: Time, path: Path, room: usize) -> Option<Bytes> {
        let number = self.stream_next;
        let after = number.checked_add(1)?;
        let mut frame = self.pipe.poll(now, path, number, room)?;
        let (generation, key) = self.keyring.seal()?;
        // A number names a nonce: none is used twice, also not after the last one.
        self.stream_next = after;
        frame.reserve_exact(TAG);
        let ends = (self.us.get(), self.id().get());
        key.seal(Channel::Stream, ends, generation, number, &mut frame);
        Some(frame.into())
    }

    /// Hands on what applications are to be told.
    pub(super) fn tell_sessions(&mut self, world: &mut dyn World) {
        let peer = self.id();
        while let Some(event) = self.pipe.event() {
            world.put(Output::Session { peer, event });
        }
    }

    /// Sessions end because the peer's daemon is another one. What the pipe takes is unchanged by
    /// that: the plane tells what is news to it, and would not tell it again.
    pub(super) fn end_sessions(&mut self, world: &mut dyn World) {
        if !planted(Bug::SessionSurvives) {
            self.pipe.end_all(Ending::PeerRestarted);
        }
        self.tell_sessions(world);
    }

    /// An order for a peer that is not there.
    pub(crate) fn nobody(order: &SessionOrder) -> Option<SessionEvent> {
        let SessionOrder::Open { token, .. } = order else { return None };
        let reason = crate::session::NotOpened::NoSuchPeer;
        Some(SessionEvent::NotOpened { token: *token, reason })
    }
}
