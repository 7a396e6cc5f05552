//! Waiting for threads, and for what attached nodes said.

use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use volumes::runtime::{Clock, Sink};
use volumes::{AttachError, AttachOptions, Fact, Handle, Ring, attach};

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

/// Nodes in one process have clocks of one origin.
pub fn clock() -> Clock {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let began = *BEGAN.get_or_init(Instant::now);
    Arc::new(move || u64::try_from(began.elapsed().as_micros()).unwrap().max(1))
}

pub fn try_up(o: AttachOptions) -> Result<(Handle, Facts), AttachError> {
    let (facts, sink) = sink();
    Ok((attach(o, clock(), sink)?, facts))
}

/// An attached node.
pub fn up(o: AttachOptions) -> (Handle, Facts) {
    let (handle, facts) = try_up(o).unwrap();
    wait("attach", || handle.epoch() != 0);
    (handle, facts)
}

/// Numbers from here to there, 904 bytes each.
pub fn send(from: &Handle, to: u8, numbers: std::ops::Range<u32>) {
    for i in numbers {
        let frame = [&i.to_le_bytes()[..], &[0; 900]].concat();
        wait("room", || from.store(to, Ring::Data, &frame).is_ok());
    }
}

/// What arrived of them.
pub fn numbers(facts: &Facts) -> Vec<u32> {
    frames(facts).iter().map(|f| u32::from_le_bytes(f[..4].try_into().unwrap())).collect()
}

/// A watchdog against hangs, not a measure.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
