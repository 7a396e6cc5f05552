//! Volumes in object stores: what each server bears, what is refused and why, and that nothing secret
//! is ever said.

use crate::common::loops::Scratch;
use crate::common::s3::door::Door;
use crate::common::s3::{BUCKET, Kind, Store};
use crate::common::servers::Authority;
use std::sync::atomic::Ordering;
use volumes::media::s3::{Connector, Options, S3Device, S3Error, S3Url};
use volumes::media::{BlockDevice, Location, conformance};
use volumes::{InitError, InitOptions, IoFaultKind, Superblock, init, inspect, verify};

fn options(name: &str) -> InitOptions {
    InitOptions { name: name.into(), nodes: vec![1, 2], ..InitOptions::default() }
}

fn place(url: &str) -> Location {
    Location::parse(url).unwrap()
}

fn format(url: &str) -> Superblock {
    init(place(url), &options("lun"), |_, _| {}).unwrap()
}

fn open(url: &str) -> Result<S3Device, S3Error> {
    Connector::new(S3Url::parse(url).unwrap(), Options::new(true)).open()
}

#[test]
fn every_server_bears_a_volume() {
    for kind in Kind::BOTH {
        let dir = Scratch::new("s3-bears");
        let Some(store) = Store::start(kind, &dir.0) else { continue };
        let url = store.url("some/where/lun");
        let volume = format(&url);
        let (writer, reader) = (open(&url).unwrap(), open(&url).unwrap());
        if let Err(e) = conformance::run_volume(&writer, &reader, &volume) {
            panic!("{kind:?}: {e}");
        }
        let (w, r) = (writer.requests().unwrap(), reader.requests().unwrap());
        assert!(w.put > 30 && r.get > 30 && w.sent_bytes > 1 << 20, "{w:?} {r:?}");
        println!("{kind:?}: writer {w:?}, reader {r:?}");
    }
}

#[test]
fn init_destroys_nothing_that_it_was_not_told_to() {
    for kind in Kind::BOTH {
        let dir = Scratch::new("s3-init");
        let Some(store) = Store::start(kind, &dir.0) else { continue };
        let url = store.url("lun7");
        let first = format(&url);
        let e = init(place(&url), &options("lun"), |_, _| {}).unwrap_err();
        assert!(matches!(e, InitError::IsAVolume { .. }), "{e}");
        let force = InitOptions { force: true, ..options("lun") };
        let second = init(place(&url), &force, |_, _| {}).unwrap();
        assert_eq!(second.generation, first.generation + 1);
        let seen = inspect(place(&url)).unwrap();
        assert_eq!((seen.name.as_str(), seen.uuid), ("lun", second.uuid));
        assert!(verify(place(&url)).unwrap().ok);
        // A place above it is not empty, and stays as it is.
        let above = store.url("");
        let e = init(place(&above), &options("x"), |_, _| {}).unwrap_err();
        assert!(matches!(&e, InitError::ForeignObjects { expect, .. } if expect == BUCKET), "{e}");
        assert!(e.is_input_error());
        let by_name = InitOptions { force: true, ..options(BUCKET) };
        init(place(&above), &by_name, |_, _| {}).unwrap();
        assert!(verify(place(&url)).unwrap().ok, "others are left alone");
        let e = inspect(place(&store.url("nothing"))).unwrap_err();
        assert!(e.to_string().contains("no sidepath superblock"), "{e}");
    }
}

#[test]
fn what_is_wrong_is_named_and_no_secret_is_said() {
    let dir = Scratch::new("s3-wrong");
    let Some(store) = Store::start(Kind::S3rver, &dir.0) else { return };
    let url = store.url("lun");
    format(&url);
    let bad = store.credentials("bad", "stranger", "TOPSECRET");
    let with =
        |words: &str| format!("s3://{BUCKET}/lun?endpoint=http://127.0.0.1:{}&{words}", store.port);
    let e = open(&with(&format!("credentials-file={}", bad.display()))).unwrap_err();
    assert!(matches!(&e, S3Error::Denied { code } if code == "InvalidAccessKeyId"), "{e}");
    let said = format!("{e} {e:?}");
    assert!(said.contains("check the credentials") && !said.contains("TOPSECRET"), "{said}");
    let e = open(&with("credentials-file=/nowhere/TOPFILE")).unwrap_err();
    assert!(matches!(e, S3Error::CredentialsFile { .. }) && e.is_input_error(), "{e}");
    let e = open(&url.replace(BUCKET, "other-bucket")).unwrap_err();
    assert!(e == S3Error::NoBucket && e.is_input_error(), "{e}");
    let e = open(&url.replace(&store.port.to_string(), "1")).unwrap_err();
    assert!(matches!(e, S3Error::Connect { .. }) && e.may_pass(), "{e}");
    assert!(e.to_string().contains("refused"), "{e}");
    let device = open(&url).unwrap();
    assert!(!format!("{device:?}").contains("S3RVER"), "{device:?}");
    let e = device.write_at(0, &[7; 4096]).unwrap_err();
    assert!(e.detail.contains("nothing at that place"), "{e}");
}

#[test]
fn only_a_trusted_certificate_is_believed() {
    let dir = Scratch::new("s3-tls");
    let Some(store) = Store::start(Kind::Moto, &dir.0) else { return };
    let (ours, other) = (dir.join("ours"), dir.join("other"));
    Authority::new("ours").signs(&ours, "server", &["127.0.0.1", "localhost"]);
    Authority::new("another").trusted(&other);
    let door = Door::secure(store.port, &ours);
    let url = |host: &str, authority: &std::path::Path| {
        let ca = authority.join("ca-cert.pem");
        let endpoint = format!("https://{host}:{}", door.port);
        format!("{}&ca-file={}", store.url_at("lun", &endpoint), ca.display())
    };
    format(&url("127.0.0.1", &ours));
    assert!(inspect(place(&url("localhost", &ours))).is_ok());
    let e = open(&url("127.0.0.1", &other)).unwrap_err();
    assert!(matches!(&e, S3Error::Tls { detail } if detail.contains("UnknownIssuer")), "{e}");
    assert!(!e.may_pass() && e.to_string().contains("ca-file"), "{e}");
    // Made out to another name.
    let stranger = dir.join("stranger");
    Authority::new("stranger").signs(&stranger, "server", &["nas.example"]);
    let door = Door::secure(store.port, &stranger);
    let endpoint = format!("https://127.0.0.1:{}", door.port);
    let ca = stranger.join("ca-cert.pem");
    let e = open(&format!("{}&ca-file={}", store.url_at("lun", &endpoint), ca.display()));
    let e = e.unwrap_err();
    assert!(matches!(&e, S3Error::Tls { detail } if detail.contains("name")), "{e}");
    // The system's authorities have never heard of ours.
    let e = open(&store.url_at("lun", &endpoint)).unwrap_err();
    assert!(matches!(e, S3Error::Tls { .. }), "{e}");
}

#[test]
fn a_store_that_throttles_or_drops_says_so() {
    let dir = Scratch::new("s3-throttles");
    let Some(store) = Store::start(Kind::Moto, &dir.0) else { return };
    let door = Door::new(store.port);
    let url = store.url_at("lun", &format!("http://127.0.0.1:{}", door.port));
    format(&url);
    let device = open(&url).unwrap();
    door.rules.throttled_percent.store(100, Ordering::Relaxed);
    let mut buf = [0; 4096];
    let began = std::time::Instant::now();
    for _ in 0..4 {
        let e = device.read_at(0, &mut buf).unwrap_err();
        assert_eq!(e.kind, IoFaultKind::Throttled, "{e}");
        assert!(e.detail.contains("SlowDown"), "{e}");
    }
    assert!(began.elapsed().as_millis() > 300, "it slows down");
    assert_eq!(device.requests().unwrap().throttled, 4);
    door.rules.throttled_percent.store(0, Ordering::Relaxed);
    device.read_at(0, &mut buf).unwrap();
    door.rules.dropped_percent.store(100, Ordering::Relaxed);
    let e = device.read_at(0, &mut buf).unwrap_err();
    assert!(e.detail.contains("the connection failed"), "{e}");
    door.rules.dropped_percent.store(0, Ordering::Relaxed);
    device.read_at(0, &mut buf).unwrap();
}
