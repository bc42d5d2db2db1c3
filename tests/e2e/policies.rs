//! Network policies between pods of a cluster, and what `bosun net trace` says of them.

use std::time::Duration;

use tests::bed::{Kubectl, eventually, text};

fn policy(name: &str, pods: &str, rules: &str) -> String {
    format!(
        r#"{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {{"name": "{name}"}},
            "spec": {{"podSelector": {{"matchLabels": {{"run": "{pods}"}}}}, {rules}}}}}"#
    )
}

/// The daemon of the node that `from` runs on says what becomes of a packet.
fn trace(kubectl: &Kubectl<'_>, from: &str, to: &str) -> String {
    let node = kubectl.field(&format!("pod/{from}"), "{.spec.nodeName}");
    let [from, to] = [from, to].map(|place| format!("{}/{place}", kubectl.namespace));
    let said = kubectl.cluster.bosun(&["net", "trace", &from, &to, "--node", &node]);
    format!("{}{}", text(&said.stdout), text(&said.stderr))
}

/// What a trace says once it holds all of the words: the daemon hears of a policy a moment after kubectl has.
fn traced(kubectl: &Kubectl<'_>, from: &str, to: &str, words: &[&str]) {
    let mut last = String::new();
    eventually(&format!("the trace to say {words:?}"), Duration::from_secs(15), || {
        last = trace(kubectl, from, to);
        words.iter().all(|word| last.contains(word)).then_some(())
    });
    assert!(!last.contains("DIFFERS"), "{last}");
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
    let counted = format!("packets dropped meanwhile: ingress of {namespace}/web");
    traced(kubectl, "client", "web:80", &[&isolated, "foretold   dropped", "nothing came back", &counted]);
    assert!(get("client").is_err());

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
