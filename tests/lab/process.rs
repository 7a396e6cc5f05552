//! Commands with a deadline, and waits that say what they waited for.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

/// A program that is killed with its story.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self::start_as_is(command)
    }

    /// The same, its output where the command says.
    pub(crate) fn start_as_is(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end. An error means it could not be started or ran over `limit`.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Done, String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{shown}: {error}"))?;
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let Some(status) = wait_child(&mut child, limit) else {
        let _ = child.kill();
        return Err(format!("{shown}: still running after {limit:?}"));
    };
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Done { code: status.code(), stdout: text(out), stderr: text(err) })
}

/// Runs a shell line that must succeed, and returns what it printed.
#[track_caller]
pub(crate) fn sh(line: &str) -> String {
    match run(Command::new("sh").args(["-c", line]), Duration::from_secs(60)) {
        Ok(done) if done.ok() => done.stdout,
        Ok(done) => panic!("`{line}` failed ({:?}): {}{}", done.code, done.stdout, done.stderr),
        Err(error) => panic!("{error}"),
    }
}

/// Runs a shell line for its effect, whether it succeeds or not.
pub(crate) fn try_sh(line: &str) -> Option<String> {
    run(Command::new("sh").args(["-c", line]), Duration::from_secs(20))
        .ok()
        .filter(Done::ok)
        .map(|done| done.stdout)
}

/// Waits for the end of a child, `None` when `limit` passes first.
pub(crate) fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Asks until the answer is `Ok`; panics with what was awaited and the last refusal otherwise.
/// Returns the answer and how long it took.
#[track_caller]
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<T, String>,
) -> (T, Duration) {
    let began = Instant::now();
    note_awaited(what);
    loop {
        match ask() {
            Ok(answer) => {
                note_awaited("");
                return (answer, began.elapsed());
            }
            Err(why) if began.elapsed() >= limit => {
                panic!("awaited for {limit:?}: {what}; last seen: {why}")
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// What the story is waiting for right now; the hang guard prints it.
pub(crate) fn awaited() -> String {
    AWAITED.lock().map(|text| text.clone()).unwrap_or_default()
}

pub(crate) fn have(tool: &str) -> bool {
    if tool.starts_with("/dev/") {
        return std::fs::File::options().read(true).write(true).open(tool).is_ok();
    }
    let mut paths: Vec<_> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    paths.extend(["/usr/sbin".into(), "/sbin".into()]);
    paths.iter().any(|folder| folder.join(tool).is_file())
}

static AWAITED: Mutex<String> = Mutex::new(String::new());

fn note_awaited(what: &str) {
    if let Ok(mut text) = AWAITED.lock() {
        what.clone_into(&mut text);
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
