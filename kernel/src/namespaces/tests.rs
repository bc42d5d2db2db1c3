use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::netns::Netns;

/// A folder below a mount namespace of the test's thread, so that no mount is seen outside.
fn in_a_folder(what: &str, work: impl FnOnce(&Path) + Send + 'static) {
    if !crate::test::root(what) {
        return;
    }
    let folder = std::env::temp_dir().join(format!("namespaces-{what}-{}", std::process::id()));
    std::thread::spawn(move || {
        // Threads that `pin` starts inherit it.
        mount::own_namespace().unwrap();
        work(&folder.join("ns"));
        std::fs::remove_dir(&folder).unwrap();
    })
    .join()
    .unwrap();
}

fn inode(path: impl AsRef<Path>) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

/// What a program says that runs in the namespaces of `folder`.
fn inside(pinned: &Pinned, script: &str) -> String {
    let enter = [("net", &pinned.net), ("ipc", &pinned.ipc), ("uts", &pinned.uts), ("user", &pinned.user)];
    let mut arguments: Vec<String> =
        enter.iter().filter_map(|(name, path)| Some(format!("--{name}={}", path.as_ref()?.display()))).collect();
    arguments.extend(["sh", "-c", script].map(String::from));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    crate::process::run("nsenter", &arguments).unwrap().trim().to_owned()
}

fn everything() -> Request {
    Request {
        net: true,
        ipc: true,
        uts: true,
        user: None,
        hostname: Some("web-0".into()),
        sysctls: vec![
            ("net/ipv4/ip_unprivileged_port_start".into(), "80".into()),
            ("kernel/shm_rmid_forced".into(), "1".into()),
        ],
    }
}

#[test]
fn namespaces_live_without_a_process_until_they_are_let_go() {
    in_a_folder("pin", |folder| {
        let before = inode("/proc/thread-self/ns/net");
        let made = pin(folder, &everything()).unwrap();
        assert_eq!(made, pinned(folder));
        assert_eq!(made.user, None);
        for (path, own) in [(&made.net, "net"), (&made.ipc, "ipc"), (&made.uts, "uts")] {
            assert_ne!(inode(path.as_ref().unwrap()), inode(format!("/proc/thread-self/ns/{own}")));
        }
        let said = inside(
            &made,
            "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
        );
        assert_eq!(said, "web-0\n80\n1");
        let up = Netns::open(made.net.as_ref().unwrap()).unwrap().run(|| {
            let lo = netlink::Kernel::open().unwrap().link("lo").unwrap().unwrap();
            lo.up
        });
        assert!(up.unwrap());
        assert_eq!(inode("/proc/thread-self/ns/net"), before, "the caller stays");

        let first = inode(made.net.as_ref().unwrap());
        let again = pin(folder, &everything()).unwrap();
        assert_ne!(inode(again.net.as_ref().unwrap()), first, "what was there is replaced");
        unpin(folder).unwrap();
        unpin(folder).unwrap();
        assert!(!folder.exists());
        assert_eq!(pinned(folder), Pinned::default());
        assert!(!mount::mounts().unwrap().iter().any(|m| m.mount_point.starts_with(folder)));
    });
}

#[test]
fn half_made_state_is_cleaned_and_a_failure_leaves_nothing() {
    in_a_folder("half", |folder| {
        // As a maker leaves it that was killed between a file and its mount, after another had mounted twice.
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("net"), "").unwrap();
        std::fs::write(folder.join("uts"), "").unwrap();
        for _ in 0..2 {
            mount::bind(Path::new("/proc/thread-self/ns/uts"), &folder.join("uts"), false).unwrap();
        }
        assert_eq!(pinned(folder).net, None);
        unpin(folder).unwrap();
        assert!(!folder.exists());

        let mut bad = everything();
        bad.sysctls.push(("net/ipv4/no_such_thing".into(), "1".into()));
        let error = pin(folder, &bad).unwrap_err();
        assert!(error.to_string().starts_with("cannot read sysctl net/ipv4/no_such_thing"), "{error}");
        assert!(!folder.exists());
        let long = Request { hostname: Some("x".repeat(65)), ..everything() };
        assert!(pin(folder, &long).unwrap_err().to_string().starts_with("cannot set the hostname to xxx"));
    });
}

#[test]
fn a_user_namespace_owns_the_others_and_its_root_is_mapped() {
    in_a_folder("user", |folder| {
        let map = vec![IdMap { inside: 0, outside: 100_000, length: 65_536 }];
        let request = Request { user: Some(IdMaps { users: map.clone(), groups: map }), ..everything() };
        let made = pin(folder, &request).unwrap();
        assert!(made.user.is_some());
        let said = inside(&made, "id -u; awk '{print $1, $2, $3}' /proc/self/uid_map /proc/self/gid_map; hostname");
        assert_eq!(said, "0\n0 100000 65536\n0 100000 65536\nweb-0");
        // Only the owner's root may do this.
        assert_eq!(inside(&made, "ip link add type veth && echo owned"), "owned");
        let elsewhere = IdMaps { users: vec![IdMap { inside: 1, outside: 100_000, length: 5 }], groups: Vec::new() };
        let request = Request { user: Some(elsewhere), ..everything() };
        let error = pin(folder, &request).unwrap_err().to_string();
        assert!(error.starts_with("cannot become root of a user namespace and make others in /proc/"), "{error}");
        assert!(!folder.exists());
    });
}

#[test]
fn nothing_asked_for_is_nothing_made() {
    in_a_folder("none", |folder| {
        assert_eq!(pin(folder, &Request::default()).unwrap(), Pinned::default());
        unpin(folder).unwrap();
        assert!(!is_namespace(&PathBuf::from("/proc/self/status")));
    });
}

#[test]
fn many_are_made_at_once_with_and_without_users() {
    in_a_folder("many", |folder| {
        let map = vec![IdMap { inside: 0, outside: 100_000, length: 65_536 }];
        let users = Request { user: Some(IdMaps { users: map.clone(), groups: map }), ..everything() };
        std::thread::scope(|scope| {
            for number in 0..16 {
                let request = if number % 2 == 0 { everything() } else { users.clone() };
                scope.spawn(move || {
                    let own = folder.join(number.to_string());
                    let made = pin(&own, &request).unwrap();
                    assert_eq!((made.net.is_some(), made.user.is_some()), (true, number % 2 == 1));
                    unpin(&own).unwrap();
                });
            }
        });
        std::fs::remove_dir(folder).unwrap();
    });
}
