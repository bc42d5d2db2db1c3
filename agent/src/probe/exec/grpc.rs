//! Probes by gRPC health checking (grpc.health.v1.Health/Check).

use std::net::IpAddr;
use std::time::Duration;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use super::{Outcome, host_port};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

const SERVING: i32 = 1;

pub(super) async fn probe(address: IpAddr, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = host_port(&address.to_string(), port);
    let unreachable = || {
        Outcome::Failure(format!(
            "timeout: failed to connect service {address:?} within {timeout:?}: context deadline exceeded"
        ))
    };
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else { return unreachable() };
    let started = tokio::time::Instant::now();
    let endpoint = endpoint.user_agent("kube-probe/1.37").map_err(|e| e.to_string());
    let connected = match endpoint {
        Ok(endpoint) => tokio::time::timeout(timeout, endpoint.connect()).await,
        Err(reason) => return Outcome::Unknown(reason),
    };
    let Ok(Ok(channel)) = connected else { return unreachable() };
    let left = timeout.saturating_sub(started.elapsed());
    match tokio::time::timeout(left, check(channel, service)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {timeout:?}")),
    }
}

async fn check(channel: tonic::transport::Channel, service: &str) -> Outcome {
    let mut client = tonic::client::Grpc::new(channel);
    if let Err(error) = client.ready().await {
        return Outcome::Failure(format!("error: health rpc probe failed: {error}"));
    }
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = Request::new(HealthCheckRequest { service: service.into() });
    match client.unary(request, path, codec).await {
        Ok(answer) if answer.get_ref().status == SERVING => Outcome::Success,
        Ok(answer) => {
            Outcome::Failure(format!("service unhealthy (responded with {:?})", word(answer.get_ref().status)))
        }
        Err(status) if status.code() == Code::Unimplemented => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) => Outcome::Failure(format!(
            "error: health rpc probe failed: rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        )),
    }
}

fn word(status: i32) -> &'static str {
    match status {
        SERVING => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}
