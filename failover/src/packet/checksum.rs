//! Internet checksums (RFC 1071), as far as segmentation and completion need them.

/// Adds big-endian 16-bit words of `bytes` to a running sum; an odd last byte counts as high half.
pub(super) fn add(mut sum: u32, bytes: &[u8]) -> u32 {
    // Two bytes at a time into 32 bits cannot overflow below 128 KiB of input.
    let mut chunks = bytes.chunks_exact(2);
    for pair in &mut chunks {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    if let [last] = chunks.remainder() {
        sum += u32::from(*last) << 8;
    }
    sum
}

/// Folds a sum into the checksum field's value.
pub(super) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[allow(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    let folded = sum as u16;
    !folded
}

/// Sum over the pseudo header of an IP packet's transport part of `length` bytes.
pub(super) fn pseudo(ip: &[u8], protocol: u8, length: usize) -> u32 {
    let addresses = if ip[0] >> 4 == 4 { ip.get(12..20) } else { ip.get(8..40) };
    let length = u32::try_from(length).unwrap_or(0);
    add(u32::from(protocol) + (length >> 16) + (length & 0xffff), addresses.unwrap_or_default())
}

/// Completes a checksum the kernel left to hardware: sums from `start` to the end and writes at
/// `start + offset`, where the pseudo-header sum stands already. False when that lies outside.
pub(super) fn complete(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(field) = start.checked_add(offset) else { return false };
    if field + 2 > packet.len() {
        return false;
    }
    let mut sum = fold(add(0, &packet[start..]));
    // A UDP checksum of zero means none (RFC 768); its other form is all ones.
    if sum == 0 {
        sum = 0xffff;
    }
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}
