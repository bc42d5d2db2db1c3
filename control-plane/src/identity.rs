//! Who asks, and for what: the values that authentication yields and authorization judges.

/// Who made a request, as authentication found out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    /// As `authentication.kubernetes.io/pod-name`; in the order in which the authenticator gave them.
    pub extra: Vec<(String, Vec<String>)>,
}

impl User {
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What a request wants to do: the authorizer's question (`authorization.k8s.io/v1` ResourceAttributes, or
/// NonResourceAttributes where `resource` is empty).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; a lower-case
    /// HTTP method for a path that is no resource.
    pub verb: String,
    pub group: String,
    pub version: String,
    /// The plural, as `pods`.
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// The URL's path.
    pub path: String,
}
