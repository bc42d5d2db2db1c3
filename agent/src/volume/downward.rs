//! The downward API: fields of the pod as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Pod, ResourceFieldSelector, ResourceRequirements};

use super::NodeCapacity;
use super::error::Cause;

/// The content of one file.
///
/// # Errors
/// Where the field is not one that a volume can show.
pub(super) fn file(pod: &Pod, file: &DownwardAPIVolumeFile, node: &NodeCapacity) -> Result<String, Cause> {
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), _) => self::field(pod, &field.field_path),
        (None, Some(resource)) => self::resource(pod, resource, node),
        (None, None) => Err(Cause::Downward(format!("downwardAPI file {:?} names no field", file.path))),
    }
}

fn field(pod: &Pod, path: &str) -> Result<String, Cause> {
    let meta = &pod.metadata;
    let unsupported = || Cause::Downward(format!("unsupported fieldPath: {path}"));
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(unsupported()),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        _ => return Err(unsupported()),
    })
}

/// One `key="value"` a line, sorted; the value as Go quotes it.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let mut out = String::new();
    for (index, (key, value)) in map.into_iter().flatten().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let _ = write!(out, "{key}={}", go_quote(value));
    }
    out
}

fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || u32::from(c) == 0x7f => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn resource(pod: &Pod, field: &ResourceFieldSelector, node: &NodeCapacity) -> Result<String, Cause> {
    let name = field.container_name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let container = containers.into_iter().find(|c| c.name == name);
    let container = container.ok_or_else(|| Cause::Downward(format!("container {name} not found")))?;
    let divisor = field.divisor.as_ref().and_then(|d| d.0.parse::<Quantity>().ok());
    value(container.resources.as_ref(), &field.resource, divisor, node)
        .ok_or_else(|| Cause::Downward(format!("unsupported container resource : {}", field.resource)))
}

/// The amount in units of the divisor, rounded up. A limit that is not set is what the node can give.
fn value(
    resources: Option<&ResourceRequirements>,
    path: &str,
    divisor: Option<Quantity>,
    node: &NodeCapacity,
) -> Option<String> {
    let (list, resource) = path.split_once('.')?;
    let list = match list {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return None,
    };
    let set = list.and_then(|l| l.get(resource)).and_then(|q| q.0.parse::<Quantity>().ok());
    let of_node = |amount: Quantity| if path.starts_with("limits.") { amount } else { Quantity::of(0) };
    let amount = match resource {
        "cpu" => set.unwrap_or_else(|| of_node(Quantity::of_milli(node.milli_cpu))),
        "memory" => set.unwrap_or_else(|| of_node(Quantity::of(node.memory))),
        "ephemeral-storage" => set.unwrap_or_else(|| of_node(Quantity::of(node.ephemeral_storage))),
        huge if huge.starts_with("hugepages-") => set.unwrap_or(Quantity::of(0)),
        _ => return None,
    };
    let divided = if resource == "cpu" {
        let unit = divisor.map_or(1000, Quantity::milli_value).max(1);
        divide_up(amount.milli_value(), if divisor.is_some_and(Quantity::is_zero) { 1000 } else { unit })
    } else {
        divide_up(amount.value(), divisor.map_or(1, Quantity::value).max(1))
    };
    Some(divided.to_string())
}

fn divide_up(amount: i64, unit: i64) -> i64 {
    amount / unit + i64::from(amount % unit > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_and_resources_as_text() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"b": "2", "a": "say \"x\"\n"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]},
        }))
        .unwrap();
        let node = NodeCapacity { milli_cpu: 2000, memory: 1 << 30, ephemeral_storage: 0 };
        assert_eq!(field(&pod, "metadata.labels").unwrap(), "a=\"say \\\"x\\\"\\n\"\nb=\"2\"");
        assert_eq!(field(&pod, "metadata.labels['b']").unwrap(), "2");
        assert!(field(&pod, "spec.nodeName").is_err());
        let read = |resource: &str, divisor: Option<&str>| {
            let field = json!({"containerName": "c", "resource": resource, "divisor": divisor});
            super::resource(&pod, &serde_json::from_value(field).unwrap(), &node).unwrap()
        };
        assert_eq!(read("limits.cpu", None), "2");
        assert_eq!(read("limits.cpu", Some("1m")), "1500");
        assert_eq!(read("limits.memory", Some("1Mi")), "1024");
        assert_eq!(read("requests.memory", None), "0");
    }
}
