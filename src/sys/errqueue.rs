//! What the network complained about: the error queue of a UDP socket (`IP_RECVERR`).
//!
//! Awkward cases: errors may be about datagrams sent long ago; the address that comes with one is
//! where the datagram was going, not who complained; anybody on the path may forge them, so they
//! are hints.

use std::{
    io, mem,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
};

/// One complaint.
#[derive(Debug)]
pub(crate) struct Complaint {
    /// Where the datagram was going.
    pub(crate) to: Option<SocketAddr>,
    /// What is wrong, as an error of the operating system.
    pub(crate) error: io::Error,
    /// The datagram was too large for the path.
    pub(crate) too_large: bool,
}

/// Takes one complaint off the queue; `None` when it is empty.
pub(crate) fn next(socket: &impl AsFd) -> io::Result<Option<Complaint>> {
    // SAFETY: plain C structs for which all zeroes is valid.
    let (mut name, mut header) =
        unsafe { (mem::zeroed::<libc::sockaddr_storage>(), mem::zeroed::<libc::msghdr>()) };
    // The datagram itself comes back too; its first bytes are enough.
    let mut payload = [0_u8; 64];
    let mut control = [0_u64; 64];
    let mut iovec = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = libc::socklen_t::try_from(size_of_val(&name)).unwrap_or(0);
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header points to a name, one iovec and a control buffer on this stack frame with
    // their true sizes; nothing else refers to them during the call.
    let result = unsafe {
        libc::recvmsg(
            socket.as_fd().as_raw_fd(),
            &raw mut header,
            libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    let to = super::mmsg::socket_address(&name, header.msg_namelen).map(super::mmsg::unmapped);
    let mut complaint = Complaint { to, error: io::ErrorKind::Other.into(), too_large: false };
    // SAFETY: the kernel just filled `header`; the macros walk only inside its control buffer,
    // which is alive; data is read unaligned and only after its length was checked.
    unsafe {
        let mut cursor = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(message) = cursor.as_ref() {
            let wanted = matches!(
                (message.cmsg_level, message.cmsg_type),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            );
            let size = u32::try_from(size_of::<libc::sock_extended_err>()).unwrap_or(u32::MAX);
            if wanted && message.cmsg_len >= libc::CMSG_LEN(size) as usize {
                let said =
                    libc::CMSG_DATA(message).cast::<libc::sock_extended_err>().read_unaligned();
                let code = i32::try_from(said.ee_errno).unwrap_or(libc::EIO);
                complaint.error = io::Error::from_raw_os_error(code);
                complaint.too_large = code == libc::EMSGSIZE;
            }
            cursor = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Ok(Some(complaint))
}
