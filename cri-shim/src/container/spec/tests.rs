//! What critest asks of a container's security context, mounts and devices, as values of the spec.

use std::path::Path;

use cri::v1::{self, MountPropagation, NamespaceMode};
use oci_spec::runtime::Capability;
use serde_json::{Value, json};

use crate::seccomp::Profile;

use super::fixtures::Case;
use super::{DeviceNode, Source, SpecError, Volume, exec_process};

fn asks() -> v1::LinuxContainerSecurityContext {
    v1::LinuxContainerSecurityContext::default()
}

fn made(security: v1::LinuxContainerSecurityContext) -> Value {
    Case::new(security).json().unwrap()
}

fn refused(case: &Case) -> String {
    case.json().unwrap_err()
}

fn mount_at(spec: &Value, path: &str) -> Value {
    let all = spec["mounts"].as_array().unwrap();
    all.iter().find(|m| m["destination"] == path).cloned().unwrap_or(Value::Null)
}

fn namespaces_of(spec: &Value) -> Vec<String> {
    let all = spec["linux"]["namespaces"].as_array().unwrap();
    let text = |n: &Value| format!("{}={}", n["type"].as_str().unwrap(), n["path"].as_str().unwrap_or_default());
    all.iter().map(text).collect()
}

fn options(pid: NamespaceMode, ipc: NamespaceMode, network: NamespaceMode) -> v1::NamespaceOption {
    v1::NamespaceOption { pid: pid as i32, ipc: ipc as i32, network: network as i32, ..Default::default() }
}

#[test]
fn a_container_that_asks_for_nothing() {
    let spec = made(asks());
    assert_eq!(spec["ociVersion"], "1.1.0");
    assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": false}));
    assert_eq!(spec["hostname"], Value::Null);
    let process = &spec["process"];
    assert_eq!(process["args"], json!(["/bin/sh"]));
    assert_eq!(process["cwd"], "/");
    assert_eq!(process["user"], json!({"uid": 0, "gid": 0, "additionalGids": [0]}));
    assert_eq!(process["env"][1], "HOSTNAME=podhost");
    assert_eq!((&process["noNewPrivileges"], &process["terminal"]), (&json!(false), &json!(false)));
    assert_eq!((&process["rlimits"], &process["oomScoreAdj"]), (&Value::Null, &Value::Null));
    assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod1/container1");
    assert_eq!(spec["linux"]["resources"], json!({"devices": [{"allow": false, "access": "rwm"}]}));
    assert_eq!((&spec["linux"]["maskedPaths"], &spec["linux"]["readonlyPaths"]), (&json!([]), &json!([])));
    assert_eq!(spec["linux"]["seccomp"], Value::Null);
    let annotations = &spec["annotations"];
    assert_eq!(annotations["io.kubernetes.cri.container-type"], "container");
    assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], "sandbox1");
    assert_eq!(annotations["io.kubernetes.cri.container-name"], "main");
}

#[test]
fn host_pid_pod_pid_container_pid_and_target() {
    let pod = ["network=/ns/net", "ipc=/ns/ipc", "uts=/ns/uts", "mount="];
    let with = |pid: NamespaceMode, path: Option<&str>| {
        let namespace_options = Some(options(pid, NamespaceMode::Pod, NamespaceMode::Pod));
        let mut case = Case::new(v1::LinuxContainerSecurityContext { namespace_options, ..asks() });
        case.namespaces.pid = path.map(Into::into);
        case
    };
    let all = |case: &Case| namespaces_of(&case.json().unwrap());
    assert_eq!(all(&with(NamespaceMode::Node, None)), pod);
    assert_eq!(all(&with(NamespaceMode::Container, None)), [&pod[..], &["pid="]].concat());
    assert_eq!(all(&with(NamespaceMode::Pod, Some("/ns/pid"))), [&pod[..], &["pid=/ns/pid"]].concat());
    assert_eq!(all(&with(NamespaceMode::Target, Some("/proc/7/ns/pid"))), [&pod[..], &["pid=/proc/7/ns/pid"]].concat());
    assert!(refused(&with(NamespaceMode::Pod, None)).starts_with("PID namespace: a shared one is asked for"));
}

#[test]
fn host_ipc_and_host_network() {
    let namespace_options = Some(options(NamespaceMode::Container, NamespaceMode::Node, NamespaceMode::Node));
    let mut case = Case::new(v1::LinuxContainerSecurityContext { namespace_options, ..asks() });
    case.namespaces = super::NamespacePaths::default();
    assert_eq!(namespaces_of(&case.json().unwrap()), ["mount=", "pid="]);
}

#[test]
fn cgroup_namespaces_on_version_2_unless_privileged() {
    let mut case = Case::new(asks());
    case.host.cgroup_v2 = true;
    assert!(namespaces_of(&case.json().unwrap()).contains(&"cgroup=".to_owned()));
    let mut case = Case::new(v1::LinuxContainerSecurityContext { privileged: true, ..asks() });
    case.host.cgroup_v2 = true;
    assert!(!namespaces_of(&case.json().unwrap()).contains(&"cgroup=".to_owned()));
}

#[test]
fn users_and_groups_come_from_the_images_files() {
    let mut case = Case::new(v1::LinuxContainerSecurityContext {
        run_as_username: "nobody".into(),
        supplemental_groups: vec![1234, 5678],
        ..asks()
    });
    case.gathered.accounts.passwd = b"nobody:x:99:98::/:\n".into();
    let spec = case.spec().unwrap();
    let user = spec.process().as_ref().unwrap().user();
    assert_eq!((user.uid(), user.gid()), (99, 98));
    assert_eq!(user.additional_gids(), &Some(vec![98, 1234, 5678]));
    let alone = v1::Int64Value { value: 5 };
    let case = Case::new(v1::LinuxContainerSecurityContext { run_as_group: Some(alone), ..asks() });
    assert!(matches!(case.spec(), Err(SpecError::GroupWithoutUser(5))));
}

#[test]
fn read_only_root() {
    let spec = made(v1::LinuxContainerSecurityContext { readonly_rootfs: true, ..asks() });
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(mount_at(&spec, "/etc/hosts")["options"], json!(["rbind", "rprivate", "ro"]));
    assert_eq!(mount_at(&spec, "/dev/shm")["options"], json!(["rbind", "rprivate", "rw"]));
}

#[test]
fn privileged() {
    let security = v1::LinuxContainerSecurityContext {
        privileged: true,
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        seccomp: Some(v1::SecurityProfile { profile_type: 2, localhost_ref: "/deny.json".into() }),
        ..asks()
    };
    let mut case = Case::new(security);
    case.gathered.host_devices = vec![DeviceNode::at(Path::new("/dev/null")).unwrap()];
    let spec = case.json().unwrap();
    assert_eq!((&spec["linux"]["maskedPaths"], &spec["linux"]["readonlyPaths"]), (&json!([]), &json!([])));
    assert_eq!(spec["linux"]["seccomp"], Value::Null);
    assert_eq!(mount_at(&spec, "/sys")["options"], json!(["nosuid", "noexec", "nodev", "rw"]));
    assert_eq!(mount_at(&spec, "/sys/fs/cgroup")["options"][4], "rw");
    assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/null");
    assert_eq!(spec["linux"]["resources"]["devices"][1], json!({"allow": true, "access": "rwm"}));
    let bounding = spec["process"]["capabilities"]["bounding"].as_array().unwrap().clone();
    assert_eq!(bounding.len(), case.host.capabilities.len());
    assert!(!case.host.capabilities.contains(&Capability::SysResource));
    case.handler.privileged_without_host_devices = true;
    assert_eq!(case.json().unwrap()["linux"]["devices"], Value::Null);
    case.sandbox.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = false;
    assert!(matches!(case.spec(), Err(SpecError::PrivilegedInUnprivilegedSandbox)));
}

#[test]
fn masked_and_read_only_paths() {
    let spec = made(v1::LinuxContainerSecurityContext {
        masked_paths: vec!["/bin/ls".into()],
        readonly_paths: vec!["/tmp".into()],
        ..asks()
    });
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/bin/ls"]));
    assert_eq!(spec["linux"]["readonlyPaths"], json!(["/tmp"]));
    assert_eq!(mount_at(&spec, "/sys/fs/cgroup")["options"][4], "ro");
}

#[test]
#[allow(deprecated)]
fn seccomp_default_localhost_unconfined_and_none() {
    let of = |profile: Option<v1::SecurityProfile>, localhost: Option<&str>| {
        let mut case = Case::new(v1::LinuxContainerSecurityContext { seccomp: profile, ..asks() });
        case.gathered.seccomp = localhost.map(|text| Profile::parse(text.as_bytes()).unwrap());
        case
    };
    let profile =
        |profile_type, reference: &str| Some(v1::SecurityProfile { profile_type, localhost_ref: reference.into() });
    let filter = |case: &Case| case.json().unwrap()["linux"]["seccomp"].clone();
    assert_eq!(filter(&of(None, None)), Value::Null);
    assert_eq!(filter(&of(profile(1, ""), None)), Value::Null);
    assert_eq!(filter(&of(profile(0, ""), None))["defaultAction"], "SCMP_ACT_ERRNO");
    let deny = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let localhost = filter(&of(profile(2, "/deny.json"), Some(deny)));
    assert_eq!(localhost, serde_json::from_str::<Value>(deny).unwrap());
    let mut without = of(profile(0, ""), None);
    without.host.seccomp = false;
    assert!(refused(&without).contains("no seccomp filters"));
    let old = v1::LinuxContainerSecurityContext { seccomp_profile_path: "runtime/default".into(), ..asks() };
    assert_eq!(made(old)["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
}

#[test]
fn apparmor_where_it_is() {
    let of = |profile: Option<v1::SecurityProfile>, enabled: bool| {
        let mut case = Case::new(v1::LinuxContainerSecurityContext { apparmor: profile, ..asks() });
        case.host.apparmor = enabled;
        case.gathered.apparmor = [super::apparmor::DEFAULT.to_owned(), "mine".to_owned()].into();
        case
    };
    let localhost = |name: &str| Some(v1::SecurityProfile { profile_type: 2, localhost_ref: name.into() });
    let name = |case: &Case| case.json().unwrap()["process"]["apparmorProfile"].clone();
    assert_eq!(name(&of(None, false)), Value::Null);
    assert_eq!(name(&of(None, true)), super::apparmor::DEFAULT);
    assert_eq!(name(&of(localhost("mine"), true)), "mine");
    assert!(refused(&of(localhost("none"), true)).contains("\"none\" is not loaded"));
    assert!(refused(&of(localhost("mine"), false)).contains("has no AppArmor"));
    let default = Some(v1::SecurityProfile::default());
    assert_eq!(name(&of(default.clone(), true)), super::apparmor::DEFAULT);
    assert!(refused(&of(default, false)).contains("has no AppArmor"));
    let unconfined = Some(v1::SecurityProfile { profile_type: 1, ..Default::default() });
    assert_eq!(name(&of(unconfined.clone(), true)), Value::Null);
    assert_eq!(name(&of(unconfined, false)), Value::Null);
}

#[test]
fn selinux_labels_only_where_the_kernel_has_them() {
    let selinux_options = Some(v1::SeLinuxOption { level: "s0:c4,c5".into(), ..Default::default() });
    let mut case = Case::new(v1::LinuxContainerSecurityContext { selinux_options, ..asks() });
    assert_eq!(case.json().unwrap()["process"]["selinuxLabel"], Value::Null);
    case.host.selinux = Some(super::fixtures::selinux());
    let spec = case.json().unwrap();
    assert_eq!(spec["process"]["selinuxLabel"], "system_u:system_r:container_t:s0:c4,c5");
    assert_eq!(spec["linux"]["mountLabel"], "system_u:object_r:container_file_t:s0:c4,c5");
}

#[test]
fn what_a_labelled_container_uses_is_labelled() {
    let with = |path: &str, selinux: bool| {
        let mut case =
            with_mount(v1::Mount { selinux_relabel: true, ..volume() }, Source { path: path.into(), ..on(true, true) });
        case.host.selinux = selinux.then(super::fixtures::selinux);
        let spec = case.spec().unwrap();
        super::selinux::relabel(&case.input(&case.view()), &spec).map_err(|e| e.to_string())
    };
    assert_eq!(with("/srv/real", false), Ok(None));
    let relabel = with("/srv/real", true).unwrap().unwrap();
    assert_eq!(relabel.label, "system_u:object_r:container_file_t:s0");
    let paths = ["/srv/real", "/pod/hosts", "/pod/hostname", "/pod/resolv.conf", "/pod/shm"];
    assert_eq!(relabel.paths, paths.map(std::path::PathBuf::from));
    assert!(with("/etc", true).unwrap_err().contains("a folder of the machine itself"));
}

#[test]
fn no_new_privileges() {
    let spec = made(v1::LinuxContainerSecurityContext { no_new_privs: true, ..asks() });
    assert_eq!(spec["process"]["noNewPrivileges"], true);
}

fn in_user_namespace(sandbox_too: bool) -> Case {
    let mapping = vec![v1::IdMapping { container_id: 0, host_id: 1000, length: 100_000 }];
    let userns = v1::UserNamespace { mode: NamespaceMode::Pod as i32, uids: mapping.clone(), gids: mapping };
    let namespace_options = Some(v1::NamespaceOption {
        userns_options: Some(userns),
        ..options(NamespaceMode::Container, NamespaceMode::Pod, NamespaceMode::Pod)
    });
    let mut case = Case::new(v1::LinuxContainerSecurityContext { namespace_options, ..asks() });
    case.namespaces.user = Some("/ns/user".into());
    if !sandbox_too {
        case.sandbox.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = None;
    }
    case
}

#[test]
fn user_namespaces() {
    let case = in_user_namespace(true);
    let spec = case.json().unwrap();
    assert!(namespaces_of(&spec).contains(&"user=/ns/user".to_owned()));
    let mapping = json!([{"hostID": 1000, "containerID": 0, "size": 100_000}]);
    assert_eq!((&spec["linux"]["uidMappings"], &spec["linux"]["gidMappings"]), (&mapping, &mapping));
    assert_eq!(mount_at(&spec, "/etc/hosts")["uidMappings"], mapping);
    assert_eq!(mount_at(&spec, "/dev/shm")["uidMappings"], Value::Null);
    assert!(refused(&in_user_namespace(false)).contains("another one than its pod sandbox"));
    let mut lost = case.clone();
    lost.namespaces.user = None;
    assert!(refused(&lost).starts_with("user namespace: the pod sandbox has none"));
    let mut host_network = case;
    let security = host_network.sandbox.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().network = NamespaceMode::Node as i32;
    let sys = mount_at(&host_network.json().unwrap(), "/sys");
    assert_eq!((&sys["type"], &sys["options"][4]), (&json!("bind"), &json!("rro")));
}

#[test]
fn user_namespaces_need_the_handler() {
    let mut case = in_user_namespace(true);
    case.handler.user_namespaces = false;
    assert!(refused(&case).contains("cannot run containers in user namespaces"));
}

fn with_mount(mount: v1::Mount, source: Source) -> Case {
    let mut case = Case::new(asks());
    case.config.mounts = vec![mount];
    case.gathered.mounts = vec![source];
    case
}

fn volume() -> v1::Mount {
    v1::Mount { container_path: "/data".into(), host_path: "/srv/link".into(), ..Default::default() }
}

fn on(shared: bool, slave: bool) -> Source {
    Source { path: "/srv/real".into(), mount_point: "/srv".into(), shared, slave }
}

#[test]
fn a_volume_is_bound_from_where_its_link_leads() {
    let spec = with_mount(volume(), on(false, false)).json().unwrap();
    let expected = json!({"destination": "/data", "type": "bind", "source": "/srv/real",
        "options": ["rbind", "rprivate", "rw"]});
    assert_eq!(mount_at(&spec, "/data"), expected);
    assert_eq!(spec["linux"]["rootfsPropagation"], Value::Null);
}

#[test]
fn propagation_needs_peers() {
    let with = |propagation: MountPropagation, source| {
        with_mount(v1::Mount { propagation: propagation as i32, ..volume() }, source)
    };
    let of = |case: &Case| {
        let spec = case.json().unwrap();
        (mount_at(&spec, "/data")["options"][1].clone(), spec["linux"]["rootfsPropagation"].clone())
    };
    let (down, both) = (MountPropagation::PropagationHostToContainer, MountPropagation::PropagationBidirectional);
    assert_eq!(of(&with(down, on(false, true))), (json!("rslave"), json!("rslave")));
    assert_eq!(of(&with(both, on(true, false))), (json!("rshared"), json!("rshared")));
    assert_eq!(
        refused(&with(both, on(false, true))),
        "the mount of \"/data\" is refused: /srv/real lies on /srv, which is not a shared mount: \
         run mount --make-rshared on it"
    );
    assert!(refused(&with(down, on(false, false))).contains("not a shared or slave mount"));
}

#[test]
fn read_only_and_recursively_read_only() {
    let read_only = v1::Mount { readonly: true, ..volume() };
    let recursive = v1::Mount { recursive_read_only: true, ..read_only.clone() };
    let mode = |mount: &v1::Mount| {
        let spec = with_mount(mount.clone(), on(true, false)).json()?;
        Ok::<_, String>(mount_at(&spec, "/data")["options"][2].clone())
    };
    assert_eq!(mode(&read_only), Ok(json!("ro")));
    assert_eq!(mode(&recursive), Ok(json!("rro")));
    let writable = v1::Mount { readonly: false, ..recursive.clone() };
    assert!(mode(&writable).unwrap_err().contains("needs readonly set"));
    for propagation in [MountPropagation::PropagationHostToContainer, MountPropagation::PropagationBidirectional] {
        let spreading = v1::Mount { propagation: propagation as i32, ..recursive.clone() };
        assert!(mode(&spreading).unwrap_err().contains("needs private propagation"));
    }
    let mut old = with_mount(recursive, on(true, false));
    old.handler.recursive_read_only = false;
    assert!(refused(&old).starts_with("RROUnsupported"));
}

#[test]
fn image_mounts_are_read_only_and_options_are_three() {
    let of_image =
        v1::Mount { image: Some(v1::ImageSpec { image: "sha256:77".into(), ..Default::default() }), ..volume() };
    assert!(refused(&with_mount(of_image.clone(), on(false, false))).contains("an image is mounted read-only"));
    assert!(with_mount(v1::Mount { readonly: true, ..of_image }, on(false, false)).spec().is_ok());
    let strict = v1::Mount { mount_options: vec!["noexec".into(), "nosuid".into()], ..volume() };
    let spec = with_mount(strict, on(false, false)).json().unwrap();
    assert_eq!(mount_at(&spec, "/data")["options"], json!(["rbind", "rprivate", "rw", "noexec", "nosuid"]));
    let suid = v1::Mount { mount_options: vec!["suid".into()], ..volume() };
    assert!(refused(&with_mount(suid, on(false, false))).contains("unknown mount option \"suid\""));
}

#[test]
fn mapped_mounts_need_the_handler() {
    let mapping = vec![v1::IdMapping { container_id: 0, host_id: 5, length: 1 }];
    let mapped = v1::Mount { uid_mappings: mapping.clone(), gid_mappings: mapping, ..volume() };
    let mut case = with_mount(mapped, on(false, false));
    let mount = mount_at(&case.json().unwrap(), "/data");
    assert_eq!(mount["gidMappings"], json!([{"hostID": 5, "containerID": 0, "size": 1}]));
    case.handler.user_namespaces = false;
    assert!(refused(&case).contains("cannot run containers in user namespaces"));
}

#[test]
fn mounts_are_made_parents_first_and_the_requests_win() {
    let mut case = Case::new(asks());
    let paths = ["/a/b/c", "/etc/hosts/", "/a", "/dev"];
    case.config.mounts = paths.map(|p| v1::Mount { container_path: p.into(), ..volume() }).to_vec();
    case.gathered.mounts = vec![on(false, false); paths.len()];
    case.volumes = vec![
        Volume { destination: "/a/b".into(), source: "/v/0".into() },
        Volume { destination: "/a".into(), source: "/v/1".into() },
    ];
    let spec = case.json().unwrap();
    let all = spec["mounts"].as_array().unwrap();
    let destinations: Vec<_> = all.iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(
        destinations,
        [
            "/proc",
            "/sys",
            "/sys/fs/cgroup",
            "/a",
            "/dev",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/shm",
            "/a/b",
            "/a/b/c"
        ]
    );
    assert_eq!(mount_at(&spec, "/etc/hosts")["source"], "/srv/real");
    assert_eq!(
        (&mount_at(&spec, "/a")["source"], &mount_at(&spec, "/a/b")["source"]),
        (&json!("/srv/real"), &json!("/v/0"))
    );
}

#[test]
fn devices_are_made_and_allowed() {
    let mut case = Case::new(asks());
    case.config.devices = vec![v1::Device {
        container_path: "/dev/other".into(),
        host_path: "/dev/null".into(),
        permissions: "rw".into(),
    }];
    case.gathered.devices = vec![vec![DeviceNode::at(Path::new("/dev/null")).unwrap()]];
    let spec = case.json().unwrap();
    let device = &spec["linux"]["devices"][0];
    assert_eq!((&device["path"], &device["type"], &device["major"]), (&json!("/dev/other"), &json!("c"), &json!(1)));
    let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"});
    assert_eq!(spec["linux"]["resources"]["devices"][1], rule);
}

#[test]
fn a_terminal_with_the_machines_devices_has_a_console() {
    let mut case = with_mount(
        v1::Mount { container_path: "/dev".into(), host_path: "/dev".into(), ..Default::default() },
        on(false, false),
    );
    case.config.tty = true;
    case.gathered.console = Some(DeviceNode::at(Path::new("/dev/null")).unwrap());
    let spec = case.json().unwrap();
    assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/console");
    assert_eq!(spec["process"]["terminal"], true);
    assert!(spec["process"]["env"].as_array().unwrap().contains(&json!("TERM=xterm")));
}

#[test]
fn the_environment_in_order() {
    let mut case = Case::new(asks());
    case.image = super::fixtures::image(|c| {
        c.set_env(Some(vec!["PATH=/image".into(), "A=image".into()]));
    });
    let variable = |key: &str, value: &[u8]| v1::KeyValue { key: key.into(), value: value.into() };
    case.config.envs = vec![variable("A", b"config"), variable("B", "\u{e4}".as_bytes())];
    case.sandbox.hostname = String::new();
    let env = case.json().unwrap()["process"]["env"].clone();
    assert_eq!(env, json!(["PATH=/image", "HOSTNAME=machine", "A=config", "B=\u{e4}"]));
    case.config.envs = vec![variable("B", b"\xff")];
    assert!(refused(&case).starts_with("environment variable \"B\" is not UTF-8"));
    case.config.envs = vec![variable("A=B", b"")];
    assert!(refused(&case).contains("malformed"));
}

#[test]
fn an_exec_is_as_the_container_with_another_command() {
    let mut case = Case::new(v1::LinuxContainerSecurityContext { no_new_privs: true, ..asks() });
    case.config.tty = true;
    let spec = case.spec().unwrap();
    let process = exec_process(&spec, &["id".into()], false).unwrap();
    assert_eq!((process.args(), process.terminal()), (&Some(vec!["id".into()]), Some(false)));
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!(process.capabilities(), spec.process().as_ref().unwrap().capabilities());
    assert!(matches!(exec_process(&spec, &[], false), Err(SpecError::NoCommand)));
}

#[test]
fn a_spec_survives_containerd() {
    let spec = Case::new(asks()).spec().unwrap();
    let any = super::encode(super::SPEC, &spec).unwrap();
    assert_eq!(any.type_url, "types.containerd.io/opencontainers/runtime-spec/1/Spec");
    assert_eq!(super::decode::<oci_spec::runtime::Spec>(&any).unwrap(), spec);
}
