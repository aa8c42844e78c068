//! What the receive path does with a packet: answer it, leave it to the owner's loop, or drop it. Pure, and without
//! allocation: it runs for every packet, on the thread that has it.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use super::{
    drop_reason::DropReason,
    peers::{Peers, Who},
    wire::{Message, Operation, Packet},
};

/// What this node does with a virtual IP on one NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Answers for it, as long as the owner's loop ran less than `fence` ago.
    Owned {
        /// See [`super::owner::Timing::fence`].
        fence: Duration,
    },
    /// Listens only.
    Watched,
}

/// The virtual IPs of one NIC, and who the other speakers are, as the owner's loop last published them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    vips: HashMap<IpAddr, Part>,
    peers: Arc<Peers>,
}

/// Which of the owner's queues a packet goes to. A host that is no speaker can fill its own queue only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Another speaker's packets that name a virtual IP as their sender: claims and answers. They go first.
    Claims,
    /// Another speaker's probes, and the requests by which it watches this one.
    Requests,
    /// What all others say: conflicts and probes. It goes last.
    Strangers,
}

impl FromIterator<(IpAddr, Part)> for Snapshot {
    fn from_iter<I: IntoIterator<Item = (IpAddr, Part)>>(vips: I) -> Self {
        Self { vips: vips.into_iter().collect(), peers: Arc::default() }
    }
}

impl Snapshot {
    /// The same, with these speakers.
    pub fn with_peers(self, peers: Arc<Peers>) -> Self {
        Self { peers, ..self }
    }

    /// The answer to `packet`, if it is a request for a virtual IP that this node owns, and the fence of that address: when it leaves,
    /// the owner's loop must have run less than that ago.
    ///
    /// # Errors
    /// Why there is no answer. That is the reason for dropping the packet unless [`Snapshot::queue`] finds a use for it.
    pub fn answer(&self, packet: &Packet) -> Result<(Message, Duration), DropReason> {
        let vip = packet.target_ip;
        match self.vips.get(&vip) {
            Some(_) if packet.operation != Operation::Request || packet.sender_ip == vip => Err(DropReason::NotOwner),
            Some(Part::Owned { fence }) => {
                Ok((Message::Answer { vip, to_mac: packet.sender_mac, to_ip: packet.sender_ip }, *fence))
            }
            Some(Part::Watched) => Err(DropReason::NotOwner),
            None => Err(DropReason::OtherAddress),
        }
    }

    /// Which queue of the owner's loop the packet belongs in, answered or not.
    pub fn queue(&self, packet: &Packet) -> Option<Queue> {
        let is_speaker = || matches!(self.peers.who(packet.sender_mac), Who::Speaker(_));
        if !packet.is_probe() && self.vips.contains_key(&packet.sender_ip) {
            return Some(if is_speaker() { Queue::Claims } else { Queue::Strangers });
        }
        let concerns = packet.operation == Operation::Request && self.vips.contains_key(&packet.target_ip);
        // Hosts check their caches, by unicast too: those requests stay here.
        if !concerns || packet.broadcast && !packet.is_probe() {
            return None;
        }
        match is_speaker() {
            true => Some(Queue::Requests),
            false => packet.broadcast.then_some(Queue::Strangers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::wire::MacAddr;
    use std::net::Ipv4Addr;

    const FENCE: Duration = Duration::from_millis(500);
    const OWNED: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 64));
    const WATCHED: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 65));
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));
    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const MAC: MacAddr = MacAddr(2, 0, 0, 0, 0xcc, 3);

    fn snapshot() -> Snapshot {
        [(OWNED, Part::Owned { fence: FENCE }), (WATCHED, Part::Watched)].into_iter().collect()
    }

    /// The same, with the sender of all packets a speaker.
    fn known() -> Snapshot {
        let peers = Peers::new(Arc::from("own"), [(Arc::from("peer"), Arc::from("eth0"), MAC)]);
        snapshot().with_peers(Arc::new(peers))
    }

    fn request(sender_ip: IpAddr, target_ip: IpAddr) -> Packet {
        Packet { operation: Operation::Request, broadcast: true, sender_mac: MAC, sender_ip, target_ip }
    }

    #[test]
    fn a_request_for_an_owned_vip_is_answered_to_its_sender() {
        let answer = snapshot().answer(&request(CLIENT, OWNED));
        assert_eq!(answer, Ok((Message::Answer { vip: OWNED, to_mac: MAC, to_ip: CLIENT }, FENCE)));
        assert_eq!(snapshot().queue(&request(CLIENT, OWNED)), None);
    }

    #[test]
    fn a_solicitation_is_answered_like_a_request() {
        let (vip, client) = ("2001:db8:1::64".parse().unwrap(), "2001:db8:1::3".parse().unwrap());
        let peers = Peers::new(Arc::from("own"), [(Arc::from("peer"), Arc::from("eth0"), MAC)]);
        let snapshot: Snapshot = [(vip, Part::Owned { fence: FENCE })].into_iter().collect();
        let snapshot = snapshot.with_peers(Arc::new(peers));
        let answer = |packet: &Packet| snapshot.answer(packet);
        let expected = |to_ip| Ok((Message::Answer { vip, to_mac: MAC, to_ip }, FENCE));
        assert_eq!(answer(&request(client, vip)), expected(client));
        let nobody = std::net::Ipv6Addr::UNSPECIFIED.into();
        let probe = request(nobody, vip);
        assert_eq!(answer(&probe), expected(nobody));
        assert_eq!(snapshot.queue(&probe), Some(Queue::Requests));
        let advertisement = Packet { operation: Operation::Reply, ..request(vip, vip) };
        assert_eq!(answer(&advertisement), Err(DropReason::NotOwner));
        assert_eq!(snapshot.queue(&advertisement), Some(Queue::Claims));
    }

    #[test]
    fn a_probe_is_answered_and_the_loop_hears_of_it() {
        let probe = request(ANY, OWNED);
        assert!(snapshot().answer(&probe).is_ok());
        assert_eq!(snapshot().queue(&probe), Some(Queue::Strangers));
        assert_eq!(known().queue(&probe), Some(Queue::Requests));
    }

    #[test]
    fn the_loop_hears_who_watches_it_but_not_of_hosts_that_check_their_caches() {
        let known = known();
        for sender_ip in [CLIENT, ANY] {
            let unicast = Packet { broadcast: false, ..request(sender_ip, OWNED) };
            assert!(known.answer(&unicast).is_ok());
            assert_eq!(known.queue(&unicast), Some(Queue::Requests));
            assert_eq!(snapshot().queue(&unicast), None);
        }
        assert_eq!(known.queue(&request(CLIENT, OWNED)), None, "a node's kernel asks everybody");
    }

    #[test]
    fn what_is_not_owned_is_not_answered() {
        assert_eq!(snapshot().answer(&request(CLIENT, WATCHED)), Err(DropReason::NotOwner));
        let other = IpAddr::from([192, 0, 2, 66]);
        assert_eq!(snapshot().answer(&request(CLIENT, other)), Err(DropReason::OtherAddress));
        assert_eq!(snapshot().queue(&request(CLIENT, other)), None);
    }

    #[test]
    fn claims_and_answers_of_speakers_go_to_the_queue_of_claims_and_are_never_answered() {
        for (vip, broadcast, operation) in
            [(OWNED, true, Operation::Request), (WATCHED, true, Operation::Reply), (WATCHED, false, Operation::Reply)]
        {
            let packet = Packet { operation, broadcast, ..request(vip, vip) };
            assert!(snapshot().answer(&packet).is_err());
            assert_eq!(known().queue(&packet), Some(Queue::Claims));
            assert_eq!(snapshot().queue(&packet), Some(Queue::Strangers), "a stranger cannot fill that one");
        }
        assert_eq!(
            snapshot().queue(&request(WATCHED, CLIENT)),
            Some(Queue::Strangers),
            "a conflict in a plain request"
        );
    }
}
