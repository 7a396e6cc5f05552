//! How late a beat is written and seen while another stream keeps the medium busy.
//!
//! Nodes beat by storage once a second while they hear each other by the network, which would give
//! a handful of samples. So two more nodes are attached to the same volume: one beats every
//! [`EVERY`], the other looks as often as a keeper may. Both are the real thing, threads and all.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sidepath::demo::nodes::Nodes;
use volumes::{AttachOptions, Fact, Handle, Mode, attach};

use crate::common::pin;

/// Their ids on the volume.
pub(crate) const NODES: [u8; 2] = [BEATS, LOOKS];
const BEATS: u8 = 3;
const LOOKS: u8 = 4;
pub(crate) const EVERY: Duration = Duration::from_millis(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const END_WITHIN: Duration = Duration::from_secs(2);

/// The two, at work.
pub(crate) struct Beats {
    handles: Vec<Handle>,
    log: Arc<Mutex<Log>>,
}

/// What was noted of them, in microseconds.
#[derive(Default)]
struct Log {
    /// Of each beat: when its write began, and when it was done. The first has the number after
    /// that of the claim, which is 1 on a fresh volume.
    written: Vec<(u64, u64)>,
    /// Numbers of beats, and when they were seen.
    seen: Vec<(u64, u64)>,
}

/// From when a beat was due, ms.
#[derive(Debug, Default)]
pub(crate) struct Late {
    /// Until its write was done.
    pub(crate) written: Vec<f64>,
    /// Until the other node had read it.
    pub(crate) seen: Vec<f64>,
}

impl Beats {
    /// Attaches both; returns when one hears the other.
    pub(crate) fn start(nodes: &Nodes) -> Self {
        let zero = Instant::now();
        let clock = move || u64::try_from(zero.elapsed().as_micros()).unwrap_or(u64::MAX);
        let log = Arc::new(Mutex::new(Log::default()));
        let start = |node, interval, end| {
            pin(end);
            let mut options = AttachOptions::new(nodes.volume(), node);
            options.beat_interval = interval;
            options.single_host = !nodes.direct_io;
            let log = Arc::clone(&log);
            let sink = Arc::new(move |fact| {
                let (now, mut log) = (clock(), log.lock().unwrap_or_else(PoisonError::into_inner));
                match fact {
                    Fact::BeatWritten { latency } if node == BEATS => {
                        log.written.push((now.saturating_sub(latency), now));
                    }
                    Fact::PeerBeat { node: BEATS, beat, .. } if node == LOOKS => {
                        log.seen.push((beat, now));
                    }
                    _ => {}
                }
            });
            let handle = attach(options, Arc::new(clock), sink).expect("a place on the volume");
            // Lanes that nobody writes are not worth the medium's time.
            handle.set_reader_mode(Mode::Standby { interval: 1_000_000 });
            handle
        };
        let handles = vec![start(BEATS, EVERY, 0), start(LOOKS, LOOK_EVERY, 1)];
        let begun = Instant::now();
        while log.lock().unwrap_or_else(PoisonError::into_inner).seen.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10), "no beat is heard");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { handles, log }
    }

    /// Forgets what was, because the load begins now.
    pub(crate) fn mark(&self) -> Mark {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Mark { written: log.written.len(), log: Arc::clone(&self.log) }
    }

    pub(crate) fn stop(self) {
        for handle in self.handles {
            handle.shutdown(END_WITHIN);
        }
    }
}

/// The beats from some moment on.
pub(crate) struct Mark {
    written: usize,
    log: Arc<Mutex<Log>>,
}

impl Mark {
    /// How late those were that began since.
    pub(crate) fn late(&self) -> Late {
        late(&self.log.lock().unwrap_or_else(PoisonError::into_inner), self.written)
    }
}

fn late(log: &Log, from: usize) -> Late {
    let every = u64::try_from(EVERY.as_micros()).unwrap_or(u64::MAX);
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e3;
    let mut late = Late::default();
    for index in from.max(1)..log.written.len() {
        let (began, done) = log.written[index];
        let due = began.min(log.written[index - 1].0 + every);
        late.written.push(ms(due, done));
        // A beat that was overtaken by the next was seen when that was.
        let number = index as u64 + 2;
        if let Some((_, at)) = log.seen.iter().find(|(beat, _)| *beat >= number) {
            assert!(*at >= began, "beat {number} was seen before it was written");
            late.seen.push(ms(due, *at));
        }
    }
    late
}
