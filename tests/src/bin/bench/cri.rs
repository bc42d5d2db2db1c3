//! A CRI server as the kubelet uses it: pods one after the other, pods together, and a node full of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::cri::v1::*;
use ::cri::{ImageServiceClient, RuntimeServiceClient};
use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::figures::spread;
use crate::memory::pss_mb;

pub struct Load {
    pub image: String,
    pub cgroup_parent: String,
    pub logs: PathBuf,
    /// The server, and what else belongs to it.
    pub pids: Vec<u32>,
    pub singles: usize,
    pub together: usize,
    pub memory_at: usize,
    pub list_at: usize,
}

/// Pods that are not counted: the first has the pause image unpacked, and programs read from the disk.
const WARM_UP: usize = 3;
/// Pods that are started at a time where the node is filled and nothing is timed.
const AT_A_TIME: usize = 6;
const LISTS: usize = 100;
/// Memory is looked at when what the starts needed may have been given back.
const SETTLE: Duration = Duration::from_secs(20);
/// A program that has just begun may not know its stop signal yet, and the stop would then last until SIGKILL.
const BEGIN: Duration = Duration::from_millis(100);
const CONDITIONS: [&str; 2] = ["RuntimeReady", "NetworkReady"];
const LIMIT: Duration = Duration::from_secs(60);
/// What the kubelet takes.
const MESSAGE: usize = 16 << 20;

pub async fn measure(socket: &Path, load: &Load) -> anyhow::Result<Value> {
    let bench = Bench::connect(socket, load).await?;
    let idle = memory(&load.pids)?;
    for number in 0..WARM_UP {
        bench.life(&format!("warm-{number}")).await?;
    }
    let mut lives = Vec::new();
    for number in 0..load.singles {
        lives.push(bench.life(&format!("single-{number}")).await?);
    }
    let begun = Instant::now();
    let pods = bench.fill("many", load.together, load.together).await?;
    let all = begun.elapsed();
    let mut many: Vec<Duration> = pods.into_iter().map(|(_, took)| took).collect();

    bench.fill("memory", load.memory_at.saturating_sub(load.together), AT_A_TIME).await?;
    tokio::time::sleep(SETTLE).await;
    let full = memory(&load.pids)?;
    bench.fill("list", load.list_at.saturating_sub(load.memory_at.max(load.together)), AT_A_TIME).await?;
    let (mut lists, pods) = bench.lists().await?;

    let mut figures = json!({
        "together": spread(&mut many),
        "together_all_s": all.as_secs_f64(),
        "pss_idle_mb": idle,
        "pss_mb": full,
        "pss_pods": load.memory_at.max(load.together),
        "list": spread(&mut lists),
        "list_pods": pods,
    });
    for (at, step) in STEPS.iter().enumerate() {
        let mut samples: Vec<Duration> = lives.iter().map(|life| life[at]).collect();
        figures[step] = spread(&mut samples);
    }
    let mut starts: Vec<Duration> = lives.iter().map(|life| life[..3].iter().sum()).collect();
    figures["start_sum"] = spread(&mut starts);
    Ok(figures)
}

/// PSS in MB of the first process, and of all.
fn memory(pids: &[u32]) -> anyhow::Result<Value> {
    let mut each = Vec::new();
    for pid in pids {
        let process = PathBuf::from(format!("/proc/{pid}"));
        each.push(pss_mb(&process).with_context(|| format!("read the memory of process {pid}: has it ended?"))?);
    }
    let rounded = |mb: f64| (mb * 10.0).round() / 10.0;
    Ok(json!({"server": rounded(each.first().copied().unwrap_or_default()), "all": rounded(each.iter().sum())}))
}

/// The calls of a pod's life, in their order.
const STEPS: [&str; 8] = [
    "run_pod_sandbox",
    "create_container",
    "start_container",
    "exec_sync",
    "stop_container",
    "stop_pod_sandbox",
    "remove_container",
    "remove_pod_sandbox",
];

struct Bench<'a> {
    runtime: RuntimeServiceClient<Channel>,
    load: &'a Load,
    image: ImageSpec,
}

struct Started {
    sandbox: String,
    container: String,
    took: [Duration; 3],
}

async fn timed<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<(T, Duration)> {
    let begun = Instant::now();
    let answer = call.await?.into_inner();
    Ok((answer, begun.elapsed()))
}

impl<'a> Bench<'a> {
    /// Waits until the server is ready for pods and has the image.
    async fn connect(socket: &Path, load: &'a Load) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect_lazy();
        let mut runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE);
        let begun = Instant::now();
        loop {
            let why = match runtime.status(StatusRequest::default()).await {
                Ok(answer) => {
                    let conditions = answer.into_inner().status.unwrap_or_default().conditions;
                    // containerd has more of them, which say what it would rather have.
                    match conditions.into_iter().find(|one| !one.status && CONDITIONS.contains(&one.r#type.as_str())) {
                        Some(condition) => condition.message,
                        None => break,
                    }
                }
                Err(status) => status.to_string(),
            };
            ensure!(begun.elapsed() < LIMIT, "{} is not ready after {LIMIT:?}: {why}", socket.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let image = ImageSpec { image: load.image.clone(), ..ImageSpec::default() };
        let asked = ImageStatusRequest { image: Some(image.clone()), verbose: false };
        let known = ImageServiceClient::new(channel).image_status(asked).await?.into_inner().image;
        let id = known.with_context(|| format!("the server has no image {}", load.image))?.id;
        // As the kubelet does: it asks by the id.
        Ok(Self { runtime, load, image: ImageSpec { image: id, user_specified_image: load.image.clone(), ..image } })
    }

    /// A pod from its beginning to its end, as [`STEPS`].
    async fn life(&self, name: &str) -> anyhow::Result<[Duration; STEPS.len()]> {
        let Started { sandbox, container, took: [run, create, start] } = self.start(name).await?;
        let mut runtime = self.runtime.clone();
        let cmd = ["/echo", "print", "hello"].map(str::to_owned).into();
        let exec = ExecSyncRequest { container_id: container.clone(), cmd, timeout: 10 };
        let (said, exec) = timed(runtime.exec_sync(exec)).await?;
        ensure!(said.stdout == b"hello\n" && said.exit_code == 0, "ExecSync: {said:?}");
        tokio::time::sleep(BEGIN).await;
        let stop = StopContainerRequest { container_id: container.clone(), timeout: 10 };
        let (_, stop) = timed(runtime.stop_container(stop)).await?;
        let stop_pod = StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
        let (_, stop_pod) = timed(runtime.stop_pod_sandbox(stop_pod)).await?;
        let (_, remove) = timed(runtime.remove_container(RemoveContainerRequest { container_id: container })).await?;
        let remove_pod = RemovePodSandboxRequest { pod_sandbox_id: sandbox };
        let (_, remove_pod) = timed(runtime.remove_pod_sandbox(remove_pod)).await?;
        Ok([run, create, start, exec, stop, stop_pod, remove, remove_pod])
    }

    async fn start(&self, name: &str) -> anyhow::Result<Started> {
        let mut runtime = self.runtime.clone();
        let config = self.pod(name);
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let (answer, run) = timed(runtime.run_pod_sandbox(request)).await.context("RunPodSandbox")?;
        let sandbox = answer.pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(self.container()),
            sandbox_config: Some(config),
        };
        let (answer, create) = timed(runtime.create_container(request)).await.context("CreateContainer")?;
        let container = answer.container_id;
        let request = StartContainerRequest { container_id: container.clone() };
        let (_, start) = timed(runtime.start_container(request)).await.context("StartContainer")?;
        Ok(Started { sandbox, container, took: [run, create, start] })
    }

    /// Starts `count` pods, some at a time, and returns what each took.
    async fn fill(&self, name: &str, count: usize, at_a_time: usize) -> anyhow::Result<Vec<(Started, Duration)>> {
        let one = async |number: usize| {
            let begun = Instant::now();
            let started = self.start(&format!("{name}-{number}")).await?;
            anyhow::Ok((started, begun.elapsed()))
        };
        futures::stream::iter(0..count).map(one).buffer_unordered(at_a_time.max(1)).try_collect().await
    }

    /// ListPodSandbox and ListContainers, as the kubelet asks for both every second; and the number of pods they show.
    async fn lists(&self) -> anyhow::Result<(Vec<Duration>, usize)> {
        let mut runtime = self.runtime.clone();
        let (mut samples, mut pods) = (Vec::new(), 0);
        for _ in 0..LISTS {
            let begun = Instant::now();
            let sandboxes = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
            let containers = runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers;
            samples.push(begun.elapsed());
            pods = sandboxes.len();
            ensure!(containers.len() == pods, "{} containers in {pods} pods", containers.len());
        }
        Ok((samples, pods))
    }

    fn pod(&self, name: &str) -> PodSandboxConfig {
        let labels = [("name", name), ("namespace", "bench"), ("uid", name)];
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.load.logs.join(name).display().to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".to_owned()],
                searches: vec!["svc.cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            labels: labels.map(|(key, value)| (format!("io.kubernetes.pod.{key}"), value.to_owned())).into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.load.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    fn container(&self) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(self.image.clone()),
            labels: [("io.kubernetes.container.name".to_owned(), "main".to_owned())].into(),
            log_path: "main_0.log".to_owned(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    cpu_shares: 2,
                    oom_score_adj: 1000,
                    ..LinuxContainerResources::default()
                }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        }
    }
}

/// What the kubelet asks for: a PID namespace for each container, the others for the pod.
fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}
