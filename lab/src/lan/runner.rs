//! The thread that moves frames between TAP devices through a [`Switch`].
//!
//! One thread, `lab-switch`, started by [`Runner::start`] and ended when the [`Runner`] is dropped. The switch itself
//! is behind a mutex: tests give their orders from other threads and wake this one when something became due.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags};
use nix::sys::time::TimeSpec;

use super::switch::Switch;
use super::tap::Tap;
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
    // Told when the thread has taken over a new set of ports.
    ports_taken: Condvar,
}

#[derive(Debug)]
struct State {
    switch: Switch,
    taps: BTreeMap<PortId, Arc<Tap>>,
    // Counts changes of `taps`; the thread polls the set of `taken`.
    generation: u64,
    taken: u64,
    stopping: bool,
}

impl Runner {
    pub(super) fn start(options: SwitchOptions) -> Result<Self> {
        let state =
            State { switch: Switch::new(options), taps: BTreeMap::new(), generation: 0, taken: 0, stopping: false };
        let wake = UnixStream::pair().context("cannot make a socket pair")?;
        wake.0.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        wake.1.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        let shared = Arc::new(Shared { state: Mutex::new(state), wake, ports_taken: Condvar::new() });
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

    pub(super) fn add(&self, port: PortId, tap: Tap) {
        let mut state = self.shared.lock();
        state.switch.handle_new_port(port);
        state.taps.insert(port, Arc::new(tap));
        state.generation += 1;
        drop(state);
        self.shared.wake();
    }

    /// Takes a port away. Its device is gone when this returns.
    pub(super) fn remove(&self, port: PortId) {
        let mut state = self.shared.lock();
        state.switch.handle_port_gone(port);
        state.taps.remove(&port);
        state.generation += 1;
        let wanted = state.generation;
        self.shared.wake();
        while state.taken < wanted {
            state = self.shared.ports_taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn set_link(&self, port: PortId, up: bool) -> Result<()> {
        let mut state = self.shared.lock();
        state.switch.handle_link(port, up);
        let tap = state.taps.get(&port).context("no such port")?;
        tap.set_carrier(up).context("cannot change the carrier (is the host's network namespace gone?)")
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
            if let Some(tap) = self.taps.get(&port)
                && let Err(error) = tap.send(&frame)
            {
                // EIO while the NIC is administratively down: lost, as on a real cable.
                tracing::trace!(port = port.0, %error, "frame lost at the host's NIC");
            }
        }
    }
}

fn run(shared: &Shared) {
    let mut buffer = vec![0; LARGEST_FRAME];
    loop {
        let (taps, timeout) = {
            let mut state = shared.lock();
            if state.stopping {
                return;
            }
            state.taken = state.generation;
            let taps: Vec<_> = state.taps.iter().map(|(port, tap)| (*port, tap.clone())).collect();
            (taps, state.switch.next_deadline().map(|at| at.saturating_duration_since(Instant::now())))
        };
        shared.ports_taken.notify_all();
        let mut polled = vec![PollFd::new(shared.wake.1.as_fd(), PollFlags::POLLIN)];
        polled.extend(taps.iter().map(|(_, tap)| PollFd::new(tap.as_fd(), PollFlags::POLLIN)));
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
        for ((port, tap), polled) in taps.iter().zip(&polled[1..]) {
            if polled.any() != Some(true) {
                continue;
            }
            if !receive(&mut state, *port, tap, &mut buffer) && state.taps.remove(port).is_some() {
                tracing::debug!(port = port.0, "the host's NIC is gone");
                state.switch.handle_port_gone(*port);
                state.generation += 1;
            }
        }
        state.switch.handle_timeout(Instant::now());
        state.deliver();
    }
}

/// Feeds a batch of a port's frames to the switch. `false` when the device is gone, as after its namespace's end.
fn receive(state: &mut State, port: PortId, tap: &Tap, buffer: &mut [u8]) -> bool {
    for _ in 0..BATCH {
        match tap.receive(buffer) {
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
