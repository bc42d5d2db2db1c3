//! Deployments and their pods: roll out, undo, scale, restart, fail where the user looks.

use std::time::Duration;

use tests::bed::{Kubectl, eventually};

pub fn rollout(kubectl: &Kubectl<'_>) {
    kubectl.echo("web", 2);
    kubectl.run(&["set", "image", "deployment/web", "echo=localhost/nosuch:1"]);
    eventually("the new pod's pull to fail", Duration::from_secs(20), || {
        kubectl.run(&["get", "pods"]).contains("ErrImage").then_some(())
    });
    assert_eq!(kubectl.field("deployment/web", "{.status.availableReplicas}"), "2", "the old pods serve on");
    let history = kubectl.run(&["rollout", "history", "deployment/web"]);
    assert!(history.contains("1 ") && history.contains("2 "), "{history}");
    kubectl.run(&["rollout", "undo", "deployment/web"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(kubectl.field("deployment/web", "{.spec.template.spec.containers[0].image}"), images::ECHO);
    kubectl.run(&["set", "env", "deployment/web", "COLOUR=red"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    eventually("one replica set to hold all pods", Duration::from_secs(30), || {
        let held = kubectl.run(&["get", "rs", "-l", "app=web", "-o", "jsonpath={.items[*].status.replicas}"]);
        let mut held: Vec<&str> = held.split_whitespace().collect();
        held.sort_unstable();
        (held.last() == Some(&"2") && held.iter().filter(|n| **n != "0").count() == 1).then_some(())
    });
    let revision = kubectl.field("deployment/web", r"{.metadata.annotations.deployment\.kubernetes\.io/revision}");
    assert_eq!(revision, "4");
    kubectl.run(&["rollout", "restart", "deployment/web"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let described = kubectl.run(&["describe", "deployment", "web"]);
    assert!(described.contains("ScalingReplicaSet") && described.contains("NewReplicaSetAvailable"), "{described}");
}

pub fn scale(kubectl: &Kubectl<'_>) {
    kubectl.echo("web", 1);
    kubectl.run(&["scale", "deployment/web", "--replicas=4"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(kubectl.run(&["get", "deployment", "web"]).contains("4/4"));
    let said = kubectl.fails(&["scale", "deployment/web", "--current-replicas=2", "--replicas=1"]);
    assert!(said.contains("Expected replicas to be 2, was 4"), "{said}");
    kubectl.run(&["scale", "deployment/web", "--replicas=0"]);
    eventually("no pod to be left", Duration::from_secs(40), || {
        kubectl.run(&["get", "pods", "-l", "app=web", "-o", "name"]).is_empty().then_some(())
    });
}

pub fn restarts(kubectl: &Kubectl<'_>) {
    kubectl.run(&["run", "crash", "--image", images::ECHO, "--env=EXIT_AFTER=1", "--env=EXIT_CODE=3"]);
    eventually("a second life", Duration::from_secs(30), || {
        let count = kubectl.field("pod/crash", "{.status.containerStatuses[0].restartCount}");
        (count.parse::<u32>().unwrap_or(0) >= 1).then_some(())
    });
    let last = "{.status.containerStatuses[0].lastState.terminated.exitCode}";
    assert_eq!(kubectl.field("pod/crash", last), "3");
    assert!(kubectl.run(&["logs", "crash", "--previous"]).contains("listening on 8080"));
    eventually("the back-off to be told", Duration::from_secs(30), || {
        let events = kubectl.run(&["events", "--for", "pod/crash"]);
        events.contains("Back-off restarting failed container").then_some(())
    });
    kubectl.run(&["run", "once", "--image", images::ECHO, "--restart=Never", "--", "print", "done"]);
    kubectl.run(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/once", "--timeout=30s"]);
    assert_eq!(kubectl.run(&["logs", "once"]), "done\n");
    assert!(kubectl.run(&["get", "pod", "once"]).contains("Completed"));
}

/// That a container is held off stands in its status, all the while.
pub fn back_off(kubectl: &Kubectl<'_>) {
    kubectl.run(&["run", "crash", "--image", images::ECHO, "--env=EXIT_AFTER=0", "--env=EXIT_CODE=3"]);
    eventually("the back-off to show", Duration::from_secs(30), || {
        kubectl.run(&["get", "pod", "crash"]).contains("CrashLoopBackOff").then_some(())
    });
}

pub fn missing_image(kubectl: &Kubectl<'_>) {
    kubectl.run(&["run", "lost", "--image", "localhost/nosuch:1"]);
    eventually("ErrImagePull within 5 s", Duration::from_secs(5), || {
        kubectl.run(&["get", "pod", "lost"]).contains("ErrImagePull").then_some(())
    });
    let described = kubectl.run(&["describe", "pod", "lost"]);
    assert!(described.contains("Failed to pull image \"localhost/nosuch:1\""), "{described}");
    // A fresh pod finds the image as soon as it is there.
    kubectl.run(&["delete", "pod", "lost", "--timeout=40s"]);
    kubectl.run(&["run", "never", "--image", "localhost/nosuch:1", "--image-pull-policy=Never"]);
    eventually("ErrImageNeverPull", Duration::from_secs(10), || {
        kubectl.run(&["get", "pod", "never"]).contains("ErrImageNeverPull").then_some(())
    });
}

/// What somebody else writes over the agent's word, as the node controller does while it takes a node for lost, is put
/// right.
pub fn overwritten(kubectl: &Kubectl<'_>) {
    kubectl.pod("spoken-for", &[]);
    let patch = r#"{"status":{"conditions":[{"type":"Ready","status":"False","reason":"Other"}]}}"#;
    kubectl.run(&["patch", "pod", "spoken-for", "--subresource=status", "--type=strategic", "-p", patch]);
    eventually("the pod to be Ready again", Duration::from_secs(5), || {
        let ready = kubectl.field("pod/spoken-for", "{.status.conditions[?(@.type==\"Ready\")].status}");
        (ready == "True").then_some(())
    });
}

/// A pod waits for its config map, and then for whoever opens its readiness gate.
pub fn waiting(kubectl: &Kubectl<'_>) {
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: gated}}, spec: {{readinessGates: [{{conditionType: \
         example.com/open}}], containers: [{{name: a, image: '{}', envFrom: [{{configMapRef: {{name: later}}}}]}}]}}}}",
        images::ECHO
    ));
    eventually("CreateContainerConfigError", Duration::from_secs(10), || {
        kubectl.run(&["get", "pod", "gated"]).contains("CreateContainerConfigError").then_some(())
    });
    assert!(kubectl.run(&["describe", "pod", "gated"]).contains("configmap \"later\" not found"));
    // The kubelet's back-off would be at 10 s by now.
    std::thread::sleep(Duration::from_secs(4));
    kubectl.run(&["create", "configmap", "later", "--from-literal=COLOUR=red"]);
    eventually("the container to start at once", Duration::from_secs(3), || {
        kubectl.run(&["get", "pod", "gated"]).contains("1/1").then_some(())
    });
    let ready = |what| kubectl.field("pod/gated", &format!("{{.status.conditions[?(@.type==\"Ready\")].{what}}}"));
    assert_eq!((ready("status"), ready("reason")), ("False".into(), "ReadinessGatesNotReady".into()));
    let open = r#"{"status":{"conditions":[{"type":"example.com/open","status":"True"}]}}"#;
    kubectl.run(&["patch", "pod", "gated", "--subresource=status", "-p", open]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/gated", "--timeout=5s"]);
}

pub fn deadline(kubectl: &Kubectl<'_>) {
    kubectl.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: late}}, spec: {{activeDeadlineSeconds: 2, \
         terminationGracePeriodSeconds: 1, containers: [{{name: a, image: '{}'}}]}}}}",
        images::ECHO
    ));
    kubectl.run(&["wait", "--for=jsonpath={.status.phase}=Failed", "pod/late", "--timeout=20s"]);
    assert_eq!(kubectl.field("pod/late", "{.status.reason}"), "DeadlineExceeded");
}
