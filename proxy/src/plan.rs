//! Where packets to a Service shall go, decided from the model alone. Backends only write down what stands here.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::{Endpoint, Facts, Protocol, Service, ServicePort, Slice};

/// What a client connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Front {
    Vip(IpAddr, u16),
    /// A port of the node's own addresses of one family.
    NodePort {
        v4: bool,
        port: u16,
    },
}

impl Front {
    /// The address, where it is not the node's.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Vip(ip, _) => Some(ip),
            Self::NodePort { .. } => None,
        }
    }

    pub fn is_ipv4(self) -> bool {
        match self {
            Self::Vip(ip, _) => ip.is_ipv4(),
            Self::NodePort { v4, .. } => v4,
        }
    }
}

/// Whose packets a rule is for; a rule for `Outside` goes before one for `Anyone`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum From {
    /// Neither a pod nor this node.
    Outside,
    Anyone,
}

/// Whose packets get the node's address, so that answers come back this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    Never,
    OutsidePods,
    Always,
}

/// Which of a service port's endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pool {
    /// Wherever they run, as far as hints let.
    Cluster,
    /// On this node.
    Local,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Balance {
        pool: Pool,
        endpoints: Arc<[SocketAddr]>,
        masquerade: Masquerade,
        /// A client keeps its endpoint for so many seconds after its last connection.
        affinity: Option<u32>,
    },
    Reject,
    Drop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub front: Front,
    pub protocol: Protocol,
    pub from: From,
    /// The same for all fronts of one service port and family.
    pub id: u64,
    pub action: Action,
}

/// A load balancer's address and port, and who alone may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub ip: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    pub allowed: Arc<[IpNetwork]>,
}

/// What a health check node port tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    /// Ready endpoints on this node, each address once.
    pub ready: usize,
}

/// Everything about one Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub rules: Vec<Rule>,
    /// Addresses of which every port without a rule is refused.
    pub cluster_ips: Vec<IpAddr>,
    /// Endpoints that may get back what they sent to the Service, unmasqueraded: those on this node, and where pods are
    /// spared the detour of external traffic all of them.
    pub hairpin: Vec<IpAddr>,
    pub guards: Vec<Guard>,
    pub health: Option<HealthCheck>,
    /// Of UDP ports, by [`Rule::id`]: every endpoint that still serves, whether or not new flows go there.
    pub serving: Vec<(u64, Arc<[SocketAddr]>)>,
}

impl Plan {
    /// Whether the policy Local leaves traffic from inside, and from outside, no endpoint on this node though there are
    /// some elsewhere.
    pub fn lacks(&self) -> [bool; 2] {
        [From::Anyone, From::Outside]
            .map(|from| self.rules.iter().any(|rule| rule.from == from && rule.action == Action::Drop))
    }
}

/// The endpoints of one service port that each kind of traffic may use.
#[derive(Debug, PartialEq, Eq)]
struct Pools {
    cluster: Arc<[SocketAddr]>,
    local: Arc<[SocketAddr]>,
}

/// Decides for one Service. `name` only makes its ids.
pub fn plan<'a>(name: &str, service: &Service, slices: impl Iterator<Item = &'a Slice> + Clone, facts: &Facts) -> Plan {
    let mut plan = Plan { cluster_ips: service.cluster_ips.clone(), ..Plan::default() };
    let (mut hairpin, mut ready) = (BTreeSet::new(), BTreeSet::new());
    for v4 in [true, false] {
        if !service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4) {
            continue;
        }
        let allowed = allowed(service, v4, facts);
        for port in &service.ports {
            let found = endpoints(slices.clone(), port, v4);
            let spared = service.external_local && facts.knows_pods(v4);
            hairpin.extend(found.iter().filter(|(e, _)| e.local || spared).map(|(endpoint, _)| endpoint.ip));
            ready.extend(found.iter().filter(|(e, _)| e.local && e.ready).map(|(endpoint, _)| endpoint.ip));
            let id = id(name, port, v4);
            let pools = pools(&found, facts);
            plan.rules.extend(rules(service, port, &pools, (facts, v4, id)));
            if port.protocol == Protocol::Udp {
                let serving = found.iter().filter(|(endpoint, _)| endpoint.serving).map(|(_, address)| *address);
                plan.serving.push((id, serving.collect()));
            }
            plan.guards.extend(allowed.iter().flat_map(|allowed| guards(service, port, v4, allowed)));
        }
    }
    plan.health = service.health_port.map(|port| HealthCheck { port, ready: ready.len() });
    plan.hairpin = hairpin.into_iter().collect();
    plan.rules.shrink_to_fit();
    plan
}

fn id(name: &str, port: &ServicePort, v4: bool) -> u64 {
    let text = format!("{name}:{}:{}:{v4}", port.name, port.protocol.name());
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Who may use load balancer addresses of the family; `None` is everyone.
fn allowed(service: &Service, v4: bool, facts: &Facts) -> Option<Arc<[IpNetwork]>> {
    let of_family = |ip: &IpAddr| ip.is_ipv4() == v4;
    let mut ranges: Vec<IpNetwork> =
        service.source_ranges.iter().copied().filter(|range| range.is_ipv4() == v4).collect();
    if ranges.is_empty() {
        return None;
    }
    // Where the address is also one of the node's own, what the node sends there comes from it.
    if facts.primary_ips.iter().any(|ip| ranges.iter().any(|range| range.contains(*ip))) {
        ranges.extend(service.load_balancer_ips.iter().copied().filter(of_family).map(IpNetwork::from));
    }
    Some(ranges.into())
}

fn guards(service: &Service, port: &ServicePort, v4: bool, allowed: &Arc<[IpNetwork]>) -> Vec<Guard> {
    let ips = service.load_balancer_ips.iter().filter(|ip| ip.is_ipv4() == v4);
    ips.map(|ip| Guard { ip: *ip, protocol: port.protocol, port: port.port, allowed: allowed.clone() }).collect()
}

/// The slices' endpoints that serve the port, each with its address.
fn endpoints<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    port: &ServicePort,
    v4: bool,
) -> Vec<(&'a Endpoint, SocketAddr)> {
    let mut found = Vec::new();
    for slice in slices {
        let matching = |p: &&crate::model::SlicePort| p.name == port.name && p.protocol == port.protocol;
        for target in slice.ports.iter().filter(matching) {
            let of_family = slice.endpoints.iter().filter(|endpoint| endpoint.ip.is_ipv4() == v4);
            found.extend(of_family.map(|endpoint| (endpoint, SocketAddr::new(endpoint.ip, target.port))));
        }
    }
    found
}

/// Ready endpoints; where there is none, those that still serve while they end.
fn pools(found: &[(&Endpoint, SocketAddr)], facts: &Facts) -> Pools {
    let usable = |fits: &dyn Fn(&Endpoint) -> bool| -> Arc<[SocketAddr]> {
        let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
            found.iter().filter(|(e, _)| fits(e) && wanted(e)).map(|(_, address)| *address).collect()
        };
        let mut chosen = pick(&|e| e.ready);
        if chosen.is_empty() {
            chosen = pick(&|e| e.serving && e.terminating);
        }
        chosen.into_iter().collect()
    };
    let ready: Vec<&Endpoint> = found.iter().map(|(e, _)| *e).filter(|e| e.ready).collect();
    Pools {
        cluster: match hinted(&ready, facts) {
            Some(Hint::Node) => usable(&|e| e.nodes.iter().flatten().any(|node| *node == facts.node)),
            Some(Hint::Zone) => usable(&|e| e.zones.iter().flatten().any(|zone| Some(zone) == facts.zone.as_ref())),
            None => usable(&|_| true),
        },
        local: usable(&|e| e.local),
    }
}

enum Hint {
    Node,
    Zone,
}

/// Hints count only where every ready endpoint has them and one is for us.
fn hinted(ready: &[&Endpoint], facts: &Facts) -> Option<Hint> {
    if ready.is_empty() {
        return None;
    }
    let all_nodes = ready.iter().all(|e| e.nodes.is_some());
    if all_nodes && ready.iter().any(|e| e.nodes.iter().flatten().any(|node| *node == facts.node)) {
        return Some(Hint::Node);
    }
    let zone = facts.zone.as_ref()?;
    let all_zones = ready.iter().all(|e| e.zones.is_some());
    let ours = ready.iter().any(|e| e.zones.iter().flatten().any(|name| name == zone));
    (all_zones && ours).then_some(Hint::Zone)
}

fn rules(service: &Service, port: &ServicePort, pools: &Pools, (facts, v4, id): (&Facts, bool, u64)) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut rule = |front, from, action| rules.push(Rule { front, protocol: port.protocol, from, id, action });
    let balance = |pool: Pool, masquerade| {
        let endpoints = match pool {
            Pool::Cluster => &pools.cluster,
            Pool::Local => &pools.local,
        };
        match endpoints.is_empty() {
            false => Action::Balance { pool, endpoints: endpoints.clone(), masquerade, affinity: service.affinity },
            // Endpoints elsewhere that the policy keeps this traffic from: silence, not a refusal.
            true if !pools.cluster.is_empty() => Action::Drop,
            true => Action::Reject,
        }
    };
    let of_family = |list: &[IpAddr]| list.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect::<Vec<_>>();

    let inside = if facts.masquerade_all { Masquerade::Always } else { Masquerade::OutsidePods };
    let internal = if service.internal_local { Pool::Local } else { Pool::Cluster };
    for ip in of_family(&service.cluster_ips) {
        rule(Front::Vip(ip, port.port), From::Anyone, balance(internal, inside));
    }
    // Where pods cannot be told from others, all that is not from outside is the node's own.
    let near = if facts.knows_pods(v4) { Masquerade::OutsidePods } else { Masquerade::Always };
    let vips = of_family(&service.external_ips).into_iter().map(|ip| Front::Vip(ip, port.port));
    let node_port = port.node_port.map(|port| Front::NodePort { v4, port });
    for front in vips.chain(node_port) {
        if service.external_local {
            // Pods and the node itself are spared the detour and use all endpoints.
            rule(front, From::Anyone, balance(Pool::Cluster, near));
            if !pools.cluster.is_empty() {
                rule(front, From::Outside, balance(Pool::Local, Masquerade::Never));
            }
        } else {
            rule(front, From::Anyone, balance(Pool::Cluster, Masquerade::Always));
        }
    }
    rules
}

/// Gives the new plan's pools the order that the old one had as far as it goes, so that one endpoint more or less
/// changes one or two places instead of all behind it.
pub fn settle(old: &Plan, new: &mut Plan) {
    for rule in &mut new.rules {
        let same = old.rules.iter().find(|o| (o.front, o.protocol, o.from) == (rule.front, rule.protocol, rule.from));
        if let (Action::Balance { endpoints, .. }, Some(Action::Balance { endpoints: before, .. })) =
            (&mut rule.action, same.map(|rule| &rule.action))
        {
            *endpoints = arrange(before, endpoints);
        }
    }
}

fn arrange(old: &[SocketAddr], new: &Arc<[SocketAddr]>) -> Arc<[SocketAddr]> {
    let wanted: BTreeSet<&SocketAddr> = new.iter().collect();
    let kept: BTreeSet<&SocketAddr> = old.iter().filter(|address| wanted.contains(address)).collect();
    let mut places: Vec<Option<SocketAddr>> =
        old.iter().take(new.len()).map(|address| wanted.contains(address).then_some(*address)).collect();
    places.resize(new.len(), None);
    let placed: BTreeSet<SocketAddr> = places.iter().flatten().copied().collect();
    // What lost its place because the pool shrank, then what is new.
    let moved = old.iter().filter(|address| kept.contains(address) && !placed.contains(address));
    let fresh = new.iter().filter(|address| !kept.contains(address));
    let mut homeless = moved.chain(fresh).copied();
    places.into_iter().filter_map(|place| place.or_else(|| homeless.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PodSource, SlicePort};

    fn endpoint(ip: &str, ready: bool, terminating: bool, local: bool) -> Endpoint {
        let ip = ip.parse().unwrap();
        Endpoint { ip, ready, serving: true, terminating, local, zones: None, nodes: None }
    }

    fn slice(endpoints: Vec<Endpoint>) -> Slice {
        Slice { ports: vec![SlicePort { name: "web".into(), protocol: Protocol::Tcp, port: 8080 }], endpoints }
    }

    fn service() -> Service {
        let port = ServicePort { name: "web".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) };
        Service { cluster_ips: vec!["10.96.0.9".parse().unwrap()], ports: vec![port], ..Service::default() }
    }

    fn at(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 8080)
    }

    fn balance(list: &[&str], masquerade: Masquerade) -> Action {
        let pool = if masquerade == Masquerade::Never { Pool::Local } else { Pool::Cluster };
        Action::Balance { pool, endpoints: list.iter().map(|ip| at(ip)).collect(), masquerade, affinity: None }
    }

    fn facts() -> Facts {
        let pods = vec![PodSource::Range("10.0.0.0/8".parse().unwrap())];
        Facts { node: "n1".into(), pods, ..Facts::default() }
    }

    const VIP: Front = Front::Vip(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 9)), 80);
    const NODE: Front = Front::NodePort { v4: true, port: 30080 };

    fn decided(service: &Service, endpoints: Vec<Endpoint>) -> Vec<(Front, From, Action)> {
        let plan = plan("a/b", service, [slice(endpoints)].iter(), &facts());
        plan.rules.into_iter().map(|rule| (rule.front, rule.from, rule.action)).collect()
    }

    #[test]
    fn ready_endpoints_serve_and_ending_ones_only_alone() {
        let both = vec![endpoint("10.0.0.1", true, false, true), endpoint("10.0.0.2", false, true, true)];
        assert_eq!(
            decided(&service(), both),
            [
                (VIP, From::Anyone, balance(&["10.0.0.1"], Masquerade::OutsidePods)),
                (NODE, From::Anyone, balance(&["10.0.0.1"], Masquerade::Always)),
            ]
        );
        let ending = decided(&service(), vec![endpoint("10.0.0.2", false, true, true)]);
        assert_eq!(ending[0].2, balance(&["10.0.0.2"], Masquerade::OutsidePods));
        assert_eq!(decided(&service(), vec![endpoint("10.0.0.2", false, false, true)])[0].2, Action::Reject);
    }

    #[test]
    fn a_service_that_leads_nowhere_from_here_is_told_from_one_without_endpoints() {
        let lacks = |service: &Service, endpoints| plan("a/b", service, [slice(endpoints)].iter(), &facts()).lacks();
        let far = || vec![endpoint("10.0.0.1", true, false, false)];
        assert_eq!(lacks(&service(), far()), [false, false]);
        let local = Service { external_local: true, internal_local: true, ..service() };
        assert_eq!(lacks(&local, far()), [true, true]);
        assert_eq!(lacks(&Service { internal_local: false, ..local.clone() }, far()), [false, true]);
        assert_eq!(lacks(&local, vec![endpoint("10.0.0.1", true, false, true)]), [false, false]);
        assert_eq!(lacks(&local, Vec::new()), [false, false]);
    }

    #[test]
    fn local_policies_keep_traffic_on_the_node() {
        let mut local = service();
        local.external_local = true;
        local.internal_local = true;
        let far = vec![endpoint("10.0.0.1", true, false, false)];
        assert_eq!(
            decided(&local, far.clone()),
            [
                (VIP, From::Anyone, Action::Drop),
                (NODE, From::Anyone, balance(&["10.0.0.1"], Masquerade::OutsidePods)),
                (NODE, From::Outside, Action::Drop),
            ]
        );
        let near = [far, vec![endpoint("10.0.0.2", true, false, true)]].concat();
        assert_eq!(decided(&local, near)[2].2, balance(&["10.0.0.2"], Masquerade::Never));
        let none: Vec<Action> = decided(&local, vec![]).into_iter().map(|(.., action)| action).collect();
        assert_eq!(none, [Action::Reject, Action::Reject]);
    }

    #[test]
    fn health_checks_count_ready_endpoints_of_this_node_once() {
        let mut wanted = Service { external_local: true, health_port: Some(30999), ..service() };
        wanted.ports.push(ServicePort { name: "web".into(), protocol: Protocol::Tcp, port: 81, node_port: None });
        let endpoints = vec![
            endpoint("10.0.0.1", true, false, true),
            endpoint("10.0.0.2", false, true, true),
            endpoint("10.0.0.3", true, false, false),
        ];
        let plan = plan("a/b", &wanted, [slice(endpoints)].iter(), &facts());
        assert_eq!(plan.health, Some(HealthCheck { port: 30999, ready: 1 }));
        assert_eq!(plan.hairpin.len(), 3, "pods reach all of them by this node");
    }

    #[test]
    fn source_ranges_guard_the_ports_of_their_family() {
        let wanted = Service {
            external_ips: vec!["203.0.113.7".parse().unwrap()],
            load_balancer_ips: vec!["203.0.113.7".parse().unwrap()],
            source_ranges: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            ..service()
        };
        let of = |facts: &Facts| plan("a/b", &wanted, [slice(vec![])].iter(), facts).guards;
        let guards = of(&facts());
        assert_eq!((guards.len(), guards[0].port), (1, 80));
        assert_eq!(*guards[0].allowed, ["192.0.2.0/24".parse().unwrap()]);
        let node = Facts { primary_ips: vec!["192.0.2.5".parse().unwrap()], ..facts() };
        assert_eq!(of(&node)[0].allowed[1], "203.0.113.7/32".parse().unwrap());
        let six = Service { source_ranges: vec!["2001:db8::/64".parse().unwrap()], ..wanted.clone() };
        assert!(plan("a/b", &six, [slice(vec![])].iter(), &facts()).guards.is_empty(), "none of this family");
    }

    #[test]
    fn hints_count_where_all_endpoints_have_them() {
        let hinted = |ip: &str, node: &str| {
            let nodes = Some([node.into()].into_iter().collect());
            Endpoint { nodes, ..endpoint(ip, true, false, false) }
        };
        let two = vec![hinted("10.0.0.1", "n1"), hinted("10.0.0.2", "n2")];
        assert_eq!(decided(&service(), two.clone())[0].2, balance(&["10.0.0.1"], Masquerade::OutsidePods));
        let mixed = [two, vec![endpoint("10.0.0.3", true, false, false)]].concat();
        assert_eq!(
            decided(&service(), mixed)[0].2,
            balance(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], Masquerade::OutsidePods)
        );
    }

    #[test]
    fn one_endpoint_less_moves_only_the_last() {
        let old: Vec<SocketAddr> = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"].map(at).into();
        let new = |list: &[&str]| arrange(&old, &list.iter().map(|ip| at(ip)).collect());
        assert_eq!(*new(&["10.0.0.1", "10.0.0.3", "10.0.0.4"]), ["10.0.0.1", "10.0.0.4", "10.0.0.3"].map(at));
        assert_eq!(
            *new(&["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]),
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.0"].map(at)
        );
        assert_eq!(new(&["10.0.0.1", "10.0.0.9", "10.0.0.3", "10.0.0.4"])[1], at("10.0.0.9"));
    }
}
