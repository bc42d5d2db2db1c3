//! The loop: watches and plugins feed the model, and the model goes to the kernel at once; what comes meanwhile goes
//! with the next step.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::future::BoxFuture;
use kernel::nftables::{Generations, Nft};
use kernel::sysctl;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::attach::{self, Store};
use super::model::Attachment;
use super::plan::Change;
use super::sync::{Keeper, Step};
use super::watch::{self, Source, Told};
use crate::control::{Answer, Answers, Request};
use crate::run::Ground;
use crate::trace::{self, Question};

/// How long the API may take to show a pod that its runtime begins. The plugin waits longer than that.
const KNOWN_WITHIN: Duration = Duration::from_secs(8);
/// How often it is looked whether the table still stands and which links are gone.
const LOOK: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

/// Begins to keep the policies of this node's pods.
///
/// # Errors
/// Where the record of attachments cannot be read.
pub async fn start(ground: Ground, tasks: &mut JoinSet<()>) -> anyhow::Result<Arc<dyn Answers>> {
    let folder = ground.state.join("links");
    let store = Store::open(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut keeper = Keeper::new(&ground.node, Box::new(Nft));
    let attached = store.load().with_context(|| format!("cannot read {}", folder.display()))?;
    for attachment in attached {
        keeper.note(Change::Attached(attachment));
    }
    prepare();
    let (news, inbox) = mpsc::channel(1024);
    tasks.spawn(Worker::new(keeper, store).work(inbox));
    tasks.spawn(watch::pods(ground.client.clone(), news.clone()));
    tasks.spawn(watch::namespaces(ground.client.clone(), news.clone()));
    tasks.spawn(watch::policies(ground.client.clone(), news.clone()));
    Ok(Arc::new(Policies { news, ground }))
}

/// Traffic inside one bridge comes to the rules by these. A machine without br_netfilter has neither.
fn prepare() {
    for name in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        if let Err(error) = sysctl::write(name, "1") {
            tracing::warn!("policies do not reach traffic between pods of one bridge (modprobe br_netfilter): {error}");
        }
    }
}

enum News {
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

struct Policies {
    news: mpsc::Sender<News>,
    ground: Ground,
}

impl Answers for Policies {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(async move {
            match request {
                Request::Attach { .. } => Some(match attach::read(request)? {
                    Ok(attachment) => self.ask(|answer| News::Attach(attachment, answer)).await,
                    Err(wrong) => Answer::Error(wrong),
                }),
                Request::Detach { container, link } => {
                    let gone = News::Detach { container: container.clone(), link: link.clone() };
                    let _ = self.news.send(gone).await;
                    Some(Answer::Ok(Value::Null))
                }
                Request::Trace { from, to } => Some(match self.trace(from, to).await {
                    Ok(text) => Answer::Ok(Value::String(text)),
                    Err(error) => Answer::Error(format!("{error:#}")),
                }),
                Request::Peers | Request::Routes => None,
            }
        })
    }
}

impl Policies {
    async fn ask(&self, news: impl FnOnce(oneshot::Sender<Answer>) -> News) -> Answer {
        let (answer, answered) = oneshot::channel();
        let _ = self.news.send(news(answer)).await;
        answered.await.unwrap_or_else(|_| Answer::Error("the net daemon is ending".into()))
    }

    /// What a question finds in the present state.
    async fn look<T: Send + 'static>(&self, question: impl FnOnce(&Keeper) -> T + Send + 'static) -> anyhow::Result<T> {
        let (answer, answered) = oneshot::channel();
        let look = News::Look(Box::new(move |keeper| drop(answer.send(question(keeper)))));
        let _ = self.news.send(look).await;
        answered.await.context("the net daemon is ending")
    }

    async fn trace(&self, from: &str, to: &str) -> anyhow::Result<String> {
        let question = Question::parse(from, to)?;
        let service = trace::service(&self.ground.client, &question).await?;
        let path = self.look(move |keeper| trace::path(keeper.planner.model(), &question, service.as_ref())).await??;
        let before = drops().await;
        let to_probe = path.clone();
        let found = tokio::task::spawn_blocking(move || trace::probe(&to_probe)).await?;
        let dropped = trace::risen(&before, &drops().await);
        Ok(trace::text(&path, &found, &dropped))
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
    /// Of the kernel's rules after the last step.
    generation: Option<u32>,
    /// What the counters said at the last look.
    drops: BTreeMap<String, u64>,
}

impl Worker {
    fn new(keeper: Keeper, store: Store) -> Self {
        Self {
            keeper: Some(keeper),
            store,
            missing: HashSet::from([Source::Pods, Source::Namespaces, Source::Policies]),
            waiting: Vec::new(),
            generation: None,
            drops: BTreeMap::new(),
        }
    }

    /// Returns when the watches have ended.
    async fn work(mut self, mut inbox: mpsc::Receiver<News>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
                _ = look.tick() => self.look().await,
            };
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
            let drops = drops().await;
            for (who, packets) in trace::risen(&self.drops, &drops) {
                tracing::info!("dropped {packets} packets: {who}");
            }
            self.drops = drops;
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

    async fn sync(&mut self) -> bool {
        let started = std::time::Instant::now();
        let Some(mut keeper) = self.keeper.take() else { return false };
        let done = tokio::task::spawn_blocking(move || {
            let outcome = keeper.sync();
            (keeper, outcome)
        });
        let outcome = match done.await {
            Ok((keeper, outcome)) => {
                self.keeper = Some(keeper);
                outcome
            }
            Err(error) => {
                // The model went with the thread; the daemon's next run has it anew.
                tracing::error!("the policies are no longer kept, restart the daemon: {error}");
                return true;
            }
        };
        match outcome {
            Ok(step) => {
                self.generation = generation();
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

async fn drops() -> BTreeMap<String, u64> {
    let drops = tokio::task::spawn_blocking(|| super::sync::drops(&Nft)).await;
    drops.ok().and_then(Result::ok).unwrap_or_default()
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
        let keeper = Keeper::new("n1", Box::new(Shared(fake.clone())));
        let (news, inbox) = mpsc::channel(16);
        let working = tokio::spawn(Worker::new(keeper, Store::open(folder.path()).unwrap()).work(inbox));
        let tell = async |told| drop(news.send(News::Told(told)).await);

        let (answer, mut answered) = oneshot::channel();
        news.send(News::Attach(attachment(), answer)).await.unwrap();
        let deny = Policy { ingress: Some(Vec::new()), ..Policy::default() };
        tell(Told::Change(Change::Policy(Name::new("a", "deny"), Some(deny)))).await;
        tell(Told::Change(Change::Namespace("a".into(), Some(Labels::default())))).await;
        tell(Told::Listed(Source::Policies)).await;
        tell(Told::Listed(Source::Namespaces)).await;
        tell(Told::Listed(Source::Pods)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(answered.try_recv().is_err(), "the pod is not known");
        tell(Told::Change(pod(&[]))).await;
        assert_eq!(answered.await.unwrap(), Answer::Ok(Value::Null));
        let last = fake.applied.lock().unwrap().last().unwrap().clone();
        assert!(last.contains("ingress4 { 10.0.0.1 : goto ingress4-"), "{last}");
        let saved = Store::open(folder.path()).unwrap();
        assert_eq!(saved.load().unwrap(), [attachment()]);

        let (container, link) = ("c".to_owned(), String::new());
        news.send(News::Detach { container, link }).await.unwrap();
        drop(news);
        working.await.unwrap();
        assert_eq!(saved.load().unwrap(), []);
    }
}
