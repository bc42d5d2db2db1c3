//! Who peers with whom: the cluster's nodes and its BGP configuration, as one node's [`Config`]. Pure.
//!
//! Field names are those of Calico's BGPConfiguration and BGPPeer; selectors are Kubernetes' (`rack in (a,b)`), with
//! `all()` for every node. A BGPPeer that leads to other nodes, by peerSelector or a node's address, is a session of both
//! ends, unless reversePeering is Manual. Nodes that reflect routes are no part of the full mesh.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use api::labels::Selector;
use bgp::attributes::Community;
use bgp::filter::{Filter, Links};
use bgp::rib::NextHopMode;
use bgp::{Family, Prefix};
use serde::Deserialize;

use super::config::{Bfd, Config, DEFAULT_AS, DEFAULT_PORT, Password, Peer, RESTART_TIME};

/// A node as its object tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    /// Annotation `projectcalico.org/ASNumber`.
    pub as_number: Option<u32>,
    /// Annotation `projectcalico.org/RouteReflectorClusterID`: it reflects routes.
    pub cluster_id: Option<Ipv4Addr>,
}

/// What the administrator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bgp {
    /// By default true.
    pub node_to_node_mesh_enabled: Option<bool>,
    pub as_number: Option<u32>,
    pub listen_port: Option<u16>,
    pub node_mesh_password: Option<PasswordRef>,
    #[serde(with = "super::duration::optional")]
    pub node_mesh_max_restart_time: Option<Duration>,
    /// BFD between the nodes of the mesh.
    pub node_mesh_bfd: Option<Bfd>,
    pub peers: Vec<BgpPeer>,
    /// By name.
    pub filters: BTreeMap<String, Filter>,
    pub communities: Vec<NamedCommunity>,
    pub prefix_advertisements: Vec<PrefixAdvertisement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedCommunity {
    pub name: String,
    pub value: Community,
}

/// What this node's own prefixes within `cidr` carry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixAdvertisement {
    pub cidr: Prefix,
    /// Communities, or the names of some.
    pub communities: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BgpPeer {
    pub name: String,
    pub node: Option<String>,
    pub node_selector: Option<String>,
    /// An address, or an address and a port.
    #[serde(rename = "peerIP")]
    pub peer_ip: Option<String>,
    pub as_number: Option<u32>,
    #[serde(rename = "localASNumber")]
    pub local_as_number: Option<u32>,
    pub peer_selector: Option<String>,
    pub reverse_peering: ReversePeering,
    /// Calico's, refused: pods are no peers of their node.
    pub local_workload_selector: Option<String>,
    pub keep_original_next_hop: bool,
    pub next_hop_mode: Option<NextHopMode>,
    /// The router on a link of this node that leads to the peer, where the peer is not on one.
    pub reachable_by: Option<IpAddr>,
    /// How many prefixes of each family the peer may tell (OpenConfig's max-prefixes).
    pub max_prefixes: Option<u32>,
    pub password: Option<PasswordRef>,
    pub source_address: Option<SourceAddress>,
    #[serde(with = "super::duration::optional")]
    pub max_restart_time: Option<Duration>,
    #[serde(with = "super::duration::optional")]
    pub keepalive_time: Option<Duration>,
    #[serde(rename = "numAllowedLocalASNumbers")]
    pub num_allowed_local_as_numbers: u8,
    pub ttl_security: Option<u8>,
    pub filters: Vec<String>,
    pub bfd: Option<Bfd>,
}

/// Where a password is: a key of a Secret in kube-system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PasswordRef {
    pub secret_key_ref: SecretKeyRef,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretKeyRef {
    pub name: String,
    pub key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum SourceAddress {
    UseNodeIP,
    None,
}

/// Whether a node that is selected as a peer has the session by itself, or waits for a BGPPeer of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum ReversePeering {
    #[default]
    Auto,
    Manual,
}

/// What in the configuration cannot be meant, by field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("node {0} is not among the cluster's nodes")]
    NoNode(String),
    #[error("node {0} has no IPv4 address, of which its router ID is made")]
    NoRouterId(String),
    #[error("peers[{peer}].{field}: {why}")]
    Field { peer: String, field: &'static str, why: String },
    #[error("prefixAdvertisements[{0}]: {1:?} is neither a community nor the name of one")]
    Community(Prefix, String),
    #[error("peers[{peer}].password: Secret kube-system/{} has no key {}", .secret.name, .secret.key)]
    NoPassword { peer: String, secret: SecretKeyRef },
}

/// The passwords that were found.
pub type Passwords = BTreeMap<SecretKeyRef, Password>;

/// The speaker's configuration on node `own`.
///
/// # Errors
/// The first field that cannot be meant.
pub fn config(own: &str, nodes: &[Node], bgp: &Bgp, passwords: &Passwords) -> Result<Config, Error> {
    let node = nodes.iter().find(|node| node.name == own).ok_or_else(|| Error::NoNode(own.into()))?;
    let router_id = node.address(Family::Ipv4).ok_or_else(|| Error::NoRouterId(own.into()))?;
    let IpAddr::V4(router_id) = router_id else { return Err(Error::NoRouterId(own.into())) };
    let cluster = Cluster { node, nodes, bgp, passwords };
    let mut peers = BTreeMap::new();
    let mut add = |all: Vec<Peer>| {
        // Who is named twice is one peer: the first word counts.
        for peer in all {
            peers.entry(peer.peer_ip).or_insert(peer);
        }
    };
    for asked in &bgp.peers {
        add(cluster.asked(asked)?);
    }
    for asked in bgp.peers.iter().filter(|asked| asked.reverse_peering == ReversePeering::Auto) {
        add(cluster.reversed(asked)?);
    }
    add(cluster.mesh()?);
    Ok(Config {
        as_number: cluster.as_number(node),
        router_id,
        listen_port: bgp.listen_port.unwrap_or(DEFAULT_PORT),
        route_reflector_cluster_id: node.cluster_id,
        addresses: Family::ALL.into_iter().filter_map(|family| node.address(family)).collect(),
        links: Links::default(),
        peers: peers.into_values().collect(),
    })
}

/// The communities of this node's own prefixes within others.
///
/// # Errors
/// The first name that stands for none.
pub fn advertisements(bgp: &Bgp) -> Result<Vec<(Prefix, Vec<Community>)>, Error> {
    let community = |cidr: Prefix, text: &String| {
        let named = bgp.communities.iter().find(|community| community.name == *text).map(|community| community.value);
        named.or_else(|| text.parse().ok()).ok_or_else(|| Error::Community(cidr, text.clone()))
    };
    let all = bgp.prefix_advertisements.iter().map(|advertisement| {
        let own = advertisement.communities.iter().map(|text| community(advertisement.cidr, text));
        Ok((advertisement.cidr, own.collect::<Result<_, _>>()?))
    });
    all.collect()
}

/// By which router each peer of node `own` is reached, where that is said. What of it cannot be meant is left to
/// [`config`] to say.
pub fn gateways(own: &Node, bgp: &Bgp) -> BTreeMap<IpAddr, IpAddr> {
    let selected = |peer: &&BgpPeer| match (&peer.node, &peer.node_selector) {
        (Some(name), _) => *name == own.name,
        (None, Some(text)) => matches(text, own).unwrap_or(false),
        (None, None) => true,
    };
    let of_peer = |peer: &BgpPeer| Some((endpoint(peer.peer_ip.as_ref()?)?.0, peer.reachable_by?));
    bgp.peers.iter().filter(selected).filter_map(of_peer).filter(|(peer, by)| peer.is_ipv4() == by.is_ipv4()).collect()
}

impl Node {
    fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

impl BgpPeer {
    fn wrong(&self, field: &'static str, why: &str) -> Error {
        Error::Field { peer: self.name.clone(), field, why: why.into() }
    }

    /// Whether it is of that node.
    fn selects(&self, node: &Node) -> Result<bool, Error> {
        match (&self.node, &self.node_selector) {
            (Some(_), Some(_)) => Err(self.wrong("nodeSelector", "not together with node")),
            (Some(name), None) => Ok(*name == node.name),
            (None, Some(text)) => matches(text, node).map_err(|why| self.wrong("nodeSelector", &why)),
            (None, None) => Ok(true),
        }
    }

    /// Whether the peerSelector is of that node.
    fn leads_to(&self, peer_selector: &str, node: &Node) -> Result<bool, Error> {
        matches(peer_selector, node).map_err(|why| self.wrong("peerSelector", &why))
    }
}

struct Cluster<'a> {
    node: &'a Node,
    nodes: &'a [Node],
    bgp: &'a Bgp,
    passwords: &'a Passwords,
}

impl Cluster<'_> {
    fn as_number(&self, node: &Node) -> u32 {
        node.as_number.or(self.bgp.as_number).unwrap_or(DEFAULT_AS)
    }

    fn mesh(&self) -> Result<Vec<Peer>, Error> {
        if self.bgp.node_to_node_mesh_enabled == Some(false) || self.node.cluster_id.is_some() {
            return Ok(Vec::new());
        }
        let others = self.others().filter(|other| other.cluster_id.is_none());
        let settings = BgpPeer {
            name: "the mesh".into(),
            password: self.bgp.node_mesh_password.clone(),
            max_restart_time: self.bgp.node_mesh_max_restart_time,
            bfd: self.bgp.node_mesh_bfd,
            ..BgpPeer::default()
        };
        let peers: Result<Vec<Vec<Peer>>, Error> = others.map(|other| self.with_node(other, &settings)).collect();
        Ok(peers?.concat())
    }

    /// The sessions that one BGPPeer asks of this node.
    fn asked(&self, asked: &BgpPeer) -> Result<Vec<Peer>, Error> {
        if asked.local_workload_selector.is_some() {
            return Err(asked.wrong("localWorkloadSelector", "not supported: pods are no BGP peers of their node"));
        }
        let selected = asked.selects(self.node)?;
        match (&asked.peer_ip, &asked.peer_selector) {
            (Some(_), Some(_)) => Err(asked.wrong("peerSelector", "not together with peerIP")),
            (None, None) => Err(asked.wrong("peerIP", "needed, or peerSelector")),
            (Some(address), None) if selected => {
                let asn = asked.as_number.ok_or_else(|| asked.wrong("asNumber", "needed with peerIP"))?;
                let (address, port) =
                    endpoint(address).ok_or_else(|| asked.wrong("peerIP", "no address, or address and port"))?;
                if asked.reachable_by.is_some_and(|by| by.is_ipv4() != address.is_ipv4() || by == address) {
                    return Err(asked.wrong("reachableBy", "another address of peerIP's family is needed"));
                }
                let peer = Peer { port: port.unwrap_or(DEFAULT_PORT), ..Peer::new(&asked.name, address, asn) };
                Ok(vec![self.settle(peer, asked)?])
            }
            (None, Some(_)) if asked.reachable_by.is_some() => Err(asked.wrong("reachableBy", "only with peerIP")),
            (None, Some(text)) if selected => {
                let mut peers = Vec::new();
                for other in self.others() {
                    if asked.leads_to(text, other)? {
                        peers.extend(self.with_node(other, asked)?);
                    }
                }
                Ok(peers)
            }
            (Some(_), None) | (None, Some(_)) => Ok(Vec::new()),
        }
    }

    /// The sessions that other nodes have with this one by the BGPPeer, from this end.
    fn reversed(&self, asked: &BgpPeer) -> Result<Vec<Peer>, Error> {
        let family = match (&asked.peer_selector, asked.peer_ip.as_deref().and_then(endpoint)) {
            (Some(text), _) if asked.leads_to(text, self.node)? => None,
            (None, Some((address, _)))
                if self.node.addresses.contains(&address) && asked.as_number == Some(self.as_number(self.node)) =>
            {
                Some(Family::of(address))
            }
            _ => return Ok(Vec::new()),
        };
        let mut peers = Vec::new();
        for other in self.others() {
            if asked.selects(other)? {
                let all = self.with_node(other, asked)?;
                peers.extend(all.into_iter().filter(|peer| family.is_none_or(|own| own == Family::of(peer.peer_ip))));
            }
        }
        Ok(peers)
    }

    fn others(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|other| other.name != self.node.name)
    }

    /// One session for each family that both nodes have; each carries its own family.
    fn with_node(&self, other: &Node, asked: &BgpPeer) -> Result<Vec<Peer>, Error> {
        let both = |family: &Family| self.node.address(*family).is_some() && other.address(*family).is_some();
        let families: Vec<Family> = Family::ALL.into_iter().filter(both).collect();
        let session = |family: &Family| {
            let address = other.address(*family)?;
            // With one session only, it carries both.
            let carried = if families.len() == 1 { Family::ALL.to_vec() } else { vec![*family] };
            let peer = Peer::new(&other.name, address, self.as_number(other));
            Some(Peer { families: carried, port: self.bgp.listen_port.unwrap_or(DEFAULT_PORT), ..peer })
        };
        families.iter().filter_map(session).map(|peer| self.reflected(self.settle(peer, asked)?, other)).collect()
    }

    /// RFC 4456: nodes of another cluster than ours, or of none, are clients.
    fn reflected(&self, peer: Peer, other: &Node) -> Result<Peer, Error> {
        let client = self.node.cluster_id.is_some() && other.cluster_id != self.node.cluster_id;
        Ok(Peer { route_reflector_client: client, ..peer })
    }

    /// What a BGPPeer says of all its sessions.
    fn settle(&self, peer: Peer, asked: &BgpPeer) -> Result<Peer, Error> {
        let name = || asked.name.clone();
        let password = asked.password.as_ref().map(|reference| &reference.secret_key_ref);
        let password = password
            .map(|secret| {
                let found = self.passwords.get(secret).cloned();
                found.ok_or_else(|| Error::NoPassword { peer: name(), secret: secret.clone() })
            })
            .transpose()?;
        let filter = |wanted: &String| {
            let found = self.bgp.filters.get(wanted).cloned();
            let why = format!("there is no filter {wanted}");
            found.ok_or_else(|| Error::Field { peer: name(), field: "filters", why })
        };
        let next_hop_mode = match (asked.next_hop_mode, asked.keep_original_next_hop) {
            (Some(NextHopMode::Auto | NextHopMode::Itself), true) => {
                let why = "not together with keepOriginalNextHop".to_owned();
                return Err(Error::Field { peer: name(), field: "nextHopMode", why });
            }
            (_, true) => NextHopMode::Keep,
            (mode, false) => mode.unwrap_or_default(),
        };
        let own = self.node.address(Family::of(peer.peer_ip));
        Ok(Peer {
            local_as_number: asked.local_as_number,
            source_address: own.filter(|_| asked.source_address != Some(SourceAddress::None)),
            password,
            next_hop_mode,
            max_prefixes: asked.max_prefixes,
            max_restart_time: asked.max_restart_time.unwrap_or(RESTART_TIME),
            keepalive_time: asked.keepalive_time,
            num_allowed_local_as_numbers: asked.num_allowed_local_as_numbers,
            ttl_security: asked.ttl_security,
            filters: asked.filters.iter().map(filter).collect::<Result<_, _>>()?,
            bfd: asked.bfd,
            ..peer
        })
    }
}

fn matches(selector: &str, node: &Node) -> Result<bool, String> {
    if selector.trim() == "all()" {
        return Ok(true);
    }
    let selector = Selector::parse(selector).map_err(|error| error.to_string())?;
    Ok(selector.matches_by(|key| node.labels.get(key).map(String::as_str)))
}

fn endpoint(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse() {
        return Some((address, None));
    }
    text.parse().ok().map(|socket: SocketAddr| (socket.ip(), Some(socket.port())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(index: u8, label: &str, cluster_id: Option<[u8; 4]>) -> Node {
        Node {
            name: format!("n{index}"),
            labels: BTreeMap::from([("rack".into(), label.into())]),
            addresses: vec![[192, 0, 2, index].into()],
            as_number: None,
            cluster_id: cluster_id.map(Ipv4Addr::from),
        }
    }

    fn nodes() -> Vec<Node> {
        vec![node(1, "a", None), node(2, "a", None), node(3, "b", None)]
    }

    fn config_of(own: &str, nodes: &[Node], bgp: Value) -> Result<Config, Error> {
        let secret = SecretKeyRef { name: "bgp".into(), key: "mesh".into() };
        let passwords = Passwords::from([(secret, Password("secret".into()))]);
        config(own, nodes, &serde_json::from_value(bgp).unwrap(), &passwords)
    }

    fn peers(own: &str, nodes: &[Node], bgp: Value) -> Vec<(String, bool)> {
        let config = config_of(own, nodes, bgp).unwrap();
        config.peers.iter().map(|peer| (peer.peer_ip.to_string(), peer.route_reflector_client)).collect()
    }

    fn plain(addresses: &[&str]) -> Vec<(String, bool)> {
        addresses.iter().map(|address| ((*address).to_owned(), false)).collect()
    }

    #[test]
    fn by_default_all_nodes_are_a_mesh() {
        let config = config_of("n1", &nodes(), json!({})).unwrap();
        assert_eq!((config.as_number, config.router_id, config.listen_port), (64512, [192, 0, 2, 1].into(), 179));
        assert_eq!(peers("n1", &nodes(), json!({})), plain(&["192.0.2.2", "192.0.2.3"]));
        assert_eq!(config.peers[0].families, Family::ALL, "one session carries both families");
        let mut dual = nodes();
        for node in &mut dual {
            node.addresses.push(format!("fd00::{}", node.name.trim_start_matches('n')).parse().unwrap());
        }
        let config = config_of("n1", &dual, json!({"asNumber": 65000})).unwrap();
        let sessions: Vec<_> =
            config.peers.iter().map(|peer| (peer.peer_ip.to_string(), peer.families.clone())).collect();
        assert_eq!(sessions.len(), 4);
        assert_eq!(sessions[2], ("fd00::2".to_owned(), vec![Family::Ipv6]));
        assert_eq!((config.as_number, config.peers[0].as_number), (65000, 65000));
        assert_eq!(config.peers[2].source_address, Some("fd00::1".parse().unwrap()));
    }

    #[test]
    fn a_reflector_has_all_nodes_as_clients_and_they_no_mesh() {
        let mut all = nodes();
        all.push(node(9, "rr", Some([1, 0, 0, 9])));
        all.push(node(8, "rr", Some([1, 0, 0, 9])));
        let bgp = json!({"nodeToNodeMeshEnabled": false, "peers": [
            {"name": "to-reflectors", "nodeSelector": "all()", "peerSelector": "rack=rr"}]});
        assert_eq!(peers("n1", &all, bgp.clone()), plain(&["192.0.2.8", "192.0.2.9"]));
        let client = |address: &str, client| (address.to_owned(), client);
        let clients = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|address| client(address, true));
        assert_eq!(peers("n9", &all, bgp)[..], [&clients[..], &[client("192.0.2.8", false)]].concat());
        assert_eq!(
            peers("n1", &all, json!({})),
            plain(&["192.0.2.2", "192.0.2.3"]),
            "reflectors are no part of the mesh"
        );
    }

    #[test]
    fn the_other_end_has_the_session_by_itself_or_not() {
        let of =
            |own: &str, peers_: Value| peers(own, &nodes(), json!({"nodeToNodeMeshEnabled": false, "peers": peers_}));
        let one_way =
            |reverse: &str| json!({"name": "x", "node": "n1", "peerSelector": "rack=b", "reversePeering": reverse});
        assert_eq!(of("n3", json!([one_way("Auto")])), plain(&["192.0.2.1"]));
        assert_eq!(of("n3", json!([one_way("Manual")])), []);
        assert_eq!(of("n1", json!([one_way("Manual")])), plain(&["192.0.2.3"]));
        // By the address of a node, where its AS is meant.
        let by_address = |asn: u32| json!([{"name": "x", "node": "n1", "peerIP": "192.0.2.3", "asNumber": asn}]);
        assert_eq!(of("n3", by_address(64512)), plain(&["192.0.2.1"]));
        assert_eq!(of("n3", by_address(65000)), []);
        // What an end says itself counts before what another says of it.
        let own = json!({"name": "own", "node": "n3", "peerSelector": "rack=a", "maxPrefixes": 7});
        let bgp = json!({"nodeToNodeMeshEnabled": false, "peers": [one_way("Auto"), own]});
        let config = config_of("n3", &nodes(), bgp).unwrap();
        assert_eq!(config.peers.iter().map(|peer| peer.max_prefixes).collect::<Vec<_>>(), [Some(7), Some(7)]);
    }

    #[test]
    fn a_top_of_rack_router_for_the_nodes_of_its_rack() {
        let bgp = json!({"nodeToNodeMeshEnabled": false, "listenPort": 1179, "filters": {"pods": {}}, "peers": [
            {"name": "tor-a", "nodeSelector": "rack in (a)", "peerIP": "192.0.2.254:1790", "asNumber": 65100,
             "filters": ["pods"], "ttlSecurity": 1, "numAllowedLocalASNumbers": 1, "maxRestartTime": "60s",
             "keepOriginalNextHop": true, "maxPrefixes": 1000, "reachableBy": "192.0.2.250", "bfd": {"minTxInterval": "100ms"}, "sourceAddress": "None",
             "password": {"secretKeyRef": {"name": "bgp", "key": "mesh"}}}]});
        let config = config_of("n2", &nodes(), bgp.clone()).unwrap();
        let expected = Peer {
            port: 1790,
            filters: vec![Filter::default()],
            ttl_security: Some(1),
            num_allowed_local_as_numbers: 1,
            max_restart_time: Duration::from_secs(60),
            next_hop_mode: NextHopMode::Keep,
            max_prefixes: Some(1000),
            bfd: Some(Bfd { transmit: Duration::from_millis(100), ..Bfd::default() }),
            password: Some(Password("secret".into())),
            ..Peer::new("tor-a", [192, 0, 2, 254].into(), 65100)
        };
        assert_eq!(config.peers, [expected]);
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(peers("n3", &nodes(), bgp.clone()), []);
        let bgp = serde_json::from_value(bgp).unwrap();
        let by = |node: usize| gateways(&nodes()[node], &bgp);
        assert_eq!(by(1), BTreeMap::from([([192, 0, 2, 254].into(), [192, 0, 2, 250].into())]));
        assert_eq!(by(2), BTreeMap::new());
    }

    #[test]
    fn own_prefixes_carry_communities_by_name_or_value() {
        let bgp = |communities: Value| -> Bgp {
            let named = json!([{"name": "pods", "value": "64512:300"}]);
            let advertised = json!([{"cidr": "10.244.0.0/16", "communities": communities}]);
            serde_json::from_value(json!({"communities": named, "prefixAdvertisements": advertised})).unwrap()
        };
        let known = advertisements(&bgp(json!(["pods", "1:2:3"]))).unwrap();
        let communities = ["64512:300", "1:2:3"].map(|text| text.parse().unwrap());
        assert_eq!(known, [("10.244.0.0/16".parse().unwrap(), communities.to_vec())]);
        assert_eq!(
            advertisements(&bgp(json!(["other"]))).unwrap_err().to_string(),
            "prefixAdvertisements[10.244.0.0/16]: \"other\" is neither a community nor the name of one"
        );
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let wrong = |peer: Value| config_of("n1", &nodes(), json!({"peers": [peer]})).unwrap_err().to_string();
        assert_eq!(wrong(json!({"name": "x"})), "peers[x].peerIP: needed, or peerSelector");
        assert_eq!(wrong(json!({"name": "x", "peerIP": "1.2.3.4"})), "peers[x].asNumber: needed with peerIP");
        let peer = json!({"name": "x", "peerIP": "tor", "asNumber": 1});
        assert_eq!(wrong(peer), "peers[x].peerIP: no address, or address and port");
        let peer = json!({"name": "x", "peerIP": "1.2.3.4", "asNumber": 1, "filters": ["f"]});
        assert_eq!(wrong(peer), "peers[x].filters: there is no filter f");
        let peer = json!({"name": "x", "peerIP": "1.2.3.4", "asNumber": 1, "password": {"secretKeyRef": {"name": "a", "key": "b"}}});
        assert_eq!(wrong(peer), "peers[x].password: Secret kube-system/a has no key b");
        let peer = json!({"name": "x", "peerIP": "1.2.3.4", "asNumber": 1, "reachableBy": "fd00::1"});
        assert_eq!(wrong(peer), "peers[x].reachableBy: another address of peerIP's family is needed");
        let peer = json!({"name": "x", "peerSelector": "all()", "nextHopMode": "Self", "keepOriginalNextHop": true});
        assert_eq!(wrong(peer), "peers[x].nextHopMode: not together with keepOriginalNextHop");
        let peer = json!({"name": "x", "localWorkloadSelector": "app == 'router'", "asNumber": 1});
        assert_eq!(wrong(peer), "peers[x].localWorkloadSelector: not supported: pods are no BGP peers of their node");
        let unknown = serde_json::from_value::<Bgp>(json!({"peers": [{"reversePeering": "Never"}]})).unwrap_err();
        assert!(unknown.to_string().contains("unknown variant `Never`, expected `Auto` or `Manual`"), "{unknown}");
        assert_eq!(config_of("n7", &nodes(), json!({})).unwrap_err(), Error::NoNode("n7".into()));
    }
}
