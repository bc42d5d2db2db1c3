//! The plugin `policy` before a net daemon of the test's own.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use kernel::netlink::{Kernel, Network, VethEnd};
use kernel::netns::{self, Netns};
use serde_json::{Value, json};

struct Bed {
    folder: tempfile::TempDir,
    node: Netns,
}

impl Bed {
    fn new(what: &str) -> Option<Self> {
        let Ok(node) = Netns::anonymous() else {
            eprintln!("SKIPPED {what}: needs root");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let pod = netns::create(folder.path().join("pod")).unwrap();
        node.run(|| {
            let end = |name| VethEnd { name, ..VethEnd::default() };
            let mut network = Kernel::open().unwrap();
            network.add_veth(end("veth1"), end("eth0"), Some(pod.as_fd()), None).unwrap();
        })
        .unwrap();
        Some(Self { folder, node })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("net.sock")
    }

    /// The daemon's last sign of life was then.
    fn alive(&self, ago: Duration) -> PathBuf {
        let file = self.folder.path().join("net/alive");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        File::create(&file).unwrap().set_modified(SystemTime::now() - ago).unwrap();
        file
    }

    fn call(&self, command: &str, extra: Value) -> Value {
        let pod = self.folder.path().join("pod");
        let mut config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "policy", "socket": self.socket(),
            "prevResult": {"cniVersion": "1.1.0",
                "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": pod}],
                "ips": [{"address": "10.0.0.2/24", "interface": 1}, {"address": "192.0.2.1/24", "interface": 0}]}});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let output = self.node.run(|| {
            let mut child = Command::new(env!("CARGO_BIN_EXE_bosun-cni"))
                .arg0("policy")
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", "c1")
                .env("CNI_NETNS", &pod)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", "/nowhere")
                .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=web;K8S_POD_UID=u1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        netns::remove(self.folder.path().join("pod")).unwrap();
    }
}

/// Answers one request after a while, and says what it was.
fn daemon(socket: &Path, answer: &'static str, after: Duration) -> std::thread::JoinHandle<Value> {
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        std::thread::sleep(after);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        std::fs::remove_file(&socket).unwrap();
        serde_json::from_str(&line).unwrap()
    })
}

#[test]
fn a_pod_starts_when_the_daemon_says_so() {
    let Some(bed) = Bed::new("policy") else { return };
    // It is away at first, as while it restarts.
    let asked = daemon(&bed.socket(), "{\"ok\":null}\n", Duration::from_millis(300));
    let result = bed.call("ADD", json!({}));
    assert_eq!(result["ips"][0]["address"], "10.0.0.2/24", "{result}");
    let wanted = json!({"ask": "attach", "namespace": "a", "pod": "web", "uid": "u1", "container": "c1",
        "link": "veth1", "addresses": ["10.0.0.2"]});
    assert_eq!(asked.join().unwrap(), wanted);

    let asked = daemon(&bed.socket(), "{\"error\":\"not yet: who is it\"}\n", Duration::ZERO);
    let result = bed.call("ADD", json!({}));
    assert_eq!(result["code"], 11, "{result}");
    assert_eq!(result["msg"], "the policies of a/web are not in force: not yet: who is it");
    asked.join().unwrap();

    let asked = daemon(&bed.socket(), "{\"ok\":null}\n", Duration::from_millis(100));
    assert_eq!(bed.call("DEL", json!({})), Value::Null);
    assert_eq!(asked.join().unwrap(), json!({"ask": "detach", "container": "c1", "link": "veth1"}));
}

#[test]
fn without_a_daemon_nothing_starts_and_all_can_go() {
    let Some(bed) = Bed::new("policy without a daemon") else { return };
    assert_eq!(bed.call("DEL", json!({})), Value::Null);
    let away =
        |seconds: &str| format!("the net daemon at {} has not run{seconds}: its log says why", bed.socket().display());
    let status = bed.call("STATUS", json!({"prevResult": null}));
    assert_eq!((&status["code"], &status["msg"]), (&json!(50), &json!(away(""))));
    // One that was killed left its socket and its last sign of life, and another comes.
    drop(UnixListener::bind(bed.socket()).unwrap());
    let alive = bed.alive(Duration::from_secs(20));
    assert_eq!(bed.call("STATUS", json!({"prevResult": null})), Value::Null);
    bed.alive(Duration::from_secs(40));
    let status = bed.call("STATUS", json!({"prevResult": null}));
    assert_eq!((&status["code"], &status["msg"]), (&json!(50), &json!(away(" for 40 s"))));
    // A daemon that has just begun is waited for; one that answers but never keeps the rules is none.
    std::fs::remove_file(bed.socket()).unwrap();
    let _young = UnixListener::bind(bed.socket()).unwrap();
    let status = bed.call("STATUS", json!({"prevResult": null}));
    assert!(status["msg"].as_str().unwrap().contains("runs, but has not kept the rules of policies for 4"), "{status}");
    let beating = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        File::create(alive).unwrap().set_modified(SystemTime::now()).unwrap();
    });
    assert_eq!(bed.call("STATUS", json!({"prevResult": null})), Value::Null);
    beating.join().unwrap();
    let result = bed.call("ADD", json!({"prevResult": null}));
    assert_eq!(result["code"], 7, "{result}");
}
