//! Two sockets on one address: the kernel sorts datagrams by their first byte.
//!
//! Like two letter boxes at one door and a porter who reads the first letter of each envelope. A
//! classic BPF program is attached to the `SO_REUSEPORT` group; it sees the UDP payload (the
//! kernel moves past the UDP header before it runs) and returns the index of the socket, in the
//! order the sockets were bound: 0 is the data socket, 1 the beat socket.
//!
//! Awkward cases: a group of one (the beat socket is not bound yet) makes the kernel fall back to
//! the only member; an empty datagram makes the load fail, which ends the program with 0, the
//! data socket; datagrams merged by GRO arrive as one, sorted by the first of them, so both
//! sockets must accept both kinds.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Attaches the sorter to the group `socket` belongs to: payloads that start with `first_byte` go
/// to member 1, everything else to member 0.
pub(crate) fn sort_by_first_byte(socket: &impl AsFd, first_byte: u8) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let mut program = [
        libc::sock_filter { code: LOAD_BYTE, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: JUMP_EQUAL, jt: 0, jf: 1, k: u32::from(first_byte) },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: 1 },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 },
    ];
    let fprog = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>())
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `fprog` points to four initialised instructions that live until after the call; the
    // kernel copies and checks them and keeps no pointer. The length is that of the struct passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const fprog).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn bound(address: std::net::SocketAddr) -> UdpSocket {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        let socket: UdpSocket = socket.into();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    #[test]
    fn datagrams_are_sorted_by_their_first_byte() {
        let data = bound("127.0.0.1:0".parse().unwrap());
        let address = data.local_addr().unwrap();
        let beat = bound(address);
        sort_by_first_byte(&data, 0x11).unwrap();
        let mut buffer = [0; 8];
        // Many source ports: without the sorter the hash would scatter them.
        for n in 0..32_u8 {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(&[0x11, n], address).unwrap();
            sender.send_to(&[0x12, n], address).unwrap();
            assert_eq!(beat.recv(&mut buffer).unwrap(), 2);
            assert_eq!(buffer[..2], [0x11, n]);
            assert_eq!(data.recv(&mut buffer).unwrap(), 2);
            assert_eq!(buffer[..2], [0x12, n]);
        }
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[], address).unwrap();
        assert_eq!(data.recv(&mut buffer).unwrap(), 0, "an empty datagram goes to data");
    }
}
