//! Accepting sessions.

use std::{future::poll_fn, sync::Arc};

use failover::session::Preference;

use super::{
    SessionError, Stream,
    hub::{Hub, Service},
    port::Port,
    remote::RemoteListener,
    stream::Teller,
};

/// Waits for sessions of one service. Dropping it ends the service; sessions that were accepted
/// live on, those that were not are refused.
#[derive(Debug)]
pub struct Listener(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    Local { hub: Arc<Hub>, service: Arc<Service> },
    Remote(RemoteListener),
}

impl Listener {
    /// The name of the service.
    #[must_use]
    pub fn service(&self) -> &str {
        match &self.0 {
            Kind::Local { service, .. } => &service.name,
            Kind::Remote(remote) => remote.service(),
        }
    }

    /// The next session, accepted.
    ///
    /// # Cancel safety
    /// A session whose future is dropped stays for the next call. (Through a daemon's socket, one
    /// that arrives in that very moment may be reset.)
    ///
    /// # Errors
    /// When the node has stopped.
    pub async fn accept(&self) -> Result<Stream, SessionError> {
        match &self.0 {
            Kind::Local { .. } => Ok(self.offered().await?.accept()),
            Kind::Remote(remote) => remote.accept().await,
        }
    }

    /// The next session, to be accepted or refused. Through a daemon's socket it is accepted
    /// already.
    ///
    /// # Errors
    /// When the node has stopped.
    pub async fn incoming(&self) -> Result<Incoming, SessionError> {
        match &self.0 {
            Kind::Local { .. } => self.offered().await,
            Kind::Remote(remote) => Ok(Incoming(Offer::Remote(remote.accept().await?))),
        }
    }

    async fn offered(&self) -> Result<Incoming, SessionError> {
        let Kind::Local { hub, service } = &self.0 else { return Err(SessionError::Stopped) };
        loop {
            let (port, preference) = poll_fn(|cx| service.poll(cx.waker())).await?;
            // Its opener may have given it up while it waited.
            if port.lock().error.is_none() {
                let hub = Arc::clone(hub);
                return Ok(Incoming(Offer::Local { hub, port, preference, answered: false }));
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Local { hub, service } = &self.0 {
            for (port, _) in service.drain() {
                let mut state = port.lock();
                state.refuse = Some("the listener is gone".to_owned());
                hub.tell(&port, state);
            }
        }
    }
}

/// A session that is offered. Dropping it refuses it.
#[derive(Debug)]
pub struct Incoming(Offer);

#[derive(Debug)]
enum Offer {
    Local { hub: Arc<Hub>, port: Arc<Port>, preference: Preference, answered: bool },
    Remote(Stream),
    Gone,
}

impl Incoming {
    /// Who offers it.
    #[must_use]
    pub fn peer(&self) -> &str {
        match &self.0 {
            Offer::Local { port, .. } => &port.peer_name,
            Offer::Remote(stream) => stream.peer(),
            Offer::Gone => "",
        }
    }

    /// For which service.
    #[must_use]
    pub fn service(&self) -> &str {
        match &self.0 {
            Offer::Local { port, .. } => &port.service,
            Offer::Remote(stream) => stream.service(),
            Offer::Gone => "",
        }
    }

    /// Which path it prefers; what we send on it will, too.
    #[must_use]
    pub fn preference(&self) -> Preference {
        match &self.0 {
            Offer::Local { preference, .. } => *preference,
            Offer::Remote(_) | Offer::Gone => Preference::default(),
        }
    }

    /// Takes it.
    #[must_use]
    pub fn accept(mut self) -> Stream {
        match std::mem::replace(&mut self.0, Offer::Gone) {
            Offer::Local { hub, port, .. } => {
                let mut state = port.lock();
                state.accept = true;
                hub.tell(&port, state);
                Stream::new(Teller::Loop(hub), port)
            }
            Offer::Remote(stream) => stream,
            Offer::Gone => unreachable!("an offer is answered once, because answering takes it"),
        }
    }

    /// Refuses it with words for the opener, of which 255 bytes arrive.
    pub fn refuse(mut self, why: &str) {
        self.say_no(why);
    }

    fn say_no(&mut self, why: &str) {
        if let Offer::Local { hub, port, answered, .. } = &mut self.0
            && !std::mem::replace(answered, true)
        {
            let mut state = port.lock();
            state.refuse = Some(why.to_owned());
            hub.tell(port, state);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.say_no("");
    }
}
