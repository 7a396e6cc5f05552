//! Pure plans: what to write or read next. No media, no threads, no clock.
//!
//! [`send::Writer`] fills rings, [`receive::Reader`] empties them; [`ring`] keeps account of which
//! places of a ring hold bytes the reader has not read.

pub mod receive;
mod recognise;
pub mod replicate;
pub mod ring;
pub mod send;

#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod writer_tests;
