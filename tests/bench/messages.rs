//! A thousand sessions, each with a task that writes messages of 100 bytes and one that reads them.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Kind, Plan, Took, Watch, all, beside, between, least};

const SESSIONS: usize = 1000;
const MESSAGE: usize = 100;
const WARM: Duration = Duration::from_millis(500);
const RUN: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
struct Outcome {
    messages: f64,
    took: Took,
    calls: Option<f64>,
    /// Receivers that got something while it was measured.
    served: usize,
}

impl Outcome {
    fn rate(&self) -> f64 {
        self.messages / self.took.seconds
    }
}

pub(crate) fn run(plan: &Plan) {
    println!("{SESSIONS} sessions, messages of {MESSAGE} bytes, one write each");
    let kinds = [Kind::Tcp, Kind::Yamux, Kind::Sidepath];
    let best = plan.best(&kinds, round, |a, b| least(a, b, |o| -o.rate()));
    for (kind, outcome) in &best {
        let calls = match outcome.calls {
            Some(calls) => format!("{:.3}", calls / outcome.messages),
            None => "? (needs perf)".to_owned(),
        };
        println!(
            "  {:18} {:6.3} M messages/s  {:.2} CPU s/Gbit  {calls} system calls per message, \
             both ends  {} of {SESSIONS} receivers served  {}",
            kind.name(),
            outcome.rate() / 1e6,
            outcome.took.cpu / (outcome.messages * MESSAGE as f64 * 8.0 / 1e9),
            outcome.served,
            beside(&best, Kind::Yamux, |yamux| outcome.rate() / yamux.rate()),
        );
    }
}

static STOP: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicU64 = AtomicU64::new(0);

fn round(kind: Kind) -> Outcome {
    STOP.store(false, Relaxed);
    BYTES.store(0, Relaxed);
    let (outcome, counts) = between(
        kind,
        SESSIONS,
        async |streams| {
            let tasks = streams
                .into_iter()
                .map(|mut stream| async move {
                    let message = [7; MESSAGE];
                    while !STOP.load(Relaxed) {
                        if stream.write_all(&message).await.is_err() {
                            break;
                        }
                    }
                    let _ = stream.shutdown().await;
                })
                .collect();
            tokio::task::spawn_local(all(tasks));
            let (measured, answer) = tokio::sync::oneshot::channel();
            // The senders may keep this thread's runtime busy for long: a clock of its own.
            std::thread::spawn(move || {
                std::thread::sleep(WARM);
                let calls = Calls::start();
                let (watch, before) = (Watch::start(), BYTES.load(Relaxed));
                std::thread::sleep(RUN);
                let bytes = BYTES.load(Relaxed) - before;
                let took = watch.stop();
                let calls = calls.and_then(Calls::stop);
                STOP.store(true, Relaxed);
                let messages = bytes as f64 / MESSAGE as f64;
                let _ = measured.send(Outcome { messages, took, calls, served: 0 });
            });
            answer.await.expect("a measurement")
        },
        async |streams| {
            let tasks = streams
                .into_iter()
                .map(|mut stream| async move {
                    let mut buffer = vec![0; 16 << 10];
                    let mut got = 0_u64;
                    loop {
                        match stream.read(&mut buffer).await {
                            Ok(n) if n > 0 && !STOP.load(Relaxed) => {
                                BYTES.fetch_add(n as u64, Relaxed);
                                got += n as u64;
                            }
                            _ => return got,
                        }
                    }
                })
                .collect();
            all(tasks).await
        },
    );
    Outcome { served: counts.iter().filter(|n| **n > 0).count(), ..outcome }
}

/// System calls of this process, counted by perf.
struct Calls(Child);

impl Calls {
    fn start() -> Option<Self> {
        let mut child = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p"])
            .arg(std::process::id().to_string())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .ok()?;
        std::thread::sleep(Duration::from_millis(300));
        child.try_wait().ok()?.is_none().then_some(Self(child))
    }

    fn stop(mut self) -> Option<f64> {
        let pid = self.0.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status().ok()?;
        let mut said = String::new();
        self.0.stderr.take()?.read_to_string(&mut said).ok()?;
        self.0.wait().ok()?;
        said.lines().find_map(|line| line.split(',').next()?.parse().ok())
    }
}
