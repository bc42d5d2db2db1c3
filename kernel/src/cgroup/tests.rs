use std::fs;
use std::path::PathBuf;

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("volumes-cgroup-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn hybrid_mounts_are_version_1_with_every_hierarchy() {
    let text = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let layout = Layout::parse(text).unwrap();
    let mounts: Vec<_> = layout.hierarchies().iter().map(|h| h.mount.to_str().unwrap()).collect();
    assert_eq!(mounts, ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"]);
    let cgroups = Cgroups::new(layout);
    assert!(!cgroups.is_v2());
    assert_eq!(cgroups.dir("cpuacct", "/a/../b").unwrap(), PathBuf::from("/sys/fs/cgroup/cpu/a/b"));
    assert_eq!(cgroups.dir("memory", "/a"), None);
    let alone = Layout::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap();
    assert_eq!(alone, Layout::v2(Path::new("/sys/fs/cgroup")));
}

#[test]
fn version_2_enables_controllers_on_the_way_down() {
    let root = Scratch::new("v2");
    for dir in ["", "kubepods"] {
        let dir = root.0.join(dir);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(dir.join("cgroup.subtree_control"), "cpu memory").unwrap();
    }
    let cgroups = Cgroups::new(Layout::v2(&root.0));
    cgroups.create("/kubepods/pod1").unwrap();
    assert_eq!(fs::read_to_string(root.0.join("kubepods/cgroup.subtree_control")).unwrap(), "+pids");
    cgroups.limit("/kubepods/pod1", &Limits { memory: Some(1 << 20), ..Limits::default() }).unwrap();
    let pod = root.0.join("kubepods/pod1");
    assert_eq!(fs::read_to_string(pod.join("memory.max")).unwrap(), "1048576");
    fs::write(pod.join("memory.current"), "9000\n").unwrap();
    fs::write(pod.join("memory.stat"), "anon 4096\ninactive_file 1000\npgfault 7\n").unwrap();
    fs::write(pod.join("cpu.stat"), "usage_usec 5\n").unwrap();
    let usage = cgroups.usage("/kubepods/pod1").unwrap();
    assert_eq!((usage.cpu_nanos, usage.working_set, usage.rss, usage.page_faults), (5000, 8000, 4096, 7));
    assert_eq!(usage.memory_limit, Some(1 << 20));
}

/// On the machine's own hierarchies, below a group of its own: skipped aloud without the right to make one.
#[test]
fn a_real_group_is_limited_measured_and_removed_with_its_processes() {
    let cgroups = match Cgroups::detect() {
        Ok(cgroups) => cgroups,
        Err(e) => return eprintln!("skipped: {e}"),
    };
    let root = format!("/bosun-test-{}", std::process::id());
    let pod = format!("{root}/kubepods/pod1");
    if let Err(e) = cgroups.create(&pod) {
        return eprintln!("skipped: {e}");
    }
    let limits = Limits {
        cpu_shares: Some(512),
        cpu_quota: Some(CpuQuota { quota: 50_000, period: 100_000 }),
        memory: Some(64 << 20),
        pids: Some(20),
        ..Limits::default()
    };
    cgroups.limit(&pod, &limits).unwrap();
    let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    cgroups.enter(&pod, sleeper.id()).unwrap();
    assert_eq!(cgroups.processes(&root).unwrap(), [sleeper.id() as i32]);
    let usage = cgroups.usage(&pod).unwrap();
    assert_eq!((usage.memory_limit, usage.pids), (Some(64 << 20), 1));
    let detail = cgroups.detail(&pod).unwrap();
    assert_eq!((detail.pids_limit, detail.processes), (Some(20), 1));
    assert!(detail.cpu_shares.is_some_and(|shares| shares > 400 && shares < 520), "{detail:?}");
    assert_eq!((detail.cpu_quota, detail.cpu_period), (Some(50_000), Some(100_000)));
    assert_eq!(cgroups.pressures(&pod).unwrap().memory.is_some(), cgroups.is_v2());
    assert!(cgroups.detail(&format!("{root}/absent")).is_err());
    assert_eq!(cgroups.children(&format!("{root}/kubepods")), ["pod1"]);
    let reaper = std::thread::spawn(move || sleeper.wait());
    cgroups.remove(&root).unwrap();
    assert!(!cgroups.exists(&root));
    reaper.join().unwrap().unwrap();
    cgroups.remove(&root).unwrap();
}
