use netlink_packet_core::NLM_F_MULTIPART;

use super::*;

const LO: u32 = 1;

fn ipv6(_: &str) -> Result<(), String> {
    Ok(())
}

/// The kernel: what it has, and what it says about it.
#[derive(Clone, Default)]
struct Kernel {
    links: Vec<(u32, &'static str)>,
    addresses: Vec<(u32, [u8; 4])>,
    default_route: Option<u32>,
}

fn bytes(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap();
    let head = [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &flags.to_ne_bytes()].concat();
    [head, sequence.to_ne_bytes().to_vec(), vec![0; 4], body.to_vec()].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn link(index: u32, name: &str, change: u32) -> Vec<u8> {
    let head = [0x1_0000_u32, index, 0x1_1043, change].map(u32::to_ne_bytes).concat();
    let name = attribute(libc::IFLA_IFNAME, format!("{name}\0").as_bytes());
    [head, name, attribute(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1])].concat()
}

fn address(index: u32, octets: [u8; 4]) -> Vec<u8> {
    [vec![2, 24, 0x80, 0], index.to_ne_bytes().to_vec(), attribute(libc::IFA_LOCAL, &octets)].concat()
}

fn default_route(index: u32) -> Vec<u8> {
    [vec![2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0], attribute(libc::RTA_OIF, &index.to_ne_bytes())].concat()
}

fn news(kind: u16, body: &[u8]) -> Vec<u8> {
    bytes(kind, 0, 1, body)
}

impl Kernel {
    /// The answer to a request, in its parts.
    fn answer(&self, request: &[u8], flags: u16) -> Vec<Vec<u8>> {
        let kind = u16::from_ne_bytes([request[4], request[5]]);
        let sequence = u32::from_ne_bytes(*request[8..].first_chunk().unwrap());
        let bodies: Vec<(u16, Vec<u8>)> = match kind {
            libc::RTM_GETLINK => {
                self.links.iter().map(|(index, name)| (libc::RTM_NEWLINK, link(*index, name, 0))).collect()
            }
            libc::RTM_GETADDR if request[16] == 2 => {
                self.addresses.iter().map(|(index, octets)| (libc::RTM_NEWADDR, address(*index, *octets))).collect()
            }
            libc::RTM_GETROUTE if request[16] == 2 => {
                self.default_route.iter().map(|index| (libc::RTM_NEWROUTE, default_route(*index))).collect()
            }
            _ => Vec::new(),
        };
        let flags = NLM_F_MULTIPART | flags;
        let done = bytes(u16::try_from(libc::NLMSG_DONE).unwrap(), flags, sequence, &[0; 4]);
        bodies.into_iter().map(|(kind, body)| bytes(kind, flags, sequence, &body)).chain([done]).collect()
    }

    /// Answers all that is asked now. How many questions there were.
    fn serve(&self, follow: &mut Follow, now: Instant) -> usize {
        let mut questions = 0;
        while let Some(request) = follow.poll_request(now).unwrap() {
            questions += 1;
            for part in self.answer(&request, 0) {
                follow.handle_datagram(&part);
            }
        }
        questions
    }
}

fn node() -> Kernel {
    let links = vec![(LO, "lo"), (2, "eth0"), (3, "veth0")];
    Kernel { links, addresses: vec![(2, [192, 0, 2, 11])], default_route: Some(2) }
}

fn names(follow: &mut Follow) -> Option<Vec<String>> {
    Some(follow.poll_changed()?.interfaces(ipv6).into_iter().map(|found| found.entry.name).collect())
}

fn entry(follow: &mut Follow, name: &str) -> crate::api::NetworkInterface {
    let all = follow.poll_changed().expect("something changed").interfaces(ipv6);
    all.into_iter().find(|found| found.entry.name == name).expect("the interface").entry
}

fn started() -> (Follow, Kernel, Instant) {
    let (mut follow, kernel, now) = (Follow::default(), node(), Instant::now());
    follow.handle_connected();
    assert_eq!(follow.poll_timeout(now), now);
    assert_eq!(kernel.serve(&mut follow, now), EVERYTHING.len());
    (follow, kernel, now)
}

#[test]
fn everything_is_asked_for_and_nothing_is_known_before_all_of_it_is_answered() {
    let (mut follow, kernel, now) = (Follow::default(), node(), Instant::now());
    follow.handle_connected();
    for _ in 0..EVERYTHING.len() {
        assert_eq!(names(&mut follow), None);
        assert!(!follow.is_known_since_connected());
        let request = follow.poll_request(now).unwrap().expect("a question");
        assert_eq!(follow.poll_request(now), Ok(None), "one question at a time");
        kernel.answer(&request, 0).iter().for_each(|part| follow.handle_datagram(part));
    }
    assert!(follow.is_known_since_connected());
    let eth0 = entry(&mut follow, "eth0");
    assert!(eth0.announces && eth0.default_route, "{eth0:?}");
    assert_eq!(eth0.addresses, ["192.0.2.11/24"]);
    assert_eq!(names(&mut follow), None, "told once");
    assert_eq!(follow.poll_timeout(now), now + RESYNC);
}

#[test]
fn news_are_folded_in_and_the_default_routes_asked_for_once_in_a_while() {
    let (mut follow, mut kernel, now) = started();
    names(&mut follow);
    follow.handle_datagram(&news(libc::RTM_DELLINK, &link(3, "veth0", u32::MAX)));
    follow.handle_datagram(&news(libc::RTM_NEWLINK, &link(4, "veth1", u32::MAX)));
    assert_eq!((names(&mut follow), follow.poll_timeout(now)), (None, now + RESYNC), "containers are no news");
    follow.handle_datagram(&news(libc::RTM_NEWADDR, &address(2, [192, 0, 2, 12])));
    assert_eq!(entry(&mut follow, "eth0").addresses.len(), 2);
    // The kernel says nothing of the route that went with something else.
    kernel.default_route = None;
    follow.handle_datagram(&news(libc::RTM_DELADDR, &address(2, [192, 0, 2, 11])));
    assert_eq!(follow.poll_request(now), Ok(None));
    let then = follow.poll_timeout(now);
    assert_eq!(then, now + GAP);
    assert_eq!(kernel.serve(&mut follow, then), 2, "only routes");
    let eth0 = entry(&mut follow, "eth0");
    assert!(!eth0.default_route && eth0.addresses == ["192.0.2.12/24"], "{eth0:?}");
}

#[test]
fn what_happens_while_the_kernel_answers_is_not_lost() {
    let (mut follow, mut kernel, now) = started();
    names(&mut follow);
    follow.handle_look();
    let then = now + GAP;
    let request = follow.poll_request(then).unwrap().expect("a question");
    let parts = kernel.answer(&request, 0);
    // After eth0 was listed, it goes, and another one of its name comes.
    follow.handle_datagram(&parts[0]);
    follow.handle_datagram(&parts[1]);
    follow.handle_datagram(&news(libc::RTM_DELLINK, &link(2, "eth0", u32::MAX)));
    assert_eq!(names(&mut follow).unwrap(), ["lo"], "at once");
    follow.handle_datagram(&news(libc::RTM_NEWLINK, &link(9, "eth0", u32::MAX)));
    for part in &parts[2..] {
        follow.handle_datagram(part);
    }
    kernel.links = vec![(LO, "lo"), (9, "eth0")];
    kernel.addresses.clear();
    kernel.serve(&mut follow, then);
    let all = follow.poll_changed().unwrap().interfaces(ipv6);
    assert_eq!(all.iter().map(|found| found.index).collect::<Vec<_>>(), [9, LO]);
}

#[test]
fn after_an_overrun_everything_is_learnt_anew_but_not_in_a_loop() {
    let (mut follow, mut kernel, now) = started();
    names(&mut follow);
    kernel.links = vec![(LO, "lo"), (8, "eth1")];
    let then = now + GAP * 3;
    follow.handle_overrun();
    assert_eq!(kernel.serve(&mut follow, then), EVERYTHING.len());
    assert_eq!(names(&mut follow).unwrap(), ["eth1", "lo"], "what is gone is gone");
    follow.handle_overrun();
    assert_eq!(kernel.serve(&mut follow, then), 0);
    assert_eq!(follow.poll_timeout(then), then + GAP);
    assert_eq!(kernel.serve(&mut follow, then + GAP), EVERYTHING.len());
    // Whatever the events tell, in a while everything is looked at.
    assert_eq!(follow.poll_timeout(then), then + GAP + RESYNC);
    kernel.links.push((2, "eth0"));
    assert_eq!(kernel.serve(&mut follow, then + GAP + RESYNC), EVERYTHING.len());
    assert_eq!(names(&mut follow).unwrap(), ["eth0", "eth1", "lo"]);
}

#[test]
fn an_answer_that_the_kernel_calls_incomplete_takes_nothing_away() {
    let (mut follow, mut kernel, now) = started();
    names(&mut follow);
    kernel.links = vec![(LO, "lo"), (8, "eth1")];
    follow.handle_look();
    let then = now + GAP;
    while let Some(request) = follow.poll_request(then).unwrap() {
        let flags = if request[4] == 18 { netlink_packet_core::NLM_F_DUMP_INTR } else { 0 };
        kernel.answer(&request, flags).iter().for_each(|part| follow.handle_datagram(part));
    }
    assert_eq!(names(&mut follow).unwrap(), ["eth0", "eth1", "lo"], "nobody said that eth0 is gone");
    assert_eq!(follow.poll_timeout(then), then + GAP, "it is asked for again");
    kernel.serve(&mut follow, then + GAP);
    assert_eq!(names(&mut follow).unwrap(), ["eth1", "lo"]);
}

#[test]
fn a_refusal_takes_nothing_away_and_silence_ends_the_socket() {
    let (mut follow, kernel, now) = started();
    names(&mut follow);
    follow.handle_look();
    let then = now + GAP;
    let request = follow.poll_request(then).unwrap().expect("a question");
    let sequence = u32::from_ne_bytes(*request[8..].first_chunk().unwrap());
    let busy = bytes(u16::try_from(libc::NLMSG_ERROR).unwrap(), 0, sequence, &(-16i32).to_ne_bytes());
    follow.handle_datagram(&busy);
    kernel.serve(&mut follow, then);
    assert_eq!(names(&mut follow).unwrap(), ["eth0", "lo"]);
    follow.poll_request(then + GAP).unwrap().expect("it is asked again");
    assert_eq!(follow.poll_timeout(then), then + GAP + PATIENCE);
    assert_eq!(follow.poll_request(then + GAP + PATIENCE), Err(NoAnswer));
    // What is known stays until the next socket tells otherwise.
    follow.handle_connected();
    assert!(!follow.is_known_since_connected());
    kernel.serve(&mut follow, then + GAP * 2 + PATIENCE);
    assert_eq!(names(&mut follow).unwrap(), ["eth0", "lo"]);
    assert!(follow.is_known_since_connected());
}
