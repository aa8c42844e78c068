//! A Kubernetes control plane of real programs: etcd, kube-apiserver and kube-controller-manager in network namespace `cp`.
//!
//! Each program can be stopped and started by itself. Also of use without nodes, for tests of a controller. All files are in
//! one folder on the sandbox's own tmpfs; dropping the value ends the programs and removes it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::{Api, Client};

pub use crate::access::User;
use crate::access::{client_of, service_account_token, write_kubeconfig};
use crate::kit::Kit;
use crate::management::{API_SERVER, Management};
use crate::netns::Netns;
use crate::pki::Pki;
use crate::process::{Process, run};
use crate::runtime;

/// Address ranges of Services.
pub const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The IPv4 one of them.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The address of Service `kubernetes`, by which Pods find the API server.
pub const KUBERNETES_SERVICE: &str = "10.96.0.1";
/// Addresses of all Pods.
pub const POD_RANGE: &str = "10.244.0.0/16";
const READY_LIMIT: Duration = Duration::from_secs(90);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// The store.
    Etcd,
    /// The API server.
    ApiServer,
    /// Deployments, DaemonSets, EndpointSlices, dead nodes, garbage.
    ControllerManager,
}

impl Program {
    /// The name of the program's file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
        }
    }
}

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct ControlPlaneOptions {
    /// After how long a node that says nothing is NotReady.
    pub node_grace: Duration,
    /// After how long the Pods of a NotReady node are evicted, unless they say otherwise.
    pub eviction: Duration,
}

impl Default for ControlPlaneOptions {
    fn default() -> Self {
        Self { node_grace: Duration::from_secs(20), eviction: Duration::from_secs(300) }
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: programs before the network they use.
    programs: BTreeMap<Program, Process>,
    management: Management,
    netns: Netns,
    kit: Kit,
    pki: Pki,
    state: PathBuf,
    options: ControlPlaneOptions,
    /// kube-controller-manager was ended with the API server.
    manager_waits: bool,
}

impl ControlPlane {
    /// Starts the three programs and waits until the API server is ready.
    ///
    /// # Errors
    /// When a program ends or is not ready in time, with the end of its log.
    pub fn start(kit: &Kit, options: ControlPlaneOptions) -> Result<Self> {
        let mut control_plane = Self::launch(kit, options)?;
        control_plane.finish_launch()?;
        Ok(control_plane)
    }

    /// The first half of [`Self::start`]: begins, and does not wait.
    pub(crate) fn launch(kit: &Kit, options: ControlPlaneOptions) -> Result<Self> {
        let state = state_folder()?;
        let address = format!("IP:{API_SERVER}");
        let service = format!("IP:{KUBERNETES_SERVICE}");
        let names = ["DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc", "IP:127.0.0.1"];
        let pki = Pki::create(&state.join("pki"), &[&names[..], &[&address, &service]].concat())?;
        let management = Management::create()?;
        let netns = Netns::create("cp")?;
        management.attach(&netns, "mgmt0", API_SERVER)?;
        let mut control_plane = Self {
            programs: BTreeMap::new(),
            management,
            netns,
            kit: kit.clone(),
            pki,
            state,
            options,
            manager_waits: false,
        };
        control_plane.write_users()?;
        control_plane.spawn(Program::Etcd)?;
        control_plane.spawn(Program::ApiServer)?;
        Ok(control_plane)
    }

    /// The second half of [`Self::start`].
    pub(crate) fn finish_launch(&mut self) -> Result<()> {
        self.wait_until_ready()?;
        self.spawn(Program::ControllerManager)
    }

    /// Starts a program that was stopped. For the API server, returns when it is ready.
    pub fn start_program(&mut self, program: Program) -> Result<()> {
        self.spawn(program)?;
        if program == Program::ApiServer {
            self.wait_until_ready()?;
            if std::mem::take(&mut self.manager_waits) {
                self.spawn(Program::ControllerManager)?;
            }
        }
        Ok(())
    }

    /// Whether a program was started and not ended since.
    pub fn is_started(&self, program: Program) -> bool {
        self.programs.contains_key(&program)
    }

    /// Ends a program (SIGTERM; SIGKILL after 10 s). One that does not run is no error.
    ///
    /// Without an API server kube-controller-manager loses its leadership and ends, to start afresh later. The lab's, which
    /// elects no leader, is ended and started with the API server: one that went on would call every node dead from what it
    /// saw of it last.
    pub fn stop_program(&mut self, program: Program) -> Result<()> {
        self.suspend_manager(program)?;
        match self.programs.remove(&program) {
            Some(mut process) => process.terminate(STOP_GRACE).map(drop),
            None => Ok(()),
        }
    }

    /// Kills a program (SIGKILL); otherwise as [`Self::stop_program`].
    pub fn kill_program(&mut self, program: Program) -> Result<()> {
        self.suspend_manager(program)?;
        match self.programs.remove(&program) {
            Some(mut process) => process.kill().map(drop),
            None => Ok(()),
        }
    }

    fn suspend_manager(&mut self, with: Program) -> Result<()> {
        if with == Program::ApiServer
            && let Some(mut manager) = self.programs.remove(&Program::ControllerManager)
        {
            manager.kill()?;
            self.manager_waits = true;
        }
        Ok(())
    }

    /// A client with all rights. It belongs to the tokio runtime that it is made in.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read; the API server is not asked.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.kubeconfig()).await
    }

    /// The administrator's kubeconfig, good in every namespace of the management network.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of(User::Admin)
    }

    /// The kubeconfig of one of the users.
    pub fn kubeconfig_of(&self, user: User) -> PathBuf {
        self.state.join(format!("{}.kubeconfig", user.file_stem()))
    }

    /// A kubeconfig with a token of a service account, bound to a Pod when `pod` names one (the token then names its node too).
    ///
    /// # Errors
    /// When the account or the Pod is not there.
    pub fn token_kubeconfig(&self, namespace: &str, account: &str, pod: Option<&str>) -> Result<PathBuf> {
        let token = runtime::block_on(async {
            let client = self.client().await?;
            let bound = match pod {
                Some(pod) => {
                    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), namespace);
                    let pod = pods.get(pod).await.with_context(|| format!("Pod {namespace}/{pod}"))?;
                    Some((pod.metadata.name.unwrap_or_default(), pod.metadata.uid.unwrap_or_default()))
                }
                None => None,
            };
            service_account_token(&client, namespace, account, bound, Vec::new()).await
        })?;
        let path = self.state.join(format!("{namespace}-{account}-{}.kubeconfig", pod.unwrap_or("unbound")));
        write_kubeconfig(&path, &self.authority(), &token)?;
        Ok(path)
    }

    /// Runs kubectl as the administrator and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.command("kubectl").args(arguments))
    }

    /// Runs helm as the administrator and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        run(self.command("helm").args(arguments))
    }

    /// A command for a program of the kit, or any other, with the environment that kubectl and helm need.
    pub fn command(&self, program: &str) -> Command {
        let own = self.kit.program(program);
        let mut command = Command::new(if own.is_file() { own } else { program.into() });
        command.envs(self.environment());
        command
    }

    /// The variables by which kubectl and helm find this cluster and keep their caches in it (they key them by server address).
    pub fn environment(&self) -> BTreeMap<&'static str, PathBuf> {
        let helm = self.state.join("helm");
        BTreeMap::from([
            ("KUBECONFIG", self.kubeconfig()),
            ("KUBECACHEDIR", self.state.join("kubecache")),
            ("HELM_CACHE_HOME", helm.join("cache")),
            ("HELM_CONFIG_HOME", helm.join("config")),
            ("HELM_DATA_HOME", helm.join("data")),
        ])
    }

    /// The folder of everything that this cluster writes, with the logs in `logs/`.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// The network namespace `cp`.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The management network.
    pub fn management(&self) -> &Management {
        &self.management
    }

    /// The Kubernetes programs.
    pub fn kit(&self) -> &Kit {
        &self.kit
    }

    /// The certificate of the authority that signed the API server's.
    pub fn authority(&self) -> PathBuf {
        self.pki.file("ca.crt")
    }

    fn spawn(&mut self, program: Program) -> Result<()> {
        let name = program.file_name();
        let log = self.logs().join(format!("{name}.log"));
        let mut command = self.netns.command(self.kit.program(name));
        command.args(self.arguments(program));
        let process = Process::spawn(name, &mut command, &log)?;
        self.programs.insert(program, process);
        Ok(())
    }

    fn arguments(&self, program: Program) -> Vec<String> {
        let pki = |name: &str| self.pki.file(name).display().to_string();
        let lines = match program {
            Program::Etcd => format!(
                "--data-dir={}
                 --listen-client-urls=http://127.0.0.1:2379
                 --advertise-client-urls=http://127.0.0.1:2379
                 --listen-peer-urls=http://127.0.0.1:2380
                 --unsafe-no-fsync=true",
                self.state.join("etcd").display()
            ),
            Program::ApiServer => format!(
                "--etcd-servers=http://127.0.0.1:2379
                 --bind-address=0.0.0.0
                 --advertise-address={API_SERVER}
                 --secure-port=6443
                 --service-cluster-ip-range={SERVICE_RANGES}
                 --tls-cert-file={}
                 --tls-private-key-file={}
                 --client-ca-file={}
                 --token-auth-file={}
                 --authorization-mode=Node,RBAC
                 --enable-admission-plugins=NodeRestriction
                 --allow-privileged=true
                 --enable-aggregator-routing=true
                 --service-account-issuer=https://kubernetes.default.svc.cluster.local
                 --service-account-key-file={}
                 --service-account-signing-key-file={}
                 --default-not-ready-toleration-seconds={eviction}
                 --default-unreachable-toleration-seconds={eviction}",
                pki("apiserver.crt"),
                pki("apiserver.key"),
                pki("ca.crt"),
                self.state.join("tokens.csv").display(),
                pki("service-account.pub"),
                pki("service-account.key"),
                eviction = self.options.eviction.as_secs(),
            ),
            Program::ControllerManager => format!(
                "--kubeconfig={}
                 --service-account-private-key-file={}
                 --root-ca-file={}
                 --use-service-account-credentials=true
                 --leader-elect=false
                 --bind-address=127.0.0.1
                 --allocate-node-cidrs=false
                 --flex-volume-plugin-dir={}
                 --node-monitor-grace-period={}s
                 --node-monitor-period=1s",
                self.kubeconfig_of(User::ControllerManager).display(),
                pki("service-account.key"),
                pki("ca.crt"),
                self.state.join("flex").display(),
                self.options.node_grace.as_secs(),
            ),
        };
        lines.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let kubeconfig = self.kubeconfig();
        let programs = &mut self.programs;
        runtime::block_on(async {
            let client = client_of(&kubeconfig).await?;
            let deadline = tokio::time::Instant::now() + READY_LIMIT;
            loop {
                for process in programs.values_mut() {
                    process.expect_running()?;
                }
                let request = http_get("/readyz")?;
                match client.request_text(request).await {
                    Ok(_) => return Ok(()),
                    Err(error) if tokio::time::Instant::now() >= deadline => {
                        let limit = READY_LIMIT.as_secs();
                        return Err(error).with_context(|| format!("kube-apiserver is not ready after {limit} s"));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
    }

    fn write_users(&self) -> Result<()> {
        let mut tokens = String::new();
        for user in User::ALL {
            tokens += &user.line();
            write_kubeconfig(&self.kubeconfig_of(user), &self.authority(), &user.token())?;
        }
        fs::write(self.state.join("tokens.csv"), tokens).context("cannot write the API server's tokens")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.programs.clear();
        let link = self.management.detach(&self.netns);
        let netns = self.netns.clone().delete();
        let files = fs::remove_dir_all(&self.state).context("cannot remove the lab's files");
        for error in [link.err(), netns.err(), files.err()].into_iter().flatten() {
            tracing::warn!(error = format!("{error:#}"), "the control plane left something behind");
        }
    }
}

/// A fresh folder on the sandbox's tmpfs, which is gone with the sandbox.
fn state_folder() -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(format!("/run/l2lb-lab/{}-{number}", std::process::id()));
    fs::create_dir_all(folder.join("logs")).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn http_get(path: &str) -> Result<hyper::Request<Vec<u8>>> {
    hyper::Request::get(path).body(Vec::new()).context("cannot make a request")
}
