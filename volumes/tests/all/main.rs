//! Whole volumes on real media: one binary, because each costs a link.

mod common;

mod attach;
mod beats;
mod bench;
mod copy;
mod media;
mod mutated_volumes;
mod nbd;
mod nbd_hostile;
mod nbd_pair;
mod nbd_tls;
mod nbd_volume;
mod nth_failure;
mod power_cut;
mod replicate;
mod replicate_refusals;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod s3_volume;
mod stale_and_rolled_back;
