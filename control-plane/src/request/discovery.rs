//! What the server serves, for clients that ask: group by group, or all at once (`apidiscovery.k8s.io/v2`).

use api::status::Status;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Asked, body, text};
use crate::ports::Body;
use crate::registry::{Registry, Resource, Subresource};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The verbs of a kind.
fn verbs(resource: &Resource) -> &'static [&'static str] {
    if resource.virtual_only {
        return &["create"];
    }
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
}

/// Group, version and kind of what a subresource carries, and its verbs.
fn part(resource: &Resource, subresource: Subresource) -> ((String, String, String), &'static [&'static str]) {
    let own = || (resource.group.into(), resource.version.into(), resource.kind.into());
    let other = |group: &str, version: &str, kind: &str| (group.into(), version.into(), kind.into());
    match subresource {
        Subresource::Status | Subresource::EphemeralContainers | Subresource::Resize => {
            (own(), &["get", "patch", "update"])
        }
        Subresource::Scale => (other("autoscaling", "v1", "Scale"), &["get", "patch", "update"]),
        Subresource::Finalize => (own(), &["update"]),
        Subresource::Binding => (other("", "v1", "Binding"), &["create"]),
        Subresource::Eviction => (other("policy", "v1", "Eviction"), &["create"]),
        Subresource::Token => (other("authentication.k8s.io", "v1", "TokenRequest"), &["create"]),
        Subresource::Log => (own(), &["get"]),
        Subresource::Exec => (other("", "v1", "PodExecOptions"), &["create", "get"]),
        Subresource::Attach => (other("", "v1", "PodAttachOptions"), &["create", "get"]),
        Subresource::PortForward => (other("", "v1", "PodPortForwardOptions"), &["create", "get"]),
        Subresource::Proxy => {
            let kind = format!("{}ProxyOptions", resource.kind);
            (other("", "v1", &kind), &["create", "delete", "get", "patch", "update"])
        }
    }
}

/// There are none, which is what kubectl asks before it says that it does not know a kind.
pub(super) fn custom_resources(asked: &Asked<'_>) -> Response<Body> {
    let list = json!({
        "kind": "CustomResourceDefinitionList", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"resourceVersion": asked.server.store.revision().to_string()}, "items": [],
    });
    body::answer(200, "application/json", list.to_string())
}

/// Groups in their order, each with its versions.
fn grouped(registry: &Registry) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in registry.rows() {
        match groups.iter_mut().find(|(group, _)| *group == row.group) {
            Some((_, versions)) if versions.contains(&row.version) => {}
            Some((_, versions)) => versions.push(row.version),
            None => groups.push((row.group, vec![row.version])),
        }
    }
    groups
}

fn rows<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Resource> {
    registry.rows().iter().copied().filter(move |row| row.group == group && row.version == version)
}

/// The `APIResourceList` of a version.
fn resource_list(registry: &Registry, group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for row in rows(registry, group, version) {
        let mut entry = json!({
            "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
            "verbs": verbs(row),
        });
        if !row.short_names.is_empty() {
            entry["shortNames"] = json!(row.short_names);
        }
        if !row.categories.is_empty() {
            entry["categories"] = json!(row.categories);
        }
        if !row.virtual_only {
            entry["storageVersionHash"] = hash(&format!("{}/{}/{}", row.group, row.version, row.kind)).into();
        }
        resources.push(entry);
        for &subresource in row.subresources {
            let ((group, version, kind), verbs) = part(row, subresource);
            let mut entry = json!({
                "name": format!("{}/{}", row.plural, subresource.path()), "singularName": "",
                "namespaced": row.namespaced, "kind": kind, "verbs": verbs,
            });
            if (group.as_str(), version.as_str()) != (row.group, row.version) {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            resources.push(entry);
        }
    }
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version),
        "resources": resources,
    })
}

fn hash(text: &str) -> String {
    use base64::Engine;
    let digest = Sha256::digest(text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn api_group(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": group_version(group, version), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

/// An `APIGroupDiscovery`.
fn discovered(registry: &Registry, group: &str, versions: &[&str]) -> Value {
    let kind =
        |(group, version, kind): (String, String, String)| json!({"group": group, "version": version, "kind": kind});
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = rows(registry, group, version)
                .map(|row| {
                    let parts: Vec<Value> = row
                        .subresources
                        .iter()
                        .map(|&s| {
                            let (response, verbs) = part(row, s);
                            json!({"subresource": s.path(), "responseKind": kind(response), "verbs": verbs})
                        })
                        .collect();
                    let mut entry = json!({
                        "resource": row.plural,
                        "responseKind": kind((row.group.into(), row.version.into(), row.kind.into())),
                        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
                        "singularResource": row.singular, "verbs": verbs(row),
                    });
                    for (name, list) in [("shortNames", row.short_names), ("categories", row.categories)] {
                        if !list.is_empty() {
                            entry[name] = json!(list);
                        }
                    }
                    if !parts.is_empty() {
                        entry["subresources"] = parts.into();
                    }
                    entry
                })
                .collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    json!({"metadata": metadata, "versions": versions})
}

fn wants_aggregated(asked: &Asked<'_>) -> bool {
    let accept = text(&asked.head, header::ACCEPT).unwrap_or_default();
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        parts.next() == Some("application/json")
            && ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"].iter().all(|p| range.contains(p))
            && !range.contains("v=v2beta1")
    })
}

/// An answer that a client may keep: 304 where it has it.
fn cacheable(asked: &Asked<'_>, content_type: &str, value: &Value) -> Result<Response<Body>, Status> {
    let bytes = serde_json::to_vec(value).map_err(Status::internal)?;
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02X}")).collect();
    let tag = format!("\"{digest}\"");
    let known = text(&asked.head, header::IF_NONE_MATCH) == Some(tag.as_str());
    let mut response =
        if known { body::answer(304, content_type, Vec::new()) } else { body::answer(200, content_type, bytes) };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}

fn aggregated(asked: &Asked<'_>, groups: &[(&str, Vec<&str>)]) -> Result<Response<Body>, Status> {
    let registry = &asked.server.registry;
    let items: Vec<Value> = groups.iter().map(|(group, versions)| discovered(registry, group, versions)).collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    cacheable(asked, AGGREGATED, &list)
}

/// `/api`
pub(super) fn core_versions(asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let groups = grouped(&asked.server.registry);
    let core: Vec<_> = groups.into_iter().filter(|(group, _)| group.is_empty()).collect();
    if wants_aggregated(asked) {
        return aggregated(asked, &core);
    }
    let versions = core.first().map_or(&[][..], |(_, versions)| versions);
    let config = &asked.server.config;
    let address = std::net::SocketAddr::new(config.advertise_address, config.secure_port).to_string();
    let value = json!({
        "kind": "APIVersions", "versions": versions,
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    });
    body::object(200, asked.format()?, &value)
}

/// `/apis`
pub(super) fn groups(asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let groups = grouped(&asked.server.registry);
    let named: Vec<_> = groups.into_iter().filter(|(group, _)| !group.is_empty()).collect();
    if wants_aggregated(asked) {
        return aggregated(asked, &named);
    }
    let groups: Vec<Value> = named.iter().map(|(group, versions)| api_group(group, versions)).collect();
    body::object(200, asked.format()?, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

fn missing() -> Status {
    Status::new(404, "NotFound", "the server could not find the requested resource")
}

/// `/apis/GROUP`
pub(super) fn group(asked: &Asked<'_>, group: &str) -> Result<Response<Body>, Status> {
    let groups = grouped(&asked.server.registry);
    let (_, versions) = groups.iter().find(|(known, _)| *known == group).ok_or_else(missing)?;
    let mut value = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Some(to), Some(from)) = (value.as_object_mut(), api_group(group, versions).as_object()) {
        to.extend(from.clone());
    }
    body::object(200, asked.format()?, &value)
}

/// `/api/v1` and `/apis/GROUP/VERSION`
pub(super) fn version(asked: &Asked<'_>, group: &str, version: &str) -> Result<Response<Body>, Status> {
    let registry = &asked.server.registry;
    rows(registry, group, version).next().ok_or_else(missing)?;
    body::object(200, asked.format()?, &resource_list(registry, group, version))
}

/// `/`
pub(super) fn root(asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    for (group, versions) in grouped(&asked.server.registry) {
        let base = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        if !group.is_empty() {
            paths.push(base.clone());
        }
        paths.extend(versions.iter().map(|version| format!("{base}/{version}")));
    }
    for path in ["/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version"] {
        paths.push(path.into());
    }
    paths.sort();
    body::object(200, asked.format()?, &json!({"paths": paths}))
}
