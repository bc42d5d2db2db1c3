//! Stories of chance: short ones in each run, of full length with BOSUN_LONG=1 (hack/test --long).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tests::bed::{Cluster, Kubectl, eventually, output};
use tests::leaks::Snapshot;
use tests::leftover;

const DEPLOYMENTS: [&str; 3] = ["one", "two", "three"];

/// Numbers that differ from run to run; a run is repeated by its seed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
        let seed = std::env::var("BOSUN_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(now.subsec_nanos()) | 1);
        println!("BOSUN_SEED={seed}");
        Self(seed)
    }

    /// Below `limit`. Source: Marsaglia, Xorshift RNGs.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// SIGKILL to any process of bosun but the node's PID 1, while deployments scale up and down: at the end everything is as declared and nothing is left over.
pub fn killed() {
    let before = Snapshot::take();
    let length = Duration::from_secs(if std::env::var_os("BOSUN_LONG").is_some() { 120 } else { 20 });
    let cluster = Cluster::up("soak", &[]);
    let kubectl = cluster.namespace("soak");
    for name in DEPLOYMENTS {
        kubectl.echo(name, 1);
        kubectl.run(&["expose", "deployment", name, "--port=80", "--target-port=8080", "--type=NodePort"]);
    }
    kubectl.pod("untouched", &[]);
    let sandbox = kubectl.field("pod/untouched", "{.status.containerStatuses[0].containerID}");
    kill_and_scale(&kubectl, length);
    for (replicas, name) in DEPLOYMENTS.iter().enumerate() {
        let replicas = format!("--replicas={replicas}");
        eventually("the API to answer", Duration::from_secs(30), || {
            kubectl.try_run(&["scale", "deployment", name, &replicas]).ok()
        });
    }
    for name in DEPLOYMENTS {
        kubectl.run(&["rollout", "status", &format!("deployment/{name}"), "--timeout=90s"]);
    }
    at_rest(&kubectl, &cluster.node());
    assert_eq!(kubectl.field("pod/untouched", "{.status.containerStatuses[0].containerID}"), sandbox);
    // One that was not yet begun when its server was killed is made a second time.
    let ended = kubectl.run(&["get", "pods", "-o", "jsonpath={..lastState.terminated.containerID}"]);
    assert_eq!(ended, "", "nobody restarts a container because a daemon died");
    drop(kubectl);
    drop(cluster);
    before.assert_same();
}

fn kill_and_scale(kubectl: &Kubectl<'_>, length: Duration) {
    let (mut dice, end) = (Dice::new(), Instant::now() + length);
    let mut killed = 0;
    while Instant::now() < end {
        let name = DEPLOYMENTS[dice.below(3) as usize];
        let replicas = format!("--replicas={}", dice.below(7));
        // Nobody may be there to answer.
        drop(match dice.below(4) {
            0 => kubectl.try_run(&["rollout", "restart", "deployment", name]),
            1 => kubectl.try_run(&["delete", "pod", "-l", &format!("app={name}"), "--wait=false"]),
            _ => kubectl.try_run(&["scale", "deployment", name, &replicas]),
        });
        std::thread::sleep(Duration::from_millis(dice.below(1500)));
        let mut victims = daemons(kubectl.cluster);
        if !victims.is_empty() {
            let (pid, name) = victims.swap_remove(dice.below(victims.len() as u64) as usize);
            println!("SIGKILL to {:.60}", name);
            // It may have ended by itself.
            drop(output("kill", &["-KILL", &pid.to_string()]));
            killed += 1;
        }
    }
    assert!(killed > 3, "only {killed} processes were killed");
}

/// The nodes' own processes but each one's PID 1: number, and what was called how.
pub fn daemons(cluster: &Cluster) -> Vec<(u32, String)> {
    let inits: Vec<u32> = cluster.nodes().iter().map(|node| cluster.init_of(&node.name)).collect();
    let process = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let exe = fs::read_link(entry.path().join("exe")).ok()?;
        let program = exe.file_name()?.to_str()?.trim_end_matches(" (deleted)").to_owned();
        let groups = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let ours = groups.contains(&format!("/bosun/{}/", cluster.name)) && !inits.contains(&pid);
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let words: Vec<&str> = line.split('\0').skip(1).collect();
        let is_daemon = ["bosun", "bosun-cni"].contains(&program.as_str());
        (ours && is_daemon).then(|| (pid, format!("{program} {}", words.join(" "))))
    };
    fs::read_dir(Path::new("/proc")).into_iter().flatten().flatten().filter_map(process).collect()
}

/// # Panics
/// Where something is left over or missing for a minute and a half: the runtime's garbage is collected each minute.
pub fn at_rest(kubectl: &Kubectl<'_>, node: &str) {
    let start = Instant::now();
    loop {
        let wrong = leftover::on_node(kubectl, node);
        if wrong.is_empty() {
            println!("at rest after {:.0}s", start.elapsed().as_secs_f64());
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(90), "not as declared:\n{}", wrong.join("\n"));
        std::thread::sleep(Duration::from_secs(1));
    }
}
