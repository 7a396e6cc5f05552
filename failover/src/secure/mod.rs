//! Who is who, and sealed bytes.
//!
//! A pair of incarnations agrees on keys by Noise `KK` (`agreement`); the keys of a few
//! generations live in a [`Keyring`]; a [`FrameKey`] seals and opens single frames.

mod agreement;
mod key;
mod keyring;
mod primitives;

pub use agreement::{Agreed, Agreement, HandshakeRefused};
pub use key::{FrameKey, Sealed};
pub use keyring::{Keyring, Opened};
