//! From packets to frames and back, once each.
//!
//! A registered letter gets a number, a carbon copy stays in the office until the receipt comes,
//! and a lost letter is sent again as the very same copy, by whichever road is open. [`Sender`]
//! is the office, [`Receiver`] the mailbox that signs receipts and throws second copies away.
//! Neither knows which road is which beyond counting them: the choice of a path is not made here.
//!
//! Each kept channel (express, datagram) has one of each. Numbers start at 1 per pair of
//! incarnations and run on across re-keys.

mod receiver;
mod sender;
mod window;

#[cfg(test)]
mod sender_tests;

pub(crate) use receiver::{Arrival, Delivery, Receiver};
pub(crate) use sender::{Sealer, Sender};
pub(crate) use window::{Insert, Window};

/// A sender never numbers further above its floor than this: half of the duplicate window.
pub(crate) const NUMBERS_MAX: u64 = window::SIZE / 2;
