//! An upgrade that is passed through: both connections' bytes become each other's.

use api::status::Status;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy, split};

use super::headers;
use super::kubelet::{Kubelet, Target, Upgraded};
use crate::ports::Body;

/// Repeats the client's upgrade towards the kubelet and connects the two.
///
/// # Errors
/// Where the kubelet cannot be reached, or answers as no upgrade is answered.
pub async fn serve(
    kubelet: &Kubelet,
    target: &Target,
    path: &str,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    if headers::upgrade(request.headers()).is_none() {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let wanted = headers::for_upgrade(request.headers());
    match kubelet.upgrade(target, request.method().clone(), path, wanted).await? {
        Upgraded::Yes(answer, backend) => {
            let client = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                match client.await {
                    Ok(client) => join(TokioIo::new(client), backend).await,
                    Err(error) => tracing::debug!("the client's connection was not upgraded: {error}"),
                }
            });
            let mut response = answer.map(|()| super::kubelet::empty());
            response.headers_mut().remove(header::CONTENT_LENGTH);
            Ok(response)
        }
        Upgraded::No(answer) => passed_on(answer),
    }
}

/// A kubelet's refusal, as it is; clients print its text.
///
/// # Errors
/// Where it is no refusal.
pub fn passed_on(answer: Response<hyper::body::Incoming>) -> Result<Response<Body>, Status> {
    let status = answer.status();
    if status < StatusCode::BAD_REQUEST {
        return Err(Status::internal(format!("invalid upgrade response: status code {}", status.as_u16())));
    }
    let kept = headers::forwarded(answer.headers());
    let mut response = answer.map(|body| body.map_err(Into::into).boxed_unsync());
    *response.headers_mut() = kept;
    Ok(response)
}

/// Copies both ways until either side ends; that ends the other.
async fn join<A, B>(client: A, backend: B)
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let (mut from_client, mut to_client) = split(client);
    let (mut from_backend, mut to_backend) = split(backend);
    let ended = tokio::select! {
        ended = copy(&mut from_client, &mut to_backend) => ended,
        ended = copy(&mut from_backend, &mut to_client) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!("a stream broke off: {error}");
    }
    let closing = async { tokio::join!(to_client.shutdown(), to_backend.shutdown()) };
    let _ = tokio::time::timeout(super::pump::LINGER, closing).await;
}
