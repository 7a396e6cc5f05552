//! Waiting for threads, and for what attached nodes said.

use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use volumes::Fact;
use volumes::runtime::Sink;

pub type Facts = Arc<Mutex<Vec<Fact>>>;

pub fn sink() -> (Facts, Sink) {
    let facts: Facts = Arc::default();
    let f = facts.clone();
    (facts, Arc::new(move |fact| f.lock().unwrap().push(fact)))
}

pub fn frames(facts: &Facts) -> Vec<Bytes> {
    let of = |f: &Fact| match f {
        Fact::Frames { frames, .. } => frames.clone(),
        _ => Vec::new(),
    };
    facts.lock().unwrap().iter().flat_map(of).collect()
}

/// A watchdog against hangs, not a measure.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
