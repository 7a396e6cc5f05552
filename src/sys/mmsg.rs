//! Many datagrams by one call: `recvmmsg` with merged segments, `sendmmsg` with segmentation.
//!
//! Awkward cases: the kernel may cut a datagram longer than the buffer (flagged, dropped here); a
//! pending ICMP error of an earlier datagram makes an innocent send fail (the caller tries that
//! one again); control messages must be aligned like `cmsghdr`, hence the buffers of `u64` and
//! [`Control`].

use std::{
    io, mem,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    ptr,
};

use socket2::{SockAddr, SockAddrStorage};

/// Messages per call.
pub(crate) const BATCH: usize = 16;
/// Segments per message: the kernel takes 128, half of it already amortises everything.
pub(crate) const SEGMENTS_MAX: usize = 64;

/// Room for the control messages we ask for (segment size, time stamp).
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; 96]);

/// Buffers for one batch of received messages.
pub(crate) struct ReceiveBatch {
    bytes_each: usize,
    storage: Vec<u8>,
    messages: [Message; BATCH],
}

#[derive(Clone, Copy)]
struct Message {
    from: Option<SocketAddr>,
    length: usize,
    segment: usize,
    stamp_ns: Option<u64>,
}

/// One received message: one datagram, or several of equal size (the last may be shorter).
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) bytes: &'a [u8],
    /// Length of each datagram in `bytes`, at least 1.
    pub(crate) segment: usize,
    /// Wall clock of arrival, nanoseconds, when stamps were asked for.
    pub(crate) stamp_ns: Option<u64>,
}

impl<'a> Received<'a> {
    /// The datagrams that were merged into this message.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.segment)
    }
}

impl std::fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveBatch").field("bytes_each", &self.bytes_each).finish_non_exhaustive()
    }
}

impl ReceiveBatch {
    pub(crate) fn new(bytes_each: usize) -> Self {
        let empty = Message { from: None, length: 0, segment: 0, stamp_ns: None };
        Self { bytes_each, storage: vec![0; bytes_each * BATCH], messages: [empty; BATCH] }
    }

    /// Receives up to [`BATCH`] messages without waiting; the number received.
    pub(crate) fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        // SAFETY: sockaddr storage, iovec and mmsghdr are plain C structs; all zeroes is valid.
        let (mut names, mut iovecs, mut headers) = unsafe {
            (
                mem::zeroed::<[libc::sockaddr_storage; BATCH]>(),
                mem::zeroed::<[libc::iovec; BATCH]>(),
                mem::zeroed::<[libc::mmsghdr; BATCH]>(),
            )
        };
        let mut controls = [Control([0; 96]); BATCH];
        for (i, buffer) in self.storage.chunks_exact_mut(self.bytes_each).enumerate() {
            iovecs[i] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut headers[i].msg_hdr;
            header.msg_name = (&raw mut names[i]).cast();
            header.msg_namelen = socklen(size_of::<libc::sockaddr_storage>());
            header.msg_iov = &raw mut iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&controls[i].0) as _;
        }
        // SAFETY: every header points to a name, one iovec and a control buffer that live on this
        // stack frame or in `self.storage`, with their true sizes, and nothing else refers to them
        // during the call. No timeout is passed.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                u32::try_from(BATCH).unwrap_or(1),
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
        for i in 0..count {
            let header = &headers[i].msg_hdr;
            let cut = header.msg_flags & libc::MSG_TRUNC != 0;
            let length = if cut { 0 } else { headers[i].msg_len as usize };
            let from = socket_address(&names[i], header.msg_namelen).map(unmapped);
            let control = controls[i].0.get(..header.msg_controllen).unwrap_or_default();
            let Notes { segment, stamp_ns } = notes(control);
            let segment = segment.unwrap_or_else(|| length.max(1));
            self.messages[i] = Message { from, length, segment, stamp_ns };
        }
        Ok(count)
    }

    /// Message `i` of the last batch; `None` when it was cut off or had no address.
    pub(crate) fn get(&self, i: usize) -> Option<Received<'_>> {
        let message = self.messages.get(i)?;
        let start = i * self.bytes_each;
        let bytes = self.storage.get(start..start + message.length)?;
        Some(Received {
            from: message.from?,
            bytes,
            segment: message.segment,
            stamp_ns: message.stamp_ns,
        })
    }
}

/// What the kernel said beside one message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Length of each of the datagrams merged into it, at least 1.
    pub(crate) segment: Option<usize>,
    /// Wall clock of arrival, nanoseconds.
    pub(crate) stamp_ns: Option<u64>,
}

/// Reads control messages; the first that does not fit is the end.
pub(crate) fn notes(mut control: &[u8]) -> Notes {
    let mut notes = Notes::default();
    while let Some((kind, data, rest)) = split_control(control) {
        match kind {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                if let Some(size) = data.first_chunk() {
                    let size = usize::try_from(i32::from_ne_bytes(*size));
                    notes.segment = Some(size.unwrap_or(0).max(1));
                }
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                // Two numbers of 64 bits: seconds and nanoseconds.
                if let ([seconds, nanos, ..], _) = data.as_chunks() {
                    let number = |bytes| u64::try_from(i64::from_ne_bytes(bytes)).ok();
                    notes.stamp_ns = number(*seconds).and_then(|seconds| {
                        seconds.checked_mul(1_000_000_000)?.checked_add(number(*nanos)?)
                    });
                }
            }
            _ => {}
        }
        control = rest;
    }
    notes
}

/// A control message's level and type, its data, and what follows.
type SplitControl<'a> = Option<((i32, i32), &'a [u8], &'a [u8])>;

fn split_control(bytes: &[u8]) -> SplitControl<'_> {
    fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
        bytes.get(at..)?.first_chunk().copied()
    }
    let length =
        field(bytes, mem::offset_of!(libc::cmsghdr, cmsg_len)).map(usize::from_ne_bytes)?;
    let level = field(bytes, mem::offset_of!(libc::cmsghdr, cmsg_level)).map(i32::from_ne_bytes)?;
    let kind = field(bytes, mem::offset_of!(libc::cmsghdr, cmsg_type)).map(i32::from_ne_bytes)?;
    let data = bytes.get(size_of::<libc::cmsghdr>()..length)?;
    // Headers are aligned; the padding of the last message may be missing.
    let next = length.next_multiple_of(align_of::<libc::cmsghdr>());
    Some(((level, kind), data, bytes.get(next..).unwrap_or_default()))
}

/// Datagrams to one address that leave as one message: all as long as the first, only the last
/// may be shorter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a, T> {
    pub(crate) to: SocketAddr,
    pub(crate) frames: &'a [T],
}

/// Sends runs without waiting; how many messages the kernel took. An error means the first was
/// refused.
pub(crate) fn send<T: AsRef<[u8]>>(
    socket: &impl AsFd,
    v6: bool,
    runs: &[Run<'_, T>],
) -> io::Result<usize> {
    let runs = &runs[..runs.len().min(BATCH)];
    // SAFETY: iovec and mmsghdr are plain C structs; all zeroes is valid.
    let (mut iovecs, mut headers) = unsafe {
        (
            mem::zeroed::<[libc::iovec; BATCH * SEGMENTS_MAX]>(),
            mem::zeroed::<[libc::mmsghdr; BATCH]>(),
        )
    };
    let mut controls = [[0_u64; 4]; BATCH];
    let names: [SockAddr; BATCH] = std::array::from_fn(|i| {
        runs.get(i).map_or_else(
            || SockAddr::from(SocketAddr::from(([0, 0, 0, 0], 0))),
            |run| SockAddr::from(if v6 { mapped(run.to) } else { run.to }),
        )
    });
    for (i, run) in runs.iter().enumerate() {
        let frames = &run.frames[..run.frames.len().min(SEGMENTS_MAX)];
        let room = &mut iovecs[i * SEGMENTS_MAX..][..frames.len()];
        for (iovec, frame) in room.iter_mut().zip(frames) {
            let bytes = frame.as_ref();
            *iovec =
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        }
        let header = &mut headers[i].msg_hdr;
        header.msg_name = names[i].as_ptr().cast_mut().cast();
        header.msg_namelen = names[i].len();
        header.msg_iov = room.as_mut_ptr();
        header.msg_iovlen = frames.len() as _;
        if let [first, _, ..] = frames {
            let segment = u16::try_from(first.as_ref().len())
                .map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
            header.msg_control = controls[i].as_mut_ptr().cast();
            // SAFETY: CMSG_SPACE(2) is 24 bytes, the buffer has 32 and is aligned to 8; the first
            // header therefore lies inside it, and its two data bytes follow.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(2) as _;
                let control = libc::CMSG_FIRSTHDR(header);
                (*control).cmsg_level = libc::SOL_UDP;
                (*control).cmsg_type = libc::UDP_SEGMENT;
                (*control).cmsg_len = libc::CMSG_LEN(2) as _;
                libc::CMSG_DATA(control).cast::<u16>().write_unaligned(segment);
            }
        }
    }
    // SAFETY: every header points to a name, iovecs and control bytes that live until after the
    // call; the kernel only reads through them (the casts to mut are demanded by the C types).
    let count = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            u32::try_from(runs.len()).unwrap_or(0),
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn socklen(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).unwrap_or(0)
}

/// The address the kernel wrote, if it is one of IP.
pub(super) fn socket_address(
    storage: &libc::sockaddr_storage,
    length: libc::socklen_t,
) -> Option<SocketAddr> {
    let room = size_of::<libc::sockaddr_storage>();
    if length == 0 || length as usize > room || size_of::<SockAddrStorage>() != room {
        return None;
    }
    let mut copy = SockAddrStorage::zeroed();
    // SAFETY: both are `room` bytes of plain data (checked above) and do not overlap; the length
    // is no larger than what was copied.
    let address = unsafe {
        ptr::copy_nonoverlapping(
            ptr::from_ref(storage).cast::<u8>(),
            ptr::from_mut(&mut copy).cast::<u8>(),
            room,
        );
        SockAddr::new(copy, length)
    };
    address.as_socket()
}

/// An IPv4 address as an IPv6 socket wants it.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        SocketAddr::V6(_) => address,
    }
}

/// The other way round.
pub(crate) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) => v4_of(v6).map_or(address, |v4| (v4, address.port()).into()),
        IpAddr::V4(_) => address,
    }
}

fn v4_of(address: Ipv6Addr) -> Option<IpAddr> {
    address.to_ipv4_mapped().map(IpAddr::V4)
}
