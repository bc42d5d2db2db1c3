//! Services.

mod allocate;
mod defaults;
mod families;
mod update;
mod validate;

use api::status::{FieldError, Status};
use serde_json::{Value, json};

pub use allocate::ServiceRanges;

use super::object::{list, number, put, text};
use super::{ROW, cells};
use crate::registry::{Resource, Strategy, Subresource};

pub(super) static SERVICES: Resource = Resource {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Proxy],
    columns: &[
        cells::column("Type", "string", "How the Service is exposed.", |o, _| text(o, "/spec/type").into()),
        cells::column("Cluster-IP", "string", "The IP address of the service.", |o, _| {
            cells::or_none(text(o, "/spec/clusterIPs/0")).into()
        }),
        cells::column("External-IP", "string", "Addresses for traffic from outside.", |o, _| external(o).into()),
        cells::column("Port(s)", "string", "The ports that are exposed by this service.", |o, _| ports(o).into()),
        cells::AGE,
        cells::wide("Selector", "The labels of the pods that get the traffic.", |o, _| cells::selector_map(o)),
    ],
    selectable: &["spec.clusterIP", "spec.type"],
    strategy: &Services,
    ..ROW
};

fn external(service: &Value) -> String {
    let mut addresses: Vec<&str> = Vec::new();
    let balanced = text(service, "/spec/type") == "LoadBalancer";
    if balanced {
        for ingress in list(service, "/status/loadBalancer/ingress") {
            let address = text(ingress, "/ip");
            addresses.push(if address.is_empty() { text(ingress, "/hostname") } else { address });
        }
    }
    addresses.extend(list(service, "/spec/externalIPs").iter().filter_map(Value::as_str));
    match text(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        "ClusterIP" | "NodePort" | "LoadBalancer" if !addresses.is_empty() => addresses.join(","),
        "ClusterIP" | "NodePort" => cells::NONE.into(),
        "LoadBalancer" => "<pending>".into(),
        _ => "<unknown>".into(),
    }
}

fn ports(service: &Value) -> String {
    let shown = |port: &Value| match (number(port, "/port"), number(port, "/nodePort"), text(port, "/protocol")) {
        (port, 0, protocol) => format!("{port}/{protocol}"),
        (port, node, protocol) => format!("{port}:{node}/{protocol}"),
    };
    cells::or_none(&list(service, "/spec/ports").iter().map(shown).collect::<Vec<_>>().join(",")).to_owned()
}

struct Services;

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        defaults::fill_in(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        put(object, "status", json!({"loadBalancer": {}}));
        update::twin_addresses(object);
        families::settle(&allocate::ranges().families(), object, None);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        update::carry_over(new, old);
        defaults::fill_in(new);
        families::settle(&allocate::ranges().families(), new, Some(old));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate::service(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        update::check(new, old)
    }

    fn allocate(&self, object: &mut Value, taken: &dyn Fn(&str) -> bool, random: u64) -> Result<(), Status> {
        allocate::fill_in(allocate::ranges(), object, taken, random)
    }

    fn claims(&self, object: &Value) -> Vec<String> {
        allocate::claims(object)
    }

    fn claimed(&self, claim: &str) -> FieldError {
        allocate::claimed(claim)
    }
}

/// Whether this type of service has an address of the cluster's (`None` counts).
fn has_cluster_ip(service: &Value) -> bool {
    matches!(text(service, "/spec/type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn is_headless(service: &Value) -> bool {
    text(service, "/spec/clusterIP") == "None" || text(service, "/spec/clusterIPs/0") == "None"
}

/// Whether the service gets a node port for each of its ports.
fn has_node_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Whether traffic comes from outside the cluster.
fn is_external(service: &Value) -> bool {
    let reached = !list(service, "/spec/externalIPs").is_empty();
    matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer") || has_cluster_ip(service) && reached
}

#[cfg(test)]
mod tests;
