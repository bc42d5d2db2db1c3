//! One side of a comparison: namespaces of a node, of a host beyond it and of a container, and a folder of plugins.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kernel::netlink::{Kernel, Network, VethEnd};
use kernel::netns::Netns;
use serde_json::{Value, json};

use super::{Bed, ask, serve};

/// The node has `outside` (192.0.2.1, 2001:db8::1), where the far host is `.9` and `::9`; `up0`, by which its default
/// route goes; and `dev0`, which nothing uses.
pub struct Side {
    pub bed: Bed,
    pub pod: Netns,
    pub far: Netns,
    args: &'static str,
}

const NODE: &str = "
sysctl -qw net.ipv6.conf.default.accept_dad=0
ip address add 2001:db8::1/64 dev outside nodad
ip link set far0 master outside up
ip link set up0 up
ip link set dev0 address 0a:58:00:00:00:d0
ip address add 198.51.100.2/24 dev up0
ip route add default via 198.51.100.1
";

const FAR: &str = "
ip link set lo up
ip address add 192.0.2.9/24 dev eth0
ip address add 2001:db8::9/64 dev eth0 nodad
ip address add 198.51.100.1/24 dev up1
ip link set eth0 up
ip link set up1 up
ip route add 10.88.0.0/16 via 192.0.2.1
ip route add fd00:88::/64 via 2001:db8::1
";

impl Side {
    pub fn new(plugins: Option<&Path>, args: &'static str, before: &str) -> Option<Self> {
        let bed = Bed::new("reference", plugins)?;
        let (pod, far) = (bed.pod("pod"), bed.pod("far"));
        bed.node
            .run(|| {
                let mut network = Kernel::open().unwrap();
                for (near, other) in [("far0", "eth0"), ("up0", "up1"), ("dev0", "dev1")] {
                    let end = |name| VethEnd { name, ..VethEnd::default() };
                    network.add_veth(end(near), end(other), Some(far.as_fd()), None).unwrap();
                }
            })
            .unwrap();
        let side = Self { bed, pod, far, args };
        sh(&side.bed.node, NODE);
        sh(&side.far, FAR);
        sh(&side.bed.node, before);
        serve(&side.far, 80, "far");
        // Until the links' own addresses are past duplicate detection nothing of IPv6 goes by them.
        let deadline = Instant::now() + Duration::from_secs(10);
        while ask(&side.bed.node, "[2001:db8::9]:80").is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(side)
    }

    /// Calls one plugin for the container `pod`.
    pub fn call(&self, command: &str, config: &Value) -> (Value, bool) {
        self.call_for("pod", command, config)
    }

    pub fn call_for(&self, pod: &str, command: &str, config: &Value) -> (Value, bool) {
        let run = || self.bed.plugin_with(command, pod, config, self.args).wait_with_output().unwrap();
        let output = self.bed.node.run(run).unwrap();
        (serde_json::from_slice(&output.stdout).unwrap_or_default(), output.status.success())
    }

    /// ADD of a whole chain; what the last plugin answers, or which one failed.
    pub fn add(&self, chain: &[Value]) -> Result<Value, (String, Value)> {
        let mut previous = Value::Null;
        for config in chain {
            match self.call("ADD", &with(config, &previous)) {
                (result, true) => previous = result,
                (error, false) => return Err((config["type"].as_str().unwrap().to_owned(), error)),
            }
        }
        Ok(previous)
    }

    /// CHECK in the chain's order or DEL in the reverse one; the plugins that failed.
    pub fn each(&self, command: &str, chain: &[Value], result: &Value) -> Vec<(String, Value)> {
        let mut order: Vec<&Value> = chain.iter().collect();
        if command == "DEL" {
            order.reverse();
        }
        let called = order.iter().map(|config| (config, self.call(command, &with(config, result))));
        let failed = called.filter(|(_, (_, ok))| !ok);
        failed.map(|(config, (error, _))| (config["type"].as_str().unwrap().to_owned(), error)).collect()
    }
}

fn with(config: &Value, previous: &Value) -> Value {
    let mut config = config.clone();
    if !previous.is_null() {
        config["prevResult"] = json!(previous);
    }
    config
}

/// Runs lines of a shell inside a namespace.
pub fn sh(netns: &Netns, script: &str) -> String {
    let run = || Command::new("sh").arg("-ec").arg(script).output().unwrap();
    let output = netns.run(run).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
