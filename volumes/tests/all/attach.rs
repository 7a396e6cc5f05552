//! Volumes as a program uses them: init, attach, store, receive, faults, shutdown.

use crate::common::loops::{Loop, Scratch};
use crate::common::threads::{Facts, frames, sink, wait};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use volumes::log::receive::Mode;
use volumes::media::{BlockDevice, FaultDevice, MemoryDevice, conformance};
use volumes::runtime::{Clock, attach_to};
use volumes::status::VolumeState;
use volumes::{
    AttachError, AttachOptions, Fact, Handle, InitError, InitOptions, IoFaultKind, Refused, Ring,
};
use volumes::{attach, init, inspect, verify};

fn options(name: &str) -> InitOptions {
    InitOptions {
        name: name.into(),
        nodes: vec![1, 2],
        size: Some(4 << 20),
        single_host: true,
        ..InitOptions::default()
    }
}

fn clock() -> Clock {
    let began = Instant::now();
    Arc::new(move || u64::try_from(began.elapsed().as_micros()).unwrap())
}

fn opts(path: &Path, node: u8) -> AttachOptions {
    AttachOptions {
        single_host: true,
        beat_interval: Duration::from_millis(20),
        io_deadline: Duration::from_millis(200),
        ..AttachOptions::new(path, node)
    }
}

fn up(path: &Path, node: u8) -> (Handle, Facts) {
    let (facts, sink) = sink();
    let handle = attach(opts(path, node), clock(), sink).unwrap();
    wait("attach", || handle.epoch() != 0);
    (handle, facts)
}

#[test]
fn a_reader_waits_for_whoever_has_just_made_the_replica() {
    let dir = Scratch::new("made");
    let path = dir.join("v");
    init(&path, &options("lun"), |_, _| {}).unwrap();
    // As `init` and the making of a replica hold it.
    let whole = volumes::lock::take(&path, 0, 0).unwrap().unwrap();
    let sender = attach(opts(&path, 1), clock(), sink().1);
    assert!(matches!(sender, Err(AttachError::Locked { node: 1, .. })), "{sender:?}");
    let maker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(whole);
    });
    let reads = AttachOptions { sends: false, ..opts(&path, 1) };
    let reader = attach(reads, clock(), sink().1).unwrap();
    maker.join().unwrap();
    assert!(reader.shutdown(Duration::from_secs(5)));
}

#[test]
fn frames_and_mailboxes_cross_and_the_volume_verifies() {
    let dir = Scratch::new("cross");
    let path = dir.join("v");
    let mut steps = 0;
    init(&path, &options("lun"), |_, _| steps += 1).unwrap();
    assert_eq!(steps, 4);
    let (a, a_facts) = up(&path, 1);
    let (b, b_facts) = up(&path, 2);
    wait("each other", || {
        let is = |f: &Facts| f.lock().unwrap().iter().any(|f| matches!(f, Fact::PeerBeat { .. }));
        is(&a_facts) && is(&b_facts)
    });
    a.mailbox(2, b"key").unwrap();
    for i in 0..3000u32 {
        while a.store(2, Ring::Data, &[&i.to_le_bytes()[..], &[0; 900]].concat()).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    wait("all frames", || frames(&b_facts).len() == 3000);
    for (i, frame) in frames(&b_facts).iter().enumerate() {
        assert_eq!(frame[..4], u32::try_from(i).unwrap().to_le_bytes());
    }
    let key = |f: &Fact| matches!(f, Fact::Mailbox { from: 1, bytes } if bytes == &b"key"[..]);
    wait("mailbox", || b_facts.lock().unwrap().iter().any(key));
    wait("release", || a.status().lanes[0].used_bytes == 0);
    assert_eq!(a.status().state, VolumeState::Up);
    assert!(matches!(
        init(&path, &InitOptions { force: true, ..options("lun") }, |_, _| {}),
        Err(InitError::Attached { .. } | InitError::Live { .. })
    ));
    let again = attach(opts(&path, 1), clock(), sink().1);
    assert!(matches!(again, Err(AttachError::Locked { node: 1, .. })), "{again:?}");
    assert!(a.shutdown(Duration::from_secs(5)));
    assert!(b.shutdown(Duration::from_secs(5)));
    let report = verify(&path).unwrap();
    assert!(report.ok && report.records.valid > 0, "{report:?}");
    let seen = inspect(&path).unwrap();
    assert!(seen.nodes.iter().all(|n| n.state == "left"), "{seen:?}");
    assert_eq!((seen.name.as_str(), seen.lanes.len()), ("lun", 4));
}

#[test]
fn what_an_operator_can_get_wrong_is_named() {
    let dir = Scratch::new("wrong");
    let path = dir.join("v");
    let try_attach = |o: AttachOptions| attach(o, clock(), sink().1).err().unwrap();
    assert!(matches!(try_attach(opts(&path, 1)), AttachError::Open(_)));
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    assert!(matches!(try_attach(opts(&path, 1)), AttachError::Format { .. }));
    std::fs::remove_file(&path).unwrap();
    init(&path, &options("lun"), |_, _| {}).unwrap();
    let e = try_attach(opts(&path, 9));
    assert!(matches!(e, AttachError::UnknownNode { node: 9, .. }) && e.is_input_error());
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(3 << 20).unwrap();
    assert!(matches!(try_attach(opts(&path, 1)), AttachError::TooSmall { .. }));
}

#[test]
fn init_destroys_nothing_that_somebody_may_need() {
    let dir = Scratch::new("safety");
    let path = dir.join("disk");
    let none = |o: &InitOptions| init(&path, o, |_, _| {});
    let e = none(&InitOptions { size: None, ..options("a") }).unwrap_err();
    assert!(matches!(e, InitError::NeedsSize { .. }) && e.is_input_error());
    let e = none(&InitOptions { size: Some(500 << 10), ..options("a") }).unwrap_err();
    assert!(matches!(e, InitError::TooSmall { need, .. } if need > 900 << 10), "{e}");
    assert!(!path.exists(), "nothing is left behind");
    for nodes in [vec![1], vec![1, 1], vec![0, 1], vec![1, 65]] {
        assert!(matches!(
            none(&InitOptions { nodes, ..options("a") }),
            Err(InitError::Nodes { .. })
        ));
    }
    // A file system, foreign bytes: refused, also with force and another name.
    for (at, what) in [(1080, &b"\x53\xef"[..]), (510, b"\x55\xaa"), (700_000, b"precious")] {
        let mut bytes = vec![0; 4 << 20];
        bytes[at..at + what.len()].copy_from_slice(what);
        std::fs::write(&path, &bytes).unwrap();
        for force in [false, true] {
            let e = none(&InitOptions { force, ..options("a") }).unwrap_err();
            assert!(matches!(e, InitError::Foreign { .. }), "{e}");
            assert!(std::fs::read(&path).unwrap() == bytes, "untouched");
        }
    }
    none(&InitOptions { force: true, ..options("disk") }).unwrap();
    // Now it is a volume.
    assert!(matches!(none(&options("disk")), Err(InitError::IsAVolume { .. })));
    let wrong = InitOptions { force: true, ..options("other") };
    assert!(matches!(none(&wrong), Err(InitError::IsAVolume { .. })));
    let anew = none(&InitOptions { force: true, ..options("disk") }).unwrap();
    assert_eq!(anew.generation, 2);
    // Zeros may be taken without force; the file keeps its length.
    std::fs::write(&path, vec![0; 5 << 20]).unwrap();
    none(&options("zero")).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 5 << 20);
}

#[test]
fn words_that_init_cannot_follow_are_named() {
    let dir = Scratch::new("words");
    let path = dir.join("disk");
    let says = |o: &InitOptions| {
        let e = init(&path, o, |_, _| {}).unwrap_err();
        assert!(e.is_input_error(), "{e}");
        e.to_string()
    };
    for name in ["", "two words", "bell\u{7}", &"n".repeat(64)] {
        let said = says(&options(name));
        assert!(said.contains("--name"), "{name:?}: {said}");
    }
    for sector in [0, 256, 1000, 131_072] {
        let said = says(&InitOptions { sector: Some(sector), ..options("a") });
        assert!(said.contains("power of two"), "{sector}: {said}");
    }
    for lane in [0, 4096, (256 << 10) + 1, 5 << 30] {
        let said = says(&InitOptions { lane_size: Some(lane), ..options("a") });
        assert!(said.contains("--lane-size"), "{lane}: {said}");
    }
    assert!(!path.exists(), "nothing is left behind");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let said = says(&options("a"));
    assert!(said.contains("it has 1048576 bytes"), "{said}");
    init(&path, &InitOptions { size: None, ..options(&"n".repeat(63)) }, |_, _| {}).unwrap();
}

/// What the turn loop tells a volume reaches the machine it is meant for.
#[test]
fn a_handle_passes_on_what_it_is_told() {
    let dir = Scratch::new("handle");
    let path = dir.join("v");
    let o = AttachOptions { wait_for_medium: true, ..opts(&path, 1) };
    let early = attach(o, clock(), sink().1).unwrap();
    assert_eq!(early.store(2, Ring::Data, b"x"), Err(Refused::NotAttached));
    assert_eq!(early.mailbox(2, b"x"), Err(Refused::NotAttached));
    assert_eq!(early.frame_bytes_max(Ring::Data), 0);
    assert!(early.shutdown(Duration::from_secs(5)));

    init(&path, &options("lun"), |_, _| {}).unwrap();
    let (a, _) = up(&path, 1);
    // Nobody reads: what the peer is said to have read is free again, and a new incarnation of
    // it wants nothing of the old.
    let max = a.frame_bytes_max(Ring::Data);
    a.store(2, Ring::Data, &vec![1; max]).unwrap();
    assert_eq!(a.store(2, Ring::Data, &vec![1; max + 1]), Err(Refused::TooLarge));
    let used = || a.status().lanes[0].used_bytes;
    let written = |n| wait("written", || a.status().counters.records_written == n);
    written(1);
    assert!(used() > max as u64);
    a.released(2, Ring::Data, 1);
    assert_eq!(used(), 0);
    a.store(2, Ring::Express, b"x").unwrap();
    written(2);
    assert_eq!(used(), 4096);
    a.reset_lane(2);
    assert_eq!(used(), 0);

    let (b, b_facts) = up(&path, 2);
    let beats = |f: &Fact| matches!(f, Fact::PeerBeat { node: 1, .. });
    wait("each other", || b_facts.lock().unwrap().iter().any(beats));
    b.set_reader_mode(Mode::Standby { interval: 3_600_000_000 });
    a.set_beat_interval(Duration::from_secs(2));
    std::thread::sleep(Duration::from_millis(100));
    a.store(2, Ring::Express, b"knock").unwrap();
    written(3);
    // Until the next beat announces it, only a doorbell tells.
    b.wake_reader();
    wait("read", || frames(&b_facts) == [&b"knock"[..]]);
    for handle in [a, b] {
        assert!(handle.shutdown(Duration::from_secs(10)));
    }
}

fn memory_volume() -> (Arc<FaultDevice<MemoryDevice>>, Scratch) {
    let dir = Scratch::new("memory");
    let path = dir.join("v");
    init(&path, &options("mem"), |_, _| {}).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let memory = MemoryDevice::new(bytes.len() as u64);
    memory.restore(bytes);
    (Arc::new(FaultDevice::new(memory)), dir)
}

#[test]
fn a_stuck_operation_is_told_and_shutdown_does_not_wait_for_it() {
    let (device, dir) = memory_volume();
    let (facts, sink) = sink();
    let d = device.clone();
    let handle = attach_to(
        opts(&dir.join("v"), 1),
        Arc::new(move || Ok(d.clone() as Arc<dyn BlockDevice>)),
        clock(),
        sink,
    )
    .unwrap();
    wait("attach", || handle.epoch() != 0);
    device.stall(true);
    let has = |what: fn(&Fact) -> bool| facts.lock().unwrap().iter().any(what);
    wait("stalled", || has(|f| matches!(f, Fact::Stalled { .. })));
    assert_eq!(handle.status().state, VolumeState::Stalled);
    device.stall(false);
    wait("recovered", || has(|f| matches!(f, Fact::Recovered)));
    wait("up", || handle.status().state == VolumeState::Up);
    device.fail_writes(Some(IoFaultKind::ReadOnly));
    wait("failed", || handle.status().state == VolumeState::Failed);
    device.fail_writes(None);
    wait("up again", || handle.status().state == VolumeState::Up);
    device.fail_reads(Some(IoFaultKind::Eio));
    wait("blind", || handle.status().state == VolumeState::Failed);
    device.fail_reads(None);
    wait("it sees again", || handle.status().state == VolumeState::Up);
    device.stall(true);
    std::thread::sleep(Duration::from_millis(100));
    assert!(!handle.shutdown(Duration::from_millis(100)), "a thread was left behind");
    device.stall(false);
}

#[test]
fn a_medium_that_vanishes_is_found_again() {
    let dir = Scratch::new("vanish");
    let (path, aside) = (dir.join("v"), dir.join("w"));
    init(&path, &options("lun"), |_, _| {}).unwrap();
    std::fs::rename(&path, &aside).unwrap();
    let (_facts, s) = sink();
    let o = AttachOptions { wait_for_medium: true, ..opts(&path, 1) };
    let a = attach(o, clock(), s).unwrap();
    assert_eq!(a.status().state, VolumeState::Attaching);
    std::fs::rename(&aside, &path).unwrap();
    wait("attach", || a.epoch() != 0);
    let (b, b_facts) = up(&path, 2);
    std::thread::sleep(Duration::from_millis(100));
    std::fs::rename(&path, &aside).unwrap();
    wait("failed", || a.status().state == VolumeState::Failed);
    std::fs::rename(&aside, &path).unwrap();
    wait("up", || a.status().state == VolumeState::Up && b.status().state == VolumeState::Up);
    a.store(2, Ring::Express, b"back").unwrap();
    wait("frame", || !frames(&b_facts).is_empty());
}

/// The loss it prevents: a node whose entry was rolled back stayed off the volume until somebody
/// restarted its daemon, unnoticed while the network worked.
#[test]
fn a_roll_back_under_running_nodes_is_survived() {
    let dir = Scratch::new("rollback");
    let path = dir.join("v");
    init(&path, &options("lun"), |_, _| {}).unwrap();
    let blank = std::fs::read(&path).unwrap();
    let (a, _) = up(&path, 1);
    let (b, b_facts) = up(&path, 2);
    let frame = |i: u32| [&i.to_le_bytes()[..], &[7; 900]].concat();
    for i in 0..50 {
        a.store(2, Ring::Data, &frame(i)).unwrap();
    }
    wait("the first frames", || frames(&b_facts).len() == 50);
    let used = std::fs::read(&path).unwrap();
    let mut number = 50;
    for image in [&blank, &used] {
        let epochs = [a.epoch(), b.epoch()];
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        // In place, as an array does: the file stays the same. A beat that is under way meanwhile
        // puts the newer entry back, and its node has nothing to notice: rolled back once more.
        let mut put = None;
        wait("a greater epoch", || {
            if put.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(5)) {
                std::os::unix::fs::FileExt::write_all_at(&file, image, 0).unwrap();
                put = Some(Instant::now());
            }
            a.epoch() > epochs[0] && b.epoch() > epochs[1]
        });
        wait("up", || [&a, &b].iter().all(|h| h.status().state == VolumeState::Up));
        assert_eq!(frames(&b_facts).len(), usize::try_from(number).unwrap(), "nothing old again");
        for _ in 0..50 {
            a.store(2, Ring::Data, &frame(number)).unwrap();
            number += 1;
        }
        wait("new frames", || frames(&b_facts).len() == usize::try_from(number).unwrap());
    }
    for (i, frame) in frames(&b_facts).iter().enumerate() {
        assert_eq!(frame[..4], u32::try_from(i).unwrap().to_le_bytes());
    }
    for handle in [a, b] {
        assert!(handle.shutdown(Duration::from_secs(10)));
    }
}

/// The loss it prevents: a restarted daemon took a dead one's last beat that landed late, or a
/// roll-back, for a living twin, and stayed off the volume for good.
#[test]
fn a_late_beat_and_a_roll_back_are_no_living_twin() {
    use std::os::unix::fs::FileExt;
    let dir = Scratch::new("late");
    let path = dir.join("v");
    init(&path, &options("lun"), |_, _| {}).unwrap();
    let slow = || AttachOptions { beat_interval: Duration::from_millis(200), ..opts(&path, 1) };
    let first = attach(slow(), clock(), sink().1).unwrap();
    wait("attach", || first.epoch() != 0);
    let image = || std::fs::read(&path).unwrap();
    let beat = || inspect(&path).unwrap().nodes[0].beat;
    let (early, early_beat) = (image(), beat());
    wait("two more beats", || beat() >= early_beat.map(|b| b + 2));
    // Without a goodbye.
    drop(first);
    std::thread::sleep(Duration::from_millis(50));
    let late = image();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let put = |image: &[u8]| file.write_all_at(image, 0).unwrap();
    for (before, during) in [(&early, &late), (&late, &early)] {
        put(before);
        let (facts, sink) = sink();
        let next = attach(slow(), clock(), sink).unwrap();
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(next.epoch(), 0, "still watching");
        put(during);
        wait("the claim", || next.epoch() != 0);
        let refused = |f: &Fact| matches!(f, Fact::ClaimRefused { .. });
        assert!(!facts.lock().unwrap().iter().any(refused));
        drop(next);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two nodes that read where nobody writes see each other's beats all the same; a path made of
/// such beats would be found dead only when it is needed.
#[test]
fn a_beat_of_one_who_sends_elsewhere_is_none() {
    let dir = Scratch::new("elsewhere");
    let path = dir.join("v");
    init(&path, &options("lun"), |_, _| {}).unwrap();
    let reads_only = |node| {
        let (facts, sink) = sink();
        let o = AttachOptions { sends: false, ..opts(&path, node) };
        (attach(o, clock(), sink).unwrap(), facts)
    };
    let (a, a_facts) = reads_only(1);
    let (b, b_facts) = up(&path, 2);
    let has = |facts: &Facts, f: fn(&Fact) -> bool| facts.lock().unwrap().iter().any(f);
    wait("the word", || {
        has(&b_facts, |f| matches!(f, Fact::PeerSendsElsewhere { node: 1 }))
            && has(&a_facts, |f| matches!(f, Fact::PeerBeat { node: 2, .. }))
    });
    b.store(1, Ring::Data, b"to one who reads").unwrap();
    wait("a frame", || frames(&a_facts).len() == 1);
    assert!(!has(&b_facts, |f| matches!(f, Fact::PeerBeat { .. })));
    assert!(!has(&a_facts, |f| matches!(f, Fact::PeerSendsElsewhere { .. })));
    for handle in [a, b] {
        assert!(handle.shutdown(Duration::from_secs(10)));
    }
}

#[test]
fn a_loop_device_conforms_is_formatted_and_carries_frames() {
    let dir = Scratch::new("loop");
    let file = dir.join("backing");
    std::fs::write(&file, vec![0; 4 << 20]).unwrap();
    let Some(device) = Loop::new(&file, &["--direct-io=on"]) else {
        eprintln!("SKIPPED: no loop device (needs root and losetup)");
        return;
    };
    let path = Path::new(&device.0);
    let o = InitOptions { single_host: false, size: None, ..options("lun") };
    let e = init(&file, &InitOptions { size: None, ..options("lun") }, |_, _| {}).unwrap_err();
    assert!(matches!(e, InitError::InUse { .. }), "{e}");
    let how = volumes::media::file::How {
        write: true,
        direct: volumes::media::Direct::Required,
        exclusive: true,
    };
    conformance::run(&volumes::media::open(path, how).unwrap()).unwrap();
    let mut zeros = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::io::Write::write_all(&mut zeros, &vec![0; 4 << 20]).unwrap();
    zeros.sync_all().unwrap();
    drop(zeros);
    init(path, &o, |_, _| {}).unwrap();
    let (a, _) = up(path, 1);
    let (b, b_facts) = up(path, 2);
    std::thread::sleep(Duration::from_millis(60));
    a.store(2, Ring::Data, b"over the loop").unwrap();
    wait("frame", || frames(&b_facts) == [&b"over the loop"[..]]);
    assert!(a.shutdown(Duration::from_secs(5)) && b.shutdown(Duration::from_secs(5)));
    assert!(verify(path).unwrap().ok);
}

#[test]
fn a_replaced_file_is_locked_anew() {
    let dir = Scratch::new("replaced");
    let (path, aside) = (dir.join("v"), dir.join("w"));
    init(&path, &options("lun"), |_, _| {}).unwrap();
    let (a, _) = up(&path, 1);
    // Restored from a copy, under the same name: another inode, on which nobody holds a lock yet.
    std::fs::copy(&path, &aside).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    let second = || attach(opts(&path, 1), clock(), sink().1).err();
    wait("the lock on the new file", || {
        a.beat_now();
        matches!(second(), Some(AttachError::Locked { node: 1, .. }))
    });
    assert!(a.shutdown(Duration::from_secs(5)));
    assert!(second().is_none(), "and it goes with its holder");
}

#[test]
fn a_medium_with_larger_sectors_than_the_volume_is_refused() {
    #[derive(Debug)]
    struct Coarse(MemoryDevice);
    impl BlockDevice for Coarse {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn logical_block(&self) -> u32 {
            8192
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), volumes::IoFault> {
            self.0.read_at(offset, buf)
        }
        fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), volumes::IoFault> {
            self.0.write_at(offset, data)
        }
        fn flush(&self) -> Result<(), volumes::IoFault> {
            self.0.flush()
        }
    }
    let (device, dir) = memory_volume();
    let coarse = Arc::new(Coarse(device.inner().clone()));
    let opener = move || Ok(coarse.clone() as Arc<dyn BlockDevice>);
    let e = attach_to(opts(&dir.join("v"), 1), Arc::new(opener), clock(), sink().1).unwrap_err();
    assert!(matches!(e, AttachError::WrongSector { logical: 8192, block: 4096, .. }), "{e}");
    assert!(e.is_input_error() && e.to_string().contains("--sector 8192"), "{e}");
}

#[test]
fn threads_live_through_every_kind_of_failure() {
    use volumes::media::Doom;
    let kinds = [
        Doom::Fails(IoFaultKind::Eio),
        Doom::DoneButFails(IoFaultKind::TimedOut),
        Doom::Torn(0x5a5a_a5a5_0ff0_f00f),
        Doom::Fails(IoFaultKind::ShortRead),
    ];
    let (device, dir) = memory_volume();
    let open = || -> volumes::runtime::Opener {
        let d = device.clone();
        Arc::new(move || Ok(d.clone() as Arc<dyn BlockDevice>))
    };
    let start = |node| {
        let (facts, sink) = sink();
        let h = attach_to(opts(&dir.join("v"), node), open(), clock(), sink).unwrap();
        (h, facts)
    };
    let (a, _) = start(1);
    let (b, b_facts) = start(2);
    wait("attach", || a.epoch() != 0 && b.epoch() != 0);
    std::thread::sleep(Duration::from_millis(60));
    let mut sent = 0u32;
    for round in 0..12 {
        let kind = kinds[round % kinds.len()];
        let from = device.operations() + (round as u64 * 7) % 23;
        device.doom(from..from + [1, 6, 30][round % 3], kind);
        for _ in 0..20 {
            let frame = [&sent.to_le_bytes()[..], &[7; 500]].concat();
            if a.store(2, if round % 2 == 0 { Ring::Data } else { Ring::Express }, &frame).is_ok() {
                sent += 1;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        let want = sent as usize;
        wait("all frames of the round", || frames(&b_facts).len() == want);
        device.heal();
    }
    for (i, frame) in frames(&b_facts).iter().enumerate() {
        assert_eq!(frame[..4], u32::try_from(i).unwrap().to_le_bytes());
    }
    wait("up", || a.status().state == VolumeState::Up && b.status().state == VolumeState::Up);
    assert!(a.shutdown(Duration::from_secs(5)) && b.shutdown(Duration::from_secs(5)));
}

#[test]
fn who_only_reads_is_told_to_wait_for_a_copy_and_not_to_format() {
    let dir = Scratch::new("no-replica");
    std::fs::write(dir.join("blank"), vec![0; 4 << 20]).unwrap();
    for name in ["absent", "blank"] {
        let reads = AttachOptions { sends: false, ..opts(&dir.join(name), 2) };
        let e = attach(reads, clock(), sink().1).unwrap_err();
        assert!(matches!(e, AttachError::NoReplica { .. }), "{e}");
        assert!(!e.is_input_error() && e.may_pass(), "it may be made at any moment");
        assert!(!e.to_string().contains("init"), "{e}: an original would be in the copy's way");
        let sends = opts(&dir.join(name), 1);
        let e = attach(sends, clock(), sink().1).unwrap_err();
        assert!(e.is_input_error() && e.to_string().contains("init"), "{e}");
    }
}
