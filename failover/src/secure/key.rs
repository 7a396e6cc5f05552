//! One direction's key of one generation.
//!
//! AES-256-GCM in place, with the whole clear header as associated data. The nonce is the channel
//! and the number, so a number must never be sealed twice; `link` sees to that by sealing each
//! frame once and sending the same bytes again. A channel's position in the nonce keeps channels
//! that share a key apart; beats use a key of their own because another thread seals them.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
};
use zeroize::Zeroizing;

use crate::wire::{Channel, HEADER, Header, TAG};

/// A sealed frame, cheap to clone.
pub type Sealed = bytes::Bytes;

/// Seals or opens the frames of one direction.
#[derive(Clone)]
pub struct FrameKey(Inner);

#[derive(Clone)]
enum Inner {
    Sealed(Arc<LessSafeKey>),
    /// `security.plaintext`: a benchmark's anchor, no protection of any kind.
    Plain,
}

impl fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Inner::Sealed(_) => "FrameKey",
            Inner::Plain => "FrameKey(plaintext)",
        })
    }
}

struct KeyLength;

impl KeyType for KeyLength {
    fn len(&self) -> usize {
        32
    }
}

impl FrameKey {
    /// A key derived from one half of a Noise split. `label` tells its uses apart.
    #[must_use]
    pub fn derive(split: &[u8; 32], label: &[u8]) -> Self {
        let prk: Prk = Salt::new(HKDF_SHA256, b"sidepath frame keys v1").extract(split);
        let mut bytes = Zeroizing::new([0; 32]);
        let label = [label];
        // HKDF refuses only outputs beyond 255 hash lengths; AEAD keys only other lengths than 32.
        let key =
            prk.expand(&label, KeyLength).and_then(|okm| okm.fill(&mut *bytes)).and_then(|()| {
                let algorithm = if fast_aes() { &AES_256_GCM } else { &CHACHA20_POLY1305 };
                UnboundKey::new(algorithm, &*bytes)
            });
        match key {
            Ok(key) => Self(Inner::Sealed(Arc::new(LessSafeKey::new(key)))),
            Err(_) => unreachable!("a 32-byte key was derived and refused"),
        }
    }

    /// No key at all.
    pub(crate) const fn plaintext() -> Self {
        Self(Inner::Plain)
    }

    /// Seals `frame`, which holds [`HEADER`] bytes of room and then the clear body: writes the
    /// header, encrypts the body in place and appends the tag.
    pub fn seal(
        &self,
        channel: Channel,
        (from, to): (u8, u8),
        generation: u32,
        number: u64,
        frame: &mut Vec<u8>,
    ) {
        let sealed = frame.len() - HEADER + TAG;
        let length = u32::try_from(sealed).unwrap_or(u32::MAX);
        Header { channel, from, to, generation, number, length }.write(frame);
        let (header, body) = frame.split_at_mut(HEADER);
        let tag = match &self.0 {
            Inner::Plain => [0; TAG],
            Inner::Sealed(key) => {
                let sealed = key.seal_in_place_separate_tag(
                    nonce(channel, number),
                    Aad::from(&*header),
                    body,
                );
                let mut tag = [0; TAG];
                match sealed {
                    Ok(made) => tag.copy_from_slice(made.as_ref()),
                    // Only bodies beyond 64 GiB are refused.
                    Err(_) => unreachable!("a frame of ordinary size was not sealed"),
                }
                tag
            }
        };
        frame.extend_from_slice(&tag);
    }

    /// Opens `frame` in place; returns the length of the body, which starts at [`HEADER`].
    /// `None` when it was not sealed by the other end of this key exactly so.
    #[must_use]
    pub fn open(&self, header: &Header, frame: &mut [u8]) -> Option<usize> {
        let body_length = frame.len().checked_sub(HEADER + TAG)?;
        match &self.0 {
            Inner::Plain => frame.ends_with(&[0; TAG]).then_some(body_length),
            Inner::Sealed(key) => {
                let (clear, sealed) = frame.split_at_mut(HEADER);
                let aad = Aad::from(&*clear);
                key.open_in_place(nonce(header.channel, header.number), aad, sealed)
                    .ok()
                    .map(|body| body.len())
            }
        }
    }
}

fn nonce(channel: Channel, number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[0] = channel as u8;
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Both ends must choose alike, so this is a property of the target, not of the machine: every
/// x86-64 and AArch64 server of the last decade has AES instructions.
const fn fast_aes() -> bool {
    cfg!(any(target_arch = "x86_64", target_arch = "aarch64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: &FrameKey) -> Vec<u8> {
        let mut frame = vec![0; HEADER];
        frame.extend_from_slice(b"body");
        key.seal(Channel::Datagram, (1, 2), 7, 9, &mut frame);
        frame
    }

    #[test]
    fn opens_what_it_sealed() {
        let key = FrameKey::derive(&[1; 32], b"x");
        let mut frame = sealed(&key);
        let header = Header::read(&frame).unwrap();
        assert_eq!(key.open(&header, &mut frame), Some(4));
        assert_eq!(&frame[HEADER..HEADER + 4], b"body");
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let key = FrameKey::derive(&[1; 32], b"x");
        let frame = sealed(&key);
        for bit in 0..frame.len() * 8 {
            let mut forged = frame.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let Ok(header) = Header::read(&forged) else { continue };
            assert_eq!(key.open(&header, &mut forged), None, "bit {bit}");
        }
    }

    #[test]
    fn other_labels_and_secrets_are_other_keys() {
        let frame = sealed(&FrameKey::derive(&[1; 32], b"x"));
        for other in [FrameKey::derive(&[1; 32], b"y"), FrameKey::derive(&[2; 32], b"x")] {
            let header = Header::read(&frame).unwrap();
            assert_eq!(other.open(&header, &mut frame.clone()), None);
        }
    }
}
