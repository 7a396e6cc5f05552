//! The control socket: a counter with a few clerks.
//!
//! A clerk (a thread) serves one client at a time; there are only so many, a client that says
//! nothing is sent away, and what a client may ask depends on who the kernel says it is: whoever
//! may open the socket (owner, group, root: mode 0660) may look, only root and the daemon's own
//! user may cut paths or reload.
//!
//! The awkward cases: a socket file left by a daemon that was killed is replaced, one that a
//! living daemon answers on is refused; the file appears with its final mode, by a rename; a
//! client that vanishes in the middle of its drill (Ctrl-C, kill) ends the drill.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::AsFd,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use failover::NodeId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, info, warn};

use super::{
    Ask,
    protocol::{Answer, QUESTION_BYTES_MAX, Question, Reply, Verb},
};
use crate::{
    config::key::plain,
    daemon::request::{DrillStep, PingAnswer, Request},
};

/// Clients at the same time. Each costs a thread; an operator has a few terminals and a monitor.
const CLIENTS_MAX: usize = 32;
/// Of these, so many are kept for those who may change something: a crowd of onlookers must not
/// keep an operator from his daemon.
const CLIENTS_KEPT: usize = 4;
/// A client that asks nothing for so long is sent away.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A client that does not read its answer for so long is sent away.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// How soon a stop, or a client that left its drill, is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a reload comes to: what changed, or why nothing did.
pub type ReloadOutcome = Result<Vec<String>, ReloadRefused>;

/// Reads the configuration again and takes it over.
pub type Reload = Arc<dyn Fn() -> ReloadOutcome + Send + Sync>;

/// Why a reload changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadRefused {
    /// For people; may be a whole report.
    pub message: String,
    /// The configuration itself is bad.
    pub input: bool,
}

/// Why there is no control socket.
#[derive(Debug)]
pub enum SocketError {
    /// A living daemon answers there.
    Busy(PathBuf),
    /// Something that is no socket lies there.
    NotASocket(PathBuf),
    /// The operating system refused.
    Io(PathBuf, io::Error),
}

impl std::fmt::Display for SocketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy(path) => {
                write!(f, "another daemon answers on control socket {}", path.display())
            }
            Self::NotASocket(path) => {
                write!(f, "{} exists and is no socket", path.display())
            }
            Self::Io(path, error) => {
                write!(f, "cannot make control socket {}: {}", path.display(), plain(error))
            }
        }
    }
}

impl std::error::Error for SocketError {}

/// A socket that is ours but does not answer yet: it is taken before the daemon starts, so that a
/// second daemon is refused before it touches anything.
#[derive(Debug)]
pub struct Reserved {
    listener: UnixListener,
    file: SocketFile,
}

/// The file; gone when dropped, if it is still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.path.symlink_metadata().is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A control socket at work; stops and removes its file when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _file: SocketFile,
}

/// Takes the place of the socket.
///
/// # Errors
/// When a living daemon has it, or the place cannot be written.
pub fn reserve(path: &Path) -> Result<Reserved, SocketError> {
    let io_error = |e| SocketError::Io(path.to_path_buf(), e);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(io_error)?;
    }
    match path.symlink_metadata() {
        Err(_) => {}
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_path_buf()));
        }
        // Connecting is the only honest test: a file of a dead daemon refuses.
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                debug!(path = %path.display(), "replacing the control socket of a dead daemon");
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => return Err(SocketError::Busy(path.to_path_buf())),
            Err(e) => return Err(io_error(e)),
        },
    }
    // Bound under another name, so that nobody meets it before it has its mode.
    let mut early = path.as_os_str().to_owned();
    early.push(format!(".{}", std::process::id()));
    let early = PathBuf::from(early);
    let _ = std::fs::remove_file(&early);
    // A path that leaves no room for the suffix is bound in place.
    let place = if early.as_os_str().len() > 107 {
        let _ = std::fs::remove_file(path);
        path.to_path_buf()
    } else {
        early
    };
    let listener = UnixListener::bind(&place).map_err(io_error)?;
    let finish = || -> io::Result<u64> {
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o660))?;
        if place != path {
            std::fs::rename(&place, path)?;
        }
        listener.set_nonblocking(true)?;
        Ok(path.symlink_metadata()?.ino())
    };
    match finish() {
        Ok(inode) => {
            Ok(Reserved { listener, file: SocketFile { path: path.to_path_buf(), inode } })
        }
        Err(e) => {
            let _ = std::fs::remove_file(&place);
            Err(io_error(e))
        }
    }
}

impl Reserved {
    /// Starts to answer.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn serve(self, ask: Ask, reload: Reload) -> io::Result<ControlSocket> {
        let stop = Arc::new(AtomicBool::new(false));
        let room = Arc::new(Room { ask, reload, stop: stop.clone(), clients: AtomicUsize::new(0) });
        let listener = self.listener;
        let thread = std::thread::Builder::new()
            .name("admin".into())
            .spawn(move || room.accept(&listener))?;
        Ok(ControlSocket { stop, thread: Some(thread), _file: self.file })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether the kernel says that this is root or the daemon's own user.
pub(crate) fn may_change(socket: impl AsFd) -> bool {
    let who = rustix::net::sockopt::socket_peercred(socket);
    who.is_ok_and(|who| {
        let uid = who.uid;
        uid.is_root() || uid == rustix::process::geteuid()
    })
}

/// What all clerks share.
struct Room {
    ask: Ask,
    reload: Reload,
    stop: Arc<AtomicBool>,
    clients: AtomicUsize,
}

impl Room {
    fn accept(self: Arc<Self>, listener: &UnixListener) {
        while !self.stop.load(Ordering::Acquire) {
            if !readable(listener, Duration::from_millis(200)) {
                continue;
            }
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => {
                    // Out of descriptors, mostly: it passes, but not by spinning.
                    warn!(error = %e, "control socket cannot accept");
                    std::thread::sleep(Duration::from_millis(200));
                    continue;
                }
            };
            let places = CLIENTS_MAX - if may_change(&stream) { 0 } else { CLIENTS_KEPT };
            if self.clients.fetch_add(1, Ordering::AcqRel) >= places {
                self.clients.fetch_sub(1, Ordering::AcqRel);
                let full = format!("{places} clients are being served; try again");
                let _ = say(&stream, Answer::refused(full));
                continue;
            }
            let room = self.clone();
            let spawned =
                std::thread::Builder::new().name("admin-client".into()).spawn(move || {
                    if let Err(e) = room.serve(&stream) {
                        debug!(error = %e, "control client");
                    }
                    room.clients.fetch_sub(1, Ordering::AcqRel);
                });
            if let Err(e) = spawned {
                self.clients.fetch_sub(1, Ordering::AcqRel);
                warn!(error = %e, "no thread for a control client");
            }
        }
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_MAX))?;
        stream.set_read_timeout(Some(LOOK_EVERY * 10))?;
        let who = rustix::net::sockopt::socket_peercred(stream)?;
        let may_change = may_change(stream);
        let mut reader = BufReader::new(stream);
        while let Some(line) = self.line(&mut reader)? {
            let answer = match Question::read(&line) {
                Err(refused) => refused,
                Ok(verb) if !verb.only_reads() && !may_change => Answer::Refused {
                    message: format!("uid {} may look but not change anything", who.uid.as_raw()),
                    hint: Some("run it as root, or as the user the daemon runs as".into()),
                    input: false,
                },
                Ok(verb) => self.answer(verb, stream)?,
            };
            say(stream, answer)?;
        }
        Ok(())
    }

    /// The next line; `None` at the end, on silence, and when the daemon stops.
    fn line(&self, reader: &mut BufReader<&UnixStream>) -> io::Result<Option<String>> {
        let started = Instant::now();
        let mut bytes = Vec::new();
        loop {
            let room = (QUESTION_BYTES_MAX + 1).saturating_sub(bytes.len()) as u64;
            match reader.by_ref().take(room).read_until(b'\n', &mut bytes) {
                Ok(0) => return Ok(None),
                Ok(_) if bytes.last() == Some(&b'\n') => break,
                Ok(_) if bytes.len() > QUESTION_BYTES_MAX => {
                    return Err(io::Error::other("a line without end"));
                }
                Ok(_) => return Ok(None),
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
                {
                    if self.stop.load(Ordering::Acquire) || started.elapsed() > IDLE_MAX {
                        return Ok(None);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn answer(&self, verb: Verb, stream: &UnixStream) -> io::Result<Answer> {
        Ok(match verb {
            Verb::Status => match super::document(&self.ask) {
                Ok(document) => Answer::Status { document },
                Err(why) => Answer::refused(why),
            },
            Verb::Ping { peer, via, timeout_ms } => match NodeId::new(peer) {
                None => no_peer(peer),
                Some(peer) => {
                    let (reply, answer) = mpsc::channel();
                    let timeout = Duration::from_millis(timeout_ms.min(60_000));
                    if !(self.ask)(Request::Ping { peer, via, reply }) {
                        return Ok(Answer::refused("the daemon is stopping"));
                    }
                    match answer.recv_timeout(timeout) {
                        Ok(PingAnswer::Reply { out, back, round_trip }) => {
                            Answer::Pong { out, back, round_trip_us: failover::micros(round_trip) }
                        }
                        Ok(PingAnswer::Refused(why)) => Answer::refused(why),
                        Err(_) => Answer::Lost,
                    }
                }
            },
            Verb::Drill { peer, cut, length_us, force } => match NodeId::new(peer) {
                None => no_peer(peer),
                Some(peer) => {
                    self.drill(peer, cut, Duration::from_micros(length_us), force, stream)?
                }
            },
            Verb::Replicate { to } => self.round(to, stream)?,
            Verb::Reload => match (self.reload)() {
                Ok(changes) => Answer::Reloaded { changes },
                Err(ReloadRefused { message, input }) => {
                    Answer::Refused { message, hint: None, input }
                }
            },
        })
    }

    /// Waits for the end of a round for as long as its client stays; the round goes on without it.
    fn round(&self, to: Option<String>, stream: &UnixStream) -> io::Result<Answer> {
        let (reply, answer) = mpsc::channel();
        if !(self.ask)(Request::Replicate { to, reply }) {
            return Ok(Answer::refused("the daemon is stopping"));
        }
        loop {
            if let Some(answer) = super::round_answer(&answer) {
                return Ok(answer);
            }
            if self.stop.load(Ordering::Acquire) {
                return Ok(Answer::refused("the daemon is stopping, and the round with it"));
            }
            if readable(stream, LOOK_EVERY) && hung_up(stream) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Runs a drill for as long as its client stays.
    fn drill(
        &self,
        peer: NodeId,
        cut: failover::Cut,
        length: Duration,
        force: bool,
        stream: &UnixStream,
    ) -> io::Result<Answer> {
        if length.is_zero() {
            return Ok(Answer::Refused {
                message: "a drill of no length".into(),
                hint: Some("give --for a duration, for example --for 10s".into()),
                input: true,
            });
        }
        let (reply, steps) = mpsc::channel();
        if !(self.ask)(Request::Drill { peer, cut, length, force, reply }) {
            return Ok(Answer::refused("the daemon is stopping"));
        }
        // However this function is left before the drill is over, the path is healed: the last
        // thing a clerk does for a client that went away.
        let mut heal = Heal { ask: &self.ask, peer, cut, armed: true };
        loop {
            match steps.try_recv() {
                Ok(Ok(DrillStep::Started)) => {
                    say(stream, Answer::DrillStarted)?;
                }
                Ok(Ok(DrillStep::Ended)) => {
                    heal.armed = false;
                    return Ok(Answer::DrillEnded);
                }
                Ok(Err(why)) => {
                    // Nothing of ours runs; somebody else's drill with this peer may.
                    heal.armed = false;
                    return Ok(Answer::refused(why));
                }
                Err(mpsc::TryRecvError::Disconnected) => {
                    return Ok(Answer::refused("the daemon stopped, and the drill with it"));
                }
                Err(mpsc::TryRecvError::Empty) => {}
            }
            if self.stop.load(Ordering::Acquire) {
                return Ok(Answer::refused("the daemon is stopping, and the drill with it"));
            }
            if readable(stream, LOOK_EVERY) && hung_up(stream) {
                info!(peer = peer.get(), "the client of a drill left: ending it");
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Ends a drill when dropped, while armed.
struct Heal<'a> {
    ask: &'a Ask,
    peer: NodeId,
    cut: failover::Cut,
    armed: bool,
}

impl Drop for Heal<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (reply, _gone) = mpsc::channel();
        (self.ask)(Request::Drill {
            peer: self.peer,
            cut: self.cut,
            length: Duration::ZERO,
            force: true,
            reply,
        });
    }
}

fn no_peer(id: u8) -> Answer {
    Answer::Refused { message: format!("no peer has id {id}"), hint: None, input: true }
}

fn say(mut stream: &UnixStream, answer: Answer) -> io::Result<()> {
    stream.write_all(&Reply::line(answer)?)
}

/// Waits until there is something to read (or the other side left).
fn readable(fd: &impl std::os::fd::AsFd, at_most: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN | PollFlags::RDHUP)];
    let Ok(timeout) = Timespec::try_from(at_most) else { return true };
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) => false,
        // An interrupted wait looks like nothing happened; the caller comes again.
        Err(_) => false,
        Ok(_) => true,
    }
}

/// Whether the client is gone. Bytes it sent meanwhile stay where they are.
fn hung_up(stream: &UnixStream) -> bool {
    let mut byte = [0_u8; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(stream, &mut byte, flags) {
        Ok((_, 0)) => true,
        Ok(_) => {
            // Talking during a drill is not part of the protocol; do not spin over it.
            std::thread::sleep(LOOK_EVERY);
            false
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}
