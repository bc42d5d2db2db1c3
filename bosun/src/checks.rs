//! What a machine must have before anything is made on it: each lack is one line that says what to do.

use std::fs;
use std::path::{Path, PathBuf};

use kernel::cgroup::Cgroups;
use kernel::netlink::{Kernel, Network, VethEnd};
use kernel::netns::Netns;
use kernel::nftables::{Nft, Nftables};

/// Programs that a node runs, with the Debian package that has them.
const PROGRAMS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
];
/// Less than this and images and logs would soon evict pods.
const DISK: u64 = 1 << 30;

/// # Errors
/// Where the caller is not root; nothing else can be looked at then.
pub fn root() -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    anyhow::ensure!(is_root, "it makes namespaces, mounts and links, which only root may: run it as root, by sudo");
    Ok(())
}

/// All that is missing for a node, best known first. Empty where nothing is.
pub fn node(kubeconfig: &Path, registry_config: Option<&Path>) -> Vec<String> {
    let mut lacks = programs();
    lacks.extend(namespaces());
    lacks.extend(file_systems());
    lacks.extend(control_groups());
    lacks.extend(network());
    lacks.extend(disk());
    lacks.extend(crate::kubeconfig::check_writable(kubeconfig).err().map(|error| format!("{error:#}")));
    if let Some(folder) = registry_config.filter(|folder| !folder.is_dir()) {
        lacks.push(format!("--registry-config {} is no folder: give containerd's certs.d folder", folder.display()));
    }
    lacks
}

fn programs() -> Vec<String> {
    let missing = PROGRAMS.iter().filter(|(program, _)| find(program).is_none());
    missing.map(|(program, package)| format!("{program} is not on PATH: apt-get install {package}")).collect()
}

/// Where a program is, by PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn namespaces() -> Option<String> {
    let missing: Vec<&str> = ["net", "mnt", "pid", "uts", "ipc"]
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    let text = format!("this kernel has no {} namespaces: boot one that has", missing.join(", "));
    (!missing.is_empty()).then_some(text)
}

fn file_systems() -> Option<String> {
    let has_overlay = || fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("\toverlay\n"));
    if has_overlay() || (kernel::process::run("modprobe", &["overlay"]).is_ok() && has_overlay()) {
        return None;
    }
    Some("this kernel has no overlayfs: modprobe overlay, or boot a kernel with CONFIG_OVERLAY_FS".into())
}

fn control_groups() -> Option<String> {
    let groups = match Cgroups::detect() {
        Ok(groups) => groups,
        Err(error) => return Some(format!("{error}: mount cgroup2 on /sys/fs/cgroup")),
    };
    let has = |name: &&str| groups.layout().hierarchies().iter().any(|hierarchy| hierarchy.has(name));
    let missing: Vec<&str> = ["cpu", "memory", "pids"].into_iter().filter(|name| !has(name)).collect();
    let text = format!("no control group hierarchy carries {}: mount them, or boot with them", missing.join(", "));
    (!missing.is_empty()).then_some(text)
}

/// Tries what nodes need in a namespace that is gone afterwards.
fn network() -> Option<String> {
    let tried = Netns::anonymous().and_then(|scratch| {
        scratch.run(|| {
            let mut network = Kernel::open()?;
            let end = |name| VethEnd { name, ..VethEnd::default() };
            network.add_bridge("bosun-try", None)?;
            network.add_veth(end("bosun-a"), end("bosun-b"), None, None)?;
            Nft.apply(RULES).map_err(anyhow::Error::from)
        })
    });
    let error = match tried {
        Ok(Ok(())) => bridge_netfilter().err()?,
        Ok(Err(error)) => error,
        Err(error) => error.into(),
    };
    Some(format!("this kernel lacks what pod networks need: {error:#}"))
}

const RULES: &str = "add table ip bosun
add map ip bosun services { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip bosun endpoints { type mark : ipv4_addr . inet_service; }
add chain ip bosun nat { type nat hook prerouting priority -100; }
add rule ip bosun nat ip daddr . meta l4proto . th dport vmap @services
add rule ip bosun nat meta l4proto tcp dnat to numgen random mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }
";

/// Replies between two pods of one bridge must meet the rules that translated the request. A module that only we
/// load must not begin to filter the host's own bridges.
fn bridge_netfilter() -> anyhow::Result<()> {
    let switch = |name: &str| format!("net/bridge/bridge-nf-call-{name}");
    if kernel::sysctl::read(&switch("iptables")).is_ok() {
        return Ok(());
    }
    kernel::process::run("modprobe", &["br_netfilter"])?;
    for name in ["iptables", "ip6tables", "arptables"] {
        kernel::sysctl::write(&switch(name), "0")?;
    }
    Ok(())
}

fn disk() -> Option<String> {
    // The folder of all clusters may not be there yet; /var/lib is on every machine.
    let space = kernel::mount::space(Path::new("/var/lib")).ok()?;
    let text = format!("/var/lib has {} MiB free and a node needs 1024: free some", space.available >> 20);
    (space.available < DISK).then_some(text)
}
