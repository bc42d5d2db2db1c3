//! `portmap`: the node's ports that lead into a container, in nftables.
//!
//! [`rules`] writes and reads the table's text; this file decides what goes into it.

mod conditions;
mod rules;

use std::net::IpAddr;

use api::cni::{Error, Ip, Success};
use kernel::conntrack::{self, Conntrack, Flow};
use kernel::nftables::{self, Nft, Nftables};
use kernel::sysctl;
use serde::Deserialize;

use crate::listing::{self, Family};
use crate::skel::{Call, Plugin, gone_owners};
use rules::{Mapping, Table};

pub struct Portmap;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default = "yes")]
    snat: bool,
    #[serde(default)]
    masq_all: bool,
    #[serde(default)]
    mark_masq_bit: Option<i64>,
    #[serde(default)]
    backend: String,
    #[serde(default)]
    external_set_mark_chain: Option<String>,
    #[serde(default, rename = "conditionsV4")]
    conditions_v4: Vec<String>,
    #[serde(default, rename = "conditionsV6")]
    conditions_v6: Vec<String>,
}

fn yes() -> bool {
    true
}

/// What of the configuration matters. Both backends of the reference make the same of a packet, and nftables does it
/// here, whichever is named; so do its own mark and the mark of another's chain.
struct Config {
    snat: bool,
    masq_all: bool,
    table: Table,
}

fn config(call: &Call) -> Result<Config, Error> {
    let raw: Raw = call.own()?;
    if !matches!(raw.backend.as_str(), "" | "iptables" | "nftables") {
        return Err(Error::config(format!("backend {:?} is neither iptables nor nftables", raw.backend)));
    }
    if raw.mark_masq_bit.is_some() && raw.external_set_mark_chain.is_some() {
        return Err(Error::config("markMasqBit and externalSetMarkChain exclude each other"));
    }
    let bit = raw.mark_masq_bit.map(|bit| match u32::try_from(bit) {
        Ok(bit) if bit < 32 => Ok(bit),
        _ => Err(Error::config(format!("markMasqBit {bit} is not from 0 to 31"))),
    });
    let conditions = [
        conditions::in_nft("conditionsV4", Family::V4, &raw.conditions_v4, &raw.backend)?,
        conditions::in_nft("conditionsV6", Family::V6, &raw.conditions_v6, &raw.backend)?,
    ];
    for port in &call.config.runtime_config.port_mappings {
        if port.host_port == 0 || port.container_port == 0 {
            return Err(Error::config("portMappings: hostPort and containerPort are from 1 to 65535"));
        }
    }
    Ok(Config { snat: raw.snat, masq_all: raw.masq_all, table: Table::new(bit.transpose()?, conditions) })
}

/// Each mapping for each family in which the container has an address and the node's address fits.
fn mappings(call: &Call, result: &Success, config: &Config) -> Result<Vec<Mapping>, Error> {
    let is_own = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == call.ifname && !interface.sandbox.is_empty())
    };
    let ips: Vec<&Ip> = result.ips.iter().filter(is_own).collect();
    let mut found = Vec::new();
    for port in &call.config.runtime_config.port_mappings {
        let protocol = match port.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => "tcp",
            "udp" => "udp",
            "sctp" => "sctp",
            other => return Err(Error::config(format!("invalid port mapping protocol {other:?}"))),
        };
        let host: Option<IpAddr> = match port.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| Error::config(format!("invalid hostIP {text:?}")))?),
        };
        // An unspecified address means every address of its family.
        let fits = |ip: IpAddr| host.is_none_or(|host| host.is_ipv4() == ip.is_ipv4());
        for family in [Family::V4, Family::V6] {
            let Some(ip) = ips.iter().find(|ip| family.is(ip.address.ip())) else { continue };
            if fits(ip.address.ip()) {
                found.push(Mapping {
                    protocol,
                    host: host.filter(|host| !host.is_unspecified()),
                    host_port: port.host_port,
                    container: ip.address,
                    container_port: port.container_port,
                    masquerade: config.snat,
                    masquerade_all: config.masq_all,
                });
            }
        }
    }
    Ok(found)
}

impl Plugin for Portmap {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let config = config(call)?;
        let previous = call.previous()?;
        let ports = &call.config.runtime_config.port_mappings;
        if ports.is_empty() {
            return Ok(previous);
        }
        let mappings = mappings(call, &previous, &config)?;
        if mappings.is_empty() {
            return Ok(previous);
        }
        let script = rules::add(&mappings, &config.table, &call.owner());
        let applied = match Nft.apply(&script) {
            Err(nftables::Error::Missing(_)) => Nft.apply(&(rules::tables(&mappings, &config.table) + &script)),
            applied => applied,
        };
        applied.map_err(|error| match error {
            nftables::Error::Exists(_) => {
                let wanted: Vec<String> = ports.iter().map(|port| port.host_port.to_string()).collect();
                Error::internal(format!("host port {} is taken by another container", wanted.join(" or ")))
            }
            other => Error::internal(other),
        })?;
        if mappings.iter().any(|m| m.masquerade && m.container.is_ipv4()) {
            route_localnet(&previous)?;
        }
        let udp: Vec<u16> = mappings.iter().filter(|m| m.protocol == "udp").map(|m| m.host_port).collect();
        if !udp.is_empty() {
            forget(|flow| udp.contains(&flow.original.destination_port));
        }
        Ok(previous)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        if call.config.runtime_config.port_mappings.is_empty() && call.config.prev_result.is_some() {
            return Ok(());
        }
        let own = call.owner();
        let tables = match config(call) {
            Ok(Config { table, .. }) => [Family::V4, Family::V6].map(|family| (family, table.name.clone())).to_vec(),
            Err(_) => all_tables()?,
        };
        remove(&tables, |owner| owner == own)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let config = config(call)?;
        let wanted = mappings(call, &call.previous()?, &config)?;
        for family in [Family::V4, Family::V6] {
            let wanted: Vec<&Mapping> = wanted.iter().filter(|m| family.is(m.container.ip())).collect();
            if wanted.is_empty() {
                continue;
            }
            let list = format!("list table {} {}", family.name(), config.table.name);
            let text = Nft.list(&list).map_err(Error::internal)?;
            let count = listing::read(&text).iter().filter(|e| e.is_port() && e.owner == call.owner()).count();
            if count < wanted.len() {
                return Err(Error::internal(format!(
                    "{} of {} port mappings are missing",
                    wanted.len() - count,
                    wanted.len()
                )));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let Some(valid) = &call.config.valid_attachments else { return Ok(()) };
        // Those of former configurations too.
        remove(&all_tables()?, gone_owners(&call.config.name, valid))
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        config(call).map(drop)
    }
}

fn all_tables() -> Result<Vec<(Family, String)>, Error> {
    let text = Nft.list("list tables").map_err(Error::internal)?;
    let tables = text.lines().filter_map(|line| {
        let (family, name) = line.strip_prefix("table ")?.split_once(' ')?;
        let family = [Family::V4, Family::V6].into_iter().find(|known| known.name() == family)?;
        Table::is_name(name).then(|| (family, name.to_owned()))
    });
    Ok(tables.collect())
}

/// Removes the elements of those owners, found by reading the table back: a repeated DEL must not take the port from
/// the container that has it now.
fn remove(tables: &[(Family, String)], gone: impl Fn(&str) -> bool) -> Result<(), Error> {
    let mut script = String::new();
    let mut udp: Vec<IpAddr> = Vec::new();
    for (family, table) in tables {
        let text = match Nft.list(&format!("list table {} {table}", family.name())) {
            Err(nftables::Error::Missing(_)) => continue,
            listed => listed.map_err(Error::internal)?,
        };
        for element in listing::read(&text).iter().filter(|element| gone(&element.owner)) {
            script.push_str(&element.delete(*family, table));
            udp.extend(element.container().filter(|_| element.is_udp()));
        }
    }
    if script.is_empty() {
        return Ok(());
    }
    Nft.apply(&script).map_err(Error::internal)?;
    if !udp.is_empty() {
        forget(|flow| udp.contains(&flow.reply.source));
    }
    Ok(())
}

/// The node's own connections to 127.0.0.1:PORT leave by the container's bridge; the kernel drops such
/// packets unless it is told otherwise.
fn route_localnet(result: &Success) -> Result<(), Error> {
    let on_node = result.interfaces.iter().find(|interface| interface.sandbox.is_empty());
    match on_node {
        Some(interface) => {
            let name = format!("net/ipv4/conf/{}/route_localnet", interface.name);
            sysctl::write(&name, "1").map(drop).map_err(Error::internal)
        }
        None => Ok(()),
    }
}

/// UDP flows that were tracked under other rules would go on by them. Where they cannot be read they time out.
fn forget(stale: impl Fn(&Flow) -> bool) {
    let Ok(mut table) = conntrack::Kernel::open() else { return };
    for flow in table.flows(17).unwrap_or_default().iter().filter(|flow| stale(flow)) {
        let _ = table.delete(flow);
    }
}
