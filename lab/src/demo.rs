//! `lab demo`: the product on real parts, for a person to watch. Ends with what was promised and whether it happened.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cluster::{Cluster, repository};
use crate::lan::{Ingress, Lan, said_about};
use crate::process::wait_for;
use crate::requests::{Break, RequestStream};
use crate::screen::Screen;
use crate::virtual_ip::{Owner, owner};

const PERIOD: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(50);
/// A Service is announced within this time.
const ANNOUNCED: Duration = Duration::from_secs(20);
/// A standby takes over within a second; should none, the controller does, which holds a speaker dead after 15 s of silence.
const MOVED: Duration = Duration::from_secs(60);
/// After the move kube-proxy goes on sending some requests to the dead node's Pod until Kubernetes calls the node NotReady.
const SETTLED: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(3);
const CONDITIONS: &str = "jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{\"\\n\"}{end}";

/// One line of the summary.
struct Promise {
    text: String,
    kept: bool,
}

/// Installs the chart, applies the examples, and returns the address of Service `web` once it is announced.
///
/// # Errors
/// When it is not in time, with what the Service's conditions and the logs say.
pub fn install(cluster: &Cluster, screen: &Screen) -> Result<Ipv4Addr> {
    screen.step("helm install l2lb: controller and speakers ready", || cluster.install_chart(&[]))?;
    screen.step("kubectl apply of examples/pool.yaml and web.yaml: a pool, a Deployment, a Service", || {
        let examples = repository().join("examples");
        Ok(cluster.apply(&examples.join("pool.yaml"))? + &cluster.apply(&examples.join("web.yaml"))?)
    })?;
    let announced = "jsonpath={.status.conditions[?(@.type==\"l2lb.io/Announced\")].status}";
    screen.step("Service web has an address and is announced", || {
        cluster
            .wait_for_kubectl("Service web", ANNOUNCED, &["get", "service", "web", "-o", announced], |status| {
                status == "True"
            })
            .with_context(|| cluster.kubectl(&["get", "service", "web", "-o", CONDITIONS]).unwrap_or_default())
            .with_context(|| cluster.report(crate::cluster::NAMESPACE))
    })?;
    screen.step("the Pods of Deployment web are ready", || {
        cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
    })?;
    let address = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"])?;
    address.parse().with_context(|| format!("Service web has the address '{address}'"))
}

/// The whole demonstration, on a cluster that has just come up. Returns whether all promises were kept.
///
/// # Errors
/// When it cannot go on.
pub fn run(cluster: &mut Cluster, screen: &Screen) -> Result<bool> {
    let mut promises = Vec::new();
    screen.title("Install");
    let vip = install(cluster, screen)?;

    screen.title("What the user sees");
    // The pool's counts are written once a second at most.
    let counted = ["wait", "--for=jsonpath={.status.ipv4.used}=1", "ippool/lan", "--timeout=10s"];
    cluster.kubectl(&counted).context("the pool does not count its address")?;
    for arguments in [
        &["get", "nodes"][..],
        &["get", "pods", "-A", "-o", "wide"],
        &["get", "service", "web"],
        &["get", "service", "web", "-o", CONDITIONS],
        &["get", "ippools"],
        &["get", "speakers"],
        &["get", "virtualips"],
    ] {
        show_kubectl(cluster, screen, arguments)?;
    }
    promises.push(promise(true, format!("Service web got {vip} and is announced")));

    screen.title("A client on the LAN (192.0.2.3)");
    screen.step("the client gets an answer", || first_answer(cluster, vip))?;
    let answers = (0..3).map(|_| cluster.client_curl(&vip.to_string())).collect::<Result<Vec<_>>>();
    let answers = answers.with_context(|| format!("the client gets no answer from {vip}"))?;
    screen.show(&format!("for i in 1 2 3; do curl http://{vip}/; done"), &answers.concat());
    promises
        .push(promise(answers.iter().all(|answer| answer.contains("pod=web")), "the client's curl is answered".into()));

    let old = owner(cluster, &vip.to_string())?.context("the VirtualIP has no owner")?;
    show_gateway(cluster.lan(), screen, vip)?;

    screen.title(&format!("{} loses its power (it announces {vip})", old.node));
    move_away(cluster, screen, vip, &old, &mut promises)?;
    show_kubectl(cluster, screen, &["get", "nodes"])?;
    show_kubectl(cluster, screen, &["get", "virtualips"])?;
    show_kubectl(cluster, screen, &["get", "service", "web", "-o", CONDITIONS])?;
    show_gateway(cluster.lan(), screen, vip)?;
    judge_frames(cluster.lan(), vip, &mut promises)?;

    screen.title("What was promised");
    for promise in &promises {
        screen.print(&format!("  {}  {}\n", if promise.kept { "yes" } else { "NO " }, promise.text));
    }
    Ok(promises.iter().all(|promise| promise.kept))
}

/// An address can be announced a moment before kube-proxy has its rules: a connection begun in between never gets through,
/// the next one does.
fn first_answer(cluster: &Cluster, vip: Ipv4Addr) -> Result<()> {
    wait_for("the client gets no answer", ANNOUNCED, POLL, || {
        Ok(cluster.client_curl(&vip.to_string()).map(drop).map_err(|error| format!("{error:#}")))
    })
}

fn promise(kept: bool, text: String) -> Promise {
    Promise { text, kept }
}

fn show_kubectl(cluster: &Cluster, screen: &Screen, arguments: &[&str]) -> Result<()> {
    let output = cluster.kubectl(arguments)?;
    let shown: Vec<String> = arguments
        .iter()
        .map(|word| if word.contains(['{', ' ']) { format!("'{word}'") } else { (*word).to_owned() })
        .collect();
    screen.show(&format!("kubectl {}", shown.join(" ")), &output);
    Ok(())
}

/// Cuts the power of the owner's node under a stream of requests, and tells what happened.
fn move_away(
    cluster: &mut Cluster,
    screen: &Screen,
    vip: Ipv4Addr,
    old: &Owner,
    promises: &mut Vec<Promise>,
) -> Result<()> {
    screen.say(&format!(
        "requests run: a new connection to {vip} each {} ms, given up after {} ms",
        PERIOD.as_millis(),
        PATIENCE.as_millis()
    ));
    let stream = RequestStream::start(cluster.client_ns(), (vip, 80).into(), PERIOD, PATIENCE)?;
    screen.step("20 requests are answered before the cut", || {
        wait_for("requests before the cut", ANNOUNCED, POLL, || {
            let good = stream.so_far().iter().filter(|request| request.result.is_ok()).count();
            Ok(if good >= 20 { Ok(()) } else { Err(format!("{good} answers")) })
        })
    })?;
    let old_port = cluster.node(&old.node)?.port();
    let controllers: Vec<String> =
        cluster.containers().into_iter().filter(|c| c.container == "controller").map(|c| c.node).collect();
    if controllers.contains(&old.node) {
        screen.say("a controller is on that node too: the speakers need none for what follows");
    }
    let cut = Instant::now();
    cluster.power_off(&old.node)?;
    screen.say(&format!("{} is off: cables, processes, network stack", old.node));
    let new = screen.step("another speaker claims the address", || {
        wait_for("nobody took over", MOVED, POLL, || {
            let now = owner(cluster, &vip.to_string())?.filter(|owner| owner.node != old.node);
            Ok(now.ok_or_else(|| format!("{} is still the owner", old.node)))
        })
        .with_context(|| cluster.report(crate::cluster::NAMESPACE))
    })?;
    let claimed = cut.elapsed();
    screen.say(&format!("{} has taken over ({} {})", new.node, new.interface, new.mac));
    let settled = screen.step("requests are answered again, all of them for 3 s", || {
        wait_for("requests after the move", SETTLED, POLL, || {
            let now = Instant::now();
            let requests = stream.so_far();
            let recent: Vec<_> = requests.iter().filter(|request| request.ended + QUIET > now).collect();
            let bad = recent.iter().filter(|request| request.result.is_err()).count();
            Ok(if bad == 0 && recent.len() > 20 { Ok(()) } else { Err(format!("{bad} of {} fail", recent.len())) })
        })
    });
    let requests = stream.stop()?;
    let seen = Break::of(&requests, cut);
    if let Some(first) = first_word(cluster.lan(), vip, old_port, cut) {
        let seconds = first.as_secs_f64();
        screen.say(&format!("the new owner's first announcement on the LAN came {seconds:.2} s after the cut"));
    }
    screen.say(&format!("the VirtualIP named {} after {:.2} s", new.node, claimed.as_secs_f64()));
    let silence = seen.silence.map_or_else(|| "for good".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()));
    screen.say(&format!(
        "of {} requests since the cut {} failed while nobody answered ({silence}), {} later (sent on to the dead node's Pod, \
         until Kubernetes called the node NotReady)",
        seen.sent, seen.failed_in_silence, seen.failed_later
    ));
    promises.push(promise(
        seen.silence.is_some(),
        format!(
            "{} took {vip} over from {}: silent for {silence}, {} requests failed",
            new.node, old.node, seen.failed_in_silence
        ),
    ));
    promises.push(promise(settled.is_ok(), "after the move all requests are answered".to_owned()));
    Ok(())
}

/// When the address was first spoken for from another port than `old`, after `since`.
fn first_word(lan: &Lan, vip: Ipv4Addr, old: crate::lan::PortId, since: Instant) -> Option<Duration> {
    let said = said_about(&lan.frames().ok()?, vip);
    let first = said.iter().find(|said| said.at >= since && said.ingress != Ingress::Port(old))?;
    Some(first.at.duration_since(since))
}

/// Lets the gateway ask for the address, and shows its table with ports.
fn show_gateway(lan: &Lan, screen: &Screen, vip: Ipv4Addr) -> Result<()> {
    let Some(gateway) = lan.gateway() else {
        screen.say("(a bridge has no gateway that stores ports: see it with --lan switch)");
        return Ok(());
    };
    gateway.ask_again(vip);
    wait_for("the gateway learns the address", Duration::from_secs(5), POLL, || {
        Ok(if gateway.entry(vip).is_some() { Ok(()) } else { Err("no entry".to_owned()) })
    })?;
    screen.show("(gateway) display arp", &gateway_table(lan));
    Ok(())
}

/// The gateway's ARP table as text; empty on a bridge.
pub fn gateway_table(lan: &Lan) -> String {
    let mut text = format!("{:<16} {:<18} {:<18} {}\n", "ADDRESS", "MAC", "PORT", "TTL");
    for entry in lan.gateway().map(crate::lan::Gateway::table).unwrap_or_default() {
        let left = entry.expires.saturating_duration_since(Instant::now()).as_secs();
        let port = format!("{} ({})", entry.port.0, lan.port_name(entry.port));
        text += &format!("{:<16} {:<18} {port:<18} {left} s\n", entry.ip.to_string(), entry.mac.to_string());
    }
    text
}

/// The heart of it: no frame said one MAC and came from another, and the gateway never believed such a thing.
fn judge_frames(lan: &Lan, vip: Ipv4Addr, promises: &mut Vec<Promise>) -> Result<()> {
    if lan.gateway().is_none() {
        return Ok(());
    }
    let wrong = lan.wrong_gateway_entries()?;
    promises.push(promise(
        wrong.is_empty(),
        format!("the gateway never held a wrong (address, MAC, port): {} wrong", wrong.len()),
    ));
    let said = said_about(&lan.frames()?, vip);
    if said.is_empty() {
        bail!("the LAN recorded no ARP frame of {vip}");
    }
    let lies = said.iter().filter(|said| said.ethernet_source != said.sender_mac).count();
    promises.push(promise(
        lies == 0,
        format!("all {} ARP frames that spoke for {vip} came from the MAC address that they named", said.len()),
    ));
    Ok(())
}
