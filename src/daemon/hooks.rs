//! Programs an operator wants run when something happens; they get one JSON object on standard
//! input.
//!
//! Like a letter box: the loop drops a letter in and walks on. One hook runs at a time, so that
//! hooks see events in order; at most sixteen wait; each has ten seconds.
//!
//! Awkward cases: a hook that does not read its input, or whose children keep it open, must not
//! hold the next one up (the input is written without waiting for it to be read, since it is
//! shorter than a pipe holds); one that hangs is killed; when letters pile up, the newest is
//! dropped and counted. A hook's output goes where the daemon's goes.

use std::{
    io::{self, Write},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const QUEUE: usize = 16;
const RUN_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a pipe takes at once by POSIX; ours are a few hundred bytes.
const INPUT_BYTES_MAX: usize = 4096;

/// One run: program and arguments, and its input.
struct Letter {
    command: Vec<String>,
    input: String,
}

/// Runs hooks on a thread of its own.
#[derive(Debug)]
pub(super) struct Hooks {
    letters: Option<SyncSender<Letter>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    dropped: AtomicU64,
}

impl Hooks {
    pub(super) fn start() -> io::Result<Self> {
        Self::start_with(RUN_WITHIN)
    }

    fn start_with(run_within: Duration) -> io::Result<Self> {
        let (letters, inbox) = sync_channel(QUEUE);
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("sidepath-hooks".into())
            .spawn(move || serve(&inbox, &told, run_within))?;
        Ok(Self { letters: Some(letters), thread: Some(thread), stop, dropped: AtomicU64::new(0) })
    }

    /// Queues one run; never waits. An empty command is no hook.
    pub(super) fn run(&self, command: &[String], event: &serde_json::Value) {
        let Some(letters) = self.letters.as_ref().filter(|_| !command.is_empty()) else { return };
        let mut input = event.to_string();
        input.push('\n');
        if input.len() > INPUT_BYTES_MAX {
            tracing::warn!(bytes = input.len(), "event too long for a hook");
            return;
        }
        let letter = Letter { command: command.to_vec(), input };
        if let Err(TrySendError::Full(letter)) = letters.try_send(letter) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(hook = letter.command[0], "hooks are too slow: an event was not told");
        }
    }

    /// Events not told because hooks were too slow.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Ends the thread; a hook that runs is killed. Gives the handle to whoever joins.
    pub(super) fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.letters = None;
        self.stop.store(true, Ordering::Release);
        self.thread.take()
    }
}

fn serve(inbox: &Receiver<Letter>, stop: &AtomicBool, run_within: Duration) {
    while let Ok(letter) = inbox.recv() {
        let name = letter.command.first().cloned().unwrap_or_default();
        if let Err(error) = run(&letter, stop, run_within) {
            tracing::warn!(hook = name, %error, "hook failed");
            // Letters that waited when the daemon was told to stop are still delivered while
            // hooks are quick; the first that is not ends it.
            if stop.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

fn run(letter: &Letter, stop: &AtomicBool, run_within: Duration) -> io::Result<()> {
    let [program, arguments @ ..] = letter.command.as_slice() else { return Ok(()) };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A hook need not read it.
        let _ = input.write_all(letter.input.as_bytes());
    }
    wait(&mut child, stop, run_within)
}

fn wait(child: &mut Child, stop: &AtomicBool, run_within: Duration) -> io::Result<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(status.to_string()))
            };
        }
        // While stopping, a tenth of the time must do.
        let within = if stop.load(Ordering::Acquire) { run_within / 10 } else { run_within };
        if start.elapsed() >= within {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!("killed after {within:?}")));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: String) -> Vec<String> {
        vec!["/bin/sh".into(), "-c".into(), script]
    }

    #[test]
    fn hooks_get_json_in_order_and_hang_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut hooks = Hooks::start_with(Duration::from_millis(300)).unwrap();
        let append = shell(format!("cat >> {}", out.display()));
        hooks.run(&append, &serde_json::json!({"n": 1}));
        hooks.run(&shell("sleep 60".into()), &serde_json::json!({"n": 2}));
        hooks.run(&["/no/such/program".into()], &serde_json::json!({"n": 3}));
        hooks.run(&append, &serde_json::json!({"n": 4}));
        hooks.run(&[], &serde_json::json!({"n": 5}));
        hooks.letters = None;
        hooks.thread.take().unwrap().join().unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "{\"n\":1}\n{\"n\":4}\n");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let mut hooks = Hooks::start_with(Duration::from_secs(1)).unwrap();
        let slow = shell("sleep 60".into());
        for n in 0..QUEUE + 5 {
            hooks.run(&slow, &serde_json::json!({"n": n}));
        }
        assert!(hooks.dropped() >= 4, "{}", hooks.dropped());
        drop(hooks.stop());
    }
}
