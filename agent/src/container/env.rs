//! A container's environment: from values, fields of its pod, resources, config maps, secrets and Services.

use super::expand::expand;
use crate::pod::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::{Container, EnvVar, ObjectFieldSelector, Pod, ResourceFieldSelector};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Where values come from that are neither in the pod nor computed.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Data by name; an absent object is `None`.
    pub config_maps: BTreeMap<String, Option<BTreeMap<String, String>>>,
    pub secrets: BTreeMap<String, Option<BTreeMap<String, String>>>,
    /// The variables of service links.
    pub services: BTreeMap<String, String>,
    pub pod_ips: Vec<IpAddr>,
    pub host_ips: Vec<IpAddr>,
    /// What limits fall back to: the node's allocatable cpu (thousandths) and memory (bytes).
    pub allocatable_milli_cpu: i64,
    pub allocatable_memory: i64,
}

/// Why an environment cannot be made. The message becomes CreateContainerConfigError's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} {name:?} not found")]
    NoObject { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, namespace: String, name: String, key: String },
    #[error("unsupported fieldPath: {path}")]
    Field { path: String },
    #[error("unsupported container resource: {resource}")]
    Resource { resource: String },
    #[error("environment variable {name:?} has a value from a source that is not supported")]
    Source { name: String },
}

/// Names of the config maps and of the secrets that the environment draws on.
pub fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for source in container.env_from.iter().flatten() {
        maps.extend(source.config_map_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|reference| reference.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(from.secret_key_ref.iter().map(|reference| reference.name.clone()));
    }
    (maps, secrets)
}

/// The environment by name. What stands later in the spec wins, and service links give way to all else.
///
/// # Errors
/// Where something that is not optional is missing.
pub fn environment(pod: &Pod, container: &Container, sources: &Sources) -> Result<BTreeMap<String, String>, EnvError> {
    let mut env = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (kind, objects, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), _) => ("configmap", &sources.config_maps, &map.name, map.optional),
            (None, Some(secret)) => ("secret", &sources.secrets, &secret.name, secret.optional),
            (None, None) => continue,
        };
        match objects.get(name).and_then(Option::as_ref) {
            Some(data) => env.extend(data.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone()))),
            None if optional == Some(true) => {}
            None => return Err(EnvError::NoObject { kind, name: name.clone() }),
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(pod, container, variable, sources, &env)? {
            env.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in &sources.services {
        env.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Ok(env)
}

fn value(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    sources: &Sources,
    env: &BTreeMap<String, String>,
) -> Result<Option<String>, EnvError> {
    let Some(from) = &variable.value_from else {
        let lookup = |name: &str| env.get(name).or_else(|| sources.services.get(name)).cloned();
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), lookup)));
    };
    if let Some(field) = &from.field_ref {
        return pod_field(pod, field, sources).map(Some);
    }
    if let Some(field) = &from.resource_field_ref {
        return resource_field(pod, container, field, sources).map(Some);
    }
    if let Some(key) = &from.config_map_key_ref {
        return keyed(pod, "ConfigMap", &sources.config_maps, (&key.name, &key.key, key.optional));
    }
    if let Some(key) = &from.secret_key_ref {
        return keyed(pod, "Secret", &sources.secrets, (&key.name, &key.key, key.optional));
    }
    Err(EnvError::Source { name: variable.name.clone() })
}

fn keyed(
    pod: &Pod,
    kind: &'static str,
    objects: &BTreeMap<String, Option<BTreeMap<String, String>>>,
    (name, key, optional): (&str, &str, Option<bool>),
) -> Result<Option<String>, EnvError> {
    let data = objects.get(name).and_then(Option::as_ref);
    match data.map(|data| data.get(key)) {
        Some(Some(value)) => Ok(Some(value.clone())),
        _ if optional == Some(true) => Ok(None),
        Some(None) => {
            let namespace = spec::namespace(pod).to_string();
            Err(EnvError::NoKey { kind, namespace, name: name.into(), key: key.into() })
        }
        None => {
            Err(EnvError::NoObject { kind: if kind == "Secret" { "secret" } else { "configmap" }, name: name.into() })
        }
    }
}

fn pod_field(pod: &Pod, field: &ObjectFieldSelector, sources: &Sources) -> Result<String, EnvError> {
    let path = field.field_path.as_str();
    let spec_of = pod.spec.as_ref();
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let in_map = |map: &Option<BTreeMap<String, String>>, inner: &str| {
        let key = inner.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    let known = match path {
        "metadata.name" => Some(spec::name(pod).to_string()),
        "metadata.namespace" => Some(spec::namespace(pod).to_string()),
        "metadata.uid" => Some(spec::uid(pod).to_string()),
        "spec.nodeName" => Some(spec_of.and_then(|spec| spec.node_name.clone()).unwrap_or_default()),
        "spec.serviceAccountName" => {
            Some(spec_of.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default())
        }
        "status.hostIP" => Some(first(&sources.host_ips)),
        "status.hostIPs" => Some(join(&sources.host_ips)),
        "status.podIP" => Some(first(&sources.pod_ips)),
        "status.podIPs" => Some(join(&sources.pod_ips)),
        _ => None,
    };
    let subscript = || {
        let labels = path.strip_prefix("metadata.labels['").and_then(|key| in_map(&pod.metadata.labels, key));
        labels.or_else(|| {
            path.strip_prefix("metadata.annotations['").and_then(|key| in_map(&pod.metadata.annotations, key))
        })
    };
    known.or_else(subscript).ok_or_else(|| EnvError::Field { path: path.to_string() })
}

fn resource_field(
    pod: &Pod,
    own: &Container,
    field: &ResourceFieldSelector,
    sources: &Sources,
) -> Result<String, EnvError> {
    let named = field.container_name.as_deref().filter(|name| !name.is_empty());
    let container = named.and_then(|name| spec::all_containers(pod).find(|c| c.name == name)).unwrap_or(own);
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let divisor = field.divisor.as_ref().map_or("1", |divisor| divisor.0.as_str());
    let divisor = quantity::milli(divisor).filter(|milli| *milli > 0).unwrap_or(1000);
    let or = |value: i64, fallback: i64| if value == 0 { fallback } else { value };
    let resource = field.resource.as_str();
    let milli = match resource {
        "limits.cpu" => or(quantity::milli_of(limits, "cpu"), sources.allocatable_milli_cpu),
        "limits.memory" => or(quantity::units_of(limits, "memory"), sources.allocatable_memory).saturating_mul(1000),
        _ => match resource.split_once('.') {
            Some(("limits", name)) => quantity::milli_of(limits, name),
            Some(("requests", name)) => quantity::milli_of(requests, name),
            _ => return Err(EnvError::Resource { resource: resource.to_string() }),
        },
    };
    Ok((milli / divisor + i64::from(milli % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture::pod;
    use serde_json::{Value, json};

    fn sources() -> Sources {
        let data = |pairs: &[(&str, &str)]| Some(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
        Sources {
            config_maps: BTreeMap::from([("cm".into(), data(&[("k", "v"), ("shared", "map")])), ("gone".into(), None)]),
            secrets: BTreeMap::from([("s".into(), data(&[("token", "t")]))]),
            services: BTreeMap::from([("WEB_SERVICE_HOST".into(), "10.96.0.7".into()), ("X".into(), "svc".into())]),
            pod_ips: vec![IpAddr::from([10, 244, 0, 9])],
            host_ips: vec![IpAddr::from([172, 31, 0, 2])],
            allocatable_milli_cpu: 2000,
            allocatable_memory: 1 << 30,
        }
    }

    fn made(container: Value) -> Result<BTreeMap<String, String>, EnvError> {
        let mut container = container;
        container["name"] = json!("a");
        let pod = pod(json!({"containers": [container]}));
        environment(&pod, &spec::containers(&pod)[0], &sources())
    }

    fn field(path: &str) -> Value {
        json!({"name": "F", "valueFrom": {"fieldRef": {"fieldPath": path}}})
    }

    #[test]
    fn later_wins_values_expand_and_services_give_way() {
        let env = made(json!({
            "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "P_"}],
            "env": [
                {"name": "X", "value": "mine"},
                {"name": "Y", "value": "$(X)/$(P_k)/$(WEB_SERVICE_HOST)/$(LATER)"},
                {"name": "LATER", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
            ],
        }));
        let lines: Vec<String> = env.unwrap().into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        let expected =
            ["LATER=t", "P_k=v", "P_shared=map", "WEB_SERVICE_HOST=10.96.0.7", "X=mine", "Y=mine/v/10.96.0.7/$(LATER)"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn fields_and_resources() {
        let one = |variable: Value| made(json!({"env": [variable]})).unwrap()["F"].clone();
        assert_eq!(one(field("metadata.name")), "web");
        assert_eq!(one(field("status.podIP")), "10.244.0.9");
        assert_eq!(one(field("metadata.labels['none']")), "");
        let resource = |resource, divisor| {
            let container = json!({
                "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}},
                "env": [{"name": "F", "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}}],
            });
            made(container).unwrap()["F"].clone()
        };
        assert_eq!(resource("limits.cpu", "0"), "2");
        assert_eq!(resource("limits.cpu", "1m"), "1500");
        assert_eq!(resource("limits.memory", "1Mi"), "64");
        assert_eq!(resource("requests.cpu", "1m"), "0");
        let unlimited = json!({"name": "F", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}});
        assert_eq!(one(unlimited), (1u64 << 30).to_string());
    }

    #[test]
    fn what_is_missing_is_named_unless_optional() {
        let key = |name: &str, key: &str, optional: bool| {
            let from = json!({"configMapKeyRef": {"name": name, "key": key, "optional": optional}});
            made(json!({"env": [{"name": "F", "valueFrom": from}]}))
        };
        assert_eq!(key("cm", "nope", false).unwrap_err().to_string(), "couldn't find key nope in ConfigMap shop/cm");
        assert_eq!(key("gone", "k", false).unwrap_err().to_string(), "configmap \"gone\" not found");
        assert_eq!(key("gone", "k", true).unwrap().get("F"), None);
        assert!(matches!(made(json!({"env": [field("spec.nope")]})), Err(EnvError::Field { .. })));
    }
}
