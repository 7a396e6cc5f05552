//! What is on a medium already: signatures, mounts, users in the kernel.
//!
//! ```text
//!   first 4 MiB and last 1 MiB -> file system? partition table? LVM, RAID, LUKS, sbd, sanlock?
//!   /proc/self/mountinfo, /proc/swaps, /sys/.../holders, loop back ends -> in use?
//! ```
//!
//! Awkward cases: an ext signature lies 1 KiB in, a btrfs one 64 KiB, ISO 9660 32 KiB, md 1.0 and
//! 0.9 and the second GPT near the end, swap at the end of the first page; anything not all zero is
//! foreign even when nobody knows its name.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes at the start and at the end that are looked at.
pub const HEAD_BYTES: usize = 1 << 20;
pub const TAIL_BYTES: usize = 1 << 20;

/// (offset, bytes, name), at the start.
const HEAD: &[(usize, &[u8], &str)] = &[
    (0, b"XFSB", "an XFS file system"),
    (0, b"SBD_SBD_", "an sbd device"),
    (0, b"\x01\x02\x82\x12", "a sanlock lease area (delta)"),
    (0, b"\x12\x82\x02\x01", "a sanlock lease area (delta)"),
    (0, b"\x06\x15\x20\x10", "a sanlock lease area (paxos)"),
    (0, b"\x10\x20\x15\x06", "a sanlock lease area (paxos)"),
    (0, b"\x03\x03\x20\x15", "a sanlock resource index"),
    (0, b"\x15\x20\x03\x03", "a sanlock resource index"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"\xeb\x52\x90NTFS    ", "an NTFS file system"),
    (0, b"\xfc\x4e\x2b\xa9", "an md RAID member"),
    (4096, b"\xfc\x4e\x2b\xa9", "an md RAID member"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (3, b"-FVE-FS-", "a BitLocker volume"),
    (54, b"FAT", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (1080, b"\x53\xef", "an ext2/3/4 file system"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (1024, b"BTRFS", "a btrfs file system"),
    (65600, b"_BHRfS_M", "a btrfs file system"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (4086, b"SWAP-SPACE", "a swap area"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (65600, b"ReIsEr", "a ReiserFS file system"),
    (65588, b"ReIsEr", "a ReiserFS file system"),
    (8192, b"OCFSV2", "an OCFS2 file system"),
    (65536, b"\x01\x16\x19\x70", "a GFS2 file system"),
    (0, b"\xde\xad\xbe\xef\x0d\xf0\xad\xba", "foreign data"),
];

/// The name of what the start and the end of a medium show; `None`: nothing known.
#[must_use]
pub fn signature(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let is = |at: usize, what: &[u8]| head.get(at..at + what.len()) == Some(what);
    for &(at, what, name) in HEAD {
        if is(at, what) {
            return Some(name);
        }
    }
    if (0..4).any(|sector| is(sector * 512, b"LABELONE")) {
        return Some("an LVM physical volume");
    }
    // ZFS keeps its uberblocks at 128 KiB, in either byte order.
    let uberblock: &[u8] = b"\x0c\xb1\xba\0\0\0\0\0";
    if (128..256).any(|k| is(k << 10, uberblock)) {
        return Some("a ZFS pool member");
    }
    if is(0x1_6000, b"\0") && is(510, b"\x55\xaa") {
        return Some("an MBR partition table or boot sector");
    }
    if is(510, b"\x55\xaa") {
        return Some("an MBR partition table or boot sector");
    }
    let ends = |from_end: usize, what: &[u8]| {
        tail.len().checked_sub(from_end).and_then(|at| tail.get(at..at + what.len())) == Some(what)
    };
    if ends(512, b"EFI PART") || ends(4096, b"EFI PART") {
        return Some("the second copy of a GPT partition table");
    }
    // md 1.0 lies 8 to 12 KiB before the end, md 0.9 in the last full 64 KiB.
    let md = tail.chunks_exact(512).any(|s| s.starts_with(b"\xfc\x4e\x2b\xa9"));
    if md { Some("an md RAID member") } else { None }
}

/// All zero: nothing to lose.
#[must_use]
pub fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

/// Who uses the medium right now; `None`: nobody we can see.
#[must_use]
pub fn user(path: &Path) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    let real = fs::canonicalize(path).ok()?;
    let read = |p: &str| fs::read_to_string(p).unwrap_or_default();
    for line in read("/proc/swaps").lines().skip(1) {
        let name = line.split_whitespace().next().unwrap_or_default();
        if Path::new(name) == real || same_device(Path::new(name), &meta) {
            return Some("it is in use as swap".into());
        }
    }
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = entry.path().join("loop/backing_file");
        if fs::read_to_string(backing).is_ok_and(|b| Path::new(b.trim_end()) == real) {
            let device = entry.file_name();
            return Some(format!("/dev/{} is set up on it", device.to_string_lossy()));
        }
    }
    if !is_block(&meta) {
        return None;
    }
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let id = format!("{major}:{minor}");
    if let Some(at) = mounted(&read("/proc/self/mountinfo"), &id) {
        return Some(format!("it is mounted on {at}"));
    }
    let sys = format!("/sys/dev/block/{id}");
    if fs::read_dir(format!("{sys}/holders")).is_ok_and(|mut d| d.next().is_some()) {
        return Some("it is part of a RAID, LVM or other mapped device".into());
    }
    for part in fs::read_dir(&sys).into_iter().flatten().flatten() {
        if let Ok(dev) = fs::read_to_string(part.path().join("dev"))
            && part.path().join("partition").exists()
        {
            if let Some(at) = mounted(&read("/proc/self/mountinfo"), dev.trim()) {
                return Some(format!("its partition {dev} is mounted on {at}", dev = dev.trim()));
            }
            return Some("it has partitions".into());
        }
    }
    None
}

fn is_block(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    meta.file_type().is_block_device()
}

fn same_device(path: &Path, meta: &fs::Metadata) -> bool {
    is_block(meta) && fs::metadata(path).is_ok_and(|m| m.rdev() == meta.rdev() && m.rdev() != 0)
}

/// The mount point of a device `major:minor` in the text of mountinfo.
fn mounted(mountinfo: &str, id: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        let (dev, _root, at) = (words.next()?, words.next()?, words.next()?);
        (dev == id).then(|| at.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_seen_and_zeros_have_none() {
        let blank = vec![0; HEAD_BYTES];
        assert_eq!(signature(&blank, &blank), None);
        for &(at, what, name) in HEAD {
            let mut head = blank.clone();
            head[at..at + what.len()].copy_from_slice(what);
            assert_eq!(signature(&head, &blank), Some(name));
        }
        for (at, what) in
            [(512, &b"LABELONE"[..]), (510, b"\x55\xaa"), (132 << 10, b"\x0c\xb1\xba\0\0\0\0\0")]
        {
            let mut head = blank.clone();
            head[at..at + what.len()].copy_from_slice(what);
            assert!(signature(&head, &blank).is_some(), "{at}");
        }
        for (from_end, what) in
            [(512, &b"EFI PART"[..]), (8192, b"\xfc\x4e\x2b\xa9"), (65536, b"\xfc\x4e\x2b\xa9")]
        {
            let mut tail = blank.clone();
            let at = tail.len() - from_end;
            tail[at..at + what.len()].copy_from_slice(what);
            assert!(signature(&blank, &tail).is_some(), "{from_end}");
        }
    }

    #[test]
    fn mount_points_are_found_by_device_number() {
        let text =
            "22 1 254:0 / / rw - ext4 /dev/vda rw\n23 22 7:3 / /mnt/x rw - ext4 /dev/loop3 rw\n";
        assert_eq!(mounted(text, "7:3").as_deref(), Some("/mnt/x"));
        assert_eq!(mounted(text, "7:4"), None);
    }
}
