//! The loop: news change the model, and soon after the first of a burst the kernel follows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::netlink::Change;
use kernel::nftables::Generations;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use super::conflist;
use super::diff::{Action, diff};
use super::events::Voice;
use super::fabric::{self, Fabric};
use super::learned::{self, Table};
use super::model::{Interface, Node};
use super::peering::{Cluster, Driver};
use super::plan::{Gateways, Model, Plan, Problem, Ways, own, plan};
use super::report::{self, Report};
use super::state::State;
use super::watch::{News, fresh};
use crate::config::{Config, Mode};
use crate::run::Ground;

/// A burst of news is one change.
const BURST: Duration = Duration::from_millis(20);
/// After something went wrong.
const AGAIN: Duration = Duration::from_secs(1);
/// How often to see whether somebody touched the rules, which the kernel does not tell.
const GLANCE: Duration = Duration::from_secs(5);
/// How many glances there are to a look at everything.
const LOOK: u32 = 12;

/// What whoever asks sees, too.
#[derive(Default)]
pub struct Shown {
    pub report: Mutex<Report>,
    pub table: Mutex<Table>,
}

/// A lock that a panicked thread left is as good as any: what it guards is replaced whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one step needs, to be lent to a thread that may wait for the kernel.
struct Hands {
    fabric: Fabric,
    /// What the kernel has as far as known; `None`: to be read.
    known: Option<State>,
    interfaces: Vec<Interface>,
    gateways: Gateways,
    generations: Option<Generations>,
    generation: Option<u32>,
}

impl Hands {
    fn new(fabric: Fabric) -> Self {
        let generations = Generations::open().inspect_err(|error| tracing::warn!("cannot watch nftables: {error}"));
        Self {
            fabric,
            known: None,
            interfaces: Vec::new(),
            gateways: Gateways::new(),
            generations: generations.ok(),
            generation: None,
        }
    }
}

pub struct Worker {
    ground: Ground,
    hands: Option<Hands>,
    voice: Voice,
    driver: Driver,
    nodes: Option<BTreeMap<String, Node>>,
    config: Option<Config>,
    shown: Arc<Shown>,
    /// The problems that were told.
    told: BTreeSet<String>,
    /// What is wrong with the ConfigMap.
    invalid: Option<String>,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    /// Only what BGP learnt.
    Learned,
    All,
}

impl Need {
    fn all(changed: bool) -> Self {
        if changed { Self::All } else { Self::Nothing }
    }
}

/// What came of a step.
struct Outcome {
    plan: Result<Plan, Problem>,
    /// Whether the kernel had routes by way of others before.
    restarting: bool,
    interfaces: Vec<Interface>,
    actions: usize,
    failures: Vec<String>,
}

impl Worker {
    pub fn new(ground: Ground, fabric: Fabric, driver: Driver, shown: Arc<Shown>) -> Self {
        Self {
            voice: Voice::new(ground.client.clone(), &ground.node),
            ground,
            hands: Some(Hands::new(fabric)),
            driver,
            nodes: None,
            config: None,
            shown,
            told: BTreeSet::new(),
            invalid: None,
        }
    }

    /// Returns when the watches have ended.
    pub async fn work(mut self, mut news: Receiver<News>) {
        let (mut due, mut need): (Option<Instant>, Need) = (None, Need::Nothing);
        let mut glance = tokio::time::interval(GLANCE);
        glance.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut glances = 0;
        loop {
            let ready = self.nodes.is_some() && self.config.is_some();
            let wake = due.filter(|_| ready);
            let more = tokio::select! {
                item = news.recv() => match item {
                    Some(item) => self.note(item).await,
                    None => return,
                },
                _ = glance.tick() => {
                    glances = (glances + 1) % LOOK;
                    Need::all(self.glance(glances == 0))
                }
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    let done = match need {
                        Need::Learned if self.knows() => self.learn().await,
                        _ => self.sync().await,
                    };
                    (due, need) = if done { (None, Need::Nothing) } else { (Some(Instant::now() + AGAIN), Need::All) };
                    continue;
                }
            };
            if more > Need::Nothing {
                let soon = Instant::now() + BURST;
                due = Some(due.map_or(soon, |due| due.min(soon)));
                need = need.max(more);
            }
        }
    }

    fn knows(&self) -> bool {
        self.hands.as_ref().is_some_and(|hands| hands.known.is_some())
    }

    /// Takes news into the model.
    async fn note(&mut self, news: News) -> Need {
        match news {
            News::Nodes(all) => {
                let changed = self.nodes.as_ref() != Some(&all);
                self.nodes = Some(all);
                Need::all(changed)
            }
            News::Node(name, node) => {
                let Some(nodes) = &mut self.nodes else { return Need::Nothing };
                let changed = nodes.get(&name) != node.as_ref();
                match node {
                    Some(node) => drop(nodes.insert(name, node)),
                    None => drop(nodes.remove(&name)),
                }
                Need::all(changed)
            }
            News::Config(data) => Need::all(self.configure(&data).await),
            News::Kernel(changes) => Need::all(self.heard(&changes)),
            News::Service(name, service) => Need::all(self.driver.service(name, service)),
            News::Slice(service, slice, here) => Need::all(self.driver.slice(service, slice, here)),
            News::Learned(turn, _) | News::Synchronised(turn) if turn != self.driver.turn => Need::Nothing,
            News::Learned(_, changes) => {
                lock(&self.shown.table).note(changes);
                Need::Learned
            }
            News::Synchronised(_) => {
                lock(&self.shown.table).complete = true;
                Need::All
            }
        }
    }

    async fn configure(&mut self, data: &BTreeMap<String, String>) -> bool {
        match Config::read(data) {
            Ok(config) => {
                let changed = self.config.as_ref() != Some(&config) || self.invalid.take().is_some();
                self.config = Some(config);
                changed
            }
            Err(invalid) => {
                let mut words = invalid.to_string();
                words.push_str(match self.config {
                    Some(_) => "; what was said before it still holds",
                    None => "; until then nothing is routed",
                });
                self.voice.warn("InvalidConfiguration", &words).await;
                self.invalid = Some(words);
                true
            }
        }
    }

    fn heard(&mut self, changes: &[Change]) -> bool {
        let Some(hands) = &mut self.hands else { return false };
        // What is not known is read at the next step, which is due already.
        let Some(known) = &hands.known else { return false };
        let matters = changes.iter().any(|change| hands.fabric.matters(change, known, &hands.interfaces));
        if matters {
            hands.known = None;
        }
        matters
    }

    /// Whether all has to be looked at: it is time, or somebody changed rules of nftables.
    fn glance(&mut self, time: bool) -> bool {
        let Some(hands) = &mut self.hands else { return false };
        let generation = hands.generations.as_mut().and_then(|generations| generations.current().ok());
        let changed = std::mem::replace(&mut hands.generation, generation) != generation;
        if time || changed {
            hands.known = None;
        }
        time || changed
    }

    /// Brings the kernel, the list for the runtime, the speaker and the annotations to the plan. `false` where
    /// something is to be tried again.
    async fn sync(&mut self) -> bool {
        let (Some(nodes), Some(config)) = (self.nodes.clone(), self.config.clone()) else { return true };
        let me = self.ground.node.to_string();
        let ground = report::Ground { me, nodes, config, interfaces: Vec::new() };
        let (shown, folder) = (Arc::clone(&self.shown), self.ground.cni_conf_dir.clone());
        let work = move |hands: &mut Hands| (step(hands, &ground, &mut lock(&shown.table), folder.as_deref()), ground);
        let Some((mut outcome, mut ground)) = self.lend(work).await else { return false };
        match outcome.actions {
            0 => tracing::debug!("routes are as they shall be"),
            actions => tracing::info!("{actions} changes in the kernel, {} failed", outcome.failures.len()),
        }
        ground.interfaces = std::mem::take(&mut outcome.interfaces);
        self.speak(&ground, &mut outcome).await;
        self.tell(ground, outcome).await
    }

    /// The work of what BGP learnt alone.
    async fn learn(&mut self) -> bool {
        let Some(me) = self.nodes.as_ref().and_then(|nodes| nodes.get(&*self.ground.node)) else { return true };
        let (me, shown) = (me.clone(), Arc::clone(&self.shown));
        let work = move |hands: &mut Hands| {
            let changes = lock(&shown.table).take();
            let Some(known) = &mut hands.known else { return false };
            let ways = Ways { interfaces: &hands.interfaces, gateways: &hands.gateways };
            let mut actions = learned::actions(&changes, &own(&me, &hands.gateways), ways, known);
            actions.retain(|action| !replaces_foreign(&hands.fabric, action));
            let done = |action| match hands.fabric.apply(action) {
                Ok(()) => {
                    learned::apply(action, known);
                    true
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    false
                }
            };
            let failed = actions.iter().map(done).filter(|done| !done).count();
            tracing::debug!("{} changes of {} prefixes that BGP told, {failed} failed", actions.len(), changes.len());
            failed == 0
        };
        let done = self.lend(work).await.unwrap_or(false);
        if let (false, Some(hands)) = (done, &mut self.hands) {
            hands.known = None;
        }
        done
    }

    /// Runs `work` on a thread where it may wait for the kernel. `None` where it panicked.
    async fn lend<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Hands) -> T + Send + 'static) -> Option<T> {
        let mut hands = self.hands.take().or_else(|| Fabric::open().map(Hands::new).ok())?;
        let lent = tokio::task::spawn_blocking(move || {
            let done = work(&mut hands);
            (hands, done)
        });
        match lent.await {
            Ok((hands, done)) => {
                self.hands = Some(hands);
                Some(done)
            }
            Err(error) => {
                tracing::error!("the thread that keeps routes ended, beginning anew: {error}");
                None
            }
        }
    }

    /// Has the speaker follow, or ends it.
    async fn speak(&mut self, ground: &report::Ground, outcome: &mut Outcome) {
        if ground.config.mode != Mode::Bgp {
            self.driver.end().await;
            *lock(&self.shown.table) = Table::default();
        } else if outcome.plan.is_ok() {
            let report::Ground { me, nodes, config, interfaces } = ground;
            let cluster = Cluster { me, nodes, config, interfaces, restarting: outcome.restarting };
            if let Err(error) = self.driver.bring(&cluster).await {
                outcome.failures.push(error);
            }
        }
    }

    async fn tell(&mut self, ground: report::Ground, mut outcome: Outcome) -> bool {
        let mut problems = BTreeSet::new();
        let mut report = Report { mode: Some(ground.config.mode), ..Report::default() };
        match outcome.plan {
            Ok(plan) => {
                if let Err(error) = self.voice.annotate(plan.annotations.iter()).await {
                    outcome.failures.push(format!("cannot write the annotations of node {}: {error}", ground.me));
                }
                let known = ground.nodes.get(&ground.me).is_some_and(|me| me.has_network);
                if !known
                    && outcome.failures.is_empty()
                    && let Err(error) = self.voice.has_network().await
                {
                    outcome.failures.push(format!("cannot write the condition of node {}: {error}", ground.me));
                }
                problems.extend(plan.problems.iter().filter(|problem| !problem.is_passing()).map(ToString::to_string));
                report.rows = plan.rows;
            }
            Err(problem) => report.waiting = Some(problem),
        }
        for words in fresh(&mut self.told, problems.clone()) {
            self.voice.warn("NodeNotRouted", &words).await;
        }
        for words in &outcome.failures {
            let known = lock(&self.shown.report).failures.contains(words);
            if !known {
                self.voice.warn("RoutesFailed", words).await;
            }
        }
        report.problems = problems.into_iter().chain(self.invalid.clone()).collect();
        report.ground = Some(Arc::new(ground));
        let done = outcome.failures.is_empty();
        report.failures = outcome.failures;
        *lock(&self.shown.report) = report;
        done
    }
}

/// One step of the loop, on a thread that may wait for the kernel.
fn step(hands: &mut Hands, ground: &report::Ground, table: &mut Table, folder: Option<&Path>) -> Outcome {
    let mut outcome = Outcome {
        plan: Err(Problem::NoPodCidrs(ground.me.clone())),
        restarting: false,
        interfaces: Vec::new(),
        actions: 0,
        failures: Vec::new(),
    };
    match hands.fabric.interfaces() {
        Ok(interfaces) => hands.interfaces = interfaces,
        Err(error) => {
            outcome.failures.push(error.to_string());
            return outcome;
        }
    }
    outcome.interfaces.clone_from(&hands.interfaces);
    // All is in the plan.
    table.take();
    let report::Ground { me, nodes, config, .. } = ground;
    let model = Model { me, nodes, config, interfaces: &hands.interfaces, learned: &table.learned };
    hands.gateways = model.gateways();
    outcome.plan = plan(&model);
    let Ok(plan) = &mut outcome.plan else { return outcome };
    let learns = config.mode == Mode::Bgp;
    let retain = learns && !table.complete;
    match bring(hands, &mut plan.state, (learns, retain)) {
        Ok((actions, failures)) => (outcome.actions, outcome.failures) = (actions, failures),
        Err(error) => outcome.failures.push(error.to_string()),
    }
    outcome.restarting = retain && plan.state.routes.values().any(|hops| !hops.is_empty());
    // A node whose own network failed shall not get pods.
    if let (Some(folder), true) = (folder, outcome.failures.is_empty())
        && let Err(error) = conflist::write(folder, &conflist::render(&plan.pod_cidrs, plan.mtu))
    {
        outcome.failures.push(format!("cannot write the CNI configuration: {error}"));
    }
    outcome
}

/// Whether it puts what a peer told in the place of a route that is somebody else's: of the subnet that the peer is
/// reached by, or the way to the API server. When the peer is gone, nothing would be left there.
fn replaces_foreign(fabric: &Fabric, action: &Action) -> bool {
    matches!(action, Action::SetRoute(prefix, metric, _) if fabric.is_foreign(*prefix, *metric))
}

/// Brings the kernel to `shall`: how many actions that took, and what was refused. `learns`: routes are what peers told.
fn bring(
    hands: &mut Hands,
    shall: &mut State,
    (learns, retain): (bool, bool),
) -> Result<(usize, Vec<String>), fabric::Error> {
    let known = match hands.known.take() {
        Some(known) => known,
        None => hands.fabric.read()?,
    };
    if retain {
        learned::retain(&known, shall);
    }
    if learns {
        shall.routes.retain(|(prefix, metric), _| !hands.fabric.is_foreign(*prefix, *metric));
    }
    let actions = diff(&known, shall);
    let refused = |action| hands.fabric.apply(action).err().map(|error| error.to_string());
    let failures: Vec<String> = actions.iter().filter_map(refused).collect();
    // What failed may stand or not: the next step looks.
    hands.known = failures.is_empty().then(|| shall.clone());
    if !actions.is_empty() {
        hands.generation = hands.generations.as_mut().and_then(|generations| generations.current().ok());
    }
    Ok((actions.len(), failures))
}

#[cfg(test)]
mod tests {
    use kernel::netlink::{Address, Kernel, LinkChange, Network, Route, VethEnd};
    use kernel::netns::Netns;

    use super::super::state::Hop;
    use super::*;

    /// A router tells of the subnet that it shares with the node, and of a default route.
    #[test]
    fn what_peers_tell_replaces_no_route_of_others() {
        if !crate::routes::test::root("routes of others") {
            return;
        }
        let work = || {
            let mut network = Kernel::open().unwrap();
            let [near, far] = ["eth9", "router"].map(|name| VethEnd { name, ..VethEnd::default() });
            network.add_veth(near, far, None, None).unwrap();
            let [_, link] = ["router", "eth9"].map(|name| {
                let link = network.link(name).unwrap().unwrap().index;
                network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
                link
            });
            network.add_address(Address { link, net: "192.0.2.1/24".parse().unwrap() }).unwrap();
            let [subnet, default, other] = ["192.0.2.0/24", "0.0.0.0/0", "10.9.0.0/16"].map(|net| net.parse().unwrap());
            let by = |last: u8| -> std::net::IpAddr { [192, 0, 2, last].into() };
            network.add_route(&Route::new(default, Some(by(9)), link)).unwrap();
            let hop = Hop { gateway: by(254), device: "eth9".into(), onlink: false };
            let hops = Arc::new(BTreeSet::from([hop]));
            let told = [subnet, default, other].map(|prefix| ((prefix, 0), Arc::clone(&hops)));
            let mut hands = Hands::new(Fabric::open().unwrap());
            hands.interfaces = hands.fabric.interfaces().unwrap();
            let forwards = hands.fabric.read().unwrap().forwards;
            let mut shall = State { routes: told.into(), forwards, ..State::default() };
            assert_eq!(bring(&mut hands, &mut shall, (true, false)).unwrap(), (1, vec![]));
            let set = |prefix| Action::SetRoute(prefix, 0, Arc::clone(&hops));
            assert_eq!(
                [subnet, default, other].map(|net| replaces_foreign(&hands.fabric, &set(net))),
                [true, true, false]
            );
            let mut withdrawn = State { forwards, ..State::default() };
            assert_eq!(bring(&mut hands, &mut withdrawn, (true, false)).unwrap(), (1, vec![]));
            let left = network.routes().unwrap();
            let gateway = |net| left.iter().find(|route| route.destination == net).map(|route| route.gateway);
            assert_eq!([subnet, default, other].map(gateway), [Some(None), Some(Some(by(9))), None]);
        };
        Netns::anonymous().unwrap().run(work).unwrap();
    }
}
