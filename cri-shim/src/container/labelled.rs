//! The SELinux label of a container's file system: its layers have what the machine's files have, so that the mount says it
//! for all of them. Source: mount(8), `context`; containerd gives its shims the same option.

use containerd_client::types::Mount;

use super::update::spec_of;
use crate::error::Result;
use crate::shim::Shim;

/// The mounts with the label that the container's spec has for them, on a machine with SELinux.
///
/// # Errors
/// What containerd said of the container.
pub(crate) async fn mounts(shim: &Shim, id: &str, mounts: Vec<Mount>) -> Result<Vec<Mount>> {
    if shim.host.selinux.is_none() {
        return Ok(mounts);
    }
    let spec = spec_of(&shim.containerd.container(id).await?)?;
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    Ok(with_label(mounts, label.as_deref().unwrap_or_default()))
}

fn with_label(mut mounts: Vec<Mount>, label: &str) -> Vec<Mount> {
    if !label.is_empty() {
        // Quoted, for a label has commas in it.
        mounts.iter_mut().for_each(|mount| mount.options.push(format!("context=\"{label}\"")));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_an_option_of_each_mount() {
        let plain = vec![Mount { r#type: "overlay".into(), options: vec!["index=off".into()], ..Mount::default() }];
        let labelled = with_label(plain.clone(), "system_u:object_r:container_file_t:s0:c1,c2");
        let expected = ["index=off", "context=\"system_u:object_r:container_file_t:s0:c1,c2\""];
        assert_eq!(labelled[0].options, expected);
        assert_eq!(with_label(plain.clone(), ""), plain);
    }
}
