//! The Sender alone: what a frame says, what a receipt settles, when a frame goes again.

use std::time::Duration;

use super::{NUMBERS_MAX, Sealer, Sender, sender::Acked};
use crate::{
    Path, Time,
    packet::Class,
    queue::Queued,
    secure::{FrameKey, Sealed},
    wire::{
        Channel, HEADER, Header,
        control::ChannelAck,
        data::{PREFIX, Prefix},
    },
};

const TTL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_millis(10);

const fn ms(ms: u64) -> Time {
    Time(ms * 1000)
}

fn key() -> FrameKey {
    FrameKey::derive(&[1; 32], b"k")
}

struct Bench(Sender);

impl Bench {
    fn new() -> Self {
        Self(Sender::new(Channel::Datagram, TTL))
    }

    fn seal(&mut self, at: Time, flow: u64, strict: bool) {
        let packet = Queued {
            frame: vec![0; HEADER + PREFIX + 10],
            is_super: false,
            packets: 3,
            class: Class::Write,
            flow,
            accepted_at: at,
        };
        self.0.seal(packet, &Sealer { key: key(), generation: 1, ends: (1, 2), strict });
    }

    /// Seals a frame and sends it by these paths.
    fn send(&mut self, at: Time, paths: &[Path]) {
        self.seal(at, 7, false);
        for path in paths {
            self.0.take(at, *path).unwrap();
        }
    }

    /// What the next frame of the network says.
    fn prefix(&mut self) -> Prefix {
        let frame = self.0.take(Time(0), Path::Network).unwrap();
        let header = Header::read(&frame).unwrap();
        let mut clear = frame.to_vec();
        key().open(&header, &mut clear).unwrap();
        Prefix::read(header.number, &clear[HEADER..]).unwrap()
    }

    fn again(&mut self, at: Time, max: usize) -> Vec<u64> {
        let number = |frame: &Sealed| Header::read(frame).unwrap().number;
        self.0.overdue(at, Path::Network, PATIENCE, max).iter().map(number).collect()
    }

    fn ack(&mut self, at: Time, cumulative: u64, ranges: &[(u32, u32)]) -> Acked {
        let none = (0, 0);
        let ranges = ranges.to_vec();
        self.0.acknowledged(at, &ChannelAck { cumulative, ranges, network: none, storage: none })
    }

    /// The receipt settles nothing and says what came by the network: highest, how many.
    fn came(&mut self, at: Time, network: (u64, u64)) {
        let ack = ChannelAck { cumulative: 1, ranges: vec![], network, storage: (0, 0) };
        assert_eq!(self.0.acknowledged(at, &ack), Acked::default());
    }
}

#[test]
fn a_frame_names_the_floor_and_the_unsettled_frame_before_it_in_its_flow() {
    let mut b = Bench::new();
    let said = |b: &mut Bench, flow| {
        b.seal(ms(1), flow, false);
        let prefix = b.prefix();
        assert_eq!(prefix.accepted_at, ms(1));
        (prefix.floor, prefix.predecessor)
    };
    assert_eq!(said(&mut b, 7), (1, None));
    assert_eq!(said(&mut b, 7), (1, Some(1)));
    assert_eq!(said(&mut b, 8), (1, None), "another flow");
    b.ack(ms(2), 2, &[]);
    assert_eq!(said(&mut b, 7), (2, Some(2)), "2 is the floor itself: not settled");
    b.ack(ms(2), 5, &[]);
    assert_eq!(said(&mut b, 7), (5, None), "4 is settled");
}

#[test]
fn a_frame_is_strict_when_its_flow_may_change_path() {
    let mut b = Bench::new();
    b.seal(ms(0), 7, false);
    assert!(!b.prefix().strict, "the network alone, and it keeps up");
    b.seal(ms(0), 7, true);
    assert!(b.prefix().strict, "the route says so");
    b.seal(ms(0), 7, false);
    b.seal(ms(0), 7, false);
    assert!(!b.prefix().strict, "nothing waited for the network");
    assert!(b.prefix().strict, "the one before did");
}

#[test]
fn a_receipt_tells_what_the_network_carried() {
    let mut b = Bench::new();
    b.send(ms(0), &[Path::Storage]);
    b.send(ms(0), &[Path::Storage]);
    b.0.skip(Path::Network);
    b.send(ms(0), &[Path::Storage, Path::Network]);
    let acked = b.ack(ms(9), 4, &[]);
    assert_eq!((acked.packets, acked.network_frames), (9, 1));
}

#[test]
fn the_delay_of_storage_is_that_of_a_frame_it_carried_once_and_alone() {
    let delay = |paths: &[Path], again: bool| {
        let mut b = Bench::new();
        b.send(ms(0), &[Path::Storage]);
        b.0.skip(Path::Network);
        b.send(ms(4), paths);
        b.ack(ms(4), 2, &[]);
        if again {
            assert_eq!(b.0.overdue(ms(20), Path::Storage, PATIENCE, 9).len(), 1);
        }
        b.ack(ms(30), 3, &[]).storage_delay
    };
    assert_eq!(delay(&[Path::Storage], false), Some(Duration::from_millis(26)));
    assert_eq!(delay(&[Path::Storage], true), None, "which of the two was it?");
    assert_eq!(delay(&[Path::Storage, Path::Network], false), None);
    assert_eq!(delay(&[Path::Network], false), None);
    let mut b = Bench::new();
    b.send(ms(0), &[Path::Storage]);
    b.send(ms(5), &[Path::Storage]);
    assert_eq!(b.ack(ms(8), 3, &[]).storage_delay, Some(Duration::from_millis(3)), "the newest");
}

#[test]
fn a_path_is_silent_since_the_first_frame_after_the_last_that_came() {
    let mut b = Bench::new();
    let silence = |b: &Bench, at| b.0.silence(ms(at), Path::Network);
    assert_eq!(silence(&b, 9), Duration::ZERO, "nothing was sent");
    b.send(ms(10), &[Path::Network]);
    b.send(ms(20), &[Path::Network]);
    assert_eq!(silence(&b, 25), Duration::from_millis(15));
    assert_eq!(b.0.silence(ms(25), Path::Storage), Duration::ZERO, "nothing went there");
    b.came(ms(26), (1, 1));
    assert_eq!(silence(&b, 30), Duration::ZERO);
    b.send(ms(31), &[Path::Network]);
    b.came(ms(32), (1, 1));
    assert_eq!(silence(&b, 40), Duration::from_millis(9), "the same receipt once more");
    for quiet in [Sender::leave, Sender::rewind, Sender::skip] {
        b.send(ms(50), &[]);
        b.0.take(ms(50), Path::Network).unwrap();
        assert!(silence(&b, 51) > Duration::ZERO);
        quiet(&mut b.0, Path::Network);
        assert_eq!(silence(&b, 60), Duration::ZERO);
    }
}

#[test]
fn patience_doubles_and_ends_after_six_sendings() {
    let mut b = Bench::new();
    b.send(ms(0), &[Path::Network]);
    for at in [10, 30, 70, 150, 310] {
        assert_eq!(b.again(ms(at - 1), 9), [], "{at}");
        assert_eq!(b.again(ms(at), 9), [1], "{at}");
    }
    assert_eq!(b.again(ms(10_000), 9), [], "only a change of path helps");
    b.0.rewind(Path::Network);
    assert_eq!(b.0.peek(Path::Network), Some(HEADER + PREFIX + 10 + crate::wire::TAG));
}

#[test]
fn an_overtaken_frame_is_hurried_once() {
    let mut b = Bench::new();
    for _ in 0..4 {
        b.send(ms(0), &[Path::Network]);
    }
    b.came(ms(1), (4, 1));
    // An older receipt arrives late: 4 did come.
    b.came(ms(1), (2, 1));
    assert_eq!(b.again(ms(4), 9), []);
    assert_eq!(b.again(ms(5), 2), [1, 2], "at most two at a time, the oldest first");
    assert_eq!(b.again(ms(5), 9), [3], "and not 4, which came");
    assert_eq!(b.again(ms(24), 9), []);
    assert_eq!(b.again(ms(25), 9), [1, 2, 3]);
}

#[test]
fn what_a_path_never_carried_is_not_sent_there_again() {
    let mut b = Bench::new();
    b.send(ms(0), &[Path::Storage]);
    b.0.skip(Path::Network);
    b.send(ms(0), &[Path::Network]);
    b.send(ms(0), &[Path::Network]);
    assert_eq!(b.again(ms(9), 9), []);
    assert_eq!(b.again(ms(10), 9), [2], "the oldest it carried");
}

#[test]
fn bytes_in_flight_are_counted_once_however_often_they_are_sent() {
    let mut b = Bench::new();
    b.send(ms(0), &[Path::Network, Path::Storage]);
    let one = b.0.in_flight(Path::Network);
    assert_eq!((one, b.0.bytes(), b.0.packets()), (HEADER + PREFIX + 10 + 16, one, 3));
    assert_eq!(b.again(ms(10), 9), [1]);
    b.send(ms(10), &[Path::Network]);
    assert_eq!((b.0.in_flight(Path::Network), b.0.in_flight(Path::Storage)), (2 * one, one));
    assert_eq!((b.0.bytes(), b.0.packets()), (2 * one, 6));
    b.0.rewind(Path::Network);
    assert_eq!(b.0.in_flight(Path::Network), 0);
    b.0.take(ms(11), Path::Network).unwrap();
    assert_eq!(b.ack(ms(12), 2, &[]).packets, 3);
    assert_eq!((b.0.in_flight(Path::Network), b.0.in_flight(Path::Storage)), (0, 0));
    assert_eq!((b.0.bytes(), b.0.packets()), (one, 3));
}

#[test]
fn receipts_that_are_old_or_wild_settle_what_is_there_and_no_more() {
    let mut b = Bench::new();
    for _ in 0..6 {
        b.send(ms(0), &[Path::Network]);
    }
    assert_eq!(b.ack(ms(1), 3, &[(1, 1), (1, 1)]).packets, 12, "1, 2, 4, 6");
    assert_eq!(b.0.floor(), 3);
    assert_eq!(b.ack(ms(1), 1, &[(0, 2), (1, 1)]).packets, 0, "old news, below the floor");
    assert_eq!(b.ack(ms(1), 1, &[(0, 3)]).packets, 3, "3, which lay across the floor");
    assert_eq!(b.0.floor(), 5);
    assert_eq!(b.ack(ms(1), 1, &[(u32::MAX, u32::MAX), (u32::MAX, u32::MAX)]).packets, 0);
    assert_eq!(b.ack(ms(1), u64::MAX, &[(9, 9)]).packets, 3, "5");
    assert!(b.0.is_empty());
    assert_eq!((b.0.floor(), b.0.peek(Path::Network)), (7, None));
}

#[test]
fn the_next_frame_is_the_next_unsettled_one() {
    let mut b = Bench::new();
    for _ in 0..3 {
        b.seal(ms(0), 7, false);
    }
    b.ack(ms(0), 1, &[(1, 1)]);
    let number = |frame: Option<Sealed>| frame.map(|f| Header::read(&f).unwrap().number);
    assert_eq!(number(b.0.take(ms(0), Path::Network)), Some(1));
    assert_eq!(number(b.0.take(ms(0), Path::Network)), Some(3));
    assert_eq!(number(b.0.take(ms(0), Path::Network)), None);
    assert_eq!(b.0.in_flight(Path::Network), b.0.bytes());
}

#[test]
fn age_is_counted_from_acceptance_and_settled_frames_are_passed_over() {
    let mut b = Bench::new();
    assert_eq!(b.0.next_expiry(), Time::NEVER);
    for at in [0, 1, 0, 8] {
        b.seal(ms(at), 7, false);
    }
    b.ack(ms(2), 1, &[(1, 1)]);
    let due = ms(0) + TTL + Duration::from_micros(1);
    assert_eq!(b.0.next_expiry(), due);
    assert_eq!(b.0.expire(ms(0) + TTL), 0);
    assert_eq!(b.0.expire(due), 6, "1 and 3");
    assert_eq!((b.0.floor(), b.0.packets()), (4, 3));
    assert_eq!(b.0.next_expiry(), ms(8) + TTL + Duration::from_micros(1));
}

#[test]
fn numbers_run_out_half_a_window_above_the_floor() {
    let mut b = Bench::new();
    for _ in 0..NUMBERS_MAX {
        assert!(b.0.has_number());
        b.seal(ms(0), 7, false);
    }
    assert!(!b.0.has_number(), "the receiver could not tell it from a forgery");
    b.ack(ms(0), 1, &[(1, 1)]);
    assert!(!b.0.has_number(), "the floor has not moved");
    b.ack(ms(0), 2, &[]);
    assert!(b.0.has_number());
}
