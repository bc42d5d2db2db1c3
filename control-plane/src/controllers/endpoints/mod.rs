//! The controllers of a service's endpoints: EndpointSlices, the older Endpoints, and slices that mirror Endpoints
//! made by hand.

mod legacy;
mod mirror;
mod model;
mod slices;

use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use super::{Context, ownership, selector};
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_conflict, is_namespace_terminating, is_not_found};
pub use legacy::run as run_endpoints;
pub use mirror::run as run_mirroring;
use slices::{Action, Common, HEADLESS, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME};

const MANAGER: &str = "endpointslice-controller.k8s.io";
/// How many endpoints a slice has at most.
const SLICE_LIMIT: usize = 100;
const WORKERS: usize = 5;

/// Runs the endpoint slice controller for ever.
pub async fn run_slices(context: Arc<Context>) {
    let queue = Queue::new();
    watch_services(&context, &queue);
    let changed = queue.clone();
    context.stores.endpoint_slices.on_change(move |old, new| {
        for slice in [old, new].into_iter().flatten().filter(|slice| is_managed_by(slice, MANAGER)) {
            changed.add_some(service_of(slice));
        }
    });
    context.stores.services.synced().await;
    context.stores.pods.synced().await;
    context.stores.nodes.synced().await;
    context.stores.endpoint_slices.synced().await;
    queue.work(WORKERS, |key| sync(context.clone(), key)).await;
}

/// Adds each service that changes, and those whose pods change.
fn watch_services(context: &Arc<Context>, queue: &Arc<Queue<Key>>) {
    let services = queue.clone();
    context
        .stores
        .services
        .on_change(move |old, new| services.add_some(new.or(old).map(|service| Key::of(&**service))));
    let (queue, shared) = (queue.clone(), Arc::downgrade(context));
    context.stores.pods.on_change(move |old, new| {
        let Some(context) = shared.upgrade() else { return };
        if let (Some(old), Some(new)) = (old, new)
            && model::projection(old) == model::projection(new)
        {
            return;
        }
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let services = context.stores.services.in_namespace(namespace);
            services.iter().filter(|service| selects(service, pod)).for_each(|service| queue.add(Key::of(&**service)));
        }
    });
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let wanted = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    wanted.is_some_and(|wanted| selector::subset(wanted, pod.metadata.labels.as_ref()))
}

fn is_managed_by(slice: &EndpointSlice, manager: &str) -> bool {
    slice.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == manager)
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}

fn pods_of(context: &Context, service: &Service) -> Vec<Arc<Pod>> {
    let mut pods = context.stores.pods.in_namespace(service.metadata.namespace.as_deref().unwrap_or_default());
    pods.retain(|pod| selects(service, pod));
    pods
}

async fn sync(context: Arc<Context>, key: Key) -> anyhow::Result<Done> {
    // The slices of a service that is gone go with their owner.
    let Some(service) = context.stores.services.get(&key) else { return Ok(Done::Settled) };
    if !model::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
        return Ok(Done::Settled);
    }
    let mut own = context.stores.endpoint_slices.indexed(&format!("service:{key}"));
    own.retain(|slice| is_managed_by(slice, MANAGER) && slice.metadata.deletion_timestamp.is_none());
    let pods = pods_of(&context, &service);
    let noted = own.iter().filter_map(|slice| slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok());
    let trigger = model::trigger(&service, &pods, noted.max());
    let groups = model::groups(&service, &pods, |node| context.stores.nodes.get(&Key::new("", node)));
    for action in slices::diff(&common(&service, &key), groups, &own, trigger.as_deref()) {
        apply(&context, &key, action).await.with_context(|| format!("sync the endpoint slices of service {key}"))?;
    }
    Ok(Done::Settled)
}

fn common(service: &Service, key: &Key) -> Common {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(model::is_headless) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), key.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    Common {
        namespace: key.namespace.clone(),
        service: key.name.clone(),
        owner: ownership::reference(service),
        labels,
        annotations: Default::default(),
        limit: SLICE_LIMIT,
    }
}

/// Writes one slice. What lost against another write is tried again when that one is seen.
async fn apply(context: &Context, key: &Key, action: Action) -> anyhow::Result<()> {
    let api: Api<EndpointSlice> = Api::namespaced(context.client.clone(), &key.namespace);
    let store = &context.stores.endpoint_slices;
    let written = match action {
        Action::Create(slice) => api.create(&PostParams::default(), &slice).await,
        Action::Update(slice) => {
            let name = slice.metadata.name.clone().unwrap_or_default();
            api.replace(&name, &PostParams::default(), &slice).await
        }
        Action::Delete(name) => match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {
                if let Some(slice) = store.get(&Key::new(&key.namespace, &name)) {
                    store.missing(&slice);
                }
                return Ok(());
            }
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        },
    };
    match written {
        Ok(slice) => store.wrote(slice),
        Err(error) if is_namespace_terminating(&error) || is_not_found(&error) => {}
        Err(error) if is_conflict(&error) => anyhow::bail!("the slice was written by someone else: {error}"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
