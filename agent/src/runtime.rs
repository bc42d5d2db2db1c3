//! A client of the container runtime: the CRI's calls over its unix socket, each with a deadline.

use cri::v1::*;
use cri::{ImageServiceClient, RuntimeServiceClient};
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tonic::transport::{Channel, Endpoint, Uri};

/// Pulls may be as long as they make progress; only the runtime can see that.
const PULL_DEADLINE: Duration = Duration::from_secs(3600);
/// The largest answer that is read, as in the kubelet: 16 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// Why a call to the container runtime failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("container runtime endpoint {endpoint:?}: {reason}")]
    Endpoint { endpoint: String, reason: String },
    /// The runtime does not answer.
    #[error("rpc error: code = Unavailable desc = {call}: {message}")]
    Unavailable { call: &'static str, message: String },
    #[error("rpc error: code = DeadlineExceeded desc = {call} took longer than {after:?}")]
    Deadline { call: &'static str, after: Duration },
    /// The runtime answered with an error.
    #[error("rpc error: code = {code:?} desc = {message}")]
    Failed { call: &'static str, code: tonic::Code, message: String },
}

impl RuntimeError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed { code: tonic::Code::NotFound, .. })
    }

    /// Whether the runtime does not know the call at all.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Failed { code: tonic::Code::Unimplemented, .. })
    }

    /// Whether the runtime itself is away, so that asking again later may do.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Deadline { .. })
    }

    /// What the runtime said, without the call and the code.
    pub fn message(&self) -> String {
        match self {
            Self::Failed { message, .. } | Self::Unavailable { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}

pub type Result<T> = std::result::Result<T, RuntimeError>;

/// The container runtime. Cloning shares the connection, which is made when first used and again after it broke.
#[derive(Clone, Debug)]
pub struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    deadline: Duration,
    name: Arc<OnceCell<String>>,
}

/// Calls whose request and answer pass through unchanged.
macro_rules! calls {
    ($($(#[$doc:meta])* $client:ident . $name:ident ( $request:ty ) -> $answer:ty;)*) => {$(
        $(#[$doc])*
        pub async fn $name(&self, request: $request) -> Result<$answer> {
            self.within(stringify!($name), self.deadline, self.$client.clone().$name(request)).await
        }
    )*};
}

impl Runtime {
    /// A client of `endpoint` (`unix:///path` or a path); nothing is connected yet.
    ///
    /// # Errors
    /// Where the endpoint is not a unix socket's.
    pub fn new(endpoint: &str, deadline: Duration) -> Result<Self> {
        let refused = |reason: &str| RuntimeError::Endpoint { endpoint: endpoint.into(), reason: reason.into() };
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(refused("only unix:///path is supported"));
        }
        let path = PathBuf::from(path);
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is never resolved: the connector knows where to go.
        let channel = Endpoint::from_static("http://runtime.invalid").connect_with_connector_lazy(connector);
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            deadline,
            name: Arc::default(),
        })
    }

    /// What the runtime calls itself, as `containerd`, which is asked once.
    ///
    /// # Errors
    /// What the runtime said.
    pub async fn name(&self) -> Result<String> {
        let ask = || async { Ok(self.version(VersionRequest::default()).await?.runtime_name) };
        self.name.get_or_try_init(ask).await.cloned()
    }

    async fn within<T>(
        &self,
        call: &'static str,
        after: Duration,
        answer: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(after, answer).await {
            Err(_) => Err(RuntimeError::Deadline { call, after }),
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(classify(call, &status)),
        }
    }

    calls! {
        runtime.version(VersionRequest) -> VersionResponse;
        runtime.status(StatusRequest) -> StatusResponse;
        runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        runtime.create_container(CreateContainerRequest) -> CreateContainerResponse;
        runtime.start_container(StartContainerRequest) -> StartContainerResponse;
        runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        runtime.list_containers(ListContainersRequest) -> ListContainersResponse;
        runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        runtime.exec(ExecRequest) -> ExecResponse;
        runtime.attach(AttachRequest) -> AttachResponse;
        runtime.port_forward(PortForwardRequest) -> PortForwardResponse;
        runtime.container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        runtime.update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        runtime.runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        images.list_images(ListImagesRequest) -> ListImagesResponse;
        images.image_status(ImageStatusRequest) -> ImageStatusResponse;
        images.remove_image(RemoveImageRequest) -> RemoveImageResponse;
        images.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    /// Pulls an image. The deadline is an hour: a large layer is not an error.
    ///
    /// # Errors
    /// What the runtime said.
    pub async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse> {
        self.within("pull_image", PULL_DEADLINE, self.images.clone().pull_image(request)).await
    }

    /// Runs a command in a container to its end, at most `request.timeout` seconds where that is set.
    ///
    /// # Errors
    /// `Deadline` where the command was still running, else what the runtime said.
    pub async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
        // The runtime enforces the command's own limit; ours only covers a runtime that does not answer.
        let after = match request.timeout {
            limit if limit > 0 => Duration::from_secs(limit.unsigned_abs()) + self.deadline,
            _ => PULL_DEADLINE,
        };
        self.within("exec_sync", after, self.runtime.clone().exec_sync(request)).await
    }

    /// Stops a container: its stop signal, SIGKILL after `request.timeout` seconds. Idempotent.
    ///
    /// # Errors
    /// What the runtime said.
    pub async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse> {
        let after = self.deadline + Duration::from_secs(request.timeout.max(0).unsigned_abs());
        self.within("stop_container", after, self.runtime.clone().stop_container(request)).await
    }

    /// The stream of container events, where the runtime serves it (`Unimplemented` elsewhere).
    ///
    /// # Errors
    /// What the runtime said.
    pub async fn container_events(&self) -> Result<tonic::Streaming<ContainerEventResponse>> {
        let call = self.runtime.clone();
        let mut call = call;
        self.within("get_container_events", self.deadline, call.get_container_events(GetEventsRequest {})).await
    }
}

fn classify(call: &'static str, status: &tonic::Status) -> RuntimeError {
    let message = status.message().to_string();
    match status.code() {
        tonic::Code::Unavailable => RuntimeError::Unavailable { call, message },
        code => RuntimeError::Failed { call, code, message },
    }
}
