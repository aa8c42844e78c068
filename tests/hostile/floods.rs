//! Floods: what they cost, and that a client that behaves does not notice.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use lab::stalls::NothingShown;

use crate::Entry;
use crate::attacker::{Flood, Sent, claim, request, stranger};
use crate::client::{Asking, Seen};
use crate::world::{Metrics, Part, Usage, VIP, World};

pub const TRIALS: [Entry; 4] = [
    ("a_storm_of_requests_for_others_does_not_wake_the_speaker", true, storm_for_others),
    ("a_storm_of_requests_for_virtual_ips_is_answered", true, storm_for_vips),
    ("a_storm_of_malformed_frames_is_counted", true, storm_of_malformed),
    ("claims_of_strangers_at_rate_silence_nobody_and_are_reported_once", true, storm_of_claims),
];
/// How long each lasts at least: until enough has arrived and a client has asked often enough.
const TIME: Duration = Duration::from_millis(1_500);
/// Fewer that arrive at the node are no storm.
const STORM: u64 = 15_000;
/// What reaches the node each second is this part of what was to be sent, or as many as this: else it is no flood.
const FLOOD: (f64, f64) = (0.25, 5_000.0);
/// Where a larger part of what is sent is lost before the node, nothing is shown of how it serves a client.
const LOST_MAX: f64 = 0.2;
/// Of what is sent slower, this part of what is due in that time arrives.
const ARRIVES: f64 = 0.5;
const QUESTIONS: usize = 10;
/// However slow the machine is.
const TIME_MAX: Duration = Duration::from_secs(15);
/// So that a client has asked often enough by then, also where frames were lost.
pub const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What a flood did.
pub struct Outcome {
    pub sent: Sent,
    pub seen: Seen,
    pub before: (Metrics, Usage),
    pub after: (Metrics, Usage),
    /// Writes that reached the API server, and octets that were logged.
    pub writes: u64,
    pub logged: u64,
    /// Frames that came in on the node's NIC.
    arrived: u64,
}

impl Outcome {
    /// By how much a metric grew.
    pub fn more(&self, name: &str) -> f64 {
        self.after.0.of(name) - self.before.0.of(name)
    }

    /// Frames that the speaker sent.
    pub fn replied(&self) -> f64 {
        self.after.0.sent() - self.before.0.sent()
    }

    /// What holds in any flood.
    pub fn is_bounded(&self, name: &str) -> Result<()> {
        let Self { sent, seen, before: (_, before), after: (metrics, after), .. } = self;
        let cpu = after.cpu.saturating_sub(before.cpu);
        let share = cpu.as_secs_f64() / sent.time.as_secs_f64();
        let received = self.more("frames_received");
        println!(
            "{name}: {} frames in {:.1} s ({:.0}/s), {received} received, {} lost in the buffer, {} before the node, {} sent, cpu {:.0} % of a core, memory {} -> {} KiB, \
             {} API writes, {} octets logged; client: {seen}",
            sent.frames,
            sent.time.as_secs_f64(),
            sent.frames as f64 / sent.time.as_secs_f64(),
            self.more("receive_buffer_overruns"),
            (sent.frames + seen.asked() as u64).saturating_sub(self.arrived),
            self.replied(),
            100.0 * share,
            before.rss,
            after.rss,
            self.writes,
            self.logged,
        );
        metrics.adds_up()?;
        ensure!(after.rss < before.rss + 8 * 1024, "memory grew from {} to {} KiB", before.rss, after.rss);
        ensure!(self.replied() <= received + 60.0, "{} sent for {received} received", self.replied());
        ensure!(self.logged < 20_000, "{} octets logged", self.logged);
        // One renewal of the Lease each 5 s is among them.
        ensure!(self.writes <= 30, "{} API writes", self.writes);
        Ok(())
    }

    /// What was sent was a storm, and it reached the node: else nothing was shown.
    pub fn is_a_storm(&self) -> Result<()> {
        let (sent, arrived) = (self.sent.frames, self.arrived);
        ensure!(arrived >= STORM, NothingShown(format!("only {sent} frames were sent, of which {arrived} arrived")));
        Ok(())
    }

    /// Requests for virtual IPs were answered, all that reached the speaker: a machine that is too busy loses some before.
    pub fn answers_all(&self) -> Result<()> {
        let (answered, received) = (self.more("requests_answered"), self.more("frames_received"));
        ensure!(answered >= 0.95 * received, "{answered} answered of {received}");
        ensure!(received >= 0.05 * self.sent.frames as f64, "{received} received of {}", self.sent.frames);
        Ok(())
    }

    /// A client that behaves got its answers all the time.
    pub fn is_served(&self) -> Result<()> {
        let seen = &self.seen;
        // The machine, and the receive buffer, may lose a frame of thousands. Where the machine loses part of what is sent before it
        // reaches the node, it loses that part of the questions, and of the answers.
        let lost = 1.0 - self.arrived as f64 / (self.sent.frames + seen.asked() as u64) as f64;
        ensure!(
            lost <= LOST_MAX,
            NothingShown(format!(
                "{:.1} % of {} frames were lost before the node; {seen}",
                100.0 * lost,
                self.sent.frames
            ))
        );
        let unanswered = 1.0 + seen.asked() as f64 * (0.05 + 2.0 * lost.max(0.0));
        ensure!(
            seen.answered() >= 5 && seen.unanswered as f64 <= unanswered,
            "the client was not served: {seen}; {:.1} % of all frames were lost before the node",
            100.0 * lost
        );
        let fenced = self.after.0.dropped_for("fenced") - self.before.0.dropped_for("fenced");
        ensure!(fenced * 10.0 <= self.more("frames_received"), "the fence was not renewed: {fenced} requests dropped");
        Ok(())
    }
}

/// How many frames have come in on the node's NIC.
fn arrived(world: &World) -> Result<u64> {
    let table = world.node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("the node has no eth0")?;
    // Octets come first.
    Ok(line.split_whitespace().nth(1).context("a short line")?.parse()?)
}

/// Sends `frame` at `rate` while a client asks for the first IPv4 address.
pub fn flood(world: &World, rate: u32, frame: impl FnMut(u64) -> Vec<u8> + Send + 'static) -> Result<Outcome> {
    let client = world.client()?;
    flood_seen_by(world, move || client.ask_for(VIP, ASK_AGAIN), rate, frame)
}

/// The same, with a client that asks like this.
pub fn flood_seen_by(
    world: &World,
    ask: impl Fn() -> Result<Option<Duration>> + Send + 'static,
    rate: u32,
    frame: impl FnMut(u64) -> Vec<u8> + Send + 'static,
) -> Result<Outcome> {
    let (before, writes, logged) = ((world.metrics()?, world.usage()?), world.api.writes(), world.logged()?);
    let arrived_before = arrived(world)?;
    let asking = Asking::start(ask);
    let flood = Flood::start(&world.attacker, rate, frame)?;
    let begun = Instant::now();
    let enough = STORM.min((ARRIVES * f64::from(rate) * TIME.as_secs_f64()) as u64);
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let time = begun.elapsed();
        let is_enough = asking.asked() >= QUESTIONS && arrived(world)? - arrived_before >= enough;
        if time >= TIME && is_enough {
            break;
        }
        if time >= TIME_MAX {
            let (sent, asked) = (flood.sent(), asking.asked());
            // A client that failed asks no more: what it failed with comes first.
            asking.stop()?;
            let arrived = arrived(world)? - arrived_before;
            bail!(NothingShown(format!(
                "{sent} frames were sent in {time:?}, {arrived} arrived, of {enough}; the client asked {asked} times"
            )));
        }
    }
    let sent = flood.stop()?;
    let seen = asking.stop()?;
    // What waits in the socket's buffer is read by then, or the numbers go on changing.
    let (mut metrics, mut last) = (world.metrics()?, -1.0);
    // The thread counts once a second what was lost.
    let stopped = Instant::now();
    while metrics.of("frames_received") != last || stopped.elapsed() < Duration::from_millis(1_300) {
        ensure!(stopped.elapsed() < Duration::from_secs(60), "frames are still received a minute after the flood");
        last = metrics.of("frames_received");
        std::thread::sleep(Duration::from_millis(100));
        metrics = world.metrics()?;
    }
    let after = (metrics, world.usage()?);
    let (writes, logged) = (world.api.writes() - writes, world.logged()? - logged);
    let arrived = arrived(world)? - arrived_before;
    let (each_second, least) = (arrived as f64 / sent.time.as_secs_f64(), FLOOD.1.min(FLOOD.0 * f64::from(rate)));
    ensure!(
        each_second >= least,
        NothingShown(format!(
            "{arrived} frames arrived in {:?}, {each_second:.0} each second and not {least:.0}",
            sent.time
        ))
    );
    Ok(Outcome { sent, seen, before, after, writes, logged, arrived })
}

fn storm_for_others(suffix: &str) -> Result<()> {
    let world = World::new(suffix, 4, Part::Primary)?;
    let others = |number: u64| {
        let [.., c, d] = number.to_be_bytes();
        request(stranger(number), Ipv4Addr::new(198, 51, 100, d), Ipv4Addr::new(198, 51, c, d))
    };
    let outcome = flood(&world, 50_000, others)?;
    outcome.is_bounded("requests for others")?;
    outcome.is_a_storm()?;
    outcome.is_served()?;
    // What the client asks, and a few frames of the node's own.
    let asked = outcome.seen.asked() as f64;
    ensure!(outcome.more("frames_received") <= asked + 20.0, "woken {} times", outcome.more("frames_received"));
    let cpu = outcome.after.1.cpu - outcome.before.1.cpu;
    ensure!(cpu < outcome.sent.time / 4, "{cpu:?} of processor time");
    Ok(())
}

fn storm_for_vips(suffix: &str) -> Result<()> {
    let world = World::new(suffix, 4, Part::Primary)?;
    let asked = |number: u64| {
        let [.., d] = number.to_be_bytes();
        request(stranger(number), Ipv4Addr::new(192, 0, 2, 200 + d % 50), crate::world::vip(d % 4))
    };
    let outcome = flood(&world, 5_000, asked)?;
    outcome.is_bounded("requests for virtual IPs")?;
    outcome.is_served()?;
    outcome.answers_all()
}

fn storm_of_malformed(suffix: &str) -> Result<()> {
    let world = World::new(suffix, 1, Part::Primary)?;
    let truncated = |number: u64| {
        let mut frame = request(stranger(number), Ipv4Addr::new(192, 0, 2, 9), VIP);
        frame[15] = 6;
        frame
    };
    let outcome = flood(&world, 20_000, truncated)?;
    outcome.is_bounded("malformed frames")?;
    outcome.is_served()?;
    let (dropped, received) = (outcome.after.0.dropped_for("hardware_type"), outcome.more("frames_received"));
    ensure!(dropped >= 0.9 * received && received >= 0.05 * outcome.sent.frames as f64, "{dropped} of {received}");
    Ok(())
}

fn storm_of_claims(suffix: &str) -> Result<()> {
    let mut world = World::new(suffix, 2, Part::Primary)?;
    for (rate, name) in [(1_000, "claims of strangers"), (30_000, "claims of strangers, as many as fit")] {
        // Each with another MAC address.
        let outcome = flood(&world, rate, |number| claim(stranger(number), stranger(number), VIP))?;
        outcome.is_bounded(name)?;
        outcome.is_served()?;
        // Once in ten seconds, beside what an owner says in any case: its burst, its refresh, its repetitions.
        let announced = outcome.after.0.sum("announcements_sent") - outcome.before.0.sum("announcements_sent");
        ensure!(announced <= 20.0, "{announced} announcements");
        ensure!(outcome.writes <= 5, "{} API writes", outcome.writes);
    }
    world.wait("the conflict is reported", |world| {
        Ok(world.claim(0).is_some_and(|claim| claim["conflictMAC"].is_string() && claim["state"] == "Owner"))
    })?;
    ensure!(world.claim(1).is_some_and(|claim| claim["conflictMAC"].is_null()), "the other address has no conflict");
    // What the API says is heard all the while.
    let attack = Flood::start(&world.attacker, 30_000, |number| claim(stranger(number), stranger(number), VIP))?;
    world.api.delete("virtualips", &crate::world::vip(1).to_string());
    world.wait("the deleted address is given up", |world| Ok(world.metrics()?.of("virtual_ips_assigned") == 1.0))?;
    attack.stop()?;
    Ok(())
}
