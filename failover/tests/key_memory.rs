//! Keys that are of no use any more are gone from memory (the class of CVE-2026-15811).
//!
//! The process reads its own writable memory through `/proc/self/mem` and looks for what it knows
//! must not be there: ephemeral private keys, shared secrets, what a handshake ended with, and the
//! keys of a session after the next one began. A child process works them out with `snow` alone
//! and hands them over masked, so that looking for them does not put them there. No harness: one
//! thread, and nothing else moves in memory.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a child works out what to look for; memory is read as a file"
)]

use std::{
    fs::File,
    hint::black_box,
    io::{Read, Seek, SeekFrom},
    process::Command,
};

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use failover::{
    NodeId, Output, Time, World,
    secure::{Agreed, Agreement},
    wire::{HEADER, Header, hello::Handshake},
};
use snow::{
    Builder,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::{Zeroize, Zeroizing};

const MASK: u8 = 0xa5;
const EPOCHS: [u64; 2] = [100, 200];
const GROUP: &[u8] = b"memory";
/// Seeds of the private keys, and of the randomness of each side.
const PRIVATE: [u64; 2] = [11, 12];
const RANDOM: [u64; 2] = [1000, 2000];

/// Bytes that are the same in every process and lie in no file.
fn bytes(seed: u64) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    let mut state = seed ^ 0x5bd1_e995_9d1b_54a3;
    for byte in out.iter_mut() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = state.to_be_bytes()[1];
    }
    out
}

/// The world of one side: every draw is the next seed's.
struct Fixed(u64);

impl World for Fixed {
    fn random(&mut self, buffer: &mut [u8]) {
        self.0 += 1;
        buffer.copy_from_slice(&bytes(self.0)[..buffer.len()]);
    }

    fn put(&mut self, _: Output) {}
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("needles") {
        return child::main();
    }
    if !cfg!(target_os = "linux") {
        println!("skipped: needs /proc/self/mem");
        return;
    }
    let (publics, needles) = hear_child();
    let mut sides = [0, 1].map(|at: usize| side(at, &publics));
    let mut worlds = RANDOM.map(Fixed);
    let first = agree(&mut sides, &mut worlds, Time(1_000_000));
    scrub(40);
    let found = look(&needles);
    report("one session alive", &needles, &found);
    for (needle, count) in needles.iter().zip(&found) {
        match needle.kind {
            Kind::Secret => assert_eq!(*count, 0, "{} is still in memory", needle.name),
            Kind::Session => {
                assert!(*count > 0, "{} was not found: the test is blind", needle.name)
            }
            Kind::Private => assert!(*count <= 2, "{} was copied: {count}", needle.name),
        }
    }
    // The next session; the first one is of no use any more.
    let second = agree(&mut sides, &mut worlds, Time(9_000_000));
    drop(first);
    scrub(40);
    let found = look(&needles);
    report("after the next handshake", &needles, &found);
    for (needle, count) in needles.iter().zip(&found) {
        match needle.kind {
            Kind::Private => assert!(*count <= 2, "{} was copied: {count}", needle.name),
            _ => assert_eq!(*count, 0, "{} is still in memory", needle.name),
        }
    }
    drop((second, sides));
    scrub(40);
    let found = look(&needles);
    report("after everything was dropped", &needles, &found);
    for (needle, count) in needles.iter().zip(&found) {
        assert_eq!(*count, 0, "{} is still in memory", needle.name);
    }
    println!("test keys_that_are_of_no_use_are_gone ... ok");
}

fn side(at: usize, publics: &[[u8; 32]; 2]) -> Agreement {
    let ids = [1, 2].map(|n| NodeId::new(n).unwrap());
    let private = bytes(PRIVATE[at]);
    Agreement::new((ids[at], ids[1 - at]), EPOCHS[at], &private, publics[1 - at], GROUP, false)
        .expect("usable keys")
}

fn agree(sides: &mut [Agreement; 2], worlds: &mut [Fixed; 2], now: Time) -> [Agreed; 2] {
    let init = sides[0].poll(now, &mut worlds[0]).expect("an init");
    let (keys, response) = receive(&mut sides[1], now, &init, &mut worlds[1]);
    let (other, _) = receive(&mut sides[0], now, &response.expect("an answer"), &mut worlds[0]);
    [other.expect("keys"), keys.expect("keys")]
}

fn receive(
    side: &mut Agreement,
    now: Time,
    message: &[u8],
    world: &mut Fixed,
) -> (Option<Agreed>, Option<bytes::Bytes>) {
    let header = Header::read(message).expect("ours");
    let handshake = Handshake::read(&message[HEADER..]).expect("ours");
    side.receive(now, &header, handshake, world).expect("ours")
}

/// Overwrites what returned functions left on the stack, as the next turn would.
#[inline(never)]
fn scrub(depth: usize) -> u64 {
    let mut room = [0_u64; 512];
    for (at, word) in room.iter_mut().enumerate() {
        *word = black_box((at ^ depth) as u64);
    }
    let below = if depth > 0 { scrub(depth - 1) } else { 0 };
    black_box(&room).iter().fold(below, |sum, word| sum ^ word)
}

// --- looking ---------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of use during a handshake only.
    Secret,
    /// A key of the first session.
    Session,
    /// A node's private key: as long as the node lives.
    Private,
}

struct Needle {
    kind: Kind,
    name: String,
    masked: Vec<u8>,
}

fn hear_child() -> ([[u8; 32]; 2], Vec<Needle>) {
    let me = std::env::current_exe().expect("our own path");
    let child = Command::new(me).arg("needles").output().expect("a child");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let text = String::from_utf8(child.stdout).expect("text");
    let (mut publics, mut needles) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (name, hex) = line.rsplit_once(' ').expect("a name and bytes");
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let masked: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let kind = match name.split(' ').next() {
            Some("public") => {
                publics.push(<[u8; 32]>::try_from(masked).expect("32 bytes"));
                continue;
            }
            Some("session") => Kind::Session,
            Some("private") => Kind::Private,
            _ => Kind::Secret,
        };
        needles.push(Needle { kind, name: name.to_owned(), masked });
    }
    assert!(needles.len() >= 14, "the child forgot something");
    (publics.try_into().expect("two"), needles)
}

fn report(when: &str, needles: &[Needle], found: &[usize]) {
    let seen = needles.iter().zip(found).filter(|(_, count)| **count > 0);
    let seen: Vec<_> = seen.map(|(needle, count)| format!("{} x{count}", needle.name)).collect();
    println!("{when}: {}", if seen.is_empty() { "nothing".into() } else { seen.join(", ") });
}

/// How often each needle lies in our writable memory.
fn look(needles: &[Needle]) -> Vec<usize> {
    let mut found = vec![0; needles.len()];
    let mut buffer = vec![0_u8; 1 << 20];
    let own = buffer.as_ptr() as u64..buffer.as_ptr() as u64 + buffer.len() as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our own maps");
    let mut memory = File::open("/proc/self/mem").expect("our own memory");
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let range = words.next().expect("a range");
        if !words.next().is_some_and(|mode| mode.starts_with("rw")) || line.contains("[v") {
            continue;
        }
        let (start, end) = range.split_once('-').expect("a range");
        let [mut at, end] = [start, end].map(|n| u64::from_str_radix(n, 16).expect("an address"));
        while at + 32 <= end {
            // Around the buffer itself, which holds copies of what was looked at before.
            if own.contains(&at) {
                at = own.end;
                continue;
            }
            let stop = if at < own.start { end.min(own.start) } else { end };
            let length = usize::try_from(stop - at).unwrap_or(usize::MAX).min(buffer.len());
            let part = &mut buffer[..length];
            let read = memory.seek(SeekFrom::Start(at)).and_then(|_| memory.read_exact(part));
            if read.is_ok() {
                for (needle, found) in needles.iter().zip(&mut found) {
                    let first = needle.masked[0] ^ MASK;
                    *found += part
                        .windows(needle.masked.len())
                        .filter(|w| w[0] == first)
                        .filter(|w| w.iter().zip(&needle.masked).all(|(a, b)| a ^ MASK == *b))
                        .count();
                }
            }
            // Pieces overlap, so that nothing hides on a border.
            let step = if length == buffer.len() { length - 31 } else { length };
            at += step as u64;
        }
    }
    buffer.zeroize();
    found
}

/// The same handshake by `snow` and nothing of ours, told to the parent.
mod child {
    use super::*;

    struct Seeded(Zeroizing<[u8; 32]>);

    struct Once(Zeroizing<[u8; 32]>);

    impl Random for Once {
        fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
            out.copy_from_slice(&self.0[..out.len()]);
            Ok(())
        }
    }

    impl CryptoResolver for Seeded {
        fn resolve_rng(&self) -> Option<Box<dyn Random>> {
            Some(Box::new(Once(self.0.clone())))
        }

        fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
            DefaultResolver.resolve_dh(choice)
        }

        fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
            DefaultResolver.resolve_hash(choice)
        }

        fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
            DefaultResolver.resolve_cipher(choice)
        }
    }

    struct Length;

    impl KeyType for Length {
        fn len(&self) -> usize {
            32
        }
    }

    fn tell(name: &str, bytes: &[u8], mask: u8) {
        let hex: String = bytes.iter().map(|byte| format!("{:02x}", byte ^ mask)).collect();
        println!("{name} {hex}");
    }

    fn curve(private: &[u8; 32]) -> Box<dyn Dh> {
        let mut dh = DefaultResolver.resolve_dh(&DHChoice::Curve25519).unwrap();
        dh.set(private);
        dh
    }

    pub(super) fn main() {
        let statics = PRIVATE.map(|seed| curve(&bytes(seed)));
        // The initiator draws a name first; the responder's first draw is its ephemeral key.
        let seeds = [RANDOM[0] + 2, RANDOM[1] + 1];
        let ephemerals = seeds.map(|seed| curve(&bytes(seed)));
        for (at, key) in statics.iter().enumerate() {
            tell("public", key.pubkey(), 0);
            tell(&format!("private {at}"), key.privkey(), MASK);
            tell(&format!("ephemeral {at}"), ephemerals[at].privkey(), MASK);
        }
        let shared = |name: &str, ours: &dyn Dh, theirs: &dyn Dh| {
            let mut out = [0; 32];
            ours.dh(theirs.pubkey(), &mut out).unwrap();
            tell(name, &out, MASK);
        };
        shared("shared ss", &*statics[0], &*statics[1]);
        shared("shared es", &*ephemerals[0], &*statics[1]);
        shared("shared se", &*statics[0], &*ephemerals[1]);
        shared("shared ee", &*ephemerals[0], &*ephemerals[1]);

        let mut prologue = b"sidepath handshake v1".to_vec();
        prologue.extend_from_slice(&(GROUP.len() as u64).to_le_bytes());
        prologue.extend_from_slice(GROUP);
        prologue.extend_from_slice(&[1, 2]);
        let state = |at: usize| {
            let params = "Noise_KK_25519_AESGCM_SHA256".parse().unwrap();
            let builder = Builder::with_resolver(params, Box::new(Seeded(bytes(seeds[at]))))
                .local_private_key(statics[at].privkey())
                .unwrap()
                .remote_public_key(statics[1 - at].pubkey())
                .unwrap()
                .prologue(&prologue)
                .unwrap();
            if at == 0 { builder.build_initiator() } else { builder.build_responder() }.unwrap()
        };
        let (mut one, mut two) = (state(0), state(1));
        let name = u32::from_le_bytes(*bytes(RANDOM[0] + 1).first_chunk().unwrap()) | 1;
        let mut payload = name.to_le_bytes().to_vec();
        payload.extend_from_slice(&EPOCHS[0].to_le_bytes());
        payload.extend_from_slice(&1_000_000_u64.to_le_bytes());
        payload.push(failover::wire::VERSION);
        let (mut wire, mut clear) = ([0; 256], [0; 256]);
        let length = one.write_message(&payload, &mut wire).unwrap();
        two.read_message(&wire[..length], &mut clear).unwrap();
        let mut answer = EPOCHS[1].to_le_bytes().to_vec();
        answer.push(failover::wire::VERSION);
        let length = two.write_message(&answer, &mut wire).unwrap();
        one.read_message(&wire[..length], &mut clear).unwrap();
        let halves = one.dangerously_get_raw_split();
        for (at, half) in [halves.0, halves.1].into_iter().enumerate() {
            tell(&format!("split {at}"), &half, MASK);
            let prk = Salt::new(HKDF_SHA256, b"sidepath frame keys v1").extract(&half);
            for label in ["frames", "beats"] {
                let mut key = [0; 32];
                prk.expand(&[label.as_bytes()], Length).unwrap().fill(&mut key).unwrap();
                tell(&format!("session {label} {at}"), &key, MASK);
            }
        }
    }
}
