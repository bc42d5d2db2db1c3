//! `host-local`: addresses from ranges, remembered in files of the reference plugin's form.
//!
//! Choosing is in [`ranges`] and [`taken`] and needs no disk; [`store`] is the folder with its lock.

mod ranges;
mod store;
mod taken;

use std::net::IpAddr;
use std::path::PathBuf;

use api::cni::{Attachment, Dns, Error, Ip, IpRange, Route, Success};
use serde::Deserialize;
use serde_json::Value;

use crate::skel::{Call, Plugin};
use ranges::RangeSet;
use store::Store;
pub use taken::Taken;

pub struct HostLocal;

/// `ipam` of the network configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    ranges: Vec<Vec<IpRange>>,
    /// The older form: one range beside the type.
    subnet: Option<String>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    routes: Vec<Route>,
    data_dir: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
}

#[derive(Debug)]
struct Plan {
    sets: Vec<RangeSet>,
    requested: Vec<IpAddr>,
    routes: Vec<Route>,
    dns: Dns,
    folder: PathBuf,
}

const DATA_DIR: &str = "/var/lib/cni/networks";

fn config(call: &Call) -> Result<Config, Error> {
    let ipam = call.config.rest.get("ipam").cloned().ok_or_else(|| Error::config("IPAM config missing 'ipam' key"))?;
    serde_json::from_value(ipam).map_err(|error| Error::config(format!("cannot read the ipam configuration: {error}")))
}

fn folder(config: &Config, call: &Call) -> PathBuf {
    config.data_dir.clone().unwrap_or_else(|| DATA_DIR.into()).join(&call.config.name)
}

fn plan(call: &Call) -> Result<Plan, Error> {
    let config = config(call)?;
    let mut lists = call.config.runtime_config.ip_ranges.clone();
    if let Some(subnet) = &config.subnet {
        let subnet = subnet.parse().map_err(|error| Error::config(format!("subnet {subnet:?}: {error}")))?;
        let (range_start, range_end, gateway) = (config.range_start, config.range_end, config.gateway);
        lists.push(vec![IpRange { subnet, range_start, range_end, gateway }]);
    }
    lists.extend(config.ranges.iter().cloned());
    if lists.is_empty() {
        return Err(Error::config("no IP ranges specified"));
    }
    let sets = lists.iter().map(|list| RangeSet::new(list).map_err(Error::config)).collect::<Result<Vec<_>, _>>()?;
    ranges::disjoint(&sets).map_err(Error::config)?;
    let dns = match &config.resolv_conf {
        Some(path) => resolv_conf(path)?,
        None => Dns::default(),
    };
    Ok(Plan { sets, requested: requested(call)?, folder: folder(&config, call), routes: config.routes, dns })
}

/// Addresses asked for by `IP=` in CNI_ARGS, `args.cni.ips` and the runtime's `ips`.
fn requested(call: &Call) -> Result<Vec<IpAddr>, Error> {
    let arguments = call.args.get("IP").map(str::to_owned);
    let conventional = call.config.cni_args().and_then(|args| args.get("ips")).and_then(Value::as_array);
    let conventional = conventional.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let runtime = call.config.runtime_config.ips.iter().cloned();
    let mut ips = Vec::new();
    for text in arguments
        .into_iter()
        .flat_map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>())
        .chain(conventional)
        .chain(runtime)
    {
        let plain = text.split('/').next().unwrap_or_default();
        let ip = plain.trim().parse().map_err(|_| Error::config(format!("invalid requested IP {text:?}")))?;
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Ok(ips)
}

fn resolv_conf(path: &std::path::Path) -> Result<Dns, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::internal(format!("cannot read resolvConf {}: {error}", path.display())))?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (key, rest) = (words.next().unwrap_or_default(), words.map(str::to_owned));
        match key {
            "nameserver" => dns.nameservers.extend(rest.take(1)),
            "domain" => dns.domain = rest.take(1).collect(),
            "search" => dns.search.extend(rest),
            "options" => dns.options.extend(rest),
            _ => {}
        }
    }
    Ok(dns)
}

/// What the kernel calls the time since the machine started. Where it does not say, all of time is one boot.
fn boot() -> String {
    kernel::sysctl::read("kernel/random/boot_id").unwrap_or_default()
}

/// The folder, where there is one.
fn store(call: &Call) -> Result<Option<Store>, Error> {
    Store::existing(&folder(&config(call)?, call), &boot()).map_err(Error::internal)
}

/// The addresses that the attachment holds.
pub fn held(call: &Call) -> Result<Vec<IpAddr>, Error> {
    let Some(store) = store(call)? else { return Ok(Vec::new()) };
    held_in(&store, call)
}

fn held_in(store: &Store, call: &Call) -> Result<Vec<IpAddr>, Error> {
    let told = call.config.previous().ok().flatten().unwrap_or_default().ips;
    let likely: Vec<IpAddr> = told.iter().map(|ip| ip.address.ip()).collect();
    store.held((&call.container_id, &call.ifname), &likely).map_err(Error::internal)
}

/// The address with the prefix of the range that holds it.
pub fn network_of(call: &Call, ip: IpAddr) -> Option<ipnetwork::IpNetwork> {
    let plan = plan(call).ok()?;
    plan.sets.iter().find_map(|set| set.answer(ip)).map(|answer| answer.address)
}

impl Plugin for HostLocal {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let plan = plan(call)?;
        let store = Store::open(&plan.folder, &boot()).map_err(Error::internal)?;
        let held = store.linked_addresses(&call.container_id, &call.ifname);
        let mut open = plan.requested.clone();
        let mut ips = Vec::new();
        let outcome = plan.sets.iter().enumerate().try_for_each(|(index, set)| {
            let wanted = open.iter().position(|ip| set.contains(*ip)).map(|at| open.remove(at));
            ips.push(allocate(&store, call, (index, set), wanted, &held)?);
            Ok(())
        });
        let outcome = outcome.and_then(|()| match open.first() {
            None => Ok(()),
            Some(_) => Err(Error::internal(format!("failed to allocate all requested IPs: {open:?}"))),
        });
        if let Err(error) = outcome {
            for ip in &ips {
                store.release(ip.address.ip()).map_err(Error::internal)?;
            }
            if held.is_empty() {
                store.release_all(&[], &call.container_id, &call.ifname).map_err(Error::internal)?;
            }
            return Err(error);
        }
        Ok(Success { interfaces: Vec::new(), ips, routes: plan.routes, dns: plan.dns })
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let Some(store) = store(call)? else { return Ok(()) };
        let ips = held_in(&store, call)?;
        store.release_all(&ips, &call.container_id, &call.ifname).map_err(Error::internal)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        match held(call)?.is_empty() {
            false => Ok(()),
            true => Err(Error::internal(format!(
                "host-local: failed to find address added by container {}",
                call.container_id
            ))),
        }
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let Some(valid) = &call.config.valid_attachments else { return Ok(()) };
        let Some(store) = store(call)? else { return Ok(()) };
        for (ip, container_id, ifname) in store.all().map_err(Error::internal)? {
            if !valid.contains(&Attachment { container_id, ifname }) {
                store.release(ip).map_err(Error::internal)?;
            }
        }
        store.drop_stale_links().map_err(Error::internal)
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        plan(call).map(drop)
    }
}

fn allocate(
    store: &Store,
    call: &Call,
    (index, set): (usize, &RangeSet),
    wanted: Option<IpAddr>,
    held: &[IpAddr],
) -> Result<Ip, Error> {
    if let Some(ip) = held.iter().find(|ip| set.contains(**ip)) {
        let id = &call.container_id;
        return Err(Error::internal(format!("{ip} has been allocated to {id}, duplicate allocation is not allowed")));
    }
    let owner = (call.container_id.as_str(), call.ifname.as_str());
    let reserve = |ip: IpAddr| store.reserve(ip, owner, index).map_err(Error::internal);
    let answer = |ip| set.answer(ip).ok_or_else(|| Error::internal(format!("no range holds {ip}")));
    if let Some(ip) = wanted {
        if set.is_gateway(ip) {
            return Err(Error::internal(format!("requested ip {ip} is subnet's gateway")));
        }
        return match reserve(ip)? {
            true => {
                note(store, (index, set), ip)?;
                answer(ip)
            }
            false => Err(Error::internal(format!("requested IP address {ip} is not available in range set {set}"))),
        };
    }
    let full = || Error::internal(format!("no IP addresses available in range set: {set}"));
    let last = store.last(index);
    let Some(mut taken) = store.remembered(index, set) else {
        for ip in set.after(last) {
            if reserve(ip)? {
                return answer(ip);
            }
        }
        return Err(full());
    };
    let mut counted = false;
    loop {
        match taken.next_after(last) {
            // The configuration may have got another gateway since the bits were written.
            Some(ip) if set.is_gateway(ip) => {
                taken.set(ip, true);
            }
            Some(ip) => {
                let is_ours = reserve(ip)?;
                if let Some((at, byte)) = taken.set(ip, true) {
                    store.write_byte(index, at, byte).map_err(Error::internal)?;
                }
                if is_ours {
                    return answer(ip);
                }
            }
            // Addresses may have become free behind our back.
            None if !counted => {
                let empty = Taken::new(set).ok_or_else(full)?;
                taken = store.count(index, &empty).map_err(Error::internal)?;
                counted = true;
            }
            None => return Err(full()),
        }
    }
}

/// Remembers that an address is in use which nobody had to look for.
fn note(store: &Store, (index, set): (usize, &RangeSet), ip: IpAddr) -> Result<(), Error> {
    let byte = store.remembered(index, set).and_then(|mut taken| taken.set(ip, true));
    byte.map_or(Ok(()), |(at, byte)| store.write_byte(index, at, byte)).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use api::cni::NetworkConfig;
    use serde_json::json;

    use super::*;

    fn call(folder: &std::path::Path, id: &str, ipam: Value) -> Call {
        let mut ipam = ipam;
        ipam["dataDir"] = json!(folder);
        let config: NetworkConfig =
            serde_json::from_value(json!({"cniVersion": "1.1.0", "name": "net", "ipam": ipam})).unwrap();
        Call { container_id: id.into(), ifname: "eth0".into(), config, ..Call::default() }
    }

    #[test]
    fn files_are_those_of_the_reference() {
        let folder = std::env::temp_dir().join(format!("net-hl-{}", std::process::id()));
        let ipam = json!({"ranges": [[{"subnet": "10.1.2.0/29"}], [{"subnet": "fd00::/64", "rangeStart": "fd00::10"}]],
            "routes": [{"dst": "0.0.0.0/0"}]});
        let first = HostLocal.add(&call(&folder, "a", ipam.clone())).unwrap();
        assert_eq!(first.ips[0].address.to_string(), "10.1.2.2/29");
        assert_eq!(first.ips[0].gateway, Some("10.1.2.1".parse().unwrap()));
        assert_eq!(first.ips[1].address.to_string(), "fd00::10/64");
        let net = folder.join("net");
        assert_eq!(std::fs::read(net.join("10.1.2.2")).unwrap(), b"a\r\neth0");
        assert_eq!(std::fs::read(net.join("last_reserved_ip.0")).unwrap(), b"10.1.2.2");
        assert!(net.join("lock").exists() && net.join("fd00::10").exists());

        assert!(HostLocal.add(&call(&folder, "a", ipam.clone())).unwrap_err().msg.contains("duplicate allocation"));
        HostLocal.check(&call(&folder, "a", ipam.clone())).unwrap();
        HostLocal.del(&call(&folder, "a", ipam.clone())).unwrap();
        HostLocal.del(&call(&folder, "a", ipam.clone())).unwrap();
        assert!(HostLocal.check(&call(&folder, "a", ipam.clone())).is_err());
        // The address that was free the longest comes next.
        for (id, expected) in [
            ("b", "10.1.2.3/29"),
            ("c", "10.1.2.4/29"),
            ("d", "10.1.2.5/29"),
            ("e", "10.1.2.6/29"),
            ("f", "10.1.2.2/29"),
        ] {
            assert_eq!(HostLocal.add(&call(&folder, id, ipam.clone())).unwrap().ips[0].address.to_string(), expected);
        }
        let full = HostLocal.add(&call(&folder, "g", ipam.clone())).unwrap_err();
        assert_eq!(full.msg, "no IP addresses available in range set: 10.1.2.1-10.1.2.6");

        let mut gc = call(&folder, "", ipam);
        gc.config.valid_attachments = Some(vec![Attachment { container_id: "c".into(), ifname: "eth0".into() }]);
        HostLocal.gc(&gc).unwrap();
        let left: Vec<_> = std::fs::read_dir(&net)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.starts_with("10."))
            .collect();
        assert_eq!(left, ["10.1.2.4"]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_failed_allocation_keeps_nothing() {
        let folder = std::env::temp_dir().join(format!("net-hlf-{}", std::process::id()));
        let ipam = json!({"ranges": [[{"subnet": "10.1.2.0/29"}], [{"subnet": "10.1.3.0/30", "rangeStart": "10.1.3.1", "rangeEnd": "10.1.3.1"}]]});
        assert!(HostLocal.add(&call(&folder, "a", ipam)).unwrap_err().msg.starts_with("no IP addresses available"));
        assert!(!folder.join("net/10.1.2.2").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("net-hl-{name}-{}", std::process::id()))
    }

    /// What another maker of the files does, as the reference plugin: no links, no bits.
    fn foreign(folder: &std::path::Path, ip: &str, id: &str) {
        std::fs::create_dir_all(folder.join("net")).unwrap();
        std::fs::write(folder.join("net").join(ip), format!("{id}\r\neth0")).unwrap();
    }

    #[test]
    fn what_another_plugin_does_is_seen() {
        let folder = folder("foreign");
        let ipam = json!({"ranges": [[{"subnet": "10.1.2.0/29"}]]});
        foreign(&folder, "10.1.2.3", "x");
        let add = |id: &str| {
            HostLocal.add(&call(&folder, id, ipam.clone())).map(|result| result.ips[0].address.ip().to_string())
        };
        assert_eq!(add("a").unwrap(), "10.1.2.2");
        foreign(&folder, "10.1.2.4", "y");
        assert_eq!(add("b").unwrap(), "10.1.2.5", "three is counted, four is met");
        assert_eq!(add("c").unwrap(), "10.1.2.6");
        assert!(add("d").is_err());
        std::fs::remove_file(folder.join("net/10.1.2.4")).unwrap();
        assert_eq!(add("d").unwrap(), "10.1.2.4", "freed by the other, found when all seem taken");
        let mut del = call(&folder, "x", ipam.clone());
        HostLocal.check(&del).unwrap();
        del.config.prev_result = Some(json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/29"}]}));
        HostLocal.del(&del).unwrap();
        assert!(!folder.join("net/10.1.2.3").exists());
        // A DEL that names an address that meanwhile is another's leaves it.
        foreign(&folder, "10.1.2.3", "z");
        HostLocal.del(&del).unwrap();
        assert!(folder.join("net/10.1.2.3").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_new_gateway_is_given_to_nobody() {
        let folder = folder("gateway");
        let ipam = |gateway: &str| json!({"ranges": [[{"subnet": "10.1.2.0/29", "gateway": gateway}]]});
        let add = |id: &str, gateway: &str| {
            let added = HostLocal.add(&call(&folder, id, ipam(gateway)));
            added.map(|result| result.ips[0].address.ip().to_string())
        };
        assert_eq!(add("a", "10.1.2.1").unwrap(), "10.1.2.2");
        assert_eq!(add("b", "10.1.2.3").unwrap(), "10.1.2.4");
        assert_eq!(
            (add("c", "10.1.2.3").unwrap(), add("d", "10.1.2.3").unwrap()),
            ("10.1.2.5".into(), "10.1.2.6".into())
        );
        assert_eq!(add("e", "10.1.2.3").unwrap(), "10.1.2.1", "the former gateway's, counted anew");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn reservations_end_with_the_boot() {
        let folder = folder("boot");
        let ipam = json!({"ranges": [[{"subnet": "10.1.2.0/29"}], [{"subnet": "fd00::/64"}]]});
        for id in ["a", "b", "c"] {
            HostLocal.add(&call(&folder, id, ipam.clone())).unwrap();
        }
        let net = folder.join("net");
        let count = || {
            std::fs::read_dir(&net)
                .unwrap()
                .flatten()
                .filter(|e| e.file_name().to_string_lossy().parse::<IpAddr>().is_ok())
                .count()
        };
        assert_eq!((count(), std::fs::read_dir(net.join("held")).unwrap().count()), (6, 6));
        HostLocal.add(&call(&folder, "d", ipam.clone())).unwrap();
        assert_eq!(count(), 8, "the same boot keeps them");
        foreign(&folder, "10.1.2.6", "reference");
        std::fs::write(net.join("bosun-boot"), "another boot").unwrap();
        HostLocal.add(&call(&folder, "a", ipam.clone())).unwrap();
        assert_eq!(count(), 3, "only the new one's, and that of which nobody knows when it was made");
        assert_eq!(std::fs::read_to_string(net.join("bosun-boot")).unwrap(), boot());
        for id in ["b", "c", "d"] {
            HostLocal.add(&call(&folder, id, ipam.clone())).unwrap();
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_nearly_full_network_is_no_slower() {
        // Sixty thousand files take a minute on a disk.
        let memory = std::path::Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = base.join(format!("net-hl-full-{}", std::process::id()));
        let ipam = json!({"ranges": [[{"subnet": "10.1.0.0/16"}]]});
        let net = folder.join("net");
        std::fs::create_dir_all(&net).unwrap();
        // All but a hundred addresses, scattered, and the last one given out far from the next free one.
        let free = |number: u32| number % 650 == 649;
        for number in 2..65_535_u32 {
            if !free(number) {
                let ip = std::net::Ipv4Addr::from(0x0a01_0000 + number);
                std::fs::write(net.join(ip.to_string()), "other\r\neth0").unwrap();
            }
        }
        let ids: Vec<String> = (0..50).map(|number| format!("c{number}")).collect();
        let mut spent: Vec<u128> = ids
            .iter()
            .map(|id| {
                let call = call(&folder, id, ipam.clone());
                let begin = Instant::now();
                HostLocal.add(&call).unwrap();
                begin.elapsed().as_micros()
            })
            .collect();
        // The first counts the files.
        spent.remove(0);
        spent.sort_unstable();
        let median = spent[spent.len() / 2];
        println!("ADD with 65433 of 65533 addresses in use: median {median} µs");
        assert!(median < 1000, "{spent:?}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
