//! GC and STATUS, as the specification has them; the reference's plugins know no GC.

use std::process::Command;

use serde_json::{Value, json};

use super::cases;
use super::side::Side;

/// What has an owner: links on the node, nftables elements, iptables rules, reservations.
fn owned(side: &Side) -> Vec<String> {
    let ask = |program: &str, words: &[&str]| {
        let output = side.bed.node.run(|| Command::new(program).args(words).output().unwrap()).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let texts = [
        ask("ip", &["link", "show"]),
        ask("nft", &["list", "ruleset"]).replace(',', "\n"),
        ask("iptables-save", &[]),
        ask("ip6tables-save", &[]),
    ];
    let mut found: Vec<String> =
        texts.iter().flat_map(|text| text.lines()).filter(|line| line.contains("@pods")).map(str::to_owned).collect();
    let folder = side.bed.folder.join("ipam/pods");
    for folder in [folder.clone(), folder.join("held")] {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        found.extend(names.filter(|name| name.contains("eth0:") || name.parse::<std::net::IpAddr>().is_ok()));
    }
    found.sort();
    found
}

#[test]
fn only_what_is_nobodys_is_collected() {
    let mut count = 0;
    // One of them speaks of the container's namespace.
    for case in cases::all().iter().filter(|case| !case.before.contains("POD")) {
        let Some(side) = Side::new(None, case.args, case.before) else { return };
        let chain = case.configured("1.1.0", &side.bed.folder.join("ipam").display().to_string());
        let each = |command: &str, valid: Value| {
            for config in &chain {
                let mut config = config.clone();
                config["cni.dev/valid-attachments"] = valid.clone();
                let (error, ok) = side.call(command, &config);
                assert!(ok, "{} {command} {}: {error}", case.name, config["type"]);
            }
        };
        // Some are refused, on purpose or by this kernel.
        if side.add(&chain).is_err() {
            continue;
        }
        count += 1;
        each("STATUS", json!([]));
        let own = json!({"containerID": "pod", "ifname": "eth0"});
        let before = owned(&side);
        each("GC", json!([own, {"containerID": "other", "ifname": "eth0"}]));
        assert_eq!(owned(&side), before, "{}: GC took what is in use", case.name);
        each("GC", json!([{"containerID": "other", "ifname": "eth0"}]));
        assert_eq!(owned(&side), Vec::<String>::new(), "{}: GC left what is nobody's", case.name);
        assert!(side.each("DEL", &chain, &Value::Null).is_empty(), "{}: DEL after GC", case.name);
    }
    assert!(count > 50, "{count} configurations collected");
}
