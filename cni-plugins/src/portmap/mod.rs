//! `portmap`: the node's ports that lead into a container, in nftables.
//!
//! [`rules`] writes and reads the table's text; this file decides what goes into it.

mod rules;

use std::net::IpAddr;

use api::cni::{Error, PortMapping, Success, code};
use kernel::conntrack::{self, Conntrack, Flow};
use kernel::nftables::{self, Nft, Nftables};
use kernel::sysctl;
use serde::Deserialize;

use crate::listing::{self, Family};
use crate::skel::{Call, Plugin, gone_owners};
use rules::Mapping;

pub struct Portmap;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default = "yes")]
    snat: bool,
    #[serde(default)]
    masq_all: bool,
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

fn config(call: &Call) -> Result<Config, Error> {
    let config: Config = call.own()?;
    let unsupported = |key: &str| Err(Error::new(code::UNSUPPORTED_FIELD, format!("portmap does not support {key}")));
    if !matches!(config.backend.as_str(), "" | "nftables") {
        return unsupported("another backend than nftables");
    }
    if config.external_set_mark_chain.is_some() {
        return unsupported("externalSetMarkChain");
    }
    if !config.conditions_v4.is_empty() || !config.conditions_v6.is_empty() {
        return unsupported("conditionsV4 and conditionsV6");
    }
    Ok(config)
}

/// Each mapping for each family in which the container has an address and the node's address fits.
fn mappings(ports: &[PortMapping], result: &Success, config: &Config) -> Result<Vec<Mapping>, Error> {
    let mut found = Vec::new();
    for port in ports.iter().filter(|port| port.host_port != 0) {
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
            let Some(ip) = result.ips.iter().find(|ip| family.is(ip.address.ip())) else { continue };
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
        let mappings = mappings(ports, &previous, &config)?;
        if mappings.is_empty() {
            return Ok(previous);
        }
        let script = rules::add(&mappings, &call.owner());
        let applied = match Nft.apply(&script) {
            Err(nftables::Error::Missing(_)) => Nft.apply(&(rules::tables(&mappings) + &script)),
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
        remove(|owner| owner == own)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let wanted = mappings(&call.config.runtime_config.port_mappings, &call.previous()?, &config(call)?)?;
        for family in [Family::V4, Family::V6] {
            let wanted: Vec<&Mapping> = wanted.iter().filter(|m| family.is(m.container.ip())).collect();
            if wanted.is_empty() {
                continue;
            }
            let text = Nft.list(&rules::list(family)).map_err(Error::internal)?;
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
        remove(gone_owners(&call.config.name, valid))
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        config(call).map(drop)
    }
}

/// Removes the elements of those owners, found by reading the table back: a repeated DEL must not take the port from
/// the container that has it now.
fn remove(gone: impl Fn(&str) -> bool) -> Result<(), Error> {
    let mut script = String::new();
    let mut udp: Vec<IpAddr> = Vec::new();
    for family in [Family::V4, Family::V6] {
        let text = match Nft.list(&rules::list(family)) {
            Err(nftables::Error::Missing(_)) => continue,
            listed => listed.map_err(Error::internal)?,
        };
        for element in listing::read(&text).iter().filter(|element| gone(&element.owner)) {
            script.push_str(&element.delete(family, "bosun-portmap"));
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
