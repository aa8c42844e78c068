//! A thousand containers come and go.

use std::io::Write as _;

use super::*;

const CONTAINERS: usize = 1000;
/// With names that could be a NIC's.
const OTHERS: usize = 100;
/// A client that asks gets an answer within this, on a machine that has a thousand interfaces to make.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// Of the process with all its tests' threads: the speaker's own work for one container, and for another interface.
const CPU_FOR_EACH: Duration = Duration::from_millis(3);
const ASK_AGAIN: Duration = Duration::from_millis(100);
const MEMORY: u64 = 6 << 20;

#[test]
fn a_thousand_containers_that_come_and_go_cost_nothing_but_a_look_at_their_names() {
    let text = in_a_network_namespace(|| {
        lay_cable("eth0", "lan0", mac(1));
        let lan = Lan::listen("lan0");
        let speaker = Speaker::start();
        speaker.announce(VIP, "eth0");
        ip("link set eth0 up");
        lan.is_announced_after_a_probe("its first coming up", VIP, mac(1));
        assert_eq!(lan.answerer(VIP), mac(1));
        let views = Arc::new(Mutex::new(0));
        let (seen, mut links) = (views.clone(), speaker.links.clone());
        speaker._runtime.spawn(async move {
            loop {
                links.changed().await;
                drop(links.view());
                *seen.lock().unwrap() += 1;
            }
        });

        let of_containers = come_and_go(&lan, "veth", "vethp", CONTAINERS);
        println!("{CONTAINERS} interfaces of containers made and deleted: {of_containers}");
        let views_of_containers = *views.lock().unwrap();
        let others = come_and_go(&lan, "pod", "podp", OTHERS);
        println!("{OTHERS} other interfaces made and deleted: {others}");

        println!("news of interfaces were lost {} times", speaker.metrics.link_news_lost.get());

        // The first view, and what happened to eth0 itself.
        assert!(views_of_containers <= 8, "containers led to {views_of_containers} views");
        assert!(
            of_containers.cpu < CPU_FOR_EACH * u32::try_from(CONTAINERS).unwrap() + of_containers.asking,
            "{of_containers}"
        );
        for cost in [&of_containers, &others] {
            assert!(cost.longest_wait < LONGEST_WAIT + 2 * cost.stalled, "{cost}");
            assert!(cost.memory < MEMORY, "{cost}");
        }
        // All of it was taken in: none is left.
        wait_until("none of the others is left", || {
            speaker.links.clone().view().iter().all(|seen| !seen.entry.name.starts_with("pod"))
        });
        assert_eq!(lan.answerer(VIP), mac(1));
        let own = lan.heard().into_iter().filter(|frame| frame.source != mac(1)).count();
        assert_eq!(own, 0);
    });
    text.lines().filter(|line| line.contains("interfaces")).for_each(|line| println!("{line}"));
}

struct Cost {
    took: Duration,
    cpu: Duration,
    /// What the asking alone may cost, in this process.
    asking: Duration,
    answers: usize,
    longest_wait: Duration,
    /// How long the machine stood still at worst. A speaker that did asks anew before it answers.
    stalled: Duration,
    memory: u64,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { took, cpu, answers, longest_wait, memory, .. } = self;
        let kib = memory >> 10;
        write!(
            f,
            "{took:.1?}, {answers} answers, none later than {longest_wait:.1?}, {cpu:.1?} of CPU, {kib} KiB more memory"
        )
    }
}

/// Makes and deletes pairs of interfaces, half of them one by one, while the address is asked for all the time.
fn come_and_go(lan: &Lan, name: &str, peer: &str, pairs: usize) -> Cost {
    let mut commands = String::new();
    for number in 0..pairs {
        commands.push_str(&format!("link add {name}{number} group 7 up type veth peer name {peer}{number} group 7\n"));
    }
    for number in 0..pairs / 10 {
        commands.push_str(&format!("link delete {name}{number}\n"));
    }
    commands.push_str("link delete group 7\n");
    let stalls = lab::stalls::Stalls::watch().unwrap();
    let (memory, cpu, begin) = (resident(), cpu(), Instant::now());
    let mut child =
        std::process::Command::new("ip").args(["-batch", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(commands.as_bytes()));
    let (mut answers, mut longest_wait, mut most) = (0, Duration::ZERO, memory);
    while child.try_wait().unwrap().is_none() {
        lan.forget_what_was_heard();
        longest_wait = longest_wait.max(until_it_is_answered(lan));
        answers += 1;
        most = most.max(resident());
        std::thread::sleep(Duration::from_millis(5));
    }
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    let asking = Duration::from_millis(2) * u32::try_from(answers).unwrap();
    let (cpu, stalled) = (self::cpu() - cpu, stalls.worst());
    Cost { took: begin.elapsed(), cpu, asking, answers, longest_wait, stalled, memory: most - memory }
}

/// A client asks again when it hears nothing: a frame may get lost, and a speaker that got no time to run is mute.
fn until_it_is_answered(lan: &Lan) -> Duration {
    let begin = Instant::now();
    let mut asked: Option<Instant> = None;
    wait_until("an answer while interfaces come and go", || {
        if asked.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            lan.ask(VIP);
            asked = Some(Instant::now());
        }
        let is_answered = !lan.answers(VIP).is_empty();
        if !is_answered {
            // Who waits costs next to nothing: what is judged is what the speaker costs.
            std::thread::sleep(Duration::from_millis(1));
        }
        is_answered
    });
    begin.elapsed()
}

/// What this process has used.
fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(u64::try_from(time.tv_sec()).unwrap(), u32::try_from(time.tv_usec()).unwrap() * 1000)
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// Its memory, in octets.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
