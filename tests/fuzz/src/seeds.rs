//! Valid inputs, from which the corpora grew: written into an empty corpus by
//! `SIDEPATH_SEEDS=DIR cargo test --test fuzz_replay seeds`.

use std::time::Duration;

use failover::{
    Path, Route, Time,
    beat::{Beat, Echo},
    wire::{
        Channel, HEADER, Header,
        control::{self, Ack, ChannelAck, Control, Padding, WireBeat},
        data::{PREFIX, Prefix},
    },
};
use volumes::{
    Entry,
    buffer::Pool,
    format::{
        mailbox,
        record::{self, Draft},
        superblock::Copy,
        table::Cell,
    },
};

use super::volume::{ADDRESS, UUID, sample};

/// (target, name, bytes).
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// One or more valid inputs per target.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let mut seeds = words();
    seeds.extend(frames());
    seeds.extend(blocks());
    seeds.extend(steps());
    seeds.extend(sessions());
    seeds
}

/// A peer that opens, sends, acknowledges and ends; one that cheats.
fn sessions() -> Vec<Seed> {
    use failover::wire::stream::{Ending, Preference, Segment, write};
    let open = |id| Segment::Open {
        id,
        preference: Preference::StorageFirst,
        window: 70_000,
        service: "echo",
    };
    let ack = |received, complete| Segment::Ack {
        id: 0,
        received,
        taken: received,
        limit: 1 << 20,
        complete,
    };
    let data = |offset, last| Segment::Data { id: 0, offset, last, length: 3 };
    let frame = |segments: &[Segment<'_>]| {
        let mut body = Vec::new();
        for segment in segments {
            write(segment, &mut body);
            if let Segment::Data { length, .. } = segment {
                body.resize(body.len() + *length as usize, 7);
            }
        }
        let length = u16::try_from(body.len()).expect("short").to_be_bytes();
        [vec![0x80 | length[0], length[1]], body].concat()
    };
    let life = [
        frame(&[open(0)]),
        vec![1, 2, 3, 3],
        frame(&[data(0, false), data(6, true)]),
        frame(&[data(3, false), ack(5, false)]),
        vec![4, 5, 3],
        frame(&[ack(5, true), Segment::Seen { storage: true, highest: 9, count: 2 }]),
        vec![6, 7, 8, 9],
    ];
    let cheat = [
        frame(&[open(0), open(2), open(1)]),
        vec![1, 3],
        frame(&[data(1 << 40, false), ack(9, true), Segment::Bye { id: 2 }]),
        frame(&[Segment::Reset { id: 0, ending: Ending::Violation }]),
        vec![0, 3, 0, 3],
    ];
    vec![("sessions", "life", life.concat()), ("sessions", "cheat", cheat.concat())]
}

const CONFIG: &str = r#"[node]
id = 1
name = "alpha"
key_file = "alpha.key"
control_socket = "alpha.sock"
state_dir = "alpha.state"
[interface]
name = "sp0"
address = "10.98.0.1/24"
[network]
listen = "192.0.2.1:7440"
heartbeat = "10ms"
hold = "1s"
[storage]
volume = "/dev/disk/by-id/lun"
flush_bytes = "64KiB"
flush_delay = "500us"
[classes]
express_udp_ports = [5405]
[[peer]]
id = 2
name = "beta"
public_key = "zo060cyxM+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk="
endpoints = ["192.0.2.2:7440"]
address = "10.98.0.2"
[hooks]
on_route_change = ["/bin/true"]
[metrics]
listen = "127.0.0.1:9744"
[security]
plaintext = true
"#;

fn words() -> Vec<Seed> {
    let ask = |name, text: &str| ("admin", name, text.as_bytes().to_vec());
    let storage_only = "[node]\nid = 1\nname = \"a\"\nkey_file = \"k\"\n[storage]\nsend = \"s\"\n\
                        receive = { b = \"r\" }\n[[peer]]\nid = 2\nname = \"b\"\npublic_key = \"\"\n";
    vec![
        ask("status", r#"{"version":1,"verb":"status"}"#),
        ask("ping", r#"{"version":1,"verb":"ping","peer":2,"via":"storage","timeout_ms":1000}"#),
        ask(
            "drill",
            r#"{"version":1,"verb":"drill","peer":2,"cut":"both","length_us":9,"force":true}"#,
        ),
        ask("reload", r#"{"version":1,"verb":"reload"}"#),
        ("config", "whole", CONFIG.into()),
        ("config", "storage", storage_only.into()),
    ]
}

fn beat() -> Beat {
    Beat {
        sent_at: Time(5_000_100),
        next_due: Duration::from_millis(10),
        loop_age: Duration::from_micros(300),
        heard_network: Some(Echo { stamp: 5_000_000, age: Duration::from_micros(40) }),
        heard_storage: Some(Echo { stamp: 3, age: Duration::from_millis(4) }),
        route: Route::Both,
        goodbye: false,
        drill: Some(Path::Network),
    }
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let receipt = ChannelAck {
        cumulative: 2,
        ranges: vec![(1, 2), (300, 4)],
        network: (9, 7),
        storage: (3, 2),
    };
    let ack = Ack {
        express: receipt.clone(),
        datagram: receipt,
        floors: (1, 1),
        cursors: vec![(true, 4), (false, 9)],
    };
    let write = |message| control::write(&message, Vec::new());
    vec![
        ("ack", write(Control::Ack(ack))),
        ("pulse", write(Control::Pulse { beat: beat().into(), heard: Some((7, 8)) })),
        ("probe", write(Control::Probe { id: 7, padding: Padding(40) })),
        ("probe-reply", write(Control::ProbeReply { id: 7 })),
        ("ping", write(Control::Ping { id: u64::MAX, back_as_came: true })),
        ("pong", write(Control::Pong { id: 1, out_by_storage: true })),
        ("knock", write(Control::Knock)),
        ("beat", control::write(&WireBeat::from(beat()), Vec::new())),
    ]
}

fn frames() -> Vec<Seed> {
    let mut seeds: Vec<Seed> =
        messages().into_iter().map(|(name, body)| ("control", name, body)).collect();
    let framed = |channel, body: &[u8]| {
        let mut frame = vec![0; HEADER];
        frame.extend_from_slice(body);
        let length = u32::try_from(body.len()).expect("short");
        Header { channel, from: 1, to: 2, generation: 7, number: 9, length }.write(&mut frame);
        frame
    };
    let mut body = vec![0; PREFIX + 20];
    let accepted_at = Time(8);
    Prefix { is_super: true, strict: true, floor: 3, predecessor: Some(8), accepted_at }
        .write(9, &mut body);
    seeds.push(("frame", "data", framed(Channel::Datagram, &body)));
    for (name, kind, content) in [("hello", 1, 0), ("init", 2, 125), ("response", 3, 57)] {
        let mut body = vec![kind; 17];
        body.resize(17 + content, 4);
        seeds.push(("frame", name, framed(Channel::Handshake, &body)));
    }
    let mut stream = vec![6, 0];
    for size in [16, 21, 60] {
        stream.extend_from_slice(&u32::to_be_bytes(size));
        stream.push(0x14);
        stream.resize(stream.len() + size as usize - 1, 9);
    }
    seeds.push(("stream", "three", stream));
    seeds.extend(packets());
    seeds
}

fn packets() -> Vec<Seed> {
    let mut four = vec![0x45, 0xb8, 0, 0, 0, 9, 0x20, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    four.extend_from_slice(&[0x15, 0x1d, 0x15, 0x1d, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let mut later = four.clone();
    later[6..8].copy_from_slice(&[0, 2]);
    let mut long = four.clone();
    long.resize(120, 7);
    let mut six = vec![0x60, 0, 0, 0, 0, 24, 0, 64];
    six.resize(40, 1);
    six.extend_from_slice(&[44, 0, 0, 0, 0, 0, 0, 0]);
    six.extend_from_slice(&[6, 0, 0, 1, 0, 0, 0, 7]);
    six.extend_from_slice(&[0, 80, 0, 81, 0, 0, 0, 1]);
    let mut seeds = vec![
        ("view", "first-fragment", four.clone()),
        ("view", "later-fragment", later),
        ("view", "long", long),
        ("view", "six", six),
    ];
    for (name, kind) in [("tcp4", 1), ("tcp6", 3), ("udp4", 5), ("udp6", 7)] {
        let mut data = vec![kind, 16, 0, 1, 7, 4, 2, 3, 5];
        data.resize(9 + 50, 0xab);
        seeds.push(("segment", name, data));
    }
    // As the kernel hands it over: even first byte, then ten bytes of header.
    let mut raw = vec![0, 1, 5, 0, 0];
    for field in [4_u16, 20, 6] {
        raw.extend_from_slice(&field.to_ne_bytes());
    }
    raw.extend_from_slice(&four);
    seeds.push(("segment", "raw", raw));
    // Twice the length of control messages (as a plan, then as they are), they, then datagrams.
    let mut batch = vec![2 * 24, 0, 4, 3, 0, 0, 0, 1, 16];
    batch.extend_from_slice(&[1; 16]);
    batch.extend_from_slice(b"onetwothr");
    seeds.push(("batch", "merged", batch));
    let mut batch =
        vec![2 * 20 + 1, 20, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 104, 0, 0, 0, 4, 0, 0, 0];
    batch.extend_from_slice(b"fourfivesi");
    seeds.push(("batch", "raw", batch));
    seeds
}

fn blocks() -> Vec<Seed> {
    let with_mode = |mode: u8, block: &[u8]| {
        let mut data = vec![mode];
        let end = block.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        data.extend_from_slice(&block[..end]);
        data
    };
    let mut draft = Draft::new(Pool::new().take(4096));
    for frame in [&b"one"[..], b"", b"three"] {
        draft.push(frame);
    }
    let data = draft.seal(&ADDRESS, 7, 5, 3, 4096).1;
    let wrap = record::wrap(Pool::new().take_len(4096), &ADDRESS, 7, 6, 3, 61).1;
    let message = mailbox::encode(Pool::new().take_len(4096), (UUID, 1, 2), (7, 5), b"hello");
    let superblock = sample();
    let entry = Entry {
        node: 2,
        goodbye: true,
        generation: 3,
        epoch: 9,
        nonce: 10,
        beat: 7,
        interval_us: 11,
        wall_unix_us: 12,
        cells: vec![Cell::default(); 3],
    };
    let mut block = vec![0; 4096];
    entry.encode(UUID, &mut block);
    // Without the checksum at the end, which the target completes.
    let body = |block: &[u8]| block[..4092].to_vec();
    vec![
        ("record", "data", with_mode(0, &data)),
        ("record", "wrap", with_mode(0, &wrap)),
        ("mailbox", "message", with_mode(0, &message)),
        ("superblock", "first", with_mode(0, &body(&superblock.encode(Copy::First)))),
        ("superblock", "last", with_mode(2, &body(&superblock.encode(Copy::Last)))),
        ("table", "entry", with_mode(0, &body(&block))),
    ]
}

fn steps() -> Vec<Seed> {
    // Hello, init, response, a wait, the same init again, one damaged, one invented.
    let talk = vec![
        2, 0, 0, 1, 0, 0, 7, 0, 0, 0, 0, 0, 6, 0, 0, 7, 0, 0, 5, 0, 9, 7, 0, 0, 9, 5, 70, 13, 3, 4,
        2, 1, 1, 10, 0, 0,
    ];
    let mut seeds = vec![
        ("agreement", "talk", talk),
        ("handshake", "init-changed", vec![1, 30, 1, 50, 2]),
        ("handshake", "response-cut", vec![8 | 4, 60, 1, 2, 3]),
        ("handshake", "invented", vec![2 | 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ];
    for (name, body) in messages() {
        let channel = u8::from(name != "beat");
        let length = u8::try_from(body.len()).expect("short");
        let mut data = vec![5, 0, 0, 5, 2, 1, 0, channel, length];
        data.extend_from_slice(&body);
        data.extend_from_slice(&[4, 2, 20, 3, 7, 4, 1, 2, 3, 4, 4, 3, 30]);
        seeds.push(("peer", name, data));
    }
    // Data of one flow with a hole, by the network and by storage, from the right address and not.
    let mut data = vec![3, 1, 2, 9, 9, 4, 2, 9];
    for (path, number, source) in [(0x83, 1, 0), (0xc3, 2, 0), (0x82, 0, 1), (0xa3, 1, 0)] {
        data.extend_from_slice(&[1, path, 9, 2, 1, 0, number, 0, source, 1, 2, 3]);
    }
    seeds.push(("peer", "data", data));
    seeds
}
