//! The root CA publisher: each namespace has a config map with the authority that signed the API server's certificate.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::watcher;

use super::Context;
use crate::client::informer::{Informer, Shape};
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_conflict, is_namespace_terminating, is_not_found};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// Runs the controller for ever; without an authority it does nothing.
pub async fn run(context: Arc<Context>) {
    let Some(authority) = context.root_ca.clone() else { return };
    let maps: Arc<Informer<ConfigMap>> = Informer::new(Shape::default());
    let queue: Arc<Queue<String>> = Queue::new();
    let namespaces = queue.clone();
    context.stores.namespaces.on_change(move |_, new| namespaces.add_some(new.and_then(|ns| ns.metadata.name.clone())));
    let changed = queue.clone();
    maps.on_change(move |old, new| changed.add_some(new.or(old).and_then(|map| map.metadata.namespace.clone())));
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let work = async {
        context.stores.namespaces.synced().await;
        maps.synced().await;
        queue.work(2, |namespace| sync(context.clone(), maps.clone(), authority.clone(), namespace)).await;
    };
    tokio::join!(maps.run(Api::all(context.client.clone()), only), work);
}

async fn sync(
    context: Arc<Context>,
    maps: Arc<Informer<ConfigMap>>,
    authority: String,
    namespace: String,
) -> anyhow::Result<Done> {
    let living = |object: &Arc<k8s_openapi::api::core::v1::Namespace>| object.metadata.deletion_timestamp.is_none();
    if !context.stores.namespaces.get(&Key::new("", &namespace)).as_ref().is_some_and(living) {
        return Ok(Done::Settled);
    }
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let data = BTreeMap::from([("ca.crt".to_owned(), authority)]);
    let written = match maps.get(&Key::new(&namespace, NAME)) {
        Some(map) if map.data.as_ref() == Some(&data) && is_described(&map) => return Ok(Done::Settled),
        Some(map) => {
            let mut map = ConfigMap::clone(&map);
            map.data = Some(data);
            map.binary_data = None;
            map.metadata.annotations.get_or_insert_default().insert(DESCRIPTION.into(), DESCRIPTION_TEXT.into());
            api.replace(NAME, &PostParams::default(), &map).await
        }
        None => {
            let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
            map.metadata.name = Some(NAME.into());
            map.metadata.namespace = Some(namespace.clone());
            map.metadata.annotations = Some([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())].into());
            api.create(&PostParams::default(), &map).await
        }
    };
    match written {
        Ok(map) => maps.wrote(map),
        Err(error) if is_conflict(&error) || is_namespace_terminating(&error) || is_not_found(&error) => {}
        Err(error) => return Err(error).with_context(|| format!("publish the authority as {namespace}/{NAME}")),
    }
    Ok(Done::Settled)
}

fn is_described(map: &ConfigMap) -> bool {
    map.metadata.annotations.as_ref().and_then(|a| a.get(DESCRIPTION)).is_some_and(|text| text == DESCRIPTION_TEXT)
}
