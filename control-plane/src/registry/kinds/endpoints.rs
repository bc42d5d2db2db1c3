//! Endpoints.

use std::net::IpAddr;

use api::names;
use api::status::FieldError;
use serde_json::Value;

use super::object::{fill, list, list_mut, number, text};
use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy};

pub(super) static ENDPOINTS: Resource = Resource {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    columns: &[cells::column("Endpoints", "string", "The set of all endpoints.", |o, _| listed(o).into()), cells::AGE],
    strategy: &AllEndpoints,
    ..ROW
};

fn listed(object: &Value) -> String {
    let mut shown = Vec::new();
    for subset in list(object, "/subsets") {
        let addresses = || list(subset, "/addresses").iter().map(|a| text(a, "/ip"));
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            shown.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            shown.extend(addresses().map(|ip| host_port(ip, number(port, "/port"))));
        }
    }
    cells::at_most_three(&shown, cells::NONE)
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

struct AllEndpoints;

impl Strategy for AllEndpoints {
    fn default(&self, object: &mut Value) {
        for subset in list_mut(object, "subsets") {
            for port in list_mut(subset, "ports") {
                fill(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = check::name(object, names::dns_subdomain);
        for (i, subset) in list(object, "/subsets").iter().enumerate() {
            let path = format!("subsets[{i}]");
            if list(subset, "/addresses").is_empty() && list(subset, "/notReadyAddresses").is_empty() {
                errors.push(FieldError::required(path.clone(), "must specify `addresses` or `notReadyAddresses`"));
            }
            for field in ["addresses", "notReadyAddresses"] {
                for (j, address) in list(subset, &format!("/{field}")).iter().enumerate() {
                    errors.extend(address_errors(&format!("{path}.{field}[{j}].ip"), text(address, "/ip")));
                }
            }
            let ports = list(subset, "/ports");
            for (j, port) in ports.iter().enumerate() {
                errors.extend(port_errors(&format!("{path}.ports[{j}]"), port, ports.len() > 1));
            }
        }
        errors
    }
}

/// An address that traffic may be sent to: not the sender's own, none of its link.
pub(super) fn address_errors(field: &str, text: &str) -> Vec<FieldError> {
    let Ok(address) = text.parse::<IpAddr>() else { return check::ip(field, text).into_iter().collect() };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_multicast = match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let reasons = [
        (address.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)".to_owned()),
        (address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (link_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ];
    reasons.into_iter().filter(|(bad, _)| *bad).map(|(_, why)| FieldError::invalid(field, text, why)).collect()
}

fn port_errors(path: &str, port: &Value, named: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match text(port, "/name") {
        "" if named => errors.push(FieldError::required(format!("{path}.name"), "")),
        "" => {}
        name => errors.extend(check::by_rule(format!("{path}.name"), name, names::dns_label)),
    }
    errors.extend(check::port(format!("{path}.port"), number(port, "/port")));
    errors.extend(check::one_of(format!("{path}.protocol"), text(port, "/protocol"), &["SCTP", "TCP", "UDP"]));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prints_three_and_counts_the_rest() {
        let ports = json!([{"port": 80}, {"port": 443}]);
        let some = json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": ports}]});
        assert_eq!(listed(&some), "10.0.0.1:80,10.0.0.2:80,10.0.0.1:443 + 1 more...");
        assert_eq!(listed(&json!({})), "<none>");
    }

    #[test]
    fn refuses_addresses_of_the_host_itself() {
        let said = |ip: &str| -> Vec<String> {
            let object = json!({"metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": ip}]}]});
            AllEndpoints.validate(&object).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            said("127.0.0.1"),
            [
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
            ]
        );
        assert!(said("169.254.169.254")[0].contains("link-local range"));
        assert!(said("10.0.0.1").is_empty());
    }
}
