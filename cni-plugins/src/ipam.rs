//! Addresses for a plugin: by one of our own plugins in this process, by any other as the specification says,
//! executed with the same environment and configuration.

use std::path::{Path, PathBuf};

use api::cni::{Error, Success, code};
use serde_json::Value;

use crate::host_local::HostLocal;
use crate::skel::{Call, Plugin};
use crate::static_addresses::Static;

/// The IPAM plugin of a configuration.
pub enum Ipam {
    HostLocal,
    Static,
    Other(PathBuf),
}

impl Ipam {
    /// `None` where the network has no IPAM.
    pub fn of(call: &Call) -> Result<Option<Self>, Error> {
        let kind = call.config.rest.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
        match kind {
            None | Some("") => Ok(None),
            Some("host-local") => Ok(Some(Self::HostLocal)),
            Some("static") => Ok(Some(Self::Static)),
            Some(kind) if kind.contains('/') => Err(Error::config(format!("invalid IPAM plugin name {kind:?}"))),
            Some(kind) => {
                let found = call.path.split(':').map(|folder| Path::new(folder).join(kind)).find(|path| path.is_file());
                let missing = || Error::config(format!("failed to find plugin {kind:?} in path [{}]", call.path));
                found.map(|path| Some(Self::Other(path))).ok_or_else(missing)
            }
        }
    }

    /// As [`Ipam::of`], for a plugin that does nothing without addresses.
    pub fn required(call: &Call) -> Result<Self, Error> {
        Self::of(call)?.ok_or_else(|| Error::config(format!("{} needs an ipam with a type", call.config.kind)))
    }

    fn own(&self) -> Result<&'static dyn Plugin, &Path> {
        match self {
            Self::HostLocal => Ok(&HostLocal),
            Self::Static => Ok(&Static),
            Self::Other(path) => Err(path),
        }
    }

    /// # Errors
    /// What the plugin says; and where it gives no address, which it is then asked to forget.
    pub fn add(&self, call: &Call) -> Result<Success, Error> {
        let result = match self.own() {
            Ok(plugin) => plugin.add(call)?,
            Err(path) => {
                let answer = delegate(path, "ADD", call)?;
                let value: Value = serde_json::from_slice(&answer).map_err(|error| {
                    let text = format!("cannot decode the answer of {}: {error}", path.display());
                    Error::new(code::DECODING_FAILURE, text)
                })?;
                Success::parse(&value)?
            }
        };
        if result.ips.is_empty() {
            let _ = self.del(call);
            return Err(Error::internal("IPAM plugin returned missing IP config"));
        }
        Ok(result)
    }

    pub fn del(&self, call: &Call) -> Result<(), Error> {
        match self.own() {
            Ok(plugin) => plugin.del(call),
            Err(path) => delegate(path, "DEL", call).map(drop),
        }
    }

    pub fn check(&self, call: &Call) -> Result<(), Error> {
        match self.own() {
            Ok(plugin) => plugin.check(call),
            Err(path) => delegate(path, "CHECK", call).map(drop),
        }
    }

    pub fn gc(&self, call: &Call) -> Result<(), Error> {
        match self.own() {
            Ok(plugin) => plugin.gc(call),
            Err(path) => delegate(path, "GC", call).map(drop),
        }
    }

    pub fn status(&self, call: &Call) -> Result<(), Error> {
        match self.own() {
            Ok(plugin) => plugin.status(call),
            Err(path) => delegate(path, "STATUS", call).map(drop),
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
