//! `firewall`: lets the container's packets through where the node's firewall would drop them, and, where asked, keeps
//! others from the container.
//!
//! A packet has to pass every table that looks at it, so that leave is given where the node's firewall decides: in the
//! chain FORWARD of iptables, or in a zone of firewalld. The chains have the reference's names, so that what an
//! administrator wrote for them holds. [`rules`] decides what is missing.

mod firewalld;
mod rules;

use std::net::IpAddr;

use api::cni::{Error, Success};
use kernel::iptables::{self, Family, Iptables, Programs};
use serde::Deserialize;

use crate::skel::{Call, Plugin, gone_owners};
use rules::Policy;

pub struct Firewall;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    backend: String,
    iptables_admin_chain_name: String,
    firewalld_zone: String,
    ingress_policy: String,
}

struct Config {
    backend: Backend,
    admin_chain: String,
    policy: Option<Policy>,
}

enum Backend {
    Iptables,
    /// With the zone for the addresses.
    Firewalld(String),
}

fn config(call: &Call) -> Result<Config, Error> {
    let raw: Raw = call.own()?;
    let zone = if raw.firewalld_zone.is_empty() { "trusted".into() } else { raw.firewalld_zone };
    let backend = match raw.backend.as_str() {
        "iptables" => Backend::Iptables,
        "firewalld" => Backend::Firewalld(zone),
        // The reference takes any other word for none.
        _ if firewalld::is_running() => Backend::Firewalld(zone),
        _ => Backend::Iptables,
    };
    let admin_chain = match raw.iptables_admin_chain_name {
        empty if empty.is_empty() => "CNI-ADMIN".into(),
        name if name.len() > 28 || name.contains(|c: char| c.is_whitespace() || c == '"') || name.starts_with('-') => {
            return Err(Error::config(format!("iptablesAdminChainName {name:?} is no name of a chain")));
        }
        name => name,
    };
    let policy = match raw.ingress_policy.as_str() {
        "" | "open" => None,
        "same-bridge" => Some(Policy::SameBridge),
        "isolated" => Some(Policy::Isolated),
        other => {
            let text = format!("ingressPolicy {other:?} is none of open, same-bridge and isolated");
            return Err(Error::config(text));
        }
    };
    Ok(Config { backend, admin_chain, policy })
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn of_family(result: &Success, family: Family) -> Vec<IpAddr> {
    let ips = result.ips.iter().map(|ip| ip.address.ip());
    ips.filter(|ip| ip.is_ipv4() == (family == Family::V4)).collect()
}

impl Plugin for Firewall {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let config = config(call)?;
        let previous = call.previous()?;
        let bridge = match (config.policy, previous.interfaces.first()) {
            (Some(policy), Some(first)) => Some((policy, first.name.as_str())),
            (Some(_), None) => return Err(Error::config("ingressPolicy needs a bridge before it in the chain")),
            (None, _) => None,
        };
        let owner = call.owner();
        if let Backend::Firewalld(zone) = &config.backend {
            firewalld::add(zone, previous.ips.iter().map(|ip| ip.address.ip()))?;
        }
        for family in FAMILIES {
            let ips = of_family(&previous, family);
            if ips.is_empty() {
                continue;
            }
            let passes: &[IpAddr] = if matches!(config.backend, Backend::Iptables) { &ips } else { &[] };
            let wanted = rules::Wanted { ips: passes, owner: &owner, admin_chain: &config.admin_chain, bridge };
            apply(family, |table| rules::missing(table, &wanted))?;
        }
        Ok(previous)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        if let Ok(Config { backend: Backend::Firewalld(zone), .. }) = &config(call) {
            let previous = call.config.previous()?.unwrap_or_default();
            firewalld::remove(zone, previous.ips.iter().map(|ip| ip.address.ip()));
        }
        let own = call.owner();
        remove(|owner| owner == own)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let config = config(call)?;
        let previous = call.previous()?;
        if let Backend::Firewalld(zone) = &config.backend {
            return firewalld::check(zone, previous.ips.iter().map(|ip| ip.address.ip()));
        }
        let owner = call.owner();
        for family in FAMILIES {
            let ips = of_family(&previous, family);
            if ips.is_empty() {
                continue;
            }
            let wanted = rules::Wanted { ips: &ips, owner: &owner, admin_chain: &config.admin_chain, bridge: None };
            let table = Programs::default().save(family, "filter").map_err(Error::internal)?;
            if let Some(script) = rules::missing(&table, &wanted) {
                let first = script.lines().nth(1).unwrap_or_default();
                return Err(Error::internal(format!("the firewall lacks a rule: {first}")));
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

/// Applies what `decide` says of the table as it is. Where another program changed it meanwhile it is read again.
fn apply(family: Family, decide: impl Fn(&str) -> Option<String>) -> Result<(), Error> {
    const ATTEMPTS: usize = 20;
    let programs = Programs::default();
    let mut last = Ok(());
    for _ in 0..ATTEMPTS {
        let table = programs.save(family, "filter").map_err(Error::internal)?;
        let Some(script) = decide(&table) else { return Ok(()) };
        last = programs.restore(family, &script).map_err(Error::internal);
        if last.is_ok() {
            return Ok(());
        }
    }
    last
}

/// Removes the rules of those owners. A machine without one of the programs has none of its rules.
fn remove(gone: impl Fn(&str) -> bool) -> Result<(), Error> {
    let mut done = Ok(());
    for family in FAMILIES {
        match Programs::default().save(family, "filter") {
            Err(error) if iptables::Error::is_absent(&error) => {}
            Err(error) => done = done.and(Err(Error::internal(error))),
            Ok(table) if rules::obsolete(&table, &gone).is_none() => {}
            Ok(_) => done = done.and(apply(family, |table| rules::obsolete(table, &gone))),
        }
    }
    done
}
