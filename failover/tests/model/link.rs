//! Packets across failover and failback: links between two or three nodes, two paths each.
//!
//! What each rule of the model abstracts:
//!
//! | here | there |
//! | --- | --- |
//! | `choose` | `failover/src/path/mod.rs`, `Machine::choose`; times that must pass are choices of the explorer: it judges when it likes |
//! | `moved`, `take_over` | `failover/src/peer/mod.rs`: `moved` (rewind, or skip when returning), `take_over_from_storage` |
//! | `seal` | `failover/src/link/sender.rs`, `Sender::seal`: number, predecessor if not below the floor, `strict`; only after everything sealed went by the network, as in `peer/outbound.rs`, `pump` |
//! | `send` | `Sender::take`: a pointer per path, settled numbers are passed over |
//! | `Resend` | `Sender::overdue`, by storage. By the network a second copy is the channel's own doing: what was sent there may arrive any number of times, at any time |
//! | `acknowledged` | `Sender::acknowledged`, `settle`, `advance` |
//! | `Expire` | `Sender::expire`: the oldest is given up, the floor passes it |
//! | `arrive`, `raise`, `settle` | `failover/src/link/receiver.rs`, same names; `HoldEnds` is `poll`, for frames that are not strict |
//! | `Acknowledge` | `Receiver::acknowledge`: one receipt under way, a newer one takes its place (it was lost) |
//! | `TellFloor` | the floor in data frames and receipts |
//! | `AgreeSender`, `AgreeReceiver` | `peer/inbound.rs`, `new_incarnation`, at either end at its own time; frames and receipts name the pair of incarnations because they are sealed under its keys |
//! | `Crash` | what the process held is gone, with its counters; the next one has a greater epoch |
//! | `stored` | records of a lane: read in order, any may be lost after its write was acknowledged |
//!
//! One flow, since flows never wait for each other. Left out: windows and budgets in bytes,
//! `TRIES_MAX` (resends may run out only by time, and then the frame expires), super-packets, keys.

use stateright::{Model, Property};

use crate::run::{breaks, holds, long};

/// Packets per link at most.
const N: usize = 3;
/// Sendings of a frame by storage at most.
const TRIES: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// The receiver hands on whatever comes.
    NoWindow,
    /// A frame that had to wait is acknowledged and thrown away.
    AcknowledgedNotHeld,
    /// Frames the old incarnation may have delivered go to its successor.
    ResentToSuccessor,
    /// Nobody waits for a predecessor.
    NoPredecessor,
    /// A path that joins gets new frames only.
    NoRewind,
    /// What no path carried yet, though the network's pointer passed it, depends on nobody.
    UnsentIsNobodys,
    /// The network never takes over what storage alone carries.
    NoTakeOver,
    /// The floor passes what was not acknowledged.
    FloorTooHigh,
    /// A resend gets a number of its own.
    NewNumber,
    /// Frames open whatever incarnation they were sealed for.
    AnyIncarnation,
    /// So do receipts.
    AnyReceipt,
}

#[derive(Debug, Clone)]
struct Links {
    nodes: usize,
    /// From, to.
    links: Vec<(usize, usize)>,
    packets: u8,
    crashes: u8,
    expiries: u8,
    holds: u8,
    /// Storage is never judged otherwise (but loses records all the same).
    storage_is_up: bool,
    /// Verdicts on the network go through suspicion, too.
    suspicion: bool,
    planted: Planted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Path {
    Network,
    Storage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Verdict {
    Up,
    Suspect,
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Route {
    Network,
    Hedging,
    Storage,
    Doubtful,
    Returning,
    Isolated,
}

impl Route {
    fn uses(self, path: Path) -> bool {
        match path {
            Path::Network => {
                matches!(self, Self::Network | Self::Hedging | Self::Doubtful | Self::Returning)
            }
            Path::Storage => {
                matches!(self, Self::Storage | Self::Hedging | Self::Doubtful | Self::Returning)
            }
        }
    }
}

/// As sealed: the same on either path, whenever it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Frame {
    /// Incarnations of sender and receiver.
    pair: (u8, u8),
    number: u8,
    packet: u8,
    strict: bool,
    has_predecessor: bool,
    floor: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Receipt {
    pair: (u8, u8),
    arrived: u8,
}

/// Sets of numbers and of packets are bits; number 1 and packet 0 are bit 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Sender {
    /// The incarnation of the receiver this is sealed for; 0: none yet.
    peer: u8,
    accepted: u8,
    sealed: u8,
    base: u8,
    kept: Vec<(Frame, bool, u8)>,
    pointers: [u8; 2],
    acknowledged: u8,
    lost: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Receiver {
    peer: u8,
    base: u8,
    arrived: u8,
    held: Vec<Frame>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Link {
    route: Route,
    tx: Sender,
    rx: Receiver,
    wire: Vec<Frame>,
    stored: Vec<Frame>,
    receipt: Option<Receipt>,
    delivered: u8,
    newest: u8,
    /// Held or received by a process that died.
    died: u8,
    twice: bool,
    disorder: bool,
    silent: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    incarnations: Vec<u8>,
    links: Vec<Link>,
    crashes: u8,
    expiries: u8,
    holds: u8,
    home: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Accept(usize),
    Judge(usize, Verdict, Verdict, bool),
    TakeOver(usize),
    Seal(usize),
    Send(usize, Path),
    Resend(usize, u8),
    Expire(usize),
    Arrives(usize, usize),
    IsRead(usize),
    RecordLost(usize),
    HoldEnds(usize),
    TellFloor(usize),
    Acknowledge(usize),
    TakeReceipt(usize),
    AgreeSender(usize),
    AgreeReceiver(usize),
    Crash(usize),
}

const fn bit(n: u8) -> u8 {
    1 << n
}

impl Link {
    fn new() -> Self {
        Self {
            route: Route::Isolated,
            tx: Sender { base: 1, pointers: [1; 2], ..Sender::default() },
            rx: Receiver { base: 1, ..Receiver::default() },
            wire: Vec::new(),
            stored: Vec::new(),
            receipt: None,
            delivered: 0,
            newest: 0,
            died: 0,
            twice: false,
            disorder: false,
            silent: false,
        }
    }

    /// Number after the last one sealed.
    fn end(&self) -> u8 {
        self.tx.base + self.tx.kept.len() as u8
    }

    fn deliver(&mut self, frame: Frame) {
        self.twice |= self.delivered & bit(frame.packet) != 0;
        self.disorder |= frame.packet + 1 < self.newest;
        self.delivered |= bit(frame.packet);
        self.newest = self.newest.max(frame.packet + 1);
    }

    fn contains(&self, number: u8) -> bool {
        number < self.rx.base || self.rx.arrived & bit(number - 1) != 0
    }

    fn is_held(&self, number: u8) -> bool {
        self.rx.held.iter().any(|f| f.number == number)
    }

    fn arrive(&mut self, frame: Frame, own: u8, planted: Planted) {
        let ours = (self.rx.peer, own);
        if self.rx.peer == 0 || frame.pair != ours && planted != Planted::AnyIncarnation {
            return;
        }
        self.raise(frame.floor);
        if self.contains(frame.number) && planted != Planted::NoWindow {
            return;
        }
        self.rx.arrived |= bit(frame.number - 1);
        while self.rx.arrived & bit(self.rx.base - 1) != 0 {
            self.rx.base += 1;
        }
        let predecessor = frame.number - 1;
        let settled = !frame.has_predecessor
            || self.contains(predecessor) && !self.is_held(predecessor)
            || planted == Planted::NoPredecessor;
        if settled {
            self.deliver(frame);
            self.settle(frame.number);
        } else if planted != Planted::AcknowledgedNotHeld {
            self.rx.held.push(frame);
            self.rx.held.sort_unstable();
        }
    }

    /// Hands on the chain behind a number that is settled.
    fn settle(&mut self, mut number: u8) {
        while let Some(i) = self.rx.held.iter().position(|f| f.number == number + 1) {
            let frame = self.rx.held.remove(i);
            self.deliver(frame);
            number = frame.number;
        }
    }

    fn raise(&mut self, floor: u8) {
        self.rx.base = self.rx.base.max(floor);
        while self.rx.arrived & bit(self.rx.base - 1) != 0 {
            self.rx.base += 1;
        }
        let free = |f: &Frame, link: &Self| f.number - 1 < floor && !link.is_held(f.number - 1);
        while let Some(i) = self.rx.held.iter().position(|f| free(f, self)) {
            let frame = self.rx.held.remove(i);
            self.deliver(frame);
            self.settle(frame.number);
        }
    }

    fn seal(&mut self, own: u8) {
        let number = self.end();
        let frame = Frame {
            pair: (own, self.tx.peer),
            number,
            packet: self.tx.sealed,
            strict: self.route != Route::Network || self.tx.pointers[0] < number,
            has_predecessor: number > 1 && number > self.tx.base,
            floor: self.tx.base,
        };
        self.tx.sealed += 1;
        self.tx.kept.push((frame, false, 0));
    }

    /// The next frame that a path has not carried.
    fn next(&self, path: Path) -> Option<usize> {
        let pointer = self.tx.pointers[path as usize].max(self.tx.base);
        (usize::from(pointer - self.tx.base)..self.tx.kept.len())
            .find(|&i| !self.is_settled(&self.tx.kept[i].0))
    }

    fn is_settled(&self, frame: &Frame) -> bool {
        (self.tx.acknowledged | self.tx.lost) & bit(frame.packet) != 0
    }

    fn send(&mut self, path: Path) {
        let Some(i) = self.next(path) else { return };
        let (frame, by_network, by_storage) = &mut self.tx.kept[i];
        let frame = *frame;
        match path {
            Path::Network => *by_network = true,
            Path::Storage => *by_storage = (*by_storage + 1).min(TRIES),
        }
        self.tx.pointers[path as usize] = frame.number + 1;
        self.put(path, frame);
    }

    fn put(&mut self, path: Path, frame: Frame) {
        match path {
            Path::Storage => self.stored.push(frame),
            Path::Network if self.wire.contains(&frame) => {}
            Path::Network => {
                self.wire.push(frame);
                self.wire.sort_unstable();
            }
        }
    }

    fn resend(&mut self, number: u8, path: Path, planted: Planted) {
        let i = usize::from(number - self.tx.base);
        if planted == Planted::NewNumber {
            let frame = Frame { number: self.end(), ..self.tx.kept[i].0 };
            self.tx.kept.push((frame, true, 1));
            return self.put(path, frame);
        }
        self.tx.kept[i].2 += 1;
        let frame = self.tx.kept[i].0;
        self.put(path, frame);
    }

    fn advance(&mut self) {
        while self.tx.kept.first().is_some_and(|k| self.is_settled(&k.0)) {
            self.tx.kept.remove(0);
            self.tx.base += 1;
        }
    }

    fn take_receipt(&mut self, own: u8, planted: Planted) {
        let Some(receipt) = self.receipt.take() else { return };
        if receipt.pair != (own, self.tx.peer) && planted != Planted::AnyReceipt {
            return;
        }
        let held = self.rx.held.iter().fold(0, |bits, f| bits | bit(f.packet));
        for (frame, _, _) in self.tx.kept.clone() {
            if receipt.arrived & bit(frame.number - 1) != 0 && !self.is_settled(&frame) {
                self.tx.acknowledged |= bit(frame.packet);
                let known = self.delivered | held | self.died;
                self.silent |= known & bit(frame.packet) == 0;
            }
        }
        self.advance();
    }

    /// As the receiver has it: everything below its base counts as arrived.
    fn acknowledge(&mut self, own: u8) {
        let arrived = self.rx.arrived | (bit(self.rx.base - 1) - 1);
        self.receipt = Some(Receipt { pair: (self.rx.peer, own), arrived });
    }

    fn expire(&mut self) {
        if let Some(i) = self.tx.kept.iter().position(|k| !self.is_settled(&k.0)) {
            self.tx.lost |= bit(self.tx.kept[i].0.packet);
            self.advance();
        } else if self.tx.sealed < self.tx.accepted {
            self.tx.lost |= bit(self.tx.sealed);
            self.tx.sealed += 1;
        }
    }

    fn choose(
        &self,
        network: Verdict,
        storage: Verdict,
        proven: bool,
        planted: Planted,
    ) -> Option<Route> {
        use Verdict::{Down, Suspect, Up};
        let (up, stored) = (network == Up, storage != Down);
        let away = if storage == Up { Route::Storage } else { Route::Doubtful };
        let drained = !self.depends_on_storage(planted);
        Some(match self.route {
            Route::Network if up => return None,
            Route::Network if stored && network == Suspect => Route::Hedging,
            Route::Network if stored => away,
            Route::Network if network == Suspect => return None,
            Route::Network => Route::Isolated,
            Route::Hedging if up => Route::Network,
            Route::Hedging => match (network, stored) {
                (Suspect, true) => return None,
                (Suspect, false) => Route::Network,
                (_, true) => away,
                (_, false) => Route::Isolated,
            },
            Route::Storage if !stored && up => Route::Network,
            Route::Storage if !stored && network == Down => Route::Isolated,
            Route::Storage if up && proven => Route::Returning,
            Route::Storage if storage == Suspect && network != Down => Route::Doubtful,
            Route::Storage => return None,
            Route::Doubtful if storage == Up => Route::Storage,
            Route::Doubtful if !stored && network != Down => Route::Network,
            Route::Doubtful if !stored => Route::Isolated,
            Route::Doubtful if up && proven => Route::Returning,
            Route::Doubtful => return None,
            Route::Returning if !up && stored => away,
            Route::Returning if network == Down => Route::Isolated,
            Route::Returning if !stored || drained => Route::Network,
            Route::Returning => return None,
            Route::Isolated if up => Route::Network,
            Route::Isolated if stored => away,
            Route::Isolated => return None,
        })
    }

    fn judge(&mut self, network: Verdict, storage: Verdict, proven: bool, planted: Planted) {
        for _ in 0..4 {
            let Some(to) = self.choose(network, storage, proven, planted) else { break };
            self.moved(to, planted);
        }
    }

    fn moved(&mut self, to: Route, planted: Planted) {
        let from = std::mem::replace(&mut self.route, to);
        for path in [Path::Network, Path::Storage] {
            if from.uses(path) || !to.uses(path) {
                continue;
            }
            if to == Route::Returning || planted == Planted::NoRewind && path == Path::Storage {
                self.tx.pointers[path as usize] = self.end();
            } else {
                self.rewind(path);
            }
        }
        if to == Route::Network {
            self.take_over(planted);
        }
    }

    fn rewind(&mut self, path: Path) {
        self.tx.pointers[path as usize] = self.tx.base;
        for kept in &mut self.tx.kept {
            match path {
                Path::Network => kept.1 = false,
                Path::Storage => kept.2 = 0,
            }
        }
    }

    /// The network's pointer passed a frame that was not sent there (`independent_of_storage`).
    fn depends_on_storage(&self, planted: Planted) -> bool {
        self.tx.kept.iter().any(|(frame, by_network, by_storage)| {
            let passed = frame.number < self.tx.pointers[0];
            let waits = passed && (*by_storage > 0 || planted != Planted::UnsentIsNobodys);
            !self.is_settled(frame) && !by_network && waits
        })
    }

    fn take_over(&mut self, planted: Planted) {
        if self.depends_on_storage(planted) && planted != Planted::NoTakeOver {
            self.rewind(Path::Network);
        }
    }

    /// Another incarnation of the receiver: what was kept for the old one is lost, unconfirmed.
    fn agree_sender(&mut self, peer: u8, planted: Planted) {
        let kept = std::mem::take(&mut self.tx.kept);
        (self.tx.peer, self.tx.base, self.tx.pointers) = (peer, 1, [1; 2]);
        for (frame, _, _) in kept {
            if self.is_settled(&frame) {
                continue;
            }
            if planted == Planted::ResentToSuccessor {
                let number = self.end();
                let pair = (frame.pair.0, peer);
                let frame = Frame { pair, number, has_predecessor: number > 1, floor: 1, ..frame };
                self.tx.kept.push((frame, false, 0));
            } else {
                self.tx.lost |= bit(frame.packet);
            }
        }
    }

    /// The receiver's state goes: what it had and did not hand on goes with it.
    fn reset_receiver(&mut self, peer: u8) {
        for frame in std::mem::take(&mut self.rx.held) {
            self.died |= bit(frame.packet);
        }
        self.rx = Receiver { peer, base: 1, ..Receiver::default() };
    }

    fn reset_sender(&mut self) {
        let gone = (bit(self.tx.accepted) - 1) & !self.tx.acknowledged & !self.tx.lost;
        self.tx.lost |= gone;
        self.tx.sealed = self.tx.accepted;
        self.tx.kept.clear();
        (self.tx.peer, self.tx.base, self.tx.pointers) = (0, 1, [1; 2]);
        self.route = Route::Isolated;
    }

    /// `accepted = acknowledged + lost + queued`, nothing twice.
    fn balances(&self) -> bool {
        let kept = self.tx.kept.iter().filter(|k| !self.is_settled(&k.0)).count() as u32;
        let queued = u32::from(self.tx.accepted - self.tx.sealed);
        let (acked, lost) = (self.tx.acknowledged, self.tx.lost);
        acked & lost == 0
            && u32::from(self.tx.accepted) == acked.count_ones() + lost.count_ones() + kept + queued
    }
}

impl Links {
    fn two() -> Self {
        Self {
            nodes: 2,
            links: vec![(0, 1)],
            packets: 2,
            crashes: 0,
            expiries: 0,
            holds: 0,
            storage_is_up: false,
            suspicion: true,
            planted: Planted::Nothing,
        }
    }

    fn apply(&self, s: &mut State, action: Action) {
        let p = self.planted;
        let own = |l: usize| s.incarnations[self.links[l].0];
        let theirs = |l: usize| s.incarnations[self.links[l].1];
        match action {
            Action::Accept(l) => s.links[l].tx.accepted += 1,
            Action::Judge(l, network, storage, proven) => {
                s.links[l].judge(network, storage, proven, p);
            }
            Action::TakeOver(l) => s.links[l].take_over(p),
            Action::Seal(l) => {
                let own = own(l);
                s.links[l].seal(own);
            }
            Action::Send(l, path) => s.links[l].send(path),
            Action::Resend(l, number) => s.links[l].resend(number, Path::Storage, p),
            Action::Expire(l) => {
                s.expiries += 1;
                s.links[l].expire();
            }
            Action::Arrives(l, i) => {
                let (frame, own) = (s.links[l].wire[i], theirs(l));
                s.links[l].arrive(frame, own, p);
            }
            Action::IsRead(l) => {
                let own = theirs(l);
                let frame = s.links[l].stored.remove(0);
                s.links[l].arrive(frame, own, p);
            }
            Action::RecordLost(l) => {
                s.links[l].stored.remove(0);
            }
            Action::HoldEnds(l) => {
                s.holds += 1;
                let link = &mut s.links[l];
                if let Some(i) = link.rx.held.iter().position(|f| !f.strict) {
                    let frame = link.rx.held.remove(i);
                    link.deliver(frame);
                    link.settle(frame.number);
                }
            }
            Action::TellFloor(l) => {
                let pair = (own(l), theirs(l));
                let link = &mut s.links[l];
                if (link.rx.peer, link.tx.peer) == pair {
                    let floor = if p == Planted::FloorTooHigh { link.end() } else { link.tx.base };
                    link.raise(floor);
                }
            }
            Action::Acknowledge(l) => {
                let own = theirs(l);
                s.links[l].acknowledge(own);
            }
            Action::TakeReceipt(l) => {
                let own = own(l);
                s.links[l].take_receipt(own, p);
            }
            Action::AgreeSender(l) => {
                let peer = theirs(l);
                s.links[l].agree_sender(peer, p);
            }
            Action::AgreeReceiver(l) => {
                let peer = own(l);
                s.links[l].reset_receiver(peer);
            }
            Action::Crash(node) => {
                s.crashes += 1;
                s.incarnations[node] += 1;
                for (link, (from, to)) in s.links.iter_mut().zip(&self.links) {
                    if *from == node {
                        link.reset_sender();
                    }
                    if *to == node {
                        link.reset_receiver(0);
                    }
                }
            }
        }
    }

    /// From here on nothing goes wrong any more, on the paths that work: everything comes to an
    /// end, and it is accounted for.
    fn ends_well(&self, s: &State, network: Verdict, storage: Verdict, home: Route) -> bool {
        let p = self.planted;
        let mut s = s.clone();
        for l in 0..s.links.len() {
            let (own, theirs) = (s.incarnations[self.links[l].0], s.incarnations[self.links[l].1]);
            let link = &mut s.links[l];
            link.wire.clear();
            link.receipt = None;
            if link.tx.peer != theirs {
                link.agree_sender(theirs, p);
            }
            if link.rx.peer != own {
                link.reset_receiver(own);
            }
            for _ in 0..12 {
                link.judge(network, storage, true, p);
                if link.route == Route::Returning {
                    link.take_over(p);
                }
                for path in [Path::Network, Path::Storage] {
                    while link.route.uses(path) && link.next(path).is_some() {
                        link.send(path);
                    }
                }
                while link.tx.sealed < link.tx.accepted && link.route != Route::Isolated {
                    link.seal(own);
                    for path in [Path::Network, Path::Storage] {
                        while link.route.uses(path) && link.next(path).is_some() {
                            link.send(path);
                        }
                    }
                }
                for (frame, by_network, by_storage) in link.tx.kept.clone() {
                    let carried = [(Path::Network, by_network), (Path::Storage, by_storage > 0)];
                    for (path, carried) in carried {
                        if carried && link.route.uses(path) && !link.is_settled(&frame) {
                            link.put(path, frame);
                        }
                    }
                }
                if network == Verdict::Up {
                    for frame in link.wire.clone() {
                        link.arrive(frame, theirs, p);
                    }
                }
                if storage == Verdict::Up {
                    for frame in std::mem::take(&mut link.stored) {
                        link.arrive(frame, theirs, p);
                    }
                }
                link.raise(link.tx.base);
                link.acknowledge(theirs);
                link.take_receipt(own, p);
            }
            let all = bit(link.tx.accepted) - 1;
            let settled = link.tx.kept.is_empty() && link.tx.sealed == link.tx.accepted;
            let told = link.delivered | link.tx.lost | link.died;
            let harmless = s.crashes + s.expiries > 0 || link.delivered == all;
            if !(settled && told == all && harmless && link.rx.held.is_empty())
                || link.route != home
                || link.twice
            {
                return false;
            }
        }
        true
    }
}

impl Model for Links {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut links = vec![Link::new(); self.links.len()];
        for link in &mut links {
            (link.tx.peer, link.rx.peer, link.route) = (1, 1, Route::Network);
        }
        vec![State {
            incarnations: vec![1; self.nodes],
            links,
            crashes: 0,
            expiries: 0,
            holds: 0,
            home: true,
        }]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        use Verdict::{Down, Suspect, Up};
        let broken = |l: &Link| l.twice || l.disorder || l.silent;
        if s.links.iter().any(broken) {
            return;
        }
        for (l, link) in s.links.iter().enumerate() {
            let (from, to) = self.links[l];
            let (own, theirs) = (s.incarnations[from], s.incarnations[to]);
            if link.tx.accepted < self.packets {
                actions.push(Action::Accept(l));
            }
            for network in [Up, Suspect, Down] {
                if network == Suspect && !self.suspicion {
                    continue;
                }
                for storage in [Up, Suspect, Down] {
                    if self.storage_is_up && storage != Up {
                        continue;
                    }
                    for proven in [false, true] {
                        let waits = matches!(link.route, Route::Storage | Route::Doubtful);
                        let relevant = !proven || waits && network == Up;
                        if relevant && link.choose(network, storage, proven, self.planted).is_some()
                        {
                            actions.push(Action::Judge(l, network, storage, proven));
                        }
                    }
                }
            }
            if link.route == Route::Returning {
                actions.push(Action::TakeOver(l));
            }
            let pumped = !link.route.uses(Path::Network) || link.next(Path::Network).is_none();
            let keyed = link.tx.peer != 0 && link.route != Route::Isolated;
            if keyed && pumped && link.tx.sealed < link.tx.accepted {
                actions.push(Action::Seal(l));
            }
            for path in [Path::Network, Path::Storage] {
                // What is in flight by storage is bounded by its window.
                let room = path == Path::Network || link.stored.len() <= usize::from(self.packets);
                if room && link.route.uses(path) && link.next(path).is_some() {
                    actions.push(Action::Send(l, path));
                }
            }
            for (frame, _, times) in &link.tx.kept {
                let due = *times > 0 && *times < TRIES && !link.is_settled(frame);
                let room = link.stored.len() <= usize::from(self.packets)
                    && (self.planted != Planted::NewNumber || link.tx.kept.len() < N);
                if due && room && link.route.uses(Path::Storage) {
                    actions.push(Action::Resend(l, frame.number));
                }
            }
            let queued = link.tx.sealed < link.tx.accepted || !link.tx.kept.is_empty();
            if queued && s.expiries < self.expiries {
                actions.push(Action::Expire(l));
            }
            actions.extend((0..link.wire.len()).map(|i| Action::Arrives(l, i)));
            if !link.stored.is_empty() {
                actions.push(Action::IsRead(l));
                actions.push(Action::RecordLost(l));
            }
            if s.holds < self.holds && link.rx.held.iter().any(|f| !f.strict) {
                actions.push(Action::HoldEnds(l));
            }
            if link.rx.peer == own && link.tx.peer == theirs {
                actions.push(Action::TellFloor(l));
            }
            if link.rx.peer != 0 {
                actions.push(Action::Acknowledge(l));
            }
            if link.receipt.is_some() {
                actions.push(Action::TakeReceipt(l));
            }
            if link.tx.peer != theirs {
                actions.push(Action::AgreeSender(l));
            }
            if link.rx.peer != own {
                actions.push(Action::AgreeReceiver(l));
            }
        }
        if s.crashes < self.crashes {
            actions.extend((0..self.nodes).map(Action::Crash));
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut s = before.clone();
        self.apply(&mut s, action);
        (s != *before).then_some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        use Verdict::{Down, Up};
        vec![
            Property::<Self>::always("at most once", |_, s| !s.links.iter().any(|l| l.twice)),
            Property::<Self>::always("in order", |_, s| {
                s.holds > 0 || !s.links.iter().any(|l| l.disorder)
            }),
            Property::<Self>::always("no silent loss", |_, s| {
                !s.links.iter().any(|l| l.silent) && s.links.iter().all(Link::balances)
            }),
            Property::<Self>::always("eventually home", |m, s| {
                m.ends_well(s, Up, Up, Route::Network)
            }),
            Property::<Self>::always("storage alone is enough", |m, s| {
                m.ends_well(s, Down, Up, Route::Storage)
            }),
            Property::<Self>::always("the network alone is enough", |m, s| {
                m.ends_well(s, Up, Down, Route::Network)
            }),
            Property::<Self>::sometimes("everything went by storage", |m, s| {
                s.links.iter().all(|l| {
                    l.wire.is_empty() && l.tx.acknowledged.count_ones() == u32::from(m.packets)
                })
            }),
            Property::<Self>::sometimes("there and back", |m, s| {
                let all = bit(m.packets) - 1;
                s.links.iter().all(|l| {
                    l.route == Route::Network && l.tx.acknowledged == all && !l.wire.is_empty()
                })
            }),
        ]
    }
}

#[test]
fn link_between_two_nodes() {
    holds("link: two nodes", Links::two(), 250_000);
    if long() {
        let three_packets = Links { packets: 3, storage_is_up: true, ..Links::two() };
        holds("link: three packets", three_packets, 1_000_000);
    }
}

#[test]
fn link_between_three_nodes() {
    let links = vec![(0, 1), (0, 2)];
    let three = Links { nodes: 3, links, packets: 1, storage_is_up: true, ..Links::two() };
    holds("link: three nodes", Links { suspicion: false, ..three.clone() }, 10_000);
    if long() {
        holds("link: three nodes, suspicion", three.clone(), 1_000_000);
        holds("link: three nodes, a crash", Links { crashes: 1, ..three }, 1_000_000);
    }
}

#[test]
fn link_crashes_and_expiry() {
    let one = Links { packets: 1, ..Links::two() };
    holds("link: crash", Links { crashes: 1, ..one }, 20_000);
    holds("link: expiry", Links { expiries: 1, storage_is_up: true, ..Links::two() }, 300_000);
    if long() {
        holds("link: crash, two packets", Links { crashes: 1, ..Links::two() }, 1_000_000);
        holds("link: a hold ends", Links { holds: 1, ..Links::two() }, 250_000);
    }
}

#[test]
fn planted_bugs_are_found() {
    use Planted as P;
    let two = Links::two();
    let crash = Links { crashes: 1, packets: 1, ..Links::two() };
    for (planted, model, property) in [
        (P::NoWindow, two.clone(), "at most once"),
        (P::AcknowledgedNotHeld, two.clone(), "no silent loss"),
        (P::ResentToSuccessor, crash.clone(), "at most once"),
        (P::NoPredecessor, two.clone(), "in order"),
        (P::NoRewind, two.clone(), "storage alone is enough"),
        (P::NoTakeOver, two.clone(), "the network alone is enough"),
        (P::UnsentIsNobodys, two.clone(), "eventually home"),
        (P::FloorTooHigh, two.clone(), "no silent loss"),
        (P::NewNumber, two, "at most once"),
        (P::AnyIncarnation, crash.clone(), "at most once"),
        (P::AnyReceipt, Links { packets: 2, ..crash }, "no silent loss"),
    ] {
        breaks(&format!("link: {planted:?}"), Links { planted, ..model }, property);
    }
}
