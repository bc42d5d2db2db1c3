//! The node as the scheduler and an administrator see it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tests::bed::{Kubectl, eventually, text};

use crate::routes::daemon;

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

/// The agent's process inside the node.
fn agent(kubectl: &Kubectl<'_>) -> Option<String> {
    let found = text(&kubectl.cluster.inside(&["pgrep", "-f", "^[^ ]*bosun agent"]).stdout);
    Some(found.trim().to_owned()).filter(|pid| !pid.is_empty())
}

pub fn agent_restart(kubectl: &Kubectl<'_>) {
    kubectl.apply(&format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: echo
        image: {image}
        readinessProbe: {{httpGet: {{path: /readyz, port: 8080}}, periodSeconds: 1}}
        startupProbe: {{httpGet: {{path: /readyz, port: 8080}}, periodSeconds: 1}}
",
        image = images::ECHO
    ));
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let lives = || {
        let status = "{range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} \
                      {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
        kubectl.run(&["get", "pods", "-l", "app=web", "-o", &format!("jsonpath={status}")])
    };
    let before = lives();
    let file = kubectl.cluster.folder.path().join("watched");
    let ready = "jsonpath={.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}";
    let _watch = kubectl.spawn(&["get", "pods", "--watch", "-l", "app=web", "-o", ready], &file);
    eventually("the watch to begin", Duration::from_secs(10), || {
        (fs::read_to_string(&file).unwrap().lines().count() >= 2).then_some(())
    });
    let pid = agent(kubectl).expect("the agent runs");
    assert!(kubectl.cluster.inside(&["kill", "-KILL", &pid]).status.success());
    eventually("another agent", Duration::from_secs(20), || agent(kubectl).filter(|new| *new != pid));
    kubectl.pod("after", &[]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(lives(), before, "no container was restarted");
    let seen = fs::read_to_string(&file).unwrap();
    assert!(seen.lines().all(|line| line.ends_with(" True")), "a pod was not Ready: {seen}");
}

/// A file that is elsewhere until this goes.
struct Away(PathBuf);

impl Away {
    fn take(file: PathBuf) -> Self {
        fs::rename(&file, file.with_extension("away")).unwrap();
        Self(file)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        fs::rename(self.0.with_extension("away"), &self.0).unwrap();
    }
}

/// A net daemon that is killed is missed by nobody; one that does not come back makes its node NotReady.
pub fn net_gone(kubectl: &Kubectl<'_>) {
    let cluster = kubectl.cluster;
    let node = cluster.nodes().swap_remove(0);
    let kill = || {
        let pid = eventually("a net daemon", Duration::from_secs(20), || daemon(cluster, &node));
        assert!(cluster.inside_of(&node.name, &["kill", "-KILL", &pid]).status.success());
        pid
    };
    let file = cluster.folder.path().join("net-gone");
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}";
    let watch = kubectl.spawn(&["get", "node", &node.name, "--watch", "-o", ready], &file);
    let first = eventually("the watch to begin", Duration::from_secs(10), || {
        fs::read_to_string(&file).ok().filter(|seen| !seen.is_empty())
    });
    assert_eq!(first, "True\n");
    let killed = kill();
    eventually("another daemon", Duration::from_secs(20), || daemon(cluster, &node).filter(|new| *new != killed));
    // As long as it would take to be seen, had it not come back.
    std::thread::sleep(Duration::from_secs(40));
    let seen = fs::read_to_string(&file).unwrap();
    assert!(seen.lines().all(|status| status == "True"), "{seen}");
    drop(watch);

    let kubeconfig = Away::take(cluster.state().join("nodes").join(&node.name).join("net.conf"));
    let (_, gone) = (kill(), Instant::now());
    let object = format!("node/{}", node.name);
    let condition =
        |field: &str| kubectl.field(&object, &format!("{{.status.conditions[?(@.type==\"Ready\")].{field}}}"));
    let message = eventually("the node to be NotReady", Duration::from_secs(45), || {
        (condition("status") == "False").then(|| condition("message"))
    });
    println!("NotReady after {:.0?}: {message}", gone.elapsed());
    assert!(gone.elapsed() > Duration::from_secs(15), "a restart has more time than {:?}", gone.elapsed());
    assert!(message.contains("NetworkReady=false"), "{message}");
    assert!(message.contains("the net daemon at /run/bosun/net.sock has not run for "), "{message}");
    drop(kubeconfig);
    kubectl.run(&["wait", "--for=condition=Ready", &object, "--timeout=30s"]);
    kubectl.pod("after", &[]);
}

/// A node whose object was deleted registers again.
pub fn comes_back(kubectl: &Kubectl<'_>) {
    let node = kubectl.cluster.node();
    let object = format!("node/{node}");
    let before = kubectl.field(&object, "{.metadata.uid}");
    kubectl.run(&["delete", "node", &node]);
    eventually("the node to be back", Duration::from_secs(10), || {
        kubectl.try_run(&["get", &object, "-o", "jsonpath={.metadata.uid}"]).ok().filter(|uid| *uid != before)
    });
    kubectl.run(&["wait", "--for=condition=Ready", &object, "--timeout=20s"]);
    kubectl.pod("after", &[]);
}
