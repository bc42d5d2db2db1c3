//! Streams to containers: logs, exec, attach, cp, port-forward.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tests::bed::{Kubectl, eventually};

use crate::registry;

pub fn logs(kubectl: &Kubectl<'_>) {
    kubectl.pod("talker", &[]);
    for path in ["one", "two", "three"] {
        kubectl.run(&["exec", "talker", "--", "/echo", "get", &format!("http://127.0.0.1:8080/{path}")]);
    }
    let all = kubectl.run(&["logs", "talker"]);
    assert!(all.starts_with("listening on 8080\n") && all.contains("GET /one"), "{all}");
    let tail = kubectl.run(&["logs", "talker", "--tail=1"]);
    assert!(tail.starts_with("GET /three") && tail.lines().count() == 1, "{tail}");
    assert!(kubectl.run(&["logs", "talker", "--timestamps", "--tail=1"]).starts_with("20"));
    assert_eq!(kubectl.run(&["logs", "talker", "--since=10m", "--limit-bytes=3"]), "lis");
    let file = kubectl.cluster.folder.path().join("followed");
    let _follow = kubectl.spawn(&["logs", "-f", "talker", "--tail=0"], &file);
    std::thread::sleep(Duration::from_millis(500));
    kubectl.run(&["exec", "talker", "--", "/echo", "get", "http://127.0.0.1:8080/followed"]);
    eventually("the followed line", Duration::from_secs(5), || {
        fs::read_to_string(&file).unwrap().contains("GET /followed").then_some(())
    });
    let said = kubectl.fails(&["logs", "talker", "--previous"]);
    assert!(said.contains("previous terminated container \"talker\" in pod \"talker\" not found"), "{said}");
    assert!(kubectl.fails(&["logs", "nosuch"]).contains("pods \"nosuch\" not found"));
}

pub fn exec(kubectl: &Kubectl<'_>) {
    kubectl.pod("box", &[]);
    assert_eq!(kubectl.run(&["exec", "box", "--", "/echo", "print", "a", "b"]), "a b\n");
    let input = "x".repeat(200_000) + "\n";
    let back = kubectl.with_input(&["exec", "-i", "box", "--", "/echo", "cat"], &input).unwrap();
    assert!(back == input, "{} bytes came back of {}", back.len(), input.len());
    let mut exit = kubectl.command(&["exec", "box", "--", "/echo", "exit", "7"]);
    assert_eq!(exit.stderr(Stdio::null()).status().unwrap().code(), Some(7));
    let said = kubectl.fails(&["exec", "box", "--", "/nosuch"]);
    assert!(said.contains("no such file or directory"), "{said}");
    let said = kubectl.on_terminal("$KUBECTL exec -it box -- /echo print terminal");
    assert!(said.contains("terminal\r\n"), "{said}");
}

/// A terminal's size at the start, and as it changes.
pub fn resize(kubectl: &Kubectl<'_>) {
    if !has_box(kubectl) {
        return;
    }
    let said = kubectl.on_terminal(
        "stty rows 33 cols 77; (sleep 1.5; stty rows 44 cols 99 < /dev/tty) &
         $KUBECTL exec -it shell -- sh -c 'for i in 1 2 3 4 5 6; do stty size; sleep 0.5; done'",
    );
    assert!(said.contains("33 77\r\n") && said.ends_with("44 99\r\n"), "{said}");
    kubectl.run(&["delete", "pod", "shell", "--now", "--timeout=30s"]);
}

/// Whether the pod `shell` runs: a shell and its tools.
fn has_box(kubectl: &Kubectl<'_>) -> bool {
    let Some(image) = registry::busybox(kubectl.cluster) else { return false };
    kubectl.run(&["run", "shell", "--image", &image, "--", "sleep", "3600"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/shell", "--timeout=60s"]);
    true
}

pub fn attach(kubectl: &Kubectl<'_>) {
    let said = kubectl.with_input(
        &["run", "echoing", "--image", images::ECHO, "--restart=Never", "-i", "--quiet", "--", "cat"],
        "through the container\n",
    );
    assert_eq!(said.unwrap(), "through the container\n");
    kubectl.pod("server", &[]);
    let file = kubectl.cluster.folder.path().join("attached");
    let _attach = kubectl.spawn(&["attach", "server"], &file);
    std::thread::sleep(Duration::from_millis(700));
    kubectl.run(&["exec", "server", "--", "/echo", "get", "http://127.0.0.1:8080/attached"]);
    eventually("the attached output", Duration::from_secs(5), || {
        fs::read_to_string(&file).unwrap().contains("GET /attached").then_some(())
    });
}

pub fn copy(kubectl: &Kubectl<'_>) {
    if !has_box(kubectl) {
        return;
    }
    let folder = kubectl.cluster.folder.path();
    let (from, back) = (folder.join("from"), folder.join("back"));
    let content: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(&from, &content).unwrap();
    kubectl.run(&["cp", &from.display().to_string(), "shell:/tmp-file"]);
    kubectl.run(&["cp", "shell:/tmp-file", &back.display().to_string()]);
    assert!(fs::read(&back).unwrap() == content, "the file came back changed");
    kubectl.run(&["delete", "pod", "shell", "--now", "--timeout=30s"]);
}

pub fn port_forward(kubectl: &Kubectl<'_>) {
    kubectl.pod("listener", &[]);
    forward(kubectl, "listener");
}

/// Three requests through one `kubectl port-forward` to a pod.
pub fn forward(kubectl: &Kubectl<'_>, pod: &str) {
    let file = kubectl.cluster.folder.path().join("forwarded");
    let _forward = kubectl.spawn(&["port-forward", &format!("pod/{pod}"), ":8080"], &file);
    let port: u16 = eventually("a local port", Duration::from_secs(10), || {
        let text = fs::read_to_string(&file).unwrap();
        text.split("127.0.0.1:").nth(1)?.split(' ').next()?.parse().ok()
    });
    for round in 0..3 {
        let answer = kubectl.cluster.curl(&format!("http://127.0.0.1:{port}/round{round}"));
        let wanted = [format!("\"pod\":\"{pod}\""), format!("/round{round}")];
        assert!(wanted.iter().all(|part| answer.contains(part)), "{answer}");
    }
}

/// The same for a kubectl that is told to avoid WebSocket.
pub fn over_spdy(kubectl: &Kubectl<'_>) {
    let kubectl = &kubectl.over_spdy();
    exec(kubectl);
    resize(kubectl);
    attach(kubectl);
    copy(kubectl);
    port_forward(kubectl);
}
