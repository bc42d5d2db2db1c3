//! A zone of firewalld, by its own program.

use std::net::IpAddr;
use std::path::Path;

use api::cni::Error;
use kernel::exec;

fn ask(words: &[&str]) -> Result<exec::Output, exec::Error> {
    exec::run_with(Path::new("firewall-cmd"), words, b"")
}

pub fn is_running() -> bool {
    ask(&["--state"]).is_ok_and(|output| output.success)
}

fn source(verb: &str, ip: IpAddr) -> String {
    format!("--{verb}-source={ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

/// Puts the addresses into the zone. One that is in a zone already stays there.
pub fn add(zone: &str, ips: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
    for ip in ips {
        let output = ask(&[&format!("--zone={zone}"), &source("add", ip)]).map_err(Error::internal)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.success && !said.contains("ZONE_ALREADY_SET") && !said.contains("ZONE_CONFLICT") {
            return Err(Error::internal(format!("cannot add {ip} to zone {zone} of firewalld: {}", said.trim())));
        }
    }
    Ok(())
}

/// Takes the addresses out. Not there is success, and so is a firewalld that ended: it forgot them.
pub fn remove(zone: &str, ips: impl Iterator<Item = IpAddr>) {
    for ip in ips {
        let _ = ask(&[&format!("--zone={zone}"), &source("remove", ip)]);
    }
}

pub fn check(zone: &str, mut ips: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
    let is_there = |ip| ask(&[&format!("--zone={zone}"), &source("query", ip)]).is_ok_and(|output| output.success);
    match ips.find(|ip| !is_there(*ip)) {
        None => Ok(()),
        Some(ip) => Err(Error::internal(format!("{ip} is not in zone {zone} of firewalld"))),
    }
}
