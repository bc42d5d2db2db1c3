//! NetworkPolicies.

use api::status::FieldError;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::object::{child, fill, fill_absent, keep_status_count_spec, list, list_mut, text};
use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy};

pub(super) static NETWORK_POLICIES: Resource = Resource {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    columns: &[
        cells::column("Pod-Selector", "string", "The pods that the policy is for.", |object, _| {
            cells::label_selector(&object["spec"]["podSelector"])
        }),
        cells::AGE,
    ],
    strategy: &NetworkPolicies,
    ..ROW
};

struct NetworkPolicies;

/// The fields of a rule: the rules' list in the spec, and the peers' in a rule.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];
const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const TYPES: &[&str] = &["Ingress", "Egress"];

impl Strategy for NetworkPolicies {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        let _ = child(spec, "podSelector");
        for (rules, _) in DIRECTIONS {
            for rule in list_mut(spec, rules) {
                for port in list_mut(rule, "ports") {
                    fill_absent(port, "protocol", "TCP");
                }
            }
        }
        // Without types a policy is one for ingress, and for egress where it has rules for that.
        let has_egress = !list(spec, "/egress").is_empty();
        fill(spec, "policyTypes", if has_egress { json!(TYPES) } else { json!([TYPES[0]]) });
    }

    fn prepare_create(&self, object: &mut Value) {
        api::meta::set(object, "generation", 1);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status_count_spec(new, old);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let spec = &object["spec"];
        let mut errors = check::name(object, api::names::dns_subdomain);
        errors.extend(check::selector(&spec["podSelector"], "spec.podSelector"));
        for (rules, peers) in DIRECTIONS {
            for (i, rule) in list(spec, &format!("/{rules}")).iter().enumerate() {
                let path = format!("spec.{rules}[{i}]");
                let ports = list(rule, "/ports").iter().enumerate();
                errors.extend(ports.flat_map(|(n, one)| port(&format!("{path}.ports[{n}]"), one)));
                let all = list(rule, &format!("/{peers}")).iter().enumerate();
                errors.extend(all.flat_map(|(n, one)| peer(&format!("{path}.{peers}[{n}]"), one)));
            }
        }
        errors.extend(types(&spec["policyTypes"]));
        errors
    }
}

fn types(types: &Value) -> Vec<FieldError> {
    let given = list(types, "");
    if given.len() > TYPES.len() {
        let why = "may not specify more than two policyTypes";
        return vec![FieldError::invalid("spec.policyTypes", types.clone(), why)];
    }
    let one = |(i, given): (usize, &Value)| {
        check::one_of(format!("spec.policyTypes[{i}]"), given.as_str().unwrap_or_default(), TYPES)
    };
    given.iter().enumerate().filter_map(one).collect()
}

fn port(path: &str, port: &Value) -> Vec<FieldError> {
    let mut errors = Vec::from_iter(check::one_of(format!("{path}.protocol"), text(port, "/protocol"), PROTOCOLS));
    let field = format!("{path}.endPort");
    let end = port["endPort"].as_i64();
    let misplaced = |why: &str| end.map(|end| FieldError::invalid(field.clone(), end, why));
    match &port["port"] {
        Value::Null => errors.extend(misplaced("may not be specified when `port` is not specified")),
        Value::String(name) => {
            errors.extend(misplaced("may not be specified when `port` is non-numeric"));
            errors.extend(check::by_rule(format!("{path}.port"), name, api::names::port_name));
        }
        number => {
            let first = number.as_i64().unwrap_or_default();
            errors.extend(check::port(format!("{path}.port"), first));
            if end.is_some_and(|end| end < first) {
                errors.extend(misplaced("must be greater than or equal to `port`"));
            }
            errors.extend(end.and_then(|end| check::port(field.clone(), end)));
        }
    }
    errors
}

fn peer(path: &str, peer: &Value) -> Vec<FieldError> {
    let is_set = |field: &&str| !peer[*field].is_null();
    let selectors: Vec<&str> = ["podSelector", "namespaceSelector"].into_iter().filter(is_set).collect();
    let mut errors: Vec<FieldError> =
        selectors.iter().flat_map(|field| check::selector(&peer[*field], &format!("{path}.{field}"))).collect();
    match (&peer["ipBlock"], selectors.len()) {
        (Value::Null, 0) => errors.push(FieldError::required(path, "must specify a peer")),
        (Value::Null, _) => {}
        (block, others) => {
            errors.extend(ip_block(&format!("{path}.ipBlock"), block));
            if others > 0 {
                errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
            }
        }
    }
    errors
}

fn ip_block(path: &str, block: &Value) -> Vec<FieldError> {
    let field = format!("{path}.cidr");
    let cidr = match text(block, "/cidr") {
        "" => return vec![FieldError::required(field, "")],
        cidr => check::cidr(&field, cidr),
    };
    let mut errors = Vec::new();
    let cidr = cidr.map_err(|error| errors.push(error)).ok();
    for (i, except) in list(block, "/except").iter().enumerate() {
        let (field, except) = (format!("{path}.except[{i}]"), except.as_str().unwrap_or_default());
        match (check::cidr(&field, except), cidr) {
            (Err(error), _) => errors.push(error),
            (Ok(part), Some(whole)) if !is_within(part, whole) => {
                errors.push(FieldError::invalid(field, except, "must be a strict subset of `cidr`"));
            }
            (Ok(_), _) => {}
        }
    }
    errors
}

fn is_within(part: IpNetwork, whole: IpNetwork) -> bool {
    whole.contains(part.network()) && part.prefix() > whole.prefix()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(spec: Value) -> Vec<String> {
        let mut policy = json!({"metadata": {"name": "a"}, "spec": spec});
        NetworkPolicies.default(&mut policy);
        NetworkPolicies.validate(&policy).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults() {
        let made = |spec: Value| {
            let mut policy = json!({"metadata": {"name": "a"}, "spec": spec});
            NetworkPolicies.default(&mut policy);
            let once = policy.clone();
            NetworkPolicies.default(&mut policy);
            assert_eq!(policy, once);
            policy["spec"].take()
        };
        assert_eq!(made(json!({})), json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
        assert_eq!(made(json!({"policyTypes": ["Egress"]}))["policyTypes"], json!(["Egress"]));
        let both = made(json!({"ingress": [{}], "egress": [{"ports": [{"port": "dns"}, {"protocol": "UDP"}]}]}));
        assert_eq!(both["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(both["egress"][0]["ports"], json!([{"port": "dns", "protocol": "TCP"}, {"protocol": "UDP"}]));
    }

    #[test]
    fn a_policy_of_every_field_is_valid() {
        let peers = json!([
            {"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.0.0.1/32"]}},
            {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:1::/48"]}},
        ]);
        let ports = json!([{"port": 80, "endPort": 80, "protocol": "SCTP"}, {"port": "web"}, {}]);
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress"],
            "ingress": [{"from": peers.clone(), "ports": ports.clone()}], "egress": [{"to": peers, "ports": ports}, {}]});
        assert_eq!(said(spec), [""; 0]);
    }

    #[test]
    fn faults_of_ports_and_types_in_the_words_of_the_api() {
        let ports = json!([{"port": 0, "endPort": 70_000}, {"port": 80, "endPort": 79}, {"endPort": 1},
            {"port": "web", "endPort": 1}, {"port": "a--b"}, {"protocol": "ICMP"}]);
        let wrong = said(json!({"ingress": [{"ports": ports}], "policyTypes": ["Ingress", "Both"]}));
        let path = "spec.ingress[0].ports";
        assert_eq!(
            wrong,
            [
                format!("{path}[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"),
                format!("{path}[0].endPort: Invalid value: 70000: must be between 1 and 65535, inclusive"),
                format!("{path}[1].endPort: Invalid value: 79: must be greater than or equal to `port`"),
                format!("{path}[2].endPort: Invalid value: 1: may not be specified when `port` is not specified"),
                format!("{path}[3].endPort: Invalid value: 1: may not be specified when `port` is non-numeric"),
                format!("{path}[4].port: Invalid value: \"a--b\": must not contain consecutive hyphens"),
                format!(
                    "{path}[5].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\""
                ),
                "spec.policyTypes[1]: Unsupported value: \"Both\": supported values: \"Ingress\", \"Egress\"".into(),
            ]
        );
        let many = said(json!({"policyTypes": ["Ingress", "Egress", "Egress"]}));
        assert!(many[0].ends_with("may not specify more than two policyTypes"), "{many:?}");
    }

    #[test]
    fn faults_of_peers_in_the_words_of_the_api() {
        let block = |cidr: &str, except: &[&str]| json!({"ipBlock": {"cidr": cidr, "except": except}});
        let wrong = said(json!({"egress": [{"to": [
            {}, {"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": ""}},
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            block("10.0.0.0", &[]), block("10.0.0.1/8", &[]), block("010.0.0.0/8", &[]), block("10.0.0.0/08", &[]),
            block("::ffff:10.0.0.0/104", &[]), block("10.0.0.0/33", &[]),
            block("10.0.0.0/8", &["11.0.0.0/16", "10.0.0.0/8", "x", "2001:db8::/64"]),
        ]}]}));
        let path = "spec.egress[0].to";
        let shape = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        let zeros = "must not have leading 0s in IP or prefix length";
        let subset = "must be a strict subset of `cidr`";
        assert_eq!(
            wrong,
            [
                format!("{path}[0]: Required value: must specify a peer"),
                format!("{path}[1]: Forbidden: may not specify both ipBlock and another peer"),
                format!("{path}[2].ipBlock.cidr: Required value"),
                format!(
                    "{path}[3].podSelector.matchExpressions[0].values: Required value: must be specified when \
                     `operator` is 'In' or 'NotIn'"
                ),
                format!("{path}[4].ipBlock.cidr: Invalid value: \"10.0.0.0\": {shape}"),
                format!(
                    "{path}[5].ipBlock.cidr: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix \
                     length"
                ),
                format!("{path}[6].ipBlock.cidr: Invalid value: \"010.0.0.0/8\": {zeros}"),
                format!("{path}[7].ipBlock.cidr: Invalid value: \"10.0.0.0/08\": {zeros}"),
                format!(
                    "{path}[8].ipBlock.cidr: Invalid value: \"::ffff:10.0.0.0/104\": must not have an IPv4-mapped \
                     IPv6 address"
                ),
                format!("{path}[9].ipBlock.cidr: Invalid value: \"10.0.0.0/33\": {shape}"),
                format!("{path}[10].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": {subset}"),
                format!("{path}[10].ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": {subset}"),
                format!("{path}[10].ipBlock.except[2]: Invalid value: \"x\": {shape}"),
                format!("{path}[10].ipBlock.except[3]: Invalid value: \"2001:db8::/64\": {subset}"),
            ]
        );
    }
}
