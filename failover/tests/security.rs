//! Attacks on a conversation: replayed, reflected, moved, forged, flooded. Nothing is delivered,
//! nobody is believed, and strangers cost nothing.
//!
//! `SIDEPATH_FLOOD` says how many messages a flood has (default 20,000; the full run is 100,000).
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the work of a flood is measured, not judged"
)]

mod tap;

use std::time::{Duration, Instant};

use failover::{
    Command, Event, Input, Output, Time,
    secure::{Agreed, FrameKey},
    wire::{Channel, HEADER, Header},
};
use tap::{Net, Side, Tapped, WAYS, Way, endpoint, id, key, options, packet, public};

fn delivered(net: &Net) -> Vec<usize> {
    net.sides.iter().map(|s| s.delivered.len()).collect()
}

fn agreements(side: &Side) -> usize {
    side.events.iter().filter(|e| matches!(e, Event::KeysAgreed { .. })).count()
}

fn refused(side: &Side, now: Time, cause: &str) -> u64 {
    side.refusals(now).get(cause).copied().unwrap_or(0)
}

/// Gives everything recorded to whom it was meant for, by every way.
fn replay(net: &mut Net, tapped: &[Tapped]) {
    for Tapped { from, to, bytes, .. } in tapped {
        let (now, from) = (net.now, net.sides[*from].id);
        for way in WAYS {
            net.sides[*to].give(now, way, from, bytes);
        }
    }
}

fn still_talks(net: &mut Net) {
    let before = delivered(net);
    net.talk(50, 60);
    net.run(300);
    let others = net.sides.len() - 1;
    for (now, before) in delivered(net).into_iter().zip(before) {
        assert_eq!(now, before + 50 * others, "what was said after the attack arrived, once");
    }
}

#[test]
fn a_whole_conversation_replayed_changes_nothing() {
    let mut net = Net::conversation(2);
    let (before, keys) = (delivered(&net), net.sides.iter().map(agreements).collect::<Vec<_>>());
    let tapped = net.tapped.clone();
    replay(&mut net, &tapped);
    net.run(2000);
    assert_eq!(delivered(&net), before, "something was delivered again");
    assert_eq!(net.sides.iter().map(agreements).collect::<Vec<_>>(), keys, "keys were renewed");
    still_talks(&mut net);
}

#[test]
fn a_conversation_replayed_into_the_next_session_changes_nothing() {
    for restarted in [vec![1], vec![2], vec![1, 2]] {
        let mut net = Net::conversation(2);
        let tapped = net.tapped.clone();
        restarted.iter().for_each(|n| net.restart(*n));
        net.run(4000);
        let before = delivered(&net);
        let keys: Vec<_> = net.sides.iter().map(agreements).collect();
        let epochs: Vec<_> = net.sides.iter().map(|s| s.epoch).collect();
        replay(&mut net, &tapped);
        net.run(2000);
        assert_eq!(delivered(&net), before, "delivered in a later session");
        for (side, keys) in net.sides.iter().zip(keys) {
            // With the peer's present incarnation keys may be renewed, and with nobody else.
            let said = |event: &Event| match event {
                Event::KeysAgreed { peer_epoch, .. } => Some(*peer_epoch),
                _ => None,
            };
            let news: Vec<u64> = side.events.iter().filter_map(said).collect();
            let peer = epochs[2 - usize::from(side.id.get())];
            assert!(news.iter().skip(keys).all(|epoch| *epoch == peer), "{news:?}");
            assert!(news.len() <= keys + 1, "{news:?}");
        }
        still_talks(&mut net);
    }
}

#[test]
fn a_conversation_replayed_at_a_node_that_has_just_started_changes_nothing() {
    for restarted in [1, 2] {
        let mut net = Net::conversation(2);
        let tapped = net.tapped.clone();
        net.restart(restarted);
        // Before anything of the peer's present session reaches it.
        let toward: Vec<_> =
            tapped.into_iter().filter(|t| t.to == usize::from(restarted) - 1).collect();
        replay(&mut net, &toward);
        assert!(net.side(restarted).delivered.is_empty());
        net.run(4000);
        assert!(net.side(restarted).delivered.is_empty(), "delivered in a later session");
        still_talks(&mut net);
    }
}

#[test]
fn own_frames_reflected_are_refused() {
    let mut net = Net::conversation(2);
    let (now, before) = (net.now, delivered(&net));
    let digests: Vec<_> = net.sides.iter().map(Side::digest).collect();
    for Tapped { from, to, bytes, .. } in net.tapped.clone() {
        let other = net.sides[to].id;
        let mut turned = bytes.to_vec();
        turned.swap(1, 2);
        for way in WAYS {
            net.sides[from].give(now, way, other, &bytes);
            net.sides[from].give(now, way, other, &turned);
        }
    }
    assert_eq!(delivered(&net), before);
    for (side, digest) in net.sides.iter().zip(digests) {
        assert!(side.digest() == digest, "a reflected frame changed something");
        assert!(side.hands.out.is_empty(), "a reflected frame was answered");
    }
    still_talks(&mut net);
}

#[test]
fn frames_moved_to_or_from_a_third_node_are_refused() {
    let mut net = Net::conversation(3);
    let now = net.now;
    let digests: Vec<_> = net.sides.iter().map(Side::digest).collect();
    for Tapped { from, to, bytes, .. } in net.tapped.clone() {
        let third = 3 - from - to;
        let [from_id, third_id] = [from, third].map(|at| net.sides[at].id);
        for way in WAYS {
            // To somebody else: as it is, and with the address changed.
            net.sides[third].give(now, way, from_id, &bytes);
            let mut moved = bytes.to_vec();
            moved[2] = third_id.get();
            net.sides[third].give(now, way, from_id, &moved);
            // From somebody else: a peer with keys of its own claims to be another, and puts
            // another's frame into its own lane.
            let mut spoofed = bytes.to_vec();
            spoofed[1] = third_id.get();
            net.sides[to].give(now, way, third_id, &spoofed);
            if matches!(way, Way::Stored | Way::Mailbox) {
                net.sides[to].give(now, way, third_id, &bytes);
            }
        }
    }
    for (side, digest) in net.sides.iter().zip(digests) {
        assert!(side.digest() == digest, "a moved frame changed something");
        assert!(side.hands.out.is_empty(), "a moved frame was answered");
        assert!(refused(side, now, "misplaced") > 0);
        assert!(refused(side, now, "not_for_us") > 0);
        assert!(refused(side, now, "handshake_forged") > 0);
    }
    still_talks(&mut net);
}

#[test]
fn a_peer_with_good_keys_cannot_speak_for_another() {
    // The class of CVE-2026-15812: who sends is known by the key, never by a field.
    let mut net = Net::settled(3);
    net.network = false;
    net.storage = false;
    net.packet(3, &packet(3, 2, b"from three"));
    net.packet(3, &packet(1, 2, b"from three, as one"));
    net.run(1);
    let frames: Vec<_> = net.tapped.iter().filter(|t| t.from == 2 && t.to == 1).cloned().collect();
    let data: Vec<_> = frames.iter().filter(|t| t.bytes[0] & 15 >= 3).collect();
    assert_eq!(data.len(), 1, "the core takes from its interface only what is its own");
    let now = net.now;
    let before = net.side(2).delivered.len();
    for claimed in 0..=255 {
        let mut bytes = data[0].bytes.to_vec();
        bytes[1] = claimed;
        if claimed != 3 {
            for way in WAYS {
                net.side(2).give(now, way, id(3), &bytes);
                net.side(2).give(now, way, id(1), &bytes);
            }
        }
    }
    net.finish(2);
    assert_eq!(net.side(2).delivered.len(), before);
    net.side(2).give(now, Way::Stored, id(3), &data[0].bytes);
    net.finish(2);
    assert_eq!(net.side(2).delivered.len(), before + 1, "unchanged it is what it claims to be");
}

/// Keys as a hostile peer 1 of node 2 has them.
fn hostile() -> (Side, Agreed, Time) {
    let now = Time(5_000_000);
    let mut side = Side::new(options(2, 2, 200), now);
    let key = |n: u8, label: &[u8]| FrameKey::derive(&[n; 32], label);
    let keys = Agreed {
        generation: 7,
        peer_epoch: 100,
        seal: key(2, b"frames"),
        open: key(1, b"frames"),
        beat_seal: key(2, b"beats"),
        beat_open: key(1, b"beats"),
        confirmed: true,
    };
    side.node.agree(now, id(1), keys.clone(), &mut side.hands);
    failover::finish(&mut side.node, now, &mut side.hands);
    side.hands.out.clear();
    (side, keys, now)
}

fn sealed(keys: &Agreed, channel: Channel, number: u64, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend_from_slice(body);
    let key = if channel == Channel::Beat { &keys.beat_open } else { &keys.open };
    key.seal(channel, (1, 2), keys.generation, number, &mut frame);
    frame
}

fn data_body(from: u8) -> Vec<u8> {
    let mut body = vec![0; 20];
    body[12..20].copy_from_slice(&5_000_000_u64.to_le_bytes());
    body.extend_from_slice(&packet(from, 2, b"x")[10..]);
    body
}

#[test]
fn a_source_address_of_somebody_else_is_dropped() {
    let (mut side, keys, now) = hostile();
    for (number, from) in [(1, 1), (2, 2), (3, 3), (4, 0)] {
        let frame = sealed(&keys, Channel::Express, number, &data_body(from));
        side.give(now, Way::Datagram, id(1), &frame);
    }
    let counters = side.peer(now, 1).counters;
    assert_eq!((counters.delivered, counters.dropped_by_cause["source"]), (1, 3));
}

#[test]
fn every_field_of_a_header_is_sealed() {
    let mut net = Net::settled(2);
    net.network = false;
    net.storage = false;
    net.packet(1, &packet(1, 2, b"once"));
    net.run(1);
    let data = net.tapped.iter().rfind(|t| t.bytes[0] & 15 >= 3).cloned().unwrap();
    let (now, before) = (net.now, net.side(2).digest());
    for at in 0..HEADER {
        for value in 0..=255 {
            let mut bytes = data.bytes.to_vec();
            if bytes[at] != value {
                bytes[at] = value;
                net.side(2).give(now, Way::Datagram, id(1), &bytes);
                net.side(2).give(now, Way::Stored, id(1), &bytes);
            }
        }
    }
    assert!(net.side(2).digest() == before, "a forged header changed something");
    assert!(net.side(2).hands.out.is_empty());
    net.side(2).give(now, Way::Datagram, id(1), &data.bytes);
    net.finish(2);
    assert_eq!(net.side(2).delivered.len(), 1, "the frame itself was good");
}

#[test]
fn a_wrong_key_is_told_apart_on_both_ends() {
    let mut wrong = options(1, 2, 100);
    wrong.private_key = zeroize::Zeroizing::new(key(9));
    let now = Time(1_000_000);
    let mut net = Net::of(vec![Side::new(wrong, now), Side::new(options(2, 2, 200), now)]);
    net.run(5000);
    for side in &net.sides {
        assert_eq!(agreements(side), 0);
        assert!(refused(side, net.now, "handshake_forged") > 0, "{:?}", side.refusals(net.now));
        assert!(!side.peer(net.now, 3 - side.id.get()).keys);
    }
}

#[test]
fn half_rolled_keys_keep_the_session_and_whole_ones_make_a_new_one() {
    let mut net = Net::settled(2);
    // Node 1 restarts with a new key; node 2 has not heard of it.
    let mut rolled = options(1, 2, 101);
    rolled.private_key = zeroize::Zeroizing::new(key(9));
    let now = net.now;
    *net.side(1) = Side::new(rolled, now);
    net.run(5000);
    assert_eq!(agreements(net.side(1)), 0, "half-rolled keys agreed");
    assert!(refused(&net.sides[1], net.now, "handshake_forged") > 0);
    // Now node 2 is told.
    let mut told = options(2, 2, 200);
    told.peers[0].public_key = public(&key(9));
    net.command(2, Command::Configure(Box::new(told)));
    net.run(4000);
    assert!(agreements(net.side(1)) > 0, "wholly rolled keys did not agree");
    still_talks(&mut net);
}

#[test]
fn an_older_incarnation_is_refused_while_the_newer_one_talks_on() {
    for n in [1, 2] {
        let mut net = Net::settled(2);
        net.restart(n);
        net.run(3000);
        let now = net.now;
        // A clone from an older snapshot wakes up elsewhere: same key, older epoch.
        let mut clone = Net::new(2);
        clone.run(3000);
        let other = usize::from(2 - n);
        let keys = agreements(&net.sides[other]);
        for tapped in clone.tapped.iter().filter(|t| t.to == other) {
            for way in WAYS {
                net.sides[other].give(now, way, id(n), &tapped.bytes);
            }
        }
        net.finish(3 - n);
        assert!(refused(&net.sides[other], now, "old_incarnation") > 0);
        net.run(1000);
        assert_eq!(agreements(&net.sides[other]), keys, "agreed with an older incarnation");
        still_talks(&mut net);
    }
}

fn flood() -> usize {
    std::env::var("SIDEPATH_FLOOD").ok().map_or(20_000, |n| n.parse().unwrap())
}

/// Garbage and plausible handshakes: any kind, from anybody, of any length.
fn stranger(number: usize, to: u8) -> Vec<u8> {
    let mut state = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[5]
    };
    let length = [17, 17 + 8 + 85, 17 + 57, 16, 200][number % 5];
    let mut bytes = vec![0; HEADER];
    bytes.push([1, 2, 3][number / 5 % 3]);
    bytes.resize_with(HEADER + length, &mut draw);
    let length = u32::try_from(length).unwrap();
    let from = if number.is_multiple_of(7) { draw() } else { 3 - to };
    let generation = u32::from(draw());
    let epoch =
        if number.is_multiple_of(2) { u64::MAX - u64::from(draw()) } else { u64::from(draw()) };
    let channel = Channel::Handshake;
    Header { channel, from, to, generation, number: epoch, length }.write(&mut bytes);
    if number.is_multiple_of(11) {
        bytes.iter_mut().for_each(|byte| *byte = draw());
    }
    bytes
}

#[test]
fn a_flood_of_strangers_leaves_no_trace_and_gets_no_answer() {
    // Before keys are agreed and after, at the initiator and at the responder.
    for settled in [false, true] {
        let mut net = if settled { Net::settled(2) } else { Net::new(2) };
        for n in [1, 2] {
            if !settled {
                net.network = false;
                net.storage = false;
                net.finish(n);
            }
            let now = net.now;
            let side = net.side(n);
            let (before, drawn) = (side.digest(), side.hands.drawn);
            let counted: u64 = side.refusals(now).values().sum();
            let began = Instant::now();
            for number in 0..flood() {
                let bytes = stranger(number, n);
                side.give(now, WAYS[number % 4], id(3 - n), &bytes);
            }
            let took = began.elapsed();
            assert_eq!(side.hands.drawn, drawn, "a stranger made us begin a Noise message");
            assert!(side.hands.out.is_empty(), "a stranger was answered");
            assert!(side.digest() == before, "a stranger was remembered");
            let counted = side.refusals(now).values().sum::<u64>() - counted;
            assert_eq!(counted, flood() as u64, "each is counted by cause");
            println!("node {n}, keys {settled}: {:?} each", took / u32::try_from(flood()).unwrap());
            println!("  {:?}", side.refusals(now));
        }
    }
}

#[test]
fn strangers_with_keys_of_their_own_are_nobody() {
    // A daemon with another key and the same id, group and peers: its hellos and inits are made
    // as well as ours, under a key nobody knows.
    for n in [1_u8, 2] {
        let mut stranger = options(n, 2, 999);
        stranger.private_key = zeroize::Zeroizing::new(key(77));
        let now = Time(1_000_000);
        let mut alone =
            Net::of(vec![Side::new(options(1, 2, 1), now), Side::new(options(2, 2, 1), now)]);
        *alone.side(n) = Side::new(stranger, now);
        alone.run(20_000);
        let mut net = Net::settled(2);
        let now = net.now;
        let side = net.side(3 - n);
        let (before, drawn) = (side.digest(), side.hands.drawn);
        let made: Vec<_> = alone.tapped.iter().filter(|t| t.from == usize::from(n) - 1).collect();
        assert!(!made.is_empty());
        for tapped in &made {
            WAYS.iter().for_each(|way| side.give(now, *way, id(n), &tapped.bytes));
        }
        assert_eq!(side.hands.drawn, drawn);
        assert!(side.hands.out.is_empty(), "a stranger was answered");
        assert!(side.digest() == before, "a stranger was remembered");
        assert!(refused(side, now, "handshake_forged") >= made.len() as u64);
    }
}

#[test]
fn replayed_hellos_do_not_keep_us_busy() {
    let mut net = Net::settled(2);
    // The higher id says hello only without keys: make it lose them.
    net.restart(2);
    net.run(3000);
    let hello = net
        .tapped
        .iter()
        .rfind(|t| t.from == 1 && t.bytes[0] & 15 == 0 && t.bytes[HEADER] == 1)
        .expect("it asked for keys")
        .clone();
    let shower = |net: &mut Net| {
        for _ in 0..2000 {
            for _ in 0..5 {
                let now = net.now;
                net.side(1).give(now, Way::Datagram, id(2), &hello.bytes);
            }
            net.run(1);
        }
    };
    let before = agreements(net.side(1));
    shower(&mut net);
    assert_eq!(agreements(net.side(1)), before, "the peer is heard: it has its keys");
    // Silence may mean lost keys; then we ask, and never faster than an unanswered init goes out.
    net.network = false;
    net.storage = false;
    net.run(1000);
    let tapped = net.tapped.len();
    shower(&mut net);
    let inits = net.tapped[tapped..]
        .iter()
        .filter(|t| t.from == 0 && t.way == Way::Datagram && t.bytes[0] & 15 == 0)
        .count();
    assert!((1..=42).contains(&inits), "10,000 replayed hellos in 2 s made {inits} inits");
    net.network = true;
    net.storage = true;
    net.run(5000);
    still_talks(&mut net);
}

#[test]
fn older_inits_replayed_cost_no_noise() {
    let mut net = Net::settled(2);
    // Several agreements of the same pair of incarnations.
    for _ in 0..3 {
        let count = net.tapped.len();
        net.restart(2);
        net.run(3000);
        assert!(net.tapped.len() > count);
    }
    let inits: Vec<_> = net
        .tapped
        .iter()
        .filter(|t| t.from == 0 && t.bytes[0] & 15 == 0 && t.bytes[HEADER] == 2)
        .cloned()
        .collect();
    assert!(inits.len() >= 4);
    let (now, newest) = (net.now, inits.last().unwrap().bytes.clone());
    let side = net.side(2);
    let drawn = side.hands.drawn;
    for _ in 0..1000 {
        for init in inits.iter().filter(|init| init.bytes != newest) {
            side.give(now, Way::Datagram, id(1), &init.bytes);
        }
    }
    assert_eq!(side.hands.drawn, drawn, "a replayed init made us begin a Noise message");
    assert!(refused(side, now, "handshake_replayed") >= 3000);
}

#[test]
fn numbers_near_the_end_never_wrap() {
    // Only a peer with keys can name such numbers; they must not lock anybody up or panic.
    let (mut side, keys, now) = hostile();
    for channel in [Channel::Express, Channel::Datagram] {
        for number in [u64::MAX, u64::MAX - 1, u64::MAX - 131_072, 1 << 32, 1 << 63] {
            let mut body = data_body(1);
            // Floors and predecessors as far back as can be named, and none.
            for delta in [0_u32, 1, u32::MAX] {
                body[4..8].copy_from_slice(&delta.to_le_bytes());
                body[8..12].copy_from_slice(&delta.to_le_bytes());
                let frame = sealed(&keys, channel, number, &body);
                side.give(now, Way::Datagram, id(1), &frame);
            }
        }
    }
    let knock = [6];
    for number in [1, u64::MAX - 65_536, u64::MAX - 1, u64::MAX, u64::MAX, 0, 5] {
        side.give(now, Way::Datagram, id(1), &sealed(&keys, Channel::Control, number, &knock));
    }
    // Nothing behind a number that was seen is taken again, at the end as at the beginning.
    assert!(refused(&side, now, "repeated") >= 3, "{:?}", side.refusals(now));
    // An acknowledgement of everything that could ever be, and floors beyond all.
    let far = u64::MAX;
    let receipt = failover::wire::control::ChannelAck {
        cumulative: far,
        ranges: vec![(u32::MAX, u32::MAX); 3],
        network: (far, far),
        storage: (far, far),
    };
    let ack = failover::wire::control::Ack {
        express: receipt.clone(),
        datagram: receipt,
        floors: (far, far),
        cursors: vec![(true, far)],
    };
    side.input(now, Input::Packet(&packet(2, 1, b"kept")));
    failover::finish(&mut side.node, now, &mut side.hands);
    let (mut fresh, keys, _) = hostile();
    let message = failover::wire::control::Control::Ack(ack);
    let body = failover::wire::control::write(&message, Vec::new());
    fresh.give(now, Way::Datagram, id(1), &sealed(&keys, Channel::Control, 1, &body));
    for number in [1, far - 1, far] {
        let frame = sealed(&keys, Channel::Express, number, &data_body(1));
        fresh.give(now, Way::Stored, id(1), &frame);
    }
    failover::finish(&mut fresh.node, now + Duration::from_secs(1), &mut fresh.hands);
    let _ = (side.peer(now, 1), fresh.peer(now, 1));
}

#[test]
fn lying_super_packets_and_fragments_are_bounded_and_counted() {
    // The class of CVE-2026-15813: lengths and offsets of others are never believed.
    let mut net = Net::settled(2);
    let before = net.side(1).peer(Time(0), 2).counters.accepted;
    let mut given = 0;
    for gso in [1, 4, 5, 0x81, 2, 3, 255] {
        for (size, start) in
            [(0, 20), (1, 20), (65_535, 20), (1, 0), (8, 65_535), (8, 19), (8, 40), (1400, 24)]
        {
            let mut raw = packet(1, 2, &[7; 200]);
            raw[..2].copy_from_slice(&[1, gso]);
            for (at, field) in [(4, size), (6, start), (8, 16_u16)] {
                raw[at..at + 2].copy_from_slice(&u16::to_ne_bytes(field));
            }
            net.packet(1, &raw);
            given += 1;
            if given % 8 == 0 {
                net.run(5);
            }
        }
    }
    net.run(6000);
    let counters = net.side(1).peer(Time(0), 2).counters;
    assert!(counters.accepted - before >= given);
    assert_eq!(counters.queued, 0, "each was sent or counted as lost");
    assert!(counters.lost_by_cause["malformed"] > 0, "{counters:?}");
    // Later fragments without a first, firsts without an end: remembered up to a bound.
    let room = net.side(1).digest().len();
    for number in 0..50_000_u32 {
        let mut raw = packet(1, 2, &[0; 8]);
        raw[14..16].copy_from_slice(&number.to_be_bytes()[2..]);
        raw[16..18].copy_from_slice(if number.is_multiple_of(2) {
            &[0x20, 0]
        } else {
            &[0x3f, 0xff]
        });
        let now = net.now;
        net.side(1).input(now, Input::Packet(&raw));
        if number % 50 == 0 {
            net.run(1);
        }
    }
    net.run(6000);
    let grown = net.side(1).digest().len().saturating_sub(room);
    assert!(grown < 16_384, "the node's own account of itself grew by {grown} characters");
}

#[test]
fn a_frame_of_another_address_does_not_move_us() {
    // Source addresses are not authenticated: only those configured are ever sent to.
    let mut net = Net::settled(2);
    net.network = false;
    net.storage = false;
    net.packet(1, &packet(1, 2, b"x"));
    net.run(1);
    let data = net.tapped.iter().rfind(|t| t.bytes[0] & 15 >= 3).cloned().unwrap();
    let now = net.now;
    net.side(2).input(now, Input::Datagram { from: endpoint(66), bytes: &data.bytes });
    let side = net.side(2);
    failover::finish(&mut side.node, now, &mut side.hands);
    let mut sent = 0;
    for output in &side.hands.out {
        if let Output::Datagram { to, .. } = output {
            assert_eq!(*to, endpoint(1), "an address nobody configured was sent to");
            sent += 1;
        }
    }
    failover::finish(&mut side.node, now + Duration::from_millis(5), &mut side.hands);
    assert!(sent > 0 || !side.hands.out.is_empty(), "the frame was good and is acknowledged");
}
