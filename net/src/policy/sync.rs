//! Keeps the kernel's table where the plan is.
//!
//! A fresh process, and one whose step failed, reads what the kernel holds and changes what differs; where that cannot
//! be told apart, or fails too, the table is replaced whole. Each step is one transaction, so that no packet meets half
//! of one.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use kernel::conntrack::{self, Conntrack};
use kernel::nftables::{self, Nftables};

use super::flows::Suspects;
use super::frame;
use super::listing::{Listing, read_counters, read_met};
use super::model::Attachment;
use super::plan::{Change, Planner};
use super::table::{Edits, TABLE};

/// What [`Keeper::sync`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    Partial,
    /// What differed from what stood there, unknown before.
    Adopted,
    Whole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    Settled,
    /// The kernel's table is to be read.
    Unknown,
    /// To be written whole.
    Distrusted,
}

pub struct Keeper {
    pub planner: Planner,
    nft: Box<dyn Nftables>,
    /// `None` where the kernel tracks no connections: then all packets meet the rules.
    conntrack: Option<Box<dyn Conntrack>>,
    knowledge: Knowledge,
    /// Addresses whose flows are another pod's, or may become it.
    moved: HashSet<IpAddr>,
    /// Whether policies may forbid what they allowed when [`Keeper::end_flows`] last looked.
    stricter: bool,
}

impl Keeper {
    pub fn new(node: &str, nft: Box<dyn Nftables>, conntrack: Option<Box<dyn Conntrack>>) -> Self {
        Self {
            planner: Planner::new(node),
            nft,
            conntrack,
            knowledge: Knowledge::Unknown,
            moved: HashSet::new(),
            // What changed while no daemon ran is not known.
            stricter: true,
        }
    }

    /// Takes a change into the model. `false` where it changes nothing.
    pub fn note(&mut self, change: Change) -> bool {
        match &change {
            Change::Attached(new) if self.planner.model().attached.get(&new.link) != Some(new) => {
                self.moved.extend(&new.addresses);
            }
            Change::Detached(link) => {
                let old = self.planner.model().attached.get(link);
                self.moved.extend(old.iter().flat_map(|old| &old.addresses));
            }
            _ => {}
        }
        self.planner.note(change)
    }

    /// What was attached when the daemon began: its flows are its own.
    pub fn found(&mut self, attachment: Attachment) {
        self.planner.note(Change::Attached(attachment));
    }

    /// Somebody may have changed the table: the next step reads it.
    pub fn doubt(&mut self) {
        self.knowledge = Knowledge::Unknown;
    }

    /// Brings the kernel to the plan.
    ///
    /// # Errors
    /// nft's; the kernel's rules are then as they were, and the next call tries by another way.
    pub fn sync(&mut self) -> Result<Step, nftables::Error> {
        let edits = self.planner.edits();
        let (edits, step, on_failure) = match self.knowledge {
            Knowledge::Settled => (Some(edits), Step::Partial, Knowledge::Unknown),
            Knowledge::Unknown => (self.difference(), Step::Adopted, Knowledge::Distrusted),
            Knowledge::Distrusted => (None, Step::Whole, Knowledge::Distrusted),
        };
        let script = edits.as_ref().map(|edits| self.planner.table.script(edits));
        let step = match &script {
            Some(script) if script.is_empty() => Step::Nothing,
            Some(script) => {
                self.knowledge = on_failure;
                self.nft.apply(script)?;
                step
            }
            None => {
                self.knowledge = on_failure;
                self.apply_whole()?;
                Step::Whole
            }
        };
        self.stricter |= edits.is_none_or(|edits| edits.may_forbid());
        self.knowledge = Knowledge::Settled;
        self.planner.table.settled();
        Ok(step)
    }

    /// Replaces the table. A kernel without tables of family bridge gets the others.
    fn apply_whole(&mut self) -> Result<(), nftables::Error> {
        let Err(error) = self.nft.apply(&self.planner.table.whole()) else { return Ok(()) };
        if !self.planner.table.bridge {
            return Err(error);
        }
        self.planner.table.bridge = false;
        if self.nft.apply(&self.planner.table.whole()).is_ok() {
            without_bridge(&error.to_string());
            return Ok(());
        }
        self.planner.table.bridge = true;
        Err(error)
    }

    /// From what the kernel holds; `None` where that is not ours.
    fn difference(&mut self) -> Option<Edits> {
        let read = |family: &str| Some(Listing::read(&self.nft.list(&format!("list table {family} {TABLE}")).ok()?));
        let inet = read("inet")?;
        let listing = match self.planner.table.bridge {
            true if inet.chains.contains(&*frame::name(false)) => {
                self.planner.table.bridge = false;
                without_bridge("the table that stands was written without it");
                inet
            }
            true => inet.beside(read("bridge")?)?,
            false => inet,
        };
        self.planner.table.edits_from(&listing)
    }

    /// Ends the flows of addresses that have another pod, and where policies may have become stricter those that they
    /// forbid; how many there were. `own` are the node's addresses.
    ///
    /// # Errors
    /// The kernel's; the next call tries again.
    pub fn end_flows(&mut self, own: HashSet<IpAddr>) -> Result<usize, conntrack::Error> {
        let Some(conntrack) = self.conntrack.as_deref_mut().filter(|_| self.stricter || !self.moved.is_empty()) else {
            return Ok(0);
        };
        let isolated = if self.stricter { self.planner.isolated() } else { HashSet::new() };
        let suspects = Suspects { changed: self.moved.clone(), isolated, own };
        let count = suspects.forget(self.planner.model(), conntrack)?;
        (self.stricter, self.moved) = (false, HashSet::new());
        Ok(count)
    }

    /// Whether flows of addresses are left that have another pod, which must not begin before they are gone.
    pub fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Whether [`Keeper::end_flows`] has something to look for.
    pub fn is_stricter(&self) -> bool {
        self.stricter
    }
}

fn without_bridge(why: &str) {
    tracing::warn!(
        "this kernel has no nftables of family bridge (CONFIG_NF_TABLES_BRIDGE), so that pods on a bridge can send from \
         addresses that are not their own, and what is flooded reaches isolated pods; all else is enforced: {why}"
    );
}

/// A packet that a policy dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Met {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub port: u16,
    /// How many milliseconds the kernel will remember it yet: of two the later one has more.
    pub remembered: u64,
}

/// The last packets that were dropped, as far as the kernel remembers them.
///
/// # Errors
/// nft's.
pub fn met(nft: &dyn Nftables) -> Result<Vec<Met>, nftables::Error> {
    let mut all = Vec::new();
    for set in frame::DROPPED {
        all.extend(read_met(&nft.list(&format!("list set inet {TABLE} {set}"))?));
    }
    Ok(all)
}

/// How many packets each counter has seen dropped, by the counter's comment: whose they were.
///
/// # Errors
/// nft's.
pub fn drops(nft: &dyn Nftables) -> Result<BTreeMap<String, u64>, nftables::Error> {
    let list = |family: &str| nft.list(&format!("list counters table {family} {TABLE}"));
    // Not every kernel has the family.
    let bridge = list("bridge").or_else(|error| match error {
        nftables::Error::Missing(_) | nftables::Error::Refused(_) => Ok(String::new()),
        error => Err(error),
    })?;
    Ok(read_counters(&format!("{}{bridge}", list("inet")?)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use kernel::nftables::Fake;

    /// A kernel without tables of family bridge, or one that refuses everything for a while.
    struct Narrow(Arc<Fake>);
    impl Nftables for Narrow {
        fn apply(&self, script: &str) -> Result<(), nftables::Error> {
            match script.contains("table bridge") {
                true => Err(nftables::Error::Refused("Operation not supported".into())),
                false => self.0.apply(script),
            }
        }
        fn list(&self, command: &str) -> Result<String, nftables::Error> {
            match command.contains("bridge") {
                true => Err(nftables::Error::Missing(command.into())),
                false => self.0.list(command),
            }
        }
    }

    #[test]
    fn a_kernel_without_bridge_tables_gets_the_others() {
        let fake = Arc::new(Fake::default());
        let attachment = Attachment {
            container: "c".into(),
            link: "veth1".into(),
            namespace: "a".into(),
            pod: "web".into(),
            uid: "u".into(),
            addresses: ["10.0.0.1".parse().unwrap()].into(),
        };
        let mut keeper = Keeper::new("n1", Box::new(Narrow(fake.clone())), None);
        keeper.found(attachment.clone());
        assert_eq!(keeper.sync().unwrap(), Step::Whole);
        let whole = fake.applied.lock().unwrap()[0].clone();
        assert!(whole.contains("add element inet bosun-policy own4 { \"veth1\" . 10.0.0.1 }"), "{whole}");
        assert!(!whole.contains("bridge"), "{whole}");
        keeper.note(Change::Detached("veth1".into()));
        assert_eq!(keeper.sync().unwrap(), Step::Partial);

        // The next process finds that out from what stands, and changes nothing.
        let chains = format!("table inet bosun-policy {{\n\tchain {} {{\n\t}}\n}}\n", frame::name(false));
        let sets: String = frame::sets().map(|set| format!("\tset {set} {{\n\t}}\n")).collect();
        *fake.listing.lock().unwrap() = Some(format!("{chains}{sets}"));
        let mut keeper = Keeper::new("n1", Box::new(Narrow(fake.clone())), None);
        assert_eq!(keeper.sync().unwrap(), Step::Nothing);

        *fake.listing.lock().unwrap() = None;
        *fake.refuse.lock().unwrap() = vec!["busy".into()];
        let mut keeper = Keeper::new("n1", Box::new(Narrow(fake.clone())), None);
        assert!(keeper.sync().is_err(), "refused for another reason");
        assert!(keeper.planner.table.bridge, "and tried with all families again");
    }
}
