//! gRPC over a unix socket: HTTP/2 connections whose requests go to the service that their path names.

use std::convert::Infallible;
use std::time::Duration;

use cri::{ImageServiceServer, RuntimeServiceServer};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lifecycle::Stop;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::ServiceExt;

use super::image::ImageServer;
use super::runtime::RuntimeServer;

/// The kubelet asks for many things at once over one connection, and some answers take as long as a container lives.
const MAX_STREAMS: u32 = 16_384;
/// After an error of the listener, as for want of descriptors.
const AGAIN: Duration = Duration::from_millis(100);

/// The services of the CRI.
#[derive(Clone)]
pub struct Services {
    pub runtime: RuntimeServiceServer<RuntimeServer>,
    pub images: ImageServiceServer<ImageServer>,
}

impl Services {
    async fn call(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        if request.uri().path().starts_with("/runtime.v1.ImageService/") {
            self.images.oneshot(request).await
        } else {
            // It answers `Unimplemented` to what it does not know.
            self.runtime.oneshot(request).await
        }
    }
}

/// Accepts connections until `stop`; the connections then end with their last call. They are what is returned.
pub async fn serve(listener: UnixListener, services: Services, stop: &Stop) -> TaskTracker {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.stopped() => break,
        };
        match accepted {
            Ok((stream, _)) => drop(connections.spawn(connection(stream, services.clone(), stop.clone()))),
            Err(error) => {
                tracing::warn!("cannot accept a connection to the CRI: {error}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    connections.close();
    connections
}

async fn connection(stream: UnixStream, services: Services, stop: Stop) {
    let service = hyper::service::service_fn(move |request| services.clone().call(request));
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(MAX_STREAMS);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!("a connection to the CRI broke: {error}");
    }
}
