//! One stream by storage, a small session beside it, and what the medium gives to one that writes
//! and one that reads at the same time; then, once more, with beats beside it. The medium is a file
//! in the folder for temporary files (`TMPDIR`), opened with O_DIRECT where that is possible.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use volumes::{BenchOptions, bench};

use crate::{
    beats::{self, Beats, Late},
    common::{Any, Kind, Plan, Took, Watch, between, between_nodes, least, nodes},
};

const BYTES: usize = 512 << 20;
const PIECE: usize = 256 << 10;
const EVERY: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy)]
struct Outcome {
    took: Took,
    /// Of the small session, ms.
    p50: f64,
    p99: f64,
    raw_mb_s: f64,
    record_mb_s: f64,
}

impl Outcome {
    fn mb_s(&self) -> f64 {
        BYTES as f64 / 1e6 / self.took.seconds
    }
}

pub(crate) fn run(plan: &Plan) {
    println!("one stream by storage, {} MiB, beside the medium itself", BYTES >> 20);
    let better = |a: Outcome, b: Outcome| Outcome {
        raw_mb_s: a.raw_mb_s.max(b.raw_mb_s),
        record_mb_s: a.record_mb_s.max(b.record_mb_s),
        ..least(a, b, |o| o.took.seconds)
    };
    for (kind, o) in plan.best(&[Kind::Storage], round, better) {
        println!(
            "  {:18} {:.0} MB/s  {:.3} CPU s/Gbit  {:.2} x raw write and read ({:.0} MB/s)  {:.2} \
             x bare records ({:.0} MB/s); 8 bytes every {} ms beside it: p50 {:.1} p99 {:.1} ms",
            kind.name(),
            o.mb_s(),
            o.took.cpu / (BYTES as f64 * 8.0 / 1e9),
            o.mb_s() / o.raw_mb_s,
            o.raw_mb_s,
            o.mb_s() / o.record_mb_s,
            o.record_mb_s,
            EVERY.as_millis(),
            o.p50,
            o.p99,
        );
    }
    let mut late = Late::default();
    for _ in 0..plan.rounds.max(1) {
        let more = round_of_beats();
        late.written.extend(more.written);
        late.seen.extend(more.seen);
    }
    let (mut written, mut seen) = (late.written, late.seen);
    println!(
        "  a beat every {} ms beside it, {} of them, after it was due: written p50 {:.1} p99 {:.1}, \
         seen by its reader p50 {:.1} p99 {:.1} ms",
        beats::EVERY.as_millis(),
        written.len(),
        percentile(&mut written, 50),
        percentile(&mut written, 99),
        percentile(&mut seen, 50),
        percentile(&mut seen, 99),
    );
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1).expect("at least one value");
    values[last * percent / 100]
}

/// The stream alone, and beats beside it.
fn round_of_beats() -> Late {
    let nodes = nodes(&beats::NODES);
    let beats = Beats::start(&nodes);
    let late = between_nodes(
        Kind::Storage,
        Some(&nodes),
        1,
        async |mut streams| {
            let mut bulk = streams.remove(0);
            write_bulk(&mut bulk).await;
            let mut rest = Vec::new();
            let _ = bulk.read_to_end(&mut rest).await;
        },
        async |mut streams| {
            let mut bulk = streams.remove(0);
            let mark = beats.mark();
            read_bulk(&mut bulk).await;
            let late = mark.late();
            let _ = bulk.shutdown().await;
            late
        },
    );
    beats.stop();
    late.1
}

async fn write_bulk(bulk: &mut Any) {
    let piece = vec![7; PIECE];
    for _ in 0..BYTES / PIECE {
        bulk.write_all(&piece).await.expect("a stream that takes bytes");
    }
    bulk.shutdown().await.expect("an end");
}

async fn read_bulk(bulk: &mut Any) {
    let mut buffer = vec![0; PIECE];
    let mut left = BYTES;
    while left > 0 {
        let n = bulk.read(&mut buffer).await.expect("a stream that gives bytes");
        assert!(n > 0, "it ended early, {left} bytes left");
        left -= n;
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

fn round(kind: Kind) -> Outcome {
    let path = std::env::temp_dir().join("sidepath-medium");
    let options = BenchOptions { duration: Duration::from_secs(1), single_host: true };
    let medium = bench(path, &options).expect("a medium");
    STOP.store(false, Relaxed);
    let zero = Instant::now();
    let ((), (took, mut ages)) = between(
        kind,
        2,
        async |mut streams| {
            let mut small = streams.pop().expect("two streams");
            let mut bulk = streams.pop().expect("two streams");
            let beats = tokio::task::spawn_local(async move {
                while !STOP.load(Relaxed) {
                    let now = u64::try_from(zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    small.write_u64(now).await.expect("a stream that takes bytes");
                    tokio::time::sleep(EVERY).await;
                }
                let _ = small.shutdown().await;
            });
            write_bulk(&mut bulk).await;
            beats.await.expect("a task that ends");
            let mut rest = Vec::new();
            let _ = bulk.read_to_end(&mut rest).await;
        },
        async |mut streams| {
            let mut small = streams.pop().expect("two streams");
            let mut bulk = streams.pop().expect("two streams");
            let ages = tokio::task::spawn_local(async move {
                let mut ages = Vec::new();
                while let Ok(said) = small.read_u64().await {
                    let age = zero.elapsed().saturating_sub(Duration::from_nanos(said));
                    ages.push(age.as_secs_f64() * 1e3);
                }
                ages
            });
            let watch = Watch::start();
            read_bulk(&mut bulk).await;
            let took = watch.stop();
            STOP.store(true, Relaxed);
            let _ = bulk.shutdown().await;
            (took, ages.await.expect("a task that ends"))
        },
    );
    Outcome {
        took,
        p50: percentile(&mut ages, 50),
        p99: percentile(&mut ages, 99),
        raw_mb_s: medium.raw_mb_s,
        record_mb_s: medium.record_mb_s,
    }
}
