//! Frames, control messages and beats.

use std::cell::RefCell;

use failover::{
    NodeId, Time,
    beat::{Beat, BeatOrder, Pulse},
    secure::FrameKey,
    wire::{
        Channel, HEADER, Header, TAG,
        control::{self, Control, WireBeat},
        data::{PREFIX, Prefix},
        hello::Handshake,
    },
};

use super::meter::bounded;

const CHANNELS: [Channel; 5] =
    [Channel::Handshake, Channel::Beat, Channel::Control, Channel::Express, Channel::Datagram];

/// Headers, prefixes and handshake bodies are read and written back; a sealed frame opens, and
/// not with any bit of it changed.
pub(crate) fn frame(data: &[u8]) {
    if let Ok(header) = Header::read(data) {
        assert_eq!(data.len(), HEADER + header.length as usize);
        let mut again = data.to_vec();
        header.write(&mut again);
        assert_eq!(again, data, "a header is written as it was read");
        let body = &data[HEADER..];
        if let Some(prefix) = Prefix::read(header.number, body) {
            assert!(prefix.floor <= header.number);
            assert!(prefix.predecessor.is_none_or(|p| p < header.number));
            let mut again = body.to_vec();
            prefix.write(header.number, &mut again);
            assert_eq!(again, body, "a prefix is written as it was read");
        }
        if let Some(handshake) = Handshake::read(body) {
            assert_eq!(handshake.kind as u8, body[0]);
            assert_eq!([handshake.code, handshake.content].concat(), body[1..]);
        }
    }
    let [channel, number @ .., bit_low, bit_high] = *match data.first_chunk::<11>() {
        Some(chunk) => chunk,
        None => return,
    };
    let key = key();
    let number = u64::from_le_bytes(number);
    let channel = CHANNELS[usize::from(channel) % CHANNELS.len()];
    let mut frame = vec![0; HEADER];
    frame.extend_from_slice(&data[11..]);
    key.seal(channel, (1, 2), 7, number, &mut frame);
    assert_eq!(frame.len(), HEADER + data.len() - 11 + TAG);
    let header = Header::read(&frame).expect("what we sealed parses");
    let mut opened = frame.clone();
    assert_eq!(key.open(&header, &mut opened), Some(data.len() - 11));
    assert_eq!(&opened[HEADER..HEADER + data.len() - 11], &data[11..]);
    let bit = usize::from(u16::from_le_bytes([bit_low, bit_high])) % (frame.len() * 8);
    frame[bit / 8] ^= 1 << (bit % 8);
    if let Ok(header) = Header::read(&frame) {
        assert_eq!(key.open(&header, &mut frame), None, "bit {bit} changed, and it opened");
    }
}

fn key() -> FrameKey {
    thread_local! {
        static KEY: RefCell<Option<FrameKey>> = const { RefCell::new(None) };
    }
    KEY.with_borrow_mut(|key| key.get_or_insert_with(|| FrameKey::derive(&[5; 32], b"f")).clone())
}

/// Bodies of control frames and beats, as a peer that holds keys may write them.
pub(crate) fn control(data: &[u8]) {
    // A list of ranges is 8 bytes a pair here and 2 on the wire; growing it doubles.
    if let Some(message) = bounded(data, 1024, 64, || control::read::<Control>(data)) {
        let again = control::write(&message, Vec::new());
        assert!(again.len() <= data.len(), "what we write is the shortest form");
        assert_eq!(control::read::<Control>(&again), Some(message));
    }
    let read = bounded(data, 1024, 64, || control::read::<WireBeat>(data));
    if let Some(wire) = read {
        assert_eq!(WireBeat::from(Beat::from(wire)), wire, "nothing is lost on the way");
    }
    let (us, peer) = (id(2), id(1));
    let mut pulse = Pulse::new(us);
    let (seal, open) = (key(), key());
    pulse.order(Time(0), BeatOrder::Keys { peer, peer_epoch: 1, generation: 7, seal, open });
    let mut frame = vec![0; HEADER];
    frame.extend_from_slice(data);
    key().seal(Channel::Beat, (1, 2), 7, 1, &mut frame);
    let heard = pulse.open(Time(9), &frame);
    assert!(heard.is_none() || read.is_some());
    assert!(heard.is_none_or(|heard| read.map(Beat::from) == Some(heard.beat)));
    assert_eq!(pulse.open(Time(10), &frame).filter(|_| heard.is_some()), None, "only once");
    if data.len() >= PREFIX {
        let _ = pulse.open(Time(11), data);
    }
}

pub(crate) fn id(id: u8) -> NodeId {
    NodeId::new(id).expect("1..=64")
}
