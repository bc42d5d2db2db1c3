//! Exec, attach and port-forward prepared over the CRI.

use cri::v1::*;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tonic::Code;

use super::bed::on_a_node;
use super::pods::{container, nothing_is_left, pod};

#[test]
fn urls_are_for_what_runs() {
    on_a_node("streams::urls_are_for_what_runs", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let id = shim.create(&sandbox, &container("app", "while :; do sleep 1; done")).await;
        let exec = |id: &str| ExecRequest {
            container_id: id.to_owned(),
            cmd: vec!["true".into()],
            stdout: true,
            ..ExecRequest::default()
        };
        let error = shim.runtime.exec(exec(&id)).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert_eq!(shim.runtime.exec(exec("none")).await.unwrap_err().code(), Code::NotFound);
        shim.start(&id).await;
        let url = shim.runtime.exec(exec(&id)).await.unwrap().into_inner().url;
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        let forward = PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![80] };
        let url = shim.runtime.port_forward(forward).await.unwrap().into_inner().url;
        // A request that upgrades to nothing is refused, and its token is good no more.
        let address = url.trim_start_matches("http://").split('/').next().unwrap().to_owned();
        let path = url.trim_start_matches("http://").trim_start_matches(&address).to_owned();
        let mut connection = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

/// What a client gets over WebSocket channels until the server closes, by channel.
async fn talk(url: &str, sent: &[(u8, &str)]) -> [String; 4] {
    let address = url.trim_start_matches("http://").split('/').next().unwrap();
    let connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut request = url.replacen("http://", "ws://", 1).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::client_async(request, connection).await.unwrap();
    for (channel, text) in sent {
        let mut frame = vec![*channel];
        frame.extend(text.as_bytes());
        socket.send(Message::binary(frame)).await.unwrap();
    }
    let mut got = <[String; 4]>::default();
    let all = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(frame) = message
                && let Some((channel, bytes)) = frame.split_first()
            {
                got[usize::from(*channel)].push_str(&String::from_utf8_lossy(bytes));
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), all).await.expect("the server closes");
    got
}

#[test]
fn all_that_a_command_printed_arrives() {
    on_a_node("streams::all_that_a_command_printed_arrives", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let id = shim.create(&sandbox, &container("app", "while :; do sleep 1; done")).await;
        shim.start(&id).await;
        let exec = |script: &str| ExecRequest {
            container_id: id.clone(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            stdout: true,
            ..ExecRequest::default()
        };
        // More than the pipes on the way hold when the command ends.
        for turn in 0..40 {
            let request = exec("head -c 200000 /dev/zero | tr '\\0' x");
            let url = shim.runtime.exec(request).await.unwrap().into_inner().url;
            assert_eq!(talk(&url, &[]).await[1].len(), 200_000, "turn {turn}");
        }
        // Another process may hold the output open for longer than anybody waits.
        let url = shim.runtime.exec(exec("sleep 60 & echo up")).await.unwrap().into_inner().url;
        assert_eq!(talk(&url, &[]).await[1], "up\n");
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

#[test]
fn a_client_runs_commands_and_attaches() {
    on_a_node("streams::a_client_runs_commands_and_attaches", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let mut wanted = container("app", "cat; echo input has ended");
        (wanted.stdin, wanted.stdin_once) = (true, true);
        let id = shim.create(&sandbox, &wanted).await;
        shim.start(&id).await;

        let exec = |script: &str, stdin: bool, tty: bool| ExecRequest {
            container_id: id.clone(),
            cmd: vec!["sh".into(), "-c".into(), script.into()],
            stdin,
            tty,
            stdout: true,
            stderr: !tty,
        };
        let url = shim.runtime.exec(exec("echo hi; echo no >&2; exit 3", false, false)).await.unwrap().into_inner().url;
        let [_, out, err, status] = talk(&url, &[]).await;
        assert_eq!((out.as_str(), err.as_str()), ("hi\n", "no\n"));
        assert!(status.contains("NonZeroExitCode") && status.contains("\"3\""), "{status}");

        // Channel 255 closes the one that its byte names.
        let url = shim.runtime.exec(exec("cat; echo end", true, false)).await.unwrap().into_inner().url;
        let [_, out, _, status] = talk(&url, &[(0, "some input\n"), (255, "\0")]).await;
        assert_eq!(out, "some input\nend\n");
        assert!(status.contains("Success"), "{status}");

        let url = shim.runtime.exec(exec("sleep 0.3; stty size", false, true)).await.unwrap().into_inner().url;
        let [_, out, _, _] = talk(&url, &[(4, r#"{"Width":91,"Height":37}"#)]).await;
        assert_eq!(out, "37 91\r\n");

        let attach = AttachRequest { container_id: id.clone(), stdin: true, stdout: true, ..AttachRequest::default() };
        let url = shim.runtime.attach(attach).await.unwrap().into_inner().url;
        let [_, out, _, _] = talk(&url, &[(0, "to the container\n"), (255, "\0")]).await;
        assert_eq!(out, "to the container\ninput has ended\n");
        assert_eq!(shim.ended(&id).await.exit_code, 0);
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}
