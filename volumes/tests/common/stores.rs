//! S3 servers for one test, killed also when it fails, and a door before them that slows, refuses,
//! throttles and speaks TLS.

use super::loops::Scratch;
use super::servers::Server;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

pub const BUCKET: &str = "sidepath";

/// What kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Python; all in memory; checks no signatures.
    Moto,
    /// JavaScript; files in a folder; checks signatures.
    S3rver,
}

impl Kind {
    pub const BOTH: [Self; 2] = [Self::Moto, Self::S3rver];

    const fn program(self) -> &'static str {
        match self {
            Self::Moto => "moto_server",
            Self::S3rver => "s3rver",
        }
    }

    /// Key and secret that it takes.
    pub const fn credentials(self) -> (&'static str, &'static str) {
        match self {
            Self::Moto => ("moto", "moto-TOPSECRET"),
            Self::S3rver => ("S3RVER", "S3RVER"),
        }
    }
}

/// Where packages of servers are put that are not on the path.
fn shelf() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("s3-servers")
}

#[allow(clippy::disallowed_methods, reason = "a test may wait for an installation")]
fn runs(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|s| s.success())
}

/// The path of a server's program. Only where servers are required are they installed, by name.
fn find(kind: Kind) -> Option<PathBuf> {
    type Looked = Vec<(Kind, Option<PathBuf>)>;
    static FOUND: OnceLock<Mutex<Looked>> = OnceLock::new();
    let mut found = FOUND.get_or_init(Mutex::default).lock().unwrap();
    if let Some((_, path)) = found.iter().find(|(k, _)| *k == kind) {
        return path.clone();
    }
    let path = look_for(kind);
    found.push((kind, path.clone()));
    path
}

fn look_for(kind: Kind) -> Option<PathBuf> {
    let installed = match kind {
        Kind::Moto => shelf().join("venv/bin/moto_server"),
        Kind::S3rver => shelf().join("node_modules/.bin/s3rver"),
    };
    let there = |p: &Path| runs(Command::new(p).arg("--help"));
    let required = std::env::var_os("SIDEPATH_LAB_REQUIRE").is_some();
    for path in [Path::new(kind.program()), &installed] {
        if there(path) {
            return Some(path.into());
        }
    }
    if required {
        std::fs::create_dir_all(shelf()).unwrap();
        // Test binaries that run at the same time install once.
        let lock = std::fs::File::create(shelf().join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        if !there(&installed) {
            match kind {
                Kind::Moto => {
                    runs(Command::new("python3").args(["-m", "venv"]).arg(shelf().join("venv")));
                    let pip = shelf().join("venv/bin/pip");
                    runs(Command::new(pip).args(["install", "-q", "moto[server]"]));
                }
                Kind::S3rver => {
                    let mut npm = Command::new("npm");
                    runs(npm.args(["install", "--silent", "s3rver"]).current_dir(shelf()));
                }
            }
        }
        if there(&installed) {
            return Some(installed);
        }
    }
    println!("SKIPPED: needs {}", kind.program());
    assert!(!required, "{} is required", kind.program());
    None
}

/// A running server with an empty bucket.
pub struct Store {
    pub kind: Kind,
    pub port: u16,
    pub dir: Scratch,
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
    /// `None`: the server is not there, and the test is to be skipped.
    pub fn start(kind: Kind, name: &str) -> Option<Self> {
        find(kind)?;
        let dir = Scratch::new(&format!("s3-{name}-{}", kind.program()));
        let mut store = Self { kind, port: free_port(), dir, server: None };
        let (key, secret) = kind.credentials();
        store.credentials("credentials", key, secret);
        store.run();
        Some(store)
    }

    /// Starts it, again after [`Store::kill`].
    pub fn run(&mut self) {
        let mut c = Command::new(find(self.kind).unwrap());
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

    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Stops and goes on (`-STOP`, `-CONT`).
    pub fn signal(&self, name: &str) {
        self.server.as_ref().unwrap().signal(name);
    }

    /// A file of credentials; its path.
    pub fn credentials(&self, name: &str, key: &str, secret: &str) -> PathBuf {
        let path = self.dir.join(name);
        let text =
            format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub fn url(&self, prefix: &str) -> String {
        self.url_at(prefix, &format!("http://127.0.0.1:{}", self.port))
    }

    pub fn url_at(&self, prefix: &str, endpoint: &str) -> String {
        let credentials = self.dir.join("credentials");
        let credentials = credentials.display();
        format!("s3://{BUCKET}/{prefix}?endpoint={endpoint}&credentials-file={credentials}")
    }
}

/// What the door does to requests; all may be changed at any time.
#[derive(Debug, Default)]
pub struct Rules {
    /// Connections are closed at once.
    pub closed: AtomicBool,
    /// Of a hundred requests so many are answered 503.
    pub throttled_percent: AtomicU64,
    /// Each request waits so long.
    pub delay_ms: AtomicU64,
    /// Of a hundred requests so many are done, and the connection is dropped instead of an answer.
    pub dropped_percent: AtomicU64,
    pub requests: AtomicU64,
}

/// A door before a store; one request a connection.
pub struct Door {
    pub port: u16,
    pub rules: Arc<Rules>,
    open: Arc<AtomicBool>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.open.store(false, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Door {
    pub fn new(to: u16) -> Self {
        Self::open(to, None)
    }

    /// Under TLS, with `server-cert.pem` and `server-key.pem` of that folder.
    pub fn secure(to: u16, certificates: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(certificates.join("server-cert.pem")).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(certificates.join("server-key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self::open(to, Some(Arc::new(config)))
    }

    fn open(to: u16, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (rules, open) = (Arc::new(Rules::default()), Arc::new(AtomicBool::new(true)));
        let (r, o) = (rules.clone(), open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !o.load(Ordering::Relaxed) {
                    return;
                }
                if r.closed.load(Ordering::Relaxed) {
                    continue;
                }
                let (rules, tls) = (r.clone(), tls.clone());
                std::thread::spawn(move || {
                    let _ = client.set_read_timeout(Some(Duration::from_secs(30)));
                    let _ = match tls {
                        None => serve(client, to, &rules),
                        Some(config) => {
                            let session = ServerConnection::new(config).unwrap();
                            serve(StreamOwned::new(session, client), to, &rules)
                        }
                    };
                });
            }
        });
        Self { port, rules, open }
    }
}

fn serve(mut client: impl Read + Write, to: u16, rules: &Rules) -> std::io::Result<()> {
    let mut from = BufReader::new(&mut client);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
        if !name.eq_ignore_ascii_case("connection") {
            head += &line;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    let n = rules.requests.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(rules.delay_ms.load(Ordering::Relaxed)));
    // Spread by a number that shares no factor with 100.
    let lot = n.wrapping_mul(37) % 100;
    if lot < rules.throttled_percent.load(Ordering::Relaxed) {
        let text = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
        let length = text.len();
        write!(
            client,
            "HTTP/1.1 503 Slow Down\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
        )?;
        return client.flush();
    }
    let mut server = TcpStream::connect(("127.0.0.1", to))?;
    server.set_read_timeout(Some(Duration::from_secs(30)))?;
    server.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let _ = server.shutdown(Shutdown::Both);
    if 99 - lot < rules.dropped_percent.load(Ordering::Relaxed) {
        return Ok(());
    }
    client.write_all(&answer)?;
    client.flush()
}
