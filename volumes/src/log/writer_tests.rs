//! The Writer alone, step by step: what it writes next, when it waits, what it tells.

use super::send::{Refused, Writer, WriterOptions};
use crate::buffer::Pool;
use crate::event::{Fact, IoFault, IoFaultKind, Micros, Op, Ring, Step};
use crate::fence::Permit;
use crate::format::superblock::{Superblock, tests::sample};
use bytes::Bytes;
use std::sync::Arc;

const EPOCH: u64 = 9 << 16;

struct Bench {
    volume: Superblock,
    writer: Writer,
    permit: Arc<Permit>,
    now: Micros,
}

/// What a step does.
#[derive(Debug, PartialEq, Eq)]
enum Does {
    /// To, ring, place, blocks.
    Record(u8, Ring, u64, u64),
    Letter(u8),
    /// Reads superblock and table.
    Looks,
    Sleep(Micros),
    Idle,
}

impl Bench {
    fn new() -> Self {
        let volume = sample(&[1, 2, 3]);
        let permit = Arc::new(Permit::default());
        permit.set_interval(20_000);
        permit.grant(EPOCH, 1, 1_000_000);
        let writer = Writer::new(WriterOptions {
            node: 1,
            superblock: volume.clone(),
            permit: permit.clone(),
            pool: Pool::new(),
            flush_bytes: 20_000,
            flush_delay: 500,
            outbox_bytes_max: 1 << 20,
        });
        Self { volume, writer: writer.unwrap(), permit, now: 1_000_000 }
    }

    fn store(&mut self, to: u8, ring: Ring, len: usize) {
        self.writer.store(self.now, to, ring, &vec![7; len]).unwrap();
    }

    fn step(&mut self) -> Does {
        let g = &self.volume.geometry;
        match self.writer.step(self.now) {
            Step::Do(Op::Write { offset, data }) => {
                let blocks = data.len() as u64 / 4096;
                for (to, ring) in [2, 3].into_iter().flat_map(|to| Ring::BOTH.map(|r| (to, r))) {
                    let base = g.ring_offset(1, to, ring).unwrap();
                    let end = base + u64::from(g.ring_blocks(ring)) * 4096;
                    if (base..end).contains(&offset) {
                        return Does::Record(to, ring, (offset - base) / 4096, blocks);
                    }
                }
                let to = [2, 3].into_iter().find(|&to| g.mailbox_offset(1, to) == Some(offset));
                Does::Letter(to.expect("a place of ours"))
            }
            Step::Do(Op::Read { offset: 0, .. }) => Does::Looks,
            Step::WaitUntil(at) => Does::Sleep(at - self.now),
            Step::Idle => Does::Idle,
            other => panic!("{other:?}"),
        }
    }

    fn facts(&mut self) -> Vec<Fact> {
        self.writer.drain_facts().collect()
    }

    fn done(&mut self) -> Vec<Fact> {
        self.writer.complete(self.now, Ok(Bytes::new()));
        self.facts()
    }

    fn fails(&mut self) -> Vec<Fact> {
        self.writer.complete(self.now, Err(IoFault::new(IoFaultKind::Eio, "no")));
        self.facts()
    }

    fn used(&self, to: u8, ring: Ring) -> u64 {
        self.writer.used_bytes(to, ring) / 4096
    }
}

#[test]
fn what_just_fits_is_taken_and_one_byte_more_is_not() {
    let mut b = Bench::new();
    for ring in Ring::BOTH {
        let max = b.volume.geometry.frame_bytes_max(ring);
        assert_eq!(b.writer.store(0, 2, ring, &vec![0; max + 1]), Err(Refused::TooLarge));
        assert_eq!(b.writer.store(0, 2, ring, &vec![0; max]), Ok(()));
    }
    let max = b.volume.geometry.mailbox_bytes_max();
    assert_eq!(b.writer.mailbox(2, &vec![0; max + 1]), Err(Refused::TooLarge));
    assert_eq!(b.writer.mailbox(2, &vec![0; max]), Ok(()));
    for to in [1, 9] {
        assert_eq!(b.writer.store(0, to, Ring::Data, b"x"), Err(Refused::UnknownNode), "{to}");
    }
}

#[test]
fn letters_go_before_express_and_express_before_data() {
    let mut b = Bench::new();
    b.store(2, Ring::Data, 10);
    b.store(3, Ring::Express, 10);
    b.writer.mailbox(3, b"key").unwrap();
    assert_eq!(b.step(), Does::Letter(3));
    assert!(matches!(b.done()[..], [Fact::MailboxWritten { to: 3 }]));
    assert_eq!(b.step(), Does::Record(3, Ring::Express, 0, 1));
    b.done();
    assert_eq!(b.step(), Does::Record(2, Ring::Data, 0, 1));
    b.done();
    assert_eq!(b.step(), Does::Idle);
    let letters: Vec<_> = b.writer.heads().map(|(to, _, letters)| (to, letters)).collect();
    assert_eq!(letters, [(1, 0), (2, 0), (3, 1)]);
}

#[test]
fn nodes_take_turns() {
    let mut b = Bench::new();
    let mut order = Vec::new();
    for _ in 0..3 {
        for to in [2, 3] {
            b.store(to, Ring::Data, 10);
            b.store(to, Ring::Data, 120_000);
        }
    }
    while let Does::Record(to, ..) = b.step() {
        order.push(to);
        b.done();
        b.writer.released(to, Ring::Data, u64::MAX);
    }
    assert_eq!(order[..4], [2, 3, 2, 3], "{order:?}");
}

#[test]
fn behind_bulk_a_batch_waits_for_more_until_it_is_old_or_full() {
    let mut b = Bench::new();
    let delay = 500;
    b.store(2, Ring::Data, 120_000);
    assert_eq!(b.step(), Does::Record(2, Ring::Data, 0, 30));
    b.done();
    b.store(2, Ring::Data, 10);
    b.store(2, Ring::Express, 10);
    assert_eq!(b.step(), Does::Record(2, Ring::Express, 0, 1), "what is urgent does not wait");
    b.done();
    assert!(!matches!(b.step(), Does::Record(..)));
    assert!(!b.writer.is_writing());
    b.now += delay - 1;
    b.store(2, Ring::Data, 10);
    assert!(!matches!(b.step(), Does::Record(..)));
    b.now += 1;
    assert_eq!(b.step(), Does::Record(2, Ring::Data, 30, 1), "old");
    b.done();
    b.writer.released(2, Ring::Data, u64::MAX);
    b.store(2, Ring::Data, 100_000);
    assert!(!matches!(b.step(), Does::Record(..)));
    b.store(2, Ring::Data, 100_000);
    assert!(matches!(b.step(), Does::Record(2, Ring::Data, ..)), "it cannot grow");
    // Small records alone never wait.
    let mut b = Bench::new();
    for _ in 0..3 {
        b.store(2, Ring::Data, 10);
        assert!(matches!(b.step(), Does::Record(2, Ring::Data, ..)));
        b.done();
        b.writer.released(2, Ring::Data, u64::MAX);
    }
}

#[test]
fn what_is_stored_during_a_write_becomes_one_record() {
    let mut b = Bench::new();
    b.store(2, Ring::Data, 100);
    assert_eq!(b.step(), Does::Record(2, Ring::Data, 0, 1));
    assert!(b.writer.is_writing());
    for _ in 0..3 {
        b.store(2, Ring::Data, 3_000);
    }
    assert_eq!(b.step(), Does::Idle, "one operation at a time");
    b.now += 70;
    let facts = b.done();
    let one = |f: &Fact| matches!(f, Fact::RecordWritten { to: 2, frames: 1, latency: 70, .. });
    assert!(facts.len() == 1 && one(&facts[0]), "and more waits: {facts:?}");
    assert!(!b.writer.is_writing());
    assert_eq!(b.step(), Does::Record(2, Ring::Data, 1, 3));
    let facts = b.done();
    assert!(
        matches!(
            facts[..],
            [Fact::RecordWritten { number: 2, frames: 3, .. }, Fact::Drained { to: 2 }]
        ),
        "{facts:?}"
    );
    let c = b.writer.counters();
    assert_eq!((c.records, c.frames, c.bytes, c.marks), (2, 4, 4 * 4096, 0));
}

#[test]
fn a_place_under_a_write_is_not_free_whatever_the_reader_says() {
    let mut b = Bench::new();
    b.store(2, Ring::Data, 100);
    b.store(2, Ring::Express, 100);
    assert_eq!(b.step(), Does::Record(2, Ring::Express, 0, 1));
    b.writer.released(2, Ring::Express, 99);
    assert_eq!(b.used(2, Ring::Express), 1, "it may still land");
    b.writer.reset_lane(2);
    assert_eq!((b.used(2, Ring::Express), b.writer.buffered_bytes(2)), (1, 0));
    assert_eq!(b.facts().len(), 0, "not drained: one is under way");
    assert_eq!(b.writer.counters().dropped, 1);
    assert!(matches!(b.done()[..], [Fact::RecordWritten { .. }, Fact::Drained { to: 2 }]));
    b.writer.released(2, Ring::Express, 1);
    assert_eq!(b.used(2, Ring::Express), 0);
    // Of another ring, the write holds nothing.
    b.store(2, Ring::Data, 100);
    b.step();
    b.done();
    b.store(2, Ring::Express, 100);
    b.step();
    b.writer.released(2, Ring::Data, 1);
    assert_eq!((b.used(2, Ring::Data), b.used(2, Ring::Express)), (0, 1));
}

#[test]
fn a_reset_lane_without_a_write_is_drained_at_once() {
    let mut b = Bench::new();
    b.store(2, Ring::Data, 100);
    b.store(3, Ring::Data, 100);
    b.writer.reset_lane(2);
    assert!(matches!(b.facts()[..], [Fact::Drained { to: 2 }]));
    assert_eq!(b.step(), Does::Record(3, Ring::Data, 0, 1), "the other lane is untouched");
}

#[test]
fn a_failed_write_is_repeated_later_and_later_at_the_same_place() {
    let mut b = Bench::new();
    b.store(2, Ring::Data, 100);
    for wait in [1, 2, 4, 8, 16, 32, 64, 128, 250, 250].map(|ms| ms * 1_000) {
        b.permit.renew(b.now);
        assert_eq!(b.step(), Does::Record(2, Ring::Data, 0, 1));
        assert!(matches!(b.fails()[..], [Fact::WriteFailed { .. }]));
        assert_eq!(b.step(), Does::Sleep(wait));
        b.now += wait;
    }
    b.permit.renew(b.now);
    assert_eq!(b.step(), Does::Record(2, Ring::Data, 0, 1));
    assert!(matches!(
        b.done()[..],
        [Fact::Recovered, Fact::RecordWritten { number: 1, .. }, Fact::Drained { .. }]
    ));
    assert_eq!(b.writer.counters().failures, 10);
    // And patience begins anew.
    b.store(2, Ring::Data, 100);
    assert_eq!(b.step(), Does::Record(2, Ring::Data, 1, 1));
    b.fails();
    assert_eq!(b.step(), Does::Sleep(1_000));
}

#[test]
fn an_old_permit_is_looked_at_before_anything_is_written() {
    let mut b = Bench::new();
    b.store(2, Ring::Data, 100);
    b.now += 20_000;
    assert_eq!(b.step(), Does::Looks);
    assert!(matches!(b.fails()[..], [Fact::ReadFailed { .. }]));
    assert_eq!(b.step(), Does::Sleep(1_000));
    b.now += 1_000;
    assert_eq!(b.step(), Does::Looks);
    assert_eq!(b.writer.counters().checks, 2);
    let mut young = Bench::new();
    young.store(2, Ring::Data, 100);
    young.now += 19_999;
    assert_eq!(young.step(), Does::Record(2, Ring::Data, 0, 1));
}

#[test]
fn records_that_were_full_or_old_are_counted() {
    let marks = |len: usize, waited: Micros| {
        let mut b = Bench::new();
        b.store(2, Ring::Data, len);
        b.now += waited;
        b.step();
        b.writer.counters().marks
    };
    // A frame's length is stored beside it.
    assert_eq!((marks(19_995, 0), marks(19_996, 0)), (0, 1), "the fill mark");
    assert_eq!((marks(10, 499), marks(10, 500)), (0, 1), "the age mark");
}
