//! The few system calls the standard library has no words for.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Nanoseconds of `CLOCK_MONOTONIC`: the same clock in every process of this machine.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleeps until that instant of [`monotonic_ns`].
pub(crate) fn sleep_until_ns(at: u64) {
    let until = libc::timespec {
        tv_sec: (at / 1_000_000_000) as libc::time_t,
        tv_nsec: (at % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: `until` is a valid timespec; no remainder is asked for with an absolute time.
    unsafe {
        libc::clock_nanosleep(
            libc::CLOCK_MONOTONIC,
            libc::TIMER_ABSTIME,
            &raw const until,
            std::ptr::null_mut(),
        )
    };
}

pub(crate) fn effective_uid() -> u32 {
    // SAFETY: has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: sends a signal to a process this test started; no memory is involved.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Takes the lock of a file; waits for it when `wait`. It goes with the file.
pub(crate) fn lock(file: &File, wait: bool) -> bool {
    let how = if wait { libc::LOCK_EX } else { libc::LOCK_EX | libc::LOCK_NB };
    // SAFETY: the descriptor is open for as long as `file` lives.
    unsafe { libc::flock(file.as_raw_fd(), how) == 0 }
}

/// Asks for a receive buffer that holds a burst of some seconds; best effort.
pub(crate) fn big_receive_buffer(socket: &impl AsRawFd) {
    let bytes: libc::c_int = 32 << 20;
    for option in [libc::SO_RCVBUF, libc::SO_RCVBUFFORCE] {
        // SAFETY: the option value is one int, and its size is passed with it.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }
}

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    numbers: [u32; 4],
    names: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

const LOOP_SET_STATUS64: libc::c_ulong = 0x4C04;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;

/// Limits a loop device to its first `bytes` (0: the whole file). What lies behind stays in the
/// file and comes back with the limit lifted.
pub(crate) fn limit_loop(device: &Path, bytes: u64) -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(device)?;
    let mut info = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        numbers: [0; 4],
        names: [0; 160],
        init: [0; 2],
    };
    // SAFETY: `info` has the layout of the kernel's loop_info64 and outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    info.size_limit = bytes;
    // SAFETY: as above; the kernel only reads it.
    if unsafe { libc::ioctl(file.as_raw_fd(), LOOP_SET_STATUS64 as _, &raw const info) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// A socket that hears every frame of an interface, in and out.
pub(crate) fn packet_socket(interface: &str) -> std::io::Result<OwnedFd> {
    let name = CString::new(interface)?;
    let every = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain system calls; the name ends with a zero byte.
    let (index, fd) = unsafe {
        let index = libc::if_nametoindex(name.as_ptr());
        (index, libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(every)))
    };
    if fd < 0 || index == 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a sockaddr_ll of zeroes is valid; the length passed is its size.
    let bound = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every;
        address.sll_ifindex = index as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let timeout = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        );
        libc::bind(fd, (&raw const address).cast(), length)
    };
    if bound != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(socket)
}

/// The next frame: its kind (`PACKET_OUTGOING` and so on) and its length. `None` after a while.
pub(crate) fn receive_packet(
    socket: &OwnedFd,
    buffer: &mut [u8],
) -> std::io::Result<Option<(u8, usize)>> {
    // SAFETY: buffer and address outlive the call, and their sizes are passed with them.
    let (got, kind) = unsafe {
        let mut from: libc::sockaddr_ll = std::mem::zeroed();
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let got = libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut length,
        );
        (got, from.sll_pkttype)
    };
    if got >= 0 {
        return Ok(Some((kind, got as usize)));
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(None),
        _ => Err(error),
    }
}
