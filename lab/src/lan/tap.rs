//! A TAP device: the NIC of a host whose cable ends in this process.
//!
//! Its file is opened in the switch's network namespace and the device then moved to the host's, so that the file
//! does not keep the host's namespace alive. No offload is asked for: the kernel hands out frames of at most MTU size
//! with their checksums filled in.

// TUNSETIFF and TUNSETCARRIER have no safe form.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

/// The process's end of a TAP device. The device goes when this is dropped.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
}

impl Tap {
    /// Makes a device of that name (at most 15 bytes) in the calling thread's network namespace.
    pub(super) fn create(name: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .context("cannot open /dev/net/tun (is the kernel module tun there?)")?;
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        anyhow::ensure!(name.len() < request.ifr_name.len(), "device name {name} is too long");
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // No constant of libc has the type of the field.
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the file is open, and TUNSETIFF reads and writes one ifreq.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("cannot make TAP device {name}"));
        }
        Ok(Self { file })
    }

    /// Plugs the cable in or pulls it.
    pub(super) fn set_carrier(&self, up: bool) -> io::Result<()> {
        let carrier = libc::c_int::from(up);
        // SAFETY: the file is open, and TUNSETCARRIER reads one int.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETCARRIER, &carrier) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The next frame that the host sent. `WouldBlock` if there is none.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Hands a frame to the host.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
