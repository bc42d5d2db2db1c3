//! Controllers and what they control: adoption of orphans that the selector selects, release of what it does not
//! select any more, and the references that say so.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

/// What to do with an object that a controller meets.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Claim {
    /// It is the controller's own.
    Ours,
    /// It belongs to no one, and is selected.
    Adopt,
    /// It is the controller's, and is not selected any more.
    Release,
    Ignore,
}

/// Judges `object`, met by the controller with metadata `controller`; `selected` says whether its selector selects it.
pub fn claim(controller: &ObjectMeta, object: &ObjectMeta, selected: bool) -> Claim {
    let owner = object.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let deleting = controller.deletion_timestamp.is_some();
    match owner {
        Some(owner) if Some(&owner.uid) != controller.uid.as_ref() => Claim::Ignore,
        Some(_) if selected => Claim::Ours,
        Some(_) if deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if deleting || !selected || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// The reference by which `controller` owns an object.
pub fn reference<K: kube::Resource<DynamicType = ()>>(controller: &K) -> OwnerReference {
    let meta = controller.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The strategic merge patch that adds `owner` to the object with this UID, and to no later one of its name.
pub fn adoption(owner: &OwnerReference, uid: Option<&String>) -> Value {
    json!({"metadata": {"uid": uid, "ownerReferences": [owner]}})
}

/// The strategic merge patch that takes the owner with UID `owner` from the object with UID `uid`.
pub fn release(owner: Option<&String>, uid: Option<&String>) -> Value {
    json!({"metadata": {"uid": uid, "ownerReferences": [{"$patch": "delete", "uid": owner}]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims() {
        let controller = ObjectMeta { uid: Some("rs".into()), ..ObjectMeta::default() };
        let owned_by = |uid: &str| ObjectMeta {
            owner_references: Some(vec![OwnerReference {
                uid: uid.into(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        };
        assert_eq!(claim(&controller, &owned_by("rs"), true), Claim::Ours);
        assert_eq!(claim(&controller, &owned_by("rs"), false), Claim::Release);
        assert_eq!(claim(&controller, &owned_by("other"), true), Claim::Ignore);
        assert_eq!(claim(&controller, &ObjectMeta::default(), true), Claim::Adopt);
        assert_eq!(claim(&controller, &ObjectMeta::default(), false), Claim::Ignore);
        let deleted = ObjectMeta { deletion_timestamp: Some(crate::client::now()), ..controller };
        assert_eq!(claim(&deleted, &ObjectMeta::default(), true), Claim::Ignore);
    }
}
