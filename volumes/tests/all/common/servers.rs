//! NBD servers for one test, killed also when it fails, and certificates for them.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum At {
    Unix(PathBuf),
    Port(u16),
}

impl At {
    pub fn free_port() -> Self {
        Self::Port(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
    }

    fn answers(&self) -> bool {
        match self {
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Port(port) => TcpStream::connect(("127.0.0.1", *port)).is_ok(),
        }
    }

    pub fn url(&self, export: &str) -> String {
        match self {
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Self::Port(port) => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }

    /// The same under TLS.
    pub fn secure(&self, export: &str, certificates: &Path, name: Option<&str>) -> String {
        let url = self.url(export).replacen("nbd", "nbds", 1);
        let mark = if url.contains('?') { '&' } else { '?' };
        let name = name.map_or_else(String::new, |n| format!("&tls-hostname={n}"));
        format!("{url}{mark}tls-certificates={}{name}", certificates.display())
    }
}

pub(crate) use super::s3::process::Server;

/// Whether a program is there; says that a test is skipped when it is not.
pub fn have(program: &str) -> bool {
    let mut c = Command::new(program);
    c.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    let is = c.status().is_ok_and(|s| s.success());
    if !is {
        println!("SKIPPED: needs {program}");
        assert!(std::env::var_os("SIDEPATH_LAB_REQUIRE").is_none(), "{program} is required");
    }
    is
}

impl Server {
    pub fn nbdkit(at: &At, args: &[&str]) -> Self {
        let mut c = Command::new("nbdkit");
        c.args(["--exit-with-parent", "-f"]);
        match at {
            At::Unix(path) => c.arg("-U").arg(path),
            At::Port(port) => c.args(["-i", "127.0.0.1", "-p", &port.to_string()]),
        };
        Self::start(c.args(args), at)
    }

    pub fn qemu(at: &At, args: &[&str]) -> Self {
        let mut c = Command::new("qemu-nbd");
        c.args(["-t", "-f", "raw"]);
        match at {
            At::Unix(path) => c.arg("-k").arg(path),
            At::Port(port) => c.args(["-b", "127.0.0.1", "-p", &port.to_string()]),
        };
        Self::start(c.args(args), at)
    }

    fn start(c: &mut Command, at: &At) -> Self {
        if let At::Unix(path) = at {
            let _ = std::fs::remove_file(path);
        }
        let quiet = std::env::var_os("SIDEPATH_SERVER_LOG").is_none();
        if quiet {
            c.stderr(Stdio::null());
        }
        let mut server = Self(c.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while !at.answers() {
            if let Some(status) = server.0.try_wait().unwrap() {
                panic!("{c:?} ended: {status}");
            }
            assert!(Instant::now() < until, "{c:?} never listens");
            std::thread::sleep(Duration::from_millis(2));
        }
        server
    }
}

/// Somebody who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A folder that trusts this authority.
    pub fn trusted(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
    }

    /// The same with a certificate for `role`: `server` or `client`.
    pub fn signs(&self, dir: &Path, role: &str, names: &[&str]) {
        self.trusted(dir);
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, role);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match role {
            "server" => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }
}
