//! The kernel's news about this node's interfaces (rtnetlink): one socket, one task, which holds the [`Follow`] and publishes
//! what comes of it. The newest state alone waits for who reads it, and the kernel's own buffer is the only queue: when that
//! overflows, or the socket fails, everything is asked for anew.

use std::{fs, io, path::Path, sync::Arc, time::Instant};

use kube::runtime::utils::Backoff as _;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use socket2::{SockFilter, SockRef};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, sleep_until},
};
use tracing::debug;

use super::{
    inventory::{Interface, filter, follow::Follow},
    metrics::Metrics,
};
use crate::{
    retry::{Patience, Trouble},
    telemetry::Health,
};

/// What is told of: Linux, include/uapi/linux/rtnetlink.h.
const GROUPS: [u32; 5] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
];
/// The kernel's messages are shorter; it cuts answers at 32 KiB.
const LONGEST_MESSAGE: usize = 64 << 10;
/// What waits while this task does not run. The kernel gives less where net.core.rmem_max says so.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Messages read before what has changed is published.
const BATCH: usize = 256;
/// The part of the health that this task speaks for.
pub const HEALTH_PART: &str = "interfaces";

/// The interfaces as they are now.
pub type View = Arc<[Interface]>;

/// The reading end: the newest view, and a way to ask for another look.
#[derive(Clone, Debug)]
pub struct Links {
    view: watch::Receiver<Option<View>>,
    look: Arc<Notify>,
}

/// The writing end, to be run as a task of its own.
pub struct Watching {
    view: watch::Sender<Option<View>>,
    look: Arc<Notify>,
    health: Health,
    metrics: Metrics,
}

/// Makes both ends.
pub fn watching(health: Health, metrics: Metrics) -> (Watching, Links) {
    let (sender, view) = watch::channel(None);
    let look = Arc::new(Notify::new());
    (Watching { view: sender, look: look.clone(), health, metrics }, Links { view, look })
}

impl Links {
    /// Waits for the first view, or for the next one that differs.
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            // Who writes it is gone: the process is about to end.
            std::future::pending().await
        }
    }

    /// The newest view: nothing before the first.
    pub fn view(&mut self) -> View {
        self.view.borrow_and_update().clone().unwrap_or_default()
    }

    /// Something happened that the kernel may not have told of yet.
    pub fn look(&self) {
        self.look.notify_one();
    }
}

impl Watching {
    /// Follows the kernel for ever.
    pub async fn run(self) {
        let mut follow = Follow::default();
        let mut patience = Patience::default();
        let mut trouble = Trouble::new("asking the kernel for the interfaces");
        loop {
            let error = self.follow(&mut follow, &mut trouble).await;
            trouble.failed(&error);
            self.health.not_ready(HEALTH_PART, format!("the kernel does not tell of interfaces: {error}"));
            if follow.is_known_since_connected() {
                patience.reset();
            }
            sleep(patience.pause()).await;
        }
    }

    /// Until the socket fails.
    async fn follow(&self, follow: &mut Follow, trouble: &mut Trouble) -> io::Error {
        let socket = match connect() {
            Ok(socket) => socket,
            Err(error) => return error,
        };
        follow.handle_connected();
        let mut buffer = vec![0; LONGEST_MESSAGE];
        loop {
            match follow.poll_request(Instant::now()) {
                Ok(None) => {}
                Ok(Some(request)) => {
                    if let Err(error) = socket.socket_ref().send_to(&request, &SocketAddr::new(0, 0), 0) {
                        return error;
                    }
                }
                Err(error) => return io::Error::new(io::ErrorKind::TimedOut, error),
            }
            let wake_at = follow.poll_timeout(Instant::now());
            let mut room = buffer.as_mut_slice();
            let heard = tokio::select! {
                biased;
                from = socket.recv_from(&mut room) => Some(from),
                () = self.look.notified() => {
                    follow.handle_look();
                    None
                }
                () = sleep_until(wake_at.into()) => None,
            };
            if let Some(from) = heard {
                let length = LONGEST_MESSAGE - room.len();
                if let Err(error) = self.handle(from.map(|from| (length, from)), &buffer, follow) {
                    return error;
                }
                if let Err(error) = self.read_on(socket.socket_ref(), &mut buffer, follow) {
                    return error;
                }
                self.publish(follow);
            }
            if follow.is_known_since_connected() {
                self.health.ready(HEALTH_PART);
                trouble.worked();
            }
        }
    }

    /// What else is there, up to a batch: one view for all of it.
    fn read_on(&self, socket: &Socket, buffer: &mut [u8], follow: &mut Follow) -> io::Result<()> {
        for _ in 0..BATCH {
            let heard = socket.recv_from(&mut &mut *buffer, libc::MSG_DONTWAIT);
            if heard.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
            self.handle(heard, buffer, follow)?;
        }
        Ok(())
    }

    fn handle(&self, heard: io::Result<(usize, SocketAddr)>, buffer: &[u8], follow: &mut Follow) -> io::Result<()> {
        match heard {
            // Other processes may write to this socket, too.
            Ok((_, from)) if from.port_number() != 0 => {}
            // It may have been cut.
            Ok((length, _)) if length >= LONGEST_MESSAGE => self.overrun(follow),
            Ok((length, _)) => follow.handle_datagram(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.overrun(follow),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn publish(&self, follow: &mut Follow) {
        let Some(inventory) = follow.poll_changed() else { return };
        let view: View = inventory.interfaces(judge_ipv6).into();
        self.view.send_if_modified(|now| {
            let differs = now.as_ref() != Some(&view);
            if differs {
                *now = Some(view);
            }
            differs
        });
    }

    fn overrun(&self, follow: &mut Follow) {
        debug!("news of interfaces were lost: asking for all of them");
        self.metrics.link_news_lost.inc();
        follow.handle_overrun();
    }
}

/// Opens the socket. It listens before anything is asked for, so that no change falls in between.
fn connect() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let program: Vec<SockFilter> = filter::program()
        .iter()
        .map(|step| SockFilter::new(step.code, step.jump_true, step.jump_false, step.operand))
        .collect();
    let options = SockRef::from(socket.socket_ref());
    options.attach_filter(&program)?;
    options.set_recv_buffer_size(RECEIVE_BUFFER)?;
    // Kernels before 4.20 do not know it, and answer with more than was asked for.
    if let Err(error) = socket.socket_ref().set_netlink_get_strict_chk(true) {
        debug!(%error, "the kernel does not narrow its answers");
    }
    socket.socket_mut().bind_auto()?;
    for group in GROUPS {
        socket.socket_ref().add_membership(group)?;
    }
    Ok(socket)
}

/// Whether an interface that can announce can announce IPv6 addresses, too: without IPv6 on it the kernel joins no group and
/// takes no packet. It takes the addresses away when IPv6 is turned off, which is news, and leads here.
fn judge_ipv6(name: &str) -> Result<(), String> {
    // Of the reader's own network namespace, whatever /proc is mounted.
    let all = Path::new("/proc/sys/net/ipv6/conf");
    if !all.exists() {
        return Err("IPv6 is turned off in this node's kernel".to_owned());
    }
    match fs::read_to_string(all.join(name).join("disable_ipv6")) {
        Ok(text) if text.trim() == "0" => Ok(()),
        Ok(_) => Err("IPv6 is turned off on it (net.ipv6.conf.*.disable_ipv6)".to_owned()),
        Err(_) => Err("there is no IPv6 on it; is its MTU less than 1280?".to_owned()),
    }
}

/// Whether the kernel answers ARP on an interface for addresses that are elsewhere: `arp_ignore` as it is in force there, which is the
/// greater of the interface's own and that of all. What cannot be read is the kernel's default.
pub fn arp_ignore(name: &str) -> u8 {
    let all = Path::new("/proc/sys/net/ipv4/conf");
    let read = |folder: &str| fs::read_to_string(all.join(folder).join("arp_ignore")).ok()?.trim().parse().ok();
    read("all").max(read(name)).unwrap_or_default()
}
