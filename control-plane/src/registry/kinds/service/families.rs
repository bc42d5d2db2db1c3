//! IP families of a Service (KEP-563): which it has, from its policy, its addresses, and what the cluster has.

use api::status::FieldError;
use serde_json::{Value, json};

use super::super::check;
use super::super::object::{child, list, put, text, unset};
use super::{has_cluster_ip, is_headless};

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const SINGLE: &str = "SingleStack";

pub(super) fn of_address(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

fn other(family: &str) -> &'static str {
    if family == "IPv6" { "IPv4" } else { "IPv6" }
}

/// Whether it may have endpoints of both families, whatever the cluster has.
fn is_free(service: &Value) -> bool {
    let selector = service["spec"]["selector"].as_object();
    is_headless(service) && selector.is_none_or(serde_json::Map::is_empty)
}

fn policy(service: &Value) -> &str {
    text(service, "/spec/ipFamilyPolicy")
}

fn same(new: &Value, old: &Value, field: &str) -> bool {
    list(new, &format!("/spec/{field}")) == list(old, &format!("/spec/{field}"))
}

fn is_reduced(new: &Value, old: &Value, field: &str) -> bool {
    list(old, &format!("/spec/{field}")).len() == 2 && list(new, &format!("/spec/{field}")).len() == 1
}

/// Writes down policy and families where the client left them out. `cluster` has the cluster's families, the primary first.
/// A Service gains or loses an address on a client's word alone, and never because the cluster has become another.
pub(super) fn settle(cluster: &[&str], service: &mut Value, old: Option<&Value>) {
    if !has_cluster_ip(service) || old.is_some_and(|old| prefers_the_same(service, old)) {
        return;
    }
    let free = is_free(service);
    let released = old.is_some_and(|old| is_reduced(service, old, "ipFamilies"));
    let before = old.map(policy).filter(|policy| !policy.is_empty()).map(str::to_owned);
    let Some(spec) = child(service, "spec") else { return };
    if unset(spec, "ipFamilyPolicy") {
        put(spec, "ipFamilyPolicy", before.unwrap_or_else(|| if free { "RequireDualStack" } else { SINGLE }.into()));
    }
    if let Some(old) = old.filter(|_| policy(service) == SINGLE) {
        let kept = ["clusterIPs", "ipFamilies"].map(|field| (field, same(service, old, field)));
        for (field, _) in kept.into_iter().filter(|(_, kept)| *kept) {
            let values = service.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
            values.into_iter().for_each(|values| values.truncate(1));
        }
    }
    let mut families: Vec<Value> = list(service, "/spec/ipFamilies").to_vec();
    let addresses = list(service, "/spec/clusterIPs").iter().filter_map(Value::as_str).filter(|a| *a != "None");
    if !released {
        families.extend(addresses.skip(families.len()).map(|address| of_address(address).into()));
    }
    if families.is_empty() {
        families.extend(cluster.first().map(|family| Value::from(*family)));
    }
    let has_both = free || cluster.len() == 2;
    if let [only] = &families[..]
        && has_both
        && !released
        && policy(service) != SINGLE
    {
        families.push(other(only.as_str().unwrap_or_default()).into());
    }
    if let Some(spec) = child(service, "spec") {
        put(spec, "ipFamilies", families);
    }
}

/// A Service that prefers both keeps what it has, one or two, until the client says another thing.
fn prefers_the_same(new: &Value, old: &Value) -> bool {
    let prefers = |service: &Value| policy(service) == "PreferDualStack";
    let same_type = text(new, "/spec/type") == text(old, "/spec/type");
    same_type && prefers(new) && prefers(old) && same(new, old, "clusterIPs") && same(new, old, "ipFamilies")
}

/// What is wrong with policy, families and addresses, and between them.
pub(super) fn validate(cluster: &[&str], service: &Value) -> Vec<FieldError> {
    if !has_cluster_ip(service) {
        return Vec::new();
    }
    let (addresses, families) = (list(service, "/spec/clusterIPs"), list(service, "/spec/ipFamilies"));
    let mut errors = Vec::from_iter(check::one_of("spec.ipFamilyPolicy", policy(service), POLICIES));
    for (i, family) in families.iter().filter_map(Value::as_str).enumerate() {
        let field = format!("spec.ipFamilies[{i}]");
        if families[..i].iter().any(|before| before == family) {
            errors.push(FieldError::duplicate(field.as_str(), family));
        }
        let known = check::one_of(field.as_str(), family, FAMILIES);
        let is_known = known.is_none();
        errors.extend(known);
        if is_known && !is_free(service) && !cluster.contains(&family) {
            errors.push(FieldError::invalid(field, family, "not configured on this cluster"));
        }
    }
    let told = |why: &str| FieldError::invalid("spec.ipFamilyPolicy", policy(service), why);
    if policy(service) == SINGLE && addresses.len() == 2 {
        errors.push(told("must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"));
    }
    if policy(service) == SINGLE && families.len() == 2 {
        errors.push(told("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"));
    }
    if policy(service) == "RequireDualStack" && cluster.len() < 2 && !is_free(service) {
        errors.push(told("this cluster is not configured for dual-stack services"));
    }
    errors.extend(matching(addresses, families));
    errors
}

fn matching(addresses: &[Value], families: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let invalid = |why: &str| FieldError::invalid("spec.clusterIPs", json!(addresses), why);
    if addresses.len() > 2 {
        errors.push(invalid("may only hold up to 2 values"));
    }
    let texts: Vec<&str> = addresses.iter().filter_map(Value::as_str).filter(|address| *address != "None").collect();
    if texts.len() > 1 && texts.iter().all(|address| of_address(address) == of_address(texts[0])) {
        errors.push(invalid("may specify no more than one IP for each IP family"));
    }
    for (i, (address, family)) in texts.iter().zip(families.iter().filter_map(Value::as_str)).enumerate() {
        if FAMILIES.contains(&family) && of_address(address) != family {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), *address, why));
        }
    }
    errors
}

/// What an update may not change.
pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (before, after) = (list(old, "/spec/ipFamilies"), list(new, "/spec/ipFamilies"));
    let value = || new["spec"]["ipFamilies"].clone();
    let mut errors = Vec::new();
    if before.iter().zip(after).any(|(was, is)| was != is) {
        errors.push(FieldError::invalid("spec.ipFamilies[0]", value(), "may not change once set"));
    }
    if is_reduced(new, old, "ipFamilies") && policy(new) != SINGLE {
        let why = "must be 'SingleStack' to release the secondary IP family";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy(new), why));
    }
    errors
}
