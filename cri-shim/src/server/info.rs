//! What verbose answers add, for people and tools: JSON under the keys that containerd's CRI uses.

use std::collections::HashMap;

use cri::v1::{RuntimeHandler, RuntimeHandlerFeatures};
use serde_json::{Value, json};

use crate::container::record::ContainerRecord;
use crate::container::{State, update};
use crate::error::Result;
use crate::handler::{Handler, Handlers};
use crate::sandbox::record::Life;
use crate::shim::Shim;

/// One entry `info`, as `crictl inspect` shows it.
fn info(value: &Value) -> HashMap<String, String> {
    [("info".to_owned(), value.to_string())].into()
}

/// What is known of a sandbox beyond its status.
pub fn of_sandbox(shim: &Shim, life: &Life, pause: Option<u32>) -> HashMap<String, String> {
    let record = &life.record;
    let folders = shim.folders.sandbox(&record.id);
    let namespaces = kernel::namespaces::pinned(&folders.namespaces());
    info(&json!({
        "pid": pause.unwrap_or(0),
        "runtimeHandler": record.handler,
        "netNamespaceClosed": !record.host_network() && namespaces.net.is_none(),
        "namespaces": {
            "network": namespaces.net,
            "ipc": namespaces.ipc,
            "uts": namespaces.uts,
            "user": namespaces.user,
        },
        "cgroupParent": record.cgroup_parent(),
        "trace": life.trace,
    }))
}

/// What is known of a container beyond its status.
///
/// # Errors
/// Where containerd does not give its spec.
pub async fn of_container(shim: &Shim, record: &ContainerRecord, state: &State) -> Result<HashMap<String, String>> {
    let stored = shim.containerd.container(&record.id).await?;
    let pid = match state {
        State::Running(running) => running.pid,
        _ => 0,
    };
    Ok(info(&json!({
        "sandboxID": record.sandbox,
        "pid": pid,
        "snapshotter": stored.snapshotter,
        "snapshotKey": stored.snapshot_key,
        "runtimeType": stored.runtime.as_ref().map(|runtime| runtime.name.as_str()),
        "cgroup": record.cgroup,
        "runtimeSpec": update::spec_of(&stored)?,
    })))
}

/// What the shim was started with.
pub fn of_shim(shim: &Shim, containerd: &str) -> HashMap<String, String> {
    let settings = &shim.settings;
    let handlers: HashMap<&str, &std::path::Path> =
        settings.handlers.all().iter().map(|handler| (handler.name.as_str(), handler.program.as_path())).collect();
    let config = json!({
        "containerd": { "socket": shim.containerd.socket(), "version": containerd },
        "root": shim.folders.root,
        "state": shim.folders.state,
        "snapshotter": settings.snapshotter,
        "systemdCgroup": shim.host.systemd_cgroup,
        "runtimeHandlers": handlers,
    });
    let network = shim.network.config().unwrap_or(Value::Null);
    [("config".to_owned(), config.to_string()), ("cniconfig".to_owned(), network.to_string())].into()
}

/// The handlers as the kubelet looks for them: by name, and the default one by the empty name.
pub fn handlers(handlers: &Handlers) -> Vec<RuntimeHandler> {
    let default = handlers.find("").map(|handler| ("", handler));
    let named = handlers.all().iter().map(|handler| (handler.name.as_str(), handler));
    let of = |(name, handler): (&str, &Handler)| RuntimeHandler {
        name: name.to_owned(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: handler.ability.recursive_read_only,
            user_namespaces: handler.ability.user_namespaces,
        }),
    };
    default.into_iter().chain(named).map(of).collect()
}
