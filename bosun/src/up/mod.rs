//! `bosun up`: a cluster on this machine. Each step makes what is missing and leaves what is there, so that the same
//! steps create a cluster and resume one.

mod identities;
pub mod network;
mod options;
mod plan;
mod start;
mod wait;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kernel::process::{Identity, Signal, Signals};

pub use options::Options;
pub use wait::client;

use crate::cluster::{Cluster, Lock, all};
use crate::{checks, down, kubeconfig, node};
use plan::{Found, Plan, decide};

/// # Errors
/// One line for what was attempted and why it failed. A cluster that was being made is gone then; one that was there
/// keeps its data.
pub fn run(options: &Options) -> anyhow::Result<()> {
    checks::root()?;
    let settings = options.settings()?;
    // Taken one by one between the steps, so that none is cut in half.
    let signals = Signals::block(&[Signal::SIGINT, Signal::SIGTERM])?;
    let lock = Lock::take()?;
    let clusters = all()?;
    let running = clusters.iter().any(|cluster| cluster.name == options.name && nodes_run(cluster));
    let found = Found { clusters, running, routes: network::host_routes()? };
    let plan = decide(&options.name, settings, &found).inspect_err(|_| forget_empty_root())?;
    let cluster = match plan {
        Plan::Differs(differences) => anyhow::bail!(
            "cluster {} is there with other arguments: {}. Use the same ones, or `bosun down --name {0}` first",
            options.name,
            differences.join("; ")
        ),
        Plan::Nothing(cluster) => {
            say(&format!("cluster {} runs already", cluster.name));
            merge_kubeconfig(&cluster)?;
            cluster
        }
        Plan::Resume(cluster) => {
            check(&cluster)?;
            say(&format!("resuming cluster {}", cluster.name));
            bring_up(cluster, &signals).context("the cluster keeps its data; `bosun up` tries again")?
        }
        Plan::Create(cluster) => {
            check(&cluster).inspect_err(|_| forget_empty_root())?;
            say(&format!("creating cluster {} on {}", cluster.name, cluster.network()));
            create(cluster, &signals)?
        }
    };
    drop(lock);
    if !options.wait.is_zero() {
        wait::until_ready(&cluster, options.wait, &signals)?;
        match &cluster.nodes[..] {
            [only] => say(&format!("node {} is Ready", only.name)),
            all => say(&format!("all {} nodes are Ready", all.len())),
        }
    }
    print!("{}", next_steps(&cluster));
    Ok(())
}

/// A line of progress.
pub fn say(text: &str) {
    eprintln!("bosun: {text}");
}

/// Whether every node's PID 1 lives.
pub fn nodes_run(cluster: &Cluster) -> bool {
    let paths = cluster.paths();
    cluster.nodes.iter().all(|node| node_process(&paths.init(&node.name)).is_some_and(|init| init.is_alive()))
}

/// The PID 1 that a node wrote down.
pub fn node_process(file: &Path) -> Option<Identity> {
    serde_json::from_str(&fs::read_to_string(file).ok()?).ok()
}

/// Waiting for the lock makes the folder of all clusters.
fn forget_empty_root() {
    // It stays where it holds something.
    let _ = fs::remove_dir(crate::cluster::ROOT);
}

fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let settings = &cluster.settings;
    let lacks = checks::node(&settings.kubeconfig, settings.registry_config.as_deref());
    if let [only] = lacks.as_slice() {
        anyhow::bail!("{only}");
    }
    anyhow::ensure!(lacks.is_empty(), "this machine lacks what a node needs:\n  {}", lacks.join("\n  "));
    Ok(())
}

fn create(cluster: Cluster, signals: &Signals) -> anyhow::Result<Cluster> {
    let name = cluster.name.clone();
    bring_up(cluster, signals).map_err(|error| {
        say("undoing what was made");
        let left = down::remove(&name);
        left.into_iter().fold(error, |error, left| error.context(format!("not undone: {left:#}")))
    })
}

fn bring_up(mut cluster: Cluster, signals: &Signals) -> anyhow::Result<Cluster> {
    let interrupted = || match signals.next(Duration::ZERO) {
        Some(signal) => Err(anyhow::anyhow!("interrupted by {signal}")),
        None => Ok(()),
    };
    let paths = cluster.paths();
    for node in &cluster.nodes {
        let folder = paths.node(&node.name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::set_permissions(&paths.root, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    if cluster.settings.egress && cluster.ip_forward_before.is_none() {
        cluster.ip_forward_before = Some(network::egress::forwarding()?);
    }
    cluster.save()?;
    interrupted()?;

    say("making certificates and kubeconfigs");
    identities::ensure(&cluster)?;
    interrupted()?;

    say("connecting the nodes' network to the host");
    network::ensure(&cluster)?;
    if cluster.settings.egress {
        network::egress::open(&cluster)?;
    }
    node::folders::ensure_mount_points()?;
    interrupted()?;

    for (position, node) in cluster.nodes.iter().enumerate() {
        if node_process(&paths.init(&node.name)).is_none_or(|init| !init.is_alive()) {
            say(&format!("starting node {}", node.name));
            start::start(&cluster, position)?;
        }
        interrupted()?;
    }
    merge_kubeconfig(&cluster)?;
    Ok(cluster)
}

fn merge_kubeconfig(cluster: &Cluster) -> anyhow::Result<()> {
    let admin = identities::ensure(cluster)?;
    kubeconfig::merge(&cluster.settings.kubeconfig, &admin)
}

/// The next three things to type.
fn next_steps(cluster: &Cluster) -> String {
    let kubectl = kubectl();
    let flags = match kubeconfig::default_path() {
        Ok(path) if path == cluster.settings.kubeconfig => String::new(),
        _ => format!(" --kubeconfig {}", cluster.settings.kubeconfig.display()),
    };
    let image = images::ECHO;
    format!(
        "\n  {kubectl}{flags} get nodes -o wide\n  {kubectl}{flags} create deployment hello --image={image} --replicas=2\n  \
         {kubectl}{flags} expose deployment hello --port=80 --target-port=8080 --type=NodePort\n"
    )
}

/// The kubectl of the checkout that this program was built in, or the one on PATH.
fn kubectl() -> String {
    let built = std::env::current_exe().ok();
    let checkout = built.as_deref().and_then(|exe| exe.ancestors().nth(3));
    let ours = checkout.map(|folder| folder.join(".tools/bin/kubectl")).filter(|file| file.exists());
    let here = std::env::current_dir().unwrap_or_default();
    match ours {
        Some(file) => file.strip_prefix(&here).map_or(file.clone(), Path::to_owned).display().to_string(),
        None => "kubectl".into(),
    }
}
