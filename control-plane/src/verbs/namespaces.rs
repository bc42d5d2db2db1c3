//! What a namespace does to the objects in it. Source: the admission plugin NamespaceLifecycle.

use api::status::Status;
use serde_json::{Value, json};

use super::deletion::Verdict;
use super::{Call, meta};
use crate::registry::storage;
use crate::server::{Server, decode, from_store, qualified};

/// Namespaces that nobody may delete.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Whether a kind is `v1` Namespace.
pub(super) fn is_namespace(call: &Call) -> bool {
    call.resource.group.is_empty() && call.resource.plural == "namespaces"
}

/// Refuses to delete a namespace that must stay.
pub(super) fn may_delete(call: &Call) -> Result<(), Status> {
    if is_namespace(call) && IMMORTAL.contains(&call.name.as_str()) {
        return Err(Status::forbidden("namespaces", &call.name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// The phase of a namespace follows its deletion.
pub(super) fn mark(call: &Call, object: &mut Value) {
    if is_namespace(call)
        && !meta(object, "deletionTimestamp").is_empty()
        && let Some(fields) = object.as_object_mut()
    {
        fields.entry("status").or_insert_with(|| json!({}))["phase"] = "Terminating".into();
    }
}

/// What a delete does to a namespace that still has content: it is marked once.
pub(super) fn terminating(object: &Value, now: i64) -> Verdict {
    if !meta(object, "deletionTimestamp").is_empty() {
        return Verdict::Pending;
    }
    let mut marked = object.clone();
    api::meta::set(&mut marked, "deletionTimestamp", api::time::format(now));
    Verdict::Marked(marked)
}

/// Whether a namespace still waits for its content to go.
pub(super) fn has_content_finalizer(call: &Call, object: &Value) -> bool {
    is_namespace(call) && object["spec"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}

impl Server {
    /// Refuses a new object in a namespace that is not there or is on its way out.
    pub(super) async fn namespace_allows(&self, call: &Call, name: &str) -> Result<(), Status> {
        if !call.resource.namespaced || call.resource.virtual_only {
            return Ok(());
        }
        let Some(namespaces) = self.resource("", "namespaces") else { return Ok(()) };
        let key = storage::key(namespaces, "", &call.namespace);
        let Some(entry) = self.store.get(&key).await.map_err(from_store)?.1 else {
            return Err(Status::not_found("namespaces", &call.namespace));
        };
        let namespace = decode(namespaces, &entry)?;
        if namespace["status"]["phase"] != "Terminating" && meta(&namespace, "deletionTimestamp").is_empty() {
            return Ok(());
        }
        let why =
            format!("unable to create new content in namespace {} because it is being terminated", call.namespace);
        let mut status = Status::forbidden(&qualified(call.resource), name, &why);
        status.details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {} is being terminated", call.namespace),
            "field": "metadata.namespace",
        }]);
        Err(status)
    }
}
