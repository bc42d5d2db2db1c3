//! What the controllers do by themselves: roll out as told, clean up, name the endpoints.

use std::time::Duration;

use tests::bed::{Kubectl, eventually};

/// Names of what a label selects, one a word.
fn names(kubectl: &Kubectl<'_>, kinds: &str, app: &str) -> String {
    let selector = format!("app={app}");
    kubectl.run(&["get", kinds, "-l", &selector, "-o", "jsonpath={.items[*].metadata.name}"])
}

fn gone(kubectl: &Kubectl<'_>, kinds: &str, app: &str) {
    eventually(&format!("{kinds} of {app} to go"), Duration::from_secs(40), || {
        names(kubectl, kinds, app).is_empty().then_some(())
    });
}

/// A deployment of pods that end at once when told.
fn deployment(kubectl: &Kubectl<'_>, name: &str, more: &str) {
    kubectl.apply(&format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {{replicas: 2, {more} \
         selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, spec: \
         {{terminationGracePeriodSeconds: 1, containers: [{{name: echo, image: '{}'}}]}}}}}}}}",
        images::ECHO
    ));
}

pub fn cascade(kubectl: &Kubectl<'_>) {
    for name in ["background", "foreground", "orphan"] {
        deployment(kubectl, name, "");
        let deployment = format!("deployment/{name}");
        kubectl.run(&["rollout", "status", &deployment, "--timeout=60s"]);
        kubectl.run(&["delete", &deployment, &format!("--cascade={name}"), "--timeout=60s"]);
        if name == "foreground" {
            assert_eq!(names(kubectl, "replicasets,pods", name), "", "the owner goes last");
        }
    }
    gone(kubectl, "replicasets,pods", "background");
    let (sets, pods) = (names(kubectl, "replicasets", "orphan"), names(kubectl, "pods", "orphan"));
    assert_eq!(pods.split_whitespace().count(), 2);
    let owners = "jsonpath={.items[*].metadata.ownerReferences[*].kind}";
    assert_eq!(kubectl.run(&["get", "replicasets", "-l", "app=orphan", "-o", owners]), "");
    // The same deployment takes back what was left.
    deployment(kubectl, "orphan", "");
    kubectl.run(&["rollout", "status", "deployment/orphan", "--timeout=30s"]);
    assert_eq!(kubectl.run(&["get", "replicasets", "-l", "app=orphan", "-o", owners]), "Deployment");
    assert_eq!((names(kubectl, "replicasets", "orphan"), names(kubectl, "pods", "orphan")), (sets, pods));
}

pub fn deployment_modes(kubectl: &Kubectl<'_>) {
    deployment(kubectl, "web", "revisionHistoryLimit: 1, progressDeadlineSeconds: 3,");
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.run(&["rollout", "pause", "deployment/web"]);
    kubectl.run(&["set", "image", "deployment/web", "echo=localhost/nosuch:1"]);
    let progress = |part: &str| {
        kubectl.field("deployment/web", &format!("{{.status.conditions[?(@.type=='Progressing')].{part}}}"))
    };
    eventually("the pause to show", Duration::from_secs(5), || {
        (progress("reason") == "DeploymentPaused").then_some(())
    });
    assert_eq!(names(kubectl, "replicasets", "web").split_whitespace().count(), 1, "nothing rolls while paused");
    kubectl.run(&["rollout", "resume", "deployment/web"]);
    let said = kubectl.fails(&["rollout", "status", "deployment/web", "--timeout=20s"]);
    assert!(said.contains("deployment \"web\" exceeded its progress deadline"), "{said}");
    assert!(progress("message").ends_with("has timed out progressing."), "{}", progress("message"));
    kubectl.run(&["rollout", "undo", "deployment/web"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=30s"]);
    kubectl.run(&["set", "env", "deployment/web", "COLOUR=red"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=30s"]);
    eventually("one old replica set to be kept", Duration::from_secs(10), || {
        (names(kubectl, "replicasets", "web").split_whitespace().count() == 2).then_some(())
    });
    let recreate = r#"{"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}"#;
    kubectl.run(&["patch", "deployment", "web", "-p", recreate]);
    let before = names(kubectl, "pods", "web");
    kubectl.run(&["set", "env", "deployment/web", "COLOUR=blue"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=30s"]);
    let after = names(kubectl, "pods", "web");
    assert!(before.split_whitespace().all(|old| !after.contains(old)), "{before} {after}");
}

pub fn namespace(kubectl: &Kubectl<'_>) {
    let name = format!("{}-inner", kubectl.namespace);
    let inner = |words: &[&str]| {
        let mut all = vec!["--namespace", &name];
        all.extend(words);
        kubectl.run(&all)
    };
    kubectl.run(&["create", "namespace", &name]);
    inner(&["create", "deployment", "web", "--image", images::ECHO, "--replicas=2"]);
    inner(&["create", "configmap", "held"]);
    inner(&["patch", "configmap", "held", "-p", r#"{"metadata": {"finalizers": ["bosun.test/hold"]}}"#]);
    inner(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.run(&["delete", "namespace", &name, "--wait=false"]);
    let said = eventually("the finalizer to be named", Duration::from_secs(60), || {
        let message = "{.status.conditions[?(@.type=='NamespaceFinalizersRemaining')].message}";
        Some(kubectl.field(&format!("namespace/{name}"), message)).filter(|said| said.contains("bosun.test/hold"))
    });
    assert_eq!(said, "Some content in the namespace has finalizers remaining: bosun.test/hold in 1 resource instances");
    let refused = kubectl.fails(&["--namespace", &name, "create", "configmap", "late"]);
    assert!(refused.contains("because it is being terminated"), "{refused}");
    inner(&["patch", "configmap", "held", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]);
    kubectl.run(&["wait", "--for=delete", &format!("namespace/{name}"), "--timeout=60s"]);
}

pub fn endpoints(kubectl: &Kubectl<'_>) {
    deployment(kubectl, "web", "");
    kubectl.run(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    let slices = |service: &str, path: &str| {
        let selector = format!("kubernetes.io/service-name={service}");
        kubectl.run(&["get", "endpointslices", "-l", &selector, "-o", &format!("jsonpath={{{path}}}")])
    };
    eventually("two ready endpoints", Duration::from_secs(30), || {
        (slices("web", ".items[*].endpoints[*].conditions.ready") == "true true").then_some(())
    });
    let legacy = kubectl.field("endpoints/web", "{.subsets[0].addresses[*].targetRef.kind}");
    assert_eq!(legacy, "Pod Pod");
    // A pod that leaves the selector leaves the slice, and the replica set makes another.
    let pods = names(kubectl, "pods", "web");
    let pod = pods.split_whitespace().next().unwrap_or_default();
    kubectl.run(&["label", "pod", pod, "app=other", "--overwrite"]);
    eventually("the endpoints to follow the label", Duration::from_secs(20), || {
        let of = slices("web", ".items[*].endpoints[*].targetRef.name");
        (!of.contains(pod) && slices("web", ".items[*].endpoints[*].conditions.ready") == "true true").then_some(())
    });
    // Endpoints by hand, of a Service without a selector, are mirrored and leave with their Service.
    kubectl.apply("{apiVersion: v1, kind: Service, metadata: {name: hand}, spec: {ports: [{port: 80}]}}");
    kubectl.apply(
        "{apiVersion: v1, kind: Endpoints, metadata: {name: hand}, \
         subsets: [{addresses: [{ip: 192.0.2.7}], ports: [{port: 80}]}]}",
    );
    eventually("the mirror", Duration::from_secs(10), || {
        let by = slices("hand", r".items[*].metadata.labels.endpointslice\.kubernetes\.io/managed-by");
        (by == "endpointslicemirroring-controller.k8s.io").then_some(())
    });
    assert_eq!(slices("hand", ".items[*].endpoints[*].addresses[*]"), "192.0.2.7");
    kubectl.run(&["delete", "service", "hand"]);
    eventually("the mirror to go", Duration::from_secs(10), || {
        slices("hand", ".items[*].kind").is_empty().then_some(())
    });
    let loopback = "{apiVersion: v1, kind: Endpoints, metadata: {name: bad}, \
                    subsets: [{addresses: [{ip: 127.0.0.1}], ports: [{port: 80}]}]}";
    let refused = kubectl.with_input(&["apply", "-f", "-"], loopback).expect_err("a loopback address is refused");
    assert!(refused.contains("may not be in the loopback range"), "{refused}");
}
