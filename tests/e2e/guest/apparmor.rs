//! A story of pods on a kernel with AppArmor.

use cri::v1::security_profile::ProfileType;
use cri::v1::*;
use tests::bed::{output, text};

use super::node::{Configs, Node, configs};
use super::pods::FOREVER;

/// The one that containers have who ask for none.
const DEFAULT: &str = "cri-containerd.apparmor.d";
/// One of the user's.
const OWN: &str = "keeps";
/// What only that one forbids.
const WRITE: &str = "touch /kept && echo written || echo denied";

pub async fn profiles(node: &Node) {
    load(&format!("profile {OWN} flags=(attach_disconnected) {{\n file,\n signal,\n deny /kept w,\n}}\n"));
    let default = format!("{DEFAULT} (enforce)");
    for (handler, name, asked, expected) in [
        ("crun", "unsaid", None, default.clone()),
        ("crun", "default", Some((ProfileType::RuntimeDefault, "")), default.clone()),
        ("crun", "own", Some((ProfileType::Localhost, OWN)), format!("{OWN} (enforce)")),
        ("crun", "unconfined", Some((ProfileType::Unconfined, "")), "unconfined".to_owned()),
        ("runc", "default", Some((ProfileType::RuntimeDefault, "")), default),
    ] {
        let change = |configs: &mut Configs| {
            configs.handler = handler;
            ask(configs, asked);
        };
        let pod = node.run(&format!("{name}-{handler}"), FOREVER, change).await;
        let current = "cat /proc/1/attr/current /proc/self/attr/current";
        assert_eq!(node.exec(&pod, current).await, format!("{expected}\n{expected}"), "{name} with {handler}");
        let wrote = node.exec(&pod, WRITE).await;
        assert_eq!(wrote.contains("denied"), name == "own", "{name} with {handler}: {wrote}");
        node.remove(pod).await;
    }
    denied_by_default(node).await;
    let mut missing = configs("missing", FOREVER, node.driver);
    ask(&mut missing, Some((ProfileType::Localhost, "not-there")));
    let sandbox = node.sandbox(&missing).await.unwrap();
    let refused = node.container(&sandbox, &missing).await.unwrap_err();
    assert!(refused.message().contains("AppArmor profile: \"not-there\" is not loaded on this machine"), "{refused}");
    node.remove_sandbox(sandbox).await;
}

/// What the default profile keeps from root with every capability, where nothing else does: no path is read-only.
async fn denied_by_default(node: &Node) {
    let mighty = |configs: &mut Configs, profile: ProfileType| {
        ask(configs, Some((profile, "")));
        let security = configs.container.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.capabilities = Some(Capability { add_capabilities: vec!["ALL".into()], ..Capability::default() });
    };
    let tries = "echo changed > /proc/sys/kernel/hostname && echo renamed; \
                 mount -t tmpfs none /dev && echo mounted; \
                 echo x > /proc/self/comm && echo named; \
                 sleep 99 & kill $! && echo ended; true";
    let free = node.run("free", FOREVER, |configs| mighty(configs, ProfileType::Unconfined)).await;
    let confined = node.run("confined", FOREVER, |configs| mighty(configs, ProfileType::RuntimeDefault)).await;
    assert_eq!(node.exec(&free, tries).await, "renamed\nmounted\nnamed\nended");
    assert_eq!(node.exec(&confined, tries).await, "named\nended");
    node.remove(free).await;
    node.remove(confined).await;
}

fn ask(configs: &mut Configs, asked: Option<(ProfileType, &str)>) {
    let security = configs.container.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.apparmor = asked
        .map(|(kind, reference)| SecurityProfile { profile_type: kind.into(), localhost_ref: reference.to_owned() });
}

fn load(profile: &str) {
    std::fs::write("/run/profile", profile).unwrap();
    let done = output("apparmor_parser", &["-K", "-r", "/run/profile"]);
    assert!(done.status.success(), "apparmor_parser: {}", text(&done.stderr));
}
