//! Epochs and fences of one shared volume: several daemons with one identity, one reader.
//!
//! What each rule of the model abstracts:
//!
//! | here | there |
//! | --- | --- |
//! | `Volume::blocks`, `newest` | two alternating blocks per node: `volumes/src/format/table.rs`, `Entry::copy`, `Table::decode` |
//! | `Phase`, `keeper_looks` | `volumes/src/keeper.rs`: `watched`, `claim`, `read_back`, `beat_read` |
//! | `check` | `volumes/src/fence.rs`, `check_entry`; the nonce is the incarnation that wrote |
//! | `permit`, `Tick` | `fence.rs`, `Permit::valid`: younger than one beat of its owner. Ages are counted in ticks and saturate, so time needs no bound |
//! | `WriterLooks`, `IssueRecord` | `volumes/src/log/send.rs`, `Writer::step` and `looked` |
//! | `number`, `released` | `volumes/src/log/ring.rs`: a place is reused only when it was read; a failed write is repeated as it was |
//! | `Landed` | a write may land at any time after it was issued: a pause of its writer, a stuck operation |
//! | `late` | ... or after the death of its writer |
//! | `Fail` | `complete(Err)`: the write is repeated (a claim is watched for anew), and may land all the same |
//! | `stale` looks | a read that returns the table as it was before its last change |
//! | `Clone`, `Swap` | a snapshot that runs on its own for a while and then takes the volume's place: roll-back, split mirror |
//! | `ReaderSeesTable`, `ReaderPolls`, `ReaderSkips` | `volumes/src/log/receive.rs`: `heard`, `poll_read`, `give_up` |
//! | `ReaderTells` | `keeper.rs`, `set_cursors`: the reader's entry names the epoch it reads |
//! | `kept` | `src/daemon/epoch.rs`: grows with every start, unless the state directory was lost (and the clock is wrong, or it would grow all the same) |
//!
//! Left out: the superblock, goodbyes, wrap records, torn and damaged blocks (a record that fails
//! its checksum is no record), mailboxes. `MISSES_MAX` is two instead of three, with one stale read
//! at most.
//!
//! Not promised, and not checked: what two daemons do to a volume and to a clone of it while both
//! run; that nobody's record is *destroyed* (a late write may land on a newer record; the link
//! repairs it); a fence within a beat when reads are stale.

use std::collections::BTreeMap;

use stateright::{Model, Property};

use crate::run::{breaks, holds, long};

/// Places of the ring, one record each.
const PLACES: usize = 2;
const WATCH_BEATS: u8 = 3;
const MISSES_MAX: u8 = 2;
/// The bits of an epoch that are random.
const RANDOM_BITS: u8 = 3;

/// A rule left out on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// The reader takes whatever has the right number.
    ReaderIgnoresEpochs,
    /// The reader believes a table with an older epoch.
    ReaderGoesBack,
    /// Claims without waiting and reading back.
    NoReadBack,
    /// Claims at the first look.
    NoWatch,
    /// Two claims from the same table make the same epoch.
    NoRandomBits,
    /// The new epoch follows what the state directory knows, not the volume.
    EpochFromStateAlone,
    /// Whoever was refused goes on all the same.
    RefusedGoesOn,
    /// A permit never gets old.
    EternalPermit,
    /// The claimant waits one beat of its own, not of whom it follows.
    ShortSettle,
    /// After an error the Writer begins with number 1 again.
    NumbersBeginAgain,
}

#[derive(Debug, Clone)]
struct Fence {
    /// Beat of each daemon, in ticks.
    intervals: Vec<u8>,
    starts: u8,
    crashes: u8,
    faults: u8,
    stale: u8,
    clones: u8,
    lost_states: u8,
    reader_restarts: u8,
    beats: u8,
    records: u8,
    /// Whether "nobody writes while another holds the place" is checked: without stale reads and
    /// clones, which no reader of tables can see through at once.
    timely: bool,
    /// The second daemon starts when the first holds the place. (Two that claim at the same moment
    /// wait for each other's beats only if those are equal.)
    in_turn: bool,
    planted: Planted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    epoch: u8,
    nonce: u8,
    beat: u8,
    /// Next number, announced.
    head: u8,
    interval: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Record {
    epoch: u8,
    number: u8,
    nonce: u8,
    /// Which of its writer's batches: the content.
    batch: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Volume {
    blocks: [Option<Entry>; 2],
    /// As they were before the last write: what a stale read shows.
    before: [Option<Entry>; 2],
    ring: [Option<Record>; PLACES],
    /// The epoch that the reader says it reads.
    told: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Write {
    Entry(Entry),
    Record(Record),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Off,
    Watch { seen: Option<(u8, u8)>, left: u8 },
    ClaimWrite,
    Settle { left: u8 },
    Beat,
    WriteEntry,
    Refused,
    Fenced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Daemon {
    phase: Phase,
    /// Which volume it sees: 0, or 1 for the clone.
    on: u8,
    starts: u8,
    /// What the state directory knows, as a count.
    kept: u8,
    epoch: u8,
    beat: u8,
    /// Age of the last look that showed us; `None`: there was none.
    permit: Option<u8>,
    granted: bool,
    refused: bool,
    misses: u8,
    /// Beat of the daemon before us, as its entry said.
    followed: u8,
    number: u8,
    batch: u8,
    released: u8,
    /// Ticks since its last entry landed.
    quiet: u8,
    entry: Option<Entry>,
    record: Option<Record>,
    /// The record is to be issued (again).
    waiting: Option<Record>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Reader {
    seen_a_table: bool,
    epoch: u8,
    beat: u8,
    next: u8,
    announced: u8,
    /// Of the first epoch, of later ones.
    records: [bool; 2],
}

/// What must never happen, noted where it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Broken {
    went_back: bool,
    stale_accepted: bool,
    refused_wrote: bool,
    reused: bool,
    two_granted: bool,
    late_issue: bool,
    robbed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    volume: Volume,
    clone: Option<Volume>,
    daemons: Vec<Daemon>,
    late: Vec<(u8, Write)>,
    reader: Reader,
    /// Epochs granted, and to whom.
    granted: BTreeMap<u8, u8>,
    /// Contents of records issued, by epoch and number.
    issued: BTreeMap<(u8, u8), (u8, u8)>,
    crashes: u8,
    faults: u8,
    stale: u8,
    clones: u8,
    lost_states: u8,
    reader_restarts: u8,
    broken: Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Tick,
    Start { daemon: usize, on: u8, state_lost: bool },
    Crash(usize),
    KeeperLooks { daemon: usize, stale: bool },
    IssueEntry(usize),
    WriterLooks { daemon: usize, stale: bool },
    IssueRecord(usize),
    EntryLanded(usize),
    RecordLanded(usize),
    FailEntry(usize),
    FailRecord(usize),
    LateLands(usize),
    ReaderSeesTable { stale: bool },
    ReaderPolls,
    ReaderSkips,
    ReaderTells,
    ReaderRestarts,
    Clone,
    Swap,
}

enum Look {
    Ours,
    Older,
    Foreign,
}

fn newest(blocks: &[Option<Entry>; 2]) -> Option<Entry> {
    blocks.iter().flatten().copied().max_by_key(|e| (e.epoch, e.beat))
}

fn check(blocks: &[Option<Entry>; 2], d: &Daemon, nonce: u8) -> Look {
    match newest(blocks) {
        Some(e) if (e.epoch, e.nonce) == (d.epoch, nonce) => Look::Ours,
        Some(e) if e.epoch >= d.epoch => Look::Foreign,
        _ => Look::Older,
    }
}

const fn nonce(daemon: usize, starts: u8) -> u8 {
    daemon as u8 * 8 + starts
}

impl Volume {
    fn land(&mut self, write: Write, keep_before: bool) {
        match write {
            Write::Entry(e) => {
                if keep_before {
                    self.before = self.blocks;
                }
                self.blocks[usize::from(e.beat % 2)] = Some(e);
            }
            Write::Record(r) => self.ring[usize::from(r.number - 1) % PLACES] = Some(r),
        }
    }

    fn table(&self, stale: bool) -> &[Option<Entry>; 2] {
        if stale { &self.before } else { &self.blocks }
    }
}

impl State {
    fn seen_by(&mut self, on: u8) -> &mut Volume {
        match &mut self.clone {
            Some(clone) if on == 1 => clone,
            _ => &mut self.volume,
        }
    }
}

impl Fence {
    fn small() -> Self {
        Self {
            intervals: vec![1, 1],
            starts: 2,
            crashes: 1,
            faults: 0,
            stale: 0,
            clones: 0,
            lost_states: 1,
            reader_restarts: 0,
            beats: 4,
            records: 2,
            timely: false,
            in_turn: false,
            planted: Planted::Nothing,
        }
    }

    fn with(self, planted: Planted) -> Self {
        Self { planted, ..self }
    }

    fn is(&self, planted: Planted) -> bool {
        self.planted == planted
    }

    fn random(&self, daemon: usize, starts: u8) -> u8 {
        let top = (1 << RANDOM_BITS) - 1;
        match starts {
            _ if self.is(Planted::NoRandomBits) => 0,
            1 => daemon as u8,
            _ => top - daemon as u8,
        }
    }

    fn claim(&self, s: &mut State, daemon: usize, table: &[Option<Entry>; 2]) {
        let told = s.seen_by(s.daemons[daemon].on).told;
        let robs = s
            .daemons
            .iter()
            .zip(&self.intervals)
            .enumerate()
            .any(|(i, (o, beat))| i != daemon && o.granted && o.quiet < WATCH_BEATS * beat);
        s.broken.robbed |= robs && self.timely && self.in_turn;
        let d = &mut s.daemons[daemon];
        let own = newest(table);
        let known = d.kept << RANDOM_BITS;
        let seen = match own {
            _ if self.is(Planted::EpochFromStateAlone) => known,
            own => known.max(told).max(own.map_or(0, |e| e.epoch)),
        };
        d.epoch = ((seen >> RANDOM_BITS) + 1) << RANDOM_BITS | self.random(daemon, d.starts);
        d.beat = own.map_or(0, |e| e.beat);
        d.followed = own.map_or(0, |e| e.interval);
        d.phase = Phase::ClaimWrite;
    }

    fn grant(&self, s: &mut State, daemon: usize) {
        let d = &mut s.daemons[daemon];
        (d.permit, d.granted, d.misses) = (Some(0), true, 0);
        (d.number, d.phase) = (1, Phase::Beat);
        let who = nonce(daemon, d.starts);
        if s.granted.insert(d.epoch, who).is_some_and(|before| before != who) {
            s.broken.two_granted = true;
        }
    }

    fn refuse(&self, d: &mut Daemon) {
        d.phase = Phase::Refused;
        if self.is(Planted::RefusedGoesOn) {
            (d.phase, d.permit, d.granted, d.refused) = (Phase::WriteEntry, Some(0), true, true);
        }
    }

    fn keeper_looks(&self, s: &mut State, daemon: usize, stale: bool) {
        let table = *s.seen_by(s.daemons[daemon].on).table(stale);
        let d = &mut s.daemons[daemon];
        let who = nonce(daemon, d.starts);
        let entry = newest(&table);
        let at = entry.map(|e| (e.epoch, e.beat));
        match d.phase {
            Phase::Watch { seen, left } => match (entry, seen) {
                (None, _) => self.claim(s, daemon, &table),
                (Some(_), _) if self.is(Planted::NoWatch) => self.claim(s, daemon, &table),
                (Some(e), None) => {
                    d.phase = Phase::Watch { seen: at, left: WATCH_BEATS * e.interval };
                }
                (Some(_), seen) if at != seen => self.refuse(d),
                _ if left > 0 => {}
                _ => self.claim(s, daemon, &table),
            },
            Phase::Settle { .. } => match check(&table, d, who) {
                Look::Ours => self.grant(s, daemon),
                Look::Foreign => self.refuse(d),
                Look::Older => d.phase = Phase::ClaimWrite,
            },
            Phase::Beat | Phase::WriteEntry => match check(&table, d, who) {
                Look::Ours => {
                    (d.misses, d.permit, d.phase) = (0, Some(0), Phase::WriteEntry);
                }
                Look::Older if d.misses + 1 < MISSES_MAX => d.misses += 1,
                Look::Older | Look::Foreign => d.phase = Phase::Fenced,
            },
            _ => {}
        }
    }

    fn valid(&self, d: &Daemon, daemon: usize) -> bool {
        let young = |age| age < self.intervals[daemon] || self.is(Planted::EternalPermit);
        d.permit.is_some_and(young) && d.granted && d.phase != Phase::Fenced
    }

    /// Whoever issues a write under its permit while somebody else was granted the place is late.
    fn note_issue(&self, s: &mut State, daemon: usize) {
        let d = s.daemons[daemon];
        let other = |(i, o): (usize, &Daemon)| {
            i != daemon && o.granted && o.on == d.on && o.epoch != d.epoch
                && !matches!(o.phase, Phase::Off | Phase::Fenced)
                // Only if the other one has not seen that it is over, and still may write.
                && self.valid(o, i)
        };
        let overtaken = s.daemons.iter().enumerate().any(other);
        let newer = s.granted.last_key_value().is_some_and(|(e, _)| *e > d.epoch);
        s.broken.late_issue |= overtaken && newer;
        s.broken.refused_wrote |=
            d.refused || d.phase == Phase::Refused || !d.granted && d.phase != Phase::ClaimWrite;
    }

    fn issue_entry(&self, s: &mut State, daemon: usize) {
        let d = &s.daemons[daemon];
        let claiming = d.phase == Phase::ClaimWrite;
        let entry = Entry {
            epoch: d.epoch,
            nonce: nonce(daemon, d.starts),
            beat: d.beat + 1,
            head: if d.granted { d.number } else { 1 },
            interval: self.intervals[daemon],
        };
        if !claiming {
            self.note_issue(s, daemon);
        }
        s.daemons[daemon].entry = Some(entry);
    }

    fn entry_landed(&self, s: &mut State, daemon: usize) {
        let d = &mut s.daemons[daemon];
        let Some(entry) = d.entry.take() else { return };
        d.beat += 1;
        d.quiet = 0;
        match d.phase {
            Phase::ClaimWrite if self.is(Planted::NoReadBack) => {
                d.phase = Phase::Settle { left: 0 }
            }
            Phase::ClaimWrite => {
                let mut left = self.intervals[daemon];
                if !self.is(Planted::ShortSettle) {
                    left = left.max(d.followed);
                }
                d.phase = Phase::Settle { left };
            }
            Phase::WriteEntry => d.phase = Phase::Beat,
            _ => {}
        }
        let on = d.on;
        let blind = self.is(Planted::NoReadBack) && matches!(d.phase, Phase::Settle { .. });
        s.seen_by(on).land(Write::Entry(entry), self.stale > 0);
        if blind {
            self.grant(s, daemon);
        }
    }

    fn issue_record(&self, s: &mut State, daemon: usize) {
        let d = &mut s.daemons[daemon];
        let record = d.waiting.take().unwrap_or_else(|| {
            let record = Record {
                epoch: d.epoch,
                number: d.number,
                nonce: nonce(daemon, d.starts),
                batch: d.batch,
            };
            d.batch += 1;
            record
        });
        d.record = Some(record);
        let content = (record.nonce, record.batch);
        let before = s.issued.insert((record.epoch, record.number), content);
        s.broken.reused |= before.is_some_and(|b| b != content);
        self.note_issue(s, daemon);
    }

    fn reader_sees(&self, s: &mut State, stale: bool) {
        let Some(e) = newest(s.volume.table(stale)) else { return };
        let r = &mut s.reader;
        let first = !std::mem::replace(&mut r.seen_a_table, true);
        let back = e.epoch < r.epoch;
        if e.epoch > r.epoch || back && self.is(Planted::ReaderGoesBack) {
            s.broken.went_back |= back;
            (r.epoch, r.beat, r.announced) = (e.epoch, e.beat, e.head);
            r.next = if first { e.head } else { 1 };
        } else if e.epoch == r.epoch && e.beat >= r.beat {
            r.beat = e.beat;
            r.announced = r.announced.max(e.head);
        }
    }

    fn reader_polls(&self, s: &mut State) {
        let Some(r) = s.volume.ring[usize::from(s.reader.next.max(1) - 1) % PLACES] else { return };
        let expected = r.epoch == s.reader.epoch || self.is(Planted::ReaderIgnoresEpochs);
        if s.reader.epoch == 0 || r.number != s.reader.next || !expected {
            return;
        }
        let effective = s.granted.get(&s.reader.epoch) == Some(&r.nonce);
        s.broken.stale_accepted |= r.epoch != s.reader.epoch || !effective;
        s.reader.next += 1;
        s.reader.records[usize::from(s.granted.len() > 1)] = true;
        Self::release(s);
    }

    /// The writer learns what was read (by an acknowledgement, or from the reader's entry).
    fn release(s: &mut State) {
        for d in &mut s.daemons {
            if d.granted && d.epoch == s.reader.epoch {
                d.released = d.released.max(s.reader.next - 1);
            }
        }
    }

    /// From here on nothing goes wrong any more and one daemon starts: it gets the place, and the
    /// reader gets its record.
    fn alone_it_is_heard(&self, s: &State) -> bool {
        let alone = Self { beats: u8::MAX, records: u8::MAX, ..self.clone() };
        let mut s = s.clone();
        for d in &mut s.daemons {
            *d = Daemon { phase: Phase::Off, kept: d.kept, starts: d.starts, ..idle() };
        }
        s.late.clear();
        s.volume.told = s.reader.epoch;
        alone.apply(&mut s, Action::Start { daemon: 0, on: 0, state_lost: false });
        for _ in 0..64 {
            let d = s.daemons[0];
            if d.granted && s.reader.epoch == d.epoch && s.reader.next == 2 {
                return true;
            }
            let step = match d.phase {
                _ if d.entry.is_some() => Action::EntryLanded(0),
                _ if d.record.is_some() => Action::RecordLanded(0),
                Phase::Watch { left, .. } | Phase::Settle { left } if left > 0 => Action::Tick,
                Phase::ClaimWrite => Action::IssueEntry(0),
                Phase::Beat if s.reader.epoch < d.epoch => Action::ReaderSeesTable { stale: false },
                Phase::Beat if d.number == 1 && alone.valid(&d, 0) => Action::IssueRecord(0),
                Phase::Beat => Action::ReaderPolls,
                _ => Action::KeeperLooks { daemon: 0, stale: false },
            };
            alone.apply(&mut s, step);
        }
        false
    }

    /// States that differ only in what nobody will look at again are one state.
    fn simplify(s: &mut State) {
        for d in &mut s.daemons {
            if matches!(d.phase, Phase::Fenced | Phase::Refused) {
                let entry = d.entry.map(Write::Entry);
                let writes = entry.into_iter().chain(d.record.map(Write::Record));
                s.late.extend(writes.map(|w| (d.on, w)));
                *d = Daemon { phase: d.phase, on: d.on, kept: d.kept, starts: d.starts, ..idle() };
            }
            if !matches!(d.phase, Phase::ClaimWrite | Phase::Settle { .. }) {
                d.followed = 0;
            }
        }
    }

    fn apply(&self, s: &mut State, action: Action) {
        match action {
            Action::Tick => {
                for (d, interval) in s.daemons.iter_mut().zip(&self.intervals) {
                    d.permit = d.permit.map(|age| (age + 1).min(*interval));
                    if d.granted && self.timely {
                        d.quiet = (d.quiet + 1).min(WATCH_BEATS * interval);
                    }
                    if let Phase::Watch { left, .. } | Phase::Settle { left } = &mut d.phase {
                        *left = left.saturating_sub(1);
                    }
                }
            }
            Action::Start { daemon, on, state_lost } => {
                let d = &mut s.daemons[daemon];
                let kept = if state_lost { 0 } else { d.kept };
                let phase = Phase::Watch { seen: None, left: 0 };
                *d = Daemon { phase, on, starts: d.starts + 1, kept: kept + 1, ..idle() };
                s.lost_states += u8::from(state_lost);
            }
            Action::Crash(daemon) => {
                let d = s.daemons[daemon];
                let entry = d.entry.map(Write::Entry);
                s.late.extend(
                    entry.into_iter().chain(d.record.map(Write::Record)).map(|w| (d.on, w)),
                );
                s.daemons[daemon] =
                    Daemon { phase: Phase::Off, kept: d.kept, starts: d.starts, ..idle() };
                s.crashes += 1;
            }
            Action::KeeperLooks { daemon, stale } => {
                s.stale += u8::from(stale);
                self.keeper_looks(s, daemon, stale);
            }
            Action::WriterLooks { daemon, stale } => {
                s.stale += u8::from(stale);
                let table = *s.seen_by(s.daemons[daemon].on).table(stale);
                let d = &mut s.daemons[daemon];
                match check(&table, d, nonce(daemon, d.starts)) {
                    Look::Ours => d.permit = Some(0),
                    Look::Foreign => d.phase = Phase::Fenced,
                    Look::Older => {}
                }
            }
            Action::IssueEntry(daemon) => self.issue_entry(s, daemon),
            Action::IssueRecord(daemon) => self.issue_record(s, daemon),
            Action::EntryLanded(daemon) => self.entry_landed(s, daemon),
            Action::RecordLanded(daemon) => {
                let d = &mut s.daemons[daemon];
                let (on, record) = (d.on, d.record.take());
                d.number += 1;
                if let Some(record) = record {
                    s.seen_by(on).land(Write::Record(record), self.stale > 0);
                }
                Self::release(s);
            }
            Action::FailEntry(daemon) => {
                let d = &mut s.daemons[daemon];
                s.faults += 1;
                if let Some(entry) = d.entry.take() {
                    s.late.push((d.on, Write::Entry(entry)));
                }
                if d.phase == Phase::ClaimWrite {
                    d.phase = Phase::Watch { seen: None, left: 0 };
                }
            }
            Action::FailRecord(daemon) => {
                let d = &mut s.daemons[daemon];
                s.faults += 1;
                if let Some(record) = d.record.take() {
                    s.late.push((d.on, Write::Record(record)));
                    d.waiting = Some(record);
                }
                if self.is(Planted::NumbersBeginAgain) {
                    (d.waiting, d.number) = (None, 1);
                }
            }
            Action::LateLands(i) => {
                let (on, write) = s.late.remove(i);
                s.seen_by(on).land(write, self.stale > 0);
            }
            Action::ReaderSeesTable { stale } => {
                s.stale += u8::from(stale);
                self.reader_sees(s, stale);
            }
            Action::ReaderPolls => self.reader_polls(s),
            Action::ReaderSkips => {
                s.reader.next = s.reader.announced;
                Self::release(s);
            }
            Action::ReaderTells => s.volume.told = s.reader.epoch,
            Action::ReaderRestarts => {
                s.reader_restarts += 1;
                s.reader = Reader { records: s.reader.records, ..Reader::default() };
            }
            Action::Clone => {
                s.clones += 1;
                s.clone = Some(s.volume);
            }
            Action::Swap => {
                if let Some(clone) = s.clone.take() {
                    s.volume = clone;
                }
                s.daemons.iter_mut().for_each(|d| d.on = 0);
                s.late.iter_mut().for_each(|l| l.0 = 0);
            }
        }
        Self::simplify(s);
        s.late.sort_by_key(|l| match l.1 {
            Write::Entry(e) => (l.0, 0, e.epoch, e.beat, e.nonce, 0),
            Write::Record(r) => (l.0, 1, r.epoch, r.number, r.nonce, r.batch),
        });
    }
}

const fn idle() -> Daemon {
    Daemon {
        phase: Phase::Off,
        on: 0,
        starts: 0,
        kept: 0,
        epoch: 0,
        beat: 0,
        permit: None,
        granted: false,
        refused: false,
        misses: 0,
        followed: 0,
        number: 1,
        batch: 1,
        released: 0,
        quiet: 0,
        entry: None,
        record: None,
        waiting: None,
    }
}

impl Model for Fence {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            volume: Volume::default(),
            clone: None,
            daemons: vec![idle(); self.intervals.len()],
            late: Vec::new(),
            reader: Reader::default(),
            granted: BTreeMap::new(),
            issued: BTreeMap::new(),
            crashes: 0,
            faults: 0,
            stale: 0,
            clones: 0,
            lost_states: 0,
            reader_restarts: 0,
            broken: Broken::default(),
        }]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        if s.broken != Broken::default() {
            return;
        }
        // In a timely world beats are written within a beat; claims and records take what they take.
        if !self.timely || s.daemons.iter().all(|d| d.entry.is_none() || !d.granted) {
            actions.push(Action::Tick);
        }
        let stale = s.stale < self.stale;
        for (daemon, d) in s.daemons.iter().enumerate() {
            if d.phase == Phase::Off {
                let turn =
                    !self.in_turn || daemon == 0 || s.daemons[0].starts > 0 && s.daemons[0].granted;
                if turn && d.starts < self.starts {
                    for on in 0..=u8::from(s.clone.is_some()) {
                        actions.push(Action::Start { daemon, on, state_lost: false });
                        if s.lost_states < self.lost_states && d.kept > 0 {
                            actions.push(Action::Start { daemon, on, state_lost: true });
                        }
                    }
                }
                continue;
            }
            if s.crashes < self.crashes && (!self.timely || d.entry.is_none() || !d.granted) {
                actions.push(Action::Crash(daemon));
            }
            let table = s.clone.as_ref().filter(|_| d.on == 1).unwrap_or(&s.volume);
            let other = stale && table.before != table.blocks;
            if d.entry.is_some() {
                actions.push(Action::EntryLanded(daemon));
                if s.faults < self.faults {
                    actions.push(Action::FailEntry(daemon));
                }
            } else {
                let looks = match d.phase {
                    Phase::Watch { .. } | Phase::Beat => true,
                    Phase::Settle { left } => left == 0,
                    Phase::WriteEntry => !self.valid(d, daemon),
                    _ => false,
                };
                if looks {
                    actions.push(Action::KeeperLooks { daemon, stale: false });
                    if other {
                        actions.push(Action::KeeperLooks { daemon, stale: true });
                    }
                }
                let writes = d.phase == Phase::ClaimWrite
                    || d.phase == Phase::WriteEntry && self.valid(d, daemon);
                if writes && d.beat < self.beats {
                    actions.push(Action::IssueEntry(daemon));
                }
            }
            if !d.granted || d.phase == Phase::Fenced {
                // What was issued may land all the same.
            } else if d.record.is_none()
                && d.number <= self.records
                && d.number - d.released <= PLACES as u8
            {
                if self.valid(d, daemon) {
                    actions.push(Action::IssueRecord(daemon));
                } else {
                    actions.push(Action::WriterLooks { daemon, stale: false });
                    if other {
                        actions.push(Action::WriterLooks { daemon, stale: true });
                    }
                }
            }
            if d.record.is_some() {
                actions.push(Action::RecordLanded(daemon));
                if s.faults < self.faults {
                    actions.push(Action::FailRecord(daemon));
                }
            }
        }
        actions.extend((0..s.late.len()).map(Action::LateLands));
        actions.push(Action::ReaderSeesTable { stale: false });
        if stale && s.volume.before != s.volume.blocks {
            actions.push(Action::ReaderSeesTable { stale: true });
        }
        actions.push(Action::ReaderPolls);
        if s.reader.announced > s.reader.next {
            actions.push(Action::ReaderSkips);
        }
        actions.push(Action::ReaderTells);
        if s.reader_restarts < self.reader_restarts && s.reader.epoch > 0 {
            actions.push(Action::ReaderRestarts);
        }
        if s.clones < self.clones && s.clone.is_none() {
            actions.push(Action::Clone);
        }
        if s.clone.is_some() {
            actions.push(Action::Swap);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut s = before.clone();
        self.apply(&mut s, action);
        (s != *before).then_some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always("one writer per epoch", |_, s| !s.broken.two_granted),
            Property::<Self>::always("epochs never go backward at a reader", |_, s| {
                !s.broken.went_back
            }),
            Property::<Self>::always("a stale writer's record is never accepted", |_, s| {
                !s.broken.stale_accepted
            }),
            Property::<Self>::always("who was refused never writes", |_, s| {
                !s.broken.refused_wrote
            }),
            Property::<Self>::always("no number for two contents", |_, s| !s.broken.reused),
            Property::<Self>::always("alone, a daemon is always heard", Self::alone_it_is_heard),
            Property::<Self>::sometimes("a second daemon is refused", |_, s| {
                s.daemons.iter().any(|d| d.phase == Phase::Refused)
            }),
            Property::<Self>::sometimes("a writer is fenced", |_, s| {
                s.daemons.iter().any(|d| d.phase == Phase::Fenced)
            }),
            Property::<Self>::sometimes("records of two epochs are read", |m, s| {
                s.reader.records == [true; 2] || m.starts * m.intervals.len() as u8 == 1
            }),
        ];
        if self.timely {
            properties.push(Property::<Self>::always(
                "nobody writes while another holds the place",
                |_, s| !s.broken.late_issue,
            ));
        }
        if self.timely && self.in_turn {
            properties
                .push(Property::<Self>::always("who beats in time keeps its place", |_, s| {
                    !s.broken.robbed
                }));
        }
        properties
    }
}

#[test]
fn fence_crashes_and_late_writes() {
    let model = Fence { starts: 1, beats: 2, records: 1, ..Fence::small() };
    holds("fence: crash, late writes", model.clone(), 100_000);
    if long() {
        holds("fence: two crashes", Fence { crashes: 2, ..model.clone() }, 100_000);
        let three = Fence { intervals: vec![1; 3], beats: 1, crashes: 0, ..model };
        holds("fence: three daemons", three, 100_000);
    }
}

#[test]
fn fence_in_time() {
    let model = Fence { starts: 1, beats: 2, records: 1, timely: true, ..Fence::small() };
    holds("fence: in time", model.clone(), 200_000);
    let slow = Fence { intervals: vec![2, 1], in_turn: true, ..model };
    holds("fence: in time, after a slow one", slow, 50_000);
}

#[test]
fn fence_clones_and_stale_reads() {
    let model = Fence { starts: 1, beats: 2, records: 1, crashes: 0, ..Fence::small() };
    let model = Fence { in_turn: !long(), ..model };
    holds("fence: clone", Fence { clones: 1, ..model.clone() }, 300_000);
    holds("fence: stale read", Fence { stale: 1, ..model.clone() }, 80_000);
    holds("fence: failed write", Fence { faults: 1, ..model }, 120_000);
}

#[test]
fn planted_bugs_are_found() {
    use Planted as P;
    let small = Fence { starts: 1, beats: 3, records: 1, ..Fence::small() };
    let two = Fence { starts: 2, records: 2, ..small.clone() };
    let stale = Fence { stale: 1, ..small.clone() };
    let timely = Fence { timely: true, ..small.clone() };
    let slow = Fence { intervals: vec![2, 1], in_turn: true, ..timely.clone() };
    let fault = Fence { faults: 1, records: 2, ..small.clone() };
    for (planted, model, property) in [
        (P::ReaderIgnoresEpochs, small.clone(), "a stale writer's record is never accepted"),
        (P::ReaderGoesBack, stale.clone(), "epochs never go backward at a reader"),
        (P::NoReadBack, timely.clone(), "nobody writes while another holds the place"),
        (P::NoWatch, slow.clone(), "who beats in time keeps its place"),
        (P::NoRandomBits, small.clone(), "one writer per epoch"),
        (P::EpochFromStateAlone, two, "alone, a daemon is always heard"),
        (P::RefusedGoesOn, small, "who was refused never writes"),
        (P::EternalPermit, timely, "nobody writes while another holds the place"),
        (P::ShortSettle, slow, "nobody writes while another holds the place"),
        (P::NumbersBeginAgain, fault, "no number for two contents"),
    ] {
        breaks(&format!("fence: {planted:?}"), model.with(planted), property);
    }
}
