//! The body of a frame that carries a packet: twenty bytes about it, then the packet.

use super::{u32_at, u64_at};
use crate::Time;

/// Length of the part before the packet, bytes.
pub const PREFIX: usize = 20;

/// The packet starts with a `virtio_net_hdr` and may be a super-packet.
const SUPER: u8 = 1;
/// Its flow changed path: hold it for its predecessor as long as it lives.
const STRICT: u8 = 2;

/// What a data frame says about its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The packet starts with a `virtio_net_hdr` and may be a super-packet.
    pub is_super: bool,
    /// Its flow changed path: hold it for its predecessor as long as it lives.
    pub strict: bool,
    /// Below this number the sender sends nothing again, as of the sealing of this frame.
    pub floor: u64,
    /// The frame before it in its flow, if that was not yet acknowledged.
    pub predecessor: Option<u64>,
    /// When the sender accepted the packet, by the sender's clock.
    pub accepted_at: Time,
}

impl Prefix {
    /// Writes the prefix of frame `number` into the first [`PREFIX`] bytes of `body`.
    pub fn write(&self, number: u64, body: &mut [u8]) {
        let delta =
            |earlier: u64| u32::try_from(number.saturating_sub(earlier)).unwrap_or(u32::MAX);
        body[0] = if self.is_super { SUPER } else { 0 } | if self.strict { STRICT } else { 0 };
        body[1..4].fill(0);
        body[4..8].copy_from_slice(&delta(self.floor).to_le_bytes());
        body[8..12].copy_from_slice(&self.predecessor.map_or(0, delta).to_le_bytes());
        body[12..20].copy_from_slice(&self.accepted_at.micros().to_le_bytes());
    }

    /// Reads the prefix of frame `number`; `None` when the body is too short or makes no sense.
    #[must_use]
    pub fn read(number: u64, body: &[u8]) -> Option<Self> {
        if body.len() < PREFIX || body[0] & !(SUPER | STRICT) != 0 || body[1..4] != [0, 0, 0] {
            return None;
        }
        let floor = number.checked_sub(u64::from(u32_at(body, 4)))?;
        let predecessor = match u32_at(body, 8) {
            0 => None,
            delta => Some(number.checked_sub(u64::from(delta))?),
        };
        Some(Self {
            is_super: body[0] & SUPER != 0,
            strict: body[0] & STRICT != 0,
            floor,
            predecessor,
            accepted_at: Time(u64_at(body, 12)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_round_trips() {
        let prefix = Prefix {
            is_super: true,
            strict: false,
            floor: 90,
            predecessor: Some(98),
            accepted_at: Time(77),
        };
        let mut body = [0xff; PREFIX];
        prefix.write(100, &mut body);
        assert_eq!(body[..12], [1, 0, 0, 0, 10, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(Prefix::read(100, &body), Some(prefix));
        assert_eq!(Prefix::read(5, &body), None, "a floor below zero is refused");
        assert_eq!(Prefix::read(100, &body[..PREFIX - 1]), None);
    }
}
