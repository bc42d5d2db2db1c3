//! A proxy in mode ipvs, alone in a machine of its own, whose kernel has IPVS and which is slow: services from an API server
//! of this process, and the kernel's own account of what is programmed.

use crate::figures::spread;
use crate::memory::pss_mb;
use crate::proxy::{changed_slice, service, slice};
use anyhow::{Context, ensure};
use kernel::ipvs::{Ipvs, Kernel, Server};
use kernel::process::run;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tests::api_server::{Objects, PORT};
use tests::bed::bosun;

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Side {
    Bosun,
    Upstream,
}

const NODE: &str = "192.0.2.1";
/// Beyond this a slow machine counts as stuck.
const PATIENCE: Duration = Duration::from_secs(1200);

pub fn measure(side: Side, count: usize, changes: usize) -> anyhow::Result<Value> {
    host()?;
    let objects = Arc::new(Objects::default());
    objects.put("nodes", node());
    for number in 0..count {
        objects.put("services", complete(number));
        objects.put("endpointslices", in_namespace(slice(number)));
    }
    objects.serve(TcpListener::bind(("127.0.0.1", PORT))?);
    let begin = now();
    let mut proxy = Proxy::start(side)?;
    let programmed = proxy.synced_since(begin)? - begin;
    let servers = Kernel::open()?.servers()?.len();
    let wanted = (0..count).map(|number| if is_node_port(number) { 2 } else { 1 }).sum::<usize>();
    ensure!(servers >= wanted, "{servers} virtual servers for {count} services, which need {wanted}");
    sleep(Duration::from_secs(10));
    let pss = pss_mb(Path::new(&format!("/proc/{}", proxy.child.id()))).context("the kernel tells no PSS")?;
    let mut samples = Vec::new();
    for change in 0..changes {
        sleep(Duration::from_millis(1500)); // past a proxy's minimum between two syncs
        let (changed, fresh) = changed_slice(change);
        let (wall, begin) = (now(), Instant::now());
        objects.put("endpointslices", in_namespace(changed));
        until_destination(&fresh, begin)?;
        samples.push(begin.elapsed());
        proxy.synced_since(wall)?;
    }
    Ok(json!({"programmed_s": (programmed * 1e3).round() / 1e3, "pss_mb": (pss * 10.0).round() / 10.0,
        "one_change": {"changed_endpoint": spread(&mut samples)}}))
}

/// An address for the node, and what IPVS needs.
fn host() -> anyhow::Result<()> {
    for module in ["dummy", "ip_vs", "ip_vs_rr"] {
        run("modprobe", &[module])?;
    }
    for words in [
        "link add eth0 type dummy",
        "link set eth0 up",
        "address add 192.0.2.1/24 dev eth0",
        "route add default via 192.0.2.9",
    ] {
        run("ip", &words.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

fn node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]}})
}

fn is_node_port(number: usize) -> bool {
    service(number)["spec"]["type"] == "NodePort"
}

fn vip(number: usize) -> String {
    format!("10.{}.{}.{}", 96 + number / 62_500, number / 250 % 250, number % 250 + 1)
}

/// A service with what an API server would have added.
fn complete(number: usize) -> Value {
    let mut service = in_namespace(service(number));
    let spec = &mut service["spec"];
    (spec["clusterIP"], spec["clusterIPs"]) = (vip(number).into(), json!([vip(number)]));
    (spec["ipFamilies"], spec["ipFamilyPolicy"]) = (json!(["IPv4"]), "SingleStack".into());
    spec["internalTrafficPolicy"] = "Cluster".into();
    spec["ports"][0]["targetPort"] = 8080.into();
    if is_node_port(number) {
        spec["externalTrafficPolicy"] = "Cluster".into();
        spec["ports"][0]["nodePort"] = (30_000 + number / 10).into();
    }
    if spec["sessionAffinity"] == "ClientIP" {
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
    } else {
        spec["sessionAffinity"] = "None".into();
    }
    service
}

fn in_namespace(mut object: Value) -> Value {
    object["metadata"]["namespace"] = "default".into();
    object
}

/// Waits until the server of service 0 has the destination.
fn until_destination(ip: &str, begin: Instant) -> anyhow::Result<()> {
    let server = Server { protocol: 6, address: format!("{}:80", vip(0)).parse()? };
    let mut ipvs = Kernel::open()?;
    while !ipvs.destinations(&server)?.iter().any(|found| found.address.ip().to_string() == ip) {
        ensure!(begin.elapsed() < PATIENCE, "no destination {ip} in time");
        sleep(Duration::from_micros(500));
    }
    Ok(())
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A proxy that ends with this value.
struct Proxy {
    child: Child,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn start(side: Side) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (kubeconfig, config) = (folder.path().join("kubeconfig"), folder.path().join("proxy.yaml"));
        let server = format!("http://127.0.0.1:{PORT}");
        let at = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        fs::write(&kubeconfig, at.to_string())?;
        let json = "application/json";
        let text = json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "ipvs", "clusterCIDR": "10.244.0.0/16", "hostnameOverride": "n1", "conntrack": {"maxPerCore": 0},
            "clientConnection": {"kubeconfig": kubeconfig, "contentType": json, "acceptContentTypes": json}});
        fs::write(&config, text.to_string())?;
        let mut command = match side {
            Side::Bosun => {
                let mut command = Command::new(bosun());
                command.arg("proxy");
                command
            }
            Side::Upstream => {
                let peers =
                    std::env::var_os("BOSUN_PEERS").map_or_else(|| "/var/cache/bosun/peers".into(), PathBuf::from);
                Command::new(peers.join("kube-proxy"))
            }
        };
        let log = folder.path().join("log");
        let said = File::create(&log)?;
        command.arg("--config").arg(config).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        Ok(Self { child: command.spawn().context("the proxy does not start")?, log, _folder: folder })
    }

    /// When the proxy ended its first sync after `begin`, by its own metric.
    fn synced_since(&mut self, begin: f64) -> anyhow::Result<f64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let at = metrics().ok().and_then(|text| last_sync(&text)).unwrap_or_default();
            if at > begin {
                return Ok(at);
            }
            let is_gone = self.child.try_wait()?.is_some();
            if is_gone || Instant::now() > deadline {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                let end: Vec<&str> = said.lines().rev().take(5).collect();
                anyhow::bail!("the proxy {}: {end:?}", if is_gone { "ended" } else { "does not sync" });
            }
            sleep(Duration::from_millis(50));
        }
    }
}

fn metrics() -> std::io::Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:10249")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// kube-proxy tells one for each family, bosun one for both.
fn last_sync(text: &str) -> Option<f64> {
    let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    let line = text.lines().find(|line| line.starts_with(name) && !line.contains("IPv6"))?;
    line.rsplit(' ').next()?.parse().ok()
}
