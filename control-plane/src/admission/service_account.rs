//! ServiceAccount: every pod has one, and its containers find its token, the cluster's authority and their namespace
//! under /var/run/secrets/kubernetes.io/serviceaccount.

use std::sync::Arc;
use std::time::Duration;

use api::meta;
use api::status::Status;
use serde_json::{Value, json};

use super::{Admitted, creates_pod, forbid, list};
use crate::ports::{Admission, AdmissionRequest};
use crate::server::Server;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";
const DEFAULT: &str = "default";
/// A namespace's default account is made by a controller; a pod that comes with its namespace waits this long for it.
const ATTEMPTS: usize = 10;
const RETRY: Duration = Duration::from_millis(150);

pub struct ServiceAccount;

impl Admission for ServiceAccount {
    fn admit<'a>(&'a self, server: &'a Server, request: &'a mut AdmissionRequest) -> Admitted<'a> {
        Box::pin(async move {
            if !creates_pod(request) {
                return Ok(());
            }
            if meta::annotation(&request.object, MIRROR).is_some() {
                return check_mirror(&request.object).map_err(|why| forbid(request, why));
            }
            let name = choose(&mut request.object);
            let namespace = request.attributes.namespace.clone();
            let account = find(server, &namespace, &name).await.map_err(|status| {
                forbid(request, &format!("error looking up service account {namespace}/{name}: {status}"))
            })?;
            equip(&mut request.object, &account, &crate::random::name(VOLUME_PREFIX));
            Ok(())
        })
    }
}

async fn find(server: &Server, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
    let missing = || Status::not_found("serviceaccount", name);
    let resource = server.resource("", "serviceaccounts").ok_or_else(missing)?;
    let attempts = if name == DEFAULT { ATTEMPTS } else { 1 };
    for attempt in 0..attempts {
        if attempt > 0 {
            tokio::time::sleep(RETRY).await;
        }
        match server.get(resource, namespace, name).await {
            Err(status) if status.code == 404 => {}
            result => return result,
        }
    }
    Err(missing())
}

/// The account's name, which the pod carries afterwards.
fn choose(pod: &mut Value) -> String {
    let spec = &mut pod["spec"];
    let mut name = spec["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        name = spec["serviceAccount"].as_str().filter(|n| !n.is_empty()).unwrap_or(DEFAULT).to_owned();
    }
    spec["serviceAccountName"] = name.as_str().into();
    spec["serviceAccount"] = name.as_str().into();
    name
}

/// Adds what the account gives: the token's volume and mounts, and secrets to pull images with.
fn equip(pod: &mut Value, account: &Value, volume: &str) {
    let wishes = [&pod["spec"]["automountServiceAccountToken"], &account["automountServiceAccountToken"]];
    if wishes.into_iter().find_map(Value::as_bool).unwrap_or(true) {
        mount(&mut pod["spec"], volume);
    }
    let has_secrets = pod["spec"]["imagePullSecrets"].as_array().is_some_and(|secrets| !secrets.is_empty());
    let secrets = account["imagePullSecrets"].as_array().filter(|secrets| !secrets.is_empty());
    if let Some(secrets) = secrets.filter(|_| !has_secrets) {
        pod["spec"]["imagePullSecrets"] = secrets.iter().map(|secret| json!({"name": secret["name"]})).collect();
    }
}

fn mount(spec: &mut Value, volume: &str) {
    let name_of = |v: &Value| v["name"].as_str().filter(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let present = spec["volumes"].as_array().into_iter().flatten().find_map(name_of);
    let name = present.clone().unwrap_or_else(|| volume.to_owned());
    let mut needed = false;
    for kind in ["initContainers", "containers"] {
        for container in spec.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(mounts) = list(container, "volumeMounts") else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if needed
        && present.is_none()
        && let Some(volumes) = list(spec, "volumes")
    {
        volumes.push(token_volume(&name));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": crate::token::POD_TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ],
        "defaultMode": 420,
    }})
}

/// A static pod's mirror came from a node's folder: it may not lead the node to anybody's secrets.
fn check_mirror(pod: &Value) -> Result<(), &'static str> {
    let spec = &pod["spec"];
    if !spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    let volumes = || spec["volumes"].as_array().into_iter().flatten();
    let projections = || volumes().filter_map(|v| v["projected"]["sources"].as_array()).flatten();
    let containers = ["initContainers", "containers"].into_iter().filter_map(|kind| spec[kind].as_array()).flatten();
    let in_env = |container: &Value| {
        let any = |field: &str, pointer: &str| {
            container[field]
                .as_array()
                .into_iter()
                .flatten()
                .any(|env| env.pointer(pointer).is_some_and(|v| !v.is_null()))
        };
        any("env", "/valueFrom/secretKeyRef") || any("envFrom", "/secretRef")
    };
    let secrets = volumes().chain(projections()).any(|source| !source["secret"].is_null())
        || spec["imagePullSecrets"].as_array().is_some_and(|secrets| !secrets.is_empty())
        || containers.into_iter().any(in_env);
    if secrets {
        return Err("a mirror pod may not reference secrets");
    }
    if projections().any(|source| !source["serviceAccountToken"].is_null()) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_finds_the_token_once() {
        let own = json!({"name": "mine", "mountPath": MOUNT_PATH});
        let mut pod = json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}, {"name": "b", "volumeMounts": [own]}],
        }});
        equip(&mut pod, &json!({}), "kube-api-access-abcde");
        let ours = json!({"name": "kube-api-access-abcde", "readOnly": true, "mountPath": MOUNT_PATH});
        assert_eq!(pod["spec"]["initContainers"][0]["volumeMounts"], json!([ours]));
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][1], ours);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(
            pod["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
            3607
        );

        let once = pod.clone();
        equip(&mut pod, &json!({}), "kube-api-access-other");
        assert_eq!(pod, once);
    }

    #[test]
    fn pod_and_account_may_decline() {
        let plain = json!({"spec": {"containers": [{"name": "a"}]}});
        let mut pod = plain.clone();
        equip(&mut pod, &json!({"automountServiceAccountToken": false}), "v");
        assert_eq!(pod, plain);
        pod["spec"]["automountServiceAccountToken"] = true.into();
        equip(&mut pod, &json!({"automountServiceAccountToken": false}), "v");
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn secrets_to_pull_with_come_from_the_account_where_the_pod_has_none() {
        let account = json!({"imagePullSecrets": [{"name": "regcred"}], "automountServiceAccountToken": false});
        let mut pod = json!({"spec": {}});
        equip(&mut pod, &account, "v");
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "regcred"}]));
        let mut own = json!({"spec": {"imagePullSecrets": [{"name": "mine"}]}});
        equip(&mut own, &account, "v");
        assert_eq!(own["spec"]["imagePullSecrets"], json!([{"name": "mine"}]));
    }

    #[test]
    fn the_deprecated_field_follows() {
        let mut pod = json!({"spec": {"serviceAccount": "old"}});
        assert_eq!(choose(&mut pod), "old");
        assert_eq!(pod["spec"]["serviceAccountName"], "old");
        assert_eq!(choose(&mut json!({"spec": {}})), "default");
    }

    #[test]
    fn mirrors_lead_nowhere() {
        assert_eq!(check_mirror(&json!({"spec": {"containers": [{"name": "a"}]}})), Ok(()));
        let env = json!({"spec": {"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]}]}});
        assert_eq!(check_mirror(&env), Err("a mirror pod may not reference secrets"));
        let token =
            json!({"spec": {"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}});
        assert_eq!(check_mirror(&token), Err("a mirror pod may not use ServiceAccountToken volume projections"));
    }
}
