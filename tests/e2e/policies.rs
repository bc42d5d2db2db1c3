//! Network policies between pods of a cluster, and what `bosun net trace` says of them.

use std::time::{Duration, Instant};

use tests::bed::{Kubectl, text};

fn policy(name: &str, pods: &str, rules: &str) -> String {
    format!(
        r#"{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {{"name": "{name}"}},
            "spec": {{"podSelector": {{"matchLabels": {{"run": "{pods}"}}}}, {rules}}}}}"#
    )
}

/// What becomes of a packet, by the daemons of the nodes that `from` and `to` run on.
fn trace(kubectl: &Kubectl<'_>, from: &str, to: &str) -> String {
    let [from, to] = [from, to].map(|place| format!("{}/{place}", kubectl.namespace));
    let said = kubectl.cluster.bosun(&["net", "trace", &from, &to]);
    format!("{}{}", text(&said.stdout), text(&said.stderr))
}

/// What a trace says once it holds all of the words: the daemon hears of a policy a moment after kubectl has.
fn traced(kubectl: &Kubectl<'_>, from: &str, to: &str, words: &[&str]) {
    let mut last = String::new();
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until && !words.iter().all(|word| last.contains(word)) {
        last = trace(kubectl, from, to);
    }
    assert!(words.iter().all(|word| last.contains(word)), "not {words:?}: {last}");
    assert!(!last.contains("DIFFERS"), "{last}");
}

/// An Event of the pod says what was dropped, by which policy.
fn dropped(kubectl: &Kubectl<'_>, pod: &str, words: &str) {
    let of_pod = format!("--field-selector=involvedObject.name={pod},reason=NetworkPolicyDropped");
    let until = Instant::now() + Duration::from_secs(60);
    let mut said = String::new();
    while !said.contains(words) || !said.contains("isolated by NetworkPolicy deny") {
        assert!(Instant::now() < until, "no Event of what was dropped: {said}");
        std::thread::sleep(Duration::from_secs(1));
        said = kubectl.try_run(&["get", "events", &of_pod, "-o", "jsonpath={.items[*].message}"]).unwrap_or_default();
    }
}

pub fn trace_says_why(kubectl: &Kubectl<'_>) {
    for name in ["client", "other", "web"] {
        kubectl.pod(name, &[]);
    }
    kubectl.run(&["expose", "pod", "web", "--port=80", "--target-port=8080"]);
    let address = kubectl.field("pod/web", "{.status.podIP}");
    let get = |from: &str| {
        let url = format!("http://{address}:8080/");
        kubectl.try_run(&["exec", from, "--", "/echo", "get", &url])
    };
    assert!(get("client").is_ok());
    traced(kubectl, "client", "web:8080", &["no policy isolates", "foretold   passes", "connected in"]);
    traced(kubectl, "client", "web:80", &["1 ready endpoint", "foretold   passes", "connected in"]);

    kubectl.apply(&policy("deny", "web", r#""policyTypes": ["Ingress"]"#));
    let namespace = &kubectl.namespace;
    let isolated = format!("DROPPED: isolated by {namespace}/deny");
    // Counted where it is dropped, on the node of `web`.
    let place = |pod: &str| kubectl.field(&format!("pod/{pod}"), "{.spec.nodeName}");
    let node = if place("client") == place("web") { String::new() } else { format!(" on node {}", place("web")) };
    let counted = format!("packets dropped meanwhile{node}: ingress of {namespace}/web");
    traced(kubectl, "client", "web:80", &[&isolated, "foretold   dropped", "nothing came back", &counted]);
    assert!(get("client").is_err());
    dropped(kubectl, "web", "of ingress, the last from ");

    let allow =
        r#""ingress": [{"from": [{"podSelector": {"matchLabels": {"run": "client"}}}], "ports": [{"port": 8080}]}]"#;
    kubectl.apply(&policy("allow", "web", allow));
    traced(kubectl, "client", "web:80", &[&format!("allowed by {namespace}/allow"), "connected in"]);
    traced(kubectl, "other", "web:8080", &["DROPPED", "nothing came back"]);
    assert!(get("client").is_ok() && get("other").is_err());
    kubectl.run(&["label", "pod", "other", "run=client", "--overwrite"]);
    traced(kubectl, "other", "web:8080", &["allowed by", "connected in"]);

    kubectl.run(&["create", "service", "clusterip", "nobody", "--tcp=80:8080"]);
    traced(kubectl, "client", "nobody:80", &["no ready endpoint", "foretold   refused"]);
    let wrong = trace(kubectl, "client", "nowhere:80");
    assert!(wrong.contains(&format!("there is no pod and no Service {namespace}/nowhere")), "{wrong}");
}
