//! 999 sessions with a small message now and then, alone and beside one that has all the bytes it
//! can get rid of.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{HELLO, Kind, Plan, all, between, least};

const SMALL: usize = 999;
const MESSAGE: usize = 100;
const EVERY: Duration = Duration::from_millis(50);
const RUN: Duration = Duration::from_secs(4);
const WARM: Duration = Duration::from_millis(500);

pub(crate) fn run(plan: &Plan) {
    println!(
        "{SMALL} sessions, {MESSAGE} bytes each every {} ms, alone and beside one with bulk; from \
         the write to the read, ms",
        EVERY.as_millis()
    );
    let kinds = [Kind::Yamux, Kind::Sidepath];
    let both = |kind| [round(kind, false), round(kind, true)];
    let best = plan.best(&kinds, both, |a, b| [0, 1].map(|i| least(a[i], b[i], |o| o.1)));
    for (kind, [alone, beside]) in &best {
        println!(
            "  {:18} alone p50 {:.2} p99 {:.2}, beside p50 {:.2} p99 {:.2}: p99 x {:.2}; bulk \
             {:.2} Gbit/s",
            kind.name(),
            alone.0,
            alone.1,
            beside.0,
            beside.1,
            beside.1 / alone.1,
            beside.2,
        );
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// p50 and p99 of the small, and the rate of the bulk in Gbit/s.
fn round(kind: Kind, bulk: bool) -> (f64, f64, f64) {
    STOP.store(false, Relaxed);
    let zero = Instant::now();
    let ((), (mut ages, bytes)) = between(
        kind,
        SMALL + usize::from(bulk),
        async |mut streams| {
            let mut tasks = Vec::new();
            if bulk {
                let mut stream = streams.pop().expect("the one with bulk");
                tasks.push(tokio::task::spawn_local(async move {
                    let piece = vec![7; 64 << 10];
                    while !STOP.load(Relaxed) && stream.write_all(&piece).await.is_ok() {
                        // Some contenders are always ready: the others want a turn, too.
                        tokio::task::yield_now().await;
                    }
                    let _ = stream.shutdown().await;
                }));
            }
            for (index, mut stream) in streams.into_iter().enumerate() {
                tasks.push(tokio::task::spawn_local(async move {
                    let phase = EVERY.mul_f64(index as f64 / SMALL as f64);
                    let mut due = tokio::time::Instant::now() + phase;
                    while !STOP.load(Relaxed) {
                        tokio::time::sleep_until(due).await;
                        due += EVERY;
                        let now = u64::try_from(zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
                        let mut message = [0; MESSAGE];
                        message[..8].copy_from_slice(&now.to_le_bytes());
                        if stream.write_all(&message).await.is_err() {
                            break;
                        }
                        let _ = stream.flush().await;
                    }
                    let _ = stream.shutdown().await;
                }));
            }
            tokio::time::sleep(WARM + RUN).await;
            STOP.store(true, Relaxed);
            for task in tasks {
                task.await.expect("a task that ends");
            }
        },
        async |mut streams| {
            let skip = kind == Kind::Yamux;
            let big = bulk.then(|| streams.pop().expect("the one with bulk"));
            let bytes = tokio::task::spawn_local(async move {
                let Some(mut stream) = big else { return 0 };
                let mut buffer = vec![0; 64 << 10];
                let mut got = 0;
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    got += n;
                }
                got
            });
            let tasks = streams
                .into_iter()
                .map(|mut stream| async move {
                    let mut ages = Vec::new();
                    if skip {
                        assert_eq!(stream.read_u8().await.expect("a byte"), HELLO);
                    }
                    let mut message = [0; MESSAGE];
                    while stream.read_exact(&mut message).await.is_ok() {
                        let said = u64::from_le_bytes(message[..8].try_into().expect("8 bytes"));
                        if zero.elapsed() > WARM {
                            let age = zero.elapsed().saturating_sub(Duration::from_nanos(said));
                            ages.push(age.as_secs_f64() * 1e3);
                        }
                    }
                    ages
                })
                .collect();
            let ages: Vec<f64> = all(tasks).await.into_iter().flatten().collect();
            (ages, bytes.await.expect("a task that ends"))
        },
    );
    ages.sort_by(f64::total_cmp);
    let at = |percent: usize| ages[(ages.len() - 1) * percent / 100];
    let gbit = bytes as f64 * 8.0 / 1e9 / (WARM + RUN).as_secs_f64();
    (at(50), at(99), gbit)
}
