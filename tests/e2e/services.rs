//! Services: by cluster IP from inside, by node port from outside, over the ready endpoints.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tests::bed::{Kubectl, eventually};

/// The pod that answered.
fn ask(kubectl: &Kubectl<'_>, url: &str) -> Option<String> {
    answered(&kubectl.cluster.curl(url))
}

fn answered(body: &str) -> Option<String> {
    Some(body.split("\"pod\":\"").nth(1)?.split('"').next()?.to_owned())
}

pub fn reach(kubectl: &Kubectl<'_>) {
    kubectl.echo("web", 3);
    kubectl.run(&["expose", "deployment", "web", "--port=80", "--target-port=8080", "--type=NodePort"]);
    let node_port = kubectl.field("service/web", "{.spec.ports[0].nodePort}");
    let cluster_ip = kubectl.field("service/web", "{.spec.clusterIP}");
    let outside = format!("http://{}:{node_port}/", kubectl.cluster.address());
    eventually("the node port to answer", Duration::from_secs(10), || ask(kubectl, &outside));
    let pods: BTreeSet<String> = (0..60).filter_map(|_| ask(kubectl, &outside)).collect();
    assert_eq!(pods.len(), 3, "the load spreads: {pods:?}");
    kubectl.pod("client", &[]);
    let inside = || {
        let url = format!("http://{cluster_ip}/");
        answered(&kubectl.run(&["exec", "client", "--", "/echo", "get", &url]))
    };
    let pods: BTreeSet<String> = (0..20).filter_map(|_| inside()).collect();
    assert!(pods.len() >= 2, "the load spreads inside too: {pods:?}");
    // A pod behind the service reaches it, and itself through it.
    let own = pods.first().unwrap();
    for _ in 0..6 {
        let url = format!("http://{cluster_ip}/");
        assert!(answered(&kubectl.run(&["exec", own, "--", "/echo", "get", &url])).is_some());
    }
    kubectl.run(&["delete", "service", "web"]);
    eventually("the node port to be closed", Duration::from_secs(5), || ask(kubectl, &outside).is_none().then_some(()));
}

pub fn readiness(kubectl: &Kubectl<'_>) {
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
        readinessProbe: {{httpGet: {{path: /readyz, port: 8080}}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
",
        image = images::ECHO
    ));
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let node_port = kubectl.field("service/web", "{.spec.ports[0].nodePort}");
    let outside = format!("http://{}:{node_port}/", kubectl.cluster.address());
    let victim = eventually("the service to answer", Duration::from_secs(10), || ask(kubectl, &outside));
    let address = kubectl.field(&format!("pod/{victim}"), "{.status.podIP}");
    let set = |ready: bool| {
        let url = format!("http://{address}:8080/ready?value={ready}");
        let done = kubectl.cluster.inside(&["curl", "-s", "-X", "POST", &url]);
        assert!(done.status.success());
    };
    set(false);
    eventually("the pod to be unready", Duration::from_secs(5), || {
        let ready = "{.status.conditions[?(@.type==\"Ready\")].status}";
        (kubectl.field(&format!("pod/{victim}"), ready) == "False").then_some(())
    });
    let unready = Instant::now();
    eventually("the service to leave the unready pod", Duration::from_secs(1), || {
        (0..10).filter_map(|_| ask(kubectl, &outside)).all(|pod| pod != victim).then_some(())
    });
    println!("the service followed within {:?}", unready.elapsed());
    set(true);
    eventually("the ready pod to be back", Duration::from_secs(5), || {
        (0..10).filter_map(|_| ask(kubectl, &outside)).any(|pod| pod == victim).then_some(())
    });
}
