//! Which namespaces a sandbox has of its own, decided from its config; and a connection into its network.
//!
//! They live without a process (`kernel::namespaces`), so most pods need no task of their own. Source: CRI's
//! NamespaceOption and UserNamespace; sysctls: namespaces(7), ipc_namespaces(7), the kernel's
//! Documentation/admin-guide/sysctl.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use cri::v1::{IdMapping, NamespaceMode, NamespaceOption, PodSandboxConfig, UserNamespace};
use kernel::namespaces::{IdMap, IdMaps};
use kernel::netns::Netns;
use tokio::net::TcpStream;

use kernel::namespaces::Request;

/// How long a port in a pod may take to answer a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// What makes no sense in a sandbox's config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("sysctl {0:?} is not the name of a kernel parameter")]
    Name(String),
    #[error("sysctl {0:?} has no namespace of the pod's own: it would change the whole node")]
    NotOwn(String),
    #[error("user namespace mode {0:?} is not served: POD and NODE are")]
    UserMode(NamespaceMode),
    #[error("the pod's user namespace has no {0} mapping for its root")]
    NoRoot(&'static str),
}

/// What a pod gets without asking, as containerd 2 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Every user in the pod may listen on every port.
    pub unprivileged_ports: bool,
    /// Every group in the pod may send ICMP echo.
    pub unprivileged_icmp: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { unprivileged_ports: true, unprivileged_icmp: true }
    }
}

/// The namespaces for a sandbox.
///
/// # Errors
/// Where a sysctl would reach beyond the pod, or the user namespace is not one that can be made.
pub fn plan(config: &PodSandboxConfig, defaults: Defaults) -> Result<Request, PlanError> {
    let linux = config.linux.clone().unwrap_or_default();
    let options = linux.security_context.and_then(|context| context.namespace_options).unwrap_or_default();
    let user = options.userns_options.as_ref().map(user).transpose()?.flatten();
    let net = is_own(options.network());
    let mut request = Request {
        net,
        ipc: is_own(options.ipc()),
        // A pod on the node's network has the node's name too.
        uts: net,
        hostname: Some(config.hostname.clone()).filter(|name| net && !name.is_empty()),
        user,
        sysctls: Vec::new(),
    };
    request.sysctls = sysctls(&linux.sysctls, &request, defaults)?;
    Ok(request)
}

/// Whether the pod's containers share a PID namespace, for which alone a pod needs a task.
pub fn shares_pid(options: &NamespaceOption) -> bool {
    options.pid() == NamespaceMode::Pod
}

fn is_own(mode: NamespaceMode) -> bool {
    mode != NamespaceMode::Node
}

/// The ids of the pod's user namespace; `None` where it has the machine's.
///
/// # Errors
/// Where the mode is neither, or the namespace would have no root.
pub fn user(options: &UserNamespace) -> Result<Option<IdMaps>, PlanError> {
    let maps = match options.mode() {
        NamespaceMode::Node => return Ok(None),
        NamespaceMode::Pod => IdMaps { users: maps(&options.uids), groups: maps(&options.gids) },
        other => return Err(PlanError::UserMode(other)),
    };
    for (what, ranges) in [("user", &maps.users), ("group", &maps.groups)] {
        if !ranges.iter().any(|range| range.inside == 0 && range.length > 0) {
            return Err(PlanError::NoRoot(what));
        }
    }
    Ok(Some(maps))
}

fn maps(mappings: &[IdMapping]) -> Vec<IdMap> {
    let one = |m: &IdMapping| IdMap { inside: m.container_id, outside: m.host_id, length: m.length };
    mappings.iter().map(one).collect()
}

const PORTS: &str = "net/ipv4/ip_unprivileged_port_start";
const PING: &str = "net/ipv4/ping_group_range";

/// The pod's own, sorted, and the defaults that it does not override.
fn sysctls(
    asked: &HashMap<String, String>,
    request: &Request,
    defaults: Defaults,
) -> Result<Vec<(String, String)>, PlanError> {
    let mut found = Vec::new();
    for (name, value) in asked {
        let path = path(name).ok_or_else(|| PlanError::Name(name.clone()))?;
        if !is_namespaced(&path, request) {
            return Err(PlanError::NotOwn(name.clone()));
        }
        found.push((path, value.clone()));
    }
    // In a user namespace the range would have groups that are not mapped, which the kernel refuses.
    let wanted = [
        (defaults.unprivileged_ports, PORTS, "0"),
        (defaults.unprivileged_icmp && request.user.is_none(), PING, "0 2147483647"),
    ];
    for (wanted, name, value) in wanted {
        if wanted && request.net && !found.iter().any(|(path, _)| path == name) {
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    found.sort();
    Ok(found)
}

/// `net.ipv4.ip_forward` or `net/ipv4/ip_forward`: the first separator tells, the other one then is part of a name
/// (sysctl(8)). `None` for what could lead out of /proc/sys.
fn path(name: &str) -> Option<String> {
    let dotted = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('.'));
    let swap = |c: char| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if dotted { name.chars().map(swap).collect() } else { name.to_owned() };
    let mut parts = path.split('/');
    let fits = parts.all(|part| !part.is_empty() && part != "." && part != "..") && path.contains('/');
    fits.then_some(path)
}

const IPC: [&str; 11] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/msg_next_id",
    "kernel/sem",
    "kernel/sem_next_id",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_next_id",
    "kernel/shm_rmid_forced",
];

fn is_namespaced(path: &str, request: &Request) -> bool {
    (request.net && path.starts_with("net/"))
        || (request.ipc && (path.starts_with("fs/mqueue/") || IPC.contains(&path)))
        || (request.uts && path == "kernel/domainname")
}

/// A connection to a port on the loopback of a pod, or of the node for a pod on its network.
///
/// # Errors
/// Where the namespace is gone, or nobody listens on 127.0.0.1 nor on ::1.
pub async fn dial(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    let Some(path) = netns else { return TcpStream::connect(&addresses[..]).await };
    let path = path.to_owned();
    let connect = move || Netns::open(path).map_err(io::Error::other)?.connect(&addresses, CONNECT);
    let stream = tokio::task::spawn_blocking(connect).await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use cri::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    use super::*;

    fn config(options: NamespaceOption, sysctls: &[(&str, &str)]) -> PodSandboxConfig {
        PodSandboxConfig {
            hostname: "web-0".into(),
            linux: Some(LinuxPodSandboxConfig {
                sysctls: sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    const BARE: Defaults = Defaults { unprivileged_ports: false, unprivileged_icmp: false };
    const NODE: i32 = NamespaceMode::Node as i32;

    #[test]
    fn a_pod_has_its_own_unless_it_asks_for_the_nodes() {
        let own = plan(&config(NamespaceOption::default(), &[]), Defaults::default()).unwrap();
        let expected = Request {
            net: true,
            ipc: true,
            uts: true,
            user: None,
            hostname: Some("web-0".into()),
            sysctls: vec![(PORTS.into(), "0".into()), (PING.into(), "0 2147483647".into())],
        };
        assert_eq!(own, expected);
        let nodes = NamespaceOption { network: NODE, ipc: NODE, pid: NODE, ..Default::default() };
        assert_eq!(plan(&config(nodes.clone(), &[]), Defaults::default()).unwrap(), Request::default());
        assert!(!shares_pid(&nodes) && shares_pid(&NamespaceOption::default()));
        assert_eq!(plan(&PodSandboxConfig::default(), BARE).unwrap().hostname, None);
    }

    #[test]
    fn a_user_namespace_needs_its_root() {
        let map = |id| vec![IdMapping { container_id: id, host_id: 100_000, length: 65_536 }];
        let with = |mode: NamespaceMode, uids, gids| {
            let userns_options = Some(UserNamespace { mode: mode as i32, uids, gids });
            plan(&config(NamespaceOption { userns_options, ..Default::default() }, &[]), Defaults::default())
        };
        let made = with(NamespaceMode::Pod, map(0), map(0)).unwrap();
        let range = vec![IdMap { inside: 0, outside: 100_000, length: 65_536 }];
        assert_eq!(made.user, Some(IdMaps { users: range.clone(), groups: range }));
        assert_eq!(made.sysctls, [(PORTS.to_owned(), "0".to_owned())]);
        assert_eq!(with(NamespaceMode::Pod, map(0), map(1)), Err(PlanError::NoRoot("group")));
        assert_eq!(with(NamespaceMode::Node, map(0), map(0)).unwrap().user, None);
        assert_eq!(with(NamespaceMode::Target, map(0), map(0)), Err(PlanError::UserMode(NamespaceMode::Target)));
    }

    #[test]
    fn sysctls_stay_within_the_pod() {
        let asked = [
            ("kernel.shm_rmid_forced", "1"),
            ("net/ipv4/conf/eth0.1/forwarding", "1"),
            (&PORTS.replace('/', "."), "80"),
        ];
        let made = plan(&config(NamespaceOption::default(), &asked), Defaults::default()).unwrap();
        let names: Vec<_> = made.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            names,
            [
                ("kernel/shm_rmid_forced", "1"),
                ("net/ipv4/conf/eth0.1/forwarding", "1"),
                (PORTS, "80"),
                (PING, "0 2147483647")
            ]
        );
        let refused =
            |options: &NamespaceOption, name: &str| plan(&config(options.clone(), &[(name, "1")]), BARE).unwrap_err();
        let own = NamespaceOption::default();
        assert_eq!(refused(&own, "vm.swappiness"), PlanError::NotOwn("vm.swappiness".into()));
        assert_eq!(refused(&own, "kernel.hostname"), PlanError::NotOwn("kernel.hostname".into()));
        let nodes = NamespaceOption { network: NODE, ipc: NODE, ..Default::default() };
        assert_eq!(refused(&nodes, "net.core.somaxconn"), PlanError::NotOwn("net.core.somaxconn".into()));
        assert_eq!(refused(&nodes, "kernel.sem"), PlanError::NotOwn("kernel.sem".into()));
        for name in ["net/../vm/swappiness", "net..x", "/net/x", "net", "", "net/ipv4/"] {
            assert_eq!(refused(&own, name), PlanError::Name(name.into()));
        }
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
    }

    #[tokio::test]
    async fn dialling_reaches_the_node_and_says_why_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        dial(None, port).await.unwrap();
        drop(listener);
        assert_eq!(dial(None, port).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let error = dial(Some(Path::new("/nonexistent/ns")), port).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot open network namespace /nonexistent/ns"), "{error}");
    }
}
