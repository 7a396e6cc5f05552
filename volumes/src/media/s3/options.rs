//! How to open a store, and how long to be patient.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub write: bool,
    /// For the TCP connection.
    pub connect_deadline: Duration,
    /// For one request, its connection included.
    pub request_deadline: Duration,
    /// How often at most something is read while the store answers that it is in trouble (HTTP 5xx,
    /// or fewer requests, please). What runs for long has its own ways and asks once.
    pub attempts: u32,
}

impl Options {
    #[must_use]
    pub fn new(write: bool) -> Self {
        Self {
            write,
            connect_deadline: Duration::from_secs(3),
            request_deadline: Duration::from_secs(5),
            attempts: 1,
        }
    }

    /// For commands that a person waits for.
    #[must_use]
    pub fn patient(write: bool) -> Self {
        Self { request_deadline: Duration::from_secs(30), attempts: 4, ..Self::new(write) }
    }
}
