//! Services: by cluster IP from inside, by node port from outside, over the ready endpoints.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use tests::bed::{Kubectl, eventually, text};

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

/// What the client pod gets for an address: an answer, or at once a refusal.
fn from_inside(kubectl: &Kubectl<'_>, address: &str) -> Result<String, String> {
    kubectl.try_run(&["exec", "client", "--", "/echo", "get", &format!("http://{address}/")])
}

pub fn affinity_and_refusal(kubectl: &Kubectl<'_>) {
    kubectl.echo("web", 3);
    kubectl.pod("client", &[]);
    kubectl.run(&["expose", "deployment", "web", "--port=80", "--target-port=8080", "--session-affinity=ClientIP"]);
    let ip = kubectl.field("service/web", "{.spec.clusterIP}");
    let first = eventually("the service to answer", Duration::from_secs(5), || from_inside(kubectl, &ip).ok());
    let first = answered(&first).expect("a pod says its name");
    for _ in 0..8 {
        assert_eq!(from_inside(kubectl, &ip).ok().and_then(|body| answered(&body)), Some(first.clone()));
    }
    kubectl.run(&["delete", "pod", &first, "--wait=false"]);
    eventually("the client to be led to another pod", Duration::from_secs(5), || {
        from_inside(kubectl, &ip).ok().and_then(|body| answered(&body)).filter(|pod| *pod != first)
    });
    kubectl.run(&["scale", "deployment", "web", "--replicas=0"]);
    eventually("a service without endpoints to refuse at once", Duration::from_secs(10), || {
        let asked = Instant::now();
        let said = from_inside(kubectl, &ip).err()?;
        (said.contains("refused") && asked.elapsed() < Duration::from_secs(1)).then_some(())
    });
}

pub fn udp(kubectl: &Kubectl<'_>) {
    kubectl.apply(&format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: dns}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: dns}}}}
  template:
    metadata: {{labels: {{app: dns}}}}
    spec:
      containers: [{{name: echo, image: {image}, env: [{{name: UDP_PORT, value: '5353'}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: dns}}
spec: {{type: NodePort, selector: {{app: dns}}, ports: [{{port: 53, protocol: UDP, targetPort: 5353}}]}}
",
        image = images::ECHO
    ));
    kubectl.run(&["rollout", "status", "deployment/dns", "--timeout=60s"]);
    let address = (kubectl.cluster.address(), kubectl.field("service/dns", "{.spec.ports[0].nodePort}"));
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a UDP socket");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    socket.connect(format!("{}:{}", address.0, address.1)).expect("a route to the node");
    // One socket is one flow for the kernel, which goes on to the old pod as long as it is tracked.
    let ask = || {
        socket.send(b"?").ok()?;
        let mut buffer = [0; 2048];
        socket.recv(&mut buffer).ok().map(|size| text(&buffer[..size]))
    };
    let pod = || kubectl.field("pod", "{.items[0].metadata.name}");
    let first = pod();
    eventually("the pod to answer", Duration::from_secs(5), || ask().filter(|said| said.contains(&first)));
    kubectl.run(&["delete", "pod", &first, "--grace-period=1"]);
    kubectl.run(&["rollout", "status", "deployment/dns", "--timeout=60s"]);
    let second = pod();
    assert_ne!(first, second);
    eventually("the flow to be led to the new pod", Duration::from_secs(3), || {
        ask().filter(|said| said.contains(&second))
    });
}

/// The proxy's process in the node, as the node numbers it.
fn proxy(kubectl: &Kubectl<'_>) -> Option<String> {
    let found = kubectl.cluster.inside(&["pgrep", "-f", "bosun proxy --config"]);
    text(&found.stdout).lines().next().map(str::to_owned)
}

pub fn proxy_restart(kubectl: &Kubectl<'_>) {
    kubectl.echo("web", 2);
    kubectl.run(&["expose", "deployment", "web", "--port=80", "--target-port=8080", "--type=NodePort"]);
    let node_port = kubectl.field("service/web", "{.spec.ports[0].nodePort}");
    let address = format!("{}:{node_port}", kubectl.cluster.address());
    let outside = format!("http://{address}/");
    eventually("the node port to answer", Duration::from_secs(10), || ask(kubectl, &outside));
    let mut session = TcpStream::connect(&address).expect("a connection");
    session.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    session.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n").expect("half a request");
    let killed = proxy(kubectl).expect("the node has a proxy");
    assert!(kubectl.cluster.inside(&["kill", "-KILL", &killed]).status.success());
    // New connections do not miss it: the rules stay.
    assert!((0..5).all(|_| ask(kubectl, &outside).is_some()));
    eventually("another proxy to take over", Duration::from_secs(15), || proxy(kubectl).filter(|now| *now != killed));
    kubectl.run(&["scale", "deployment", "web", "--replicas=3"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    eventually("the new proxy to lead to the new pod", Duration::from_secs(15), || {
        let pods: BTreeSet<String> = (0..30).filter_map(|_| ask(kubectl, &outside)).collect();
        (pods.len() == 3).then_some(())
    });
    session.write_all(b"Connection: close\r\n\r\n").expect("the other half");
    let mut answer = String::new();
    session.read_to_string(&mut answer).expect("an answer");
    assert!(answered(&answer).is_some(), "the session went on: {answer}");
}

pub fn host_port(kubectl: &Kubectl<'_>) {
    let pod = |name: &str| {
        kubectl.apply(&format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  containers:
  - name: echo
    image: {}
    ports: [{{containerPort: 8080, hostPort: 18080}}]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
",
            images::ECHO
        ));
    };
    let outside = format!("http://{}:18080/", kubectl.cluster.address());
    pod("one");
    kubectl.run(&["wait", "--for=condition=Ready", "pod/one", "--timeout=60s"]);
    assert_eq!(ask(kubectl, &outside).as_deref(), Some("one"));
    let own = kubectl.cluster.inside(&["curl", "-s", "--max-time", "2", "http://127.0.0.1:18080/"]);
    assert_eq!(answered(&text(&own.stdout)).as_deref(), Some("one"), "from the node's own loopback");
    // The second waits for the port, and has it as soon as the first is gone.
    pod("two");
    eventually("the scheduler to say why", Duration::from_secs(5), || {
        let said = "{.status.conditions[?(@.type==\"PodScheduled\")].message}";
        kubectl.field("pod/two", said).contains("didn't have free ports").then_some(())
    });
    kubectl.run(&["delete", "pod", "one", "--grace-period=1"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/two", "--timeout=60s"]);
    assert_eq!(ask(kubectl, &outside).as_deref(), Some("two"));
}
