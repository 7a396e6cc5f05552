//! Bodies of control frames and beats: a kind, then fields as `postcard` writes them (LEB128
//! integers). A body with bytes left over is refused, except for a probe's padding.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Path, Route, Time,
    beat::{Beat, Echo},
    micros,
};

/// One control message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// What arrived.
    Ack(Ack),
    /// A beat carried by storage.
    Pulse {
        /// What it says.
        beat: WireBeat,
        /// The newest pulse that came to its sender by storage: its `sent_at`, and how long ago it
        /// came, both in microseconds.
        heard: Option<(u64, u64)>,
    },
    /// A frame of data size; to be answered by [`Control::ProbeReply`].
    Probe {
        /// Comes back in the reply.
        id: u64,
        /// So that it is as long as a full data frame.
        padding: Padding,
    },
    /// A probe arrived by the network.
    ProbeReply {
        /// Of the probe.
        id: u64,
    },
    /// A ping on its way out.
    Ping {
        /// Chosen by the sender.
        id: u64,
        /// The way back: as it came, or as the route says.
        back_as_came: bool,
    },
    /// A ping on its way back.
    Pong {
        /// Of the ping.
        id: u64,
        /// The ping came by storage.
        out_by_storage: bool,
    },
    /// Something is about to come by storage: a reader in standby is to wake.
    Knock,
}

/// What a receiver says about both kept channels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Express frames.
    pub express: ChannelAck,
    /// Datagram frames.
    pub datagram: ChannelAck,
    /// The acknowledging node's own floors: nothing below comes again (express, datagram).
    pub floors: (u64, u64),
    /// Records read from the lanes of the node this goes to: (data ring?, last record read).
    pub cursors: Vec<(bool, u64)>,
}

/// What a receiver says about one channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelAck {
    /// Every number below arrived or lies below the sender's floor.
    pub cumulative: u64,
    /// Runs that arrived above it, oldest first: (gap before the run, length of the run).
    pub ranges: Vec<(u32, u32)>,
    /// Highest number and count of frames that came by the network.
    pub network: (u64, u64),
    /// The same by storage.
    pub storage: (u64, u64),
}

/// A [`Beat`] as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireBeat {
    sent_at: u64,
    next_due_us: u32,
    loop_age_us: u32,
    heard_network: Option<(u64, u64)>,
    heard_storage: Option<(u64, u64)>,
    route: Route,
    goodbye: bool,
    drill: Option<Path>,
}

/// Zeroes of a given number: written as bytes, read without being kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding(pub usize);

impl Serialize for Padding {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&vec![0; self.0])
    }
}

impl<'d> Deserialize<'d> for Padding {
    fn deserialize<D: serde::Deserializer<'d>>(d: D) -> Result<Self, D::Error> {
        <&'d [u8]>::deserialize(d).map(|bytes| Self(bytes.len()))
    }
}

impl From<(u64, u64)> for Echo {
    fn from((stamp, age): (u64, u64)) -> Self {
        Self { stamp, age: Duration::from_micros(age) }
    }
}

impl From<Beat> for WireBeat {
    fn from(beat: Beat) -> Self {
        let echo = |echo: Echo| (echo.stamp, micros(echo.age));
        let short = |span| u32::try_from(micros(span)).unwrap_or(u32::MAX);
        Self {
            sent_at: beat.sent_at.micros(),
            next_due_us: short(beat.next_due),
            loop_age_us: short(beat.loop_age),
            heard_network: beat.heard_network.map(echo),
            heard_storage: beat.heard_storage.map(echo),
            route: beat.route,
            goodbye: beat.goodbye,
            drill: beat.drill,
        }
    }
}

impl From<WireBeat> for Beat {
    fn from(wire: WireBeat) -> Self {
        Self {
            sent_at: Time(wire.sent_at),
            next_due: Duration::from_micros(wire.next_due_us.into()),
            loop_age: Duration::from_micros(wire.loop_age_us.into()),
            heard_network: wire.heard_network.map(Echo::from),
            heard_storage: wire.heard_storage.map(Echo::from),
            route: wire.route,
            goodbye: wire.goodbye,
            drill: wire.drill,
        }
    }
}

/// Appends a message to `body`.
pub fn write<T: Serialize>(message: &T, body: Vec<u8>) -> Vec<u8> {
    // Writing into memory cannot fail, and none of our types refuses to be written.
    postcard::to_extend(message, body).unwrap_or_default()
}

/// Reads a message that must fill `body` exactly.
pub fn read<'d, T: Deserialize<'d>>(body: &'d [u8]) -> Option<T> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_and_leave_no_rest() {
        let ack = Control::Ack(Ack {
            express: ChannelAck::default(),
            datagram: ChannelAck {
                cumulative: 7,
                ranges: vec![(1, 2), (3, 4)],
                network: (13, 9),
                storage: (0, 0),
            },
            floors: (1, 2),
            cursors: vec![(true, 99)],
        });
        for message in [ack, Control::Probe { id: 3, padding: Padding(1400) }] {
            let mut body = write(&message, Vec::new());
            assert_eq!(read::<Control>(&body), Some(message));
            body.push(0);
            assert_eq!(read::<Control>(&body), None);
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let body = write(&Control::Ping { id: u64::MAX, back_as_came: true }, Vec::new());
        for end in 0..body.len() {
            assert_eq!(read::<Control>(&body[..end]), None);
        }
    }
}
