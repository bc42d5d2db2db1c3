//! Objects through kubectl: read, write, patch, watch, delete, explain.

use std::fs;
use std::time::Duration;

use tests::bed::{Cluster, Kubectl, eventually};

const SETTINGS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: one, tier: a}}
data: {colour: red, size: \"3\"}
---
apiVersion: v1
kind: Secret
metadata: {name: key, labels: {app: one}}
stringData: {password: s3cret}
";

pub fn read(kubectl: &Kubectl<'_>) {
    kubectl.apply(SETTINGS);
    let table = kubectl.run(&["get", "configmaps"]);
    let mut lines = table.lines();
    assert_eq!(lines.next().unwrap().split_whitespace().collect::<Vec<_>>(), ["NAME", "DATA", "AGE"]);
    assert!(lines.any(|line| line.starts_with("settings") && line.contains(" 2 ")), "{table}");
    assert!(kubectl.run(&["get", "nodes", "-o", "wide"]).contains("bosun://"));
    assert!(kubectl.run(&["get", "configmap", "settings", "-o", "yaml"]).contains("colour: red"));
    assert_eq!(kubectl.field("configmap/settings", "{.data.size}"), "3");
    assert!(kubectl.run(&["get", "configmaps", "-A"]).contains(&kubectl.namespace));
    assert_eq!(
        kubectl.run(&["get", "configmaps,secrets", "-l", "app=one", "-o", "name"]),
        "configmap/settings\nsecret/key\n"
    );
    assert_eq!(kubectl.run(&["get", "cm", "-l", "tier notin (b),app", "-o", "name"]), "configmap/settings\n");
    let named = kubectl.run(&["get", "cm", "--field-selector", "metadata.name=settings", "-o", "name"]);
    assert_eq!(named, "configmap/settings\n");
    let chunked = kubectl.run(&["get", "cm", "-A", "--chunk-size=2", "-o", "name"]);
    assert_eq!(chunked, kubectl.run(&["get", "cm", "-A", "-o", "name"]));
    let described = kubectl.run(&["describe", "configmap", "settings"]);
    assert!(described.contains("colour:") && described.contains("BinaryData"), "{described}");
    let warned = kubectl.command(&["get", "endpoints", "-A"]).output().unwrap();
    assert!(tests::bed::text(&warned.stderr).starts_with("Warning: v1 Endpoints is deprecated in v1.33+"));
    let missing = kubectl.fails(&["get", "configmap", "nosuch"]);
    assert_eq!(missing.trim(), "Error from server (NotFound): configmaps \"nosuch\" not found");
}

pub fn write(kubectl: &Kubectl<'_>) {
    kubectl.run(&["create", "configmap", "made", "--from-literal=a=1"]);
    kubectl.run(&["create", "secret", "generic", "made", "--from-literal=b=2"]);
    assert_eq!(kubectl.field("secret/made", "{.data.b}"), "Mg==");
    let again = kubectl.fails(&["create", "configmap", "made"]);
    assert!(again.contains("configmaps \"made\" already exists"), "{again}");
    assert!(kubectl.apply(SETTINGS).contains("configmap/settings created"));
    assert!(kubectl.apply(SETTINGS).contains("configmap/settings unchanged"));
    assert!(kubectl.apply(&SETTINGS.replace("red", "blue")).contains("configmap/settings configured"));
    assert_eq!(kubectl.field("configmap/settings", "{.data.colour}"), "blue");
    let pruned = kubectl.apply(&SETTINGS.replace("colour: red, ", ""));
    assert!(pruned.contains("configured"));
    assert_eq!(kubectl.field("configmap/settings", "{.data.colour}"), "");
    kubectl.run(&["create", "configmap", "tried", "--dry-run=server"]);
    assert!(kubectl.fails(&["get", "configmap", "tried"]).contains("NotFound"));
    kubectl.run(&["label", "configmap", "made", "colour=red"]);
    assert!(kubectl.fails(&["label", "configmap", "made", "colour=blue"]).contains("--overwrite"));
    kubectl.run(&["label", "configmap", "made", "colour=blue", "--overwrite"]);
    kubectl.run(&["annotate", "configmap", "made", "note=here"]);
    assert_eq!(kubectl.field("configmap/made", "{.metadata.labels.colour} {.metadata.annotations.note}"), "blue here");
    kubectl.run(&["label", "configmap", "made", "colour-"]);
    assert_eq!(kubectl.field("configmap/made", "{.metadata.labels}"), "");

    let editor = kubectl.cluster.folder.path().join("editor");
    fs::write(&editor, "#!/bin/sh\nsed -i 's/a: \"1\"/a: edited/' \"$1\"\n").unwrap();
    fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut edit = kubectl.command(&["edit", "configmap", "made"]);
    assert!(edit.env("KUBE_EDITOR", &editor).stdout(std::process::Stdio::null()).status().unwrap().success());
    assert_eq!(kubectl.field("configmap/made", "{.data.a}"), "edited");
}

pub fn patch(kubectl: &Kubectl<'_>) {
    kubectl.run(&["create", "deployment", "web", "--image", images::ECHO, "--replicas=0"]);
    let patch = |kind: &str, patch: &str| kubectl.run(&["patch", "deployment", "web", "--type", kind, "-p", patch]);
    patch(
        "strategic",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"bosun.local/echo:1"}]}}}}"#,
    );
    let names = "{.spec.template.spec.containers[*].name}";
    assert_eq!(kubectl.field("deployment/web", names), "side echo", "merged by name");
    patch("merge", r#"{"metadata":{"labels":{"app":null,"new":"1"}}}"#);
    assert_eq!(kubectl.field("deployment/web", "{.metadata.labels}"), r#"{"new":"1"}"#);
    patch(
        "json",
        r#"[{"op":"replace","path":"/spec/revisionHistoryLimit","value":3},{"op":"remove","path":"/metadata/labels/new"}]"#,
    );
    assert_eq!(kubectl.field("deployment/web", "{.spec.revisionHistoryLimit}{.metadata.labels}"), "3");
    let test = r#"[{"op":"test","path":"/spec/revisionHistoryLimit","value":4},{"op":"remove","path":"/spec"}]"#;
    kubectl.fails(&["patch", "deployment", "web", "--type", "json", "-p", test]);
    assert_eq!(kubectl.field("deployment/web", "{.spec.revisionHistoryLimit}"), "3");
}

const EVENTS: &str = r#"jsonpath={.type} {.object.metadata.name}{"\n"}"#;

pub fn watch(kubectl: &Kubectl<'_>) {
    let file = kubectl.cluster.folder.path().join("watched");
    let words = ["get", "configmaps", "-l", "seen=yes", "-w", "--output-watch-events", "-o", EVENTS];
    let _watch = kubectl.spawn(&words, &file);
    std::thread::sleep(Duration::from_millis(500));
    kubectl.run(&["create", "configmap", "unseen"]);
    kubectl.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: seen, labels: {seen: 'yes'}}}");
    kubectl.run(&["annotate", "configmap", "seen", "a=b"]);
    kubectl.run(&["label", "configmap", "seen", "seen-"]);
    let wanted = ["ADDED seen", "MODIFIED seen", "DELETED seen"];
    eventually("the three events of a watch", Duration::from_secs(5), || {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines == wanted).then_some(())
    });
}

pub fn delete(kubectl: &Kubectl<'_>) {
    kubectl.apply(SETTINGS);
    kubectl.run(&["delete", "configmaps,secrets", "-l", "app=one"]);
    assert_eq!(kubectl.run(&["get", "cm,secret", "-l", "app=one", "-o", "name"]), "");
    kubectl.echo("web", 2);
    let sets = || kubectl.run(&["get", "rs,pods", "-l", "app=web", "-o", "name"]);
    kubectl.run(&["delete", "deployment", "web", "--cascade=orphan"]);
    assert_eq!(sets().lines().count(), 3, "orphans stay");
    kubectl.run(&["delete", "rs", "-l", "app=web", "--cascade=foreground", "--timeout=60s"]);
    eventually("the pods to go with their owner", Duration::from_secs(60), || sets().is_empty().then_some(()));

    kubectl.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [example.org/hold]}}");
    kubectl.run(&["delete", "configmap", "held", "--wait=false"]);
    assert_ne!(kubectl.field("configmap/held", "{.metadata.deletionTimestamp}"), "");
    kubectl.run(&["patch", "configmap", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    assert!(kubectl.fails(&["get", "configmap", "held"]).contains("NotFound"));

    kubectl.run(&["run", "slow", "--image", images::ECHO, "--env=TERM_DELAY_MS=60000"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/slow", "--timeout=60s"]);
    kubectl.run(&["delete", "pod", "slow", "--force", "--grace-period=0", "--timeout=10s"]);
    assert!(kubectl.fails(&["get", "pod", "slow"]).contains("NotFound"));
}

pub fn explain(kubectl: &Kubectl<'_>) {
    let resources = kubectl.run(&["api-resources"]);
    for kind in ["ConfigMap", "Deployment", "EndpointSlice", "Lease", "Pod", "ReplicaSet", "Service", "TokenReview"] {
        assert!(resources.lines().any(|line| line.ends_with(kind)), "{kind} is missing:\n{resources}");
    }
    let explained = kubectl.run(&["explain", "pod.spec.containers.livenessProbe"]);
    assert!(explained.contains("FIELD: livenessProbe <Probe>"), "{explained}");
    assert!(explained.contains("How often (in seconds) to perform the probe."), "{explained}");
    assert!(kubectl.run(&["explain", "service.spec.ports.targetPort"]).contains("FIELD: targetPort <IntOrString>"));
    assert!(kubectl.run(&["explain", "deployment", "--recursive"]).contains("maxSurge"));
    assert!(kubectl.fails(&["explain", "pod.nosuch"]).contains("field \"nosuch\" does not exist"));
    assert!(kubectl.run(&["version"]).contains("Server Version: v1.37"));
}

pub fn network_policy(kubectl: &Kubectl<'_>) {
    let policy = |to: &str| {
        format!(
            "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  ingress: [{{from: [{{namespaceSelector: {{}}}}], ports: [{{port: 80}}]}}]
  egress: [{{to: [{{ipBlock: {to}}}]}}]
"
        )
    };
    kubectl.apply(&policy("{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}"));
    let table = kubectl.run(&["get", "netpol"]);
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap(), ["NAME", "POD-SELECTOR", "AGE"]);
    assert_eq!(lines.next().unwrap()[..2], ["web", "app=web"]);
    assert_eq!(kubectl.field("netpol/web", "{.spec.policyTypes}"), r#"["Ingress","Egress"]"#);
    assert_eq!(kubectl.field("netpol/web", "{.spec.ingress[0].ports[0].protocol}"), "TCP");
    let said = kubectl.with_input(&["apply", "-f", "-"], &policy("{cidr: 10.0.0.1/8}")).unwrap_err();
    assert!(said.contains("spec.egress[0].to[0].ipBlock.cidr: Invalid value: \"10.0.0.1/8\": must not have"), "{said}");
    let described = kubectl.run(&["describe", "netpol", "web"]);
    assert!(described.contains("To Port: 80/TCP") && described.contains("Except: 10.1.0.0/16"), "{described}");
}

/// The objects as they were, while everything runs on.
pub fn snapshot() {
    let cluster = Cluster::up("snapshot", &[]);
    let kubectl = cluster.namespace("snapshot");
    let file = cluster.folder.path().join("snapshot");
    let store = |verb: &str| {
        let output = cluster.bosun(&["store", verb, file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", tests::bed::text(&output.stderr));
    };
    kubectl.run(&["create", "configmap", "kept"]);
    store("snapshot");
    kubectl.run(&["delete", "configmap", "kept"]);
    kubectl.run(&["create", "configmap", "later"]);
    store("restore");
    assert!(kubectl.run(&["get", "configmaps", "-o", "name"]).contains("configmap/kept"));
    assert!(kubectl.fails(&["get", "configmap", "later"]).contains("NotFound"));
    kubectl.echo("after", 1);
}

pub fn tokens(kubectl: &Kubectl<'_>) {
    let token = kubectl.run(&["create", "token", "default", "--duration=10m"]);
    let token = token.trim();
    assert_eq!(token.split('.').count(), 3);
    let user = format!("system:serviceaccount:{}:default", kubectl.namespace);
    // Kubectl prefers the client certificate of its kubeconfig, so the token stands in one of its own.
    let refused = with_token(kubectl, token, &["get", "secrets"]);
    assert!(refused.contains(&format!("User \"{user}\" cannot list resource \"secrets\"")), "{refused}");
    let who = with_token(kubectl, token, &["auth", "whoami"]);
    assert!(who.contains(&user) && who.contains("system:serviceaccounts"), "{who}");
    let forged = format!("{}x", &token[..token.len() - 1]);
    assert!(with_token(kubectl, &forged, &["get", "pods"]).contains("Unauthorized"));
    assert_eq!(kubectl.run(&["auth", "can-i", "delete", "nodes"]).trim(), "yes");
}

fn with_token(kubectl: &Kubectl<'_>, token: &str, words: &[&str]) -> String {
    let server = kubectl.run(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let bare = kubectl.cluster.folder.path().join("bare");
    fs::write(&bare, "").unwrap();
    let mut command = std::process::Command::new(tests::bed::checkout().join(".tools/bin/kubectl"));
    command.arg("--kubeconfig").arg(&bare).args(["--server", &server, "--insecure-skip-tls-verify", "--token", token]);
    let output = command.args(["--namespace", &kubectl.namespace]).args(words).output().unwrap();
    tests::bed::text(&output.stdout) + &tests::bed::text(&output.stderr)
}

pub fn bad_input(kubectl: &Kubectl<'_>) {
    let apply = |manifest: &str| kubectl.with_input(&["apply", "-f", "-"], manifest).unwrap_err();
    let said =
        apply("{apiVersion: v1, kind: Pod, metadata: {name: Bad_Name}, spec: {containers: [{name: a, image: b}]}}");
    assert!(said.contains("metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain"), "{said}");
    let said = apply("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: []}}");
    assert!(said.contains("spec.containers: Required value"), "{said}");
    let said =
        apply("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: b, imagee: c}]}}");
    assert!(said.contains("unknown field \"spec.containers[0].imagee\""), "{said}");
    let said = apply("{apiVersion: v1, kind: Nosuch, metadata: {name: a}}");
    assert!(said.contains("no matches for kind \"Nosuch\" in version \"v1\""), "{said}");
    let said = apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {a: [1]}}");
    assert!(said.contains("Error from server") || said.contains("error"), "{said}");
    kubectl.run(&["create", "configmap", "stale"]);
    let old = kubectl.run(&["get", "configmap", "stale", "-o", "json"]);
    kubectl.run(&["annotate", "configmap", "stale", "a=b"]);
    let said = kubectl.with_input(&["replace", "-f", "-"], &old).unwrap_err();
    assert!(said.contains("the object has been modified; please apply your changes to the latest version"), "{said}");
}
