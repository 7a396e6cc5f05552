//! An NBD server, ended also when the test fails.

use std::{
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::room::Room;

pub(crate) struct Nbdkit {
    server: Child,
    socket: PathBuf,
}

impl Nbdkit {
    /// In the test's folder. `None`, and a word about it, where the program is not installed.
    pub(crate) fn start(room: &Room, arguments: &[&str]) -> Option<Self> {
        let socket = room.join("nbdkit.sock");
        let mut command = Command::new("nbdkit");
        command
            .args(["--exit-with-parent", "-f", "-U"])
            .arg(&socket)
            .args(arguments)
            .current_dir(room.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let Ok(server) = command.spawn() else {
            println!("SKIPPED: needs nbdkit");
            assert!(std::env::var_os("SIDEPATH_LAB_REQUIRE").is_none(), "nbdkit is required");
            return None;
        };
        let nbdkit = Self { server, socket };
        let until = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&nbdkit.socket).is_err() {
            assert!(Instant::now() < until, "nbdkit never listens");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(nbdkit)
    }

    pub(crate) fn url(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
