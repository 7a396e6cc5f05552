//! How to open a store, and how long to be patient.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub write: bool,
    /// For the TCP connection.
    pub connect_deadline: Duration,
    /// For one request, its connection included.
    pub request_deadline: Duration,
}

impl Options {
    #[must_use]
    pub fn new(write: bool) -> Self {
        Self {
            write,
            connect_deadline: Duration::from_secs(3),
            request_deadline: Duration::from_secs(5),
        }
    }

    /// For commands that a person waits for.
    #[must_use]
    pub fn patient(write: bool) -> Self {
        Self { request_deadline: Duration::from_secs(30), ..Self::new(write) }
    }
}
