//! Where sessions begin.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use failover::session::{Ending, Preference};

use super::{
    Listener, SessionError, Stream,
    hub::{self, Hub},
    listener,
    port::Port,
    remote::{self, RemoteListener},
    stream::Teller,
};
use crate::{
    config::Config,
    daemon::{Attachment, Daemon, StartError},
};

/// How long a node that is dropped may take for its goodbyes.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Times a session is asked for again because the peer's daemon turned out to be another one.
const RESTARTS: usize = 3;

/// A node, as programs use it for sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Endpoint(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Local { hub: Arc<Hub>, _own: Option<Arc<Own>> },
    Remote(PathBuf),
}

/// A node that lives as long as its endpoints.
#[derive(Debug)]
struct Own(Option<Daemon>);

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(daemon) = self.0.take() {
            daemon.stop(STOP_WITHIN);
        }
    }
}

impl Endpoint {
    /// Starts a node in this process; it stops when the last clone is dropped (which may take a
    /// second). Blocks for some milliseconds.
    ///
    /// # Errors
    /// Says what is wrong with the configuration, or in the way.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let daemon = Daemon::start(config, Attachment::None)?;
        let hub = daemon.hub();
        Ok(Self(Kind::Local { hub, _own: Some(Arc::new(Own(Some(daemon)))) }))
    }

    /// The node of a daemon in this process.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        Self(Kind::Local { hub: daemon.hub(), _own: None })
    }

    /// A daemon on this machine, by its control socket. Nothing is connected yet.
    #[must_use]
    pub fn open(control_socket: &Path) -> Self {
        Self(Kind::Remote(control_socket.to_owned()))
    }

    /// A session with a service of a peer (by name or id), once the destination accepted it.
    ///
    /// # Cancel safety
    /// Dropping the future gives the session up.
    ///
    /// # Errors
    /// When it was refused, when no path to the peer came up in time, and the like.
    pub async fn connect(
        &self,
        peer: &str,
        service: &str,
        preference: Preference,
    ) -> Result<Stream, SessionError> {
        let hub = match &self.0 {
            Kind::Local { hub, .. } => hub,
            Kind::Remote(socket) => {
                return remote::connect(socket, peer, service, preference).await;
            }
        };
        let (id, name) = hub.peer(peer)?;
        let mut restarts = 0;
        loop {
            let port = Arc::new(Port::new(id, name.clone(), service.to_owned()));
            hub.open(&port, preference)?;
            let stream = Stream::new(Teller::Loop(Arc::clone(hub)), Arc::clone(&port));
            let attempt = Attempt(Some(stream));
            match port.opened().await {
                Ok(()) => return Ok(attempt.made()),
                // Asked of the incarnation before: nothing was said yet, so ask the new one.
                Err(SessionError::Ended(Ending::PeerRestarted)) if restarts < RESTARTS => {
                    restarts += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Listens for a service (1 to 255 bytes) on this node. Names that begin with `sidepath.` are
    /// the daemons' own.
    ///
    /// # Errors
    /// When somebody listens for it already, the name is not for programs, or the node has stopped.
    pub async fn listen(&self, service: &str) -> Result<Listener, SessionError> {
        if hub::is_own(service) {
            return Err(SessionError::Reserved(service.to_owned()));
        }
        self.listen_as_daemon(service).await
    }

    /// Listens for a service of the daemon's own.
    pub(crate) async fn listen_as_daemon(&self, service: &str) -> Result<Listener, SessionError> {
        Ok(Listener(match &self.0 {
            Kind::Local { hub, .. } => {
                let (hub, service) = (Arc::clone(hub), hub.listen(service)?);
                listener::Kind::Local { hub, service }
            }
            Kind::Remote(socket) => {
                listener::Kind::Remote(RemoteListener::new(socket, service).await?)
            }
        }))
    }
}

/// A session that was not accepted yet: given up when dropped.
struct Attempt(Option<Stream>);

impl Attempt {
    fn made(mut self) -> Stream {
        match self.0.take() {
            Some(stream) => stream,
            None => unreachable!("an attempt holds its stream until it is made"),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            stream.reset();
        }
    }
}
