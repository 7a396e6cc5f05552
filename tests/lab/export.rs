//! An NBD server: a disk in somebody else's program, which can be slow, fail, hang, die and return.
//!
//! It listens on a Unix socket, which is reached from every network namespace: what is cut in the
//! lab is the network between nodes, not their way to the storage.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::process::{wait_child, wait_for};
use super::sys;

pub(crate) struct Export {
    socket: PathBuf,
    file: PathBuf,
    /// Errors are returned while it exists.
    trigger: PathBuf,
    /// Where it is told to pause.
    control: PathBuf,
    write_delay_ms: u32,
    server: Mutex<Option<Child>>,
}

impl Export {
    /// Serves a file, each write of which takes so long at least.
    pub(crate) fn start(dir: &Path, mib: u32, write_delay_ms: u32) -> Self {
        let file = dir.join("export.img");
        let made = fs::File::create(&file).and_then(|f| f.set_len(u64::from(mib) << 20));
        made.unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let [socket, trigger, control] =
            ["nbd.sock", "nbd.fails", "nbd.control"].map(|name| dir.join(name));
        let server = Mutex::new(None);
        let export = Self { socket, file, trigger, control, write_delay_ms, server };
        export.restart();
        export
    }

    /// What nodes are configured with.
    pub(crate) fn url(&self) -> PathBuf {
        format!("nbd+unix:///?socket={}", self.socket.display()).into()
    }

    pub(crate) fn restart(&self) {
        for stale in [&self.socket, &self.control] {
            let _ = fs::remove_file(stale);
        }
        let child = Command::new("nbdkit")
            .args(["--exit-with-parent", "-f"])
            .args(["--filter=pause", "--filter=error", "--filter=delay", "-U"])
            .arg(&self.socket)
            .arg("file")
            .arg(format!("file={}", self.file.display()))
            .arg(format!("wdelay={}ms", self.write_delay_ms))
            .args(["error-pwrite-rate=10%", "error-pread-rate=2%"])
            .arg(format!("error-file={}", self.trigger.display()))
            .arg(format!("pause-control={}", self.control.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit");
        *self.server() = Some(child);
        wait_for("nbdkit", Duration::from_secs(10), || {
            UnixStream::connect(&self.socket).map_err(|e| e.to_string())
        });
    }

    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.server().take() {
            let _ = child.kill();
            let _ = wait_child(&mut child, Duration::from_secs(5));
        }
    }

    /// It neither answers nor goes away.
    pub(crate) fn hang(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    /// It greets whoever connects and answers no request.
    pub(crate) fn pause(&self) {
        self.tell(b'p', b'P');
    }

    pub(crate) fn resume(&self) {
        self.tell(b'r', b'R');
    }

    fn tell(&self, word: u8, answer: u8) {
        let mut heard = [0];
        let told = UnixStream::connect(&self.control).and_then(|mut control| {
            control.set_read_timeout(Some(Duration::from_secs(10)))?;
            control.write_all(&[word])?;
            control.read_exact(&mut heard)
        });
        told.unwrap_or_else(|e| panic!("{}: {e}", self.control.display()));
        assert_eq!(heard, [answer], "nbdkit's pause filter");
    }

    fn signal(&self, signal: i32) {
        if let Some(child) = &*self.server() {
            sys::signal(child.id(), signal);
        }
    }

    /// One write in ten and one read in fifty returns EIO.
    pub(crate) fn err(&self) {
        fs::write(&self.trigger, "").expect("a file in our own folder");
    }

    pub(crate) fn err_no_more(&self) {
        let _ = fs::remove_file(&self.trigger);
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.go_on();
        self.kill();
    }
}
