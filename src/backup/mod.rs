//! Backup and restore pairs: a tree, or the output of a command, goes to a store at a peer and
//! comes back, by a [data storage system socket](crate::sessions::DataSocket).
//!
//! ```text
//!   tree ── walk, read ──> blocks ── sealer ──> streams ═ storage ═> store: packs, catalogue
//!   tree <── place ─────── blocks <──────────── streams <═ storage ═ store
//! ```

mod block;
mod client;
mod digest;
pub(crate) mod entry;
pub(crate) mod fetch;
mod lay;
pub(crate) mod look;
mod pack;
pub(crate) mod pair;
pub(crate) mod send;
pub(crate) mod serve;
pub(crate) mod source;
pub(crate) mod store;
pub(crate) mod talk;
pub(crate) mod tree;
mod tries;
