//! One container: starts it, probes it, starts it again when it ends, and ends it when it is told to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::environment::{Facts, expand, resolve};
use super::probe::Plan;
use super::registry::RunningContainer;
use super::status::{ContainerState, ContainerView};
use super::walls::{Mount, Rights, Walls};
use super::{NodeContext, network::PodNetwork};
use crate::process::{open_log, signal};
use crate::workload::Workload;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// A container that ran so long starts again without delay.
const LONG_RUN: Duration = Duration::from_secs(60);
/// A probe that has never succeeded is asked this often, so that a lab does not wait for whole periods.
const EAGER: Duration = Duration::from_millis(200);

/// What a container is started from.
pub(super) struct Launch {
    pub(super) context: Arc<NodeContext>,
    pub(super) pod: Pod,
    pub(super) container: Container,
    pub(super) network: Arc<PodNetwork>,
    pub(super) volumes: BTreeMap<String, PathBuf>,
    pub(super) folder: PathBuf,
    /// How often it was started before.
    pub(super) restarts: i32,
}

enum Running {
    Program(Box<Child>),
    /// Held for its sockets.
    Workload {
        _held: Workload,
    },
}

enum Verdict {
    Ready(bool),
    Dead(String),
}

/// Runs the container until `stop` holds a grace period; every change is told to `report`.
pub(super) async fn run(launch: Launch, mut stop: watch::Receiver<Option<Duration>>, report: impl Fn(ContainerView)) {
    let policy = launch.pod.spec.as_ref().and_then(|spec| spec.restart_policy.clone());
    let mut view = ContainerView::new(launch.restarts);
    let mut backoff = FIRST_BACKOFF;
    loop {
        let begun = Instant::now();
        match launch.start() {
            Ok(running) => {
                let started = now();
                view.state = ContainerState::Running(started.clone());
                view.ready = launch.container.readiness_probe.is_none();
                report(view.clone());
                let code = launch.supervise(running, &mut stop, &mut view, &report).await;
                launch.register(None);
                view.state = ContainerState::Ended { code, started, finished: now() };
                view.ready = false;
                report(view.clone());
                let again = match policy.as_deref() {
                    Some("Never") => false,
                    Some("OnFailure") => code != 0,
                    _ => true,
                };
                if stop.borrow().is_some() || !again {
                    return;
                }
                view.last = Some(view.state.clone());
                if begun.elapsed() > LONG_RUN {
                    backoff = FIRST_BACKOFF;
                }
                let message = format!("started again in {} s", backoff.as_secs());
                view.state = ContainerState::Waiting { reason: "CrashLoopBackOff", message };
            }
            Err(error) => {
                let message = format!("{error:#}");
                launch.context.note(&format!(
                    "{}: container {}: {message}",
                    launch.pod.name_any(),
                    launch.container.name
                ));
                view.state = ContainerState::Waiting { reason: "CreateContainerError", message };
            }
        }
        report(view.clone());
        tokio::select! {
            () = sleep(backoff) => {}
            _ = stopped(&mut stop) => return,
        }
        backoff = (backoff * 2).min(launch.context.longest_backoff);
        view.restarts += 1;
    }
}

impl Launch {
    fn start(&self) -> Result<Running> {
        let image = self.container.image.as_deref().unwrap_or_default();
        let running = match self.context.programs.iter().find(|(name, _)| image_name(image) == name) {
            Some((name, program)) => Running::Program(Box::new(self.start_program(name, program)?)),
            None => {
                let (pod, node) = (self.pod.name_any(), &self.context.name);
                Running::Workload { _held: Workload::start(&self.network.netns, &pod, node, &self.container)? }
            }
        };
        let pid = match &running {
            Running::Program(child) => child.id(),
            Running::Workload { .. } => None,
        };
        self.register(pid);
        Ok(running)
    }

    fn start_program(&self, name: &str, program: &Path) -> Result<Child> {
        let facts = Facts {
            pod: &self.pod,
            node: &self.context.name,
            host_ip: self.context.address,
            pod_ip: self.network.address,
        };
        let variables = resolve(&self.container, facts)?;
        let words = self.container.command.iter().flatten().skip(1).chain(self.container.args.iter().flatten());
        let arguments: Vec<String> = words.map(|word| expand(word, &variables)).collect();
        let rights = Rights::of(&self.pod, &self.container);
        let rights = if self.context.change_user { rights } else { rights.as_mapped_root() };
        let root = self.folder.join(format!("root-{}", self.container.name));
        std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let walls = Walls {
            root: &root,
            rights: &rights,
            change_user: self.context.change_user,
            mounts: &self.mounts()?,
            program,
            name,
            arguments: &arguments,
        };
        let mut command = self.network.netns.command("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", &walls.script()]);
        let (stdout, stderr) = open_log(&self.log())?;
        command.env_clear().envs(variables).stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true).spawn().with_context(|| format!("cannot start {}", program.display()))
    }

    fn mounts(&self) -> Result<Vec<Mount>> {
        let mounts = self.container.volume_mounts.iter().flatten();
        mounts
            .map(|mount| {
                let source = self.volumes.get(&mount.name);
                let source = source.with_context(|| format!("the Pod has no volume {}", mount.name))?;
                Ok(Mount {
                    source: source.join(mount.sub_path.as_deref().unwrap_or_default()),
                    target: mount.mount_path.clone(),
                    read_only: mount.read_only == Some(true),
                })
            })
            .collect()
    }

    /// Until the container has ended, by itself or because it was told to. Returns its exit code.
    async fn supervise(
        &self,
        mut running: Running,
        stop: &mut watch::Receiver<Option<Duration>>,
        view: &mut ContainerView,
        report: &impl Fn(ContainerView),
    ) -> i32 {
        let (verdicts, mut probed) = mpsc::channel(8);
        let _probes = self.probes(&verdicts);
        loop {
            tokio::select! {
                code = running.ended() => return code,
                grace = stopped(stop) => return running.end(grace).await,
                Some(verdict) = probed.recv() => match verdict {
                    Verdict::Ready(ready) if ready != view.ready => {
                        view.ready = ready;
                        report(view.clone());
                    }
                    Verdict::Ready(_) => {}
                    Verdict::Dead(reason) => {
                        self.context.note(&format!("{}: liveness: {reason}: killed", self.pod.name_any()));
                        return running.end(Duration::from_secs(5)).await;
                    }
                },
            }
        }
    }

    /// Tasks that ask; they end when the set is dropped.
    fn probes(&self, verdicts: &mpsc::Sender<Verdict>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let mut add = |probe: &Option<Probe>, liveness: bool| {
            let Some(probe) = probe else { return };
            match Plan::of(probe, &self.container, IpAddr::V4(self.network.address)) {
                Ok(plan) => {
                    tasks.spawn(ask_for_ever(self.context.clone(), plan, liveness, verdicts.clone()));
                }
                Err(reason) => self.context.note(&format!("{}: probe: {reason}", self.pod.name_any())),
            }
        };
        add(&self.container.readiness_probe, false);
        add(&self.container.liveness_probe, true);
        tasks
    }

    fn register(&self, pid: Option<u32>) {
        self.context.registry.put(RunningContainer {
            namespace: self.pod.namespace().unwrap_or_default(),
            pod: self.pod.name_any(),
            container: self.container.name.clone(),
            node: self.context.name.clone(),
            address: self.network.address,
            pid,
            log: self.log(),
        });
    }

    fn log(&self) -> PathBuf {
        let namespace = self.pod.namespace().unwrap_or_default();
        let name = format!("{namespace}_{}_{}.log", self.pod.name_any(), self.container.name);
        self.context.logs.join(name)
    }
}

impl Running {
    async fn ended(&mut self) -> i32 {
        match self {
            Self::Program(child) => child.wait().await.map_or(255, exit_code),
            Self::Workload { .. } => std::future::pending().await,
        }
    }

    async fn end(self, grace: Duration) -> i32 {
        let Self::Program(mut child) = self else { return 0 };
        if let Some(pid) = child.id() {
            if let Err(error) = signal(pid, Signal::SIGTERM) {
                tracing::warn!(pid, %error, "a container was not asked to end");
            }
            if let Ok(status) = timeout(grace, child.wait()).await {
                return status.map_or(255, exit_code);
            }
            if let Err(error) = child.start_kill() {
                tracing::warn!(pid, %error, "a container was not killed");
            }
        }
        child.wait().await.map_or(255, exit_code)
    }
}

/// Returns the grace period once the container is told to end. A dropped sender is a Pod that is gone: no grace.
async fn stopped(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    stop.wait_for(Option::is_some).await.ok().and_then(|grace| *grace).unwrap_or_default()
}

async fn ask_for_ever(context: Arc<NodeContext>, plan: Plan, liveness: bool, verdicts: mpsc::Sender<Verdict>) {
    sleep(if liveness { plan.delay.max(plan.period) } else { plan.delay }).await;
    let mut failures = 0;
    let mut ever = false;
    loop {
        let (question, netns) = (plan.clone(), context.netns.clone());
        let answer = tokio::task::spawn_blocking(move || question.ask(&netns)).await;
        let answer = answer.unwrap_or_else(|error| Err(error.to_string()));
        let verdict = match answer {
            Ok(()) => {
                failures = 0;
                ever = true;
                Verdict::Ready(true)
            }
            Err(reason) => {
                failures += 1;
                tracing::debug!(node = context.name, reason, "probe");
                match (failures >= plan.failures, liveness) {
                    (true, true) => Verdict::Dead(reason),
                    (true, false) => Verdict::Ready(false),
                    (false, _) => Verdict::Ready(ever),
                }
            }
        };
        let wanted = !liveness || matches!(verdict, Verdict::Dead(_));
        if wanted && verdicts.send(verdict).await.is_err() {
            return;
        }
        sleep(if ever || liveness { plan.period } else { EAGER.min(plan.period) }).await;
    }
}

/// The last part of an image's repository: `l2lb` of `ghcr.io/l2lb/l2lb:v1@sha256:…`.
fn image_name(image: &str) -> &str {
    let repository = image.split('@').next().unwrap_or_default();
    let last = repository.rsplit('/').next().unwrap_or_default();
    last.split(':').next().unwrap_or_default()
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(255)
}

fn now() -> Time {
    Time(k8s_openapi::jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_image() {
        for image in ["l2lb", "ghcr.io/l2lb/l2lb:v1", "localhost:5000/l2lb@sha256:00", "a.b/c/l2lb:1@sha256:00"] {
            assert_eq!(image_name(image), "l2lb", "{image}");
        }
        assert_eq!(image_name("registry.k8s.io/e2e-test-images/agnhost:2.57"), "agnhost");
    }
}
