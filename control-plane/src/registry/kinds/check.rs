//! Rules that several kinds share.

use api::status::{FieldError, FieldErrorKind};
use api::{meta, names};
use serde_json::Value;

pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const DATA_LIMIT: usize = 1024 * 1024;

/// What a rule for names says: a list of complaints.
pub(super) type Rule = fn(&str) -> Vec<String>;

/// `metadata.name` and `generateName` against the kind's rule. That a name is there is checked for every kind.
pub(super) fn name(object: &Value, rule: Rule) -> Vec<FieldError> {
    match meta::name(object) {
        "" => Vec::new(),
        name => by_rule("metadata.name", name, rule),
    }
}

/// One error for each complaint about a value.
pub(super) fn by_rule(field: impl Into<String>, value: &str, rule: Rule) -> Vec<FieldError> {
    let field = field.into();
    rule(value).into_iter().map(|why| FieldError::invalid(field.clone(), value, why)).collect()
}

/// A number that must not be below zero.
pub(super) fn not_negative(field: impl Into<String>, value: Option<i64>) -> Option<FieldError> {
    value.filter(|v| *v < 0).map(|v| FieldError::invalid(field, v, NOT_NEGATIVE))
}

/// 1 to 65535.
pub(super) fn port(field: impl Into<String>, value: i64) -> Option<FieldError> {
    (!(1..=65535).contains(&value)).then(|| FieldError::invalid(field, value, names::between(1, 65535)))
}

/// A number, or the name of a port.
pub(super) fn port_or_name(field: &str, value: &Value) -> Vec<FieldError> {
    match value {
        Value::Number(number) => port(field, number.as_i64().unwrap_or(0)).into_iter().collect(),
        Value::String(text) => by_rule(field, text, names::port_name),
        _ => vec![FieldError::required(field, "")],
    }
}

pub(super) fn keys(object: &Value, field: &str) -> Vec<String> {
    object.get(field).and_then(Value::as_object).map_or_else(Vec::new, |map| map.keys().cloned().collect())
}

/// The keys of a config map's or secret's data.
pub(super) fn data_keys(object: &Value, field: &str) -> Vec<FieldError> {
    keys(object, field).iter().flat_map(|key| by_rule(format!("{field}[{key}]"), key, names::config_key)).collect()
}

/// All data together. `field` is where the error is shown.
pub(super) fn data_size(object: &Value, maps: &[&str], field: &str) -> Option<FieldError> {
    let bytes = |map: &&str, value: &Value| match (*map, value.as_str().map_or(0, str::len)) {
        ("data", length) if maps.len() > 1 => length,
        // Base64.
        (_, length) => length / 4 * 3,
    };
    let total: usize = maps
        .iter()
        .flat_map(|map| object[*map].as_object().into_iter().flatten().map(move |(_, value)| bytes(map, value)))
        .sum();
    (total > DATA_LIMIT).then(|| FieldError {
        field: field.to_owned(),
        kind: FieldErrorKind::TooLong,
        value: None,
        detail: format!("may not be more than {DATA_LIMIT} bytes"),
    })
}

/// For a kind with `immutable: true`.
pub(super) fn immutable_data(new: &Value, old: &Value, maps: &[&str]) -> Vec<FieldError> {
    if old["immutable"] != true {
        return Vec::new();
    }
    let why = "field is immutable when `immutable` is set";
    let mut errors = Vec::new();
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", why));
    }
    errors.extend(maps.iter().filter(|map| new[**map] != old[**map]).map(|map| FieldError::forbidden(*map, why)));
    errors
}

/// Label keys and values at a path.
pub(super) fn labels(labels: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        errors.extend(by_rule(path, key, names::qualified));
        errors.extend(by_rule(path, value, names::label_value));
    }
    errors
}

/// A LabelSelector's expressions.
pub(super) fn selector(selector: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = labels(&selector["matchLabels"], &format!("{path}.matchLabels"));
    for (i, expression) in selector["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let count = expression["values"].as_array().map_or(0, Vec::len);
        match expression["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if count == 0 => errors.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if count > 0 => errors.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator"))
            }
        }
        let key = expression["key"].as_str().unwrap_or_default();
        errors.extend(by_rule(format!("{path}.key"), key, names::qualified));
    }
    errors
}

/// One of a fixed set of words, where the field is set.
pub(super) fn one_of(field: impl Into<String>, value: &str, supported: &[&str]) -> Option<FieldError> {
    (!supported.contains(&value)).then(|| FieldError::not_supported(field, value, supported))
}

/// An address, in the one way to write it.
pub(super) fn ip(field: impl Into<String>, text: &str) -> Option<FieldError> {
    let valid = text.parse::<std::net::IpAddr>().is_ok();
    (!valid).then(|| FieldError::invalid(field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
}

/// A network in the one way to write it: upstream's strict validation of addresses, the default of 1.37.
pub(super) fn cidr(field: &str, text: &str) -> Result<ipnetwork::IpNetwork, FieldError> {
    let wrong = |why: &str| FieldError::invalid(field, text, why);
    let shape = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let (address, length) = text.split_once('/').ok_or_else(|| wrong(shape))?;
    let digits = !length.is_empty() && length.chars().all(|c| c.is_ascii_digit());
    let Ok(address) = address.parse::<std::net::IpAddr>() else {
        return Err(wrong(if digits && has_leading_zeros(address) { LEADING_ZEROS } else { shape }));
    };
    let prefix = length.parse().ok().filter(|_| digits).ok_or_else(|| wrong(shape))?;
    let network = ipnetwork::IpNetwork::new(address, prefix).map_err(|_| wrong(shape))?;
    let mapped = matches!(address, std::net::IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    match () {
        () if length.len() > 1 && length.starts_with('0') => Err(wrong(LEADING_ZEROS)),
        () if mapped => Err(wrong("must not have an IPv4-mapped IPv6 address")),
        () if network.network() != address => Err(wrong("must not have bits set beyond the prefix length")),
        () => Ok(network),
    }
}

const LEADING_ZEROS: &str = "must not have leading 0s in IP or prefix length";

/// Whether an IPv4 address would be one without the zeros in front of its numbers.
fn has_leading_zeros(address: &str) -> bool {
    let numbers: Option<Vec<u8>> = address.split('.').map(|part| part.parse().ok()).collect();
    numbers.is_some_and(|numbers| numbers.len() == 4)
}
