//! All sessions with one peer: what is said about them and what they say.
//!
//! ```text
//!             offered          Accept
//!   (peer) ───────────> Offered ─────> Open ──both done──> gone, answered by Bye
//!   (us)   ──Open────> Opening ─accepted─^ │
//!                          └── Reset, timeout, violation ──> Over ──Bye──> gone
//! ```
//!
//! * `Opening`: waits for the destination's answer. `Offered`: waits for our application's.
//! * `Open`: bytes flow both ways, each until its end.
//! * `Over`: ended before its time; kept until the peer knows.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;

use super::{
    ByPath, Ending, NotOpened, Preference, Refusal, SessionEvent, SessionId, SessionLimits,
    SessionOrder, SessionStatus, carrier::Carrier, incoming::Incoming, key, outgoing::Outgoing,
};
use crate::{
    NodeId, Path, Time,
    canary::{Bug, planted},
    wire::{
        HEADER, TAG,
        stream::{self, DETAIL_MAX, SEGMENT_MAX, SERVICE_MAX, Segment},
    },
};

pub(crate) use super::carrier::Carried;

/// Bytes of a session in a frame before the next one's turn, while others wait.
const QUANTUM: usize = 4096;
/// How long an acknowledgement that nobody waits for is put off.
const LAZY: Duration = Duration::from_millis(5);
/// What needs an answer is said again after so long.
const TICK: Duration = Duration::from_secs(1);
/// A session whose application left is kept for the peer to finish it.
const LINGER: Duration = Duration::from_secs(60);
/// A path that was left is good again after so long without a fault.
const RETURN_AFTER: Duration = Duration::from_secs(1);
/// Refusals remembered, and answers waiting, at most.
const REFUSALS_MAX: usize = 1024;
const ANSWERS_MAX: usize = 4096;
/// Ids of the peer that may be missing below others.
const GAPS_MAX: usize = 65_536;

const PATHS: [Path; 2] = [Path::Network, Path::Storage];

const fn at(path: Path) -> usize {
    match path {
        Path::Network => 0,
        Path::Storage => 1,
    }
}

#[derive(Debug)]
enum State {
    Opening(String),
    Offered,
    Open,
    Over(Ending),
}

#[derive(Debug)]
struct Session {
    state: State,
    preference: Preference,
    path: Option<Path>,
    out: Outgoing,
    inc: Incoming,
    /// To be said: that it is accepted, what we have and grant.
    says_accepted: bool,
    says_ack: bool,
    /// To be said: the opening or the ending of it.
    says_state: bool,
    /// To be asked: how much more may be sent, or whether the rest was taken.
    asks: bool,
    /// It stands in the row of those who have something to say; of those whose
    /// acknowledgement can wait; of those with data for a path.
    urgent: bool,
    lazy: bool,
    queued: [bool; 2],
    /// Something of it may be under way by that path.
    carried: [bool; 2],
    deficit: usize,
    sent: ByPath,
    came: ByPath,
    /// Something is waited for, and did not come on since then.
    waits_since: Option<Time>,
    /// The same, and the peer said nothing at all about the session.
    silent_since: Option<Time>,
    /// The application left.
    left_at: Option<Time>,
    told_finished: bool,
}

impl Session {
    const fn new(state: State, preference: Preference, window: u64, limit: u64) -> Self {
        Self {
            state,
            preference,
            path: None,
            out: Outgoing::new(limit),
            inc: Incoming::new(window),
            says_accepted: false,
            says_ack: false,
            says_state: false,
            asks: false,
            urgent: false,
            lazy: false,
            queued: [false; 2],
            carried: [false; 2],
            deficit: 0,
            sent: ByPath { network: 0, storage: 0 },
            came: ByPath { network: 0, storage: 0 },
            waits_since: None,
            silent_since: None,
            left_at: None,
            told_finished: false,
        }
    }

    /// Both sides have everything, and both know.
    fn is_closed(&self) -> bool {
        if planted(Bug::SessionQuickBye) {
            return matches!(self.state, State::Open) && self.out.is_complete();
        }
        matches!(self.state, State::Open)
            && self.out.is_complete()
            && self.out.taken() == self.out.received()
            && self.inc.is_done()
            && !self.says_ack
    }

    /// An answer of the peer is owed.
    const fn waits(&self) -> bool {
        match self.state {
            State::Opening(_) | State::Over(_) => true,
            State::Offered => false,
            State::Open => {
                self.out.is_unconfirmed()
                    || self.out.is_blocked()
                    || self.out.is_complete() && self.out.taken() < self.out.received()
            }
        }
    }
}

/// Which ids of the peer were used.
#[derive(Debug, Default)]
struct Ids {
    /// All below were.
    floor: u64,
    above: BTreeSet<u64>,
}

impl Ids {
    fn contains(&self, sequence: u64) -> bool {
        sequence < self.floor || self.above.contains(&sequence)
    }

    /// False when that would leave more gaps than any honest peer does.
    fn insert(&mut self, sequence: u64) -> bool {
        if self.above.len() >= GAPS_MAX || sequence > self.floor + (GAPS_MAX as u64) * 16 {
            return false;
        }
        self.above.insert(sequence);
        while self.above.remove(&self.floor) {
            self.floor += 1;
        }
        true
    }
}

#[derive(Debug)]
enum Answer {
    Bye(u64),
    Refused(u64, Refusal, String),
}

/// All sessions with one peer.
#[derive(Debug)]
pub(crate) struct Pipe {
    limits: SessionLimits,
    /// The lowest bit of ids we choose.
    ours: u64,
    next: u64,
    sessions: BTreeMap<u64, Session>,
    theirs: Ids,
    refusals: BTreeMap<u64, (Refusal, String)>,
    answers: VecDeque<Answer>,
    carriers: [Carrier; 2],
    /// Sessions with data for a path, in turn.
    rings: [VecDeque<u64>; 2],
    urgent: VecDeque<u64>,
    lazy: Vec<u64>,
    lazy_at: Time,
    receipts_due: bool,
    tick_at: Time,
    /// Counts the peer's incarnations: handles of older ones fit nothing.
    era: u32,
    usable: [bool; 2],
    /// When a path last became usable.
    usable_since: [Time; 2],
    unreachable_since: Option<Time>,
    /// Times a carrier is given before its frames are sent again.
    patience: [Duration; 2],
    events: VecDeque<SessionEvent>,
    status: SessionStatus,
    granted: u64,
    buffered: usize,
}

impl Pipe {
    pub(crate) fn new(us: NodeId, peer: NodeId, limits: SessionLimits) -> Self {
        Self::empty(u64::from(us > peer), limits)
    }

    fn empty(ours: u64, limits: SessionLimits) -> Self {
        Self {
            limits,
            ours,
            next: 0,
            sessions: BTreeMap::new(),
            theirs: Ids::default(),
            refusals: BTreeMap::new(),
            answers: VecDeque::new(),
            carriers: Default::default(),
            rings: Default::default(),
            urgent: VecDeque::new(),
            lazy: Vec::new(),
            lazy_at: Time::NEVER,
            receipts_due: false,
            tick_at: Time::NEVER,
            era: 0,
            usable: [false; 2],
            usable_since: [Time::ZERO; 2],
            unreachable_since: None,
            patience: [Duration::from_secs(2); 2],
            events: VecDeque::new(),
            status: SessionStatus::default(),
            granted: 0,
            buffered: 0,
        }
    }

    /// The application's handle of a session.
    const fn handle_of(&self, number: u64) -> SessionId {
        SessionId { number, era: self.era }
    }

    /// A session by its handle, unless that is of another incarnation of the peer.
    fn find(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id.number).filter(|_| id.era == self.era)
    }

    // --- getters -------------------------------------------------------------------------------

    /// Counts, for people.
    pub(crate) fn status(&self) -> SessionStatus {
        SessionStatus {
            open: self.sessions.len() as u64,
            buffered_bytes: self.buffered as u64,
            granted_bytes: self.granted,
            ..self.status.clone()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How many bytes the application may write now.
    pub(crate) fn room(&self, id: SessionId) -> usize {
        let Some(session) = self.find(id) else { return 0 };
        let own = session.out.buffered();
        // What it has room for, and as much again for what it grants next. (What is under way is
        // no measure: it is nothing just after an acknowledgement.)
        let want = usize::try_from(session.out.window()).unwrap_or(usize::MAX).saturating_mul(2);
        let most = want.clamp(64 << 10, 4 << 20);
        let left = self.limits.buffered_max.saturating_sub(self.buffered);
        // Whoever has little is never stopped by those who have much.
        let most = if left < most { most.min(16 << 10) } else { most };
        most.saturating_sub(own)
    }

    /// The path that carries it.
    pub(crate) fn path(&self, id: SessionId) -> Option<Path> {
        self.find(id).and_then(|s| s.path)
    }

    /// Bytes under way by a path.
    pub(crate) fn in_flight(&self, path: Path) -> usize {
        self.carriers[at(path)].bytes
    }

    /// How long a receipt has been owed by a path.
    pub(crate) fn silence(&self, now: Time, path: Path) -> Duration {
        self.carriers[at(path)].silence(now)
    }

    /// When something is due by time alone.
    pub(crate) fn next(&self) -> Time {
        let mut next = self.lazy_at;
        if !self.sessions.is_empty() {
            next = next.min(self.tick_at);
        }
        for path in PATHS.map(at) {
            next = next.min(self.carriers[path].stalls_at(self.patience[path]));
        }
        next
    }

    // --- orders of applications ----------------------------------------------------------------

    /// An application wants something.
    pub(crate) fn order(&mut self, now: Time, order: SessionOrder) {
        self.tick_at = self.tick_at.min(now + TICK);
        let number = match &order {
            SessionOrder::Open { .. } => None,
            SessionOrder::Accept(id)
            | SessionOrder::Refuse(id, ..)
            | SessionOrder::Write(id, _)
            | SessionOrder::Finish(id)
            | SessionOrder::Take(id, _)
            | SessionOrder::Abandon(id)
            | SessionOrder::Reset(id) => Some(*id),
        };
        if number.is_some_and(|id| self.find(id).is_none()) {
            return;
        }
        let id = number.map_or(0, |id| id.number);
        match order {
            SessionOrder::Open { token, service, preference } => {
                self.open(token, service, preference);
            }
            SessionOrder::Accept(_) => self.accept(id),
            SessionOrder::Refuse(_, reason, detail) => {
                if self.is(id, |state| matches!(state, State::Offered)) {
                    self.forget(id);
                    self.refuse(id, reason, detail);
                }
            }
            SessionOrder::Write(_, bytes) => self.write(id, Some(bytes)),
            SessionOrder::Finish(_) => self.write(id, None),
            SessionOrder::Take(_, bytes) => {
                if let Some(session) = self.sessions.get_mut(&id)
                    && matches!(session.state, State::Open)
                {
                    session.inc.take(bytes);
                    self.after_taking(now, id);
                }
            }
            SessionOrder::Abandon(_) => {
                if let Some(session) = self.sessions.get_mut(&id)
                    && !matches!(session.state, State::Over(_))
                {
                    session.inc.abandon();
                    session.left_at.get_or_insert(now);
                    self.after_taking(now, id);
                }
            }
            SessionOrder::Reset(_) => self.end(id, Ending::Reset, false),
        }
    }

    fn is(&self, id: u64, state: impl Fn(&State) -> bool) -> bool {
        self.sessions.get(&id).is_some_and(|s| state(&s.state))
    }

    fn accept(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if matches!(session.state, State::Offered) {
            session.state = State::Open;
            session.says_accepted = true;
            self.status.accepted += 1;
            self.assign(id);
            self.speak(id);
        }
    }

    /// Bytes, or the end.
    fn write(&mut self, id: u64, bytes: Option<Bytes>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !matches!(session.state, State::Open | State::Opening(_)) {
            return;
        }
        match bytes {
            Some(bytes) => {
                let before = session.out.buffered();
                session.out.write(bytes);
                self.buffered += session.out.buffered() - before;
            }
            None => session.out.finish(),
        }
        self.ready(id);
    }

    fn open(&mut self, token: u64, service: String, preference: Preference) {
        let reason = if service.is_empty() || service.len() > SERVICE_MAX {
            Some(NotOpened::Name)
        } else if self.sessions.len() >= self.limits.sessions_max {
            Some(NotOpened::TooMany)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.events.push_back(SessionEvent::NotOpened { token, reason });
            return;
        }
        let id = self.next << 1 | self.ours;
        self.next += 1;
        let mut session = Session::new(State::Opening(service), preference, self.window(), 0);
        session.says_state = true;
        self.granted += session.inc.window();
        self.sessions.insert(id, session);
        self.events.push_back(SessionEvent::Opening { token, id: self.handle_of(id) });
        self.assign(id);
        self.speak(id);
    }

    /// The window of a new session.
    const fn window(&self) -> u64 {
        if self.granted < self.limits.granted_max / 2 {
            self.limits.window_start
        } else {
            self.limits.window_min
        }
    }

    fn after_taking(&mut self, now: Time, id: u64) {
        let spare = (self.limits.granted_max / 2).saturating_sub(self.granted);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        self.granted += session.inc.grant(spare, self.limits.window_max);
        let urgent = session.inc.is_urgent() || session.inc.is_done();
        self.acknowledge(now, id, urgent);
    }

    // --- what peers say ------------------------------------------------------------------------

    /// A frame came. `Err` when it breaks the rules of segments; what was good in it counts.
    pub(crate) fn handle(
        &mut self,
        now: Time,
        path: Path,
        number: u64,
        body: &Bytes,
    ) -> (Carried, Result<(), &'static str>) {
        self.carriers[at(path)].arrived(number, body.len());
        self.tick_at = self.tick_at.min(now + TICK);
        let mut carried = Carried::default();
        let read = stream::read(body, |segment, bytes| match segment {
            Segment::Seen { storage, highest, count } => {
                let by = if storage { Path::Storage } else { Path::Network };
                let seen = self.carriers[at(by)].seen(now, highest, count);
                if seen.lost {
                    self.status.carrier_losses += 1;
                    self.lost(by);
                }
                if by == Path::Storage {
                    carried = seen;
                }
            }
            segment => self.statement(now, path, &segment, bytes),
        });
        // On the network nothing waits for room: its plane says what it takes.
        if path == Path::Storage && self.carriers[at(path)].owes_receipt() {
            self.lazy_at = self.lazy_at.min(now);
        }
        if read.is_none() {
            self.status.violations += 1;
            return (carried, Err("malformed"));
        }
        (carried, Ok(()))
    }

    fn statement(&mut self, now: Time, path: Path, segment: &Segment<'_>, bytes: Bytes) {
        let id = key(segment);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.silent_since = None;
            session.came.add(path, bytes.len());
        } else {
            return self.of_nobody(now, id, segment);
        }
        match *segment {
            Segment::Open { .. } => self.opened_again(now, id),
            Segment::Accepted { window, .. } => self.accepted(id, window),
            Segment::Refused { reason, detail, .. } => self.refused(id, reason, detail),
            Segment::Data { offset, last, .. } => self.data(now, id, offset, bytes, last),
            Segment::Ack { received, taken, limit, complete, .. } => {
                self.acked(id, received, taken, limit, complete);
            }
            Segment::Reset { ending, .. } => self.reset(id, ending),
            Segment::Bye { .. } => self.bye(id),
            Segment::Seen { .. } => {}
        }
        self.close_if_done(id);
    }

    /// Something about a session that is not here.
    fn of_nobody(&mut self, now: Time, id: u64, segment: &Segment<'_>) {
        let sequence = id >> 1;
        let ours = id & 1 == self.ours;
        let known = if ours { sequence < self.next } else { self.theirs.contains(sequence) };
        match *segment {
            Segment::Open { preference, window, service, .. } if !ours && !known => {
                self.offered(now, id, preference, window, service);
            }
            Segment::Open { .. } if !ours => {
                // Once more, because the answer was lost; or late, and then nobody reads it.
                let (reason, detail) = self
                    .refusals
                    .get(&id)
                    .cloned()
                    .unwrap_or_else(|| (Refusal::Rejected, String::new()));
                self.answer(now, Answer::Refused(id, reason, detail));
            }
            Segment::Reset { .. } if !ours && !known => {
                // Its opening may come later, and is then nobody's wish any more.
                if self.theirs.insert(sequence) {
                    self.answer(now, Answer::Bye(id));
                }
            }
            Segment::Data { .. }
            | Segment::Ack { .. }
            | Segment::Accepted { .. }
            | Segment::Reset { .. }
                if known =>
            {
                self.answer(now, Answer::Bye(id));
            }
            Segment::Bye { .. } | Segment::Refused { .. } => {}
            _ => self.status.violations += 1,
        }
    }

    fn offered(&mut self, now: Time, id: u64, preference: Preference, window: u64, service: &str) {
        if !self.theirs.insert(id >> 1) {
            self.status.violations += 1;
            return;
        }
        if self.sessions.len() >= self.limits.sessions_max {
            self.refuse(id, Refusal::TooMany, "as many sessions as may be are open".to_owned());
            return;
        }
        let session = Session::new(State::Offered, preference, self.window(), window);
        self.granted += session.inc.window();
        self.sessions.insert(id, session);
        self.lazy_at = self.lazy_at.min(now + LAZY);
        let (id, service) = (self.handle_of(id), service.to_owned());
        self.events.push_back(SessionEvent::Offered { id, service, preference });
    }

    fn opened_again(&mut self, now: Time, id: u64) {
        if id & 1 == self.ours {
            self.status.violations += 1;
            return;
        }
        self.lazy_at = self.lazy_at.min(now + LAZY);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match session.state {
            State::Open => session.says_accepted = true,
            State::Over(_) => session.says_state = true,
            State::Offered | State::Opening(_) => return,
        }
        self.speak(id);
    }

    fn accepted(&mut self, id: u64, window: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if id & 1 != self.ours {
            self.status.violations += 1;
            return;
        }
        session.out.grant(window);
        // Whoever accepted waits to hear that it was heard.
        session.says_ack |= matches!(session.state, State::Open | State::Opening(_));
        session.says_state |= matches!(session.state, State::Over(_));
        if matches!(session.state, State::Opening(_)) {
            session.state = State::Open;
            session.says_state = false;
            self.status.opened += 1;
            self.events.push_back(SessionEvent::Accepted(self.handle_of(id)));
        }
        self.speak(id);
        self.ready(id);
    }

    fn refused(&mut self, id: u64, reason: Refusal, detail: &str) {
        if let Some(session) = self.sessions.get(&id)
            && matches!(session.state, State::Opening(_))
        {
            self.status.refused += 1;
            self.forget(id);
            let detail = detail.to_owned();
            self.events.push_back(SessionEvent::Refused(self.handle_of(id), reason, detail));
        }
    }

    /// What the peer says of a session it accepted proves that it did.
    fn heard_open(&mut self, id: u64) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        match session.state {
            State::Open => true,
            State::Opening(_) => {
                session.state = State::Open;
                session.says_state = false;
                self.status.opened += 1;
                self.events.push_back(SessionEvent::Accepted(self.handle_of(id)));
                true
            }
            State::Over(_) => {
                session.says_state = true;
                self.speak(id);
                false
            }
            State::Offered => {
                self.status.violations += 1;
                false
            }
        }
    }

    fn data(&mut self, now: Time, id: u64, offset: u64, bytes: Bytes, last: bool) {
        let handle = self.handle_of(id);
        self.lazy_at = self.lazy_at.min(now + LAZY);
        if !self.heard_open(id) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let mut out = Vec::new();
        let before = session.inc.received();
        let Ok(urgent) = session.inc.arrive(offset, bytes, last, &mut out) else {
            self.status.violations += 1;
            return self.end(id, Ending::Violation, true);
        };
        if session.inc.is_abandoned() && session.inc.received() > before {
            return self.end(id, Ending::Unread, true);
        }
        for bytes in out {
            self.status.delivered_bytes += bytes.len() as u64;
            self.events.push_back(SessionEvent::Data(handle, bytes));
        }
        if session.inc.is_complete() && !session.told_finished {
            session.told_finished = true;
            if !session.inc.is_abandoned() {
                self.events.push_back(SessionEvent::Finished(handle, session.came));
            }
        }
        let urgent = urgent || session.inc.is_urgent();
        self.acknowledge(now, id, urgent);
    }

    fn acked(&mut self, id: u64, received: u64, taken: u64, limit: u64, complete: bool) {
        let handle = self.handle_of(id);
        if !self.heard_open(id) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let before = (session.out.received(), session.out.taken());
        let buffered = session.out.buffered();
        if !session.out.acknowledged(received, taken, complete) {
            self.status.violations += 1;
            return self.end(id, Ending::Violation, true);
        }
        session.out.grant(limit);
        self.buffered -= buffered - session.out.buffered();
        let (received, taken) = (session.out.received(), session.out.taken());
        if (received, taken) != before {
            session.waits_since = None;
            self.events.push_back(SessionEvent::Progress {
                id: handle,
                received,
                taken,
                sent: session.sent,
            });
        }
        if !session.out.is_unconfirmed() {
            session.carried = [false; 2];
        }
        self.ready(id);
    }

    fn reset(&mut self, id: u64, ending: Ending) {
        let over = self.sessions.get(&id).is_none_or(|s| matches!(s.state, State::Over(_)));
        self.forget(id);
        self.answer_now(Answer::Bye(id));
        if !over {
            self.status.ended += 1;
            self.events.push_back(SessionEvent::Ended(self.handle_of(id), ending));
        }
    }

    fn bye(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match session.state {
            State::Over(_) => self.forget(id),
            // The last acknowledgement was lost; whoever says goodbye had said all of it.
            State::Open if session.out.is_finished() && session.inc.is_done() => {
                let buffered = session.out.buffered();
                let sent = session.out.received() + buffered as u64;
                session.says_ack = false;
                if session.out.acknowledged(sent, sent, true) {
                    self.buffered -= buffered;
                    let by = session.sent;
                    let id = self.handle_of(id);
                    self.events.push_back(SessionEvent::Progress {
                        id,
                        received: sent,
                        taken: sent,
                        sent: by,
                    });
                } else {
                    self.status.violations += 1;
                    self.end(id, Ending::Violation, true);
                    self.forget(id);
                }
            }
            _ => {
                self.status.violations += 1;
                self.end(id, Ending::Violation, true);
                self.forget(id);
            }
        }
    }

    // --- endings -------------------------------------------------------------------------------

    /// Ends a session; the peer is told until it says goodbye.
    fn end(&mut self, id: u64, ending: Ending, tell: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if matches!(session.state, State::Over(_)) {
            return;
        }
        self.buffered -= session.out.buffered();
        self.granted -= session.inc.window();
        // Of a session that is over nothing is kept but that it is.
        let mut over = Session::new(State::Over(ending), session.preference, 0, 0);
        over.says_state = true;
        over.urgent = session.urgent;
        over.queued = session.queued;
        over.lazy = session.lazy;
        *session = over;
        self.status.ended += 1;
        if tell {
            self.events.push_back(SessionEvent::Ended(self.handle_of(id), ending));
        }
        self.speak(id);
    }

    fn close_if_done(&mut self, id: u64) {
        if self.sessions.get(&id).is_some_and(Session::is_closed) {
            self.forget(id);
            self.status.closed += 1;
            self.events.push_back(SessionEvent::Closed(self.handle_of(id)));
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(session) = self.sessions.remove(&id)
            && !matches!(session.state, State::Over(_))
        {
            self.buffered -= session.out.buffered();
            self.granted -= session.inc.window();
        }
    }

    /// The peer is another incarnation, stopped, or is to be forgotten: nothing is left of any
    /// session, and nobody is told but our own applications.
    pub(crate) fn end_all(&mut self, ending: Ending) {
        let sessions = std::mem::take(&mut self.sessions);
        for (number, session) in &sessions {
            if !matches!(session.state, State::Over(_)) {
                self.status.ended += 1;
                let id = self.handle_of(*number);
                self.events.push_back(SessionEvent::Ended(id, ending));
            }
        }
        *self = Self {
            era: self.era.wrapping_add(1),
            events: std::mem::take(&mut self.events),
            status: std::mem::take(&mut self.status),
            usable: self.usable,
            usable_since: self.usable_since,
            ..Self::empty(self.ours, self.limits.clone())
        };
    }

    /// All sessions end because nobody is there any more; ids are not used again.
    pub(crate) fn stop(&mut self, ending: Ending) {
        for number in self.sessions.keys().copied().collect::<Vec<_>>() {
            let over = self.is(number, |state| matches!(state, State::Over(_)));
            self.forget(number);
            if !over {
                self.status.ended += 1;
                let id = self.handle_of(number);
                self.events.push_back(SessionEvent::Ended(id, ending));
            }
        }
    }

    fn refuse(&mut self, id: u64, reason: Refusal, mut detail: String) {
        let mut end = detail.len().min(DETAIL_MAX);
        while !detail.is_char_boundary(end) {
            end -= 1;
        }
        detail.truncate(end);
        self.status.refused += 1;
        if self.refusals.len() >= REFUSALS_MAX {
            self.refusals.pop_first();
        }
        self.refusals.insert(id, (reason, detail.clone()));
        self.answer_now(Answer::Refused(id, reason, detail));
    }

    fn answer(&mut self, now: Time, answer: Answer) {
        self.lazy_at = self.lazy_at.min(now + LAZY);
        self.answer_now(answer);
    }

    fn answer_now(&mut self, answer: Answer) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push_back(answer);
        }
    }

    // --- rows ----------------------------------------------------------------------------------

    /// It has something to say besides data.
    fn speak(&mut self, id: u64) {
        if let Some(session) = self.sessions.get_mut(&id)
            && !std::mem::replace(&mut session.urgent, true)
        {
            self.urgent.push_back(id);
        }
    }

    fn acknowledge(&mut self, now: Time, id: u64, urgent: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.says_ack = true;
        if urgent {
            self.speak(id);
        } else if !std::mem::replace(&mut session.lazy, true) {
            self.lazy.push(id);
            self.lazy_at = self.lazy_at.min(now + LAZY);
        }
    }

    /// It may have data for its path.
    fn ready(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(path) = session.path.map(at) else { return };
        if matches!(session.state, State::Open)
            && session.out.peek(1).is_some()
            && !std::mem::replace(&mut session.queued[path], true)
        {
            self.rings[path].push_back(id);
        }
    }

    // --- paths ---------------------------------------------------------------------------------

    /// Which paths may be used now: network, storage. And how long a carrier is given before its
    /// frames are sent again.
    pub(crate) fn paths(&mut self, now: Time, usable: [bool; 2], patience: [Duration; 2]) {
        self.patience = patience;
        let before = std::mem::replace(&mut self.usable, usable);
        for path in PATHS {
            if usable[at(path)] && !before[at(path)] {
                self.usable_since[at(path)] = now;
            } else if before[at(path)] && !usable[at(path)] {
                self.broken(now, path);
            }
        }
        if usable == [false; 2] {
            self.unreachable_since.get_or_insert(now);
        } else {
            self.unreachable_since = None;
        }
        if usable != before {
            self.assign_all(now);
        }
    }

    fn assign_all(&mut self, now: Time) {
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        for id in ids {
            let Some(session) = self.sessions.get(&id) else { continue };
            let first = session.preference.first();
            // Back to the preferred path only when it has been good for a while.
            let hold = session.path.is_some_and(|p| p != first && self.usable[at(p)])
                && now.since(self.usable_since[at(first)]) < RETURN_AFTER;
            if hold {
                self.tick_at = self.tick_at.min(self.usable_since[at(first)] + RETURN_AFTER);
            } else {
                self.assign(id);
            }
        }
    }

    fn assign(&mut self, id: u64) {
        let usable = self.usable;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let preference = session.preference;
        let first = preference.first();
        let other = if first == Path::Network { Path::Storage } else { Path::Network };
        let path = [first, other].into_iter().find(|p| usable[at(*p)] && preference.allows(*p));
        if path == session.path {
            return;
        }
        session.path = path;
        session.deficit = 0;
        if !matches!(session.state, State::Over(_)) {
            self.events.push_back(SessionEvent::Moved(self.handle_of(id), path));
        }
        self.ready(id);
    }

    /// The carrier said that what it was given is gone.
    pub(crate) fn broken(&mut self, now: Time, path: Path) {
        let owed = self.carriers[at(path)].give_up(now);
        self.status.carrier_losses += u64::from(owed);
        self.lost(path);
    }

    /// Frames of a path are lost: what may have been in them is said again.
    fn lost(&mut self, path: Path) {
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        for id in ids {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if std::mem::take(&mut session.carried[at(path)]) && session.out.is_unconfirmed() {
                session.out.rewind();
            }
            self.repeat(id);
            self.ready(id);
        }
    }

    /// Says again whatever a session may not have been heard to say.
    fn repeat(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match session.state {
            State::Opening(_) | State::Over(_) => session.says_state = true,
            State::Open => session.says_ack = true,
            State::Offered => return,
        }
        self.speak(id);
    }

    // --- time ----------------------------------------------------------------------------------

    /// Runs due timers. `drained`: nothing lies in the outbox of the lane, so that what was put
    /// there is either read by the peer or lost.
    pub(crate) fn tick(&mut self, now: Time, drained: bool) {
        for path in PATHS {
            if now < self.carriers[at(path)].stalls_at(self.patience[at(path)]) {
                continue;
            }
            self.carriers[at(path)].stalled(now);
            // What waits in the outbox is late for a reason that more copies would not cure.
            if path == Path::Network || drained {
                self.broken(now, path);
            }
        }
        if now >= self.lazy_at {
            self.lazy_at = Time::NEVER;
            for id in std::mem::take(&mut self.lazy) {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.lazy = false;
                    if session.says_ack {
                        self.speak(id);
                    }
                }
            }
            self.receipts_due = true;
        }
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            self.look_at_all(now);
        }
    }

    fn look_at_all(&mut self, now: Time) {
        let gone = self.unreachable_since.is_some_and(|at| now.since(at) >= self.limits.timeout);
        self.assign_all(now);
        let quiet = [0, 1].map(|path| self.carriers[path].silence(now).is_zero());
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        for id in ids {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let over = matches!(session.state, State::Over(_));
            let lingered = session.left_at.is_some_and(|at| now.since(at) >= LINGER);
            if gone && !over {
                self.end(id, Ending::TimedOut, true);
                continue;
            }
            if lingered && session.out.is_complete() && !session.inc.is_complete() {
                self.end(id, Ending::Unread, true);
                continue;
            }
            if !session.waits() {
                session.waits_since = None;
                session.silent_since = None;
                continue;
            }
            let since = *session.waits_since.get_or_insert(now);
            let silent = now.since(*session.silent_since.get_or_insert(now));
            if silent >= self.limits.timeout && !over {
                self.end(id, Ending::TimedOut, true);
            } else if now.since(since) >= TICK {
                match session.state {
                    State::Opening(_) | State::Over(_) => self.repeat(id),
                    // An empty piece asks for the window, or whether the rest was taken.
                    _ if session.out.is_idle() || session.out.is_complete() => {
                        session.asks = true;
                        self.speak(id);
                    }
                    // It all arrived, yet the peer does not have it: it had to drop something.
                    _ if (0..2).all(|path| quiet[path] || !session.carried[path]) => {
                        session.out.rewind();
                        self.ready(id);
                    }
                    _ => {}
                }
            }
        }
    }

    // --- frames --------------------------------------------------------------------------------

    /// Everything but data goes this way.
    fn spoken_by(&self) -> Option<Path> {
        PATHS.into_iter().find(|p| self.usable[at(*p)])
    }

    /// The next frame for a path: `number` is its number, `room` the bytes its body may have. The
    /// body lies behind room for the header.
    pub(crate) fn poll(
        &mut self,
        now: Time,
        path: Path,
        number: u64,
        room: usize,
    ) -> Option<Vec<u8>> {
        let speaks = self.spoken_by() == Some(path);
        let silent =
            !speaks || self.answers.is_empty() && self.urgent.is_empty() && !self.receipts_due;
        if silent && self.rings[at(path)].is_empty() || room < 2 * SEGMENT_MAX {
            return None;
        }
        let most = HEADER + room;
        let mut body =
            Vec::with_capacity(if self.rings[at(path)].is_empty() { 1024 } else { most + TAG });
        body.resize(HEADER, 0);
        let mut awaited = false;
        if speaks {
            self.put_receipts(&mut body);
            self.put_answers(&mut body, most);
            awaited |= self.put_statements(path, &mut body, most);
        }
        awaited |= self.put_data(path, &mut body, most);
        if body.len() == HEADER {
            return None;
        }
        self.carriers[at(path)].put(now, number, body.len(), awaited);
        Some(body)
    }

    fn put_receipts(&mut self, body: &mut Vec<u8>) {
        self.receipts_due = false;
        for path in PATHS {
            if let Some((highest, count)) = self.carriers[at(path)].receipt() {
                let storage = path == Path::Storage;
                stream::write(&Segment::Seen { storage, highest, count }, body);
            }
        }
    }

    fn put_answers(&mut self, body: &mut Vec<u8>, most: usize) {
        while body.len() + SEGMENT_MAX <= most
            && let Some(answer) = self.answers.pop_front()
        {
            match answer {
                Answer::Bye(id) => stream::write(&Segment::Bye { id }, body),
                Answer::Refused(id, reason, detail) => {
                    stream::write(&Segment::Refused { id, reason, detail: &detail }, body);
                }
            }
        }
    }

    /// True when something is to be acknowledged.
    fn put_statements(&mut self, path: Path, body: &mut Vec<u8>, most: usize) -> bool {
        let mut awaited = false;
        while body.len() + 2 * SEGMENT_MAX <= most
            && let Some(id) = self.urgent.pop_front()
        {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.urgent = false;
            if std::mem::take(&mut session.says_state) {
                let window = session.inc.window();
                match &session.state {
                    State::Opening(service) => {
                        let preference = session.preference;
                        let open = Segment::Open { id, preference, window, service };
                        stream::write(&open, body);
                    }
                    State::Over(ending) => {
                        stream::write(&Segment::Reset { id, ending: *ending }, body);
                    }
                    State::Offered | State::Open => {}
                }
                awaited = true;
            }
            if !matches!(session.state, State::Open) {
                continue;
            }
            if std::mem::take(&mut session.says_accepted) {
                let window = session.inc.limit();
                stream::write(&Segment::Accepted { id, window }, body);
                awaited = true;
            }
            if std::mem::take(&mut session.says_ack) {
                let ack = Segment::Ack {
                    id,
                    received: session.inc.received(),
                    taken: session.inc.taken(),
                    limit: session.inc.limit(),
                    complete: session.inc.is_complete(),
                };
                session.inc.told();
                stream::write(&ack, body);
            }
            if std::mem::take(&mut session.asks) {
                let (offset, last) = (session.out.received(), false);
                stream::write(&Segment::Data { id, offset, last, length: 0 }, body);
                session.carried[at(path)] = true;
                awaited = true;
            }
            self.close_if_done(id);
        }
        awaited
    }

    fn put_data(&mut self, path: Path, body: &mut Vec<u8>, most: usize) -> bool {
        let mut awaited = false;
        while most.saturating_sub(body.len()) > SEGMENT_MAX
            && let Some(id) = self.rings[at(path)].pop_front()
        {
            let alone = self.rings[at(path)].is_empty();
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.queued[at(path)] = false;
            if session.path != Some(path) || !matches!(session.state, State::Open) {
                continue;
            }
            // Room for the largest head of a piece.
            let room = most - body.len() - 32;
            session.deficit = (session.deficit + QUANTUM).min(2 * QUANTUM);
            let share = if alone { room } else { session.deficit.min(room) };
            let Some(piece) = session.out.peek(share) else {
                session.deficit = 0;
                continue;
            };
            let length = u32::try_from(piece.length).unwrap_or(0);
            let (offset, last) = (piece.offset, piece.last);
            stream::write(&Segment::Data { id, offset, last, length }, body);
            session.out.put(piece, body);
            session.sent.add(path, piece.length);
            session.carried[at(path)] = true;
            session.deficit = session.deficit.saturating_sub(piece.length);
            awaited = true;
            match path {
                Path::Network => self.status.network_bytes += piece.length as u64,
                Path::Storage => self.status.storage_bytes += piece.length as u64,
            }
            if session.out.peek(1).is_some() {
                session.queued[at(path)] = true;
                self.rings[at(path)].push_back(id);
            } else {
                session.deficit = 0;
            }
        }
        awaited
    }

    /// What applications are to be told.
    pub(crate) fn event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }
}
