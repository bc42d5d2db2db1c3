//! What is asked: the two ends as the user writes them, and a Service as the API shows it.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::policy::model::{Name, Protocol};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub from: Name,
    /// A pod or a Service.
    pub to: Name,
    pub port: u16,
    pub protocol: Protocol,
}

impl Question {
    /// From `NAMESPACE/POD` and `NAMESPACE/NAME:PORT`, with `/udp` or `/sctp` behind the port.
    ///
    /// # Errors
    /// In words for the user.
    pub fn parse(from: &str, to: &str) -> anyhow::Result<Self> {
        let (place, port) = to.rsplit_once(':').with_context(|| format!("{to:?}: want NAMESPACE/NAME:PORT"))?;
        let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let Some(protocol) = Protocol::parse(Some(&protocol.to_uppercase())) else {
            bail!("{protocol:?}: the protocols are tcp, udp and sctp")
        };
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.with_context(|| format!("{to:?}: the port is a number from 1 to 65535"))?;
        Ok(Self { from: parse_name(from)?, to: parse_name(place)?, port, protocol })
    }
}

fn parse_name(text: &str) -> anyhow::Result<Name> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Name::new(namespace, name))
        }
        _ => bail!("{text:?}: want NAMESPACE/NAME"),
    }
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its address with the port that was asked for, or why there is none.
    pub address: Result<SocketAddr, String>,
    /// Where it leads: ready endpoints.
    pub endpoints: Vec<SocketAddr>,
}

/// Asks the API for the Service of the question; `None` where a pod has that name or there is no such Service.
///
/// # Errors
/// Where the API server does not answer.
pub async fn service(client: &Client, question: &Question) -> anyhow::Result<Option<Service>> {
    let Name { namespace, name } = &question.to;
    let pods: Api<core::Pod> = Api::namespaced(client.clone(), namespace);
    if pods.get_opt(name).await.context("cannot ask for the pod")?.is_some() {
        return Ok(None);
    }
    let services: Api<core::Service> = Api::namespaced(client.clone(), namespace);
    let found = services.get_opt(name).await.context("cannot ask for the Service")?;
    let Some(object) = found else { return Ok(None) };
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let own = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    let slices = slices.list(&own).await.context("cannot ask for the Service's endpoints")?;
    Ok(Some(read(&object, &slices.items, question)))
}

/// What the Service and its slices say of the port.
pub fn read(object: &core::Service, slices: &[EndpointSlice], question: &Question) -> Service {
    let refused = |why: String| Service { address: Err(why), endpoints: Vec::new() };
    let spec = object.spec.clone().unwrap_or_default();
    let asked = |port: &&core::ServicePort| {
        port.port == i32::from(question.port) && Protocol::parse(port.protocol.as_deref()) == Some(question.protocol)
    };
    let ports = spec.ports.unwrap_or_default();
    let Some(port) = ports.iter().find(asked) else {
        let own: Vec<String> = ports.iter().map(|port| port.port.to_string()).collect();
        let protocol = question.protocol.name();
        return refused(format!(
            "Service {} has no {protocol} port {}; its ports are {}",
            question.to,
            question.port,
            own.join(", ")
        ));
    };
    let Some(address) = spec.cluster_ip.and_then(|ip| ip.parse::<std::net::IpAddr>().ok()) else {
        return refused(format!("Service {} has no address of its own: ask for one of its pods", question.to));
    };
    let kind = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut endpoints = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == kind) {
        let same = |own: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            own.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
        };
        let target = slice.ports.iter().flatten().find(same).and_then(|own| u16::try_from(own.port?).ok());
        let Some(target) = target else { continue };
        let ready =
            slice.endpoints.iter().flatten().filter(|endpoint| {
                endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
            });
        let ips = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse().ok());
        endpoints.extend(ips.map(|ip| SocketAddr::new(ip, target)));
    }
    endpoints.sort();
    endpoints.dedup();
    Service { address: Ok(SocketAddr::new(address, question.port)), endpoints }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_wrong_ones_say_why() {
        let question = Question::parse("a/b", "c/d:53/udp").unwrap();
        assert_eq!((question.port, question.protocol), (53, Protocol::Udp));
        assert_eq!((question.from.to_string(), question.to.to_string()), ("a/b".into(), "c/d".into()));
        for (from, to, why) in [
            ("b", "c/d:1", "\"b\": want NAMESPACE/NAME"),
            ("a/b", "c/d", "\"c/d\": want NAMESPACE/NAME:PORT"),
            ("a/b", "c/d:http", "\"c/d:http\": the port is a number from 1 to 65535"),
            ("a/b", "c/d:1/icmp", "\"icmp\": the protocols are tcp, udp and sctp"),
        ] {
            assert_eq!(Question::parse(from, to).unwrap_err().to_string(), why);
        }
    }
}
