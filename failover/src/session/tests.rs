//! Two pipes and two lines between them, stepped by hand and by a seed.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{pipe::Pipe, *};
use crate::{
    NodeId, Time,
    wire::{HEADER, stream},
};

const PATHS: [Path; 2] = [Path::Network, Path::Storage];

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

/// Two ends and what is under way between them.
struct Pair {
    now: Time,
    ends: [Pipe; 2],
    /// Frames under way: by sender, by path.
    wires: [[VecDeque<(u64, Bytes)>; 2]; 2],
    numbers: [u64; 2],
    events: [Vec<SessionEvent>; 2],
    usable: [bool; 2],
}

impl Pair {
    fn new(limits: &SessionLimits) -> Self {
        let end = |us, peer| Pipe::new(node(us), node(peer), limits.clone());
        let mut pair = Self {
            now: Time(1_000_000),
            ends: [end(1, 2), end(2, 1)],
            wires: Default::default(),
            numbers: [0; 2],
            events: Default::default(),
            usable: [true; 2],
        };
        pair.set_paths([true; 2]);
        pair
    }

    fn set_paths(&mut self, usable: [bool; 2]) {
        self.usable = usable;
        for end in &mut self.ends {
            end.paths(self.now, usable, [Duration::from_millis(500); 2]);
        }
        self.gather();
    }

    fn gather(&mut self) {
        for end in 0..2 {
            while let Some(event) = self.ends[end].event() {
                self.events[end].push(event);
            }
        }
    }

    fn order(&mut self, end: usize, order: SessionOrder) {
        self.ends[end].order(self.now, order);
        self.gather();
    }

    /// One frame of `end` by `path`, if it has any.
    fn send(&mut self, end: usize, path: usize, room: usize) -> bool {
        let number = self.numbers[end] + 1;
        let Some(body) = self.ends[end].poll(self.now, PATHS[path], number, room) else {
            self.gather();
            return false;
        };
        assert!(body.len() > HEADER && body.len() <= HEADER + room, "{} bytes", body.len());
        self.numbers[end] = number;
        self.wires[end][path].push_back((number, Bytes::from(body).slice(HEADER..)));
        self.gather();
        true
    }

    /// The oldest frame of `end` by `path` arrives.
    fn arrive(&mut self, end: usize, path: usize) -> bool {
        let Some((number, body)) = self.wires[end][path].pop_front() else { return false };
        let (_, read) = self.ends[1 - end].handle(self.now, PATHS[path], number, &body);
        assert_eq!(read, Ok(()));
        self.gather();
        true
    }

    fn pass(&mut self, span: Duration) {
        self.now += span;
        for end in &mut self.ends {
            end.tick(self.now, true);
        }
        self.gather();
    }

    /// Everything that can be said is said and arrives.
    fn settle(&mut self) {
        for _ in 0..20 {
            for _ in 0..10_000 {
                let mut moved = false;
                for (end, path) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    moved |= self.usable[path] && self.send(end, path, 64 << 10);
                    moved |= self.arrive(end, path);
                }
                if !moved {
                    break;
                }
            }
            self.pass(Duration::from_millis(5));
        }
    }

    fn open(&mut self, end: usize, preference: Preference) -> SessionId {
        let service = "echo".to_owned();
        self.order(end, SessionOrder::Open { token: 7, service, preference });
        match self.events[end].drain(..).next() {
            Some(SessionEvent::Opening { token: 7, id }) => id,
            other => panic!("{other:?}"),
        }
    }

    /// Opened by end 0, accepted by end 1.
    fn opened(&mut self, preference: Preference) -> SessionId {
        let id = self.open(0, preference);
        self.settle();
        self.order(1, SessionOrder::Accept(id));
        self.settle();
        assert!(self.events[0].contains(&SessionEvent::Accepted(id)));
        for events in &mut self.events {
            events.clear();
        }
        id
    }

    fn data(&mut self, end: usize) -> Vec<u8> {
        let mut all = Vec::new();
        self.events[end].retain(|event| match event {
            SessionEvent::Data(_, bytes) => {
                all.extend_from_slice(bytes);
                false
            }
            _ => true,
        });
        all
    }
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| i.to_le_bytes()[0]).collect::<Vec<_>>().into()
}

#[test]
fn a_session_is_offered_accepted_used_and_closed() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.open(0, Preference::NetworkFirst);
    pair.settle();
    assert_eq!(
        pair.events[1],
        [SessionEvent::Offered {
            id,
            service: "echo".to_owned(),
            preference: Preference::NetworkFirst
        }]
    );
    pair.order(1, SessionOrder::Accept(id));
    pair.settle();
    pair.order(0, SessionOrder::Write(id, pattern(100_000)));
    pair.order(0, SessionOrder::Finish(id));
    pair.settle();
    assert_eq!(pair.data(1).len(), 64 << 10, "the window");
    pair.order(1, SessionOrder::Take(id, 64 << 10));
    pair.settle();
    pair.order(1, SessionOrder::Take(id, 100_000));
    pair.order(1, SessionOrder::Finish(id));
    pair.settle();
    let status = [pair.ends[0].status(), pair.ends[1].status()];
    for (end, status) in status.iter().enumerate() {
        assert_eq!(pair.events[end].last(), Some(&SessionEvent::Closed(id)));
        assert_eq!((status.open, status.closed, status.granted_bytes), (0, 1, 0));
        assert_eq!((status.buffered_bytes, status.violations), (0, 0));
    }
    assert_eq!((status[0].opened, status[1].accepted), (1, 1));
    assert_eq!(status[1].delivered_bytes, 100_000);
}

#[test]
fn a_refusal_comes_with_its_reason_also_when_it_was_lost() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.open(0, Preference::NetworkFirst);
    pair.settle();
    pair.order(1, SessionOrder::Refuse(id, Refusal::NoSuchService, "nobody".to_owned()));
    assert!(pair.send(1, 0, 1000));
    pair.wires[1][0].clear();
    for _ in 0..4 {
        pair.pass(Duration::from_millis(700));
        pair.settle();
    }
    let refused = SessionEvent::Refused(id, Refusal::NoSuchService, "nobody".to_owned());
    assert!(pair.events[0].contains(&refused), "{:?}", pair.events[0]);
    assert_eq!((pair.ends[0].status().open, pair.ends[1].status().open), (0, 0));
}

#[test]
fn more_than_was_granted_ends_the_session_and_nothing_else() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.opened(Preference::NetworkFirst);
    let other = pair.opened(Preference::NetworkFirst);
    let mut body = Vec::new();
    let offset = 64 << 10;
    let cheat = Segment::Data { id: id.number, offset, last: false, length: 1 };
    stream::write(&cheat, &mut body);
    body.push(1);
    let (_, read) = pair.ends[1].handle(pair.now, Path::Network, 99, &body.into());
    assert_eq!(read, Ok(()));
    pair.settle();
    assert!(pair.events[0].contains(&SessionEvent::Ended(id, Ending::Violation)));
    assert!(pair.events[1].contains(&SessionEvent::Ended(id, Ending::Violation)));
    pair.order(0, SessionOrder::Write(other, pattern(10)));
    pair.settle();
    assert_eq!(pair.data(1), pattern(10));
    assert_eq!(pair.ends[1].status().violations, 1);
}

#[test]
fn a_session_changes_its_path_and_returns_after_a_while() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.opened(Preference::StorageFirst);
    assert_eq!(pair.ends[0].path(id), Some(Path::Storage));
    pair.order(0, SessionOrder::Write(id, pattern(50_000)));
    assert!(pair.send(0, 1, 10_000));
    pair.wires[0][1].clear();
    pair.set_paths([true, false]);
    assert_eq!(pair.ends[0].path(id), Some(Path::Network));
    pair.settle();
    assert_eq!(pair.data(1), pattern(50_000), "what storage swallowed came by the network");
    pair.set_paths([true, true]);
    assert_eq!(pair.ends[0].path(id), Some(Path::Network), "it has to prove itself");
    pair.pass(Duration::from_millis(990));
    assert_eq!(pair.ends[0].path(id), Some(Path::Network));
    pair.pass(Duration::from_millis(20));
    assert_eq!(pair.ends[0].path(id), Some(Path::Storage));
    pair.set_paths([false, false]);
    assert_eq!(pair.events[0].last(), Some(&SessionEvent::Moved(id, None)));
}

#[test]
fn only_means_only() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.opened(Preference::StorageOnly);
    pair.set_paths([true, false]);
    pair.order(0, SessionOrder::Write(id, pattern(10)));
    pair.settle();
    assert_eq!(pair.data(1), []);
    pair.set_paths([true, true]);
    pair.settle();
    assert_eq!(pair.data(1), pattern(10));
    assert_eq!(pair.ends[0].status().network_bytes, 0);
}

#[test]
fn a_lost_frame_in_the_middle_is_noticed_by_its_count() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.opened(Preference::NetworkFirst);
    pair.order(0, SessionOrder::Write(id, pattern(60_000)));
    while pair.send(0, 0, 10_000) {}
    assert!(pair.wires[0][0].len() > 4);
    pair.wires[0][0].remove(1);
    pair.settle();
    assert_eq!(pair.data(1), pattern(60_000));
    assert_eq!(pair.ends[0].status().carrier_losses, 1);
    assert!(pair.ends[0].status().network_bytes > 60_000);
}

#[test]
fn a_lost_tail_is_noticed_by_its_silence() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.opened(Preference::NetworkFirst);
    pair.order(0, SessionOrder::Write(id, pattern(100)));
    assert!(pair.send(0, 0, 10_000));
    pair.wires[0][0].clear();
    pair.pass(Duration::from_millis(499));
    assert!(!pair.send(0, 0, 10_000));
    pair.pass(Duration::from_millis(1));
    pair.settle();
    assert_eq!(pair.data(1), pattern(100));
}

#[test]
fn a_lost_last_word_does_not_keep_a_session() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.opened(Preference::NetworkFirst);
    for end in 0..2 {
        pair.order(end, SessionOrder::Finish(id));
    }
    // Whatever end 1 says from now on is lost until it has forgotten the session.
    for _ in 0..5 {
        while pair.send(0, 0, 1000) | pair.send(1, 0, 1000) {
            pair.wires[1][0].clear();
            while pair.arrive(0, 0) {}
        }
        pair.pass(Duration::from_millis(5));
    }
    assert_eq!(pair.ends[0].status().open, 1);
    for _ in 0..8 {
        pair.pass(Duration::from_millis(500));
        pair.settle();
    }
    assert_eq!((pair.ends[0].status().open, pair.ends[1].status().open), (0, 0));
    assert!(pair.events[0].contains(&SessionEvent::Closed(id)));
    assert!(pair.events[1].contains(&SessionEvent::Closed(id)));
}

#[test]
fn who_left_is_not_written_to() {
    let mut pair = Pair::new(&SessionLimits::default());
    let id = pair.opened(Preference::NetworkFirst);
    pair.order(1, SessionOrder::Finish(id));
    pair.order(1, SessionOrder::Abandon(id));
    pair.settle();
    assert!(pair.events[0].contains(&SessionEvent::Finished(id, ByPath::default())));
    pair.order(0, SessionOrder::Write(id, pattern(10)));
    pair.settle();
    assert!(pair.events[0].contains(&SessionEvent::Ended(id, Ending::Unread)));
    pair.settle();
    assert_eq!((pair.ends[0].status().open, pair.ends[1].status().open), (0, 0));
}

#[test]
fn a_closed_window_is_asked_for_again_and_keeps_nobody_from_waiting() {
    let limits = SessionLimits { timeout: Duration::from_secs(5), ..SessionLimits::default() };
    let mut pair = Pair::new(&limits);
    let id = pair.opened(Preference::NetworkFirst);
    pair.order(0, SessionOrder::Write(id, pattern(100_000)));
    pair.settle();
    // An application that does not read is no reason to give up.
    for _ in 0..20 {
        pair.pass(Duration::from_millis(600));
        pair.settle();
    }
    assert_eq!(pair.data(1).len(), 64 << 10);
    pair.order(1, SessionOrder::Take(id, 64 << 10));
    // The grant is lost.
    while pair.send(1, 0, 1000) {}
    pair.wires[1][0].clear();
    for _ in 0..5 {
        pair.pass(Duration::from_millis(600));
        pair.settle();
    }
    assert_eq!(pair.data(1).len(), 100_000 - (64 << 10));
    // A peer that says nothing at all is.
    pair.order(0, SessionOrder::Write(id, pattern(1)));
    for _ in 0..20 {
        pair.pass(Duration::from_millis(600));
        while pair.send(0, 0, 1000) {}
    }
    assert!(pair.events[0].contains(&SessionEvent::Ended(id, Ending::TimedOut)));
}

#[test]
fn sessions_and_grants_are_bounded() {
    let limits = SessionLimits {
        sessions_max: 40,
        granted_max: 1 << 20,
        window_start: 64 << 10,
        window_min: 4 << 10,
        ..SessionLimits::default()
    };
    let mut pair = Pair::new(&limits);
    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(pair.open(0, Preference::NetworkFirst));
    }
    pair.order(
        0,
        SessionOrder::Open { token: 1, service: "x".into(), preference: Preference::NetworkFirst },
    );
    assert_eq!(pair.events[0], [SessionEvent::NotOpened { token: 1, reason: NotOpened::TooMany }]);
    pair.settle();
    for id in ids {
        pair.order(1, SessionOrder::Accept(id));
        pair.order(0, SessionOrder::Write(id, pattern(100_000)));
    }
    for _ in 0..50 {
        pair.settle();
        let taken: Vec<SessionId> = pair.events[1]
            .drain(..)
            .filter_map(
                |e| if let SessionEvent::Data(id, b) = e { Some((id, b.len())) } else { None },
            )
            .map(|(id, n)| {
                pair.ends[1].order(pair.now, SessionOrder::Take(id, n as u64));
                id
            })
            .collect();
        let granted = pair.ends[1].status().granted_bytes;
        assert!(granted <= 1 << 20, "{granted}");
        if taken.is_empty() {
            break;
        }
    }
    assert_eq!(pair.ends[1].status().delivered_bytes, 4_000_000);
}

/// A frame that only acknowledges costs both ends a turn: while the application takes what comes,
/// it is said together with what is granted for it, once per 256 KiB and a frame.
#[test]
fn bulk_is_acknowledged_once_per_grant() {
    let mut pair = Pair::new(&SessionLimits { window_start: 4 << 20, ..SessionLimits::default() });
    let id = pair.opened(Preference::NetworkFirst);
    pair.order(0, SessionOrder::Write(id, pattern(2 << 20)));
    pair.events[1].clear();
    let mut said = 0;
    while pair.send(0, 0, 64 << 10) {
        assert!(pair.arrive(0, 0));
        for event in std::mem::take(&mut pair.events[1]) {
            if let SessionEvent::Data(id, bytes) = event {
                pair.order(1, SessionOrder::Take(id, bytes.len() as u64));
            }
        }
        while pair.send(1, 0, 64 << 10) {
            said += 1;
            assert!(pair.arrive(1, 0));
        }
    }
    assert_eq!(pair.ends[1].status().delivered_bytes, 2 << 20);
    assert!((5..=8).contains(&said), "{said} acknowledgements");
}

#[test]
fn one_bulk_session_leaves_room_for_the_small_ones_in_every_frame() {
    let mut pair = Pair::new(&SessionLimits { window_start: 4 << 20, ..SessionLimits::default() });
    let bulk = pair.opened(Preference::NetworkFirst);
    let small: Vec<SessionId> = (0..10).map(|_| pair.opened(Preference::NetworkFirst)).collect();
    pair.order(0, SessionOrder::Write(bulk, pattern(2 << 20)));
    assert!(pair.send(0, 0, 64 << 10));
    for id in &small {
        pair.order(0, SessionOrder::Write(*id, pattern(100)));
    }
    assert!(pair.send(0, 0, 64 << 10));
    pair.arrive(0, 0);
    pair.arrive(0, 0);
    for id in small {
        let got =
            |e: &SessionEvent| matches!(e, SessionEvent::Data(i, b) if *i == id && b.len() == 100);
        assert!(pair.events[1].iter().any(got), "session {} had to wait", id.number());
    }
}

#[test]
fn a_new_incarnation_ends_all_and_old_handles_fit_nothing() {
    let mut pair = Pair::new(&SessionLimits::default());
    let old = pair.opened(Preference::NetworkFirst);
    for end in &mut pair.ends {
        end.end_all(Ending::PeerRestarted);
    }
    pair.wires = Default::default();
    pair.set_paths([true; 2]);
    assert_eq!(pair.events[0], [SessionEvent::Ended(old, Ending::PeerRestarted)]);
    for events in &mut pair.events {
        events.clear();
    }
    let new = pair.opened(Preference::NetworkFirst);
    assert_eq!((old.number(), old == new), (new.number(), false));
    pair.order(0, SessionOrder::Write(old, pattern(10)));
    pair.settle();
    assert_eq!(pair.data(1), []);
}

#[test]
fn a_hundred_thousand_sessions_leave_nothing() {
    let mut pair = Pair::new(&SessionLimits::default());
    for _ in 0..1000 {
        let ids: Vec<SessionId> =
            (0..100).map(|_| pair.open(0, Preference::NetworkFirst)).collect();
        while pair.send(0, 0, 64 << 10) {}
        while pair.arrive(0, 0) {}
        for (i, id) in ids.iter().enumerate() {
            if i % 3 == 0 {
                pair.order(1, SessionOrder::Refuse(*id, Refusal::Rejected, String::new()));
            } else {
                pair.order(1, SessionOrder::Accept(*id));
                pair.order(1, SessionOrder::Finish(*id));
            }
            pair.order(0, SessionOrder::Finish(*id));
        }
        pair.settle();
        for events in &mut pair.events {
            events.clear();
        }
    }
    for end in &pair.ends {
        let status = end.status();
        assert_eq!((status.open, status.granted_bytes, status.violations), (0, 0, 0));
        assert_eq!(status.closed, 66_000);
    }
}

// --- against a model -------------------------------------------------------------------------------

/// What one side of a session wrote and the other got.
#[derive(Debug, Default)]
struct Book {
    written: usize,
    finished: bool,
    got: usize,
    taken: usize,
    told_finished: bool,
}

#[derive(Debug, Default)]
struct Model {
    /// By number of the session: what each end wrote.
    books: BTreeMap<u64, [Book; 2]>,
    /// Somebody gave it up: its end may be an error.
    given_up: BTreeMap<u64, bool>,
    live: [BTreeMap<u64, SessionId>; 2],
    closed: [u64; 2],
}

fn byte(number: u64, end: usize, offset: usize) -> u8 {
    let mixed = (number * 131 + end as u64 * 17 + offset as u64).wrapping_mul(0x9e37_79b9);
    mixed.to_le_bytes()[1]
}

impl Model {
    fn look(&mut self, pair: &mut Pair) -> Result<(), TestCaseError> {
        // What one end is told of the other's bytes comes after them.
        let events = std::mem::take(&mut pair.events);
        for after in [false, true] {
            for (end, events) in events.iter().enumerate() {
                for event in events {
                    let late =
                        matches!(event, SessionEvent::Progress { .. } | SessionEvent::Closed(_));
                    if late == after {
                        self.event(end, event.clone())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, end: usize, event: SessionEvent) -> Result<(), TestCaseError> {
        match event {
            SessionEvent::Opening { id, .. } | SessionEvent::Offered { id, .. } => {
                prop_assert!(self.live[end].insert(id.number, id).is_none());
                self.books.entry(id.number).or_default();
            }
            SessionEvent::Data(id, bytes) => {
                let book = &mut self.books.get_mut(&id.number).unwrap()[1 - end];
                for (i, b) in bytes.iter().enumerate() {
                    prop_assert_eq!(*b, byte(id.number, 1 - end, book.got + i));
                }
                book.got += bytes.len();
                prop_assert!(book.got <= book.written, "bytes nobody wrote");
                prop_assert!(!book.told_finished);
            }
            SessionEvent::Finished(id, _) => {
                let book = &mut self.books.get_mut(&id.number).unwrap()[1 - end];
                prop_assert!(book.finished && book.got == book.written, "too early");
                prop_assert!(!std::mem::replace(&mut book.told_finished, true), "twice");
            }
            SessionEvent::Closed(id) => {
                self.live[end].remove(&id.number);
                self.closed[end] += 1;
                if !self.given_up.contains_key(&id.number) {
                    for book in &self.books[&id.number] {
                        prop_assert_eq!((book.got, book.finished), (book.written, true));
                    }
                }
            }
            SessionEvent::Refused(id, ..) => {
                prop_assert!(self.live[end].remove(&id.number).is_some());
            }
            SessionEvent::Ended(id, ending) => {
                self.live[end].remove(&id.number);
                prop_assert!(self.given_up.contains_key(&id.number), "{ending:?} without a cause");
                prop_assert!(matches!(ending, Ending::Reset | Ending::Unread), "{ending:?}");
            }
            SessionEvent::Progress { id, received, taken, .. } => {
                let book = &self.books[&id.number][end];
                prop_assert!(taken <= received && received <= book.written as u64);
                let abandoned = self.given_up.contains_key(&id.number);
                prop_assert!(received <= book.got as u64 || abandoned, "not handed on yet");
                prop_assert!(taken <= book.taken as u64 || abandoned, "not taken");
            }
            SessionEvent::Accepted(_) | SessionEvent::Moved(..) => {}
            SessionEvent::NotOpened { .. } => {}
        }
        Ok(())
    }
}

fn drive(seed: u64, steps: usize, lossy: bool) -> Result<(), TestCaseError> {
    let mut state = seed | 1;
    let mut draw = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let limits = SessionLimits {
        sessions_max: 12,
        window_start: 1 + draw(3000) as u64,
        window_min: 1 + draw(200) as u64,
        window_max: 8000,
        granted_max: 40_000,
        buffered_max: 30_000,
        timeout: Duration::from_secs(1_000_000),
    };
    let mut pair = Pair::new(&limits);
    let mut model = Model::default();
    let preferences = [
        Preference::NetworkFirst,
        Preference::StorageFirst,
        Preference::NetworkOnly,
        Preference::StorageOnly,
    ];
    for _ in 0..steps {
        let end = draw(2);
        let pick = model.live[end].values().copied().nth(draw(model.live[end].len()));
        match (draw(24), pick) {
            (0, _) => {
                let preference = preferences[draw(4)];
                let order = SessionOrder::Open { token: 0, service: "s".into(), preference };
                pair.order(end, order);
            }
            (1..3, Some(id)) => pair.order(end, SessionOrder::Accept(id)),
            (3, Some(id)) if draw(8) == 0 => {
                let refused = pair.ends[end].status().refused;
                pair.order(end, SessionOrder::Refuse(id, Refusal::Rejected, "no".to_owned()));
                if pair.ends[end].status().refused > refused {
                    model.live[end].remove(&id.number);
                }
            }
            (4..9, Some(id)) => {
                let n = draw(2000).min(pair.ends[end].room(id));
                let book = &mut model.books.get_mut(&id.number).unwrap()[end];
                if !book.finished && n > 0 {
                    let bytes: Vec<u8> =
                        (0..n).map(|i| byte(id.number, end, book.written + i)).collect();
                    // Before it is accepted nothing of ours may be written by the acceptor.
                    let buffered = pair.ends[end].status().buffered_bytes;
                    pair.order(end, SessionOrder::Write(id, bytes.into()));
                    if pair.ends[end].status().buffered_bytes > buffered {
                        book.written += n;
                    }
                }
            }
            (9..12, Some(id)) => {
                let book = &mut model.books.get_mut(&id.number).unwrap()[1 - end];
                let n = draw(2000).min(book.got - book.taken);
                book.taken += n;
                pair.order(end, SessionOrder::Take(id, n as u64));
            }
            (12, Some(id)) if draw(4) == 0 => {
                // Only of sessions that are open at this end.
                if pair.ends[end].path(id).is_some() {
                    model.books.get_mut(&id.number).unwrap()[end].finished = true;
                    pair.order(end, SessionOrder::Finish(id));
                }
            }
            (13, Some(id)) if draw(30) == 0 => {
                model.given_up.insert(id.number, true);
                pair.order(end, SessionOrder::Reset(id));
                model.live[end].remove(&id.number);
            }
            (14, Some(id)) if draw(30) == 0 => {
                model.given_up.insert(id.number, true);
                pair.order(end, SessionOrder::Abandon(id));
            }
            (15, _) if draw(10) == 0 => {
                let usable = [draw(3) > 0, draw(3) > 0];
                for (path, ok) in usable.iter().enumerate() {
                    if !ok && lossy {
                        pair.wires[0][path].clear();
                        pair.wires[1][path].clear();
                    }
                }
                pair.set_paths(usable);
            }
            (16, _) => pair.pass(Duration::from_micros(draw(30_000) as u64)),
            (17, _) if lossy && draw(20) == 0 => {
                // A frame vanishes without a word, or a whole carrier does.
                let (path, some) = (draw(2), draw(3));
                if some == 0 {
                    pair.wires[end][path].clear();
                } else {
                    pair.wires[end][path].pop_back();
                }
            }
            (17..21, _) => {
                let path = draw(2);
                if pair.usable[path] {
                    pair.send(end, path, 700 + draw(4000));
                }
            }
            _ => {
                pair.arrive(end, draw(2));
            }
        }
        model.look(&mut pair)?;
    }
    // All is healed; applications take everything and finish.
    pair.set_paths([true; 2]);
    for round in 0..200 {
        pair.settle();
        model.look(&mut pair)?;
        for end in 0..2 {
            for id in model.live[end].values().copied().collect::<Vec<_>>() {
                pair.order(end, SessionOrder::Accept(id));
                let book = &mut model.books.get_mut(&id.number).unwrap()[1 - end];
                let n = book.got - book.taken;
                book.taken = book.got;
                pair.order(end, SessionOrder::Take(id, n as u64));
                model.books.get_mut(&id.number).unwrap()[end].finished = true;
                pair.order(end, SessionOrder::Finish(id));
            }
        }
        pair.pass(Duration::from_millis(700));
        model.look(&mut pair)?;
        if round > 10 && pair.ends.iter().all(Pipe::is_empty) {
            break;
        }
    }
    for end in &pair.ends {
        let status = end.status();
        prop_assert!(end.is_empty(), "{:?}", pair.ends);
        prop_assert_eq!((status.granted_bytes, status.buffered_bytes), (0, 0));
        prop_assert_eq!(status.violations, 0);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Any order of writes, reads, ends, losses and changes of path: each byte once, in order.
    #[test]
    fn each_byte_comes_once_and_in_order(seed in any::<u64>(), steps in 100..1500_usize) {
        drive(seed, steps, true)?;
    }

    /// The same on carriers that lose nothing: then nothing is believed to be lost.
    #[test]
    fn nothing_is_lost_on_good_carriers(seed in any::<u64>(), steps in 100..600_usize) {
        drive(seed, steps, false)?;
    }
}
