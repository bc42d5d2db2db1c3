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
    let is_less = old.is_some_and(|old| is_reduced(service, old, "ipFamilies"));
    let before = old.map(policy).filter(|policy| !policy.is_empty()).map(str::to_owned);
    let Some(spec) = child(service, "spec") else { return };
    if unset(spec, "ipFamilyPolicy") {
        put(spec, "ipFamilyPolicy", before.unwrap_or_else(|| if free { "RequireDualStack" } else { SINGLE }.into()));
    }
    if !related(service).is_empty() {
        return; // it is refused as the client wrote it
    }
    if old.is_some_and(|old| released(service, old).is_some()) {
        // Refused; and no other address takes the place of the one that was released.
        let places = list(service, "/spec/clusterIPs").len();
        let families = service.pointer_mut("/spec/ipFamilies").and_then(Value::as_array_mut);
        return families.into_iter().for_each(|families| families.truncate(places));
    }
    if let Some(old) = old.filter(|_| policy(service) == SINGLE) {
        let kept = ["clusterIPs", "ipFamilies"].map(|field| (field, same(service, old, field)));
        for (field, _) in kept.into_iter().filter(|(_, kept)| *kept) {
            let values = service.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
            values.into_iter().for_each(|values| values.truncate(1));
        }
    }
    let mut families: Vec<Value> = list(service, "/spec/ipFamilies").to_vec();
    let addresses: Vec<&str> = addresses(service).collect();
    if addresses.len() > 1 && policy(service) == SINGLE {
        return; // refused, for the addresses alone
    }
    if !is_less {
        families.extend(addresses.iter().skip(families.len()).map(|address| of_address(address).into()));
    }
    if families.len() <= addresses.len() && families.iter().any(|family| !cluster.iter().any(|known| family == known)) {
        return; // refused, too: by the address, where the family is no client's word
    }
    if families.is_empty() {
        families.extend(cluster.first().map(|family| Value::from(*family)));
    }
    let has_both = free || cluster.len() == 2;
    if let [only] = &families[..]
        && has_both
        && !is_less
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

fn addresses(service: &Value) -> impl Iterator<Item = &str> {
    list(service, "/spec/clusterIPs").iter().filter_map(Value::as_str).filter(|address| *address != "None")
}

/// What is wrong with addresses, families and policy in any cluster, in upstream's words and order
/// (`ValidateServiceClusterIPsRelatedFields`).
fn related(service: &Value) -> Vec<FieldError> {
    if !has_cluster_ip(service) {
        return Vec::new();
    }
    let mut errors = Vec::from_iter(twins(service));
    let families = list(service, "/spec/ipFamilies");
    for (i, family) in families.iter().filter_map(Value::as_str).enumerate() {
        let field = format!("spec.ipFamilies[{i}]");
        errors.extend(check::one_of(field.as_str(), family, FAMILIES));
        if families[..i].iter().any(|before| before == family) {
            errors.push(FieldError::duplicate(field, family));
        }
    }
    errors.extend(check::one_of("spec.ipFamilyPolicy", policy(service), POLICIES));
    let wrong = wrong_addresses(service);
    let is_wrong = !wrong.is_empty();
    errors.extend(wrong);
    let given = list(service, "/spec/clusterIPs");
    let invalid = |why: &str| FieldError::invalid("spec.clusterIPs", json!(given), why);
    if given.len() > 2 {
        errors.push(invalid("may only hold up to 2 values"));
    }
    if is_wrong {
        return errors;
    }
    let texts: Vec<&str> = addresses(service).collect();
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

/// `clusterIP` is the first of `clusterIPs`.
fn twins(service: &Value) -> Option<FieldError> {
    let (single, plural) = (text(service, "/spec/clusterIP"), list(service, "/spec/clusterIPs"));
    let invalid = |why: &str| Some(FieldError::invalid("spec.clusterIPs", json!(plural), why));
    match (single, plural.first()) {
        ("", Some(_)) => invalid("must be empty when `clusterIP` is not specified"),
        ("", None) => None,
        (_, None) => Some(FieldError::required("spec.clusterIPs", "")),
        (single, Some(first)) if first != single => invalid("first value must match `clusterIP`"),
        _ => None,
    }
}

fn wrong_addresses(service: &Value) -> Vec<FieldError> {
    let given = list(service, "/spec/clusterIPs");
    let mut errors = Vec::new();
    for (i, address) in given.iter().filter_map(Value::as_str).enumerate() {
        match address {
            "None" if i == 0 && given.len() == 1 => {}
            "None" if i == 0 => {
                let why = "'None' must be the first and only value";
                errors.push(FieldError::invalid("spec.clusterIPs", json!(given), why));
            }
            address => errors.extend(check::ip(format!("spec.clusterIPs[{i}]"), address)),
        }
    }
    errors
}

/// Why upstream refuses addresses, families and policy before it allocates anything, alone and without looking at the rest:
/// what is wrong in any cluster, then what does not fit the policy, then what this cluster has not.
pub(super) fn refused(cluster: &[&str], service: &Value) -> Vec<FieldError> {
    let mut errors = related(service);
    if !errors.is_empty() || !has_cluster_ip(service) {
        return errors;
    }
    let families = list(service, "/spec/ipFamilies");
    let told = |why: &str| FieldError::invalid("spec.ipFamilyPolicy", policy(service), why);
    let single = policy(service) == SINGLE;
    if single && list(service, "/spec/clusterIPs").len() == 2 {
        errors.push(told("must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"));
    }
    if single && families.len() == 2 {
        errors.push(told("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"));
    }
    let given = &service["spec"]["clusterIPs"];
    for (i, address) in addresses(service).enumerate().skip(families.len()) {
        let family = of_address(address);
        if !cluster.contains(&family) {
            let why = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), given.clone(), why));
        }
    }
    if !errors.is_empty() || is_free(service) {
        return errors;
    }
    if policy(service) == "RequireDualStack" && cluster.len() < 2 {
        errors.push(told("this cluster is not configured for dual-stack services"));
    }
    for (i, family) in families.iter().filter_map(Value::as_str).enumerate().filter(|(_, f)| !cluster.contains(f)) {
        errors.push(FieldError::invalid(format!("spec.ipFamilies[{i}]"), family, "not configured on this cluster"));
    }
    errors
}

/// A second address that is released without the policy's word.
pub(super) fn released(new: &Value, old: &Value) -> Option<FieldError> {
    if !related(new).is_empty() {
        return None; // told before
    }
    let told = |what: &str| {
        let why = format!("must be 'SingleStack' to release the secondary {what}");
        FieldError::invalid("spec.ipFamilyPolicy", policy(new), why)
    };
    match policy(new) {
        SINGLE => None,
        _ if is_reduced(new, old, "clusterIPs") => Some(told("cluster IP")),
        _ if is_reduced(new, old, "ipFamilies") => Some(told("IP family")),
        _ => None,
    }
}

/// What an update may not change.
pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (before, after) = (list(old, "/spec/ipFamilies"), list(new, "/spec/ipFamilies"));
    let changed = before.iter().zip(after).filter(|(was, is)| was != is);
    let told =
        |_| FieldError::invalid("spec.ipFamilies[0]", new["spec"]["ipFamilies"].clone(), "may not change once set");
    changed.map(told).collect()
}
