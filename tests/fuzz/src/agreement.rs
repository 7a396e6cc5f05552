//! Two real agreements, and somebody between them who delivers, delays, repeats, damages and
//! invents messages.

use std::{cell::RefCell, collections::BTreeMap};

use failover::{
    Output, Time, World,
    secure::{Agreed, Agreement},
    wire::{Channel, HEADER, Header, hello::Handshake},
};
use zeroize::Zeroizing;

use super::core::id;

/// Randomness that repeats itself, and no ear for outputs.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    drawn: u64,
}

impl World for Quiet {
    fn random(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            self.drawn = self.drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            *byte = self.drawn.to_be_bytes()[2];
        }
    }

    fn put(&mut self, _: Output) {}
}

/// A private key and its public one, of a node.
pub(crate) fn keys(node: u8) -> (Zeroizing<[u8; 32]>, [u8; 32]) {
    const PUBLIC: [[u8; 32]; 2] = [
        // X25519 of the clamped private keys [1; 32] and [2; 32] with the base point.
        [
            0xa4, 0xe0, 0x92, 0x92, 0xb6, 0x51, 0xc2, 0x78, 0xb9, 0x77, 0x2c, 0x56, 0x9f, 0x5f,
            0xa9, 0xbb, 0x13, 0xd9, 0x06, 0xb4, 0x6a, 0xb6, 0x8c, 0x9d, 0xf9, 0xdc, 0x2b, 0x44,
            0x09, 0xf8, 0xa2, 0x09,
        ],
        [
            0xce, 0x8d, 0x3a, 0xd1, 0xcc, 0xb6, 0x33, 0xec, 0x7b, 0x70, 0xc1, 0x78, 0x14, 0xa5,
            0xc7, 0x6e, 0xcd, 0x02, 0x96, 0x85, 0x05, 0x0d, 0x34, 0x47, 0x45, 0xba, 0x05, 0x87,
            0x0e, 0x58, 0x7d, 0x59,
        ],
    ];
    (Zeroizing::new([node; 32]), PUBLIC[usize::from(node) - 1])
}

pub(crate) const EPOCHS: [u64; 2] = [100, 200];

fn side(us: u8) -> Agreement {
    let them = 3 - us;
    let epoch = EPOCHS[usize::from(us) - 1];
    Agreement::new((id(us), id(them)), epoch, &keys(us).0, keys(them).1, b"fuzz", false)
        .expect("a usable key")
}

struct Pair {
    sides: [Agreement; 2],
    worlds: [Quiet; 2],
    /// Something beyond counters may have changed.
    touched: bool,
}

impl Pair {
    fn new() -> Self {
        Self { sides: [side(1), side(2)], worlds: worlds(), touched: false }
    }

    fn forget(&mut self) {
        self.sides.iter_mut().for_each(failover::fuzz::forget);
        self.worlds = worlds();
        self.touched = false;
    }
}

fn worlds() -> [Quiet; 2] {
    [Quiet::default(), Quiet { drawn: 7 }]
}

thread_local! {
    // Making a pair costs several multiplications on the curve, more than most inputs do.
    static SPARE: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

/// Steps of (what, how, how much) drive the two sides; only what a side really said may make the
/// other agree, and what both agreed on fits.
pub(crate) fn agreement(data: &[u8]) {
    let mut pair = SPARE.take().unwrap_or_else(Pair::new);
    // What each side said, in order, and the keys each side has.
    let mut said: [Vec<Vec<u8>>; 2] = [Vec::new(), Vec::new()];
    let mut agreed: [BTreeMap<u32, Agreed>; 2] = [BTreeMap::new(), BTreeMap::new()];
    let mut now = Time(1_000_000);
    let mut rest = data;
    for _ in 0..24 {
        let Some(([what, how, much], after)) = rest.split_first_chunk().map(|(c, r)| (*c, r))
        else {
            break;
        };
        rest = after;
        let to = usize::from(what & 1);
        let from = 1 - to;
        let message = match what >> 1 & 7 {
            0 | 1 => {
                said[to].extend(
                    pair.sides[to].poll(now, &mut pair.worlds[to]).map(|bytes| bytes.to_vec()),
                );
                continue;
            }
            2 => {
                now = Time(now.micros() + u64::from(much) * 20_000);
                continue;
            }
            // One of the other's messages, as it is or with a byte changed; or our own, reflected.
            kind @ 3..=5 => {
                let whose = if kind == 5 { to } else { from };
                let messages = &said[whose];
                let Some(message) = messages.get(usize::from(how) % messages.len().max(1)) else {
                    continue;
                };
                let mut message = message.clone();
                if kind == 4 {
                    let at = usize::from(much) % message.len();
                    message[at] ^= how.max(1);
                }
                message
            }
            // Something invented, with a header that fits.
            _ => {
                let length = usize::from(how).min(rest.len());
                let (body, after) = rest.split_at(length);
                rest = after;
                let mut message = vec![0; HEADER];
                message.extend_from_slice(body);
                let (from, to) = if to == 0 { (2, 1) } else { (1, 2) };
                let number = EPOCHS[usize::from(from) - 1] + u64::from(much & 3);
                let length = u32::try_from(length).expect("a byte");
                let generation = u32::from(much >> 2);
                let channel = Channel::Handshake;
                Header { channel, from, to, generation, number, length }.write(&mut message);
                message
            }
        };
        deliver(&mut pair, to, now, &message, &mut said, &mut agreed);
    }
    for (generation, keys) in &agreed[0] {
        if let Some(other) = agreed[1].get(generation) {
            fit(keys, other);
            fit(other, keys);
        }
    }
    pair.forget();
    SPARE.set(Some(pair));
}

fn deliver(
    pair: &mut Pair,
    to: usize,
    now: Time,
    message: &[u8],
    said: &mut [Vec<Vec<u8>>; 2],
    agreed: &mut [BTreeMap<u32, Agreed>; 2],
) {
    let Ok(header) = Header::read(message) else { return };
    if header.channel != Channel::Handshake {
        return;
    }
    let Some(handshake) = Handshake::read(&message[HEADER..]) else { return };
    let genuine = said[1 - to].iter().any(|said| said == message);
    let received = pair.sides[to].receive(now, &header, handshake, &mut pair.worlds[to]);
    let Ok((keys, answer)) = received else {
        // Even a refusal of something genuine may have been one of state.
        pair.touched |= genuine;
        return;
    };
    pair.touched = true;
    assert!(genuine, "a message nobody said was taken");
    said[to].extend(answer.map(|bytes| bytes.to_vec()));
    if let Some(keys) = keys {
        assert_eq!(keys.peer_epoch, EPOCHS[1 - to], "the epoch is the peer's own");
        assert_eq!(keys.generation, header.generation);
        assert_eq!(keys.confirmed, to == 0, "only the initiator knows that the other has them");
        if keys.confirmed {
            pair.sides[to].confirm(keys.peer_epoch);
        }
        agreed[to].insert(keys.generation, keys);
    }
}

/// What one seals the other opens, and the keys of beats and frames are not the same.
fn fit(seals: &Agreed, opens: &Agreed) {
    let seal = |key: &failover::secure::FrameKey| {
        let mut frame = vec![0; HEADER];
        frame.extend_from_slice(b"body");
        key.seal(Channel::Datagram, (1, 2), seals.generation, 1, &mut frame);
        (Header::read(&frame).expect("ours"), frame)
    };
    let (header, mut frame) = seal(&seals.seal);
    assert_eq!(opens.beat_open.open(&header, &mut frame.clone()), None);
    assert_eq!(seals.open.open(&header, &mut frame.clone()), None, "not reflected");
    assert_eq!(opens.open.open(&header, &mut frame), Some(4));
    let (header, mut frame) = seal(&seals.beat_seal);
    assert_eq!(opens.open.open(&header, &mut frame.clone()), None);
    assert_eq!(opens.beat_open.open(&header, &mut frame), Some(4));
}

/// Both sides after an agreement, and what was said for it.
struct Settled {
    pair: Pair,
    said: [Vec<Vec<u8>>; 2],
}

/// One message for two sides that have agreed: a genuine one with any bytes changed, or an
/// invented one. Nothing but the messages themselves is ever taken, and no refusal costs a Noise
/// message. The first byte chooses: receiver, message, changed or invented.
pub(crate) fn handshake(data: &[u8]) {
    thread_local! {
        static SETTLED: RefCell<Option<Settled>> = const { RefCell::new(None) };
    }
    let Some((choice, rest)) = data.split_first() else { return };
    let mut settled = SETTLED.take().unwrap_or_else(settle);
    let to = usize::from(choice & 1);
    let genuine = &settled.said[1 - to];
    let message = if choice & 2 == 0 {
        let mut message = genuine[usize::from(choice >> 3) % genuine.len()].clone();
        if choice & 4 == 0 {
            // Pairs of place and change.
            for pair in rest.chunks_exact(2).take(64) {
                let at = usize::from(pair[0]) % message.len();
                message[at] ^= pair[1];
            }
        } else {
            let keep = usize::from(rest.first().copied().unwrap_or(0)) % message.len();
            message.truncate(keep);
            message.extend_from_slice(rest.get(1..).unwrap_or_default());
            if message.len() >= HEADER {
                let length = u32::try_from(message.len() - HEADER).expect("short");
                message[16..20].copy_from_slice(&length.to_le_bytes());
            }
        }
        message
    } else {
        let mut message = vec![0; HEADER];
        message.extend_from_slice(rest);
        let ids = if to == 0 { (2, 1) } else { (1, 2) };
        let length = u32::try_from(rest.len()).expect("short");
        let number = EPOCHS[1 - to] + u64::from(choice >> 4 & 1);
        let channel = Channel::Handshake;
        let generation = u32::from(choice >> 5);
        Header { channel, from: ids.0, to: ids.1, generation, number, length }.write(&mut message);
        message
    };
    let drawn = settled.pair.worlds[to].drawn;
    let mut agreed = [BTreeMap::new(), BTreeMap::new()];
    settled.pair.touched = false;
    let known = settled.said[1 - to].contains(&message);
    let mut said = settled.said.clone();
    deliver(&mut settled.pair, to, Time(9_000_000), &message, &mut said, &mut agreed);
    assert!(agreed.iter().all(BTreeMap::is_empty), "keys were agreed once more");
    assert_eq!(settled.pair.worlds[to].drawn, drawn, "a Noise message was begun");
    assert!(known || !settled.pair.touched);
    SETTLED.set(Some(settled));
}

/// A hello, an init, the answer.
fn settle() -> Settled {
    let mut pair = Pair::new();
    let mut said = [Vec::new(), Vec::new()];
    let mut agreed = [BTreeMap::new(), BTreeMap::new()];
    let now = Time(1_000_000);
    for from in [1, 0] {
        let message = pair.sides[from].poll(now, &mut pair.worlds[from]).expect("it wants keys");
        said[from].push(message.to_vec());
        deliver(&mut pair, 1 - from, now, &message, &mut said, &mut agreed);
    }
    let response = said[1].last().expect("an answer").clone();
    deliver(&mut pair, 0, now, &response, &mut said, &mut agreed);
    assert!(agreed.iter().all(|keys| keys.len() == 1), "both sides agreed");
    Settled { pair, said }
}
