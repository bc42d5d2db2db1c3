//! The API server between a real kubectl and a kubelet that is played here: identities, tokens and streams over TLS.
//!
//! kubectl is the one in `.tools/bin` of the checkout, which `hack/up` puts there; the tests that need it say so aloud
//! where it is missing.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for other code

mod cluster;
mod kubelet;

use std::process::Output;

use cluster::{Cluster, Kubectl};

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn assert_ran(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let shown = (output.status.code(), text(&output.stdout), text(&output.stderr));
    assert_eq!(shown.0, Some(code), "{shown:?}");
    assert_eq!(shown.1, stdout, "{shown:?}");
    assert!(shown.2.contains(stderr), "{shown:?}");
}

/// Each way of kubectl to open streams.
const TRANSPORTS: [(&str, &str); 2] = [("websocket", "true"), ("spdy", "false")];

async fn with_kubectl(test: impl AsyncFn(&Cluster, Kubectl)) {
    let cluster = Cluster::start().await;
    match cluster.kubectl() {
        Some(kubectl) => test(&cluster, kubectl).await,
        None => eprintln!("SKIPPED: no kubectl in .tools/bin; run hack/up once"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_carries_output_input_and_exit_code() {
    with_kubectl(async |_, kubectl| {
        for (name, websockets) in TRANSPORTS {
            let kubectl = kubectl.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
            let hi = kubectl.run(&["exec", "p", "--", "echo", "hi there"], b"").await;
            assert_ran(&hi, 0, "hi there\n", "");

            let failed = kubectl.run(&["exec", "p", "-c", "a", "--", "fail", "3"], b"").await;
            assert_ran(&failed, 3, "", "oops\n");
            assert!(text(&failed.stderr).contains("command terminated with exit code 3"), "{name}");

            let input: Vec<u8> = (0..4_000_000u32).map(|i| b'a' + (i % 23) as u8).collect();
            let echoed = kubectl.run(&["exec", "-i", "p", "--", "cat"], &input).await;
            assert_eq!((echoed.status.code(), echoed.stdout.len()), (Some(0), input.len()), "{name}: {echoed:?}");
            assert!(echoed.stdout == input, "{name}");

            let attached = kubectl.run(&["attach", "p", "-i", "-q"], b"typed").await;
            assert_ran(&attached, 0, "typed", "");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_reach_the_user() {
    with_kubectl(async |_, kubectl| {
        let gone = kubectl.run(&["exec", "p", "--", "gone"], b"").await;
        let why = "error: Internal error occurred: unable to upgrade connection: container not found (\"a\")";
        assert_ran(&gone, 1, "", why);
        let no_container = kubectl.run(&["exec", "p", "-c", "x", "--", "echo"], b"").await;
        assert_ran(&no_container, 1, "", "container x is not valid for pod p");
        let unbound = kubectl.run(&["exec", "unbound", "--", "echo"], b"").await;
        assert_ran(&unbound, 1, "", "pod unbound does not have a host assigned");
        let waiting = kubectl.run(&["logs", "p", "--previous"], b"").await;
        let why = "container \"a\" in pod \"p\" is waiting to start: ContainerCreating";
        assert_ran(&waiting, 1, "", why);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_the_kubelets() {
    with_kubectl(async |_, kubectl| {
        let logs = kubectl.run(&["logs", "p", "--tail=3"], b"").await;
        assert_ran(&logs, 0, "/containerLogs/default/p/a tailLines=3\n", "");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded() {
    with_kubectl(async |_, kubectl| {
        for (_, websockets) in TRANSPORTS {
            let kubectl = kubectl.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
            kubectl
                .forward("p", 8080, async |address| {
                    for word in ["hello", "again"] {
                        assert_eq!(cluster::ask(address, word).await, word.to_uppercase());
                    }
                })
                .await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_hold_while_their_account_lives() {
    with_kubectl(async |cluster, kubectl| {
        let made = kubectl.run(&["create", "token", "robot", "--duration=20m"], b"").await;
        assert_eq!(made.status.code(), Some(0), "{made:?}");
        let robot = cluster.kubectl_with_token(text(&made.stdout).trim()).unwrap();
        let me = robot.run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"], b"").await;
        assert_ran(&me, 0, "system:serviceaccount:default:robot", "");
        let refused = robot.run(&["get", "pods"], b"").await;
        let why = "pods is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"pods\" in API \
                   group \"\" in the namespace \"default\"";
        assert_ran(&refused, 1, "", why);
        let short = kubectl.run(&["create", "token", "robot", "--duration=5m"], b"").await;
        assert_ran(&short, 1, "", "may not specify a duration less than 10 minutes");

        assert_ran(&kubectl.run(&["delete", "serviceaccount", "robot", "-o", "name"], b"").await, 0, "serviceaccount/robot\n", "");
        let late = robot.run(&["auth", "whoami"], b"").await;
        assert_ran(&late, 1, "", "Unauthorized");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_known_may_learn_how_to_check_tokens() {
    with_kubectl(async |_, kubectl| {
        let issuer = kubectl.run(&["get", "--raw", "/.well-known/openid-configuration"], b"").await;
        let issuer: serde_json::Value = serde_json::from_slice(&issuer.stdout).unwrap();
        assert_eq!(issuer["jwks_uri"], "https://127.0.0.1:6443/openid/v1/jwks");
        let keys = kubectl.run(&["get", "--raw", "/openid/v1/jwks", "--as", "jane"], b"").await;
        assert!(text(&keys.stdout).contains("\"crv\":\"P-256\""), "{keys:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_about_access_are_answered() {
    with_kubectl(async |_, kubectl| {
        assert_ran(&kubectl.run(&["auth", "can-i", "delete", "nodes"], b"").await, 0, "yes\n", "");
        assert_ran(&kubectl.run(&["auth", "can-i", "get", "pods", "--as", "jane"], b"").await, 1, "no\n", "");
        let listed = kubectl.run(&["auth", "can-i", "--list", "--as", "jane"], b"").await;
        assert!(text(&listed.stdout).contains("selfsubjectreviews.authentication.k8s.io"), "{listed:?}");
        let me = kubectl
            .run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"], b"")
            .await;
        assert_ran(&me, 0, "kubernetes-admin [\"system:masters\",\"system:authenticated\"]", "");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_pod_gets_what_admission_gives() {
    with_kubectl(async |_, kubectl| {
        let manifest = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q"},"spec":{"containers":[{"name":"a","image":"i"}]}}"#;
        let made = kubectl.run(&["create", "-f", "-", "-o", "json"], manifest).await;
        let pod: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap_or_else(|_| panic!("{made:?}"));
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        assert_eq!(pod["spec"]["priority"], 0);
        assert_eq!(pod["spec"]["tolerations"][1]["tolerationSeconds"], 300);
        let volume = pod["spec"]["volumes"][0]["name"].as_str().unwrap();
        assert!(volume.starts_with("kube-api-access-") && volume.len() == 21, "{volume}");
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], volume);

        let manifest = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"r"},"spec":{"serviceAccountName":"nobody","containers":[{"name":"a","image":"i"}]}}"#;
        let refused = kubectl.run(&["create", "-f", "-"], manifest).await;
        let why = "pods \"r\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found";
        assert_ran(&refused, 1, "", why);
    })
    .await;
}

/// A client older than kubectl's: no Status on success, text messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base64_channels_are_served() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/default/pods/p/exec?command=cat&stdin=1&stdout=1&container=a";
    let messages = cluster.websocket(path, "base64.channel.k8s.io", &["0aGVsbG8="], "1aGVsbG8=").await;
    assert_eq!(messages[..2], ["1".to_owned(), "1aGVsbG8=".to_owned()]);
}
