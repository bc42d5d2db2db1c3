//! Stories of pods on a kernel that enforces SELinux, by a policy of the test's own.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use cri::v1::*;
use kernel::selinux::label;
use tests::bed::{output, text};
use tonic::Code;

use super::node::{Configs, IMAGE, Node, Pod, configs, own_pids};
use super::pods::{FOREVER, own_users};

const POLICY: &str = include_str!("selinux.cil");
/// What a policy says of containers.
const CONTEXTS: &str =
    "process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n";
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// What all files of the machine have.
const HOST: &str = "system_u:object_r:host_t:s0";

/// Loads the policy, enforces it, and goes on in the domain of a container runtime, with all that is started from here.
pub fn enforce() {
    kernel::mount::mount("selinuxfs", "selinuxfs", Path::new("/sys/fs/selinux"), "").unwrap();
    let order: String = (0..1024).fold(String::new(), |all, n| all + &format!("c{n} "));
    let mut categories = format!("(categoryorder ({order}))\n");
    for n in 0..1024 {
        writeln!(categories, "(category c{n})").unwrap();
    }
    fs::write("/run/policy.cil", POLICY).unwrap();
    fs::write("/run/categories.cil", categories).unwrap();
    let version = fs::read_to_string("/sys/fs/selinux/policyvers").unwrap();
    let version = version.trim().parse::<u32>().unwrap().min(33).to_string();
    let words = ["-c", &version, "-o", "/run/policy", "-f", "/dev/null", "/run/policy.cil", "/run/categories.cil"];
    let compiled = output("secilc", &words);
    assert!(compiled.status.success(), "secilc: {}", text(&compiled.stderr));
    fs::create_dir_all("/etc/selinux/test/contexts").unwrap();
    fs::write("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=test\n").unwrap();
    fs::write("/etc/selinux/test/contexts/lxc_contexts", CONTEXTS).unwrap();
    fs::write("/sys/fs/selinux/load", fs::read("/run/policy").unwrap()).unwrap();
    // As a policy for containers has it of containerd's folder.
    fs::create_dir_all("/mnt/containerd").unwrap();
    kernel::selinux::relabel(Path::new("/mnt/containerd"), "system_u:object_r:container_ro_file_t:s0").unwrap();
    fs::write(ENFORCE, "1").unwrap();
    fs::write("/proc/self/attr/current", "system_u:system_r:container_runtime_t:s0").unwrap();
}

/// What is asked for is what processes and files have, the runtime's own mounts among them.
pub async fn labels(node: &Node) {
    for handler in ["crun", "runc"] {
        let change = |configs: &mut Configs| {
            configs.handler = handler;
            ask(configs, "container_logreader_t", "s0:c10,c20");
        };
        let pod = node.run(&format!("asked-{handler}"), FOREVER, change).await;
        let domain = "system_u:system_r:container_logreader_t:s0:c10,c20";
        assert_eq!(domains(node, &pod).await, [domain; 2], "with {handler}");
        let files = "system_u:object_r:container_file_t:s0:c10,c20";
        for file in [".", "bin/busybox", "dev", "dev/shm", "dev/mqueue", "etc/hosts", "etc/hostname", "etc/resolv.conf"]
        {
            assert_eq!(pod.label(file).as_deref(), Some(files), "{file} with {handler}");
        }
        node.exec(&pod, "touch /made /dev/shm/made && echo x >> /etc/hosts && echo said > /proc/1/fd/1").await;
        assert_eq!(pod.label("made").as_deref(), Some(files), "what it makes, with {handler}");
        node.remove(pod).await;
    }
    let mut malformed = configs("malformed", FOREVER, node.driver);
    ask(&mut malformed, "", "s0:c1:c2");
    let sandbox = node.sandbox(&malformed).await.unwrap();
    let refused = node.container(&sandbox, &malformed).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("s0:c1:c2"), "{refused}");
    node.remove_sandbox(sandbox).await;
}

/// Pods that ask for no level have one each, and the kernel keeps each from the others' files.
pub async fn levels(node: &Node) {
    let volume = volume("levels");
    let mount = mount(&volume, true);
    let with = |relabel: bool| Mount { selinux_relabel: relabel, ..mount.clone() };
    let owner = node.run("owner", FOREVER, |configs| configs.container.mounts.push(with(true))).await;
    let other = node.run("other", FOREVER, |configs| configs.container.mounts.push(with(false))).await;
    let [of_owner, of_other] = [&domains(node, &owner).await[0], &domains(node, &other).await[0]].map(|domain| {
        let level = domain.strip_prefix("system_u:system_r:container_t:");
        level.unwrap_or_else(|| panic!("domain {domain}")).to_owned()
    });
    assert!(of_owner.starts_with("s0:c") && of_owner.contains(','), "level {of_owner}");
    assert_ne!(of_owner, of_other);
    let files = format!("system_u:object_r:container_file_t:{of_owner}");
    for file in ["", "sub", "sub/file"] {
        assert_eq!(label(&volume.join(file)).as_ref(), Some(&files), "{file:?} of the volume");
    }
    assert_eq!(node.exec(&owner, READ).await, "content");
    assert_eq!(node.exec(&owner, "echo changed > /volume/sub/file && cat /volume/sub/file").await, "changed");
    assert_eq!(node.exec(&other, READ).await, "denied");
    // It is the kernel, and nothing else.
    fs::write(ENFORCE, "0").unwrap();
    assert_eq!(node.exec(&other, READ).await, "changed");
    fs::write(ENFORCE, "1").unwrap();
    assert_eq!(node.exec(&other, READ).await, "denied");
    let same = |configs: &mut Configs| {
        ask(configs, "", &of_owner);
        configs.container.mounts.push(with(false));
    };
    let same = node.run("same-level", FOREVER, same).await;
    assert_eq!(node.exec(&same, READ).await, "changed");
    for pod in [owner, other, same] {
        node.remove(pod).await;
    }
}

/// What no container may use stays so, unless it is asked to be labelled; folders of the machine itself never are.
pub async fn volumes(node: &Node) {
    let volume = volume("plain");
    let pod = node.run("plain", FOREVER, |configs| configs.container.mounts.push(mount(&volume, false))).await;
    assert_eq!(node.exec(&pod, READ).await, "denied");
    assert_eq!(label(&volume.join("sub/file")).as_deref(), Some(HOST));
    node.remove(pod).await;
    let mut of_machine = configs("of-machine", FOREVER, node.driver);
    of_machine.container.mounts.push(mount(Path::new("/etc"), true));
    let sandbox = node.sandbox(&of_machine).await.unwrap();
    let refused = node.container(&sandbox, &of_machine).await.unwrap_err();
    assert!(refused.message().contains("unset selinux_relabel"), "{refused}");
    node.remove_sandbox(sandbox).await;
    let image = Mount {
        container_path: "/volume".into(),
        image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
        readonly: true,
        selinux_relabel: true,
        ..Mount::default()
    };
    let pod = node.run("image", FOREVER, |configs| configs.container.mounts.push(image.clone())).await;
    assert_eq!(pod.label("volume/bin/busybox"), pod.label("."));
    assert_eq!(node.exec(&pod, "/volume/bin/busybox echo runs").await, "runs");
    node.remove(pod).await;
}

/// What a pod shares with the machine or among its containers leaves the label as it is; a privileged one has none, which
/// the policy has a domain for.
pub async fn namespaces(node: &Node) {
    let modes = |network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode| NamespaceOption {
        network: network.into(),
        pid: pid.into(),
        ipc: ipc.into(),
        ..NamespaceOption::default()
    };
    let (own, shared, hosts) = (NamespaceMode::Container, NamespaceMode::Pod, NamespaceMode::Node);
    for (name, options) in [("hosts", modes(hosts, hosts, hosts)), ("shared-pids", modes(shared, shared, shared))] {
        let pod = node.run(name, FOREVER, |configs| configs.namespaces(&options)).await;
        let current = node.exec(&pod, "cat /proc/self/attr/current").await;
        assert!(current.starts_with("system_u:system_r:container_t:s0:c"), "{name}: {current}");
        if name == "shared-pids" {
            let group = pod.group.parent().unwrap().join(&pod.sandbox).join("cgroup.procs");
            let pause = fs::read_to_string(&group).unwrap();
            let of_pause = fs::read_to_string(format!("/proc/{}/attr/current", pause.trim())).unwrap();
            assert_eq!(of_pause.trim_end_matches('\0'), current.trim_end_matches('\0'), "pause");
        }
        node.remove(pod).await;
    }
    let volume = volume("privileged");
    let change = |configs: &mut Configs| {
        configs.namespaces(&modes(shared, own, shared));
        let pod = configs.pod.linux.get_or_insert_default().security_context.get_or_insert_default();
        pod.privileged = true;
        configs.container.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
        configs.container.mounts.push(mount(&volume, false));
    };
    let pod = node.run("privileged", FOREVER, change).await;
    assert_eq!(domains(node, &pod).await, ["system_u:system_r:spc_t:s0"; 2], "privileged");
    let files = pod.label(".").unwrap();
    assert!(files.starts_with("system_u:object_r:container_file_t:s0:c"), "{files}");
    assert_eq!(node.exec(&pod, READ).await, "content");
    node.remove(pod).await;
}

/// A user namespace maps owners and leaves labels.
pub async fn users(node: &Node) {
    let volume = volume("users");
    let (ids, options) = own_users();
    let mapped = Mount { uid_mappings: ids.clone(), gid_mappings: ids, ..mount(&volume, true) };
    let change = |configs: &mut Configs| {
        configs.namespaces(&NamespaceOption { userns_options: Some(options.clone()), ..own_pids() });
        configs.container.mounts.push(mapped.clone());
    };
    let pod = node.run("users", FOREVER, change).await;
    let domain = &domains(node, &pod).await[0];
    let level = domain.strip_prefix("system_u:system_r:container_t:").unwrap();
    let files = format!("system_u:object_r:container_file_t:{level}");
    for file in [".", "bin/busybox", "dev/shm", "etc/hosts", "volume/sub/file"] {
        assert_eq!(pod.label(file).as_ref(), Some(&files), "{file}");
    }
    assert_eq!(
        node.exec(&pod, "stat -c %u:%g /bin/busybox /volume/sub/file; touch /made /volume/made").await,
        "0:0\n0:0"
    );
    node.remove(pod).await;
}

const READ: &str = "cat /volume/sub/file || echo denied";

/// The domains of a pod's first process and of a command in it.
async fn domains(node: &Node, pod: &Pod) -> [String; 2] {
    let first = fs::read_to_string(format!("/proc/{}/attr/current", pod.pid())).unwrap();
    let command = node.exec(pod, "cat /proc/self/attr/current").await;
    [first, command].map(|domain| domain.trim_end_matches(['\0', '\n']).to_owned())
}

impl Pod {
    /// The label of one of the container's files.
    fn label(&self, file: &str) -> Option<String> {
        label(&Path::new(&format!("/proc/{}/root", self.pid())).join(file))
    }
}

fn ask(configs: &mut Configs, kind: &str, level: &str) {
    let security = configs.container.linux.get_or_insert_default().security_context.get_or_insert_default();
    let options = SeLinuxOption { r#type: kind.to_owned(), level: level.to_owned(), ..SeLinuxOption::default() };
    security.selinux_options = Some(options);
}

/// A folder with a file of the machine's.
fn volume(name: &str) -> std::path::PathBuf {
    let volume = Path::new("/mnt/volumes").join(name);
    fs::create_dir_all(volume.join("sub")).unwrap();
    fs::write(volume.join("sub/file"), "content\n").unwrap();
    volume
}

fn mount(volume: &Path, relabel: bool) -> Mount {
    Mount {
        container_path: "/volume".into(),
        host_path: volume.display().to_string(),
        selinux_relabel: relabel,
        ..Mount::default()
    }
}
