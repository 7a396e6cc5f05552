//! What the volume machines hand on, compared with what was stored.
//!
//! Epochs only grow; a record holds what the incarnation stored whose epoch it carries; numbers of
//! a ring follow each other, or what is missing is named; and nothing is missing while storage
//! tells no lies.

use std::collections::BTreeMap;

use bytes::Bytes;
use volumes::Ring;

use crate::nonces::Lookup;

/// A machine's daemon: which machine, which incarnation.
type Daemon = (u8, u32);
/// A ring as one reader sees it: the reader, from, epoch, whether it is the data ring.
type Lane = (Daemon, u8, u64, bool);

/// Something a volume machine did.
#[derive(Debug)]
pub(crate) enum Did {
    Attached { epoch: u64 },
    Read { from: u8, epoch: u64, ring: Ring, number: u64, frames: Vec<Bytes> },
    Missed { from: u8, ring: Ring, last: u64 },
}

/// The books of all rings.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Greatest epoch a node ever wrote under.
    epochs: BTreeMap<u8, u64>,
    /// Which incarnation of a machine an epoch is: (node, epoch) to (machine, incarnation).
    claims: BTreeMap<(u8, u64), Daemon>,
    /// What was stored by whom, and its places in the order of storing: a frame may be stored again.
    stored: Lookup<u64, (Daemon, Vec<u64>)>,
    order: u64,
    /// The last number read and the place of its last frame.
    read: BTreeMap<Lane, (u64, u64)>,
}

fn mark(frame: &[u8]) -> u64 {
    // The end of the tag: as good as random.
    frame.last_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
}

impl Records {
    /// A machine's daemon stores a frame.
    pub(crate) fn stores(&mut self, by: Daemon, frame: &[u8]) {
        self.order += 1;
        let places = &mut self.stored.entry(mark(frame)).or_insert((by, Vec::new())).1;
        places.push(self.order);
    }

    /// A volume machine of `by`, which goes by `node`, did something.
    pub(crate) fn did(
        &mut self,
        by: Daemon,
        node: u8,
        did: &Did,
        may_miss: bool,
    ) -> Result<(), (&'static str, String)> {
        let host = by.0;
        match did {
            Did::Attached { epoch } => {
                let greatest = self.epochs.entry(node).or_default();
                if epoch <= greatest {
                    let detail = format!("host {host} claims epoch {epoch} after {greatest}");
                    return Err(("I6 epochs grow", detail));
                }
                *greatest = *epoch;
                self.claims.insert((node, *epoch), by);
            }
            Did::Read { from, epoch, ring, number, frames } => {
                let last = self.read.entry((by, *from, *epoch, *ring == Ring::Data)).or_default();
                if *number <= last.0 {
                    let detail =
                        format!("host {host} read record {number} from {from} after {}", last.0);
                    return Err(("I2 records", detail));
                }
                last.0 = *number;
                let writer = self.claims.get(&(*from, *epoch));
                for frame in frames {
                    let stored = self.stored.get(&mark(frame));
                    let Some((_, places)) = stored.filter(|s| Some(&s.0) == writer) else {
                        let detail = format!(
                            "host {host}: record {number} from {from} is not what epoch {epoch} \
                             stored"
                        );
                        return Err(("I3 records", detail));
                    };
                    let Some(place) = places.iter().find(|p| **p > last.1) else {
                        let detail = format!(
                            "host {host}: record {number} from {from} was stored before what was \
                             read already"
                        );
                        return Err(("I2 records", detail));
                    };
                    last.1 = *place;
                }
            }
            Did::Missed { from, ring, last } => {
                // The lane that is read now is the one with the greatest epoch.
                let lane = (by, *from, u64::MAX, *ring == Ring::Data);
                let mut lanes = self.read.range_mut((by, *from, 0, false)..=lane);
                let lane = lanes.rfind(|(k, _)| k.3 == (*ring == Ring::Data));
                if let Some((_, read)) = lane {
                    read.0 = (*last).max(read.0);
                }
                if !may_miss {
                    let detail = format!("host {host} misses records up to {last} from {from}");
                    return Err(("I4 records", detail));
                }
            }
        }
        Ok(())
    }
}
