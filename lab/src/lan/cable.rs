//! The switch's end of a cable: a packet socket on one end of a veth pair whose other end is a host's NIC.
//!
//! Offloads must be off at the host's end ([`turn_offloads_off`]): a packet socket would else be handed frames that
//! are larger than the MTU and have no checksum yet, because on a veth pair both are left to the receiver.

// Binding a packet socket, its statistics and the ethtool request have no safe form.
#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const ETHTOOL_STXCSUM: u32 = 0x17;

/// The switch's end of a cable.
#[derive(Debug)]
pub(super) struct Cable {
    socket: Socket,
}

impl Cable {
    /// Opens the device of that name in the calling thread's network namespace.
    pub(super) fn open(device: &str) -> Result<Self> {
        Ok(Self { socket: packet_socket(device)? })
    }

    /// The next frame that the host sent. `WouldBlock` if there is none.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.socket).read(buffer)
    }

    /// Hands a frame to the host.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.socket).write(frame).map(drop)
    }

    /// Forgets the error that setting the device down leaves on the socket.
    pub(super) fn clear_error(&self) -> io::Result<()> {
        self.socket.take_error().map(drop)
    }

    /// Frames lost since the last call because the buffer was full.
    pub(super) fn take_overruns(&self) -> io::Result<u32> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the pointers are to live values, and the length is that of the value.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if result == 0 { Ok(statistics.tp_drops) } else { Err(io::Error::last_os_error()) }
    }
}

/// A socket, not blocking, for all frames on the device of that name in the calling thread's network namespace.
pub(super) fn packet_socket(device: &str) -> Result<Socket> {
    let index = if_nametoindex(device).with_context(|| format!("no network device {device}"))?;
    let every_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    // Protocol 0: nothing comes in before the socket is bound to its device.
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(0)))
        .context("cannot open a packet socket")?;
    // SAFETY: the storage is larger than a sockaddr_ll, of which all-zero is a valid value, and the length told is
    // that of what was written.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*address).sll_protocol = every_protocol;
            (*address).sll_ifindex = index as libc::c_int;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }
    .context("cannot make a packet address")?;
    socket.bind(&address).with_context(|| format!("cannot bind a packet socket to {device}"))?;
    // As far as the machine allows: a full buffer loses frames, which `overruns` tells.
    socket.set_recv_buffer_size(4 << 20).context("cannot set a receive buffer")?;
    Ok(socket)
}

impl AsFd for Cable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Turns checksum offload off on a device of the calling thread's network namespace, and with it segmentation offload,
/// which needs it.
pub(super) fn turn_offloads_off(device: &str) -> Result<()> {
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None).context("cannot open a socket")?;
    let mut value = EthtoolValue { command: ETHTOOL_STXCSUM, data: 0 };
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(device.len() < request.ifr_name.len(), "the device name {device} is too long");
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the socket is open, and SIOCETHTOOL reads one ifreq and, for this command, the value that it points to;
    // both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot turn offloads off on {device}"));
    }
    Ok(())
}
