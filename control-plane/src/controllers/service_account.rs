//! The service account controller: each namespace has one called `default`.

use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use super::Context;
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_conflict, is_namespace_terminating, is_not_found};

const NAME: &str = "default";

/// Runs the controller for ever.
pub async fn run(context: Arc<Context>) {
    // Keys are namespaces' names.
    let queue: Arc<Queue<String>> = Queue::new();
    let namespaces = queue.clone();
    context.stores.namespaces.on_change(move |_, new| namespaces.add_some(new.and_then(|ns| ns.metadata.name.clone())));
    let accounts = queue.clone();
    context.stores.service_accounts.on_change(move |old, new| {
        let gone = old.filter(|account| new.is_none() && account.metadata.name.as_deref() == Some(NAME));
        accounts.add_some(gone.and_then(|account| account.metadata.namespace.clone()));
    });
    context.stores.namespaces.synced().await;
    context.stores.service_accounts.synced().await;
    queue.work(2, |namespace| sync(context.clone(), namespace)).await;
}

async fn sync(context: Arc<Context>, namespace: String) -> anyhow::Result<Done> {
    let Some(object) = context.stores.namespaces.get(&Key::new("", &namespace)) else { return Ok(Done::Settled) };
    let there = context.stores.service_accounts.get(&Key::new(&namespace, NAME)).is_some();
    if object.metadata.deletion_timestamp.is_some() || there {
        return Ok(Done::Settled);
    }
    let mut account = ServiceAccount::default();
    account.metadata.name = Some(NAME.into());
    account.metadata.namespace = Some(namespace.clone());
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &namespace);
    match api.create(&PostParams::default(), &account).await {
        Ok(_) => {}
        Err(error) if is_conflict(&error) || is_namespace_terminating(&error) || is_not_found(&error) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("create service account {namespace}/{NAME}"));
        }
    }
    Ok(Done::Settled)
}
