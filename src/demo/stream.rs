//! The traffic of the demo: numbered UDP packets both ways, made by hand and counted one by one.
//!
//! Each packet is a whole IPv4 packet with right checksums, as a kernel would hand it to a TUN
//! device. Its payload carries its number, the moment it was sent, and bytes that follow from the
//! number, so that a packet which arrives is known to be the one that was sent.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::nodes::ADDRESSES;
use crate::planes::channel::{Application, SendError};

/// In front of each packet on the interface: a `virtio_net_hdr` that asks for nothing.
const PREFIX: usize = 10;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const HEADERS: usize = PREFIX + IP_HEADER + UDP_HEADER;
/// Number and moment.
const STAMP: usize = 16;
/// Flows of the demo; an ordinary `write` flow.
const PORT: u16 = 47_440;
/// Payloads are of eight sizes, 16 to 912 bytes.
const SIZE_STEP: usize = 128;
const NOT_YET: u64 = u64::MAX;

/// What one direction came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Handed to the interface.
    pub sent: u64,
    /// Came out of the other, each counted once.
    pub delivered: u64,
    /// Came out again.
    pub duplicated: u64,
    /// Came after a later one.
    pub reordered: u64,
    /// Came with other bytes than were sent.
    pub damaged: u64,
    /// Longest time without a packet around the cut.
    pub silence_at_cut: Duration,
    /// The same around the heal and after it.
    pub silence_at_heal: Duration,
    /// Smoothed, from send to delivery.
    pub latency: Duration,
}

/// Both directions.
#[derive(Debug)]
pub struct Streams {
    shared: [Arc<Direction>; 2],
    clock: Arc<Clock>,
    threads: Vec<JoinHandle<()>>,
}

/// What all threads go by.
#[derive(Debug)]
struct Clock {
    zero: Instant,
    /// Nanoseconds since `zero`, or [`NOT_YET`].
    cut: AtomicU64,
    healed: AtomicU64,
    sent_for: AtomicU64,
    stop_sending: AtomicBool,
    stop: AtomicBool,
}

impl Clock {
    fn now(&self) -> u64 {
        u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(NOT_YET)
    }
}

#[derive(Debug, Default)]
struct Direction {
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    tally: Tally,
    /// One bit per number.
    seen: Vec<u64>,
    newest: Option<u64>,
    last_arrival: Option<u64>,
    worst_lately: u64,
    latency_ns: u64,
}

impl Direction {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streams {
    /// Starts both streams at `rate` packets per second each.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(ends: [Application; 2], rate: u32) -> Result<Self, String> {
        let clock = Arc::new(Clock {
            zero: Instant::now(),
            cut: AtomicU64::new(NOT_YET),
            healed: AtomicU64::new(NOT_YET),
            sent_for: AtomicU64::new(NOT_YET),
            stop_sending: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let shared = [Arc::new(Direction::default()), Arc::new(Direction::default())];
        let mut streams = Self { shared, clock, threads: Vec::new() };
        for index in 0..2 {
            let (from, to) = (ADDRESSES[index], ADDRESSES[1 - index]);
            let (sender, receiver) = (ends[index].clone(), ends[1 - index].clone());
            let (clock, way) = (streams.clock.clone(), streams.shared[index].clone());
            streams.spawn(move || send(&sender, (from, to), rate, &clock, &way))?;
            let (clock, way) = (streams.clock.clone(), streams.shared[index].clone());
            streams.spawn(move || receive(&receiver, (from, to), &clock, &way))?;
        }
        Ok(streams)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
        let thread = std::thread::Builder::new().name("demo-stream".into()).spawn(work);
        self.threads.push(thread.map_err(|e| format!("no thread: {e}"))?);
        Ok(())
    }

    /// Since the first packet.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.clock.zero.elapsed()
    }

    /// When sending was stopped, since the first packet.
    #[must_use]
    pub fn sent_for(&self) -> Duration {
        match self.clock.sent_for.load(Ordering::Acquire) {
            NOT_YET => self.elapsed(),
            ns => Duration::from_nanos(ns),
        }
    }

    /// The path was cut then.
    pub fn mark_cut(&self, at: Duration) {
        self.clock.cut.store(nanos(at), Ordering::Release);
    }

    /// It was healed then.
    pub fn mark_healed(&self, at: Duration) {
        self.clock.healed.store(nanos(at), Ordering::Release);
    }

    /// No more packets.
    pub fn stop_sending(&self) {
        self.clock.sent_for.store(self.clock.now(), Ordering::Release);
        self.clock.stop_sending.store(true, Ordering::Release);
    }

    /// Whether everything that was sent has come.
    #[must_use]
    pub fn all_arrived(&self) -> bool {
        self.clock.stop_sending.load(Ordering::Acquire)
            && self.tallies().iter().all(|tally| tally.sent == tally.delivered)
    }

    /// As counted up to now.
    #[must_use]
    pub fn tallies(&self) -> [Tally; 2] {
        [0, 1].map(|index| {
            let counted = self.shared[index].lock();
            Tally { latency: Duration::from_nanos(counted.latency_ns), ..counted.tally }
        })
    }

    /// Longest time without a packet since this was asked last, either direction, the present
    /// silence included.
    #[must_use]
    pub fn silence_since_last(&self) -> Duration {
        let now = self.clock.now();
        let worst = self.shared.iter().map(|way| {
            let mut counted = way.lock();
            let present = now.saturating_sub(counted.last_arrival.unwrap_or(0));
            std::mem::take(&mut counted.worst_lately).max(present)
        });
        Duration::from_nanos(worst.max().unwrap_or(0))
    }

    /// Ends both streams.
    pub fn finish(&mut self) -> [Tally; 2] {
        if !self.clock.stop_sending.load(Ordering::Acquire) {
            self.stop_sending();
        }
        self.clock.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let end = nanos(self.sent_for());
        for way in &self.shared {
            let mut counted = way.lock();
            // A stream that never came back was silent to its end.
            if counted.tally.delivered < counted.tally.sent {
                let from = counted.last_arrival.unwrap_or(0);
                counted.silence(from, end.max(from), &self.clock);
            }
        }
        self.tallies()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Counted {
    /// Notes the arrival, now, of a packet sent `latency` ago.
    fn arrived(&mut self, number: u64, latency: u64, clock: &Clock) {
        let now = clock.now();
        if let Some(last) = self.last_arrival.replace(now) {
            // While nothing was under way nobody waited: a sender that was late to send (a busy
            // machine) is not a silence of the path.
            self.silence(last.max(now.saturating_sub(latency)), now, clock);
        }
        let (word, bit) = (usize::try_from(number / 64).unwrap_or(usize::MAX), 1 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.tally.duplicated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.tally.delivered += 1;
        match self.newest {
            Some(newest) if number < newest => self.tally.reordered += 1,
            _ => self.newest = Some(number),
        }
        self.latency_ns = if self.latency_ns == 0 {
            latency
        } else {
            self.latency_ns - self.latency_ns / 16 + latency / 16
        };
    }

    /// Notes a time without packets. One that covers the cut belongs to the cut however long it
    /// lasted, and so does one that lies mostly before the heal: it began with the first packet
    /// that was not carried, a moment after the cut. Any other that ends after the heal belongs to
    /// the heal.
    fn silence(&mut self, from: u64, to: u64, clock: &Clock) {
        let (cut, healed) =
            (clock.cut.load(Ordering::Acquire), clock.healed.load(Ordering::Acquire));
        let length = to.saturating_sub(from);
        self.worst_lately = self.worst_lately.max(length);
        let length = Duration::from_nanos(length);
        if to < cut {
            return;
        }
        let within = healed.saturating_sub(from);
        if from <= cut || to < healed || within > to.saturating_sub(healed) {
            self.tally.silence_at_cut = self.tally.silence_at_cut.max(length);
        } else {
            self.tally.silence_at_heal = self.tally.silence_at_heal.max(length);
        }
    }
}

fn send(
    end: &Application,
    (from, to): (Ipv4Addr, Ipv4Addr),
    rate: u32,
    clock: &Clock,
    way: &Direction,
) {
    let mut number = 0;
    while !clock.stop_sending.load(Ordering::Acquire) {
        let due = number * 1_000_000_000 / u64::from(rate.max(1));
        let now = clock.now();
        if now < due {
            // Short naps, so that the end of the stream is not slept through at low rates.
            std::thread::sleep(Duration::from_nanos((due - now).min(50_000_000)));
            continue;
        }
        let packet = packet(from, to, number, now);
        // Counted before it is handed over, so that it cannot arrive before it was sent.
        way.lock().tally.sent += 1;
        match end.send(packet) {
            Ok(()) => number += 1,
            Err(SendError::Full) => {
                way.lock().tally.sent -= 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(_) => {
                way.lock().tally.sent -= 1;
                return;
            }
        }
    }
}

fn receive(end: &Application, (from, to): (Ipv4Addr, Ipv4Addr), clock: &Clock, way: &Direction) {
    while !clock.stop.load(Ordering::Acquire) {
        let Some(packet) = end.receive(Duration::from_millis(20)) else { continue };
        match open(&packet, from, to) {
            Some((number, sent)) => {
                let latency = clock.now().saturating_sub(sent);
                way.lock().arrived(number, latency, clock);
            }
            None => way.lock().tally.damaged += 1,
        }
    }
}

/// Makes a packet as it would come from the kernel.
fn packet(from: Ipv4Addr, to: Ipv4Addr, number: u64, now: u64) -> Bytes {
    let step = usize::try_from(number % 8).unwrap_or(0);
    let payload = STAMP + SIZE_STEP * step;
    let mut bytes = vec![0; HEADERS + payload];
    let total = u16::try_from(IP_HEADER + UDP_HEADER + payload).unwrap_or(u16::MAX);
    let ip = &mut bytes[PREFIX..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[6] = 0x40; // do not fragment
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let header = fold(sum(&ip[..IP_HEADER], 0));
    ip[10..12].copy_from_slice(&header.to_be_bytes());
    let udp = &mut ip[IP_HEADER..];
    udp[..2].copy_from_slice(&PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&(total - 20).to_be_bytes());
    udp[8..16].copy_from_slice(&number.to_be_bytes());
    udp[16..24].copy_from_slice(&now.to_be_bytes());
    for (place, byte) in udp[24..].iter_mut().enumerate() {
        *byte = filler(number, place);
    }
    let sum = match fold(sum(udp, pseudo(from, to, total - 20))) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

/// Number and moment of a packet of ours that came whole; `None` for anything else.
fn open(packet: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Option<(u64, u64)> {
    let ip = packet.get(PREFIX..)?;
    let udp = ip.get(IP_HEADER..)?;
    let length = u16::try_from(udp.len()).ok()?;
    let headers_right = ip[0] == 0x45
        && ip[2..4] == (length + 20).to_be_bytes()
        && ip[9] == 17
        && ip[12..16] == from.octets()
        && ip[16..20] == to.octets()
        && fold(sum(&ip[..IP_HEADER], 0)) == 0;
    // A header that asks for the checksum to be completed (flag 1) holds only the pseudo sum.
    let partial = packet[0] & 1 != 0;
    if !headers_right || udp.len() < UDP_HEADER + STAMP {
        return None;
    }
    if !partial && fold(sum(udp, pseudo(from, to, length))) != 0 {
        return None;
    }
    let number = u64::from_be_bytes(udp[8..16].try_into().ok()?);
    let sent = u64::from_be_bytes(udp[16..24].try_into().ok()?);
    let right = udp[24..].iter().enumerate().all(|(place, byte)| *byte == filler(number, place));
    let size = SIZE_STEP * usize::try_from(number % 8).ok()?;
    (right && udp.len() == UDP_HEADER + STAMP + size).then_some((number, sent))
}

fn filler(number: u64, place: usize) -> u8 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[place % 8] ^ place.to_be_bytes()[7]
}

/// The sum of RFC 1071, not yet folded.
fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    })
}

fn pseudo(from: Ipv4Addr, to: Ipv4Addr, length: u16) -> u32 {
    sum(&to.octets(), sum(&from.octets(), 17 + u32::from(length)))
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "folded twice, it has 16 bits")]
    let folded = sum as u16;
    !folded
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(NOT_YET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_opened_and_damage_is_seen() {
        let [a, b] = ADDRESSES;
        for number in [0, 1, 7, 1_000_003] {
            let packet = packet(a, b, number, 42);
            assert_eq!(open(&packet, a, b), Some((number, 42)));
            assert_eq!(open(&packet, b, a), None);
            let mut damaged = packet.to_vec();
            let last = damaged.len() - 1;
            damaged[last] ^= 1;
            assert_eq!(open(&damaged, a, b), None);
            assert_eq!(open(&packet[..last], a, b), None);
        }
    }

    #[test]
    fn doubles_and_late_ones_are_told_apart() {
        let clock = Clock {
            zero: Instant::now(),
            cut: AtomicU64::new(NOT_YET),
            healed: AtomicU64::new(NOT_YET),
            sent_for: AtomicU64::new(NOT_YET),
            stop_sending: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        };
        let mut counted = Counted::default();
        for number in [0, 1, 3, 2, 3, 4] {
            counted.arrived(number, 1, &clock);
        }
        let tally = counted.tally;
        assert_eq!((tally.delivered, tally.duplicated, tally.reordered), (5, 1, 1));
    }

    #[test]
    fn a_silence_belongs_to_what_it_covers() {
        let clock = Clock {
            zero: Instant::now(),
            cut: AtomicU64::new(1_000),
            healed: AtomicU64::new(5_000),
            sent_for: AtomicU64::new(NOT_YET),
            stop_sending: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        };
        let mut counted = Counted::default();
        counted.silence(0, 900, &clock);
        assert_eq!(counted.tally.silence_at_cut, Duration::ZERO);
        counted.silence(990, 1_500, &clock);
        counted.silence(4_990, 5_100, &clock);
        counted.silence(6_000, 6_050, &clock);
        assert_eq!(counted.tally.silence_at_cut, Duration::from_nanos(510));
        assert_eq!(counted.tally.silence_at_heal, Duration::from_nanos(110));
        counted.silence(1_003, 5_010, &clock);
        assert_eq!(counted.tally.silence_at_cut, Duration::from_nanos(4_007));
        assert_eq!(counted.tally.silence_at_heal, Duration::from_nanos(110));
        counted.silence(900, 9_000, &clock);
        assert_eq!(counted.tally.silence_at_cut, Duration::from_nanos(8_100));
    }
}
