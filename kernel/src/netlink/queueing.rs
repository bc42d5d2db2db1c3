//! Queueing disciplines: a token bucket at a link's root, and the way that what a link receives takes to another.
//!
//! Source: linux/pkt_sched.h, linux/pkt_cls.h, tc-tbf(8).

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator};

use super::attributes::Body;
use super::real::failed;
use super::{Kernel, Result};

const NEWQDISC: u16 = 36;
const GETQDISC: u16 = 38;
const NEWTFILTER: u16 = 44;
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
/// The handle of an ingress discipline, `ffff:`.
const INGRESS_HANDLE: u32 = 0xffff_0000;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;

/// A token bucket as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate: u64,
    /// How long the bucket lasts at that rate, in the scheduler's ticks of 64 ns.
    pub buffer: u32,
    /// Bytes that may wait for tokens.
    pub limit: u32,
}

impl TokenBucket {
    /// A bucket of `burst` bytes in which a packet waits no longer than `latency` microseconds beyond the burst.
    pub fn new(rate: u64, burst: u32, latency: u32) -> Self {
        let rate = rate.max(1);
        let micros = u64::from(burst).saturating_mul(1_000_000) / rate;
        let micros = micros.min(u64::from(u32::MAX));
        let waiting = u128::from(rate) * u128::from(latency) / 1_000_000;
        Self {
            rate,
            buffer: u32::try_from(micros * 1000 / 64).unwrap_or(u32::MAX),
            limit: u32::try_from(waiting + u128::from(burst)).unwrap_or(u32::MAX),
        }
    }

    /// `struct tc_tbf_qopt`.
    fn parameters(self) -> Vec<u8> {
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let mut bytes = vec![0; 8];
        bytes.extend(rate.to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend([self.limit, self.buffer, 0].iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    fn read(options: &[u8]) -> Option<Self> {
        let (mut found, mut wide) = (None, None);
        for attribute in NlasIterator::new(options).filter_map(|attribute| attribute.ok()) {
            let value = attribute.value();
            let word = |at: usize| value.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
            match attribute.kind() {
                TBF_PARMS => {
                    found = Some(Self { rate: u64::from(word(8)?), limit: word(24)?, buffer: word(28)? });
                }
                TBF_RATE64 => wide = value.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes),
                _ => {}
            }
        }
        found.map(|bucket| Self { rate: wide.unwrap_or(bucket.rate), ..bucket })
    }
}

/// `struct tcmsg`.
fn header(link: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, link, handle, parent, info].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Kernel {
    /// Sends what leaves the link through a token bucket, `1:` at its root.
    ///
    /// # Errors
    /// Where the link has a discipline of an administrator's at its root, or the kernel has no token bucket.
    pub fn add_token_bucket(&mut self, link: u32, bucket: TokenBucket) -> Result<()> {
        let mut body = Body::new(&header(link, 0x1_0000, ROOT, 0));
        body.put_text(TCA_KIND, "tbf");
        body.nest(TCA_OPTIONS, |options| {
            options.put(TBF_PARMS, &bucket.parameters());
            if bucket.rate > u64::from(u32::MAX) {
                options.put(TBF_RATE64, &bucket.rate.to_ne_bytes());
            }
        });
        self.0.act(NEWQDISC, CREATE, &body).map_err(failed("add", || format!("a token bucket to link {link}")))
    }

    /// The token bucket at the link's root, where there is one.
    ///
    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn token_bucket(&mut self, link: u32) -> Result<Option<TokenBucket>> {
        let parts = self
            .0
            .dump(GETQDISC, &Body::new(&header(link, 0, 0, 0)))
            .map_err(failed("list", || format!("the queueing of link {link}")))?;
        Ok(parts.iter().find_map(|part| read_bucket(part, link)))
    }

    /// Sends all that `link` receives out by `to`, an intermediate functional block.
    ///
    /// # Errors
    /// Where the link has an ingress discipline already, or the kernel lacks it, its u32 filter or mirred.
    pub fn redirect_ingress(&mut self, link: u32, to: u32) -> Result<()> {
        let mut ingress = Body::new(&header(link, INGRESS_HANDLE, INGRESS, 0));
        ingress.put_text(TCA_KIND, "ingress");
        self.0
            .act(NEWQDISC, CREATE, &ingress)
            .map_err(failed("add", || format!("an ingress discipline to link {link}")))?;
        self.0
            .act(NEWTFILTER, CREATE, &redirect(link, to))
            .map_err(failed("redirect", || format!("what link {link} receives to link {to}")))
    }
}

/// A u32 filter of priority 1 that matches every protocol and packet, and its action.
fn redirect(link: u32, to: u32) -> Body {
    const ALL_PROTOCOLS: u16 = 3;
    const PRIORITY: u32 = 1;
    let info = PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be());
    let mut body = Body::new(&header(link, 0, INGRESS_HANDLE, info));
    body.put_text(TCA_KIND, "u32");
    body.nest(TCA_OPTIONS, |options| {
        const CLASS: u16 = 1;
        const SELECTOR: u16 = 5;
        const ACTIONS: u16 = 7;
        options.put_u32(CLASS, 0x1_0001);
        // `struct tc_u32_sel`, terminal, with one key that nothing has to fit.
        let selector = [&[1, 0, 1][..], &[0; 29]].concat();
        options.put(SELECTOR, &selector);
        options.nest(ACTIONS, |actions| actions.nest(1, |action| mirred(action, to)));
    });
    body
}

/// `struct tc_mirred`: the packet is taken (`TC_ACT_STOLEN`) and sent by the other link.
fn mirred(action: &mut Body, to: u32) {
    const STOLEN: u32 = 4;
    const EGRESS_REDIRECT: u32 = 1;
    const PARAMETERS: u16 = 2;
    action.put_text(1, "mirred");
    let words = [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to];
    let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    action.nest(2, |options| options.put(PARAMETERS, &bytes));
}

pub(super) fn read_bucket(part: &[u8], link: u32) -> Option<TokenBucket> {
    let word = |at: usize| part.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    if word(4)? != link || word(12)? != ROOT {
        return None;
    }
    let attributes = || NlasIterator::new(part.get(20..).unwrap_or_default()).filter_map(|attribute| attribute.ok());
    attributes().find(|attribute| attribute.kind() == TCA_KIND && attribute.value() == b"tbf\0")?;
    attributes()
        .find(|attribute| attribute.kind() == TCA_OPTIONS)
        .and_then(|options| TokenBucket::read(options.value()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Kind, Network, NewLink};
    use crate::netns::Netns;

    #[test]
    fn a_bucket_holds_its_burst_and_lets_packets_wait() {
        // 1 Mbit/s is 125 000 bytes a second: 12 500 bytes last 100 ms, and 25 ms are 3125 bytes.
        let bucket = TokenBucket::new(125_000, 12_500, 25_000);
        assert_eq!(bucket, TokenBucket { rate: 125_000, buffer: 1_562_500, limit: 15_625 });
        assert_eq!(TokenBucket::new(1, u32::MAX, 0).buffer, u32::MAX);
    }

    #[test]
    fn what_was_set_is_read_back() {
        if !crate::test::root("queueing") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let mut network = netns.run(|| Kernel::open().unwrap()).unwrap();
        for name in ["ifb7", "ifb8"] {
            let link =
                NewLink { name, kind: Kind::Ifb, parent: None, mtu: Some(1400), mac: None, netns: None, up: true };
            network.add_link(&link).unwrap();
        }
        let (one, two) = (network.link("ifb7").unwrap().unwrap(), network.link("ifb8").unwrap().unwrap());
        assert!(one.up && one.kind == "ifb" && one.mtu == 1400);
        assert_eq!(network.token_bucket(one.index).unwrap(), None);
        let bucket = TokenBucket::new(125_000, 12_500, 25_000);
        network.add_token_bucket(one.index, bucket).unwrap();
        assert_eq!(network.token_bucket(one.index).unwrap(), Some(bucket));
        let wide = TokenBucket::new(6_000_000_000, 1_000_000, 25_000);
        network.add_token_bucket(two.index, wide).unwrap();
        assert_eq!(network.token_bucket(two.index).unwrap().unwrap().rate, wide.rate);
        network.redirect_ingress(one.index, two.index).unwrap();
        assert!(network.redirect_ingress(one.index, two.index).unwrap_err().is_exists());
    }
}
