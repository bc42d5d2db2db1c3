//! The verbs with plugins of the test's own, which are scripts: what each was called with is a line in a log.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;

/// A node's folders, with plugins `first` and `second`.
struct Bed {
    folder: tempfile::TempDir,
    network: Network,
}

/// Logs the command and what it depends on; fails or hangs when a file of that name says so; ADD gives an address.
const PLUGIN: &str = r#"#!/bin/sh
dir=$(dirname "$0")
name=$(basename "$0")
input=$(cat)
echo "$input" > "$dir/../$name.$CNI_COMMAND.json"
echo "$name $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME ${CNI_NETNS:--}" >> "$dir/../log"
if [ -e "$dir/../hang.$name.$CNI_COMMAND" ]; then sleep 60; fi
if [ -e "$dir/../fail.$name.$CNI_COMMAND" ]; then
    echo '{"cniVersion":"1.1.0","code":11,"msg":"not now"}'
    exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/x"}],'
    echo '"ips":[{"interface":0,"address":"10.0.0.2/24"}]}'
fi
"#;

impl Bed {
    fn new(change: impl FnOnce(&mut NetworkSettings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for dir in ["bin", "conf"] {
            std::fs::create_dir(at(dir)).unwrap();
        }
        for name in ["first", "second"] {
            // Not written by this process: a program that another test's fork still holds open for writing cannot be
            // run.
            std::fs::write(at("plugin"), PLUGIN).unwrap();
            let copy =
                ["-m", "755", at("plugin").to_str().unwrap(), at("bin").join(name).to_str().unwrap()].map(String::from);
            assert!(std::process::Command::new("install").args(copy).status().unwrap().success());
        }
        let mut settings = NetworkSettings {
            conf_dir: at("conf"),
            bin_dirs: vec![at("none"), at("bin")],
            cache_dir: at("cache"),
            netns_dir: at("state"),
            timeout: Duration::from_secs(20),
            ..NetworkSettings::default()
        };
        change(&mut settings);
        let bed = Self { network: Network::new(settings), folder };
        bed.configure("1.1.0");
        bed
    }

    fn configure(&self, version: &str) {
        let list = json!({"cniVersion": version, "name": "pods", "plugins": [
            {"type": "first", "own": 1}, {"type": "second", "capabilities": {"mac": true}},
        ]});
        std::fs::write(self.path("conf/10.conflist"), list.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mark(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    fn clear(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// What was called since the last look.
    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("log"));
        text.lines().map(str::to_owned).collect()
    }

    fn input(&self, call: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(&format!("{call}.json"))).unwrap()).unwrap()
    }

    fn cached(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("cache/results")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn pod(id: &str, netns: &Path) -> Attachment {
    Attachment { id: id.into(), netns: netns.into(), mac: "02:00:00:00:00:01".into(), ..Attachment::default() }
}

/// A namespace that lives, for calls that look.
fn living() -> PathBuf {
    "/proc/self/ns/net".into()
}

#[tokio::test]
async fn a_pod_is_attached_checked_and_detached_by_what_was_cached() {
    let bed = Bed::new(|_| {});
    let pod = pod("abc", &living());
    let outcome = bed.network.add(&pod).await.unwrap();
    assert_eq!(outcome.ips, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    let ns = "/proc/self/ns/net";
    assert_eq!(bed.log(), [format!("first ADD abc eth0 {ns}"), format!("second ADD abc eth0 {ns}")]);
    let second = bed.input("second.ADD");
    assert_eq!(second["runtimeConfig"], json!({"mac": "02:00:00:00:00:01"}));
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
    assert_eq!(bed.input("first.ADD"), json!({"type": "first", "own": 1, "cniVersion": "1.1.0", "name": "pods"}));
    assert_eq!(bed.cached(), ["pods-abc-eth0"]);

    bed.network.check(&pod).await.unwrap();
    assert_eq!(bed.log().len(), 2);
    assert_eq!(bed.input("first.CHECK")["prevResult"]["ips"][0]["address"], "10.0.0.2/24");

    // Another process, and the folder has changed meanwhile.
    std::fs::write(bed.path("conf/10.conflist"), "{}").unwrap();
    let again = Network::new(bed.network.shared.verbs.settings().clone());
    again.del(&pod).await.unwrap();
    assert_eq!(bed.log(), [format!("second DEL abc eth0 {ns}"), format!("first DEL abc eth0 {ns}")]);
    let input = bed.input("second.DEL");
    assert_eq!((&input["name"], &input["runtimeConfig"]["mac"]), (&json!("pods"), &json!("02:00:00:00:00:01")));
    assert_eq!(input["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
    assert_eq!(bed.cached(), Vec::<String>::new());
    assert!(matches!(again.check(&pod).await, Err(CniError::Unknown { .. })));
}

#[tokio::test]
async fn a_failed_add_is_undone_and_forgotten() {
    let bed = Bed::new(|_| {});
    let pod = pod("abc", Path::new("/nonexistent"));
    bed.mark("fail.second.ADD");
    let error = bed.network.add(&pod).await.unwrap_err();
    assert_eq!(error.code(), Some(11));
    assert_eq!(error.to_string(), r#"network "pods": CNI plugin "second" failed ADD: not now"#);
    let calls = ["first ADD abc eth0 /nonexistent", "second ADD abc eth0 /nonexistent", "second DEL abc eth0 -"];
    assert_eq!(bed.log(), [&calls[..], &["first DEL abc eth0 -"]].concat());
    assert_eq!(bed.input("first.DEL").get("prevResult"), None);
    assert_eq!(bed.cached(), Vec::<String>::new());

    // Where undoing fails too, both are told, all plugins were asked, and the next DEL goes on from there.
    bed.mark("fail.second.DEL");
    let error = bed.network.add(&pod).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "network \"pods\": CNI plugin \"second\" failed ADD: not now; undoing what was done failed too: \
         network \"pods\": CNI plugin \"second\" failed DEL: not now"
    );
    assert_eq!(bed.log().last().unwrap(), "first DEL abc eth0 -");
    assert_eq!(bed.cached(), ["pods-abc-eth0"]);
    bed.clear("fail.second.DEL");
    bed.network.del(&pod).await.unwrap();
    assert_eq!(bed.cached(), Vec::<String>::new());
}

#[tokio::test]
async fn an_add_after_one_that_was_killed_begins_with_a_del() {
    let bed = Bed::new(|_| {});
    let pod = pod("abc", Path::new("/nonexistent"));
    bed.network.add(&pod).await.unwrap();
    bed.log();
    bed.network.add(&pod).await.unwrap();
    let verbs: Vec<String> =
        bed.log().iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(verbs, ["second DEL", "first DEL", "first ADD", "second ADD"]);
}

#[tokio::test]
async fn without_a_cache_del_uses_the_present_network_or_none() {
    let bed = Bed::new(|_| {});
    let pod = pod("abc", Path::new("/nonexistent"));
    bed.network.del(&pod).await.unwrap();
    assert_eq!(bed.log(), ["second DEL abc eth0 -", "first DEL abc eth0 -"]);
    bed.clear("conf/10.conflist");
    bed.network.del(&pod).await.unwrap();
    assert_eq!(bed.log(), Vec::<String>::new());
    assert!(matches!(bed.network.add(&pod).await, Err(CniError::Config(ConfigError::Absent(_)))));
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_and_the_pod_undone() {
    let bed = Bed::new(|settings| settings.timeout = Duration::from_millis(700));
    bed.mark("hang.second.ADD");
    let pod = pod("abc", Path::new("/nonexistent"));
    let begun = Instant::now();
    let error = bed.network.add(&pod).await.unwrap_err().to_string();
    assert!(error.contains("second: it did not end within 0.7 s and was killed"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(bed.log().len(), 4);
    assert_eq!(bed.cached(), Vec::<String>::new());
}

#[tokio::test]
async fn a_del_waits_for_an_add_that_nobody_waits_for() {
    let bed = Bed::new(|settings| settings.timeout = Duration::from_millis(1500));
    bed.mark("hang.second.ADD");
    let pod = pod("abc", Path::new("/nonexistent"));
    let network = bed.network.clone();
    let given_up = tokio::time::timeout(Duration::from_millis(300), network.add(&pod)).await;
    assert!(given_up.is_err());
    bed.network.del(&pod).await.unwrap();
    let verbs: Vec<String> = bed.log().iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(verbs, ["ADD", "ADD", "DEL", "DEL", "DEL", "DEL"], "undone by itself, then detached");
    assert_eq!(bed.cached(), Vec::<String>::new());
}

#[tokio::test]
async fn readiness_is_configuration_programs_and_status() {
    let bed = Bed::new(|_| {});
    bed.network.status().await.unwrap();
    assert_eq!(bed.log(), ["first STATUS   -", "second STATUS   -"]);
    bed.mark("fail.first.STATUS");
    bed.network.status().await.unwrap();
    assert_eq!(bed.log(), Vec::<String>::new(), "an answer counts for a while");
    let fresh = || Network::new(bed.network.shared.verbs.settings().clone());
    let error = fresh().status().await.unwrap_err();
    assert_eq!(error, r#"network "pods": CNI plugin "first" failed STATUS: not now"#);
    bed.configure("1.0.0");
    fresh().status().await.unwrap();
    std::fs::remove_file(bed.path("bin/second")).unwrap();
    let folder = bed.folder.path().display().to_string();
    assert_eq!(
        bed.network.ready().unwrap_err().replace(&folder, "DIR"),
        r#"network "pods" wants the CNI plugin "second", which is not in DIR/none or DIR/bin: install it there"#
    );
    assert_eq!(bed.network.config().unwrap()["name"], "pods");
}

#[tokio::test]
async fn gc_ends_our_dead_and_tells_plugins_only_on_a_network_of_our_own() {
    let bed = Bed::new(|settings| settings.exclusive = true);
    let ours = bed.path("state/x/ns/net");
    // Another process attached them: this one knows nothing of them.
    let before = Network::new(bed.network.shared.verbs.settings().clone());
    for (id, netns) in [("dead", &ours), ("kept", &ours), ("foreign", &PathBuf::from("/run/netns/cni-1"))] {
        before.add(&pod(id, netns)).await.unwrap();
    }
    bed.network.add(&pod("new", &ours)).await.unwrap();
    bed.log();
    bed.network.gc(BTreeSet::from(["kept".to_owned()])).await.unwrap();
    assert_eq!(bed.log(), ["second DEL dead eth0 -", "first DEL dead eth0 -", "first GC   -", "second GC   -"]);
    assert_eq!(bed.cached(), ["pods-foreign-eth0", "pods-kept-eth0", "pods-new-eth0"]);
    let input = bed.input("first.GC");
    let valid: Vec<&str> = input["cni.dev/valid-attachments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attachment| attachment["containerID"].as_str().unwrap())
        .collect();
    assert_eq!(valid, ["kept", "new", "foreign"]);
    assert_eq!(input["cni.dev/attachments"], input["cni.dev/valid-attachments"]);

    let mut settings = bed.network.shared.verbs.settings().clone();
    settings.exclusive = false;
    Network::new(settings).gc(BTreeSet::new()).await.unwrap();
    let verbs: BTreeSet<String> = bed.log().iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(verbs, BTreeSet::from(["DEL".to_owned()]));
    assert_eq!(bed.cached(), ["pods-foreign-eth0"]);
}

#[tokio::test]
async fn many_pods_are_attached_at_once() {
    let bed = Bed::new(|_| {});
    let pods = (0..20).map(|n| pod(&format!("p{n}"), &living()));
    let all = pods.map(|pod| {
        let network = bed.network.clone();
        tokio::spawn(async move { network.add(&pod).await })
    });
    for done in all.collect::<Vec<_>>() {
        done.await.unwrap().unwrap();
    }
    assert_eq!(bed.cached().len(), 20);
    assert!(locked(&bed.network.shared.turns).len() <= 20);
}
