//! The other end of the control socket: finds the daemon, asks, and turns refusals into failures.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Failure, Outcome};
use crate::{
    admin::{
        document::{Document, Peer},
        protocol::{Answer, Question, Reply, Verb},
    },
    config::{self, key::plain, report::closest},
};

/// Longer than the daemon itself waits for its loop, so that its words arrive and not ours.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// Which daemon is meant.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Target {
    /// Control socket of the daemon [default: /run/sidepath/control.sock]
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// Configuration of the daemon, to find its control socket
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Target {
    /// Its control socket.
    pub(super) fn path(&self) -> Result<PathBuf, Failure> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => {
                config::control_socket(file).map_err(|report| Failure::report(&report))
            }
            (None, None) => Ok(PathBuf::from(config::DEFAULT_SOCKET)),
        }
    }

    /// Connects to the daemon.
    pub(super) fn connect(&self) -> Result<Client, Failure> {
        let path = self.path()?;
        let stream = UnixStream::connect(&path).map_err(|e| self.nobody(&path, &e))?;
        Client::new(stream)
    }

    fn nobody(&self, path: &Path, error: &io::Error) -> Failure {
        let shown = path.display();
        let start = match &self.config {
            Some(file) => format!("sidepath run --config {}", file.display()),
            None => "sidepath run --config FILE".into(),
        };
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Failure::failed(format!("may not open control socket {shown}: permission denied"))
                    .hint("run it as root, or as a member of the socket's group")
            }
            io::ErrorKind::NotFound => {
                let failure =
                    Failure::failed(format!("no daemon: control socket {shown} is not there"));
                if self.socket.is_none() && self.config.is_none() {
                    failure
                        .hint(format!("start it with `{start}`, or say where it is: --config FILE"))
                } else {
                    failure.hint(format!("start it with `{start}`"))
                }
            }
            io::ErrorKind::ConnectionRefused => Failure::failed(format!(
                "no daemon: control socket {shown} was left by one that died"
            ))
            .hint(format!("start it with `{start}`; it replaces the file")),
            _ => Failure::failed(format!("cannot use control socket {shown}: {}", plain(error))),
        }
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub(super) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    fn new(stream: UnixStream) -> Result<Self, Failure> {
        let limit = |stream: &UnixStream| {
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.set_write_timeout(Some(ANSWER_WITHIN))
        };
        limit(&stream).map_err(|e| Failure::failed(format!("control socket: {e}")))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// A second handle on the connection, to close it while another thread waits for an answer.
    pub(super) fn split(&self) -> Result<UnixStream, Failure> {
        self.reader.get_ref().try_clone().map_err(|e| lost(&e))
    }

    /// Asks, and waits for the first answer.
    pub(super) fn ask(&mut self, verb: Verb) -> Result<Answer, Failure> {
        self.say(verb)?;
        self.hear(Some(ANSWER_WITHIN))
    }

    /// Asks.
    pub(super) fn say(&mut self, verb: Verb) -> Outcome {
        let line = question(verb)?;
        self.reader.get_mut().write_all(&line).map_err(|e| lost(&e))
    }

    /// Waits for an answer; forever when `within` is `None`.
    pub(super) fn hear(&mut self, within: Option<Duration>) -> Result<Answer, Failure> {
        self.reader.get_ref().set_read_timeout(within).map_err(|e| lost(&e))?;
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => return Err(lost(&io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(e) => return Err(lost(&e)),
        }
        let reply: Reply = serde_json::from_str(&line).map_err(|e| {
            Failure::failed(format!("cannot understand the daemon: {e}"))
                .hint("use the sidepath program of the same release as the daemon")
        })?;
        match reply.answer {
            Answer::Refused { message, hint, input } => {
                let mut failure = Failure::of(input, message);
                // A report of a configuration brings its own words and hints.
                failure.whole = input && failure.message.contains(" --> ");
                Err(failure.maybe_hint(hint))
            }
            answer => Ok(answer),
        }
    }

    /// The whole document.
    pub(super) fn document(&mut self) -> Result<Box<Document>, Failure> {
        match self.ask(Verb::Status)? {
            Answer::Status { document } => Ok(document),
            other => Err(unexpected(&other)),
        }
    }

    /// The peer meant by a name or an id.
    pub(super) fn peer(&mut self, word: &str) -> Result<Peer, Failure> {
        let document = self.document()?;
        let id = word.parse::<u8>().ok();
        let found = document.peers.iter().position(|peer| peer.name == word || Some(peer.id) == id);
        if let Some(index) = found {
            return Ok(document.peers[index].clone());
        }
        let own = document.node.name == word || Some(document.node.id) == id;
        let names: Vec<&str> = document.peers.iter().map(|peer| peer.name.as_str()).collect();
        let failure = Failure::input(format!("no peer `{word}`"));
        Err(match closest(word, names.iter().copied()) {
            _ if own => failure.hint(format!("that is this node; peers are: {}", names.join(", "))),
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None if names.is_empty() => failure.hint("this daemon has no peers"),
            None => failure.hint(format!("peers are: {}", names.join(", "))),
        })
    }
}

/// The line that asks.
pub(super) fn question(verb: Verb) -> Result<Vec<u8>, Failure> {
    Question::line(verb).map_err(|e| Failure::failed(format!("cannot write a question: {e}")))
}

/// An answer that belongs to another question.
pub(super) fn unexpected(answer: &Answer) -> Failure {
    Failure::failed(format!("the daemon answered something else: {answer:?}"))
        .hint("use the sidepath program of the same release as the daemon")
}

fn lost(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::failed(format!(
            "the daemon has not answered for {} s",
            ANSWER_WITHIN.as_secs()
        ))
        .hint("its process may be stopped; look at its log"),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => {
            Failure::failed("the daemon closed the connection").hint("it stopped; look at its log")
        }
        _ => Failure::failed(format!("control socket: {error}")),
    }
}
