//! The packet socket: how it is opened, and what it says about its NIC. The one file with unsafe code.
#![allow(unsafe_code)]

use std::{ffi::CString, io, os::fd::AsRawFd as _};

use socket2::{Domain, SockFilter, Socket, Type};

use crate::speaker::{bpf::Instruction, wire::MacAddr};

/// The default holds 256 frames of a burst; this held 4,000.
pub(super) const RECEIVE_BUFFER: usize = 4 << 20;
/// Ethernet, in `sockaddr_ll.sll_hatype`.
const ARPHRD_ETHER: u16 = 1;

/// Opens a packet socket that receives nothing yet: protocol 0, so that the filter is in place before the first frame.
pub(super) fn open(filter: &[Instruction]) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    attach(&socket, filter)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    Ok(socket)
}

/// The index of the interface `name`; `None` if there is none.
pub(super) fn index_of(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the pointer is to a string that ends with a zero and lives as long as the call, which keeps nothing of it.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Puts `filter` in the place of the one before, in one step.
pub(super) fn attach(socket: &Socket, filter: &[Instruction]) -> io::Result<()> {
    let program: Vec<SockFilter> =
        filter.iter().map(|step| SockFilter::new(step.code, step.jump_true, step.jump_false, step.operand)).collect();
    socket.attach_filter(&program)
}

/// Takes a frame that waits, and never waits for one: `WouldBlock` when there is none.
pub(super) fn receive_waiting(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a live, exclusively borrowed buffer; the descriptor is open as long as
    // `socket` is.
    let length =
        unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Frames that the kernel dropped since the last call because the receive buffer was full.
pub(super) fn take_overruns(socket: &Socket) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: both pointers are to live, exclusively borrowed values of the types that the call writes, and `length` is the
    // size of the first; the descriptor is open as long as `socket` is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(statistics.tp_drops) } else { Err(io::Error::last_os_error()) }
}

/// The MAC address that the NIC has now to which `socket` is bound; `None` if the NIC is gone, or is not Ethernet.
pub(super) fn mac_of_bound_nic(socket: &Socket) -> io::Result<Option<MacAddr>> {
    // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: both pointers are to live, exclusively borrowed values of the types that the call writes, and `length` is the
    // size of the first; the descriptor is open as long as `socket` is.
    let result = unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if address.sll_hatype != ARPHRD_ETHER || address.sll_halen != 6 {
        return Ok(None);
    }
    let [a, b, c, d, e, f, ..] = address.sll_addr;
    Ok(Some(MacAddr(a, b, c, d, e, f)))
}
