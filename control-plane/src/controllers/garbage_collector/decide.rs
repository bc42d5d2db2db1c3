//! What becomes of an object by the state of its owners.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PropagationPolicy;

use super::graph::{FOREGROUND, ORPHAN};

/// An owner, as the API server shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Solid,
    /// There is no such object.
    Gone,
    /// It is being deleted and waits for its dependents.
    Waiting,
}

/// What is to be done with an object.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// It keeps an owner, and loses the references to those with these UIDs.
    Unlink(Vec<String>),
    Delete(Policy),
}

/// How an object's own dependents are treated.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Policy {
    Background,
    Foreground,
    Orphan,
}

impl From<Policy> for PropagationPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Background => Self::Background,
            Policy::Foreground => Self::Foreground,
            Policy::Orphan => Self::Orphan,
        }
    }
}

/// Decides by the owners (UID and state) of an object, which may have dependents of its own.
pub fn decide(meta: &ObjectMeta, owners: &[(String, Owner)], has_dependents: bool) -> Verdict {
    let any = |state: Owner| owners.iter().any(|(_, owner)| *owner == state);
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if any(Owner::Solid) {
        let lost: Vec<String> = owners.iter().filter(|(_, o)| *o != Owner::Solid).map(|(uid, _)| uid.clone()).collect();
        return if lost.is_empty() { Verdict::Keep } else { Verdict::Unlink(lost) };
    }
    if any(Owner::Waiting) && has_dependents {
        return Verdict::Delete(Policy::Foreground);
    }
    let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
    Verdict::Delete(if has(ORPHAN) {
        Policy::Orphan
    } else if has(FOREGROUND) {
        Policy::Foreground
    } else {
        Policy::Background
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let meta = ObjectMeta::default();
        let orphaning = ObjectMeta { finalizers: Some(vec![ORPHAN.into()]), ..ObjectMeta::default() };
        let owners = |states: &[Owner]| states.iter().map(|s| (format!("{s:?}"), *s)).collect::<Vec<_>>();
        for (meta, states, dependents, expected) in [
            (&meta, &[][..], false, Verdict::Keep),
            (&meta, &[Owner::Solid], false, Verdict::Keep),
            (&meta, &[Owner::Solid, Owner::Gone], false, Verdict::Unlink(vec!["Gone".into()])),
            (&meta, &[Owner::Gone], true, Verdict::Delete(Policy::Background)),
            (&meta, &[Owner::Waiting], true, Verdict::Delete(Policy::Foreground)),
            (&meta, &[Owner::Waiting], false, Verdict::Delete(Policy::Background)),
            (&orphaning, &[Owner::Gone], false, Verdict::Delete(Policy::Orphan)),
        ] {
            assert_eq!(decide(meta, &owners(states), dependents), expected, "{states:?}");
        }
    }
}
