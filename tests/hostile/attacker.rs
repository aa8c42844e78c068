//! A host that sends whatever it likes, as fast as it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use lab::lan::frame::{ARP_REPLY, ARP_REQUEST, Arp, arp_frame};
use lab::netns::Netns;
use pnet_base::MacAddr;
use pnet_datalink::{Channel, Config};
use socket2::{Domain, Socket, Type};
use std::net::Ipv4Addr;

/// A packet socket on `eth0` of a namespace. It receives everything that comes in there.
pub fn open(netns: &Netns) -> Result<Socket> {
    netns.run(|| -> Result<Socket> {
        let nic = pnet_datalink::interfaces().into_iter().find(|nic| nic.name == "eth0").context("no eth0")?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("cannot open a packet socket")?;
        let for_binding = socket.try_clone().context("cannot duplicate a packet socket")?;
        let descriptor = std::os::fd::IntoRawFd::into_raw_fd(for_binding);
        let config = Config { promiscuous: false, socket_fd: Some(descriptor), ..Config::default() };
        match pnet_datalink::channel(&nic, config).context("cannot bind a packet socket")? {
            // Its own descriptor is a duplicate; the socket stays bound.
            Channel::Ethernet(..) => Ok(socket),
            _ => bail!("an unknown kind of channel"),
        }
    })?
}

/// So many at once are fewer than the kernel keeps for a NIC that it cannot look at yet (net.core.netdev_max_backlog).
const BURST: u64 = 500;

/// Frames sent at a steady rate, from a thread of their own.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Result<(u64, Duration)>>,
    begun: Instant,
}

/// What was sent, and in what time.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub frames: u64,
    pub time: Duration,
    /// Between two frames, or before the end.
    pub longest_pause: Duration,
}

impl Flood {
    /// Sends `frame(0)`, `frame(1)` and so on, `rate` each second.
    pub fn start(from: &Netns, rate: u32, mut frame: impl FnMut(u64) -> Vec<u8> + Send + 'static) -> Result<Self> {
        let (socket, stop) = (open(from)?, Arc::new(AtomicBool::new(false)));
        let frames = Arc::<AtomicU64>::default();
        let (told, count, begun) = (stop.clone(), frames.clone(), Instant::now());
        let thread = std::thread::spawn(move || {
            let (mut sent, mut behind) = (0, 0);
            let (mut longest_pause, mut last) = (Duration::ZERO, begun);
            while !told.load(Ordering::Acquire) {
                let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
                // What a busy machine made it miss is not made up for by one burst larger than any queue.
                behind = behind.max(due.saturating_sub(sent + BURST));
                while sent + behind < due {
                    socket.send(&frame(sent)).context("cannot send")?;
                    sent += 1;
                    let now = Instant::now();
                    (longest_pause, last) = (longest_pause.max(now - last), now);
                    count.store(sent, Ordering::Release);
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok((sent, longest_pause.max(last.elapsed())))
        });
        Ok(Self { stop, sent: frames, thread, begun })
    }

    /// How many were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Ends it.
    pub fn stop(self) -> Result<Sent> {
        self.stop.store(true, Ordering::Release);
        let time = self.begun.elapsed();
        let (frames, longest_pause) = self.thread.join().map_err(|_| anyhow!("the flood panicked"))??;
        Ok(Sent { frames, time, longest_pause })
    }
}

/// An announcement of `vip`, in request form, with this sender and this Ethernet source.
pub fn claim(source: MacAddr, sender: MacAddr, vip: Ipv4Addr) -> Vec<u8> {
    let none = MacAddr::zero();
    let arp = Arp { operation: ARP_REQUEST, sender_mac: sender, sender_ip: vip, target_mac: none, target_ip: vip };
    arp_frame(MacAddr::broadcast(), source, arp)
}

/// A broadcast request for `target` by `sender_ip`; a probe if that is 0.0.0.0.
pub fn request(sender: MacAddr, sender_ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let target_mac = MacAddr::zero();
    let arp = Arp { operation: ARP_REQUEST, sender_mac: sender, sender_ip, target_mac, target_ip: target };
    arp_frame(MacAddr::broadcast(), sender, arp)
}

/// A unicast reply to `to` that says that `vip` is at `sender`.
pub fn reply(sender: MacAddr, vip: Ipv4Addr, to: (MacAddr, Ipv4Addr)) -> Vec<u8> {
    let arp = Arp { operation: ARP_REPLY, sender_mac: sender, sender_ip: vip, target_mac: to.0, target_ip: to.1 };
    arp_frame(to.0, sender, arp)
}

/// A unicast MAC address that differs with the number, and is nobody's.
pub fn stranger(number: u64) -> MacAddr {
    let [.., c, d, e, f] = number.to_be_bytes();
    MacAddr(0x02, 0xee, c, d, e, f)
}
