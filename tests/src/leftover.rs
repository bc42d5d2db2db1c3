//! What stands on a node for pods that nobody declares, and what declared pods lack.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::bed::{Cluster, Kubectl, text};

type Names = BTreeSet<String>;

/// One line for each thing that is on the node without a pod, or missing for one. Empty on a node at rest.
pub fn on_node(kubectl: &Kubectl<'_>, node: &str) -> Vec<String> {
    let all = kubectl.json(&["get", "pods", "-A"]);
    let all = all["items"].as_array().expect("a list has items");
    let everywhere: Names = all.iter().map(|pod| string(&pod["status"]["podIP"])).collect();
    let pods: Vec<&Value> = all.iter().filter(|pod| pod["spec"]["nodeName"] == node).collect();
    let node = Node::of(kubectl.cluster, node);
    let uids: Names = pods.iter().map(|pod| string(&pod["metadata"]["uid"])).collect();
    let addresses: Names = pods.iter().map(|pod| string(&pod["status"]["podIP"])).collect();
    let containers = node.containers();
    let of_kind = |kind: &str| -> Vec<&Container> { containers.iter().filter(|c| c.kind == kind).collect() };
    let sandboxes = of_kind("sandbox");
    let ids = |containers: &[&Container]| -> Names { containers.iter().map(|c| c.id.clone()).collect() };
    let owner =
        |containers: &[&Container]| -> Names { containers.iter().filter(|c| c.runs).map(|c| c.pod.clone()).collect() };
    let all: Names = containers.iter().map(|c| c.id.clone()).collect();
    // What a shim's container is of; a container that nobody knows stands for itself.
    let pod_of = |id: String| containers.iter().find(|c| c.id == id).map_or(id, |c| c.pod.clone());
    let shims = node.shims();
    // A sandbox of bosun's needs no process, and so no folder of a task.
    let with_tasks = if node.has_own_cri { ids(&of_kind("container")) } else { all.clone() };

    let mut wrong = Vec::new();
    let mut same = |what: &str, found: &Names, wanted: &Names| {
        wrong.extend(found.difference(wanted).map(|name| format!("{what} {name} is left over")));
        wrong.extend(wanted.difference(found).map(|name| format!("{what} {name} is missing")));
    };
    same("the running sandbox of pod", &owner(&sandboxes), &uids);
    same("a running container of pod", &owner(&of_kind("container")), &uids);
    same("a container of pod", &containers.iter().map(|c| c.pod.clone()).collect(), &uids);
    same("the folder of pod", &entries(&node.path("var/lib/kubelet/pods")), &uids);
    same("the logs of pod", &last_words(&entries(&node.path("var/log/pods"))), &uids);
    same("the control group of pod", &node.cgroups(), &uids);
    same("mounts for pod", &node.pods_of_mounts().difference(&uids).cloned().collect(), &Names::new());
    same("a mount of container", &node.containers_of_mounts().difference(&all).cloned().collect(), &Names::new());
    same("the runtime's folder of", &entries(&node.path(TASKS)), &with_tasks);
    same("the shim of pod", &shims.iter().cloned().map(pod_of).collect(), &uids);
    same("the reservation of address", &node.reservations(), &addresses);
    same("rules of sandbox", &node.owners_of_rules().difference(&ids(&sandboxes)).cloned().collect(), &Names::new());
    for (what, count) in [
        ("namespaces", node.namespaces().len()),
        ("pairs", node.pairs()),
        ("shims", shims.len()),
        // Each has a loopback too, in a network of its own.
        ("CNI results", entries(&node.path("var/lib/cni/results")).iter().filter(|n| n.starts_with("bosun-")).count()),
    ] {
        if count != pods.len() {
            wrong.push(format!("{count} {what} for {} pods", pods.len()));
        }
    }
    for (pod, count) in count(sandboxes.iter().map(|c| c.pod.clone())) {
        if count != 1 {
            wrong.push(format!("pod {pod} has {count} sandboxes"));
        }
    }
    wrong.extend(node.dangling_log_links());
    wrong.extend(node.foreign_addresses(&everywhere));
    wrong
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn count(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    names.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name).or_default() += 1;
        counts
    })
}

fn entries(folder: &Path) -> Names {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// `NAMESPACE_NAME_UID` as the UID.
fn last_words(names: &Names) -> Names {
    names.iter().filter_map(|name| name.rsplit('_').next()).map(str::to_owned).collect()
}

/// What containerd knows: a container or a sandbox.
struct Container {
    id: String,
    /// `sandbox` or `container`.
    kind: String,
    /// The UID of its pod.
    pod: String,
    runs: bool,
}

struct Node<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    root: PathBuf,
    mounts: String,
    /// Whether `bosun cri` made the pods, and not containerd's own plugin.
    has_own_cri: bool,
}

/// Where `bosun cri` has a folder for each sandbox.
const SANDBOXES: &str = "run/bosun-cri/sandboxes";
/// Where containerd has a folder for each task.
const TASKS: &str = "run/containerd/io.containerd.runtime.v2.task/k8s.io";

impl<'a> Node<'a> {
    fn of(cluster: &'a Cluster, name: &'a str) -> Self {
        let process = PathBuf::from(format!("/proc/{}", cluster.init_of(name)));
        let mounts = fs::read_to_string(process.join("mounts")).expect("the node's PID 1 runs");
        let root = process.join("root");
        let has_own_cri = root.join(SANDBOXES).exists();
        Self { cluster, name, root, mounts, has_own_cri }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn inside(&self, words: &[&str]) -> Output {
        self.cluster.inside_of(self.name, words)
    }

    fn lines(&self, words: &[&str]) -> Vec<String> {
        text(&self.inside(words).stdout).lines().map(str::to_owned).collect()
    }

    fn containers(&self) -> Vec<Container> {
        let tasks = self.lines(&["ctr", "-n", "k8s.io", "tasks", "ls"]);
        let running: Names = tasks
            .iter()
            .filter(|line| line.ends_with("RUNNING"))
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        let ids = self.lines(&["ctr", "-n", "k8s.io", "containers", "ls", "-q"]);
        let container = |id: &String| {
            let info = self.inside(&["ctr", "-n", "k8s.io", "containers", "info", id]);
            let info: Value = serde_json::from_slice(&info.stdout).ok()?;
            let label = |name: &str| string(&info["Labels"][name]);
            let (kind, pod) = (label("io.cri-containerd.kind"), label("io.kubernetes.pod.uid"));
            let pinned =
                || self.has_own_cri && kind == "sandbox" && self.path(SANDBOXES).join(id).join("ns/net").exists();
            let runs = running.contains(id) || pinned();
            Some(Container { id: id.clone(), kind, pod, runs })
        };
        ids.iter().filter_map(container).collect()
    }

    /// UIDs of the pods that have a group in any hierarchy.
    fn cgroups(&self) -> Names {
        let mut found = Names::new();
        let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
        let ours = format!("bosun/{}/{}/", self.cluster.name, self.name);
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = entry.path().display().to_string();
                let name = entry.file_name().to_string_lossy().into_owned();
                match name.strip_prefix("pod").filter(|_| path.contains(&ours)) {
                    Some(uid) => {
                        found.insert(uid.to_owned());
                    }
                    None => left.push(entry.path()),
                }
            }
        }
        found
    }

    fn words_after(&self, part: &str) -> Names {
        let after = self.mounts.lines().filter_map(|line| line.split(' ').nth(1)?.split_once(part));
        after.filter_map(|(_, rest)| rest.split('/').next()).map(str::to_owned).collect()
    }

    fn pods_of_mounts(&self) -> Names {
        self.words_after("/kubelet/pods/")
    }

    fn containers_of_mounts(&self) -> Names {
        let of_task = self.words_after("io.containerd.runtime.v2.task/k8s.io/");
        let of_containerd = self.words_after("io.containerd.grpc.v1.cri/sandboxes/");
        let of_bosun = ["/bosun-cri/sandboxes/", "/bosun-cri/containers/"].map(|part| self.words_after(part));
        of_bosun.into_iter().chain([of_task, of_containerd]).flatten().collect()
    }

    /// Network namespaces of sandboxes.
    fn namespaces(&self) -> Names {
        if !self.has_own_cri {
            return entries(&self.path("run/netns"));
        }
        let pinned = |id: &String| self.path(SANDBOXES).join(id).join("ns/net").exists();
        entries(&self.path(SANDBOXES)).into_iter().filter(pinned).collect()
    }

    /// The node's ends of pods' links: their alias is `CONTAINER/INTERFACE@NETWORK`.
    fn pairs(&self) -> usize {
        self.lines(&["ip", "-o", "link"]).iter().filter(|line| line.contains("@bosun")).count()
    }

    fn reservations(&self) -> Names {
        let files = entries(&self.path("var/lib/cni/networks/bosun"));
        files.into_iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    /// Containers that elements of the plugins' tables are for: an element's comment is `CONTAINER/INTERFACE@NETWORK`.
    fn owners_of_rules(&self) -> Names {
        let rules = text(&self.inside(&["nft", "list", "ruleset"]).stdout);
        let comments = rules.split("comment \"").skip(1).filter_map(|rest| rest.split('"').next());
        comments
            .filter(|comment| comment.contains('@'))
            .filter_map(|c| c.split('/').next())
            .map(str::to_owned)
            .collect()
    }

    /// Pod addresses in rules, of services and of policies, that no pod has.
    fn foreign_addresses(&self, addresses: &Names) -> Vec<String> {
        let rules = text(&self.inside(&["nft", "list", "ruleset"]).stdout);
        let words = rules.split(|c: char| !c.is_ascii_digit() && c != '.');
        let is_ranges = |word: &&str| [".0", ".1", ".255"].iter().any(|end| word.ends_with(end));
        let pods = words.filter(|word| word.starts_with("10.244.") && !is_ranges(word));
        let foreign: Names = pods.filter(|word| !addresses.contains(*word)).map(str::to_owned).collect();
        foreign.into_iter().map(|word| format!("a rule names {word}, which no pod has")).collect()
    }

    /// The container or sandbox that each shim was started for. Where containerd has forgotten it since, another that the
    /// shim serves: the containers of a pod share one.
    fn shims(&self) -> Vec<String> {
        let processes = self.lines(&["ps", "-e", "-o", "pid,ppid,args"]);
        let shims = processes.iter().filter(|line| line.contains("containerd-shim-runc-v2 "));
        let known = |id: &str| self.path(TASKS).join(id).exists();
        let served = |shim: &str| {
            let is_child =
                |pid: &str| processes.iter().any(|line| line.split_whitespace().take(2).eq([pid.trim(), shim]));
            let first =
                |id: &String| fs::read_to_string(self.path(TASKS).join(id).join("init.pid")).unwrap_or_default();
            entries(&self.path(TASKS)).into_iter().find(|id| is_child(&first(id)))
        };
        shims
            .filter_map(|line| {
                let id = line.split(" -id ").nth(1)?.split(' ').next()?.to_owned();
                if known(&id) { Some(id) } else { served(line.split_whitespace().next()?).or(Some(id)) }
            })
            .collect()
    }

    fn dangling_log_links(&self) -> Vec<String> {
        let folder = self.path("var/log/containers");
        let leads = |name: &String| {
            fs::read_link(folder.join(name))
                .is_ok_and(|to| self.root.join(to.strip_prefix("/").unwrap_or(&to)).exists())
        };
        entries(&folder)
            .into_iter()
            .filter(|name| !leads(name))
            .map(|name| format!("link {name} leads nowhere"))
            .collect()
    }
}
