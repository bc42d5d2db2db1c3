//! `sbr`, source based routing: what an address of the container sends leaves by that address's own interface, by a
//! rule for the address and a routing table of its own, into which the interface's routes move.
//!
//! [`plan`] decides, without looking at the kernel.

use std::collections::BTreeSet;
use std::fs::File;

use api::cni::{Error, Ip, Success};
use kernel::netlink::{IpNetwork, Kernel, Network, Route, Rule, TABLE_MAIN};
use serde::Deserialize;

use crate::interface::Container;
use crate::skel::{Call, Plugin};

pub struct Sbr;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    /// A table that someone else fills: the plugin then only adds rules.
    table: Option<u32>,
}

/// Tables below belong to the system and to administrators.
const FIRST_TABLE: u32 = 100;

/// What has to change, in this order.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    rules: Vec<Rule>,
    add: Vec<Route>,
    delete: Vec<Route>,
}

/// `routes` are those of all tables, `link` is the interface's index.
fn plan(ips: &[&Ip], link: u32, rules: &[Rule], routes: &[Route]) -> Plan {
    let mut used: BTreeSet<u32> =
        rules.iter().map(|rule| rule.table).chain(routes.iter().map(|route| route.table)).collect();
    let moving: Vec<&Route> =
        routes.iter().filter(|route| route.table == TABLE_MAIN && route.link == Some(link)).collect();
    let mut plan = Plan::default();
    for ip in ips {
        let table = (FIRST_TABLE..).find(|table| !used.contains(table)).unwrap_or(FIRST_TABLE);
        used.insert(table);
        plan.rules.push(rule(ip, table));
        let concerned = |route: &&&Route| {
            let near = |address| ip.address.contains(address);
            match (route.source, route.gateway) {
                (None, None) => true,
                (source, gateway) => source.is_some_and(near) || gateway.is_some_and(near),
            }
        };
        let moved: Vec<Route> =
            moving.iter().filter(concerned).map(|route| Route { table, ..(*route).clone() }).collect();
        // A plugin before this one may have taken the default route away, because another interface has one.
        let any = any_of(ip.address);
        if let Some(gateway) = ip.gateway.filter(|_| !moved.iter().any(|route| route.destination == any)) {
            plan.add.push(Route { table, ..Route::new(any, Some(gateway), link) });
        }
        // What is on the link comes first, the gateways are reached by it.
        let (far, near): (Vec<Route>, Vec<Route>) = moved.into_iter().partition(|route| route.gateway.is_some());
        plan.add.splice(0..0, near);
        plan.add.extend(far);
    }
    plan.delete = moving.into_iter().cloned().collect();
    plan
}

fn rule(ip: &Ip, table: u32) -> Rule {
    Rule { source: Some(IpNetwork::from(ip.address.ip())), table, priority: None }
}

fn any_of(address: IpNetwork) -> IpNetwork {
    let any = if address.is_ipv4() { [0; 4].into() } else { std::net::IpAddr::from([0; 16]) };
    IpNetwork::new(any, 0).unwrap_or(address)
}

/// The result's addresses that are, or may be, the interface's.
fn own_ips<'a>(result: &'a Success, ifname: &str) -> Result<Vec<&'a Ip>, Error> {
    let is_others = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_some_and(|interface| interface.name != ifname)
    };
    let own: Vec<&Ip> = result.ips.iter().filter(|ip| !is_others(ip)).collect();
    match result.ips.is_empty() {
        true => Err(Error::config(format!("the previous result has no addresses for {ifname}"))),
        false => Ok(own),
    }
}

/// Two calls for one container choose their tables one after the other.
fn lock(call: &Call) -> Result<Option<File>, Error> {
    let Some(path) = &call.netns else { return Ok(None) };
    let locked = File::open(path).and_then(|file| file.lock().map(|()| file));
    locked.map(Some).map_err(|error| Error::internal(format!("cannot lock {}: {error}", path.display())))
}

impl Plugin for Sbr {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let config: Config = call.own()?;
        let previous = call.previous()?;
        let ips = own_ips(&previous, &call.ifname)?;
        let mut container = Container::open(call)?;
        let _lock = lock(call)?;
        let link = container.link(&call.ifname)?;
        let network = &mut container.network;
        let plan = match config.table {
            Some(table) => Plan { rules: ips.iter().map(|ip| rule(ip, table)).collect(), ..Plan::default() },
            None => {
                let (rules, routes) = (network.rules(), network.routes());
                plan(&ips, link.index, &rules.map_err(Error::internal)?, &routes.map_err(Error::internal)?)
            }
        };
        apply(network, &plan)?;
        Ok(previous)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let config: Config = call.own()?;
        let Some(mut container) = Container::existing(call)? else { return Ok(()) };
        let _lock = lock(call)?;
        let network = &mut container.network;
        let Some(link) = network.link(&call.ifname).map_err(Error::internal)? else { return Ok(()) };
        let addresses = network.addresses().map_err(Error::internal)?;
        let mut done = Ok(());
        for rule in network.rules().map_err(Error::internal)? {
            let source = rule.source.map(|source| source.ip());
            let is_own = addresses.iter().any(|held| held.link == link.index && Some(held.net.ip()) == source);
            if is_own && config.table.is_none_or(|table| table == rule.table) {
                done = done.and(network.delete_rule(rule).map(drop).map_err(Error::internal));
            }
        }
        done
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let previous = call.previous()?;
        let rules = Container::open(call)?.network.rules().map_err(Error::internal)?;
        let has = |ip: &&&Ip| rules.iter().any(|rule| rule.source == Some(IpNetwork::from(ip.address.ip())));
        match own_ips(&previous, &call.ifname)?.iter().find(|ip| !has(ip)) {
            None => Ok(()),
            Some(ip) => Err(Error::internal(format!("the routing rule for {} is missing", ip.address.ip()))),
        }
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        call.own::<Config>().map(drop)
    }
}

fn apply(network: &mut Kernel, plan: &Plan) -> Result<(), Error> {
    for rule in &plan.rules {
        match network.add_rule(*rule) {
            Err(error) if !error.is_exists() => return Err(Error::internal(error)),
            _ => {}
        }
    }
    for route in &plan.add {
        match network.add_route(route) {
            Err(error) if !error.is_exists() => return Err(Error::internal(error)),
            _ => {}
        }
    }
    for route in &plan.delete {
        network.delete_route(route).map_err(Error::internal)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str, gateway: Option<&str>) -> Ip {
        Ip { interface: None, address: address.parse().unwrap(), gateway: gateway.map(|ip| ip.parse().unwrap()) }
    }

    #[test]
    fn each_address_gets_a_free_table_with_the_routes_that_concern_it() {
        let route =
            |to: &str, gateway: Option<&str>| Route::new(to.parse().unwrap(), gateway.map(|ip| ip.parse().unwrap()), 7);
        let connected = Route { source: "10.1.0.2".parse().ok(), ..route("10.1.0.0/24", None) };
        let routes = [
            connected.clone(),
            route("0.0.0.0/0", Some("10.1.0.1")),
            route("10.9.0.0/16", Some("10.2.0.1")),
            Route { link: Some(3), ..route("10.8.0.0/16", None) },
            Route { table: 101, ..route("10.7.0.0/16", None) },
        ];
        let (one, two) = (ip("10.1.0.2/24", Some("10.1.0.1")), ip("10.2.0.2/24", Some("10.2.0.1")));
        let plan = plan(&[&one, &two], 7, &[Rule { source: None, table: 254, priority: None }], &routes);
        let source = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            plan.rules,
            [
                Rule { source: source("10.1.0.2/32"), table: 100, priority: None },
                Rule { source: source("10.2.0.2/32"), table: 102, priority: None }
            ]
        );
        assert_eq!(
            plan.add,
            [
                Route { table: 100, ..connected.clone() },
                Route { table: 100, ..routes[1].clone() },
                Route { table: 102, ..route("0.0.0.0/0", Some("10.2.0.1")) },
                Route { table: 102, ..routes[2].clone() },
            ]
        );
        assert_eq!(plan.delete, routes[..3]);
    }
}
