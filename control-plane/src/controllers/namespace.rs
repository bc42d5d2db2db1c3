//! The namespace controller: what is in a namespace that is being deleted is deleted, then the namespace is let go.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use serde_json::{Value, json};

use super::Context;
use super::resources::{self, Kind};
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_conflict, is_not_found, now};

/// The finalizer of the specification that this controller takes away.
const FINALIZER: &str = "kubernetes";
/// How long to wait before what has not gone yet is looked at again.
const RECHECK: Duration = Duration::from_secs(1);

/// Runs the controller for ever.
pub async fn run(context: Arc<Context>) {
    let queue = Queue::new();
    let namespaces = queue.clone();
    context.stores.namespaces.on_change(move |_, new| {
        let deleted = new.filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
        namespaces.add_some(deleted.map(|namespace| Key::of(&**namespace)));
    });
    queue.work(5, |key| sync(context.clone(), key)).await;
}

/// What deleting a namespace's content came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Remains {
    discovery: Vec<String>,
    failures: Vec<String>,
    /// Kinds with the numbers of their objects that are still there.
    content: Vec<(String, usize)>,
    /// Finalizers with the numbers of the objects that have them.
    finalizers: Vec<(String, usize)>,
}

impl Remains {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

async fn sync(context: Arc<Context>, key: Key) -> anyhow::Result<Done> {
    let Some(namespace) = context.stores.namespaces.get(&key) else { return Ok(Done::Settled) };
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    if namespace.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(Done::Settled);
    }
    let api: Api<Namespace> = Api::all(context.client.clone());
    if namespace.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Terminating") {
        let phase = json!({"status": {"phase": "Terminating"}});
        write(&context, api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(phase)).await)?;
    }
    let remains = empty(&context, &key.name).await?;
    let before = namespace.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let conditions = conditions(&before, &remains, &now());
    if conditions != before {
        let patch = json!({"status": {"conditions": conditions}});
        write(&context, api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
    }
    if !remains.is_empty() {
        return Ok(Done::Again(RECHECK));
    }
    let mut finalized = Namespace::clone(&context.stores.namespaces.get(&key).unwrap_or(namespace));
    finalized.spec.get_or_insert_default().finalizers =
        Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
    let data = serde_json::to_vec(&finalized)?;
    let request = kube::core::Request::new("/api/v1/namespaces");
    let request = request.replace_subresource("finalize", &key.name, &PostParams::default(), data)?;
    match context.client.request::<Value>(request).await {
        Ok(_) => Ok(Done::Settled),
        Err(error) if is_not_found(&error) => Ok(Done::Settled),
        Err(error) if is_conflict(&error) => Ok(Done::Again(Duration::from_millis(50))),
        Err(error) => Err(error).with_context(|| format!("finalize namespace {key}")),
    }
}

fn write(context: &Context, written: kube::Result<Namespace>) -> anyhow::Result<()> {
    match written {
        Ok(namespace) => context.stores.namespaces.wrote(namespace),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error).context("write the namespace's status"),
    }
    Ok(())
}

/// Deletes all that is in a namespace, and says what is still there.
async fn empty(context: &Context, namespace: &str) -> anyhow::Result<Remains> {
    let (kinds, silent) = resources::discover(&context.client).await?;
    let mut remains = Remains { discovery: silent, ..Remains::default() };
    for kind in kinds.iter().filter(|kind| kind.namespaced && kind.can("delete")) {
        if let Err(error) = empty_of(context, namespace, kind, &mut remains).await {
            remains.failures.push(format!("{}: {error}", kind.resource.plural));
        }
    }
    Ok(remains)
}

async fn empty_of(context: &Context, namespace: &str, kind: &Kind, remains: &mut Remains) -> kube::Result<()> {
    let api = kind.api(&context.client, namespace);
    if api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
        return Ok(());
    }
    let background =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    if kind.can("deletecollection") {
        api.delete_collection(&background, &ListParams::default()).await?;
    } else {
        for object in api.list_metadata(&ListParams::default()).await? {
            match api.delete(object.metadata.name.as_deref().unwrap_or_default(), &background).await {
                Err(error) if !is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
    }
    let left = api.list_metadata(&ListParams::default()).await?.items;
    if left.is_empty() {
        return Ok(());
    }
    let name = if kind.resource.group.is_empty() {
        format!("{}.", kind.resource.plural)
    } else {
        format!("{}.{}", kind.resource.plural, kind.resource.group)
    };
    remains.content.push((name, left.len()));
    for finalizer in left.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
        match remains.finalizers.iter_mut().find(|(known, _)| known == finalizer) {
            Some((_, count)) => *count += 1,
            None => remains.finalizers.push((finalizer.clone(), 1)),
        }
    }
    Ok(())
}

/// The conditions that say how the deletion goes, in Kubernetes' words.
fn conditions(before: &[NamespaceCondition], remains: &Remains, now: &Time) -> Vec<NamespaceCondition> {
    let listed = |numbers: &[(String, usize)], what: fn(&str, usize) -> String| {
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers.iter().map(|(name, count)| what(name, *count)).collect::<Vec<_>>().join(", ")
    };
    let content = listed(&remains.content, |name, count| format!("{name} has {count} resource instances"));
    let finalizers = listed(&remains.finalizers, |name, count| format!("{name} in {count} resource instances"));
    // Type, whether it is true, reason and message where true, reason and message where not.
    let table = [
        (
            "NamespaceDeletionDiscoveryFailure",
            !remains.discovery.is_empty(),
            (
                "DiscoveryFailed",
                format!(
                    "Discovery failed for some groups, {} failing: {}",
                    remains.discovery.len(),
                    remains.discovery.join(", ")
                ),
            ),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ("GroupVersionParsingFailed", String::new()),
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            !remains.failures.is_empty(),
            (
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    remains.failures.len(),
                    remains.failures.join(", ")
                ),
            ),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        (
            "NamespaceContentRemaining",
            !remains.content.is_empty(),
            ("SomeResourcesRemain", format!("Some resources are remaining: {content}")),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            !remains.finalizers.is_empty(),
            ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {finalizers}")),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let made = table.into_iter().map(|(kind, failing, yes, no)| {
        let (reason, message) = if failing { yes } else { (no.0, no.1.to_owned()) };
        let status = if failing { "True" } else { "False" };
        let known = before.iter().find(|c| c.type_ == kind && c.status == status);
        NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: known.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(now.clone())),
        }
    });
    let made: Vec<_> = made.collect();
    let foreign = before.iter().filter(|c| made.iter().all(|own| own.type_ != c.type_)).cloned();
    foreign.chain(made.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_tell_what_remains_and_since_when() {
        let remains = Remains {
            content: vec![("pods.".into(), 2), ("configmaps.".into(), 1)],
            finalizers: vec![("example.com/keep".into(), 1)],
            ..Remains::default()
        };
        let time = |seconds| Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap());
        let first = conditions(&[], &remains, &time(1));
        let find = |all: &[NamespaceCondition], kind: &str| all.iter().find(|c| c.type_ == kind).unwrap().clone();
        let left = find(&first, "NamespaceContentRemaining");
        let words =
            "Some resources are remaining: configmaps. has 1 resource instances, pods. has 2 resource instances";
        assert_eq!((left.status.as_str(), left.message.as_deref()), ("True", Some(words)));
        assert_eq!(conditions(&first, &remains, &time(2)), first);
        let last = conditions(&first, &Remains::default(), &time(3));
        assert_eq!(find(&last, "NamespaceFinalizersRemaining").status, "False");
        assert_eq!(find(&last, "NamespaceContentRemaining").last_transition_time, Some(time(3)));
        assert_eq!(find(&last, "NamespaceDeletionContentFailure").last_transition_time, Some(time(1)));
    }
}
