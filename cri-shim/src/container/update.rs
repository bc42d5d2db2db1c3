//! UpdateContainerResources: the running task first, then what is written down.

use std::sync::Arc;

use containerd_client::services::v1::Container as Stored;
use cri::v1::LinuxContainerResources;
use oci_spec::runtime::Spec;

use super::State;
use super::record::EXTENSION;
use super::spec::{self, LINUX_RESOURCES, SPEC};
use crate::error::{Error, Result};
use crate::record::to_extension;
use crate::shim::Shim;

/// Changes the resources that `update` names and leaves the others.
///
/// # Errors
/// `NotFound`, `State` for a container that has ended, and what the spec or the runtime refuses: nothing has changed
/// then.
pub async fn update(shim: &Arc<Shim>, id: &str, update: &LinuxContainerResources) -> Result<()> {
    let container = shim.containers.find(id)?;
    let _turn = container.turn.lock().await;
    let record = container.record();
    let state = container.state();
    if let State::Exited(_) = state {
        return Err(Error::State(format!("container {} has ended: its resources cannot change", record.id)));
    }
    let stored = shim.containerd.container(&record.id).await?;
    let current: Spec = spec_of(&stored)?;
    let changed = spec::update_resources(&current, update, &shim.host)?;
    let failed = || Error::part(format!("cannot write the resources of container {}", record.id));
    if let State::Running(_) = state {
        let resources = spec::encode(LINUX_RESOURCES, &changed.resources).map_err(failed())?;
        shim.containerd.update_task(&record.id, resources).await?;
    }
    let new = record.with_resources(update);
    let written = Stored {
        id: record.id.clone(),
        spec: Some(spec::encode(SPEC, &changed.spec).map_err(failed())?),
        extensions: [(EXTENSION.to_owned(), to_extension(EXTENSION, &new)?)].into(),
        ..stored
    };
    shim.containerd.update_container(written, &["spec", "extensions"]).await?;
    container.replace_record(new);
    Ok(())
}

/// The OCI spec that containerd keeps for a container.
///
/// # Errors
/// Where it keeps none that can be read.
pub(crate) fn spec_of(stored: &Stored) -> Result<Spec> {
    let failed = Error::part(format!("cannot read the spec of container {}", stored.id));
    let any = stored.spec.as_ref().ok_or(Error::State(format!("container {} has no spec", stored.id)))?;
    spec::decode(any).map_err(failed)
}
