//! The storage path to one peer: our writes, our reads, its beat, and what it says of ours.
//!
//! Evidence flows all the time, so that the path is known good before it is needed: our own entry
//! is written and the whole table read with every storage beat. A fault is believed at once and
//! for as long as nothing of its kind succeeds; silence is believed after a beat's interval and a
//! little more. An operation that hangs is believed until it comes back: the beats are read and
//! written by another thread, and their success says nothing about it.
//!
//! A volume says how far apart its beats are when it cannot keep what was ordered (an object store
//! bills each of them), and how long its operations take is measured; both lengthen our patience.

use std::time::Duration;

use super::{Judged, OWN_LATENESS, Reason, Verdict, worse};
use crate::{StorageFault, Time, VolumeFact, beat::Beat};

/// Beyond the interval, how late an own beat or a table read may be.
const SUSPECT_AFTER: Duration = Duration::from_millis(400);
const DOWN_AFTER: Duration = Duration::from_millis(700);
/// A peer is dead when its beat stood still for so many of its intervals and a little.
const DEAD_INTERVALS: u32 = 5;
/// A report about our beat is believed for as long.
const REPORT_LIFE: Duration = Duration::from_millis(400);
/// Beyond all that, how many of the usual times of an operation it may be late: a disk's are
/// nothing beside the above, those of a store over HTTP may be more.
const LATENCIES: u32 = 4;
const BEATS_PER_PASSAGE: u32 = 4;
/// A single failed operation is suspicious; one that nothing heals in this time is an outage.
const FAULT_DOWN: Duration = Duration::from_millis(300);

/// The storage path to one peer.
#[derive(Debug)]
pub(crate) struct Storage {
    configured: bool,
    attached: bool,
    interval: Duration,
    /// How far apart beats are on volumes that do not bear what is ordered: the one our lane lies
    /// on, and the one we read.
    bears: [Option<Duration>; 2],
    /// The interval before the present one, and until when things may still go by it.
    former_interval: (Duration, Time),
    written_at: Option<Time>,
    read_at: Option<Time>,
    /// The peer's newest beat: incarnation, counter, when we saw it move, its interval.
    peer: Option<PeerBeat>,
    fault: Option<Fault>,
    /// Reads, and writes, that are still in the kernel.
    hanging_reads: u32,
    hanging_writes: u32,
    /// When the peer said how old our beat looks to it.
    report: Option<(Time, Duration)>,
    latency: Option<Duration>,
    heard_at: Option<Time>,
    goodbye: bool,
    /// Data sent this way has left no trace for too long.
    stalls: bool,
    /// Our own lateness was excused since the last fact.
    excused: bool,
}

#[derive(Debug, Clone, Copy)]
struct PeerBeat {
    epoch: u64,
    beat: u64,
    at: Time,
    interval: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    kind: StorageFault,
    since: Time,
}

impl Fault {
    /// Only the opposite proves these over: a successful write or read.
    const fn is_of_reading(self) -> bool {
        matches!(self.kind, StorageFault::ReadError)
    }
}

impl Storage {
    pub(crate) const fn new(configured: bool, interval: Duration) -> Self {
        Self {
            configured,
            attached: false,
            interval,
            bears: [None; 2],
            former_interval: (Duration::ZERO, Time::ZERO),
            written_at: None,
            read_at: None,
            peer: None,
            fault: None,
            hanging_reads: 0,
            hanging_writes: 0,
            report: None,
            latency: None,
            heard_at: None,
            goodbye: false,
            stalls: false,
            excused: false,
        }
    }

    pub(crate) const fn configure(&mut self, configured: bool) {
        self.configured = configured;
    }

    pub(crate) const fn is_configured(&self) -> bool {
        self.configured
    }

    /// A new incarnation of the peer.
    pub(crate) const fn forget(&mut self) {
        self.report = None;
        self.goodbye = false;
    }

    /// How often our entry is written from now on.
    pub(crate) fn set_interval(&mut self, now: Time, interval: Duration) {
        if interval != self.interval {
            let (former, until) = self.former_interval;
            // An order and what the volume makes of it follow each other at once.
            if now >= until || self.interval >= former {
                self.former_interval = (self.interval, now + self.interval);
            }
            self.interval = interval;
        }
    }

    /// A fact about the volume our lane to the peer lies on (`sends`), or the one its lane to us
    /// is read from (`receives`), or both.
    pub(crate) fn fact(&mut self, now: Time, fact: &VolumeFact, sends: bool, receives: bool) {
        self.excused = false;
        match fact {
            VolumeFact::Attached if sends => {
                self.attached = true;
                self.fault = None;
            }
            VolumeFact::BeatWritten { latency } if sends => {
                self.attached = true;
                self.written_at = Some(now);
                self.latency = Some(smooth(self.latency, *latency));
                self.fault = self.fault.filter(|f| f.is_of_reading());
            }
            VolumeFact::BeatsEvery { interval } => {
                for (it_is, bears) in [sends, receives].into_iter().zip(&mut self.bears) {
                    if it_is {
                        *bears = Some(*interval);
                    }
                }
                self.set_interval(now, self.slowest());
            }
            VolumeFact::TableRead { .. } if receives => {
                self.read_at = Some(now);
                self.fault = self.fault.filter(|f| !f.is_of_reading());
            }
            VolumeFact::RecordWritten { .. } if sends => {
                self.written_at = Some(now);
                self.fault = self.fault.filter(|f| f.is_of_reading());
            }
            VolumeFact::Hangs { reading, .. } => {
                if *reading && receives {
                    self.hanging_reads += 1;
                } else if !*reading && sends {
                    self.hanging_writes += 1;
                }
                // Until the beats prove otherwise, the whole medium.
                let since = self.fault.map_or(now, |f| f.since);
                self.fault = Some(Fault { kind: StorageFault::Stalled, since });
            }
            VolumeFact::Returned { reading: true } if receives => {
                self.hanging_reads = self.hanging_reads.saturating_sub(1);
            }
            VolumeFact::Returned { reading: false } if sends => {
                self.hanging_writes = self.hanging_writes.saturating_sub(1);
            }
            VolumeFact::Fault { fault, .. } => {
                let since = self.fault.map_or(now, |f| f.since);
                self.fault = Some(Fault { kind: *fault, since });
            }
            _ => {}
        }
    }

    /// The peer's entry moved.
    pub(crate) fn peer_beat(&mut self, now: Time, epoch: u64, beat: u64, interval: Duration) {
        let newer = self.peer.is_none_or(|p| (epoch, beat) > (p.epoch, p.beat));
        if newer {
            self.peer = Some(PeerBeat { epoch, beat, at: now, interval });
        }
    }

    /// A frame of the peer came by storage.
    pub(crate) const fn heard(&mut self, now: Time) {
        self.heard_at = Some(now);
    }

    /// A beat, by whichever path, says how old our storage beat looks to the peer.
    pub(crate) fn said(&mut self, now: Time, beat: &Beat) {
        self.goodbye = beat.goodbye;
        self.report = Some((now, beat.heard_storage.map_or(Duration::MAX, |e| e.age)));
    }

    /// How long data sent by storage has left no trace there, and what the most urgent of it can
    /// bear. Beats of both ends may do well while the peer cannot read its lane.
    pub(crate) fn data_silence(&mut self, silence: Duration, bearable: Duration) {
        self.stalls = silence > bearable;
    }

    /// A measured time from our write to the peer's acknowledgement.
    pub(crate) fn measured(&mut self, delay: Duration) {
        self.latency = Some(smooth(self.latency, delay));
    }

    /// Our own loop slept: facts could not reach it.
    pub(crate) fn excuse(&mut self, now: Time, late: Duration) {
        if late < OWN_LATENESS || std::mem::replace(&mut self.excused, true) {
            return;
        }
        for at in [&mut self.written_at, &mut self.read_at].into_iter().flatten() {
            *at = (*at + late).min(now);
        }
        if let Some(peer) = &mut self.peer {
            peer.at = (peer.at + late).min(now);
        }
    }

    // --- verdicts ------------------------------------------------------------------------------

    /// How far apart our beats are. Whoever hurries is not late at once.
    fn pace(&self, now: Time) -> Duration {
        let (former, until) = self.former_interval;
        if now < until { self.interval.max(former) } else { self.interval }
    }

    fn by_age(&self, now: Time, last: Option<Time>, reason: Reason) -> Judged {
        let Some(last) = last else {
            return (Verdict::Down, Reason::Fault(StorageFault::NotAttached));
        };
        let usual = self.latency.unwrap_or_default() * LATENCIES;
        let (age, pace) = (now.since(last), self.pace(now) + usual);
        if age > pace + DOWN_AFTER {
            (Verdict::Down, reason)
        } else if age > pace + SUSPECT_AFTER {
            (Verdict::Suspect, reason)
        } else {
            (Verdict::Up, Reason::None)
        }
    }

    fn faulty(&self, now: Time) -> Judged {
        let Some(fault) = self.fault else { return (Verdict::Up, Reason::None) };
        let lasting = !matches!(fault.kind, StorageFault::ReadError | StorageFault::WriteError)
            || now.since(fault.since) > FAULT_DOWN;
        let verdict = if lasting { Verdict::Down } else { Verdict::Suspect };
        (verdict, Reason::Fault(fault.kind))
    }

    /// Whether what we write reaches the peer.
    pub(crate) fn outbound(&self, now: Time) -> Judged {
        if !self.configured {
            return (Verdict::Disabled, Reason::NotConfigured);
        }
        if self.goodbye {
            return (Verdict::Down, Reason::Goodbye);
        }
        if !self.attached {
            return worse(
                self.faulty(now),
                (Verdict::Down, Reason::Fault(StorageFault::NotAttached)),
            );
        }
        let own = worse(self.faulty(now), hanging(self.hanging_writes));
        let own = worse(own, self.by_age(now, self.written_at, Reason::OwnBeatLate));
        let seen = match self.report {
            Some((at, age)) if now.since(at) < REPORT_LIFE => {
                // The peer's table reads are as far apart as its beats, and ours as our own.
                let pace = self.pace(now);
                let usual = (pace + self.peer.map_or(pace, |p| p.interval)) * 2;
                if age > usual + DOWN_AFTER * 2 {
                    (Verdict::Down, Reason::PeerDoesNotSeeUs)
                } else if age > usual + SUSPECT_AFTER {
                    (Verdict::Suspect, Reason::PeerDoesNotSeeUs)
                } else {
                    (Verdict::Up, Reason::None)
                }
            }
            _ => (Verdict::Up, Reason::None),
        };
        let told = worse(own, seen);
        if told.0 == Verdict::Up && self.stalls {
            return (Verdict::Suspect, Reason::DataStalls);
        }
        told
    }

    /// Whether what the peer writes reaches us.
    pub(crate) fn inbound(&self, now: Time) -> Judged {
        if !self.configured {
            return (Verdict::Disabled, Reason::NotConfigured);
        }
        let own = worse(self.faulty(now), hanging(self.hanging_reads));
        let own = worse(own, self.by_age(now, self.read_at, Reason::TableUnread));
        let theirs = match self.peer {
            None => (Verdict::Down, Reason::NeverHeard),
            Some(peer) if self.beat_age(now, peer) > self.dead_after(peer) => {
                (Verdict::Down, Reason::PeerBeatLate)
            }
            Some(peer)
                if self.beat_age(now, peer) > peer.interval * 2 + SUSPECT_AFTER + self.interval =>
            {
                (Verdict::Suspect, Reason::PeerBeatLate)
            }
            Some(_) => (Verdict::Up, Reason::None),
        };
        worse(own, theirs)
    }

    /// A frame read from its lane is as good as a beat.
    fn beat_age(&self, now: Time, peer: PeerBeat) -> Duration {
        now.since(self.heard_at.map_or(peer.at, |heard| heard.max(peer.at)))
    }

    fn dead_after(&self, peer: PeerBeat) -> Duration {
        peer.interval * DEAD_INTERVALS + SUSPECT_AFTER + self.interval
    }

    /// The peer's beat stands still although we read well: it is not the path.
    pub(crate) fn peer_stands_still(&self, now: Time) -> bool {
        let reading = worse(self.faulty(now), self.by_age(now, self.read_at, Reason::TableUnread));
        let still = self.peer.is_some_and(|peer| self.beat_age(now, peer) > self.dead_after(peer));
        self.configured && reading.0 == Verdict::Up && still
    }

    /// What the peer writes does not reach us, however well its beats do.
    pub(crate) const fn reads_hang(&self) -> bool {
        self.hanging_reads > 0
    }

    // --- getters -------------------------------------------------------------------------------

    /// Our newest sight of the peer: its beat counter and when.
    pub(crate) fn newest(&self) -> Option<(u64, Time)> {
        self.peer.map(|p| (p.beat, p.at))
    }

    pub(crate) fn heard_at(&self) -> Option<Time> {
        self.peer.map(|p| p.at).max(self.heard_at)
    }

    /// How long a frame may take this way on a volume where operations are slow by nature: it is
    /// written, looked for and read, each in less than a beat of such a volume.
    pub(crate) fn passage(&self) -> Duration {
        self.slowest() * BEATS_PER_PASSAGE
    }

    fn slowest(&self) -> Duration {
        self.bears.into_iter().flatten().max().unwrap_or_default()
    }

    pub(crate) const fn latency(&self) -> Option<Duration> {
        self.latency
    }
}

const fn hanging(operations: u32) -> Judged {
    if operations > 0 {
        (Verdict::Down, Reason::Fault(StorageFault::Stalled))
    } else {
        (Verdict::Up, Reason::None)
    }
}

fn smooth(before: Option<Duration>, sample: Duration) -> Duration {
    before.map_or(sample, |b| (b * 7 + sample) / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;
    const SECOND: Duration = Duration::from_secs(1);

    fn working() -> Storage {
        let mut storage = Storage::new(true, SECOND);
        let latency = Duration::from_micros(200);
        storage.fact(Time(0), &VolumeFact::Attached, true, true);
        storage.fact(Time(0), &VolumeFact::BeatWritten { latency }, true, true);
        storage.fact(Time(0), &VolumeFact::TableRead { latency }, true, true);
        storage.peer_beat(Time(0), 1, 1, SECOND);
        storage
    }

    #[test]
    fn silence_is_believed_within_two_seconds() {
        let storage = working();
        assert_eq!(storage.outbound(Time(1400 * MS)).0, Verdict::Up);
        assert_eq!(storage.outbound(Time(1401 * MS)).0, Verdict::Suspect);
        assert_eq!(storage.outbound(Time(1701 * MS)), (Verdict::Down, Reason::OwnBeatLate));
        assert_eq!(storage.inbound(Time(1701 * MS)), (Verdict::Down, Reason::TableUnread));
    }

    #[test]
    fn data_without_a_trace_casts_doubt_on_good_beats() {
        let mut storage = working();
        let bearable = Duration::from_millis(250);
        storage.data_silence(bearable, bearable);
        assert_eq!(storage.outbound(Time(1)).0, Verdict::Up);
        storage.data_silence(bearable + Duration::from_micros(1), bearable);
        assert_eq!(storage.outbound(Time(1)), (Verdict::Suspect, Reason::DataStalls));
        assert_eq!(storage.inbound(Time(1)).0, Verdict::Up, "our own reading is another matter");
    }

    #[test]
    fn who_hurries_is_not_late_at_once() {
        let quick = Duration::from_millis(100);
        let mut storage = working();
        storage.set_interval(Time(900 * MS), quick);
        storage.peer_beat(Time(900 * MS), 1, 2, quick);
        // The peer saw our last beat a second ago: we beat once a second then.
        storage.report = Some((Time(1000 * MS), SECOND));
        assert_eq!(storage.outbound(Time(1100 * MS)).0, Verdict::Up);
        assert_eq!(storage.inbound(Time(1100 * MS)).0, Verdict::Up);
        // A second later there is no excuse any more.
        storage.report = Some((Time(1900 * MS), SECOND));
        assert_eq!(storage.outbound(Time(1900 * MS)).0, Verdict::Down, "our own beat is late");
        storage.written_at = Some(Time(1900 * MS));
        assert_eq!(storage.outbound(Time(1900 * MS)), (Verdict::Suspect, Reason::PeerDoesNotSeeUs));
    }

    #[test]
    fn what_is_late_already_is_not_excused_by_a_new_pace() {
        let mut storage = working();
        assert_eq!(storage.outbound(Time(5000 * MS)).0, Verdict::Down);
        storage.set_interval(Time(5000 * MS), Duration::from_millis(100));
        assert_eq!(storage.outbound(Time(5000 * MS)).0, Verdict::Down);
    }

    #[test]
    fn a_fault_is_believed_at_once_and_healed_by_its_opposite() {
        let mut storage = working();
        let fault = |fault| VolumeFact::Fault { fault, detail: String::new() };
        storage.fact(Time(1), &fault(StorageFault::WriteError), true, true);
        assert_eq!(storage.outbound(Time(1)).0, Verdict::Suspect);
        assert_eq!(storage.outbound(Time(302 * MS)).0, Verdict::Down);
        let latency = Duration::from_micros(200);
        storage.fact(Time(303 * MS), &VolumeFact::TableRead { latency }, true, true);
        assert_eq!(storage.outbound(Time(303 * MS)).0, Verdict::Down, "reading heals no writes");
        storage.fact(Time(304 * MS), &VolumeFact::BeatWritten { latency }, true, true);
        assert_eq!(storage.outbound(Time(304 * MS)).0, Verdict::Up);
    }

    #[test]
    fn a_read_that_hangs_is_not_cleared_by_beats() {
        let mut storage = working();
        let latency = Duration::from_micros(200);
        let hangs = VolumeFact::Hangs { reading: true, detail: String::new() };
        storage.fact(Time(1), &hangs, true, true);
        for fact in [VolumeFact::BeatWritten { latency }, VolumeFact::TableRead { latency }] {
            storage.fact(Time(2), &fact, true, true);
        }
        let stuck = (Verdict::Down, Reason::Fault(StorageFault::Stalled));
        assert_eq!(storage.inbound(Time(2)), stuck, "nothing can be received");
        assert_eq!(storage.outbound(Time(2)).0, Verdict::Up, "our writes are well");
        storage.fact(Time(3), &VolumeFact::Returned { reading: false }, true, true);
        assert_eq!(storage.inbound(Time(3)), stuck, "that was another one");
        storage.fact(Time(4), &VolumeFact::Returned { reading: true }, true, true);
        assert_eq!(storage.inbound(Time(4)).0, Verdict::Up);
    }

    #[test]
    fn a_write_that_hangs_closes_the_way_out_alone() {
        let mut storage = working();
        let latency = Duration::from_micros(200);
        let hangs = VolumeFact::Hangs { reading: false, detail: String::new() };
        storage.fact(Time(1), &hangs, true, true);
        storage.fact(Time(2), &VolumeFact::BeatWritten { latency }, true, true);
        assert_eq!(storage.outbound(Time(2)).0, Verdict::Down);
        assert_eq!(storage.inbound(Time(2)).0, Verdict::Up);
        storage.fact(Time(3), &VolumeFact::Returned { reading: false }, true, true);
        assert_eq!(storage.outbound(Time(3)).0, Verdict::Up);
    }

    #[test]
    fn a_volume_that_beats_more_slowly_than_ordered_is_not_late() {
        let mut storage = working();
        let slow = VolumeFact::BeatsEvery { interval: SECOND * 2 };
        storage.fact(Time(1000), &slow, true, true);
        assert_eq!(storage.outbound(Time(2300 * MS)).0, Verdict::Up);
        assert_eq!(storage.outbound(Time(2500 * MS)).0, Verdict::Suspect);
        assert_eq!(storage.outbound(Time(2800 * MS)).0, Verdict::Down);
        // What is said of the volume we read does not hurry the one we write on.
        let quicker = VolumeFact::BeatsEvery { interval: SECOND };
        storage.fact(Time(2000), &slow, true, false);
        storage.fact(Time(2001), &quicker, false, true);
        assert_eq!(storage.outbound(Time(2300 * MS)).0, Verdict::Up);
        // It hurries by order, and says a little later how much it can.
        let mut storage = working();
        storage.fact(Time(1000), &slow, true, true);
        storage.set_interval(Time(1500 * MS), Duration::from_millis(100));
        let quick = VolumeFact::BeatsEvery { interval: Duration::from_millis(250) };
        storage.fact(Time(1501 * MS), &quick, true, true);
        assert_eq!(storage.outbound(Time(2300 * MS)).0, Verdict::Up, "as announced before");
        let latency = Duration::from_micros(200);
        storage.fact(Time(2300 * MS), &VolumeFact::BeatWritten { latency }, true, true);
        assert_eq!(storage.outbound(Time(3600 * MS)).0, Verdict::Down);
    }

    #[test]
    fn a_peer_is_dead_only_while_we_read_well() {
        let mut storage = working();
        let latency = Duration::from_micros(200);
        for second in 1..=7 {
            storage.fact(Time(second * 1000 * MS), &VolumeFact::TableRead { latency }, true, true);
        }
        assert!(!storage.peer_stands_still(Time(6400 * MS)));
        assert!(storage.peer_stands_still(Time(7000 * MS)));
        assert!(!storage.peer_stands_still(Time(9000 * MS)), "our own reads are late now");
    }
}
