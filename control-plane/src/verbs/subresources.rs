//! The parts of objects that are written under paths of their own: status, scale, binding, eviction and the like.

use api::status::Status;
use serde_json::{Value, json};

use super::{Call, Change, DeleteOptions, Deleted, Updated, meta};
use crate::registry::Subresource;
use crate::server::Server;

/// Brings a new state into what a write to `call.subresource` may change, before it is validated.
pub(super) fn prepare(call: &Call, new: &mut Value, old: &Value) {
    let strategy = call.resource.strategy;
    match call.subresource {
        Some(Subresource::Status) => strategy.prepare_status(new, old),
        Some(Subresource::Finalize) => only(new, old, &["finalizers"]),
        Some(Subresource::EphemeralContainers) => only(new, old, &["ephemeralContainers"]),
        Some(Subresource::Resize) => resized(new, old),
        Some(Subresource::Binding) => {}
        _ => strategy.prepare_update(new, old),
    }
}

/// Whether a write may change what a plain update may not.
pub(super) fn has_rules_of_its_own(call: &Call) -> bool {
    matches!(
        call.subresource,
        Some(Subresource::Finalize | Subresource::EphemeralContainers | Subresource::Resize | Subresource::Binding)
    )
}

/// The old state with some fields of the new one's spec.
fn only(new: &mut Value, old: &Value, fields: &[&str]) {
    let mut kept = old.clone();
    kept["metadata"]["resourceVersion"] = new["metadata"]["resourceVersion"].take();
    for field in fields {
        match (new["spec"].get(*field), kept["spec"].as_object_mut()) {
            (Some(value), Some(spec)) => {
                spec.insert((*field).into(), value.clone());
            }
            (None, Some(spec)) => {
                spec.shift_remove(*field);
            }
            (Some(value), None) => kept["spec"] = json!({*field: value}),
            (None, None) => {}
        }
    }
    *new = kept;
}

/// The old pod with the new one's resources and resize policies, container by container.
fn resized(new: &mut Value, old: &Value) {
    let mut kept = old.clone();
    kept["metadata"]["resourceVersion"] = new["metadata"]["resourceVersion"].take();
    for list in ["containers", "initContainers"] {
        for container in kept["spec"][list].as_array_mut().into_iter().flatten() {
            let mut wanted = new["spec"][list].as_array().into_iter().flatten();
            let Some(wanted) = wanted.find(|w| w["name"] == container["name"]) else { continue };
            let Some(fields) = container.as_object_mut() else { continue };
            for field in ["resources", "resizePolicy"] {
                match wanted.get(field) {
                    Some(value) => fields.insert(field.into(), value.clone()),
                    None => fields.shift_remove(field),
                };
            }
        }
    }
    if kept["spec"] != old["spec"]
        && let Some(generation) = kept["metadata"]["generation"].as_i64()
    {
        kept["metadata"]["generation"] = (generation + 1).into();
    }
    *new = kept;
}

/// An object's `autoscaling/v1` Scale.
///
/// # Errors
/// Where its selector is none.
pub fn scale(object: &Value) -> Result<Value, Status> {
    let selector = api::labels::Selector::from_object(&object["spec"]["selector"]).map_err(Status::internal)?;
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let replicas = |part: &str| object[part]["replicas"].as_i64().unwrap_or(0);
    let mut spec = json!({});
    if replicas("spec") != 0 {
        spec["replicas"] = replicas("spec").into();
    }
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec,
        "status": {"replicas": replicas("status"), "selector": selector.to_string()},
    }))
}

/// A change of a Scale as a change of the object behind it.
fn rescale(change: Change, name: String) -> Change {
    Change::Patch(Box::new(move |object| {
        let wanted = match &change {
            Change::Replace(scale) => scale.clone(),
            Change::Patch(patch) => patch(&scale(object)?)?,
        };
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let why = "must be greater than or equal to 0";
            let error = api::status::FieldError::invalid("spec.replicas", replicas, why);
            return Err(Status::invalid("Scale.autoscaling", &name, &[error]));
        }
        let mut object = object.clone();
        object["spec"]["replicas"] = replicas.into();
        let version = meta(&wanted, "resourceVersion");
        if !version.is_empty() {
            object["metadata"]["resourceVersion"] = version.into();
        }
        Ok(object)
    }))
}

/// The pod with the node that a Binding gives it.
fn bound(pod: &Value, binding: &Value, now: i64) -> Result<Value, String> {
    let name = meta(pod, "name");
    if !meta(pod, "deletionTimestamp").is_empty() {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
        return Err(format!("pod {name} is already assigned to node {node:?}"));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let (wanted, uid) = (meta(binding, "uid"), meta(pod, "uid"));
    if !wanted.is_empty() && wanted != uid {
        return Err(format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            pod["metadata"][field][key] = value.clone();
        }
    }
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let was = conditions.iter().position(|c| c["type"] == "PodScheduled");
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": api::time::format(now)});
    match was {
        Some(index) if conditions[index]["status"] == "True" => {}
        Some(index) => conditions[index] = scheduled,
        None => conditions.push(scheduled),
    }
    pod["status"]["conditions"] = conditions.into();
    Ok(pod)
}

impl Server {
    /// Writes a Scale and gives the new one.
    ///
    /// # Errors
    /// What the API answers.
    pub async fn update_scale(&self, call: &mut Call, change: Change) -> Result<Value, Status> {
        let change = rescale(change, call.name.clone());
        let subresource = call.subresource.take();
        let Updated { object, .. } = self.update_object(call, &change).await?;
        call.subresource = subresource;
        scale(&object)
    }

    /// Gives a pod its node.
    ///
    /// # Errors
    /// What the API answers: 409 for a pod that has one.
    pub async fn bind(&self, call: &mut Call, binding: Value) -> Result<Value, Status> {
        let target = &binding["target"];
        if target["name"].as_str().is_none_or(str::is_empty) {
            let error = api::status::FieldError::required("target.name", "");
            return Err(Status::invalid("Binding", &call.name, &[error]));
        }
        if target["kind"].as_str().is_some_and(|kind| !kind.is_empty() && kind != "Node") {
            let error =
                api::status::FieldError::not_supported("target.kind", target["kind"].clone(), &["Node", "<empty>"]);
            return Err(Status::invalid("Binding", &call.name, &[error]));
        }
        call.subresource = Some(Subresource::Binding);
        let (name, now) = (call.name.clone(), self.now());
        let change = Change::Patch(Box::new(move |pod| {
            bound(pod, &binding, now).map_err(|why| Status::conflict("pods/binding", &name, &why))
        }));
        self.update_object(call, &change).await?;
        Ok(success(201))
    }

    /// Deletes a pod for somebody who asked politely.
    ///
    /// # Errors
    /// What the API answers.
    pub async fn evict(&self, call: &mut Call, eviction: &Value) -> Result<Value, Status> {
        let name = meta(eviction, "name");
        if !name.is_empty() && name != call.name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let options = match eviction.get("deleteOptions") {
            Some(options) => DeleteOptions::parse(options)?,
            None => DeleteOptions::default(),
        };
        call.subresource = None;
        let Deleted { .. } = self.delete_object(call, &options).await?;
        Ok(success(201))
    }

    /// The object that a write to a subresource begins with, for a GET of that subresource.
    ///
    /// # Errors
    /// 404, or 500 where the store fails.
    pub async fn get_part(&self, call: &Call) -> Result<Value, Status> {
        let object = self.get(call.resource, &call.namespace, &call.name).await?;
        match call.subresource {
            Some(Subresource::Scale) => scale(&object),
            _ => Ok((*object).clone()),
        }
    }
}

/// The Status that says that it was done.
pub(super) fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}});
        let binding = json!({"target": {"name": "n1"}});
        let pod = bound(&pod, &binding, 0).unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
        assert_eq!(bound(&pod, &binding, 0), Err("pod p is already assigned to node \"n1\"".into()));
    }

    #[test]
    fn a_scale_shows_and_sets_replicas() {
        let object = json!({"metadata": {"name": "d", "resourceVersion": "4"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        let shown = scale(&object).unwrap();
        assert_eq!(shown["status"], json!({"replicas": 1, "selector": "a=b"}));
        let Change::Patch(patch) = rescale(Change::Replace(json!({"spec": {"replicas": 5}})), "d".into()) else {
            panic!("a patch")
        };
        assert_eq!(patch(&object).unwrap()["spec"]["replicas"], 5);
    }

    #[test]
    fn only_the_finalizers_change() {
        let old = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "x"}});
        let mut new = json!({"metadata": {"name": "n", "resourceVersion": "4"}, "spec": {}, "status": {"phase": "y"}});
        only(&mut new, &old, &["finalizers"]);
        assert_eq!(
            new,
            json!({"metadata": {"name": "n", "resourceVersion": "4"}, "spec": {}, "status": {"phase": "x"}})
        );
    }
}
