//! What clients and stores share: why a pair failed, which path its bulk may take, waiting for work
//! while the other side may speak.

use std::{io, pin::pin, time::Duration};

use failover::Path;
use futures_util::future::{Either, select};
use tokio::sync::mpsc::Receiver;

use super::{
    serve::UNPACKED_MAX,
    talk::{self, Complaint, Frame, Say, kind},
    tree::TreeError,
};
use crate::sessions::{DataSocket, Ending, Endpoint, Preference, Refusal, SessionError, Stream};

/// How long a path is given to show itself when a pair begins.
const PATH_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why a backup or a restore did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PairError {
    #[error("{0}")]
    Session(SessionError),
    /// In the words of the store.
    #[error("{}", .0.message)]
    Said(Complaint),
    /// What was to be read, or the place to restore to.
    #[error("{message}")]
    Here { message: String, hint: Option<String>, input: bool },
    /// The other side said something that makes no sense.
    #[error("the other side does not keep to the protocol: {0}")]
    Nonsense(String),
    /// The path the policy insists on.
    #[error("{0}")]
    NoPath(String),
}

impl PairError {
    /// Whether the same may go well when it is tried again later.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Session(error) => match error {
                SessionError::Refused { reason, .. } => *reason != Refusal::Rejected,
                SessionError::Ended(ending) => *ending != Ending::Violation,
                SessionError::NotOpened(_) | SessionError::Stopped | SessionError::Daemon(_) => {
                    true
                }
                _ => false,
            },
            Self::Said(complaint) => complaint.passes,
            Self::Here { .. } | Self::Nonsense(_) | Self::NoPath(_) => false,
        }
    }

    pub(crate) fn here(message: impl Into<String>) -> Self {
        Self::Here { message: message.into(), hint: None, input: false }
    }
}

impl From<SessionError> for PairError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<TreeError> for PairError {
    fn from(error: TreeError) -> Self {
        Self::Here { message: error.to_string(), hint: error.hint(), input: error.is_input() }
    }
}

/// Of a stream.
impl From<io::Error> for PairError {
    fn from(error: io::Error) -> Self {
        if let Some(session) = error.get_ref().and_then(|e| e.downcast_ref::<SessionError>()) {
            return Self::Session(session.clone());
        }
        match error.kind() {
            // The program at the other end is gone without a word.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
                Self::Session(SessionError::Ended(Ending::Reset))
            }
            _ => Self::Nonsense(error.to_string()),
        }
    }
}

/// What is done when the storage path is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Policy {
    /// Storage is waited for (--wait), then the network takes the bulk, and gives it back
    #[default]
    Preferred,
    /// The bulk goes through storage or waits
    Always,
    /// The bulk goes through storage; without it the command fails
    Fail,
    /// The bulk goes over the network
    Never,
}

impl Policy {
    pub(crate) const fn preference(self) -> Preference {
        match self {
            Self::Preferred => Preference::StorageFirst,
            Self::Always | Self::Fail => Preference::StorageOnly,
            Self::Never => Preference::NetworkOnly,
        }
    }
}

/// Whom to talk to, and how.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) peer: String,
    pub(crate) service: String,
    pub(crate) streams: u8,
    pub(crate) policy: Policy,
    /// How long storage is waited for by [`Policy::Preferred`].
    pub(crate) wait: Duration,
}

impl Line {
    /// Connects.
    pub(crate) async fn connect(&self, endpoint: &Endpoint) -> Result<DataSocket, PairError> {
        let preference = self.policy.preference();
        let connect =
            DataSocket::connect_by(endpoint, &self.peer, &self.service, self.streams, preference);
        match self.policy {
            Policy::Fail => match tokio::time::timeout(PATH_WITHIN, connect).await {
                Ok(pair) => Ok(pair?),
                Err(_) => Err(self.no_storage()),
            },
            _ => Ok(connect.await?),
        }
    }

    /// Waits for the path the policy wants.
    pub(crate) async fn settle(&self, pair: &DataSocket) -> Result<(), PairError> {
        let patience = match self.policy {
            Policy::Preferred => self.wait,
            Policy::Fail => PATH_WITHIN,
            Policy::Always | Policy::Never => return Ok(()),
        };
        let stored = async {
            while !pair.streams.iter().all(|stream| stream.path() == Some(Path::Storage)) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let waited = tokio::time::timeout(patience, stored);
        // A pair that ends meanwhile has no path, and never will.
        let over = match select(pin!(waited), pin!(pair.streams[0].failed())).await {
            Either::Left((waited, _)) => waited.is_err(),
            Either::Right((error, _)) => return Err(error.into()),
        };
        if over && self.policy == Policy::Fail { Err(self.no_storage()) } else { Ok(()) }
    }

    /// Whether a path that is missing is waited for from the beginning.
    pub(crate) fn waits(&self) -> bool {
        self.policy == Policy::Always
    }

    /// With no other path to take, a path that is gone is the end.
    pub(crate) fn judged(&self, error: PairError) -> PairError {
        let timed_out = SessionError::Ended(Ending::TimedOut);
        match error {
            PairError::Session(ended) if ended == timed_out && self.policy == Policy::Fail => {
                self.no_storage()
            }
            error => error,
        }
    }

    fn no_storage(&self) -> PairError {
        PairError::NoPath(format!(
            "storage does not carry anything to {}, and --policy fail takes no other path",
            self.peer
        ))
    }
}

/// Bytes by path, of a pair: what was sent again counts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Carried {
    pub(crate) network_bytes: u64,
    pub(crate) storage_bytes: u64,
}

impl Carried {
    pub(crate) fn add(&mut self, stream: &crate::sessions::Stats) {
        self.network_bytes += stream.sent_by.network + stream.received_by.network;
        self.storage_bytes += stream.sent_by.storage + stream.received_by.storage;
    }
}

/// Does `work`; ends early when the other side complains or is gone. What else it says is for `on`.
pub(crate) async fn beside<T>(
    work: impl Future<Output = Result<T, PairError>>,
    said: &mut Receiver<Result<Say, PairError>>,
    on: &mut dyn FnMut(Say),
) -> Result<T, PairError> {
    let mut work = pin!(work);
    loop {
        let heard = {
            let hearing = pin!(said.recv());
            match select(work.as_mut(), hearing).await {
                Either::Left((Ok(done), _)) => return Ok(done),
                Either::Left((Err(error), _)) => Err(error),
                Either::Right((heard, _)) => Ok(heard),
            }
        };
        match heard {
            // That a stream ended is mostly the echo of why the other side did.
            Err(error @ PairError::Session(_)) => return Err(last_words(said, error).await),
            Err(error) => return Err(error),
            Ok(heard) => on(word(heard)?),
        }
    }
}

/// How long the reason is waited for when streams ended before it came.
const WORDS_WITHIN: Duration = Duration::from_secs(2);

async fn last_words(said: &mut Receiver<Result<Say, PairError>>, error: PairError) -> PairError {
    let hear = async {
        loop {
            match said.recv().await {
                Some(Ok(Say::No(complaint))) => return Some(PairError::Said(complaint)),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    };
    tokio::time::timeout(WORDS_WITHIN, hear).await.ok().flatten().unwrap_or(error)
}

/// The next word of the other side.
pub(crate) fn word(heard: Option<Result<Say, PairError>>) -> Result<Say, PairError> {
    match heard {
        Some(Ok(Say::No(complaint))) => Err(PairError::Said(complaint)),
        Some(said) => said,
        None => Err(PairError::Session(SessionError::Ended(Ending::Reset))),
    }
}

/// Listens to control in a task of its own.
pub(crate) fn listen(
    mut from: impl tokio::io::AsyncRead + Unpin + Send + 'static,
) -> Receiver<Result<Say, PairError>> {
    let (tell, said) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let heard = talk::hear::<Say>(&mut from).await;
            let end = !matches!(heard, Ok(Some(_)));
            let heard = match heard {
                Ok(None) => return,
                Ok(Some(say)) => Ok(say),
                Err(error) => Err(error.into()),
            };
            if tell.send(heard).await.is_err() || end {
                return;
            }
        }
    });
    said
}

/// Packed frames up to their end.
pub(crate) async fn receive_all<T: serde::de::DeserializeOwned>(
    from: &mut Stream,
) -> Result<Vec<T>, PairError> {
    let mut all = Vec::new();
    loop {
        match talk::get(from).await? {
            Some(Frame { kind: kind::ENTRIES, bytes, .. }) => {
                all.extend(talk::unpack::<Vec<T>>(&bytes, UNPACKED_MAX)?);
            }
            Some(Frame { kind: kind::END, .. }) => return Ok(all),
            Some(_) => return Err(PairError::Nonsense("a frame that belongs nowhere".into())),
            None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

/// Which path carries most of a pair's bulk now.
pub(crate) fn path_of<'a>(streams: impl IntoIterator<Item = &'a Stream>) -> Option<Path> {
    streams.into_iter().find_map(Stream::path)
}
