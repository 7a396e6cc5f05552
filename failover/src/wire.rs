//! Byte formats.
/// First byte of a beat: version 1, channel 1. The kernel sorts datagrams by it.
pub const FIRST_BYTE_BEAT: u8 = 0x11;
