//! What the BGP speaker learnt, and the work of one change of it among many.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::diff::Action;
use super::plan::{Learned, Path, Ways};
use super::state::{Hops, State};

/// A prefix with its best path, or without any.
pub type Change = (IpNetwork, Option<Arc<Path>>);

/// All that was learnt, and which of it the kernel has not heard.
#[derive(Debug, Default)]
pub struct Table {
    pub learned: Learned,
    changed: Vec<Change>,
    /// Whether the speaker has told all it knew of when it began; until then routes of before a restart stay.
    pub complete: bool,
}

impl Table {
    pub fn note(&mut self, changes: Vec<Change>) {
        for (prefix, path) in &changes {
            match path {
                Some(path) => drop(self.learned.insert(*prefix, Arc::clone(path))),
                None => drop(self.learned.remove(prefix)),
            }
        }
        self.changed.extend(changes);
    }

    /// What changed since the last call.
    pub fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changed)
    }
}

/// The actions of these changes alone, where the kernel is known to be right otherwise. `own` is what no peer's word
/// changes.
pub fn actions(changes: &[Change], own: &[IpNetwork], ways: Ways<'_>, known: &State) -> Vec<Action> {
    let mut last: BTreeMap<IpNetwork, Option<&Arc<Path>>> = BTreeMap::new();
    for (prefix, path) in changes.iter().filter(|(prefix, _)| !own.contains(prefix)) {
        last.insert(*prefix, path.as_ref());
    }
    let mut resolved: BTreeMap<&Arc<Path>, Hops> = BTreeMap::new();
    let mut actions = Vec::new();
    for (prefix, path) in last {
        let wanted = path.and_then(|path| {
            let hops = resolved.entry(path).or_insert_with(|| ways.hops(path));
            (!hops.is_empty()).then(|| (path.metric, Arc::clone(hops)))
        });
        let present = known.routes.range((prefix, 0)..=(prefix, u32::MAX));
        let stale = present.filter(|((_, metric), _)| wanted.as_ref().is_none_or(|(wanted, _)| wanted != metric));
        let stale: Vec<Action> =
            stale.map(|((_, metric), hops)| Action::DeleteRoute(prefix, *metric, Arc::clone(hops))).collect();
        if let Some((metric, hops)) = wanted
            && known.routes.get(&(prefix, metric)) != Some(&hops)
        {
            actions.push(Action::SetRoute(prefix, metric, hops));
        }
        actions.extend(stale);
    }
    actions
}

/// What a change of routes does to what is known.
pub fn apply(action: &Action, known: &mut State) {
    match action {
        Action::SetRoute(prefix, metric, hops) => drop(known.routes.insert((*prefix, *metric), Arc::clone(hops))),
        Action::DeleteRoute(prefix, metric, _) => drop(known.routes.remove(&(*prefix, *metric))),
        _ => {}
    }
}

/// Keeps the routes of before a restart, until the speaker knows what has become of them.
pub fn retain(is: &State, shall: &mut State) {
    for (key, hops) in is.routes.iter().filter(|(_, hops)| !hops.is_empty()) {
        if !shall.routes.range((key.0, 0)..=(key.0, u32::MAX)).any(|(_, hops)| !hops.is_empty()) {
            shall.routes.insert(*key, Arc::clone(hops));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::routes::diff::diff;
    use crate::routes::plan::Gateways;
    use crate::routes::plan::tests::{interfaces, nodes, planned};

    fn path(gateways: &[&str], metric: u32) -> Option<Arc<Path>> {
        Some(Arc::new(Path { gateways: gateways.iter().map(|gateway| gateway.parse().unwrap()).collect(), metric }))
    }

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn one_change_among_many_is_one_action() {
        let own = [net("10.244.1.0/24")];
        let mut known = planned(&nodes(), Mode::Bgp).state;
        let mut step = |changes: &[Change]| {
            let ways = Ways { interfaces: &interfaces(), gateways: &Gateways::new() };
            let actions = actions(changes, &own, ways, &known);
            actions.iter().for_each(|action| apply(action, &mut known));
            actions
        };
        let many: Vec<Change> = (0..1000_u32)
            .map(|n| (net(&format!("10.{}.{}.0/24", n / 250, n % 250)), path(&["192.0.2.2"], 0)))
            .collect();
        assert_eq!(step(&many).len(), 1000);
        assert_eq!(step(&many), []);
        let one = net("10.1.7.0/24");
        let set =
            |action: &Action| matches!(action, Action::SetRoute(prefix, 0, hops) if *prefix == one && hops.len() == 2);
        let two = step(&[(one, path(&["192.0.2.2", "192.0.2.3"], 0))]);
        assert!(two.len() == 1 && set(&two[0]), "{two:?}");
        // Another metric is another route; the old one goes when the new one stands.
        let moved = step(&[(one, None), (one, path(&["192.0.2.3"], 50))]);
        assert!(
            matches!(&moved[..], [Action::SetRoute(_, 50, _), Action::DeleteRoute(_, 0, _)]),
            "the last word counts: {moved:?}"
        );
        assert!(
            matches!(&step(&[(one, path(&["203.0.113.1"], 50))])[..], [Action::DeleteRoute(_, 50, _)]),
            "no link to it"
        );
        assert_eq!(step(&[(one, None), (own[0], path(&["192.0.2.2"], 0))]), []);
    }

    #[test]
    fn routes_of_before_a_restart_stay_until_all_is_told() {
        let mut is = planned(&nodes(), Mode::Bgp).state;
        let ways = Ways { interfaces: &interfaces(), gateways: &Gateways::new() };
        for action in actions(&[(net("10.9.0.0/16"), path(&["192.0.2.2"], 7))], &[], ways, &is.clone()) {
            apply(&action, &mut is);
        }
        let mut shall = planned(&nodes(), Mode::Bgp).state;
        assert_eq!(diff(&is, &shall).len(), 1);
        retain(&is, &mut shall);
        assert_eq!(diff(&is, &shall), []);
    }
}
