//! EndpointSlices.

use api::names;
use api::status::{FieldError, FieldErrorKind};
use serde_json::{Value, json};

use super::object::{child, fill_absent, list, list_mut, put, text};
use super::{ROW, cells, check, endpoints};
use crate::registry::{Resource, Strategy};

const MOST_ENDPOINTS: usize = 1000;
const MOST_ADDRESSES: usize = 100;
const MOST_PORTS: usize = 20_000;

pub(super) static ENDPOINT_SLICES: Resource = Resource {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    columns: &[
        cells::column("AddressType", "string", "The type of address carried by this slice.", |o, _| {
            text(o, "/addressType").into()
        }),
        cells::column("Ports", "string", "The ports that each endpoint of this slice exposes.", |o, _| ports(o).into()),
        cells::column("Endpoints", "string", "The endpoints of this slice.", |o, _| addresses(o).into()),
        cells::AGE,
    ],
    strategy: &Slices,
    ..ROW
};

const UNSET: &str = "<unset>";

fn ports(slice: &Value) -> String {
    let shown: Vec<String> = list(slice, "/ports")
        .iter()
        .map(|port| match (port["port"].as_i64(), port["name"].as_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        })
        .collect();
    cells::at_most_three(&shown, UNSET)
}

fn addresses(slice: &Value) -> String {
    let all = list(slice, "/endpoints").iter().flat_map(|e| list(e, "/addresses"));
    let shown: Vec<String> = all.filter_map(Value::as_str).map(str::to_owned).collect();
    cells::at_most_three(&shown, UNSET)
}

struct Slices;

impl Strategy for Slices {
    fn default(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fields.entry("endpoints").or_insert_with(|| json!([]));
        }
        for port in list_mut(object, "ports") {
            fill_absent(port, "name", "");
            fill_absent(port, "protocol", "TCP");
        }
        for endpoint in list_mut(object, "endpoints") {
            let _ = child(endpoint, "conditions");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        api::meta::set(object, "generation", 1);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        let content = |object: &Value| {
            let mut content = object.clone();
            put(&mut content, "metadata", object["metadata"]["labels"].clone());
            content
        };
        if content(new) != content(old) {
            api::meta::set(new, "generation", api::meta::generation(old) + 1);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = check::name(object, names::dns_subdomain);
        let kind = text(object, "/addressType");
        match kind {
            "" => errors.push(FieldError::required("addressType", "")),
            kind => errors.extend(check::one_of("addressType", kind, &["FQDN", "IPv4", "IPv6"])),
        }
        let endpoints = list(object, "/endpoints");
        errors.extend(too_many("endpoints", endpoints.len(), MOST_ENDPOINTS));
        for (i, endpoint) in endpoints.iter().enumerate() {
            errors.extend(endpoint_errors(&format!("endpoints[{i}]"), endpoint, kind));
        }
        errors.extend(port_errors(list(object, "/ports")));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        if new["addressType"] == old["addressType"] {
            return Vec::new();
        }
        vec![FieldError::invalid("addressType", new["addressType"].clone(), "field is immutable")]
    }
}

fn endpoint_errors(path: &str, endpoint: &Value, kind: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let addresses = list(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(format!("{path}.addresses"), "must contain at least 1 address"));
    }
    errors.extend(too_many(&format!("{path}.addresses"), addresses.len(), MOST_ADDRESSES));
    for (i, address) in addresses.iter().enumerate() {
        let (field, address) = (format!("{path}.addresses[{i}]"), address.as_str().unwrap_or_default());
        match (kind, address.parse::<std::net::IpAddr>()) {
            ("IPv4" | "IPv6", Err(_)) => errors.extend(check::ip(field, address)),
            ("IPv4", Ok(ip)) if !ip.is_ipv4() => {
                errors.push(FieldError::invalid(field, address, "must be a valid IPv4 address"));
            }
            ("IPv6", Ok(ip)) if !ip.is_ipv6() => {
                errors.push(FieldError::invalid(field, address, "must be a valid IPv6 address"));
            }
            ("IPv4" | "IPv6", Ok(_)) => errors.extend(endpoints::address_errors(&field, address)),
            _ => errors.extend(check::by_rule(field, address, names::dns_subdomain)),
        }
    }
    match text(endpoint, "/hostname") {
        "" => {}
        hostname => errors.extend(check::by_rule(format!("{path}.hostname"), hostname, names::dns_label)),
    }
    match text(endpoint, "/nodeName") {
        "" => {}
        node => errors.extend(check::by_rule(format!("{path}.nodeName"), node, names::dns_subdomain)),
    }
    errors
}

fn port_errors(ports: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::from_iter(too_many("ports", ports.len(), MOST_PORTS));
    let mut seen = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let name = text(port, "/name");
        if !name.is_empty() {
            errors.extend(check::by_rule(format!("ports[{i}].name"), name, names::dns_label));
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(format!("ports[{i}].name"), name));
        }
        seen.push(name);
        errors.extend(check::one_of(format!("ports[{i}].protocol"), text(port, "/protocol"), &["SCTP", "TCP", "UDP"]));
    }
    errors
}

fn too_many(field: &str, count: usize, limit: usize) -> Option<FieldError> {
    (count > limit).then(|| FieldError {
        field: field.to_owned(),
        kind: FieldErrorKind::TooMany,
        value: Some(count.into()),
        detail: format!("must have at most {limit} items"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_columns() {
        let mut slice =
            json!({"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]});
        Slices.default(&mut slice);
        assert_eq!(slice["ports"][0], json!({"port": 80, "name": "", "protocol": "TCP"}));
        assert_eq!((ports(&slice).as_str(), addresses(&slice).as_str()), ("80", "10.0.0.1"));
        assert_eq!(addresses(&json!({})), "<unset>");
        assert!(Slices.validate(&slice).is_empty());
    }

    #[test]
    fn link_local_addresses_are_refused() {
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["169.254.1.1"]}]});
        assert!(Slices.validate(&slice)[0].to_string().starts_with("endpoints[0].addresses[0]: Invalid value"));
    }
}
