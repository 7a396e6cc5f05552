//! A virtual interface inside the process: what a TUN device is for the machine, this is for a
//! program that embeds the daemon, for `demo` and for tests. No root needed.
//!
//! Packets have the shape of the TUN device: ten bytes of `virtio_net_hdr` (all zero for a plain
//! packet), then the IP packet.
//!
//! Awkward cases: both directions are bounded. Toward the daemon a full queue refuses the packet
//! and says so; from the daemon a full queue drops the newest and counts it, like a device whose
//! reader sleeps: the loop must never wait for an application.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use super::{PACKET_BYTES_MAX, PACKET_HEADER, queue::Bell};

/// The application's end.
#[derive(Debug, Clone)]
pub struct Application(Arc<Shared>);

/// The daemon's end; goes into [`crate::daemon::Attachment::Channel`].
#[derive(Debug)]
pub struct ChannelDevice(Arc<Shared>);

/// Why a packet was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The daemon has not yet read the packets before; try again later.
    #[error("the queue toward the daemon is full")]
    Full,
    /// The daemon has stopped.
    #[error("the daemon has stopped")]
    Closed,
    /// Not a header of ten bytes and a packet of 1..=65535.
    #[error("a packet of {0} bytes, header included, cannot be")]
    Size(usize),
}

#[derive(Debug)]
struct Shared {
    capacity: usize,
    bell: Bell,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    to_daemon: VecDeque<Bytes>,
    to_application: VecDeque<Bytes>,
    overrun: u64,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pair of ends that holds up to `capacity` packets each way.
#[must_use]
pub fn channel(capacity: usize) -> (Application, ChannelDevice) {
    let shared = Arc::new(Shared {
        capacity: capacity.max(1),
        bell: Bell::default(),
        state: Mutex::default(),
        arrived: Condvar::new(),
    });
    (Application(Arc::clone(&shared)), ChannelDevice(shared))
}

impl Application {
    /// Sends a packet into the interface.
    ///
    /// # Errors
    /// When the queue is full, the daemon gone, or the size impossible.
    pub fn send(&self, packet: Bytes) -> Result<(), SendError> {
        if packet.len() <= PACKET_HEADER || packet.len() > PACKET_BYTES_MAX {
            return Err(SendError::Size(packet.len()));
        }
        let mut state = self.0.lock();
        if state.closed {
            return Err(SendError::Closed);
        }
        if state.to_daemon.len() >= self.0.capacity {
            return Err(SendError::Full);
        }
        state.to_daemon.push_back(packet);
        drop(state);
        self.0.bell.ring();
        Ok(())
    }

    /// The next packet from the interface; `None` when nothing came in time or the daemon stopped
    /// and everything was read.
    #[must_use]
    pub fn receive(&self, timeout: Duration) -> Option<Bytes> {
        let state = self.0.lock();
        let (mut state, _) = self
            .0
            .arrived
            .wait_timeout_while(state, timeout, |s| s.to_application.is_empty() && !s.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.to_application.pop_front()
    }

    /// Packets dropped because this end did not read.
    #[must_use]
    pub fn overrun(&self) -> u64 {
        self.0.lock().overrun
    }
}

impl ChannelDevice {
    /// The bell of the loop that owns this end.
    pub(crate) fn bell(&self) -> Bell {
        self.0.bell.clone()
    }

    /// Hands up to `limit` packets to `take`; true when more wait.
    pub(crate) fn read(&self, limit: usize, take: &mut dyn FnMut(&[u8])) -> bool {
        for _ in 0..limit {
            // One short lock per packet: the application is never held up by a whole batch.
            let Some(packet) = self.0.lock().to_daemon.pop_front() else { return false };
            take(&packet);
        }
        !self.0.lock().to_daemon.is_empty()
    }

    /// Hands packets to the application.
    pub(crate) fn write(&self, packets: &mut Vec<Bytes>) {
        if packets.is_empty() {
            return;
        }
        let mut state = self.0.lock();
        for packet in packets.drain(..) {
            if state.to_application.len() < self.0.capacity {
                state.to_application.push_back(packet);
            } else {
                state.overrun += 1;
            }
        }
        drop(state);
        self.0.arrived.notify_all();
    }
}

impl Drop for ChannelDevice {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(n: u8) -> Bytes {
        let mut bytes = vec![0; PACKET_HEADER];
        bytes.push(n);
        bytes.into()
    }

    #[test]
    fn packets_pass_both_ways_within_bounds() {
        let (application, device) = channel(2);
        assert_eq!(application.send(Bytes::from_static(b"short")), Err(SendError::Size(5)));
        assert_eq!(application.send(packet(1)), Ok(()));
        assert_eq!(application.send(packet(2)), Ok(()));
        assert_eq!(application.send(packet(3)), Err(SendError::Full));
        let mut seen = Vec::new();
        assert!(device.read(1, &mut |p| seen.push(p[10])));
        assert!(!device.read(9, &mut |p| seen.push(p[10])));
        assert_eq!(seen, [1, 2]);
        device.write(&mut vec![packet(4), packet(5), packet(6)]);
        assert_eq!(application.overrun(), 1);
        assert_eq!(application.receive(Duration::ZERO), Some(packet(4)));
        drop(device);
        assert_eq!(application.send(packet(7)), Err(SendError::Closed));
        assert_eq!(application.receive(Duration::from_secs(60)), Some(packet(5)));
        assert_eq!(application.receive(Duration::from_secs(60)), None, "closed, not late");
    }
}
