//! Why a call to the pod network failed.

use std::path::PathBuf;

use super::ConfigError;

/// A failure of the network, with what to do where somebody can do something.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("network {network:?} wants the CNI plugin {plugin:?}, which is not in {}: install it there", list(dirs))]
    Missing { network: String, plugin: String, dirs: Vec<PathBuf> },
    #[error("network {network:?}: CNI plugin {plugin:?} failed {command}: {source}")]
    Plugin { network: String, plugin: String, command: &'static str, source: api::cni::Error },
    /// It could not be run, passed a bound, was killed, or said what is no answer.
    #[error("network {network:?}: {command}: {reason}")]
    Run { network: String, command: &'static str, reason: String },
    #[error("network {network:?} gave the pod no address on {interface}: check the plugins' ipam in its configuration")]
    NoAddress { network: String, interface: &'static str },
    #[error("cannot {verb} the network's cache {}: {source}", path.display())]
    Cache { verb: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{id:?} is not attached to any network")]
    Unknown { id: String },
    #[error("{first}; undoing what was done failed too: {undo}")]
    NotUndone { first: Box<CniError>, undo: Box<CniError> },
    #[error("{}", join(.0))]
    Several(Vec<CniError>),
    #[error("the call to the network was given up: {0}")]
    Aborted(String),
}

impl CniError {
    /// The code of a plugin's error, or of the first of several.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Plugin { source, .. } => Some(source.code),
            Self::NotUndone { first, .. } => first.code(),
            Self::Several(all) => all.first().and_then(Self::code),
            _ => None,
        }
    }

    /// Nothing, the one, or all of them.
    pub(super) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(errors)),
        }
    }
}

fn list(dirs: &[PathBuf]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(" or ")
}

fn join(errors: &[CniError]) -> String {
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    all.join("; ")
}
