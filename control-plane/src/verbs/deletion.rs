//! What a delete does to an object, as a decision. Source: k8s.io/apiserver `registry/rest` BeforeDelete and
//! `registry/generic/registry` deletionFinalizersForGarbageCollection.

use api::status::{FieldError, Status};
use serde_json::Value;

use super::metadata::finalizers;
use super::{meta, metadata};
use crate::registry::Deletion;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What becomes of an object's dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `metav1.DeleteOptions`, from body and query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    /// The older way to say it; excludes `propagation`.
    pub orphan_dependents: Option<bool>,
    /// Preconditions.
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the object of a body.
    ///
    /// # Errors
    /// 422 where a value is none that the API knows.
    pub fn parse(body: &Value) -> Result<Self, Status> {
        let invalid = |error| Status::invalid("DeleteOptions", "", &[error]);
        let propagation = match body["propagationPolicy"].as_str() {
            None | Some("") => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let known = ["Foreground", "Background", "Orphan"];
                return Err(invalid(FieldError::not_supported("propagationPolicy", other, &known)));
            }
        };
        let orphan_dependents = body["orphanDependents"].as_bool();
        if let (Some(orphan), Some(_)) = (orphan_dependents, propagation) {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            return Err(invalid(FieldError::invalid("propagationPolicy", orphan, why)));
        }
        let text = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        Ok(Self {
            grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
            propagation,
            orphan_dependents,
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            dry_run: body["dryRun"].as_array().is_some_and(|all| all.iter().any(|v| v == "All")),
        })
    }

    /// Why the preconditions do not hold.
    pub(super) fn unmet(&self, object: &Value) -> Option<String> {
        let (uid, version) = (meta(object, "uid"), meta(object, "resourceVersion"));
        match (&self.uid, &self.resource_version) {
            (Some(wanted), _) if wanted != uid => Some(format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might \
                 have been deleted and then recreated"
            )),
            (_, Some(wanted)) if wanted != version => Some(format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
                 ({version}). The object might have been modified"
            )),
            _ => None,
        }
    }

    fn finalizers<'a>(&self, existing: &[&'a str]) -> Vec<&'a str> {
        let has = |name| existing.contains(&name);
        let orphan = match (self.orphan_dependents, self.propagation) {
            (Some(orphan), _) => orphan,
            (_, Some(propagation)) => propagation == Propagation::Orphan,
            _ => has(ORPHAN),
        };
        let foreground = match (self.orphan_dependents, self.propagation) {
            (Some(_), _) => false,
            (_, Some(propagation)) => propagation == Propagation::Foreground,
            _ => has(FOREGROUND),
        };
        let mut kept: Vec<&str> = existing.iter().copied().filter(|f| *f != ORPHAN && *f != FOREGROUND).collect();
        kept.extend(orphan.then_some(ORPHAN));
        kept.extend(foreground.then_some(FOREGROUND));
        kept
    }
}

/// What a delete does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// The object goes at once.
    Gone,
    /// The object is marked, and goes later.
    Marked(Value),
    /// It is on its way already and nothing changes.
    Pending,
}

/// Decides. `deletion` is what the kind's strategy says; `now` in seconds since 1970.
pub(super) fn decide(object: &Value, options: &DeleteOptions, deletion: Deletion, now: i64) -> Verdict {
    let existing = finalizers(object);
    let wanted = options.finalizers(&existing);
    let dying = api::time::parse(meta(object, "deletionTimestamp")).map(|(at, _)| at);
    let grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let (at, seconds) = match (dying, grace) {
        // On its way: only a shorter grace changes that.
        (Some(at), Some(grace)) => match options.grace_period_seconds {
            Some(shorter) if shorter < grace => (at - grace + shorter, shorter.max(0)),
            _ => return Verdict::Pending,
        },
        (Some(at), None) => (at, 0),
        (None, _) => match deletion {
            Deletion::Now => (now, 0),
            Deletion::Graceful { seconds } => (now + seconds, seconds),
        },
    };
    if seconds == 0 && wanted.is_empty() {
        return Verdict::Gone;
    }
    let mut marked = object.clone();
    let Ok(metadata) = metadata::of(&mut marked) else { return Verdict::Gone };
    metadata.insert("deletionTimestamp".into(), api::time::format(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), seconds.into());
    match wanted.is_empty() {
        true => metadata.shift_remove("finalizers"),
        false => metadata.insert("finalizers".into(), wanted.into()),
    };
    if let (None, Some(generation)) = (dying, metadata.get("generation").and_then(Value::as_i64)) {
        metadata.insert("generation".into(), (generation + 1).into());
    }
    Verdict::Marked(marked)
}

/// Whether a dying object has nothing left that keeps it.
pub(super) fn is_over(object: &Value) -> bool {
    !meta(object, "deletionTimestamp").is_empty()
        && finalizers(object).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: i64 = 1_000_000;

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: Some(seconds), ..DeleteOptions::default() }
    }

    fn marked(object: &Value, options: &DeleteOptions, deletion: Deletion) -> Value {
        match decide(object, options, deletion, NOW) {
            Verdict::Marked(object) => object["metadata"].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_second_delete_only_shortens() {
        let thirty = Deletion::Graceful { seconds: 30 };
        let first = json!({"metadata": {"name": "p", "generation": 1}});
        let dying = json!({"metadata": marked(&first, &DeleteOptions::default(), thirty)});
        assert_eq!(dying["metadata"]["deletionTimestamp"], api::time::format(NOW + 30));
        assert_eq!(dying["metadata"]["generation"], 2);
        assert_eq!(decide(&dying, &grace(60), Deletion::Graceful { seconds: 60 }, NOW), Verdict::Pending);
        assert_eq!(decide(&dying, &DeleteOptions::default(), thirty, NOW), Verdict::Pending);
        let sooner = marked(&dying, &grace(5), Deletion::Graceful { seconds: 5 });
        assert_eq!(sooner["deletionTimestamp"], api::time::format(NOW + 5));
        assert_eq!(sooner["generation"], 2);
        assert_eq!(decide(&dying, &grace(0), Deletion::Graceful { seconds: 0 }, NOW), Verdict::Gone);
    }

    #[test]
    fn finalizers_keep_an_object_whose_grace_is_over() {
        let object = json!({"metadata": {"name": "p", "finalizers": ["x"]}});
        let dying = marked(&object, &DeleteOptions::default(), Deletion::Now);
        assert_eq!(dying["deletionGracePeriodSeconds"], 0);
        assert!(!is_over(&json!({"metadata": dying})));
        assert!(is_over(&json!({"metadata": {"deletionTimestamp": "t", "deletionGracePeriodSeconds": 0}})));
    }

    #[test]
    fn propagation_is_written_as_finalizers() {
        let object = json!({"metadata": {"name": "d", "finalizers": ["orphan"]}});
        let foreground = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
        assert_eq!(marked(&object, &foreground, Deletion::Now)["finalizers"], json!(["foregroundDeletion"]));
        let background = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        assert_eq!(decide(&object, &background, Deletion::Now, NOW), Verdict::Gone);
        assert_eq!(marked(&object, &DeleteOptions::default(), Deletion::Now)["finalizers"], json!(["orphan"]));
    }
}
