//! Kinds that are answered and never stored.

use super::ROW;
use crate::registry::Resource;

const REVIEW: Resource = Resource { virtual_only: true, ..ROW };
const AUTHENTICATION: Resource = Resource { group: "authentication.k8s.io", namespaced: false, ..REVIEW };
const AUTHORIZATION: Resource = Resource { group: "authorization.k8s.io", namespaced: false, ..REVIEW };

pub(super) static BINDINGS: Resource = Resource { kind: "Binding", plural: "bindings", singular: "binding", ..REVIEW };

pub(super) static TOKEN_REVIEWS: Resource =
    Resource { kind: "TokenReview", plural: "tokenreviews", singular: "tokenreview", ..AUTHENTICATION };

pub(super) static SELF_SUBJECT_REVIEWS: Resource = Resource {
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    ..AUTHENTICATION
};

pub(super) static SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    singular: "subjectaccessreview",
    ..AUTHORIZATION
};

pub(super) static SELF_SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    ..AUTHORIZATION
};

pub(super) static SELF_SUBJECT_RULES_REVIEWS: Resource = Resource {
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    ..AUTHORIZATION
};

pub(super) static LOCAL_SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    kind: "LocalSubjectAccessReview",
    plural: "localsubjectaccessreviews",
    singular: "localsubjectaccessreview",
    namespaced: true,
    ..AUTHORIZATION
};
