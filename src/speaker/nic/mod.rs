//! An open NIC: the only thing from which a frame can leave.
//!
//! [`open`] makes two halves that share one socket: the [`Nic`], with which the owner's loop sends and adjusts the filter, and
//! the [`Port`], which the receive thread owns. The socket is opened with protocol 0, gets its filter, and is then bound to
//! the NIC and to its protocol (by pnet's channel, which takes the ready socket), so that nothing slips in between. No NIC
//! becomes promiscuous, no address is configured, no sysctl written. A NIC that announces both IPv4 and IPv6 is opened twice,
//! and has joined the groups in which its IPv6 addresses are asked for ([`Groups`]).
//!
//! Each half asks the kernel for the NIC's MAC address before each frame (one system call, a fraction of a microsecond). When
//! it is not the one that the NIC was opened with, nothing is sent: a frame that lies is worse than one that is missing. Whether
//! what the frame says is still true is asked last of all, when nothing is left to do but the system call that sends it.

mod frame;
mod groups;
mod socket;
#[cfg(test)]
pub(super) mod tests;

use std::{
    io::{self, Read as _},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use pnet_datalink::{ChannelType, Config, NetworkInterface};
use pnet_packet::ethernet::{EtherType, EtherTypes};
use socket2::Socket;
use thiserror::Error;

use super::{
    bpf::Instruction,
    filter::only_on,
    wire::{MacAddr, Message},
};
use frame::OwnMac;
pub use groups::{Groups, JoinError};

/// How long the receive thread waits for a frame before it looks whether it should end.
pub(super) const RECEIVE_TIMEOUT: Duration = Duration::from_millis(80);
/// How long an answer may wait for room in the send queue.
const SEND_TIMEOUT: Duration = Duration::from_millis(20);
/// Longer than any frame that is of use; a longer one is cut, and dropped for its length.
const READ_BUFFER: usize = 2048;

/// What goes through an open NIC. One that announces both families is opened twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// For IPv4.
    Arp,
    /// For IPv6.
    NeighbourDiscovery,
}

impl Protocol {
    /// A short name, as threads and metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arp => "arp",
            Self::NeighbourDiscovery => "nd",
        }
    }

    fn ether_type(self) -> EtherType {
        match self {
            Self::Arp => EtherTypes::Arp,
            Self::NeighbourDiscovery => EtherTypes::Ipv6,
        }
    }
}

/// Why a NIC cannot be opened. Nothing was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The process lacks the capability.
    #[error("packet sockets are not permitted: give the speaker the capability NET_RAW")]
    NotPermitted,
    /// No interface has this name.
    #[error("there is no interface {0} on this node")]
    NoSuchInterface(Arc<str>),
    /// It has no Ethernet address.
    #[error("interface {0} is not an Ethernet interface, or has no MAC address")]
    NotEthernet(Arc<str>),
    /// Another step failed.
    #[error("interface {interface} cannot be opened: {step}: {error}")]
    Socket {
        /// Name of the interface.
        interface: Arc<str>,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Why a frame did not leave.
#[derive(Debug, Error)]
pub enum SendError {
    /// The NIC has another MAC address than when it was opened, or is gone.
    #[error("the MAC address of {0} changed since it was opened")]
    MacChanged(Arc<str>),
    /// The NIC is not open for the message's family.
    #[error("{0} is not open")]
    Closed(Arc<str>),
    /// The addresses in the message are of two families.
    #[error("there is no frame for {0}: the other address in the message is of another family")]
    NoFrame(IpAddr),
    /// It may not be true any more.
    #[error("it is too late for a frame about {0}: the sender was held up")]
    TooLate(IpAddr),
    /// The kernel did not take it.
    #[error("sending through {0}: {1}")]
    Io(Arc<str>, io::Error),
}

/// The half of an open NIC that the owner's loop holds. Dropping it does not close the socket while the [`Port`] lives.
#[derive(Debug)]
pub struct Nic {
    name: Arc<str>,
    index: u32,
    own: OwnMac,
    socket: Socket,
}

/// The half of an open NIC that the receive thread holds.
pub struct Port {
    name: Arc<str>,
    protocol: Protocol,
    own: OwnMac,
    socket: Socket,
    buffer: Box<[u8]>,
}

/// Whether this process may open packet sockets.
///
/// # Errors
/// [`OpenError::NotPermitted`], or what else the kernel said.
pub fn check_permission() -> Result<(), OpenError> {
    let name: Arc<str> = Arc::from("(any)");
    socket::open(&super::filter::arp([])).map(drop).map_err(|error| OpenError::of(&name, "opening a socket", error))
}

/// Opens the interface `name` for one protocol. It receives what `filter` passes.
///
/// # Errors
/// See [`OpenError`]; nothing was changed.
pub fn open(name: &Arc<str>, protocol: Protocol, filter: &[Instruction]) -> Result<(Nic, Port), OpenError> {
    let index = socket::index_of(name).ok_or_else(|| OpenError::NoSuchInterface(name.clone()))?;
    // Not looked for in a list of all: for that the kernel makes the loop wait while it makes or removes interfaces.
    let interface = NetworkInterface {
        name: name.to_string(),
        description: String::new(),
        index,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    let failed = |step| move |error| OpenError::of(name, step, error);
    let filter = only_on(interface.index, filter);
    let socket = socket::open(&filter).map_err(failed("opening a socket"))?;
    let for_port = socket.try_clone().map_err(failed("duplicating the socket"))?;
    bind(&interface, protocol, &socket).map_err(failed("binding to the interface"))?;
    let mac = socket::mac_of_bound_nic(&socket).map_err(failed("reading the MAC address"))?;
    let own = match mac {
        Some(mac) if mac.is_unicast() && !mac.is_zero() => OwnMac::of_bound_socket(mac),
        _ => return Err(OpenError::NotEthernet(name.clone())),
    };
    let nic = Nic { name: name.clone(), index: interface.index, own, socket };
    let buffer = vec![0; READ_BUFFER].into_boxed_slice();
    let port = Port { name: name.clone(), protocol, own, socket: for_port, buffer };
    Ok((nic, port))
}

/// Binds the socket to the interface and to the protocol, by a channel of pnet's that is closed at once: what is bound stays so.
/// It would ask with a system call of its own before each frame, in both directions, whether there is one.
fn bind(interface: &NetworkInterface, protocol: Protocol, socket: &Socket) -> io::Result<()> {
    let config = Config {
        // The protocol that it binds to. The kind of socket (raw, with Ethernet headers) is that of the descriptor.
        channel_type: ChannelType::Layer3(protocol.ether_type().0),
        promiscuous: false,
        // pnet owns this one from here on, also when it fails.
        socket_fd: Some(std::os::fd::IntoRawFd::into_raw_fd(socket.try_clone()?)),
        ..Config::default()
    };
    drop(pnet_datalink::channel(interface, config)?);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))
}

impl Nic {
    /// Its index, which a NIC keeps when it is renamed.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The MAC address that every frame carries.
    pub fn mac(&self) -> MacAddr {
        self.own.get()
    }

    /// Whether the NIC still has that MAC address.
    pub fn is_current(&self) -> bool {
        is_current(&self.socket, self.own)
    }

    /// Lets another set of frames in from now on.
    ///
    /// # Errors
    /// What the kernel said; the filter before stays.
    pub fn set_filter(&self, filter: &[Instruction]) -> io::Result<()> {
        socket::attach(&self.socket, &only_on(self.index, filter))
    }

    /// The octets that the receive buffer holds, and those that were asked for.
    pub fn receive_buffer(&self) -> io::Result<(usize, usize)> {
        // Linux reports twice of what it was given: the other half is for its own bookkeeping.
        Ok((self.socket.recv_buffer_size()? / 2, socket::RECEIVE_BUFFER))
    }

    /// Sends `message`, if it is `in_time`: that is asked directly before.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was sent.
    pub fn send(&self, message: &Message, in_time: impl FnOnce() -> bool) -> Result<(), SendError> {
        if !self.is_current() {
            return Err(SendError::MacChanged(self.name.clone()));
        }
        let frame = frame::write(message, self.own).ok_or(SendError::NoFrame(message.vip()))?;
        if !in_time() {
            return Err(SendError::TooLate(message.vip()));
        }
        // The owner's loop never waits for room.
        let sent = self.socket.send_with_flags(&frame, libc::MSG_DONTWAIT);
        sent.map(drop).map_err(|error| SendError::Io(self.name.clone(), error))
    }
}

impl Port {
    /// The MAC address that every frame carries.
    pub fn mac(&self) -> MacAddr {
        self.own.get()
    }

    /// The name of the interface.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it was opened for.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The next frame; `None` when there was none for a while.
    ///
    /// # Errors
    /// When the NIC went down or is gone: call [`Port::clear_error`] before the next try.
    pub fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        let length = (&self.socket).read(&mut self.buffer);
        self.received(length)
    }

    /// The next frame of those that wait; `None` when there is none.
    ///
    /// # Errors
    /// See [`Port::receive`].
    pub fn receive_waiting(&mut self) -> io::Result<Option<&[u8]>> {
        let length = socket::receive_waiting(&self.socket, &mut self.buffer);
        self.received(length)
    }

    fn received(&self, length: io::Result<usize>) -> io::Result<Option<&[u8]>> {
        match length {
            Ok(length) => Ok(self.buffer.get(..length)),
            Err(error) => match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Frames lost since the last call because the receive buffer was full; 0 where the kernel does not say.
    pub fn take_overruns(&self) -> u32 {
        socket::take_overruns(&self.socket).unwrap_or(0)
    }

    /// Takes the error that the socket holds since its link went down. Until then every poll returns at once.
    pub fn clear_error(&self) -> Option<io::Error> {
        self.socket.take_error().unwrap_or_else(Some)
    }

    /// Sends an answer, if it is `in_time`: that is asked directly before.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was sent.
    pub fn send(&mut self, message: &Message, in_time: impl FnOnce() -> bool) -> Result<(), SendError> {
        if !is_current(&self.socket, self.own) {
            return Err(SendError::MacChanged(self.name.clone()));
        }
        let frame = frame::write(message, self.own).ok_or(SendError::NoFrame(message.vip()))?;
        if !in_time() {
            return Err(SendError::TooLate(message.vip()));
        }
        self.socket.send(&frame).map(drop).map_err(|error| SendError::Io(self.name.clone(), error))
    }
}

fn is_current(socket: &Socket, own: OwnMac) -> bool {
    matches!(socket::mac_of_bound_nic(socket), Ok(Some(mac)) if mac == own.get())
}

impl OpenError {
    fn of(interface: &Arc<str>, step: &'static str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
            _ => Self::Socket { interface: interface.clone(), step, error },
        }
    }
}
