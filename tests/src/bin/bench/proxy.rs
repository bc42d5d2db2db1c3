//! The service proxy: many services as objects, and one endpoint's change on its way into the kernel.

use crate::api::{client, fresh_namespace, send};
use crate::figures::spread;
use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const NAMESPACE: &str = "bench-services";

/// Two endpoints for each service; addresses that nobody has.
pub async fn services(kubeconfig: &Path, count: usize) -> anyhow::Result<Value> {
    let client = client(kubeconfig).await?;
    fresh_namespace(&client, NAMESPACE).await?;
    let begin = Instant::now();
    let base = format!("/api/v1/namespaces/{NAMESPACE}/services");
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
    futures::stream::iter(0..count)
        .map(async |number| {
            let name = format!("s-{number}");
            let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"ports": [{"port": 80, "protocol": "TCP"}]}});
            send(&client, "POST", &base, "application/json", &service).await?;
            let slice = slice(&name, &[address(number, 0), address(number, 1)]);
            send(&client, "POST", &slices, "application/json", &slice).await.map(drop)
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await?;
    Ok(json!({"services": count, "created_in_s": begin.elapsed().as_secs_f64()}))
}

fn address(service: usize, endpoint: usize) -> String {
    format!("10.{}.{}.{}", 128 + endpoint, service / 250, service % 250 + 1)
}

fn slice(service: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "bench"}},
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

/// Gives service 0 a new second endpoint and waits until a rule or set of this namespace names it.
pub async fn endpoint(kubeconfig: &Path, changes: usize) -> anyhow::Result<Value> {
    let client = client(kubeconfig).await?;
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/s-0");
    let mut watch = Monitor::start()?;
    let patch = async |fresh: &str| {
        let body = json!({"endpoints": slice("s-0", &[address(0, 0), fresh.to_owned()])["endpoints"]});
        send(&client, "PATCH", &path, "application/json", &body).await.map(drop)
    };
    // nft reads the whole table before it begins to watch, and says nothing when it does: changes until one is seen.
    for round in 1..=20 {
        let fresh = format!("10.201.0.{round}");
        patch(&fresh).await?;
        match watch.wait_for(&fresh, Instant::now(), Duration::from_secs(2)) {
            Err(error) if round == 20 => return Err(error),
            Err(_) => {}
            Ok(_) => break,
        }
    }
    let mut samples = Vec::new();
    for change in 0..changes {
        let fresh = format!("10.200.{}.{}", change / 250, change % 250 + 1);
        let begin = Instant::now();
        patch(&fresh).await?;
        samples.push(watch.wait_for(&fresh, begin, Duration::from_secs(30))?);
        tokio::time::sleep(Duration::from_millis(1500)).await; // past a proxy's minimum between two syncs
    }
    Ok(json!({"changed_endpoint": spread(&mut samples)}))
}

/// `nft monitor`, which prints a change as soon as the kernel has taken it: unlike a listing of ten thousand
/// services it costs nothing beside what is measured.
struct Monitor {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<(Instant, String)>,
}

impl Monitor {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new("stdbuf")
            .args(["-oL", "nft", "monitor", "new"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .context("start nft monitor")?;
        let output = child.stdout.take().context("nft monitor has no output")?;
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(output)).map_while(Result::ok) {
                if send.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn wait_for(&mut self, text: &str, begin: Instant, patience: Duration) -> anyhow::Result<Duration> {
        loop {
            let (at, line) = self
                .lines
                .recv_timeout(patience)
                .with_context(|| format!("no rule names {text} {patience:?} after the change"))?;
            if line.contains(text) {
                return Ok(at.duration_since(begin));
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
