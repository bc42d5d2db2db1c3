//! What a deployment's replica sets need. Decisions work on copies of the replica sets, which are changed as the
//! actions will change them: each step sees what the steps before it want.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::model::{
    DESIRED, HASH_LABEL, MAX, REVISION, REVISION_HISTORY, Wanted, actual, annotated_number, annotation, available,
    deadline, is_paused, name, replicas, revision, split,
};
use super::status;
use crate::controllers::{hash, ownership};

/// The longest value of the annotation that lists a replica set's former revisions.
const MAX_HISTORY: usize = 2000;

/// What is to be done.
#[derive(Debug, PartialEq, Clone)]
pub enum Action {
    Create(Box<ReplicaSet>),
    /// Writes number, annotations and minReadySeconds of a replica set that had `from` replicas.
    Update {
        set: Box<ReplicaSet>,
        from: i32,
    },
    Delete(String),
    /// Writes the deployment's revision.
    Revision(String),
    Status(Box<DeploymentStatus>),
}

/// What is observed of a deployment.
pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// All its replica sets.
    pub sets: &'a [ReplicaSet],
    /// Whether pods of any but the present template are still there (asked for by Recreate).
    pub old_pods: bool,
    pub now: Time,
}

/// Decides the next step of a deployment.
pub fn decide(observed: &Observed<'_>) -> Vec<Action> {
    let deployment = observed.deployment;
    let (new, old) = split(deployment, observed.sets);
    let mut plan = Plan {
        deployment,
        wanted: Wanted::of(deployment),
        before: observed.sets,
        created: false,
        status: deployment.status.clone().unwrap_or_default(),
        now: observed.now.clone(),
        new,
        old,
        deleted: vec![],
    };
    if deployment.metadata.deletion_timestamp.is_some() {
        return vec![plan.final_status(false)].into_iter().flatten().collect();
    }
    status::pause(&mut plan.status, deployment, &plan.now);
    plan.sync_revision();
    let rollout = if is_paused(deployment) || plan.is_scaled() {
        plan.scale();
        if is_paused(deployment) {
            plan.clean_up();
        }
        false
    } else {
        plan.roll(observed.old_pods);
        true
    };
    plan.actions(rollout)
}

struct Plan<'a> {
    deployment: &'a Deployment,
    wanted: Wanted,
    before: &'a [ReplicaSet],
    new: Option<ReplicaSet>,
    created: bool,
    /// The others, from old to young.
    old: Vec<ReplicaSet>,
    status: DeploymentStatus,
    deleted: Vec<String>,
    now: Time,
}

impl Plan<'_> {
    /// The differences between what there was and what is wanted by now.
    fn actions(&self, rollout: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        for set in self.new.iter().chain(&self.old) {
            match self.before.iter().find(|before| name(before) == name(set)) {
                None => actions.push(Action::Create(Box::new(set.clone()))),
                Some(before) if before == set => {}
                Some(before) => actions.push(Action::Update { set: Box::new(set.clone()), from: replicas(before) }),
            }
        }
        let revision = self.new.as_ref().and_then(|new| annotation(new, REVISION));
        let present = self.deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
        if let Some(revision) = revision.filter(|revision| present.is_none_or(|p| p != revision)) {
            actions.push(Action::Revision(revision.to_owned()));
        }
        actions.extend(self.deleted.iter().cloned().map(Action::Delete));
        actions.extend(self.final_status(rollout));
        actions
    }

    fn final_status(&self, rollout: bool) -> Option<Action> {
        let mut status = self.status.clone();
        status::count(&mut status, self.deployment, self.wanted, (self.new.as_ref(), &self.old), &self.now);
        if self.created {
            status::created(&mut status, self.deployment, self.new.as_ref(), &self.now);
        } else if rollout {
            status::progress(&mut status, self.deployment, self.new.as_ref(), &self.old, &self.now);
        }
        let before = self.deployment.status.clone().unwrap_or_default();
        (!status::same(&before, &status)).then(|| Action::Status(Box::new(status)))
    }

    /// Brings the new replica set's annotations and minReadySeconds to what the deployment says.
    fn sync_revision(&mut self) {
        let next = self.old.iter().map(revision).max().unwrap_or(0) + 1;
        let Some(new) = &mut self.new else { return };
        annotate(new, self.deployment, next);
        let min_ready = self.deployment.spec.min_ready_seconds;
        if new.spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0) {
            new.spec.min_ready_seconds = min_ready;
        }
        if deadline(self.deployment).is_some() {
            status::found(&mut self.status, new, &self.now);
        }
    }

    /// Whether the deployment's number was changed since its replica sets were written.
    fn is_scaled(&self) -> bool {
        let mut active = self.new.iter().chain(&self.old).filter(|rs| replicas(rs) > 0);
        active.any(|rs| annotated_number(rs, DESIRED).is_some_and(|desired| desired != self.wanted.replicas))
    }

    /// A change of number in the middle of anything: the one active replica set takes it, or all in proportion.
    fn scale(&mut self) {
        let wanted = self.wanted;
        let active = self.new.iter().chain(&self.old).filter(|rs| replicas(rs) > 0).count();
        if active <= 1 {
            let sets = self.new.iter_mut().chain(self.old.iter_mut().rev());
            let mut sets: Vec<&mut ReplicaSet> = sets.collect();
            let at = sets.iter().position(|rs| replicas(rs) > 0).unwrap_or(0);
            if let Some(set) = sets.get_mut(at).filter(|set| replicas(set) != wanted.replicas) {
                resize(set, wanted.replicas, wanted);
            }
            return;
        }
        if self.new.as_ref().is_some_and(|new| is_saturated(new, wanted)) {
            self.old.iter_mut().filter(|rs| replicas(rs) > 0).for_each(|rs| resize(rs, 0, wanted));
            return;
        }
        if !wanted.recreate {
            self.scale_in_proportion();
        }
    }

    fn scale_in_proportion(&mut self) {
        let wanted = self.wanted;
        let total_before = self.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        let mut active: Vec<&mut ReplicaSet> =
            self.new.iter_mut().chain(&mut self.old).filter(|rs| replicas(rs) > 0).collect();
        let allowed = if wanted.replicas > 0 { wanted.max_total() } else { 0 };
        let to_add = allowed - active.iter().map(|rs| replicas(rs)).sum::<i32>();
        // The largest first; of equals the younger first to grow, the older first to shrink.
        active.sort_by_key(|rs| (rs.metadata.creation_timestamp.clone(), rs.metadata.name.clone()));
        if to_add > 0 {
            active.reverse();
        }
        active.sort_by_key(|rs| -replicas(rs));
        let mut added = 0;
        let mut sizes: Vec<i32> = Vec::new();
        for rs in &active {
            let left = to_add - added;
            let share = if left == 0 { 0 } else { fraction(rs, wanted, total_before) };
            let share = if to_add > 0 { share.min(left) } else { share.max(left) };
            added += share;
            sizes.push(replicas(rs) + share);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (rs, size) in active.into_iter().zip(sizes) {
            resize(rs, size, wanted);
        }
    }

    fn roll(&mut self, old_pods: bool) {
        if self.wanted.recreate {
            self.recreate(old_pods);
        } else {
            self.roll_over();
        }
    }

    fn roll_over(&mut self) {
        self.ensure_new();
        let wanted = self.wanted;
        let total: i32 = self.new.iter().chain(&self.old).map(replicas).sum();
        let Some(new) = &mut self.new else { return };
        if self.created {
            return;
        }
        let size = if replicas(new) > wanted.replicas { wanted.replicas } else { grown(new, total, wanted) };
        if size != replicas(new) {
            resize(new, size, wanted);
            return;
        }
        let (new_size, new_available) = (replicas(new), available(new));
        if self.shrink_old(total, new_size, new_available) {
            return;
        }
        self.clean_up_if_complete();
    }

    /// Scales the old replica sets down as far as availability allows; says whether it did.
    fn shrink_old(&mut self, total: i32, new_size: i32, new_available: i32) -> bool {
        let wanted = self.wanted;
        let removable = total - wanted.min_available() - (new_size - new_available);
        if removable <= 0 || self.old.iter().all(|rs| replicas(rs) == 0) {
            return false;
        }
        let mut changed = false;
        // What is unavailable anyway goes first.
        let mut left = removable;
        for rs in self.old.iter_mut().filter(|rs| replicas(rs) > available(rs)) {
            let count = left.min(replicas(rs) - available(rs));
            if count > 0 {
                left -= count;
                changed = true;
                resize(rs, replicas(rs) - count, wanted);
            }
        }
        let total_available: i32 = new_available + self.old.iter().map(available).sum::<i32>();
        let mut left = total_available - wanted.min_available();
        for rs in &mut self.old {
            let count = left.min(replicas(rs));
            if count > 0 {
                left -= count;
                changed = true;
                resize(rs, replicas(rs) - count, wanted);
            }
        }
        changed
    }

    fn recreate(&mut self, old_pods: bool) {
        let wanted = self.wanted;
        if self.old.iter().any(|rs| replicas(rs) > 0) {
            self.old.iter_mut().filter(|rs| replicas(rs) > 0).for_each(|rs| resize(rs, 0, wanted));
            return;
        }
        if old_pods || self.old.iter().any(|rs| actual(rs) > 0) {
            return;
        }
        self.ensure_new();
        if let Some(new) = self.new.as_mut().filter(|new| replicas(new) != wanted.replicas) {
            resize(new, wanted.replicas, wanted);
        }
        self.clean_up_if_complete();
    }

    fn ensure_new(&mut self) {
        if self.new.is_some() {
            return;
        }
        let mut new = new_set(self.deployment);
        let next = self.old.iter().map(revision).max().unwrap_or(0) + 1;
        annotate(&mut new, self.deployment, next);
        let total: i32 = self.old.iter().map(replicas).sum();
        let size = if self.wanted.recreate { self.wanted.replicas } else { grown(&new, total, self.wanted) };
        resize(&mut new, size, self.wanted);
        self.new = Some(new);
        self.created = true;
    }

    fn clean_up_if_complete(&mut self) {
        let status = self.deployment.status.clone().unwrap_or_default();
        if status::is_complete(&status, self.deployment, self.wanted.replicas) {
            self.clean_up();
        }
    }

    /// Deletes the oldest replica sets beyond the history's limit, as far as nothing is left of them.
    fn clean_up(&mut self) {
        let limit = self.deployment.spec.revision_history_limit;
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX).and_then(|l| usize::try_from(l).ok()) else {
            return;
        };
        let mut alive: Vec<&ReplicaSet> =
            self.old.iter().filter(|rs| rs.metadata.deletion_timestamp.is_none()).collect();
        alive.sort_by_key(|rs| revision(rs));
        let surplus = alive.len().saturating_sub(limit);
        let idle = |rs: &&&ReplicaSet| {
            let observed = rs.status.as_ref().and_then(|status| status.observed_generation);
            actual(rs) == 0 && replicas(rs) == 0 && rs.metadata.generation <= observed
        };
        self.deleted = alive.iter().take(surplus).filter(idle).map(|rs| name(rs).to_owned()).collect();
    }
}

/// How far the new replica set may grow among `total` replicas.
fn grown(new: &ReplicaSet, total: i32, wanted: Wanted) -> i32 {
    let room = (wanted.max_total() - total).max(0);
    replicas(new) + room.min(wanted.replicas - replicas(new))
}

/// How a replica set's share changes when the deployment's size does.
fn fraction(rs: &ReplicaSet, wanted: Wanted, total_before: i32) -> i32 {
    if wanted.replicas == 0 {
        return -replicas(rs);
    }
    let before = annotated_number(rs, MAX).filter(|max| *max > 0).unwrap_or(total_before);
    if before == 0 {
        return 0;
    }
    let size = f64::from(replicas(rs)) * f64::from(wanted.max_total()) / f64::from(before);
    // The size is at most that of the deployment.
    #[allow(clippy::cast_possible_truncation)]
    let rounded = size.round() as i32;
    rounded - replicas(rs)
}

/// Whether the new replica set has all that the deployment wants.
fn is_saturated(new: &ReplicaSet, wanted: Wanted) -> bool {
    replicas(new) == wanted.replicas
        && annotated_number(new, DESIRED) == Some(wanted.replicas)
        && available(new) == wanted.replicas
}

fn resize(rs: &mut ReplicaSet, size: i32, wanted: Wanted) {
    rs.spec.replicas = Some(size);
    let annotations = rs.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.into(), wanted.replicas.to_string());
    annotations.insert(MAX.into(), wanted.max_total().to_string());
}

/// Copies the deployment's annotations to its new replica set and raises its revision to `next`; the revision that
/// it had, if it is an older one come back, goes to its history.
fn annotate(new: &mut ReplicaSet, deployment: &Deployment, next: i64) {
    let own = [REVISION, REVISION_HISTORY, DESIRED, MAX, "kubectl.kubernetes.io/last-applied-configuration"];
    let own = |key: &str| own.contains(&key) || key == "deprecated.deployment.rollback.to";
    let former = annotation(new, REVISION).map(str::to_owned);
    let annotations = new.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten().filter(|(key, _)| !own(key)) {
        annotations.insert(key.clone(), value.clone());
    }
    let former_number = former.as_deref().map_or(Some(0), |revision| revision.parse::<i64>().ok());
    if former_number.is_none_or(|former| former >= next) {
        return;
    }
    annotations.insert(REVISION.into(), next.to_string());
    let Some(former) = former else { return };
    let history = annotations.get(REVISION_HISTORY).filter(|history| !history.is_empty());
    let mut history = history.map_or(former.clone(), |history| format!("{history},{former}"));
    while history.len() > MAX_HISTORY {
        history = history.split_once(',').map_or(String::new(), |(_, rest)| rest.to_owned());
    }
    annotations.insert(REVISION_HISTORY.into(), history);
}

/// The replica set of the deployment's present template, without number.
fn new_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash::of_template(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let mut set = ReplicaSet::default();
    let prefix: String = deployment.metadata.name.iter().flat_map(|name| name.chars()).take(252 - hash.len()).collect();
    set.metadata.name = Some(format!("{prefix}-{hash}"));
    set.metadata.namespace = deployment.metadata.namespace.clone();
    set.metadata.labels = Some(labels.clone());
    set.metadata.owner_references = Some(vec![ownership::reference(deployment)]);
    set.spec = ReplicaSetSpec {
        replicas: Some(0),
        min_ready_seconds: spec.min_ready_seconds,
        selector,
        template: Some(template),
    };
    set
}
