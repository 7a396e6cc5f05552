//! The shared disk, and the ways it can go bad.
//!
//! The plain kinds are a file, or a loop device with 4 KiB sectors and direct I/O over a file.
//! The kind that can be broken stands in three layers, like a disk array behind a controller: a
//! loop device (the drives), a file system on it (the controller), a file there, and for
//! [`Medium::Array`] a second loop device over that file (what the nodes see). Freezing the file
//! system stops every write in the kernel, cutting the lower device short makes reads and writes
//! return EIO, cutting the upper one short makes the disk vanish under its readers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::export::Export;
use super::fuse::Array;
use super::node;
use super::process::{run, sh};
use super::s3::Kind;
use super::store::ObjectStore;
use super::sys;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    File,
    Block,
    /// A block device whose lower layers can be frozen, failed and shortened.
    Array,
    /// A file on a file system that can be frozen and failed.
    FileOnArray,
    /// A file per host on an array in our memory, with the faults of [`fuse`](super::fuse).
    Fuse,
    /// An export of an NBD server, each write of which takes so many milliseconds.
    Nbd {
        write_delay_ms: u32,
    },
    /// A place in an object store, each request to which takes so much longer.
    S3 {
        kind: Kind,
        delay_ms: u64,
    },
}

pub(crate) struct Disk {
    /// What the nodes are configured with.
    pub(crate) path: PathBuf,
    medium: Medium,
    lower: Option<PathBuf>,
    mount: PathBuf,
    array: Option<Array>,
    export: Option<Export>,
    store: Option<ObjectStore>,
}

const SIZE_MIB: u32 = 192;
/// Small, so that lanes wrap often and rolling back is quick.
const FUSE_BYTES: usize = 32 << 20;

impl Disk {
    /// For nodes in these network namespaces, and for whoever runs the lab.
    pub(crate) fn new(medium: Medium, dir: &Path, namespaces: &[String]) -> Self {
        let mount = dir.join("array");
        let file = dir.join("volume.img");
        let (mut array, mut export, mut store) = (None, None, None);
        let (path, lower) = match medium {
            Medium::Fuse => {
                let array = array.insert(Array::mount(&mount, namespaces.len() + 1, FUSE_BYTES));
                (array.path(1), None)
            }
            Medium::File => (file, None),
            Medium::Nbd { write_delay_ms } => {
                let export = export.insert(Export::start(dir, SIZE_MIB, write_delay_ms));
                (export.url(), None)
            }
            Medium::S3 { kind, delay_ms } => {
                let started = ObjectStore::start(dir, kind, delay_ms, namespaces);
                (store.insert(started).url(), None)
            }
            Medium::Block => {
                fill(&file, SIZE_MIB);
                (attach(&file), None)
            }
            Medium::Array | Medium::FileOnArray => {
                let drives = dir.join("drives.img");
                fill(&drives, SIZE_MIB + 64);
                let lower = attach(&drives);
                sh(&format!("mkfs.ext4 -q -b 4096 -O ^has_journal {}", lower.display()));
                std::fs::create_dir(&mount).expect("a mount point");
                let options = "noatime,errors=continue";
                sh(&format!("mount -o {options} {} {}", lower.display(), mount.display()));
                let inner = mount.join("volume.img");
                let path = if medium == Medium::Array {
                    fill(&inner, SIZE_MIB);
                    sh("sync");
                    attach(&inner)
                } else {
                    inner
                };
                (path, Some(lower))
            }
        };
        Self { path, medium, lower, mount, array, export, store }
    }

    /// Where a node finds the volume.
    pub(crate) fn path_of(&self, node: usize) -> PathBuf {
        self.array.as_ref().map_or_else(|| self.path.clone(), |array| array.path(node))
    }

    pub(crate) fn array(&self) -> &Array {
        self.array.as_ref().expect("a medium of FUSE")
    }

    pub(crate) fn export(&self) -> &Export {
        self.export.as_ref().expect("an NBD export")
    }

    pub(crate) fn store(&self) -> &ObjectStore {
        self.store.as_ref().expect("an object store")
    }

    /// Nothing waits in the kernel any more.
    pub(crate) fn release(&self) {
        if let Some(array) = &self.array {
            array.heal();
        }
    }

    /// Formats the volume for these node ids.
    pub(crate) fn init(&self, nodes: &str) {
        let mut command = Command::new(node::binary());
        command.args(["volume", "init"]).arg(&self.path);
        command.args(["--name", "lab", "--nodes", nodes]);
        if matches!(self.medium, Medium::File | Medium::FileOnArray) {
            command.args(["--size", &format!("{SIZE_MIB}MiB")]);
        }
        match run(&mut command, Duration::from_secs(60)) {
            Ok(done) if done.ok() => {}
            other => panic!("{command:?}: {other:?}"),
        }
        if self.lower.is_some() {
            sh("sync");
        }
    }

    /// Writes hang in the kernel until [`Self::thaw`]; on a loop device, reads behind them too.
    pub(crate) fn freeze(&self) {
        sh(&format!("fsfreeze -f {}", self.mount.display()));
    }

    pub(crate) fn thaw(&self) {
        sh(&format!("fsfreeze -u {}", self.mount.display()));
    }

    /// Every read and write returns EIO, for everybody.
    pub(crate) fn fail(&self) {
        limit(self.lower.as_ref().expect("an array"), 4096);
    }

    pub(crate) fn unfail(&self) {
        limit(self.lower.as_ref().expect("an array"), 0);
    }

    /// Writes return EPERM; reads go on.
    pub(crate) fn read_only(&self) {
        sh(&format!("blockdev --setro {}", self.path.display()));
    }

    pub(crate) fn read_write(&self) {
        sh(&format!("blockdev --setrw {}", self.path.display()));
    }

    /// The block device is still there but has lost all its blocks, as a LUN that was unmapped.
    pub(crate) fn vanish(&self) {
        assert_eq!(self.medium, Medium::Array);
        limit(&self.path, 4096);
    }

    pub(crate) fn reappear(&self) {
        limit(&self.path, 0);
    }
}

fn limit(device: &Path, bytes: u64) {
    sys::limit_loop(device, bytes).unwrap_or_else(|e| panic!("{}: {e}", device.display()));
}

fn fill(file: &Path, mib: u32) {
    let file = file.display();
    sh(&format!("dd if=/dev/zero of={file} bs=1M count={mib} oflag=direct status=none"));
}

fn attach(file: &Path) -> PathBuf {
    let line = format!("losetup -f --show -b 4096 --direct-io=on {}", file.display());
    PathBuf::from(sh(&line).trim())
}
