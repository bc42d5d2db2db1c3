use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

struct Script(Result<CommandOutput, CommandError>);

impl Commands for Script {
    async fn run(&self, _: &str, _: Vec<String>, _: Duration) -> Result<CommandOutput, CommandError> {
        self.0.clone()
    }
}

async fn outcome(probe: Value, commands: Script) -> Outcome {
    let probe: Probe = serde_json::from_value(probe).unwrap();
    let target = Target { address: Some([127, 0, 0, 1].into()), ports: &[], container_id: "c" };
    run(&probe, target, &commands).await
}

fn nothing() -> Script {
    Script(Err(CommandError::Failed("not asked".into())))
}

/// Serves each connection one answer, and hands back what was asked.
async fn server(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            asked.push(String::from_utf8_lossy(&buffer[..count]).to_lowercase());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    (port, task)
}

#[tokio::test]
async fn http_answers_in_the_kubelets_words() {
    let (port, asked) = server(vec![
        "HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n".into(),
        "HTTP/1.1 500 no\r\nContent-Length: 2\r\n\r\nno".into(),
        "HTTP/1.1 301 x\r\nLocation: http://other.example/\r\nContent-Length: 4\r\n\r\nbody".into(),
    ])
    .await;
    let probe = json!({"httpGet": {"port": port, "path": "/live", "httpHeaders": [{"name": "X-A", "value": "b"}]}});
    let failed = outcome(probe.clone(), nothing()).await;
    assert_eq!(failed, Outcome::Failure("HTTP probe failed with statuscode: 500".into()));
    assert_eq!(
        event(ProbeKind::Readiness, &failed).unwrap(),
        ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500".into())
    );
    let warned = outcome(probe.clone(), nothing()).await;
    assert_eq!(warned, Outcome::Warning("Probe terminated redirects, Response body: body".into()));
    let asked = asked.await.unwrap();
    assert!(asked[0].starts_with("get /live ") && asked[0].contains("x-a: b") && asked[0].contains("kube-probe/1.37"));
    assert!(asked[1].starts_with("get /next "));
    let refused =
        format!("Get \"http://127.0.0.1:{port}/live\": dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(outcome(probe, nothing()).await, Outcome::Failure(refused));
}

#[tokio::test]
async fn http_that_is_silent_runs_into_its_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let Outcome::Failure(text) = outcome(json!({"httpGet": {"port": port}, "timeoutSeconds": 1}), nothing()).await
    else {
        panic!("no failure")
    };
    assert!(text.contains("context deadline exceeded"), "{text}");
    assert_eq!(outcome(json!({"tcpSocket": {"port": port}}), nothing()).await, Outcome::Success);
    drop(listener);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(outcome(json!({"tcpSocket": {"port": port}}), nothing()).await, Outcome::Failure(refused));
    let Outcome::Failure(text) = outcome(json!({"grpc": {"port": port}}), nothing()).await else {
        panic!("no failure")
    };
    assert!(text.starts_with("timeout: failed to connect service"), "{text}");
}

#[tokio::test]
async fn a_command_counts_by_its_exit_code() {
    let exec = json!({"exec": {"command": ["cat", "/x"]}});
    let done = |exit_code, out: &str| Script(Ok(CommandOutput { exit_code, stdout: out.into(), stderr: Vec::new() }));
    assert_eq!(outcome(exec.clone(), done(0, "")).await, Outcome::Success);
    assert_eq!(outcome(exec.clone(), done(1, "no such file")).await, Outcome::Failure("no such file".into()));
    let late = outcome(exec, Script(Err(CommandError::TimedOut))).await;
    assert_eq!(late, Outcome::Failure("command timed out: \"cat /x\" timed out after 1s".into()));
}

#[test]
fn ports_by_name_and_number() {
    let ports: Vec<ContainerPort> = serde_json::from_value(json!([{"name": "web", "containerPort": 8080}])).unwrap();
    assert_eq!(port(&IntOrString::String("web".into()), &ports), Ok(8080));
    assert_eq!(port(&IntOrString::Int(0), &ports), Err("invalid port number: 0".into()));
    assert!(port(&IntOrString::String("none".into()), &ports).is_err());
}
