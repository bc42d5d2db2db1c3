//! What kinds the API server has, and calls on objects of any of them.

use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::core::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};

/// A kind of object, and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Kind {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Calls on this kind in a namespace; on all of it where the namespace is empty.
    pub fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() || !self.namespaced {
            Api::all_with(client.clone(), &self.resource)
        } else {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        }
    }
}

/// All kinds, each in its group's preferred version, and the groups that did not answer.
///
/// # Errors
/// Where the API server does not list its groups.
pub async fn discover(client: &Client) -> anyhow::Result<(Vec<Kind>, Vec<String>)> {
    let mut kinds = Vec::new();
    let core = client.list_core_api_resources("v1").await.context("discover the core API's resources")?;
    kinds.extend(core.resources.iter().filter_map(|resource| kind("", "v1", resource)));
    let mut silent = Vec::new();
    for group in client.list_api_groups().await.context("discover the API groups")?.groups {
        let mut versions: Vec<_> = group.versions.iter().map(|version| version.version.clone()).collect();
        let preferred = group.preferred_version.as_ref().map(|version| version.version.clone());
        versions.sort_by_key(|version| Some(version) != preferred.as_ref());
        let first = kinds.len();
        for version in versions {
            match client.list_api_group_resources(&format!("{}/{version}", group.name)).await {
                Ok(list) => {
                    let found = list.resources.iter().filter_map(|resource| kind(&group.name, &version, resource));
                    for kind in found {
                        if kinds[first..].iter().all(|known: &Kind| known.resource.plural != kind.resource.plural) {
                            kinds.push(kind);
                        }
                    }
                }
                Err(error) => silent.push(format!("{}/{version}: {error}", group.name)),
            }
        }
    }
    Ok((kinds, silent))
}

/// A kind of its own: neither a subresource nor a mere request.
fn kind(group: &str, version: &str, resource: &APIResource) -> Option<Kind> {
    if resource.name.contains('/') {
        return None;
    }
    let gvk = GroupVersionKind::gvk(group, version, &resource.kind);
    let found = Kind {
        resource: ApiResource::from_gvk_with_plural(&gvk, &resource.name),
        namespaced: resource.namespaced,
        verbs: resource.verbs.clone(),
    };
    found.can("list").then_some(found)
}
