//! The API server: writes, lists, watches.

use crate::figures::spread;
use anyhow::{Context, ensure};
use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const NAMESPACE: &str = "bench";

/// A client with connections of its own.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Sends `body` and returns the answer's size in bytes.
pub async fn send(client: &Client, method: &str, path: &str, accept: &str, body: &Value) -> anyhow::Result<usize> {
    let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
    let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("accept", accept)
        .header("content-type", content)
        .body(Body::from(bytes))?;
    let answer = client.send(request).await.with_context(|| format!("{method} {path}"))?;
    let status = answer.status();
    let mut body = answer.into_body();
    let (mut size, mut head) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            size += data.len();
            if !status.is_success() && head.len() < 400 {
                head.extend_from_slice(&data);
            }
        }
    }
    ensure!(status.is_success(), "{method} {path}: {status}: {}", String::from_utf8_lossy(&head));
    Ok(size)
}

pub async fn fresh_namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    match send(client, "POST", "/api/v1/namespaces", "application/json", &body).await {
        Err(error) if !format!("{error:#}").contains("409") => Err(error),
        _ => Ok(()),
    }
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"payload": "x".repeat(1000)}})
}

/// Creates of 1 kB config maps by `clients` at once, for `seconds`.
pub async fn writes(kubeconfig: &Path, clients: usize, seconds: u64) -> anyhow::Result<Value> {
    fresh_namespace(&client(kubeconfig).await?, NAMESPACE).await?;
    let run = std::process::id();
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..clients {
        let client = client(kubeconfig).await?;
        tasks.spawn(async move {
            let mut samples = Vec::new();
            while Instant::now() < until {
                let body = config_map(&format!("w-{run}-{number}-{}", samples.len()));
                let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
                let start = Instant::now();
                send(&client, "POST", &path, "application/json", &body).await?;
                samples.push(start.elapsed());
            }
            anyhow::Ok(samples)
        });
    }
    let mut samples = Vec::new();
    while let Some(done) = tasks.join_next().await {
        samples.extend(done??);
    }
    let rate = samples.len() as f64 / seconds as f64;
    Ok(json!({"clients": clients, "writes_per_s": rate.round(), "latency": spread(&mut samples)}))
}

/// Fills a namespace up to `objects` and lists it.
pub async fn list(kubeconfig: &Path, objects: usize) -> anyhow::Result<Value> {
    let client = client(kubeconfig).await?;
    let namespace = "bench-list";
    fresh_namespace(&client, namespace).await?;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let names: Vec<String> = (0..objects).map(|n| format!("c-{n:06}")).collect();
    futures::stream::iter(names)
        .map(|name| {
            let (client, path) = (client.clone(), path.clone());
            async move { send(&client, "POST", &path, "application/json", &config_map(&name)).await }
        })
        .buffer_unordered(32)
        .filter_map(async |done| done.err().filter(|e| !format!("{e:#}").contains("409")))
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .next()
        .map_or(Ok(()), Err)?;
    let mut answer = json!({"objects": objects});
    for (key, accept) in [("json", "application/json"), ("protobuf", "application/vnd.kubernetes.protobuf")] {
        let (mut samples, mut bytes) = (Vec::new(), 0);
        for _ in 0..7 {
            let start = Instant::now();
            bytes = send(&client, "GET", &path, accept, &Value::Null).await?;
            samples.push(start.elapsed());
        }
        answer[key] = json!({"bytes": bytes, "time": spread(&mut samples)});
    }
    Ok(answer)
}

/// Opens `clients` watches and writes; a sample is the time from the write's begin to the last watch seeing it.
pub async fn watch(kubeconfig: &Path, clients: usize, writes: usize) -> anyhow::Result<Value> {
    let writer = client(kubeconfig).await?;
    let namespace = format!("bench-watch-{}", std::process::id());
    fresh_namespace(&writer, &namespace).await?;
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let mut watches = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let (client, seen) = (client(kubeconfig).await?, seen.clone());
        let path = format!("/api/v1/namespaces/{namespace}/configmaps?watch=true&resourceVersion=0");
        watches.spawn(async move { follow(&client, &path, &seen).await });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    while arrivals.try_recv().is_ok() {} // the root CA config map
    let mut samples = Vec::new();
    for number in 0..writes {
        let start = Instant::now();
        send(&writer, "POST", &path, "application/json", &config_map(&format!("e-{number}"))).await?;
        for _ in 0..clients {
            let waited = tokio::time::timeout(Duration::from_secs(10), arrivals.recv()).await;
            waited.context("a watch did not see a write within 10 s")?.context("all watches ended")?;
        }
        samples.push(start.elapsed());
    }
    watches.abort_all();
    Ok(json!({"clients": clients, "to_the_last": spread(&mut samples)}))
}

/// Sends one message for each line of a watch.
async fn follow(client: &Client, path: &str, seen: &tokio::sync::mpsc::UnboundedSender<()>) -> anyhow::Result<()> {
    let request = Request::get(path).header("accept", "application/json").body(Body::empty())?;
    let mut body = client.send(request).await?.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            for _ in data.iter().filter(|b| **b == b'\n') {
                seen.send(())?;
            }
        }
    }
    Ok(())
}
