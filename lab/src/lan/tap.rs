//! A look at one end of a cable: every frame that crosses it is kept, with the VLAN tag that it had on the wire, and frames of one's
//! own making can be sent.
//!
//! Linux takes the tag out of a frame before any socket sees it, and says separately what it was; here the two are put
//! together again ([`TappedFrame::vlan`]).

// Reading the tag (`PACKET_AUXDATA`) has no safe form.
#![allow(unsafe_code)]

use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::Socket;

use super::cable::packet_socket;
use super::frame::{self, Arp};
use crate::netns::Netns;

/// Longer than any frame of an Ethernet.
const LONGEST: usize = 2048;
/// How long a read waits before it looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);
/// IEEE 802.1Q: the tag is behind the two MAC addresses.
const TAG_AT: usize = 12;
const TAG_TYPE: [u8; 2] = [0x81, 0x00];
const VLAN_ID_MASK: u16 = 0x0fff;

/// A frame that crossed the cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TappedFrame {
    /// When it was read.
    pub at: Instant,
    /// Whether it left this end of the cable; otherwise it came in.
    pub outgoing: bool,
    /// The id in its VLAN tag, if it had one.
    pub vlan: Option<u16>,
    /// The frame without the tag.
    pub bytes: Vec<u8>,
}

impl TappedFrame {
    /// What it says, if it is ARP.
    pub fn arp(&self) -> Option<Arp> {
        frame::arp(&self.bytes)
    }
}

/// See the module. Dropping it ends it.
#[derive(Debug)]
pub struct Tap {
    socket: Socket,
    frames: Arc<Mutex<Vec<TappedFrame>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Listens on a device. It has to be up.
    ///
    /// # Errors
    /// When there is no such device, or it cannot be listened on.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        let socket = netns.run(|| packet_socket(device))??;
        socket.set_nonblocking(false).context("a tap's socket")?;
        socket.set_read_timeout(Some(LOOK)).context("a tap's socket")?;
        ask_for_tags(&socket).context("a tap cannot see VLAN tags")?;
        let (frames, stopping) = (Arc::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::Builder::new().name(format!("tap-{device}")).spawn({
            let (reader, frames, stopping) = (socket.try_clone()?, Arc::clone(&frames), stopping.clone());
            move || read(&reader, &frames, &stopping)
        });
        Ok(Self { socket, frames, stopping, thread: Some(thread.context("cannot start a tap's thread")?) })
    }

    /// All frames since the tap was opened, or since [`Tap::forget`], oldest first. Those that it sent itself are not among them.
    pub fn frames(&self) -> Vec<TappedFrame> {
        lock(&self.frames).clone()
    }

    /// Forgets the frames so far.
    pub fn forget(&self) {
        lock(&self.frames).clear();
    }

    /// Sends a frame, with a VLAN tag if one is given.
    ///
    /// # Errors
    /// When the kernel does not take it, as when the device is down.
    pub fn send(&self, vlan: Option<u16>, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() > TAG_AT, "a frame of {} octets", bytes.len());
        let (addresses, rest) = bytes.split_at(TAG_AT);
        let tag = vlan.map(|id| [TAG_TYPE, id.to_be_bytes()].concat()).unwrap_or_default();
        (&self.socket).write_all(&[addresses, &tag, rest].concat()).context("a tap cannot send")
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by that thread.
            drop(thread.join());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(socket: &Socket, frames: &Mutex<Vec<TappedFrame>>, stopping: &AtomicBool) {
    let mut buffer = [0; LONGEST];
    while !stopping.load(Ordering::Relaxed) {
        match receive(socket, &mut buffer) {
            Ok(frame) => lock(frames).push(frame),
            // Nothing for a while, or the device went down: the socket says that once and goes on when it is up.
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "a tap ended");
                return;
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
        || error.raw_os_error() == Some(libc::ENETDOWN)
}

fn ask_for_tags(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer is to a live value, and the length is that of the value.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_AUXDATA,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn receive(socket: &Socket, buffer: &mut [u8; LONGEST]) -> io::Result<TappedFrame> {
    /// Room for one control message, aligned as its header has to be.
    #[repr(C, align(8))]
    struct Control([u8; 128]);

    let mut control = Control([0; 128]);
    // SAFETY: all-zero is a valid value of both.
    let (mut from, mut message) = unsafe { std::mem::zeroed::<(libc::sockaddr_ll, libc::msghdr)>() };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: every pointer in the message is to a live value, with the length of that value.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut vlan = None;
    // SAFETY: the message is as the kernel left it, and the control buffer is still there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    while let Some(header) = next {
        if header.cmsg_level == libc::SOL_PACKET && header.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: a message of this type holds this value; it need not be aligned.
            let data = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            let has_tag = data.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
            vlan = has_tag.then_some(data.tp_vlan_tci & VLAN_ID_MASK);
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, header).as_ref() };
    }
    let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
    Ok(TappedFrame { at: Instant::now(), outgoing, vlan, bytes: buffer[..length].to_vec() })
}
