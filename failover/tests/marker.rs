//! What applications say is nobody else's: a marker in the payload of packets never appears in
//! anything that leaves the core toward a wire, a volume, a log or a status page.

mod tap;

use failover::Input;
use tap::{Net, VOLUME, Way, contains, id, packet};

const MARKER: &[u8] = b"SIDEPATH-MARKER-7f3a";

/// The marker as it would show in `Debug` output: as text or as a list of numbers.
fn shown() -> Vec<Vec<u8>> {
    let numbers: Vec<_> = MARKER.iter().map(u8::to_string).collect();
    let hex: String = MARKER.iter().map(|b| format!("{b:02x}")).collect();
    vec![MARKER.to_vec(), numbers.join(", ").into_bytes(), hex.into_bytes()]
}

fn say(net: &mut Net, ms: usize, length: usize) {
    for number in 0..ms {
        for from in [1, 2] {
            let mut payload = MARKER.to_vec();
            payload.resize(length.max(MARKER.len()), 0);
            payload.extend_from_slice(MARKER);
            let mut raw = packet(from, 3 - from, &payload);
            if number % 2 == 0 {
                raw[11] = 46 << 2;
            }
            net.packet(from, &raw);
            look(net);
        }
        net.run(1);
        look(net);
    }
}

/// Nodes, pulses, status and events while packets are queued, kept and held.
fn look(net: &Net) {
    for side in &net.sides {
        let mut said = format!("{:?} {:?} {:?}", side.status(net.now), side.events, side.pulse);
        // The whole node is long; now and then is enough.
        if net.now.micros().is_multiple_of(5000) {
            said.push_str(&format!("{:?}", side.node));
        }
        for marker in shown() {
            assert!(!contains(said.as_bytes(), &marker), "the marker in words: {said}");
        }
    }
}

#[test]
fn what_packets_say_is_sealed_on_every_way_and_shown_nowhere() {
    let mut net = Net::settled(2);
    net.listen = Some(MARKER.to_vec());
    say(&mut net, 40, 0);
    net.network = false;
    say(&mut net, 100, 0);
    say(&mut net, 20, 4000);
    net.network = true;
    net.run(5000);
    say(&mut net, 20, 4000);
    // With both paths dead everything waits, unsealed and sealed.
    net.network = false;
    net.storage = false;
    say(&mut net, 100, 100);
    net.network = true;
    net.storage = true;
    net.run(8000);
    say(&mut net, 20, 0);
    net.run(500);
    let arrived = net
        .sides
        .iter()
        .map(|s| s.delivered.iter().filter(|packet| contains(packet, MARKER)).count());
    assert!(arrived.min() > Some(190), "packets arrive whole, marker and all");
    for way in [Way::Datagram, Way::Tcp, Way::Stored, Way::Mailbox] {
        let crossed: Vec<_> = net.tapped.iter().filter(|t| t.way == way).collect();
        assert!(!crossed.is_empty(), "nothing crossed by {way:?}");
        for tapped in crossed {
            for marker in shown() {
                assert!(!contains(&tapped.bytes, &marker), "the marker crossed by {way:?}");
            }
            // Not even in pieces: half of it would be found.
            assert!(!contains(&tapped.bytes, &MARKER[..10]));
            assert!(!contains(&tapped.bytes, &MARKER[10..]));
        }
    }
    assert!(!net.heard_words, "the marker in the words of an output");
}

#[test]
fn private_keys_are_shown_nowhere() {
    let net = Net::settled(2);
    let key = tap::key(1);
    let list = format!("{:?}", &key[4..20]);
    let list = list.trim_matches(['[', ']']).as_bytes().to_vec();
    let hex: String = key[4..20].iter().map(|b| format!("{b:02x}")).collect();
    let mut said = format!("{:?} {:?}", net.sides[0].node, net.sides[0].pulse);
    said.push_str(&format!("{:?}", tap::options(1, 2, 100)));
    said.push_str(&format!("{:?}", net.sides[0].status(net.now)));
    assert!(!contains(said.as_bytes(), &list));
    assert!(!contains(said.as_bytes(), hex.as_bytes()));
}

#[test]
fn a_restart_leaves_nothing_behind_in_words() {
    let mut net = Net::settled(2);
    net.network = false;
    say(&mut net, 20, 0);
    net.restart(1);
    let fact = failover::VolumeFact::Drained { to: id(1) };
    let now = net.now;
    net.side(2).input(now, Input::Volume(VOLUME, fact));
    net.run(5000);
    look(&net);
}
