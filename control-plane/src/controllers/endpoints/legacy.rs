//! The endpoints controller: one Endpoints object a service, of its name.

use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Endpoints;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use super::model::{self, CAPACITY};
use super::slices::{HEADLESS, TRIGGER_TIME};
use super::{WORKERS, pods_of, watch_services};
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_conflict, is_namespace_terminating, is_not_found};
use crate::controllers::Context;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Runs the controller for ever.
pub async fn run(context: Arc<Context>) {
    let queue = Queue::new();
    watch_services(&context, &queue);
    let endpoints = queue.clone();
    context
        .stores
        .endpoints
        .on_change(move |old, new| endpoints.add_some(new.or(old).map(|object| Key::of(&**object))));
    context.stores.services.synced().await;
    context.stores.pods.synced().await;
    context.stores.endpoints.synced().await;
    queue.work(WORKERS, |key| sync(context.clone(), key)).await;
}

async fn sync(context: Arc<Context>, key: Key) -> anyhow::Result<Done> {
    let api: Api<Endpoints> = Api::namespaced(context.client.clone(), &key.namespace);
    let there = context.stores.endpoints.get(&key);
    let Some(service) = context.stores.services.get(&key) else {
        // A service's Endpoints go with it; those that were made by hand for a service to come stay.
        if there.is_some_and(|object| is_ours(&object)) {
            match api.delete(&key.name, &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(error).with_context(|| format!("delete endpoints {key}"));
                }
                _ => {}
            }
        }
        return Ok(Done::Settled);
    };
    if !model::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
        return Ok(Done::Settled);
    }
    let pods = pods_of(&context, &service);
    let mut wanted = there.as_ref().map_or_else(Endpoints::default, |object| Endpoints::clone(object));
    let noted =
        wanted.metadata.annotations.as_ref().and_then(|a| a.get(TRIGGER_TIME)).and_then(|time| time.parse().ok());
    let subsets = model::subsets(&service, &pods);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().is_some_and(model::is_headless) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    if wanted.subsets.as_deref().unwrap_or_default() == subsets && wanted.metadata.labels.as_ref() == Some(&labels) {
        return Ok(Done::Settled);
    }
    wanted.metadata.labels = Some(labels);
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    match model::trigger(&service, &pods, noted) {
        Some(time) => drop(annotations.insert(TRIGGER_TIME.into(), time)),
        None => drop(annotations.remove(TRIGGER_TIME)),
    }
    if pods.len() > CAPACITY {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    wanted.subsets = Some(subsets);
    let written = if there.is_some() {
        api.replace(&key.name, &PostParams::default(), &wanted).await
    } else {
        wanted.metadata.name = Some(key.name.clone());
        wanted.metadata.namespace = Some(key.namespace.clone());
        api.create(&PostParams::default(), &wanted).await
    };
    match written {
        Ok(object) => context.stores.endpoints.wrote(object),
        Err(error) if is_namespace_terminating(&error) || is_not_found(&error) => {}
        Err(error) if is_conflict(&error) => anyhow::bail!("endpoints {key} were written by someone else"),
        Err(error) => return Err(error).with_context(|| format!("write endpoints {key}")),
    }
    Ok(Done::Settled)
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGER)
}
