//! Socket options of UDP that no safe crate names: offload, path MTU, error queue, forced buffers.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

fn set(socket: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: `value` is an initialised int that outlives the call, and the length is its size.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(socket: &impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value: i32 = 0;
    let mut length = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: `value` has room for `length` bytes, both outlive the call, and any bytes the kernel
    // writes are a valid int.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Buffers beyond the system's limit where we may, at the limit where we may not.
pub(crate) fn buffers(socket: &impl AsFd, bytes: i32) {
    for (force, polite) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        // A small buffer is a loss of speed, not of function.
        if set(socket, libc::SOL_SOCKET, force, bytes).is_err() {
            let _ = set(socket, libc::SOL_SOCKET, polite, bytes);
        }
    }
}

/// Datagrams of one flow may arrive merged.
pub(crate) fn receive_merged(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Each datagram comes with the wall clock of its arrival.
pub(crate) fn receive_stamps(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
}

/// Never fragment, and keep ICMP errors for [`super::errqueue`].
pub(crate) fn path_errors(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    if v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
    }
    // Also on an IPv6 socket, for mapped addresses; refused on a pure one, which is fine.
    let v4 = set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
        .and_then(|()| set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1));
    if v6 { Ok(()) } else { v4 }
}

/// The path MTU a connected socket sees now.
pub(crate) fn path_mtu(socket: &impl AsFd, v6: bool) -> io::Result<usize> {
    let mtu = if v6 {
        get(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU)?
    } else {
        get(socket, libc::IPPROTO_IP, libc::IP_MTU)?
    };
    usize::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}
