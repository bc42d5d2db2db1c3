//! Specs run by the real runc, in namespaces and a cgroup of the test's own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cri::v1::{self, MountPropagation, NamespaceMode};

use super::fixtures::Case;
use super::{HostFacts, NamespacePaths, Request, Rootfs, gather};

const BUSYBOX: &str = "/bin/busybox";

/// A bundle for runc in a folder that goes with it.
struct Bundle {
    dir: tempfile::TempDir,
    group: String,
}

impl Bundle {
    /// Says aloud why there can be none.
    fn new(name: &str) -> Option<Self> {
        let needs = |what: &str| {
            eprintln!("SKIPPED {name}: needs {what}");
            None
        };
        if !kernel::process::has_capability(21).unwrap_or(false) {
            return needs("CAP_SYS_ADMIN");
        }
        if kernel::process::run("runc", &["--version"]).is_err() || !Path::new(BUSYBOX).exists() {
            return needs("runc and busybox-static");
        }
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
            fs::create_dir_all(dir.path().join("rootfs").join(folder)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(BUSYBOX, dir.path().join("rootfs/bin/busybox")).unwrap();
        symlink("busybox", dir.path().join("rootfs/bin/sh")).unwrap();
        let passwd = "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n";
        fs::write(dir.path().join("rootfs/etc/passwd"), passwd).unwrap();
        fs::write(dir.path().join("rootfs/etc/group"), "user:x:1000:\nmore:x:50000:user\n").unwrap();
        for file in ["hosts", "hostname", "resolv.conf"] {
            fs::write(dir.path().join(file), file).unwrap();
        }
        fs::create_dir(dir.path().join("shm")).unwrap();
        let group = format!("/bosun-spec-test-{}-{name}", std::process::id());
        Some(Self { dir, group })
    }

    fn case(&self, security: v1::LinuxContainerSecurityContext) -> Case {
        let mut case = Case::new(security);
        case.host = HostFacts::detect();
        // What runc inherits from the test's own unshare is what a container joins by path elsewhere.
        case.namespaces = NamespacePaths::default();
        case.sandbox.linux.as_mut().unwrap().cgroup_parent = self.group.clone();
        case
    }

    /// What the container's shell prints for `script`.
    fn run(&self, case: &mut Case, script: &str) -> Result<String, String> {
        // Both outputs in one pipe, so that they come in their order.
        let script = format!("exec 2>&1; {script}");
        case.config.command = vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script];
        let rootfs = Rootfs::open(&self.dir.path().join("rootfs")).unwrap();
        let request = Request { config: &case.config, rootfs: Some(&rootfs), host: &case.host };
        case.gathered = gather(&request).map_err(|e| e.to_string())?;
        let own = |file: &str| self.dir.path().join(file);
        let (hosts, hostname, resolv_conf, shm) = (own("hosts"), own("hostname"), own("resolv.conf"), own("shm"));
        let mut view = case.view();
        (view.hosts, view.hostname, view.resolv_conf, view.shm) = (&hosts, &hostname, &resolv_conf, &shm);
        let spec = super::container_spec(&case.input(&view));
        let spec = spec.map_err(|e| e.to_string())?;
        fs::write(own("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        self.runc()
    }

    fn runc(&self) -> Result<String, String> {
        let dir = self.dir.path().display();
        let id = self.group.trim_start_matches('/');
        // The mount namespace's own root must take part in no propagation but what a test makes.
        let script = format!(
            "mount --make-rprivate / && hostname podhost && if test -e {dir}/prepare; then sh {dir}/prepare; fi && \
             runc --root {dir}/state run --bundle {dir} {id} 2>&1"
        );
        let words = ["--mount", "--uts", "--ipc", "--net", "sh", "-c", &script];
        let out = kernel::process::run("unshare", &words);
        let out = out.map_err(|e| format!("{e}"));
        if let Ok(cgroups) = kernel::cgroup::Cgroups::detect() {
            cgroups.remove(&self.group).unwrap();
        }
        out.map(|text| text.trim_end().to_owned())
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

fn asks() -> v1::LinuxContainerSecurityContext {
    v1::LinuxContainerSecurityContext::default()
}

fn value(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

#[test]
fn a_plain_container_runs() {
    let Some(bundle) = Bundle::new("plain") else { return };
    let mut case = bundle.case(v1::LinuxContainerSecurityContext {
        seccomp: Some(v1::SecurityProfile::default()),
        masked_paths: vec!["/etc/group".into(), "/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        ..asks()
    });
    case.config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: -999,
        ..Default::default()
    });
    let script = "id -u; hostname; grep -E 'Seccomp:|CapBnd|CapInh|CapAmb' /proc/self/status; cat /etc/hosts; echo; \
                  cat /etc/group; echo $HOSTNAME; echo 1 2>&1 > /proc/sys/kernel/domainname; echo $$; touch /tmp/x && echo ok; \
                  ip -o link show lo | cut -d: -f2";
    let out = bundle.run(&mut case, script).unwrap();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(
        lines[..8],
        [
            "0",
            "podhost",
            "CapInh:\t0000000000000000",
            "CapBnd:\t00000000a80425fb",
            "CapAmb:\t0000000000000000",
            "Seccomp:\t2",
            "hosts",
            "podhost"
        ],
        "{out}"
    );
    assert!(lines[8].contains("Read-only file system"), "{out}");
    assert_eq!(lines[9..], ["1", "ok", " lo"], "{out}");
}

#[test]
fn users_groups_and_no_new_privileges() {
    let Some(bundle) = Bundle::new("users") else { return };
    let mut case = bundle.case(v1::LinuxContainerSecurityContext {
        run_as_user: value(1000),
        supplemental_groups: vec![1234],
        no_new_privs: true,
        readonly_rootfs: true,
        ..asks()
    });
    let script = "id -u; id -g; id -G; grep -E 'NoNewPrivs|CapEff' /proc/self/status; touch /tmp/x";
    let out = bundle.run(&mut case, &format!("{script} || true")).unwrap();
    let expected = "1000\n1000\n1000 1234 50000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n\
                    touch: /tmp/x: Read-only file system";
    assert_eq!(out, expected);
}

#[test]
fn a_privileged_container_has_what_root_has() {
    let Some(bundle) = Bundle::new("privileged") else { return };
    let mut case = bundle.case(v1::LinuxContainerSecurityContext { privileged: true, ..asks() });
    let script = "grep -E 'Seccomp:|CapBnd' /proc/self/status; ls /dev/kmsg; hostname new && hostname; \
                  mount -t tmpfs none /data && echo mounted; touch /sys/fs/cgroup/x 2>&1 | grep -c 'Read-only'";
    let out = bundle.run(&mut case, &format!("{script}; true")).unwrap();
    let held = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = held.lines().find(|l| l.starts_with("CapBnd")).unwrap();
    assert_eq!(out.lines().collect::<Vec<_>>(), [bounding, "Seccomp:\t0", "/dev/kmsg", "new", "mounted", "0"]);
}

#[test]
fn localhost_seccomp_and_devices() {
    let Some(bundle) = Bundle::new("localhost") else { return };
    let profile = bundle.dir.path().join("deny.json");
    let deny = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, deny).unwrap();
    let mut case = bundle.case(v1::LinuxContainerSecurityContext {
        seccomp: Some(v1::SecurityProfile { profile_type: 2, localhost_ref: profile.display().to_string() }),
        capabilities: Some(v1::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() }),
        ..asks()
    });
    // Not one of those that runc gives to every container.
    let (container_path, host_path) = ("/dev/mine".into(), "/dev/loop-control".into());
    case.config.devices = vec![v1::Device { container_path, host_path, permissions: "r".into() }];
    let script = "hostname new || echo refused; hostname; (: < /dev/mine) && echo read; (: > /dev/mine) || true";
    let out = bundle.run(&mut case, script).unwrap();
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].contains("Operation not permitted"), "{out}");
    assert_eq!(lines[1..4], ["refused", "podhost", "read"], "{out}");
    assert!(lines[4].contains("Operation not permitted"), "{out}");
}

#[test]
fn mounts_spread_and_are_read_only_as_asked() {
    let Some(bundle) = Bundle::new("mounts") else { return };
    let (shared, plain) = (bundle.folder("shared"), bundle.folder("plain"));
    bundle.folder("plain/below");
    let at = |path: &Path, to: &str| v1::Mount {
        container_path: to.into(),
        host_path: path.display().to_string(),
        ..Default::default()
    };
    let prepare = format!(
        "mount -t tmpfs shared {0} && mount --make-shared {0} && mount -t tmpfs below {1}/below",
        shared.display(),
        plain.display()
    );
    fs::write(bundle.dir.path().join("prepare"), prepare).unwrap();
    let mut case = bundle.case(v1::LinuxContainerSecurityContext { privileged: true, ..asks() });
    case.config.mounts = vec![
        v1::Mount { readonly: true, ..at(&plain, "/ro") },
        v1::Mount { readonly: true, recursive_read_only: true, ..at(&plain, "/rro") },
        v1::Mount { mount_options: vec!["noexec".into()], ..at(&plain, "/noexec") },
    ];
    let script = "for f in /ro/x /ro/below/x /rro/x /rro/below/x /noexec/x; do touch $f 2>/dev/null && echo $f; done; \
                  cp /bin/busybox /noexec/b; /noexec/b true 2>&1 | grep -o 'Permission denied'; true";
    assert_eq!(bundle.run(&mut case, script).unwrap(), "/ro/below/x\n/noexec/x\nPermission denied");
    // The sharing itself is made within the test's namespace, so the table of this one cannot tell of it.
    case.config.mounts =
        vec![v1::Mount { propagation: MountPropagation::PropagationBidirectional as i32, ..at(&shared, "/both") }];
    let refused = bundle.run(&mut case, "true");
    let own = kernel::mount::mounts().unwrap();
    let here =
        own.iter().filter(|m| shared.starts_with(&m.mount_point)).max_by_key(|m| m.mount_point.components().count());
    assert_eq!(refused.is_err(), !here.unwrap().shared, "{refused:?}");
}

#[test]
fn the_pause_tasks_spec_runs() {
    let Some(bundle) = Bundle::new("pause") else { return };
    let mut config = super::fixtures::sandbox_config(v1::LinuxSandboxSecurityContext {
        seccomp: Some(v1::SecurityProfile::default()),
        namespace_options: Some(v1::NamespaceOption { pid: NamespaceMode::Pod as i32, ..Default::default() }),
        ..Default::default()
    });
    config.linux.as_mut().unwrap().cgroup_parent = bundle.group.clone();
    let image = super::fixtures::image(|c| {
        let words = ["/bin/busybox", "grep", "-E", "^(Uid|CapPrm|CapBnd|Seccomp):", "/proc/1/status"];
        c.set_entrypoint(Some(words.map(String::from).to_vec())).set_user(Some("65535:65535".into()));
    });
    let own = |file: &str| bundle.dir.path().join(file);
    let spec = crate::sandbox::spec::pause_spec(&crate::sandbox::spec::PauseInput {
        id: "sandbox1",
        config: &config,
        namespaces: &NamespacePaths::default(),
        image: &image,
        image_name: "pause",
        host: &HostFacts::detect(),
        handler: &super::Handler::default(),
        resolv_conf: &own("resolv.conf"),
        shm: &own("shm"),
        seccomp: None,
        selinux_level: None,
    })
    .unwrap();
    fs::write(own("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    fs::write(own("rootfs/etc/resolv.conf"), "").unwrap();
    let none = "0000000000000000";
    let expected = format!("Uid:\t65535\t65535\t65535\t65535\nCapPrm:\t{none}\nCapBnd:\t{none}\nSeccomp:\t2");
    assert_eq!(bundle.runc().unwrap(), expected);
}
