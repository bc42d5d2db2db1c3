//! What is there from the first moment: the system's namespaces, and the Service by which pods reach the API server.

use std::net::IpAddr;

use anyhow::{Context, anyhow};
use api::status::Status;
use serde_json::{Value, json};

use crate::registry::Resource;
use crate::server::{Config, Server, Target};
use crate::verbs::Change;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// The Service of the API itself, in `default`.
const NAME: &str = "kubernetes";

/// Creates what is missing and corrects what leads elsewhere.
pub(super) async fn run(server: &Server) -> anyhow::Result<()> {
    let kind = |group: &str, plural: &str| {
        server.resource(group, plural).ok_or_else(|| anyhow!("the registry has no {plural}"))
    };
    let namespaces = kind("", "namespaces")?;
    for name in NAMESPACES {
        ensure(server, namespaces, "", json!({"metadata": {"name": name}})).await?;
    }
    ensure(server, kind("", "services")?, "default", service(&server.config)?).await?;
    ensure(server, kind("", "endpoints")?, "default", endpoints(&server.config)).await?;
    ensure(server, kind("discovery.k8s.io", "endpointslices")?, "default", slice(&server.config)).await
}

/// Creates an object, or gives the one that is there the content that it should have.
async fn ensure(server: &Server, resource: &'static Resource, namespace: &str, object: Value) -> anyhow::Result<()> {
    let name = api::meta::name(&object).to_owned();
    let what = || format!("{} {name:?}", resource.plural);
    match server.create(resource, namespace, object.clone()).await {
        Err(status) if status.reason == "AlreadyExists" => {}
        Err(status) => return Err(status).with_context(what),
        Ok(_) => return Ok(()),
    }
    let fields: Vec<(String, Value)> = object
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(field, _)| matches!(field.as_str(), "subsets" | "endpoints" | "ports"))
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect();
    if fields.is_empty() {
        return Ok(());
    }
    let change = Change::Patch(Box::new(move |current| {
        let mut new = current.clone();
        let map = new.as_object_mut().ok_or_else(|| Status::internal("a stored object is none"))?;
        map.extend(fields.iter().cloned());
        Ok(new)
    }));
    let target = Target { resource, namespace, name: &name };
    server.update(target, None, change).await.map(drop).with_context(what)
}

/// The first address of the range is the API's.
fn service(config: &Config) -> anyhow::Result<Value> {
    let first = config.service_cluster_ip_range.first().and_then(|range| range.iter().nth(1));
    let first = first.context("the range of service addresses is empty")?;
    Ok(json!({
        "metadata": {"name": NAME, "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": first.to_string(), "clusterIPs": [first.to_string()],
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.secure_port}],
        },
    }))
}

fn endpoints(config: &Config) -> Value {
    json!({
        "metadata": {"name": NAME, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": [{"ip": config.advertise_address.to_string()}],
            "ports": [{"name": "https", "port": config.secure_port, "protocol": "TCP"}],
        }],
    })
}

fn slice(config: &Config) -> Value {
    let family = match config.advertise_address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    json!({
        "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": family,
        "endpoints": [{"addresses": [config.advertise_address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": config.secure_port, "protocol": "TCP"}],
    })
}
