//! Two stories at a time, each in a process of its own.
//!
//! For stories that mostly wait, and whose promises are about what arrives within seconds. Two such
//! labs leave two processors idle most of the time; what one prints is shown when it has ended. The
//! awkward case is a run that is killed: each process ends when its standard input does, and what
//! it built is cleared by its own watchdog.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use super::runner;

pub(crate) const LANES: usize = 2;

/// Tells them in this order; returns how each ended.
pub(crate) fn tell(names: Vec<String>) -> Vec<(String, bool)> {
    let waiting = Mutex::new(VecDeque::from(names));
    let next = || waiting.lock().expect("nobody panics with it").pop_front();
    let lane = || {
        let mut told = Vec::new();
        while let Some(name) = next() {
            let (text, well) = tell_one(&name)
                .unwrap_or_else(|error| (format!("story {name} ... FAILED: {error}\n"), false));
            let _ = io::stdout().lock().write_all(text.as_bytes());
            told.push((name, well));
        }
        told
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().flat_map(|lane| lane.join().expect("a lane does not panic")).collect()
    })
}

/// What it said, standard error among it, and whether it ended well. Its own guard bounds the wait.
fn tell_one(name: &str) -> io::Result<(String, bool)> {
    let (mut from, to) = io::pipe()?;
    let (variable, executable) = runner::helper("lane");
    let mut child = Command::new("env")
        .arg(variable)
        .arg(executable)
        .arg(name)
        .stdin(Stdio::piped())
        .stdout(to.try_clone()?)
        .stderr(to)
        .spawn()?;
    let mut said = Vec::new();
    let read = from.read_to_end(&mut said);
    // Waiting closes its standard input, too.
    let well = child.wait()?.success();
    read?;
    Ok((String::from_utf8_lossy(&said).into_owned(), well))
}

/// Ends this process when whoever started it is gone.
pub(crate) fn end_with_the_asker() {
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(101);
    });
}
