//! NetworkPolicies: the node's part alone, from objects in memory to rules in a kernel's namespace of its own.

use crate::figures::spread;
use kernel::netns::Netns;
use kernel::nftables::Nft;
use net::policy::model::{Allow, At, Labels, Name, Peer, Pod, Policy, Port, Protocol};
use net::policy::plan::Change;
use net::policy::sync::Keeper;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How many.
pub struct Load {
    pub policies: usize,
    /// Pods of this node.
    pub pods: usize,
    /// Pods of other nodes.
    pub others: usize,
    pub changes: usize,
}

const NAMESPACES: usize = 25;

/// The time to write all of it, then that of one pod's label and of one policy.
pub fn measure(load: &Load) -> anyhow::Result<Value> {
    let netns = Netns::anonymous()?;
    netns.run(|| measure_here(load))?
}

fn measure_here(load: &Load) -> anyhow::Result<Value> {
    let mut keeper = Keeper::new("n1", Box::new(Nft), None);
    let begin = Instant::now();
    for namespace in 0..NAMESPACES {
        let labels = Labels::new([("team", if namespace % 2 == 0 { "a" } else { "b" })].into_iter());
        keeper.note(Change::Namespace(format!("ns{namespace}").into(), Some(labels)));
    }
    for number in 0..load.pods + load.others {
        keeper.note(pod(load, number, number / NAMESPACES % 10));
    }
    for number in 0..load.policies {
        keeper.note(policy(number, 80));
    }
    keeper.sync()?;
    let loaded = begin.elapsed();
    let mut labels = Vec::new();
    let mut policies = Vec::new();
    for change in 0..load.changes {
        labels.push(timed(&mut keeper, pod(load, load.pods + change, 10 - change % 10))?);
        policies.push(timed(&mut keeper, policy(change, 1000 + change as u16))?);
    }
    Ok(json!({"policies": load.policies, "pods": load.pods, "other_pods": load.others,
        "loaded_ms": (loaded.as_secs_f64() * 1e4).round() / 10.0,
        "changed_label": spread(&mut labels), "changed_policy": spread(&mut policies)}))
}

fn timed(keeper: &mut Keeper, change: Change) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    anyhow::ensure!(keeper.note(change), "a change that changes nothing is not measured");
    keeper.sync()?;
    Ok(begin.elapsed())
}

fn pod(load: &Load, number: usize, app: usize) -> Change {
    let app = format!("app{app}");
    let labels = Labels::new([("app", app.as_str()), ("all", "yes")].into_iter());
    let ip = format!("10.{}.{}.{}", 64 + number / 62_500, number / 250 % 250, number % 250 + 1);
    let pod = Pod {
        labels,
        ips: ip.parse().into_iter().collect(),
        node: if number < load.pods { "n1" } else { "n2" }.into(),
        ..Pod::default()
    };
    Change::Pod(Name::new(&format!("ns{}", number % NAMESPACES), &format!("pod{number}")), Some(pod))
}

/// Each isolates a tenth of its namespace's pods and lets in pods of its own namespace, of others, and a range.
fn policy(number: usize, port: u16) -> Change {
    let selector = |text: String| api::labels::Selector::parse(&text).unwrap_or_default();
    let peers = vec![
        Peer::Pods { namespaces: None, pods: selector(format!("app=app{}", number % 10)) },
        Peer::Pods { namespaces: Some(selector("team=a".into())), pods: selector(format!("app=app{}", number % 7)) },
        Peer::Block { net: std::net::IpAddr::from([192, 0, (number % 250) as u8, 1]).into(), except: Vec::new() },
    ];
    let port = Port { protocol: Protocol::Tcp, at: At::Range(port, port) };
    let allow = Allow { peers: Some(peers), ports: Some(vec![port]) };
    let pods = selector(format!("app=app{}", number / NAMESPACES % 10));
    let policy = Policy { pods, ingress: Some(vec![allow.clone()]), egress: Some(vec![allow]) };
    Change::Policy(Name::new(&format!("ns{}", number % NAMESPACES), &format!("p{number}")), Some(policy))
}
