//! The CRI's RuntimeService. Source: k8s.io/cri-api, runtime/v1/api.proto.

use std::sync::Arc;
use std::time::Duration;

use cri::RuntimeService;
use cri::v1::*;
use futures::StreamExt;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::pieces::pieces;
use super::{info, stats, to_its_end};
use crate::container::{self, exec_sync, remove, start, stop, update};
use crate::error::Error;
use crate::flight::{Flights, patience};
use crate::record::now;
use crate::sandbox;
use crate::sandbox::record::name as pod_name;
use crate::shim::Shim;
use crate::stats::descriptors;
use crate::stream::Urls;
use crate::trace::Stages;

/// What the kubelet and people call this runtime.
const NAME: &str = "bosun";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The version of the CRI that is served.
const API_VERSION: &str = "v1";
/// The version of the kubelet's runtime API that the request and its answer speak of.
const KUBE_API_VERSION: &str = "0.1.0";

type Answer<T> = Result<Response<T>, Status>;

/// Serves the runtime.
pub struct RuntimeServer {
    shim: Arc<Shim>,
    urls: Urls,
    sandboxes: Flights<String, Made>,
    containers: Flights<String, Made>,
}

/// The id of what was made.
type Made = Result<String, Status>;

impl RuntimeServer {
    pub fn new(shim: Arc<Shim>, urls: Urls) -> Self {
        Self { shim, urls, sandboxes: Flights::default(), containers: Flights::default() }
    }

    fn sandboxes(&self, filter: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
        let all = self.shim.sandboxes.all().into_iter();
        all.map(|one| sandbox::status::summary(&one.record, one.phase()))
            .filter(|one| sandbox::status::matches(filter, one))
            .collect()
    }

    fn containers(&self, filter: Option<&ContainerFilter>) -> Vec<Container> {
        let all = self.shim.containers.all().into_iter();
        all.map(|one| container::status::summary(&one.record(), &one.state()))
            .filter(|one| container::status::matches(filter, one))
            .collect()
    }

    async fn network_condition(&self) -> RuntimeCondition {
        condition("NetworkReady", "NetworkPluginNotReady", self.shim.network.status().await.err())
    }
}

fn condition(kind: &str, reason: &str, fault: Option<String>) -> RuntimeCondition {
    RuntimeCondition {
        r#type: kind.to_owned(),
        status: fault.is_none(),
        reason: fault.as_ref().map_or_else(String::new, |_| reason.to_owned()),
        message: fault.unwrap_or_default(),
    }
}

/// A time in seconds; what is negative is none.
fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[tonic::async_trait]
impl RuntimeService for RuntimeServer {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: KUBE_API_VERSION.to_owned(),
            runtime_name: NAME.to_owned(),
            runtime_version: VERSION.to_owned(),
            runtime_api_version: API_VERSION.to_owned(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let patience = patience(request.metadata());
        let request = request.into_inner();
        let metadata = request.config.as_ref().and_then(|config| config.metadata.clone()).unwrap_or_default();
        let shim = self.shim.clone();
        let name = pod_name(&metadata);
        let stages = Stages::new("RunPodSandbox", &name);
        let flight = self.sandboxes.join_to_its_end(name, stages, |stages| async move {
            sandbox::run::run(&shim, request, &stages).await.map_err(Status::from)
        });
        let pod_sandbox_id = flight.answer_within(patience).await?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        let (shim, id) = (self.shim.clone(), request.into_inner().pod_sandbox_id);
        to_its_end(async move { sandbox::stop::stop(&shim, &id).await }).await?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        let (shim, id) = (self.shim.clone(), request.into_inner().pod_sandbox_id);
        to_its_end(async move { sandbox::stop::remove(&shim, &id).await }).await?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        let PodSandboxStatusRequest { pod_sandbox_id, verbose } = request.into_inner();
        let found = self.shim.sandboxes.find(&pod_sandbox_id)?;
        let life = found.life();
        let info = if verbose {
            let pause = sandbox::pause::pid(&self.shim, &found.record).await?;
            info::of_sandbox(&self.shim, &life, pause)
        } else {
            Default::default()
        };
        let containers = self.shim.containers_of(&found.record.id);
        let of = |one: &Arc<container::Container>| container::status::status(&one.record(), &one.state());
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(sandbox::status::status(&found.record, &life)),
            info,
            containers_statuses: containers.iter().map(of).collect(),
            timestamp: now(),
        }))
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        let items = self.sandboxes(request.into_inner().filter.as_ref());
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxesResponse>> {
        let all = self.sandboxes(request.into_inner().filter.as_ref());
        Ok(Response::new(pieces(all, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let patience = patience(request.metadata());
        let request = request.into_inner();
        let metadata = request.config.as_ref().and_then(|config| config.metadata.clone()).unwrap_or_default();
        // By the full id, so that one who abbreviates joins one who does not.
        let sandbox = self.shim.sandboxes.find(&request.pod_sandbox_id)?.record.id.clone();
        let shim = self.shim.clone();
        let name = container::record::name(&sandbox, &metadata);
        let stages = Stages::new("CreateContainer", &name);
        let flight = self.containers.join_to_its_end(name, stages, |stages| async move {
            container::create::create(&shim, request, &stages).await.map_err(Status::from)
        });
        let container_id = flight.answer_within(patience).await?;
        Ok(Response::new(CreateContainerResponse { container_id }))
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        let (shim, id) = (self.shim.clone(), request.into_inner().container_id);
        to_its_end(async move { start::start(&shim, &id).await }).await?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let StopContainerRequest { container_id, timeout } = request.into_inner();
        stop::stop(&self.shim, &container_id, seconds(timeout)).await?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        let (shim, id) = (self.shim.clone(), request.into_inner().container_id);
        to_its_end(async move { remove::remove(&shim, &id).await }).await?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let containers = self.containers(request.into_inner().filter.as_ref());
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<BoxStream<StreamContainersResponse>> {
        let all = self.containers(request.into_inner().filter.as_ref());
        Ok(Response::new(pieces(all, |containers| StreamContainersResponse { containers })))
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let ContainerStatusRequest { container_id, verbose } = request.into_inner();
        let found = self.shim.containers.find(&container_id)?;
        let (record, state) = (found.record(), found.state());
        let info = match verbose {
            true => info::of_container(&self.shim, &record, &state).await?,
            false => Default::default(),
        };
        Ok(Response::new(ContainerStatusResponse { status: Some(container::status::status(&record, &state)), info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let UpdateContainerResourcesRequest { container_id, linux, .. } = request.into_inner();
        let (shim, resources) = (self.shim.clone(), linux.unwrap_or_default());
        to_its_end(async move { update::update(&shim, &container_id, &resources).await }).await?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        // The pod's own cgroup is the kubelet's, who has changed it before it tells us.
        self.shim.sandboxes.find(&request.into_inner().pod_sandbox_id)?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let (found, _) = container::exec::target(&self.shim, &request.into_inner().container_id)?;
        if let Some(io) = found.io() {
            io.reopen_log().await.map_err(|error| Status::internal(error.to_string()))?;
        }
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        Ok(Response::new(exec_sync::exec_sync(&self.shim, request.into_inner()).await?))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let mut request = request.into_inner();
        let (found, _) = container::exec::target(&self.shim, &request.container_id)?;
        request.container_id = found.record().id.clone();
        let url = self.urls.exec(request).map_err(Error::from)?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let mut request = request.into_inner();
        let (found, _) = container::exec::target(&self.shim, &request.container_id)?;
        request.container_id = found.record().id.clone();
        let url = self.urls.attach(request).map_err(Error::from)?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let mut request = request.into_inner();
        let found = self.shim.sandboxes.find(&request.pod_sandbox_id)?;
        if found.phase() != sandbox::record::Phase::Ready {
            return Err(Status::failed_precondition(format!("pod sandbox {} has stopped", found.record.id)));
        }
        request.pod_sandbox_id = found.record.id.clone();
        let url = self.urls.port_forward(request).map_err(Error::from)?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        let stats = stats::of_container(&self.shim, &request.into_inner().container_id).await?;
        Ok(Response::new(ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = stats::of_containers(&self.shim, request.into_inner().filter.as_ref()).await?;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<BoxStream<StreamContainerStatsResponse>> {
        let all = stats::of_containers(&self.shim, request.into_inner().filter.as_ref()).await?;
        Ok(Response::new(pieces(all, |container_stats| StreamContainerStatsResponse { container_stats })))
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        let stats = stats::of_sandbox(&self.shim, &request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let stats = stats::of_sandboxes(&self.shim, request.into_inner().filter.as_ref()).await?;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxStatsResponse>> {
        let all = stats::of_sandboxes(&self.shim, request.into_inner().filter.as_ref()).await?;
        Ok(Response::new(pieces(all, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats })))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let pod_metrics = stats::metrics(&self.shim).await?;
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxMetricsResponse>> {
        let all = stats::metrics(&self.shim).await?;
        Ok(Response::new(pieces(all, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics })))
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        // The pod CIDR is the network configuration's own matter.
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let (version, network) = futures::join!(self.shim.containerd.version(), self.network_condition());
        let fault = version.as_ref().err().map(ToString::to_string);
        let conditions = vec![condition("RuntimeReady", "ContainerdNotReady", fault), network];
        let info = match request.into_inner().verbose {
            true => info::of_shim(&self.shim, version.as_deref().unwrap_or_default()),
            false => Default::default(),
        };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info,
            runtime_handlers: info::handlers(&self.shim.settings.handlers),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: true,
            }),
        }))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let driver = if self.shim.host.systemd_cgroup { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
        let linux = Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() });
        Ok(Response::new(RuntimeConfigResponse { linux }))
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        let (shim, request) = (self.shim.clone(), request.into_inner());
        to_its_end(async move { container::checkpoint::checkpoint(&shim, &request).await }).await?;
        Ok(Response::new(CheckpointContainerResponse {}))
    }

    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<BoxStream<ContainerEventResponse>> {
        Ok(Response::new(self.shim.events.listen().boxed()))
    }
}
