//! The loop: watches and plugins feed the model, and the model goes to the kernel at once; what comes meanwhile goes
//! with the next step.

use std::collections::HashSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use kernel::conntrack::{self, Conntrack};
use kernel::netlink::{self, Network};
use kernel::nftables::{Generations, Nft};
use kernel::sysctl;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answers::{Policies, counts};
use super::attach::{self, Store};
use super::drops::{self, Herald};
use super::model::Attachment;
use super::plan::Change;
use super::sync::{Keeper, Step};
use super::watch::{self, Source, Told};
use crate::control::{Answer, Answers};
use crate::run::Ground;

/// How long the API may take to show a pod that its runtime begins. The plugin waits longer than that.
const KNOWN_WITHIN: Duration = Duration::from_secs(8);
/// How often it is looked whether the table still stands and which links are gone.
const LOOK: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
/// How often the daemon gives a sign of life. Plugin `policy` takes it for gone after five that did not come.
const BEAT: Duration = Duration::from_secs(5);
/// How long a change of policies may wait to be applied to flows, so that many changes are one look at all flows.
const FLOWS: Duration = Duration::from_millis(500);

/// Begins to keep the policies of this node's pods, and to serve metrics of what they drop.
///
/// # Errors
/// Where the record of attachments cannot be read.
pub async fn start(ground: Ground, metrics: SocketAddr, tasks: &mut JoinSet<()>) -> anyhow::Result<Arc<dyn Answers>> {
    let folder = ground.state.join("links");
    let store = Store::open(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut keeper = Keeper::new(&ground.node, Box::new(Nft), conntrack());
    let attached = store.load().with_context(|| format!("cannot read {}", folder.display()))?;
    attached.into_iter().for_each(|attachment| keeper.found(attachment));
    prepare();
    let (news, inbox) = mpsc::channel(1024);
    let herald = Herald::new(ground.client.clone(), &ground.node);
    let alive = ground.state.join("alive");
    tasks.spawn(Worker::new(keeper, store, alive, Some(Arc::new(herald))).work(inbox));
    tasks.spawn(watch::pods(ground.client.clone(), news.clone()));
    tasks.spawn(watch::namespaces(ground.client.clone(), news.clone()));
    tasks.spawn(watch::policies(ground.client.clone(), news.clone()));
    let policies = Arc::new(Policies { news, ground });
    Arc::clone(&policies).serve(metrics, tasks).await;
    Ok(policies)
}

fn conntrack() -> Option<Box<dyn Conntrack>> {
    match conntrack::Kernel::open() {
        Ok(kernel) => Some(Box::new(kernel)),
        Err(error) => {
            tracing::warn!("flows that a policy comes to forbid go on until they end: {error}");
            None
        }
    }
}

/// This node's own addresses.
fn own_addresses() -> netlink::Result<HashSet<IpAddr>> {
    Ok(netlink::Kernel::open()?.addresses()?.into_iter().map(|address| address.net.ip()).collect())
}

/// Traffic inside one bridge comes to the rules by these. A machine without br_netfilter has neither.
fn prepare() {
    for name in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        if let Err(error) = sysctl::write(name, "1") {
            tracing::warn!("policies do not reach traffic between pods of one bridge (modprobe br_netfilter): {error}");
        }
    }
}

pub enum News {
    Told(Told),
    Attach(Attachment, oneshot::Sender<Answer>),
    Detach { container: String, link: String },
    Look(Box<dyn FnOnce(&Keeper) + Send>),
}

impl From<Told> for News {
    fn from(told: Told) -> Self {
        Self::Told(told)
    }
}

/// A plugin that waits for a pod's rules.
struct Waiting {
    attachment: Attachment,
    answer: oneshot::Sender<Answer>,
    until: Instant,
}

struct Worker {
    /// Lent to the thread that syncs.
    keeper: Option<Keeper>,
    store: Store,
    /// Watches whose first list is not complete; before that nothing is written.
    missing: HashSet<Source>,
    waiting: Vec<Waiting>,
    /// The file that is touched while the rules are kept.
    alive: PathBuf,
    /// Whether the last step failed.
    failing: bool,
    /// Of the kernel's rules after the last step.
    generation: Option<u32>,
    /// When to look for flows that policies have come to forbid, and how long that took last.
    flows: Option<Instant>,
    looked: Duration,
    watch: drops::Watch,
    /// Who tells of drops; nobody in tests.
    herald: Option<Arc<Herald>>,
}

impl Worker {
    fn new(keeper: Keeper, store: Store, alive: PathBuf, herald: Option<Arc<Herald>>) -> Self {
        Self {
            keeper: Some(keeper),
            store,
            missing: HashSet::from([Source::Pods, Source::Namespaces, Source::Policies]),
            waiting: Vec::new(),
            alive,
            failing: false,
            generation: None,
            flows: None,
            looked: Duration::ZERO,
            watch: drops::Watch::default(),
            herald,
        }
    }

    /// Returns when the watches have ended, or the keeper is lost.
    async fn work(mut self, mut inbox: mpsc::Receiver<News>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Not at once: one that dies young, again and again, is none that lives.
        let mut beat = tokio::time::interval_at(Instant::now() + BEAT, BEAT);
        let mut due: Option<Instant> = None;
        loop {
            let wake = due.filter(|_| self.missing.is_empty());
            let patience = self.waiting.iter().map(|waiting| waiting.until).min();
            let dirty = tokio::select! {
                biased;
                item = inbox.recv() => match item {
                    Some(item) => self.take(item),
                    None => return,
                },
                () = until(wake) => {
                    due = match self.sync().await {
                        true => self.answer(),
                        false => Some(Instant::now() + RETRY),
                    };
                    false
                }
                () = until(patience) => {
                    self.give_up();
                    false
                }
                () = until(self.flows) => {
                    self.flows = None;
                    self.end_flows().await;
                    false
                }
                _ = beat.tick() => {
                    self.beat();
                    false
                }
                _ = look.tick() => self.look().await,
            };
            if self.keeper.is_none() {
                return;
            }
            if dirty {
                due.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Whether the kernel is to be looked after.
    fn take(&mut self, item: News) -> bool {
        match item {
            News::Told(Told::Change(change)) => self.note(change),
            News::Told(Told::Listed(source)) => self.missing.remove(&source) && self.missing.is_empty(),
            News::Attach(attachment, answer) => {
                if let Err(error) = self.store.save(&attachment) {
                    let _ = answer.send(Answer::Error(format!("cannot remember the attachment: {error}")));
                    return false;
                }
                let until = Instant::now() + KNOWN_WITHIN;
                self.waiting.push(Waiting { attachment: attachment.clone(), answer, until });
                self.note(Change::Attached(attachment));
                true
            }
            News::Detach { container, link } => {
                let own = |a: &&Attachment| *a.container == *container && (link.is_empty() || *a.link == *link);
                let links: Vec<Box<str>> = self.links(own);
                self.detach(links)
            }
            News::Look(question) => {
                if let Some(keeper) = &self.keeper {
                    question(keeper);
                }
                false
            }
        }
    }

    fn note(&mut self, change: Change) -> bool {
        self.keeper.as_mut().is_some_and(|keeper| keeper.note(change))
    }

    fn links(&self, wanted: impl Fn(&&Attachment) -> bool) -> Vec<Box<str>> {
        let all = self.keeper.iter().flat_map(|keeper| keeper.planner.model().attached.iter());
        all.filter(wanted).map(|attachment| attachment.link.clone()).collect()
    }

    fn detach(&mut self, links: Vec<Box<str>>) -> bool {
        let mut dirty = false;
        for link in links {
            self.store.remove(&link);
            dirty |= self.note(Change::Detached(link));
        }
        dirty
    }

    /// Tells the plugins whose pods' rules are in force: those of pods that the last step knew.
    fn answer(&mut self) -> Option<Instant> {
        let keeper = self.keeper.as_ref()?;
        let model = keeper.planner.model();
        let known = |waiting: &Waiting| {
            let Attachment { namespace, uid, .. } = &waiting.attachment;
            let pod = model.pods.get(&waiting.attachment.name());
            let pod = pod.filter(|pod| uid.is_empty() || pod.uid == *uid);
            pod.is_some() && model.namespaces.contains_key(namespace)
        };
        let (ready, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(known);
        self.waiting = waiting;
        for Waiting { answer, .. } in ready {
            let _ = answer.send(Answer::Ok(Value::Null));
        }
        None
    }

    /// Tells the plugins that have waited long enough that their pods are not known.
    fn give_up(&mut self) {
        let now = Instant::now();
        let why = match self.missing.is_empty() {
            true => "the API does not show the pod yet",
            false => "the net daemon has not yet heard from the API server",
        };
        let (late, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|w: &Waiting| w.until <= now);
        self.waiting = waiting;
        for Waiting { attachment, answer, .. } in late {
            let _ = answer.send(Answer::Error(format!("not yet: {why} ({})", attachment.name())));
        }
    }

    /// Drops what is attached to links that are gone, tells which packets were dropped, and looks whether the table was
    /// changed by another hand.
    async fn look(&mut self) -> bool {
        if self.generation.is_some() {
            self.tell_drops().await;
        }
        let present = tokio::task::spawn_blocking(attach::present).await;
        let gone = match present {
            Ok(Ok(present)) => self.links(|attachment| !present.contains(&*attachment.link)),
            _ => Vec::new(),
        };
        let dirty = self.detach(gone);
        let changed = self.generation.is_some() && generation() != self.generation;
        if changed && let Some(keeper) = &mut self.keeper {
            keeper.doubt();
        }
        dirty || changed
    }

    /// Tells which packets were dropped: in the log, and in Events of the pods.
    async fn tell_drops(&mut self) {
        let due = self.watch.look(counts().await, std::time::Instant::now());
        if due.is_empty() {
            return;
        }
        let met = tokio::task::spawn_blocking(|| super::sync::met(&Nft)).await;
        let met = met.ok().and_then(Result::ok).unwrap_or_default();
        let Some(planner) = self.keeper.as_ref().map(|keeper| &keeper.planner) else { return };
        let dropped = planner.dropped();
        let mut notices = Vec::new();
        for (who, packets) in due {
            let known = dropped.get(who.as_str());
            match known.and_then(|known| drops::notice(planner.model(), known, packets, &met)) {
                Some(notice) => {
                    tracing::info!("{}: {}", notice.pod, notice.words);
                    notices.push(notice);
                }
                None => tracing::info!("dropped {packets} packets: {who}"),
            }
        }
        if let Some(herald) = self.herald.clone() {
            // The API may be slow or away.
            tokio::spawn(async move {
                for notice in notices {
                    herald.tell(&notice).await;
                }
            });
        }
    }

    /// A sign of life, which STATUS of plugin `policy` goes by, unless the rules cannot be kept.
    fn beat(&self) {
        if self.failing || self.keeper.is_none() {
            return;
        }
        let touched = File::create(&self.alive).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::warn!("the node will be NotReady: cannot touch {}: {error}", self.alive.display());
        }
    }

    /// Lends the keeper to a thread that may wait for the kernel. `None` where it is gone.
    async fn lend<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Keeper) -> T + Send + 'static) -> Option<T> {
        let mut keeper = self.keeper.take()?;
        let done = tokio::task::spawn_blocking(move || {
            let outcome = work(&mut keeper);
            (keeper, outcome)
        });
        match done.await {
            Ok((keeper, outcome)) => {
                self.keeper = Some(keeper);
                Some(outcome)
            }
            Err(error) => {
                // The model went with the thread; the daemon ends, and its next run has it anew.
                tracing::error!("the policies are no longer kept: {error}");
                None
            }
        }
    }

    /// Ends the flows that are another pod's or that policies have come to forbid, and asks to be called again where that
    /// failed.
    async fn end_flows(&mut self) {
        let started = Instant::now();
        let Some(ended) = self.lend(|keeper| anyhow::Ok(keeper.end_flows(own_addresses()?)?)).await else { return };
        self.looked = started.elapsed();
        match ended {
            Ok(0) => {}
            Ok(count) => tracing::info!("ended {count} flows: policies forbid them, or their pod is gone"),
            Err(error) => {
                tracing::warn!("flows that policies forbid go on, trying again in 1 s: {error:#}");
                self.flows = Some(Instant::now() + RETRY);
            }
        }
    }

    async fn sync(&mut self) -> bool {
        let started = std::time::Instant::now();
        let Some(outcome) = self.lend(Keeper::sync).await else { return true };
        self.failing = outcome.is_err();
        self.beat();
        match outcome {
            Ok(step) => {
                self.generation = generation();
                if !self.watch.has_begun() {
                    // What is counted from here on is new.
                    self.watch.look(counts().await, std::time::Instant::now());
                }
                // No pod may begin while flows of its predecessor stand.
                if self.keeper.as_ref().is_some_and(Keeper::has_moved) {
                    self.end_flows().await;
                } else if self.keeper.as_ref().is_some_and(Keeper::is_stricter) {
                    // Where there are very many flows, looking at them shall not be all that is done.
                    let wait = FLOWS.max(10 * self.looked);
                    self.flows.get_or_insert_with(|| Instant::now() + wait);
                }
                match step {
                    Step::Adopted | Step::Whole => {
                        tracing::info!("the policies' table stands ({step:?}) after {:?}", started.elapsed());
                        kernel::process::give_memory_back();
                    }
                    Step::Partial | Step::Nothing => tracing::debug!("{step:?} in {:?}", started.elapsed()),
                }
                true
            }
            Err(error) => {
                tracing::error!("cannot write the policies' rules, trying again in 1 s: {error}");
                false
            }
        }
    }
}

fn generation() -> Option<u32> {
    Generations::open().and_then(|mut generations| generations.current()).ok()
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use kernel::nftables::{self, Fake, Nftables};

    use super::*;
    use crate::policy::model::{Labels, Name, Pod, Policy};

    /// A fake that the test keeps a hand on.
    struct Shared(Arc<Fake>);
    impl Nftables for Shared {
        fn apply(&self, script: &str) -> Result<(), nftables::Error> {
            self.0.apply(script)
        }
        fn list(&self, command: &str) -> Result<String, nftables::Error> {
            self.0.list(command)
        }
    }

    fn pod(ips: &[&str]) -> Change {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let pod = Pod { uid: "u1".into(), node: "n1".into(), ips, ..Pod::default() };
        Change::Pod(Name::new("a", "web"), Some(pod))
    }

    fn attachment() -> Attachment {
        Attachment {
            container: "c".into(),
            // A link that every namespace has.
            link: "lo".into(),
            namespace: "a".into(),
            pod: "web".into(),
            uid: "u1".into(),
            addresses: ["10.0.0.1".parse().unwrap()].into(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_plugin_is_answered_when_the_rules_stand() {
        let folder = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let keeper = Keeper::new("n1", Box::new(Shared(fake.clone())), None);
        let (news, inbox) = mpsc::channel(16);
        let (links, alive) = (folder.path().join("links"), folder.path().join("alive"));
        let worker = Worker::new(keeper, Store::open(&links).unwrap(), alive.clone(), None);
        let working = tokio::spawn(worker.work(inbox));
        let tell = async |told| drop(news.send(News::Told(told)).await);

        let (answer, mut answered) = oneshot::channel();
        news.send(News::Attach(attachment(), answer)).await.unwrap();
        let deny = Policy { ingress: Some(Vec::new()), ..Policy::default() };
        tell(Told::Change(Change::Policy(Name::new("a", "deny"), Some(deny)))).await;
        tell(Told::Change(Change::Namespace("a".into(), Some(Labels::default())))).await;
        tell(Told::Listed(Source::Policies)).await;
        tell(Told::Listed(Source::Namespaces)).await;
        assert!(!alive.exists(), "no rules stand yet");
        tell(Told::Listed(Source::Pods)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(answered.try_recv().is_err(), "the pod is not known");
        assert!(alive.exists());
        tell(Told::Change(pod(&[]))).await;
        assert_eq!(answered.await.unwrap(), Answer::Ok(Value::Null));
        let last = fake.applied.lock().unwrap().last().unwrap().clone();
        assert!(last.contains("ingress4 { 10.0.0.1 : goto ingress4-"), "{last}");
        let saved = Store::open(&links).unwrap();
        assert_eq!(saved.load().unwrap(), [attachment()]);

        let (container, link) = ("c".to_owned(), String::new());
        news.send(News::Detach { container, link }).await.unwrap();
        drop(news);
        working.await.unwrap();
        assert_eq!(saved.load().unwrap(), []);
    }
}
