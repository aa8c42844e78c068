//! The lab's own check: a cluster of two nodes on a bridge, seen by a client and by kubectl.
//!
//! The trials share one cluster and run in order. The last ones cut the power of a node and take the cluster down.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::cluster::{Cluster, Options};
use lab::control_plane::{ControlPlaneOptions, Program};
use lab::kit::{self, Kit};
use lab::kubelet::registry::RunningContainer;
use lab::process::{run, tail, wait_for};
use lab::stalls::play_again_tidied;
use libtest_mimic::{Arguments, Trial};

/// Whoever did not reach the API server for half a minute (its start on two cores included) asks again up to 50 s later.
const LIMIT: Duration = Duration::from_secs(120);
/// How long what needs no API server may take.
const SOON: Duration = Duration::from_secs(10);
/// A machine that stood still for so long cannot judge.
const STOOD_STILL: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(100);

/// What a trial does with the cluster.
type Check = fn(&mut Cluster) -> Result<()>;

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let kit = if arguments.list { None } else { Some(kit::enter(None)?) };
    let shared = Shared(Arc::new(Mutex::new(None)), kit);
    let trials: [(&str, Check); 10] = [
        ("a_node_port_is_served_through_every_node", node_port),
        ("pods_are_reached_in_both_families_from_every_node", dual_stack),
        ("a_container_has_exactly_the_rights_it_asks_for", rights),
        ("a_pod_reaches_the_api_server_with_its_own_token", token),
        ("a_container_that_ends_is_started_again", restart),
        ("a_deleted_pod_ends_and_goes", deletion),
        ("traffic_flows_without_the_api_server", without_api_server),
        ("a_node_without_power_is_not_ready", power_cut),
        ("a_node_that_returns_runs_its_pods_again", power_on),
        ("nothing_is_left", |_| Ok(())),
    ];
    let trials = trials
        .into_iter()
        .map(|(name, check)| {
            let shared = shared.clone();
            let last = name == "nothing_is_left";
            Trial::test(name, move || Ok(if last { shared.take_down() } else { shared.check(check) }.map_err(shown)?))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn shown(error: anyhow::Error) -> String {
    format!("{error:#}")
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Option<Cluster>>>, Option<Kit>);

impl Shared {
    fn check(&self, check: Check) -> Result<()> {
        let mut cluster = self.lock();
        // Played again on a cluster of its own.
        let again = RefCell::new(&mut *cluster);
        let once = || {
            let mut cluster = again.borrow_mut();
            if cluster.is_none() {
                **cluster = Some(start(self.1.as_ref().context("no kit")?)?);
            }
            let cluster = cluster.as_mut().context("no cluster")?;
            check(cluster).map_err(|error| anyhow!("{error:#}\n{}", cluster.report("default")))
        };
        play_again_tidied(STOOD_STILL, once, |error| {
            println!("{error:#}");
            drop(again.borrow_mut().take());
            Ok(())
        })
    }

    fn take_down(&self) -> Result<()> {
        drop(self.lock().take());
        let namespaces = run(Command::new("ip").args(["netns", "list"]))?;
        ensure!(namespaces.is_empty(), "network namespaces: {namespaces}");
        let links = run(Command::new("ip").args(["-br", "link"]))?;
        ensure!(links.lines().count() == 1, "links: {links}");
        let files: Vec<_> = std::fs::read_dir("/run/l2lb-lab")?.collect();
        ensure!(files.is_empty(), "files: {files:?}");
        wait_for("processes are left", LIMIT, POLL, || {
            let processes = run(Command::new("ps").args(["-e", "-o", "pid=,args="]))?;
            let me = std::process::id();
            // This program, its init, and the `ps` that tells.
            let others: Vec<&str> = processes
                .lines()
                .filter(|line| {
                    let pid = line.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
                    pid != 1 && pid != me && !line.contains(" ps -e")
                })
                .collect();
            Ok(if others.is_empty() { Ok(()) } else { Err(others.join("\n")) })
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Cluster>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn start(kit: &Kit) -> Result<Cluster> {
    let mut options = Options::new();
    options.control_plane =
        ControlPlaneOptions { node_grace: Duration::from_secs(8), eviction: Duration::from_secs(300) };
    options.programs.push(("sh".to_owned(), PathBuf::from("/bin/sh")));
    options.programs.push(("sleep".to_owned(), PathBuf::from("/bin/sleep")));
    let cluster = Cluster::start(kit, options)?;
    apply(&cluster, WEB)?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    Ok(cluster)
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: example.org/web:1
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
"#;

fn apply(cluster: &Cluster, yaml: &str) -> Result<()> {
    let path = cluster.control_plane().state().join("test.yaml");
    std::fs::write(&path, yaml)?;
    cluster.apply(&path).map(drop)
}

fn pod(cluster: &Cluster, name: &str, image: &str, args: &[&str], context: &str) -> Result<RunningContainer> {
    let args: Vec<String> = args.iter().map(|arg| format!("{arg:?}")).collect();
    apply(
        cluster,
        &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{hostNetwork: {}, containers: [{{name: c, \
             image: example.org/{image}, args: [{}], securityContext: {context}}}]}}}}",
            name.starts_with("host"),
            args.join(", ")
        ),
    )?;
    wait_for(name, LIMIT, POLL, || {
        let mut found = cluster.containers().into_iter().filter(|container| container.pod == name);
        Ok(found.find(|container| container.log.exists()).ok_or_else(|| "it was not started".to_owned()))
    })
}

fn node_port(cluster: &mut Cluster) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    wait_for("both Pods answer through both nodes", LIMIT, POLL, || {
        for node in ["192.0.2.11", "192.0.2.12"] {
            let answer = match cluster.client_curl(&format!("{node}:30080")) {
                Ok(answer) => answer,
                Err(error) => return Ok(Err(format!("{error:#}"))),
            };
            let pod = answer.split_whitespace().next().context("an empty answer")?.to_owned();
            ensure!(answer.contains("node=node") && answer.contains("from="), "the answer was {answer}");
            seen.insert((node, pod));
        }
        Ok(if seen.len() == 4 { Ok(()) } else { Err(format!("{seen:?}")) })
    })?;
    let nodes = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
    ensure!(nodes.contains("node1") && nodes.contains("node2"), "the replicas are on {nodes}");
    Ok(())
}

/// Of one Service, the Pods of both nodes by both of its cluster IPs; Pods reach them, too.
fn dual_stack(cluster: &mut Cluster) -> Result<()> {
    if !lab::families::has_ipv6() {
        println!("\nSKIPPED pods_are_reached_in_both_families_from_every_node: this kernel has no IPv6");
        return Ok(());
    }
    let both = r#"{"spec": {"ipFamilyPolicy": "RequireDualStack"}}"#;
    cluster.kubectl(&["patch", "service", "web", "--type=merge", "-p", both])?;
    let addresses = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"])?;
    ensure!(addresses.contains("10.96.") && addresses.contains("fd00:10:96::"), "the cluster IPs are {addresses}");
    let asking = pod(cluster, "asks", "sleep:1", &["60"], "{}")?.pid.context("the Pod does not run")?.to_string();
    // Its status is written after it was started.
    let own = ["get", "pod", "asks", "-o", "jsonpath={.status.podIPs[1].ip}"];
    cluster.wait_for_kubectl("the Pod's second address", LIMIT, &own, |own| own.starts_with("fd00:10:244:"))?;
    for address in addresses.split_whitespace() {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        for from in ["node1", "node2", "asks"] {
            let mut seen = std::collections::BTreeSet::new();
            wait_for(&format!("both Pods answer on {address} from {from}"), LIMIT, POLL, || {
                let mut curl = match from {
                    "asks" => Command::new("nsenter"),
                    node => cluster.node(node)?.netns().command("curl"),
                };
                if from == "asks" {
                    curl.args(["--net", "--target", &asking, "--", "curl"]);
                }
                match run(curl.args(["-sS", "-g", "--max-time", "1", &format!("http://{host}/")])) {
                    Ok(answer) => drop(seen.insert(answer.split_whitespace().next().unwrap_or_default().to_owned())),
                    Err(error) => return Ok(Err(format!("{error:#}"))),
                }
                Ok(if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) })
            })?;
        }
    }
    cluster.kubectl(&["delete", "pod", "asks", "--wait=false"])?;
    Ok(())
}

fn rights(cluster: &mut Cluster) -> Result<()> {
    let speaker = "{runAsUser: 0, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, \
                   capabilities: {drop: [ALL], add: [NET_RAW]}}";
    let controller =
        "{runAsUser: 65532, runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}";
    let cases = [("host-raw", speaker, "0000000000002000", "0"), ("plain", controller, "0000000000000000", "65532")];
    for (name, context, capabilities, user) in cases {
        let container = pod(cluster, name, "sleep", &["1000"], context)?;
        let pid = container.pid.context("it has no process")?;
        let status = wait_for(name, LIMIT, POLL, || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            // Before that it is still the shell that builds the walls.
            Ok(if status.starts_with("Name:\tsleep") { Ok(status) } else { Err(status) })
        })?;
        let field = |key: &str| {
            let mut lines = status.lines().filter_map(|line| line.strip_prefix(key)?.split_whitespace().next());
            lines.next().unwrap_or_default().to_owned()
        };
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            ensure!(field(set) == capabilities, "{name}: {set} {}", field(set));
        }
        ensure!(field("CapInh:") == "0000000000000000" && field("CapAmb:") == "0000000000000000", "{name}: {status}");
        ensure!(field("NoNewPrivs:") == "1", "{name}: {status}");
        let user = if lab::sandbox::has_uid_range() { user } else { "0" };
        ensure!(field("Uid:") == user, "{name}: uid {}", field("Uid:"));
    }
    let context = "{readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}";
    let script = "for f in /x /tmp/x /etc/x /usr/x; do (: > $f) && echo wrote $f; done; echo done; ls /home /root; ls /sys/class/net";
    let container = pod(cluster, "read-only", "sh", &["-c", script], context)?;
    let text = wait_for("the script", LIMIT, POLL, || {
        let text = tail(&container.log, 50);
        Ok(if text.contains("done") && text.contains("eth0") { Ok(text) } else { Err(text) })
    })?;
    ensure!(!text.contains("wrote") && text.contains("/home': No such file"), "{text}");
    ensure!(!text.contains("mgmt0"), "/sys shows another network namespace:\n{text}");
    Ok(())
}

fn token(cluster: &mut Cluster) -> Result<()> {
    let script = "d=/var/run/secrets/kubernetes.io/serviceaccount; cat $d/namespace; echo; \
                  curl -sS --cacert $d/ca.crt -H \"Authorization: Bearer $(cat $d/token)\" \
                  https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/default/secrets; sleep 1000";
    for name in ["api", "host-api"] {
        let container = pod(cluster, name, "sh", &["-c", script], "{}")?;
        let text = wait_for(name, LIMIT, POLL, || {
            let text = tail(&container.log, 30);
            Ok(if text.contains("forbidden") { Ok(text) } else { Err(text) })
        })?;
        ensure!(text.contains("system:serviceaccount:default:default") && text.contains("default\n"), "{text}");
    }
    Ok(())
}

fn restart(cluster: &mut Cluster) -> Result<()> {
    let container = pod(cluster, "crash", "sh", &["-c", "echo started; sleep 0.2; exit 7"], "{}")?;
    let arguments = [
        "get",
        "pod",
        "crash",
        "-o",
        "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].lastState.terminated.exitCode}",
    ];
    cluster.wait_for_kubectl("two restarts after exit code 7", LIMIT, &arguments, |output| {
        output
            .split_once(' ')
            .is_some_and(|(count, code)| count.parse::<u32>().is_ok_and(|count| count >= 2) && code == "7")
    })?;
    wait_for("the log has all starts", LIMIT, POLL, || {
        let text = tail(&container.log, 50);
        Ok(if text.matches("started").count() >= 3 { Ok(()) } else { Err(text) })
    })?;
    cluster.kubectl(&["delete", "pod", "crash", "--timeout=60s"]).map(drop)
}

fn deletion(cluster: &mut Cluster) -> Result<()> {
    let script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let container = pod(cluster, "polite", "sh", &["-c", script], "{}")?;
    wait_for("up", LIMIT, POLL, || {
        Ok(if tail(&container.log, 5).contains("up") { Ok(()) } else { Err("silent".into()) })
    })?;
    let pid = container.pid.context("it has no process")?;
    cluster.kubectl(&["delete", "pod", "polite", "--timeout=60s"])?;
    ensure!(tail(&container.log, 5).contains("asked"), "it was not asked to end");
    ensure!(!PathBuf::from(format!("/proc/{pid}")).exists(), "process {pid} lives on");
    ensure!(!cluster.containers().iter().any(|container| container.pod == "polite"), "it is still listed");
    Ok(())
}

fn without_api_server(cluster: &mut Cluster) -> Result<()> {
    cluster.control_plane_mut().stop_program(Program::ApiServer)?;
    ensure!(cluster.kubectl(&["get", "nodes"]).is_err(), "the API server answers");
    let answer = wait_for("an answer without the API server", SOON, POLL, || {
        Ok(cluster.client_curl("192.0.2.11:30080").map_err(|error| format!("{error:#}")))
    });
    cluster.control_plane_mut().start_program(Program::ApiServer)?;
    let answer = answer?;
    ensure!(answer.contains("pod=web"), "the answer was {answer}");
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]).map(drop)
}

fn power_cut(cluster: &mut Cluster) -> Result<()> {
    cluster.power_off("node2")?;
    ensure!(cluster.client_curl("192.0.2.12:30080").is_err(), "a node without power answers");
    let ready = ["get", "node", "node2", "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"];
    cluster.wait_for_kubectl("node2 NotReady", LIMIT, &ready, |output| output == "Unknown")?;
    wait_for("node1 serves alone", LIMIT, POLL, || {
        let answers: Vec<Result<String>> = (0..6).map(|_| cluster.client_curl("192.0.2.11:30080")).collect();
        let good = answers.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.contains("node=node1")));
        Ok(if good { Ok(()) } else { Err(format!("{answers:?}")) })
    })
}

fn power_on(cluster: &mut Cluster) -> Result<()> {
    if cluster.nodes().contains_key("node2") {
        power_cut(cluster)?;
    }
    cluster.power_on("node2")?;
    wait_for("node2 serves", LIMIT, POLL, || {
        let answer = cluster.client_curl("192.0.2.12:30080");
        Ok(answer.map(drop).map_err(|error| format!("{error:#}")))
    })?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]).map(drop)
}
