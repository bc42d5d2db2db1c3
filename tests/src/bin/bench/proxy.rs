//! The service proxy: many services as objects, and one endpoint's change on its way into the kernel.

use crate::api::{client, fresh_namespace, send};
use crate::figures::spread;
use futures::{StreamExt, TryStreamExt};
use kernel::nftables::Generations;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

const NAMESPACE: &str = "bench-services";

/// Services of one to five endpoints, every tenth with node ports and every tenth with ClientIP affinity; endpoints have
/// addresses that nobody has.
pub async fn services(kubeconfig: &Path, numbers: Range<usize>) -> anyhow::Result<Value> {
    let count = numbers.len();
    let client = client(kubeconfig).await?;
    fresh_namespace(&client, NAMESPACE).await?;
    let begin = Instant::now();
    let base = format!("/api/v1/namespaces/{NAMESPACE}/services");
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
    futures::stream::iter(numbers)
        .map(async |number| {
            send(&client, "POST", &base, "application/json", &service(number)).await?;
            send(&client, "POST", &slices, "application/json", &slice(number)).await.map(drop)
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await?;
    Ok(json!({"services": count, "created_in_s": begin.elapsed().as_secs_f64()}))
}

/// Service `s-NUMBER`.
pub fn service(number: usize) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s-{number}")},
        "spec": {"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]}});
    match number % 10 {
        // There are not more node ports than that.
        3 if number < 20_000 => service["spec"]["type"] = "NodePort".into(),
        5 => service["spec"]["sessionAffinity"] = "ClientIP".into(),
        _ => {}
    }
    service
}

/// Its endpoints.
pub fn slice(number: usize) -> Value {
    let addresses: Vec<String> = (0..endpoints(number)).map(|endpoint| address(number, endpoint)).collect();
    slice_of(number, &addresses)
}

/// Service 0 with a second endpoint that no earlier change gave it, and that endpoint.
pub fn changed_slice(change: usize) -> (Value, String) {
    let fresh = format!("10.200.{}.{}", change / 250, change % 250 + 1);
    (slice_of(0, &[address(0, 0), fresh.clone()]), fresh)
}

fn endpoints(service: usize) -> usize {
    1 + service % 5
}

fn address(service: usize, endpoint: usize) -> String {
    format!("10.{}.{}.{}", 128 + endpoint, service / 250, service % 250 + 1)
}

fn slice_of(service: usize, addresses: &[String]) -> Value {
    let service = format!("s-{service}");
    let endpoints: Vec<Value> =
        addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "bench"}},
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

/// When the rules of this network namespace came to hold all endpoints of the last of `count` services: seconds since 1970.
pub fn programmed(count: usize, patience: Duration) -> anyhow::Result<Value> {
    let mut rules = Rules::open()?;
    let deadline = Instant::now() + patience;
    let last = address(count - 1, endpoints(count - 1) - 1);
    while Instant::now() < deadline {
        let at = rules.rest(deadline)?;
        if rules.hold(&last)? {
            return Ok(json!({"at": at.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64()}));
        }
        rules.change(deadline)?;
    }
    anyhow::bail!("no rule names {last} after {patience:?}")
}

/// Gives service 0 a new second endpoint, `changes` times, and waits for the rules of this namespace to change.
pub async fn endpoint(kubeconfig: &Path, changes: usize) -> anyhow::Result<Value> {
    let client = client(kubeconfig).await?;
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/s-0");
    let mut rules = Rules::open()?;
    let mut samples = Vec::new();
    let mut fresh = String::new();
    for change in 0..changes {
        tokio::time::sleep(Duration::from_millis(1500)).await; // past a proxy's minimum between two syncs
        let (slice, added) = changed_slice(change);
        fresh = added;
        let body = json!({"endpoints": slice["endpoints"]});
        rules.look()?;
        let begin = Instant::now();
        send(&client, "PATCH", &path, "application/json", &body).await?;
        rules.change(begin + Duration::from_secs(30))?;
        samples.push(begin.elapsed());
    }
    rules.rest(Instant::now() + Duration::from_secs(30))?;
    anyhow::ensure!(rules.hold(&fresh)?, "the rules changed {changes} times and do not name {fresh}");
    Ok(json!({"changed_endpoint": spread(&mut samples)}))
}

/// The rules of this network namespace, watched by their generation: a listing of ten thousand services takes as long as
/// writing them and would be measured too.
struct Rules {
    generations: Generations,
    known: u32,
    since: SystemTime,
}

impl Rules {
    /// So long without a change, and a proxy has nothing left to write.
    const REST: Duration = Duration::from_millis(500);
    const PAUSE: Duration = Duration::from_micros(500);

    fn open() -> anyhow::Result<Self> {
        let mut generations = Generations::open()?;
        let known = generations.current()?;
        Ok(Self { generations, known, since: SystemTime::now() })
    }

    /// Whether they changed since the last look.
    fn look(&mut self) -> anyhow::Result<bool> {
        let now = self.generations.current()?;
        let changed = now != self.known;
        if changed {
            (self.known, self.since) = (now, SystemTime::now());
        }
        Ok(changed)
    }

    fn change(&mut self, deadline: Instant) -> anyhow::Result<()> {
        while !self.look()? {
            anyhow::ensure!(Instant::now() < deadline, "no rule changed in time");
            std::thread::sleep(Self::PAUSE);
        }
        Ok(())
    }

    /// When they were last changed, once they rest.
    fn rest(&mut self, deadline: Instant) -> anyhow::Result<SystemTime> {
        while self.look()? || self.since.elapsed().unwrap_or_default() < Self::REST {
            anyhow::ensure!(Instant::now() < deadline, "the rules kept changing");
            std::thread::sleep(Self::PAUSE);
        }
        Ok(self.since)
    }

    fn hold(&self, text: &str) -> anyhow::Result<bool> {
        // nft does not show what rules of iptables lead to.
        let shown = kernel::process::run("nft", &["list", "ruleset"])?.contains(text);
        Ok(shown || kernel::process::run("iptables-nft-save", &["-t", "nat"])?.contains(text))
    }
}
