//! Dispatch.
use crate::{Input, Options, Time, World, status::Status};

/// A node.
#[derive(Debug)]
pub struct Node {
    options: Options,
}

impl Node {
    /// A node that has heard of nobody yet.
    #[must_use]
    pub fn new(options: Options, _now: Time) -> Self {
        Self { options }
    }
    pub(crate) fn handle(&mut self, _now: Time, _input: Input<'_>, _world: &mut dyn World) {}
    pub(crate) fn finish(&mut self, now: Time, _world: &mut dyn World) -> Time {
        now + std::time::Duration::from_millis(10)
    }
    /// What status shows.
    #[must_use]
    pub fn status(&self, _now: Time) -> Status {
        Status {
            peers: Vec::with_capacity(self.options.peers.len()),
            refused: Default::default(),
            unroutable: 0,
        }
    }
}
