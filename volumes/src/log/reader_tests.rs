//! The Reader alone, step by step: where it looks, how much it reads, how long it sleeps.

use super::receive::{Mode, Reader, ReaderOptions};
use crate::buffer::Pool;
use crate::event::{Fact, IoFault, IoFaultKind, Micros, Op, Ring, Step};
use crate::format::mailbox;
use crate::format::record::{Address, Draft, wrap};
use crate::format::superblock::{Superblock, tests::sample};
use crate::format::table::{Cell, Entry, Head, Table};
use bytes::Bytes;

const DEADLINE: Micros = crate::pace::Class::Local.times().deadline;
const EPOCH: u64 = 9 << 16;

struct Bench {
    volume: Superblock,
    reader: Reader,
    now: Micros,
    /// Bytes of the read under way.
    asked: usize,
}

/// What a step looks at.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// Ring, place, blocks.
    At(Ring, u64, usize),
    Letter,
    Sleep(Micros),
    Idle,
}

impl Bench {
    fn new() -> Self {
        Self::on(sample(&[1, 2]))
    }

    /// With room for long records.
    fn roomy() -> Self {
        let mut volume = sample(&[1, 2]);
        volume.geometry.data_blocks = 1024;
        volume.geometry.blocks = volume.geometry.blocks_needed();
        let mut b = Self::on(volume);
        b.table(EPOCH, 1, [Head::START; 2], 0);
        b
    }

    fn on(volume: Superblock) -> Self {
        let reader = Reader::new(ReaderOptions { node: 2, superblock: volume.clone() }).unwrap();
        Self { volume, reader, now: 1_000_000, asked: 0 }
    }

    fn table(&mut self, epoch: u64, beat: u64, heads: [Head; 2], letters: u64) {
        let mut cells = vec![Cell::default(); 2];
        (cells[1].heads, cells[1].mailbox) = (heads, letters);
        let entry = Entry {
            node: 1,
            goodbye: false,
            generation: 3,
            epoch,
            nonce: 1,
            beat,
            interval_us: 1000,
            wall_unix_us: 0,
            cells,
        };
        let entries = vec![Some(entry), None];
        let table = Table { entries, valid: 1, blank: 3, damaged: 0 };
        self.reader.table_update(self.now, &table);
    }

    /// Attached in the middle of nothing: both rings at their start.
    fn at_start() -> Self {
        let mut b = Self::new();
        b.table(EPOCH, 1, [Head::START; 2], 0);
        b
    }

    fn look(&mut self) -> Look {
        match self.reader.step(self.now) {
            Step::Do(Op::Read { offset, len, .. }) => {
                self.asked = len;
                let g = &self.volume.geometry;
                for ring in Ring::BOTH {
                    let base = g.ring_offset(1, 2, ring).unwrap();
                    let end = base + u64::from(g.ring_blocks(ring)) * 4096;
                    if (base..end).contains(&offset) {
                        assert!(offset + len as u64 <= end, "never beyond its ring");
                        return Look::At(ring, (offset - base) / 4096, len / 4096);
                    }
                }
                assert_eq!(offset, g.mailbox_offset(1, 2).unwrap());
                Look::Letter
            }
            Step::WaitUntil(at) => Look::Sleep(at.saturating_sub(self.now)),
            Step::Idle => Look::Idle,
            other => panic!("{other:?}"),
        }
    }

    /// With as many bytes as were asked for: zeros behind these.
    fn answer(&mut self, bytes: Bytes) -> Vec<Fact> {
        let mut whole = bytes.to_vec();
        whole.resize(self.asked, 0);
        self.reader.complete(self.now, Ok(whole.into()));
        self.reader.drain_facts().collect()
    }

    fn fails(&mut self) -> Vec<Fact> {
        self.reader.complete(self.now, Err(IoFault::new(IoFaultKind::Eio, "no")));
        self.reader.drain_facts().collect()
    }

    fn nothing(&mut self) -> Vec<Fact> {
        self.answer(Bytes::from(vec![0; 64 << 10]))
    }

    fn record(&self, ring: Ring, number: u64, place: u32, len: usize) -> Bytes {
        let address = Address { uuid: self.volume.uuid, from: 1, to: 2, ring };
        let mut d = Draft::new(Pool::new().take(4096));
        d.push(&vec![7; len]);
        d.seal(&address, EPOCH, number, place, 4096).1
    }

    /// Looks until the next sleep, finding nothing; returns what was looked at, and the sleep.
    fn round(&mut self) -> (Vec<Look>, Micros) {
        let mut seen = Vec::new();
        loop {
            match self.look() {
                Look::Sleep(us) => return (seen, us),
                Look::Idle => panic!("idle with a lane to read"),
                look => seen.push(look),
            }
            self.nothing();
            assert!(seen.len() < 50, "it never sleeps: {seen:?}");
        }
    }

    fn sleep_through(&mut self, us: Micros) {
        self.now += us;
    }
}

fn head(number: u64, place: u32) -> Head {
    Head { number, place }
}

#[test]
fn without_a_lane_there_is_nothing_to_do() {
    let mut b = Bench::new();
    assert_eq!(b.look(), Look::Idle);
    b.table(EPOCH, 1, [Head::START; 2], 0);
    assert!(matches!(b.look(), Look::Letter | Look::At(Ring::Express, 0, 1)));
}

#[test]
fn naps_grow_from_50_us_to_2_ms_and_a_wake_ends_them() {
    let mut b = Bench::at_start();
    b.round();
    // A record: for a millisecond the reader spins, for twenty it naps 50 us.
    b.sleep_through(10_000);
    b.reader.wake(b.now);
    while b.look() != Look::At(Ring::Express, 0, 1) {
        b.nothing();
    }
    let facts = b.answer(b.record(Ring::Express, 1, 0, 100));
    assert!(
        matches!(facts[..], [Fact::Frames { number: 1, .. }, Fact::Cursor { .. }]),
        "{facts:?}"
    );
    let read_at = b.now;
    let mut naps = Vec::new();
    for _ in 0..2000 {
        match b.look() {
            Look::Sleep(us) => {
                if us > 0 {
                    naps.push((b.now - read_at, us));
                }
                b.sleep_through(us.max(1));
            }
            _ => {
                b.sleep_through(10);
                b.nothing();
            }
        }
    }
    assert!(naps[0].0 >= 1_000, "it spins for a millisecond: {:?}", naps[0]);
    assert!(naps[0].0 < 1_200, "and no longer: {:?}", naps[0]);
    for &(at, us) in &naps {
        assert!(us <= 2_000, "{us}");
        if at < 19_900 {
            assert!(us <= 50, "{us} at {at}");
        }
    }
    let long: Vec<_> = naps.iter().filter(|n| n.0 > 60_000).collect();
    assert!(!long.is_empty() && long.iter().all(|n| n.1 > 1_500), "{long:?}");
    let (_, us) = b.round();
    assert!(us > 1_000);
    b.sleep_through(10);
    b.reader.wake(b.now);
    assert!(!matches!(b.look(), Look::Sleep(_)), "woken");
}

#[test]
fn in_standby_it_looks_once_per_interval() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 100_000 });
    let (looks, us) = b.round();
    assert_eq!(looks, [Look::At(Ring::Express, 0, 1), Look::At(Ring::Data, 0, 1)]);
    assert_eq!(us, 100_000);
    b.sleep_through(us - 1);
    assert_eq!(b.look(), Look::Sleep(1));
    b.sleep_through(1);
    assert!(matches!(b.look(), Look::At(Ring::Express, 0, 1)));
}

#[test]
fn a_poll_is_as_long_as_the_last_record_and_never_beyond_the_ring() {
    let mut b = Bench::new();
    // Starts where the first table says: five blocks before the end of the data ring.
    b.table(EPOCH, 1, [Head::START, head(20, 59)], 0);
    b.reader.set_mode(b.now, Mode::Standby { interval: 1000 });
    let next = |b: &mut Bench| {
        loop {
            match b.look() {
                Look::At(Ring::Data, place, blocks) => return (place, blocks),
                Look::Sleep(us) => b.sleep_through(us),
                _ => drop(b.nothing()),
            }
        }
    };
    assert_eq!(next(&mut b), (59, 1));
    // Three blocks: the header says so, the rest is read at once.
    let record = b.record(Ring::Data, 20, 59, 10_000);
    assert!(b.answer(record.slice(..4096)).is_empty());
    assert_eq!(b.look(), Look::At(Ring::Data, 59, 3));
    assert_eq!(b.answer(record).len(), 2);
    assert_eq!(next(&mut b), (62, 2), "three as last time, but the ring ends");
    let address = Address { uuid: b.volume.uuid, from: 1, to: 2, ring: Ring::Data };
    let (_, end) = wrap(Pool::new().take_len(4096), &address, EPOCH, 21, 62, 2);
    let facts = b.answer(end);
    assert!(matches!(facts[..], [Fact::Cursor { number: 21, .. }]), "{facts:?}");
    assert_eq!(next(&mut b).0, 0);
    let c = b.reader.counters();
    assert_eq!((c.records, c.bytes), (1, 64 + 4 + 10_000), "a wrap is no record");
}

#[test]
fn idle_polls_shrink_to_64_kib() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 2_000 });
    let mut place = 0;
    let mut data = |b: &mut Bench, answer: Option<Bytes>| {
        loop {
            match b.look() {
                Look::At(Ring::Data, at, blocks) => {
                    place = at;
                    match answer {
                        Some(bytes) => drop(b.answer(bytes)),
                        None => drop(b.nothing()),
                    }
                    return blocks;
                }
                Look::Sleep(us) => b.sleep_through(us),
                _ => drop(b.nothing()),
            }
        }
    };
    let large = b.record(Ring::Data, 1, 0, 30 * 4096);
    data(&mut b, Some(large.slice(..4096)));
    assert_eq!(data(&mut b, Some(large)), 31);
    b.sleep_through(5_000);
    assert_eq!([0; 4].map(|_| data(&mut b, None)), [33, 31, 16, 16]);
    assert_eq!(place, 31);
}

/// What came of the data ring: number and length of each record's only frame.
fn records(facts: &[Fact]) -> Vec<(u64, usize)> {
    let of = |f: &Fact| match f {
        Fact::Frames { ring: Ring::Data, number, frames, .. } => {
            assert!(frames.len() == 1 && frames[0].iter().all(|&b| b == 7));
            Some((*number, frames[0].len()))
        }
        _ => None,
    };
    facts.iter().filter_map(of).collect()
}

impl Bench {
    /// Until it looks at the data ring: where, and how much.
    fn look_at_data(&mut self) -> (u64, usize) {
        loop {
            match self.look() {
                Look::At(Ring::Data, place, blocks) => return (place, blocks),
                Look::Sleep(us) => self.sleep_through(us.max(1)),
                Look::Idle => panic!("idle with a lane to read"),
                _ => drop(self.nothing()),
            }
        }
    }

    fn records(&self, lens: &[usize]) -> Bytes {
        let (mut all, mut place) = (Vec::new(), 0);
        for (&len, number) in lens.iter().zip(1..) {
            let record = self.record(Ring::Data, number, place, len);
            place += u32::try_from(record.len() / 4096).unwrap();
            all.extend(record);
        }
        all.into()
    }
}

#[test]
fn records_that_wait_are_read_together() {
    let mut b = Bench::roomy();
    let all = b.records(&[100, 100, 100, 5000, 100]);
    assert_eq!(b.look_at_data(), (0, 1));
    assert_eq!(records(&b.answer(all.slice(..4096))), [(1, 100)]);
    assert_eq!(b.look_at_data(), (1, 2), "all that was read was good");
    assert_eq!(records(&b.answer(all.slice(4096..3 * 4096))), [(2, 100), (3, 100)]);
    assert_eq!(b.look_at_data(), (3, 4));
    assert_eq!(records(&b.answer(all.slice(3 * 4096..))), [(4, 5000), (5, 100)]);
    assert_eq!(b.look_at_data(), (6, 3), "the writer is not ahead any more");
    assert_eq!(b.reader.counters().records, 5);
}

/// Small records until 32 blocks are read at once, then a large one of which 24 come with them.
fn half_a_record(b: &mut Bench) -> Bytes {
    let lens: Vec<usize> = [100; 39].into_iter().chain([150 << 10]).collect();
    let all = b.records(&lens);
    for blocks in [1, 2, 4, 8, 16, 32] {
        let at = blocks - 1;
        assert_eq!(b.look_at_data(), (at as u64, blocks));
        b.answer(all.slice(at * 4096..(at + blocks).min(63) * 4096));
    }
    assert_eq!(b.reader.counters().records, 39);
    assert_eq!(b.look_at_data(), (63, 32), "behind what is there");
    all
}

#[test]
fn what_was_read_of_the_next_record_is_not_read_again() {
    let mut b = Bench::roomy();
    let all = half_a_record(&mut b);
    assert_eq!(records(&b.answer(all.slice(63 * 4096..))), [(40, 150 << 10)]);
    assert_eq!(b.look_at_data().0, all.len() as u64 / 4096);
}

#[test]
fn a_beginning_that_was_read_too_early_is_read_again() {
    let mut b = Bench::roomy();
    let all = half_a_record(&mut b);
    // Its middle was not written yet when its beginning was read: as if that had been the end.
    let mut late = all.slice(63 * 4096..).to_vec();
    late[5] ^= 1;
    assert!(records(&b.answer(late.into())).is_empty());
    let whole = all.len() / 4096 - 39;
    assert_eq!(b.look_at_data(), (39, whole), "all of it, at once");
    assert_eq!(records(&b.answer(all.slice(39 * 4096..))), [(40, 150 << 10)]);
    assert_eq!(b.reader.counters().torn, 0);
}

#[test]
fn a_silent_ring_is_looked_at_every_other_millisecond_while_bulk_flows() {
    let mut b = Bench::roomy();
    b.round();
    let (mut express, mut data) = (0, 0);
    let (mut number, mut place) = (1, 0);
    b.reader.wake(b.now);
    for _ in 0..400 {
        match b.look() {
            Look::At(Ring::Express, ..) => {
                express += 1;
                b.nothing();
            }
            Look::At(Ring::Data, at, blocks) => {
                data += 1;
                assert_eq!(at, u64::from(place));
                let record = b.record(Ring::Data, number, place, 126 << 10);
                let is_whole = !b.answer(record).is_empty();
                assert_eq!(is_whole, blocks >= 32);
                number += u64::from(is_whole);
                place = (place + u32::from(is_whole) * 32) % 1024;
            }
            Look::Letter => panic!("no unannounced looks while records flow"),
            Look::Sleep(us) => b.sleep_through(us.max(1)),
            Look::Idle => unreachable!(),
        }
        b.sleep_through(300);
    }
    let ratio = f64::from(data) / f64::from(express);
    assert!((4.0..10.0).contains(&ratio), "{data} : {express}");
}

#[test]
fn while_small_records_flow_a_silent_ring_is_looked_at_every_fourth_time() {
    let mut b = Bench::at_start();
    b.round();
    let (mut express, mut data) = (0, 0);
    let (mut number, mut place) = (1, 0);
    b.reader.wake(b.now);
    for _ in 0..400 {
        match b.look() {
            Look::At(Ring::Express, ..) => {
                express += 1;
                b.answer(b.record(Ring::Express, number, place, 100));
                number += 1;
                place = (place + 1) % 48;
            }
            Look::At(Ring::Data, ..) => {
                data += 1;
                b.nothing();
            }
            Look::Letter => panic!("no unannounced looks while records flow"),
            Look::Sleep(us) => b.sleep_through(us.max(1)),
            Look::Idle => unreachable!(),
        }
        b.sleep_through(20);
    }
    let ratio = f64::from(express) / f64::from(data);
    assert!((3.0..5.0).contains(&ratio), "{express} : {data}");
    // Behind on the silent ring: every round.
    b.table(EPOCH, 2, [Head::START, head(2, 1)], 0);
    assert!((0..3).any(|_| {
        let look = b.look();
        if let Look::At(Ring::Express, ..) = look {
            b.answer(b.record(Ring::Express, number, place, 100));
            number += 1;
            place = (place + 1) % 48;
        }
        matches!(look, Look::At(Ring::Data, 0, _))
    }));
}

#[test]
fn an_announced_record_that_is_not_there_is_missing_after_the_deadline() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 1_000_000 });
    b.round();
    let began = b.now;
    b.table(EPOCH, 2, [head(4, 7), Head::START], 0);
    let mut facts = Vec::new();
    while facts.is_empty() {
        match b.look() {
            Look::Sleep(us) => {
                assert!(us <= 500 || b.now - began >= DEADLINE, "trouble is looked at often: {us}");
                b.sleep_through(us.max(1));
            }
            _ => facts = b.nothing(),
        }
        assert!(b.now - began <= DEADLINE + 1_000);
    }
    assert_eq!(b.now - began, DEADLINE);
    let want = "[Missing { from: 1, ring: Express, first: 1, last: 3 }, \
                Cursor { from: 1, ring: Express, number: 3 }]";
    assert_eq!(format!("{facts:?}"), want);
    assert_eq!(b.reader.counters().missing, 3);
    b.reader.wake(b.now);
    let places: Vec<_> = b.round().0;
    assert!(places.iter().any(|l| matches!(l, Look::At(Ring::Express, 7, _))), "{places:?}");
}

#[test]
fn a_damaged_record_alone_is_missing_and_reading_goes_on_behind_it() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 1_000 });
    let mut bad = b.record(Ring::Data, 1, 0, 9_000).to_vec();
    bad[5_000] ^= 1;
    let bad = Bytes::from(bad);
    let began = b.now;
    let (mut facts, mut corrupt_at) = (Vec::new(), None);
    while !facts.iter().any(|f| matches!(f, Fact::Missing { .. })) {
        match b.look() {
            Look::At(Ring::Data, 0, _) => facts.extend(b.answer(bad.clone())),
            Look::Sleep(us) => b.sleep_through(us.max(1)),
            _ => drop(b.nothing()),
        }
        if corrupt_at.is_none() && facts.iter().any(|f| matches!(f, Fact::CorruptRecord { .. })) {
            corrupt_at = Some(b.now - began);
            // Only now the writer announces more.
            b.table(EPOCH, 2, [Head::START, head(5, 9)], 0);
        }
        assert!(b.now - began < 10 * DEADLINE);
    }
    let corrupt_at = corrupt_at.unwrap();
    assert!((DEADLINE..DEADLINE + 2_000).contains(&corrupt_at), "{corrupt_at}");
    let told = facts.iter().filter(|f| matches!(f, Fact::CorruptRecord { number: 1, .. })).count();
    assert_eq!(told, 1, "once");
    assert!(facts.iter().any(|f| matches!(f, Fact::Missing { first: 1, last: 1, .. })));
    b.reader.wake(b.now);
    let looks = b.round().0;
    assert!(looks.iter().any(|l| matches!(l, Look::At(Ring::Data, 3, _))), "{looks:?}");
}

#[test]
fn errors_back_off_and_skip_nothing_while_the_table_is_not_read() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 1_000 });
    b.table(EPOCH, 2, [Head::START, head(3, 2)], 0);
    let mut looks = Vec::new();
    let until = b.now + 4_000_000;
    while b.now < until {
        match b.look() {
            Look::At(Ring::Data, 0, _) => {
                looks.push(b.now);
                let facts = b.fails();
                assert!(matches!(facts[..], [Fact::ReadFailed { .. }]), "{facts:?}");
            }
            Look::Sleep(us) => b.sleep_through(us.max(1)),
            _ => drop(b.nothing()),
        }
    }
    let gaps: Vec<_> = looks.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps[0] < 3_000 && gaps.iter().all(|&g| g <= 1_003_000), "{gaps:?}");
    assert!(gaps.last().unwrap() >= &900_000, "{gaps:?}");
    // The rest of the medium works: two tables later it is missing.
    let mut missing = false;
    for beat in 3..8 {
        b.table(EPOCH, beat, [Head::START, head(3, 2)], 0);
        b.sleep_through(1_100_000);
        loop {
            match b.look() {
                Look::At(Ring::Data, 0, _) => {
                    let facts = b.fails();
                    missing |= facts.iter().any(|f| matches!(f, Fact::Missing { last: 2, .. }));
                }
                Look::Sleep(_) => break,
                _ => drop(b.nothing()),
            }
        }
    }
    assert!(missing);
}

#[test]
fn what_failed_for_long_is_looked_at_when_the_medium_answers_again() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 50_000 });
    let until = b.now + 3_000_000;
    while b.now < until {
        match b.look() {
            Look::Sleep(us) => b.sleep_through(us.max(1)),
            _ => drop(b.fails()),
        }
    }
    while let Look::At(..) = b.look() {
        b.fails();
    }
    b.sleep_through(1_000);
    assert!(b.look() != Look::At(Ring::Express, 0, 1), "it waits for up to a second");
    b.reader.retry_now(b.now);
    assert_eq!(b.look(), Look::At(Ring::Express, 0, 1));
    b.fails();
    assert_eq!(b.look(), Look::At(Ring::Data, 0, 1), "both, and not only the one that was next");
    b.nothing();
    // One that fails again is not given a second's pause at once.
    b.sleep_through(1_500);
    assert_eq!(b.look(), Look::At(Ring::Express, 0, 1));
}

#[test]
fn letters_are_read_once_and_a_damaged_one_is_given_up() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 1_000_000 });
    b.round();
    let lane = (b.volume.uuid, 1, 2);
    let letter = |epoch, n| mailbox::encode(Pool::new().take_len(4096), lane, (epoch, n), b"hi");
    b.table(EPOCH, 2, [Head::START; 2], 1);
    assert_eq!(b.look(), Look::Letter, "before any ring");
    assert!(matches!(b.answer(letter(EPOCH, 1))[..], [Fact::Mailbox { from: 1, .. }]));
    let rings = [Look::At(Ring::Express, 0, 1), Look::At(Ring::Data, 0, 1)];
    assert_eq!(b.round().0, rings, "at once: frames follow upon keys");
    // Announced, but an older one stands there: looked at every 500 us for the deadline.
    b.table(EPOCH, 3, [Head::START; 2], 2);
    let began = b.now;
    let mut looks = 0;
    loop {
        match b.look() {
            Look::Letter => {
                looks += 1;
                assert!(b.answer(letter(EPOCH, 1)).is_empty());
            }
            Look::Sleep(us) if us > 500 => break,
            Look::Sleep(us) => b.sleep_through(us.max(1)),
            _ => drop(b.nothing()),
        }
    }
    assert!((DEADLINE..DEADLINE + 1_000).contains(&(b.now - began)), "{}", b.now - began);
    assert!((90..=110).contains(&looks), "{looks}");
    // The next one is read although that one never was; an older announcement is no news.
    b.sleep_through(500);
    b.table(EPOCH, 4, [Head::START; 2], 3);
    assert_eq!(b.look(), Look::Letter);
    assert_eq!(b.fails().len(), 1);
    assert_eq!(b.round().1, DEADLINE, "a failed look is repeated after the deadline");
    b.sleep_through(DEADLINE);
    assert_eq!(b.look(), Look::Letter);
    assert_eq!(b.answer(letter(EPOCH, 3)).len(), 1);
    b.table(EPOCH, 5, [Head::START; 2], 2);
    assert!(!b.round().0.contains(&Look::Letter));
    // A letter under way when its writer starts anew is the old writer's.
    b.table(EPOCH, 6, [Head::START; 2], 4);
    assert_eq!(b.look(), Look::Letter);
    b.table(EPOCH + 1, 7, [Head::START; 2], 0);
    assert!(b.answer(letter(EPOCH, 4)).is_empty());
    b.reader.set_mode(b.now, Mode::Active);
    assert!(matches!(b.look(), Look::Letter), "an active reader looks unannounced");
    assert!(b.answer(letter(EPOCH, 4)).is_empty(), "another epoch's");
}

#[test]
fn cursors_tell_what_was_read_of_whom() {
    let mut b = Bench::new();
    let cursors = |b: &Bench| b.reader.cursors().collect::<Vec<_>>();
    assert_eq!(cursors(&b), [(1, 0, [0, 0]), (2, 0, [0, 0])]);
    // In the middle of an epoch: what came before the head announced counts as read.
    b.table(EPOCH, 1, [Head::START, head(20, 59)], 0);
    b.reader.set_mode(b.now, Mode::Standby { interval: 1_000 });
    assert_eq!(cursors(&b), [(1, EPOCH, [0, 19]), (2, 0, [0, 0])]);
    assert_eq!(b.look(), Look::At(Ring::Express, 0, 1));
    b.answer(b.record(Ring::Express, 1, 0, 100));
    assert_eq!(cursors(&b), [(1, EPOCH, [1, 19]), (2, 0, [0, 0])]);
}

#[test]
fn a_table_wakes_the_reader_only_with_news() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 1_000_000 });
    assert_eq!(b.look(), Look::At(Ring::Express, 0, 1));
    b.answer(b.record(Ring::Express, 1, 0, 100));
    b.sleep_through(5_000);
    let (_, us) = b.round();
    assert!(us > 900_000, "{us}");
    let table = |b: &mut Bench, beat, express| {
        b.table(EPOCH, beat, [express, Head::START], 0);
        b.look()
    };
    assert_eq!(table(&mut b, 5, Head::START), Look::Sleep(us), "the same again");
    assert_eq!(table(&mut b, 6, head(2, 1)), Look::Sleep(us), "it was read already");
    assert_eq!(table(&mut b, 4, head(3, 2)), Look::Sleep(us), "a table that goes backwards");
    assert_eq!(table(&mut b, 7, head(3, 2)), Look::At(Ring::Express, 1, 2));
    b.nothing();
    let (looks, us) = b.round();
    assert_eq!((&looks[..], us), (&[Look::At(Ring::Data, 0, 1)][..], 500), "2 is awaited");
    assert_eq!(table(&mut b, 8, head(3, 2)), Look::Sleep(500), "known, and awaited already");
}

#[test]
fn a_failed_look_is_repeated_soon_even_in_standby() {
    let mut b = Bench::at_start();
    b.reader.set_mode(b.now, Mode::Standby { interval: 1_000_000 });
    assert_eq!(b.look(), Look::At(Ring::Express, 0, 1));
    b.fails();
    assert_eq!(b.reader.counters().faults, 1);
    assert_eq!(b.round(), (vec![Look::At(Ring::Data, 0, 1)], 1_000));
    b.sleep_through(999);
    assert_eq!(b.look(), Look::Sleep(1));
    b.sleep_through(1);
    assert_eq!(b.look(), Look::At(Ring::Express, 0, 1));
}

#[test]
fn it_spins_for_a_millisecond_after_a_record_and_then_naps() {
    let mut b = Bench::at_start();
    b.round();
    b.sleep_through(10_000);
    while b.look() != Look::At(Ring::Express, 0, 1) {
        b.nothing();
    }
    b.answer(b.record(Ring::Express, 1, 0, 100));
    b.sleep_through(999);
    for _ in 0..20 {
        assert!(matches!(b.look(), Look::At(..)));
        b.nothing();
    }
    b.sleep_through(1);
    assert_eq!(b.round().1, 50);
}

#[test]
fn naps_grow_from_the_twentieth_idle_millisecond_on() {
    let nap = |idle| {
        let mut b = Bench::at_start();
        while b.look() != Look::At(Ring::Express, 0, 1) {
            b.nothing();
        }
        b.answer(b.record(Ring::Express, 1, 0, 100));
        while matches!(b.look(), Look::At(..)) && b.reader.counters().polls < 6 {
            b.nothing();
        }
        b.sleep_through(idle);
        b.nothing();
        b.round().1
    };
    assert_eq!((nap(19_999), nap(20_000)), (50, 100));
}

#[test]
fn an_idle_reader_looks_into_a_mailbox_several_times_per_beat() {
    let mut b = Bench::at_start();
    assert_eq!(b.look(), Look::Letter);
    b.nothing();
    b.sleep_through(2_499);
    assert_ne!(b.look(), Look::Letter);
    b.nothing();
    b.sleep_through(1);
    assert_eq!(b.look(), Look::Letter);
    b.nothing();
    let mut looks = vec![b.now];
    while looks.len() < 20 {
        match b.look() {
            Look::Sleep(us) => b.sleep_through(us),
            look => {
                looks.extend((look == Look::Letter).then_some(b.now));
                b.nothing();
            }
        }
    }
    // It does not wake for that alone: a nap may be added.
    assert!(looks.windows(2).all(|w| (2_500..=4_500).contains(&(w[1] - w[0]))), "{looks:?}");
}

#[test]
fn what_an_older_incarnation_left_is_counted_and_not_delivered() {
    let mut b = Bench::new();
    b.table(EPOCH + 1, 1, [Head::START; 2], 0);
    b.reader.set_mode(b.now, Mode::Standby { interval: 1_000 });
    for n in 1..=3 {
        while !matches!(b.look(), Look::At(Ring::Express, 0, _)) {
            if b.nothing().is_empty() {
                b.sleep_through(1_000);
            }
        }
        assert!(b.answer(b.record(Ring::Express, 1, 0, 100)).is_empty());
        assert_eq!(b.reader.counters().stale, n);
    }
    assert_eq!(b.reader.counters().records, 0);
}

#[test]
fn only_records_of_older_epochs_count_as_stale() {
    let mut b = Bench::at_start();
    let express = |b: &mut Bench, number| {
        while !matches!(b.look(), Look::At(Ring::Express, ..)) {
            b.nothing();
        }
        let record = b.record(Ring::Express, number, 0, 100);
        assert!(b.answer(record).is_empty());
        b.reader.counters().stale
    };
    assert_eq!(express(&mut b, 7), 0, "of this epoch, whatever its number");
    b.table(EPOCH + (1 << 16), 1, [Head::START; 2], 0);
    assert_eq!(express(&mut b, 1), 1);
}
