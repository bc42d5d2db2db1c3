//! The loop: news change the model, and soon after the first of a burst the kernel follows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kernel::netlink::Change;
use kernel::nftables::Generations;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use super::conflist;
use super::diff::diff;
use super::events::Voice;
use super::fabric::{self, Fabric};
use super::model::{Interface, Node};
use super::plan::{Learned, Model, Plan, Problem, plan};
use super::report::Report;
use super::state::State;
use super::watch::{News, fresh};
use crate::config::Config;
use crate::run::Ground;

/// A burst of news is one change.
const BURST: Duration = Duration::from_millis(20);
/// After something went wrong.
const AGAIN: Duration = Duration::from_secs(1);
/// How often to see whether somebody touched the rules, which the kernel does not tell.
const GLANCE: Duration = Duration::from_secs(5);
/// How many glances there are to a look at everything.
const LOOK: u32 = 12;

/// What one step needs, to be lent to a thread that may wait for the kernel.
struct Hands {
    fabric: Fabric,
    /// What the kernel has as far as known; `None`: to be read.
    known: Option<State>,
    interfaces: Vec<Interface>,
    generations: Option<Generations>,
    generation: Option<u32>,
}

impl Hands {
    fn new(fabric: Fabric) -> Self {
        let generations = Generations::open().inspect_err(|error| tracing::warn!("cannot watch nftables: {error}"));
        Self { fabric, known: None, interfaces: Vec::new(), generations: generations.ok(), generation: None }
    }
}

pub struct Worker {
    ground: Ground,
    hands: Option<Hands>,
    voice: Voice,
    nodes: Option<BTreeMap<String, Node>>,
    config: Option<Config>,
    report: Arc<Mutex<Report>>,
    /// The problems that were told, and the configuration's.
    told: BTreeSet<String>,
    invalid: Option<String>,
}

/// What came of a step.
struct Outcome {
    plan: Result<Plan, Problem>,
    actions: usize,
    failures: Vec<String>,
}

impl Worker {
    pub fn new(ground: Ground, fabric: Fabric, report: Arc<Mutex<Report>>) -> Self {
        Self {
            voice: Voice::new(ground.client.clone(), &ground.node),
            ground,
            hands: Some(Hands::new(fabric)),
            nodes: None,
            config: None,
            report,
            told: BTreeSet::new(),
            invalid: None,
        }
    }

    /// Returns when the watches have ended.
    pub async fn work(mut self, mut news: Receiver<News>) {
        let mut due: Option<Instant> = None;
        let mut glance = tokio::time::interval(GLANCE);
        glance.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut glances = 0;
        loop {
            let ready = self.nodes.is_some() && self.config.is_some();
            let wake = due.filter(|_| ready);
            let dirty = tokio::select! {
                item = news.recv() => match item {
                    Some(item) => self.note(item).await,
                    None => return,
                },
                _ = glance.tick() => {
                    glances = (glances + 1) % LOOK;
                    self.glance(glances == 0)
                }
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    due = (!self.sync().await).then(|| Instant::now() + AGAIN);
                    continue;
                }
            };
            if dirty {
                let soon = Instant::now() + BURST;
                due = Some(due.map_or(soon, |due| due.min(soon)));
            }
        }
    }

    /// Takes news into the model. `false` where they change nothing.
    async fn note(&mut self, news: News) -> bool {
        match news {
            News::Nodes(all) => {
                let changed = self.nodes.as_ref() != Some(&all);
                self.nodes = Some(all);
                changed
            }
            News::Node(name, node) => {
                let Some(nodes) = &mut self.nodes else { return false };
                let changed = nodes.get(&name) != node.as_ref();
                match node {
                    Some(node) => drop(nodes.insert(name, node)),
                    None => drop(nodes.remove(&name)),
                }
                changed
            }
            News::Config(data) => self.configure(&data).await,
            News::Kernel(changes) => self.heard(&changes),
        }
    }

    async fn configure(&mut self, data: &BTreeMap<String, String>) -> bool {
        match Config::read(data, SPEAKERS) {
            Ok(config) => {
                self.invalid = None;
                let changed = self.config.as_ref() != Some(&config);
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
        let Some(known) = &hands.known else { return true };
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

    /// Brings the kernel, the list for the runtime and the annotations to the plan. `false` where something is to be
    /// tried again.
    async fn sync(&mut self) -> bool {
        let (Some(nodes), Some(config)) = (self.nodes.clone(), self.config.clone()) else { return true };
        let Some(mut hands) = self.hands.take().or_else(|| Fabric::open().map(Hands::new).ok()) else { return false };
        let (me, folder) = (Arc::clone(&self.ground.node), self.ground.cni_conf_dir.clone());
        let mode = config.mode;
        let step = move || {
            let outcome = step(&mut hands, &me, &nodes, &config, folder.as_deref());
            (hands, outcome)
        };
        let Ok((hands, outcome)) = tokio::task::spawn_blocking(step).await else {
            tracing::error!("the thread that keeps routes panicked, beginning anew");
            return false;
        };
        self.hands = Some(hands);
        match outcome.actions {
            0 => tracing::debug!("routes are as they shall be"),
            actions => tracing::info!("{actions} changes in the kernel, {} failed", outcome.failures.len()),
        }
        self.tell(mode, outcome).await
    }

    async fn tell(&mut self, mode: crate::config::Mode, mut outcome: Outcome) -> bool {
        let mut problems = BTreeSet::new();
        let mut report = Report { mode: Some(mode), ..Report::default() };
        match outcome.plan {
            Ok(plan) => {
                if let Err(error) = self.voice.annotate(plan.annotations.iter()).await {
                    outcome
                        .failures
                        .push(format!("cannot write the annotations of node {}: {error}", self.ground.node));
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
            if !self.report.lock().unwrap_or_else(PoisonError::into_inner).failures.contains(words) {
                self.voice.warn("RoutesFailed", words).await;
            }
        }
        report.problems = problems.into_iter().chain(self.invalid.clone()).collect();
        let done = outcome.failures.is_empty();
        report.failures = outcome.failures;
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
        done
    }
}

/// Keys of the ConfigMap that the BGP speaker reads.
const SPEAKERS: &[&str] = &[];

/// One step of the loop, on a thread that may wait for the kernel.
fn step(
    hands: &mut Hands,
    me: &str,
    nodes: &BTreeMap<String, Node>,
    config: &Config,
    folder: Option<&Path>,
) -> Outcome {
    let mut outcome = Outcome { plan: Err(Problem::NoPodCidrs(me.to_owned())), actions: 0, failures: Vec::new() };
    match hands.fabric.interfaces() {
        Ok(interfaces) => hands.interfaces = interfaces,
        Err(error) => {
            outcome.failures.push(error.to_string());
            return outcome;
        }
    }
    let learned = Learned::new();
    let model = Model { me, nodes, config, interfaces: &hands.interfaces, learned: &learned };
    outcome.plan = plan(&model);
    let Ok(plan) = &outcome.plan else { return outcome };
    match bring(hands, &plan.state) {
        Ok((actions, failures)) => (outcome.actions, outcome.failures) = (actions, failures),
        Err(error) => outcome.failures.push(error.to_string()),
    }
    // A node whose own network failed shall not get pods.
    if let (Some(folder), true) = (folder, outcome.failures.is_empty())
        && let Err(error) = conflist::write(folder, &conflist::render(&plan.pod_cidrs, plan.mtu))
    {
        outcome.failures.push(format!("cannot write the CNI configuration: {error}"));
    }
    outcome
}

/// Brings the kernel to `shall`: how many actions that took, and what was refused.
fn bring(hands: &mut Hands, shall: &State) -> Result<(usize, Vec<String>), fabric::Error> {
    let known = match hands.known.take() {
        Some(known) => known,
        None => hands.fabric.read()?,
    };
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
