//! The node as the scheduler and an administrator see it.

use std::time::Duration;

use tests::bed::{Kubectl, eventually};

/// The message of a pod's FailedScheduling event.
fn complaint(kubectl: &Kubectl<'_>, pod: &str) -> String {
    let selector = format!("reason=FailedScheduling,involvedObject.name={pod}");
    eventually("FailedScheduling", Duration::from_secs(10), || {
        let words = ["get", "events", "--field-selector", &selector, "-o", "jsonpath={.items[*].message}"];
        Some(kubectl.run(&words)).filter(|text| !text.is_empty())
    })
}

pub fn schedule(kubectl: &Kubectl<'_>) {
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: huge}}, spec: {{containers: [{{name: a, image: '{}', \
         resources: {{requests: {{cpu: '1000'}}}}}}]}}}}",
        images::ECHO
    ));
    let said = complaint(kubectl, "huge");
    assert!(said.contains("0/1 nodes are available: 1 Insufficient cpu."), "{said}");
    assert!(kubectl.run(&["get", "pod", "huge"]).contains("Pending"));
    kubectl.run(&["delete", "pod", "huge", "--timeout=10s"]);
    let picky = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: picky}}, spec: {{nodeSelector: {{{}: 'yes'}}, \
         containers: [{{name: a, image: '{}'}}]}}}}",
        kubectl.namespace,
        images::ECHO
    );
    kubectl.apply(&picky);
    let said = complaint(kubectl, "picky");
    assert!(said.contains("1 node(s) didn't match Pod's node affinity/selector."), "{said}");
    let node = kubectl.cluster.node();
    kubectl.run(&["label", "node", &node, &format!("{}=yes", kubectl.namespace)]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/picky", "--timeout=30s"]);
    kubectl.run(&["label", "node", &node, &format!("{}-", kubectl.namespace)]);
}

pub fn taint(kubectl: &Kubectl<'_>) {
    let node = kubectl.cluster.node();
    let taint = format!("{}=yes:NoSchedule", kubectl.namespace);
    kubectl.run(&["taint", "node", &node, &taint]);
    kubectl.run(&["run", "kept-off", "--image", images::ECHO]);
    let said = complaint(kubectl, "kept-off");
    assert!(said.contains("1 node(s) had untolerated taint(s)") || said.contains("untolerated taint"), "{said}");
    kubectl.run(&["taint", "node", &node, &format!("{}-", kubectl.namespace)]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/kept-off", "--timeout=30s"]);
}

pub fn drain(kubectl: &Kubectl<'_>) {
    let node = kubectl.cluster.node();
    kubectl.echo("web", 1);
    let before = kubectl.run(&["get", "pods", "-l", "app=web", "-o", "name"]);
    kubectl.run(&["cordon", &node]);
    assert!(kubectl.run(&["get", "node", &node]).contains("SchedulingDisabled"));
    // Only this case's pods: other cases' leave by themselves.
    kubectl.run(&["drain", &node, "--pod-selector=app=web", "--ignore-daemonsets", "--timeout=60s"]);
    eventually("a new pod that waits", Duration::from_secs(10), || {
        let pods = kubectl.run(&["get", "pods", "-l", "app=web"]);
        (pods.contains("Pending") && !pods.contains("Running")).then_some(())
    });
    kubectl.run(&["uncordon", &node]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_ne!(kubectl.run(&["get", "pods", "-l", "app=web", "-o", "name"]), before);
}
