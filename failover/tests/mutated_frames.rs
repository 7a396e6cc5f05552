//! Valid sealed frames of every kind, changed in every way a fault or an attacker could, given to
//! the nodes they were meant for: nothing is delivered, nothing said, nothing changes but the
//! counters, and every refusal has a cause.
//!
//! `SIDEPATH_MUTATIONS` says how many (default 50,000, a few seconds; the full run is 1,000,000).
//! `-- --nocapture` prints the table of causes.

mod tap;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tap::{Net, Tapped, WAYS, Way};

/// As SplitMix64 draws.
struct Dice(u64);

impl Dice {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.draw() % end.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.draw().to_le_bytes()[3]
    }
}

/// What a frame is, for the table.
fn kind(tapped: &Tapped) -> String {
    let channel = ["handshake", "beat", "control", "express", "datagram"]
        .get(usize::from(tapped.bytes[0] & 15))
        .copied()
        .unwrap_or("?");
    let message = match tapped.bytes[20] {
        _ if channel != "handshake" => "",
        1 => " (hello)",
        2 => " (init)",
        _ => " (response)",
    };
    format!("{channel}{message} by {:?}", tapped.way).to_lowercase()
}

/// One change, of ten kinds.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8]) -> &'static str {
    let length = bytes.len();
    match dice.below(10) {
        0 => {
            let bit = dice.below(length * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            "a bit"
        }
        1 => {
            for _ in 0..=dice.below(8) {
                let at = dice.below(length);
                bytes[at] = dice.byte();
            }
            "bytes"
        }
        2 => {
            bytes.truncate(dice.below(length));
            "cut short"
        }
        3 => {
            for _ in 0..=dice.below(40) {
                bytes.push(dice.byte());
            }
            "extended"
        }
        4 => {
            let at = dice.below(20);
            bytes[at] = dice.byte();
            "a header byte"
        }
        5 => {
            // Shorter or longer, and the header says so.
            let tail = dice.below(30);
            if dice.below(2) == 0 {
                bytes.truncate(length.saturating_sub(tail).max(20));
            } else {
                bytes.resize(length + tail, dice.byte());
            }
            let body = u32::try_from(bytes.len() - 20).unwrap();
            bytes[16..20].copy_from_slice(&body.to_le_bytes());
            "resized, honestly"
        }
        6 => {
            let keep = dice.below(length.min(other.len()));
            bytes.truncate(keep);
            bytes.extend_from_slice(&other[keep..]);
            "spliced with another"
        }
        7 => {
            let header: Vec<u8> = other[..16].to_vec();
            bytes[..16].copy_from_slice(&header);
            "another's header"
        }
        8 => {
            let (at, run) = (dice.below(length), dice.below(64));
            let end = (at + run).min(length);
            bytes[at..end].fill(dice.byte());
            "a run overwritten"
        }
        _ => {
            let at = 8 + dice.below(8);
            bytes[at] = bytes[at].wrapping_add(dice.byte() | 1);
            "another number"
        }
    }
}

#[test]
fn a_changed_frame_is_refused_whatever_the_change() {
    let wanted: usize =
        std::env::var("SIDEPATH_MUTATIONS").ok().map_or(50_000, |n| n.parse().unwrap());
    let mut net = Net::conversation(2);
    net.run(500);
    let genuine: BTreeSet<Bytes> = net.tapped.iter().map(|t| t.bytes.clone()).collect();
    // The same number of mutations for every kind, however often it was said.
    let mut kinds: BTreeMap<String, Vec<Tapped>> = BTreeMap::new();
    for tapped in &net.tapped {
        kinds.entry(kind(tapped)).or_default().push(tapped.clone());
    }
    for expected in [
        "handshake (hello) by datagram",
        "handshake (init) by datagram",
        "handshake (response) by datagram",
        "handshake (hello) by mailbox",
        "handshake (init) by mailbox",
        "handshake (response) by mailbox",
        "beat by datagram",
        "control by datagram",
        "control by stored",
        "express by datagram",
        "express by stored",
        "datagram by datagram",
        "datagram by stored",
        "datagram by tcp",
    ] {
        assert!(kinds.contains_key(expected), "nobody said {expected}: {:?}", kinds.keys());
    }
    let now = net.now;
    let before: Vec<_> = net.sides.iter().map(|s| s.digest()).collect();
    let drawn: Vec<_> = net.sides.iter().map(|s| s.hands.drawn).collect();
    let refused: Vec<_> = net.sides.iter().map(|s| s.refusals(now)).collect();
    let lists: Vec<_> = kinds.values().collect();
    let mut dice = Dice(0x51de_9a7b);
    let mut table: BTreeMap<(&'static str, String), u64> = BTreeMap::new();
    let mut given = 0;
    while given < wanted {
        let list = lists[given % lists.len()];
        let Tapped { from, to, way, bytes } = list[dice.below(list.len())].clone();
        let others = lists[dice.below(lists.len())];
        let other = others[dice.below(others.len())].bytes.clone();
        let mut bytes = bytes.to_vec();
        let change = mutate(&mut dice, &mut bytes, &other);
        if genuine.contains(&bytes[..]) {
            continue;
        }
        // Mostly by the way it came, sometimes by another.
        let way = if dice.below(4) == 0 { WAYS[dice.below(4)] } else { way };
        let (from, us) = (net.sides[from].id, &mut net.sides[to]);
        let earlier = us.refusals(now);
        us.give(now, way, from, &bytes);
        let cause = causes(&earlier, &us.refusals(now));
        assert_eq!(cause.len(), 1, "refused once, with a cause: {cause:?}, {change}, {bytes:x?}");
        assert!(us.hands.out.is_empty(), "something was said to {change}: {:?}", us.hands.out);
        *table.entry((change, cause[0].clone())).or_default() += 1;
        given += 1;
        // The digest is long; a change does not heal, so a look now and then is enough.
        if given % (wanted / 8).max(1) == 0 {
            for (side, before) in net.sides.iter().zip(&before) {
                assert!(side.digest() == *before, "state changed by mutation {given} or earlier");
            }
        }
    }
    for (at, side) in net.sides.iter().enumerate() {
        assert!(side.digest() == before[at], "state changed");
        assert_eq!(side.hands.drawn, drawn[at], "a Noise message was begun");
    }
    let counted: u64 = net
        .sides
        .iter()
        .zip(&refused)
        .map(|(s, r)| s.refusals(now).values().sum::<u64>() - r.values().sum::<u64>())
        .sum();
    assert_eq!(counted, given as u64, "each refusal is counted once");
    println!("{given} mutations of {} frames of {} kinds", genuine.len(), kinds.len());
    for ((change, cause), count) in table {
        println!("{change:22} {cause:24} {count:9}");
    }
    // And all goes on as if nothing had been.
    let delivered: Vec<_> = net.sides.iter().map(|s| s.delivered.len()).collect();
    net.talk(100, 60);
    net.run(100);
    for (side, before) in net.sides.iter().zip(delivered) {
        assert_eq!(side.delivered.len(), before + 100);
    }
}

fn causes(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<String> {
    after
        .iter()
        .flat_map(|(cause, count)| {
            let grown = count - before.get(cause).copied().unwrap_or(0);
            (0..grown).map(|_| cause.clone())
        })
        .collect()
}

#[test]
fn genuine_frames_are_taken_so_the_test_above_proves_something() {
    let net = Net::conversation(2);
    for side in &net.sides {
        let peer = side.peer(net.now, 3 - side.id.get());
        assert_eq!(peer.counters.accepted, 420);
        assert_eq!(peer.counters.delivered, 420);
        assert_eq!((peer.counters.lost, peer.counters.queued), (0, 0));
        let refused = side.refusals(net.now);
        let usual = ["repeated", "handshake_replayed"];
        assert!(refused.keys().all(|cause| usual.contains(&cause.as_str())), "{refused:?}");
    }
    assert!(net.tapped.iter().any(|t| t.way == Way::Tcp));
}
