//! Applications that talk over sessions, and what must come of it.
//!
//! A talk is one session: its opener and its acceptor write so many bytes, in pieces of random
//! size, take what comes at their own pace, finish, and now and then give up in the middle. Every
//! byte is made from the talk's number, its direction and its place, so that a byte that is lost,
//! doubled, swapped or invented shows at once.
//!
//! | | |
//! | --- | --- |
//! | S1 | bytes come once, in order, unchanged, and only what was written |
//! | S2 | an end is told when everything before it was |
//! | S3 | a session that closes has delivered both ways all there was |
//! | S4 | a session that ends before has a reason: an application's, a restart, a long outage |
//! | S5 | when all is healed every session comes to its end, and nothing is left of it |
//! | S6 | windows and bounds hold; nobody breaks the rules |

use std::collections::{BTreeMap, BTreeSet};

use failover::{
    Input, Node, NodeId, Time,
    session::{
        Ending, Preference, Refusal, SessionEvent, SessionId, SessionLimits, SessionOrder,
        SessionStatus,
    },
    turn,
};

use crate::{
    host::{Hands, node_id},
    rng::Rng,
};

/// Sessions of one kind that are open at the same time.
const ABREAST: usize = 4;
/// A restart may still end sessions that were opened so long after it: a peer that heard nothing
/// has to find out.
const AFTERMATH: u64 = 70_000_000;

/// Sessions of one kind between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Talk {
    /// Opener.
    pub from: u8,
    /// Acceptor.
    pub to: u8,
    /// Which path they prefer.
    pub preference: Preference,
    /// Between two openings, microseconds.
    pub every: u64,
    /// Bytes each way at most.
    pub bytes: u64,
    /// Bytes of a write at most.
    pub piece: u64,
}

impl Talk {
    /// Of random shape.
    pub fn random(from: u8, to: u8, rng: &mut Rng) -> Self {
        let preference = [
            Preference::NetworkFirst,
            Preference::NetworkFirst,
            Preference::StorageFirst,
            Preference::NetworkOnly,
            Preference::StorageOnly,
        ][rng.index(5)];
        let bytes = rng.spread(10, 400_000);
        Self {
            from,
            to,
            preference,
            every: rng.spread(50_000, 3_000_000),
            bytes,
            piece: rng.spread(1, 20_000),
        }
    }
}

/// One direction of one session.
#[derive(Debug, Default)]
struct Book {
    written: u64,
    finished: bool,
    got: u64,
    told_finished: bool,
}

/// One session, as an all-knowing observer sees it.
#[derive(Debug, Default)]
struct Truth {
    ends: (u8, u8),
    /// Opener to acceptor, acceptor to opener.
    books: [Book; 2],
    given_up: bool,
    refused: bool,
    preference: Preference,
    opened_at: u64,
}

/// One end of a session at its application.
#[derive(Debug)]
struct Half {
    talk: u64,
    /// 0: the opener.
    side: usize,
    id: SessionId,
    peer: NodeId,
    open: bool,
    /// Still to be written.
    left: u64,
    piece: u64,
    untaken: u64,
    /// Takes little at a time.
    slow: bool,
    finished: bool,
    left_it: bool,
}

/// The applications of one host's daemon.
#[derive(Debug, Default)]
pub(crate) struct Talks {
    halves: BTreeMap<(NodeId, SessionId), Half>,
    opening: BTreeMap<u64, (NodeId, Talk)>,
    /// Given up a moment ago: what was said before they were is still on its way.
    deaf: BTreeSet<(NodeId, SessionId)>,
    /// By kind: when the next one opens.
    next_open: Vec<u64>,
    pub(crate) due: u64,
}

/// All sessions of a run.
#[derive(Debug, Default)]
pub(crate) struct Talking {
    talks: Vec<Truth>,
    /// When a daemon of that node last started or stopped, or met somebody anew.
    restarts: BTreeMap<u8, u64>,
    /// Somebody has a second daemon: its peers see one restart after the other.
    twins: bool,
    pub(crate) closed: u64,
    pub(crate) ended: u64,
    pub(crate) bytes: u64,
}

/// A broken promise: which, and what was seen.
pub(crate) type Broken = (&'static str, String);

fn byte(talk: u64, side: usize, offset: u64) -> u8 {
    let mixed = (talk << 1 | side as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(offset.wrapping_mul(0xd134_2543_de82_ef95));
    mixed.to_be_bytes()[1]
}

impl Talking {
    pub(crate) fn new(twins: bool) -> Self {
        Self { twins, ..Self::default() }
    }

    /// A daemon of that node started, stopped or met a peer anew.
    pub(crate) fn restarted(&mut self, now: u64, node: u8) {
        self.restarts.insert(node, now);
    }

    fn excuses(&self, talk: &Truth, ending: Ending, works: bool) -> bool {
        let restarted =
            |node| self.restarts.get(&node).is_some_and(|at| at + AFTERMATH >= talk.opened_at);
        let restarted = self.twins || restarted(talk.ends.0) || restarted(talk.ends.1);
        match ending {
            Ending::Reset | Ending::Unread => talk.given_up,
            Ending::PeerRestarted | Ending::Closed => restarted,
            Ending::TimedOut => restarted || !works,
            Ending::Violation | Ending::PeerStopped => false,
        }
    }
}

impl Talks {
    pub(crate) fn is_idle(&self) -> bool {
        self.halves.is_empty() && self.opening.is_empty()
    }

    /// Applications do something, if it is time; `on`: they open new sessions.
    pub(crate) fn act(
        &mut self,
        now: u64,
        shown: Time,
        (host, on): (u8, bool),
        kinds: &[Talk],
        (node, hands): (&mut Node, &mut Hands<'_>),
        talking: &mut Talking,
    ) {
        if now < self.due {
            return;
        }
        self.deaf.clear();
        self.due = now + hands.rng.range(1_000, if on { 50_000 } else { 10_000 });
        self.next_open.resize(kinds.len(), 0);
        for (kind, talk) in kinds.iter().enumerate().filter(|(_, t)| t.from == host) {
            if !on || now < self.next_open[kind] {
                continue;
            }
            self.next_open[kind] = now + talk.every / 2 + hands.rng.below(talk.every + 1);
            let peer = node_id(talk.to);
            let abreast = self.halves.values().filter(|h| h.side == 0 && h.peer == peer).count();
            if abreast + self.opening.len() < ABREAST * kinds.len() {
                self.open(now, shown, *talk, (node, hands), talking);
            }
        }
        let keys: Vec<(NodeId, SessionId)> = self.halves.keys().copied().collect();
        for key in keys {
            if let Some(half) = self.halves.get_mut(&key)
                && half.act(shown, on, (node, hands), talking)
            {
                self.halves.remove(&key);
                self.deaf.insert(key);
            }
        }
    }

    fn open(
        &mut self,
        now: u64,
        shown: Time,
        talk: Talk,
        (node, hands): (&mut Node, &mut Hands<'_>),
        talking: &mut Talking,
    ) {
        let token = talking.talks.len() as u64;
        talking.talks.push(Truth {
            ends: (talk.from, talk.to),
            preference: talk.preference,
            opened_at: now,
            ..Truth::default()
        });
        self.opening.insert(token, (node_id(talk.to), talk));
        let order = SessionOrder::Open {
            token,
            service: format!("{token} {}", talk.bytes),
            preference: talk.preference,
        };
        turn(node, shown, Input::Session { peer: node_id(talk.to), order }, hands);
    }

    /// The daemon says something to an application. `works`: by preference, whether a path they may
    /// take has worked for long.
    pub(crate) fn hear(
        &mut self,
        (host, peer): (u8, NodeId),
        event: SessionEvent,
        works: impl Fn(Preference) -> bool,
        rng: &mut Rng,
        talking: &mut Talking,
    ) -> Result<(), Broken> {
        let id = match &event {
            SessionEvent::Opening { token, id } => {
                if let Some((_, talk)) = self.opening.remove(token) {
                    self.begin(*token, 0, (peer, *id), (talk.bytes, talk.piece), rng);
                }
                return Ok(());
            }
            SessionEvent::NotOpened { token, .. } => {
                self.opening.remove(token);
                return Ok(());
            }
            SessionEvent::Offered { id, service, preference } => {
                let mut words = service.split(' ').map(str::parse::<u64>);
                let (Some(Ok(talk)), Some(Ok(bytes))) = (words.next(), words.next()) else {
                    return Err(("S1 sessions", format!("host {host} is offered {service:?}")));
                };
                let number = usize::try_from(talk).unwrap_or(usize::MAX);
                let truth = talking.talks.get(number).filter(|t| t.preference == *preference);
                if truth.is_none_or(|t| t.ends.0 != peer.get()) {
                    return Err(("S1 sessions", format!("{peer} never offered {service:?}")));
                }
                let piece = rng.spread(1, 20_000);
                self.begin(talk, 1, (peer, *id), (bytes, piece), rng);
                return Ok(());
            }
            SessionEvent::Accepted(id)
            | SessionEvent::Refused(id, ..)
            | SessionEvent::Data(id, _)
            | SessionEvent::Finished(id, _)
            | SessionEvent::Progress { id, .. }
            | SessionEvent::Moved(id, _)
            | SessionEvent::Ended(id, _)
            | SessionEvent::Closed(id) => *id,
        };
        let key = (peer, id);
        let Some(half) = self.halves.get_mut(&key) else {
            return match event {
                SessionEvent::Moved(..) => Ok(()),
                _ if self.deaf.contains(&key) => Ok(()),
                _ => Err(("S1 sessions", format!("host {host}: {event:?} of a session it left"))),
            };
        };
        let number = usize::try_from(half.talk).unwrap_or(usize::MAX);
        let (side, talk) = (half.side, half.talk);
        let Some(truth) = talking.talks.get_mut(number) else { return Ok(()) };
        let tell = |what: &str| format!("host {host}, talk {talk} with {peer}: {what}");
        match event {
            SessionEvent::Accepted(_) => half.open = true,
            SessionEvent::Refused(_, reason, _) => {
                truth.refused = true;
                self.halves.remove(&key);
                if reason == Refusal::NoSuchService {
                    return Err(("S1 sessions", tell("refused for a reason nobody gave")));
                }
            }
            SessionEvent::Data(_, bytes) => {
                let book = &mut truth.books[1 - side];
                let wrong =
                    bytes.iter().zip(book.got..).any(|(b, at)| *b != byte(talk, 1 - side, at));
                if wrong || book.got + bytes.len() as u64 > book.written {
                    let detail = tell(&format!("wrong bytes from {} on", book.got));
                    return Err(("S1 sessions", detail));
                }
                book.got += bytes.len() as u64;
                half.untaken += bytes.len() as u64;
                talking.bytes += bytes.len() as u64;
            }
            SessionEvent::Finished(..) => {
                let book = &mut truth.books[1 - side];
                if !book.finished || book.got != book.written || book.told_finished {
                    return Err(("S2 ends", tell(&format!("{book:?}"))));
                }
                book.told_finished = true;
            }
            SessionEvent::Progress { received, taken, .. } => {
                let book = &truth.books[side];
                if received > book.written
                    || taken > received
                    || received > book.got && !truth.given_up
                {
                    return Err(("S1 sessions", tell(&format!("{received} of {book:?}"))));
                }
            }
            SessionEvent::Closed(_) => {
                talking.closed += 1;
                self.halves.remove(&key);
                let whole = |b: &Book| b.finished && b.got == b.written;
                if !truth.given_up && !truth.books.iter().all(whole) {
                    return Err(("S3 closed", tell(&format!("{:?}", truth.books))));
                }
            }
            SessionEvent::Ended(_, ending) => {
                talking.ended += 1;
                self.halves.remove(&key);
                let truth = &talking.talks[number];
                if !talking.excuses(truth, ending, works(truth.preference)) {
                    return Err(("S4 endings", tell(&format!("{ending:?}"))));
                }
                talking.talks[number].given_up = true;
            }
            SessionEvent::Moved(..)
            | SessionEvent::Opening { .. }
            | SessionEvent::NotOpened { .. }
            | SessionEvent::Offered { .. } => {}
        }
        Ok(())
    }

    fn begin(
        &mut self,
        talk: u64,
        side: usize,
        (peer, id): (NodeId, SessionId),
        (bytes, piece): (u64, u64),
        rng: &mut Rng,
    ) {
        let half = Half {
            talk,
            side,
            id,
            peer,
            open: false,
            left: rng.spread(1, bytes + 1) - 1,
            piece,
            untaken: 0,
            slow: rng.chance(200_000),
            finished: false,
            left_it: false,
        };
        self.halves.insert((peer, id), half);
    }
}

impl Half {
    /// True when the application has nothing more to do with it.
    fn act(
        &mut self,
        shown: Time,
        on: bool,
        (node, hands): (&mut Node, &mut Hands<'_>),
        talking: &mut Talking,
    ) -> bool {
        let number = usize::try_from(self.talk).unwrap_or(usize::MAX);
        let Some(truth) = talking.talks.get_mut(number) else { return true };
        let (peer, id) = (self.peer, self.id);
        let say = |node: &mut Node, hands: &mut Hands<'_>, order| {
            turn(node, shown, Input::Session { peer, order }, hands);
        };
        if self.side == 1 && !self.open {
            if on && hands.rng.chance(100_000) {
                truth.refused = true;
                let detail = "not today".to_owned();
                say(node, hands, SessionOrder::Refuse(id, Refusal::Rejected, detail));
                return true;
            }
            self.open = true;
            say(node, hands, SessionOrder::Accept(id));
        }
        if self.left_it {
            return false;
        }
        if hands.rng.chance(1_000) {
            truth.given_up = true;
            self.left_it = true;
            if hands.rng.chance(500_000) {
                truth.books[self.side].finished = true;
                say(node, hands, SessionOrder::Finish(id));
                say(node, hands, SessionOrder::Abandon(id));
                return false;
            }
            say(node, hands, SessionOrder::Reset(id));
            return true;
        }
        // Takes.
        let most = if self.slow && on { 2_000 } else { 200_000 };
        let takes = if on { hands.rng.below(most + 1) } else { most }.min(self.untaken);
        if takes > 0 {
            self.untaken -= takes;
            say(node, hands, SessionOrder::Take(id, takes));
        }
        // Writes.
        for _ in 0..hands.rng.below(5) {
            let room = node.session_room(peer, id) as u64;
            let piece = hands.rng.range(1, self.piece).min(self.left).min(room);
            if piece == 0 {
                break;
            }
            let book = &mut truth.books[self.side];
            let bytes: Vec<u8> = (book.written..book.written + piece)
                .map(|at| byte(self.talk, self.side, at))
                .collect();
            book.written += piece;
            self.left -= piece;
            say(node, hands, SessionOrder::Write(id, bytes.into()));
        }
        if !on {
            // Whoever writes no more says so.
            self.left = 0;
        }
        if self.left == 0 && !self.finished && (self.side == 0 || self.open) {
            self.finished = true;
            truth.books[self.side].finished = true;
            say(node, hands, SessionOrder::Finish(id));
        }
        false
    }
}

/// Bounds that hold at all times.
pub(crate) fn bounds(status: &SessionStatus) -> Option<Broken> {
    let limits = SessionLimits::default();
    let held = status.open <= limits.sessions_max as u64
        && status.granted_bytes <= limits.granted_max
        // Who has little may write a little more.
        && status.buffered_bytes <= (limits.buffered_max as u64) * 2;
    if status.violations > 0 || !held {
        return Some(("S6 bounds", format!("{status:?}")));
    }
    None
}
