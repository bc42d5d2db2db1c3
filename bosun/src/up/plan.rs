//! What `up` does: decided from what was asked, what is written down and what runs.

use ipnetwork::Ipv4Network;

use crate::cluster::{Cluster, Settings, network};

/// The decision.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// The cluster is there as asked, and its nodes run.
    Nothing(Cluster),
    /// The cluster is there, and is not what was asked: each line names an argument.
    Differs(Vec<String>),
    /// The cluster is written down as asked, and not all of its nodes run.
    Resume(Cluster),
    Create(Cluster),
}

/// What `up` finds on this machine.
pub struct Found {
    pub clusters: Vec<Cluster>,
    /// Whether all nodes of the cluster in question run.
    pub running: bool,
    /// Networks that the host has routes to, the default route aside.
    pub routes: Vec<Ipv4Network>,
}

/// # Errors
/// Where no network is free for a new cluster.
pub fn decide(name: &str, asked: Settings, found: &Found) -> anyhow::Result<Plan> {
    if let Some(cluster) = found.clusters.iter().find(|cluster| cluster.name == name) {
        let differences = differences(&cluster.settings, &asked);
        return Ok(match (differences.is_empty(), found.running) {
            (false, _) => Plan::Differs(differences),
            (true, true) => Plan::Nothing(cluster.clone()),
            (true, false) => Plan::Resume(cluster.clone()),
        });
    }
    let taken = |number: &u8| found.clusters.iter().any(|cluster| cluster.number == *number);
    let overlaps = |number: &u8| found.routes.iter().any(|route| route.overlaps(network(*number)));
    let number = (0..=255).find(|number| !taken(number) && !overlaps(number));
    let number = number.ok_or_else(|| {
        anyhow::anyhow!("every network of 172.30.0.0/16 is in use on this host: remove a cluster or a route")
    })?;
    Ok(Plan::Create(Cluster::new(name, number, asked)))
}

fn differences(is: &Settings, asked: &Settings) -> Vec<String> {
    let folder = |path: &Option<std::path::PathBuf>| path.as_ref().map_or("none".into(), |p| p.display().to_string());
    let pairs = [
        ("--kubeconfig", is.kubeconfig.display().to_string(), asked.kubeconfig.display().to_string()),
        ("--registry-config", folder(&is.registry_config), folder(&asked.registry_config)),
        ("--cri", is.cri.to_string(), asked.cri.to_string()),
        ("--egress", is.egress.to_string(), asked.egress.to_string()),
        ("--nodes", is.nodes.to_string(), asked.nodes.to_string()),
        ("--racks", is.racks.to_string(), asked.racks.to_string()),
        ("--dual-stack", is.dual_stack.to_string(), asked.dual_stack.to_string()),
    ];
    let differing = pairs.into_iter().filter(|(_, is, asked)| is != asked);
    differing.map(|(flag, is, asked)| format!("{flag} is {is}, asked was {asked}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cri;

    fn settings(egress: bool) -> Settings {
        let kubeconfig = "/k".into();
        Settings {
            kubeconfig,
            registry_config: None,
            cri: Cri::Containerd,
            egress,
            nodes: 1,
            racks: 0,
            dual_stack: false,
        }
    }

    fn found(clusters: Vec<Cluster>, running: bool, routes: &[&str]) -> Found {
        Found { clusters, running, routes: routes.iter().map(|route| route.parse().unwrap()).collect() }
    }

    #[test]
    fn a_new_cluster_gets_the_first_network_that_nobody_has() {
        let other = Cluster::new("other", 2, settings(false));
        let found = found(vec![other], false, &["172.30.0.0/23", "10.0.0.0/8", "172.30.3.7/32"]);
        let plan = decide("dev", settings(false), &found).unwrap();
        assert_eq!(plan, Plan::Create(Cluster::new("dev", 4, settings(false))));
    }

    #[test]
    fn the_same_arguments_change_nothing_and_others_are_named() {
        let dev = Cluster::new("dev", 0, settings(false));
        let own_route = &["172.30.0.0/24"];
        let running = found(vec![dev.clone()], true, own_route);
        assert_eq!(decide("dev", settings(false), &running).unwrap(), Plan::Nothing(dev.clone()));
        let named = vec!["--egress is false, asked was true".to_owned()];
        assert_eq!(decide("dev", settings(true), &running).unwrap(), Plan::Differs(named));
        let more = Settings { nodes: 3, racks: 2, ..settings(false) };
        let named = ["--nodes is 1, asked was 3", "--racks is 0, asked was 2"].map(str::to_owned).to_vec();
        assert_eq!(decide("dev", more, &running).unwrap(), Plan::Differs(named));
        let dead = found(vec![dev.clone()], false, own_route);
        assert_eq!(decide("dev", settings(false), &dead).unwrap(), Plan::Resume(dev));
    }

    #[test]
    fn without_a_free_network_nothing_begins() {
        assert!(decide("dev", settings(false), &found(vec![], false, &["172.16.0.0/12"])).is_err());
    }
}
