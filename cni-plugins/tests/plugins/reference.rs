//! Each configuration of a table is given to the reference's plugins (containernetworking/plugins 1.9.1) and to ours,
//! each in namespaces of its own. Result, kernel and what packets meet are compared after each command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::cases::{self, Case};
use super::side::Side;
use super::state;

/// The folder of the reference's plugins, which hack/peers builds where it can.
pub fn plugins() -> Option<PathBuf> {
    let folder = std::env::var_os("BOSUN_PEERS").map_or(PathBuf::from("/var/cache/bosun/peers"), PathBuf::from);
    let folder = folder.join("cni");
    let builder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/peers");
    if Command::new("go").arg("version").output().is_ok() {
        let built = Command::new(builder).arg("cni").output().unwrap();
        assert!(built.status.success(), "hack/peers cni: {}", String::from_utf8_lossy(&built.stderr));
    } else if !folder.join("sbr").exists() {
        eprintln!("SKIPPED the comparison with the reference plugins: go is not on PATH, and hack/peers needs it");
        return None;
    }
    Some(folder)
}

#[test]
fn results_kernel_and_packets_are_those_of_the_reference() {
    let Some(peers) = plugins() else { return };
    // Names of cases, for one who looks at a few.
    let only = std::env::var("CASES").unwrap_or_default();
    let mut differing = Vec::new();
    let mut count = 0;
    for case in cases::all().iter().filter(|case| only.is_empty() || only.split(',').any(|name| name == case.name)) {
        for version in case.versions {
            let Some((ours, theirs)) = run_both(case, version, &peers) else { return };
            count += 1;
            let differences = compare(case, &ours, &theirs);
            if !differences.is_empty() {
                differing.push(format!("{} {version}:\n{}", case.name, differences.join("\n")));
            }
        }
    }
    println!("{count} configurations compared");
    assert!(differing.is_empty(), "{} of {count} differ\n{}", differing.len(), differing.join("\n"));
}

/// Kinds of links and bridges that a kernel may lack, as that of a small machine does: both sides then refuse them
/// above. A kernel in user mode has them.
#[test]
fn what_a_kernel_may_lack_is_compared_in_user_mode() {
    let Some(peers) = plugins() else { return };
    let hack = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack");
    let installed = Command::new(hack.join("packages")).arg("uml").output().unwrap();
    if !installed.status.success() {
        let said = String::from_utf8_lossy(&installed.stderr);
        eprintln!("SKIPPED the comparison in user mode: {}", said.trim());
        return;
    }
    let output = Command::new(hack.join("uml"))
        .arg(std::env::current_exe().unwrap())
        .args(["results_kernel_and_packets_are_those_of_the_reference", "--nocapture"])
        .env("BOSUN_PEERS", peers.parent().unwrap())
        .env("CASES", "ipvlan,ipvlan-l3,vlan,dummy,bridge-vlan,bridge-vlan-gateway,bridge-trunk")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("7 configurations compared"), "{said}");
    for kind in ["ipvlan", "vlan", "dummy", "bridge"] {
        assert!(!said.contains(&format!("{kind} says {{\"cniVersion\":\"1.0.0\"")), "{said}");
    }
}

/// What one side showed in each step.
type Story = Vec<(&'static str, Vec<String>)>;

fn run_both(case: &Case, version: &str, peers: &Path) -> Option<(Story, Story)> {
    let ours = Side::new(None, case.args, "")?;
    let theirs = Side::new(Some(peers), case.args, "")?;
    std::thread::scope(|scope| {
        let ours = scope.spawn(|| run(case, version, &ours));
        let theirs = scope.spawn(|| run(case, version, &theirs));
        Some((ours.join().unwrap(), theirs.join().unwrap()))
    })
}

fn run(case: &Case, version: &str, side: &Side) -> Story {
    let folder = side.bed.folder.join("ipam").display().to_string();
    let pod = side.pod.path().display().to_string();
    super::side::sh(&side.bed.node, &case.before.replace("POD", &pod));
    let chain = case.configured(version, &folder);
    let mut story = Vec::new();
    let (result, added) = match side.add(&chain) {
        Ok(result) => (result.clone(), lines_of(side, &result)),
        // Words differ; that it is refused, and by which plugin, does not.
        Err((plugin, error)) => {
            println!("{} {version} {}: {plugin} says {error}", case.name, side.bed.plugins.display());
            (Value::Null, vec![format!("{plugin} fails")])
        }
    };
    story.push(("ADD answers", added));
    // Where ADD fails ours leaves nothing behind, theirs leaves what DEL then has to remove.
    if !result.is_null() {
        settle();
        story.push(("after ADD", state::of(side)));
        story.push(("a packet meets", (case.probe)(side)));
        if version != "0.3.0" && version != "0.3.1" {
            story.push(("CHECK", failures(case, side, "CHECK", &chain, &result)));
        }
    }
    story.push(("DEL", failures(case, side, "DEL", &chain, &result)));
    settle();
    story.push(("after DEL", state::of(side)));
    // A runtime may call again.
    story.push(("DEL again", failures(case, side, "DEL", &chain, &result)));
    story
}

/// The kernel tells some things (carrier, forwarding state) a moment later.
fn settle() {
    std::thread::sleep(Duration::from_millis(120));
}

fn failures(case: &Case, side: &Side, command: &str, chain: &[Value], result: &Value) -> Vec<String> {
    let failed = side.each(command, chain, result);
    for (plugin, error) in &failed {
        println!("{} {command} {}: {plugin} says {error}", case.name, side.bed.plugins.display());
    }
    failed.into_iter().map(|(plugin, _)| format!("{plugin} fails")).collect()
}

/// A result as lines, each with its place. An interface's MTU, which came with 1.1.0, the reference never tells; an
/// empty dns it writes in some versions.
fn lines_of(side: &Side, result: &Value) -> Vec<String> {
    fn walk(place: &str, value: &Value, lines: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(&format!("{place}.{key}"), value, lines)),
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(at, value)| walk(&format!("{place}[{at}]"), value, lines))
            }
            other => lines.push(format!("{place} {}", state::text(other))),
        }
    }
    let mut lines = Vec::new();
    walk("result", result, &mut lines);
    lines.retain(|line| !(line.contains(".interfaces[") && line.contains("].mtu")));
    let folder = side.bed.folder.display().to_string();
    lines.iter_mut().for_each(|line| *line = line.replace(&folder, ""));
    lines.sort();
    lines
}

fn compare(case: &Case, ours: &Story, theirs: &Story) -> Vec<String> {
    let mut differences = Vec::new();
    let steps: Vec<&str> = ours.iter().chain(theirs).map(|(step, _)| *step).collect();
    let steps: std::collections::BTreeSet<&str> = steps.into_iter().collect();
    let told = |story: &Story, step: &str| {
        story.iter().find(|(other, _)| *other == step).map(|(_, lines)| lines.clone()).unwrap_or_default()
    };
    for step in steps {
        let (mine, yours) = (told(ours, step), told(theirs, step));
        let only = |these: &[String], those: &[String], whose: &str| {
            let mut left = those.to_vec();
            let mut lines = Vec::new();
            for line in these {
                match left.iter().position(|other| other == line) {
                    Some(at) => drop(left.remove(at)),
                    None => lines.push(format!("  {step}, {whose} only: {line}")),
                }
            }
            lines
        };
        differences.extend(only(&mine, &yours, "ours"));
        differences.extend(only(&yours, &mine, "theirs"));
    }
    // DEL has to get rid of whatever an ADD that failed may have left; theirs refuses what ADD refused.
    let mut tolerated = vec!["DEL, theirs only: ", "DEL again, theirs only: "];
    // It asks an IPAM plugin, of a network that has none.
    if case.chain.iter().any(|config| config["type"] == "bridge" && config["ipam"].is_null()) {
        tolerated.push("CHECK, theirs only: bridge fails");
    }
    tolerated.extend(case.unlike.iter().map(|(text, _)| *text));
    differences.retain(|line| !tolerated.iter().any(|text| line.contains(text)));
    differences
}
