//! Whole volumes behind NBD: two nodes, a server that dies and returns, and one that returns with
//! something else.

use crate::common::loops::Scratch;
use crate::common::servers::{At, Server, have};
use crate::common::threads::{Facts, clock, numbers, send, try_up, up, wait};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use volumes::media::nbd::{NbdUrl, Options, open};
use volumes::media::{BlockDevice, Location};
use volumes::replicator::{Handle as Copy, replicate};
use volumes::status::VolumeState;
use volumes::{
    AttachError, AttachOptions, BenchOptions, CopyError, CopyOptions, CopyState, Fact, Handle,
    InitError, InitOptions, Pace, Refusal, bench, init, inspect, verify,
};

const BYTES: usize = 4 << 20;

fn options(name: &str) -> InitOptions {
    InitOptions { name: name.into(), nodes: vec![1, 2], ..InitOptions::default() }
}

fn opts(at: &Location, node: u8) -> AttachOptions {
    AttachOptions { beat_interval: Duration::from_millis(20), ..AttachOptions::new(at, node) }
}

fn file_server(at: &At, file: &Path) -> Server {
    Server::nbdkit(at, &["file", file.to_str().unwrap()])
}

fn blank(file: &Path) {
    std::fs::write(file, vec![0; BYTES]).unwrap();
}

#[test]
fn records_flow_while_the_server_dies_and_returns() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-volume");
    let file = dir.join("raw");
    blank(&file);
    for at in [At::Unix(dir.join("s")), At::free_port()] {
        let mut server = Some(file_server(&at, &file));
        let place = Location::parse(&at.url("")).unwrap();
        init(&place, &InitOptions { force: true, ..options("lun") }, |_, _| {}).unwrap();
        let (a, _) = up(opts(&place, 1));
        let (b, b_facts) = up(opts(&place, 2));
        let mut sent = 0;
        for _ in 0..3 {
            send(&a, 2, sent..sent + 500);
            sent += 500;
            // In the middle of it.
            drop(server.take());
            send(&a, 2, sent..sent + 100);
            sent += 100;
            wait("it is noticed", || a.status().state == VolumeState::Failed);
            let reason = a.status().reason.unwrap_or_default();
            assert!(!reason.is_empty());
            server = Some(file_server(&at, &file));
            send(&a, 2, sent..sent + 100);
            sent += 100;
            wait("all so far", || numbers(&b_facts).len() >= sent as usize);
        }
        assert!(numbers(&b_facts).into_iter().eq(0..sent), "in order, none twice, none lost");
        wait("release", || a.status().lanes[0].used_bytes == 0);
        assert_eq!((a.status().state, b.status().state), (VolumeState::Up, VolumeState::Up));
        assert_eq!(a.status().path, place.to_string());
        assert!(a.shutdown(Duration::from_secs(5)) && b.shutdown(Duration::from_secs(5)));
        let report = verify(&place).unwrap();
        assert!(report.ok && report.records.valid > 0, "{report:?}");
        let seen = inspect(&place).unwrap();
        assert!(seen.nodes.iter().all(|n| n.state == "left"), "{seen:?}");
        assert_eq!(seen.path, place.to_string());
    }
}

#[test]
fn nothing_is_written_to_another_volume_that_returns_in_its_place() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-other");
    let (ours, other) = (dir.join("ours"), dir.join("other"));
    let at = At::Unix(dir.join("s"));
    let place = Location::parse(&at.url("")).unwrap();
    for (file, name) in [(&other, "other"), (&ours, "ours")] {
        blank(file);
        let _server = file_server(&at, file);
        init(&place, &options(name), |_, _| {}).unwrap();
    }
    let before = std::fs::read(&other).unwrap();
    let mut server = file_server(&at, &ours);
    // A permit that outlives the change: only that the medium was opened anew keeps it from use.
    let slow = AttachOptions { beat_interval: Duration::from_secs(2), ..opts(&place, 1) };
    let (a, a_facts) = try_up(slow).unwrap();
    wait("attach", || a.epoch() != 0);
    let (_b, b_facts) = up(opts(&place, 2));
    let fenced = || {
        let is = |f: &&Fact| matches!(f, Fact::Fenced { .. });
        a_facts.lock().unwrap().iter().filter(is).count()
    };
    let mut sent = 0;
    for round in 0..5 {
        send(&a, 2, sent..sent + 100);
        sent += 100;
        wait("all so far", || numbers(&b_facts).len() == sent as usize);
        let seen = fenced();
        drop(server);
        let stranger = file_server(&at, &other);
        send(&a, 2, sent..sent + 100);
        sent += 100;
        wait("it is seen", || fenced() > seen);
        // What would be written by mistake is written by now.
        std::thread::sleep(Duration::from_millis(200));
        drop(stranger);
        assert!(std::fs::read(&other).unwrap() == before, "not a byte, in round {round}");
        server = file_server(&at, &ours);
    }
    wait("all", || numbers(&b_facts).len() == sent as usize);
    assert!(numbers(&b_facts).into_iter().eq(0..sent));
}

#[test]
fn one_daemon_per_node_and_host_and_no_init_over_a_living_volume() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-lock");
    let at = At::Unix(dir.join("s"));
    let _server = Server::nbdkit(&at, &["memory", "4M"]);
    let place = Location::parse(&at.url("lun")).unwrap();
    init(&place, &options("lun"), |_, _| {}).unwrap();
    let (a, _) = up(opts(&place, 1));
    // The same volume under another name.
    let e = try_up(opts(&Location::parse(&at.url("")).unwrap(), 1)).unwrap_err();
    assert!(matches!(e, AttachError::Locked { node: 1, .. }), "{e}");
    let force = InitOptions { force: true, ..options("lun") };
    let e = init(&place, &force, |_, _| {}).unwrap_err();
    assert!(matches!(e, InitError::Attached { .. }), "{e}");
    let e = init(&place, &options("lun"), |_, _| {}).unwrap_err();
    assert!(matches!(e, InitError::IsAVolume { .. }), "{e}");
    assert!(a.shutdown(Duration::from_secs(5)));
    init(&place, &force, |_, _| {}).unwrap();
}

#[test]
fn foreign_data_goes_only_by_the_name_of_the_export() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-foreign");
    let at = At::Unix(dir.join("s"));
    let _server = Server::nbdkit(&at, &["memory", "4M"]);
    let url = at.url("lun7");
    let device = open(&NbdUrl::parse(&url).unwrap(), &Options::new(true)).unwrap();
    device.write_at(1024, &[0x53; 512]).unwrap();
    let place = Location::parse(&url).unwrap();
    let e = init(&place, &InitOptions { force: true, ..options("x") }, |_, _| {}).unwrap_err();
    assert!(matches!(&e, InitError::Foreign { expect, .. } if expect == "lun7"), "{e}");
    init(&place, &InitOptions { force: true, ..options("lun7") }, |_, _| {}).unwrap();
}

#[test]
fn a_server_is_waited_for_and_a_wrong_export_is_named() {
    if !have("qemu-nbd") {
        return;
    }
    let dir = Scratch::new("nbd-wait");
    let (file, at) = (dir.join("raw"), At::Unix(dir.join("s")));
    blank(&file);
    let args = ["-x", "lun", "-e", "8", file.to_str().unwrap()];
    let place = Location::parse(&at.url("lun")).unwrap();
    {
        let _server = Server::qemu(&at, &args);
        init(&place, &options("lun"), |_, _| {}).unwrap();
        let e = try_up(opts(&Location::parse(&at.url("other")).unwrap(), 1)).unwrap_err();
        assert!(e.to_string().contains("no export \"other\"") && e.is_input_error(), "{e}");
    }
    let e = try_up(opts(&place, 1)).unwrap_err();
    assert!(!e.is_input_error() && e.may_pass(), "{e}");
    let o = AttachOptions { wait_for_medium: true, ..opts(&place, 1) };
    let (a, _) = try_up(o).unwrap();
    wait("why", || a.status().reason.unwrap_or_default().contains("cannot connect"));
    {
        // Something of another size, which was never ours.
        let _server = Server::nbdkit(&at, &["memory", "1M"]);
        wait("it is looked at", || a.status().reason.unwrap_or_default().contains("no sidepath"));
    }
    let _server = Server::qemu(&at, &args);
    wait("attached", || a.epoch() != 0);
}

#[test]
fn the_bench_measures_an_idle_volume() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-bench");
    let at = At::Unix(dir.join("s"));
    let _server = Server::nbdkit(&at, &["memory", "40M"]);
    let place = Location::parse(&at.url("")).unwrap();
    init(&place, &options("lun"), |_, _| {}).unwrap();
    let o = BenchOptions { duration: Duration::from_millis(300), ..BenchOptions::default() };
    let report = bench(&place, &o).unwrap();
    assert!(report.record_latency.samples > 0 && report.record_mb_s > 0.0, "{report:?}");
    println!("{report:#?}");
}

fn copy(from: &Location, to: &Location, pace: Pace) -> Copy {
    let o = CopyOptions { single_host: true, ..CopyOptions::new(from, to, pace) };
    replicate(o, clock(), Arc::new(|_| {})).unwrap()
}

fn once(from: &Location, to: &Location) -> Result<(), Arc<CopyError>> {
    copy(from, to, Pace::Once).wait(Duration::from_secs(60)).expect("it never ends")
}

/// A file, then an export, then a file again: the same volume with the same records each time, and
/// what may not be copied is not, also when places are URLs.
#[test]
fn a_volume_is_copied_to_an_export_and_back() {
    if !have("nbdkit") {
        return;
    }
    let dir = Scratch::new("nbd-copy");
    let send = Location::from(dir.join("send"));
    let bytes = BYTES.to_string();
    let o = InitOptions { single_host: true, size: Some(4 << 20), ..options("lun") };
    init(&send, &o, |_, _| {}).unwrap();
    let (a, _) = {
        let o = AttachOptions { single_host: true, ..opts(&send, 1) };
        let up = try_up(o).unwrap();
        wait("attach", || up.0.epoch() != 0);
        up
    };
    let (raw, at) = (dir.join("raw"), At::Unix(dir.join("s")));
    blank(&raw);
    let _file = file_server(&at, &raw);
    let export = Location::parse(&at.url("")).unwrap();
    let memory = At::Unix(dir.join("m"));
    let _memory = Server::nbdkit(&memory, &["memory", &bytes]);
    let memory = Location::parse(&memory.url("")).unwrap();

    // Followed into an export, and read there by the other node.
    let following = copy(&send, &export, Pace::Follow);
    wait("made", || following.status().state == CopyState::InSync);
    let (b, b_facts) = try_up(AttachOptions { sends: false, ..opts(&export, 2) }).unwrap();
    wait("attach", || b.epoch() != 0);
    send_all(&a, &following, &b_facts, 150);
    assert_eq!(following.status().destination, export.to_string());
    assert_eq!(following.status().counters.missing, 0);
    // A second replicator meets the first one's name.
    let e = once(&send, &export).unwrap_err();
    assert!(matches!(&*e, CopyError::Locked { .. }), "{e}");
    assert!(following.stop(Duration::from_secs(5)) && b.shutdown(Duration::from_secs(5)));
    assert!(a.shutdown(Duration::from_secs(5)));

    // Once into memory behind a server, and once from there: no, a replica is no source.
    once(&send, &memory).unwrap();
    let original = inspect(&send).unwrap();
    for place in [&export, &memory] {
        let seen = inspect(place).unwrap();
        assert!(seen.replica && seen.uuid == original.uuid, "{seen:?}");
        let report = verify(place).unwrap();
        assert!(report.ok && report.records.valid > 0, "{report:?}");
    }
    let back = Location::from(dir.join("back"));
    let e = once(&memory, &back).unwrap_err();
    assert!(matches!(&*e, CopyError::Refused { why: Refusal::SourceIsReplica { .. }, .. }), "{e}");
    assert!(!dir.join("back").exists());
    let e = once(&memory, &memory).unwrap_err();
    assert!(matches!(&*e, CopyError::Refused { .. } | CopyError::Same { .. }), "{e}");

    // An original behind a server is a source: the same records come out of it.
    drop(_file);
    std::fs::copy(dir.join("send"), &raw).unwrap();
    let _file = file_server(&at, &raw);
    let e = once(&export, &export).unwrap_err();
    assert!(matches!(&*e, CopyError::Same { .. }), "{e}");
    once(&export, &back).unwrap();
    let (there, here) = (verify(&export).unwrap(), verify(&back).unwrap());
    assert!(here.ok && inspect(&back).unwrap().replica, "{here:?}");
    assert_eq!(here.records.valid, there.records.valid);
    assert_eq!(inspect(&export).unwrap().nodes[0].beat, inspect(&back).unwrap().nodes[0].beat);
}

/// All of them arrive, in order.
fn send_all(a: &Handle, following: &Copy, b_facts: &Facts, count: u32) {
    send(a, 2, 0..count);
    wait("all of them", || numbers(b_facts).len() >= count as usize);
    assert!(numbers(b_facts).into_iter().eq(0..count), "in order, none twice, none lost");
    wait("in sync", || following.status().state == CopyState::InSync);
}
