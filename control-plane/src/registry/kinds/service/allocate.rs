//! Cluster IPs and node ports: chosen at random from the upper part of their ranges first, because people who choose
//! for themselves choose low numbers (KEP-3070, KEP-3668).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

use api::status::{FieldError, Status};
use ipnetwork::{IpNetwork, Ipv4Network};
use serde_json::{Value, json};

use super::super::object::{child, list, list_mut, number, put, text};
use super::{families, has_cluster_ip, has_node_ports, is_headless};

/// From where services get their addresses and node ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRanges {
    /// `--service-cluster-ip-range`: one, or one of each family; the first is that of a Service that does not say.
    pub addresses: Vec<IpNetwork>,
    /// `--service-node-port-range`, both ends included.
    pub node_ports: (u16, u16),
}

static RANGES: OnceLock<ServiceRanges> = OnceLock::new();

impl ServiceRanges {
    /// Sets the ranges of this process. To be called once, before the first Service is written; false where it is late.
    pub fn install(self) -> bool {
        RANGES.set(self).is_ok()
    }

    /// The families of the cluster's Services, the primary first.
    pub(super) fn families(&self) -> Vec<&'static str> {
        self.addresses.iter().map(|range| families::of_address(&range.ip().to_string())).collect()
    }

    fn of(&self, family: &str) -> Option<IpNetwork> {
        self.addresses.iter().copied().find(|range| families::of_address(&range.ip().to_string()) == family)
    }
}

/// The ranges of this process; without any said, those of a cluster that `bosun up` makes.
pub(super) fn ranges() -> &'static ServiceRanges {
    RANGES.get_or_init(|| ServiceRanges {
        addresses: Ipv4Network::new(Ipv4Addr::new(10, 96, 0, 0), 16).into_iter().map(IpNetwork::V4).collect(),
        node_ports: (30_000, 32_767),
    })
}

/// A stretch of numbers whose lower part is left for those who choose themselves.
struct Band {
    first: u128,
    size: u64,
    reserved: u64,
}

impl Band {
    /// Without the network's own address and that of IPv4's broadcast. So many of IPv6's as 64 bits count are enough.
    fn addresses(network: IpNetwork) -> Self {
        let (first, length, own) = match network {
            IpNetwork::V4(network) => (u128::from(u32::from(network.network())), 32, 2),
            IpNetwork::V6(network) => (u128::from(network.network()), 128, 1),
        };
        let size = 1_u64.checked_shl(length - u32::from(network.prefix())).unwrap_or(u64::MAX).saturating_sub(own);
        let reserved = (size / 16).clamp(16, 256);
        Self { first: first + 1, size, reserved }
    }

    fn node_ports((first, last): (u16, u16)) -> Self {
        let size = u64::from(last.saturating_sub(first)) + 1;
        Self { first: first.into(), size, reserved: (size / 32).clamp(16, 128) }
    }

    /// The first free number from a random one on: above the reserved part, and in it when that is full.
    fn choose(&self, random: u64, free: impl Fn(u128) -> bool) -> Option<u128> {
        let reserved = if self.reserved < self.size { self.reserved } else { 0 };
        [reserved..self.size, 0..reserved].into_iter().find_map(|range| {
            let length = range.end - range.start;
            let start = random.checked_rem(length)?;
            let numbers = (start..length).chain(0..start);
            numbers.map(|step| self.first + u128::from(range.start + step)).find(|number| free(*number))
        })
    }
}

pub(super) fn fill_in(
    ranges: &ServiceRanges,
    service: &mut Value,
    taken: &dyn Fn(&str) -> bool,
    random: u64,
) -> Result<(), Status> {
    if !families::refused(&ranges.families(), service).is_empty() {
        return Ok(()); // its validation says so
    }
    let name = api::meta::name(service).to_owned();
    let full =
        |what: &str| Status::internal(format!("failed to allocate a {what} for Service {name:?}: range is full"));
    if has_cluster_ip(service) && !is_headless(service) {
        fill_addresses(ranges, service, taken, random).ok_or_else(|| full("serviceIP"))?;
    }
    if has_node_ports(service) {
        let band = Band::node_ports(ranges.node_ports);
        fill_node_ports(&band, service, taken, random).ok_or_else(|| full("nodePort"))?;
    }
    Ok(())
}

/// One of each family that the service has none of.
fn fill_addresses(
    ranges: &ServiceRanges,
    service: &mut Value,
    taken: &dyn Fn(&str) -> bool,
    random: u64,
) -> Option<()> {
    let mut addresses = list(service, "/spec/clusterIPs").to_vec();
    for family in list(service, "/spec/ipFamilies").iter().skip(addresses.len()) {
        let Some(range) = ranges.of(family.as_str().unwrap_or_default()) else { break };
        let address = |number: u128| match range {
            IpNetwork::V4(_) => {
                u32::try_from(number).map_or(IpAddr::V6(number.into()), |number| IpAddr::V4(number.into()))
            }
            IpNetwork::V6(_) => IpAddr::V6(number.into()),
        };
        let free = |number: u128| !taken(&format!("serviceips/{}", address(number)));
        addresses.push(address(Band::addresses(range).choose(random, free)?).to_string().into());
    }
    let first = addresses.first().cloned();
    if let (Some(spec), Some(first)) = (child(service, "spec"), first) {
        put(spec, "clusterIPs", addresses);
        put(spec, "clusterIP", first);
    }
    Some(())
}

/// Ports of one number share a node port, where their protocols differ.
fn fill_node_ports(band: &Band, service: &mut Value, taken: &dyn Fn(&str) -> bool, random: u64) -> Option<()> {
    let mut own: Vec<(i64, i64, String)> = list(service, "/spec/ports")
        .iter()
        .filter(|port| number(port, "/nodePort") != 0)
        .map(|port| (number(port, "/port"), number(port, "/nodePort"), text(port, "/protocol").to_owned()))
        .collect();
    for port in child(service, "spec").map_or(&mut [] as &mut [Value], |spec| list_mut(spec, "ports")) {
        if number(port, "/nodePort") != 0 {
            continue;
        }
        let (number, protocol) = (number(port, "/port"), text(port, "/protocol").to_owned());
        let shared = own.iter().find(|(same, node, _)| {
            *same == number && !own.iter().any(|(_, other, used)| other == node && *used == protocol)
        });
        let node = match shared {
            Some((_, node, _)) => *node,
            None => {
                let held = |n: u128| own.iter().any(|(_, node, _)| u128::try_from(*node) == Ok(n));
                i64::try_from(band.choose(random, |n| !held(n) && !taken(&format!("nodeports/{n}")))?).ok()?
            }
        };
        put(port, "nodePort", node);
        own.push((number, node, protocol));
    }
    Some(())
}

pub(super) fn claims(service: &Value) -> Vec<String> {
    let mut claims = Vec::new();
    if has_cluster_ip(service) {
        let addresses = list(service, "/spec/clusterIPs").iter().filter_map(Value::as_str);
        claims.extend(addresses.filter(|a| *a != "None" && !a.is_empty()).map(|a| format!("serviceips/{a}")));
    }
    for port in list(service, "/spec/ports").iter().map(|port| number(port, "/nodePort")).filter(|port| *port != 0) {
        let claim = format!("nodeports/{port}");
        if !claims.contains(&claim) {
            claims.push(claim);
        }
    }
    claims
}

pub(super) fn claimed(claim: &str) -> FieldError {
    match claim.split_once('/') {
        Some(("nodeports", port)) => {
            let port = port.parse::<i64>().unwrap_or_default();
            FieldError::invalid("spec.ports[0].nodePort", port, "provided port is already allocated")
        }
        Some((_, address)) => {
            let why = format!("failed to allocate IP {address}: provided IP is already allocated");
            FieldError::invalid("spec.clusterIPs", json!([address]), why)
        }
        None => FieldError::invalid("spec", claim, "provided value is already allocated"),
    }
}

/// Values that lie outside the ranges.
pub(super) fn out_of_range(ranges: &ServiceRanges, service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for address in list(service, "/spec/clusterIPs").iter().filter_map(Value::as_str) {
        let range = ranges.of(families::of_address(address));
        if let (Ok(ip), Some(range)) = (address.parse::<IpAddr>(), range)
            && !range.contains(ip)
        {
            let why = format!(
                "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
            );
            errors.push(FieldError::invalid("spec.clusterIPs", service["spec"]["clusterIPs"].clone(), why));
        }
    }
    let (first, last) = ranges.node_ports;
    for (i, port) in list(service, "/spec/ports").iter().enumerate() {
        let node = number(port, "/nodePort");
        if node != 0 && !(i64::from(first)..=i64::from(last)).contains(&node) && has_node_ports(service) {
            let why = format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
            errors.push(FieldError::invalid(format!("spec.ports[{i}].nodePort"), node, why));
        }
    }
    errors
}
