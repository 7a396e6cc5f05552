//! Nodes made of the three pure machines, in virtual time over any medium, judged as they run.
//!
//! ```text
//!   store -> Writer -> [ medium ] -> Reader -> Judge: sent exactly so? once? in order? no gap
//!                         ^                           without a word?
//!             Guard: does this node own the bytes it writes?
//! ```
//!
//! An operation takes effect when it is issued and completes a little later, or much later when
//! the medium says so (then it takes effect at its end). A frame tells by its bytes who sent it,
//! to whom, in which incarnation and as the how-manieth, so that the Judge needs no copies.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use volumes::buffer::Pool;
use volumes::fence::Permit;
use volumes::format::table::Head;
use volumes::keeper::KeeperOptions;
use volumes::log::receive::ReaderOptions;
use volumes::log::send::WriterOptions;
use volumes::media::{BlockDevice, Doom, FaultDevice, MemoryDevice, PowerCutDevice};
use volumes::{
    Fact, FenceReason, IoFault, Keeper, Micros, Mode, Op, Reader, Reason, Refused, Ring, Step,
    Superblock, Writer,
};

const LATENCY: Micros = 100;
/// How long an operation lasts that "never" completes.
const LATE: Micros = 3_000_000;

/// A medium that may keep an operation for a long time.
pub trait Medium: BlockDevice {
    fn next_is_late(&self) -> bool {
        false
    }
}
impl Medium for MemoryDevice {}
impl<D: BlockDevice> Medium for PowerCutDevice<D> {}
impl<D: BlockDevice> Medium for FaultDevice<D> {
    fn next_is_late(&self) -> bool {
        Self::next_is_late(self)
    }
}

pub trait Machine {
    fn step(&mut self, now: Micros) -> Step;
    fn complete(&mut self, now: Micros, result: Result<Bytes, IoFault>);
    fn facts(&mut self, into: &mut Vec<Fact>);
}

macro_rules! machine {
    ($t:ty) => {
        impl Machine for $t {
            fn step(&mut self, now: Micros) -> Step {
                <$t>::step(self, now)
            }
            fn complete(&mut self, now: Micros, result: Result<Bytes, IoFault>) {
                <$t>::complete(self, now, result);
            }
            fn facts(&mut self, into: &mut Vec<Fact>) {
                into.extend(self.drain_facts());
            }
        }
    };
}
machine!(Writer);
machine!(Reader);
machine!(Keeper);

#[derive(Debug)]
enum Flight {
    Done {
        at: Micros,
        result: Result<Bytes, IoFault>,
    },
    /// Takes effect at its end.
    Late {
        at: Micros,
        op: Op,
    },
}

#[derive(Debug)]
pub struct Seat<M> {
    pub machine: M,
    flight: Option<Flight>,
    wake: Micros,
    pub stopped: Option<Reason>,
}

impl<M: Machine> Seat<M> {
    fn new(machine: M) -> Self {
        Self { machine, flight: None, wake: 0, stopped: None }
    }

    pub fn wake_at(&mut self, now: Micros) {
        self.wake = self.wake.min(now);
    }

    fn due(&self) -> Micros {
        match &self.flight {
            Some(Flight::Done { at, .. } | Flight::Late { at, .. }) => *at,
            None => self.wake,
        }
    }

    fn run<D: Medium>(&mut self, now: Micros, bench: &mut Bench<'_, D>, facts: &mut Vec<Fact>) {
        match self.flight.take() {
            Some(Flight::Done { at, result }) if at <= now => self.machine.complete(now, result),
            Some(Flight::Late { at, op }) if at <= now => {
                let result = bench.execute(op);
                self.machine.complete(now, result);
            }
            other => self.flight = other,
        }
        for _ in 0..1000 {
            if self.flight.is_some() {
                return;
            }
            let step = self.machine.step(now);
            self.machine.facts(facts);
            match step {
                Step::Do(op) => {
                    bench.guard(&op);
                    self.flight = Some(if bench.disk.next_is_late() {
                        Flight::Late { at: now + LATE, op }
                    } else {
                        Flight::Done { at: now + LATENCY, result: bench.execute(op) }
                    });
                }
                Step::WaitUntil(at) if at <= now => {}
                Step::WaitUntil(at) => return self.wake = at,
                Step::Idle => return self.wake = Micros::MAX,
                Step::Stopped(reason) => {
                    self.stopped = Some(reason);
                    return self.wake = Micros::MAX;
                }
            }
        }
        panic!("a machine steps without end and without I/O");
    }
}

/// The medium as one node may use it.
struct Bench<'a, D> {
    disk: &'a D,
    volume: &'a Superblock,
    pool: &'a Pool,
    node: u8,
    ops: &'a mut u64,
}

impl<D: Medium> Bench<'_, D> {
    fn execute(&mut self, op: Op) -> Result<Bytes, IoFault> {
        *self.ops += 1;
        match op {
            Op::Read { offset, len, .. } => {
                let mut buf = self.pool.take_len(len);
                self.disk.read_at(offset, buf.as_mut())?;
                Ok(buf.freeze())
            }
            Op::Write { offset, data } => self.disk.write_at(offset, &data).map(|()| Bytes::new()),
            Op::Flush => self.disk.flush().map(|()| Bytes::new()),
        }
    }

    fn guard(&self, op: &Op) {
        if let Op::Write { offset, data } = op {
            let ok = may_write(self.volume, self.node, *offset, data.len() as u64);
            assert!(ok, "node {} writes {} bytes at {offset}: not its own", self.node, data.len());
        }
    }
}

/// Whether these bytes belong to that node's entry, mailboxes or rings.
pub fn may_write(volume: &Superblock, node: u8, offset: u64, len: u64) -> bool {
    let g = &volume.geometry;
    let block = u64::from(g.block_bytes);
    let Some(slot) = g.slot(node) else { return false };
    let mut own = vec![(g.entry_offset(slot, 0), block), (g.entry_offset(slot, 1), block)];
    for &to in g.nodes.iter().filter(|&&to| to != node) {
        own.extend(g.mailbox_offset(node, to).map(|at| (at, block)));
        for ring in Ring::BOTH {
            let len = u64::from(g.ring_blocks(ring)) * block;
            own.extend(g.ring_offset(node, to, ring).map(|at| (at, len)));
        }
    }
    own.iter().any(|&(at, room)| offset >= at && offset + len <= at + room)
}

/// Who sends to whom on which ring, in which life of the sender.
pub type Stream = (u8, u8, Ring, u32);

/// How many frames were taken for each stream. A frame is its stream, its number and a length.
pub type Sent = BTreeMap<Stream, u64>;

const FRAME_HEAD: usize = 24;

pub fn frame((from, to, ring, life): Stream, n: u64, len: usize) -> Vec<u8> {
    let len = len.max(FRAME_HEAD);
    let mut f = Vec::with_capacity(len);
    f.extend([from, to, u8::from(ring == Ring::Data), 0xfe]);
    f.extend(life.to_le_bytes());
    f.extend(n.to_le_bytes());
    f.extend((len as u64).to_le_bytes());
    let fill = n.wrapping_mul(31).wrapping_add(u64::from(life)).to_le_bytes()[0];
    f.extend((FRAME_HEAD..len).map(|i| fill.wrapping_add(i.to_le_bytes()[0])));
    f
}

/// The stream and number in a frame, when every byte of it is as sent.
pub fn parse(f: &[u8]) -> Option<(Stream, u64)> {
    let ring = if *f.get(2)? == 0 { Ring::Express } else { Ring::Data };
    let life = u32::from_le_bytes(f.get(4..8)?.try_into().ok()?);
    let n = u64::from_le_bytes(f.get(8..16)?.try_into().ok()?);
    let stream = (f[0], f[1], ring, life);
    (frame(stream, n, f.len()) == f).then_some((stream, n))
}

/// What one life of a node has read, and whether that can be right.
#[derive(Debug, Default)]
pub struct Judge {
    last: BTreeMap<(u8, Ring), (u32, u64)>,
    told_missing: BTreeMap<(u8, Ring), bool>,
    /// Gaps that the writer made itself by dropping what was sealed for our last life.
    resets: BTreeMap<(u8, Ring), u32>,
    pub frames: u64,
    pub missing: u64,
    pub corrupt: u64,
    pub letters: Vec<(u8, Bytes)>,
    pub faults: u64,
    pub stale_epochs: u64,
    pub went_back: u64,
    pub fenced: Vec<FenceReason>,
    pub attached: bool,
    pub recovered: u64,
    /// Frames are counted only: somebody forges them.
    pub believes: bool,
}

impl Judge {
    /// The newest frame read on that ring.
    /// The writer is about to drop what it sealed for our last life.
    pub fn excuse(&mut self, from: u8) {
        for ring in Ring::BOTH {
            *self.resets.entry((from, ring)).or_default() += 1;
        }
    }

    pub fn last(&self, from: u8, ring: Ring) -> Option<(u32, u64)> {
        self.last.get(&(from, ring)).copied()
    }

    fn hear(&mut self, me: u8, fact: &Fact, sent: &Sent) {
        match fact {
            Fact::Frames { frames, .. } if self.believes => self.frames += frames.len() as u64,
            Fact::Frames { from, ring, number, frames } => {
                for f in frames {
                    let (stream, n) = parse(f).unwrap_or_else(|| {
                        panic!("{from}->{me} {ring:?} record {number}: a frame nobody sent")
                    });
                    let (f_from, f_to, f_ring, life) = stream;
                    assert_eq!((f_from, f_to, f_ring), (*from, me, *ring), "another lane's frame");
                    let all = sent.get(&stream).copied().unwrap_or(0);
                    assert!((1..=all).contains(&n), "phantom: {stream:?} {n} of {all}");
                    let lane = (*from, *ring);
                    if let Some(&was) = self.last.get(&lane) {
                        assert!((life, n) > was, "{lane:?}: {life}:{n} after {was:?}");
                        let told = self.told_missing.get(&lane).copied().unwrap_or(false);
                        if life == was.0 && n != was.1 + 1 && !told {
                            let excused = self.resets.get_mut(&lane).filter(|r| **r > 0);
                            let excused = excused.map(|r| *r -= 1).is_some();
                            assert!(excused, "{lane:?}: {n} after {was:?} without a word");
                        }
                    }
                    self.last.insert(lane, (life, n));
                    self.told_missing.insert(lane, false);
                    self.frames += 1;
                }
            }
            Fact::Missing { from, ring, first, last } => {
                assert!(first <= last);
                self.missing += last - first + 1;
                self.told_missing.insert((*from, *ring), true);
            }
            Fact::CorruptRecord { .. } => self.corrupt += 1,
            Fact::Mailbox { from, bytes } => self.letters.push((*from, bytes.clone())),
            Fact::ReadFailed { .. } | Fact::WriteFailed { .. } => self.faults += 1,
            Fact::StaleEpoch { .. } => self.stale_epochs += 1,
            Fact::PeerWentBack { .. } => self.went_back += 1,
            Fact::Fenced { why } => self.fenced.push(why.clone()),
            Fact::Attached { .. } => self.attached = true,
            Fact::Recovered => self.recovered += 1,
            _ => {}
        }
    }
}

pub struct Node {
    pub id: u8,
    pub life: u32,
    pub permit: Arc<Permit>,
    pub keeper: Seat<Keeper>,
    pub writer: Seat<Writer>,
    pub reader: Seat<Reader>,
    pub judge: Judge,
    /// Epochs of the others, as last heard.
    peers: BTreeMap<u8, u64>,
    resets: Vec<u8>,
    facts: Vec<Fact>,
    pub asleep: bool,
    /// It sends on another volume, and its entry says so.
    pub reads_only: bool,
}

impl Node {
    fn due(&self) -> Micros {
        self.keeper.due().min(self.writer.due()).min(self.reader.due())
    }

    fn run<D: Medium>(&mut self, now: Micros, bench: &mut Bench<'_, D>, sent: &Sent) {
        let mut facts = std::mem::take(&mut self.facts);
        self.keeper.run(now, bench, &mut facts);
        if let Some(table) = self.keeper.machine.take_table() {
            self.reader.machine.table_update(now, &table);
            self.reader.wake = now;
            self.writer.wake = now;
        }
        self.writer.run(now, bench, &mut facts);
        self.reader.run(now, bench, &mut facts);
        for fact in facts.drain(..) {
            self.judge.hear(self.id, &fact, sent);
            match fact {
                Fact::PeerRead { node, ring, number } => {
                    self.writer.machine.released(node, ring, number);
                    self.writer.wake = now;
                }
                Fact::PeerBeat { node, epoch, .. } => {
                    let was = self.peers.insert(node, epoch);
                    if was.is_some_and(|was| was != epoch) {
                        self.writer.machine.reset_lane(node);
                        self.resets.push(node);
                    }
                }
                Fact::MailboxWritten { .. } => {
                    self.keeper.machine.beat_now();
                    self.keeper.wake = now;
                }
                _ => {}
            }
        }
        self.facts = facts;
        for (to, heads, letters) in self.writer.machine.heads() {
            let heads = if self.reads_only { [Head::NONE; 2] } else { heads };
            self.keeper.machine.set_heads(to, heads, letters);
        }
        for (from, epoch, cursors) in self.reader.machine.cursors() {
            self.keeper.machine.set_cursors(from, epoch, cursors);
        }
    }
}

pub struct World<D> {
    pub volume: Superblock,
    pub disk: Arc<D>,
    pub now: Micros,
    pub nodes: Vec<Node>,
    pub sent: Sent,
    /// Operations issued by all machines.
    pub ops: u64,
    pub lives: u32,
    pub pool: Pool,
}

impl<D: Medium> World<D> {
    pub fn new(volume: Superblock, disk: Arc<D>) -> Self {
        let sent = Sent::new();
        Self { volume, disk, now: 1, nodes: Vec::new(), sent, ops: 0, lives: 0, pool: Pool::new() }
    }

    /// Starts a node; its epoch becomes greater than `epoch`.
    pub fn start(&mut self, id: u8, epoch: u64) {
        self.lives += 1;
        let permit = Arc::new(Permit::default());
        let superblock = self.volume.clone();
        let keeper = Keeper::new(KeeperOptions {
            node: id,
            superblock: superblock.clone(),
            epoch,
            nonce: 1000 + u64::from(self.lives),
            interval: 20_000,
            wall_unix_us_at_zero: 0,
            permit: permit.clone(),
            pool: self.pool.clone(),
        });
        let writer = Writer::new(WriterOptions {
            node: id,
            superblock: superblock.clone(),
            permit: permit.clone(),
            pool: self.pool.clone(),
            flush_bytes: 65536,
            flush_delay: 500,
            outbox_bytes_max: 4 << 20,
        });
        let reader = Reader::new(ReaderOptions { node: id, superblock });
        self.nodes.push(Node {
            id,
            life: self.lives,
            permit,
            keeper: Seat::new(keeper.unwrap()),
            writer: Seat::new(writer.unwrap()),
            reader: Seat::new(reader.unwrap()),
            judge: Judge::default(),
            peers: BTreeMap::new(),
            resets: Vec::new(),
            facts: Vec::new(),
            asleep: false,
            reads_only: false,
        });
    }

    pub fn kill(&mut self, id: u8) -> Node {
        let at = self.nodes.iter().position(|n| n.id == id).unwrap();
        self.nodes.remove(at)
    }

    pub fn node(&mut self, id: u8) -> &mut Node {
        self.nodes.iter_mut().find(|n| n.id == id).unwrap()
    }

    pub fn node_stopped(&self, id: u8) -> bool {
        self.nodes.iter().any(|n| n.id == id && n.keeper.stopped.is_some())
    }

    pub fn standby(&mut self, id: u8, interval: Micros) {
        let now = self.now;
        let reader = &mut self.node(id).reader;
        reader.machine.set_mode(now, Mode::Standby { interval });
        reader.wake = now;
    }

    /// Sends the next frame of that stream, `len` bytes long.
    pub fn store(&mut self, from: u8, to: u8, ring: Ring, len: usize) -> Result<(), Refused> {
        let now = self.now;
        let stream = (from, to, ring, self.node(from).life);
        let n = self.sent.get(&stream).copied().unwrap_or(0) + 1;
        let node = self.node(from);
        node.writer.machine.store(now, to, ring, &frame(stream, n, len))?;
        node.writer.wake = now;
        self.sent.insert(stream, n);
        Ok(())
    }

    pub fn letter(&mut self, from: u8, to: u8, text: &[u8]) -> Result<(), Refused> {
        let now = self.now;
        let writer = &mut self.node(from).writer;
        writer.wake = now;
        writer.machine.mailbox(to, text)
    }

    /// When somebody has something to do, within 10 ms.
    pub fn due(&self) -> Micros {
        let due = self.nodes.iter().filter(|n| !n.asleep).map(Node::due).min();
        due.unwrap_or(Micros::MAX).min(self.now + 10_000)
    }

    pub fn tick(&mut self) {
        self.tick_at(self.due());
    }

    pub fn tick_at(&mut self, now: Micros) {
        self.now = self.now.max(now);
        for node in self.nodes.iter_mut().filter(|n| !n.asleep) {
            let mut bench = Bench {
                disk: &*self.disk,
                volume: &self.volume,
                pool: &self.pool,
                node: node.id,
                ops: &mut self.ops,
            };
            node.run(self.now, &mut bench, &self.sent);
        }
        for i in 0..self.nodes.len() {
            let from = self.nodes[i].id;
            for to in std::mem::take(&mut self.nodes[i].resets) {
                for node in self.nodes.iter_mut().filter(|n| n.id == to) {
                    for ring in Ring::BOTH {
                        *node.judge.resets.entry((from, ring)).or_default() += 1;
                    }
                }
            }
        }
    }

    pub fn run(&mut self, us: Micros) {
        let until = self.now + us;
        while self.now < until {
            self.tick();
        }
    }

    /// Whether it happened within that time.
    pub fn until(&mut self, us: Micros, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.now + us;
        while !done(self) {
            if self.now >= until {
                return false;
            }
            self.tick();
        }
        true
    }

    pub fn attached(&self) -> bool {
        self.nodes.iter().all(|n| n.keeper.machine.is_attached())
    }

    /// Both directions, both rings, and the mailboxes carry something new.
    pub fn proves_itself(&mut self) -> Result<(), String> {
        let (a, b) = (self.nodes[0].id, self.nodes[1].id);
        let mut want = Vec::new();
        for (from, to) in [(a, b), (b, a)] {
            for ring in Ring::BOTH {
                let life = self.node(from).life;
                for len in [100, 5000] {
                    let taken = self.store(from, to, ring, len);
                    taken.map_err(|e| format!("{from}->{to} {ring:?}: {e}"))?;
                }
                want.push((from, to, ring, (life, self.sent[&(from, to, ring, life)])));
            }
            let text = format!("letter {from} {}", self.node(from).life);
            self.letter(from, to, text.as_bytes()).map_err(|e| format!("letter {from}: {e}"))?;
        }
        let arrived = |w: &Self| {
            let node = |id: u8| w.nodes.iter().find(|n| n.id == id);
            want.iter().all(|&(from, to, ring, last)| {
                node(to).is_some_and(|n| n.judge.last(from, ring) == Some(last))
            }) && [(a, b), (b, a)].iter().all(|&(from, to)| {
                let life = node(from).map_or(0, |n| n.life);
                let text = format!("letter {from} {life}");
                node(to).is_some_and(|n| n.judge.letters.iter().any(|l| l.1 == text.as_bytes()))
            })
        };
        if self.until(5_000_000, arrived) {
            return Ok(());
        }
        let state = self.nodes.iter().map(|n| {
            format!(
                "{}: {:?} letters {:?} fenced {:?}",
                n.id, n.judge.last, n.judge.letters, n.judge.fenced
            )
        });
        Err(format!("no convergence: want {want:?}; {}", state.collect::<Vec<_>>().join("; ")))
    }
}

/// All the ways an operation can end badly.
pub fn dooms(seed: u64) -> [Doom; 8] {
    use volumes::IoFaultKind::{Eio, NoSpace, ReadOnly, ShortRead, TimedOut};
    let mask = Rng::new(seed).next();
    [
        Doom::Fails(Eio),
        Doom::DoneButFails(Eio),
        Doom::Fails(NoSpace),
        Doom::Fails(ShortRead),
        Doom::Fails(ReadOnly),
        Doom::DoneButFails(TimedOut),
        Doom::Torn(mask),
        Doom::Late,
    ]
}
use super::Rng;
