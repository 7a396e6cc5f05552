//! Keys.
/// A key.
#[derive(Debug, Clone)]
pub struct FrameKey;
