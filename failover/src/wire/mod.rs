//! Bytes on the wire; `docs/wire.md` shows the same in pictures.
//!
//! Everything that crosses a path is a *frame*: twenty clear bytes, then a sealed body and its
//! tag. The clear bytes say how to open the rest and are authenticated with it. Nothing in them
//! names the path, because the same bytes may cross both.

pub mod control;
pub mod data;
pub mod hello;
pub mod stream;

/// Version of the wire format, the high half of a frame's first byte.
pub const VERSION: u8 = 1;
/// First byte of a beat: version 1, channel 1. The kernel sorts datagrams by it.
pub const FIRST_BYTE_BEAT: u8 = VERSION << 4 | Channel::Beat as u8;
/// Length of the clear header, bytes.
pub const HEADER: usize = 20;
/// Length of the tag that ends a sealed body, bytes.
pub const TAG: usize = 16;
/// What a plain packet grows by inside a datagram, bytes.
pub const OVERHEAD: usize = HEADER + data::PREFIX + TAG;
/// Longest frame, bytes: a super-packet of 64 KiB and its `virtio_net_hdr`, sealed.
pub const FRAME_MAX: usize = HEADER + data::PREFIX + TAG + 65_536 + 64;

/// The sequence spaces of a pair of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Hello and Noise messages; not sealed as frames.
    Handshake = 0,
    /// Beats of the pulse; a key of their own.
    Beat = 1,
    /// Acknowledgements, probes, pulses by storage; neither kept nor acknowledged.
    Control = 2,
    /// Latency-critical packets, kept until acknowledged.
    Express = 3,
    /// All other packets, kept until acknowledged.
    Datagram = 4,
    /// Sessions; numbered against replay only, resent by offset.
    Stream = 5,
}

impl Channel {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Handshake,
            1 => Self::Beat,
            2 => Self::Control,
            3 => Self::Express,
            4 => Self::Datagram,
            5 => Self::Stream,
            _ => return None,
        })
    }
}

/// The clear part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sequence space.
    pub channel: Channel,
    /// Sender's node id, as claimed; the key proves it.
    pub from: u8,
    /// Receiver's node id.
    pub to: u8,
    /// Which key seals it; random, chosen by the initiator of the handshake.
    pub generation: u32,
    /// Number in the channel. For handshake messages: the sender's epoch, as claimed.
    pub number: u64,
    /// Bytes after the header, tag included.
    pub length: u32,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header, or than its header says.
    #[error("truncated")]
    Truncated,
    /// Another version of the format.
    #[error("version")]
    Version,
    /// A field holds what it never holds.
    #[error("malformed")]
    Field,
}

impl Malformed {
    /// The cause as counters name it.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Truncated | Self::Field => "malformed",
        }
    }
}

impl Header {
    /// Writes the header into the first [`HEADER`] bytes of `frame`.
    pub fn write(&self, frame: &mut [u8]) {
        frame[0] = VERSION << 4 | self.channel as u8;
        frame[1] = self.from;
        frame[2] = self.to;
        frame[3] = 0;
        frame[4..8].copy_from_slice(&self.generation.to_le_bytes());
        frame[8..16].copy_from_slice(&self.number.to_le_bytes());
        frame[16..20].copy_from_slice(&self.length.to_le_bytes());
    }

    /// Reads the header of a frame that must fill `bytes` exactly.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<HEADER>().ok_or(Malformed::Truncated)?;
        if header[0] >> 4 != VERSION {
            return Err(Malformed::Version);
        }
        let channel = Channel::from_byte(header[0] & 0x0f).ok_or(Malformed::Field)?;
        if header[3] != 0 {
            return Err(Malformed::Field);
        }
        let length = u32_at(header, 16);
        if bytes.len() - HEADER != length as usize {
            return Err(Malformed::Truncated);
        }
        Ok(Self {
            channel,
            from: header[1],
            to: header[2],
            generation: u32_at(header, 4),
            number: u64_at(header, 8),
            length,
        })
    }
}

/// Little-endian `u32` at a place the caller has checked to exist; zero otherwise.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Little-endian `u64` at a place the caller has checked to exist; zero otherwise.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_golden() {
        let header = Header {
            channel: Channel::Datagram,
            from: 1,
            to: 2,
            generation: 0x0403_0201,
            number: 0x0807_0605_0403_0201,
            length: 3,
        };
        let mut bytes = [0xff; HEADER + 3];
        header.write(&mut bytes);
        assert_eq!(
            bytes[..HEADER],
            [0x14, 1, 2, 0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8, 3, 0, 0, 0]
        );
        assert_eq!(Header::read(&bytes), Ok(header));
        assert_eq!(Header::read(&bytes[..HEADER + 2]), Err(Malformed::Truncated));
        bytes[0] = 0x24;
        assert_eq!(Header::read(&bytes), Err(Malformed::Version));
        bytes[0] = 0x1f;
        assert_eq!(Header::read(&bytes), Err(Malformed::Field));
    }

    #[test]
    fn no_prefix_of_noise_panics() {
        let noise: Vec<u8> = (0..=255).collect();
        for end in 0..noise.len() {
            let _ = Header::read(&noise[..end]);
        }
    }
}
