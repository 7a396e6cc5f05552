//! What the NBD client costs beside the least loop that speaks the protocol, on the same server.
//!
//! `nbd [HOST:PORT | /SOCKET]`; without a server it starts nbdkit with memory, once on a socket and
//! once on TCP. Rounds of both alternate; latencies are medians, bandwidths the best of all rounds.
//! The raw loop has one request in flight, and so has ours, except where two threads are named: there
//! one of each reads while the other writes, the raw ones with a connection each, and ours with what it
//! opened itself.
#![allow(clippy::disallowed_methods, reason = "a benchmark may start its server")]

use std::io::{IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use volumes::buffer::Pool;
use volumes::media::BlockDevice;
use volumes::media::nbd::{NbdUrl, Options, open};

const SPAN: u64 = 32 << 20;
const ROUNDS: usize = 7;
const SLICE: Duration = Duration::from_millis(300);

type Fail = Box<dyn std::error::Error + Send + Sync>;

trait Both: Read + Write + Send {}
impl<T: Read + Write + Send> Both for T {}

/// The least client: blocking, one request, simple replies.
struct Raw(Box<dyn Both>);

impl Raw {
    fn connect(at: &str) -> Result<Self, Fail> {
        let mut s: Box<dyn Both> = if at.starts_with('/') {
            Box::new(UnixStream::connect(at)?)
        } else {
            let tcp = TcpStream::connect(at)?;
            tcp.set_nodelay(true)?;
            Box::new(tcp)
        };
        s.read_exact(&mut [0; 18])?;
        // No zeroes, then EXPORT_NAME with the empty name.
        s.write_all(&[&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 1, 0, 0, 0, 0]].concat())?;
        s.read_exact(&mut [0; 10])?;
        Ok(Self(s))
    }

    fn request(command: u16, offset: u64, len: usize) -> [u8; 28] {
        let mut b = [0; 28];
        b[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
        b[6..8].copy_from_slice(&command.to_be_bytes());
        b[16..24].copy_from_slice(&offset.to_be_bytes());
        b[24..].copy_from_slice(&u32::try_from(len).unwrap_or(0).to_be_bytes());
        b
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Fail> {
        let head = Self::request(1, offset, data.len());
        let n = self.0.write_vectored(&[IoSlice::new(&head), IoSlice::new(data)])?;
        self.0.write_all(&data[n - head.len()..])?;
        Ok(self.0.read_exact(&mut [0; 16])?)
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Fail> {
        self.0.write_all(&Self::request(0, offset, data.len()))?;
        self.0.read_exact(&mut [0; 16])?;
        Ok(self.0.read_exact(data)?)
    }
}

fn latency(mut pair: impl FnMut(u64) -> Result<(), Fail>) -> Result<Vec<f64>, Fail> {
    let (began, mut us, mut at) = (Instant::now(), Vec::new(), 0);
    while began.elapsed() < SLICE {
        let start = Instant::now();
        pair(at)?;
        us.push(start.elapsed().as_secs_f64() * 1e6);
        at = (at + 4096) % SPAN;
    }
    Ok(us)
}

fn bandwidth(block: usize, mut one: impl FnMut(u64) -> Result<(), Fail>) -> Result<f64, Fail> {
    let (began, mut at, mut bytes) = (Instant::now(), 0, 0.0);
    while began.elapsed() < SLICE {
        one(at)?;
        at = (at + block as u64) % SPAN;
        bytes += Duration::from_micros(block as u64).as_secs_f64() * 1e6;
    }
    Ok(bytes / 1e6 / began.elapsed().as_secs_f64())
}

fn p50(us: &mut [f64]) -> f64 {
    us.sort_by(f64::total_cmp);
    us.get(us.len() / 2).copied().unwrap_or(0.0)
}

fn measure(at: &str) -> Result<(), Fail> {
    let url = if at.starts_with('/') {
        format!("nbd+unix:///?socket={at}")
    } else {
        format!("nbd://{at}/")
    };
    let device = open(&NbdUrl::parse(&url)?, &Options::new(true))?;
    println!("{url} connections: {}", device.connections());
    let pool = Pool::new();
    let mut raw = Raw::connect(at)?;
    let mut buf = pool.take_len(4096);
    let (mut ours_us, mut raw_us) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw_us.extend(latency(|at| {
            raw.write(at, buf.as_ref())?;
            raw.read(at, buf.as_mut())
        })?);
        ours_us.extend(latency(|at| {
            device.write_at(at, buf.as_ref())?;
            Ok(device.read_at(at, buf.as_mut())?)
        })?);
    }
    let (o, r) = (p50(&mut ours_us), p50(&mut raw_us));
    println!("  write 4 KiB + read 4 KiB, p50  ours {o:7.1} us  raw {r:7.1} us  {:.2} x", o / r);
    for block in [256 << 10, 1 << 20] {
        let mut buf = pool.take_len(block);
        let mut best = [[0.0_f64; 2]; 3];
        let mut note = |what: usize, whose: usize, mb_s: f64| {
            best[what][whose] = best[what][whose].max(mb_s);
        };
        for _ in 0..ROUNDS {
            note(0, 1, bandwidth(block, |at| raw.write(at, buf.as_ref()))?);
            note(0, 0, bandwidth(block, |at| Ok(device.write_at(at, buf.as_ref())?))?);
            note(1, 1, bandwidth(block, |at| raw.read(at, buf.as_mut()))?);
            note(1, 0, bandwidth(block, |at| Ok(device.read_at(at, buf.as_mut())?))?);
            let mut second = Raw::connect(at)?;
            let mut other = pool.take_len(block);
            let both = std::thread::scope(|scope| {
                let writing =
                    scope.spawn(|| bandwidth(block, |at| second.write(at, other.as_ref())));
                let read = bandwidth(block, |at| raw.read(at, buf.as_mut()))?;
                Ok::<_, Fail>(read + writing.join().map_err(|_| "a thread failed")??)
            })?;
            note(2, 1, both);
            let both = std::thread::scope(|scope| {
                let write = || bandwidth(block, |at| Ok(device.write_at(at, other.as_ref())?));
                let writing = scope.spawn(write);
                let read = bandwidth(block, |at| Ok(device.read_at(at, buf.as_mut())?))?;
                Ok::<_, Fail>(read + writing.join().map_err(|_| "a thread failed")??)
            })?;
            note(2, 0, both);
            other.as_mut().fill(1);
        }
        for (what, [o, r]) in ["write", "read", "two threads"].iter().zip(best) {
            let kib = block >> 10;
            println!(
                "  {kib:4} KiB {what:12}  ours {o:6.0} MB/s  raw {r:6.0} MB/s  {:.2} x",
                o / r
            );
        }
    }
    Ok(())
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> Result<(), Fail> {
    if let Some(at) = std::env::args().nth(1) {
        return measure(&at);
    }
    let socket = std::env::temp_dir().join(format!("sidepath-nbd-{}", std::process::id()));
    let socket = socket.display().to_string();
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    for (at, args) in [
        (socket.clone(), vec!["-U".to_owned(), socket.clone()]),
        (
            format!("127.0.0.1:{port}"),
            vec!["-i".into(), "127.0.0.1".into(), "-p".into(), port.to_string()],
        ),
    ] {
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(["--exit-with-parent", "-f", "memory", "64M"]).args(args);
        let _server = Server(nbdkit.spawn()?);
        let until = Instant::now() + Duration::from_secs(10);
        while Raw::connect(&at).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        measure(&at)?;
    }
    let _ = std::fs::remove_file(socket);
    Ok(())
}
