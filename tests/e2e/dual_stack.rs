//! Three nodes with IPv4 and IPv6: pods and Services by both families, in each mode.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tests::bed::{Cluster, Kubectl, eventually, text};
use tests::leaks::Snapshot;

use crate::routes::{configure, daemon};
use crate::several_nodes::{Placed, one_on_each, reach_each_other};
use crate::soak;

pub fn cluster() {
    let before = Snapshot::take();
    let cluster = Cluster::up("dual", &["--nodes", "3", "--dual-stack"]);
    let kubectl = cluster.namespace("dual");
    let said = text(&cluster.bosun_up(&["--nodes", "3"]).stderr);
    assert!(said.contains("--dual-stack is true, asked was false"), "{said}");
    nodes(&kubectl);
    let pods = one_on_each(&kubectl);
    services(&kubectl);
    kubectl.run(&["create", "service", "nodeport", "each", "--tcp=80:8080"]);
    kubectl.run(&["patch", "service", "each", "-p", r#"{"spec":{"ipFamilyPolicy":"RequireDualStack"}}"#]);
    for mode in ["host-gw", "vxlan", "bgp"] {
        println!("mode {mode}");
        configure(&kubectl, &format!(r#"{{"mode":"{mode}"}}"#));
        settled(&cluster, mode);
        reach_each_other(&kubectl, &pods);
        reach_by_ipv6(&kubectl, &pods);
    }
    killed(&kubectl, &pods);
    policy(&kubectl, &pods);
    kubectl.run(&["delete", "pod", "on-1", "on-2", "on-3", "--grace-period=1"]);
    for node in cluster.nodes() {
        soak::at_rest(&kubectl, &node.name);
        let left = text(&cluster.inside_of(&node.name, &["ip", "-6", "route"]).stdout);
        assert!(!left.lines().any(|line| line.starts_with("fd00:10:244:") && line.contains(" dev veth")), "{left}");
    }
    drop(kubectl);
    drop(cluster);
    before.assert_same();
}

fn values(kubectl: &Kubectl<'_>, object: &str, path: &str) -> Vec<String> {
    kubectl.field(object, path).split_whitespace().map(str::to_owned).collect()
}

fn families(addresses: &[String]) -> Vec<&'static str> {
    let family = |address: &String| if address.contains(':') { "IPv6" } else { "IPv4" };
    addresses.iter().map(family).collect()
}

/// Two addresses and two ranges each, of which no other node has one.
fn nodes(kubectl: &Kubectl<'_>) {
    let mut all = BTreeSet::new();
    for node in kubectl.cluster.nodes() {
        let object = format!("node/{}", node.name);
        for path in ["{.status.addresses[?(@.type=='InternalIP')].address}", "{.spec.podCIDRs[*]}"] {
            let found = values(kubectl, &object, path);
            assert_eq!(families(&found), ["IPv4", "IPv6"], "{object} {path}: {found:?}");
            all.extend(found);
        }
    }
    assert_eq!(all.len(), 12);
}

/// Each policy: what a Service gets, what an update adds and releases, what is refused (KEP-563).
fn services(kubectl: &Kubectl<'_>) {
    let make = |name: &str, spec: &str| {
        let head = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "#;
        let spec = format!(
            r#""spec": {{"selector": {{"app": "each"}}, "ports": [{{"port": 80, "targetPort": 8080}}], {spec}}}"#
        );
        kubectl.with_input(&["create", "-f", "-"], &format!("{head}\"{name}\"}}, {spec}}}"))
    };
    for (name, spec, wanted) in [
        ("single", r#""type": "ClusterIP""#, &["IPv4"][..]),
        ("six", r#""ipFamilies": ["IPv6"]"#, &["IPv6"]),
        ("prefer", r#""ipFamilyPolicy": "PreferDualStack""#, &["IPv4", "IPv6"]),
        ("require", r#""ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]"#, &["IPv6", "IPv4"]),
        ("headless", r#""clusterIP": "None", "ipFamilyPolicy": "RequireDualStack""#, &["IPv4", "IPv6"]),
    ] {
        make(name, spec).unwrap();
        let object = format!("service/{name}");
        assert_eq!(values(kubectl, &object, "{.spec.ipFamilies[*]}"), wanted, "{name}");
        let addresses = values(kubectl, &object, "{.spec.clusterIPs[*]}");
        if name != "headless" {
            assert_eq!(families(&addresses), wanted, "{name}: {addresses:?}");
        }
        eventually("a slice of each family", Duration::from_secs(10), || {
            let label = format!("kubernetes.io/service-name={name}");
            let found = kubectl.run(&["get", "endpointslices", "-l", &label, "-o", "jsonpath={.items[*].addressType}"]);
            let found: BTreeSet<&str> = found.split(' ').collect();
            (found == wanted.iter().copied().collect()).then_some(())
        });
    }
    let patch = |name: &str, spec: &str| {
        kubectl.try_run(&["patch", "service", name, "--type=merge", "-p", &format!(r#"{{"spec":{spec}}}"#)])
    };
    let before = values(kubectl, "service/single", "{.spec.clusterIPs[*]}");
    patch("single", r#"{"ipFamilyPolicy":"RequireDualStack"}"#).unwrap();
    let both = values(kubectl, "service/single", "{.spec.clusterIPs[*]}");
    assert_eq!((both.len(), &both[0]), (2, &before[0]), "an address of IPv6 is added");
    let refused = patch("single", r#"{"ipFamilies":["IPv4"]}"#).unwrap_err();
    assert!(refused.contains("must be 'SingleStack' to release the secondary IP family"), "{refused}");
    patch("single", r#"{"ipFamilyPolicy":"SingleStack"}"#).unwrap();
    assert_eq!(values(kubectl, "service/single", "{.spec.clusterIPs[*]}"), before, "and released");
    // Who had it is gone: another Service may have it.
    make("heir", &format!(r#""clusterIP": "{0}", "clusterIPs": ["{0}"]"#, both[1])).unwrap();
    let refused = make("two", r#""ipFamilies": ["IPv4", "IPv6"]"#).unwrap_err();
    assert!(refused.contains("when multiple IP families are specified"), "{refused}");
}

/// Waits until each node's daemon has the ways to two ranges of two nodes.
fn settled(cluster: &Cluster, mode: &str) {
    for node in cluster.nodes() {
        eventually(&format!("node {} to have mode {mode}", node.name), Duration::from_secs(30), || {
            let told = text(&cluster.bosun(&["net", "routes", "--node", &node.name]).stdout);
            let done = told.starts_with(&format!("mode {mode}\n")) && told.matches("  yes").count() == 4;
            (done && !told.contains("problem:")).then_some(())
        });
    }
}

fn ipv6(kubectl: &Kubectl<'_>, object: &str, path: &str) -> Ipv6Addr {
    let all = values(kubectl, object, path);
    let found = all.iter().find_map(|address| match address.parse() {
        Ok(IpAddr::V6(address)) => Some(address),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{object} has no address of IPv6: {all:?}"))
}

/// Pods by their addresses, by the Service's from pods and nodes, and by each node's port from outside.
fn reach_by_ipv6(kubectl: &Kubectl<'_>, pods: &[Placed]) {
    let cluster = kubectl.cluster;
    let service = ipv6(kubectl, "service/each", "{.spec.clusterIPs[*]}");
    let port = kubectl.field("service/each", "{.spec.ports[0].nodePort}");
    for from in pods {
        let ask = |url: &str| kubectl.try_run(&["exec", &from.pod, "--", "/echo", "get", url]);
        for to in pods {
            let address = ipv6(kubectl, &format!("pod/{}", to.pod), "{.status.podIPs[*].ip}");
            let url = format!("http://[{address}]:8080/");
            let answer =
                eventually(&format!("{} to reach {} by {address}", from.pod, to.pod), Duration::from_secs(10), || {
                    ask(&url).ok()
                });
            assert!(answer.contains(&format!("\"pod\":\"{}\"", to.pod)), "{answer}");
            let own = ipv6(kubectl, &format!("pod/{}", from.pod), "{.status.podIPs[*].ip}");
            assert!(answer.contains(&format!("\"from\":\"[{own}]:")), "{} comes as itself: {answer}", from.pod);
            let by_node = cluster.inside_of(&from.node.name, &["curl", "-gs", "--max-time", "2", &url]);
            assert!(by_node.status.success(), "node {} reaches {}", from.node.name, to.pod);
        }
        let url = format!("http://[{service}]/");
        eventually(&format!("{} to reach the Service", from.pod), Duration::from_secs(10), || ask(&url).ok());
        let by_node = cluster.inside_of(&from.node.name, &["curl", "-gs", "--max-time", "2", &url]);
        assert!(by_node.status.success(), "node {} reaches the Service", from.node.name);
        let node = ipv6(kubectl, &format!("node/{}", from.node.name), "{.status.addresses[*].address}");
        eventually(&format!("the port of {node}"), Duration::from_secs(10), || {
            let answer =
                cluster.command("curl").args(["-gs", "--max-time", "2", &format!("http://[{node}]:{port}/")]).output();
            text(&answer.unwrap().stdout).contains("\"pod\":\"on-").then_some(())
        });
    }
}

/// The routes of IPv6 stay where they are when a daemon is killed, and after the next has begun.
fn killed(kubectl: &Kubectl<'_>, pods: &[Placed]) {
    let (cluster, node) = (kubectl.cluster, &pods[1].node);
    let routes = || text(&cluster.inside_of(&node.name, &["ip", "-6", "route", "show", "proto", "81"]).stdout);
    let before = routes();
    let pid = daemon(cluster, node).unwrap();
    assert!(cluster.inside_of(&node.name, &["kill", "-KILL", &pid]).status.success());
    assert_eq!(routes(), before, "while it is dead");
    eventually("another daemon", Duration::from_secs(20), || daemon(cluster, node).filter(|new| *new != pid));
    settled(cluster, "bgp");
    assert_eq!(routes(), before, "after its restart");
    reach_by_ipv6(kubectl, pods);
}

/// A policy that lets nobody in holds for both families.
fn policy(kubectl: &Kubectl<'_>, pods: &[Placed]) {
    let deny = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
        "spec": {"podSelector": {"matchLabels": {"app": "each"}}, "policyTypes": ["Ingress"]}}"#;
    kubectl.apply(deny);
    for address in values(kubectl, &format!("pod/{}", pods[0].pod), "{.status.podIPs[*].ip}") {
        let url =
            if address.contains(':') { format!("http://[{address}]:8080/") } else { format!("http://{address}:8080/") };
        eventually(&format!("{address} to be closed"), Duration::from_secs(15), || {
            kubectl.try_run(&["exec", &pods[1].pod, "--", "/echo", "get", &url]).err()
        });
    }
    kubectl.run(&["delete", "networkpolicy", "deny"]);
    eventually("it to be open again", Duration::from_secs(15), || {
        let address = ipv6(kubectl, &format!("pod/{}", pods[0].pod), "{.status.podIPs[*].ip}");
        let url = format!("http://[{address}]:8080/");
        kubectl.try_run(&["exec", &pods[1].pod, "--", "/echo", "get", &url]).ok()
    });
}
