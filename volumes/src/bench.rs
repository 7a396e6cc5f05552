//! How fast record write to read is, beside raw writes and reads of the same medium.
//!
//! ```text
//!   round 1..3:  record latency | raw mailbox | record stream | raw concurrent write and read
//! ```
//!
//! All four alternate within one run on the same bytes of the same medium, so that a noisy
//! machine disturbs all of them. What is written: for a path that is a file (or nothing yet), a
//! temporary volume beside it, removed at the end; for a block device or an export, the rings between the
//! first two nodes of the idle sidepath volume on it, which the bench claims as any daemon would. A live
//! volume is refused.

use crate::buffer::Pool;
use crate::event::{Fact, Micros, Ring};
use crate::format::superblock::Superblock;
use crate::init::{InitError, InitOptions, init, watch};
use crate::media::{self, BlockDevice, Direct, How, Kind, Location};
use crate::pace::Class;
use crate::runtime::{AttachError, AttachOptions, Clock, Handle, attach, read_superblock};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

const ROUNDS: u32 = 3;
const UNIT: usize = 4096;
const CHUNK: usize = 1 << 20;
/// A frame that fills one 4 KiB record.
const SMALL_FRAME: usize = UNIT - 64 - 4;
/// A segmentation-offload super-packet, sealed.
const LARGE_FRAME: usize = 65_536;

#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Of each of the four measurements, all rounds together.
    pub duration: Duration,
    pub single_host: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { duration: Duration::from_secs(3), single_host: false }
    }
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    pub p50_us: u64,
    pub p99_us: u64,
    pub samples: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    pub path: String,
    pub direct_io: bool,
    /// One 4 KiB record, from `store` to its frame at the reader.
    pub record_latency: Latency,
    /// One 4 KiB block: one thread writes, another spins reading.
    pub raw_latency: Latency,
    pub latency_ratio_p50: f64,
    pub latency_ratio_p99: f64,
    /// Frame bytes that arrived.
    pub record_mb_s: f64,
    /// Mean of the two directions below.
    pub raw_mb_s: f64,
    pub raw_write_mb_s: f64,
    pub raw_read_mb_s: f64,
    pub throughput_ratio: f64,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("temporary volume: {0}")]
    Init(#[from] InitError),
    #[error(
        "{path}: node {node} is beating on this volume; the bench needs it idle, stop its daemons"
    )]
    Live { path: PathBuf, node: u8 },
    #[error(
        "it compares records with bare reads and writes of blocks, which an object store has not; \
         `sidepath status` shows latency and requests of an attached volume"
    )]
    Objects,
    #[error("{path}: {detail}")]
    Io { path: PathBuf, detail: String },
}

impl BenchError {
    #[must_use]
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Attach(e) => e.is_input_error(),
            Self::Init(e) => e.is_input_error(),
            Self::Live { .. } | Self::Objects => true,
            Self::Io { .. } => false,
        }
    }
}

/// Removes the temporary volume, also after a failure.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn bench(at: impl Into<Location>, o: &BenchOptions) -> Result<BenchReport, BenchError> {
    let at = at.into();
    if at.class() == Class::Object {
        return Err(BenchError::Objects);
    }
    let direct = if o.single_host { Direct::Preferred } else { Direct::Required };
    let how = How { write: true, direct, exclusive: false };
    let Some(path) = at.path() else {
        // No page cache of ours lies before an export.
        let device = media::connect(&at, how).map_err(|e| AttachError::Open(Arc::new(e)))?;
        return run(&at, &*device, true, o);
    };
    let open = |p: &Path| media::open(p, how).map_err(|e| AttachError::Open(Arc::new(e)));
    let is_block =
        std::fs::metadata(path).is_ok_and(|m| !m.is_file()) && open(path)?.kind() == Kind::Block;
    if is_block {
        let device = open(path)?;
        return run(&at, &device, device.is_direct(), o);
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".bench-{}", std::process::id()));
    let temporary = Temporary(path.with_file_name(name));
    let init_options = InitOptions {
        name: "bench".into(),
        nodes: vec![1, 2],
        size: Some(40 << 20),
        single_host: o.single_host,
        ..InitOptions::default()
    };
    init(&temporary.0, &init_options, |_, _| {})?;
    let device = open(&temporary.0)?;
    run(&(&temporary.0).into(), &device, device.is_direct(), o)
}

fn run(
    at: &Location,
    device: &dyn BlockDevice,
    direct_io: bool,
    o: &BenchOptions,
) -> Result<BenchReport, BenchError> {
    let volume = read_superblock(device, &at.label())?;
    let io = |detail: String| BenchError::Io { path: at.label(), detail };
    if let Some(node) = watch(device, &volume).map_err(|e| io(e.to_string()))? {
        return Err(BenchError::Live { path: at.label(), node });
    }
    let pair = Pair::attach(at, &volume, o)?;
    let ring = Region::of(&volume);
    let slice = o.duration / ROUNDS;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    let (mut stream, mut writes, mut reads) = (0.0, 0.0, 0.0);
    for _ in 0..ROUNDS {
        ours.extend(pair.latency(slice));
        raw.extend(raw_latency(device, &ring, slice).map_err(io)?);
        stream += pair.stream(slice);
        let (w, r) = raw_stream(device, &ring, slice).map_err(io)?;
        writes += w;
        reads += r;
    }
    pair.end();
    let rounds = f64::from(ROUNDS);
    let (ours, raw) = (latency(ours), latency(raw));
    let (record_mb_s, raw_write_mb_s, raw_read_mb_s) =
        (stream / rounds, writes / rounds, reads / rounds);
    let raw_mb_s = f64::midpoint(raw_write_mb_s, raw_read_mb_s);
    Ok(BenchReport {
        path: at.to_string(),
        direct_io,
        record_latency: ours,
        raw_latency: raw,
        latency_ratio_p50: ratio(float(ours.p50_us), float(raw.p50_us)),
        latency_ratio_p99: ratio(float(ours.p99_us), float(raw.p99_us)),
        record_mb_s,
        raw_mb_s,
        raw_write_mb_s,
        raw_read_mb_s,
        throughput_ratio: ratio(record_mb_s, raw_mb_s),
    })
}

fn float(v: u64) -> f64 {
    Duration::from_micros(v).as_secs_f64() * 1e6
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn latency(mut us: Vec<u64>) -> Latency {
    us.sort_unstable();
    let at = |percent: usize| us.get(us.len() * percent / 100).copied().unwrap_or(0);
    Latency { p50_us: at(50), p99_us: at(99), samples: us.len() }
}

/// Pauses between 0.3 and 1.3 ms, the same for both latency measurements.
struct Pace(u64);

impl Pace {
    fn pause(&mut self) {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros(300 + (self.0 >> 33) % 1000));
    }
}

/// Two nodes attached to the volume under test.
struct Pair {
    writer: Arc<OnceLock<Handle>>,
    reader: Handle,
    clock: Clock,
    to: u8,
    samples: Arc<Mutex<Vec<u64>>>,
    arrived: Arc<AtomicU64>,
}

impl Pair {
    fn attach(at: &Location, volume: &Superblock, o: &BenchOptions) -> Result<Self, BenchError> {
        let (from, to) = (volume.geometry.nodes[0], volume.geometry.nodes[1]);
        let began = Instant::now();
        let clock: Clock =
            Arc::new(move || u64::try_from(began.elapsed().as_micros()).unwrap_or(0).max(1));
        let options =
            |node| AttachOptions { single_host: o.single_host, ..AttachOptions::new(at, node) };
        let writer: Arc<OnceLock<Handle>> = Arc::default();
        let samples: Arc<Mutex<Vec<u64>>> = Arc::default();
        let arrived = Arc::new(AtomicU64::new(0));
        let (w, s, a, c) = (writer.clone(), samples.clone(), arrived.clone(), clock.clone());
        let heard = move |fact: Fact| match fact {
            Fact::Frames { frames, .. } => {
                let now = c();
                for frame in frames {
                    let stamp = frame.get(..8).and_then(|b| b.try_into().ok());
                    let sent = stamp.map_or(0, u64::from_le_bytes);
                    if sent != 0 {
                        let mut samples = s.lock().unwrap_or_else(PoisonError::into_inner);
                        samples.push(now.saturating_sub(sent));
                    }
                    a.fetch_add(frame.len() as u64, Ordering::Relaxed);
                }
            }
            Fact::Cursor { ring, number, .. } => {
                if let Some(writer) = w.get() {
                    writer.released(to, ring, number);
                }
            }
            _ => {}
        };
        let reader = attach(options(to), clock.clone(), Arc::new(heard))?;
        let _ = writer.set(attach(options(from), clock.clone(), Arc::new(|_| {}))?);
        let pair = Self { writer, reader, clock, to, samples, arrived };
        let until = Instant::now() + Duration::from_secs(15);
        while pair.epochs().contains(&0) {
            if Instant::now() > until {
                let reason = pair.reader.status().reason.unwrap_or_default();
                let detail = format!("the bench could not claim its nodes: {reason}");
                return Err(BenchError::Io { path: at.label(), detail });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // The reader learns of the writer's epoch at a beat.
        std::thread::sleep(Duration::from_millis(350));
        Ok(pair)
    }

    fn epochs(&self) -> [u64; 2] {
        [self.writer.get().map_or(0, Handle::epoch), self.reader.epoch()]
    }

    fn now(&self) -> Micros {
        (self.clock)()
    }

    fn send(&self, frame: &[u8]) -> bool {
        self.writer.get().is_some_and(|w| w.store(self.to, Ring::Data, frame).is_ok())
    }

    fn latency(&self, d: Duration) -> Vec<u64> {
        let until = Instant::now() + d;
        let mut pace = Pace(7);
        let mut frame = vec![0; SMALL_FRAME];
        while Instant::now() < until {
            pace.pause();
            frame[..8].copy_from_slice(&self.now().to_le_bytes());
            let before = self.arrived.load(Ordering::Relaxed);
            if !self.send(&frame) {
                continue;
            }
            // One at a time, as the raw writer, which waits for its own write: otherwise one
            // stall of the medium is one sample there and hundreds here.
            while self.arrived.load(Ordering::Relaxed) == before && Instant::now() < until {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
        std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stream(&self, d: Duration) -> f64 {
        let frame = vec![0; LARGE_FRAME];
        let (began, before) = (Instant::now(), self.arrived.load(Ordering::Relaxed));
        while began.elapsed() < d {
            if !self.send(&frame) {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let bytes = self.arrived.load(Ordering::Relaxed) - before;
        let mb_s = float(bytes) / 1e6 / began.elapsed().as_secs_f64();
        let until = Instant::now() + Duration::from_secs(5);
        let busy = |l: &crate::status::LaneStatus| l.used_bytes + l.buffered_bytes > 0;
        while Instant::now() < until
            && self.writer.get().is_some_and(|w| w.status().lanes.iter().any(busy))
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        mb_s
    }

    fn end(self) {
        self.reader.shutdown(Duration::from_secs(2));
        // The sink held a second reference; its threads are gone by now.
        if let Some(writer) = Arc::into_inner(self.writer).and_then(OnceLock::into_inner) {
            writer.shutdown(Duration::from_secs(2));
        }
    }
}

/// The data ring that both measurements use.
struct Region {
    start: u64,
    chunks: u64,
}

impl Region {
    fn of(volume: &Superblock) -> Self {
        let g = &volume.geometry;
        let start = g.ring_offset(g.nodes[0], g.nodes[1], Ring::Data).unwrap_or(0);
        let bytes = u64::from(g.data_blocks) * u64::from(g.block_bytes);
        Self { start, chunks: bytes / CHUNK as u64 }
    }
}

fn raw_latency(device: &dyn BlockDevice, ring: &Region, d: Duration) -> Result<Vec<u64>, String> {
    let began = Instant::now();
    let now = || u64::try_from(began.elapsed().as_micros()).unwrap_or(0).max(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buf = Pool::new().take_len(UNIT);
            let (mut last, mut samples) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                device.read_at(ring.start, buf.as_mut()).map_err(|e| e.to_string())?;
                let stamp = buf.as_ref().get(8..16).and_then(|b| b.try_into().ok());
                let sent = stamp.map_or(0, u64::from_le_bytes);
                let whole = crate::format::crc32(&buf.as_ref()[8..])
                    == crate::format::bytes::u32_at(buf.as_ref(), 0);
                if whole && sent > last {
                    // What lay there before this run is older than its beginning.
                    if last != 0 {
                        samples.push(now().saturating_sub(sent));
                    }
                    last = sent;
                }
            }
            Ok::<_, String>(samples)
        });
        let mut buf = Pool::new().take_len(UNIT);
        buf.as_mut().fill(0);
        let mut pace = Pace(7);
        let mut result = Ok(());
        while result.is_ok() && began.elapsed() < d {
            pace.pause();
            buf.as_mut()[8..16].copy_from_slice(&now().to_le_bytes());
            let crc = crate::format::crc32(&buf.as_ref()[8..]);
            buf.as_mut()[..4].copy_from_slice(&crc.to_le_bytes());
            result = device.write_at(ring.start, buf.as_ref()).map_err(|e| e.to_string());
        }
        std::thread::sleep(Duration::from_millis(5));
        stop.store(true, Ordering::Relaxed);
        let samples = reader.join().map_err(|_| "the reading thread failed".to_owned())??;
        result.map(|()| samples)
    })
}

/// MB/s written and read at the same time.
fn raw_stream(device: &dyn BlockDevice, ring: &Region, d: Duration) -> Result<(f64, f64), String> {
    let chunks = ring.chunks.max(1);
    let work = |write: bool| {
        let began = Instant::now();
        let mut buf = Pool::new().take_len(CHUNK);
        let mut done = 0u64;
        while began.elapsed() < d && ring.chunks > 0 {
            // The reader starts half a ring away.
            let at =
                ring.start + (done + if write { 0 } else { chunks / 2 }) % chunks * CHUNK as u64;
            let result = if write {
                device.write_at(at, buf.as_ref())
            } else {
                device.read_at(at, buf.as_mut())
            };
            result.map_err(|e| e.to_string())?;
            done += 1;
        }
        Ok::<_, String>(float(done * CHUNK as u64) / 1e6 / began.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| work(false));
        let written = work(true)?;
        let read = reader.join().map_err(|_| "the reading thread failed".to_owned())??;
        Ok((written, read))
    })
}
