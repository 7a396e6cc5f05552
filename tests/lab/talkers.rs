//! Processes that hold many sessions at once by way of their daemon, each of a random size, each
//! byte of it known, one after the other until it is enough.
//!
//! ```text
//!   talker: number, size, bytes ──> listener: compares, answers with what it counted
//! ```

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use sidepath::sessions::{Endpoint, Preference, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::process::wait_child;
use super::rng::Rng;
use super::runner;

const SERVICE: &str = "talkers";
/// Most sessions are small, some are not, bytes.
const SIZES: [u64; 6] = [1, 100, 4_000, 4_000, 60_000, 1_000_000];
const VIA: [Preference; 2] = [Preference::NetworkFirst, Preference::StorageFirst];

/// A process on one machine.
pub(crate) struct Talkers(Child);

impl Talkers {
    /// Takes what others send.
    pub(crate) fn listen(socket: &Path) -> Self {
        Self::start(&["listen".to_owned(), socket.display().to_string()])
    }

    /// Holds so many sessions at once, for so long.
    pub(crate) fn talk(socket: &Path, peer: &str, count: u64, seed: u64, length: Duration) -> Self {
        let words = [count, seed, length.as_secs()].map(|n| n.to_string());
        let mut all = vec!["talk".to_owned(), socket.display().to_string(), peer.to_owned()];
        all.extend(words);
        Self::start(&all)
    }

    fn start(arguments: &[String]) -> Self {
        let (variable, executable) = runner::helper("talkers");
        let mut command = Command::new("env");
        command.arg(variable).arg(executable).args(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut talkers = Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")));
        assert_eq!(talkers.line(), "ready");
        talkers
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = BufReader::new(self.0.stdout.as_mut().expect("a pipe")).read_line(&mut line);
        line.trim().to_owned()
    }

    /// Waits for the end of a talker: sessions that ended well, and bytes.
    #[track_caller]
    pub(crate) fn result(mut self, limit: Duration) -> (u64, u64) {
        let ended = wait_child(&mut self.0, limit);
        let said = self.line();
        assert!(ended.is_some_and(|status| status.success()), "a talker: {ended:?} {said}");
        let (sessions, bytes) = said.split_once(' ').unwrap_or_else(|| panic!("{said}"));
        (sessions.parse().expect("a number"), bytes.parse().expect("a number"))
    }
}

impl Drop for Talkers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn helper(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let done = match words[..] {
        ["listen", socket] => runtime.block_on(listen(PathBuf::from(socket))),
        ["talk", socket, peer, count, seed, seconds] => {
            let number = |word: &str| word.parse::<u64>().expect("a number");
            let until = Instant::now() + Duration::from_secs(number(seconds));
            let endpoint = Endpoint::open(Path::new(socket));
            println!("ready");
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(&runtime, talk(endpoint, peer, number(count), number(seed), until))
        }
        _ => panic!("{words:?}"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

type Done<T> = Result<T, Box<dyn std::error::Error>>;

async fn listen(socket: PathBuf) -> Done<()> {
    let listener = Endpoint::open(&socket).listen(SERVICE).await?;
    println!("ready");
    let tasks = tokio::task::LocalSet::new();
    tasks
        .run_until(async {
            loop {
                let stream = listener.accept().await?;
                tokio::task::spawn_local(async move {
                    // What goes wrong here shows at the talker, who gets no answer.
                    let _ = check(stream).await;
                });
            }
        })
        .await
}

async fn check(mut stream: Stream) -> Done<()> {
    let (number, size) = (stream.read_u64().await?, stream.read_u64().await?);
    let (mut rng, mut got) = (Rng::new(number), 0);
    let mut buffer = vec![0; 16 << 10];
    while got < size {
        // In pieces of eight, but for the last.
        let piece = (size - got).min(buffer.len() as u64) as usize;
        stream.read_exact(&mut buffer[..piece]).await?;
        for word in buffer[..piece].chunks(8) {
            if rng.next().to_le_bytes()[..word.len()] != *word {
                stream.reset();
                return Err(format!("session {number}: other bytes after {got}").into());
            }
        }
        got += piece as u64;
    }
    let more = stream.read(&mut buffer).await?;
    stream.write_u64(got + more as u64).await?;
    stream.closed().await?;
    Ok(())
}

async fn talk(endpoint: Endpoint, peer: &str, count: u64, seed: u64, until: Instant) -> Done<()> {
    let mut tasks = Vec::new();
    for index in 0..count {
        let (endpoint, peer) = (endpoint.clone(), peer.to_owned());
        tasks.push(tokio::task::spawn_local(async move {
            let mut rng = Rng::new(seed << 32 | index);
            let (mut sessions, mut bytes) = (0, 0);
            while Instant::now() < until {
                let (number, size) = (rng.next(), rng.pick(&SIZES));
                let size = rng.between(0, size);
                let via = rng.pick(&VIA);
                one(&endpoint, &peer, number, size, via)
                    .await
                    .map_err(|error| format!("session {number} of {size} bytes: {error}"))?;
                (sessions, bytes) = (sessions + 1, bytes + size);
            }
            Ok::<_, String>((sessions, bytes))
        }));
    }
    let (mut sessions, mut bytes) = (0_u64, 0_u64);
    for task in tasks {
        let (s, b) = task.await??;
        (sessions, bytes) = (sessions + s, bytes + b);
    }
    println!("{sessions} {bytes}");
    Ok(())
}

async fn one(endpoint: &Endpoint, peer: &str, number: u64, size: u64, via: Preference) -> Done<()> {
    let mut stream = endpoint.connect(peer, SERVICE, via).await?;
    stream.write_u64(number).await?;
    stream.write_u64(size).await?;
    let (mut rng, mut left) = (Rng::new(number), size);
    while left > 0 {
        let piece = left.min(16 << 10);
        let mut bytes = Vec::with_capacity(piece as usize + 8);
        while (bytes.len() as u64) < piece {
            bytes.extend_from_slice(&rng.next().to_le_bytes());
        }
        bytes.truncate(piece as usize);
        stream.write_all(&bytes).await?;
        left -= piece;
    }
    stream.shutdown().await?;
    let counted = stream.read_u64().await?;
    if counted != size {
        return Err(format!("{counted} bytes arrived").into());
    }
    stream.closed().await?;
    Ok(())
}
