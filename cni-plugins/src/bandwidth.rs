//! `bandwidth`: a token bucket for what the container receives, at the root of the node's end of its veth, and one for
//! what it sends, on an intermediate functional block to which that end redirects what it takes in.

use api::cni::{Bandwidth as Limits, Error, Success};
use kernel::netlink::{Kernel, Kind, Link, LinkChange, Network, NewLink, TokenBucket};

use crate::interface::{Container, report};
use crate::skel::{Call, Plugin, gone_owners};
use crate::veth;

pub struct Bandwidth;

/// How long a packet may wait for tokens, in microseconds.
const LATENCY: u32 = 25_000;

/// The buckets that a configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Buckets {
    ingress: Option<TokenBucket>,
    egress: Option<TokenBucket>,
}

fn buckets(call: &Call) -> Result<Buckets, Error> {
    let keys = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
    let configured = keys.iter().any(|key| call.config.rest.contains_key(*key));
    let limits: Limits = match (configured, &call.config.runtime_config.bandwidth) {
        (false, Some(limits)) => limits.clone(),
        _ => call.own()?,
    };
    Ok(Buckets {
        ingress: bucket("ingress", limits.ingress_rate, limits.ingress_burst)?,
        egress: bucket("egress", limits.egress_rate, limits.egress_burst)?,
    })
}

/// From bits a second and bits.
fn bucket(way: &str, rate: u64, burst: u64) -> Result<Option<TokenBucket>, Error> {
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err(Error::config(format!("{way}Burst is set, so {way}Rate must be too"))),
        (_, 0) => Err(Error::config(format!("{way}Rate is set, so {way}Burst must be too"))),
        (_, burst) => match u32::try_from(burst / 8) {
            Ok(bytes) if bytes < u32::MAX => Ok(Some(TokenBucket::new(rate / 8, bytes, LATENCY))),
            _ => Err(Error::config(format!("{way}Burst is more than 4 GB"))),
        },
    }
}

/// The block's name is a function of the attachment.
fn block(call: &Call) -> String {
    format!("bwp{}", veth::hash(&call.owner()))
}

/// The node's end of the container's veth, which the previous result has to tell of.
fn node_end(call: &Call, node: &mut Kernel, previous: &Success) -> Result<Link, Error> {
    let mut container = Container::open(call)?;
    let inner = container.link(&call.ifname)?;
    let links = node.links().map_err(Error::internal)?;
    let peer = links.into_iter().find(|link| inner.kind == "veth" && Some(link.index) == inner.peer);
    let told = |link: &Link| previous.interfaces.iter().any(|i| i.sandbox.is_empty() && i.name == link.name);
    let missing = || {
        Error::config(format!(
            "the container's interface {} has no veth end on the node that the previous result tells of",
            call.ifname
        ))
    };
    peer.filter(told).ok_or_else(missing)
}

impl Plugin for Bandwidth {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let buckets = buckets(call)?;
        let mut previous = call.previous()?;
        if buckets == (Buckets { ingress: None, egress: None }) {
            return Ok(previous);
        }
        let mut node = Kernel::open().map_err(Error::internal)?;
        let port = node_end(call, &mut node, &previous)?;
        if let Some(bucket) = buckets.ingress {
            node.add_token_bucket(port.index, bucket).map_err(Error::internal)?;
        }
        if let Some(bucket) = buckets.egress {
            match limit_egress(call, &mut node, &port, bucket) {
                Ok(block) => previous.interfaces.push(report(&block, "")),
                Err(error) => {
                    let _ = remove(call, &mut node);
                    return Err(error);
                }
            }
        }
        Ok(previous)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        // The token bucket goes with the veth.
        remove(call, &mut Kernel::open().map_err(Error::internal)?)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let buckets = buckets(call)?;
        let previous = call.previous()?;
        let mut node = Kernel::open().map_err(Error::internal)?;
        let port = node_end(call, &mut node, &previous)?;
        let block = node.link(&block(call)).map_err(Error::internal)?;
        for (wanted, link) in [(buckets.ingress, Some(port)), (buckets.egress, block)] {
            let Some(wanted) = wanted else { continue };
            let Some(link) = link else {
                return Err(Error::internal("the block that limits what the container sends is missing"));
            };
            if node.token_bucket(link.index).map_err(Error::internal)? != Some(wanted) {
                return Err(Error::internal(format!("{} is not limited as the configuration says", link.name)));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let Some(valid) = &call.config.valid_attachments else { return Ok(()) };
        let is_gone = gone_owners(&call.config.name, valid);
        let mut node = Kernel::open().map_err(Error::internal)?;
        for link in node.links().map_err(Error::internal)? {
            if link.kind == "ifb" && is_gone(&link.alias) {
                node.delete_link(link.index).map_err(Error::internal)?;
            }
        }
        Ok(())
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        buckets(call).map(drop)
    }
}

fn limit_egress(call: &Call, node: &mut Kernel, port: &Link, bucket: TokenBucket) -> Result<Link, Error> {
    let name = block(call);
    // What an ADD that was killed left.
    remove(call, node)?;
    let wanted =
        NewLink { name: &name, kind: Kind::Ifb, parent: None, mtu: Some(port.mtu), mac: None, netns: None, up: true };
    node.add_link(&wanted).map_err(|error| match error.is_unsupported() {
        true => Error::internal("this kernel has no links of kind ifb, which egress limits need: CONFIG_IFB"),
        false => Error::internal(error),
    })?;
    let link = crate::interface::find(node, &name)?;
    let owner = call.owner();
    let mark = LinkChange { alias: Some(&owner), ..LinkChange::default() };
    node.change_link(link.index, mark)
        .and_then(|()| node.tune_link(link.index, None, Some(0)))
        .and_then(|()| node.redirect_ingress(port.index, link.index))
        .and_then(|()| node.add_token_bucket(link.index, bucket))
        .map_err(Error::internal)?;
    Ok(link)
}

fn remove(call: &Call, node: &mut Kernel) -> Result<(), Error> {
    let link = node.link(&block(call)).map_err(Error::internal)?;
    let ours = link.filter(|link| link.kind == "ifb" && (link.alias.is_empty() || link.alias == call.owner()));
    ours.map_or(Ok(()), |link| node.delete_link(link.index).map(drop).map_err(Error::internal))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(config: Value) -> Result<Buckets, String> {
        let call = Call { config: serde_json::from_value(config).unwrap(), ..Call::default() };
        buckets(&call).map_err(|error| error.msg)
    }

    #[test]
    fn the_configuration_counts_before_the_runtime() {
        let runtime = json!({"bandwidth": {"ingressRate": 8000, "ingressBurst": 16000}});
        let both = read(json!({"egressRate": 800, "egressBurst": 1600, "runtimeConfig": runtime})).unwrap();
        let bucket = |rate, burst| Some(TokenBucket::new(rate, burst, LATENCY));
        assert_eq!(both, Buckets { ingress: None, egress: bucket(100, 200) });
        assert_eq!(read(json!({"runtimeConfig": runtime})), Ok(Buckets { ingress: bucket(1000, 2000), egress: None }));
        assert_eq!(read(json!({})), Ok(Buckets { ingress: None, egress: None }));
    }

    #[test]
    fn rate_and_burst_belong_together() {
        let rate = read(json!({"ingressRate": 8000})).unwrap_err();
        assert_eq!(rate, "ingressRate is set, so ingressBurst must be too");
        let burst = read(json!({"egressRate": 1, "egressBurst": 8_u64 << 32})).unwrap_err();
        assert_eq!(burst, "egressBurst is more than 4 GB");
    }
}
