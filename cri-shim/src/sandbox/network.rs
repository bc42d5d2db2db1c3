//! A sandbox's part in the pod network. A pod on the host's network has none.

use std::net::IpAddr;

use super::record::SandboxRecord;
use crate::cni::Attachment;
use crate::error::{Error, Result};
use crate::shim::Shim;

/// Attaches the sandbox, which must have its network namespace, and returns its addresses.
///
/// # Errors
/// What the network said; it has undone its part then.
pub async fn add(shim: &Shim, record: &SandboxRecord) -> Result<Vec<IpAddr>> {
    if record.host_network() {
        return Ok(Vec::new());
    }
    let attachment = attachment(shim, record)?;
    let failed = Error::part(format!("cannot set up the network of pod sandbox {}", record.id));
    Ok(shim.network.add(&attachment).await.map_err(failed)?.ips)
}

/// Detaches the sandbox. One that is not attached is detached.
///
/// # Errors
/// All that the network's plugins said.
pub async fn remove(shim: &Shim, record: &SandboxRecord) -> Result<()> {
    if record.host_network() {
        return Ok(());
    }
    // One whose request made no sense was never attached.
    let Ok(attachment) = attachment(shim, record) else { return Ok(()) };
    let failed = Error::part(format!("cannot tear down the network of pod sandbox {}", record.id));
    shim.network.del(&attachment).await.map_err(failed)
}

fn attachment(shim: &Shim, record: &SandboxRecord) -> Result<Attachment> {
    let netns = shim.folders.sandbox(&record.id).netns();
    Attachment::of(&record.id, &netns, &record.config).map_err(|error| Error::Invalid(error.to_string()))
}
