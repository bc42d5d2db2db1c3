//! Keeps mounted configMaps, secrets and tokens as the API has them.

use std::collections::BTreeSet;
use std::time::Duration;

use lifecycle::Stop;

use super::Volumes;

/// How often tokens are looked at.
const TOKEN_TICK: Duration = Duration::from_secs(30);
/// How soon a volume that could not be brought up to date is tried again.
const RETRY: Duration = Duration::from_secs(10);

impl Volumes {
    /// Brings mounted volumes up to date, within moments of a change, until `stop`. For each pod with an object that
    /// changed, `changed` is called with the pod's uid, after the update of its volumes: a pod that waits for its volumes should then be
    /// tried at once.
    pub async fn run(&self, stop: Stop, changed: impl Fn(&str)) {
        let mut tick = tokio::time::interval(TOKEN_TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed: BTreeSet<String> = BTreeSet::new();
        loop {
            let retry = tokio::time::sleep(RETRY);
            let mut pods: BTreeSet<String> = tokio::select! {
                () = stop.stopped() => return,
                keys = self.inner.objects.changes() => {
                    keys.iter().flat_map(|key| self.inner.objects.read_by(key)).for_each(|uid| changed(&uid));
                    keys.iter().flat_map(|key| self.inner.objects.mounted_by(key)).collect()
                }
                _ = tick.tick() => self.inner.tokens.due().into_iter().collect(),
                () = retry, if !failed.is_empty() => std::mem::take(&mut failed),
            };
            pods.append(&mut failed);
            for uid in pods {
                if !self.refresh(&uid).await {
                    failed.insert(uid.clone());
                }
                changed(&uid);
            }
        }
    }

    /// True if the pod's volumes are as they should be, or the pod is gone, or it was never set up whole: then its
    /// worker asks again by itself.
    async fn refresh(&self, uid: &str) -> bool {
        let Some(known) = self.pods().get(uid).cloned() else { return true };
        match self.bring_up(known).await {
            Ok(()) => true,
            Err(errors) => {
                for error in &errors {
                    tracing::warn!(pod = %uid, "update a volume: {error}");
                }
                // A missing object tells by itself when it comes.
                errors.iter().all(|e| e.cause.is_missing_object())
            }
        }
    }
}
