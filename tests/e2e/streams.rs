//! Streams to containers: logs, exec, attach, cp, port-forward.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
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
    assert_eq!(kubectl.run(&["logs", "talker", "--since=1s", "--limit-bytes=3"]).len().min(3), 3.min(all.len()));
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
    // `script` gives kubectl a terminal.
    let kubeconfig = kubectl.cluster.kubeconfig.display().to_string();
    let program = tests::bed::checkout().join(".tools/bin/kubectl");
    let line = format!(
        "{} --kubeconfig {kubeconfig} -n {} exec -it box -- /echo print terminal",
        program.display(),
        kubectl.namespace
    );
    let output = tests::bed::output("script", &["-qec", &line, "/dev/null"]);
    assert!(tests::bed::text(&output.stdout).contains("terminal\r\n"), "{}", tests::bed::text(&output.stdout));
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
    let Some(image) = registry::busybox(kubectl.cluster) else { return };
    kubectl.run(&["run", "box", "--image", &image, "--", "sleep", "3600"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
    let folder = kubectl.cluster.folder.path();
    let (from, back) = (folder.join("from"), folder.join("back"));
    let content: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(&from, &content).unwrap();
    kubectl.run(&["cp", &from.display().to_string(), "box:/tmp-file"]);
    kubectl.run(&["cp", "box:/tmp-file", &back.display().to_string()]);
    assert!(fs::read(&back).unwrap() == content, "the file came back changed");
    kubectl.run(&["delete", "pod", "box", "--now", "--timeout=30s"]);
}

pub fn port_forward(kubectl: &Kubectl<'_>) {
    kubectl.pod("server", &[]);
    let file = kubectl.cluster.folder.path().join("forwarded");
    let _forward = kubectl.spawn(&["port-forward", "pod/server", ":8080"], &file);
    let port: u16 = eventually("a local port", Duration::from_secs(10), || {
        let text = fs::read_to_string(&file).unwrap();
        text.split("127.0.0.1:").nth(1)?.split(' ').next()?.parse().ok()
    });
    for round in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(stream, "GET /round{round} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\"pod\":\"server\"") && answer.contains(&format!("/round{round}")), "{answer}");
    }
}
