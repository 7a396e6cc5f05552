//! One stream, as fast as it goes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Kind, Plan, Took, Watch, beside, between, least};

const BYTES: usize = 1 << 30;
const PIECE: usize = 256 << 10;

pub(crate) fn run(plan: &Plan) {
    println!("one stream, {} MiB, writes and reads of {} KiB", BYTES >> 20, PIECE >> 10);
    let kinds = [Kind::Tcp, Kind::Tls, Kind::Yamux, Kind::Sidepath];
    let best = plan.best(&kinds, round, |a, b| least(a, b, |took| took.seconds));
    let gbit = BYTES as f64 * 8.0 / 1e9;
    for (kind, took) in &best {
        println!(
            "  {:18} {:6.2} Gbit/s  {:.3} CPU s/Gbit  {}",
            kind.name(),
            gbit / took.seconds,
            took.cpu / gbit,
            beside(&best, Kind::Tls, |tls| tls.seconds / took.seconds),
        );
    }
}

fn round(kind: Kind) -> Took {
    let (_, took) = between(
        kind,
        1,
        async |mut streams| {
            let mut stream = streams.remove(0);
            let piece = vec![7; PIECE];
            for _ in 0..BYTES / PIECE {
                stream.write_all(&piece).await.expect("a stream that takes bytes");
            }
            stream.flush().await.expect("a stream that takes bytes");
            stream.shutdown().await.expect("an end");
            // The other side ends first.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        },
        async |mut streams| {
            let mut stream = streams.remove(0);
            let mut buffer = vec![0; PIECE];
            let mut left = BYTES + usize::from(kind == Kind::Yamux);
            let watch = Watch::start();
            while left > 0 {
                let n = stream.read(&mut buffer).await.expect("a stream that gives bytes");
                assert!(n > 0, "{} ended early, {left} bytes left", kind.name());
                left -= n;
            }
            let took = watch.stop();
            let _ = stream.shutdown().await;
            took
        },
    );
    took
}
