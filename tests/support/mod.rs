//! A cluster with l2lb installed, and the questions that the tests ask it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use lab::{
    cluster::{Cluster, NAMESPACE, Options},
    control_plane::Program,
    kubelet::registry::RunningContainer,
    netns::Netns,
    process::run,
    requests::{Request, RequestStream, lost},
    runtime::block_on,
    stalls::{Stalls, play_again_tidied},
    traffic::{Backend, Connections, Datagrams, Losses, Messages, PORT},
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::Signal;
use serde_json::Value;

mod tidy;

/// How many nodes there are.
const NODES: u8 = 3;
/// How many controllers the chart starts.
const CONTROLLERS: usize = 2;
/// Datagrams and new connections, of each.
const PER_SECOND: u32 = 1000;

/// How long one of the requests of a stream may take: what is lost is told by its SYN, not by its time.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Those that a move cuts may have been begun within so long, on a machine that never stands still: ten times what the slowest takes.
const CUT_WITHIN: Duration = Duration::from_millis(300);
/// Of each resource so many writes may be refused in a test: who writes by what it knew a moment ago is told so, and looks again.
const MAY_BE_REFUSED: u64 = 10;
/// What l2lb writes.
const OUR_RESOURCES: [&str; 6] =
    ["virtualips", "virtualips/status", "services/status", "ippools/status", "speakers", "speakers/status"];
/// A machine that stood still for so long cannot judge: speakers recheck and report, standbys take over.
pub const STOOD_STILL: Duration = Duration::from_millis(200);

/// A cluster of nodes with the chart installed, the pool of `examples/`, and the web server of `examples/` behind no Service.
#[derive(Clone)]
pub struct Bench(Arc<Mutex<Cluster>>);

impl Bench {
    /// Brings it up. Has to be called first in `main`: it enters the lab's namespaces.
    pub fn start() -> Result<Self> {
        let kit = lab::kit::enter(None)?;
        let program = Path::new(env!("CARGO_BIN_EXE_l2lb"));
        let cluster = Cluster::start(&kit, Options { nodes: NODES, ..Options::new() }.with_l2lb(program))?;
        cluster.install_chart(&[])?;
        let examples = lab::cluster::repository().join("examples");
        cluster.apply(&examples.join("pool.yaml"))?;
        cluster.apply(&examples.join("web.yaml"))?;
        cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
        let bench = Self(Arc::new(Mutex::new(cluster)));
        // The tests make Services of their own.
        bench.kubectl(&["delete", "service", "web"])?;
        eventually(Duration::from_secs(60), "the example's address is given back", || {
            Ok(bench.kubectl(&["get", "virtualips", "-o", "name"])?.is_empty().then_some(()))
        })?;
        Ok(bench)
    }

    /// What a person looks at first when a test fails.
    pub fn report(&self) -> String {
        let objects = self.kubectl(&["get", "virtualips,speakers,services", "-A", "-o", "wide"]);
        format!("{}\n{}", objects.unwrap_or_else(|error| format!("{error:#}")), self.cluster().report(NAMESPACE))
    }

    /// `kubectl apply` of an object.
    pub fn apply(&self, object: &Value) -> Result<String> {
        self.apply_text(&object.to_string(), &[])
    }

    /// `kubectl apply` of a text, with more arguments.
    pub fn apply_text(&self, text: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster().control_plane().command("kubectl");
        command.args(["apply", "-f", "-"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl")?;
        child.stdin.take().context("kubectl's standard input")?.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// An object, in namespace `default` where its kind has namespaces.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.get_in("default", kind, name)
    }

    /// An object of a namespace.
    pub fn get_in(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["-n", namespace, "get", kind, name, "-o", "json"])?)?)
    }

    /// What is not there, or not any more, counts as gone; any other failure to read it does not.
    pub fn is_gone(&self, kind: &str, name: &str) -> Result<bool> {
        Ok(self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "name"])?.is_empty())
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster().control_plane().command("kubectl");
        run(command.args(arguments))
    }

    /// kubectl as somebody else.
    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster().control_plane().command("kubectl");
        run(command.env("KUBECONFIG", kubeconfig).args(arguments))
    }

    /// helm as the administrator.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster().control_plane().command("helm");
        run(command.args(arguments))
    }

    /// A kubeconfig with a token like the one that the speaker of a node runs with.
    pub fn speaker_kubeconfig(&self, node: &str) -> Result<PathBuf> {
        let cluster = self.cluster();
        let speaker = cluster.speaker(node)?;
        cluster.control_plane().token_kubeconfig(NAMESPACE, "l2lb-speaker", Some(&speaker.pod))
    }

    /// An API client with such a token.
    pub fn speaker_client(&self, node: &str) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.speaker_kubeconfig(node)?)?;
        block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            Ok(Client::try_from(config)?)
        })
    }

    /// What the client on the LAN gets from `http://<address>/`.
    pub fn curl(&self, address: &str) -> Result<String> {
        self.cluster().client_curl(address)
    }

    /// What the client gets for one UDP datagram, within a second.
    pub fn datagram(&self, to: SocketAddr) -> Result<String> {
        let netns = self.cluster().client_ns().clone();
        netns.run(|| {
            let socket = UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.connect(to)?;
            socket.send(b"who?")?;
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })?
    }

    /// Runs `ip` for the client.
    pub fn client_ip(&self, arguments: &[&str]) -> Result<String> {
        self.cluster().client_ns().ip(arguments)
    }

    /// The client on the LAN.
    pub fn client_netns(&self) -> Netns {
        self.cluster().client_ns().clone()
    }

    /// The gateway, which is a Linux host of this LAN that knows nothing of l2lb.
    pub fn foreign_host(&self) -> Result<Netns> {
        Ok(self.cluster().lan().gateway_netns().context("this LAN is a switch")?.clone())
    }

    /// Makes the client ask the LAN again for every address.
    pub fn forget_client_neighbours(&self) -> Result<()> {
        self.cluster().client_ns().ip(&["neigh", "flush", "dev", "eth0"]).map(drop)
    }

    /// How long the client believes an IPv6 neighbour (in milliseconds), and how long it waits then before it asks (in seconds).
    pub fn client_neighbours_are_checked(&self, after_ms: u32, delay: u32) -> Result<()> {
        let client = self.client_netns();
        client.sysctl("net.ipv6.neigh.eth0.base_reachable_time_ms", &after_ms.to_string())?;
        client.sysctl("net.ipv6.neigh.eth0.delay_first_probe_time", &delay.to_string())
    }

    /// Runs a short command in the network of a node.
    pub fn in_node(&self, node: &str, command: &[&str]) -> Result<String> {
        let netns = self.cluster().node(node)?.netns().clone();
        let (program, arguments) = command.split_first().context("a command")?;
        run(netns.command(program).args(arguments))
    }

    /// Requests from the client, one new connection each 20 ms, until told to finish.
    pub fn requests(&self, address: &str) -> Result<Requests> {
        let to = SocketAddr::new(address.parse().context("an address")?, 80);
        let netns = self.cluster().client_ns().clone();
        let (before, stalls) = (Losses::read(&netns)?, Stalls::watch()?);
        let stream = RequestStream::start(&netns, to, Duration::from_millis(20), REQUEST_LIMIT)?;
        eventually(REQUEST_LIMIT * 2, "the first request ends", || Ok((!stream.so_far().is_empty()).then_some(())))?;
        Ok(Requests { stream, netns, before, stalls })
    }

    /// Where the server for [`Self::traffic`] is: on a machine of its own, which no move concerns.
    pub fn backend_address(&self) -> IpAddr {
        lab::management::API_SERVER.into()
    }

    /// Traffic from the client to the address of a Service, whose only endpoint is [`Self::backend_address`].
    pub fn traffic(&self, address: &str) -> Result<Traffic> {
        let cluster = self.cluster();
        let backend = Backend::start(cluster.control_plane().netns(), PORT)?;
        let to = SocketAddr::new(address.parse().context("an address")?, PORT);
        Traffic::start(cluster.client_ns(), backend, to)
    }

    /// How many writes the API server has done and refused.
    pub fn writes(&self) -> Result<Writes> {
        let text = self.kubectl(&["get", "--raw", "/metrics"])?;
        let mut writes = Writes::default();
        for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let label = |name: &str| -> String {
                let rest = line.split(&format!("{name}=\"")).nth(1).unwrap_or_default();
                rest.split('"').next().unwrap_or_default().to_owned()
            };
            // Core events are those of Kubernetes itself.
            if label("resource") == "events" && label("group") != "events.k8s.io" {
                continue;
            }
            let is_write = ["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&label("verb").as_str());
            if !is_write {
                continue;
            }
            let counted = if label("code").starts_with('2') { &mut writes.done } else { &mut writes.refused };
            let (resource, subresource) = (label("resource"), label("subresource"));
            let resource = if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") };
            let count: f64 = line.rsplit(' ').next().unwrap_or_default().parse().with_context(|| line.to_owned())?;
            *counted.entry(resource).or_default() += count as u64;
        }
        Ok(writes)
    }

    /// How often an owner has asked the LAN anew because its speaker did not run for a while, as the speakers say.
    pub fn rechecks(&self) -> usize {
        let said = "state=Probing reason=\"the speaker did not run for a while\"";
        self.cluster().logs(NAMESPACE, 100_000).lines().filter(|line| line.contains(said)).count()
    }

    /// How often each container of l2lb was started again.
    pub fn restarts(&self) -> Result<String> {
        let columns = "jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[*].restartCount} {end}";
        self.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", columns])
    }

    /// `/proc/<pid>/status` of a process of l2lb, by field.
    pub fn process_status(&self, pod: &str, node: Option<&str>) -> Result<BTreeMap<String, String>> {
        let containers = self.cluster().containers();
        let wanted = |container: &&RunningContainer| {
            container.pod.starts_with(pod) && node.is_none_or(|node| container.node == node)
        };
        let pid = containers.iter().find(wanted).and_then(|container| container.pid).context("it does not run")?;
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Ok(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    /// Kills the speaker of a node (SIGKILL), or tells it to end (SIGTERM), and returns when it runs again.
    pub fn end_speaker(&self, node: &str, signal: Signal) -> Result<()> {
        let before = self.cluster().speaker(node)?.pid;
        self.cluster().signal_speaker(node, signal)?;
        eventually(Duration::from_secs(60), "the speaker is started again", || {
            let pid = self.cluster().speaker(node)?.pid;
            Ok((pid.is_some() && pid != before).then_some(()))
        })
    }

    /// Ends or starts the controller, and waits until that is done.
    pub fn scale_controller(&self, replicas: usize) -> Result<()> {
        let wanted = format!("--replicas={replicas}");
        self.kubectl(&["-n", NAMESPACE, "scale", "deployment/l2lb-controller", &wanted])?;
        self.controllers_are(replicas)
    }

    /// `helm upgrade` of the chart with more arguments, until all runs that is to run, and nothing else. Of a Deployment of two
    /// `--wait` is content with one new Pod.
    pub fn upgrade(&self, arguments: &[&str]) -> Result<()> {
        let chart = lab::cluster::repository().join("charts/l2lb").display().to_string();
        self.helm(&[&["upgrade", "--install", "l2lb", &chart, "-n", NAMESPACE, "--wait"], arguments].concat())?;
        self.kubectl(&["-n", NAMESPACE, "rollout", "status", "daemonset/l2lb-speaker", "--timeout=120s"])?;
        self.controllers_are(CONTROLLERS)
    }

    /// Waits until so many controllers are ready, and none of an earlier time is there any more.
    pub fn controllers_are(&self, count: usize) -> Result<()> {
        // The lab's scheduler and kubelets look again up to 50 s after an API server was away.
        self.kubectl(&["-n", NAMESPACE, "rollout", "status", "deployment/l2lb-controller", "--timeout=120s"])?;
        eventually(Duration::from_secs(120), &format!("there are {count} controllers"), || {
            let pods = ["-n", NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=controller", "-o", "name"];
            Ok((self.kubectl(&pods)?.lines().count() == count).then_some(()))
        })
    }

    /// Kills the API server; etcd goes on. It is killed, not told to end, because then it would take itself off the Service
    /// `kubernetes`, and how long that lasts is up to kube-proxy's own patience (up to a minute).
    pub fn kill_api_server(&self) -> Result<()> {
        self.cluster().control_plane_mut().kill_program(Program::ApiServer)
    }

    /// Starts it again, and waits until it answers.
    pub fn start_api_server(&self) -> Result<()> {
        self.cluster().control_plane_mut().start_program(Program::ApiServer)
    }

    /// A power cut of one node.
    pub fn power_off(&self, node: &str) -> Result<()> {
        self.cluster().power_off(node)
    }

    /// Switches it on again, and waits until it is Ready.
    pub fn power_on(&self, node: &str) -> Result<()> {
        self.cluster().power_on(node)
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        // A test that failed while it held the cluster has left it as usable as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes that the API server has counted, by resource (with its subresource after a slash).
#[derive(Clone, Debug, Default)]
pub struct Writes {
    done: BTreeMap<String, u64>,
    refused: BTreeMap<String, u64>,
}

impl Writes {
    /// How many of these resources were done since.
    ///
    /// # Errors
    /// When more than a few of l2lb's were refused: somebody writes in vain again and again.
    pub fn since<'a>(&self, before: &Self, resources: &[&'a str]) -> Result<BTreeMap<&'a str, u64>> {
        let grown = |now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>, resource: &str| {
            let (now, before) = (now.get(resource).unwrap_or(&0), before.get(resource).unwrap_or(&0));
            now.checked_sub(*before).context("the API server has begun to count anew")
        };
        for resource in OUR_RESOURCES {
            let refused = grown(&self.refused, &before.refused, resource)?;
            ensure!(refused <= MAY_BE_REFUSED, "the API server refused {refused} writes of {resource}");
        }
        resources.iter().map(|resource| Ok((*resource, grown(&self.done, &before.done, resource)?))).collect()
    }
}

/// Traffic to one address: per second a thousand datagrams and a thousand new connections, and twenty connections that stay.
pub struct Traffic {
    begun: Instant,
    backend: Backend,
    datagrams: Datagrams,
    connections: Connections,
    messages: Messages,
}

impl Traffic {
    fn start(client: &Netns, backend: Backend, to: SocketAddr) -> Result<Self> {
        Ok(Self {
            begun: Instant::now(),
            backend,
            datagrams: Datagrams::start(client, to, PER_SECOND)?,
            connections: Connections::start(client, to, PER_SECOND)?,
            messages: Messages::start(client, to, 20, Duration::from_millis(50))?,
        })
    }

    /// Waits until so many more datagrams and connections are answered.
    pub fn flows(&self, count: u64) -> Result<()> {
        let answered = || self.datagrams.so_far().answered.min(self.connections.so_far().answered);
        let before = answered();
        eventually(Duration::from_secs(60), &format!("{count} more datagrams and connections are answered"), || {
            Ok((answered() >= before + count).then_some(()))
        })
    }

    /// Ends it. What this machine lost itself, being too slow, is left out; `what` happened meanwhile.
    ///
    /// # Errors
    /// When a datagram or a new connection was lost otherwise.
    pub fn nothing_lost(self, what: &str) -> Result<()> {
        let (datagrams, connections) = (self.datagrams.stop()?, self.connections.stop()?);
        let (messages, own) = (self.messages.stop()?, self.backend.losses()?);
        println!(
            "{what}: {} datagrams, {} new connections (of these {} accepted and then cut); of 20 that stay {} were reset",
            datagrams.begun,
            connections.begun,
            connections.cut(),
            messages.cut()
        );
        for (outcome, dropped) in [
            (&datagrams, datagrams.losses.datagrams + own.datagrams + own.backlog),
            (&connections, own.connections + own.backlog),
        ] {
            let lost = outcome.lost().saturating_sub(dropped);
            ensure!(lost == 0, "{what}: {lost} lost: {}; the server dropped {own:?}", outcome.told(self.begun));
        }
        Ok(())
    }
}

/// A running stream of requests.
pub struct Requests {
    stream: RequestStream,
    netns: Netns,
    before: Losses,
    stalls: Stalls,
}

impl Requests {
    /// Ends it. There has to be one request at least.
    ///
    /// # Errors
    /// When any was lost, with when and why each was.
    pub fn none_failed(self) -> Result<()> {
        self.judge(false)
    }

    /// Ends it after one move: no new connection may have failed. Those that the old node had accepted and that were not answered yet
    /// may have been cut: the new node knows nothing of them.
    ///
    /// # Errors
    /// When more failed, with when and why each did.
    pub fn no_connection_failed(self) -> Result<()> {
        self.judge(true)
    }

    fn judge(self, moved: bool) -> Result<()> {
        let requests = self.stream.stop()?;
        let repeated = Losses::read(&self.netns)?.since(self.before).repeated_syns;
        let begin = requests.first().context("no request was made")?.sent;
        let lost = lost(&requests, repeated, moved.then(|| CUT_WITHIN + 2 * self.stalls.worst()));
        let told = |request: &&Request| {
            let error = request.result.as_ref().err().map_or("it was answered", |error| error.as_str());
            let accepted =
                request.connected.map_or("not accepted".to_owned(), |after| format!("accepted after {after:.2?}"));
            let (after, lasted) = (request.sent.duration_since(begin), request.ended.duration_since(request.sent));
            format!("begun after {:.3} s, {accepted}, ended after {lasted:.2?}: {error}", after.as_secs_f64())
        };
        let each: Vec<String> = lost.iter().map(told).collect();
        let count = requests.len();
        ensure!(lost.is_empty(), "{} of {count} lost, {repeated} SYNs repeated: {}", lost.len(), each.join("; "));
        Ok(())
    }
}

/// Asks until there is a value. An error is asked again, too: the API server may be away for a while.
pub fn eventually<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = ask();
        match answer {
            Ok(Some(value)) => return Ok(value),
            Ok(None) if Instant::now() > deadline => bail!("{what}: not within {} s", limit.as_secs()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Ok(None) | Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A test: its name, and what it does.
pub type Test = (&'static str, fn(&Bench) -> Result<()>);

/// Tests that run one after the other in their order, or all together: such that wait most of the time, and do not concern each other.
pub enum Stage {
    InOrder(Vec<Test>),
    Together(Vec<Test>),
}

impl Stage {
    pub fn tests(&self) -> &[Test] {
        let (Self::InOrder(tests) | Self::Together(tests)) = self;
        tests
    }
}

/// Runs the stages, and ends the process.
pub fn run_in_order(mut arguments: Arguments, bench: Bench, stages: &[Stage]) -> Result<()> {
    let mut failed = false;
    for stage in stages {
        let together = matches!(stage, Stage::Together(_));
        arguments.test_threads = Some(if together { stage.tests().len() } else { 1 });
        // Held by those that run beside each other, or by one that runs alone.
        let company: Arc<RwLock<()>> = Arc::default();
        let trials = stage.tests().iter().map(|(name, test)| {
            let (bench, test, company) = (bench.clone(), *test, company.clone());
            Trial::test(*name, move || {
                play(&bench, test, &company).map_err(|error| {
                    // At once, too: the list of failures comes at the end, which a run that is cut short does not reach.
                    eprintln!("{error:#}");
                    let report = bench.report();
                    // The others of the stage still need what would be tidied.
                    let tidied = if together { Ok(()) } else { bench.tidy() };
                    let tidied = tidied.map_or_else(|error| format!("not tidied: {error:#}"), |()| String::new());
                    Failed::from(anyhow!("{error:#}\n{report}{tidied}").to_string())
                })
            })
        });
        let stage_failed = libtest_mimic::run(&arguments, trials.collect()).has_failed();
        if together && stage_failed {
            bench.tidy()?;
        }
        failed |= stage_failed;
    }
    // The cluster ends before the process does, so that what cannot be ended is seen.
    drop(bench);
    std::process::exit(if failed { 101 } else { 0 })
}

/// One test, which is tidied up after and played again when it failed and the machine stood still meanwhile: alone then, when those
/// beside it have ended.
fn play(bench: &Bench, test: fn(&Bench) -> Result<()>, company: &RwLock<()>) -> Result<()> {
    let alone = RefCell::new(None);
    let once = || {
        let _company = alone.borrow().is_none().then(|| company.read().unwrap_or_else(PoisonError::into_inner));
        test(bench)
    };
    play_again_tidied(STOOD_STILL, once, |error| {
        eprintln!("{error:#}\n{}", bench.report());
        alone.borrow_mut().get_or_insert_with(|| company.write().unwrap_or_else(PoisonError::into_inner));
        bench.tidy()
    })
}
