//! Answers that are owed: pings on their way and drills that run.
//!
//! Awkward cases: whoever asked may have gone (its receiver is dropped; sending then fails and is
//! no error); a ping may never be answered (its sender is dropped after a while, which is the
//! answer); a second drill with the same peer replaces the first, whose asker is told that it
//! ended.

use std::{collections::BTreeMap, sync::mpsc::Sender, time::Duration};

use failover::{Event, NodeId, Time};

use super::request::{DrillStep, PingAnswer};

const PINGS_MAX: usize = 1024;
const PING_WITHIN: Duration = Duration::from_secs(30);

type DrillReply = Sender<Result<DrillStep, String>>;

#[derive(Debug, Default)]
pub(super) struct Asks {
    next_ping: u64,
    pings: BTreeMap<u64, (Time, Sender<PingAnswer>)>,
    drills: BTreeMap<NodeId, Drill>,
}

#[derive(Debug, Default)]
struct Drill {
    /// Ordered, not yet answered by the core.
    asked: Option<DrillReply>,
    running: Option<DrillReply>,
}

fn say(reply: Option<&DrillReply>, step: Result<DrillStep, String>) {
    if let Some(reply) = reply {
        let _ = reply.send(step);
    }
}

impl Asks {
    /// The number to ping under; `None` when too many are on their way.
    pub(super) fn ping(&mut self, now: Time, reply: Sender<PingAnswer>) -> Option<u64> {
        self.pings.retain(|_, (at, _)| now.since(*at) < PING_WITHIN);
        if self.pings.len() >= PINGS_MAX {
            let _ = reply.send(PingAnswer::Refused("too many pings on their way".into()));
            return None;
        }
        self.next_ping += 1;
        self.pings.insert(self.next_ping, (now, reply));
        Some(self.next_ping)
    }

    /// To be called before the core is told.
    pub(super) fn drill(&mut self, peer: NodeId, length: Duration, reply: DrillReply) {
        let drill = self.drills.entry(peer).or_default();
        if length.is_zero() {
            // An order to end one: done as soon as the core has it.
            let _ = reply.send(Ok(DrillStep::Ended));
        } else {
            drill.asked = Some(reply);
        }
    }

    /// Answers what an event answers.
    pub(super) fn tell(&mut self, event: &Event) {
        match event {
            Event::PingReply { id, out, back, round_trip, .. } => {
                if let Some((_, reply)) = self.pings.remove(id) {
                    let answer =
                        PingAnswer::Reply { out: *out, back: *back, round_trip: *round_trip };
                    let _ = reply.send(answer);
                }
            }
            Event::PingRefused { id, reason, .. } => {
                if let Some((_, reply)) = self.pings.remove(id) {
                    let _ = reply.send(PingAnswer::Refused(reason.clone()));
                }
            }
            Event::DrillStarted { peer, .. } => {
                let drill = self.drills.entry(*peer).or_default();
                if let Some(asked) = drill.asked.take() {
                    say(drill.running.as_ref(), Ok(DrillStep::Ended));
                    say(Some(&asked), Ok(DrillStep::Started));
                    drill.running = Some(asked);
                }
            }
            Event::DrillRefused { peer, reason } => {
                if let Some(drill) = self.drills.get_mut(peer) {
                    say(drill.asked.take().as_ref(), Err(reason.clone()));
                }
            }
            Event::DrillEnded { peer } => {
                if let Some(drill) = self.drills.get_mut(peer) {
                    say(drill.running.take().as_ref(), Ok(DrillStep::Ended));
                }
            }
            _ => {}
        }
        self.drills.retain(|_, drill| drill.asked.is_some() || drill.running.is_some());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use failover::{Cut, Path};

    use super::*;

    fn peer() -> NodeId {
        NodeId::new(2).unwrap()
    }

    #[test]
    fn pings_are_answered_once_and_forgotten_in_time() {
        let mut asks = Asks::default();
        let (reply, answers) = mpsc::channel();
        let id = asks.ping(Time(1), reply.clone()).unwrap();
        let event = Event::PingReply {
            peer: peer(),
            id,
            out: Path::Network,
            back: Path::Storage,
            round_trip: Duration::from_millis(1),
        };
        asks.tell(&event);
        asks.tell(&event);
        assert_eq!(answers.try_iter().count(), 1);
        asks.ping(Time(1), reply).unwrap();
        assert_eq!(asks.pings.len(), 1);
        asks.ping(Time(1) + PING_WITHIN, mpsc::channel().0).unwrap();
        assert_eq!(asks.pings.len(), 1, "the old one was given up");
        assert!(answers.recv().is_err(), "and whoever waited knows");
    }

    #[test]
    fn a_second_drill_ends_the_first() {
        let mut asks = Asks::default();
        let (first, first_steps) = mpsc::channel();
        let (second, second_steps) = mpsc::channel();
        let started = Event::DrillStarted { peer: peer(), cut: Cut::Network };
        asks.drill(peer(), Duration::from_secs(1), first);
        asks.tell(&started);
        asks.drill(peer(), Duration::from_secs(1), second);
        asks.tell(&started);
        asks.tell(&Event::DrillEnded { peer: peer() });
        let steps = [Ok(DrillStep::Started), Ok(DrillStep::Ended)];
        assert_eq!(first_steps.iter().collect::<Vec<_>>(), steps);
        assert_eq!(second_steps.iter().collect::<Vec<_>>(), steps);
    }

    #[test]
    fn a_refusal_leaves_the_running_drill_alone() {
        let mut asks = Asks::default();
        let (first, first_steps) = mpsc::channel();
        let (second, second_steps) = mpsc::channel();
        asks.drill(peer(), Duration::from_secs(1), first);
        asks.tell(&Event::DrillStarted { peer: peer(), cut: Cut::Network });
        asks.drill(peer(), Duration::from_secs(1), second);
        asks.tell(&Event::DrillRefused { peer: peer(), reason: "no".into() });
        assert_eq!(second_steps.iter().collect::<Vec<_>>(), [Err("no".into())]);
        assert_eq!(first_steps.try_iter().collect::<Vec<_>>(), [Ok(DrillStep::Started)]);
    }
}
