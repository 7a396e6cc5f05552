//! One-way latency through a volume in an object store beside bare PUT + GET of the same server, and
//! what an idle pair asks of it: `cargo run --example s3 -- s3://BUCKET/PREFIX?endpoint=...`. Formats
//! the place, which must be empty or hold a volume named `bench`.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use volumes::log::receive::Mode;
use volumes::media::s3::{Connector, Options, S3Url};
use volumes::media::{BlockDevice, Location};
use volumes::{AttachOptions, Fact, InitOptions, Ring, attach, init};

const ROUNDS: usize = 200;

fn show(what: &str, samples: &mut [Duration]) -> Duration {
    samples.sort();
    let at = |percent: usize| samples[(samples.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}", at(50), at(90), at(99));
    at(50)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = std::env::args().nth(1).ok_or("usage: s3 s3://BUCKET/PREFIX[?...]")?;
    let place = Location::parse(&text)?;
    let o = InitOptions {
        name: "bench".into(),
        nodes: vec![1, 2],
        force: true,
        ..InitOptions::default()
    };
    let volume = init(&place, &o, |_, _| {})?;
    let began = Instant::now();
    let clock: volumes::runtime::Clock =
        Arc::new(move || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let a = attach(AttachOptions::new(&place, 1), clock.clone(), Arc::new(|_| {}))?;
    let sink = Arc::new(move |fact| {
        if let (Fact::Frames { .. }, Ok(tell)) = (&fact, tell.lock()) {
            let _ = tell.send(Instant::now());
        }
    });
    let b = attach(AttachOptions::new(&place, 2), clock, sink)?;
    while a.epoch() == 0 || b.epoch() == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_secs(1));
    let raw = Connector::new(S3Url::parse(&text)?, Options::new(true)).open()?;
    let offset = volume.geometry.mailbox_offset(1, 2).ok_or("no mailbox")?;
    let pool = volumes::buffer::Pool::new();
    let (mut bare, mut oneway) = (Vec::new(), Vec::new());
    let mut buf = vec![0; 4096];
    for round in 0..ROUNDS {
        // In turn, so that both meet the same server.
        let body = [7; 3000];
        let lane = (volume.uuid, 1, 2);
        let data = volumes::format::mailbox::encode(
            pool.take_len(4096),
            lane,
            (1, round as u64 + 1),
            &body,
        );
        let at = Instant::now();
        raw.write_at(offset, &data)?;
        raw.read_at(offset, &mut buf)?;
        bare.push(at.elapsed());
        let at = Instant::now();
        a.store(2, Ring::Data, &body)?;
        oneway.push(told.recv_timeout(Duration::from_secs(30))?.duration_since(at));
        std::thread::sleep(Duration::from_millis(20));
    }
    let bare = show("bare PUT + GET", &mut bare);
    let oneway = show("one way        ", &mut oneway);
    println!("ratio of p50: {:.2}", oneway.as_secs_f64() / bare.as_secs_f64());
    for h in [&a, &b] {
        h.set_beat_interval(Duration::from_secs(1));
        h.set_reader_mode(Mode::Standby { interval: 1_000_000 });
    }
    std::thread::sleep(Duration::from_secs(12));
    let count = || [&a, &b].map(|h| h.status().requests.map_or(0, |r| r.all()));
    let (before, at) = (count(), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    for (before, after) in before.iter().zip(count()) {
        let n = u32::try_from(after - before)?;
        println!("idle: {:.2} requests/s", f64::from(n) / at.elapsed().as_secs_f64());
    }
    println!("{:?}", a.status().requests);
    a.shutdown(Duration::from_secs(5));
    b.shutdown(Duration::from_secs(5));
    Ok(())
}
