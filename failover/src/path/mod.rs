//! Which path a node's packets to one peer take.

use serde::{Deserialize, Serialize};

/// The route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The network alone.
    Network,
    /// Both at once (hedging, failback).
    Both,
    /// Storage alone.
    Storage,
    /// No path is up.
    Isolated,
}
