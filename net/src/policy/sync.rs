//! Keeps the kernel's table where the plan is.
//!
//! A fresh process, and one whose step failed, reads what the kernel holds and changes what differs; where that cannot
//! be told apart, or fails too, the table is replaced whole. Each step is one transaction, so that no packet meets half
//! of one.

use std::collections::BTreeMap;

use kernel::nftables::{self, Nftables};

use super::listing::{Listing, read_counters};
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
    knowledge: Knowledge,
}

impl Keeper {
    pub fn new(node: &str, nft: Box<dyn Nftables>) -> Self {
        Self { planner: Planner::new(node), nft, knowledge: Knowledge::Unknown }
    }

    /// Takes a change into the model. `false` where it changes nothing.
    pub fn note(&mut self, change: Change) -> bool {
        self.planner.note(change)
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
        let (script, step) = match &edits {
            Some(edits) => (self.planner.table.script(edits), step),
            None => (self.planner.table.whole(), Step::Whole),
        };
        if !script.is_empty() {
            self.knowledge = on_failure;
            self.nft.apply(&script)?;
        }
        self.knowledge = Knowledge::Settled;
        self.planner.table.settled();
        Ok(if script.is_empty() { Step::Nothing } else { step })
    }

    /// From what the kernel holds; `None` where that is not ours.
    fn difference(&self) -> Option<Edits> {
        let read = |family: &str| self.nft.list(&format!("list table {family} {TABLE}")).ok();
        let listing = Listing::read(&read("inet")?).beside(Listing::read(&read("bridge")?))?;
        self.planner.table.edits_from(&listing)
    }
}

/// How many packets each counter has seen dropped, by the counter's comment: whose they were.
///
/// # Errors
/// nft's.
pub fn drops(nft: &dyn Nftables) -> Result<BTreeMap<String, u64>, nftables::Error> {
    let list = |family: &str| nft.list(&format!("list counters table {family} {TABLE}"));
    Ok(read_counters(&format!("{}{}", list("inet")?, list("bridge")?)))
}
