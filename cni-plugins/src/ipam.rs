//! Addresses for a plugin: by host-local in this process, by any other IPAM plugin as the specification says,
//! executed with the same environment and configuration.

use std::path::{Path, PathBuf};

use api::cni::{Error, Success, code};
use serde_json::Value;

use crate::host_local;
use crate::skel::{Call, Plugin};

/// The IPAM plugin of a configuration.
pub enum Ipam {
    Own,
    Other(PathBuf),
}

impl Ipam {
    /// `None` where the network has no IPAM.
    pub fn of(call: &Call) -> Result<Option<Self>, Error> {
        let Some(kind) = call.config.rest.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str) else {
            return Ok(None);
        };
        if kind == "host-local" {
            return Ok(Some(Self::Own));
        }
        if kind.is_empty() || kind.contains('/') {
            return Err(Error::config(format!("invalid IPAM plugin name {kind:?}")));
        }
        let found = call.path.split(':').map(|folder| Path::new(folder).join(kind)).find(|path| path.is_file());
        let missing = || Error::config(format!("failed to find plugin {kind:?} in path [{}]", call.path));
        found.map(|path| Some(Self::Other(path))).ok_or_else(missing)
    }

    pub fn add(&self, call: &Call) -> Result<Success, Error> {
        match self {
            Self::Own => host_local::HostLocal.add(call),
            Self::Other(path) => {
                let answer = delegate(path, "ADD", call)?;
                let value: Value = serde_json::from_slice(&answer).map_err(|error| {
                    Error::new(
                        code::DECODING_FAILURE,
                        format!("cannot decode the answer of {}: {error}", path.display()),
                    )
                })?;
                Success::parse(&value)
            }
        }
    }

    pub fn del(&self, call: &Call) -> Result<(), Error> {
        match self {
            Self::Own => host_local::HostLocal.del(call),
            Self::Other(path) => delegate(path, "DEL", call).map(drop),
        }
    }

    pub fn check(&self, call: &Call) -> Result<(), Error> {
        match self {
            Self::Own => host_local::HostLocal.check(call),
            Self::Other(path) => delegate(path, "CHECK", call).map(drop),
        }
    }

    pub fn gc(&self, call: &Call) -> Result<(), Error> {
        match self {
            Self::Own => host_local::HostLocal.gc(call),
            Self::Other(path) => delegate(path, "GC", call).map(drop),
        }
    }

    pub fn status(&self, call: &Call) -> Result<(), Error> {
        match self {
            Self::Own => host_local::HostLocal.status(call),
            Self::Other(path) => delegate(path, "STATUS", call).map(drop),
        }
    }
}

fn delegate(path: &Path, command: &str, call: &Call) -> Result<Vec<u8>, Error> {
    let output = kernel::exec::run(path, &[("CNI_COMMAND", command)], &call.stdin).map_err(Error::internal)?;
    if output.success {
        return Ok(output.stdout);
    }
    let told: Result<Error, _> = serde_json::from_slice(&output.stdout);
    Err(told.unwrap_or_else(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        Error::internal(format!("{} failed: {}", path.display(), said.trim()))
    }))
}
