//! Verdicts from facts.

use serde::{Deserialize, Serialize};

/// How a path stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Works, seen recently.
    Up,
    /// Late; may be nothing.
    Suspect,
    /// Given up until proven otherwise.
    Down,
    /// Not configured.
    Disabled,
}
