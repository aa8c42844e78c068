//! A minimal ARP responder per node, correct or wrong in exactly one way. No control plane: the test says who owns.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use lab::lan::frame::{ARP_REPLY, ARP_REQUEST, Arp, arp, arp_frame, ethernet};
use pnet_base::MacAddr;
use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender};

use crate::announcer::Announcer;
use crate::field::Node;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);
const REFRESH: Duration = Duration::from_secs(1);
const REPEAT: Duration = Duration::from_millis(250);

/// What is wrong with a set of responders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// One leader answers and announces for every node, with the owner's MAC as ARP sender and its own as Ethernet
    /// source (OpenELB 0.4).
    ForeignSender,
    /// It answers and announces moves, but sends nothing by itself while nothing happens.
    Silent,
    /// The new owner answers, but tells nobody. It is not silent: it refreshes its node's own address.
    UnannouncedMove,
}

/// Responders on all nodes.
pub struct Responders {
    owner: Arc<AtomicUsize>,
    nodes: usize,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Responders {
    /// Starts one thread per node. The second node owns first: with a leader, that is not the leader.
    pub fn start(nodes: &[Node], fault: Fault) -> Result<Self> {
        let (owner, stopping) = (Arc::new(AtomicUsize::new(1)), Arc::<AtomicBool>::default());
        let macs: Vec<_> = nodes.iter().map(|node| node.mac).collect();
        let mut responders =
            Self { owner: owner.clone(), nodes: nodes.len(), stopping: stopping.clone(), threads: Vec::new() };
        for (index, node) in nodes.iter().enumerate() {
            let (sender, receiver) = node.netns.run(open_eth0)??;
            let responder = Responder {
                index,
                ip: node.ip,
                macs: macs.clone(),
                fault,
                owner: owner.clone(),
                sender,
                known_owner: None,
                repeat_at: None,
                refresh_at: Instant::now() + REFRESH,
            };
            let stopping = stopping.clone();
            responders.threads.push(std::thread::spawn(move || responder.run(receiver, &stopping)));
        }
        Ok(responders)
    }

    /// Ends them. An error is what one of them could not send.
    pub fn stop(mut self) -> Result<()> {
        self.stopping.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a responder panicked"))??;
        }
        Ok(())
    }
}

impl Announcer for Responders {
    fn vip(&self) -> IpAddr {
        VIP.into()
    }

    fn owner(&self) -> Result<Option<usize>> {
        Ok(Some(self.owner.load(Ordering::SeqCst)))
    }

    fn move_away(&mut self) -> Result<()> {
        // Never to the first node, which is the leader where there is one.
        let next = self.owner.load(Ordering::SeqCst) % (self.nodes - 1) + 1;
        self.owner.store(next, Ordering::SeqCst);
        Ok(())
    }
}

fn open_eth0() -> Result<(Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>)> {
    let nic = pnet_datalink::interfaces().into_iter().find(|nic| nic.name == "eth0").context("no eth0")?;
    let config = Config { promiscuous: false, read_timeout: Some(Duration::from_millis(5)), ..Config::default() };
    match pnet_datalink::channel(&nic, config).context("cannot open a packet socket")? {
        Channel::Ethernet(sender, receiver) => Ok((sender, receiver)),
        _ => bail!("not an Ethernet channel"),
    }
}

struct Responder {
    index: usize,
    ip: Ipv4Addr,
    macs: Vec<MacAddr>,
    fault: Fault,
    owner: Arc<AtomicUsize>,
    sender: Box<dyn DataLinkSender>,
    known_owner: Option<usize>,
    repeat_at: Option<Instant>,
    refresh_at: Instant,
}

impl Responder {
    fn run(mut self, mut receiver: Box<dyn DataLinkReceiver>, stopping: &AtomicBool) -> Result<()> {
        while !stopping.load(Ordering::SeqCst) {
            self.act(Instant::now())?;
            // An error is the timeout, or the end of the NIC: then the test is over.
            let Ok(bytes) = receiver.next() else { continue };
            let Some(request) = arp(bytes).filter(|arp| arp.operation == ARP_REQUEST && arp.target_ip == VIP) else {
                continue;
            };
            let asker = ethernet(bytes).map(|header| header.source);
            if self.speaks() && asker != Some(self.mac()) && request.sender_ip != VIP {
                self.send(request.sender_mac, self.answer(&request))?;
            }
        }
        Ok(())
    }

    /// Whether it is this node that sends for the virtual IP.
    fn speaks(&self) -> bool {
        match self.fault {
            Fault::ForeignSender => self.index == 0,
            _ => self.index == self.owner.load(Ordering::SeqCst),
        }
    }

    fn mac(&self) -> MacAddr {
        self.macs[self.index]
    }

    fn owner_mac(&self) -> MacAddr {
        self.macs[self.owner.load(Ordering::SeqCst)]
    }

    fn answer(&self, request: &Arp) -> Arp {
        Arp {
            operation: ARP_REPLY,
            sender_mac: self.owner_mac(),
            sender_ip: VIP,
            target_mac: request.sender_mac,
            target_ip: request.sender_ip,
        }
    }

    fn act(&mut self, now: Instant) -> Result<()> {
        let owner = self.owner.load(Ordering::SeqCst);
        let moved = self.known_owner.replace(owner) != Some(owner);
        if !self.speaks() {
            self.repeat_at = None;
            return Ok(());
        }
        let repeats = self.repeat_at.is_some_and(|at| at <= now);
        if (moved || repeats) && self.fault != Fault::UnannouncedMove {
            self.repeat_at = moved.then_some(now + REPEAT);
            self.announce(VIP, self.owner_mac())?;
        }
        if self.refresh_at <= now {
            self.refresh_at = now + REFRESH;
            match self.fault {
                Fault::None | Fault::ForeignSender => self.announce(VIP, self.owner_mac())?,
                Fault::UnannouncedMove => self.announce(self.ip, self.mac())?,
                Fault::Silent => {}
            }
        }
        Ok(())
    }

    /// Both forms.
    fn announce(&mut self, ip: Ipv4Addr, mac: MacAddr) -> Result<()> {
        for (operation, target_mac) in [(ARP_REQUEST, MacAddr::zero()), (ARP_REPLY, mac)] {
            self.send(
                MacAddr::broadcast(),
                Arp { operation, sender_mac: mac, sender_ip: ip, target_mac, target_ip: ip },
            )?;
        }
        Ok(())
    }

    /// Whatever the message says, it leaves with this node's MAC as Ethernet source.
    fn send(&mut self, destination: MacAddr, message: Arp) -> Result<()> {
        let bytes = arp_frame(destination, self.mac(), message);
        self.sender.send_to(&bytes, None).context("no room for a frame")?.context("a responder could not send")
    }
}
