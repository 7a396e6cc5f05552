//! The body of a frame that carries sessions: segments of any number of them, one after another.
//!
//! A segment is a kind and its fields as `postcard` writes them (LEB128 integers); the bytes of a
//! [`Segment::Data`] follow it. Segments of different sessions share a frame, so that one seal and
//! one write serve them all. Every segment may come twice, late, or after what was said later:
//! each is a statement that stays true, not a step.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Path;

/// Longest name of a service, bytes.
pub const SERVICE_MAX: usize = 255;
/// Longest explanation of a refusal, bytes.
pub const DETAIL_MAX: usize = 255;
/// A segment without its data is never longer than this, bytes.
pub const SEGMENT_MAX: usize = 300;

/// Which path a session takes, and whether it may take the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preference {
    /// The network; storage while the network is down.
    #[default]
    NetworkFirst,
    /// Storage; the network while storage is down.
    StorageFirst,
    /// The network or nothing.
    NetworkOnly,
    /// Storage or nothing.
    StorageOnly,
}

impl Preference {
    /// The path it takes when both are in order.
    #[must_use]
    pub const fn first(self) -> Path {
        match self {
            Self::NetworkFirst | Self::NetworkOnly => Path::Network,
            Self::StorageFirst | Self::StorageOnly => Path::Storage,
        }
    }

    /// Whether it may take that path at all.
    #[must_use]
    pub const fn allows(self, path: Path) -> bool {
        !matches!(
            (self, path),
            (Self::NetworkOnly, Path::Storage) | (Self::StorageOnly, Path::Network)
        )
    }
}

/// Why a destination did not accept a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Nobody listens there for that service.
    NoSuchService,
    /// The listener has as many sessions waiting as it holds.
    Busy,
    /// The destination holds as many sessions with this peer, or as much memory, as it may.
    TooMany,
    /// The listener said no.
    Rejected,
}

/// Why a session ended before both sides were done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The other application gave it up.
    Reset,
    /// The other application reads no more, and more came.
    Unread,
    /// The other side broke the rules of the protocol: more bytes than it was granted, another end
    /// than it had named, and the like.
    Violation,
    /// Nothing got through for the session's timeout.
    TimedOut,
    /// The peer's daemon is another one than before.
    PeerRestarted,
    /// The peer's daemon stopped.
    PeerStopped,
    /// The peer was taken out of the configuration, or this daemon stops.
    Closed,
}

/// One statement about one session, or about the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Segment<'a> {
    /// A session is asked for; repeated until answered.
    Open {
        /// Chosen by the opener, never used again: its lowest bit is 1 when the opener has the
        /// higher node id.
        id: u64,
        /// How the opener sends; the acceptor sends likewise.
        preference: Preference,
        /// Bytes the acceptor may send.
        window: u64,
        /// Whom it is for.
        service: &'a str,
    },
    /// It is accepted; repeated until the opener said anything about it.
    Accepted {
        /// Which.
        id: u64,
        /// Bytes the opener may send.
        window: u64,
    },
    /// It is not, and that is all.
    Refused {
        /// Which.
        id: u64,
        /// Why.
        reason: Refusal,
        /// For people.
        detail: &'a str,
    },
    /// Bytes of a session; `length` of them follow.
    Data {
        /// Which.
        id: u64,
        /// Place of the first byte.
        offset: u64,
        /// The sender will send nothing after these.
        last: bool,
        /// How many.
        length: u32,
    },
    /// What a receiver has and grants.
    Ack {
        /// Which.
        id: u64,
        /// All bytes below arrived.
        received: u64,
        /// The application took all bytes below.
        taken: u64,
        /// Bytes below this may be sent: the window left is this less `received`.
        limit: u64,
        /// All bytes there will ever be arrived, and it is known that there are no more.
        complete: bool,
    },
    /// The session is over; answered by [`Segment::Bye`].
    Reset {
        /// Which.
        id: u64,
        /// Why.
        ending: Ending,
    },
    /// Here nothing is left of that session, and all was well when it ended.
    Bye {
        /// Which.
        id: u64,
    },
    /// Frames of this channel that came by a path: the receipt of the carrier.
    Seen {
        /// By storage; otherwise by the network.
        storage: bool,
        /// The highest number that did.
        highest: u64,
        /// How many did.
        count: u64,
    },
}

/// Appends a segment; for [`Segment::Data`] its bytes are to follow.
pub fn write(segment: &Segment<'_>, body: &mut Vec<u8>) {
    let taken = std::mem::take(body);
    // Writing into memory cannot fail, and none of our types refuses to be written.
    *body = postcard::to_extend(segment, taken).unwrap_or_default();
}

/// Calls `each` with every segment of a body and the bytes that belong to it. `None` when the body
/// makes no sense from some place on; what came before that was handed out already, so read it
/// with a closure that does nothing first where that matters.
pub fn read(body: &Bytes, mut each: impl FnMut(Segment<'_>, Bytes)) -> Option<()> {
    let mut rest: &[u8] = body;
    while !rest.is_empty() {
        let (segment, after) = postcard::take_from_bytes::<Segment<'_>>(rest).ok()?;
        rest = after;
        let mut bytes = Bytes::new();
        match segment {
            Segment::Data { length, offset, .. } => {
                let (data, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                offset.checked_add(data.len() as u64)?;
                bytes = body.slice_ref(data);
                rest = after;
            }
            Segment::Open { service, .. } if service.len() > SERVICE_MAX => return None,
            Segment::Refused { detail, .. } if detail.len() > DETAIL_MAX => return None,
            _ => {}
        }
        each(segment, bytes);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Segment<'static>> {
        vec![
            Segment::Open {
                id: u64::MAX,
                preference: Preference::StorageOnly,
                window: u64::MAX,
                service: "s",
            },
            Segment::Accepted { id: 2, window: 70_000 },
            Segment::Refused { id: 4, reason: Refusal::NoSuchService, detail: "no" },
            Segment::Data { id: 3, offset: 300, last: true, length: 5 },
            Segment::Ack { id: 3, received: 1, taken: 0, limit: 2, complete: false },
            Segment::Reset { id: 3, ending: Ending::TimedOut },
            Segment::Bye { id: 1 },
            Segment::Seen { storage: true, highest: 9, count: 8 },
        ]
    }

    fn body() -> Vec<u8> {
        let mut body = Vec::new();
        for segment in all() {
            write(&segment, &mut body);
            if let Segment::Data { .. } = segment {
                body.extend_from_slice(b"hello");
            }
        }
        body
    }

    #[test]
    fn segments_round_trip_and_data_is_not_copied() {
        let body = Bytes::from(body());
        let mut got = Vec::new();
        let mut data = Vec::new();
        let read = read(&body, |segment, bytes| {
            got.push(format!("{segment:?}"));
            data.push(bytes);
        });
        assert_eq!(read, Some(()));
        assert_eq!(got, all().iter().map(|s| format!("{s:?}")).collect::<Vec<_>>());
        assert_eq!(&data[3][..], b"hello");
        assert!(body.as_ptr_range().contains(&data[3].as_ptr()));
    }

    #[test]
    fn bytes_are_golden() {
        let mut body = Vec::new();
        write(&Segment::Data { id: 300, offset: 1, last: true, length: 2 }, &mut body);
        write(&Segment::Seen { storage: true, highest: 1, count: 2 }, &mut body[..].to_vec());
        assert_eq!(body, [3, 0xac, 2, 1, 1, 2]);
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let whole = body();
        let mut ends = vec![0];
        let mut at = Vec::new();
        for segment in all() {
            write(&segment, &mut at);
            if let Segment::Data { .. } = segment {
                at.extend_from_slice(b"hello");
            }
            ends.push(at.len());
        }
        for end in 0..whole.len() {
            let cut = Bytes::copy_from_slice(&whole[..end]);
            assert_eq!(read(&cut, |_, _| {}).is_some(), ends.contains(&end), "cut at {end}");
        }
    }

    #[test]
    fn offsets_do_not_wrap_and_names_are_bounded() {
        for segment in [
            Segment::Data { id: 1, offset: u64::MAX, last: false, length: 1 },
            Segment::Open {
                id: 1,
                preference: Preference::default(),
                window: 1,
                service: &"x".repeat(SERVICE_MAX + 1),
            },
        ] {
            let mut body = Vec::new();
            write(&segment, &mut body);
            body.push(0);
            assert_eq!(read(&body.into(), |_, _| {}), None);
        }
    }
}
