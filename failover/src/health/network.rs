//! The network toward one peer, each direction for itself.
//!
//! *Inbound*: we hear its beats in time. *Outbound*: it tells us that it hears ours, by whichever
//! path its report comes. While we hear the peer by the network its reports are at most a beat
//! old. When we do not, most networks have died both ways, so inbound's verdict stands for both,
//! unless a report by storage says that we were heard *after* we should have heard the peer: a
//! report of what was heard before the silence began proves nothing about it.
//!
//! Data counts, not only beats: when frames sent by the network leave no trace there while beats
//! pass (a hole for large packets, loss in one direction, collapse), outbound is suspect, too. When
//! only some frames stay away, it is never worse than that: the others still get through.

use std::time::Duration;

use super::{Judged, OWN_LATENESS, Reason, Verdict, lateness::Lateness};
use crate::{
    Path, Time,
    beat::{Beat, Echo},
    canary::{Bug, planted},
    clock::micros,
};

/// Lateness is never waited out longer than this.
const PATIENCE_MAX: Duration = Duration::from_millis(500);
/// A refused send raises suspicion for as long.
const HINT: Duration = Duration::from_millis(60);
/// A report by storage is believed for as long: pulses come every 100 ms.
const REPORT_LIFE: Duration = Duration::from_millis(300);
/// A report's moments carry the transit of a beat and of the report.
const VOUCH_SLACK: Duration = Duration::from_millis(3);
/// Data without a trace is given up after this, although beats pass.
const STALL_DOWN: Duration = Duration::from_millis(500);
/// The first beat after the due moment by which a storage reader should be awake.
const AWAKE: Duration = Duration::from_millis(4);

/// What the verdicts depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) suspect_floor: Duration,
    pub(crate) down_after: Duration,
    pub(crate) configured: bool,
}

/// The network toward one peer.
#[derive(Debug)]
pub(crate) struct Network {
    settings: Settings,
    lateness: Lateness,
    /// Lateness beyond which the peer is suspected, and given up: asked for many times a turn.
    suspect_after: Duration,
    down_after: Duration,
    /// When the last authentic thing came, and when the next beat is due.
    heard_at: Option<Time>,
    due: Time,
    /// The newest beat: its number, stamp and arrival, for echoes.
    newest: Option<(u64, Time)>,
    their_interval: Duration,
    our_interval: Duration,
    /// The interval before the present one, and until when the peer may still go by it.
    former_interval: (Duration, Time),
    /// Our own lateness was excused since the peer was last heard: once is enough, or a loop that
    /// is always late would never blame anybody.
    excused: bool,
    /// Inbound has not been up since.
    silent_since: Option<Time>,
    /// The peer heard us at about this moment, and said so at that one.
    confirmed_at: Time,
    reported_at: Time,
    reported_by: Path,
    link_down_since: Option<Time>,
    send_error_at: Option<Time>,
    /// How long data has left no trace, as the link says.
    stall: Duration,
    stall_limit: Duration,
    /// Some frame stays unacknowledged, whatever becomes of the others.
    stuck: bool,
    /// Age of the peer's turn loop, as it said.
    their_loop_age: Duration,
    goodbye: bool,
    rtt: Option<Duration>,
    /// Our clock minus the peer's, at most: least seen in two windows.
    offset: Offset,
}

/// Least difference of two clocks over the last minute or two: clocks drift apart slowly, and the
/// least delay seen is the best guess.
///
/// A clock may also have stood still (a virtual machine that was moved, a machine that slept). Ours
/// shows at once as a smaller difference. The peer's shows in round trips: what came cannot have
/// been longer under way than the whole round was, so the true difference is not smaller than the
/// one seen now less the round.
#[derive(Debug, Default)]
struct Offset {
    older: Option<i128>,
    younger: Option<i128>,
    began: Time,
}

impl Offset {
    const WINDOW: Duration = Duration::from_secs(60);

    fn learn(&mut self, now: Time, difference: i128) {
        if now.since(self.began) > Self::WINDOW {
            self.began = now;
            self.older = self.younger.take();
        }
        self.younger = Some(self.younger.map_or(difference, |y| y.min(difference)));
    }

    /// `difference` was seen `at` the end of the round trip that `echo` tells of.
    fn bound(&mut self, difference: i128, at: Time, echo: Echo) {
        // Two quartz clocks part by up to 200 us in each second they are compared over.
        let drift = i128::from(micros(echo.age)) / 5_000 + 1_000;
        let least = difference - i128::from(micros(echo.round(at))) - drift;
        if self.best().is_some_and(|best| best < least) && !planted(Bug::TrustOldClock) {
            self.older = None;
            self.younger = Some(least);
        }
    }

    fn best(&self) -> Option<i128> {
        [self.older, self.younger].into_iter().flatten().min()
    }
}

impl Network {
    pub(crate) fn new(settings: Settings) -> Self {
        let mut network = Self {
            settings,
            lateness: Lateness::default(),
            suspect_after: Duration::ZERO,
            down_after: Duration::ZERO,
            heard_at: None,
            due: Time::ZERO,
            newest: None,
            their_interval: Duration::from_millis(50),
            our_interval: Duration::from_millis(50),
            former_interval: (Duration::ZERO, Time::ZERO),
            excused: false,
            silent_since: Some(Time::ZERO),
            confirmed_at: Time::ZERO,
            reported_at: Time::ZERO,
            reported_by: Path::Network,
            link_down_since: None,
            send_error_at: None,
            stall: Duration::ZERO,
            stall_limit: Duration::from_millis(30),
            stuck: false,
            their_loop_age: Duration::ZERO,
            goodbye: false,
            rtt: None,
            offset: Offset::default(),
        };
        network.set_patience();
        network
    }

    fn set_patience(&mut self) {
        let usual = self.lateness.usual() * 3 / 2;
        self.suspect_after = usual.max(self.settings.suspect_floor).min(PATIENCE_MAX);
        self.down_after = (self.suspect_after + self.settings.down_after)
            .min(PATIENCE_MAX + self.settings.down_after);
    }

    /// A new incarnation of the peer: what the old one said is void.
    pub(crate) fn forget(&mut self) {
        let settings = self.settings;
        let link_down_since = self.link_down_since;
        *self = Self { link_down_since, our_interval: self.our_interval, ..Self::new(settings) };
    }

    pub(crate) fn configure(&mut self, settings: Settings) {
        self.settings = settings;
        self.set_patience();
    }

    pub(crate) fn set_our_interval(&mut self, now: Time, interval: Duration) {
        self.former_interval = (self.our_interval, now + self.our_interval + interval);
        self.our_interval = interval;
    }

    // --- facts ---------------------------------------------------------------------------------

    /// A beat came by the network, at `at`.
    pub(crate) fn beat(&mut self, at: Time, beat: &Beat) {
        let good = self.inbound(at).0 == Verdict::Up;
        if good && self.heard_at.is_some() {
            self.lateness.learn(at.since(self.due));
            self.set_patience();
        }
        self.newest = Some((beat.sent_at.micros(), at));
        self.their_interval = beat.next_due;
        self.heard(at);
        if let Some(echo) = beat.heard_network {
            let round = echo.round(at);
            // A stamp of another incarnation of ours, or of a long pause, is no measurement.
            if round < Duration::from_secs(10) {
                self.rtt = Some(self.rtt.map_or(round, |rtt| (rtt * 7 + round) / 8));
            }
        }
        self.said(at, Path::Network, beat, beat.heard_network);
    }

    /// A pulse came by storage; `heard` is the newest of ours that its sender got the same way.
    pub(crate) fn pulse(&mut self, now: Time, beat: &Beat, heard: Option<Echo>) {
        self.said(now, Path::Storage, beat, heard);
    }

    /// What a report says was so when it left: it may have lain in storage for seconds since.
    fn left(&self, at: Time, by: Path, beat: &Beat) -> Time {
        let under_way = (by == Path::Storage).then(|| self.age(at, beat.sent_at)).flatten();
        at - under_way.unwrap_or_default()
    }

    fn said(&mut self, at: Time, by: Path, beat: &Beat, heard: Option<Echo>) {
        self.goodbye = beat.goodbye;
        self.their_loop_age = beat.loop_age;
        let difference = i128::from(at.micros()) - i128::from(beat.sent_at.micros());
        self.offset.learn(at, difference);
        if let Some(heard) = heard {
            self.offset.bound(difference, at, heard);
        }
        let at = self.left(at, by, beat);
        if at >= self.reported_at {
            self.reported_at = at;
            self.reported_by = by;
        }
        if let Some(echo) = beat.heard_network {
            self.confirmed_at = self.confirmed_at.max(at - echo.age);
        }
    }

    /// Anything authentic came by the network.
    pub(crate) fn heard(&mut self, at: Time) {
        if self.heard_at.is_none_or(|before| at > before) {
            self.heard_at = Some(at);
            self.due = self.due.max(at + self.their_interval);
            self.excused = false;
        }
    }

    /// Our own link toward the peer went down or came up.
    pub(crate) fn link(&mut self, now: Time, up: bool) {
        self.link_down_since = (!up).then(|| self.link_down_since.unwrap_or(now));
    }

    /// A send was refused, or an ICMP error came back.
    pub(crate) const fn send_error(&mut self, now: Time) {
        self.send_error_at = Some(now);
    }

    /// How long data sent by the network has left no trace there, and how old a frame is of which
    /// several copies have not.
    pub(crate) fn data_silence(&mut self, silence: Duration, stuck: Duration) {
        // A loop that was late when the last beat left is later still by now.
        let busy = self.their_loop_age > Duration::from_millis(5);
        let excuse = self.their_loop_age + if busy { self.their_interval } else { Duration::ZERO };
        self.stall = silence.saturating_sub(excuse);
        self.stall_limit =
            self.rtt.unwrap_or_default().saturating_mul(4).max(Duration::from_millis(30));
        // A silence shows earlier, and by itself.
        self.stuck = stuck.saturating_sub(excuse) > self.stall_limit * 2;
    }

    /// Our own loop woke later than it wanted: what waited in the meantime was read before this,
    /// but nobody could have beaten into a process that was stopped.
    pub(crate) fn excuse(&mut self, now: Time, late: Duration) {
        if late > OWN_LATENESS && self.silent_since.is_none() && !self.excused {
            self.excused = true;
            // Not by `late`: the beats that waited may have been read already.
            self.due = self.due.max(now);
        }
    }

    // --- verdicts ------------------------------------------------------------------------------

    fn by_lateness(&self, late: Duration, reason: Reason) -> Judged {
        if late > self.down_after {
            (Verdict::Down, reason)
        } else if late > self.suspect_after {
            (Verdict::Suspect, reason)
        } else {
            (Verdict::Up, Reason::None)
        }
    }

    /// Whether we hear the peer.
    pub(crate) fn inbound(&self, now: Time) -> Judged {
        if !self.settings.configured {
            return (Verdict::Disabled, Reason::NotConfigured);
        }
        if self.goodbye {
            return (Verdict::Down, Reason::Goodbye);
        }
        if self.heard_at.is_none() {
            return (Verdict::Down, Reason::NeverHeard);
        }
        if let Some(since) = self.link_down_since {
            let down = now.since(since) >= self.settings.down_after;
            return (if down { Verdict::Down } else { Verdict::Suspect }, Reason::LinkDown);
        }
        let judged = self.by_lateness(now.since(self.due), Reason::HeartbeatsMissed);
        match self.send_error_at {
            Some(at) if judged.0 == Verdict::Up && now.since(at) < HINT => {
                (Verdict::Suspect, Reason::SendErrors)
            }
            _ => judged,
        }
    }

    /// Whether the peer hears us.
    pub(crate) fn outbound(&self, now: Time) -> Judged {
        let inbound = self.inbound(now);
        let judged = match inbound.0 {
            Verdict::Disabled => return inbound,
            // Hearing proves nothing about being heard.
            Verdict::Up if self.confirmed_at == Time::ZERO => (Verdict::Down, Reason::NeverHeard),
            Verdict::Up if planted(Bug::ForgetOneWay) => inbound,
            Verdict::Up => self.reported(self.reported_at),
            Verdict::Suspect | Verdict::Down => {
                let fresh = self.reported_by == Path::Storage
                    && self.confirmed_at > self.due + VOUCH_SLACK
                    && now.since(self.reported_at) < REPORT_LIFE
                    && self.link_down_since.is_none()
                    && !self.goodbye;
                if fresh { self.reported(self.reported_at) } else { inbound }
            }
        };
        if planted(Bug::ForgetOneWay) {
            return judged;
        }
        // Receipts of a slow path are late, not missing.
        let stall_down = STALL_DOWN.max(self.stall_limit * 2);
        if judged.0 == Verdict::Up && self.stall > stall_down {
            (Verdict::Down, Reason::DataStalls)
        } else if judged.0 == Verdict::Up && self.stall > self.stall_limit {
            (Verdict::Suspect, Reason::DataStalls)
        } else if judged.0 == Verdict::Up && self.stuck {
            (Verdict::Suspect, Reason::FramesStuck)
        } else {
            judged
        }
    }

    fn reported(&self, at: Time) -> Judged {
        let (former, until) = self.former_interval;
        let usual = if at < until { self.our_interval.max(former) } else { self.our_interval };
        let late = at.since(self.confirmed_at).saturating_sub(usual + VOUCH_SLACK);
        self.by_lateness(late, Reason::PeerDoesNotHearUs)
    }

    /// Notes since when inbound is not up. Call once per turn, before the verdicts are used.
    pub(crate) fn update(&mut self, now: Time) {
        if self.inbound(now).0 == Verdict::Up {
            self.silent_since = None;
        } else {
            self.silent_since.get_or_insert(now);
        }
    }

    /// A beat is overdue, though nobody is suspected yet: time for storage readers to wake.
    pub(crate) fn is_late(&self, now: Time) -> bool {
        self.settings.configured && (self.inbound(now).0 != Verdict::Up || now > self.due + AWAKE)
    }

    /// When a verdict may change by time alone.
    pub(crate) fn next(&self, now: Time) -> Time {
        let step = Duration::from_micros(1);
        let mut next = Time::NEVER;
        let mut consider = |at: Time| {
            if at > now && at < next {
                next = at;
            }
        };
        if self.settings.configured && self.heard_at.is_some() {
            consider(self.due + AWAKE + step);
            consider(self.due + self.suspect_after + step);
            consider(self.due + self.down_after + step);
        }
        if let Some(since) = self.link_down_since {
            consider(since + self.settings.down_after);
        }
        if let Some(at) = self.send_error_at {
            consider(at + HINT);
        }
        if self.reported_by == Path::Storage {
            consider(self.reported_at + REPORT_LIFE);
        }
        next
    }

    // --- getters -------------------------------------------------------------------------------

    /// The newest beat heard: stamp and when, for echoes.
    pub(crate) const fn newest(&self) -> Option<(u64, Time)> {
        self.newest
    }

    pub(crate) const fn heard_at(&self) -> Option<Time> {
        self.heard_at
    }

    pub(crate) const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(crate) const fn said_goodbye(&self) -> bool {
        self.goodbye
    }

    /// How old something is that the peer stamped with its clock; `None` while clocks were never
    /// compared.
    pub(crate) fn age(&self, now: Time, stamped: Time) -> Option<Duration> {
        let here = i128::from(stamped.micros()) + self.offset.best()?;
        let age = i128::from(now.micros()) - here;
        Some(Duration::from_micros(u64::try_from(age.max(0)).unwrap_or(u64::MAX)))
    }

    /// What a frame is given to be acknowledged before it is sent again by the network.
    pub(crate) fn patience(&self) -> Duration {
        // Twice the round trip, and the peer's delay of acknowledgements twice over.
        Duration::from_micros(micros(self.rtt.unwrap_or_default()) * 2 + 8_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Route;

    const MS: u64 = 1000;

    fn network() -> Network {
        Network::new(Settings {
            suspect_floor: Duration::from_millis(20),
            down_after: Duration::from_millis(20),
            configured: true,
        })
    }

    fn beat(sent_ms: u64, heard_age_ms: u64) -> Beat {
        Beat {
            sent_at: Time(sent_ms * MS),
            next_due: Duration::from_millis(10),
            loop_age: Duration::ZERO,
            heard_network: Some(Echo {
                stamp: sent_ms.saturating_sub(heard_age_ms) * MS,
                age: Duration::from_millis(heard_age_ms),
            }),
            heard_storage: None,
            route: Route::Network,
            goodbye: false,
            drill: None,
        }
    }

    /// A hundred good beats, the last at 1000 ms.
    fn settled() -> Network {
        let mut network = network();
        network.set_our_interval(Time(0), Duration::from_millis(10));
        for n in 1..=100 {
            network.beat(Time(n * 10 * MS), &beat(n * 10, 5));
            network.update(Time(n * 10 * MS));
        }
        network
    }

    #[test]
    fn a_report_that_lay_in_storage_is_as_old_as_it_is() {
        let mut network = settled();
        // Sealed while all was well, held up by a stalled disk for a second.
        let held_up = beat(1005, 5);
        network.pulse(Time(2000 * MS), &held_up, None);
        let silent = (Verdict::Down, Reason::HeartbeatsMissed);
        assert_eq!(network.outbound(Time(2000 * MS)), silent, "it proves nothing about now");
        // One that was sealed just now does.
        network.pulse(Time(2001 * MS), &beat(2000, 5), None);
        assert_eq!(network.outbound(Time(2001 * MS)).0, Verdict::Up);
    }

    #[test]
    fn suspicion_and_alarm_begin_on_the_microsecond() {
        let network = settled();
        let at = |us: u64| network.inbound(Time(1000 * MS + us)).0;
        assert_eq!(at(30 * MS), Verdict::Up, "10 ms until due, 20 ms of grace");
        assert_eq!(at(30 * MS + 1), Verdict::Suspect);
        assert_eq!(at(50 * MS), Verdict::Suspect);
        assert_eq!(at(50 * MS + 1), Verdict::Down);
    }

    #[test]
    fn a_habitually_late_peer_gets_more_time() {
        let mut network = settled();
        let mut t = 1000;
        for n in 0..20 {
            t += if n % 2 == 0 { 28 } else { 10 };
            network.beat(Time(t * MS), &beat(t, 5));
            network.update(Time(t * MS));
        }
        assert_eq!(network.inbound(Time((t + 10 + 27) * MS)).0, Verdict::Up, "1.5 x 18 ms");
        assert_eq!(network.inbound(Time((t + 10 + 28) * MS)).0, Verdict::Suspect);
    }

    #[test]
    fn beats_missed_in_silence_teach_nothing() {
        let mut network = settled();
        network.update(Time(1400 * MS));
        network.beat(Time(1400 * MS), &beat(1400, 5));
        assert_eq!(network.suspect_after, Duration::from_millis(20));
    }

    #[test]
    fn one_way_loss_is_seen_by_the_one_who_is_heard_no_more() {
        let mut network = settled();
        for n in 1..=6 {
            let t = 1000 + n * 10;
            network.beat(Time(t * MS), &beat(t, 5 + n * 10));
            network.update(Time(t * MS));
        }
        let now = Time(1060 * MS);
        assert_eq!(network.inbound(now).0, Verdict::Up);
        assert_eq!(network.outbound(now), (Verdict::Down, Reason::PeerDoesNotHearUs));
    }

    #[test]
    fn a_pulse_by_storage_vouches_for_the_direction_that_still_works() {
        let mut network = settled();
        let now = Time(1060 * MS);
        network.update(now);
        assert_eq!(network.outbound(now).0, Verdict::Down, "no report since: both are gone");
        let later = Time(1065 * MS);
        network.pulse(later, &beat(1064, 60), None);
        assert_eq!(network.outbound(later).0, Verdict::Down, "heard before the silence: no news");
        network.pulse(later, &beat(1064, 6), None);
        assert_eq!(network.inbound(later).0, Verdict::Down);
        assert_eq!(network.outbound(later).0, Verdict::Up);
        assert_eq!(network.outbound(later + REPORT_LIFE).0, Verdict::Down, "it grew stale");
    }

    #[test]
    fn a_quicker_pulse_is_not_expected_before_it_began() {
        let mut network = settled();
        network.set_our_interval(Time(1000 * MS), Duration::from_millis(50));
        network.set_our_interval(Time(1001 * MS), Duration::from_millis(10));
        let report = beat(1010, 48);
        network.beat(Time(1010 * MS), &report);
        assert_eq!(network.outbound(Time(1010 * MS)).0, Verdict::Up);
    }

    #[test]
    fn stalling_data_is_suspicious_while_beats_pass() {
        let mut network = settled();
        let now = Time(1001 * MS);
        network.data_silence(Duration::from_millis(30), Duration::ZERO);
        assert_eq!(network.outbound(now).0, Verdict::Up);
        network.data_silence(Duration::from_millis(31), Duration::ZERO);
        assert_eq!(network.outbound(now), (Verdict::Suspect, Reason::DataStalls));
        network.data_silence(Duration::from_millis(501), Duration::ZERO);
        assert_eq!(network.outbound(now), (Verdict::Down, Reason::DataStalls));
    }

    #[test]
    fn some_frames_that_stay_away_are_a_suspicion_and_never_an_outage() {
        let mut network = settled();
        let now = Time(1000 * MS);
        network.data_silence(Duration::ZERO, Duration::from_millis(60));
        assert_eq!(network.outbound(now).0, Verdict::Up);
        for ms in [61, 5000] {
            network.data_silence(Duration::ZERO, Duration::from_millis(ms));
            assert_eq!(network.outbound(now), (Verdict::Suspect, Reason::FramesStuck));
        }
    }

    #[test]
    fn own_link_down_needs_no_waiting() {
        let mut network = settled();
        network.link(Time(1001 * MS), false);
        assert_eq!(network.outbound(Time(1001 * MS)), (Verdict::Suspect, Reason::LinkDown));
        assert_eq!(network.outbound(Time(1021 * MS)).0, Verdict::Down);
    }

    #[test]
    fn who_slept_does_not_blame_others() {
        let mut network = settled();
        let woken = Time(11_010 * MS);
        network.excuse(woken, Duration::from_secs(10));
        assert_eq!(network.inbound(Time(11_030 * MS)).0, Verdict::Up);
        assert_eq!(network.inbound(Time(11_031 * MS)).0, Verdict::Suspect);
        network.excuse(Time(11_031 * MS), Duration::from_secs(10));
        assert_eq!(network.inbound(Time(11_031 * MS)).0, Verdict::Suspect, "once per silence");
    }

    #[test]
    fn who_slept_and_found_beats_waiting_expects_the_next_in_time() {
        let mut network = settled();
        let woken = Time(11_000 * MS);
        network.beat(woken, &beat(11_000, 5));
        network.excuse(woken, Duration::from_secs(10));
        network.update(woken);
        assert_eq!(network.inbound(Time(11_051 * MS)).0, Verdict::Down);
    }

    #[test]
    fn ages_survive_a_clock_that_stood_still() {
        let mut network = network();
        let told = |sent: u64, heard: u64| Beat {
            heard_network: Some(Echo { stamp: heard * MS, age: Duration::from_millis(1) }),
            ..beat(sent, 0)
        };
        // Their clock is 100 s ahead; a round takes 3 ms.
        network.beat(Time(5_000 * MS), &told(105_000, 4_996));
        let age = network.age(Time(5_400 * MS), Time(105_000 * MS));
        assert_eq!(age, Some(Duration::from_millis(400)));
        // It stood still for 10 s; the first beat after still answers an old one of ours,
        network.beat(Time(15_010 * MS), &told(105_010, 4_999));
        let age = network.age(Time(15_011 * MS), Time(105_010 * MS));
        assert_eq!(age, Some(Duration::from_millis(10_001)), "nothing proves it yet");
        // the next one does not.
        network.beat(Time(15_020 * MS), &told(105_020, 15_016));
        let age = network.age(Time(15_022 * MS), Time(105_020 * MS));
        // Two, the round of three and what clocks may part by.
        assert_eq!(age, Some(Duration::from_micros(6_000)));
    }

    #[test]
    fn an_old_echo_of_a_drifting_clock_proves_nothing() {
        let mut network = network();
        network.beat(Time(5_000 * MS), &Beat { heard_network: None, ..beat(105_000, 0) });
        // Ten seconds in a buffer, and it answers something a minute old: 60.005 s by their clock.
        let late = Beat {
            heard_network: Some(Echo { stamp: 5_000 * MS, age: Duration::from_micros(60_005_000) }),
            ..beat(165_000, 0)
        };
        network.beat(Time(75_000 * MS), &late);
        let age = network.age(Time(75_000 * MS), Time(165_000 * MS));
        assert_eq!(age, Some(Duration::from_secs(10)));
    }

    #[test]
    fn ages_survive_unrelated_clocks() {
        let mut network = network();
        let alone = |sent: u64| Beat { heard_network: None, ..beat(sent, 0) };
        network.beat(Time(5_000 * MS), &alone(77_000));
        network.beat(Time(5_012 * MS), &alone(77_010));
        let age = network.age(Time(5_112 * MS), Time(77_010 * MS));
        assert_eq!(age, Some(Duration::from_millis(102)));
    }
}
