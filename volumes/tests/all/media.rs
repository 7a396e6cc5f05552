//! One suite for every medium (`media::conformance`), and what each refuses by name.
//!
//! What needs root says `SKIPPED` and why when it is not there.

use crate::common::loops::{Loop, Scratch};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use volumes::media::file::How;
use volumes::media::{
    BlockDevice, Direct, FaultDevice, Kind, MemoryDevice, OpenError, PowerCutDevice, conformance,
    open,
};
use volumes::{InitError, InitOptions, init};

const BYTES: u64 = 3 << 20;
const DIRECT: How = How { write: true, direct: Direct::Required, exclusive: false };

fn conforms(name: &str, device: &dyn BlockDevice) {
    if let Err(e) = conformance::run(device) {
        panic!("{name}: {e}");
    }
}

#[test]
fn memory_and_its_wrappers_conform() {
    conforms("memory", &MemoryDevice::new(BYTES));
    conforms("memory of an odd length", &MemoryDevice::new(BYTES + 512));
    conforms("shared memory", &Arc::new(MemoryDevice::new(BYTES)));
    conforms("faults, none on", &FaultDevice::new(MemoryDevice::new(BYTES)));
    conforms("power cut", &PowerCutDevice::new(MemoryDevice::new(BYTES)));
    let destaging = PowerCutDevice::new(MemoryDevice::new(BYTES));
    destaging.destage(70);
    conforms("power cut, destaging", &destaging);
    let both = FaultDevice::new(PowerCutDevice::new(MemoryDevice::new(BYTES)));
    conforms("faults over power cut", &both);
}

#[test]
fn files_conform_with_and_without_direct_io() {
    let dir = Scratch::new("media-file");
    let path = dir.join("v");
    std::fs::write(&path, vec![0; usize::try_from(BYTES).unwrap()]).unwrap();
    match open(&path, DIRECT) {
        Ok(device) => {
            assert!(device.is_direct() && device.kind() == Kind::File && device.path() == path);
            conforms("direct file", &device);
            conforms("power cut over a direct file", &PowerCutDevice::new(device));
        }
        Err(OpenError::NoDirectIo { .. }) => {
            println!("SKIPPED: direct file: no direct I/O in {}", dir.0.display());
        }
        Err(e) => panic!("{e}"),
    }
    let device = volumes::media::file::open_buffered(&path, true).unwrap();
    assert!(!device.is_direct());
    conforms("buffered file", &device);
}

#[test]
fn loop_devices_conform_and_know_their_sectors() {
    let dir = Scratch::new("media-loop");
    let file = dir.join("backing");
    std::fs::write(&file, vec![0; usize::try_from(BYTES).unwrap()]).unwrap();
    for sector in ["512", "4096"] {
        let Some(device) = Loop::new(&file, &["--direct-io=on", "--sector-size", sector]) else {
            println!("SKIPPED: loop device of {sector}: needs root, losetup and a free device");
            continue;
        };
        let medium = open(Path::new(&device.0), How { exclusive: true, ..DIRECT }).unwrap();
        assert_eq!((medium.logical_block().to_string().as_str(), medium.size()), (sector, BYTES));
        assert_eq!(medium.kind(), Kind::Block);
        conforms(&format!("loop device, sectors of {sector}"), &medium);
    }
}

#[test]
fn a_mounted_device_is_refused() {
    let dir = Scratch::new("media-mounted");
    let (file, at) = (dir.join("backing"), dir.join("at"));
    std::fs::write(&file, vec![0; 8 << 20]).unwrap();
    std::fs::create_dir(&at).unwrap();
    let Some(device) = Loop::new(&file, &[]) else {
        println!("SKIPPED: mounted device: needs root, losetup and a free device");
        return;
    };
    let path = Path::new(&device.0);
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let mut c = Command::new(program);
        c.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        c.status().is_ok_and(|s| s.success())
    };
    let o = InitOptions {
        name: path.file_name().unwrap().to_str().unwrap().into(),
        force: true,
        ..crate::common::small()
    };
    if !run("mkfs.ext4", &["-q".as_ref(), path.as_ref()]) {
        println!("SKIPPED: mounted device: no mkfs.ext4");
        return;
    }
    let before = std::fs::read(&file).unwrap();
    let plain = InitOptions { force: false, ..o.clone() };
    let e = init(path, &plain, |_, _| {}).unwrap_err();
    assert!(matches!(&e, InitError::Foreign { what, .. } if what.contains("ext")), "{e}");
    if !run("mount", &[path.as_ref(), at.as_ref()]) {
        println!("SKIPPED: mounted device: mount is not allowed here");
        return;
    }
    let e = init(path, &o, |_, _| {}).unwrap_err();
    let exclusive = open(path, How { exclusive: true, ..DIRECT });
    assert!(run("umount", &[at.as_ref()]));
    assert!(matches!(&e, InitError::InUse { user, .. } if user.contains("mounted on")), "{e}");
    assert!(e.is_input_error());
    assert!(matches!(exclusive, Err(OpenError::InUse { .. })), "the kernel says so, too");
    let after = std::fs::read(&file).unwrap();
    // The mount itself counts in the file system's own superblock; the rest is as it was.
    assert!(before[..1024] == after[..1024] && before[1 << 20..2 << 20] == after[1 << 20..2 << 20]);
}

#[test]
fn what_is_no_medium_is_refused_by_name() {
    let dir = Scratch::new("media-refused");
    let e = open(Path::new("/dev/null"), DIRECT).unwrap_err();
    assert!(matches!(e, OpenError::NotAMedium { .. }) && e.is_input_error());
    let e = open(&dir.join("none"), DIRECT).unwrap_err();
    assert!(e.to_string().contains("sidepath volume init"), "{e}");
    // procfs knows no direct I/O; a host that shares the medium must not use its page cache.
    let e = open(Path::new("/proc/self/status"), How { write: false, ..DIRECT }).unwrap_err();
    assert!(matches!(e, OpenError::NoDirectIo { .. }), "{e}");
    assert!(e.to_string().contains("stale page cache") && e.is_input_error());
    let alone = How { write: false, direct: Direct::Preferred, exclusive: false };
    assert!(!open(Path::new("/proc/self/status"), alone).unwrap().is_direct());
}

/// Formats it and runs the suite of what the machines need.
fn bears_a_volume(name: &str, writer: &dyn BlockDevice, reader: &dyn BlockDevice) {
    let o = InitOptions { force: true, ..crate::common::small() };
    let volume = volumes::init_medium(writer, Path::new("lun"), &o, |_, _| {}).unwrap();
    if let Err(e) = conformance::run_volume(writer, reader, &volume) {
        panic!("{name}: {e}");
    }
}

#[test]
fn memory_and_files_bear_a_volume() {
    let memory = MemoryDevice::new(BYTES);
    bears_a_volume("memory", &memory, &memory.clone());
    let shared = Arc::new(FaultDevice::new(MemoryDevice::new(BYTES)));
    bears_a_volume("faults, none on", &shared, &shared.clone());
    let dir = Scratch::new("media-volume");
    let path = dir.join("v");
    std::fs::write(&path, vec![0; usize::try_from(BYTES).unwrap()]).unwrap();
    let buffered = || volumes::media::file::open_buffered(&path, true).unwrap();
    bears_a_volume("buffered files", &buffered(), &buffered());
}
