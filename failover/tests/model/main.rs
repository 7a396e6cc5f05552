//! Two models explored to the last state: who may write to a volume ([`fence`]), and what becomes
//! of a packet when paths come and go ([`link`]).
//!
//! ```sh
//! cargo test -p sidepath-failover --test model                       # small bounds, seconds
//! SIDEPATH_MODEL=long cargo test --release -p sidepath-failover --test model -- --nocapture
//! ```
//!
//! Each test prints how many states it visited and asserts that there were enough of them: a model
//! that lost an action by accident would pass everything. Each property also has *planted bugs*:
//! the same model with one rule left out must be caught by that property and no other way around.

#![allow(clippy::cast_possible_truncation, reason = "a model counts to ten")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the time of an exploration is told, not judged"
)]

mod fence;
mod link;
mod run;
