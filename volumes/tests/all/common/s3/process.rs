//! A server's process.

use std::process::{Child, Command};

/// A running server, killed also when the test fails.
pub(crate) struct Server(pub(crate) Child);

impl Server {
    /// Stops and goes on (`-STOP`, `-CONT`).
    #[allow(clippy::disallowed_methods, reason = "a test may wait for a program")]
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
