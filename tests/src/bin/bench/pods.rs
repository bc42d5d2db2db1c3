//! Pod start, as a user sees it: from the create to the condition Ready in a watch.

use crate::api::{client, fresh_namespace, send};
use crate::figures::spread;
use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

pub struct Load {
    pub image: String,
    pub singles: usize,
    pub together: usize,
    pub keep: bool,
}

const NAMESPACE: &str = "bench-pods";
const LIMIT: Duration = Duration::from_secs(180);

pub async fn measure(kubeconfig: &Path, load: &Load) -> anyhow::Result<Value> {
    let client = client(kubeconfig).await?;
    fresh_namespace(&client, NAMESPACE).await?;
    account(&client).await?;
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let mut singles = Vec::new();
    for number in 0..load.singles {
        singles.extend(start(&pods, &[format!("single-{number}")], &load.image).await?);
        clear(&pods).await?;
    }
    let names: Vec<String> = (0..load.together).map(|n| format!("many-{n}")).collect();
    let begin = Instant::now();
    let mut many = if names.is_empty() { Vec::new() } else { start(&pods, &names, &load.image).await? };
    let all = begin.elapsed();
    if !load.keep {
        clear(&pods).await?;
    }
    Ok(json!({"single": spread(&mut singles), "together": spread(&mut many), "all_ready_s": all.as_secs_f64()}))
}

/// Pods are refused until the namespace has its default account.
async fn account(client: &kube::Client) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default");
    for _ in 0..100 {
        if send(client, "GET", &path, "application/json", &Value::Null).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("namespace {NAMESPACE} has no default service account after 10 s")
}

async fn start(pods: &Api<Pod>, names: &[String], image: &str) -> anyhow::Result<Vec<Duration>> {
    let version = pods.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version;
    let watch = pods.watch(&WatchParams::default().timeout(290), &version.unwrap_or_default()).await?;
    let mut watch = std::pin::pin!(watch);
    let begin: BTreeMap<String, Instant> = futures::stream::iter(names.to_vec())
        .map(async |name| {
            let pod: Pod = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"containers": [{"name": "main", "image": image, "imagePullPolicy": "Never"}]},
            }))?;
            let at = Instant::now();
            pods.create(&PostParams::default(), &pod).await?;
            anyhow::Ok((name, at))
        })
        .buffer_unordered(names.len())
        .try_collect()
        .await?;
    let mut ready: BTreeMap<String, Instant> = BTreeMap::new();
    while ready.len() < names.len() {
        let event = tokio::time::timeout(LIMIT, watch.try_next()).await;
        let event = event.with_context(|| format!("{} of {} pods are ready", ready.len(), names.len()))??;
        if let Some(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event
            && is_ready(&pod)
            && let Some(name) = pod.metadata.name
        {
            ready.entry(name).or_insert_with(Instant::now);
        }
    }
    let times = begin.iter().filter_map(|(name, at)| ready.get(name).map(|end| end.duration_since(*at)));
    let times: Vec<Duration> = times.collect();
    ensure!(times.len() == names.len(), "the watch showed other pods than were created");
    Ok(times)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn clear(pods: &Api<Pod>) -> anyhow::Result<()> {
    pods.delete_collection(&DeleteParams::default().grace_period(1), &ListParams::default()).await?;
    let begin = Instant::now();
    while !pods.list_metadata(&ListParams::default()).await?.items.is_empty() {
        ensure!(begin.elapsed() < LIMIT, "pods are still there {} s after their deletion", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
