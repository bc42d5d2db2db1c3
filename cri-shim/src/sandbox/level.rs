//! The SELinux level of a pod that asks for none: one that nothing else on this node has.

use std::sync::{Mutex, PoisonError};

use cri::v1::{PodSandboxConfig, SeLinuxOption};

use crate::container::spec::selinux::mcs_level;
use crate::container::spec::{sandbox_security_of, security_of};
use crate::shim::Shim;

/// Levels of pods that no index has yet.
pub type Levels = Mutex<Vec<String>>;

/// A level that nobody else is given.
pub(super) struct Reserved<'a> {
    levels: &'a Levels,
    text: String,
}

impl Reserved<'_> {
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner).retain(|level| *level != self.text);
    }
}

/// A level for a pod; `None` where the policy has no levels, or the config names one.
pub(super) fn reserve<'a>(shim: &'a Shim, id: &str, config: &PodSandboxConfig) -> Option<Reserved<'a>> {
    let named = named(sandbox_security_of(config).selinux_options);
    if named.is_some() || !shim.host.selinux.as_ref().is_some_and(|contexts| contexts.have_levels()) {
        return None;
    }
    let mut making = shim.levels.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = in_use(shim);
    taken.extend(making.iter().cloned());
    let text = mcs_level(id, &taken);
    making.push(text.clone());
    Some(Reserved { levels: &shim.levels, text })
}

/// What pods were given, and what they and their containers named.
fn in_use(shim: &Shim) -> Vec<String> {
    let sandboxes = shim.sandboxes.all().into_iter().filter_map(|sandbox| {
        let record = &sandbox.record;
        record.selinux_level.clone().or_else(|| named(sandbox_security_of(&record.config).selinux_options))
    });
    let containers = shim.containers.all().into_iter();
    let containers = containers.filter_map(|container| named(security_of(&container.record().config).selinux_options));
    sandboxes.chain(containers).collect()
}

fn named(options: Option<SeLinuxOption>) -> Option<String> {
    options.map(|options| options.level).filter(|level| !level.is_empty())
}
