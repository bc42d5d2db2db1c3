//! Exec, attach and port-forward prepared over the CRI.

use cri::v1::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
