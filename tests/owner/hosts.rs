//! Hosts on the LAN that are no nodes: who asks, a rival, and a switch fabric that answers for hosts that are gone.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::lan::frame::{ARP_REPLY, ARP_REQUEST, Arp, ArpForm, arp, arp_frame, ethernet, is_group};
use lab::lan::host::{Neighbour, neighbour};
use lab::lan::{Lan, PortId};
use lab::netns::Netns;
use pnet_base::MacAddr;
use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender};

/// A Linux host with one NIC on the LAN. It is gone with the value.
pub struct Host {
    pub netns: Netns,
    pub mac: MacAddr,
    pub ip: Ipv4Addr,
    pub port: PortId,
}

impl Host {
    pub fn create(lan: &mut Lan, name: &str, mac: MacAddr, ip: Ipv4Addr) -> Result<Self> {
        let netns = Netns::create(name)?;
        let port = lan.attach(&netns, "eth0", mac, Some(&format!("{ip}/24")))?;
        netns.ip(&["route", "add", "10.20.64.0/20", "dev", "eth0"])?;
        Ok(Self { netns, mac, ip, port })
    }

    /// What its kernel believes about an address.
    pub fn believes(&self, ip: Ipv4Addr) -> Result<Option<MacAddr>> {
        let entry: Option<Neighbour> = neighbour(&self.netns, "eth0", ip)?;
        Ok(entry.and_then(|entry| entry.mac))
    }

    /// Asks for all these addresses in each `period`, until the value is dropped: everybody, or one NIC. Its kernel knows
    /// nothing of it.
    pub fn ask(&self, vips: Vec<Ipv4Addr>, to: Option<MacAddr>, period: Duration) -> Result<Repeating> {
        self.repeat(self.requests(&vips, to), period)
    }

    /// Asks everybody for all these addresses, once.
    pub fn ask_once(&self, vips: &[Ipv4Addr]) -> Result<()> {
        let (mut sender, _) = self.open()?;
        send_all(&mut *sender, &self.requests(vips, None));
        Ok(())
    }

    fn requests(&self, vips: &[Ipv4Addr], to: Option<MacAddr>) -> Vec<Vec<u8>> {
        let (sender_mac, sender_ip) = (self.mac, self.ip);
        let request = |target_ip: &Ipv4Addr| {
            let (operation, target_mac, target_ip) = (ARP_REQUEST, MacAddr::zero(), *target_ip);
            let message = Arp { operation, sender_mac, sender_ip, target_mac, target_ip };
            arp_frame(to.unwrap_or(MacAddr::broadcast()), sender_mac, message)
        };
        vips.iter().map(request).collect()
    }

    /// Claims an address in each `period`, in both forms, until the value is dropped.
    pub fn claim(&self, vip: Ipv4Addr, period: Duration) -> Result<Repeating> {
        let mac = self.mac;
        let claim = |(operation, target_mac)| {
            let message = Arp { operation, sender_mac: mac, sender_ip: vip, target_mac, target_ip: vip };
            arp_frame(MacAddr::broadcast(), mac, message)
        };
        self.repeat([(ARP_REQUEST, MacAddr::zero()), (ARP_REPLY, mac)].map(claim).to_vec(), period)
    }

    fn repeat(&self, frames: Vec<Vec<u8>>, period: Duration) -> Result<Repeating> {
        let (mut sender, _) = self.open()?;
        Repeating::start(move |stopping, rounds| {
            let mut next = Instant::now();
            while !stopping.load(Ordering::Relaxed) {
                send_all(&mut *sender, &frames);
                rounds.fetch_add(1, Ordering::Relaxed);
                next = (next + period).max(Instant::now());
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        })
    }

    /// As soon as `owner` is dead this is a part of the switch that suppresses ARP: it answers everybody who asks for `vip` in the name
    /// of `owner`, until it hears somebody else claim the address. What is sent to `owner` itself it does not see.
    pub fn answer_for(&self, vip: Ipv4Addr, owner: MacAddr, is_dead: Arc<AtomicBool>) -> Result<Repeating> {
        let (mut sender, mut receiver) = self.open()?;
        Repeating::start(move |stopping, answers| {
            while !stopping.load(Ordering::Relaxed) {
                // An error is the timeout.
                let Ok(bytes) = receiver.next() else { continue };
                let Some(heard) = arp(bytes) else { continue };
                if heard.is_announcement() && heard.sender_ip == vip && heard.sender_mac != owner {
                    return;
                }
                // What is for one host only goes to that host's port, and ends there.
                let to_everybody = ethernet(bytes).is_some_and(|header| is_group(header.destination));
                let asks = matches!(heard.form(), ArpForm::Probe | ArpForm::Request) && heard.target_ip == vip;
                if !asks || !to_everybody || heard.sender_mac == owner || !is_dead.load(Ordering::Relaxed) {
                    continue;
                }
                let answer = Arp {
                    operation: ARP_REPLY,
                    sender_mac: owner,
                    sender_ip: vip,
                    target_mac: heard.sender_mac,
                    target_ip: heard.sender_ip,
                };
                drop(sender.send_to(&arp_frame(heard.sender_mac, owner, answer), None));
                answers.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    fn open(&self) -> Result<(Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>)> {
        self.netns.run(|| {
            let nic = pnet_datalink::interfaces().into_iter().find(|nic| nic.name == "eth0").context("no eth0")?;
            let config =
                Config { promiscuous: false, read_timeout: Some(Duration::from_millis(20)), ..Config::default() };
            match pnet_datalink::channel(&nic, config).context("cannot open a packet socket")? {
                Channel::Ethernet(sender, receiver) => Ok((sender, receiver)),
                _ => bail!("not an Ethernet channel"),
            }
        })?
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.netns.clone().delete() {
            eprintln!("warning: {error:#}");
        }
    }
}

/// At a pace that no receiver's buffer minds.
fn send_all(sender: &mut dyn DataLinkSender, frames: &[Vec<u8>]) {
    for (sent, frame) in (1..).zip(frames) {
        // An error is a full queue, or a cable that is pulled: then the frame is lost.
        drop(sender.send_to(frame, None));
        if sent % 50 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A thread that goes on until this is dropped.
pub struct Repeating {
    stopping: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Repeating {
    fn start(work: impl FnOnce(&AtomicBool, &AtomicU64) + Send + 'static) -> Result<Self> {
        let (stopping, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::Builder::new().name("host".to_owned()).spawn({
            let (stopping, count) = (stopping.clone(), count.clone());
            move || work(&stopping, &count)
        });
        Ok(Self { stopping, count, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// Rounds, or answers, so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Repeating {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by that thread.
            drop(thread.join());
        }
    }
}
