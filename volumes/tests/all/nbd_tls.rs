//! NBD under TLS: who is let in, who is not, and that nothing of a key is ever said.

use crate::common::loops::Scratch;
use crate::common::servers::{At, Authority, Server, have};
use std::path::{Path, PathBuf};
use volumes::media::nbd::{HandshakeError, NbdDevice, NbdError, NbdUrl, Options, open};
use volumes::media::{BlockDevice, conformance};

fn connect(url: &str) -> Result<NbdDevice, NbdError> {
    open(&NbdUrl::parse(url).unwrap(), &Options::new(true))
}

/// Certificates of one authority for both sides, and of another one.
struct Pki {
    server: PathBuf,
    client: PathBuf,
    anonymous: PathBuf,
    stranger: PathBuf,
}

impl Pki {
    fn new(dir: &Path) -> Self {
        let sub = |name: &str| dir.join(name);
        let pki = Self {
            server: sub("server"),
            client: sub("client"),
            anonymous: sub("anonymous"),
            stranger: sub("stranger"),
        };
        let ours = Authority::new("ours");
        ours.signs(&pki.server, "server", &["localhost", "127.0.0.1", "nas.example"]);
        ours.signs(&pki.client, "client", &[]);
        ours.trusted(&pki.anonymous);
        Authority::new("another").signs(&pki.stranger, "client", &[]);
        pki
    }
}

fn nbdkit(at: &At, pki: &Pki, mode: &str, more: &[&str]) -> Server {
    let tls = format!("--tls={mode}");
    let certificates = format!("--tls-certificates={}", pki.server.display());
    Server::nbdkit(at, &[&[tls.as_str(), &certificates], more, &["memory", "3M"]].concat())
}

#[test]
fn nbdkit_under_tls_conforms_by_socket_and_by_tcp() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-tls");
    let pki = Pki::new(&dir.0);
    for at in [At::Unix(dir.join("s")), At::free_port()] {
        let _server = nbdkit(&at, &pki, "require", &[]);
        let device = connect(&at.secure("", &pki.anonymous, None)).unwrap();
        assert_eq!(device.connections(), 2, "both under TLS, or the server refuses");
        conformance::run(&device).unwrap();
        // One MiB in both directions at once, more than the socket takes.
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let device = &device;
                scope.spawn(move || {
                    let mut buf = vec![0; 256 << 10];
                    let at = u64::from(thread) * (256 << 10);
                    for round in 0..40 {
                        device.write_at(at, &vec![round ^ thread; buf.len()]).unwrap();
                        device.read_at(at, &mut buf).unwrap();
                        assert!(buf.iter().all(|&b| b == round ^ thread));
                    }
                });
            }
        });
    }
}

#[test]
fn qemu_under_tls_conforms_and_asks_who_we_are() {
    if !have("qemu-nbd") {
        return;
    }
    let dir = Scratch::new("nbd-tls-qemu");
    let pki = Pki::new(&dir.0);
    let file = dir.join("raw");
    std::fs::write(&file, vec![0; 3 << 20]).unwrap();
    let at = At::free_port();
    let creds =
        format!("tls-creds-x509,id=t,endpoint=server,verify-peer=yes,dir={}", pki.server.display());
    let args = ["--object", &creds, "--tls-creds", "t", "-x", "lun", "-e", "4"];
    let _server = Server::qemu(&at, &[&args[..], &[file.to_str().unwrap()]].concat());
    let device = connect(&at.secure("lun", &pki.client, None)).unwrap();
    conformance::run(&device).unwrap();
    for wrong in [&pki.anonymous, &pki.stranger] {
        let e = connect(&at.secure("lun", wrong, None)).unwrap_err();
        assert!(matches!(e, NbdError::Tls { .. }), "{e}");
    }
}

#[test]
fn the_server_must_be_whom_we_expect() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-tls-wrong");
    let pki = Pki::new(&dir.0);
    let at = At::free_port();
    let _server = nbdkit(&at, &pki, "require", &[]);
    connect(&at.secure("", &pki.anonymous, Some("nas.example"))).unwrap();
    let e = connect(&at.secure("", &pki.stranger, None)).unwrap_err();
    assert!(matches!(e, NbdError::Tls { .. }) && e.to_string().contains("UnknownIssuer"), "{e}");
    let e = connect(&at.secure("", &pki.anonymous, Some("other.example"))).unwrap_err();
    assert!(matches!(e, NbdError::Tls { .. }), "{e}");
    let said = e.to_string();
    assert!(said.contains("other.example") && said.contains("nas.example"), "{said}");
    // In the clear, which the server does not want.
    let e = connect(&at.url("")).unwrap_err();
    assert!(matches!(&e, NbdError::Handshake { source: HandshakeError::TlsRequired, .. }), "{e}");
    assert!(e.to_string().contains("nbds://"), "{e}");
}

#[test]
fn a_server_without_tls_gets_nothing_in_the_clear() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-tls-none");
    let pki = Pki::new(&dir.0);
    let at = At::Unix(dir.join("s"));
    let _server = Server::nbdkit(&at, &["memory", "3M"]);
    let e = connect(&at.secure("", &pki.anonymous, None)).unwrap_err();
    assert!(matches!(&e, NbdError::Handshake { source: HandshakeError::NoTls { .. }, .. }), "{e}");
}

#[test]
fn a_server_may_ask_who_we_are() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-tls-client");
    let pki = Pki::new(&dir.0);
    let at = At::Unix(dir.join("s"));
    let _server = nbdkit(&at, &pki, "require", &["--tls-verify-peer"]);
    conformance::run(&connect(&at.secure("", &pki.client, None)).unwrap()).unwrap();
    let e = connect(&at.secure("", &pki.anonymous, None)).unwrap_err();
    assert!(matches!(e, NbdError::Tls { .. }) && e.to_string().contains("certificate"), "{e}");
    // The stranger's certificate, but our authority to check the server with.
    let mixed = dir.join("mixed");
    std::fs::create_dir(&mixed).unwrap();
    std::fs::copy(pki.client.join("ca-cert.pem"), mixed.join("ca-cert.pem")).unwrap();
    for file in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(pki.stranger.join(file), mixed.join(file)).unwrap();
    }
    let e = connect(&at.secure("", &mixed, None)).unwrap_err();
    assert!(matches!(e, NbdError::Tls { .. }) && e.to_string().contains("certificate"), "{e}");
    let key = std::fs::read_to_string(mixed.join("client-key.pem")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!format!("{e} {e:?}").contains(secret));
}

#[test]
fn damaged_certificates_are_named_by_file_and_never_quoted() {
    let dir = Scratch::new("nbd-tls-damaged");
    let pki = Pki::new(&dir.0);
    let at = At::Unix(dir.join("none"));
    let says = |file: &str, word: &str| {
        let e = connect(&at.secure("", &pki.client, None)).unwrap_err();
        let said = format!("{e} {e:?}");
        assert!(matches!(e, NbdError::Certificates { .. }) && e.is_input_error(), "{said}");
        assert!(said.contains(file) && said.contains(word), "{said}");
        assert!(!said.contains("SECRET"), "{said}");
    };
    let (ca, key) = (pki.client.join("ca-cert.pem"), pki.client.join("client-key.pem"));
    let (good_ca, good_key) = (std::fs::read(&ca).unwrap(), std::fs::read(&key).unwrap());
    for damaged in [
        "SECRET",
        "-----BEGIN PRIVATE KEY-----\nSECRET",
        "-----BEGIN SECRET",
        "-----BEGIN PRIVATE KEY-----\nSECRET!\n-----END PRIVATE KEY-----\n",
    ] {
        std::fs::write(&key, damaged).unwrap();
        says("client-key.pem", "no private key");
    }
    Authority::new("x").signs(&dir.join("x"), "client", &[]);
    std::fs::copy(dir.join("x/client-key.pem"), &key).unwrap();
    says("client-key.pem", "with the certificate");
    std::fs::remove_file(&key).unwrap();
    says("client-key.pem", "missing");
    std::fs::write(&key, good_key).unwrap();
    std::fs::write(&ca, "SECRET").unwrap();
    says("ca-cert.pem", "no certificate");
    std::fs::remove_file(&ca).unwrap();
    says("ca-cert.pem", "No such file");
    std::fs::write(&ca, good_ca).unwrap();
    let e = connect(&at.secure("", &pki.client, None)).unwrap_err();
    assert!(matches!(e, NbdError::Connect { .. }), "{e}");
}
