//! A disk array in the memory of the test, seen by each host through a file of its own.
//!
//! Like an array with one fibre per host: what one writes the others read, and each fibre can be
//! kinked by itself. `mount/1.img`, `mount/2.img` and so on are one image; the faults of a file
//! are those of that host ([`Port`]), the cache of the array is everybody's ([`Array::power_cut`]).
//!
//! | fault | what the host sees |
//! |---|---|
//! | `stall` | reads, writes or both wait until released; `stick_next` holds one operation alone |
//! | `tear_writes` | every k-th write: half lands, a pause, then the rest, or an error, or a lie |
//! | `flip_reads` | every k-th read has one bit turned |
//! | `stale` | reads show the image as it was when the fault began |
//! | `fail_reads`, `fail_writes` | every k-th returns the given error (EIO, ENOSPC, EROFS, ...) |
//! | `lie_about_flush`, `power_cut` | a flush is acknowledged and empties nothing; at the cut every unflushed block is kept, dropped or torn, by a seed |
//! | `snapshot`, `roll_back` | the whole image becomes an older one, under running daemons |
//!
//! Awkward cases: a process that waits for a stalled operation cannot be killed, so everything is
//! released before anybody is; the kernel asks with several threads, and each stalled operation
//! holds one of ours, so there are more of them than operations a lab can have under way; reads
//! bypass the page cache (`FOPEN_DIRECT_IO`), or a fault would be served from there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, SessionACL, WriteFlags,
};

use super::process::try_sh;
use super::rng::Rng;

const BLOCK: usize = 4096;
/// Three operations per volume and daemon, three daemons, and some for those who look.
const THREADS: usize = 16;
const TTL: Duration = Duration::ZERO;
/// The first host's inode; 1 is the folder.
const FIRST_INODE: u64 = 2;

/// What a stall holds back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stall {
    #[default]
    Nothing,
    Reads,
    Writes,
    All,
}

/// What becomes of the second half of a torn write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It lands after this pause; the write returns then.
    After(Duration),
    /// It never lands, and the write fails.
    Error,
    /// It never lands, and the write claims success.
    Lie,
}

#[derive(Debug, Default)]
struct Gate {
    stall: Stall,
    stick_next: bool,
    /// Each release lets go who waits now.
    released: u64,
}

/// One host's way to the array, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Port {
    gate: Mutex<Gate>,
    opened: Condvar,
    tear_every: AtomicU32,
    tear: Mutex<Option<Rest>>,
    flip_every: AtomicU32,
    read_error: AtomicI32,
    read_error_every: AtomicU32,
    write_error: AtomicI32,
    write_error_every: AtomicU32,
    stale: Mutex<Option<Arc<Vec<u8>>>>,
    reads: AtomicU64,
    writes: AtomicU64,
    /// Faults that were really served.
    hits: AtomicU64,
}

impl Port {
    pub(crate) fn stall(&self, stall: Stall) {
        let mut gate = lock(&self.gate);
        gate.stall = stall;
        gate.released += u64::from(stall == Stall::Nothing);
        drop(gate);
        self.opened.notify_all();
    }

    /// The next operation waits until [`Self::stall`] releases everything; others go on.
    pub(crate) fn stick_next(&self) {
        lock(&self.gate).stick_next = true;
    }

    /// Every `every`-th write is torn; 0 for none.
    pub(crate) fn tear_writes(&self, every: u32, rest: Rest) {
        *lock(&self.tear) = Some(rest);
        self.tear_every.store(every, Ordering::Relaxed);
    }

    pub(crate) fn flip_reads(&self, every: u32) {
        self.flip_every.store(every, Ordering::Relaxed);
    }

    pub(crate) fn fail_reads(&self, every: u32, errno: i32) {
        self.read_error.store(errno, Ordering::Relaxed);
        self.read_error_every.store(every, Ordering::Relaxed);
    }

    pub(crate) fn fail_writes(&self, every: u32, errno: i32) {
        self.write_error.store(errno, Ordering::Relaxed);
        self.write_error_every.store(every, Ordering::Relaxed);
    }

    /// Everything is well again, and whoever waits goes on.
    pub(crate) fn heal(&self) {
        lock(&self.gate).stick_next = false;
        self.stall(Stall::Nothing);
        self.tear_every.store(0, Ordering::Relaxed);
        self.flip_reads(0);
        self.fail_reads(0, 0);
        self.fail_writes(0, 0);
        *lock(&self.stale) = None;
    }

    fn wait(&self, kind: Stall) {
        let mut gate = lock(&self.gate);
        let stuck = std::mem::take(&mut gate.stick_next);
        let ticket = gate.released;
        let held = |gate: &Gate| {
            (stuck || gate.stall == Stall::All || gate.stall == kind) && gate.released == ticket
        };
        if held(&gate) {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        while held(&gate) {
            gate = self.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn due(&self, every: &AtomicU32, count: u64) -> bool {
        let every = u64::from(every.load(Ordering::Relaxed));
        let due = every != 0 && count.is_multiple_of(every);
        self.hits.fetch_add(u64::from(due), Ordering::Relaxed);
        due
    }
}

struct Image {
    bytes: Arc<Vec<u8>>,
    /// What an unflushed block held before, and since when.
    before: BTreeMap<usize, (Instant, Vec<u8>)>,
}

struct Shared {
    image: Mutex<Image>,
    ports: Vec<Port>,
    /// Whether unflushed blocks are remembered at all.
    volatile_cache: AtomicBool,
    lie: AtomicBool,
}

/// The mounted file system; unmounted when dropped.
pub(crate) struct Array {
    mount: PathBuf,
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
}

impl Array {
    /// Whether this machine can do it.
    pub(crate) fn possible() -> bool {
        std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok()
    }

    pub(crate) fn mount(at: &Path, hosts: usize, bytes: usize) -> Self {
        std::fs::create_dir_all(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        let shared = Arc::new(Shared {
            image: Mutex::new(Image { bytes: Arc::new(vec![0; bytes]), before: BTreeMap::new() }),
            ports: (0..hosts).map(|_| Port::default()).collect(),
            volatile_cache: AtomicBool::new(false),
            lie: AtomicBool::new(false),
        });
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("sidepath-lab".to_owned()),
            MountOption::Subtype("array".to_owned()),
            MountOption::DefaultPermissions,
        ];
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        let session = fuser::Session::new(Fibre(Arc::clone(&shared)), at, &config)
            .and_then(fuser::Session::spawn)
            .unwrap_or_else(|e| panic!("cannot mount FUSE at {}: {e}", at.display()));
        Self { mount: at.to_owned(), shared, session: Some(session) }
    }

    /// The file of a host, counted from 1.
    pub(crate) fn path(&self, host: usize) -> PathBuf {
        self.mount.join(format!("{host}.img"))
    }

    pub(crate) fn port(&self, host: usize) -> &Port {
        &self.shared.ports[host - 1]
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = &Port> {
        self.shared.ports.iter()
    }

    pub(crate) fn heal(&self) {
        self.lie_about_flush(false);
        self.ports().for_each(Port::heal);
    }

    pub(crate) fn snapshot(&self) -> Arc<Vec<u8>> {
        Arc::clone(&lock(&self.shared.image).bytes)
    }

    /// The whole image is the older one from now on.
    pub(crate) fn roll_back(&self, to: &Arc<Vec<u8>>) {
        let mut image = lock(&self.shared.image);
        image.bytes = Arc::clone(to);
        image.before.clear();
    }

    /// This host sees the image as it is now, until healed.
    pub(crate) fn stale(&self, host: usize) {
        *lock(&self.port(host).stale) = Some(self.snapshot());
    }

    /// From now on writes are remembered as unflushed, and flushes empty nothing.
    pub(crate) fn lie_about_flush(&self, on: bool) {
        self.shared.volatile_cache.store(on, Ordering::Relaxed);
        self.shared.lie.store(on, Ordering::Relaxed);
        if !on {
            lock(&self.shared.image).before.clear();
        }
    }

    /// The cache loses power: of what was written within `window`, each block is kept, dropped or
    /// torn. Returns how many were not kept.
    pub(crate) fn power_cut(&self, window: Duration, rng: &mut Rng) -> usize {
        let mut image = lock(&self.shared.image);
        let before = std::mem::take(&mut image.before);
        let bytes = Arc::make_mut(&mut image.bytes);
        let mut lost = 0;
        for (at, (since, old)) in before {
            if since.elapsed() > window {
                continue;
            }
            let from = match rng.below(3) {
                0 => continue,
                1 => 0,
                _ => 512 * rng.below(BLOCK as u64 / 512) as usize,
            };
            bytes[at + from..at + BLOCK].copy_from_slice(&old[from..]);
            lost += 1;
        }
        lost
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        self.heal();
        // Lazily: somebody may still have a file open when a story fails.
        try_sh(&format!("umount -l {} 2>/dev/null", self.mount.display()));
        if let Some(session) = self.session.take() {
            drop(session);
        }
    }
}

/// What the kernel talks to.
struct Fibre(Arc<Shared>);

impl Fibre {
    fn port(&self, ino: INodeNo) -> Option<&Port> {
        u64::from(ino).checked_sub(FIRST_INODE).and_then(|host| self.0.ports.get(host as usize))
    }

    fn attributes(&self, ino: u64) -> FileAttr {
        let folder = ino < FIRST_INODE;
        let size = if folder { 0 } else { lock(&self.0.image).bytes.len() as u64 };
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o755 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }

    fn put(&self, offset: usize, data: &[u8]) {
        let mut image = lock(&self.0.image);
        let Image { bytes, before } = &mut *image;
        if self.0.volatile_cache.load(Ordering::Relaxed) {
            let first = offset / BLOCK * BLOCK;
            for at in (first..offset + data.len()).step_by(BLOCK) {
                before
                    .entry(at)
                    .or_insert_with(|| (Instant::now(), bytes[at..at + BLOCK].to_vec()));
            }
        }
        // Copies the image only while somebody holds an older one.
        Arc::make_mut(bytes)[offset..offset + data.len()].copy_from_slice(data);
    }
}

impl Filesystem for Fibre {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // A record in one piece, so that it is torn where we say.
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let host = name.to_str().and_then(|n| n.strip_suffix(".img")?.parse::<u64>().ok());
        match host.filter(|h| *h >= 1 && *h <= self.0.ports.len() as u64) {
            Some(host) if parent == INodeNo::ROOT => {
                reply.entry(&TTL, &self.attributes(host - 1 + FIRST_INODE), Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(u64::from(ino)));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(port) = self.port(ino) else { return reply.error(Errno::EISDIR) };
        port.wait(Stall::Reads);
        let count = port.reads.fetch_add(1, Ordering::Relaxed) + 1;
        if port.due(&port.read_error_every, count) {
            return reply.error(Errno::from_i32(port.read_error.load(Ordering::Relaxed)));
        }
        let stale = lock(&port.stale).clone();
        port.hits.fetch_add(u64::from(stale.is_some()), Ordering::Relaxed);
        let mut part = {
            let image = lock(&self.0.image);
            let bytes: &[u8] = stale.as_deref().unwrap_or(&image.bytes);
            let from = (offset as usize).min(bytes.len());
            bytes[from..(from + size as usize).min(bytes.len())].to_vec()
        };
        if !part.is_empty() && port.due(&port.flip_every, count) {
            // Anywhere, and never twice at the same place: seven is prime to powers of two.
            let at = (count as usize).wrapping_mul(0x9E37_79B9_7F4A_7C15) % part.len();
            part[at] ^= 1 << (count % 7);
        }
        reply.data(&part);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(port) = self.port(ino) else { return reply.error(Errno::EISDIR) };
        port.wait(Stall::Writes);
        let offset = offset as usize;
        if offset + data.len() > lock(&self.0.image).bytes.len() {
            return reply.error(Errno::ENOSPC);
        }
        let count = port.writes.fetch_add(1, Ordering::Relaxed) + 1;
        if port.due(&port.write_error_every, count) {
            return reply.error(Errno::from_i32(port.write_error.load(Ordering::Relaxed)));
        }
        let rest = lock(&port.tear).filter(|_| port.due(&port.tear_every, count));
        match rest {
            None => self.put(offset, data),
            Some(rest) => {
                let (first, second) = data.split_at(data.len() / 2);
                self.put(offset, first);
                match rest {
                    Rest::After(pause) => {
                        sleep(pause);
                        self.put(offset + first.len(), second);
                    }
                    Rest::Error => return reply.error(Errno::EIO),
                    Rest::Lie => {}
                }
            }
        }
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if let Some(port) = self.port(ino) {
            port.wait(Stall::Writes);
        }
        if !self.0.lie.load(Ordering::Relaxed) {
            lock(&self.0.image).before.clear();
        }
        reply.ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
