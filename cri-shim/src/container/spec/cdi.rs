//! Container Device Interface: devices by name, described by vendors in files of this machine. Source: the CDI
//! specification 1.0 (cncf-tags/container-device-interface, SPEC.md).

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, LinuxDevice, LinuxDeviceType, LinuxIntelRdt, LinuxNetDevice, Mount, Spec};
use serde::Deserialize;

use super::devices::{self, DeviceNode};

/// Where vendors put their files; a later folder wins over an earlier one.
pub const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// Annotations that ask for devices start with this; their values are names with commas between.
const ANNOTATION: &str = "cdi.k8s.io/";
/// The largest file that is read, bytes.
const LARGEST: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    #[error("CDI device {0:?} is not of the form vendor/class=name")]
    Name(String),
    #[error("no file in {FOLDERS:?} describes CDI device {name:?}{faults}")]
    Unknown { name: String, faults: String },
    #[error("CDI device {name:?} is described twice, by {} and {}: remove one", first.display(), second.display())]
    Conflict { name: String, first: PathBuf, second: PathBuf },
    #[error("cannot use CDI file {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("CDI device node {}: {source}", path.display())]
    Node { path: PathBuf, source: io::Error },
}

/// What devices change in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    net_devices: Vec<NetDevice>,
    mounts: Vec<CdiMount>,
    hooks: Vec<CdiHook>,
    intel_rdt: Option<Rdt>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    r#type: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetDevice {
    host_interface_name: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CdiMount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
    r#type: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CdiHook {
    hook_name: HookName,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum HookName {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rdt {
    #[serde(rename = "closID")]
    clos_id: Option<String>,
    l3_cache_schema: Option<String>,
    mem_bw_schema: Option<String>,
    schemata: Option<Vec<String>>,
    enable_monitoring: Option<bool>,
}

/// One vendor's file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

impl File {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        // JSON is YAML too.
        let value = api::yaml::parse(bytes).map_err(|e| e.to_string())?.value;
        let file: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if !["0.", "1."].iter().any(|major| file.cdi_version.starts_with(major)) {
            return Err(format!("cdiVersion {:?} is neither 0 nor 1", file.cdi_version));
        }
        if file.kind.split_once('/').is_none_or(|(vendor, class)| vendor.is_empty() || class.is_empty()) {
            return Err(format!("kind {:?} is not of the form vendor/class", file.kind));
        }
        Ok(file)
    }
}

/// The devices that a container's config asks for, each once: by its field first, then by annotations.
pub(super) fn requested(config: &cri::v1::ContainerConfig) -> Vec<String> {
    let mut annotations: Vec<_> = config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    annotations.sort();
    let annotated = annotations.into_iter().flat_map(|(_, value)| value.split(',').map(str::trim));
    let mut names: Vec<String> = Vec::new();
    for name in config.cdi_devices.iter().map(|d| d.name.as_str()).chain(annotated) {
        if !name.is_empty() && !names.iter().any(|n| n == name) {
            names.push(name.into());
        }
    }
    names
}

/// The edits for `names`, from the files in `folders`. A file that is broken counts only where a device is missing.
/// Blocks. Nothing is read for no names.
///
/// # Errors
/// Where a name is malformed, unknown, or described twice in the folder that counts, or its node is not there.
pub fn resolve(names: &[String], folders: &[&Path]) -> Result<Edits, CdiError> {
    if names.is_empty() {
        return Ok(Edits::default());
    }
    let (files, faults) = read_all(folders);
    let mut edits = select(names, &files, &faults)?;
    for node in &mut edits.device_nodes {
        node.complete().map_err(|source| CdiError::Node { path: node.path.clone(), source })?;
    }
    Ok(edits)
}

/// A file with the rank of its folder.
struct Ranked {
    rank: usize,
    path: PathBuf,
    file: File,
}

fn read_all(folders: &[&Path]) -> (Vec<Ranked>, Vec<CdiError>) {
    let (mut files, mut faults) = (Vec::new(), Vec::new());
    for (rank, folder) in folders.iter().enumerate() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml"));
        paths.sort();
        for path in paths {
            match read(&path).and_then(|bytes| File::parse(&bytes)) {
                Ok(file) => files.push(Ranked { rank, path, file }),
                Err(reason) => faults.push(CdiError::File { path, reason }),
            }
        }
    }
    (files, faults)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    match fs::metadata(path).map_err(|e| e.to_string())? {
        m if !m.is_file() => Err("it is not a regular file".into()),
        m if m.len() > LARGEST => Err(format!("it is larger than {LARGEST} bytes")),
        _ => fs::read(path).map_err(|e| e.to_string()),
    }
}

fn select(names: &[String], files: &[Ranked], faults: &[CdiError]) -> Result<Edits, CdiError> {
    let mut edits = Edits::default();
    let mut used = BTreeSet::new();
    for name in names {
        let (kind, device) = name.split_once('=').ok_or_else(|| CdiError::Name(name.clone()))?;
        if device.is_empty() || kind.split_once('/').is_none_or(|(v, c)| v.is_empty() || c.is_empty()) {
            return Err(CdiError::Name(name.clone()));
        }
        let (index, found) = find(name, kind, device, files)?.ok_or_else(|| {
            let faults: String = faults.iter().map(|fault| format!("; {fault}")).collect();
            CdiError::Unknown { name: name.clone(), faults }
        })?;
        // What a file says for all its devices counts once.
        if used.insert(index) {
            edits.append(files[index].file.container_edits.clone());
        }
        edits.append(found.container_edits.clone());
    }
    Ok(edits)
}

fn find<'a>(
    name: &str,
    kind: &str,
    device: &str,
    files: &'a [Ranked],
) -> Result<Option<(usize, &'a Device)>, CdiError> {
    let mut best: Option<(usize, &Device)> = None;
    for (index, ranked) in files.iter().enumerate().filter(|(_, r)| r.file.kind == kind) {
        let Some(found) = ranked.file.devices.iter().find(|d| d.name == device) else { continue };
        match best {
            Some((old, _)) if files[old].rank == ranked.rank => {
                let (first, second) = (files[old].path.clone(), ranked.path.clone());
                return Err(CdiError::Conflict { name: name.into(), first, second });
            }
            _ => best = Some((index, found)),
        }
    }
    Ok(best)
}

impl Node {
    /// Fills in from the machine what the file leaves out.
    fn complete(&mut self) -> io::Result<()> {
        if self.r#type.is_some()
            && (self.major.is_some() && self.minor.is_some() || self.r#type.as_deref() == Some("p"))
        {
            return Ok(());
        }
        let node = DeviceNode::at(self.host_path.as_deref().unwrap_or(&self.path))?;
        self.r#type.get_or_insert_with(|| node.kind.to_oci().as_str().to_owned());
        self.major.get_or_insert(node.major);
        self.minor.get_or_insert(node.minor);
        self.file_mode.get_or_insert(node.mode);
        Ok(())
    }

    fn to_oci(&self, user: (u32, u32)) -> LinuxDevice {
        let kind = match self.r#type.as_deref() {
            Some("b") => LinuxDeviceType::B,
            Some("p") => LinuxDeviceType::P,
            _ => LinuxDeviceType::C,
        };
        let mut device = LinuxDevice::default();
        device.set_path(self.path.clone()).set_typ(kind);
        device.set_major(self.major.unwrap_or_default()).set_minor(self.minor.unwrap_or_default());
        device.set_file_mode(self.file_mode);
        // A process that is not root owns its devices, where the file names no owner.
        let owner = |given: Option<u32>, own: u32| given.or((own != 0).then_some(own));
        device.set_uid(owner(self.uid, user.0)).set_gid(owner(self.gid, user.1));
        device
    }
}

impl Edits {
    fn append(&mut self, mut more: Self) {
        self.env.append(&mut more.env);
        self.device_nodes.append(&mut more.device_nodes);
        self.net_devices.append(&mut more.net_devices);
        self.mounts.append(&mut more.mounts);
        self.hooks.append(&mut more.hooks);
        self.intel_rdt = more.intel_rdt.or(self.intel_rdt.take());
        self.additional_gids.append(&mut more.additional_gids);
    }

    /// Changes the spec of a container.
    pub(super) fn apply(&self, spec: &mut Spec) {
        let mut user = (0, 0);
        if let Some(process) = spec.process_mut() {
            user = (process.user().uid(), process.user().gid());
            self.apply_env(process.env_mut().get_or_insert_default());
            let groups = process.user_mut().additional_gids_mut().get_or_insert_default();
            for gid in self.additional_gids.iter().filter(|gid| **gid != 0) {
                if !groups.contains(gid) {
                    groups.push(*gid);
                }
            }
        }
        for node in &self.device_nodes {
            let access = node.permissions.clone().unwrap_or_else(|| "rwm".into());
            devices::add(spec, node.to_oci(user), access);
        }
        self.apply_mounts(spec.mounts_mut().get_or_insert_default());
        if let Some(linux) = spec.linux_mut() {
            self.apply_linux(linux);
        }
        for hook in &self.hooks {
            hook.apply(spec.hooks_mut().get_or_insert_default());
        }
    }

    fn apply_env(&self, env: &mut Vec<String>) {
        for variable in &self.env {
            let name = variable.split_once('=').map_or(variable.as_str(), |(name, _)| name);
            env.retain(|old| old.split_once('=').map_or(old.as_str(), |(name, _)| name) != name);
            env.push(variable.clone());
        }
    }

    fn apply_mounts(&self, mounts: &mut Vec<Mount>) {
        if self.mounts.is_empty() {
            return;
        }
        for mount in &self.mounts {
            mounts.retain(|old| *old.destination() != mount.container_path);
            let mut new = Mount::default();
            new.set_destination(mount.container_path.clone()).set_source(Some(mount.host_path.clone()));
            new.set_typ(mount.r#type.clone()).set_options(Some(mount.options.clone()));
            mounts.push(new);
        }
        mounts.sort_by_key(|m| m.destination().components().count());
    }

    fn apply_linux(&self, linux: &mut oci_spec::runtime::Linux) {
        for device in &self.net_devices {
            let all: &mut HashMap<_, _> = linux.net_devices_mut().get_or_insert_default();
            let mut net = LinuxNetDevice::default();
            net.set_name(Some(device.name.clone()));
            all.insert(device.host_interface_name.clone(), net);
        }
        if let Some(rdt) = &self.intel_rdt {
            let mut to = LinuxIntelRdt::default();
            to.set_clos_id(rdt.clos_id.clone()).set_schemata(rdt.schemata.clone());
            to.set_l3_cache_schema(rdt.l3_cache_schema.clone()).set_mem_bw_schema(rdt.mem_bw_schema.clone());
            to.set_enable_monitoring(rdt.enable_monitoring);
            linux.set_intel_rdt(Some(to));
        }
    }
}

impl CdiHook {
    fn apply(&self, hooks: &mut Hooks) {
        let mut hook = Hook::default();
        hook.set_path(self.path.clone());
        let some = |all: &[String]| if all.is_empty() { None } else { Some(all.to_vec()) };
        hook.set_args(some(&self.args)).set_env(some(&self.env)).set_timeout(self.timeout);
        #[allow(deprecated)]
        let list = match self.hook_name {
            HookName::Prestart => hooks.prestart_mut(),
            HookName::CreateRuntime => hooks.create_runtime_mut(),
            HookName::CreateContainer => hooks.create_container_mut(),
            HookName::StartContainer => hooks.start_container_mut(),
            HookName::Poststart => hooks.poststart_mut(),
            HookName::Poststop => hooks.poststop_mut(),
        };
        list.get_or_insert_default().push(hook);
    }
}

/// Reads any bytes as a vendor's file: for fuzzing.
pub fn is_valid(bytes: &[u8]) -> bool {
    File::parse(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn vendor(version: &str, device: &str) -> String {
        json!({
            "cdiVersion": version, "kind": "vendor.com/gpu",
            "devices": [{"name": device, "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}],
                "env": ["GPU=0"],
                "mounts": [{"hostPath": "/usr/lib/gpu.so", "containerPath": "/usr/lib/gpu.so", "options": ["ro", "bind"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/ldconfig", "args": ["ldconfig"]}],
                "additionalGids": [44]}}],
            "containerEdits": {"env": ["ALL=1"]}
        })
        .to_string()
    }

    fn folders(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn edits(files: &[(&str, &str)], names: &[&str]) -> Result<Edits, String> {
        let dir = folders(files);
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        resolve(&names, &[&etc, &run]).map_err(|e| e.to_string())
    }

    #[test]
    fn a_device_changes_the_whole_spec() {
        let edits = edits(&[("etc/a.json", &vendor("0.6.0", "0"))], &["vendor.com/gpu=0"]).unwrap();
        let mut spec = super::super::empty_spec();
        let mut process = super::super::empty_process();
        process.set_env(Some(vec!["GPU=old".into()]));
        process.user_mut().set_uid(1000);
        spec.set_process(Some(process)).set_linux(Some(super::super::empty_linux()));
        edits.apply(&mut spec);
        let value = serde_json::to_value(&spec).unwrap();
        assert_eq!(value["process"]["env"], json!(["ALL=1", "GPU=0"]));
        assert_eq!(value["process"]["user"]["additionalGids"], json!([44]));
        assert_eq!(
            value["linux"]["devices"],
            json!([{"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 1000}])
        );
        assert_eq!(
            value["linux"]["resources"]["devices"],
            json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}])
        );
        assert_eq!(value["mounts"][0]["destination"], "/usr/lib/gpu.so");
        assert_eq!(value["hooks"]["createContainer"][0]["path"], "/bin/ldconfig");
    }

    #[test]
    fn the_later_folder_wins_and_equals_conflict() {
        let (one, other) = (vendor("0.6.0", "0"), vendor("1.0.0", "0").replace("GPU=0", "GPU=1"));
        let won = edits(&[("etc/a.json", &one), ("run/a.yaml", &other)], &["vendor.com/gpu=0"]).unwrap();
        assert_eq!(won.env, ["ALL=1", "GPU=1"]);
        let twice = edits(&[("etc/a.json", &one), ("etc/b.json", &other)], &["vendor.com/gpu=0"]).unwrap_err();
        assert!(twice.contains("described twice"), "{twice}");
    }

    #[test]
    fn what_is_missing_or_broken_is_told() {
        let good = vendor("0.6.0", "0");
        let files = [("etc/a.json", good.as_str()), ("etc/broken.json", "{"), ("etc/notes.txt", "x")];
        assert!(edits(&files, &["vendor.com/gpu=0"]).is_ok());
        let unknown = edits(&files, &["vendor.com/gpu=7"]).unwrap_err();
        assert!(unknown.starts_with("no file in [\"/etc/cdi\"") && unknown.contains("broken.json"), "{unknown}");
        for bad in ["gpu0", "vendor.com=0", "/gpu=0", "vendor.com/gpu="] {
            let malformed = edits(&files, &[bad]).unwrap_err();
            assert!(malformed.contains("vendor/class=name"), "{malformed}");
        }
        assert!(
            edits(&[("etc/a.json", &vendor("9.0", "0"))], &["vendor.com/gpu=0"]).unwrap_err().contains("cdiVersion")
        );
        let gone = good.replace("/dev/null", "/dev/no-such-device");
        assert!(
            edits(&[("etc/a.json", &gone)], &["vendor.com/gpu=0"])
                .unwrap_err()
                .starts_with("CDI device node /dev/gpu0")
        );
    }

    #[test]
    fn requests_come_by_field_and_by_annotation() {
        let config = cri::v1::ContainerConfig {
            cdi_devices: vec![cri::v1::CdiDevice { name: "a/b=1".into() }],
            annotations: [("cdi.k8s.io/x".into(), "a/b=2, a/b=1".into()), ("other".into(), "a/b=3".into())].into(),
            ..Default::default()
        };
        assert_eq!(requested(&config), ["a/b=1", "a/b=2"]);
    }

    #[test]
    fn yaml_is_read_as_json_is() {
        let yaml = b"cdiVersion: 0.6.0\nkind: a/b\ndevices:\n- name: '0'\n  containerEdits:\n    env: [X=1]\n";
        assert_eq!(File::parse(yaml).unwrap().devices[0].container_edits.env, ["X=1"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = is_valid(&bytes);
        }
    }
}
