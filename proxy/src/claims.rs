//! Who names which address: nobody keeps two Services from naming one external address, or one from naming another's
//! cluster IP. Where that is so, a step between the plans of some Services would take from the others what is theirs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use crate::backend::Change;
use crate::model::Protocol;
use crate::plan::{Front, Plan};

type Claim = (Front, Protocol);

/// How many Services claim each front that is of no cluster IP of theirs.
#[derive(Debug, Default)]
pub struct Claims(HashMap<Claim, usize>);

/// By how many each claim changes; those that stay count by nothing.
#[derive(Debug)]
pub struct Delta(HashMap<Claim, isize>);

fn of(plan: &Plan) -> BTreeSet<Claim> {
    let foreign = |front: Front| front.ip().is_some_and(|ip| !plan.cluster_ips.contains(&ip));
    plan.rules.iter().filter(|rule| foreign(rule.front)).map(|rule| (rule.front, rule.protocol)).collect()
}

impl Delta {
    pub fn new(changes: &[Change<'_>]) -> Self {
        let mut touched = HashMap::new();
        for Change { before, after, .. } in changes {
            before.iter().flat_map(|plan| of(plan)).for_each(|claim| *touched.entry(claim).or_default() -= 1);
            after.iter().flat_map(|plan| of(plan)).for_each(|claim| *touched.entry(claim).or_default() += 1);
        }
        Self(touched)
    }
}

impl Claims {
    pub fn new<'a>(plans: impl Iterator<Item = &'a Plan>) -> Self {
        let mut counts = HashMap::new();
        plans.flat_map(of).for_each(|claim| *counts.entry(claim).or_default() += 1);
        Self(counts)
    }

    pub fn apply(&mut self, delta: Delta) {
        for (claim, by) in delta.0 {
            match self.count(&claim).saturating_add_signed(by) {
                0 => drop(self.0.remove(&claim)),
                count => drop(self.0.insert(claim, count)),
            }
        }
    }

    fn count(&self, claim: &Claim) -> usize {
        self.0.get(claim).copied().unwrap_or(0)
    }

    /// Whether one of the changed Services shares a front with another, before or after. `plans` are all of before.
    pub fn is_contested<'a>(
        &self,
        changes: &[Change<'_>],
        delta: &Delta,
        plans: impl IntoIterator<Item = &'a Plan>,
    ) -> bool {
        let most = |claim: &Claim| {
            let before = self.count(claim);
            before.max(before.saturating_add_signed(delta.0.get(claim).copied().unwrap_or(0)))
        };
        let shared = changes.iter().flat_map(|change| [change.before, change.after]).flatten().any(|plan| {
            let own = of(plan);
            let mut claims = plan.rules.iter().map(|rule| (rule.front, rule.protocol));
            claims.any(|claim| most(&claim) > usize::from(own.contains(&claim)))
        });
        let claimed: HashSet<IpAddr> = delta.0.keys().filter_map(|(front, _)| front.ip()).collect();
        let given = |plan: &Plan| plan.cluster_ips.iter().any(|ip| claimed.contains(ip));
        let mut after = changes.iter().filter_map(|change| change.after);
        shared || !claimed.is_empty() && (plans.into_iter().any(given) || after.any(given))
    }

    #[cfg(test)]
    pub fn counts(&self) -> Vec<usize> {
        self.0.values().copied().collect()
    }
}
