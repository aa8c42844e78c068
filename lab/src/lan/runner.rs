//! The thread that moves frames between cables through a [`Switch`].
//!
//! One thread, `lab-switch`, started by [`Runner::start`] and ended when the [`Runner`] is dropped. The switch itself
//! is behind a mutex: tests give their orders from other threads and wake this one when something became due.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags};
use nix::sys::time::TimeSpec;

use super::cable::Cable;
use super::switch::Switch;
use super::{PortId, SwitchOptions};

/// Frames taken from one port before the others have their turn.
const BATCH: usize = 64;
/// A frame of the largest MTU that is ever set, with its header.
const LARGEST_FRAME: usize = 9216;

/// A running switch.
#[derive(Debug)]
pub(super) struct Runner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and its users share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    // A byte written to the first wakes the thread, which polls the second.
    wake: (UnixStream, UnixStream),
}

#[derive(Debug)]
struct State {
    switch: Switch,
    cables: BTreeMap<PortId, Arc<Cable>>,
    /// Ports whose link is being changed: an error of theirs says nothing.
    changing: BTreeSet<PortId>,
    stopping: bool,
}

impl Runner {
    pub(super) fn start(options: SwitchOptions) -> Result<Self> {
        let state =
            State { switch: Switch::new(options), cables: BTreeMap::new(), changing: BTreeSet::new(), stopping: false };
        let wake = UnixStream::pair().context("cannot make a socket pair")?;
        wake.0.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        wake.1.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        let shared = Arc::new(Shared { state: Mutex::new(state), wake });
        let thread = std::thread::Builder::new()
            .name("lab-switch".to_owned())
            .spawn({
                let shared = shared.clone();
                move || run(&shared)
            })
            .context("cannot start the switch's thread")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn add(&self, port: PortId, cable: Cable) {
        let mut state = self.shared.lock();
        state.switch.handle_new_port(port);
        state.cables.insert(port, Arc::new(cable));
        drop(state);
        self.shared.wake();
    }

    /// Takes a port away.
    pub(super) fn remove(&self, port: PortId) {
        let mut state = self.shared.lock();
        state.switch.handle_port_gone(port);
        state.cables.remove(&port);
        drop(state);
        self.shared.wake();
    }

    /// Changes a port's link: `change` does so at the switch's end. The other ports go on meanwhile. A link that goes down carries
    /// nothing from the beginning on, one that comes up does at the end.
    pub(super) fn set_link(&self, port: PortId, up: bool, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let cable = {
            let mut state = self.shared.lock();
            let cable = state.cables.get(&port).context("no such port, or its host is gone")?.clone();
            state.changing.insert(port);
            if !up {
                state.switch.handle_link(port, false);
            }
            cable
        };
        let changed = change();
        let mut state = self.shared.lock();
        // Otherwise, an error that the thread sees means that the device is gone.
        let cleared = cable.clear_error().context("cannot clear a socket's error");
        if !up && changed.is_ok() {
            // What the host had sent before must not come when the link is up again.
            let mut buffer = vec![0; LARGEST_FRAME];
            while cable.receive(&mut buffer).is_ok() {}
        }
        state.changing.remove(&port);
        // A link that did not go down is as it was.
        if up == changed.is_ok() {
            state.switch.handle_link(port, true);
        }
        drop(state);
        self.shared.wake();
        changed.and(cleared)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by that thread; here it must not turn into an abort.
            drop(thread.join());
        }
    }
}

impl Shared {
    /// Looks at the switch.
    pub(super) fn read<T>(&self, look: impl FnOnce(&Switch) -> T) -> T {
        look(&self.lock().switch)
    }

    /// Gives the switch an order, and delivers what it sends.
    pub(super) fn order<T>(&self, order: impl FnOnce(&mut Switch, Instant) -> T) -> T {
        let mut state = self.lock();
        let result = order(&mut state.switch, Instant::now());
        state.deliver();
        drop(state);
        self.wake();
        result
    }

    /// Frames that the cables' sockets lost since the last call.
    pub(super) fn take_overruns(&self) -> io::Result<u64> {
        self.lock().cables.values().map(|cable| cable.take_overruns().map(u64::from)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when the buffer is full, and then the thread is awake anyway.
        (&self.wake.0).write_all(&[1]).ok();
    }
}

impl State {
    fn deliver(&mut self) {
        while let Some((port, frame)) = self.switch.poll_delivery(Instant::now()) {
            if let Some(cable) = self.cables.get(&port)
                && let Err(error) = cable.send(&frame)
            {
                // ENETDOWN while the cable is pulled, ENXIO when the NIC is gone: lost, as on a real cable.
                tracing::trace!(port = port.0, %error, "frame lost at the host's NIC");
            }
        }
    }
}

fn run(shared: &Shared) {
    let mut buffer = vec![0; LARGEST_FRAME];
    loop {
        let (cables, timeout) = {
            let state = shared.lock();
            if state.stopping {
                return;
            }
            let steady = state.cables.iter().filter(|(port, _)| !state.changing.contains(port));
            let cables: Vec<_> = steady.map(|(port, cable)| (*port, cable.clone())).collect();
            (cables, state.switch.next_deadline().map(|at| at.saturating_duration_since(Instant::now())))
        };
        let mut polled = vec![PollFd::new(shared.wake.1.as_fd(), PollFlags::POLLIN)];
        polled.extend(cables.iter().map(|(_, cable)| PollFd::new(cable.as_fd(), PollFlags::POLLIN)));
        if let Err(error) = nix::poll::ppoll(&mut polled, timeout.map(TimeSpec::from), None)
            && error != nix::errno::Errno::EINTR
        {
            tracing::error!(%error, "the switch cannot wait for frames and stops");
            return;
        }
        if polled[0].any() == Some(true) {
            // Only empties the buffer, what is left wakes again: how much it was says nothing.
            drop((&shared.wake.1).read(&mut buffer));
        }
        let mut state = shared.lock();
        for ((port, cable), polled) in cables.iter().zip(&polled[1..]) {
            if polled.any() != Some(true) || state.changing.contains(port) {
                continue;
            }
            if !receive(&mut state, *port, cable, &mut buffer) && state.cables.remove(port).is_some() {
                tracing::debug!(port = port.0, "the host's NIC is gone");
                state.switch.handle_port_gone(*port);
            }
        }
        state.switch.handle_timeout(Instant::now());
        state.deliver();
    }
}

/// Feeds a batch of a port's frames to the switch. `false` when the device is gone (ENETDOWN), with its namespace.
fn receive(state: &mut State, port: PortId, cable: &Cable, buffer: &mut [u8]) -> bool {
    for _ in 0..BATCH {
        match cable.receive(buffer) {
            Ok(length) => state.switch.handle_frame(port, &buffer[..length], Instant::now()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::trace!(port = port.0, %error, "no more frames from this port");
                return false;
            }
        }
        state.deliver();
    }
    true
}
