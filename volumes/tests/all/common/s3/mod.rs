//! S3 servers for one test, killed also when it fails.

pub(crate) mod door;
pub(crate) mod process;

use process::Server;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub(crate) const BUCKET: &str = "sidepath";

/// What kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Python; all in memory; checks no signatures.
    Moto,
    /// JavaScript; files in a folder; checks signatures.
    S3rver,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Moto, Self::S3rver];

    const fn program(self) -> &'static str {
        match self {
            Self::Moto => "moto_server",
            Self::S3rver => "s3rver",
        }
    }

    /// Key and secret that it takes.
    pub(crate) const fn credentials(self) -> (&'static str, &'static str) {
        match self {
            Self::Moto => ("moto", "moto-TOPSECRET"),
            Self::S3rver => ("S3RVER", "S3RVER"),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a test may wait for a program")]
fn runs(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|s| s.success())
}

/// Whether a server's program is there; says that a test is skipped when it is not.
fn have(kind: Kind) -> bool {
    // To ask takes a second: once is enough.
    static FOUND: OnceLock<Mutex<Vec<(Kind, bool)>>> = OnceLock::new();
    let mut found = FOUND.get_or_init(Mutex::default).lock().unwrap();
    if let Some((_, there)) = found.iter().find(|(k, _)| *k == kind) {
        return *there;
    }
    let there = runs(Command::new(kind.program()).arg("--help"));
    found.push((kind, there));
    if !there {
        println!("SKIPPED: needs {}", kind.program());
        let required = std::env::var_os("SIDEPATH_LAB_REQUIRE").is_some();
        assert!(!required, "{} is required; see .ci/run", kind.program());
    }
    there
}

/// A running server with an empty bucket.
pub(crate) struct Store {
    pub(crate) kind: Kind,
    pub(crate) port: u16,
    dir: PathBuf,
    server: Option<Server>,
}

/// Below the ports that the kernel hands out: a client that keeps trying one of those while its server
/// is dead may at last be connected to itself, and the server never gets its port back.
fn free_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let n = u64::from(std::process::id()) * 61 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(12_000 + n % 18_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Store {
    /// Keeps what it needs in that folder. `None`: the server is not there, and the test is to be
    /// skipped.
    pub(crate) fn start(kind: Kind, dir: &Path) -> Option<Self> {
        if !have(kind) {
            return None;
        }
        let dir = dir.join(kind.program());
        std::fs::create_dir_all(&dir).unwrap();
        let mut store = Self { kind, port: free_port(), dir, server: None };
        let (key, secret) = kind.credentials();
        store.credentials("credentials", key, secret);
        store.run();
        Some(store)
    }

    /// Starts it, again after [`Store::kill`].
    pub(crate) fn run(&mut self) {
        let mut c = Command::new(self.kind.program());
        let port = self.port.to_string();
        match self.kind {
            Kind::Moto => c.args(["-H", "127.0.0.1", "-p", &port]),
            Kind::S3rver => {
                let data = self.dir.join("data");
                std::fs::create_dir_all(&data).unwrap();
                c.args(["-a", "127.0.0.1", "-p", &port, "-s", "--configure-bucket", BUCKET, "-d"]);
                c.arg(data)
            }
        };
        c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(Server(c.spawn().unwrap()));
        let until = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "{:?} never listens", self.kind);
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.kind == Kind::Moto {
            let mut s = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
            let request = format!(
                "PUT /{BUCKET} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n"
            );
            s.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            let _ = s.read_to_string(&mut answer);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }

    pub(crate) fn kill(&mut self) {
        self.server = None;
    }

    /// Stops and goes on (`-STOP`, `-CONT`).
    pub(crate) fn signal(&self, name: &str) {
        self.server.as_ref().unwrap().signal(name);
    }

    /// A file of credentials; its path.
    pub(crate) fn credentials(&self, name: &str, key: &str, secret: &str) -> PathBuf {
        let path = self.dir.join(name);
        let text =
            format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(crate) fn url(&self, prefix: &str) -> String {
        self.url_at(prefix, &format!("http://127.0.0.1:{}", self.port))
    }

    pub(crate) fn url_at(&self, prefix: &str, endpoint: &str) -> String {
        let credentials = self.dir.join("credentials");
        let credentials = credentials.display();
        format!("s3://{BUCKET}/{prefix}?endpoint={endpoint}&credentials-file={credentials}")
    }
}
