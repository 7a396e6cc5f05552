//! A whole node: planes, volumes, the core, and the loop between them.
//!
//! ```text
//!   Daemon::start ── key, state directory, sockets, interface, volumes, beats ──> turn loop
//!   daemon.requests() ── status, ping, drill, reload, stop ──────────────────────────^
//! ```
//!
//! Many daemons may run in one process; nothing here is global. What an operator got wrong refuses
//! the start with a [`StartError`] that says what to do; what the world may still put right (a
//! device that is not there yet, no route to a peer) does not.

mod asks;
mod desk;
mod epoch;
mod error;
mod events;
mod hooks;
mod reload;
pub mod replicas;
pub mod request;
mod settings;
mod start;
mod status;
#[cfg(test)]
pub(crate) mod tests;
mod turn_loop;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub(crate) use crate::sys::secrets::keep_in_memory as keep_secrets;
pub use error::StartError;
pub use events::RecentEvents;
use request::Request;

pub use crate::planes::channel::{Application, ChannelDevice, SendError, channel};
use crate::{
    config::Config,
    planes::queue::{Bell, Queue},
    sessions::hub::Hub,
};

/// Bytes that sealing and framing add to a packet on the network.
const OVERHEAD: usize = failover::wire::OVERHEAD;

/// Requests waiting for the loop.
const REQUESTS_MAX: usize = 64;

/// Where packets of applications come from and go to.
#[derive(Debug)]
pub enum Attachment {
    /// The TUN device the configuration names.
    Tun,
    /// Nowhere: the daemon only keeps its links.
    None,
    /// A program in this process, see [`channel`].
    Channel(ChannelDevice),
}

/// A running node.
#[derive(Debug)]
pub struct Daemon {
    requests: RequestSender,
    thread: Option<JoinHandle<()>>,
    listen: Option<SocketAddr>,
    recent: RecentEvents,
    hub: Arc<Hub>,
}

impl Daemon {
    /// Starts a node. Blocks until it runs: a few milliseconds, longer when a volume does not
    /// answer.
    ///
    /// # Errors
    /// Says what is wrong, where, and what to do.
    pub fn start(config: Config, interface: Attachment) -> Result<Self, StartError> {
        start::start(config, interface)
    }

    /// Where to ask it things; clone it freely.
    #[must_use]
    pub fn requests(&self) -> RequestSender {
        self.requests.clone()
    }

    /// Where the network path listens: as configured, with the port that was free if that was 0.
    #[must_use]
    pub const fn listen(&self) -> Option<SocketAddr> {
        self.listen
    }

    /// Where sessions are asked for.
    pub(crate) fn hub(&self) -> Arc<Hub> {
        Arc::clone(&self.hub)
    }

    /// The last events, kept also after the daemon stopped.
    #[must_use]
    pub fn recent_events(&self) -> RecentEvents {
        self.recent.clone()
    }

    /// Says goodbye to peers and stops; false when that took longer than `deadline` and the loop
    /// was left behind. It takes 0.3 s for goodbyes, up to 1 s for volumes, up to 0.5 s for
    /// threads.
    pub fn stop(mut self, deadline: Duration) -> bool {
        let start = Instant::now();
        // Full: the loop is stuck, and the wait below says so.
        self.requests.send(Request::Stop);
        let Some(thread) = self.thread.take() else { return true };
        while !thread.is_finished() {
            if start.elapsed() >= deadline {
                tracing::error!(?deadline, "the turn loop did not end in time");
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        joined(thread)
    }

    /// Waits until it was stopped by a request; false when its loop ended by a panic.
    pub fn wait(mut self) -> bool {
        self.thread.take().is_none_or(joined)
    }
}

fn joined(thread: JoinHandle<()>) -> bool {
    let ended_well = thread.join().is_ok();
    if !ended_well {
        tracing::error!("the turn loop ended by a panic");
    }
    ended_well
}

impl Drop for Daemon {
    /// Asks it to stop and does not wait.
    fn drop(&mut self) {
        let _ = self.requests.try_send(Request::Stop);
    }
}

/// Asks a daemon things.
#[derive(Debug, Clone)]
pub struct RequestSender(Arc<RequestQueue>);

/// Why a request was not taken; it comes back.
#[derive(Debug)]
pub enum Refused {
    /// Too many wait; try again later.
    Full(Request),
    /// The daemon has stopped.
    Stopped(Request),
}

impl RequestSender {
    /// Hands a request over without waiting.
    ///
    /// # Errors
    /// When too many wait or the daemon has stopped.
    pub fn try_send(&self, request: Request) -> Result<(), Refused> {
        if self.0.stopped.load(Ordering::Acquire) {
            return Err(Refused::Stopped(request));
        }
        self.0.queue.push(request).map_err(Refused::Full)?;
        self.0.bell.ring();
        Ok(())
    }

    /// Hands a request over, waiting up to a second for room; false when the daemon has stopped
    /// or its loop is stuck.
    pub fn send(&self, request: Request) -> bool {
        let start = Instant::now();
        let mut request = request;
        loop {
            match self.try_send(request) {
                Ok(()) => return true,
                Err(Refused::Full(back)) if start.elapsed() < Duration::from_secs(1) => {
                    request = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return false,
            }
        }
    }
}

/// The requests of one daemon.
#[derive(Debug)]
struct RequestQueue {
    queue: Queue<Request>,
    stopped: AtomicBool,
    bell: Bell,
}

impl RequestQueue {
    fn take(&self, into: &mut VecDeque<Request>) {
        self.queue.take(into);
    }

    /// Whoever still waits for an answer learns that none will come.
    fn close(&self) {
        self.stopped.store(true, Ordering::Release);
        self.take(&mut VecDeque::new());
    }
}
