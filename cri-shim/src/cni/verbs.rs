//! The commands over all plugins of a network, as a thread that may block runs them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use api::cni::{Attachment as Valid, NetworkConfigList, Success, VERSIONS};
use kernel::namespaces::is_namespace;
use serde_json::{Map, Value};

use super::cache::{Cache, Entry};
use super::config::{self, Loaded};
use super::plugin::{Command, Plugin, Subject};
use super::{Attachment, CniError, ConfigError, IFNAME, NetworkSettings, Outcome, Prefer};

pub(super) struct Verbs {
    settings: NetworkSettings,
    cache: Cache,
}

/// Whether `version` has what came with `needed`. Both are known versions.
fn since(version: &str, needed: &str) -> bool {
    let place = |wanted: &str| VERSIONS.iter().position(|known| *known == wanted);
    place(version) >= place(needed)
}

impl Verbs {
    pub fn new(settings: NetworkSettings) -> Self {
        Self { cache: Cache::new(settings.cache_dir.clone()), settings }
    }

    #[cfg(test)]
    pub fn settings(&self) -> &NetworkSettings {
        &self.settings
    }

    fn load(&self) -> Result<Loaded, CniError> {
        Ok(config::load(&self.settings.conf_dir)?)
    }

    pub fn ready(&self) -> Result<(), CniError> {
        let loaded = self.load()?;
        (0..loaded.list.plugins.len()).try_for_each(|at| self.plugin(&loaded.list, at).find().map(drop))
    }

    pub fn config(&self) -> Option<Value> {
        let loaded = self.load().ok()?;
        let mut value = serde_json::to_value(&loaded.list).ok()?;
        value.as_object_mut()?.insert("file".to_owned(), loaded.file.display().to_string().into());
        Some(value)
    }

    pub fn status(&self) -> Result<(), CniError> {
        let loaded = self.load()?;
        if !since(loaded.version, "1.1.0") {
            return Ok(());
        }
        for at in 0..loaded.list.plugins.len() {
            let stdin = stdin(&loaded, at, &Map::new(), None)?;
            let plugin = Plugin { timeout: self.settings.status_timeout, ..self.plugin(&loaded.list, at) };
            plugin.call(Command::Status, &Subject::default(), &stdin)?;
        }
        Ok(())
    }

    pub fn add(&self, attachment: &Attachment) -> Result<Outcome, CniError> {
        let loaded = self.load()?;
        // ADD may not come twice: a call that was killed may have done any part of it.
        for earlier in self.cache.of(&attachment.id)? {
            tracing::info!(
                container = earlier.container_id,
                network = earlier.network_name,
                "detach what was half attached"
            );
            self.detach(&earlier)?;
        }
        let mut entry = Entry {
            config: serde_json::to_vec(&loaded.list).map_err(|error| broken(&loaded, error))?,
            netns: attachment.netns.display().to_string(),
            cni_args: attachment.args(),
            capability_args: attachment.capabilities(),
            ..Entry::new(&loaded.list.name, &attachment.id, IFNAME)
        };
        self.cache.put(&entry)?;
        let done = self.attach(&loaded, &mut entry);
        done.map_err(|first| match self.detach(&Entry { result: None, ..entry }) {
            Ok(()) => first,
            Err(undo) => CniError::NotUndone { first: Box::new(first), undo: Box::new(undo) },
        })
    }

    fn attach(&self, loaded: &Loaded, entry: &mut Entry) -> Result<Outcome, CniError> {
        let mut previous = None;
        for at in 0..loaded.list.plugins.len() {
            let plugin = self.plugin(&loaded.list, at);
            let stdin = stdin(loaded, at, &entry.capability_args, previous.as_ref())?;
            let stdout = plugin.call(Command::Add, &subject(entry, &entry.netns), &stdin)?;
            previous = Some(plugin.result(loaded.version, &stdout)?);
        }
        let result = previous.unwrap_or_default();
        let ips = addresses(&result, self.settings.prefer);
        if ips.is_empty() {
            return Err(CniError::NoAddress { network: loaded.list.name.clone(), interface: IFNAME });
        }
        entry.result = Some(result.render(loaded.version).map_err(|error| broken(loaded, error))?);
        self.cache.put(entry)?;
        Ok(Outcome { ips, result })
    }

    pub fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        let entries = self.cache.of(&attachment.id)?;
        if entries.is_empty() {
            return Err(CniError::Unknown { id: attachment.id.clone() });
        }
        for entry in &entries {
            let loaded = self.as_added(entry)?;
            let Some(result) = result_of(entry) else {
                return Err(CniError::Unknown { id: attachment.id.clone() });
            };
            if loaded.list.disable_check || !since(loaded.version, "0.4.0") {
                continue;
            }
            for at in 0..loaded.list.plugins.len() {
                let stdin = stdin(&loaded, at, &entry.capability_args, Some(&result))?;
                self.plugin(&loaded.list, at).call(Command::Check, &subject(entry, &entry.netns), &stdin)?;
            }
        }
        Ok(())
    }

    pub fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let entries = self.cache.of(&attachment.id)?;
        if !entries.is_empty() {
            return CniError::all(entries.iter().filter_map(|entry| self.detach(entry).err()).collect());
        }
        // Nothing was written down: never attached, or the cache was lost.
        let loaded = match self.load() {
            Err(CniError::Config(ConfigError::Absent(_))) => return Ok(()),
            other => other?,
        };
        let entry = Entry {
            netns: attachment.netns.display().to_string(),
            cni_args: attachment.args(),
            capability_args: attachment.capabilities(),
            ..Entry::new(&loaded.list.name, &attachment.id, IFNAME)
        };
        self.detach_from(&loaded, &entry)
    }

    /// DEL by all plugins, and then the entry goes.
    fn detach(&self, entry: &Entry) -> Result<(), CniError> {
        self.detach_from(&self.as_added(entry)?, entry)?;
        self.cache.remove(entry)
    }

    /// In reverse, past every failure: what one plugin holds is let go though another cannot.
    fn detach_from(&self, loaded: &Loaded, entry: &Entry) -> Result<(), CniError> {
        let result = result_of(entry).filter(|_| since(loaded.version, "0.4.0"));
        let netns = if is_namespace(Path::new(&entry.netns)) { entry.netns.as_str() } else { "" };
        let one = |at: usize| {
            let stdin = stdin(loaded, at, &entry.capability_args, result.as_ref())?;
            self.plugin(&loaded.list, at).call(Command::Del, &subject(entry, netns), &stdin)
        };
        CniError::all((0..loaded.list.plugins.len()).rev().filter_map(|at| one(at).err()).collect())
    }

    pub fn gc(&self, living: &BTreeSet<String>) -> Result<(), CniError> {
        let loaded = match self.load() {
            Err(CniError::Config(ConfigError::Absent(_))) => return Ok(()),
            other => other?,
        };
        let mut errors = Vec::new();
        let mut valid: Vec<Valid> =
            living.iter().map(|id| Valid { container_id: id.clone(), ifname: IFNAME.to_owned() }).collect();
        for entry in self.cache.all()? {
            if is_stale(&entry, living, &self.settings.netns_dir, is_namespace(Path::new(&entry.netns))) {
                errors.extend(self.detach(&entry).err());
            } else if entry.network_name == loaded.list.name && !living.contains(&entry.container_id) {
                valid.push(Valid { container_id: entry.container_id, ifname: entry.if_name });
            }
        }
        if self.settings.exclusive && !loaded.list.disable_gc && since(loaded.version, "1.1.0") {
            for at in 0..loaded.list.plugins.len() {
                errors.extend(self.collect(&loaded, at, &valid).err());
            }
        }
        CniError::all(errors)
    }

    fn collect(&self, loaded: &Loaded, at: usize, valid: &[Valid]) -> Result<(), CniError> {
        let mut stdin = stdin(loaded, at, &Map::new(), None)?;
        let valid = serde_json::to_value(valid).map_err(|error| broken(loaded, error))?;
        // The second is what an early text of the specification had, and plugins read.
        stdin.insert("cni.dev/valid-attachments".to_owned(), valid.clone());
        stdin.insert("cni.dev/attachments".to_owned(), valid);
        self.plugin(&loaded.list, at).call(Command::Gc, &Subject::default(), &stdin).map(drop)
    }

    /// The network as it was when the entry was made. An entry that does not tell gets the present one.
    fn as_added(&self, entry: &Entry) -> Result<Loaded, CniError> {
        let parsed = NetworkConfigList::parse(&entry.config).ok();
        let then = parsed.and_then(|list| config::usable(list, PathBuf::from("(cached)")).ok());
        then.map_or_else(|| self.load(), Ok)
    }

    fn plugin<'a>(&'a self, list: &'a NetworkConfigList, at: usize) -> Plugin<'a> {
        let kind = list.plugins.get(at).and_then(|plugin| plugin.get("type")?.as_str()).unwrap_or_default();
        Plugin { network: &list.name, kind, dirs: &self.settings.bin_dirs, timeout: self.settings.timeout }
    }
}

fn subject<'a>(entry: &'a Entry, netns: &'a str) -> Subject<'a> {
    Subject { container: &entry.container_id, interface: &entry.if_name, netns, args: &entry.cni_args }
}

fn result_of(entry: &Entry) -> Option<Success> {
    entry.result.as_ref().and_then(|value| Success::parse(value).ok())
}

fn stdin(
    loaded: &Loaded,
    at: usize,
    capabilities: &Map<String, Value>,
    previous: Option<&Success>,
) -> Result<Map<String, Value>, CniError> {
    loaded.list.stdin(at, loaded.version, capabilities, previous).map_err(|error| broken(loaded, error))
}

/// What we made ourselves could not be written as JSON.
fn broken(loaded: &Loaded, error: impl std::fmt::Display) -> CniError {
    CniError::Run { network: loaded.list.name.clone(), command: "encode", reason: error.to_string() }
}

/// Whether GC may end an attachment: it is ours, no pod of ours is it, and its namespace is gone. A living namespace is
/// spared whoever it belongs to.
fn is_stale(entry: &Entry, living: &BTreeSet<String>, ours: &Path, alive: bool) -> bool {
    !alive && !living.contains(&entry.container_id) && Path::new(&entry.netns).starts_with(ours)
}

/// The addresses of the pod's interface. One that names no interface is the pod's.
fn addresses(result: &Success, prefer: Prefer) -> Vec<IpAddr> {
    let is_pods = |index: Option<usize>| {
        let named = index.map(|index| result.interfaces.get(index));
        named.is_none_or(|found| found.is_some_and(|interface| interface.name == IFNAME))
    };
    let mut ips: Vec<IpAddr> = result.ips.iter().filter(|ip| is_pods(ip.interface)).map(|ip| ip.address.ip()).collect();
    let first = match prefer {
        Prefer::V4 => ips.iter().position(IpAddr::is_ipv4),
        Prefer::V6 => ips.iter().position(IpAddr::is_ipv6),
        Prefer::Given => None,
    };
    if let Some(at) = first {
        ips[..=at].rotate_right(1);
    }
    ips
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pods_addresses_are_those_of_its_interface_in_the_order_preferred() {
        let result = Success::parse(&json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/x"}, {"name": "eth1", "sandbox": "/x"}],
            "ips": [
                {"interface": 2, "address": "10.9.0.2/24"}, {"interface": 1, "address": "fd00::2/64"},
                {"interface": 9, "address": "10.9.0.3/24"}, {"address": "fd01::2/64"},
                {"interface": 1, "address": "10.0.0.2/24"},
            ],
        }));
        let result = result.unwrap();
        let told = |prefer| addresses(&result, prefer).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(Prefer::Given), ["fd00::2", "fd01::2", "10.0.0.2"]);
        assert_eq!(told(Prefer::V4), ["10.0.0.2", "fd00::2", "fd01::2"]);
        assert_eq!(told(Prefer::V6), ["fd00::2", "fd01::2", "10.0.0.2"]);
    }

    #[test]
    fn only_our_own_dead_are_stale() {
        let entry = |netns: &str| Entry { netns: netns.to_owned(), ..Entry::new("pods", "a", "eth0") };
        let stale = |netns, living: &[&str], alive| {
            let living = living.iter().map(|id| (*id).to_owned()).collect();
            is_stale(&entry(netns), &living, Path::new("/run/bosun"), alive)
        };
        assert!(stale("/run/bosun/a/ns/net", &[], false));
        assert!(!stale("/run/bosun/a/ns/net", &["a"], false));
        assert!(!stale("/run/bosun/a/ns/net", &[], true));
        assert!(!stale("/run/netns/cni-1", &[], false), "another runtime's");
        assert!(!stale("", &[], false), "nothing says whose it is");
    }

    #[test]
    fn versions_are_in_order() {
        assert!(since("1.1.0", "0.4.0") && since("0.4.0", "0.4.0") && !since("0.3.1", "0.4.0"));
    }
}
